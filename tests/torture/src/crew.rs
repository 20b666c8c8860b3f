//! What: the clients of one node: started, killed at random with SIGKILL, started again.
//! Owns: the places of the crew, and when whom it kills.
//! Invariants: that a client lived stands in the deeds before it is killed; everything of a crew is inside its node and ends with it.
//! Does not: know what its clients do.
//! Called by: the run, which starts it; by itself, inside the node's tree.

use crate::{
    client::stop_file,
    history::{Deed, LifeName, Log, deeds_file, now_ns},
};
use anyhow::{Result, bail};
use clap::Args;
use deadbolt_cluster::supervisor::{self, client::RunRequest};
use deadbolt_simulator::random::Random;
use deadbolt_trial::{
    Tied,
    children::{OWN_PROGRAM, own_program},
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often it looks at its clients.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before a place is filled again.
const PAUSE: Duration = Duration::from_millis(200);

/// Present while nobody is to be killed any more.
pub(crate) fn calm_file(run: &Path) -> PathBuf {
    run.join("calm")
}

/// Arguments of a crew.
#[derive(Debug, Args)]
pub(crate) struct CrewArguments {
    /// Directory of its node
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Directory of the run
    #[arg(long)]
    pub(crate) run: PathBuf,
    /// Index of its node
    #[arg(long)]
    pub(crate) node: usize,
    /// Which crew of the node
    #[arg(long)]
    pub(crate) crew: u32,
    /// How many clients
    #[arg(long)]
    pub(crate) clients: u32,
    /// Of its draws
    #[arg(long)]
    pub(crate) seed: u64,
    /// Set when this runs inside the node's tree already
    #[arg(long)]
    pub(crate) inside: bool,
}

impl CrewArguments {
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["torture".into(), "crew".into()];
        words.extend(["--dir".into(), self.dir.clone().into(), "--run".into(), self.run.clone().into()]);
        let numbers = [
            ("--node", self.node.to_string()),
            ("--crew", self.crew.to_string()),
            ("--clients", self.clients.to_string()),
            ("--seed", self.seed.to_string()),
        ];
        words.extend(numbers.into_iter().flat_map(|(name, number)| [name.into(), number.into()]));
        words.extend(self.inside.then(|| "--inside".into()));
        words
    }
}

/// One place of the crew.
struct Place {
    name: LifeName,
    client: Option<Tied>,
    ended: Instant,
    is_finished: bool,
}

/// Runs a crew until its clients were told to end and did.
///
/// # Errors
/// The node's tree ended, or a file cannot be used.
pub(crate) fn run(arguments: CrewArguments) -> Result<u8> {
    if arguments.inside {
        return Crew::new(arguments)?.tend();
    }
    let inside = CrewArguments { inside: true, ..arguments };
    let argv = std::iter::once(OWN_PROGRAM.into()).chain(inside.words()).collect();
    let ended = supervisor::client::run(&inside.dir, &RunRequest::here(argv)?)?;
    if let Some(error) = ended.error {
        bail!("{error}");
    }
    Ok(u8::try_from(ended.exit).unwrap_or(1))
}

struct Crew {
    arguments: CrewArguments,
    random: Random,
    deeds: Log,
    places: Vec<Place>,
    next_kill: Instant,
}

impl Crew {
    fn new(arguments: CrewArguments) -> Result<Self> {
        let CrewArguments { node, crew, clients, seed, .. } = arguments;
        let deeds = Log::open(&deeds_file(&arguments.run, &format!("crew-{node}-{crew}")))?;
        let place = |slot| Place {
            name: LifeName { node, crew, slot, life: 0 },
            client: None,
            ended: Instant::now().checked_sub(PAUSE).unwrap_or_else(Instant::now),
            is_finished: false,
        };
        let places = (0..clients).map(place).collect();
        Ok(Self { random: Random::new(seed), deeds, places, next_kill: Instant::now() + Duration::from_secs(1), arguments })
    }

    fn tend(mut self) -> Result<u8> {
        let (stop, calm) = (stop_file(&self.arguments.run), calm_file(&self.arguments.run));
        while self.places.iter().any(|place| !place.is_finished) {
            let is_stopping = stop.exists();
            for index in 0..self.places.len() {
                self.tend_place(index, is_stopping)?;
            }
            if Instant::now() >= self.next_kill && !calm.exists() {
                self.kill_one()?;
                self.next_kill = Instant::now() + Duration::from_millis(self.random.range(100, 1500));
            }
            std::thread::sleep(LOOK);
        }
        Ok(0)
    }

    fn tend_place(&mut self, index: usize, is_stopping: bool) -> Result<()> {
        let Some(place) = self.places.get_mut(index) else { return Ok(()) };
        if let Some(code) = place.client.as_mut().and_then(Tied::ended) {
            place.client = None;
            place.ended = Instant::now();
            place.name.life += 1;
            place.is_finished = is_stopping && code == 0;
        }
        if place.client.is_none() && !place.is_finished && place.ended.elapsed() >= PAUSE {
            let CrewArguments { dir, run, .. } = &self.arguments;
            let mut command = own_program();
            command.args(["torture", "client", "--life", &place.name.to_string(), "--seed", &self.random.number().to_string()]);
            command.arg("--dir").arg(dir).arg("--run").arg(run);
            place.client = Some(Tied::spawn(&mut command, None)?);
        }
        Ok(())
    }

    /// Kills a client with SIGKILL, if the drawn one lives.
    fn kill_one(&mut self) -> Result<()> {
        let index = self.random.index(self.places.len());
        let Some(Place { name, client: Some(client), .. }) = self.places.get_mut(index) else { return Ok(()) };
        let at = now_ns()?;
        // It has not been reaped, and had not ended after that moment.
        if client.ended().is_none() {
            self.deeds.write(at, &Deed::Killed { life: *name })?;
            client.child().kill()?;
        }
        Ok(())
    }
}
