//! What: the nodes of the run, each with its crew.
//! Owns: who is up, who is to come back and when; the deeds of the run.
//! Invariants: a crew is started again only on a node that is a member; what ended without a fault of ours stands in the deeds as well.
//! Does not: choose faults.
//! Called by: the run.

use crate::{
    client::hold_file,
    crew::CrewArguments,
    history::{Deed, Log, deeds_file, now_ns},
};
use anyhow::{Context, Result, bail};
use deadbolt_trial::{
    Network, Node, Place, Tied,
    children::{own_program, write_to},
    node::Shape,
};
use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

/// Nodes.
pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Time for a node to become a member on a loaded machine. Chosen.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a node is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Course {
    /// Run.
    Up,
    /// Be started again then.
    Down { until: Instant },
}

/// A node with its crew.
#[derive(Debug)]
pub(crate) struct Seat {
    // In this order: the crew ends before its node.
    crew: Option<Tied>,
    pub(crate) node: Node,
    crews: u32,
    pub(crate) course: Course,
    /// Present clients are to keep what they have until the fault has come.
    is_held: bool,
}

impl Seat {
    pub(crate) fn has_crew(&self) -> bool {
        self.crew.is_some()
    }
}

/// The whole cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    // In this order: nodes end before their network and their device go.
    pub(crate) seats: Vec<Seat>,
    pub(crate) network: Network,
    pub(crate) place: Place,
    deeds: Log,
    clients: u32,
    seed: u64,
    /// A fault explains ends for this long.
    outage: Duration,
    last_fault: Option<Instant>,
}

impl Cluster {
    /// Makes the nodes, and waits until all are members.
    ///
    /// # Errors
    /// One does not come up.
    pub(crate) fn form(place: Place, shape: Shape, clients: u32, seed: u64, outage: Duration) -> Result<Self> {
        let network = Network::namespaces(NODES.len())?;
        let deeds = Log::open(&deeds_file(place.path(), "run"))?;
        let mut cluster = Self { seats: Vec::new(), network, place, deeds, clients, seed, outage, last_fault: None };
        for (index, name) in NODES.iter().enumerate() {
            let mut node = Node::new(cluster.place.path(), name, index);
            match cluster.seats.first() {
                None => node.init("torture", &cluster.place, &cluster.network, shape)?,
                Some(first) => node.join(&cluster.place, &cluster.network, shape, &first.node.directory().key_file())?,
            }
            let begin = Instant::now();
            while !node.is_member()? {
                if begin.elapsed() > PATIENCE {
                    bail!("{name} is no member after {} s; its last words:\n{}", PATIENCE.as_secs(), node.last_words(10));
                }
                std::thread::sleep(LOOK);
            }
            cluster.seats.push(Seat { crew: None, node, crews: 0, course: Course::Up, is_held: false });
        }
        Ok(cluster)
    }

    /// The run's directory.
    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn seat(&mut self, index: usize) -> Result<&mut Seat> {
        self.seats.get_mut(index).context("no such node")
    }

    /// Writes down what is done to a node, before it is done.
    pub(crate) fn tell(&mut self, at: u64, deed: &Deed) -> Result<()> {
        if let Deed::Fault { .. } = deed {
            self.last_fault = Some(Instant::now());
        }
        self.deeds.write(at, deed)
    }

    pub(crate) fn since_last_fault(&self) -> Option<Duration> {
        self.last_fault.map(|last| last.elapsed())
    }

    /// From here on clients of the node that have something in EX keep it, until their node ends.
    pub(crate) fn hold(&mut self, index: usize) -> Result<()> {
        File::create(hold_file(self.path(), index)).context("hold file")?;
        self.seat(index)?.is_held = true;
        Ok(())
    }

    fn release(&mut self, index: usize) -> Result<()> {
        if std::mem::replace(&mut self.seat(index)?.is_held, false) {
            std::fs::remove_file(hold_file(self.path(), index)).context("hold file")?;
        }
        Ok(())
    }

    /// The crew has ended or is ended here.
    pub(crate) fn drop_crew(&mut self, index: usize) -> Result<()> {
        self.seat(index)?.crew = None;
        self.release(index)
    }

    /// The number of the node's present crew.
    pub(crate) fn crew_number(&self, index: usize) -> u32 {
        self.seats.get(index).map_or(0, |seat| seat.crews)
    }

    /// Looks at every node: notes what ended, starts what is due.
    ///
    /// # Errors
    /// A node gave up.
    pub(crate) fn tend(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            let seat = self.seat(index)?;
            if seat.crew.as_mut().and_then(Tied::ended).is_some() {
                self.note_end(index)?;
                self.drop_crew(index)?;
            }
            self.start_if_due(index)?;
        }
        std::thread::sleep(LOOK);
        Ok(())
    }

    /// A crew that ended without a fault of ours: the machine was too slow for its node, or the node has a mistake.
    fn note_end(&mut self, index: usize) -> Result<()> {
        if self.last_fault.is_none_or(|last| last.elapsed() > self.outage) {
            let began = now_ns()?.saturating_sub(u64::try_from(self.outage.as_nanos())?);
            self.tell(began, &Deed::Fault { node: index, kind: "not ours".into() })?;
            println!("          node {} was reset, and not by us", NODES[index]);
        }
        Ok(())
    }

    fn start_if_due(&mut self, index: usize) -> Result<()> {
        let Self { seats, network, .. } = self;
        let seat = seats.get_mut(index).context("no such node")?;
        match seat.course {
            Course::Down { until } if Instant::now() >= until => {
                seat.node.start(network)?;
                seat.course = Course::Up;
            }
            Course::Up if seat.crew.is_none() && seat.node.is_member()? => self.start_crew(index)?,
            _ => {}
        }
        Ok(())
    }

    fn start_crew(&mut self, index: usize) -> Result<()> {
        let nodes = u32::try_from(self.seats.len())?;
        let number = u32::try_from(index)?;
        let clients = self.clients / nodes + u32::from(number < self.clients % nodes);
        let (run, seed) = (self.path().to_path_buf(), self.seed);
        let seat = self.seat(index)?;
        seat.crews += 1;
        let arguments = CrewArguments {
            dir: seat.node.directory().0.clone(),
            run: run.clone(),
            node: index,
            crew: seat.crews,
            clients,
            seed: seed ^ (u64::from(number) << 32) ^ (u64::from(seat.crews) << 40),
            inside: false,
        };
        let mut command = own_program();
        command.args(arguments.words());
        write_to(&mut command, &run.join(format!("said-by-crew-{}", NODES[index])))?;
        seat.crew = Some(Tied::spawn(&mut command, None)?);
        Ok(())
    }

    /// Are all nodes members, with their crews?
    pub(crate) fn is_whole(&self) -> bool {
        self.seats.iter().all(Seat::has_crew)
    }

    /// Tends until `is_over`.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) fn tend_until(&mut self, what: &str, at_most: Duration, mut is_over: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !is_over(self)? {
            if begin.elapsed() > at_most {
                bail!("{what}: not after {} s", at_most.as_secs());
            }
            self.tend()?;
        }
        Ok(())
    }

    /// Waits until all nodes are members with their crews.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) fn make_whole(&mut self) -> Result<()> {
        self.tend_until("all nodes come back", PATIENCE, |cluster| Ok(cluster.is_whole()))
    }

    /// Waits until every crew, whose clients were told to end, has ended; says which did not.
    ///
    /// # Errors
    /// A node cannot be looked at.
    pub(crate) fn end_crews(&mut self, at_most: Duration) -> Result<Vec<&'static str>> {
        let end = Instant::now() + at_most;
        let mut late = Vec::new();
        for (index, name) in NODES.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let ended = self.seat(index)?.crew.as_mut().and_then(|crew| crew.wait(left));
            if ended != Some(0) {
                late.push(*name);
            }
        }
        Ok(late)
    }
}
