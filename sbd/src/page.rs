//! What: the page of memory that supervisor, sbd and daemon of one node share.
//! Owns: the words of the page, who may write which, and in what order they become visible.
//! Invariants: every word has one writer; nobody ever waits for another process, stopped or dead, to read or write.
//! Does not: decide anything, keep time, or survive the node's supervisor.
//! Called by: sbd, `deadboltd` and its supervisor.
//!
//! Ordering. A writer stores with Release and a reader loads with Acquire, so whoever sees a word also sees all that its
//! writer did before it. `holds` alone is SeqCst on both sides: a daemon sets it, then a grant leaves; after the daemon's
//! death (which sbd learns from the kernel, later than any store) sbd reads it. The daemon's bytes lie in two buffers:
//! publication `s` goes to buffer `s & 1`, and `s` is stored when it is complete, so a writer that is stopped in the middle
//! leaves the last complete one readable. A reader that was overtaken tries again a fixed number of times.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use deadbolt_disk_format::DAEMON_PART_BYTES;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory::{Mapping, adopt, create_memfd, inherit};

mod sides;

pub use sides::{DaemonSide, DaemonWords, FeedSide, SbdSide, SupervisorSide};

/// Number of descriptors of a page.
pub(crate) const DESCRIPTORS: usize = 4;
/// Size of the page: one page of memory on every processor tried.
pub const PAGE_BYTES: usize = 4096;
/// Name of the environment variable that carries the page's descriptors to a child.
pub const PAGE_VARIABLE: &str = "DEADBOLT_PAGE_FD";

/// First word of a page: "DBPAGE" and the version of these words, so that two builds that differ refuse each other.
const MAGIC: u64 = u64::from_le_bytes(*b"DBPAGE\x03\x00");
const PART_WORDS: usize = DAEMON_PART_BYTES / 8;
/// A daemon publishes a few times per poll interval and a copy takes well under a microsecond: being overtaken twice in a
/// row is already a rare accident; after this many the reader keeps its older copy.
const READ_TRIES: u32 = 8;

/// One publication of the daemon: its number, then its 320 bytes as little-endian words.
#[repr(C)]
pub(crate) struct BufferRaw {
    number: AtomicU64,
    words: [AtomicU64; PART_WORDS],
}

/// The words of the page. Blocks have one writer each and lie on cache lines of their own.
#[repr(C)]
pub(crate) struct PageRaw {
    magic: AtomicU64,
    head_rest: [AtomicU64; 7],
    sbd: SbdRaw,
    feed: FeedRaw,
    daemon: DaemonRaw,
    supervisor: SupervisorRaw,
    rest: [AtomicU64; 512 - 8 - 16 - 8 - 8 - 82 - 8],
}
const _: () = assert!(size_of::<PageRaw>() == PAGE_BYTES);
const _: () = assert!(size_of::<SbdRaw>() == 128 && size_of::<FeedRaw>() == 64 && size_of::<SupervisorRaw>() == 64);
const _: () = assert!(DAEMON_PART_BYTES.is_multiple_of(8));

/// Written by sbd's disk thread.
#[repr(C)]
struct SbdRaw {
    lease_end_ns: AtomicU64,
    published_number: AtomicU64,
    beat: AtomicU64,
    boot: [AtomicU64; 2],
    writer: [AtomicU64; 2],
    state: AtomicU32,
    acknowledged_reset_ms: AtomicU32,
    cycle_us: AtomicU64,
    reset_ms: AtomicU32,
    process_number: AtomicU32,
    idle_generation: AtomicU64,
    own_end_ns: AtomicU64,
    rest: [AtomicU64; 4],
}

/// Written by sbd's feeding thread (and once, before it starts, by the main thread).
#[repr(C)]
struct FeedRaw {
    fed_until_ns: AtomicU64,
    watchdog_ms: AtomicU32,
    reset_request: AtomicU32,
    rest: [AtomicU64; 6],
}

/// Written by the daemon.
#[repr(C)]
struct DaemonRaw {
    turn: AtomicU64,
    holds: AtomicU64,
    fast_poll_until_ns: AtomicU64,
    stop_request: AtomicU64,
    vouched_until_ns: AtomicU64,
    frozen_until_ns: AtomicU64,
    sequence: AtomicU64,
    rest: [AtomicU64; 1],
    buffers: [BufferRaw; 2],
}

/// Written by the supervisor.
#[repr(C)]
struct SupervisorRaw {
    alive_ns: AtomicU64,
    daemon_generation: AtomicU64,
    daemon_ended: AtomicU64,
    rest: [AtomicU64; 5],
}

/// Why a page could not be made or taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// A system call failed.
    #[error("shared page: {call} failed: {source}; this is a fault of the machine or of its limits, look at `ulimit -n` and free memory")]
    System {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor is not a page of ours.
    #[error("shared page: found {found}; the page is made by the node's supervisor and inherited, start the node with `deadbolt start`")]
    NotAPage {
        /// What was found.
        found: &'static str,
    },
    /// The page was made by another version.
    #[error(
        "shared page: its first word is {found:#x}, this program expects {expected:#x}; supervisor, sbd and daemon must be of one version, restart the node"
    )]
    OtherVersion {
        /// What was found.
        found: u64,
        /// What this program writes.
        expected: u64,
    },
    /// The text is not four descriptor numbers.
    #[error("shared page: {text:?} is not four descriptor numbers with commas; start the node with `deadbolt start`")]
    BadNumbers {
        /// What was found.
        text: String,
    },
}

/// The descriptors that make up a page: its memory, the daemon's bell to sbd, sbd's bell to the daemon and sbd's bell to the supervisor.
#[derive(Debug)]
pub struct PageDescriptors {
    memory: OwnedFd,
    wake: OwnedFd,
    published: OwnedFd,
    ended: OwnedFd,
}

impl PageDescriptors {
    /// The numbers as a child finds them in `DEADBOLT_PAGE_FD` or behind `--page-fd`: memory, wake, published, ended.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.numbers().map(|number| number.to_string()).join(",")
    }

    fn numbers(&self) -> [RawFd; DESCRIPTORS] {
        [&self.memory, &self.wake, &self.published, &self.ended].map(AsRawFd::as_raw_fd)
    }

    /// Lets a child inherit the page and sets `DEADBOLT_PAGE_FD` for it. Other children do not get it.
    pub fn pass_to(&self, command: &mut Command) {
        command.env(PAGE_VARIABLE, self.to_text());
        inherit(command, self.numbers());
    }

    /// Takes over the descriptors named by a text of [`PageDescriptors::to_text`]. Call it once per process and text.
    ///
    /// # Errors
    /// When the text is not four open descriptors that differ.
    pub fn inherited(text: &str) -> Result<Self, PageError> {
        let bad = || PageError::BadNumbers { text: text.to_owned() };
        let numbers: Vec<RawFd> = text.split(',').map(|part| part.trim().parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
        let numbers: [RawFd; DESCRIPTORS] = numbers.try_into().map_err(|_| bad())?;
        let is_free = |(index, number): (usize, &RawFd)| *number >= 3 && !numbers[..index].contains(number);
        if !numbers.iter().enumerate().all(is_free) {
            return Err(bad());
        }
        let [memory, wake, published, ended] = numbers;
        Ok(Self { memory: adopt(memory)?, wake: adopt(wake)?, published: adopt(published)?, ended: adopt(ended)? })
    }
}

/// A mapped page. Cheap to clone; each process takes the side that belongs to it.
#[derive(Clone)]
pub struct Page {
    mapping: Arc<Mapping>,
    wake: Arc<OwnedFd>,
    published: Arc<OwnedFd>,
    ended: Arc<OwnedFd>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("lease_end_ns", &self.raw().sbd.lease_end_ns)
            .field("turn", &self.raw().daemon.turn)
            .finish_non_exhaustive()
    }
}

impl Page {
    /// Makes a new page, all words zero. The supervisor keeps the descriptors to pass them to its children.
    ///
    /// # Errors
    /// When the kernel refuses the memory or the descriptors.
    pub fn create() -> Result<(Self, PageDescriptors), PageError> {
        let memory = create_memfd()?;
        let bell = || {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            EventFd::from_flags(flags).map(OwnedFd::from).map_err(|errno| PageError::System { call: "eventfd", source: errno.into() })
        };
        let descriptors = PageDescriptors { memory, wake: bell()?, published: bell()?, ended: bell()? };
        let mapping = Mapping::new(descriptors.memory.as_fd())?;
        mapping.raw().magic.store(MAGIC, Ordering::Release);
        Ok((Self::map(&descriptors)?, descriptors))
    }

    /// Maps a page made by this or another process.
    ///
    /// # Errors
    /// When the descriptor is not a page of this version.
    pub fn map(descriptors: &PageDescriptors) -> Result<Self, PageError> {
        let mapping = Mapping::new(descriptors.memory.as_fd())?;
        let found = mapping.raw().magic.load(Ordering::Acquire);
        if found != MAGIC {
            return Err(PageError::OtherVersion { found, expected: MAGIC });
        }
        let bell = |descriptor: &OwnedFd| {
            descriptor.try_clone().map(Arc::new).map_err(|source| PageError::System { call: "fcntl(F_DUPFD_CLOEXEC)", source })
        };
        Ok(Self {
            mapping: Arc::new(mapping),
            wake: bell(&descriptors.wake)?,
            published: bell(&descriptors.published)?,
            ended: bell(&descriptors.ended)?,
        })
    }

    /// Maps the page that the supervisor left in the environment.
    ///
    /// # Errors
    /// When there is none or it is not a page of this version.
    pub fn from_environment() -> Result<Self, PageError> {
        let text = std::env::var(PAGE_VARIABLE).map_err(|_| PageError::NotAPage { found: "no DEADBOLT_PAGE_FD in the environment" })?;
        Self::map(&PageDescriptors::inherited(&text)?)
    }

    /// The daemon's side.
    #[must_use]
    pub fn daemon(&self) -> DaemonSide {
        DaemonSide { page: self.clone() }
    }

    /// The supervisor's side.
    #[must_use]
    pub fn supervisor(&self) -> SupervisorSide {
        SupervisorSide { page: self.clone() }
    }

    /// The side of sbd's disk thread.
    #[must_use]
    pub fn sbd(&self) -> SbdSide {
        SbdSide { page: self.clone() }
    }

    /// The side of sbd's feeding thread.
    #[must_use]
    pub fn feed(&self) -> FeedSide {
        FeedSide { page: self.clone() }
    }

    fn raw(&self) -> &PageRaw {
        self.mapping.raw()
    }
}

/// Rings a bell: an eventfd that does not block. A counter that is full (EAGAIN) rings already.
#[expect(clippy::host_endian_bytes, reason = "the kernel reads the count in its own order")]
fn ring(bell: &OwnedFd) {
    let _ = nix::unistd::write(bell, &1u64.to_ne_bytes());
}

/// Empties a bell. One that did not ring (EAGAIN) is empty already.
fn hush(bell: &OwnedFd) {
    let mut count = [0; 8];
    let _ = nix::unistd::read(bell, &mut count);
}

fn store_id(words: &[AtomicU64; 2], bytes: [u8; 16]) {
    let value = u128::from_le_bytes(bytes);
    for (word, shift) in words.iter().zip([0u32, 64]) {
        word.store(u64::try_from((value >> shift) & u128::from(u64::MAX)).unwrap_or(0), Ordering::Release);
    }
}

fn load_id(words: &[AtomicU64; 2]) -> [u8; 16] {
    let low = u128::from(words[0].load(Ordering::Acquire));
    let high = u128::from(words[1].load(Ordering::Acquire));
    (low | (high << 64)).to_le_bytes()
}

/// What sbd is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SbdState {
    /// It has not written yet.
    None,
    /// It runs; no cycle is complete yet. Ids and T are valid from here on.
    Starting,
    /// It completed a cycle; the lease says until when the node may act.
    Alive,
    /// It was told to die, or found a reason to: no lease will come any more, the reset is on its way.
    Condemned,
    /// It disarmed and wrote its last beat on request.
    Stopped,
}

impl SbdState {
    const fn word(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Starting => 1,
            Self::Alive => 2,
            Self::Condemned => 3,
            Self::Stopped => 4,
        }
    }

    /// A word that no version of ours writes counts as condemned: nobody may act on it.
    const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::None,
            1 => Self::Starting,
            2 => Self::Alive,
            4 => Self::Stopped,
            _ => Self::Condemned,
        }
    }
}

/// Why sbd wants the node's process tree ended at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetRequest {
    /// A pill said reset.
    Reset,
    /// A pill said off: the tree is ended and not started again.
    Off,
    /// A pill said crashdump.
    Crash,
    /// The node found a reason itself: lost lease, a jump in time, a foreign write in an own unit, a dead daemon that held locks.
    OwnReason,
}

impl ResetRequest {
    const fn word(self) -> u32 {
        match self {
            Self::Reset => 1,
            Self::Off => 2,
            Self::Crash => 3,
            Self::OwnReason => 4,
        }
    }

    const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => None,
            1 => Some(Self::Reset),
            2 => Some(Self::Off),
            3 => Some(Self::Crash),
            _ => Some(Self::OwnReason),
        }
    }
}

#[cfg(test)]
mod tests;
