//! What: a simulated machine and the processes on it, as plain values.
//! Owns: their fields; what the shells keep between two turns.
//! Invariants: a process that is gone is `None`; events for it carry its number and are dropped.
//! Does not: decide or move; `sbd.rs`, `daemon.rs` and `client.rs` do.
//! Called by: the world.

use crate::{
    client::Client,
    clock::Clock,
    disk::{Areas, Disk},
    io::Mishap,
};
use deadbolt_cluster::{node::Node, seal::DatagramSealer};
use deadbolt_disk_format::{BootId, DaemonPart, Life, NodeEntry, SlotIndex};
use deadbolt_sbd_core::{Lifeline, ResetCommand};
use std::{collections::BTreeMap, rc::Rc};

/// Number of a process; never used twice in a run.
pub type Pid = u64;

/// What can be stopped and continued by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Process {
    /// sbd's disk thread.
    Sbd,
    /// sbd's feeding thread.
    Feeder,
    /// The daemon.
    Daemon,
    /// All clients.
    Clients,
}

/// All of them.
pub const PROCESSES: [Process; 4] = [Process::Sbd, Process::Feeder, Process::Daemon, Process::Clients];

/// What sbd tells the daemon of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SbdState {
    /// Not there.
    #[default]
    None,
    /// It lives under a lease, or did.
    Alive,
    /// It ends this boot.
    Condemned,
    /// It has stopped.
    Stopped,
}

/// The page that sbd, daemon and supervisor share.
#[derive(Debug, Default)]
pub struct Page {
    pub(crate) state: SbdState,
    pub(crate) lease_end_ms: u64,
    /// By the last own cycle alone.
    pub(crate) own_end_ms: u64,
    pub(crate) published: u64,
    pub(crate) beat: u64,
    pub(crate) idle_generation: u64,
    pub(crate) turn: u64,
    pub(crate) holds: bool,
    pub(crate) fast_until_ms: u64,
    pub(crate) vouched_until_ms: u64,
    pub(crate) frozen_until_ms: u64,
    pub(crate) is_stop_requested: bool,
    pub(crate) generation: u64,
    pub(crate) ended: u64,
    pub(crate) part: Option<Box<DaemonPart>>,
    pub(crate) is_part_new: bool,
}

/// sbd's disk thread.
#[derive(Debug)]
pub struct Sbd {
    pub(crate) pid: Pid,
    pub(crate) lifeline: Lifeline,
    /// The instant of the turn that is planned; others that come are stale.
    pub(crate) turn_at_us: u64,
    pub(crate) is_woken: bool,
    pub(crate) answer: Option<Answer>,
    pub(crate) reset_due: Option<(u64, ResetCommand)>,
}

/// What the feeder answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It will not feed again.
    Retired(u32),
    /// The watchdog does not run any more.
    Disarmed,
}

/// What the feeder was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Feed.
    Feed,
    /// Never again.
    Retire,
    /// Disarm.
    Disarm,
}

/// sbd's feeding thread.
#[derive(Debug)]
pub struct Feeder {
    pub(crate) pid: Pid,
    pub(crate) lease_end_ms: u64,
    pub(crate) order: Order,
    pub(crate) reset_ms: u32,
    /// It was stopped between its check and its feed.
    pub(crate) is_checked: bool,
}

/// The watchdog; it lives until the machine's end.
#[derive(Debug)]
pub struct Watchdog {
    /// Local time at which it would fire if it were exact.
    pub(crate) fires_ms: u64,
    pub(crate) granted_ms: u32,
    /// The shortest time that it grants.
    pub(crate) shortest_ms: u32,
    /// How much later it fires in this boot, ms; less than 0: earlier.
    pub(crate) late_ms: i64,
    /// Number of the newest planned look at it.
    pub(crate) look: u64,
}

impl Watchdog {
    /// Local time at which it fires.
    pub(crate) fn due_ms(&self) -> u64 {
        self.fires_ms.saturating_add_signed(self.late_ms)
    }
}

/// What the daemon is at.
#[derive(Debug)]
pub enum Stage {
    /// Waits for sbd's first lease.
    WaitForSbd,
    /// Waits for the writes of the incarnation before.
    Drain,
    /// Lives.
    Live(Box<Node>),
    /// *Left* is recorded; waits for sbd's end.
    Finish,
    /// It is gone, but not its disk operations: not reaped yet.
    Zombie {
        /// Its exit code.
        code: u8,
    },
}

impl Stage {
    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::WaitForSbd => "waits for sbd",
            Self::Drain => "waits for old disk work",
            Self::Live(_) => "lives",
            Self::Finish => "waits for the end of sbd",
            Self::Zombie { .. } => "has ended and is not reaped",
        }
    }
}

/// The daemon's process.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) pid: Pid,
    pub(crate) epoch: u64,
    pub(crate) stage: Stage,
    pub(crate) is_stopping: bool,
    /// Its disk work on its way.
    pub(crate) outstanding: usize,
    /// Writes among that.
    pub(crate) writing: usize,
    pub(crate) tick_at_us: u64,
    pub(crate) sealer: Option<DatagramSealer>,
    pub(crate) follow: Vec<NodeEntry>,
    /// Connection by peer.
    pub(crate) connections: BTreeMap<Life, u64>,
    pub(crate) said: Option<(deadbolt_disk_format::NodeState, bool, Vec<deadbolt_disk_format::Vouch>)>,
    pub(crate) is_page_rung: bool,
}

impl Daemon {
    /// The node, while it lives.
    pub(crate) fn node(&mut self) -> Option<&mut Node> {
        match &mut self.stage {
            Stage::Live(node) => Some(node),
            Stage::WaitForSbd | Stage::Drain | Stage::Finish | Stage::Zombie { .. } => None,
        }
    }

    /// Its life, while it lives.
    pub(crate) fn life(&self) -> Option<Life> {
        match &self.stage {
            Stage::Live(node) => Some(node.me()),
            Stage::WaitForSbd | Stage::Drain | Stage::Finish | Stage::Zombie { .. } => None,
        }
    }
}

/// A path from a machine to a device.
#[derive(Debug, Default, Clone)]
pub struct Path {
    /// How many hangs have not ended.
    pub(crate) hangs: u32,
    /// Reads fail.
    pub(crate) fails_reads: bool,
    /// Writes fail, with effect, without, or with a part of it.
    pub(crate) fails_writes: bool,
    /// Extra time per operation, us.
    pub(crate) extra_us: u64,
    /// Operations that wait for the path.
    pub(crate) stuck: Vec<u64>,
    /// What happens to the next operations, one each.
    pub(crate) mishaps: Vec<Mishap>,
    /// It does not lead to the device.
    pub(crate) detour: Option<Detour>,
}

impl Path {
    /// Nothing is wrong with it.
    pub(crate) fn is_well(&self) -> bool {
        self.hangs == 0 && !self.fails_reads && !self.fails_writes && self.extra_us == 0 && self.mishaps.is_empty() && self.detour.is_none()
    }
}

/// Where a path leads instead.
#[derive(Debug, Clone)]
pub enum Detour {
    /// Reads of these areas show the device as it was.
    Stale(Rc<Disk>, Areas),
    /// Everything goes to another device, by its number among the others.
    Other(usize),
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) slot: SlotIndex,
    pub(crate) name: String,
    pub(crate) clock: Clock,
    /// Boots so far; the number of the present or last one.
    pub(crate) boot_number: u64,
    pub(crate) is_on: bool,
    /// True instant of the end of the last boot.
    pub(crate) ended_us: u64,
    pub(crate) page: Page,
    pub(crate) sbd: Option<Sbd>,
    pub(crate) feeder: Option<Feeder>,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) paths: Vec<Path>,
    /// Stopped processes, and the events that wait for them.
    pub(crate) stopped: BTreeMap<Process, Vec<crate::world::Event>>,
    pub(crate) wall_offset_ms: u64,
    /// A clean stop is under way, or was done.
    pub(crate) is_stopping: bool,
    pub(crate) restart_ms: u64,
    /// A copy of another machine: it has that one's slot.
    pub(crate) is_clone: bool,
    /// It loses its power at so many steps of its disk and network work from now.
    pub(crate) crash_at_step: Option<u64>,
}

impl Machine {
    pub(crate) fn boot(&self, index: usize) -> BootId {
        crate::disk::boot_id(index, self.boot_number)
    }

    pub(crate) fn is_stopped(&self, process: Process) -> bool {
        self.stopped.contains_key(&process)
    }
}
