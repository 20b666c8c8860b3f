//! What: processes as /proc shows them: who descends from whom, exact signals, environments and open files.
//! Owns: the identity of a process (number and start time) and every signal that the supervisor sends to one.
//! Invariants: a signal goes to a process whose start time was compared after it was pinned; nothing is found by its name.
//! Does not: decide who must end.
//! Called by: the other modules of the supervisor; the lock socket's accept hook (`is_descendant`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

/// Longest chain of parents that is walked; deeper is no tree of ours (chosen, far above what people nest).
const CHAIN_MAX: usize = 4096;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process number in the supervisor's namespace.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since the machine's start.
    pub start_ticks: u64,
}

/// What /proc/PID/stat says, as far as it is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProcessStat {
    pub(crate) identity: ProcessIdentity,
    pub(crate) parent: i32,
    pub(crate) is_zombie: bool,
}

/// Decodes a line of /proc/PID/stat. The name in parentheses may hold anything, parentheses and newlines too.
fn decode_stat(line: &[u8]) -> Option<ProcessStat> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(line.get(..open)?).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields 5 to 21 lie between the parent (4) and the start time (22).
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(ProcessStat { identity: ProcessIdentity { pid, start_ticks }, parent, is_zombie: matches!(state, "Z" | "X" | "x") })
}

/// Reads one process; `None`: there is none (any more).
pub(crate) fn read_stat(pid: i32) -> Option<ProcessStat> {
    decode_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// This process.
pub(crate) fn own_identity() -> io::Result<ProcessIdentity> {
    identity_of(own_pid()).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/proc does not show this process"))
}

/// The number of this process.
pub(crate) fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// The identity of a living or unreaped process.
pub(crate) fn identity_of(pid: i32) -> Option<ProcessIdentity> {
    read_stat(pid).map(|stat| stat.identity)
}

/// Every process that /proc shows. One that ends during the walk is left out.
pub(crate) fn read_all() -> io::Result<Vec<ProcessStat>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|text| text.parse::<i32>().ok())
            && let Some(stat) = read_stat(pid)
        {
            all.push(stat);
        }
    }
    Ok(all)
}

/// Everything below `root`, root itself not included, in no particular order.
pub(crate) fn descendants(root: i32, all: &[ProcessStat]) -> Vec<ProcessStat> {
    let mut children: BTreeMap<i32, Vec<&ProcessStat>> = BTreeMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.identity.pid) {
                found.push(**child);
                open.push(child.identity.pid);
            }
        }
    }
    found
}

/// Is `pid` below `ancestor` (or `ancestor` itself)? Numbers are those of the caller's own PID namespace; 0, which the kernel
/// gives for a process of another namespace, is below nobody. A process that ended is below nobody.
#[must_use]
pub fn is_descendant(pid: i32, ancestor: i32) -> bool {
    if pid <= 0 || ancestor <= 0 {
        return false;
    }
    let mut at = pid;
    for _ in 0..CHAIN_MAX {
        if at == ancestor {
            return read_stat(pid).is_some();
        }
        match read_stat(at) {
            Some(stat) if stat.parent > 0 => at = stat.parent,
            _ => return false,
        }
    }
    false
}

/// What became of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signalled {
    /// It was sent to exactly this process.
    Sent,
    /// The process is no more; nobody was signalled.
    Gone,
    /// The kernel did not allow it.
    Refused,
}

/// Sends a signal to exactly this process: pins it by a pidfd, compares its start time, signals through the pin.
pub(crate) fn signal_exactly(process: ProcessIdentity, signal: Signal) -> Signalled {
    // SAFETY: pidfd_open takes a number and flags, and gives a new descriptor or an error.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    let Some(pin) = i32::try_from(number).ok().filter(|number| *number >= 0) else {
        return match Errno::last() {
            // Older than 5.3: between comparison and signal the number could change hands, in theory.
            Errno::ENOSYS => signal_by_number(process, signal),
            _ => Signalled::Gone,
        };
    };
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let pin = unsafe { OwnedFd::from_raw_fd(pin) };
    if identity_of(process.pid) != Some(process) {
        return Signalled::Gone;
    }
    let raw: libc::c_int = signal as libc::c_int;
    // SAFETY: a valid pidfd, a valid signal, no siginfo, no flags.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pin.as_raw_fd(), raw, std::ptr::null::<libc::siginfo_t>(), 0) };
    match (sent, Errno::last()) {
        (0, _) => Signalled::Sent,
        (_, Errno::EPERM) => Signalled::Refused,
        _ => Signalled::Gone,
    }
}

fn signal_by_number(process: ProcessIdentity, signal: Signal) -> Signalled {
    if identity_of(process.pid) != Some(process) {
        return Signalled::Gone;
    }
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal) {
        Ok(()) => Signalled::Sent,
        Err(Errno::EPERM) => Signalled::Refused,
        Err(_) => Signalled::Gone,
    }
}

/// What a round of reaping found.
#[derive(Debug, Default)]
pub(crate) struct Reaped {
    /// Who was reaped, with the status.
    pub(crate) ended: Vec<(i32, WaitStatus)>,
    /// No child is left, living or unreaped.
    pub(crate) is_childless: bool,
}

/// Reaps every child that has ended, adopted ones too, without waiting.
pub(crate) fn reap() -> Reaped {
    let mut reaped = Reaped::default();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) => return reaped,
            Ok(status) => {
                if let Some(pid) = status.pid() {
                    reaped.ended.push((pid.as_raw(), status));
                }
            }
            Err(Errno::ECHILD) => {
                reaped.is_childless = true;
                return reaped;
            }
            Err(_) => return reaped,
        }
    }
}

/// How a process ended, as a shell would say it: the code, or 128 and the signal.
pub(crate) fn shell_code(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 0,
    }
}

/// Signals everything below this process once. Answers who refused.
pub(crate) fn signal_descendants(signal: Signal) -> Vec<i32> {
    let Ok(all) = read_all() else {
        return Vec::new();
    };
    descendants(own_pid(), &all)
        .into_iter()
        .filter(|stat| !stat.is_zombie)
        .filter(|stat| signal_exactly(stat.identity, signal) == Signalled::Refused)
        .map(|stat| stat.identity.pid)
        .collect()
}

/// Ends everything below this process and reaps it, until the kernel says that no child is left. Being a subreaper, this
/// process adopts every orphan below it, so that none can hide behind a dead parent; a process in an uninterruptible sleep
/// keeps the loop going, because it is not gone. `stuck` is called about every ten seconds with the numbers that are left.
pub(crate) fn end_descendants(mut stuck: impl FnMut(&[i32])) -> Vec<(i32, WaitStatus)> {
    let mut ended = Vec::new();
    let mut pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        signal_descendants(Signal::SIGKILL);
        let reaped = reap();
        ended.extend(reaped.ended);
        if reaped.is_childless {
            return ended;
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(20));
        if waited >= Duration::from_secs(10) {
            waited = Duration::ZERO;
            let left: Vec<i32> =
                read_all().map(|all| descendants(own_pid(), &all)).unwrap_or_default().iter().map(|stat| stat.identity.pid).collect();
            stuck(&left);
        }
    }
}

/// Does the environment that the process was started with hold `name` with a value that begins so?
pub(crate) fn has_environment(pid: i32, name: &str, value_begins: &str) -> bool {
    let wanted = format!("{name}={value_begins}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|entry| entry.starts_with(wanted.as_bytes())))
}

/// Who has this file open, as far as this user may see, with the program's name for people.
pub(crate) fn holders_of(file: &fs::File) -> Vec<Holder> {
    let Ok(wanted) = file.metadata() else {
        return Vec::new();
    };
    let own = own_pid();
    let holds = |pid: i32| {
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|entries| {
            entries
                .flatten()
                .filter_map(|entry| fs::metadata(entry.path()).ok())
                .any(|found| found.dev() == wanted.dev() && found.ino() == wanted.ino())
        })
    };
    let all = read_all().unwrap_or_default();
    all.iter()
        .map(|stat| stat.identity.pid)
        .filter(|pid| *pid != own && holds(*pid))
        .map(|pid| Holder {
            pid,
            program: fs::read_to_string(format!("/proc/{pid}/comm")).map(|text| text.trim_end().to_owned()).unwrap_or_default(),
        })
        .collect()
}

/// Somebody who keeps a file open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Process number.
    pub pid: i32,
    /// Name of its program.
    pub program: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pid, self.program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32) -> ProcessStat {
        ProcessStat { identity: ProcessIdentity { pid, start_ticks: 1 }, parent, is_zombie: false }
    }

    #[test]
    fn a_name_with_parentheses_and_newlines_does_not_move_the_fields() {
        let line = b"77 (a) S 9 (\n) R 5 77 77 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        let decoded = decode_stat(line).unwrap();
        assert_eq!(decoded.identity, ProcessIdentity { pid: 77, start_ticks: 4711 });
        assert_eq!(decoded.parent, 5);
        for end in 0..line.len() {
            let _ = decode_stat(&line[..end]);
        }
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_a_circle_ends() {
        let all = [stat(2, 1), stat(3, 2), stat(4, 3), stat(9, 8), stat(1, 4)];
        let mut found: Vec<i32> = descendants(2, &all).iter().map(|s| s.identity.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [1, 3, 4]);
    }

    #[test]
    fn this_process_descends_from_its_parent_and_not_from_a_stranger() {
        let own = own_pid();
        let parent = nix::unistd::getppid().as_raw();
        assert!(is_descendant(own, own));
        assert!(parent == 0 || is_descendant(own, parent));
        assert!(!is_descendant(parent, own));
        assert!(!is_descendant(0, own) && !is_descendant(own, 0));
    }

    #[test]
    fn a_process_with_another_start_time_is_not_signalled() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let real = identity_of(pid).unwrap();
        let other = ProcessIdentity { start_ticks: real.start_ticks + 1, ..real };
        assert_eq!(signal_exactly(other, Signal::SIGKILL), Signalled::Gone);
        assert!(child.try_wait().unwrap().is_none());
        assert_eq!(signal_exactly(real, Signal::SIGKILL), Signalled::Sent);
        child.wait().unwrap();
        assert_eq!(signal_exactly(real, Signal::SIGKILL), Signalled::Gone);
    }
}
