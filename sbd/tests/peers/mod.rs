//! What: real corosync, and Pacemaker on top of it, in private namespaces: nodes that can be cut from each other.
//! Owns: everything that it makes; a dropped value leaves nothing behind.
//! Invariants: the machine's own corosync and Pacemaker, their files and sockets are out of reach; only processes started here are ended.
//! Does not: test anything.
//! Called by: the tests of servants.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deadbolt_sbd::servant::{Received, ServantHandle, ServantSetup};
use deadbolt_sbd_core::{Report, Servant};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// For tests that wait for a loss.
const TOKEN_MS: u32 = 500;
/// Far more than anything here needs on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Everything that these programs write is private memory, but the folder of their configuration.
pub const MOUNTS: &str = "set -e; ip link set lo up
for place in /run /dev/shm /var/lib/corosync /var/log/corosync; do mkdir -p $place; mount -t tmpfs tmpfs $place; done
mount --bind \"$1\" /etc/corosync";

const PACEMAKER_MOUNTS: &str = "for place in /var/lib/pacemaker /var/log/pacemaker; do mount -t tmpfs tmpfs $place; done
for place in blackbox cib cores pengine; do install -d -m 750 -o hacluster -g haclient /var/lib/pacemaker/$place; done
install -m 600 -o hacluster -g haclient \"$1/cib.xml\" /var/lib/pacemaker/cib/cib.xml
chown hacluster:haclient /var/log/pacemaker
hostname alpha; sleep 2
[ $2 = no ] || mount --bind $2 /usr/sbin/sbd";

/// One node is elected at once; nothing has to be fenced.
const CIB: &str = r#"<cib validate-with="pacemaker-3.0" admin_epoch="1" epoch="0" num_updates="0"><configuration>
<crm_config><cluster_property_set id="options"><nvpair id="o1" name="dc-deadtime" value="1s"/>
<nvpair id="o2" name="stonith-enabled" value="false"/></cluster_property_set></crm_config>
<nodes/><resources><primitive id="thing" class="ocf" provider="pacemaker" type="Dummy"/></resources><constraints/>
</configuration><status/></cib>"#;

/// A process in namespaces of its own.
pub struct Peer {
    process: Child,
    pacemaker: Option<Child>,
    folder: tempfile::TempDir,
}

/// Ends with the thread that starts it.
fn tied(command: &mut Command) -> &mut Command {
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

pub fn await_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Peer {
    /// Namespaces in which corosync will run; it waits for its network.
    fn new(configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("uidgid.d")).unwrap();
        std::fs::write(folder.path().join("corosync.conf"), configuration).unwrap();
        std::fs::write(folder.path().join("cib.xml"), CIB).unwrap();
        let script = format!("{MOUNTS}\necho ready > \"$1/ready\"\nread line\nexec corosync -f");
        let mut command = Command::new("unshare");
        command.args(["-n", "-m", "-u", "-i", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(folder.path());
        let output = std::fs::File::create(folder.path().join("output")).unwrap();
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = tied(&mut command).spawn().unwrap();
        let peer = Self { process, pacemaker: None, folder };
        await_true("namespaces", || peer.folder.path().join("ready").exists());
        peer
    }

    fn start_corosync(&mut self) {
        self.process.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.process.id().to_string(), "-n", "-m", "-u", "-i", "--", program]);
        command
    }

    /// Runs a shell's line in the node; true when it succeeds.
    pub fn run(&self, line: &str) -> bool {
        let mut command = self.inside("sh");
        command.args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// Starts Pacemaker, which waits for sbd's questions where there is one.
    pub fn start_pacemaker(&mut self, sbd: Option<&str>) {
        let mut command = self.inside("sh");
        let script = format!("{PACEMAKER_MOUNTS}; exec pacemakerd -f");
        command.args(["-c", &script, "sh"]).arg(self.folder.path()).arg(sbd.unwrap_or("no"));
        command
            .env("PCMK_logfile", "none")
            .env("SBD_SYNC_RESOURCE_STARTUP", if sbd.is_some() { "yes" } else { "no" })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.pacemaker = Some(tied(&mut command).spawn().unwrap());
    }

    /// Asks Pacemaker to shut down.
    pub fn stop_pacemaker(&mut self) {
        let child = self.pacemaker.as_mut().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    pub fn is_pacemaker_gone(&mut self) -> bool {
        self.pacemaker.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub fn signal_corosync(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    /// Pacemaker's daemons, which its launcher has started.
    fn daemons(&self) -> Vec<Pid> {
        let Some(launcher) = self.pacemaker.as_ref().map(Child::id) else { return Vec::new() };
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    pub fn signal_daemon(&self, name: &str, signal: Signal) {
        let daemons = self.daemons();
        let is_it = |pid: &&Pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with(name));
        kill(*daemons.iter().find(is_it).unwrap_or_else(|| panic!("no {name} among {daemons:?}")), signal).unwrap();
    }

    /// A servant that asks in this node.
    pub fn servant(&self, servant: Servant, program: &str, directory: &Path) -> Asked {
        self.servant_with(servant, program, directory, |_| {})
    }

    pub fn servant_with(&self, servant: Servant, program: &str, directory: &Path, change: impl FnOnce(&mut ServantSetup)) -> Asked {
        let wrapper = directory.join(format!("sbd-{}", self.process.id()));
        let line = format!("#!/bin/sh\nexec nsenter -t {} -n -m -u -i -- {program} \"$@\"\n", self.process.id());
        std::fs::write(&wrapper, line).unwrap();
        std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
        let mut setup = setup(servant, wrapper);
        change(&mut setup);
        Asked { handle: ServantHandle::start(setup).unwrap() }
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Some of Pacemaker's daemons live on without their launcher and without corosync.
        let daemons = self.daemons();
        for child in [self.pacemaker.as_mut(), Some(&mut self.process)].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for daemon in daemons {
            let _ = kill(daemon, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.output());
        }
    }
}

/// Two nodes with corosync at work, joined by a cable.
pub fn pair(quorum: &str) -> [Peer; 2] {
    let mut peers = [(); 2].map(|()| Peer::new(&configuration(&["n1", "n2"], TOKEN_MS, quorum)));
    let [a, b] = peers.each_ref().map(|peer| peer.process.id().to_string());
    assert!(ip(&["link", "add", "cable", "netns", &a, "type", "veth", "peer", "name", "cable", "netns", &b]));
    for (number, peer) in peers.iter_mut().enumerate() {
        assert!(peer.run(&format!("ip address add 10.99.7.{}/24 dev cable", number + 1)));
        assert!(peer.run("ip link set cable up"));
        peer.start_corosync();
    }
    peers
}

/// One node with corosync at work.
pub fn lone() -> Peer {
    let mut peer = Peer::new(&configuration(&["alpha"], TOKEN_MS, ""));
    assert!(peer.run("ip address add 10.99.7.1/24 dev lo"));
    peer.start_corosync();
    peer
}

pub fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

/// Of nodes at 10.99.7.1 and behind.
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

pub fn setup(servant: Servant, program: PathBuf) -> ServantSetup {
    ServantSetup {
        servant,
        program,
        node: "alpha".into(),
        interval_ms: 250,
        watchdog_ms: 5000,
        has_devices: true,
        sync_startup: false,
        directory: Some("/nonexistent".into()),
    }
}

/// A servant and what it says.
pub struct Asked {
    pub handle: ServantHandle,
}

/// Not even a zombie is left behind.
impl Drop for Asked {
    fn drop(&mut self) {
        self.handle.end();
        await_true("a servant's end", || self.handle.poll_exit().is_ok_and(|status| status.is_some()));
    }
}

impl Asked {
    /// The next report within the limit; none: silence, or its end.
    pub fn next(&mut self, limit: Duration) -> Option<Report> {
        let end = Instant::now() + limit;
        loop {
            match self.handle.read() {
                Received::Report(report) => return Some(report),
                Received::Ended => return None,
                Received::Nothing => {}
            }
            let left = end.checked_duration_since(Instant::now())?;
            poll(&mut [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(left).unwrap()).unwrap();
        }
    }

    /// The first report that is wanted; others are passed over.
    pub fn until(&mut self, what: &str, mut is_wanted: impl FnMut(&Report) -> bool) -> Report {
        let end = Instant::now() + LONG;
        let mut last = None;
        while Instant::now() < end {
            last = self.next(LONG);
            match last {
                Some(report) if is_wanted(&report) => return report,
                Some(_) => {}
                None => break,
            }
        }
        panic!("waited for {what}; the last report is {last:?}");
    }
}
