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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use deadbolt_disk_format::{BootId, DAEMON_PART_BYTES, DaemonPart, Incarnation};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory::{Mapping, adopt, create_memfd, inherit};

/// Size of the page: one page of memory on every processor tried.
pub const PAGE_BYTES: usize = 4096;
/// Name of the environment variable that carries the page's descriptors to a child.
pub const PAGE_VARIABLE: &str = "DEADBOLT_PAGE_FD";

/// First word of a page: "DBPAGE" and the version of these words, so that two builds that differ refuse each other.
const MAGIC: u64 = u64::from_le_bytes(*b"DBPAGE\x01\x00");
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
    rest: [AtomicU64; 5],
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
    extended_until_ns: AtomicU64,
    sequence: AtomicU64,
    rest: [AtomicU64; 2],
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
    /// The text is not three descriptor numbers.
    #[error("shared page: {text:?} is not three descriptor numbers with commas; start the node with `deadbolt start`")]
    BadNumbers {
        /// What was found.
        text: String,
    },
}

/// The three descriptors that make up a page: its memory, the daemon's bell to sbd and sbd's bell to the daemon.
#[derive(Debug)]
pub struct PageDescriptors {
    memory: OwnedFd,
    wake: OwnedFd,
    published: OwnedFd,
}

impl PageDescriptors {
    /// The numbers as a child finds them in `DEADBOLT_PAGE_FD` or behind `--page-fd`: memory, wake, published.
    #[must_use]
    pub fn to_text(&self) -> String {
        let [memory, wake, published] = self.numbers();
        format!("{memory},{wake},{published}")
    }

    fn numbers(&self) -> [RawFd; 3] {
        [self.memory.as_raw_fd(), self.wake.as_raw_fd(), self.published.as_raw_fd()]
    }

    /// Lets a child inherit the page and sets `DEADBOLT_PAGE_FD` for it. Other children do not get it.
    pub fn pass_to(&self, command: &mut Command) {
        command.env(PAGE_VARIABLE, self.to_text());
        inherit(command, self.numbers());
    }

    /// Takes over the descriptors named by a text of [`PageDescriptors::to_text`]. Call it once per process and text.
    ///
    /// # Errors
    /// When the text is not three open descriptors.
    pub fn inherited(text: &str) -> Result<Self, PageError> {
        let bad = || PageError::BadNumbers { text: text.to_owned() };
        let numbers: Vec<RawFd> = text.split(',').map(|part| part.trim().parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
        let [memory, wake, published] = numbers.try_into().map_err(|_| bad())?;
        if memory < 3 || wake < 3 || published < 3 || memory == wake || wake == published || memory == published {
            return Err(bad());
        }
        Ok(Self { memory: adopt(memory)?, wake: adopt(wake)?, published: adopt(published)? })
    }
}

/// A mapped page. Cheap to clone; each process takes the side that belongs to it.
#[derive(Clone)]
pub struct Page {
    mapping: Arc<Mapping>,
    wake: Arc<OwnedFd>,
    published: Arc<OwnedFd>,
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
        let descriptors = PageDescriptors { memory, wake: bell()?, published: bell()? };
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
        Ok(Self { mapping: Arc::new(mapping), wake: bell(&descriptors.wake)?, published: bell(&descriptors.published)? })
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

/// The readers that daemon and supervisor share.
macro_rules! sbd_readers {
    () => {
        /// CLOCK_BOOTTIME ns until which the node may act; 0: not at all. Compare with the clock before each act.
        #[must_use]
        pub fn lease_end_ns(&self) -> u64 {
            self.page.raw().sbd.lease_end_ns.load(Ordering::Acquire)
        }

        /// Number of the daemon's part in the last beat that was completed on a majority of devices.
        #[must_use]
        pub fn published_number(&self) -> u64 {
            self.page.raw().sbd.published_number.load(Ordering::Acquire)
        }

        /// The last completed beat.
        #[must_use]
        pub fn beat(&self) -> u64 {
            self.page.raw().sbd.beat.load(Ordering::Acquire)
        }

        /// What sbd is doing.
        #[must_use]
        pub fn sbd_state(&self) -> SbdState {
            SbdState::from_word(self.page.raw().sbd.state.load(Ordering::Acquire))
        }

        /// T that was acknowledged to a fencer, ms; `None` unless acknowledged.
        #[must_use]
        pub fn acknowledged_reset_ms(&self) -> Option<u32> {
            Some(self.page.raw().sbd.acknowledged_reset_ms.load(Ordering::Acquire)).filter(|reset_ms| *reset_ms != 0)
        }

        /// The boot that sbd writes in its beats; valid from `Starting` on.
        #[must_use]
        pub fn boot(&self) -> BootId {
            BootId(load_id(&self.page.raw().sbd.boot))
        }

        /// The life of sbd; valid from `Starting` on.
        #[must_use]
        pub fn writer(&self) -> Incarnation {
            Incarnation(load_id(&self.page.raw().sbd.writer))
        }

        /// Time of the last cycle, from the issue of its beat to the end of its mailbox read, in us.
        #[must_use]
        pub fn cycle_us(&self) -> u64 {
            self.page.raw().sbd.cycle_us.load(Ordering::Acquire)
        }

        /// T of this node's watchdog as granted and read back, ms.
        #[must_use]
        pub fn reset_ms(&self) -> u32 {
            self.page.raw().sbd.reset_ms.load(Ordering::Acquire)
        }

        /// Process number of sbd in its own namespace; 0 before it starts.
        #[must_use]
        pub fn sbd_process_number(&self) -> u32 {
            self.page.raw().sbd.process_number.load(Ordering::Acquire)
        }

        /// The last generation of the daemon for which "dead and held nothing" is on the disk.
        #[must_use]
        pub fn idle_generation(&self) -> u64 {
            self.page.raw().sbd.idle_generation.load(Ordering::Acquire)
        }
    };
}

/// What the daemon may do with the page. One daemon process at a time.
#[derive(Debug)]
pub struct DaemonSide {
    page: Page,
}

impl DaemonSide {
    sbd_readers!();

    /// Leaves the daemon's part for the next beat; its number must grow with every call and comes back in `published_number`.
    ///
    /// # Panics
    /// With more vouches than a beat carries.
    pub fn publish(&mut self, part: &DaemonPart) {
        self.publish_bytes(part.number, &part.encode());
    }

    /// The same with bytes. `number` must grow with every call; it comes back in `published_number`.
    pub fn publish_bytes(&mut self, number: u64, part: &[u8; DAEMON_PART_BYTES]) {
        let daemon = &self.page.raw().daemon;
        let next = daemon.sequence.load(Ordering::Relaxed).wrapping_add(1);
        let buffer = &daemon.buffers[usize::from(next & 1 == 1)];
        // A reader that sees a word of this publication also sees the sequence of the one before, and gives up its older copy.
        fence(Ordering::Release);
        buffer.number.store(number, Ordering::Relaxed);
        for (word, bytes) in buffer.words.iter().zip(part.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        daemon.sequence.store(next, Ordering::Release);
    }

    /// Says whether a client of this node may hold something. Set it before the first grant leaves, clear it after the last came back.
    pub fn set_holds(&self, holds: bool) {
        self.page.raw().daemon.holds.store(u64::from(holds), Ordering::SeqCst);
    }

    /// Is the holds word set? After a restart it still says what the life before left.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.page.raw().daemon.holds.load(Ordering::SeqCst) != 0
    }

    /// Says that the loop has made another turn. Call it on every turn, at least every stall / 4.
    pub fn advance_turn(&self) {
        self.page.raw().daemon.turn.fetch_add(1, Ordering::Release);
    }

    /// Asks for a cycle every 50 ms until then.
    pub fn poll_fast_until(&self, until_ns: u64) {
        self.page.raw().daemon.fast_poll_until_ns.fetch_max(until_ns, Ordering::Release);
    }

    /// Says that *left* is published: sbd disarms, writes its last beat and ends.
    pub fn request_stop(&self) {
        self.page.raw().daemon.stop_request.store(1, Ordering::Release);
        self.wake();
    }

    /// Makes sbd start a cycle at once. Never blocks.
    pub fn wake(&self) {
        ring(&self.page.wake);
    }

    /// Readable whenever a cycle was completed or sbd's state changed; see [`DaemonSide::clear_published`].
    #[must_use]
    pub fn published_event(&self) -> BorrowedFd<'_> {
        self.page.published.as_fd()
    }

    /// Empties the event. Call it before the words are read.
    pub fn clear_published(&self) {
        hush(&self.page.published);
    }
}

/// What the supervisor may do with the page.
#[derive(Debug)]
pub struct SupervisorSide {
    page: Page,
}

impl SupervisorSide {
    sbd_readers!();

    /// Says, at least every quarter of the watchdog's time, that the process watchdog is at work. sbd gives no lease without it.
    pub fn advance_alive(&self, now_ns: u64) {
        self.page.raw().supervisor.alive_ns.fetch_max(now_ns, Ordering::Release);
    }

    /// The process watchdog's deadline: past it the whole tree is ended. `None`: not armed, or disarmed by a clean stop.
    #[must_use]
    pub fn fed_until_ns(&self) -> Option<u64> {
        Some(self.page.raw().feed.fed_until_ns.load(Ordering::Acquire)).filter(|until_ns| *until_ns != 0)
    }

    /// Time of the process watchdog as sbd asked for it, ms; 0 before.
    #[must_use]
    pub fn watchdog_ms(&self) -> u32 {
        self.page.raw().feed.watchdog_ms.load(Ordering::Acquire)
    }

    /// The tree must be ended at once.
    #[must_use]
    pub fn reset_request(&self) -> Option<ResetRequest> {
        ResetRequest::from_word(self.page.raw().feed.reset_request.load(Ordering::Acquire))
    }

    /// Says that a daemon starts; call it before each exec, never before the one before was reaped and, if that one did not stop
    /// cleanly, `idle_generation` has reached it. Answers the generation of the new one, from 1.
    pub fn daemon_starts(&self) -> u64 {
        self.page.raw().supervisor.daemon_generation.fetch_add(1, Ordering::AcqRel).saturating_add(1)
    }

    /// Says that the daemon of this generation was reaped.
    pub fn daemon_ended(&self, generation: u64) {
        self.page.raw().supervisor.daemon_ended.fetch_max(generation, Ordering::AcqRel);
        ring(&self.page.wake);
    }

    /// Is the holds word set?
    #[must_use]
    pub fn holds(&self) -> bool {
        self.page.raw().daemon.holds.load(Ordering::SeqCst) != 0
    }
}

/// What sbd reads of its daemon in one turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DaemonWords {
    /// Advanced by every turn of the daemon's loop; 0: no daemon yet.
    pub turn: u64,
    /// Something may be held by a client.
    pub holds: bool,
    /// Cycles every 50 ms until then.
    pub fast_poll_until_ns: u64,
    /// *Left* is published: stop cleanly.
    pub is_stop_requested: bool,
    /// The daemon's generation that was started last; 0: none.
    pub generation: u64,
    /// The last generation that was reaped.
    pub ended: u64,
    /// When the supervisor last said that it is at work.
    pub supervisor_alive_ns: u64,
}

/// The side of sbd's disk thread.
#[derive(Debug)]
pub struct SbdSide {
    page: Page,
}

impl SbdSide {
    /// Names this life; the state becomes `Starting`.
    pub fn start(&self, boot: BootId, writer: Incarnation, reset_ms: u32) {
        let sbd = &self.page.raw().sbd;
        store_id(&sbd.boot, boot.0);
        store_id(&sbd.writer, writer.0);
        sbd.process_number.store(std::process::id(), Ordering::Release);
        sbd.reset_ms.store(reset_ms, Ordering::Release);
        self.set_state(SbdState::Starting);
    }

    /// Says what sbd is doing and rings the daemon.
    pub fn set_state(&self, state: SbdState) {
        self.page.raw().sbd.state.store(state.word(), Ordering::Release);
        ring(&self.page.published);
    }

    /// Publishes a completed cycle and rings the daemon.
    pub fn publish_cycle(&self, lease_end_ns: u64, number: u64, beat: u64, cycle_us: u64) {
        let sbd = &self.page.raw().sbd;
        sbd.cycle_us.store(cycle_us, Ordering::Release);
        sbd.beat.store(beat, Ordering::Release);
        // The number first: who sees the lease of a cycle also sees what it carried.
        sbd.published_number.store(number, Ordering::Release);
        sbd.lease_end_ns.store(lease_end_ns, Ordering::Release);
        ring(&self.page.published);
    }

    /// Takes the lease away: nobody may act any more.
    pub fn end_lease(&self) {
        self.page.raw().sbd.lease_end_ns.store(0, Ordering::SeqCst);
        ring(&self.page.published);
    }

    /// Says that the feeder will not feed again and what T the fencer was given.
    pub fn set_acknowledged(&self, reset_ms: u32) {
        self.page.raw().sbd.acknowledged_reset_ms.store(reset_ms, Ordering::Release);
    }

    /// Says that "dead and held nothing" is on the disk for this generation of the daemon.
    pub fn set_idle_generation(&self, generation: u64) {
        self.page.raw().sbd.idle_generation.store(generation, Ordering::Release);
    }

    /// Copies the daemon's part into `part` and answers its number. `None`: nothing was published yet, or the writer was too
    /// fast; then `part` is unchanged and the copy of the turn before stays good.
    pub fn copy_part(&self, part: &mut [u8; DAEMON_PART_BYTES]) -> Option<u64> {
        let daemon = &self.page.raw().daemon;
        for _ in 0..READ_TRIES {
            let sequence = daemon.sequence.load(Ordering::Acquire);
            if sequence == 0 {
                return None;
            }
            let buffer = &daemon.buffers[usize::from(sequence & 1 == 1)];
            let number = buffer.number.load(Ordering::Relaxed);
            let mut copy = [0; DAEMON_PART_BYTES];
            for (word, bytes) in buffer.words.iter().zip(copy.as_chunks_mut::<8>().0) {
                *bytes = word.load(Ordering::Relaxed).to_le_bytes();
            }
            fence(Ordering::Acquire);
            if daemon.sequence.load(Ordering::Relaxed) == sequence {
                *part = copy;
                return Some(number);
            }
        }
        None
    }

    /// Reads the words of daemon and supervisor. The ended generation is read before the holds word: a dead daemon's word is final.
    #[must_use]
    pub fn daemon_words(&self) -> DaemonWords {
        let raw = self.page.raw();
        let ended = raw.supervisor.daemon_ended.load(Ordering::SeqCst);
        DaemonWords {
            turn: raw.daemon.turn.load(Ordering::Acquire),
            holds: raw.daemon.holds.load(Ordering::SeqCst) != 0,
            fast_poll_until_ns: raw.daemon.fast_poll_until_ns.load(Ordering::Acquire),
            is_stop_requested: raw.daemon.stop_request.load(Ordering::Acquire) != 0,
            generation: raw.supervisor.daemon_generation.load(Ordering::Acquire),
            ended,
            supervisor_alive_ns: raw.supervisor.alive_ns.load(Ordering::Acquire),
        }
    }

    /// Rings when the daemon wants a cycle at once.
    #[must_use]
    pub fn wake_event(&self) -> BorrowedFd<'_> {
        self.page.wake.as_fd()
    }

    /// Empties the bell. Call it before the words are read.
    pub fn clear_wake(&self) {
        hush(&self.page.wake);
    }
}

/// The side of sbd's feeding thread. Every call is one store or load.
#[derive(Debug)]
pub struct FeedSide {
    page: Page,
}

impl FeedSide {
    /// Names the time of the process watchdog. Before the first feed.
    pub fn set_watchdog_ms(&self, watchdog_ms: u32) {
        self.page.raw().feed.watchdog_ms.store(watchdog_ms, Ordering::Release);
    }

    /// Moves the process watchdog's deadline.
    pub fn feed_until(&self, until_ns: u64) {
        self.page.raw().feed.fed_until_ns.store(until_ns, Ordering::Release);
    }

    /// Disarms the process watchdog, on a clean stop only.
    pub fn disarm(&self) {
        self.page.raw().feed.fed_until_ns.store(0, Ordering::Release);
    }

    /// Asks the supervisor to end the tree at once. The first request stands.
    pub fn request_reset(&self, request: ResetRequest) {
        let _ = self.page.raw().feed.reset_request.compare_exchange(0, request.word(), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// When the supervisor last said that it is at work.
    #[must_use]
    pub fn supervisor_alive_ns(&self) -> u64 {
        self.page.raw().supervisor.alive_ns.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_ringing(bell: BorrowedFd<'_>) -> bool {
        let mut polled = [PollFd::new(bell, PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn words_cross_between_two_mappings() {
        let (page, descriptors) = Page::create().unwrap();
        let other = Page::map(&descriptors).unwrap();
        let (sbd, daemon, supervisor) = (page.sbd(), other.daemon(), other.supervisor());
        assert_eq!((daemon.sbd_state(), daemon.lease_end_ns(), daemon.published_number()), (SbdState::None, 0, 0));
        sbd.start(BootId([7; 16]), Incarnation([9; 16]), 2500);
        sbd.publish_cycle(77, 5, 3, 1200);
        assert_eq!((daemon.boot(), daemon.writer(), daemon.reset_ms()), (BootId([7; 16]), Incarnation([9; 16]), 2500));
        assert_eq!((daemon.lease_end_ns(), daemon.published_number(), daemon.beat(), daemon.cycle_us()), (77, 5, 3, 1200));
        assert_eq!(supervisor.sbd_process_number(), std::process::id());
        sbd.set_state(SbdState::Condemned);
        sbd.end_lease();
        assert_eq!((supervisor.sbd_state(), supervisor.lease_end_ns()), (SbdState::Condemned, 0));
        assert_eq!(supervisor.acknowledged_reset_ms(), None);
        sbd.set_acknowledged(1200);
        assert_eq!(supervisor.acknowledged_reset_ms(), Some(1200));
    }

    #[test]
    fn daemon_words_reach_sbd() {
        let (page, _descriptors) = Page::create().unwrap();
        let (sbd, daemon, supervisor) = (page.sbd(), page.daemon(), page.supervisor());
        assert_eq!(sbd.daemon_words(), DaemonWords::default());
        assert_eq!(supervisor.daemon_starts(), 1);
        daemon.set_holds(true);
        daemon.advance_turn();
        daemon.poll_fast_until(900);
        daemon.poll_fast_until(800);
        daemon.request_stop();
        supervisor.advance_alive(55);
        supervisor.daemon_ended(1);
        let expected = DaemonWords {
            turn: 1,
            holds: true,
            fast_poll_until_ns: 900,
            is_stop_requested: true,
            generation: 1,
            ended: 1,
            supervisor_alive_ns: 55,
        };
        assert_eq!(sbd.daemon_words(), expected);
        assert!(supervisor.holds());
        sbd.set_idle_generation(1);
        assert_eq!((supervisor.idle_generation(), supervisor.daemon_starts()), (1, 2));
    }

    #[test]
    fn feeding_words_reach_the_supervisor_and_the_first_reset_stands() {
        let (page, _descriptors) = Page::create().unwrap();
        let (feed, supervisor) = (page.feed(), page.supervisor());
        assert_eq!((supervisor.fed_until_ns(), supervisor.reset_request()), (None, None));
        feed.set_watchdog_ms(2000);
        feed.feed_until(5);
        assert_eq!((supervisor.fed_until_ns(), supervisor.watchdog_ms()), (Some(5), 2000));
        feed.disarm();
        assert_eq!(supervisor.fed_until_ns(), None);
        feed.request_reset(ResetRequest::Off);
        feed.request_reset(ResetRequest::OwnReason);
        assert_eq!(supervisor.reset_request(), Some(ResetRequest::Off));
    }

    #[test]
    fn bells_ring_and_are_hushed() {
        let (page, _descriptors) = Page::create().unwrap();
        let (sbd, daemon) = (page.sbd(), page.daemon());
        assert!(!is_ringing(sbd.wake_event()) && !is_ringing(daemon.published_event()));
        daemon.wake();
        daemon.wake();
        sbd.publish_cycle(1, 1, 1, 1);
        assert!(is_ringing(sbd.wake_event()) && is_ringing(daemon.published_event()));
        sbd.clear_wake();
        daemon.clear_published();
        assert!(!is_ringing(sbd.wake_event()) && !is_ringing(daemon.published_event()));
    }

    #[test]
    fn a_part_is_never_torn_and_a_stopped_writer_blocks_nobody() {
        let (page, _descriptors) = Page::create().unwrap();
        let sbd = page.sbd();
        let mut part = [0; DAEMON_PART_BYTES];
        assert_eq!(sbd.copy_part(&mut part), None);
        let mut daemon = page.daemon();
        daemon.publish_bytes(1, &[1; DAEMON_PART_BYTES]);
        // A writer that stops in the middle of number 2 has only touched the other buffer.
        page.raw().daemon.buffers[0].words[3].store(u64::MAX, Ordering::Relaxed);
        assert_eq!((sbd.copy_part(&mut part), part), (Some(1), [1; DAEMON_PART_BYTES]));
        let writer = std::thread::spawn(move || {
            for number in 2..=60_000u64 {
                daemon.publish_bytes(number, &[u8::try_from(number % 251).unwrap(); DAEMON_PART_BYTES]);
            }
        });
        let mut newest = 1;
        while newest < 60_000 {
            if let Some(number) = sbd.copy_part(&mut part) {
                assert!(number >= newest);
                assert_eq!(part, [u8::try_from(number % 251).unwrap(); DAEMON_PART_BYTES], "number {number}");
                newest = number;
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_child_inherits_the_page_only_when_told() {
        let (page, descriptors) = Page::create().unwrap();
        let numbers = descriptors.to_text().replace(',', " ");
        let script = format!(
            "for n in {numbers}; do [ -e /proc/self/fd/$n ] || exit 3; done; [ \"${PAGE_VARIABLE}\" = '{}' ] || exit 4",
            descriptors.to_text()
        );
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&script);
        assert_eq!(command.status().unwrap().code(), Some(3));
        descriptors.pass_to(&mut command);
        assert_eq!(command.status().unwrap().code(), Some(0));
        drop(page);
    }

    #[test]
    fn what_is_not_a_page_is_refused() {
        for text in ["", "3", "3,4", "a,b,c", "0,1,2", "3,3,3", "-1,4,5", "100000,100001,100002"] {
            assert!(PageDescriptors::inherited(text).is_err(), "{text:?}");
        }
        let (page, mut descriptors) = Page::create().unwrap();
        page.raw().magic.store(1, Ordering::Relaxed);
        assert!(matches!(Page::map(&descriptors), Err(PageError::OtherVersion { found: 1, .. })));
        descriptors.memory = descriptors.wake.try_clone().unwrap();
        assert!(matches!(Page::map(&descriptors), Err(PageError::NotAPage { .. })));
    }
}
