//! What: real corosync in private namespaces: nodes that can be cut from each other.
//! Owns: everything that it makes; a dropped value leaves nothing behind.
//! Invariants: the machine's own corosync, its files and sockets are out of reach; only processes started here are ended.
//! Does not: test anything; say by a result what a test cannot go on without: it ends the test.
//! Called by: the tests of servants, of watchers beside corosync, of the quorum device.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "part of tests: what cannot be made ends the test that wants it")]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far more than anything here needs on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Everything that corosync writes is private memory, but the folder of its configuration.
pub const MOUNTS: &str = "set -e; ip link set lo up
for place in /run /dev/shm /var/lib/corosync /var/log/corosync; do mkdir -p $place; mount -t tmpfs tmpfs $place; done
mount --bind \"$1\" /etc/corosync";

/// corosync in namespaces of its own.
#[derive(Debug)]
pub struct Peer {
    process: Child,
    folder: tempfile::TempDir,
}

/// Ends with the thread that starts it.
pub fn tied(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only one system call is made, which needs no memory.
    unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)) }
}

fn has(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
    if !found {
        eprintln!("skipped: needs the program {program}");
    }
    found
}

/// Is everything here that these tests want? What is missing is said.
#[must_use]
pub fn is_possible(programs: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return false;
    }
    programs.iter().all(|program| has(program)) && {
        let made = Command::new("unshare").args(["-n", "-m", "-u", "-i", "true"]).status();
        let is_made = made.is_ok_and(|status| status.success());
        if !is_made {
            eprintln!("skipped: no namespaces can be made here");
        }
        is_made
    }
}

/// Waits for it, in bounded time.
pub fn await_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Peer {
    /// Namespaces in which corosync will run; it waits for its network.
    #[must_use]
    pub fn new(configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("uidgid.d")).unwrap();
        std::fs::write(folder.path().join("corosync.conf"), configuration).unwrap();
        let script = format!("{MOUNTS}\necho ready > \"$1/ready\"\nread line\nexec corosync -f");
        let mut command = Command::new("unshare");
        command.args(["-n", "-m", "-u", "-i", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(folder.path());
        let output = std::fs::File::create(folder.path().join("output")).unwrap();
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = tied(&mut command).spawn().unwrap();
        let peer = Self { process, folder };
        await_true("namespaces", || peer.folder().join("ready").exists());
        peer
    }

    /// Its network is there.
    pub fn start(&mut self) {
        self.process.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    /// A command that will run in the node, and ends with the thread that starts it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.number().to_string(), "-n", "-m", "-u", "-i", "--"]).arg(program.as_ref());
        tied(&mut command);
        command
    }

    /// Runs a shell's line in the node; true when it succeeds.
    #[must_use]
    pub fn run(&self, line: &str) -> bool {
        self.command("sh").args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Tells corosync.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.number().try_into().unwrap()), signal).unwrap();
    }

    /// The number of corosync's process.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.process.id()
    }

    /// In the node it is /etc/corosync.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.folder().join("output")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.output());
        }
    }
}

/// Nodes with corosync at work, joined.
#[must_use]
pub fn peers(names: &[&str], token_ms: u32, quorum: &str) -> Vec<Peer> {
    let mut peers: Vec<Peer> = names.iter().map(|_| Peer::new(&configuration(names, token_ms, quorum))).collect();
    join(&peers.iter().map(Peer::number).collect::<Vec<_>>());
    peers.iter_mut().for_each(Peer::start);
    peers
}

/// Joins the networks of these processes: the first holds the middle, and each other node's port, numbered from 1. Addresses are 10.99.7.1
/// and behind.
pub fn join(processes: &[u32]) {
    let ip = |arguments: &str| assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
    let inside = |process: u32, line: &str| {
        let number = process.to_string();
        let made = Command::new("nsenter").args(["-t", &number, "-n", "ip"]).args(line.split(' ')).status();
        assert!(made.unwrap().success(), "ip {line}");
    };
    let Some((&middle, others)) = processes.split_first() else { return };
    ip(&format!("link add name hub netns {middle} type bridge"));
    inside(middle, "address add 10.99.7.1/24 dev hub");
    inside(middle, "link set hub up");
    for (port, &other) in (1..).zip(others) {
        ip(&format!("link add cable netns {other} type veth peer name port{port} netns {middle}"));
        inside(middle, &format!("link set port{port} master hub up"));
        inside(other, &format!("address add 10.99.7.{}/24 dev cable", port + 1));
        inside(other, "link set cable up");
    }
}

/// corosync's configuration of nodes at 10.99.7.1 and behind.
#[must_use]
pub fn configuration(names: &[&str], token_ms: u32, quorum: &str) -> String {
    let node = |(number, name): (usize, &&str)| {
        format!("  node {{\n    ring0_addr: 10.99.7.{number}\n    name: {name}\n    nodeid: {number}\n  }}\n")
    };
    let nodes: String = (1..).zip(names).map(node).collect();
    format!(
        "totem {{\n  version: 2\n  cluster_name: test\n  transport: knet\n  crypto_cipher: none\n  crypto_hash: none\n  token: {token_ms}\n}}\n\
         nodelist {{\n{nodes}}}\nquorum {{\n  provider: corosync_votequorum\n{quorum}}}\n\
         system {{\n  sched_rr: no\n  move_to_root_cgroup: no\n}}\nlogging {{\n  to_stderr: yes\n  to_syslog: no\n}}\n"
    )
}
