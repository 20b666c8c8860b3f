//! What: the demo's nodes: real ones, made, started, watched and ended through the front door's own verbs.
//! Owns: a node's starter, its worker, what its tally said so far.
//! Invariants: everything a node is stands in its own directory; the demo shares nothing with it but sockets, files and signals.
//! Does not: reach into a node, or decide anything for it.
//! Called by: the demo.

use super::{
    tally::Tally,
    worker::{EXIT_TOLD, hold_file, tally_file},
};
use crate::ask::ask;
use anyhow::{Context, Result, bail};
use deadbolt_cluster::{config::NodeDirectory, supervisor::client};
use deadbolt_trial::{
    Network, Place, Tied,
    children::{own_program, run_to_end, write_to},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long a daemon may take to answer; a busy one is asked again.
const PATIENCE: Duration = Duration::from_millis(500);
/// Pause before a worker is started again after its node was reset.
const WORKER_PAUSE: Duration = Duration::from_millis(200);

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) index: usize,
    directory: NodeDirectory,
    run: PathBuf,
    starter: Option<Tied>,
    worker: Option<Tied>,
    worker_ended: Instant,
    wants_worker: bool,
    is_stubborn: bool,
    tally: Tally,
    tally_offset: u64,
}

impl Node {
    pub(super) fn new(run: &Path, name: &str, index: usize, is_stubborn: bool) -> Self {
        Self {
            name: name.to_owned(),
            index,
            directory: NodeDirectory(run.join(name)),
            run: run.to_path_buf(),
            starter: None,
            worker: None,
            worker_ended: Instant::now(),
            wants_worker: false,
            is_stubborn,
            tally: Tally::default(),
            tally_offset: 0,
        }
    }

    fn said(&self) -> PathBuf {
        self.run.join(format!("said-by-{}", self.name))
    }

    /// `deadbolt VERB ... --dir ...`, in the node's network.
    fn verb(&self, verb: &str) -> Result<Command> {
        let mut command = own_program();
        command.arg(verb).arg("--dir").arg(&self.directory.0);
        Ok(command)
    }

    fn spawn(&mut self, mut command: Command, network: &Network) -> Result<()> {
        write_to(&mut command, &self.said())?;
        self.starter = Some(Tied::spawn(&mut command, network.namespace(self.index))?);
        Ok(())
    }

    /// Arguments that `init` and `join` share.
    fn make(&self, verb: &str, place: &Place, network: &Network) -> Result<Command> {
        let mut command = self.verb(verb)?;
        command.arg(&place.device).args(["--name", &self.name, "--address", &network.own_address(self.index)]);
        command.args(["--watchdog", "process", "--shared-device", "--allow-unprotected", "--tied"]);
        if let Some(announced) = network.announced_address(self.index) {
            command.args(["--announce", &announced]);
        }
        if place.has_pid_namespaces {
            command.arg("--pid-namespace");
        }
        Ok(command)
    }

    /// Begins the cluster.
    pub(super) fn init(&mut self, place: &Place, network: &Network, nodes: usize, stall_ms: u32) -> Result<()> {
        let mut command = self.make("init", place, network)?;
        command.args(["--cluster", "demo", "--nodes", &nodes.to_string(), "--stall", &format!("{stall_ms}ms")]);
        self.spawn(command, network)
    }

    /// Joins with the key of another node.
    pub(super) fn join(&mut self, place: &Place, network: &Network, other: &Path) -> Result<()> {
        let mut command = self.make("join", place, network)?;
        command.arg("--key-file").arg(other);
        self.spawn(command, network)
    }

    /// Starts it again.
    pub(super) fn start(&mut self, network: &Network) -> Result<()> {
        let mut command = self.verb("start")?;
        command.arg("--tied");
        self.spawn(command, network)
    }

    /// Leaves and stops.
    pub(super) fn stop(&mut self, network: &Network) -> Result<()> {
        match run_to_end(self.verb("stop")?, network.namespace(self.index))? {
            (Some(0), _) => {}
            (code, said) => bail!("`deadbolt stop` of {} ended with {code:?}: {}", self.name, said.trim_end()),
        }
        if let Some(starter) = &mut self.starter {
            starter.wait(Duration::from_secs(5));
        }
        self.starter = None;
        Ok(())
    }

    /// The file with the cluster key.
    pub(super) fn key_file(&self) -> PathBuf {
        self.directory.key_file()
    }

    /// What its daemon says; none when it does not answer.
    pub(super) fn status(&self) -> Option<Value> {
        ask(&self.directory, &json!({ "op": "status" }), PATIENCE).ok()
    }

    /// Is it in the view, by its own words? An error when its starter gave up.
    pub(super) fn is_member(&mut self) -> Result<bool> {
        if let Some(code) = self.starter.as_mut().and_then(Tied::ended) {
            let said = std::fs::read_to_string(self.said()).unwrap_or_default();
            bail!("{} ended with {code}: {}", self.name, said.trim_end());
        }
        Ok(self.status().is_some_and(|status| status.get("state").and_then(Value::as_str) == Some("member")))
    }

    /// The present life of its process tree.
    pub(super) fn boot(&self) -> Option<String> {
        client::info(&self.directory.0).ok().map(|info| info.boot)
    }

    /// From now on a worker runs here whenever the node does.
    pub(super) fn want_worker(&mut self) {
        self.wants_worker = true;
    }

    /// Tells the worker to keep the lock it gets next.
    pub(super) fn hold(&self) -> Result<()> {
        File::create(hold_file(&self.run, &self.name)).map(drop).context("hold file")
    }

    /// Takes that back.
    pub(super) fn release(&self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(hold_file(&self.run, &self.name));
    }

    /// Starts the worker again where it ended, and reads what all its lives wrote.
    pub(super) fn tend(&mut self) -> Result<()> {
        if self.worker.as_mut().and_then(Tied::ended).is_some() {
            self.worker = None;
            self.worker_ended = Instant::now();
        }
        if self.worker.is_none() && self.wants_worker && self.worker_ended.elapsed() > WORKER_PAUSE && self.boot().is_some() {
            let mut command = self.verb("demo-worker")?;
            command.arg("--run").arg(&self.run).args(["--name", &self.name]);
            if self.is_stubborn {
                command.arg("--stubborn");
            }
            write_to(&mut command, &self.run.join(format!("said-by-worker-{}", self.name)))?;
            self.worker = Some(Tied::spawn(&mut command, None)?);
        }
        self.read_tally()
    }

    fn read_tally(&mut self) -> Result<()> {
        let Ok(mut file) = File::open(tally_file(&self.run, &self.name)) else { return Ok(()) };
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
            Some(code) => bail!("the worker on {} ended with {code}", self.name),
            None => bail!("the worker on {} did not end", self.name),
        }
    }

    /// Kills every process of the node at once, as a loss of power does. Answers how many there were.
    pub(super) fn kill_outright(&mut self) -> Result<usize> {
        self.wants_worker = false;
        let supervisor = client::info(&self.directory.0).context("finding the node's processes")?.supervisor;
        let starter = self.starter.take();
        let mut all = vec![supervisor];
        collect_descendants(supervisor, &mut all);
        for pid in &all {
            // One that has ended meanwhile is as dead as wanted.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        drop(starter);
        self.worker = None;
        Ok(all.len())
    }

    /// The last lines of its log.
    pub(super) fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.directory.log_file()).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(lines).collect();
        last.into_iter().rev().collect::<Vec<&str>>().join("\n")
    }

    /// Ends it without ceremony and waits until nothing of it is left.
    fn end(&mut self) {
        self.worker = None;
        let supervisor = client::info(&self.directory.0).ok().map(|info| info.supervisor);
        self.starter = None;
        let end = Instant::now() + Duration::from_secs(5);
        while let Some(pid) = supervisor
            && kill(Pid::from_raw(pid), None).is_ok()
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// Process numbers below this one, as the machine sees them.
fn collect_descendants(pid: i32, found: &mut Vec<i32>) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for list in tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()) {
        for child in list.split_whitespace().filter_map(|word| word.parse().ok()) {
            found.push(child);
            collect_descendants(child, found);
        }
    }
}
