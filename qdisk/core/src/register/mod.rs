//! What: the view register of one node: Disk Paxos, one instance per view number, on one to three devices.
//! Owns: the node's ballots, its views records and the bodies they name, on every device.
//! Invariants: design, "rules of the register". A ballot for a view goes out only over a views record of the view before it on a
//! majority of devices; no body is named before it is complete; `Learned` comes only after the record and a later scan.
//! Does not: judge who may propose, wait for the writes of an earlier life (the caller starts it only after them), or time out I/O.
//! Called by: `deadbolt_qdisk::drive`, the daemon, the simulator.

mod decide;
mod lane;
mod own;
#[cfg(any(test, feature = "planted"))]
pub mod planted;
mod scan;
mod work;

#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    vec::Vec,
};
use deadbolt_disk_format::{
    Ballot, ByteOffset, ClusterUuid, Digest, EncodeError, Layout, Life, RecordError, SlotIndex, ViewBody, ViewNumber,
};
use lane::Lane;

/// What a register needs to know.
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// Every record is compared with it.
    pub cluster: ClusterUuid,
    /// The life that writes.
    pub me: Life,
    /// One per device, one to three.
    pub layouts: Vec<Layout>,
    /// Spreads the attempts of nodes that contend; any number.
    pub seed: u64,
    /// Wall time at `now_ms` 0, ms since 1970; only for the stamp that people read.
    pub wall_offset_ms: u64,
}

/// What happens to a register.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "an input lives for one call")]
pub enum Input {
    /// No write of an earlier life of this node can land any more: read everything.
    Start,
    /// Decide this value for the view after the known one. Replaces an earlier proposal that was not decided yet.
    Propose(ViewBody),
    /// Propose no more. What was written may still be decided by others.
    Abandon,
    /// Look for newer views.
    Learn,
    /// An operation came back.
    Disk(DiskDone),
    /// Time has passed.
    Tick,
}

/// An operation came back.
#[derive(Clone, Debug)]
pub struct DiskDone {
    /// As in the operation.
    pub tag: u64,
    /// As in the operation.
    pub device: usize,
    /// What was read (empty for a write), or that it failed.
    pub result: Result<Arc<[u8]>, IoFailed>,
}

/// An operation failed; a write may be there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoFailed;

/// What the shell has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Disk work.
    Disk(DiskOp),
    /// This view is decided, its body copied, the own record durable on a majority, and a later scan of the vote table showed no
    /// ballot beyond it: a member may act in it. Once per view. View 0 (default body, no digest): formatted, nobody was ever in.
    Learned {
        /// The view.
        body: ViewBody,
        /// Its digest.
        digest: Digest,
    },
    /// As `Learned`, but there is a ballot for the view after it: **nobody may start to act in it**. The next view may be proposed,
    /// and has to be if the other's proposer is dead.
    Contested {
        /// The view.
        body: ViewBody,
        /// Its digest.
        digest: Digest,
        /// The ballot's view.
        later: ViewNumber,
    },
    /// The number is taken by another value, or gone by: `winner` is the newest view known.
    ProposalLost {
        /// Newest view known.
        winner: ViewNumber,
    },
    /// The value cannot be proposed.
    ProposalRefused {
        /// Why.
        reason: ProposalError,
    },
    /// It does not go on, or not on this device. It keeps trying unless the reason says otherwise. Once per cause.
    Blocked {
        /// Where.
        device: usize,
        /// What.
        offset: ByteOffset,
        /// Why.
        reason: RegisterBlock,
    },
}

/// Why a value cannot be proposed: errors of the proposer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProposalError {
    /// A reader would refuse it.
    Value(RecordError),
    /// It does not fit its place.
    Size(EncodeError),
    /// Its number is beyond the view after the known one.
    NotNext {
        /// Newest view known.
        known: ViewNumber,
    },
    /// The register has not been started, or is halted.
    NotRunning,
}

/// Why a register does not go on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum RegisterBlock {
    /// A vote unit is unreadable: an unknown promise. Its living owner rewrites it.
    UnreadableVote,
    /// A value is named and no readable body found after reading again.
    MissingBody,
    /// Somebody voted for a view whose predecessor stands in no readable record.
    MissingRecord,
    /// An operation failed.
    DeviceFailed,
    /// An own unit is older than this life's last completed write: the device is not used any more.
    WentBack,
    /// An own unit holds what this life did not write (a clone, a second life): halted, the node must not act again.
    Foreign,
    /// Two values for one view: halted. Never seen unless a device lies.
    Disagreement,
    /// A ballot number without a successor was read: halted. No node gets that far by itself.
    NumbersExhausted,
    /// Every place is named by own units of unknown content.
    NoFreePlace,
}

/// Disk work with its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskOp {
    /// Comes back in [`DiskDone`].
    pub tag: u64,
    /// Which device.
    pub device: usize,
    /// What to do.
    pub kind: DiskOpKind,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOpKind {
    /// Read.
    Read {
        /// From.
        offset: ByteOffset,
        /// Length.
        bytes: usize,
    },
    /// Write durably.
    Write {
        /// To.
        offset: ByteOffset,
        /// What.
        data: Vec<u8>,
    },
    /// Write durably; read, by a request issued after the write was complete.
    WriteThenRead {
        /// To.
        write_offset: ByteOffset,
        /// What.
        data: Vec<u8>,
        /// From.
        read_offset: ByteOffset,
        /// Length.
        read_bytes: usize,
    },
}

/// What a register is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterPhase {
    /// Not started.
    Stopped,
    /// Nothing.
    Idle,
    /// Reads vote table and records.
    Surveying,
    /// Reads a body.
    Fetching,
    /// Writes the own record and scans once more.
    Recording,
    /// Ballot entered, not yet accepted anything in it.
    Entering,
    /// Writes the accepted value.
    Accepting,
    /// Waits before the next attempt.
    Waiting,
    /// Never goes on.
    Halted,
}

/// For people and for the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegisterStatus {
    /// Newest view known to be decided; none before the first survey.
    pub view: Option<ViewNumber>,
    /// Its digest.
    pub digest: Digest,
    /// `Learned` was given for it.
    pub may_act: bool,
    /// What it is doing.
    pub phase: RegisterPhase,
    /// Attempts of the present proposal.
    pub attempts: u32,
    /// Issue of the oldest operation that has not come back.
    pub outstanding_since_ms: Option<u64>,
    /// A write has not come back: it may land at any time. A read that hangs is not one.
    pub is_writing: bool,
    /// Devices that take part.
    pub devices: usize,
}

/// The newest decided view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    view: ViewNumber,
    digest: Digest,
}

impl Known {
    /// The number that is decided next.
    fn next(&self) -> ViewNumber {
        ViewNumber(self.view.0.saturating_add(1))
    }
}

/// What the register is after.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Goal {
    Stopped,
    Idle,
    Survey,
    /// Find the body of a digest, then go on.
    Fetch {
        digest: Digest,
        why: Fetch,
        until_ms: u64,
    },
    Record,
    Enter {
        ballot: u64,
        since_ms: u64,
    },
    Accept {
        ballot: u64,
        since_ms: u64,
    },
    Wait {
        until_ms: u64,
    },
    Halted,
}

/// What a body is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fetch {
    /// A record names it as decided.
    Learn(ViewNumber),
    /// This node accepted it in an earlier life, or before it lost it from memory.
    Own,
    /// Accepted by somebody: to be proposed on in the ballot that this node has entered.
    Adopt { ballot: u64, since_ms: u64 },
}

#[derive(Clone, Debug)]
struct Proposal {
    view: ViewNumber,
    digest: Digest,
}

/// The view register of one node. Drive it with [`Register::handle`] and [`Register::poll_output`].
#[derive(Debug)]
pub struct Register {
    config: RegisterConfig,
    lanes: Vec<Lane>,
    goal: Goal,
    /// Counts goals: what comes back from an older one changes nothing but the knowledge of own units.
    round: u64,
    known: Option<Known>,
    may_act: bool,
    /// What was said of which view: may somebody act in it?
    announced: Option<(ViewNumber, bool)>,
    proposal: Option<Proposal>,
    /// What this life last said in the instance `spoken.view`: promise and accepted value.
    spoken: Spoken,
    /// Own ballots of earlier lives, as found.
    restored: Vec<Ballot>,
    /// Bodies in memory: known, proposed, adopted.
    values: BTreeMap<Digest, Vec<u8>>,
    sequence: u64,
    ballot_round: u64,
    tag: u64,
    attempts: u32,
    /// Surveys in a row that found a digest without a body or a ballot without its record.
    misses: u32,
    reported: Vec<(usize, ByteOffset, RegisterBlock)>,
    outputs: VecDeque<Output>,
    now_ms: u64,
    #[cfg(any(test, feature = "planted"))]
    mistake: Option<planted::Mistake>,
}

/// The own block of Disk Paxos.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Spoken {
    view: ViewNumber,
    entered: u64,
    accepted: u64,
    digest: Digest,
}

impl Register {
    /// # Panics
    /// With no or more than three devices, or a slot outside a device's table: errors of the caller.
    #[must_use]
    pub fn new(config: RegisterConfig) -> Self {
        assert!((1..=deadbolt_disk_format::DEVICES_MAX).contains(&config.layouts.len()), "one to three devices");
        assert!(config.layouts.iter().all(|layout| layout.has_slot(config.me.slot)), "slot outside the table");
        // A body copied from one device must fit the others.
        assert!(config.layouts.windows(2).all(|pair| pair[0].place_bytes == pair[1].place_bytes), "places of one size");
        Self {
            lanes: config.layouts.iter().copied().map(Lane::new).collect(),
            goal: Goal::Stopped,
            round: 0,
            known: None,
            may_act: false,
            announced: None,
            proposal: None,
            spoken: Spoken { view: ViewNumber(0), entered: 0, accepted: 0, digest: Digest::NONE },
            restored: Vec::new(),
            values: BTreeMap::new(),
            sequence: 0,
            ballot_round: 0,
            tag: 0,
            attempts: 0,
            misses: 0,
            reported: Vec::new(),
            outputs: VecDeque::new(),
            now_ms: 0,
            #[cfg(any(test, feature = "planted"))]
            mistake: None,
            config,
        }
    }

    /// Takes one event. Poll the outputs afterwards.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.now_ms = self.now_ms.max(now_ms);
        match input {
            Input::Start => {
                if self.goal == Goal::Stopped {
                    self.begin(Goal::Survey);
                }
            }
            Input::Propose(body) => self.handle_propose(&body),
            Input::Abandon => self.handle_abandon(),
            Input::Learn => self.handle_learn(),
            Input::Disk(done) => self.handle_disk(done),
            Input::Tick => {}
        }
        self.advance();
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to give it a [`Input::Tick`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let goal = match self.goal {
            Goal::Wait { until_ms } | Goal::Fetch { until_ms, .. } => Some(until_ms),
            Goal::Stopped | Goal::Idle | Goal::Survey | Goal::Record | Goal::Enter { .. } | Goal::Accept { .. } | Goal::Halted => None,
        };
        let lanes = self.lanes.iter().filter(|lane| self.is_working() && lane.outstanding.is_none() && !lane.is_away);
        lanes.map(|lane| lane.not_before_ms).filter(|&at| at > self.now_ms).chain(goal).min()
    }

    /// A copy of its state.
    #[must_use]
    pub fn status(&self) -> RegisterStatus {
        RegisterStatus {
            view: self.known.map(|known| known.view),
            digest: self.known.map_or(Digest::NONE, |known| known.digest),
            may_act: self.may_act,
            phase: match self.goal {
                Goal::Stopped => RegisterPhase::Stopped,
                Goal::Idle => RegisterPhase::Idle,
                Goal::Survey => RegisterPhase::Surveying,
                Goal::Fetch { .. } => RegisterPhase::Fetching,
                Goal::Record => RegisterPhase::Recording,
                Goal::Enter { .. } => RegisterPhase::Entering,
                Goal::Accept { .. } => RegisterPhase::Accepting,
                Goal::Wait { .. } => RegisterPhase::Waiting,
                Goal::Halted => RegisterPhase::Halted,
            },
            attempts: self.attempts,
            outstanding_since_ms: self.lanes.iter().filter_map(|lane| lane.outstanding).map(|op| op.since_ms).min(),
            is_writing: self.lanes.iter().filter_map(|lane| lane.outstanding).any(|op| op.step.is_write()),
            devices: self.lanes.iter().filter(|lane| !lane.is_away && lane.own.is_some()).count(),
        }
    }

    fn me(&self) -> SlotIndex {
        self.config.me.slot
    }

    fn majority(&self) -> usize {
        self.lanes.len() / 2 + 1
    }

    fn is_working(&self) -> bool {
        match self.goal {
            Goal::Survey | Goal::Fetch { .. } | Goal::Record | Goal::Enter { .. } | Goal::Accept { .. } => true,
            Goal::Stopped | Goal::Idle | Goal::Wait { .. } | Goal::Halted => false,
        }
    }

    fn report(&mut self, device: usize, offset: ByteOffset, reason: RegisterBlock) {
        if !self.reported.contains(&(device, offset, reason)) {
            self.reported.push((device, offset, reason));
            self.outputs.push_back(Output::Blocked { device, offset, reason });
        }
    }

    #[cfg(any(test, feature = "planted"))]
    fn has_mistake(&self, mistake: planted::Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Plants a mistake.
    #[cfg(any(test, feature = "planted"))]
    pub fn plant(&mut self, mistake: planted::Mistake) {
        self.mistake = Some(mistake);
    }
}
