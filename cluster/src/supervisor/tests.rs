//! What: whole supervisors as processes, with a stand-in sbd and daemon that are this test program started again.
//! Owns: temporary node directories and the processes in them.
//! Invariants: whatever a test does, nothing of it is left: the supervisor is tied to the test's thread.
//! Does not: need a device, a network or a sleep that decides the outcome.
//! Called by: cargo test.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deadbolt_disk::now_ns;
use deadbolt_disk_format::{BootId, Incarnation};
use deadbolt_sbd::page::{Page, ResetRequest, SbdState};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::client::{self, ClientError, Ended, RunRequest};
use super::process::{ProcessIdentity, identity_of, own_pid, read_all, read_stat};
use super::*;

const ROLE: &str = "DEADBOLT_TEST_ROLE";
const DIRECTORY: &str = "DEADBOLT_TEST_DIRECTORY";
const NAMESPACES: &str = "DEADBOLT_TEST_NAMESPACES";
const PARENT: &str = "DEADBOLT_TEST_PARENT";
const GROUP: &str = "DEADBOLT_TEST_GROUP";
const HOST_NAMESPACE: &str = "DEADBOLT_TEST_HOST_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough that a busy machine does not starve the stand-in for sbd.
const WATCHDOG_MS: u32 = 1000;

/// What this program does when a test starts it again. Before main, because the test harness has threads of its own and a
/// supervisor must have none.
extern "C" fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    // As the runtime does before main: a write to a closed pipe is an error, not a death.
    // SAFETY: no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn) }.unwrap();
    let code = match role.as_str() {
        "supervisor" => i32::from(supervisor_role(directory)),
        "sbd" => sbd_role(&directory),
        "daemon" => daemon_role(&directory),
        "nobody" => nobody_role(&directory),
        "client" => client_role(&directory),
        other => panic!("no role {other}"),
    };
    // SAFETY: ends the process; the harness was never started.
    unsafe { libc::_exit(code) }
}

#[used]
#[unsafe(link_section = ".init_array")]
static ROLE_BEFORE_MAIN: extern "C" fn() = role;

fn again(role: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).env(DIRECTORY, directory).env(PARENT, own_pid().to_string());
    command
}

fn supervisor_role(directory: PathBuf) -> u8 {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let (one, two) = (directory.clone(), directory.clone());
    let mut options =
        SupervisorOptions::new(directory.clone(), Box::new(move |_| again("sbd", &one)), Box::new(move |_| again("daemon", &two)));
    if std::env::var_os(NAMESPACES).is_some() {
        options.namespaces = Namespaces::PidNamespace;
    }
    options.socket_group = std::env::var(GROUP).ok().map(|text| text.parse().unwrap());
    options.log = Some(directory.join("log"));
    options.client_grace = Duration::from_millis(300);
    options.stop_wait = Duration::from_secs(5);
    options.lock_wait = Duration::from_secs(6);
    options.parent = Some(std::env::var(PARENT).unwrap().parse().unwrap());
    supervise(options)
}

/// The number of the life, from the end of the boot id.
fn life() -> u64 {
    let boot = std::env::var(BOOT_VARIABLE).unwrap();
    u64::from_str_radix(&boot[24..], 16).unwrap()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Feeds the process watchdog, stops as told, and obeys files: `hungry-N`, `pill-N`, `bad-sbd`.
fn sbd_role(directory: &Path) -> i32 {
    if directory.join("bad-sbd").exists() {
        return 9;
    }
    let page = Page::from_environment().unwrap();
    let (sbd, feed, life) = (page.sbd(), page.feed(), life());
    feed.set_watchdog_ms(WATCHDOG_MS);
    sbd.start(BootId([1; 16]), Incarnation([1; 16]), WATCHDOG_MS);
    sbd.set_state(SbdState::Alive);
    loop {
        let words = sbd.daemon_words();
        if words.is_stop_requested {
            feed.disarm();
            sbd.set_state(SbdState::Stopped);
            return 0;
        }
        if words.ended > 0 && !words.holds {
            sbd.set_idle_generation(words.ended);
        }
        if directory.join(format!("pill-{life}")).exists() {
            feed.request_reset(ResetRequest::Reset);
        }
        if !directory.join(format!("hungry-{life}")).exists() {
            feed.feed_until(now_ns() + u64::from(WATCHDOG_MS) * 1_000_000);
        }
        pause();
    }
}

/// Stops when told, and obeys files: `script`, `holds-N`, `crash-N.G`, `reboot-N`, `bad-daemon`.
fn daemon_role(directory: &Path) -> i32 {
    if directory.join("bad-daemon").exists() {
        return EXIT_DO_NOT_RESTART;
    }
    let page = Page::from_environment().unwrap();
    let (daemon, life) = (page.daemon(), life());
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().unwrap();
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).unwrap();
    let script = directory.join("script");
    if script.exists() {
        Command::new("sh").arg(script).status().unwrap();
    }
    let generation = next_generation(directory, life);
    fs::write(directory.join(format!("ready-{life}.{generation}")), own_pid().to_string()).unwrap();
    loop {
        daemon.advance_turn();
        if signals.read_signal().unwrap().is_some() {
            daemon.request_stop();
            while daemon.sbd_state() != SbdState::Stopped {
                pause();
            }
            return 0;
        }
        let holds = directory.join(format!("holds-{life}")).exists();
        daemon.set_holds(holds);
        if holds {
            fs::write(directory.join(format!("held-{life}")), b"yes").unwrap();
        }
        if directory.join(format!("crash-{life}.{generation}")).exists() {
            return 3;
        }
        if directory.join(format!("reboot-{life}")).exists() {
            reboot_inside();
        }
        pause();
    }
}

fn next_generation(directory: &Path, life: u64) -> u64 {
    (1..).find(|generation| !directory.join(format!("ready-{life}.{generation}")).exists()).unwrap()
}

fn own_namespace() -> OsString {
    fs::read_link("/proc/self/ns/pid").unwrap().into_os_string()
}

/// reboot(2), but never outside of a namespace of our own making.
fn reboot_inside() {
    let host = std::env::var_os(HOST_NAMESPACE).unwrap();
    assert_ne!(own_namespace(), host, "would reboot the machine");
    assert_eq!(nix::unistd::getppid().as_raw(), 1, "would reboot the machine");
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
}

/// As an ordinary user: asks for its identity inside the tree.
fn nobody_role(directory: &Path) -> i32 {
    let (uid, gid) = (65534, 65534);
    nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(4242), nix::unistd::Gid::from_raw(gid)]).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 77, 99).unwrap();
    nix::unistd::setgid(gid.into()).unwrap();
    nix::unistd::setuid(uid.into()).unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    let script = "id -u; id -g; id -G; ulimit -n; ulimit -Hn; umask; grep NoNewPrivs /proc/self/status";
    let request = RunRequest::here(words(&["sh", "-c", script])).unwrap();
    let ended = client::run(directory, &request).unwrap();
    assert!(matches!(client::stop(directory, PATIENCE), Err(ClientError::Refused { .. })));
    ended.exit
}

/// Runs the script of the environment as a client and ends with its code.
fn client_role(directory: &Path) -> i32 {
    let script = std::env::var("SCRIPT").unwrap();
    client::run(directory, &RunRequest::here(words(&["sh", "-c", &script])).unwrap()).unwrap().exit
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A node that a test plays with.
struct Node {
    directory: tempfile::TempDir,
    keeper: Child,
    namespaces: bool,
}

fn wait_until(what: &str, log: &Path, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        let words = || fs::read_to_string(log).unwrap_or_default();
        assert!(start.elapsed() < PATIENCE, "never {what}; the log: {}", words());
        pause();
    }
}

/// A careless parent: leaves a descriptor open across exec.
fn leak(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: dup is a system call.
    unsafe { command.pre_exec(|| if libc::dup(2) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }) };
}

impl Node {
    fn prepare(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    fn start_in(directory: tempfile::TempDir, namespaces: bool) -> Self {
        let mut command = again("supervisor", directory.path());
        leak(&mut command);
        command.env(HOST_NAMESPACE, own_namespace()).stdout(Stdio::null());
        if namespaces {
            command.env(NAMESPACES, "1");
        }
        Self { keeper: command.spawn().unwrap(), directory, namespaces }
    }

    fn start(files: &[(&str, &str)]) -> Self {
        Self::start_in(Self::prepare(files), false)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn say(&self, name: &str) {
        fs::write(self.path().join(name), b"").unwrap();
    }

    fn wait_for(&self, name: &str) -> String {
        let path = self.path().join(name);
        self.wait(name, || fs::read_to_string(&path).is_ok_and(|text| !text.is_empty()));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn wait(&self, what: &str, is_so: impl FnMut() -> bool) {
        wait_until(what, &self.path().join("log"), is_so);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.keeper.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn ended(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.keeper.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < PATIENCE, "the supervisor does not end: {}", self.log());
            pause();
        }
    }

    /// Runs a shell script inside, its output in a file.
    fn run(&self, script: &str) -> (Result<Ended, ClientError>, String) {
        let output = tempfile::tempfile().unwrap();
        let mut request = RunRequest::here(words(&["sh", "-c", script])).unwrap();
        request.env.push(("GIVEN".into(), "value".into()));
        request.streams[1] = output.as_raw_fd();
        let ended = client::run(self.path(), &request);
        let mut text = String::new();
        use std::io::Seek;
        (&output).rewind().unwrap();
        (&output).read_to_string(&mut text).unwrap();
        (ended, text)
    }

    /// Everything that carries this node's mark.
    fn marked(&self) -> Vec<i32> {
        let Some(begins) = boot::read(self.path()).unwrap().and_then(|record| record.text_prefix()) else {
            return Vec::new();
        };
        let all = read_all().unwrap();
        let pids = all.iter().filter(|stat| !stat.is_zombie).map(|stat| stat.identity.pid);
        pids.filter(|pid| process::has_environment(*pid, TREE_VARIABLE, &begins)).collect()
    }

    fn stop_clean(mut self) {
        let stopper = { client::stop(self.path(), PATIENCE) };
        assert!(stopper.unwrap(), "not clean: {}", self.log());
        assert_eq!(self.ended(), i32::from(EXIT_CLEAN), "{}", self.log());
        assert_eq!(self.marked(), [0; 0]);
        assert!(!self.path().join(SOCKET_FILE).exists());
    }

    fn restart(mut self) -> Self {
        let _ = self.keeper.wait();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::start_in(directory, self.namespaces)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.keeper.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGCONT);
            self.signal(Signal::SIGQUIT);
            let _ = self.keeper.wait();
        }
    }
}

/// Forks twice, starts a session, ignores every signal that can be, keeps a file open, writes on.
const STUBBORN: &str = r#"
cd "$DEADBOLT_TEST_DIRECTORY"
(
  trap '' TERM INT HUP QUIT USR1 USR2
  setsid sh -c 'exec 8>>open; (echo $$ >leader; sh -c "echo \$PPID" >stubborn; while :; do echo x >&8; sleep 0.02; done) & exit' &
) &
wait
"#;

fn stubborn(node: &Node) -> ProcessIdentity {
    let pid: i32 = node.wait_for("stubborn").parse().unwrap();
    let identity = identity_of(pid).unwrap();
    assert_ne!(read_stat(pid).unwrap().parent, own_pid());
    identity
}

fn is_alive(process: ProcessIdentity) -> bool {
    // One that nobody has reaped yet has closed everything and runs no more.
    read_stat(process.pid).is_some_and(|stat| stat.identity == process && !stat.is_zombie)
}

#[test]
fn an_unfed_life_ends_with_its_whole_tree_and_only_then_the_boot_advances() {
    let node = Node::start(&[("script", STUBBORN)]);
    node.wait_for("ready-1.1");
    let before = client::info(node.path()).unwrap();
    let stubborn = stubborn(&node);
    assert!(is_alive(stubborn) && is_descendant(stubborn.pid, before.runner));
    fs::remove_file(node.path().join("script")).unwrap();
    node.say("hungry-1");
    // The first moment at which the new number can be read: nobody of the old life may be there.
    node.wait("another boot", || boot::read(node.path()).unwrap().unwrap().counter == 2);
    assert!(!is_alive(stubborn), "outlived its life");
    node.wait_for("ready-2.1");
    let after = client::info(node.path()).unwrap();
    assert_ne!(before.boot, after.boot);
    assert_eq!(before.boot[..19], after.boot[..19]);
    assert!(node.log().contains("was not fed"), "{}", node.log());
    node.stop_clean();
}

#[test]
fn a_pill_ends_the_life_at_once() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    node.say("pill-1");
    node.wait_for("ready-2.1");
    assert!(node.log().contains("sbd asked for it"), "{}", node.log());
    node.stop_clean();
}

#[test]
fn the_runner_acts_when_the_keeper_is_stopped() {
    let node = Node::start(&[("script", STUBBORN)]);
    node.wait_for("ready-1.1");
    let stubborn = stubborn(&node);
    fs::remove_file(node.path().join("script")).unwrap();
    node.signal(Signal::SIGSTOP);
    node.say("hungry-1");
    node.wait("ended by the runner", || !is_alive(stubborn));
    assert_eq!(boot::read(node.path()).unwrap().unwrap().counter, 1);
    node.signal(Signal::SIGCONT);
    node.wait_for("ready-2.1");
    node.stop_clean();
}

#[test]
fn a_killed_keeper_takes_the_tree_along_and_the_next_one_counts_on() {
    let node = Node::start(&[("script", STUBBORN)]);
    node.wait_for("ready-1.1");
    let stubborn = stubborn(&node);
    fs::remove_file(node.path().join("script")).unwrap();
    node.signal(Signal::SIGKILL);
    // By the runner, with nobody else's help.
    node.wait("ended with the keeper", || !is_alive(stubborn));
    let node = node.restart();
    node.wait_for("ready-2.1");
    assert!(!is_alive(stubborn), "outlived its life");
    node.stop_clean();
}

#[test]
fn keeper_and_runner_killed_at_once_leave_a_survivor_that_the_next_start_finds() {
    let node = Node::start(&[("script", STUBBORN)]);
    node.wait_for("ready-1.1");
    let stubborn = stubborn(&node);
    fs::remove_file(node.path().join("script")).unwrap();
    let runner = Pid::from_raw(client::info(node.path()).unwrap().runner);
    nix::sys::signal::kill(runner, Signal::SIGSTOP).unwrap();
    node.signal(Signal::SIGKILL);
    nix::sys::signal::kill(runner, Signal::SIGKILL).unwrap();
    assert!(is_alive(stubborn), "the test needs a survivor");
    let node = node.restart();
    node.wait_for("ready-2.1");
    assert!(!is_alive(stubborn), "outlived its life");
    assert_eq!(boot::read(node.path()).unwrap().unwrap().counter, 2);
    node.stop_clean();
}

#[test]
fn a_survivor_that_closed_the_lock_is_found_by_its_environment() {
    let script = r#"cd "$DEADBOLT_TEST_DIRECTORY"
        setsid sh -c 'for fd in $(ls /proc/self/fd); do [ "$fd" -gt 2 ] && [ "$fd" -lt 10 ] && eval "exec $fd>&-"; done; (sh -c "echo \$PPID" >stubborn; while :; do sleep 0.02; done) & exit' >/dev/null 2>&1"#;
    let node = Node::start(&[("script", script)]);
    node.wait_for("ready-1.1");
    let stubborn = stubborn(&node);
    fs::remove_file(node.path().join("script")).unwrap();
    let runner = Pid::from_raw(client::info(node.path()).unwrap().runner);
    nix::sys::signal::kill(runner, Signal::SIGSTOP).unwrap();
    node.signal(Signal::SIGKILL);
    nix::sys::signal::kill(runner, Signal::SIGKILL).unwrap();
    assert!(is_alive(stubborn), "the test needs a survivor");
    let node = node.restart();
    node.wait_for("ready-2.1");
    assert!(!is_alive(stubborn), "outlived its life");
    node.stop_clean();
}

#[test]
fn a_second_supervisor_is_refused_and_hurts_nobody() {
    let node = Node::start(&[]);
    let daemon: i32 = node.wait_for("ready-1.1").parse().unwrap();
    let second = again("supervisor", node.path()).stdout(Stdio::null()).status().unwrap();
    assert_eq!(second.code(), Some(i32::from(EXIT_REFUSED)));
    assert!(node.log().contains("already runs"), "{}", node.log());
    assert!(identity_of(daemon).is_some());
    assert_eq!(client::info(node.path()).unwrap().daemon, Some(daemon));
    node.stop_clean();
}

#[test]
fn a_copied_directory_is_refused() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let copy = tempfile::tempdir().unwrap();
    fs::copy(node.path().join("boot"), copy.path().join("boot")).unwrap();
    let status = again("supervisor", copy.path()).stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(i32::from(EXIT_REFUSED)));
    let log = fs::read_to_string(copy.path().join("log")).unwrap();
    assert!(log.contains("is a copy"), "{log}");
    node.stop_clean();
}

#[test]
fn a_node_of_a_watchdog_device_does_not_become_a_trial_node_before_the_machine_restarts() {
    let mut node = Node::start(&[]);
    node.wait_for("ready-1.1");
    node.signal(Signal::SIGTERM);
    node.ended();
    let mut record = boot::read(node.path()).unwrap().unwrap();
    assert_eq!(record.watchdog, "process");
    record.watchdog = "device".to_owned();
    boot::write(node.path(), &record).unwrap();
    let mut node = node.restart();
    assert_eq!(node.ended(), i32::from(EXIT_REFUSED));
    assert!(node.log().contains("restart the machine"), "{}", node.log());
    record.kernel_boot = "another".to_owned();
    boot::write(node.path(), &record).unwrap();
    let node = node.restart();
    node.wait_for("ready-2.1");
    node.stop_clean();
}

#[test]
fn a_life_that_never_began_is_an_error_and_not_a_loop() {
    for (file, words) in [("bad-sbd", "exit code 9"), ("bad-daemon", "refuses to run")] {
        let mut node = Node::start(&[(file, "")]);
        assert_eq!(node.ended(), i32::from(EXIT_REFUSED));
        assert!(node.log().contains(words), "{}", node.log());
        assert_eq!(node.marked(), [0; 0]);
    }
}

#[test]
fn a_daemon_that_held_nothing_is_started_again_in_the_same_life() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    node.say("crash-1.1");
    node.wait_for("ready-1.2");
    let info = client::info(node.path()).unwrap();
    assert_eq!((info.generation, boot::read(node.path()).unwrap().unwrap().counter), (2, 1));
    node.stop_clean();
}

#[test]
fn a_daemon_that_died_holding_something_takes_the_life_along() {
    let node = Node::start(&[("holds-1", "")]);
    node.wait_for("ready-1.1");
    node.wait_for("held-1");
    node.say("crash-1.1");
    node.wait_for("ready-2.1");
    assert!(node.log().contains("may hold locks"), "{}", node.log());
    assert!(!node.path().join("ready-1.2").exists());
    node.stop_clean();
}

#[test]
fn sigterm_stops_cleanly_and_the_next_start_counts_on() {
    let mut node = Node::start(&[]);
    node.wait_for("ready-1.1");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), i32::from(EXIT_CLEAN), "{}", node.log());
    assert_eq!(boot::read(node.path()).unwrap().unwrap().last_end.as_deref(), Some("clean"));
    let node = node.restart();
    node.wait_for("ready-2.1");
    node.stop_clean();
}

#[test]
fn a_command_runs_inside_with_its_callers_streams_environment_and_code() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let info = client::info(node.path()).unwrap();
    let (ended, text) = node.run("echo $GIVEN; pwd; echo $DEADBOLT_TREE; echo $DEADBOLT_SUPERVISOR_PID; echo $DEADBOLT_PAGE_FD; exit 7");
    assert_eq!(ended.unwrap(), Ended { exit: 7, signal: None, error: None });
    let here = std::env::current_dir().unwrap();
    assert_eq!(text, format!("value\n{}\n{}\n{}\n\n", here.display(), info.boot, info.runner));
    // Standard streams, the tree's lock, and what ls itself opens.
    let (_, text) = node.run("ls /proc/self/fd | wc -l");
    assert_eq!(text, "5\n", "descriptors leak into commands");
    let (ended, _) = node.run("kill -9 $$");
    assert_eq!(ended.unwrap(), Ended { exit: 137, signal: Some(9), error: None });
    let plain = |argv: &[&str]| client::run(node.path(), &RunRequest::here(words(argv)).unwrap()).unwrap();
    assert_eq!(plain(&["/nowhere/nothing"]).exit, 127);
    assert_eq!(plain(&["/etc/passwd"]).exit, 126);
    assert_eq!(plain(&[]).exit, 127);
    let mut request = RunRequest::here(words(&["true"])).unwrap();
    request.cwd = PathBuf::from("/nowhere");
    let ended = client::run(node.path(), &request).unwrap();
    assert_eq!(ended.exit, 126);
    assert!(ended.error.unwrap().contains("/nowhere"));
    node.stop_clean();
}

#[test]
fn a_command_ends_with_all_that_it_left_behind_before_its_code_is_told() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let script = format!("DEADBOLT_TEST_DIRECTORY={} sh -c '{}'", node.path().display(), "exit 0");
    let _ = node.run(&script);
    let stubborn_script = node.path().join("later");
    fs::write(&stubborn_script, STUBBORN).unwrap();
    let script = format!(
        "export DEADBOLT_TEST_DIRECTORY={dir}; sh {dir}/later; while [ ! -s {dir}/stubborn ]; do sleep 0.01; done; exit 5",
        dir = node.path().display()
    );
    let (ended, _) = node.run(&script);
    assert_eq!(ended.unwrap().exit, 5);
    let pid: i32 = fs::read_to_string(node.path().join("stubborn")).unwrap().trim().parse().unwrap();
    assert!(identity_of(pid).is_none(), "a descendant outlived its command");
    node.stop_clean();
}

#[test]
fn signals_are_forwarded_and_a_killed_caller_takes_its_command_along() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let script = format!("trap 'exit 33' TERM; echo $$ >{}/inside; while :; do sleep 0.02; done", node.path().display());
    let mut caller = again("client", node.path()).env("SCRIPT", &script).stdout(Stdio::null()).spawn().unwrap();
    node.wait_for("inside");
    let pid = Pid::from_raw(i32::try_from(caller.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(caller.wait().unwrap().code(), Some(33));
    fs::remove_file(node.path().join("inside")).unwrap();
    let script = format!("trap '' TERM HUP; echo $$ >{}/inside; while :; do sleep 0.02; done", node.path().display());
    let mut caller = again("client", node.path()).env("SCRIPT", &script).stdout(Stdio::null()).spawn().unwrap();
    let inside = identity_of(node.wait_for("inside").parse().unwrap()).unwrap();
    caller.kill().unwrap();
    caller.wait().unwrap();
    node.wait("ended after its caller", || !is_alive(inside));
    node.wait("free of handlers", || client::info(node.path()).unwrap().clients == 0);
    node.stop_clean();
}

#[test]
fn a_command_whose_tree_is_reset_is_lost_and_not_a_code() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let script = format!("echo 1 >{}/pill-1; sleep 60", node.path().display());
    let (ended, _) = node.run(&script);
    assert!(matches!(ended, Err(ClientError::Lost)), "{ended:?}");
    node.wait_for("ready-2.1");
    node.stop_clean();
}

#[test]
fn garbage_on_the_socket_is_answered_and_harms_nobody() {
    let node = Node::start(&[]);
    node.wait_for("ready-1.1");
    let dial = || socket::connect(node.path(), SOCKET_FILE).unwrap();
    let mut idle: Vec<UnixStream> = (0..20).map(|_| dial()).collect();
    for garbage in [
        &b"\n"[..],
        b"{}\n",
        b"\xff\xfe\0\n",
        b"{\"op\":\"run\"}\n",
        b"[[[[[[[[[[[[[[[[\n",
        b"{\"op\":\"run\",\"argv\":[\"true\"],\"env\":[],\"cwd\":\"/\"}\n",
        b"{\"op\":\"run\",\"argv\":[[0]],\"env\":[[[0],[0]]],\"cwd\":[0]}\n",
    ] {
        let mut socket = dial();
        socket.write_all(garbage).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        assert!(text.contains("\"ok\":false") && text.contains("error"), "{garbage:?}: {text}");
    }
    let mut flood = dial();
    let block = vec![b'x'; 1 << 20];
    let sent = (0..8).map(|_| flood.write_all(&block)).find(Result::is_err);
    assert!(sent.is_some(), "eight megabytes without a line's end were taken");
    idle.clear();
    let (ended, _) = node.run("exit 0");
    assert_eq!(ended.unwrap().exit, 0);
    assert_eq!(boot::read(node.path()).unwrap().unwrap().counter, 1);
    node.stop_clean();
}

fn has_root(what: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("skipped: needs root ({what})");
    }
    is_root
}

#[test]
fn a_command_has_its_callers_user_groups_and_limits() {
    if !has_root("another user's command") {
        return;
    }
    let directory = Node::prepare(&[]);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let keeper = again("supervisor", directory.path()).env(GROUP, "4242").stdout(Stdio::null()).spawn().unwrap();
    let node = Node { directory, keeper, namespaces: false };
    node.wait_for("ready-1.1");
    let output = again("nobody", node.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("65534\n65534\n65534 4242\n77\n99\n0027\n"), "{text}");
    node.stop_clean();
}

#[test]
fn reboot_inside_a_pid_namespace_ends_that_life_and_nothing_else() {
    if !has_root("a PID namespace") {
        return;
    }
    if let Err(error) = check_pid_namespace() {
        println!("skipped: {error}");
        return;
    }
    let node = Node::start_in(Node::prepare(&[("script", STUBBORN)]), true);
    node.wait_for("ready-1.1");
    let info = client::info(node.path()).unwrap();
    assert_eq!((info.runner, info.namespaces.as_str()), (1, "pid"));
    let (ended, text) = node.run("readlink /proc/self/ns/pid; if [ -e /proc/sysrq-trigger ]; then stat -c %t:%T /proc/sysrq-trigger; else echo 1:3; fi; kill -0 1 && echo one");
    assert_eq!(ended.unwrap().exit, 0);
    let lines: Vec<&str> = text.lines().collect();
    assert_ne!(Some(lines[0]), own_namespace().to_str());
    assert_eq!(lines[1..], ["1:3", "one"], "the machine's sysrq can be reached");
    fs::remove_file(node.path().join("script")).unwrap();
    let marked = node.marked();
    assert!(marked.len() >= 3, "{marked:?}");
    let inside: Vec<ProcessIdentity> = marked.into_iter().filter_map(identity_of).collect();
    node.say("reboot-1");
    node.wait("another boot", || boot::read(node.path()).unwrap().unwrap().counter == 2);
    assert!(inside.iter().all(|process| !is_alive(*process)), "outlived the reboot");
    node.wait_for("ready-2.1");
    assert!(node.log().contains("reboot(2) inside the namespace"), "{}", node.log());
    node.stop_clean();
}

#[test]
fn a_killed_keeper_of_a_pid_namespace_takes_the_namespace_along() {
    if !has_root("a PID namespace") || check_pid_namespace().is_err() {
        return;
    }
    let node = Node::start_in(Node::prepare(&[("script", STUBBORN)]), true);
    node.wait_for("ready-1.1");
    fs::remove_file(node.path().join("script")).unwrap();
    node.wait_for("stubborn");
    let inside: Vec<ProcessIdentity> = node.marked().into_iter().filter_map(identity_of).collect();
    assert!(inside.len() >= 3);
    node.signal(Signal::SIGKILL);
    let node = node.restart();
    node.wait_for("ready-2.1");
    assert!(inside.iter().all(|process| !is_alive(*process)), "outlived its life");
    node.stop_clean();
}
