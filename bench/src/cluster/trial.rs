//! What: the nodes that are measured, as `deadbolt demo` makes them.
//! Owns: their place, network and processes; which cores their daemons may use.
//! Invariants: made once, for all rows; gone with the benchmark.
//! Does not: use PID namespaces: the measured processes are found by their numbers.
//! Called by: the measurements of nodes, the benchmark of membership. From the main thread only: the nodes end with the thread that made them.

use crate::pair::{cores, set_cores_of};
use anyhow::{Context, Result, bail};
use deadbolt_trial::{Network, Node, Place, node::Shape};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The stall that a node tolerates by default; with it a poll is every 250 ms.
pub const DEFAULT_STALL_MS: u32 = 5000;
/// Time for a node to become a member.
const PATIENCE: Duration = Duration::from_secs(40);

/// The cluster.
#[derive(Debug)]
pub struct Trial {
    // In this order: nodes end before their network and their device go.
    nodes: Vec<Node>,
    network: Network,
    place: Place,
    programs: Option<PathBuf>,
}

impl Trial {
    /// So many nodes that tolerate such a stall. The directory's name begins with `prefix`; `programs` are those of a package, else nodes
    /// are this very program.
    ///
    /// # Errors
    /// One of them did not become a member.
    pub fn start(prefix: &str, count: usize, stall_ms: u32, programs: Option<&Path>) -> Result<Self> {
        let place = Place::prepare(prefix, false)?;
        let network = if place.may_use_namespaces { Network::namespaces(count)? } else { Network::relay(count)? };
        let shape = Shape { nodes: count, stall_ms, has_pid_namespaces: false };
        let nodes = (0..count).map(|index| Node::new(place.path(), &format!("n{index}"), index)).collect();
        let mut trial = Self { nodes, network, place, programs: programs.map(Path::to_path_buf) };
        let Self { nodes, network, place, .. } = &mut trial;
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
    #[must_use]
    pub fn has_namespaces(&self) -> bool {
        matches!(self.network, Network::Namespaces { .. })
    }

    /// By their indices.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where clients of a node connect.
    ///
    /// # Errors
    /// No such node.
    pub fn socket(&self, index: usize) -> Result<PathBuf> {
        Ok(self.nodes.get(index).context("no such node")?.directory().lock_socket())
    }

    /// What the nodes share.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.place.device
    }

    /// Nobody reaches this node any more.
    ///
    /// # Errors
    /// The network does not obey.
    pub fn cut(&mut self, index: usize) -> Result<()> {
        self.network.cut(index)
    }

    /// Everybody reaches everybody again.
    ///
    /// # Errors
    /// The network does not obey.
    pub fn heal(&mut self) -> Result<()> {
        self.network.heal()
    }

    /// Kills every process of a node at once.
    ///
    /// # Errors
    /// They cannot be found.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes.get_mut(index).context("no such node")?.kill_outright().map(drop)
    }

    /// All are members of one view again; who has ended is started.
    ///
    /// # Errors
    /// They do not come together.
    pub fn mend(&mut self) -> Result<()> {
        let Self { nodes, network, programs, .. } = self;
        for node in &mut *nodes {
            if node.has_ended() {
                match programs {
                    Some(programs) => node.start_by(programs, network)?,
                    None => node.start(network)?,
                }
            }
        }
        let (count, end) = (nodes.len(), Instant::now() + PATIENCE);
        while !nodes.iter().all(|node| members(node) == count) {
            if Instant::now() > end {
                let words: Vec<String> = nodes.iter().map(|node| node.last_words(5)).collect();
                bail!("{count} nodes are no members of one view after {} s; their last words:\n{}", PATIENCE.as_secs(), words.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Moves the daemons of the first `count` nodes to this core, until the answer goes.
    pub(crate) fn pin(&self, count: usize, core: usize) -> Result<Vec<PinnedDaemon>> {
        let pin = |node: &Node| PinnedDaemon::to(node.info()?.daemon.with_context(|| format!("{} has no daemon", node.name()))?, core);
        self.nodes.iter().take(count).map(pin).collect()
    }
}

/// How many a node sees in its view; 0 when it does not answer, or somebody is owed.
fn members(node: &Node) -> usize {
    let count = |field: &str, status: &Value| status.get(field).and_then(Value::as_array).map_or(0, Vec::len);
    node.status().filter(|status| count("owed", status) == 0).map_or(0, |status| count("members", &status))
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
pub(crate) struct PinnedDaemon {
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
