//! What: one shared page mapped from a memfd, and the few system calls around it.
//! Owns: every unsafe block of the page: the mapping, the reference into it, the descriptors' way into a child.
//! Invariants: the memfd is exactly one page long and sealed against shrinking, so that an access never faults.
//! Does not: know what the words of the page mean.
//! Called by: `page`.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::page::{DESCRIPTORS, PAGE_BYTES, PageError, PageRaw};

const PAGE_LENGTH: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).expect("a page is not empty");

/// A mapping of the shared page; unmapped on drop.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
}

// SAFETY: the mapping is only reached through `raw`, whose fields are all atomics; munmap happens once, in drop of the last owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references give nothing but atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a memfd made by [`create_memfd`] (in this or another process).
    pub(crate) fn new(memory: BorrowedFd<'_>) -> Result<Self, PageError> {
        let seals = fcntl(memory, FcntlArg::F_GET_SEALS).map_err(|_| PageError::NotAPage { found: "a descriptor that is not a memfd" })?;
        if seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(PageError::NotAPage { found: "a memfd that can still shrink" });
        }
        let length = nix::sys::stat::fstat(memory).map_err(|errno| PageError::System { call: "fstat", source: errno.into() })?.st_size;
        if usize::try_from(length) != Ok(PAGE_BYTES) {
            return Err(PageError::NotAPage { found: "a memfd of another size" });
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(None, PAGE_LENGTH, protection, MapFlags::MAP_SHARED, memory, 0) }
            .map_err(|errno| PageError::System { call: "mmap", source: errno.into() })?;
        Ok(Self { start })
    }

    /// The words of the page.
    pub(crate) fn raw(&self) -> &PageRaw {
        // SAFETY: the mapping is page aligned, PAGE_BYTES long (checked against the sealed memfd) and lives as long as self;
        // PageRaw is repr(C) of exactly that size, any bytes are valid for it, and all of it is atomics, so that other
        // processes may write it at any time.
        unsafe { self.start.cast::<PageRaw>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in new, and no reference outlives self.
        // A failure leaves an unused mapping behind, which harms nobody.
        let _ = unsafe { munmap(self.start, PAGE_BYTES) };
    }
}

/// Makes the memory of a page: zero bytes, of fixed size, closed on exec.
pub(crate) fn create_memfd() -> Result<OwnedFd, PageError> {
    let system = |call: &'static str| move |errno: nix::Error| PageError::System { call, source: errno.into() };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(c"deadbolt-page", flags).map_err(system("memfd_create"))?;
    let length = i64::try_from(PAGE_BYTES).map_err(|_| PageError::NotAPage { found: "a page of impossible size" })?;
    nix::unistd::ftruncate(&memory, length).map_err(system("ftruncate"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).map_err(system("fcntl(F_ADD_SEALS)"))?;
    Ok(memory)
}

/// Takes over descriptors that this process inherited; they are closed on exec from now on.
pub(crate) fn adopt(number: RawFd) -> Result<OwnedFd, PageError> {
    // SAFETY: F_GETFD changes nothing and fails on a number that is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(PageError::System { call: "fcntl(F_GETFD)", source: io::Error::last_os_error() });
    }
    // SAFETY: the number is open (checked) and given to this process by its supervisor for nobody else's use.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    set_close_on_exec(owned.as_fd(), true).map_err(|source| PageError::System { call: "fcntl(F_SETFD)", source })?;
    Ok(owned)
}

fn set_close_on_exec(descriptor: BorrowedFd<'_>, is_set: bool) -> io::Result<()> {
    let flag = if is_set { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD on an open descriptor only sets its close-on-exec flag.
    if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, flag) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets a child inherit descriptors that are closed on exec here.
pub(crate) fn inherit(command: &mut Command, descriptors: [RawFd; DESCRIPTORS]) {
    let hook = move || {
        for number in descriptors {
            // SAFETY: between fork and exec only the async-signal-safe fcntl is called, on numbers that the fork copied.
            if unsafe { libc::fcntl(number, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the hook allocates nothing, takes no lock and calls only fcntl.
    unsafe { command.pre_exec(hook) };
}
