//! What: the three nodes that are measured, as `deadbolt demo` makes them.
//! Owns: their place, network and processes; which cores their daemons may use.
//! Invariants: made once, for all rows; gone with the benchmark.
//! Does not: use PID namespaces: the measured processes are found by their numbers.
//! Called by: the measurements of nodes.

use crate::pair::{cores, set_cores_of};
use anyhow::{Context, Result, bail};
use deadbolt_trial::{Network, Node, Place, node::Shape};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Nodes.
const NODES: [&str; 3] = ["a", "b", "c"];
/// The stall that a node tolerates by default; with it a poll is every 250 ms.
const STALL_MS: u32 = 5000;
/// Time for a node to become a member.
const PATIENCE: Duration = Duration::from_secs(40);

/// The cluster.
pub(super) struct Trial {
    // In this order: nodes end before their network and their device go.
    nodes: Vec<Node>,
    network: Network,
    place: Place,
}

impl Trial {
    pub(super) fn start(prefix: &str, programs: Option<&Path>) -> Result<Self> {
        let place = Place::prepare(prefix, false)?;
        let network = if place.may_use_namespaces { Network::namespaces(NODES.len())? } else { Network::relay(NODES.len())? };
        let shape = Shape { nodes: NODES.len(), stall_ms: STALL_MS, has_pid_namespaces: false };
        let nodes = NODES.iter().enumerate().map(|(index, name)| Node::new(place.path(), name, index)).collect();
        let mut trial = Self { nodes, network, place };
        let Self { nodes, network, place } = &mut trial;
        let mut key: Option<PathBuf> = None;
        for node in nodes {
            match &key {
                None => node.init("bench", place, network, shape)?,
                Some(key) => node.join(place, network, shape, key)?,
            }
            key.get_or_insert_with(|| node.directory().key_file());
            wait_for_member(node)?;
            if let Some(programs) = programs {
                node.stop(network)?;
                node.start_by(programs, network)?;
                wait_for_member(node)?;
            }
        }
        Ok(trial)
    }

    /// Nodes reach each other through a kernel's network alone.
    pub(super) fn has_namespaces(&self) -> bool {
        matches!(self.network, Network::Namespaces { .. })
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn socket(&self, index: usize) -> Result<PathBuf> {
        Ok(self.nodes.get(index).context("no such node")?.directory().lock_socket())
    }

    /// Moves the daemons of the first `count` nodes to this core, until the answer goes.
    pub(super) fn pin(&self, count: usize, core: usize) -> Result<Vec<PinnedDaemon>> {
        let pin = |node: &Node| PinnedDaemon::to(node.info()?.daemon.with_context(|| format!("{} has no daemon", node.name()))?, core);
        self.nodes.iter().take(count).map(pin).collect()
    }
}

fn wait_for_member(node: &mut Node) -> Result<()> {
    let begin = Instant::now();
    while !node.is_member()? {
        if begin.elapsed() > PATIENCE {
            bail!("{} is no member after {} s; its last words:\n{}", node.name(), PATIENCE.as_secs(), node.last_words(10));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A daemon on one core.
pub(super) struct PinnedDaemon {
    pid: i32,
    before: Vec<usize>,
}

impl PinnedDaemon {
    fn to(pid: i32, core: usize) -> Result<Self> {
        let pinned = Self { pid, before: cores()? };
        set_cores_of(pid, &[core]).with_context(|| format!("moving process {pid} to core {core}"))?;
        Ok(pinned)
    }
}

impl Drop for PinnedDaemon {
    fn drop(&mut self) {
        // A daemon that has ended needs none.
        let _ = set_cores_of(self.pid, &self.before);
    }
}
