//! What: programs of the administrator - fence agents, heuristics - run with limits.
//! Owns: a program's process group while it runs, its time limit, what it says.
//! Invariants: a program that is out of time is killed with its whole process group before anything else; so is what it leaves behind.
//! Does not: judge how it ended; hold up the daemon's loop (its callers have threads of their own).
//! Called by: fence agents and heuristics.

use crate::supervisor::tie_to_parent;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit},
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

/// How often a running program is looked at. Chosen.
const LOOK: Duration = Duration::from_millis(20);
/// How much of what a program says is kept.
const SAID_BYTES_MAX: usize = 1000;
/// Soft limit of descriptors that a program starts with, the usual one: the daemon's own is larger.
const DESCRIPTORS: u64 = 1024;

/// Why a program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("it cannot be started: {0}")]
    Start(std::io::Error),
    #[error("it did not end within {} s and was killed", limit.as_secs())]
    Late { limit: Duration },
    #[error("waiting for it failed: {0}")]
    Wait(Errno),
}

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) status: WaitStatus,
    /// The beginning of what it wrote to its standard error; empty, or made to be put behind a sentence.
    pub(crate) said: String,
}

/// Runs a program to its end, which comes by the limit. The input has to be less than a pipe holds.
pub(crate) fn run(program: &Path, arguments: &[String], input: &str, limit: Duration) -> Result<Ended, RunError> {
    let mut child = start(program, arguments).map_err(RunError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads nothing may refuse it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stderr = child.stderr.take();
    let ended = watch(&child, stderr, Instant::now() + limit);
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // Its first process is not reaped yet: the number is still that of this group.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    ended?.ok_or(RunError::Late { limit })
}

fn start(program: &Path, arguments: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let parent = nix::unistd::getpid().as_raw();
    let (soft, hard) = getrlimit(RLIMIT_NOFILE)?;
    let hook = move || {
        tie_to_parent(parent, Signal::SIGKILL)?;
        Ok(setrlimit(RLIMIT_NOFILE, soft.min(DESCRIPTORS), hard)?)
    };
    // SAFETY: the hook makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
    command.spawn()
}

/// Waits for the end without reaping; none when the time is over.
fn watch(child: &Child, mut stderr: Option<ChildStderr>, end: Instant) -> Result<Option<Ended>, RunError> {
    if let Some(stderr) = &stderr {
        fcntl(stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(RunError::Wait)?;
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let mut said = Vec::new();
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let status = waitid(Id::Pid(pid), flags).map_err(RunError::Wait)?;
        if let Some(stderr) = &mut stderr {
            listen(stderr, &mut said);
        }
        if status != WaitStatus::StillAlive {
            let said = String::from_utf8_lossy(&said);
            let said = if said.trim().is_empty() { String::new() } else { format!("; it said: {}", said.trim()) };
            return Ok(Some(Ended { status, said }));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes what is there, so that the pipe never fills; keeps the beginning.
fn listen(stderr: &mut ChildStderr, said: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    // Bounded: a program that never stops talking must not keep the clock from being looked at.
    for _ in 0..64 {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let room = SAID_BYTES_MAX.saturating_sub(said.len()).min(count);
                said.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
