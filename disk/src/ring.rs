//! What: the io_uring back end: one ring and one thread for a device.
//! Owns: the ring, and every buffer that the kernel may still touch.
//! Invariants: a buffer is freed only after the kernel has returned every part of its operation; a chain's two halves
//! enter in one submission, and its read starts only after the whole write is complete. All unsafe use of the ring is here.
//! Does not: set timeouts or cancel in the ring: the kernel reports a timeout while the write is still on its way.
//! Called by: the engine.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, Probe, opcode, types};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::buffer::AlignedBuf;
use crate::clock::now_ns;
use crate::device::judge;
use crate::engine::{Issue, Job, OUTSTANDING_MAX, Shared, spawn};
use crate::error::{Direction, IoError};

/// Submission entries: a chain of two for everything that may be on its way.
const ENTRIES: u32 = 512;
const _: () = assert!(ENTRIES as usize >= 2 * OUTSTANDING_MAX);

/// Marks of the three kinds of completions; the other bits are the job's serial.
const KIND_WRITE: u64 = 0;
const KIND_READ: u64 = 1;
const KIND_WAKE: u64 = 2;
const KIND_BITS: u32 = 2;

/// The owner's end of the ring back end.
pub(crate) struct Ring {
    jobs: Option<Sender<Job>>,
    wake: Arc<EventFd>,
}

impl Ring {
    /// A ring on a thread of its own, or the reason why there is none.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, String> {
        let descriptor = shared
            .device
            .descriptor()
            .ok_or("the device has no descriptor (it is in memory)")?
            .try_clone_to_owned()
            .map_err(|error| format!("the device's descriptor cannot be duplicated: {error}"))?;
        let ring = probed_ring().map_err(|(what, error)| format!("{what}: {error}"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|errno| format!("no event descriptor: {errno}"))?;
        let (wake, (jobs, queue)) = (Arc::new(wake), channel());
        let worker = Worker {
            shared: Arc::clone(shared),
            descriptor,
            ring,
            wake: Arc::clone(&wake),
            is_wake_armed: false,
            queue,
            is_queue_open: true,
            ready: VecDeque::new(),
            in_flight: InFlight::default(),
        };
        spawn("deadbolt-ring", move || worker.run()).map_err(|error| error.to_string())?;
        Ok(Self { jobs: Some(jobs), wake })
    }
}

impl Issue for Ring {
    fn issue(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The worker holds the other end for as long as this one exists.
            let _ = jobs.send(job);
            // Fails only when the counter is full, and then the worker is awake anyway.
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.wake.write(1);
    }
}

/// Each step can be forbidden by itself (kernel.io_uring_disabled, seccomp, memlock), so each is tried.
fn probed_ring() -> Result<IoUring, (&'static str, io::Error)> {
    let mut ring = IoUring::builder().dontfork().build(ENTRIES).map_err(|error| ("io_uring_setup was refused", error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| ("io_uring_register was refused", error))?;
    for (name, code) in [
        ("io_uring lacks READ", opcode::Read::CODE),
        ("io_uring lacks WRITE", opcode::Write::CODE),
        ("io_uring lacks POLL_ADD", opcode::PollAdd::CODE),
    ] {
        if !probe.is_supported(code) {
            return Err((name, io::ErrorKind::Unsupported.into()));
        }
    }
    if !ring.params().is_feature_nodrop() {
        return Err(("io_uring may drop completions", io::ErrorKind::Unsupported.into()));
    }
    // SAFETY: a NOP names no memory.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }
        .map_err(|_| ("io_uring has no room", io::ErrorKind::OutOfMemory.into()))?;
    ring.submit_and_wait(1).map_err(|error| ("io_uring_enter was refused", error))?;
    if ring.completion().next().is_none() {
        return Err(("io_uring did not complete a NOP", io::ErrorKind::Other.into()));
    }
    Ok(ring)
}

/// One job that the kernel has.
struct Entered {
    job: Job,
    read_buffer: Option<AlignedBuf>,
    write_result: Option<Result<(), IoError>>,
    read_result: Option<Result<(), IoError>>,
}

impl Entered {
    fn is_whole(&self) -> bool {
        let write_back = self.job.write.is_none() || self.write_result.is_some();
        let read_back = self.job.read.is_none() || self.read_result.is_some();
        write_back && read_back
    }
}

/// What the kernel has. Its drop frees nothing that has not come back: the kernel may yet write there.
#[derive(Default)]
struct InFlight(BTreeMap<u64, Entered>);

impl Drop for InFlight {
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.0));
    }
}

struct Worker {
    shared: Arc<Shared>,
    /// The device, kept open by this thread for as long as anything is on its way.
    descriptor: OwnedFd,
    ring: IoUring,
    wake: Arc<EventFd>,
    is_wake_armed: bool,
    queue: Receiver<Job>,
    is_queue_open: bool,
    ready: VecDeque<Job>,
    in_flight: InFlight,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.take_jobs();
            if !self.is_queue_open && self.in_flight.0.is_empty() {
                return;
            }
            self.enter_jobs();
            self.arm_wake();
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The kernel is short of memory or of completion room: what came back makes some.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    _ => return self.refuse_for_ever(&error),
                },
            }
            self.reap();
        }
    }

    fn take_jobs(&mut self) {
        // Emptied before the queue is looked at: what comes later wakes again.
        let _ = self.wake.read();
        while self.is_queue_open {
            match self.queue.try_recv() {
                Ok(job) => self.ready.push_back(job),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.is_queue_open = false,
            }
        }
        if self.shared.is_stopped() {
            self.ready.clear();
        }
    }

    fn enter_jobs(&mut self) {
        loop {
            let queue = self.ring.submission();
            let is_room = queue.capacity() - queue.len() > 2;
            drop(queue);
            match self.ready.pop_front() {
                Some(job) if is_room => self.enter(job),
                Some(job) => return self.ready.push_front(job),
                None => return,
            }
        }
    }

    /// Puts one job into the ring; it is submitted with everything else at the next wait.
    fn enter(&mut self, job: Job) {
        let mark = job.serial << KIND_BITS;
        let target = types::Fd(self.descriptor.as_raw_fd());
        let mut entered = Entered { job, read_buffer: None, write_result: None, read_result: None };
        let mut entries: [Option<Entry>; 2] = [None, None];
        if let Some((offset, buffer)) = &entered.job.write {
            let Ok(bytes) = u32::try_from(buffer.len()) else {
                return self.refuse_length(&entered.job, Direction::Write, offset.0, buffer.len());
            };
            let entry = opcode::Write::new(target, buffer.as_ptr(), bytes).offset(offset.0).build();
            let flags = if entered.job.read.is_some() { Flags::IO_LINK } else { Flags::empty() };
            entries[0] = Some(entry.flags(flags).user_data(mark | KIND_WRITE));
        }
        if let Some((offset, bytes)) = entered.job.read {
            let Ok(length) = u32::try_from(bytes) else {
                return self.refuse_length(&entered.job, Direction::Read, offset.0, bytes);
            };
            let mut buffer = AlignedBuf::zeroed(bytes);
            let entry = opcode::Read::new(target, buffer.as_mut_ptr(), length).offset(offset.0).build();
            entered.read_buffer = Some(buffer);
            entries[1] = Some(entry.user_data(mark | KIND_READ));
        }
        // Owned by the table before the kernel hears of it.
        self.in_flight.0.insert(entered.job.serial, entered);
        let mut queue = self.ring.submission();
        for entry in entries.iter().flatten() {
            // SAFETY: the buffer is heap memory that moves with nobody, owned by `in_flight` until this entry's
            // completion was reaped (leaked, if never); the descriptor lives as long as the worker, which ends only
            // with an empty table. Its length was given from the same buffer.
            let pushed = unsafe { queue.push(entry) };
            debug_assert!(pushed.is_ok(), "room was looked for before");
        }
    }

    fn refuse_length(&self, job: &Job, direction: Direction, offset: u64, bytes: usize) {
        let error = IoError::Os { direction, offset, bytes, errno: libc::EINVAL };
        self.shared.finish(job, Err(error));
    }

    fn arm_wake(&mut self) {
        if self.is_wake_armed || !self.is_queue_open {
            return;
        }
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let target = types::Fd(self.wake.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(target, events).build().user_data(KIND_WAKE);
        // SAFETY: a poll names no memory; the event descriptor lives as long as the worker.
        self.is_wake_armed = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    fn reap(&mut self) {
        let completed: Vec<(u64, i32)> = self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (mark, result) in completed {
            let (serial, kind) = (mark >> KIND_BITS, mark & ((1 << KIND_BITS) - 1));
            if kind == KIND_WAKE {
                self.is_wake_armed = false;
            } else {
                self.came_back(serial, kind, result);
            }
        }
    }

    fn came_back(&mut self, serial: u64, kind: u64, result: i32) {
        let Some(entered) = self.in_flight.0.get_mut(&serial) else {
            return;
        };
        let moved = usize::try_from(result).map_err(|_| Errno::from_raw(result.saturating_neg()));
        if kind == KIND_WRITE {
            if let Some((offset, buffer)) = &entered.job.write {
                let judged = judge(Direction::Write, *offset, buffer.len(), moved);
                if judged.is_ok() {
                    entered.job.write_done_ns = Some(now_ns());
                }
                entered.write_result = Some(judged);
            }
        } else if let Some((offset, bytes)) = entered.job.read {
            entered.read_result = Some(judge(Direction::Read, offset, bytes, moved));
        }
        if !entered.is_whole() {
            return;
        }
        let Some(entered) = self.in_flight.0.remove(&serial) else {
            return;
        };
        // The write's error first: the read of a broken chain only says that it was cancelled.
        let result = entered.write_result.unwrap_or(Ok(())).and(entered.read_result.unwrap_or(Ok(())));
        let read: &[u8] = entered.read_buffer.as_deref().unwrap_or_default();
        self.shared.finish(&entered.job, result.map(|()| read));
    }

    /// The ring itself has failed. What the kernel has stays outstanding, with its buffers; nothing new is taken.
    fn refuse_for_ever(mut self, error: &io::Error) {
        let reason = format!("io_uring_enter: {error}");
        let refuse = |job: &Job| self.shared.finish(job, Err(IoError::EngineFailed { reason: reason.clone() }));
        self.ready.drain(..).for_each(|job| refuse(&job));
        while let Ok(job) = self.queue.recv() {
            refuse(&job);
        }
    }
}
