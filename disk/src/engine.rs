//! What: the I/O engine of one device: operations in, completions out, never a wait for the caller.
//! Owns: the list of operations that have not come back, and the choice of the back end.
//! Invariants: every submitted operation is answered once, with its own tag, or not at all while the device keeps it;
//! its buffer stays until then. Submitting, asking and dropping never wait for the device.
//! Does not: set deadlines, retry, order reads against writes (except the two of one chain), or cancel: block I/O cannot be.
//! Called by: qdisk and sbd, one engine per device and process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use deadbolt_disk_format::ByteOffset;

use crate::buffer::AlignedBuf;
use crate::clock::now_ns;
use crate::device::RawDevice;
use crate::error::{Direction, EngineError, IoError};
use crate::ring::Ring;
use crate::threads::Threads;

/// Most operations that may be on their way on one device; more are refused. Chosen: far more than a cycle and a
/// scan need (a handful), small enough that a hung device costs little memory.
pub const OUTSTANDING_MAX: usize = 256;

/// Stack of every engine thread. Chosen small, because a locked process pays for every stack in full.
pub(crate) const STACK_BYTES: usize = 128 * 1024;

/// How an engine does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A ring of its own; a process with a hung operation can still end.
    IoUring,
    /// Synchronous calls on threads; a process ends only after its writes have.
    Threads,
}

/// What back end is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// io_uring, or threads where it is refused.
    #[default]
    Auto,
    /// Threads: for own units on a device that nodes of one machine share.
    Threads,
    /// io_uring or an error.
    IoUring,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read `bytes` bytes.
    Read {
        /// Where from.
        offset: ByteOffset,
        /// How many.
        bytes: usize,
    },
    /// Write `data`, durably.
    Write {
        /// Where to.
        offset: ByteOffset,
        /// What.
        data: Vec<u8>,
    },
    /// Write, and when that is complete, read; one submission. A failed write answers with its error and reads nothing.
    WriteThenRead {
        /// Where to.
        write_offset: ByteOffset,
        /// What.
        data: Vec<u8>,
        /// Where from.
        read_offset: ByteOffset,
        /// How many.
        read_bytes: usize,
    },
}

/// Answers of at least this many bytes are kept to be used again, and so many of them. Chosen: a page of memory costs more to get than to copy
/// from about here on; two of each table of a device, which is what its readers keep and what comes next.
const KEPT_BYTES_MIN: usize = 64 << 10;
const KEPT_MAX: usize = 8;

/// The answer to one operation. Times are [`now_ns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag given with the operation.
    pub tag: u64,
    /// Taken before the operation went to the kernel: leases count from here.
    pub issued_ns: u64,
    /// A moment at which the write (of a write, or of a chain) was known to be complete; none if it failed or there was none.
    pub write_done_ns: Option<u64>,
    /// Taken after the whole operation came back.
    pub ended_ns: u64,
    /// The bytes read (empty for a write), or what failed.
    pub result: Result<Arc<[u8]>, IoError>,
}

/// Where completions go. Called on the engine's threads, possibly on several at once; must not block.
pub type Sink = Box<dyn Fn(Completion) + Send + Sync>;

/// One operation on its way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) serial: u64,
    pub(crate) tag: u64,
    pub(crate) issued_ns: u64,
    pub(crate) write_done_ns: Option<u64>,
    pub(crate) write: Option<(ByteOffset, AlignedBuf)>,
    pub(crate) read: Option<(ByteOffset, usize)>,
}

#[derive(Default)]
struct Outstanding {
    next_serial: u64,
    jobs: BTreeMap<u64, (u64, u64)>,
}

/// Answers that were given, to be used again once nobody else keeps them: a table that is read at every poll would otherwise cost new memory
/// each time, which the kernel has to clear.
#[derive(Default)]
struct Answers(Mutex<Vec<Arc<[u8]>>>);

impl Answers {
    fn copy_of(&self, bytes: &[u8]) -> Arc<[u8]> {
        if bytes.len() < KEPT_BYTES_MIN {
            return Arc::from(bytes);
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for answer in kept.iter_mut().filter(|answer| answer.len() == bytes.len()) {
            if let Some(room) = Arc::get_mut(answer) {
                room.copy_from_slice(bytes);
                return Arc::clone(answer);
            }
        }
        let answer: Arc<[u8]> = Arc::from(bytes);
        if kept.len() == KEPT_MAX {
            kept.remove(0);
        }
        kept.push(Arc::clone(&answer));
        answer
    }
}

/// What the back ends' threads and the engine's owner share.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn RawDevice>,
    sink: Sink,
    outstanding: Mutex<Outstanding>,
    answers: Answers,
    stopped: AtomicBool,
}

impl Shared {
    fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the owner dropped the engine? Then nothing new is issued and nobody is told.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// An operation came back.
    pub(crate) fn finish(&self, job: &Job, result: Result<&[u8], IoError>) {
        self.outstanding().jobs.remove(&job.serial);
        let result = result.map(|bytes| self.answers.copy_of(bytes));
        self.tell(Completion { tag: job.tag, issued_ns: job.issued_ns, write_done_ns: job.write_done_ns, ended_ns: now_ns(), result });
    }

    fn tell(&self, completion: Completion) {
        if !self.is_stopped() {
            (self.sink)(completion);
        }
    }
}

/// The part of a back end that the engine's owner holds. Dropping it makes the threads end when they have nothing left.
pub(crate) trait Issue: Send + Sync {
    /// Takes a job; never blocks on the device.
    fn issue(&self, job: Job);
}

/// The engine of one device.
pub struct Engine {
    shared: Arc<Shared>,
    issue: Box<dyn Issue>,
    refused: mpsc::Sender<Completion>,
    backend: Backend,
    fallback_reason: Option<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("backend", &self.backend)
            .field("fallback_reason", &self.fallback_reason)
            .field("outstanding", &self.outstanding().len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts an engine for `device`; `sink` is called for every completion. The device is not touched.
    ///
    /// # Errors
    /// [`EngineError`]: no thread, or io_uring demanded and refused.
    pub fn start(device: Arc<dyn RawDevice>, choice: BackendChoice, sink: Sink) -> Result<Self, EngineError> {
        let shared =
            Arc::new(Shared { device, sink, outstanding: Mutex::default(), answers: Answers::default(), stopped: AtomicBool::new(false) });
        let refused = start_refuser(&shared)?;
        let (issue, backend, fallback_reason) = start_backend(&shared, choice)?;
        Ok(Self { shared, issue, refused, backend, fallback_reason })
    }

    /// Hands over one operation. Returns at once; what cannot be issued is answered through the sink like the rest.
    pub fn submit(&self, tag: u64, operation: Operation) {
        let issued_ns = now_ns();
        match self.accept(tag, issued_ns, operation) {
            Ok(job) => self.issue.issue(job),
            Err(error) => {
                let result = Err(error);
                let completion = Completion { tag, issued_ns, write_done_ns: None, ended_ns: issued_ns, result };
                // The receiver lives as long as this sender: a failure cannot happen, and would lose only a refusal.
                let _ = self.refused.send(completion);
            }
        }
    }

    /// The back end in use.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Why threads are used although io_uring would have been preferred.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// What has not come back: tag and time of issue, oldest first. Never waits for the device.
    #[must_use]
    pub fn outstanding(&self) -> Vec<(u64, u64)> {
        self.shared.outstanding().jobs.values().copied().collect()
    }

    /// The device that is driven.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn RawDevice> {
        &self.shared.device
    }

    fn accept(&self, tag: u64, issued_ns: u64, operation: Operation) -> Result<Job, IoError> {
        let device = &self.shared.device;
        let (write, read) = match operation {
            Operation::Read { offset, bytes } => (None, Some((offset, bytes))),
            Operation::Write { offset, data } => (Some((offset, data)), None),
            Operation::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                (Some((write_offset, data)), Some((read_offset, read_bytes)))
            }
        };
        if let Some((offset, data)) = &write {
            device.check(Direction::Write, *offset, data.len())?;
        }
        if let Some((offset, bytes)) = &read {
            device.check(Direction::Read, *offset, *bytes)?;
        }
        let write = write.map(|(offset, data)| (offset, AlignedBuf::copy_of(&data)));
        let mut outstanding = self.shared.outstanding();
        if outstanding.jobs.len() >= OUTSTANDING_MAX {
            return Err(IoError::TooMany { outstanding: outstanding.jobs.len() });
        }
        let serial = outstanding.next_serial;
        outstanding.next_serial += 1;
        outstanding.jobs.insert(serial, (tag, issued_ns));
        Ok(Job { serial, tag, issued_ns, write_done_ns: None, write, read })
    }
}

impl Drop for Engine {
    /// Nothing is waited for: what is with the kernel stays there with its buffer, and is answered to nobody.
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
    }
}

/// Refusals have a thread of their own, so that a sink never runs inside its caller's `submit`.
fn start_refuser(shared: &Arc<Shared>) -> Result<mpsc::Sender<Completion>, EngineError> {
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::clone(shared);
    spawn("deadbolt-refuse", move || {
        for completion in receiver {
            shared.tell(completion);
        }
    })?;
    Ok(sender)
}

/// A detached thread with a small stack.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map(drop)
        .map_err(|source| EngineError::Thread { source })
}

type Started = (Box<dyn Issue>, Backend, Option<String>);

fn start_backend(shared: &Arc<Shared>, choice: BackendChoice) -> Result<Started, EngineError> {
    let threads = |reason| Ok((Box::new(Threads::start(shared)?) as Box<dyn Issue>, Backend::Threads, reason));
    if choice == BackendChoice::Threads {
        return threads(None);
    }
    match Ring::start(shared) {
        Ok(ring) => Ok((Box::new(ring), Backend::IoUring, None)),
        Err(reason) if choice == BackendChoice::Auto => threads(Some(reason)),
        Err(reason) => Err(EngineError::IoUringRefused { reason }),
    }
}
