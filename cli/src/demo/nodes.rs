//! What: the demo's nodes: trial nodes, each with a worker.
//! Owns: a node's worker, what its tally said so far.
//! Invariants: a worker that ended is started again while it is wanted.
//! Does not: count.
//! Called by: the demo.

use super::{
    tally::Tally,
    worker::{EXIT_TOLD, hold_file, tally_file},
};
use anyhow::{Context, Result, bail};
use deadbolt_trial::{Tied, children::write_to, node};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Pause before a worker is started again after its node was reset.
const WORKER_PAUSE: Duration = Duration::from_millis(200);

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    // In this order: the worker ends before its node.
    worker: Option<Tied>,
    node: node::Node,
    run: PathBuf,
    worker_ended: Instant,
    wants_worker: bool,
    is_stubborn: bool,
    tally: Tally,
    tally_offset: u64,
}

impl Deref for Node {
    type Target = node::Node;

    fn deref(&self) -> &node::Node {
        &self.node
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut node::Node {
        &mut self.node
    }
}

impl Node {
    pub(super) fn new(run: &Path, name: &str, index: usize, is_stubborn: bool) -> Self {
        Self {
            worker: None,
            node: node::Node::new(run, name, index),
            run: run.to_path_buf(),
            worker_ended: Instant::now(),
            wants_worker: false,
            is_stubborn,
            tally: Tally::default(),
            tally_offset: 0,
        }
    }

    /// The present life of its process tree.
    pub(super) fn boot(&self) -> Option<String> {
        self.info().ok().map(|info| info.boot)
    }

    /// From now on a worker runs here whenever the node does.
    pub(super) fn want_worker(&mut self) {
        self.wants_worker = true;
    }

    /// Tells the worker to keep the lock it gets next.
    pub(super) fn hold(&self) -> Result<()> {
        File::create(hold_file(&self.run, self.name())).map(drop).context("hold file")
    }

    /// Takes that back.
    pub(super) fn release(&self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(hold_file(&self.run, self.name()));
    }

    /// Starts the worker again where it ended, and reads what all its lives wrote.
    pub(super) fn tend(&mut self) -> Result<()> {
        if self.worker.as_mut().and_then(Tied::ended).is_some() {
            self.worker = None;
            self.worker_ended = Instant::now();
        }
        if self.worker.is_none() && self.wants_worker && self.worker_ended.elapsed() > WORKER_PAUSE && self.boot().is_some() {
            let mut command = self.verb("demo-worker");
            command.arg("--run").arg(&self.run).args(["--name", self.name()]);
            if self.is_stubborn {
                command.arg("--stubborn");
            }
            write_to(&mut command, &self.run.join(format!("said-by-worker-{}", self.name())))?;
            self.worker = Some(Tied::spawn(&mut command, None)?);
        }
        self.read_tally()
    }

    fn read_tally(&mut self) -> Result<()> {
        let Ok(mut file) = File::open(tally_file(&self.run, self.name())) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.tally_offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        self.tally_offset += u64::try_from(text.len()).unwrap_or(0);
        self.tally.add(&text);
        Ok(())
    }

    /// What its worker wrote so far.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Acknowledged increments so far.
    pub(super) fn done(&self) -> u64 {
        u64::try_from(self.tally.done.len()).unwrap_or(u64::MAX)
    }

    /// Waits until the worker, which was told, has ended.
    pub(super) fn end_worker(&mut self, at_most: Duration) -> Result<()> {
        self.wants_worker = false;
        let ended = self.worker.as_mut().map_or(Some(0), |worker| worker.wait(at_most));
        self.worker = None;
        self.read_tally()?;
        match ended {
            Some(code) if code == i32::from(EXIT_TOLD) => Ok(()),
            Some(code) => bail!("the worker on {} ended with {code}", self.name()),
            None => bail!("the worker on {} did not end", self.name()),
        }
    }

    /// Kills every process of the node at once. Answers how many there were.
    pub(super) fn kill_all(&mut self) -> Result<usize> {
        self.wants_worker = false;
        let processes = self.node.kill_outright()?;
        self.worker = None;
        Ok(processes)
    }
}
