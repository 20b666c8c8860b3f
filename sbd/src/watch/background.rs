//! What: how the watcher becomes a daemon: the process that was started, its child, a trial process, the pid file, the cgroup.
//! Owns: fork, and the pipes by which these processes learn of each other.
//! Invariants: whoever waits for a child has a limit, or learns of its end by its pipe; a child forks only while it has one thread.
//! Does not: touch a device or a watchdog.
//! Called by: the watcher.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};

/// What the child writes once it lives; anything else is the reason why it does not.
const ALIVE: &[u8] = b"\x01";
/// How long a trial process that has answered is waited for. Chosen: its end takes a moment, and what may be spent before the watchdog
/// is opened is seconds.
const REAP: Duration = Duration::from_millis(500);

/// Which of two processes this is.
pub(crate) enum Detached {
    Parent(Child),
    Child(Background),
}

/// The child, seen from the process that was started.
pub(crate) struct Child {
    told: File,
}

/// This process in the background.
pub(crate) struct Background {
    tell: Option<File>,
}

/// What a trial process found out.
pub(crate) struct Tried {
    /// The last beat handed out.
    pub(crate) beat: u64,
    /// Not later than the issue of the first cycle.
    pub(crate) since_ms: u64,
    /// Devices whose mailbox was not read, a bit each.
    pub(crate) unread: u32,
}

/// Forks. The child is the first of a session of its own.
pub(crate) fn detach() -> nix::Result<Detached> {
    let (told, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: what other threads there may be hang in opening a device and hold no lock that the child takes.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(Detached::Parent(Child { told: told.into() })),
        ForkResult::Child => {
            drop(told);
            setsid()?;
            let _ = std::env::set_current_dir("/");
            leave_terminal();
            Ok(Detached::Child(Background { tell: Some(tell.into()) }))
        }
    }
}

/// Standard input and output go nowhere; who started the program may be gone.
fn leave_terminal() {
    let Ok(null) = File::options().read(true).write(true).open("/dev/null") else { return };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

impl Child {
    /// Waits until it lives or has ended.
    pub(crate) fn wait(mut self) -> Result<(), String> {
        let mut said = Vec::new();
        let mut byte = [0; 256];
        loop {
            match self.told.read(&mut byte) {
                Ok(0) if said.is_empty() => return Err("the watcher ended before it lived; the system log says why".to_owned()),
                Ok(0) => return Err(String::from_utf8_lossy(&said).into_owned()),
                Ok(count) => said.extend_from_slice(&byte[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("the watcher cannot be heard: {error}")),
            }
            if said == ALIVE {
                return Ok(());
            }
        }
    }
}

impl Background {
    /// Tells the process that was started why there is no watcher. Answers the exit code.
    pub(crate) fn fail(&mut self, reason: &str) -> u8 {
        if let Some(mut tell) = self.tell.take() {
            let _ = tell.write_all(reason.as_bytes());
        }
        1
    }

    /// What tells the process that was started that this one lives.
    pub(crate) fn take_alive(&mut self) -> Box<dyn FnOnce() + Send> {
        let tell = self.tell.take();
        Box::new(move || {
            if let Some(mut tell) = tell {
                let _ = tell.write_all(ALIVE);
            }
        })
    }

    /// Lets a process of its own do `work`. None: it was not done within `limit`; the process is ended.
    pub(crate) fn try_life(&mut self, limit: Duration, work: impl FnOnce() -> Result<Tried, String>) -> Result<Option<Tried>, String> {
        let (heard, say) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| format!("pipe: {errno}"))?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }.map_err(|errno| format!("fork: {errno}"))? {
            ForkResult::Child => {
                self.tell = None;
                drop(heard);
                let text = match work() {
                    Ok(tried) => format!("+{} {} {}", tried.beat, tried.since_ms, tried.unread),
                    Err(reason) => format!("-{reason}"),
                };
                let _ = File::from(say).write_all(text.as_bytes());
                super::end(0)
            }
            ForkResult::Parent { child } => {
                drop(say);
                let answer = read_within(heard, limit);
                if answer.is_none() {
                    let _ = kill(child, Signal::SIGKILL);
                } else {
                    reap(child);
                }
                answer.map(|text| parse_tried(&text)).transpose()
            }
        }
    }
}

/// Collects a child that has said all it had to say. One that cannot end, for a device hangs in it, is left to the kernel.
fn reap(child: Pid) {
    let end = std::time::Instant::now() + REAP;
    while matches!(waitpid(child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_within(heard: OwnedFd, limit: Duration) -> Option<String> {
    let end = std::time::Instant::now() + limit;
    let mut heard = File::from(heard);
    let mut text = Vec::new();
    let mut bytes = [0; 512];
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = u16::try_from(left.as_millis()).map_or(PollTimeout::MAX, PollTimeout::from);
        let mut polled = [PollFd::new(heard.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(_) => continue,
        }
        match heard.read(&mut bytes) {
            Ok(0) | Err(_) => return Some(String::from_utf8_lossy(&text).into_owned()),
            Ok(count) => text.extend_from_slice(&bytes[..count]),
        }
    }
}

fn parse_tried(text: &str) -> Result<Tried, String> {
    let numbers = text.strip_prefix('+').map(|rest| rest.split(' ').map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>());
    match numbers.flatten().as_deref() {
        Some(&[beat, since_ms, unread]) => Ok(Tried { beat, since_ms, unread: u32::try_from(unread).unwrap_or(u32::MAX) }),
        _ if text.is_empty() => Err("the process that tried the first cycle ended; the system log says why".to_owned()),
        _ => Err(text.strip_prefix('-').unwrap_or(text).to_owned()),
    }
}

/// Real-time scheduling is refused in a group without a share of it; the root group has one.
pub(crate) fn move_to_root_cgroup() {
    if crate::protect::use_real_time().is_ok() {
        crate::protect::use_ordinary_time();
        return;
    }
    for path in ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/cpu/tasks"] {
        let _ = std::fs::write(path, std::process::id().to_string());
    }
}

/// A pid file of this process; removed on drop.
pub(crate) struct PidFile {
    path: PathBuf,
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PidFileError {
    #[error("{}: the watcher {process} is running; stop it first", path.display())]
    Running { path: PathBuf, process: i32 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl PidFile {
    /// Puts the number of this process there, whole or not at all. A file of a process that is gone is replaced.
    pub(crate) fn take(path: &Path) -> Result<Self, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_path_buf(), source };
        if let Ok(text) = std::fs::read_to_string(path) {
            match text.trim().parse().ok().filter(|process| is_watcher(*process)) {
                Some(process) => return Err(PidFileError::Running { path: path.to_path_buf(), process }),
                None => std::fs::remove_file(path).map_err(io)?,
            }
        }
        let number = std::process::id();
        let mut whole = path.as_os_str().to_owned();
        whole.push(format!(".{number}"));
        // Compatibility: ten columns and a line feed.
        let written = std::fs::write(&whole, format!("{number:>10}\n")).and_then(|()| std::fs::hard_link(&whole, path));
        let _ = std::fs::remove_file(&whole);
        written.map_err(io)?;
        Ok(Self { path: path.to_path_buf() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Is there a process of this number that runs the same program?
fn is_watcher(process: i32) -> bool {
    let is_alive = process > 1 && process.unsigned_abs() != std::process::id() && kill(Pid::from_raw(process), None).is_ok();
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    is_alive && program(&process.to_string()) == program("self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_taken_once_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sbd.pid");
        for stale in ["", "garbage", "999999999\n", "1\n"] {
            std::fs::write(&path, stale).unwrap();
            let taken = PidFile::take(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{:>10}\n", std::process::id()));
            drop(taken);
            assert!(!path.exists());
        }
        assert!(PidFile::take(&folder.path().join("none/sbd.pid")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn what_a_trial_says() {
        let tried = parse_tried("+7 900 2").unwrap();
        assert_eq!((tried.beat, tried.since_ms, tried.unread), (7, 900, 2));
        assert_eq!(parse_tried("-no slot").err().unwrap(), "no slot");
        assert!(parse_tried("").is_err() && parse_tried("+7").is_err());
    }
}
