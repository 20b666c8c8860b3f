//! What: the thread back end: synchronous calls, one writer and several readers.
//! Owns: its threads and two queues.
//! Invariants: writes are issued in the order they were submitted, one at a time, each ended before the next; a hung
//! write holds up no read, a hung read no write. No write is left behind when the process has been reaped.
//! Does not: hand a chain's read to the writer: the readers do it once the write is complete.
//! Called by: the engine.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::buffer::AlignedBuf;
use crate::clock::now_ns;
use crate::engine::{Issue, Job, Shared, spawn};
use crate::error::EngineError;

/// Threads that read. Chosen: a scan, a mailbox and a body at once, and one to spare.
const READERS: usize = 4;

#[derive(Default)]
struct Queue {
    state: Mutex<(VecDeque<Job>, bool)>,
    filled: Condvar,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, (VecDeque<Job>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.state().0.push_back(job);
        self.filled.notify_one();
    }

    /// Nothing more comes; what was not begun is not begun any more.
    fn close(&self) {
        let mut state = self.state();
        state.0.clear();
        state.1 = true;
        drop(state);
        self.filled.notify_all();
    }

    fn pop(&self) -> Option<Job> {
        let state = self.state();
        let mut state = self.filled.wait_while(state, |(jobs, closed)| jobs.is_empty() && !*closed).unwrap_or_else(PoisonError::into_inner);
        if state.1 { None } else { state.0.pop_front() }
    }
}

/// The owner's end of the thread back end.
pub(crate) struct Threads {
    writes: Arc<Queue>,
    reads: Arc<Queue>,
}

impl Threads {
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, EngineError> {
        // Made first, so that the threads end by its drop when a later one cannot be started.
        let threads = Self { writes: Arc::default(), reads: Arc::default() };
        for _ in 0..READERS {
            let (shared, reads) = (Arc::clone(shared), Arc::clone(&threads.reads));
            spawn("deadbolt-read", move || {
                let mut buffer = AlignedBuf::zeroed(0);
                while let Some(job) = reads.pop() {
                    buffer = read(&shared, &job, buffer);
                }
            })?;
        }
        let (shared, writes, reads) = (Arc::clone(shared), Arc::clone(&threads.writes), Arc::clone(&threads.reads));
        spawn("deadbolt-write", move || {
            while let Some(job) = writes.pop() {
                write(&shared, &reads, job);
            }
        })?;
        Ok(threads)
    }
}

impl Issue for Threads {
    fn issue(&self, job: Job) {
        if job.write.is_some() {
            self.writes.push(job);
        } else {
            self.reads.push(job);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.writes.close();
        self.reads.close();
    }
}

fn write(shared: &Shared, reads: &Queue, mut job: Job) {
    let Some((offset, buffer)) = job.write.take() else {
        return;
    };
    match shared.device.write_at(offset, &buffer) {
        Err(error) => shared.finish(&job, Err(error)),
        Ok(()) => {
            job.write_done_ns = Some(now_ns());
            if job.read.is_some() {
                if !shared.is_stopped() {
                    reads.push(job);
                }
            } else {
                shared.finish(&job, Ok(&[]));
            }
        }
    }
}

/// Gives the buffer back, for the next read.
fn read(shared: &Shared, job: &Job, buffer: AlignedBuf) -> AlignedBuf {
    let Some((offset, bytes)) = job.read else {
        return buffer;
    };
    let mut buffer = buffer.resized(bytes);
    let result = shared.device.read_at(offset, &mut buffer);
    shared.finish(job, result.map(|()| &buffer[..bytes]));
    buffer
}
