//! What: `deadbolt lock RESOURCE -- CMD`: a command that runs while a lock is held, like flock(1) across the cluster.
//! Owns: the command's process tree, its environment, the exit codes 121 to 127.
//! Invariants: the command starts only under a granted lock; when the lock is lost it is ended with all its descendants; the lock goes back
//!   when nothing of the command runs any more and --finally has ended with 0; under a process watchdog everything runs inside the node's process tree.
//! Does not: retry.
//! Called by: the verbs; by itself, inside the tree.

mod health;

use super::{
    EXIT_CANNOT_RUN, EXIT_FAILED, EXIT_LOST, EXIT_NO_QUORUM, EXIT_NOT_FOUND, EXIT_NOT_GRANTED, EXIT_UNWELL, EXIT_USAGE, NodeArguments,
};
use clap::Args;
use deadbolt_cluster::ask::ask;
use deadbolt_cluster::{
    config::NodeDirectory,
    supervisor::{self, client::RunRequest},
};
use deadbolt_dlm::{
    LockStatus, Mode, Token,
    blocking::{Client, ClientError, Guard, Protection, Wishes},
};
use nix::{
    sys::{
        signal::{SigHandler, Signal, kill, signal},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::mpsc::{self, Receiver, Sender},
    thread::JoinHandle,
    time::Duration,
};

/// A command that is told to end has this long for it, as at the stop of a node.
const GRACE: Duration = Duration::from_secs(2);
/// How often a --finally that fails is tried again. Chosen: an administrator who mends its cause does not wait long.
const FINALLY_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Args)]
pub(super) struct LockArguments {
    /// Name of the resource, 1 to 64 bytes
    resource: String,
    /// NL, CR, CW, PR, PW or EX
    #[arg(long, default_value = "EX", value_parser = super::parse_mode)]
    mode: Mode,
    /// How long to wait for the lock; 0: not at all [default: for ever]
    #[arg(long, value_parser = super::parse_time)]
    wait: Option<u32>,
    /// Lockspace
    #[arg(long, default_value = "deadbolt")]
    lockspace: String,
    /// Run this by the shell at each interval; while it ends with 0 the command is well. When it is not, the command is ended and the lock
    /// goes back (exit code 124)
    #[arg(long, value_name = "CHECK")]
    health: Option<String>,
    /// Time between checks, and the limit of each
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    health_interval: u32,
    /// How many checks fail in a row before the command counts as unwell
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    health_failures: u32,
    /// Run this by the shell when the command has ended, however it did. The lock goes back when it has ended with 0; until then it is
    /// tried again every 5 s
    #[arg(long, value_name = "CLEANUP")]
    finally: Option<String>,
    #[command(flatten)]
    node: NodeArguments,
    /// Run outside the node's process tree, where a process watchdog cannot end the command
    #[arg(long)]
    unprotected: bool,
    /// Set when the command runs inside the node's tree already
    #[arg(long, hide = true)]
    inside: bool,
    /// The command
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: &LockArguments) -> u8 {
    let directory = arguments.node.directory();
    let file = match directory.read_node() {
        Ok(file) => file,
        Err(error) => return fail(EXIT_NO_QUORUM, &error),
    };
    if arguments.resource.is_empty() || arguments.resource.len() > 64 {
        return fail(EXIT_USAGE, &format!("the resource's name has {} bytes; allowed are 1 to 64", arguments.resource.len()));
    }
    if file.watchdog == "process" && !arguments.inside && !arguments.unprotected {
        return run_inside(arguments, &directory);
    }
    match acquire(arguments, &directory) {
        Ok(guard) => run_command(arguments, guard),
        Err(code) => code,
    }
}

fn parse_interval(text: &str) -> Result<u32, String> {
    match super::parse_time(text) {
        Ok(0) => Err("an interval of 0 would check without a pause".to_owned()),
        time => time,
    }
}

fn fail(code: u8, reason: &dyn std::fmt::Display) -> u8 {
    eprintln!("deadbolt lock: {reason}");
    code
}

/// Asks the supervisor to run this very command inside the node's tree.
fn run_inside(arguments: &LockArguments, directory: &NodeDirectory) -> u8 {
    let own = std::env::current_exe().map_or_else(|_| OsString::from("deadbolt"), Into::into);
    let mut argv: Vec<OsString> = vec![own, "lock".into(), arguments.resource.clone().into(), "--inside".into()];
    argv.extend(["--mode".into(), arguments.mode.name().into(), "--lockspace".into(), arguments.lockspace.clone().into(), "--dir".into()]);
    argv.push(directory.0.clone().into());
    if let Some(wait) = arguments.wait {
        argv.extend(["--wait".into(), format!("{wait}ms").into()]);
    }
    argv.extend(["--health-interval".into(), format!("{}ms", arguments.health_interval).into()]);
    argv.extend(["--health-failures".into(), arguments.health_failures.to_string().into()]);
    // In one word each: they may begin with a dash.
    argv.extend(arguments.health.iter().map(|check| format!("--health={check}").into()));
    argv.extend(arguments.finally.iter().map(|cleanup| format!("--finally={cleanup}").into()));
    argv.push("--".into());
    argv.extend(arguments.command.iter().cloned());
    let request = match RunRequest::here(argv) {
        Ok(request) => request,
        Err(error) => return fail(EXIT_FAILED, &error),
    };
    match supervisor::client::run(&directory.0, &request) {
        Ok(ended) => {
            if let Some(error) = ended.error {
                eprintln!("deadbolt lock: {error}");
            }
            u8::try_from(ended.exit).unwrap_or(EXIT_FAILED)
        }
        // The whole tree ended under the command: the lock is lost with it.
        Err(supervisor::client::ClientError::Lost) => fail(EXIT_LOST, &"the node was reset; the command ended with it"),
        Err(error) => fail(EXIT_NO_QUORUM, &error),
    }
}

fn acquire(arguments: &LockArguments, directory: &NodeDirectory) -> Result<Guard, u8> {
    let protection = Protection { is_unprotected: arguments.unprotected };
    let session = Client::connect(directory.lock_socket(), protection).and_then(|client| client.join(arguments.lockspace.as_bytes()));
    let space = session.map_err(|error| fail(EXIT_NO_QUORUM, &error))?;
    let wishes = Wishes { timeout: arguments.wait.map(|ms| Duration::from_millis(u64::from(ms))), ..Wishes::default() };
    space.lock(arguments.resource.as_bytes(), arguments.mode, &wishes).map_err(|error| match &error {
        ClientError::NotGranted(_) if !is_quorate(directory) => {
            fail(EXIT_NO_QUORUM, &format!("{}: {error}: this node is not quorate", arguments.resource))
        }
        ClientError::NotGranted(LockStatus::TimedOut) => {
            let waited = super::seconds(u64::from(arguments.wait.unwrap_or(0)));
            fail(
                EXIT_NOT_GRANTED,
                &format!(
                    "{}: not granted within {waited}; `deadbolt locks --waiting` on its master shows who holds it",
                    arguments.resource
                ),
            )
        }
        ClientError::NotGranted(_) => fail(EXIT_NOT_GRANTED, &format!("{}: {error}", arguments.resource)),
        ClientError::Refused { status: LockStatus::Invalid, .. } => fail(EXIT_USAGE, &error),
        _ => fail(EXIT_NO_QUORUM, &error),
    })
}

/// Asked only after a lock was not granted, to tell the two reasons apart.
fn is_quorate(directory: &NodeDirectory) -> bool {
    let status = ask(directory, &serde_json::json!({ "op": "status" }), Duration::from_secs(1));
    status.is_ok_and(|status| status.get("quorate").and_then(serde_json::Value::as_bool) == Some(true))
}

/// What may happen to a command; the first that happens to it is its end.
#[derive(PartialEq, Eq, Debug)]
enum Event {
    Ended(u8),
    Unwell(String),
    Lost,
}

/// A program that knows under which lock it runs.
fn under_lock(program: &OsString, arguments: &LockArguments, token: Token) -> Command {
    let mut command = Command::new(program);
    command
        .env("DEADBOLT_TOKEN", token.to_string())
        .env("DEADBOLT_VIEW", token.view.to_string())
        .env("DEADBOLT_RESOURCE", &arguments.resource);
    command
}

fn shell(text: &str, arguments: &LockArguments, token: Token) -> Command {
    let mut command = under_lock(&"/bin/sh".into(), arguments, token);
    command.args(["-c", text]);
    command
}

/// Signals of the terminal reach the command by itself; this process stays until the command has ended.
const IGNORED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

fn spawn(arguments: &LockArguments, token: Token) -> Result<Child, u8> {
    let Some((program, rest)) = arguments.command.split_first() else { return Err(EXIT_USAGE) };
    let mut command = under_lock(program, arguments, token);
    command.args(rest);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for ignored in IGNORED {
                signal(ignored, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    command.spawn().map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_CANNOT_RUN };
        fail(code, &format!("{}: {error}", program.display()))
    })
}

/// Tells when the command has ended and when the lock is lost.
fn watch(command: Pid, guard: &mut Guard, sender: Sender<Event>) {
    let lost_sender = sender.clone();
    let blocked = guard.take_blocked();
    std::thread::spawn(move || {
        // The stream of hints ends with the session: then the lock is void.
        while blocked.recv().is_ok() {}
        let _ = lost_sender.send(Event::Lost);
    });
    std::thread::spawn(move || {
        // Not reaped before all that came of it has ended: its number stays its own.
        let status = waitid(Id::Pid(command), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = sender.send(Event::Ended(exit_code(status)));
    });
}

/// The checks of a command's health, if anybody wants any. They end with this value, and with the command.
struct Checks {
    over: Sender<()>,
    thread: JoinHandle<()>,
}

impl Checks {
    fn start(arguments: &LockArguments, token: Token, sender: Sender<Event>) -> Option<Self> {
        let text = arguments.health.clone()?;
        let arguments = arguments.clone();
        let (over, is_over) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let interval = Duration::from_millis(u64::from(arguments.health_interval));
            let check = || shell(&text, &arguments, token);
            if let Some(reason) = health::watch(interval, arguments.health_failures, check, &is_over) {
                let _ = sender.send(Event::Unwell(reason));
            }
        });
        Some(Self { over, thread })
    }

    /// No check is begun any more, and none is under way.
    fn stop(self) {
        drop(self.over);
        let _ = self.thread.join();
    }
}

fn run_command(arguments: &LockArguments, mut guard: Guard) -> u8 {
    for ignored in IGNORED {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // Orphans of the command come to this process, so that none escapes when the lock goes.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let token = guard.token();
    let command = match spawn(arguments, token) {
        Ok(child) => Pid::from_raw(child.id().cast_signed()),
        Err(code) => return code,
    };
    let (sender, events) = mpsc::channel();
    watch(command, &mut guard, sender.clone());
    let checks = Checks::start(arguments, token, sender);
    let end = match events.recv() {
        Ok(Event::Unwell(reason)) => end_gently(command, &events, reason),
        Ok(end) => end,
        // Somebody always says that the command has ended; if nobody can, it must not go on.
        Err(_) => Event::Lost,
    };
    let code = match &end {
        Event::Ended(code) => *code,
        Event::Unwell(reason) => fail(EXIT_UNWELL, &format!("{}: the command was not well ({reason}) and is ended", arguments.resource)),
        Event::Lost => fail(EXIT_LOST, &format!("{}: the lock was lost; the command is ended", arguments.resource)),
    };
    let is_lost = end == Event::Lost;
    end_all(&arguments.resource, is_lost);
    if let Some(checks) = checks {
        checks.stop();
    }
    clean_up(arguments, token, is_lost);
    drop(guard.unlock(deadbolt_dlm::Flags::NONE, None));
    code
}

/// The lock is kept for as long as anything of the command runs, though it be stuck in the kernel: only a fence ends that. One that is
/// lost already cannot be kept.
fn end_all(resource: &str, is_lost: bool) {
    let mut has_said = false;
    while !end_descendants() && !is_lost {
        if !std::mem::replace(&mut has_said, true) {
            eprintln!("deadbolt lock: {resource}: processes of the command do not end; the lock is kept until they have");
        }
    }
}

/// Waits a moment for the command to do as it is told; the lock may be lost meanwhile.
fn end_gently(command: Pid, events: &Receiver<Event>, reason: String) -> Event {
    let _ = kill(command, Signal::SIGTERM);
    match events.recv_timeout(GRACE) {
        Ok(Event::Lost) => Event::Lost,
        _ => Event::Unwell(reason),
    }
}

/// What the command left is taken away before others may begin: as long as that fails, they may not. Once and without a promise where the
/// lock is lost.
fn clean_up(arguments: &LockArguments, token: Token, is_lost: bool) {
    let Some(text) = &arguments.finally else { return };
    loop {
        let result = health::run_within(&mut shell(text, arguments, token), None);
        end_all(&arguments.resource, is_lost);
        let Err(reason) = result else { return };
        if is_lost {
            return eprintln!("deadbolt lock: {}: --finally: {reason}, and the lock was lost before", arguments.resource);
        }
        eprintln!("deadbolt lock: {}: --finally: {reason}; the lock is kept, and it is tried again", arguments.resource);
        std::thread::sleep(FINALLY_AGAIN);
    }
}

fn exit_code(status: nix::Result<WaitStatus>) -> u8 {
    let code = match status {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        _ => return EXIT_FAILED,
    };
    u8::try_from(code).unwrap_or(EXIT_FAILED)
}

/// Kills everything below this process, also what it forked away: orphans become children of this subreaper. Is nothing left?
fn end_descendants() -> bool {
    for _ in 0..1000 {
        let children = children_of(Pid::this());
        for pid in children {
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::ECHILD) => return true,
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    false
}

fn children_of(pid: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let mut found = Vec::new();
    for list in lists {
        for child in list.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw) {
            found.push(child);
            found.extend(children_of(child));
        }
    }
    found
}
