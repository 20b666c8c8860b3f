//! What: locked memory, real-time scheduling, and the tie to the parent process.
//! Owns: which of them this process may have, and the line that names each missing one.
//! Invariants: memory is locked only where later allocations cannot fail for it.
//! Does not: decide whether sbd may run without.
//! Called by: `run`, the feeding thread.

use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// CAP_IPC_LOCK, as a bit of CapEff in /proc/self/status.
const CAP_IPC_LOCK: u32 = 14;
/// Priority of the feeding thread. Chosen: above ordinary real-time work, below the kernel's own threads at 99.
const PRIORITY: libc::c_int = 90;

/// May the feeding thread have real-time scheduling?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Yes.
    RealTime,
    /// No, and that was named.
    None,
}

/// What this process may not have. Each is one line for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// Memory cannot be locked.
    #[error("memory is not locked ({reason}): under memory pressure the watchdog may be fed late; run as root or raise `ulimit -l`")]
    LockedMemory {
        /// Why.
        reason: String,
    },
    /// No real-time scheduling.
    #[error("no real-time priority ({source}): on a busy machine the watchdog may be fed late; run as root or raise `ulimit -r`")]
    RealTime {
        /// What the kernel said.
        source: io::Error,
    },
}

/// Locks all memory, present and future.
///
/// # Errors
/// When it is refused, or when the limit would make a later allocation fail.
pub fn lock_memory() -> Result<(), Missing> {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit != RLIM_INFINITY && !may_lock_without_limit() {
        return Err(Missing::LockedMemory { reason: format!("the limit is {} KiB", limit / 1024) });
    }
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(|errno| Missing::LockedMemory { reason: errno.to_string() })
}

fn may_lock_without_limit() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    effective.and_then(|digits| u64::from_str_radix(digits, 16).ok()).is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

/// Gives the calling thread real-time scheduling.
///
/// # Errors
/// When it is refused.
pub fn use_real_time() -> Result<(), Missing> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: 0 names the calling thread, and the parameter lives through the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) } != 0 {
        return Err(Missing::RealTime { source: io::Error::last_os_error() });
    }
    Ok(())
}

/// Gives the calling thread ordinary scheduling back.
pub fn use_ordinary_time() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: as in use_real_time; going back to ordinary scheduling is always allowed.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameter) };
}

/// Lets the kernel end this process when its parent ends. False: the parent was gone already.
#[must_use]
pub fn end_with_parent() -> bool {
    let before = nix::unistd::getppid();
    let is_set = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).is_ok();
    // A parent that ended before the call sends nothing.
    is_set && nix::unistd::getppid() == before && before.as_raw() != 0
}
