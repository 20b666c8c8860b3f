//! What: corosync's client libraries, loaded at run time, and the few calls of them that are made: its map, a group, the quorum device.
//! Owns: every unsafe block of this: the libraries, their functions' types, the handles.
//! Invariants: nothing of corosync is needed to build or to start; handles are finalized once; a call may hang as long as corosync does.
//! Does not: judge an answer.
//! Called by: sbd's servant `cluster`, the program `deadbolt-qdevice`.

mod device;
mod map;

pub use device::{Announced, Device, Poll, QuorumState};
pub use map::Map;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;

/// The libraries of corosync 3.
const LIBRARIES: [&CStr; 3] = [c"libcmap.so.4", c"libcpg.so.4", c"libvotequorum.so.8"];
/// CS_OK, CS_ERR_NOT_EXIST, CS_DISPATCH_ALL, CS_TRACK_CHANGES, CPG_MEMBERS_MAX, VOTEQUORUM_INFO_QUORATE (compatibility).
const OK: c_int = 1;
const NOT_EXIST: c_int = 12;
const DISPATCH_ALL: c_int = 2;
const TRACK_CHANGES: u32 = 2;
const MEMBERS_MAX: usize = 128;
const INFO_QUORATE: u32 = 2;

/// A call failed, with corosync's code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{call}: corosync's error {code}")]
pub struct CallFailed {
    /// Which.
    pub call: &'static str,
    /// As the library answered.
    pub code: c_int,
}

#[repr(C)]
struct GroupName {
    length: u32,
    value: [u8; 128],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Member {
    node: u32,
    process: u32,
    reason: u32,
}

#[repr(C)]
struct QuorumInfo {
    node: u32,
    state: u32,
    votes: u32,
    expected: u32,
    highest_expected: u32,
    total: u32,
    quorum: u32,
    flags: u32,
    device_votes: u32,
    /// 255 are used; the rest is room for what a later library may add.
    device_name: [u8; 1024],
}

type Plain = unsafe extern "C" fn(u64) -> c_int;
type Fd = unsafe extern "C" fn(u64, *mut c_int) -> c_int;
type Dispatch = unsafe extern "C" fn(u64, c_int) -> c_int;

/// The functions that are called.
#[derive(Clone, Copy, Debug)]
pub struct Corosync {
    cmap_initialize: unsafe extern "C" fn(*mut u64) -> c_int,
    cmap_finalize: Plain,
    cmap_get_uint8: unsafe extern "C" fn(u64, *const c_char, *mut u8) -> c_int,
    cmap_get_uint32: unsafe extern "C" fn(u64, *const c_char, *mut u32) -> c_int,
    cmap_get_string: unsafe extern "C" fn(u64, *const c_char, *mut *mut c_char) -> c_int,
    cpg_initialize: unsafe extern "C" fn(*mut u64, *mut c_void) -> c_int,
    cpg_finalize: Plain,
    cpg_join: unsafe extern "C" fn(u64, *const GroupName) -> c_int,
    cpg_membership_get: unsafe extern "C" fn(u64, *mut GroupName, *mut Member, *mut c_int) -> c_int,
    cpg_fd_get: Fd,
    cpg_dispatch: Dispatch,
    votequorum_initialize: unsafe extern "C" fn(*mut u64, *mut c_void) -> c_int,
    votequorum_finalize: Plain,
    votequorum_getinfo: unsafe extern "C" fn(u64, u32, *mut QuorumInfo) -> c_int,
    votequorum_trackstart: unsafe extern "C" fn(u64, u64, u32) -> c_int,
    votequorum_fd_get: Fd,
    votequorum_dispatch: Dispatch,
    qdevice_register: unsafe extern "C" fn(u64, *const c_char) -> c_int,
    qdevice_unregister: unsafe extern "C" fn(u64, *const c_char) -> c_int,
    qdevice_poll: unsafe extern "C" fn(u64, *const c_char, u32, device::RawRing) -> c_int,
}

/// The address of a function, as its type.
///
/// # Safety
/// `T` is the type of a pointer to the C function of that name.
unsafe fn function<T>(library: *mut c_void, name: &CStr) -> Result<T, String> {
    // SAFETY: the library is loaded, and the name ends with a zero.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    if address.is_null() {
        return Err(format!("corosync's library has no {}", name.to_string_lossy()));
    }
    // SAFETY: a function's address and a pointer to a function have one size here, and the caller vouches for the type.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}

impl Corosync {
    /// Loads the libraries; they stay loaded.
    ///
    /// # Errors
    /// What is not installed.
    pub fn load() -> Result<Self, String> {
        let open = |name: &CStr| {
            // SAFETY: the name ends with a zero. Constructors of these libraries set up their own memory only.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if library.is_null() { Err(format!("{} cannot be loaded: install corosync", name.to_string_lossy())) } else { Ok(library) }
        };
        let [cmap, cpg, quorum] = [open(LIBRARIES[0])?, open(LIBRARIES[1])?, open(LIBRARIES[2])?];
        // SAFETY: each type is that of corosync's public header for the function named beside it.
        unsafe {
            Ok(Self {
                cmap_initialize: function(cmap, c"cmap_initialize")?,
                cmap_finalize: function(cmap, c"cmap_finalize")?,
                cmap_get_uint8: function(cmap, c"cmap_get_uint8")?,
                cmap_get_uint32: function(cmap, c"cmap_get_uint32")?,
                cmap_get_string: function(cmap, c"cmap_get_string")?,
                cpg_initialize: function(cpg, c"cpg_initialize")?,
                cpg_finalize: function(cpg, c"cpg_finalize")?,
                cpg_join: function(cpg, c"cpg_join")?,
                cpg_membership_get: function(cpg, c"cpg_membership_get")?,
                cpg_fd_get: function(cpg, c"cpg_fd_get")?,
                cpg_dispatch: function(cpg, c"cpg_dispatch")?,
                votequorum_initialize: function(quorum, c"votequorum_initialize")?,
                votequorum_finalize: function(quorum, c"votequorum_finalize")?,
                votequorum_getinfo: function(quorum, c"votequorum_getinfo")?,
                votequorum_trackstart: function(quorum, c"votequorum_trackstart")?,
                votequorum_fd_get: function(quorum, c"votequorum_fd_get")?,
                votequorum_dispatch: function(quorum, c"votequorum_dispatch")?,
                qdevice_register: function(quorum, c"votequorum_qdevice_register")?,
                qdevice_unregister: function(quorum, c"votequorum_qdevice_unregister")?,
                qdevice_poll: function(quorum, c"votequorum_qdevice_poll")?,
            })
        }
    }
}

fn done(call: &'static str, code: c_int) -> Result<(), CallFailed> {
    if code == OK { Ok(()) } else { Err(CallFailed { call, code }) }
}

/// A connection's handle, finalized when dropped.
#[derive(Debug)]
struct Handle {
    number: u64,
    finalize: Plain,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the number came from the initialize that belongs to this finalize, and is not used any more.
        let _ = unsafe { (self.finalize)(self.number) };
    }
}

/// Connected to corosync, and a member of a group of processes.
#[derive(Debug)]
pub struct Connection {
    calls: Corosync,
    map: Map,
    cpg: Handle,
    quorum: Handle,
    descriptors: [RawFd; 2],
    group: &'static CStr,
}

fn group_name(group: &CStr) -> GroupName {
    let mut value = [0; 128];
    let bytes = group.to_bytes_with_nul();
    let length = bytes.len().min(value.len());
    value[..length].copy_from_slice(&bytes[..length]);
    // With its zero, as Pacemaker's programs name their groups.
    GroupName { length: u32::try_from(length).unwrap_or(0), value }
}

impl Connection {
    /// Connects, and joins the group.
    pub fn open(calls: Corosync, group: &'static CStr) -> Result<Self, CallFailed> {
        let (map, mut number) = (Map::open(calls)?, 0);
        let mut no_callbacks = [ptr::null_mut::<c_void>(); 2];
        // SAFETY: here as below arguments are as the public headers ask for, pointers are to places that outlive the call, and without
        // callbacks a library calls nothing of ours; two pointers, both null, are the callbacks of CPG.
        done("cpg_initialize", unsafe { (calls.cpg_initialize)(&raw mut number, no_callbacks.as_mut_ptr().cast()) })?;
        let cpg = Handle { number, finalize: calls.cpg_finalize };
        // SAFETY: null means no callbacks.
        done("votequorum_initialize", unsafe { (calls.votequorum_initialize)(&raw mut number, ptr::null_mut()) })?;
        let quorum = Handle { number, finalize: calls.votequorum_finalize };
        let (mut descriptors, name) = ([-1; 2], group_name(group));
        // SAFETY: the handles are open.
        unsafe {
            done("cpg_fd_get", (calls.cpg_fd_get)(cpg.number, &raw mut descriptors[0]))?;
            done("votequorum_fd_get", (calls.votequorum_fd_get)(quorum.number, &raw mut descriptors[1]))?;
            done("votequorum_trackstart", (calls.votequorum_trackstart)(quorum.number, 0, TRACK_CHANGES))?;
            done("cpg_join", (calls.cpg_join)(cpg.number, &raw const name))?;
        }
        Ok(Self { calls, map, cpg, quorum, descriptors, group })
    }

    /// Its configuration.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Readable when membership or quorum may have changed, or corosync has gone.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        // SAFETY: the libraries keep these open until the handles are finalized, which is when this is dropped.
        self.descriptors.map(|descriptor| unsafe { BorrowedFd::borrow_raw(descriptor) })
    }

    /// Takes what made the descriptors readable.
    pub fn dispatch(&self) -> Result<(), CallFailed> {
        // SAFETY: the handles are open; without callbacks this only empties the queues.
        unsafe {
            done("cpg_dispatch", (self.calls.cpg_dispatch)(self.cpg.number, DISPATCH_ALL))?;
            done("votequorum_dispatch", (self.calls.votequorum_dispatch)(self.quorum.number, DISPATCH_ALL))
        }
    }

    /// How many are in the group.
    pub fn members(&self) -> Result<usize, CallFailed> {
        let mut members = [Member::default(); MEMBERS_MAX];
        let mut count = c_int::try_from(MEMBERS_MAX).unwrap_or(c_int::MAX);
        let mut group = group_name(self.group);
        // SAFETY: the list has room for as many as there can be.
        let code = unsafe { (self.calls.cpg_membership_get)(self.cpg.number, &raw mut group, members.as_mut_ptr(), &raw mut count) };
        done("cpg_membership_get", code)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Has this node's partition quorum?
    pub fn is_quorate(&self) -> Result<bool, CallFailed> {
        let mut info = std::mem::MaybeUninit::<QuorumInfo>::zeroed();
        // SAFETY: node 0 is this node; the place is at least as large as any library's structure, and zeros are a value of it.
        let info = unsafe {
            done("votequorum_getinfo", (self.calls.votequorum_getinfo)(self.quorum.number, 0, info.as_mut_ptr()))?;
            info.assume_init()
        };
        Ok(info.flags & INFO_QUORATE != 0)
    }
}

fn found<T>(call: &'static str, code: c_int, value: T) -> Result<Option<T>, CallFailed> {
    if code == NOT_EXIST { Ok(None) } else { done(call, code).map(|()| Some(value)) }
}
