//! What: the memory of a ring and the few system calls around it: mapping, futex, processor number, and whether this process forked.
//! Owns: every unsafe block of the rings.
//! Invariants: the memory is exactly as long as its words and sealed against resizing, so that an access never faults; a forked child
//!   neither has the mapping nor takes it down.
//! Does not: know what the words mean.
//! Called by: `ring`, both client libraries, the server.

use crate::ring::{RingRaw, TransportError};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
    },
};
use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

const RING_LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<RingRaw>()).expect("a ring is not empty");
const MARK_LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<AtomicU64>()).expect("a word is not empty");

fn failed(call: &'static str) -> impl Fn(Errno) -> TransportError {
    move |errno| TransportError::System { call, source: errno.into() }
}

/// A mapping of a ring's memory; unmapped on drop.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    /// The process that mapped it: a forked child does not have it.
    process: Process,
}

// SAFETY: the mapping is only reached through `raw`, whose fields are all atomics; munmap happens once, in drop of the last owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references give nothing but atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps memory made by [`create_memory`] in this or another process.
    pub(crate) fn new(memory: BorrowedFd<'_>) -> Result<Self, TransportError> {
        let process = Process::this()?;
        let seals =
            fcntl(memory, FcntlArg::F_GET_SEALS).map_err(|_| TransportError::NotARing { found: "a descriptor that is no memfd" })?;
        if seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(TransportError::NotARing { found: "memory that can still shrink" });
        }
        let length = nix::sys::stat::fstat(memory).map_err(failed("fstat"))?.st_size;
        if usize::try_from(length) != Ok(RING_LENGTH.get()) {
            return Err(TransportError::NotARing { found: "memory of another size" });
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(None, RING_LENGTH, protection, MapFlags::MAP_SHARED, memory, 0) }.map_err(failed("mmap"))?;
        let mapping = Self { start, process };
        // SAFETY: start and length are those of the mapping just made; the advice changes nothing in this process.
        unsafe { madvise(start, RING_LENGTH.get(), MmapAdvise::MADV_DONTFORK) }.map_err(failed("madvise(MADV_DONTFORK)"))?;
        Ok(mapping)
    }

    /// The words. A forked child must not come here: it has no such memory.
    pub(crate) fn raw(&self) -> &RingRaw {
        // SAFETY: the mapping is page aligned, as long as RingRaw (checked against the sealed memfd) and lives as long as self in the
        // process that made it; any bytes are valid for RingRaw, which is repr(C) and all atomics, so that the other process may write
        // it at any time. Callers in a client ask `Process::is_this` first, and the daemon does not fork.
        unsafe { self.start.cast::<RingRaw>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.process.is_this() {
            // SAFETY: start and length are those of the mapping made in new, in this process (checked: in a forked child something else
            // may lie there), and no reference outlives self. A failure leaves an unused mapping behind, which harms nobody.
            let _ = unsafe { munmap(self.start, RING_LENGTH.get()) };
        }
    }
}

/// Makes the memory of a ring: zero bytes, of fixed size, closed on exec.
pub(crate) fn create_memory() -> Result<OwnedFd, TransportError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(c"deadbolt-ring", flags).map_err(failed("memfd_create"))?;
    let length = i64::try_from(RING_LENGTH.get()).unwrap_or(i64::MAX);
    nix::unistd::ftruncate(memory.as_fd(), length).map_err(failed("ftruncate"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("fcntl(F_ADD_SEALS)"))?;
    Ok(memory)
}

/// Sleeps while the word has this value, until somebody wakes it, the time is over, or a signal came.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time outlive the call; the kernel only reads both.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, timeout) };
}

/// Wakes whoever sleeps on the word, in any process.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is mapped for the whole call; the kernel looks at its address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Number of the processor that this thread runs on, plus one; 0 when it is not known.
pub(crate) fn processor() -> u32 {
    // SAFETY: takes nothing and changes nothing.
    let number = unsafe { libc::sched_getcpu() };
    u32::try_from(number).map_or(0, |number| number + 1)
}

/// A word that a fork sets to zero in the child.
struct Mark(NonNull<AtomicU64>);

// SAFETY: the word is never unmapped and only used as an atomic.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    fn word(&self) -> &AtomicU64 {
        // SAFETY: mapped for the life of the process, page aligned, and only ever used as this atomic.
        unsafe { self.0.as_ref() }
    }
}

static MARK: OnceLock<Mark> = OnceLock::new();
static LAST: AtomicU64 = AtomicU64::new(0);

fn mark() -> Result<&'static AtomicU64, TransportError> {
    if let Some(mark) = MARK.get() {
        return Ok(mark.word());
    }
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
    let start = unsafe { mmap_anonymous(None, MARK_LENGTH, protection, MapFlags::MAP_PRIVATE) }.map_err(failed("mmap"))?;
    // SAFETY: the mapping was just made; the advice changes nothing in this process.
    unsafe { madvise(start, MARK_LENGTH.get(), MmapAdvise::MADV_WIPEONFORK) }.map_err(failed("madvise(MADV_WIPEONFORK)"))?;
    // Two threads may have come here at once: the second mapping stays unused.
    Ok(MARK.get_or_init(|| Mark(start.cast())).word())
}

/// Which process this is, told without a system call: a forked child differs from its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process(u64);

impl Process {
    /// The process that runs this.
    pub(crate) fn this() -> Result<Self, TransportError> {
        let word = mark()?;
        let seen = word.load(Ordering::Relaxed);
        if seen != 0 {
            return Ok(Self(seen));
        }
        // A child counts on from its parent's number, which it inherits.
        let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Self(match word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => fresh,
            Err(other) => other,
        }))
    }

    /// Does it still run here, or is this a forked child?
    pub(crate) fn is_this(self) -> bool {
        MARK.get().is_some_and(|mark| mark.word().load(Ordering::Relaxed) == self.0)
    }
}

/// Does the socket have something to read, or has it ended? Does not wait.
pub(crate) fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Rings an eventfd. A counter that is full (EAGAIN) rings already.
#[expect(clippy::host_endian_bytes, reason = "the kernel reads the count in its own order")]
pub(crate) fn ring_bell(bell: &OwnedFd) {
    let _ = nix::unistd::write(bell, &1u64.to_ne_bytes());
}

/// Makes an eventfd that does not block.
pub(crate) fn create_bell() -> Result<OwnedFd, TransportError> {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(OwnedFd::from).map_err(failed("eventfd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_may_shrink_or_has_another_size_is_refused() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = memfd_create(c"unsealed", flags).unwrap();
        nix::unistd::ftruncate(memory.as_fd(), i64::try_from(RING_LENGTH.get()).unwrap()).unwrap();
        assert!(matches!(Mapping::new(memory.as_fd()), Err(TransportError::NotARing { .. })));
        let small = memfd_create(c"small", flags).unwrap();
        nix::unistd::ftruncate(small.as_fd(), 4096).unwrap();
        fcntl(&small, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        assert!(matches!(Mapping::new(small.as_fd()), Err(TransportError::NotARing { .. })));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Mapping::new(null.as_fd()), Err(TransportError::NotARing { .. })));
        assert!(nix::unistd::ftruncate(create_memory().unwrap().as_fd(), 0).is_err(), "a ring's memory is sealed");
    }

    #[test]
    fn a_forked_child_is_another_process() {
        let parent = Process::this().unwrap();
        assert!(parent.is_this());
        // SAFETY: the child only compares two words and ends at once.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let is_other = !parent.is_this() && Process::this().is_ok_and(|child| child != parent && child.is_this());
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(i32::from(!is_other)) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        assert!(parent.is_this());
    }
}
