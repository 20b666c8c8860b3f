//! What: two rings of frames in shared memory, one each way, between a client and its node's daemon.
//! Owns: the words of the memory, who may write which, and in what order they become visible.
//! Invariants: each lane has one producer and one consumer; nothing read from the other side is believed before it is checked, and a frame
//!   is copied out before anybody looks at it; whoever sleeps has said so before it looked a last time.
//! Does not: know what is in a frame; sleep.
//! Called by: the server and both client libraries.
//!
//! Ordering. A producer fills words, then stores its tail with Release; a consumer loads the tail with Acquire, copies, then stores its head
//! with Release. Who sleeps sets its word, then looks at the lane; who adds to (or takes from) the lane then looks at the word. A fence that is
//! SeqCst stands between the two on both sides, so at least one of them sees the other: no wake-up is lost.

use crate::memory::{Mapping, create_memory, processor};
use deadbolt_dlm_core::client::FRAME_BYTES_MAX;
use std::{
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

/// Words of a lane: 32 KiB, some hundred requests (chosen; a ring costs at most 68 KiB of memory, taken as it is used).
pub(crate) const LANE_WORDS: u32 = 4096;
/// First word: "DBRING" and the version of these words.
const MAGIC: u64 = u64::from_le_bytes(*b"DBRING\x01\x00");
const HEAD_LINES: usize = 64;

/// A cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

/// One end's place in a lane: written by that end alone.
#[repr(C)]
struct Place {
    /// Words passed since the beginning, modulo 2^32.
    index: AtomicU32,
    /// Processor it ran on last, plus one; a hint.
    processor: AtomicU32,
}

#[repr(C)]
struct Lane {
    tail: Line<Place>,
    head: Line<Place>,
}

/// The words of a ring's memory: one page, then the two lanes.
#[repr(C)]
pub(crate) struct RingRaw {
    magic: Line<AtomicU64>,
    requests: Lane,
    replies: Lane,
    daemon: Line<AtomicU32>,
    reader: Line<AtomicU32>,
    bell: Line<AtomicU32>,
    rest: [Line<AtomicU64>; HEAD_LINES - 8],
    request_words: [AtomicU64; LANE_WORDS as usize],
    reply_words: [AtomicU64; LANE_WORDS as usize],
}
const _: () = assert!(size_of::<RingRaw>() == 4096 + 2 * 8 * LANE_WORDS as usize && LANE_WORDS.is_power_of_two());

/// What a sleeper wants to be woken for: there is something to take.
pub(crate) const WANTS_FRAMES: u32 = 1;
/// What a sleeper wants to be woken for: there is room again.
pub(crate) const WANTS_ROOM: u32 = 2;
/// What a sleeper wants to be woken for: there is something to take for which nobody waits.
pub(crate) const WANTS_POSTED: u32 = 4;

/// Why there is no ring, or why it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// A system call failed.
    #[error("{call} failed: {source}; look at `ulimit -n` and free memory")]
    System { call: &'static str, source: io::Error },
    /// The descriptor is not a ring of ours.
    #[error("the memory offered as a ring is {found}; are the packages of one version?")]
    NotARing { found: &'static str },
    /// An index that no honest other side writes.
    #[error(
        "the shared ring is damaged: {distance} words between its ends, at most {LANE_WORDS} can be; something wrote over it, the session ends"
    )]
    BadIndex { distance: u32 },
    /// A frame's length that no honest other side writes.
    #[error("the shared ring is damaged: a frame of {bytes} bytes where {words} words are left; something wrote over it, the session ends")]
    BadLength { bytes: u64, words: u32 },
}

/// Who sleeps where.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sleeper {
    /// The daemon's loop; woken by its bell.
    Daemon,
    /// A thread of the client, on the word itself.
    Reader,
    /// Whoever in the client listens to the client's bell.
    Bell,
}

/// A mapped ring. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ring(Arc<Mapping>);

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Requests,
    Replies,
}

impl Ring {
    /// The daemon's side: a new ring, and the memory to hand to the client.
    pub(crate) fn create() -> Result<(Self, OwnedFd), TransportError> {
        use std::os::fd::AsFd;
        let memory = create_memory()?;
        let ring = Self(Arc::new(Mapping::new(memory.as_fd())?));
        ring.raw().magic.0.store(MAGIC, Ordering::Release);
        Ok((ring, memory))
    }

    /// The client's side.
    pub(crate) fn open(memory: BorrowedFd<'_>) -> Result<Self, TransportError> {
        let ring = Self(Arc::new(Mapping::new(memory)?));
        match ring.raw().magic.0.load(Ordering::Acquire) {
            MAGIC => Ok(ring),
            _ => Err(TransportError::NotARing { found: "of another version" }),
        }
    }

    /// The daemon's two ends. Call it once per ring.
    pub(crate) fn daemon_ends(&self) -> (Producer, Consumer) {
        (Producer::new(self, Direction::Replies), Consumer::new(self, Direction::Requests))
    }

    /// The client's two ends. Call it once per ring.
    pub(crate) fn client_ends(&self) -> (Producer, Consumer) {
        (Producer::new(self, Direction::Requests), Consumer::new(self, Direction::Replies))
    }

    fn raw(&self) -> &RingRaw {
        self.0.raw()
    }

    fn lane(&self, direction: Direction) -> (&Lane, &[AtomicU64; LANE_WORDS as usize]) {
        let raw = self.raw();
        match direction {
            Direction::Requests => (&raw.requests, &raw.request_words),
            Direction::Replies => (&raw.replies, &raw.reply_words),
        }
    }

    /// The word of a sleeper, to sleep on.
    pub(crate) fn word(&self, sleeper: Sleeper) -> &AtomicU32 {
        let raw = self.raw();
        match sleeper {
            Sleeper::Daemon => &raw.daemon.0,
            Sleeper::Reader => &raw.reader.0,
            Sleeper::Bell => &raw.bell.0,
        }
    }

    /// Says that a sleeper is about to sleep. It looks once more after this, and sleeps only if there is nothing.
    pub(crate) fn arm(&self, sleeper: Sleeper, wants: u32) {
        self.word(sleeper).store(wants, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes that back. What came before this may have been left for the sleeper, so it looks again.
    pub(crate) fn disarm(&self, sleeper: Sleeper) {
        self.word(sleeper).store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// After something was added or taken: does this sleeper sleep on it? It does not any more; the caller wakes it.
    pub(crate) fn rouse(&self, sleeper: Sleeper, news: u32) -> bool {
        fence(Ordering::SeqCst);
        let word = self.word(sleeper);
        word.load(Ordering::Relaxed) & news != 0 && word.swap(0, Ordering::Relaxed) & news != 0
    }

    /// Is there no reply that this client has not taken? Any thread may ask.
    pub(crate) fn has_no_replies(&self) -> bool {
        let lane = &self.raw().replies;
        lane.tail.0.index.load(Ordering::Acquire) == lane.head.0.index.load(Ordering::Relaxed)
    }

    /// Does the daemon run on another processor than this thread, as far as is known?
    pub(crate) fn is_daemon_elsewhere(&self) -> bool {
        is_elsewhere(&self.raw().requests.head.0)
    }

    /// Does the client run on another processor than this thread, as far as is known?
    pub(crate) fn is_client_elsewhere(&self) -> bool {
        is_elsewhere(&self.raw().requests.tail.0)
    }
}

fn is_elsewhere(place: &Place) -> bool {
    let other = place.processor.load(Ordering::Relaxed);
    let own = processor();
    other != 0 && own != 0 && other != own
}

/// Stored only when it changes: the line stays with whoever reads it.
fn note_processor(place: &Place) {
    let own = processor();
    if place.processor.load(Ordering::Relaxed) != own {
        place.processor.store(own, Ordering::Relaxed);
    }
}

fn distance(tail: u32, head: u32) -> Result<u32, TransportError> {
    match tail.wrapping_sub(head) {
        distance @ 0..=LANE_WORDS => Ok(distance),
        distance => Err(TransportError::BadIndex { distance }),
    }
}

fn at(words: &[AtomicU64; LANE_WORDS as usize], index: u32) -> &AtomicU64 {
    // In range: the mask is below the length.
    &words[(index & (LANE_WORDS - 1)) as usize]
}

/// Words of a frame with its length.
fn words_of(bytes: usize) -> u32 {
    u32::try_from(1 + bytes.div_ceil(8)).unwrap_or(u32::MAX)
}

/// The end that adds frames.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Ring,
    direction: Direction,
    tail: u32,
    /// The other end's place when it was looked at last.
    head: u32,
}

impl Producer {
    fn new(ring: &Ring, direction: Direction) -> Self {
        Self { ring: ring.clone(), direction, tail: 0, head: 0 }
    }

    /// Adds a frame (without a length field); false: there is no room now.
    pub(crate) fn push(&mut self, frame: &[u8]) -> Result<bool, TransportError> {
        if !self.has_room(frame.len())? {
            return Ok(false);
        }
        let (lane, words) = self.ring.lane(self.direction);
        at(words, self.tail).store(frame.len() as u64, Ordering::Relaxed);
        let mut index = self.tail.wrapping_add(1);
        for chunk in frame.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            at(words, index).store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        self.tail = index;
        lane.tail.0.index.store(index, Ordering::Release);
        note_processor(&lane.tail.0);
        Ok(true)
    }

    /// Is there room for a frame of this length?
    pub(crate) fn has_room(&mut self, bytes: usize) -> Result<bool, TransportError> {
        let wanted = words_of(bytes);
        if LANE_WORDS - distance(self.tail, self.head)? >= wanted {
            return Ok(true);
        }
        self.head = self.ring.lane(self.direction).0.head.0.index.load(Ordering::Acquire);
        Ok(LANE_WORDS - distance(self.tail, self.head)? >= wanted)
    }
}

/// The end that takes frames.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: Ring,
    direction: Direction,
    head: u32,
    /// The other end's place when it was looked at last.
    tail: u32,
}

impl Consumer {
    fn new(ring: &Ring, direction: Direction) -> Self {
        Self { ring: ring.clone(), direction, head: 0, tail: 0 }
    }

    /// Is there nothing to take?
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.lane(self.direction).0.tail.0.index.load(Ordering::Acquire) == self.head
    }

    /// Copies the next frame out; false: there is none. Its room is given back by [`Consumer::release`].
    pub(crate) fn take(&mut self, frame: &mut Vec<u8>) -> Result<bool, TransportError> {
        let (lane, words) = self.ring.lane(self.direction);
        if self.tail == self.head {
            self.tail = lane.tail.0.index.load(Ordering::Acquire);
        }
        let waiting = distance(self.tail, self.head)?;
        if waiting == 0 {
            return Ok(false);
        }
        let bytes = at(words, self.head).load(Ordering::Relaxed);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX || words_of(length) > waiting {
            return Err(TransportError::BadLength { bytes, words: waiting });
        }
        frame.clear();
        for offset in 1..words_of(length) {
            frame.extend_from_slice(&at(words, self.head.wrapping_add(offset)).load(Ordering::Relaxed).to_le_bytes());
        }
        frame.truncate(length);
        self.head = self.head.wrapping_add(words_of(length));
        Ok(true)
    }

    /// Gives the room of what was taken back to the producer.
    pub(crate) fn release(&self) {
        let lane = self.ring.lane(self.direction).0;
        lane.head.0.index.store(self.head, Ordering::Release);
        note_processor(&lane.head.0);
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
