//! What: what is done to nodes during the run.
//! Owns: the kinds of faults and their order.
//! Invariants: a fault stands in the deeds before it is made; every kind comes once before one comes twice.
//! Does not: tell a node anything but by its verbs, a signal or a cut network.
//! Called by: the run.

use crate::{
    cluster::{Cluster, Course, NODES},
    history::{Deed, now_ns},
};
use anyhow::{Context, Result, bail};
use deadbolt_simulator::random::Random;
use deadbolt_trial::children::run_to_end;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::{Duration, Instant};

/// How long clients collect locks that they keep until the fault comes.
const COLLECT: Duration = Duration::from_millis(150);
/// Longest time without network.
const CUT_MAX: Duration = Duration::from_secs(20);

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Every process of a node is killed.
    Node,
    /// Every process of two nodes is killed.
    TwoNodes,
    /// A node is cut off; it loses, and is ended by reboot(2) inside its PID namespace.
    Cut,
    /// The daemon of a node is killed.
    Daemon,
    /// The sbd of a node is killed.
    Sbd,
    /// A node is fenced by an operator.
    Fence,
    /// A node is stopped as an administrator does.
    Stop,
}

const KINDS: [Kind; 7] = [Kind::Node, Kind::Cut, Kind::Daemon, Kind::TwoNodes, Kind::Stop, Kind::Sbd, Kind::Fence];

/// Draws faults.
#[derive(Debug)]
pub(crate) struct Faults {
    random: Random,
    left: Vec<Kind>,
}

impl Faults {
    pub(crate) fn new(random: Random) -> Self {
        Self { random, left: Vec::new() }
    }

    fn next_kind(&mut self) -> Kind {
        if self.left.is_empty() {
            self.left = KINDS.to_vec();
        }
        let index = self.random.index(self.left.len());
        self.left.swap_remove(index)
    }

    /// A pause between the end of one fault and the next.
    pub(crate) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.range(1000, 5000))
    }

    /// Makes one fault; answers with what was done.
    ///
    /// # Errors
    /// It could not be done.
    pub(crate) fn make(&mut self, cluster: &mut Cluster) -> Result<String> {
        let kind = self.next_kind();
        let victim = self.random.index(NODES.len());
        let other = (victim + 1 + self.random.index(NODES.len() - 1)) % NODES.len();
        let at = now_ns()?;
        let mut victims = vec![victim];
        victims.extend((kind == Kind::TwoNodes).then_some(other));
        for victim in &victims {
            cluster.tell(at, &Deed::Fault { node: *victim, kind: format!("{kind:?}") })?;
            if kind != Kind::Stop {
                cluster.hold(*victim)?;
            }
        }
        std::thread::sleep(COLLECT);
        match kind {
            Kind::Node | Kind::TwoNodes => victims.iter().try_for_each(|victim| self.kill_node(cluster, *victim))?,
            Kind::Cut => cut(cluster, victim)?,
            Kind::Daemon => kill_process(cluster, victim, "deadboltd")?,
            Kind::Sbd => kill_process(cluster, victim, "sbd")?,
            Kind::Fence => fence(cluster, victim, other)?,
            Kind::Stop => self.stop(cluster, victim)?,
        }
        let names: Vec<&str> = victims.iter().map(|victim| NODES[*victim]).collect();
        Ok(format!("{kind:?} {}", names.join(" ")))
    }

    fn kill_node(&mut self, cluster: &mut Cluster, victim: usize) -> Result<()> {
        let crew = cluster.crew_number(victim);
        let seat = cluster.seat(victim)?;
        let before = seat.node.processes()?;
        let at = now_ns()?;
        let all_lived = before.iter().all(|pid| lives(*pid));
        seat.node.kill_outright()?;
        seat.course = Course::Down { until: Instant::now() + Duration::from_millis(self.random.range(0, 4000)) };
        if all_lived {
            cluster.tell(at, &Deed::CrewKilled { node: victim, crew })?;
        }
        cluster.drop_crew(victim)
    }

    fn stop(&mut self, cluster: &mut Cluster, victim: usize) -> Result<()> {
        let Cluster { seats, network, .. } = cluster;
        let seat = seats.get_mut(victim).context("no such node")?;
        seat.node.stop(network)?;
        seat.course = Course::Down { until: Instant::now() + Duration::from_millis(self.random.range(0, 2000)) };
        cluster.drop_crew(victim)
    }
}

/// Is it there, and not only waiting to be reaped?
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which may have anything in it but ends with the last bracket.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Until the node has begun another life, or longest.
fn cut(cluster: &mut Cluster, victim: usize) -> Result<()> {
    let boot = cluster.seat(victim)?.node.info()?.boot;
    cluster.network.cut(victim)?;
    let begin = Instant::now();
    while begin.elapsed() < CUT_MAX && cluster.seat(victim)?.node.info().is_ok_and(|info| info.boot == boot) {
        cluster.tend()?;
    }
    cluster.network.heal()
}

/// Kills one of the node's own processes, known by the name under which it was started.
fn kill_process(cluster: &mut Cluster, victim: usize, name: &str) -> Result<()> {
    let pids = cluster.seat(victim)?.node.processes()?;
    let is_it = |pid: &&i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next() == Some(name.as_bytes()) && words.all(|word| word != b"--supervise")
    };
    match pids.iter().find(is_it) {
        Some(pid) => kill(Pid::from_raw(*pid), Signal::SIGKILL).with_context(|| format!("killing {name}")),
        None => bail!("{} has no process {name}", NODES[victim]),
    }
}

fn fence(cluster: &mut Cluster, victim: usize, by: usize) -> Result<()> {
    let mut command = cluster.seat(by)?.node.verb("fence");
    command.args([NODES[victim], "--wait", "60s"]);
    match run_to_end(command, None)? {
        (Some(0), _) => Ok(()),
        (code, said) => bail!("`deadbolt fence {}` ended with {code:?}: {}", NODES[victim], said.trim_end()),
    }
}
