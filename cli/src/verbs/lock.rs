//! What: `deadbolt lock RESOURCE -- CMD`: a command that runs while a lock is held, like flock(1) across the cluster.
//! Owns: the command's process tree, its environment, the exit codes 121 to 127.
//! Invariants: the command starts only under a granted lock; when the lock is lost it is ended with all its descendants; under a process
//!   watchdog everything runs inside the node's process tree.
//! Does not: retry.
//! Called by: the verbs; by itself, inside the tree.

use super::{EXIT_CANNOT_RUN, EXIT_FAILED, EXIT_LOST, EXIT_NO_QUORUM, EXIT_NOT_FOUND, EXIT_NOT_GRANTED, EXIT_USAGE, NodeArguments};
use clap::Args;
use deadbolt_cluster::ask::ask;
use deadbolt_cluster::{
    config::NodeDirectory,
    supervisor::{self, client::RunRequest},
};
use deadbolt_dlm::{
    LockStatus, Mode,
    blocking::{Client, ClientError, Guard, Protection, Wishes},
};
use nix::{
    sys::{
        signal::{SigHandler, Signal, kill, signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use std::{
    ffi::OsString,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus},
    sync::mpsc,
    time::Duration,
};

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

enum Event {
    Ended(std::io::Result<ExitStatus>),
    Lost,
}

fn run_command(arguments: &LockArguments, mut guard: Guard) -> u8 {
    // Signals of the terminal reach the command by itself; this process stays until the command has ended.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // Orphans of the command come to this process, so that none escapes when the lock is lost.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let Some((program, rest)) = arguments.command.split_first() else { return EXIT_USAGE };
    let token = guard.token();
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("DEADBOLT_TOKEN", token.to_string())
        .env("DEADBOLT_VIEW", token.view.to_string())
        .env("DEADBOLT_RESOURCE", &arguments.resource);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
                signal(ignored, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_CANNOT_RUN };
            return fail(code, &format!("{}: {error}", program.display()));
        }
    };
    let (sender, events) = mpsc::channel();
    let lost_sender = sender.clone();
    let blocked = guard.take_blocked();
    std::thread::spawn(move || {
        // The stream of hints ends with the session: then the lock is void.
        while blocked.recv().is_ok() {}
        let _ = lost_sender.send(Event::Lost);
    });
    std::thread::spawn(move || {
        let _ = sender.send(Event::Ended(child.wait()));
    });
    match events.recv() {
        Ok(Event::Ended(status)) => {
            let code = exit_code(status);
            // The lock goes back only when the process that was asked for is gone; what it left behind runs on without it.
            drop(guard.unlock(deadbolt_dlm::Flags::NONE, None));
            code
        }
        Ok(Event::Lost) | Err(_) => {
            end_descendants();
            fail(EXIT_LOST, &format!("{}: the lock was lost; the command was ended", arguments.resource))
        }
    }
}

fn exit_code(status: std::io::Result<ExitStatus>) -> u8 {
    match status {
        Ok(status) => status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(EXIT_FAILED),
        Err(_) => EXIT_FAILED,
    }
}

/// Kills everything below this process, also what it forked away: orphans become children of this subreaper.
fn end_descendants() {
    for _ in 0..1000 {
        let children = children_of(Pid::this());
        for pid in children {
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::ECHILD) => return,
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
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
