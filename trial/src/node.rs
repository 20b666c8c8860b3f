//! What: a trial node: a real one, made, started, watched and ended through the front door's own verbs.
//! Owns: the process that started it.
//! Invariants: everything a node is stands in its own directory; its maker shares nothing with it but sockets, files and signals.
//! Does not: reach into a node, or decide anything for it.
//! Called by: demo, benchmarks, torture.

use crate::{
    Network, Place, Tied,
    children::{own_program, run_to_end, write_to},
};
use anyhow::{Context, Result, bail};
use deadbolt_cluster::{ask::ask, config::NodeDirectory, supervisor::client};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long a daemon may take to answer; a busy one is asked again.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a cluster of trial nodes has in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// How many nodes it will have.
    pub nodes: usize,
    /// How long a storage stall they tolerate.
    pub stall_ms: u32,
    /// Each node gets a PID namespace.
    pub has_pid_namespaces: bool,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    index: usize,
    directory: NodeDirectory,
    said: PathBuf,
    starter: Option<Tied>,
}

impl Node {
    /// A node that is not made yet, below this directory.
    #[must_use]
    pub fn new(run: &Path, name: &str, index: usize) -> Self {
        let (directory, said) = (NodeDirectory(run.join(name)), run.join(format!("said-by-{name}")));
        Self { name: name.to_owned(), index, directory, said, starter: None }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place among the nodes.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &NodeDirectory {
        &self.directory
    }

    /// `deadbolt VERB --dir DIRECTORY`.
    #[must_use]
    pub fn verb(&self, verb: &str) -> Command {
        let mut command = own_program();
        command.arg(verb).arg("--dir").arg(&self.directory.0);
        command
    }

    fn spawn(&mut self, mut command: Command, network: &Network) -> Result<()> {
        write_to(&mut command, &self.said)?;
        self.starter = Some(Tied::spawn(&mut command, network.namespace(self.index))?);
        Ok(())
    }

    /// Arguments that `init` and `join` share.
    fn make(&self, verb: &str, place: &Place, network: &Network, shape: Shape) -> Command {
        let mut command = self.verb(verb);
        command.arg(&place.device).args(["--name", &self.name, "--address", &network.own_address(self.index)]);
        command.args(["--watchdog", "process", "--shared-device", "--allow-unprotected", "--tied"]);
        if let Some(announced) = network.announced_address(self.index) {
            command.args(["--announce", &announced]);
        }
        if shape.has_pid_namespaces {
            command.arg("--pid-namespace");
        }
        command
    }

    /// Begins the cluster.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn init(&mut self, cluster: &str, place: &Place, network: &Network, shape: Shape) -> Result<()> {
        let mut command = self.make("init", place, network, shape);
        command.args(["--cluster", cluster, "--nodes", &shape.nodes.to_string(), "--stall", &format!("{}ms", shape.stall_ms)]);
        self.spawn(command, network)
    }

    /// Joins with the key of another node.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn join(&mut self, place: &Place, network: &Network, shape: Shape, key: &Path) -> Result<()> {
        let mut command = self.make("join", place, network, shape);
        command.arg("--key-file").arg(key);
        self.spawn(command, network)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, network: &Network) -> Result<()> {
        let mut command = self.verb("start");
        command.arg("--tied");
        self.spawn(command, network)
    }

    /// Starts it again by the separate programs of a package.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_by(&mut self, programs: &Path, network: &Network) -> Result<()> {
        let mut command = Command::new(programs.join("deadboltd"));
        command.args(["--supervise", "--tied", &std::process::id().to_string(), "--dir"]).arg(&self.directory.0);
        self.spawn(command, network)
    }

    /// Leaves and stops.
    ///
    /// # Errors
    /// It did not leave.
    pub fn stop(&mut self, network: &Network) -> Result<()> {
        match run_to_end(self.verb("stop"), network.namespace(self.index))? {
            (Some(0), _) => {}
            (code, said) => bail!("`deadbolt stop` of {} ended with {code:?}: {}", self.name, said.trim_end()),
        }
        if let Some(starter) = &mut self.starter {
            starter.wait(Duration::from_secs(5));
        }
        self.starter = None;
        Ok(())
    }

    /// What its daemon says; none when it does not answer.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        ask(&self.directory, &json!({ "op": "status" }), PATIENCE).ok()
    }

    /// Is it in the view, by its own words?
    ///
    /// # Errors
    /// Its starter gave up.
    pub fn is_member(&mut self) -> Result<bool> {
        if let Some(code) = self.starter.as_mut().and_then(Tied::ended) {
            let said = std::fs::read_to_string(&self.said).unwrap_or_default();
            bail!("{} ended with {code}: {}", self.name, said.trim_end());
        }
        Ok(self.status().is_some_and(|status| status.get("state").and_then(Value::as_str) == Some("member")))
    }

    /// Who started it has ended: it has to be started again.
    pub fn has_ended(&mut self) -> bool {
        self.starter.as_mut().is_none_or(|starter| starter.ended().is_some())
    }

    /// What its supervisor says of its processes.
    ///
    /// # Errors
    /// It does not answer.
    pub fn info(&self) -> Result<client::Info> {
        client::info(&self.directory.0).with_context(|| format!("finding the processes of {}", self.name))
    }

    /// Every process of the node, as the machine numbers them.
    ///
    /// # Errors
    /// They cannot be found.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let supervisor = self.info()?.supervisor;
        Ok(with_descendants(supervisor))
    }

    /// Kills every process of the node at once, as a loss of power does. Answers how many there were.
    ///
    /// # Errors
    /// They cannot be found.
    pub fn kill_outright(&mut self) -> Result<usize> {
        let all = self.processes()?;
        let starter = self.starter.take();
        for pid in &all {
            // One that has ended meanwhile is as dead as wanted.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        drop(starter);
        Ok(all.len())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.directory.log_file()).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(lines).collect();
        last.into_iter().rev().collect::<Vec<&str>>().join("\n")
    }
}

impl Drop for Node {
    /// Ends it without ceremony and waits until nothing of it is left.
    fn drop(&mut self) {
        let supervisor = self.info().ok().map(|info| info.supervisor);
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

/// This process and all below it, as the machine numbers them.
#[must_use]
pub fn with_descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    collect_descendants(pid, &mut all);
    all
}

/// Process numbers below this one.
fn collect_descendants(pid: i32, found: &mut Vec<i32>) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for list in tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()) {
        for child in list.split_whitespace().filter_map(|word| word.parse().ok()) {
            found.push(child);
            collect_descendants(child, found);
        }
    }
}
