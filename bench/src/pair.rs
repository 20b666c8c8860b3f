//! What: a second process that shares memory with this one, on a chosen core.
//! Owns: the mapping, the fork, the futex calls.
//! Invariants: the second process ends with this one and is reaped; its work makes system calls and touches memory, nothing else.
//! Does not: know what the two do.
//! Called by: the floors.

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Nothing of the pair takes longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A spinning side looks at the clock this seldom.
const SPINS: u32 = 1 << 20;

/// What may lie in memory that two processes write: valid when all its bytes are zero, changed through shared references only.
///
/// # Safety
/// The type consists of atomic numbers alone.
pub(crate) unsafe trait Shareable {}

// SAFETY: an atomic number.
unsafe impl<const N: usize> Shareable for [AtomicU32; N] {}

/// Memory that a forked process shares, zero at first.
pub(crate) struct Shared<T: Shareable> {
    place: NonNull<std::ffi::c_void>,
    what: PhantomData<T>,
}

impl<T: Shareable> Shared<T> {
    fn length() -> Result<NonZeroUsize> {
        NonZeroUsize::new(size_of::<T>()).context("nothing to share")
    }

    pub(crate) fn new() -> Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of no file at a place of the kernel's choice.
        let place = unsafe { mmap_anonymous(None, Self::length()?, protection, MapFlags::MAP_SHARED) }.context("shared memory")?;
        Ok(Self { place, what: PhantomData })
    }
}

impl<T: Shareable> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is page aligned, long enough, zero at first, and lives as long as this; T is made of atomics, so that the
        // other process may write at any time.
        unsafe { self.place.cast::<T>().as_ref() }
    }
}

impl<T: Shareable> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; references to it do not outlive this.
        let _ = unsafe { munmap(self.place, size_of::<T>()) };
    }
}

/// The cores that this process may use.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("asking for the cores")?;
    Ok((0..CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect())
}

fn set_cores(thread: Pid, cores: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    sched_setaffinity(thread, &set)
}

/// All threads of a process on these cores.
pub(crate) fn set_cores_of(pid: i32, cores: &[usize]) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_string_lossy().parse().context("the number of a thread")?;
        set_cores(Pid::from_raw(thread), cores)?;
    }
    Ok(())
}

/// This thread on one core, until this goes.
pub(crate) struct Pinned(Vec<usize>);

impl Pinned {
    pub(crate) fn to(core: usize) -> Result<Self> {
        let before = cores()?;
        set_cores(Pid::from_raw(0), &[core]).with_context(|| format!("moving to core {core}"))?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The set of before: nothing forbids it now.
        let _ = set_cores(Pid::from_raw(0), &self.0);
    }
}

/// Where the two sides run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Places {
    pub(crate) near: usize,
    pub(crate) far: usize,
}

impl Places {
    /// Both on the first core.
    pub(crate) fn one_core() -> Result<Self> {
        let first = *cores()?.first().context("no core")?;
        Ok(Self { near: first, far: first })
    }

    /// On two cores; none where there is only one.
    pub(crate) fn two_cores() -> Result<Option<Self>> {
        Ok(match cores()?.as_slice() {
            [near, far, ..] => Some(Self { near: *near, far: *far }),
            _ => None,
        })
    }
}

/// The second process.
pub(crate) struct Partner(Option<Pid>);

impl Partner {
    /// Forks a process that does this work on this core and ends.
    ///
    /// # Safety
    /// The work makes system calls and touches memory that stands already: it takes no lock and allocates nothing, for another thread of
    /// this process may have held a lock at the fork.
    pub(crate) unsafe fn fork(core: usize, work: impl FnOnce()) -> Result<Self> {
        let parent = nix::unistd::getpid();
        let mut set = CpuSet::new();
        set.set(core)?;
        // SAFETY: the child does only what the caller and the lines below say, and never returns from here.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => Ok(Self(Some(child))),
            ForkResult::Child => {
                let is_tied = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok() && nix::unistd::getppid() == parent;
                if is_tied && sched_setaffinity(Pid::from_raw(0), &set).is_ok() {
                    work();
                }
                // SAFETY: ends the child at once, without anything of the parent's that stands registered for an exit.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let Some(pid) = self.0.take() else { return Ok(()) };
        match waitpid(pid, None).context("waiting for the second process")? {
            WaitStatus::Exited(_, 0) => Ok(()),
            ended => bail!("the second process ended with {ended:?}"),
        }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// Sleeps until woken, if the word still has this value.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32) {
    let patience = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    // SAFETY: the word lives through the call. Every way to return is good: the caller looks at the word again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const patience) };
}

/// Wakes one sleeper.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// A limit for a side that waits without sleeping.
pub(crate) struct Spin {
    begin: Instant,
    turns: u32,
}

impl Spin {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), turns: 0 }
    }

    /// Another turn; false when it took too long.
    pub(crate) fn turn(&mut self) -> bool {
        std::hint::spin_loop();
        self.turns = self.turns.wrapping_add(1);
        !self.turns.is_multiple_of(SPINS) || self.begin.elapsed() < PATIENCE
    }
}

/// How a side waits for the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    Sleeping,
    Spinning,
}

/// Waits until the word is no longer `old`; false when it took too long.
pub(crate) fn wait_while(word: &AtomicU32, old: u32, waiting: Waiting) -> bool {
    let mut spin = Spin::new();
    while word.load(Ordering::Acquire) == old {
        match waiting {
            Waiting::Spinning if !spin.turn() => return false,
            Waiting::Spinning => {}
            Waiting::Sleeping => {
                futex_wait(word, old);
                if spin.begin.elapsed() > PATIENCE {
                    return false;
                }
            }
        }
    }
    true
}
