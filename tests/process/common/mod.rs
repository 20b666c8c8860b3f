//! What: clusters of real nodes for tests, made through the front door's verbs.
//! Owns: a locked run directory, an image file, the nodes' processes.
//! Invariants: whatever ends the test ends its nodes: they are tied to the test's thread, and the directory is swept by the next run.
//! Does not: reach into a node.
//! Called by: the tests that run programs.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::missing_docs_in_private_items,
    missing_docs,
    unreachable_pub,
    reason = "test helpers, each used by some of the test programs"
)]

use deadbolt_cluster::supervisor::{RunDirectory, client, sweep};
use deadbolt_trial::{Network, children, network::ip, node::with_descendants};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

const PREFIX: &str = "deadbolt-test-";
pub const IMAGE_BYTES: u64 = 16 << 20;

/// The front door.
pub fn deadbolt() -> Command {
    Command::new(env!("CARGO_BIN_EXE_deadbolt"))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Kills the command's process when this thread ends.
pub fn tie(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) }
}

/// Runs to the end; `Err` with the words of both streams unless it ends in time with the wanted code.
#[track_caller]
pub fn expect(command: &mut Command, code: i32) -> String {
    let output = run(command);
    let said = both(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?} said: {said}");
    said
}

/// Runs to the end, at most a minute.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let child = tie(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if receiver.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(sender);
    guard.join().unwrap();
    output
}

pub fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Waits until `is_over`, at most this long.
#[track_caller]
pub fn wait(what: &str, at_most: Duration, mut is_over: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_over() {
        assert!(begin.elapsed() < at_most, "{what}: not after {at_most:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    begin.elapsed()
}

/// A directory that goes with the test.
pub fn directory() -> RunDirectory {
    let base = std::env::temp_dir();
    let _ = sweep(&base, PREFIX);
    RunDirectory::create(&base, PREFIX).unwrap()
}

pub fn image(path: &Path) -> PathBuf {
    std::fs::File::create(path).unwrap().set_len(IMAGE_BYTES).unwrap();
    path.to_path_buf()
}

/// Processes, mounts and loop devices that name this directory.
pub fn left_of(base: &Path) -> Vec<String> {
    let base = base.to_str().unwrap();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if line.contains(base) || (line.contains("demo-relay") && String::from_utf8_lossy(&environment).contains(base)) {
            left.push(line.replace('\0', " "));
        }
    }
    left.extend(std::fs::read_to_string("/proc/mounts").unwrap().lines().filter(|line| line.contains(base)).map(str::to_owned));
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(base) {
            left.push(backing);
        }
    }
    left
}

/// Nodes on one device.
pub struct Cluster {
    pub device: PathBuf,
    /// The second and the third one, if there are three.
    pub more_devices: Vec<PathBuf>,
    /// Second and third byte of the nodes' loopback addresses.
    network: (u8, u8),
    nodes: Vec<(String, Option<Child>)>,
    /// Where the nodes run, if not all on the loopback addresses of this machine.
    pub namespaces: Option<Network>,
    pub stall: &'static str,
    /// Further arguments of `init` and `join`.
    pub extra: Vec<String>,
    /// Network namespaces of the nodes and their addresses there, in the order of the nodes; empty: loopback.
    pub places: Vec<(Arc<OwnedFd>, Vec<String>)>,
    pub directory: RunDirectory,
}

impl Cluster {
    /// On an image file, nobody in yet.
    pub fn new() -> Self {
        let directory = directory();
        let device = image(&directory.path().join("device"));
        Self::on(directory, device)
    }

    pub fn on(directory: RunDirectory, device: PathBuf) -> Self {
        let random = std::fs::read("/proc/sys/kernel/random/uuid").unwrap();
        let byte = |at: usize| u8::from_str_radix(std::str::from_utf8(&random[at..at + 2]).unwrap(), 16).unwrap();
        Self {
            device,
            more_devices: Vec::new(),
            network: (1 + byte(0) % 250, byte(2)),
            nodes: Vec::new(),
            namespaces: None,
            stall: "1s",
            extra: Vec::new(),
            places: Vec::new(),
            directory,
        }
    }

    /// A cluster of these nodes, all members.
    pub fn of(names: &[&str]) -> Self {
        Self::new().with(names, &[])
    }

    /// All of these become members, made with these further arguments.
    #[must_use]
    pub fn with(mut self, names: &[&str], extra: &[&str]) -> Self {
        self.extra = extra.iter().map(ToString::to_string).collect();
        for name in names {
            self.add(name, names.len());
        }
        self
    }

    /// Each of this many nodes gets a network namespace of its own. None where that cannot be, which is said.
    pub fn in_namespaces(nodes: usize) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        match Network::namespaces(nodes) {
            Ok(network) => {
                let mut cluster = Self::new();
                cluster.namespaces = Some(network);
                Some(cluster)
            }
            Err(reason) => {
                eprintln!("skipped: no network namespaces: {reason:#}");
                None
            }
        }
    }

    /// What node `from` sends to node `to` gets lost from now on, or (`add` false) does not any more.
    pub fn lose(&self, from: usize, to: usize, add: bool) {
        let network = self.namespaces.as_ref().unwrap();
        let verb = if add { "add" } else { "del" };
        ip(&network.namespace(from).unwrap(), &format!("route {verb} blackhole 10.99.0.{}/32", to + 1)).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn address(&self, index: usize) -> String {
        let loopback = || format!("127.{}.{}.{}:7410", self.network.0, self.network.1, index + 1);
        self.namespaces.as_ref().map_or_else(loopback, |network| network.own_address(index))
    }

    pub fn key_file(&self) -> PathBuf {
        self.node(&self.nodes[0].0).join("cluster.key")
    }

    /// `deadbolt VERB --dir DIRECTORY ...`.
    pub fn verb(&self, verb: &str, name: &str) -> Command {
        let mut command = deadbolt();
        let index = self.nodes.iter().position(|(known, _)| known == name).unwrap_or(self.nodes.len());
        if let Some((namespace, _)) = self.places.get(index) {
            children::tie(&mut command, Some(namespace.clone()));
        }
        command.arg(verb).arg("--dir").arg(self.node(name));
        command
    }

    /// `init` or `join`, neither tied nor started.
    pub fn make(&self, verb: &str, name: &str, index: usize) -> Command {
        let mut command = self.verb(verb, name);
        command.arg(&self.device).args(&self.more_devices).args(["--name", name]);
        let addresses = self.places.get(index).map_or_else(|| vec![self.address(index)], |(_, addresses)| addresses.clone());
        for address in addresses {
            command.args(["--address", &address]);
        }
        command.args(["--watchdog", "process", "--shared-device", "--allow-unprotected"]).args(&self.extra);
        if verb == "init" {
            command.args(["--stall", self.stall]);
        } else {
            command.arg("--key-file").arg(self.key_file());
        }
        command
    }

    fn spawn(&mut self, command: Command, name: &str) {
        self.launch(command, name);
        self.wait_member(name);
    }

    fn launch(&mut self, mut command: Command, name: &str) {
        let said = std::fs::File::create(self.path().join(format!("said-by-{name}"))).unwrap();
        command.arg("--tied").stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let index = self.nodes.iter().position(|(known, _)| known == name).unwrap_or(self.nodes.len());
        match self.namespaces.as_ref().and_then(|network| network.namespace(index)) {
            Some(namespace) => deadbolt_trial::children::tie(&mut command, Some(namespace)),
            None => {
                tie(&mut command);
            }
        }
        let child = command.spawn().unwrap();
        match self.nodes.iter_mut().find(|(known, _)| known == name) {
            Some((_, place)) => *place = Some(child),
            None => self.nodes.push((name.to_owned(), Some(child))),
        }
    }

    /// Makes and starts the next node; the first one begins the cluster.
    pub fn add(&mut self, name: &str, of: usize) {
        let index = self.nodes.len();
        let verb = if index == 0 { "init" } else { "join" };
        let mut command = self.make(verb, name, index);
        if index == 0 {
            command.args(["--nodes", &of.to_string()]);
        }
        self.spawn(command, name);
    }

    /// Starts a node that was stopped.
    pub fn start(&mut self, name: &str) {
        let command = self.verb("start", name);
        self.spawn(command, name);
    }

    /// Starts nodes that may need each other for it.
    pub fn start_together(&mut self, names: &[&str]) {
        for name in names {
            let command = self.verb("start", name);
            self.launch(command, name);
        }
        self.wait_members(names);
    }

    pub fn stop(&mut self, name: &str) {
        expect(&mut self.verb("stop", name), 0);
    }

    /// Kills every process of the node at once, as a loss of power does.
    pub fn kill_outright(&mut self, name: &str) {
        for pid in with_descendants(self.info(name).unwrap().supervisor) {
            // One that has ended meanwhile is as dead as wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let starter = self.nodes.iter_mut().find(|(known, _)| known == name).and_then(|(_, child)| child.take());
        starter.unwrap().wait().unwrap();
    }

    pub fn status(&self, name: &str) -> Option<Value> {
        let output = run(self.verb("status", name).arg("--json"));
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn field(&self, name: &str, field: &str) -> Option<Value> {
        self.status(name)?.get(field).cloned()
    }

    pub fn is_member(&self, name: &str) -> bool {
        self.field(name, "state").is_some_and(|state| state == "member")
    }

    pub fn members(&self, name: &str) -> Vec<String> {
        let list = self.field(name, "members").unwrap_or_default();
        list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    #[track_caller]
    pub fn wait_member(&mut self, name: &str) {
        let begin = Instant::now();
        while !self.is_member(name) {
            let ended = self.nodes.iter_mut().find(|(known, _)| known == name).and_then(|(_, child)| child.as_mut()?.try_wait().unwrap());
            let said = || std::fs::read_to_string(self.directory.path().join(format!("said-by-{name}"))).unwrap_or_default();
            assert!(ended.is_none() && begin.elapsed() < Duration::from_secs(40), "{name}: {ended:?}: {}\n{}", said(), self.log(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Until all of these see each other in one view.
    #[track_caller]
    pub fn wait_members(&self, names: &[&str]) {
        wait(&format!("view of {names:?}"), Duration::from_secs(40), || names.iter().all(|name| self.members(name) == names));
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.node(name).join("deadbolt.log")).unwrap_or_default()
    }

    pub fn info(&self, name: &str) -> Option<client::Info> {
        client::info(&self.node(name)).ok()
    }

    /// Sends a signal to `daemon` or `sbd` of a node without a namespace.
    pub fn signal(&self, name: &str, which: &str, signal: Signal) {
        let info = self.info(name).unwrap();
        let pid = if which == "sbd" { info.sbd } else { info.daemon }.unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// What `why --json` says of the ends of a node: its evidence words, oldest first.
    pub fn evidence(&self, name: &str) -> Vec<String> {
        let mut why = deadbolt();
        let said = expect(why.args(["why", "--json", "--device"]).arg(&self.device), 0);
        let object: Value = serde_json::from_str(said.trim()).unwrap();
        let views = object["views"].as_array().unwrap().clone();
        let released = views.iter().flat_map(|view| view["released"].as_array().unwrap().clone());
        released.filter(|entry| entry["node"] == name).map(|entry| entry["evidence"].as_str().unwrap().to_owned()).collect()
    }

    /// A command under a lock.
    pub fn lock(&self, name: &str, resource: &str, options: &[&str], command: &[&str]) -> Command {
        let mut lock = self.verb("lock", name);
        lock.arg(resource).args(options).arg("--").args(command);
        lock
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let supervisors: Vec<i32> =
            self.nodes.iter().filter_map(|(name, _)| Some(client::info(&self.directory.path().join(name)).ok()?.supervisor)).collect();
        for (name, child) in &mut self.nodes {
            if std::thread::panicking() {
                let text = std::fs::read_to_string(self.directory.path().join(&*name).join("deadbolt.log")).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- log of {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
            if let Some(child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && supervisors.iter().any(|pid| kill(Pid::from_raw(*pid), None).is_ok()) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
