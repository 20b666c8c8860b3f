//! What: what goes into the lifeline machine and what comes out of it.
//! Owns: the names of its inputs, outputs, phases and reasons.
//! Invariants: values only.
//! Does not: decide anything.
//! Called by: the lifeline machine and its shell.

use alloc::string::String;

use deadbolt_disk_format::{Beat, BootId, DaemonPart, Incarnation, SlotIndex, Timings, WatchdogKind};

use crate::DiskFailed;
use crate::daemon::DaemonSeen;
use crate::mailbox::{LegacyPills, MailboxSeen, MailboxVerdict};
use crate::name::NameSeen;
use crate::regime::{ClusterSeen, Regime};

/// Who this life is and what it lives under.
#[derive(Clone, Debug)]
pub struct LifelineConfig {
    /// The node's place.
    pub slot: SlotIndex,
    /// The life of its machine.
    pub boot: BootId,
    /// The life of this sbd, random.
    pub writer: Incarnation,
    /// How many devices, from 1 to 3.
    pub devices: usize,
    /// The cluster's times.
    pub timings: Timings,
    /// What ends the node.
    pub watchdog: WatchdogKind,
    /// Are pills of stock tools obeyed?
    pub legacy: LegacyPills,
    /// Who has a say besides the disk.
    pub regime: Regime,
}

/// What was found in the node's own beat unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnPlace {
    /// All zero: never written.
    NeverWritten,
    /// Bytes that are no beat of this node: no news.
    Unreadable,
    /// A beat.
    Beat(alloc::boxed::Box<Beat>),
}

/// What the read behind a beat showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CycleSeen {
    /// The own mailbox.
    pub mailbox: MailboxSeen,
    /// The own name; it weighs nothing in the cycle.
    pub name: NameSeen,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Begin: look at the own places.
    Start,
    /// One turn of the shell: the words of the page, and the daemon's part if a new one was copied.
    Turned {
        /// The words.
        words: DaemonSeen,
        /// A newer part.
        part: Option<alloc::boxed::Box<DaemonPart>>,
    },
    /// The daemon wants a cycle at once.
    Woken,
    /// The own beat unit was read.
    OwnRead {
        /// Of the output.
        tag: u64,
        /// What stands there.
        result: Result<OwnPlace, DiskFailed>,
    },
    /// The own mailbox was read, alone.
    MailboxRead {
        /// Of the output.
        tag: u64,
        /// What stands there.
        result: Result<MailboxSeen, DiskFailed>,
    },
    /// A beat was written and the own mailbox read by a read issued after that.
    CycleDone {
        /// Of the output.
        tag: u64,
        /// What the read showed.
        result: Result<CycleSeen, DiskFailed>,
    },
    /// The own mailbox was erased.
    ClearDone {
        /// Of the output.
        tag: u64,
        /// Did it work?
        result: Result<(), DiskFailed>,
    },
    /// The own name was written into the SBD area.
    NameDone {
        /// Of the output.
        tag: u64,
    },
    /// The watchdog runs; T as granted and read back.
    Armed {
        /// T, ms.
        reset_ms: u32,
    },
    /// The watchdog could not be armed; it does not run.
    ArmFailed,
    /// The feeder has answered that it will not feed again.
    FeederRetired {
        /// T from its last feed, ms.
        reset_ms: u32,
    },
    /// The watchdog was disarmed.
    Disarmed,
    /// The supervisor or a person wants sbd to stop; refused while something may be held.
    StopAsked,
    /// What the cluster on this node says of it; only for a drop-in watcher.
    ClusterSeen(ClusterSeen),
    /// The times that this watcher shall live by are others now.
    Retimed(Timings),
    /// The watchdog has another time; T as granted and read back.
    WatchdogSet {
        /// T, ms.
        reset_ms: u32,
    },
    /// In place of `Start`: this life's first cycle was completed by the process before it, under the same writer.
    Resume {
        /// The last beat handed out.
        beat: u64,
        /// As in the status of the life before it.
        unread: u32,
    },
    /// Time passed.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Write this beat into the own place of a device, and when that is complete read the own mailbox there, with the own name if
    /// that can be had by the same read.
    Cycle {
        /// Comes back.
        tag: u64,
        /// Which device.
        device: usize,
        /// What to write; the shell sets the wall clock.
        beat: alloc::boxed::Box<Beat>,
    },
    /// Read the own beat unit.
    ReadOwn {
        /// Comes back.
        tag: u64,
        /// Which device.
        device: usize,
    },
    /// Read the own mailbox.
    ReadMailbox {
        /// Comes back.
        tag: u64,
        /// Which device.
        device: usize,
    },
    /// Erase the own mailbox.
    ClearMailbox {
        /// Comes back.
        tag: u64,
        /// Which device.
        device: usize,
    },
    /// Write the own name into the own sector of the SBD area; never touches the mailbox beside it.
    RewriteName {
        /// Comes back.
        tag: u64,
        /// Which device.
        device: usize,
    },
    /// Arm the watchdog, answer `Armed`. A driver whose T is over the cluster's is refused with `ArmFailed`.
    Arm,
    /// Publish a lease.
    PublishLease {
        /// Its end, ms.
        lease_end_ms: u64,
        /// Where it would end by the last own cycle alone; 0: there is none.
        own_end_ms: u64,
        /// End of the lease before; a lease published after that changes nothing. `None`: the first.
        before_ms: Option<u64>,
        /// Number of the daemon's part in that beat.
        number: u64,
        /// The beat.
        beat: u64,
        /// Time of the cycle, ms.
        cycle_ms: u64,
    },
    /// Take the lease away at once.
    EndLease,
    /// "Dead and held nothing" of this generation stands on the disk.
    PublishIdle {
        /// Which.
        generation: u64,
    },
    /// The feeder sets the watchdog to the shortest time it grants, feeds never again and answers `FeederRetired`.
    RetireFeeder {
        /// The time is the one that a crash dump gets, where there is such a one.
        is_crash: bool,
    },
    /// No cycle was completed for a while: what is in memory may be written to the file systems by a helper that ends before
    /// `until_ms`, when the watchdog is fed no more. Only for a drop-in watcher.
    Flush {
        /// End of feeding.
        until_ms: u64,
    },
    /// Give the watchdog this time as soon as the lease has room for it, and answer `WatchdogSet`. Only for a drop-in watcher.
    SetWatchdog {
        /// Asked for, ms.
        watchdog_ms: u32,
    },
    /// T was written for a fencer to see; for the page.
    PublishAcknowledged {
        /// T, ms.
        reset_ms: u32,
    },
    /// End this life now, and do not come back.
    Reset {
        /// How.
        command: ResetCommand,
        /// Why.
        reason: ResetReason,
    },
    /// The watchdog's feeder ends and disarms; answer `Disarmed`.
    Disarm,
    /// sbd ends with success: its last beat says stopped, or could not be written any more.
    Exit {
        /// The stopped beat stands on a majority of devices.
        is_recorded: bool,
    },
    /// sbd does not start.
    Refuse(RefuseReason),
    /// For people.
    Say(Note),
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetCommand {
    /// Start again.
    Reset,
    /// Stay off.
    Off,
    /// Leave a crash dump if there is a way; the watchdog stays armed.
    Crash,
}

impl ResetCommand {
    /// The SBD mailbox byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Reset => 2,
            Self::Off => 3,
            Self::Crash => 5,
        }
    }
}

/// Why a life ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ResetReason {
    /// A pill said so.
    Pill {
        /// On which device.
        device: usize,
        /// Who wrote it, by its own word.
        sender: String,
    },
    /// No cycle was completed in time.
    LeaseEnded {
        /// When it ended.
        lease_end_ms: u64,
        /// When that was noticed.
        now_ms: u64,
    },
    /// More than W passed between two turns: this machine or process was stopped.
    TimeJump {
        /// How much.
        elapsed_ms: u64,
    },
    /// A beat that this life did not write stands in the own place.
    ForeignBeat {
        /// On which device.
        device: usize,
        /// Its boot.
        boot: BootId,
        /// Its writer.
        writer: Incarnation,
    },
    /// The own place went back in time on as many devices as a majority cannot do without.
    OwnPlaceReverted {
        /// On which device last.
        device: usize,
        /// What stands there.
        found: u64,
        /// What was completed there.
        completed: u64,
    },
    /// An earlier sbd of this boot has answered a pill: it promised that this machine ends.
    AnsweredBefore {
        /// Its writer.
        writer: Incarnation,
    },
    /// The daemon made no turn for the stall tolerance.
    DaemonHung,
    /// The daemon died while it might hold something.
    DaemonDiedHolding,
    /// A daemon was started before "held nothing" of the one before was on the disk.
    DaemonRestartedUnrecorded {
        /// Whose record is missing.
        generation: u64,
    },
}

/// Why sbd does not start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RefuseReason {
    /// A life of this boot was here before and has neither stopped nor recorded that it held nothing.
    LifeBeforeNotEnded {
        /// Its writer.
        writer: Incarnation,
    },
    /// The beat in the own place advances: another machine lives in this slot.
    SlotInUse {
        /// Its boot.
        boot: BootId,
        /// The beat seen first.
        first: u64,
        /// The beat seen after that.
        second: u64,
    },
    /// The watchdog could not be armed.
    NotArmed,
    /// sbd was asked to stop before its first lease.
    Stopped,
    /// A message stands in the mailbox, and the start is to be a clean one.
    NotClean {
        /// On which device.
        device: usize,
        /// What stands there.
        seen: MailboxSeen,
    },
}

/// What a device is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceWork {
    /// A read of the own beat unit.
    ReadOwn,
    /// A read of the own mailbox.
    ReadMailbox,
    /// A beat and the mailbox read behind it.
    Cycle {
        /// The beat.
        beat: u64,
    },
    /// An answer to a message: the mailbox is erased.
    Clear,
    /// The own name is written.
    Rename,
}

/// Why a device adds nothing to a cycle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceTrouble {
    /// It has not answered yet.
    Busy {
        /// With what.
        work: DeviceWork,
        /// For how long, ms.
        for_ms: u64,
    },
    /// Its last operation failed.
    Failed,
    /// It does not count until sbd starts anew.
    Away,
}

/// For people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// A mailbox that is not empty.
    Mailbox {
        /// On which device.
        device: usize,
        /// What stands there.
        seen: MailboxSeen,
        /// How it was judged.
        verdict: MailboxVerdict,
    },
    /// Stock tools do not find this node: its own sector is empty or damaged and is being rewritten, or carries another name and is
    /// left alone.
    NameLost {
        /// On which device.
        device: usize,
        /// What stands there.
        found: NameSeen,
    },
    /// A request to stop was refused, because something may be held or *left* is not on the disk.
    StopRefused,
    /// A device does not count until sbd starts anew: its own unit went back in time.
    DeviceAway {
        /// Which.
        device: usize,
        /// What stands there.
        found: u64,
        /// What was completed there.
        completed: u64,
    },
    /// The supervisor does not say that the process watchdog is at work: no lease is given.
    SupervisorSilent,
    /// There is no daemon, and nothing held; sbd stops when this lasts.
    DaemonAbsent,
    /// No cycle was completed for half the stall tolerance.
    CyclesStalled {
        /// For how long, ms.
        for_ms: u64,
        /// The tolerance, ms.
        stall_ms: u32,
        /// What each device is at, as far as it is in trouble.
        devices: alloc::vec::Vec<(usize, DeviceTrouble)>,
        /// How long the watchdog will still be fed, ms, and the lease lasts; none: there is no lease yet.
        left_ms: Option<(u64, u64)>,
    },
    /// The watchdog is not fed any more: what is left of the lease is twice its time.
    FeedingStopped {
        /// What is left of the lease, ms.
        lease_left_ms: u64,
        /// T, ms.
        reset_ms: u32,
        /// The last completed beat.
        beat: u64,
        /// How long ago it was completed, ms.
        ago_ms: u64,
    },
    /// A cycle was completed again, after people were told that none was, or that the watchdog was not fed.
    CyclesAgain {
        /// The beat.
        beat: u64,
        /// How long after the one before, ms.
        after_ms: u64,
        /// What is left of the lease, ms; none: there is none.
        lease_left_ms: Option<u64>,
        /// The watchdog is fed again, or still.
        is_fed: bool,
    },
    /// A cycle came back after the end of the lease and changes nothing.
    CycleTooLate {
        /// The beat.
        beat: u64,
    },
}

/// Where a lifeline stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PhaseName {
    /// Nothing was done yet.
    New,
    /// Looks at the own places.
    Opening,
    /// Writes beats; the watchdog is not armed yet.
    Arming,
    /// Lives.
    Living,
    /// Will be reset.
    Condemned,
    /// Disarms and writes its last beat.
    Stopping,
    /// Nothing more happens.
    Ended,
}

/// For `status` and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LifelineStatus {
    /// Where it stands.
    pub phase: PhaseName,
    /// The last beat handed out.
    pub beat: u64,
    /// End of the lease; none: not leased.
    pub lease_end_ms: Option<u64>,
    /// Devices with an operation on its way.
    pub busy: usize,
    /// Devices that do not count.
    pub away: usize,
    /// Devices whose mailbox was not read yet since this boot began, a bit each.
    pub unread: u32,
}
