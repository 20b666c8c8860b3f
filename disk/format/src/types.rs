//! What: the decoded values of every record, judged and typed.
//! Owns: the field names that the whole project uses.
//! Invariants: a value of these types says nothing about where it was read; trust comes from the decoder.
//! Does not: know byte offsets; see the record modules for those.
//! Called by: every machine and every shell.

use alloc::{string::String, vec::Vec};

/// Size and alignment of everything Deadbolt owns on a device, in bytes.
pub const UNIT_BYTES: usize = 4096;
/// The most slots a device can carry: the SBD area has 255 (compatibility).
pub const SLOTS_MAX: u16 = 255;
/// The most devices a cluster can vote on (compatibility with SBD, and an odd number).
pub const DEVICES_MAX: usize = 3;
/// Longest node name in bytes (SBD node sector: 63 and a terminator).
pub const NAME_BYTES_MAX: usize = 63;
/// Size of the daemon's part of a beat, in bytes.
pub const DAEMON_PART_BYTES: usize = 320;
/// Incarnations beside the newest one of which a beat says that they have ended.
pub const EARLIER_LEFT: usize = 4;

macro_rules! bytes16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);
        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
        impl core::fmt::Display for $name {
            /// Lower-case hexadecimal in the grouping of a UUID.
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                for (index, byte) in self.0.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
        impl $name {
            /// The value of all zero bytes: "none".
            pub const NONE: Self = Self([0; 16]);
            /// Is this the value of all zero bytes?
            #[must_use]
            pub fn is_none(&self) -> bool {
                self.0 == [0; 16]
            }
        }
    };
}
bytes16!(
    /// Identity of a cluster, drawn at format.
    ClusterUuid
);
bytes16!(
    /// Identity of one device of a cluster, drawn at format.
    DeviceUuid
);
bytes16!(
    /// One life of a node's machine; for a trial node, of its process tree.
    BootId
);
bytes16!(
    /// One life of a node's daemon (or of its sbd) inside a boot, random.
    Incarnation
);

/// A node's place on the device, from 0. The SBD slot has the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotIndex(pub u16);
impl SlotIndex {
    /// In records that belong to no node.
    pub const NONE: Self = Self(u16::MAX);
}
impl core::fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}
/// Number of a membership, decided on disk; only grows. 0: formatted, nobody was ever in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ViewNumber(pub u64);
impl core::fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}
/// A byte address on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteOffset(pub u64);
/// SHA-256 of an encoded [`ViewBody`]; all zero: no value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);
impl Digest {
    /// No value.
    pub const NONE: Self = Self([0; 32]);
}
impl core::fmt::Debug for Digest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for byte in self.0.iter().take(8) {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One life of a node, as views and evidence name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Life {
    /// The node's place.
    pub slot: SlotIndex,
    /// The life of its machine.
    pub boot: BootId,
    /// The life of its daemon.
    pub incarnation: Incarnation,
}

/// All times that the cluster's safety hangs on, in milliseconds of a monotonic clock. Derived in one place (cluster core, `timing`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timings {
    /// Longest storage stall to tolerate; the one number an administrator sets.
    pub stall_ms: u32,
    /// Interval of beats, scans and hellos.
    pub poll_ms: u32,
    /// Interval of the feeding thread.
    pub feed_ms: u32,
    /// Time that the watchdog is asked for.
    pub watchdog_ms: u32,
    /// How much later than granted the watchdog may fire.
    pub lateness_ms: u32,
    /// How much earlier than granted the watchdog may fire.
    pub earliness_ms: u32,
    /// Expected time of one cycle (a beat written, the mailbox read).
    pub cycle_ms: u32,
    /// T: granted + lateness + drift. The longest from the last feed to the reset.
    pub reset_ms: u32,
    /// L: how long a node may live after the issue of its last completed cycle's beat.
    pub lease_ms: u32,
    /// W: how long an observer waits without a change.
    pub expiry_ms: u32,
    /// D: how long a command may still act at the storage after the reset.
    pub storage_delay_ms: u32,
    /// F: the longest freeze; 0 turns it off.
    pub freeze_ms: u32,
    /// How long a peer may be silent on the network before its edge is gone.
    pub detect_ms: u32,
    /// rho: bound of the rate error of any clock, in parts per million.
    pub drift_ppm: u32,
}

/// Under which rule a node lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Rule {
    /// No completed cycle, no feed.
    #[default]
    Disk,
    /// A cluster manager may keep the node alive without cycles: silence proves nothing.
    Cluster,
}

/// What ends a node that must die.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WatchdogKind {
    /// A watchdog device resets the machine.
    #[default]
    Device,
    /// The supervisor ends the node's process tree.
    Process,
    /// Nothing does but the node itself: neither its silence nor its answer to a pill proves anything.
    None,
}

/// The beat unit: sbd's own part and, below it, its daemon's part. One writer: the node's sbd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beat {
    /// The node's place.
    pub slot: SlotIndex,
    /// The life of the machine that writes.
    pub boot: BootId,
    /// The life of the sbd that writes.
    pub writer: Incarnation,
    /// Advanced by every write; only grows within a writer.
    pub beat: u64,
    /// L that this node lives under, ms.
    pub lease_ms: u32,
    /// T of this node's watchdog as granted, ms.
    pub reset_ms: u32,
    /// Under which rule it lives.
    pub rule: Rule,
    /// What ends it.
    pub watchdog: WatchdogKind,
    /// sbd stopped cleanly and disarmed; written last.
    pub is_stopped: bool,
    /// sbd recorded that the daemon is dead and held nothing.
    pub is_idle: bool,
    /// Set once the feeder has answered that it will not feed again; carries T from then on.
    pub acknowledged: Option<Acknowledgement>,
    /// For people only, ms since 1970.
    pub wall_ms: u64,
    /// For people only, CLOCK_BOOTTIME ms.
    pub boottime_ms: u64,
    /// Under the rule *cluster*: how long this node may live on after its cluster has lost it, ms. Zero under the rule *disk*.
    pub outlive_ms: u32,
    /// The daemon's part.
    pub daemon: DaemonPart,
}

/// A node's answer to a pill: its feeder will not feed again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// T that the node's watchdog has from its last feed, ms.
    pub reset_ms: u32,
    /// What was asked: SBD mailbox command byte.
    pub command: u8,
}

/// What a daemon says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeState {
    /// No daemon has written yet.
    #[default]
    None,
    /// Runs, is not a member and asks to be let in.
    Joining,
    /// Member of the view named.
    Member,
    /// Recorded that it held nothing and takes part no more in this incarnation.
    Left,
    /// Removed while it held something; stops granting and waits to be reset.
    Condemned,
}

/// Incarnations of a boot that recorded *left*, or *held nothing* when they died.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeftLives {
    /// The newest.
    pub newest: Incarnation,
    /// Last view known when it ended.
    pub view: ViewNumber,
    /// Older ones, newest first.
    pub earlier: [Incarnation; EARLIER_LEFT],
}

impl LeftLives {
    fn all(&self) -> impl Iterator<Item = Incarnation> {
        core::iter::once(self.newest).chain(self.earlier).filter(|incarnation| *incarnation != Incarnation::NONE)
    }

    /// Has this one ended?
    #[must_use]
    pub fn has(&self, incarnation: Incarnation) -> bool {
        self.all().any(|left| left == incarnation)
    }

    /// The same after one more has ended. Where they are too many, those that no view names go first, the oldest before the others.
    #[must_use]
    pub fn with(&self, newest: Incarnation, view: ViewNumber, is_named: impl Fn(Incarnation) -> bool) -> Self {
        let mut older: Vec<Incarnation> = self.all().filter(|left| *left != newest).collect();
        while older.len() > EARLIER_LEFT {
            let unnamed = older.iter().rposition(|left| !is_named(*left));
            older.remove(unnamed.unwrap_or(EARLIER_LEFT));
        }
        let mut earlier = [Incarnation::NONE; EARLIER_LEFT];
        earlier.iter_mut().zip(older).for_each(|(place, left)| *place = left);
        Self { newest, view, earlier }
    }
}

/// The daemon's part of a beat, numbered. 320 bytes on disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DaemonPart {
    /// Grows with every change by the daemon; 0: nothing written yet.
    pub number: u64,
    /// The life of the daemon.
    pub incarnation: Incarnation,
    /// What it says of itself.
    pub state: NodeState,
    /// Something may be held by this node's clients.
    pub holds: bool,
    /// Heuristics score, 0..=100.
    pub score: u8,
    /// The administrator's order among equal cliques: 1 is best, 0 is none.
    pub preference: u8,
    /// Tells which devices it has registered its reservation key on, to compare; 0: on none.
    pub protected: u32,
    /// The newest view it knows. For `Left`: the last view known at the time.
    pub view: ViewNumber,
    /// Bit n: it hears slot n on the network.
    pub hears: SlotSet,
    /// Incarnations of this boot that have ended; carried on by later ones.
    pub left: LeftLives,
    /// Consent to a freeze: view and instant (CLOCK_BOOTTIME ms of the writer); 0: none.
    pub consent_view: ViewNumber,
    /// See `consent_view`.
    pub consent_instant_ms: u64,
    /// Vouches, at most 16.
    pub vouches: Vec<Vouch>,
}

/// A member's word that another node still lives (design, "lives beyond the own beat").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vouch {
    /// For whom.
    pub slot: SlotIndex,
    /// Serial of its request.
    pub serial: u32,
}

/// A set of slots, 256 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SlotSet(pub [u64; 4]);
impl SlotSet {
    /// Puts a slot into the set; slots over 255 are ignored.
    pub fn insert(&mut self, slot: SlotIndex) {
        if let Some(word) = self.0.get_mut(usize::from(slot.0 / 64)) {
            *word |= 1 << (slot.0 % 64);
        }
    }
    /// Takes a slot out.
    pub fn remove(&mut self, slot: SlotIndex) {
        if let Some(word) = self.0.get_mut(usize::from(slot.0 / 64)) {
            *word &= !(1 << (slot.0 % 64));
        }
    }
    /// Is the slot in the set?
    #[must_use]
    pub fn contains(&self, slot: SlotIndex) -> bool {
        self.0.get(usize::from(slot.0 / 64)).is_some_and(|word| word & (1 << (slot.0 % 64)) != 0)
    }
    /// The slots, ascending.
    pub fn iter(&self) -> impl Iterator<Item = SlotIndex> + '_ {
        (0..256u16).map(SlotIndex).filter(|slot| self.contains(*slot))
    }
    /// How many slots are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}
impl core::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}
impl FromIterator<SlotIndex> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotIndex>>(slots: I) -> Self {
        let mut set = Self::default();
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

/// A Disk Paxos block of one node for one view number. One writer: the node's daemon; two units in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ballot {
    /// The life that wrote it.
    pub life: Life,
    /// Record sequence: the unit with the higher one is the newer.
    pub sequence: u64,
    /// The instance: the view number that is being decided. 0: never voted.
    pub view: ViewNumber,
    /// Highest ballot number this node has entered (unique per node: round * 256 + slot).
    pub entered: u64,
    /// Ballot number in which it last accepted a value; 0: none.
    pub accepted: u64,
    /// Digest of the accepted value; `NONE` when `accepted` is 0.
    pub digest: Digest,
    /// Place among the node's own bodies where the accepted body stands.
    pub place: u8,
}

/// A node's record of the newest view it knows to be decided. One writer: its daemon; two units in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ViewRecord {
    /// The life that wrote it.
    pub life: Life,
    /// Record sequence.
    pub sequence: u64,
    /// The decided view.
    pub view: ViewNumber,
    /// Digest of its body; `NONE` only for view 0.
    pub digest: Digest,
    /// Place among the node's own bodies where the body stands.
    pub place: u8,
    /// For people only, ms since 1970.
    pub wall_ms: u64,
}

/// A decided membership: the value of the register.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ViewBody {
    /// Its number.
    pub view: ViewNumber,
    /// Digest of the view before it.
    pub predecessor: Digest,
    /// Who proposed it.
    pub proposer: Option<Life>,
    /// Why, for people.
    pub reason: ViewReason,
    /// Who is in, ascending by slot.
    pub members: Vec<Life>,
    /// Removed and not yet proved gone, ascending by slot.
    pub owed: Vec<Owed>,
    /// Left the owed, or the members by *left*, with this view.
    pub released: Vec<Released>,
    /// Nodes, votes, timings.
    pub configuration: Configuration,
}

/// Why a view was proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ViewReason {
    /// The first view of a formatted device.
    #[default]
    Initial,
    /// Somebody was let in.
    Join,
    /// Somebody left by itself.
    Leave,
    /// Somebody was removed.
    Remove,
    /// An owed node was proved gone.
    Release,
    /// The configuration changed.
    Configure,
    /// Start after every member was gone.
    Restart,
}

/// A life removed from a view and not yet proved gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owed {
    /// Who.
    pub life: Life,
    /// The view that removed it.
    pub removed_in: ViewNumber,
}

/// A life that is proved gone, and by what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Released {
    /// Who.
    pub life: Life,
    /// The proof.
    pub evidence: Evidence,
    /// How long was waited for it, ms, for people.
    pub waited_ms: u32,
    /// Slot of the witness.
    pub witness: SlotIndex,
}

/// Why a node counts as gone, strongest first (design section 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Evidence {
    /// It recorded that it held nothing.
    Left,
    /// Same boot; sbd outlived the daemon and had recorded that it held nothing.
    IdleRestart,
    /// Its reservation keys were preempted and aborted on every protected device.
    Ejected,
    /// Its record shows another boot.
    Rebooted,
    /// Its feeder answered that it will not feed again; T + D have passed.
    Acknowledged,
    /// Silent for W + D.
    Expired,
    /// Another fencing device says so.
    Agent,
    /// A person says so.
    Operator,
}

impl Evidence {
    /// The word for people and scripts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::IdleRestart => "idle-restart",
            Self::Ejected => "ejected",
            Self::Rebooted => "rebooted",
            Self::Acknowledged => "acknowledged",
            Self::Expired => "expired",
            Self::Agent => "agent",
            Self::Operator => "operator",
        }
    }
}

impl ViewReason {
    /// The word for people and scripts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Remove => "remove",
            Self::Release => "release",
            Self::Configure => "configure",
            Self::Restart => "restart",
        }
    }
}

/// Nodes, votes and timings; versioned by views.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// Grows with every change.
    pub version: u64,
    /// Votes of the disk, from 1 to nodes - 1 (0 with one node).
    pub disk_votes: u16,
    /// An administrator set the disk's votes; else they follow the number of nodes.
    pub disk_votes_pinned: bool,
    /// Raised by a view once every member announces it.
    pub format_level: u16,
    /// All times.
    pub timings: Timings,
    /// Configured nodes, ascending by slot.
    pub nodes: Vec<NodeEntry>,
}

/// A configured node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// Its place.
    pub slot: SlotIndex,
    /// Its votes.
    pub votes: u16,
    /// Its name; unique without regard to case; 1 to 63 bytes.
    pub name: String,
    /// Its addresses, `ip:port`, 1 to 4; UDP and TCP use the same port.
    pub addresses: Vec<String>,
}

/// A fencing request: an entry of a node's requests unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceRequest {
    /// Whom.
    pub victim: Life,
    /// By the decision of which view; 0: an operator's command.
    pub view: ViewNumber,
    /// Grows within a requester.
    pub serial: u64,
}

/// An entry of a node's journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalEntry {
    /// Who wrote it.
    pub life: Life,
    /// Record sequence.
    pub sequence: u64,
    /// View known at the time.
    pub view: ViewNumber,
    /// For people only, ms since 1970.
    pub wall_ms: u64,
    /// CLOCK_BOOTTIME ms.
    pub boottime_ms: u64,
    /// At most 384 bytes.
    pub text: String,
}

/// The superblock: who this device is and where everything lies. Four copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The cluster.
    pub cluster: ClusterUuid,
    /// This device.
    pub device: DeviceUuid,
    /// Number of this device among the cluster's, from 0.
    pub device_number: u16,
    /// How many devices the cluster was formatted with.
    pub device_count: u16,
    /// Name of the cluster, at most 63 bytes.
    pub name: String,
    /// Grows with every rewrite.
    pub generation: u64,
    /// Features without which a reader must refuse.
    pub features_incompatible: u64,
    /// Features without which a reader must not write.
    pub features_read_only: u64,
    /// Features a reader may ignore.
    pub features_compatible: u64,
    /// Logical sector size at format, 512 or 4096.
    pub sector_bytes: u32,
    /// Slots reserved.
    pub slots: u16,
    /// Size of the device at format, in bytes.
    pub device_bytes: u64,
    /// Times at format; views may change them.
    pub timings: Timings,
    /// Where the areas lie.
    pub layout: Layout,
    /// For people only, ms since 1970.
    pub formatted_wall_ms: u64,
}

/// Where the areas of a device lie. All offsets are multiples of [`UNIT_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Slots reserved.
    pub slots: u16,
    /// Logical sector, for the SBD area.
    pub sector_bytes: u32,
    /// The four superblock copies.
    pub superblocks: [ByteOffset; 4],
    /// One unit per slot.
    pub beats: ByteOffset,
    /// Two units per slot.
    pub votes: ByteOffset,
    /// Two units per slot.
    pub records: ByteOffset,
    /// `places` bodies of `place_bytes` per slot.
    pub bodies: ByteOffset,
    /// Places per slot.
    pub places: u8,
    /// Size of one place, in bytes.
    pub place_bytes: u32,
    /// One unit per slot.
    pub requests: ByteOffset,
    /// `journal_units` units per slot.
    pub journal: ByteOffset,
    /// Units of journal per slot.
    pub journal_units: u16,
    /// One unit.
    pub tool: ByteOffset,
    /// First byte after the areas (the last superblock copy lies behind it).
    pub end: ByteOffset,
}
