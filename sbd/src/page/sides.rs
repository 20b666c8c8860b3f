//! What: the sides of the page: what the daemon, the supervisor, sbd's disk thread and its feeding thread may do with it.
//! Owns: which word is stored and loaded when, and in what order.
//! Invariants: a side writes its own block only; no call waits.
//! Does not: lay out the words or make the page; the parent does.
//! Called by: sbd, `deadboltd` and its supervisor.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use deadbolt_disk_format::{BootId, DAEMON_PART_BYTES, DaemonPart, Incarnation};

use super::{Page, READ_TRIES, ResetRequest, SbdState, hush, load_id, ring, store_id};

/// The readers that daemon and supervisor share.
macro_rules! sbd_readers {
    () => {
        /// CLOCK_BOOTTIME ns until which the node may act; 0: not at all. Compare with the clock before each act.
        #[must_use]
        pub fn lease_end_ns(&self) -> u64 {
            self.page.raw().sbd.lease_end_ns.load(Ordering::Acquire)
        }

        /// CLOCK_BOOTTIME ns of the end of the lease by the last own cycle alone; 0: there is none. What the lease has beyond it is by a
        /// vouch or a freeze.
        #[must_use]
        pub fn own_end_ns(&self) -> u64 {
            self.page.raw().sbd.own_end_ns.load(Ordering::Acquire)
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
    pub(super) page: Page,
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

    /// Leaves until when the lease runs by a vouch and by a freeze; 0: not at all. sbd bounds both. Rings it, for a lease may be about to end.
    pub fn extend(&self, vouched_until_ns: u64, frozen_until_ns: u64) {
        let daemon = &self.page.raw().daemon;
        daemon.vouched_until_ns.store(vouched_until_ns, Ordering::Release);
        daemon.frozen_until_ns.store(frozen_until_ns, Ordering::Release);
        self.wake();
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
    pub(super) page: Page,
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

    /// Readable once the tree is to be ended at once, or sooner than the deadline said; see [`SupervisorSide::clear_ended`].
    #[must_use]
    pub fn ended_event(&self) -> BorrowedFd<'_> {
        self.page.ended.as_fd()
    }

    /// Empties the event. Call it before the words are read.
    pub fn clear_ended(&self) {
        hush(&self.page.ended);
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
    /// End of the lease by a vouch; 0: none.
    pub vouched_until_ns: u64,
    /// End of the lease by a freeze; 0: none.
    pub frozen_until_ns: u64,
}

/// The side of sbd's disk thread.
#[derive(Debug)]
pub struct SbdSide {
    pub(super) page: Page,
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

    /// Publishes a completed cycle, or a lease that was lengthened without one, and rings the daemon.
    pub fn publish_cycle(&self, (lease_end_ns, own_end_ns): (u64, u64), number: u64, beat: u64, cycle_us: u64) {
        let sbd = &self.page.raw().sbd;
        sbd.own_end_ns.store(own_end_ns, Ordering::Release);
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
            vouched_until_ns: raw.daemon.vouched_until_ns.load(Ordering::Acquire),
            frozen_until_ns: raw.daemon.frozen_until_ns.load(Ordering::Acquire),
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

/// The side of sbd's feeding thread. No call waits.
#[derive(Debug)]
pub struct FeedSide {
    pub(super) page: Page,
}

impl FeedSide {
    /// Names the time of the process watchdog. Before the first feed.
    pub fn set_watchdog_ms(&self, watchdog_ms: u32) {
        self.page.raw().feed.watchdog_ms.store(watchdog_ms, Ordering::Release);
    }

    /// Moves the process watchdog's deadline on.
    pub fn feed_until(&self, until_ns: u64) {
        self.page.raw().feed.fed_until_ns.store(until_ns, Ordering::Release);
    }

    /// Sets the process watchdog's deadline for the first time or nearer than it was, and rings the supervisor, which may sleep for longer.
    pub fn set_until(&self, until_ns: u64) {
        self.feed_until(until_ns);
        ring(&self.page.ended);
    }

    /// Disarms the process watchdog, on a clean stop only.
    pub fn disarm(&self) {
        self.page.raw().feed.fed_until_ns.store(0, Ordering::Release);
    }

    /// Asks the supervisor to end the tree at once, and rings it. The first request stands.
    pub fn request_reset(&self, request: ResetRequest) {
        let _ = self.page.raw().feed.reset_request.compare_exchange(0, request.word(), Ordering::SeqCst, Ordering::SeqCst);
        ring(&self.page.ended);
    }

    /// When the supervisor last said that it is at work.
    #[must_use]
    pub fn supervisor_alive_ns(&self) -> u64 {
        self.page.raw().supervisor.alive_ns.load(Ordering::Acquire)
    }
}
