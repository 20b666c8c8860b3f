//! What: the locks of a node's directory, and the search for what an earlier life left behind.
//! Owns: `supervisor.lock` (the keeper's alone) and `tree.lock` (inherited by every process that it ever starts).
//! Invariants: whoever has both locks and a search without result is alone; nobody is signalled while another keeper lives.
//! Does not: number boots.
//! Called by: the keeper; `client::stop` (to see a keeper end).

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::boot::BootRecord;
use super::process::{self, ProcessIdentity, Signalled};
use super::{SupervisorError, TREE_VARIABLE};

const SUPERVISOR_LOCK: &str = "supervisor.lock";
const TREE_LOCK: &str = "tree.lock";
/// A runner whose keeper was killed ends its tree by itself; this long it is left to do so.
const RUNNER_GRACE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Both locks, held.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Held by the keeper alone.
    pub(crate) supervisor: File,
    /// Its descriptor goes to every process of a life.
    pub(crate) tree: File,
}

fn open(path: &Path) -> Result<File, SupervisorError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| SupervisorError::io("open", path, source))
}

/// Tries a lock that belongs to the open file: it ends when the last descriptor of it, inherited ones too, is closed.
fn try_lock(file: &File, path: &Path) -> Result<bool, SupervisorError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(SupervisorError::io("lock", path, source)),
    }
}

/// Does a keeper run this directory?
pub(crate) fn is_supervised(directory: &Path) -> bool {
    let path = directory.join(SUPERVISOR_LOCK);
    File::open(&path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Takes the keeper's lock, or says who has it. A second is granted, for a runner closes its copy right after it was forked.
pub(crate) fn lock_supervisor(directory: &Path) -> Result<File, SupervisorError> {
    let path = directory.join(SUPERVISOR_LOCK);
    let file = open(&path)?;
    let start = Instant::now();
    while !try_lock(&file, &path)? {
        if start.elapsed() > Duration::from_secs(1) {
            return Err(SupervisorError::AlreadyRuns { directory: directory.to_owned(), holders: process::holders_of(&file) });
        }
        std::thread::sleep(PAUSE);
    }
    Ok(file)
}

/// What an earlier life is recognised by.
#[derive(Debug)]
pub(crate) struct Earlier {
    runner: Option<ProcessIdentity>,
    tree_begins: Option<String>,
}

impl Earlier {
    /// From the record of the directory. `is_same_kernel`: else start times mean nothing and no process can be left.
    pub(crate) fn new(record: Option<&BootRecord>, is_same_kernel: bool) -> Self {
        let record = record.filter(|_| is_same_kernel);
        Self { runner: record.and_then(|record| record.runner), tree_begins: record.and_then(BootRecord::text_prefix) }
    }

    fn is_mine(&self, pid: i32) -> bool {
        self.tree_begins.as_ref().is_some_and(|begins| process::has_environment(pid, TREE_VARIABLE, begins))
    }

    /// Refuses when this process or one of its ancestors is part of the earlier life: it could never see it end.
    fn check_outside(&self, directory: &Path) -> Result<(), SupervisorError> {
        let mut at = process::own_pid();
        while at > 0 {
            if self.is_mine(at) {
                return Err(SupervisorError::InsideEarlierTree { directory: directory.to_owned(), pid: at });
            }
            at = process::read_stat(at).map_or(0, |stat| stat.parent);
        }
        Ok(())
    }

    /// Kills what the environment shows to be of the earlier life. Answers who was there.
    fn kill_by_environment(&self) -> Result<Vec<i32>, SupervisorError> {
        let all = process::read_all().map_err(|source| SupervisorError::io("read", Path::new("/proc"), source))?;
        let found: Vec<_> =
            all.iter().filter(|stat| !stat.is_zombie && self.is_mine(stat.identity.pid)).map(|stat| stat.identity).collect();
        for identity in &found {
            process::signal_exactly(*identity, Signal::SIGKILL);
        }
        Ok(found.iter().map(|identity| identity.pid).collect())
    }

    fn kill_runner(&self) {
        if let Some(runner) = self.runner
            && process::signal_exactly(runner, Signal::SIGKILL) == Signalled::Sent
        {
            tracing::warn!(pid = runner.pid, "killed the runner of an earlier life, which did not end by itself");
        }
    }
}

/// Waits for the earlier life's end and takes the tree's lock. The caller holds the keeper's lock, so no keeper lives.
pub(crate) fn lock_tree(directory: &Path, earlier: &Earlier, lock_wait: Duration) -> Result<File, SupervisorError> {
    earlier.check_outside(directory)?;
    let path = directory.join(TREE_LOCK);
    let file = open(&path)?;
    let start = Instant::now();
    while !try_lock(&file, &path)? {
        let waited = start.elapsed();
        if waited > lock_wait {
            return Err(SupervisorError::TreeHeld { path, waited, holders: process::holders_of(&file) });
        }
        if waited > RUNNER_GRACE.min(lock_wait / 2) {
            earlier.kill_runner();
            earlier.kill_by_environment()?;
        }
        std::thread::sleep(PAUSE);
    }
    search(directory, earlier, lock_wait, start)?;
    Ok(file)
}

/// Repeats the search until it finds nobody: a process may have closed the lock and yet be there.
fn search(directory: &Path, earlier: &Earlier, lock_wait: Duration, start: Instant) -> Result<(), SupervisorError> {
    loop {
        earlier.kill_runner();
        let pids = earlier.kill_by_environment()?;
        if pids.is_empty() {
            return Ok(());
        }
        tracing::warn!(?pids, "killed processes of an earlier life");
        let waited = start.elapsed();
        if waited > lock_wait + RUNNER_GRACE {
            return Err(SupervisorError::Survivors { directory: PathBuf::from(directory), waited, pids });
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_keeper_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_supervisor(dir.path()).unwrap();
        assert!(is_supervised(dir.path()));
        let error = lock_supervisor(dir.path()).unwrap_err().to_string();
        assert!(error.contains("already runs"), "{error}");
        drop(held);
        assert!(!is_supervised(dir.path()));
        lock_supervisor(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_kept_by_a_stranger_is_waited_for_and_then_refused_without_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TREE_LOCK);
        let held = open(&path).unwrap();
        assert!(try_lock(&held, &path).unwrap());
        let earlier = Earlier { runner: None, tree_begins: Some("00000000-0000-0000-".to_owned()) };
        let wait = Duration::from_millis(60);
        let error = lock_tree(dir.path(), &earlier, wait).unwrap_err();
        assert!(matches!(error, SupervisorError::TreeHeld { .. }), "{error}");
        drop(held);
        lock_tree(dir.path(), &earlier, wait).unwrap();
    }
}
