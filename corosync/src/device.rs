//! What: a connection to votequorum as the quorum device of this node.
//! Owns: the callback that announces memberships, and the queue behind it.
//! Invariants: the callback only stores; what it stored is taken on the thread that dispatched.
//! Does not: decide what to vote.
//! Called by: the program `deadbolt-qdevice`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CString, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};

use super::{CallFailed, Corosync, DISPATCH_ALL, Handle, INFO_QUORATE, QuorumInfo, TRACK_CHANGES, done};

/// CS_ERR_MESSAGE_ERROR, CS_ERR_INVALID_PARAM, CS_ERR_NOT_EXIST, CS_TRACK_CURRENT (compatibility).
const MESSAGE_ERROR: c_int = 22;
const INVALID_PARAM: c_int = 7;
const NOT_EXIST: c_int = 12;
const TRACK_CURRENT: u32 = 1;
/// Nodes of a membership that are looked at: the most that corosync knows.
const NODES_MAX: usize = 384;

/// A membership's number, as the library has it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRing {
    node: u32,
    sequence: u64,
}

/// A membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// Node and sequence of its number.
    pub ring: (u32, u64),
    /// Its nodes.
    pub nodes: Vec<u32>,
}

/// What became of a vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// It counts.
    Taken,
    /// The membership is another one by now.
    OtherRing,
    /// The device is not registered: it has no vote.
    NotRegistered,
}

/// What this node's votequorum says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuorumState {
    /// Its partition has quorum.
    pub is_quorate: bool,
    /// Votes that it counts.
    pub total: u32,
}

type Queue = RefCell<VecDeque<Announced>>;

#[repr(C)]
struct Callbacks {
    quorum: Option<extern "C" fn()>,
    expected_votes: Option<extern "C" fn()>,
    nodelist: Option<unsafe extern "C" fn(u64, u64, RawRing, u32, *mut u32)>,
}

/// # Safety
/// The library calls it inside `votequorum_dispatch`, with the context that was given to trackstart and a list of that many nodes.
unsafe extern "C" fn store(_handle: u64, context: u64, ring: RawRing, count: u32, list: *mut u32) {
    let address = usize::try_from(context).unwrap_or(0);
    let queue = std::ptr::with_exposed_provenance::<Queue>(address);
    let count = usize::try_from(count).unwrap_or(0).min(NODES_MAX);
    // SAFETY: the queue lives as long as the handle (both in `Device`), and nobody borrows it during a dispatch; the list has `count` nodes.
    unsafe {
        if let (Some(queue), false) = (queue.as_ref(), list.is_null()) {
            let nodes = std::slice::from_raw_parts(list, count).to_vec();
            queue.borrow_mut().push_back(Announced { ring: (ring.node, ring.sequence), nodes });
        }
    }
}

/// This node's quorum device, by a name.
#[derive(Debug)]
pub struct Device {
    calls: Corosync,
    handle: Handle,
    descriptor: RawFd,
    name: CString,
    queue: Box<Queue>,
}

impl Device {
    /// Connects and asks for memberships, the present one first. Nothing is registered.
    ///
    /// # Errors
    /// corosync does not answer.
    pub fn open(calls: Corosync, name: CString) -> Result<Self, CallFailed> {
        let mut number = 0;
        let mut callbacks = Callbacks { quorum: None, expected_votes: None, nodelist: Some(store) };
        // SAFETY: here as below arguments are as the public headers ask for; the library copies the callbacks.
        done("votequorum_initialize", unsafe { (calls.votequorum_initialize)(&raw mut number, (&raw mut callbacks).cast()) })?;
        let handle = Handle { number, finalize: calls.votequorum_finalize };
        let queue = Box::new(Queue::default());
        let context = u64::try_from((&raw const *queue).expose_provenance()).unwrap_or(0);
        let mut descriptor = -1;
        // SAFETY: the handle is open, and the queue outlives it.
        unsafe {
            done("votequorum_fd_get", (calls.votequorum_fd_get)(number, &raw mut descriptor))?;
            done("votequorum_trackstart", (calls.votequorum_trackstart)(number, context, TRACK_CURRENT | TRACK_CHANGES))?;
        }
        Ok(Self { calls, handle, descriptor, name, queue })
    }

    /// Readable when there is something to dispatch, or corosync has gone.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps it open until the handle is finalized, which is when this is dropped.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Takes what was announced, oldest first.
    ///
    /// # Errors
    /// corosync has gone.
    pub fn dispatch(&self) -> Result<Vec<Announced>, CallFailed> {
        // SAFETY: the handle is open; the callback finds its queue unborrowed.
        done("votequorum_dispatch", unsafe { (self.calls.votequorum_dispatch)(self.handle.number, DISPATCH_ALL) })?;
        Ok(self.queue.borrow_mut().drain(..).collect())
    }

    /// Registers the device; the same name again is no error.
    ///
    /// # Errors
    /// Another device is registered, or the configuration has none.
    pub fn register(&self) -> Result<(), CallFailed> {
        // SAFETY: the name ends with a zero.
        done("votequorum_qdevice_register", unsafe { (self.calls.qdevice_register)(self.handle.number, self.name.as_ptr()) })
    }

    /// Takes the device and its votes away. Not to be registered is no error.
    ///
    /// # Errors
    /// corosync has gone.
    pub fn unregister(&self) -> Result<(), CallFailed> {
        // SAFETY: the name ends with a zero.
        match unsafe { (self.calls.qdevice_unregister)(self.handle.number, self.name.as_ptr()) } {
            NOT_EXIST | INVALID_PARAM => Ok(()),
            code => done("votequorum_qdevice_unregister", code),
        }
    }

    /// Votes in a membership.
    ///
    /// # Errors
    /// corosync has gone, or lets no device vote.
    pub fn poll(&self, is_for: bool, (node, sequence): (u32, u64)) -> Result<Poll, CallFailed> {
        let ring = RawRing { node, sequence };
        // SAFETY: the name ends with a zero.
        match unsafe { (self.calls.qdevice_poll)(self.handle.number, self.name.as_ptr(), u32::from(is_for), ring) } {
            MESSAGE_ERROR => Ok(Poll::OtherRing),
            NOT_EXIST | INVALID_PARAM => Ok(Poll::NotRegistered),
            code => done("votequorum_qdevice_poll", code).map(|()| Poll::Taken),
        }
    }

    /// What votequorum counts on this node now.
    ///
    /// # Errors
    /// corosync has gone.
    pub fn state(&self) -> Result<QuorumState, CallFailed> {
        let mut info = MaybeUninit::<QuorumInfo>::zeroed();
        // SAFETY: node 0 is this node; the place is at least as large as any library's structure, and zeros are a value of it.
        let info = unsafe {
            done("votequorum_getinfo", (self.calls.votequorum_getinfo)(self.handle.number, 0, info.as_mut_ptr()))?;
            info.assume_init()
        };
        Ok(QuorumState { is_quorate: info.flags & INFO_QUORATE != 0, total: info.total })
    }
}
