//! What: one node's quorum device: cycles on the disk, the view register, and the votes that corosync is given.
//! Owns: when a vote is given, withheld and refused; the order of *refused*, *unregistered* and *left*; the numbering of disk work.
//! Invariants: docs/qdevice.md, "what it decides". A vote is given only for a ring that is the newest view exactly, under a cycle issued
//!   after the ring formed, before the lease's end, and when every owed life is gone by a read issued after the view was learned. *Left*
//!   is written only when corosync counts no vote of this node any more and no write of the register is in the air.
//! Does not: call corosync, touch a device, or know what a clock is.
//! Called by: the program `deadbolt-qdevice` and the simulation.

use crate::arbiter::{Question, Shown, Turn};
use crate::settings::Rules;
use alloc::{collections::BTreeMap, collections::BTreeSet, collections::VecDeque, format, string::String, sync::Arc, vec::Vec};
use deadbolt_cluster_core::evidence::{Evidences, Verdict, Witness};
use deadbolt_cluster_core::observer::{BeatsRead, Observer};
use deadbolt_disk_format::span::{expiry_ms, observed_ms};
use deadbolt_disk_format::{
    Beat, ClusterUuid, Configuration, DaemonPart, Digest, Evidence, Incarnation, Layout, LeftLives, Life, NodeState, Place, Rule,
    SlotIndex, SlotSet, Timings, ViewBody, ViewNumber, ViewRecord, WatchdogKind,
};
use deadbolt_qdisk_core::candidates::Standing;
use deadbolt_qdisk_core::register::{self, DiskOpKind, Register, RegisterConfig, RegisterPhase};
use deadbolt_qdisk_core::units::Units;

/// Between cycles and reads while a ring waits for its decision.
const FAST_MS: u64 = 10;
/// What has to be left of the lease for a vote: a call takes a quarter of a millisecond, and who is in one at the lease's end is killed.
const CALL_MS: u64 = 10;
/// Between looks whether this node still has quorum.
const UNREGISTER_MS: u64 = 2;
/// Tokens after which a ring that lost a member has changed everywhere: token, consensus of 1.2 tokens, and as much again.
const RING_TOKENS: u64 = 4;

/// corosync's number of a membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingId {
    /// Its representative.
    pub node: u32,
    /// Grows.
    pub sequence: u64,
}

/// A membership as corosync announced it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Which.
    pub id: RingId,
    /// Slots of its nodes.
    pub members: SlotSet,
}

/// A vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cast {
    /// 1.
    For,
    /// 0.
    Against,
}

/// A call of corosync's library. One at a time; each is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Register the device.
    Register,
    /// Vote. `For` only before the instant named: who cannot promise that does not call, and answers that it was not taken.
    Poll {
        /// Which vote.
        cast: Cast,
        /// In which ring.
        ring: RingId,
        /// End of the lease.
        until_ms: u64,
    },
    /// Unregister the device: its votes count no more. Taken when this node has no quorum after it.
    Unregister,
}

/// What a bridge is told.
#[derive(Debug)]
pub enum Input {
    /// No write of an earlier process of this node can land any more.
    Start,
    /// Time has passed.
    Tick,
    /// corosync has another membership.
    Ring(Ring),
    /// Disk work came back.
    Disk {
        /// As given.
        tag: u64,
        /// When it was issued.
        issued_ms: u64,
        /// When it ended.
        ended_ms: u64,
        /// What was read, or nothing.
        result: Result<Arc<[u8]>, ()>,
    },
    /// A call came back.
    Called {
        /// Which.
        call: Call,
        /// corosync took it. A device that is not registered has no vote: refusing it then is done, too.
        is_taken: bool,
    },
    /// A new number for the next life, as asked for.
    Incarnation(Incarnation),
    /// Leave cleanly.
    Stop,
}

/// What a bridge wants done.
#[derive(Debug)]
pub enum Output {
    /// Disk work.
    Disk {
        /// Comes back.
        tag: u64,
        /// What to do.
        kind: DiskOpKind,
    },
    /// A call of corosync's library.
    Call(Call),
    /// Draw 128 random bits.
    DrawIncarnation,
    /// *Left* is on the disk.
    Stopped,
    /// The register never goes on: the process has to end.
    Halted(String),
    /// A line for the log.
    Log(String),
}

/// How a bridge begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This life.
    pub me: Life,
    /// The cluster on the device.
    pub cluster: ClusterUuid,
    /// Of the device.
    pub layout: Layout,
    /// Times.
    pub rules: Rules,
    /// Votes.
    pub standing: Standing,
    /// For the views that it proposes.
    pub configuration: Configuration,
    /// The beat that stands in the own slot.
    pub carried: Option<Beat>,
    /// Spreads contending proposals; any number.
    pub seed: u64,
    /// Wall time at `now_ms` 0, for stamps that people read.
    pub wall_offset_ms: u64,
}

/// Who ends, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    No,
    /// A view is without this node.
    Lost,
    /// It was asked to stop.
    Stopping,
}

/// How far an ending has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// corosync may count a vote.
    Refuse,
    /// The vote is 0; the device may hold a membership change.
    Unregister,
    /// Waits for the register's last write, or for a new number.
    Quiet,
    /// *Left* stands in the own part; waits for its cycle.
    Publish,
    /// On the disk.
    Done,
}

/// For people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Newest view learned.
    pub view: ViewNumber,
    /// Its members.
    pub members: SlotSet,
    /// The ring.
    pub ring: Option<Ring>,
    /// The last vote given in this ring.
    pub cast: Option<Cast>,
    /// End of the lease.
    pub lease_end_ms: u64,
}

/// Disk work of the bridge's own; everything below is the register's.
const TAG_CYCLE: u64 = 1 << 63;
const TAG_BEATS: u64 = 1 << 62;
/// Above the register's own numbers: which of this process's registers an operation is of. A read of one before answers nobody.
const TAG_LIFE_SHIFT: u32 = 48;

#[derive(Clone, Copy, Debug)]
struct Cycle {
    beat: u64,
    part: u64,
}

/// One node's quorum device.
#[derive(Debug)]
pub struct Bridge {
    setup: Setup,
    register: Register,
    /// How many registers this process had before.
    registers: u64,
    observer: Observer,
    evidences: Evidences,
    /// When a life was first named to this bridge.
    named: BTreeMap<Life, u64>,
    /// Owed lives whose silence was shown by a read from after their removal: what they beat later is later than that view's record, which
    /// they find before they vote.
    expired: BTreeSet<Life>,
    beats: Units<Option<Beat>>,
    records: Units<Option<ViewRecord>>,
    view: ViewBody,
    digest: Digest,
    /// When it was learned; none: nothing is known yet.
    learned_ms: Option<u64>,
    ring: Option<(Ring, u64)>,
    /// Slots that were in a ring with this node since its last vote and are not any more.
    dropped: SlotSet,
    part: DaemonPart,
    was_member: bool,
    beat: u64,
    written: u64,
    cycle: Option<Cycle>,
    next_cycle_ms: u64,
    beats_read: Option<u64>,
    next_read_ms: u64,
    lease_end_ms: u64,
    /// Issue of the newest confirmed cycle.
    confirmed_ms: Option<u64>,
    calling: Option<Call>,
    is_registered: bool,
    next_poll_ms: u64,
    handled_ms: u64,
    cast: Option<Cast>,
    ending: Ending,
    ending_since_ms: u64,
    step: Step,
    /// Per slot: end of the read that first showed that an owed life of it has left.
    left_ms: BTreeMap<SlotIndex, u64>,
    /// Since when the same proposal has been waiting for another's turn.
    waits: Option<(ViewNumber, RingId, u64)>,
    is_proposing: bool,
    outputs: VecDeque<Output>,
    #[cfg(any(test, feature = "planted"))]
    mistake: Option<Mistake>,
}

/// A mistake that tests plant.
#[cfg(any(test, feature = "planted"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A vote before the losers are gone.
    VoteBeforeGone,
    /// A vote in a new ring on a view known before it.
    VoteOnOldKnowledge,
    /// *Left* before the vote was refused.
    LeftBeforeRefused,
    /// A vote after the lease.
    VoteWithoutLease,
    /// Silence that was judged before the view was decided.
    SilenceFromBefore,
    /// A lost device stays registered and can hold a membership change.
    StaysRegistered,
}

fn register_of(setup: &Setup) -> Register {
    Register::new(RegisterConfig {
        cluster: setup.cluster,
        me: setup.me,
        layouts: alloc::vec![setup.layout],
        seed: setup.seed,
        wall_offset_ms: setup.wall_offset_ms,
    })
}

impl Bridge {
    /// A bridge that knows nothing yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let same_boot = setup.carried.as_ref().filter(|beat| beat.boot == setup.me.boot);
        let left = same_boot.map_or_else(LeftLives::default, |beat| {
            let ended = beat.daemon.state == NodeState::Left;
            if ended { beat.daemon.left.with(beat.daemon.incarnation, beat.daemon.view, |_| true) } else { beat.daemon.left }
        });
        let part = DaemonPart {
            number: setup.carried.as_ref().map_or(1, |beat| beat.daemon.number + 1),
            incarnation: setup.me.incarnation,
            state: NodeState::Joining,
            left,
            ..DaemonPart::default()
        };
        Self {
            register: register_of(&setup),
            registers: 0,
            observer: Observer::new(setup.me.slot, 1),
            evidences: Evidences::default(),
            named: BTreeMap::new(),
            expired: BTreeSet::new(),
            beats: Units::default(),
            records: Units::default(),
            view: ViewBody::default(),
            digest: Digest::NONE,
            learned_ms: None,
            ring: None,
            dropped: SlotSet::default(),
            part,
            was_member: false,
            beat: setup.carried.as_ref().map_or(0, |beat| beat.beat),
            written: 0,
            cycle: None,
            next_cycle_ms: 0,
            beats_read: None,
            next_read_ms: 0,
            lease_end_ms: 0,
            confirmed_ms: None,
            calling: None,
            is_registered: false,
            next_poll_ms: 0,
            handled_ms: 0,
            cast: None,
            ending: Ending::No,
            ending_since_ms: 0,
            left_ms: BTreeMap::new(),
            step: Step::Refuse,
            waits: None,
            is_proposing: false,
            outputs: VecDeque::new(),
            #[cfg(any(test, feature = "planted"))]
            mistake: None,
            setup,
        }
    }

    /// Plants a mistake.
    #[cfg(any(test, feature = "planted"))]
    pub fn plant(&mut self, mistake: Mistake) {
        self.mistake = Some(mistake);
    }

    #[cfg(any(test, feature = "planted"))]
    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to give it a `Tick` at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        let cycle_ms = self.cycle.is_none().then_some(self.next_cycle_ms);
        let read_ms = self.beats_read.is_none().then_some(self.next_read_ms);
        // A vote that is due and may not be given waits for what comes, or is looked at again soon.
        let poll_ms = self.next_poll_ms.max(self.handled_ms + FAST_MS);
        [cycle_ms, read_ms, self.register.next_deadline()].into_iter().flatten().fold(poll_ms, u64::min)
    }

    /// For people.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            view: self.view.view,
            members: self.members(),
            ring: self.ring.map(|(ring, _)| ring),
            cast: self.cast,
            lease_end_ms: self.lease_end_ms,
        }
    }

    /// Takes an event. Poll the outputs afterwards.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.handled_ms = now_ms;
        match input {
            Input::Start => self.register.handle(now_ms, register::Input::Start),
            Input::Tick => {}
            Input::Ring(ring) => self.handle_ring(now_ms, ring),
            Input::Disk { tag, issued_ms, ended_ms, result } => self.handle_disk(now_ms, tag, (issued_ms, ended_ms), result),
            Input::Called { call, is_taken } => self.handle_called(now_ms, call, is_taken),
            Input::Incarnation(incarnation) => self.begin_life(now_ms, incarnation),
            Input::Stop if self.ending == Ending::No => self.begin_ending(now_ms, Ending::Stopping),
            // A loss that is on its way ends in *left*, too.
            Input::Stop => self.ending = Ending::Stopping,
        }
        self.tell_register(now_ms, register::Input::Tick);
        self.follow_register(now_ms);
        self.follow_ending(now_ms);
        self.propose(now_ms);
        self.follow_register(now_ms);
        self.vote(now_ms);
        self.begin_work(now_ms);
    }

    /// Once a life has begun to end the register gets answers only.
    fn tell_register(&mut self, now_ms: u64, input: register::Input) {
        if self.ending == Ending::No {
            self.register.handle(now_ms, input);
        }
    }

    fn log(&mut self, text: String) {
        self.outputs.push_back(Output::Log(text));
    }

    fn members(&self) -> SlotSet {
        self.view.members.iter().map(|life| life.slot).collect()
    }

    /// Does a life of the view's stand for this process? One of the same machine does, until it has recorded *left*.
    fn is_mine(&self, life: &Life) -> bool {
        life.slot == self.setup.me.slot && life.boot == self.setup.me.boot && !self.part.left.has(life.incarnation)
    }

    fn is_member(&self) -> bool {
        self.view.members.iter().any(|life| self.is_mine(life))
    }

    /// The ring waits for a decision, or the decision for somebody's end.
    fn is_pending(&self) -> bool {
        self.learned_ms.is_none()
            || self.ending != Ending::No
            || !self.view.owed.is_empty()
            || self.ring.is_some_and(|(ring, _)| ring.members != self.members() || self.cast.is_none())
    }

    fn pace_ms(&self) -> u64 {
        if self.is_pending() { FAST_MS.min(self.setup.rules.interval_ms) } else { self.setup.rules.interval_ms }
    }

    fn handle_ring(&mut self, now_ms: u64, ring: Ring) {
        if let Some((old, _)) = self.ring {
            let gone = old.members.iter().filter(|slot| !ring.members.contains(*slot));
            self.dropped = self.dropped.iter().chain(gone).filter(|slot| !ring.members.contains(*slot)).collect();
        }
        self.ring = Some((ring, now_ms));
        self.left_ms.clear();
        self.cast = None;
        self.next_poll_ms = 0;
        if self.ending != Ending::No && self.step == Step::Unregister {
            // Refused in the ring before.
            self.step = Step::Refuse;
        }
        self.part.hears = ring.members;
        self.part.number += 1;
        self.next_cycle_ms = 0;
        self.next_read_ms = 0;
        self.log(format!("ring {}.{:x}: {:?}", ring.id.node, ring.id.sequence, ring.members));
    }

    fn place(&self, slot: SlotIndex) -> Place {
        Place { cluster: self.setup.cluster, offset: self.setup.layout.beat(slot), slot }
    }

    /// What is due: a cycle (beat, then records), a read of the beats, a look of the register's.
    fn begin_work(&mut self, now_ms: u64) {
        if self.cycle.is_none() && now_ms >= self.next_cycle_ms {
            self.next_cycle_ms = now_ms + self.pace_ms();
            self.begin_cycle(now_ms);
        }
        if self.beats_read.is_none() && now_ms >= self.next_read_ms {
            self.next_read_ms = now_ms + self.pace_ms();
            self.beats_read = Some(self.written);
            let bytes = usize::try_from(self.setup.layout.beats_bytes()).unwrap_or(0);
            self.outputs.push_back(Output::Disk { tag: TAG_BEATS, kind: DiskOpKind::Read { offset: self.setup.layout.beats, bytes } });
        }
    }

    fn begin_cycle(&mut self, now_ms: u64) {
        self.beat += 1;
        let rules = &self.setup.rules;
        let me = self.setup.me;
        let beat = Beat {
            slot: me.slot,
            boot: me.boot,
            writer: me.incarnation,
            beat: self.beat,
            // What others wait for: this process's lease, and what corosync makes of its last vote.
            lease_ms: u32::try_from(rules.lease_ms + rules.outlive_ms).unwrap_or(u32::MAX),
            reset_ms: 0,
            rule: Rule::Disk,
            watchdog: WatchdogKind::None,
            is_stopped: false,
            is_idle: false,
            acknowledged: None,
            wall_ms: now_ms + self.setup.wall_offset_ms,
            boottime_ms: now_ms,
            outlive_ms: 0,
            daemon: self.part.clone(),
        };
        self.cycle = Some(Cycle { beat: self.beat, part: self.part.number });
        let layout = &self.setup.layout;
        let kind = DiskOpKind::WriteThenRead {
            write_offset: layout.beat(me.slot),
            data: beat.encode(&self.place(me.slot)).to_vec(),
            read_offset: layout.records,
            read_bytes: usize::try_from(layout.records_bytes()).unwrap_or(0),
        };
        self.outputs.push_back(Output::Disk { tag: TAG_CYCLE, kind });
    }

    fn handle_disk(&mut self, now_ms: u64, tag: u64, times: (u64, u64), result: Result<Arc<[u8]>, ()>) {
        match tag {
            TAG_CYCLE => self.handle_cycle(now_ms, times.0, result),
            TAG_BEATS => self.handle_beats(now_ms, times, result),
            tag if tag >> TAG_LIFE_SHIFT != self.registers => {}
            tag => {
                let tag = tag & ((1 << TAG_LIFE_SHIFT) - 1);
                let result = result.map_err(|()| register::IoFailed);
                self.register.handle(now_ms, register::Input::Disk(register::DiskDone { tag, device: 0, result }));
            }
        }
    }

    /// The beat is on the disk, and the records were read after that: with nothing newer, the view that is known is the view.
    fn handle_cycle(&mut self, now_ms: u64, issued_ms: u64, result: Result<Arc<[u8]>, ()>) {
        let Some(cycle) = self.cycle.take() else { return };
        let Ok(bytes) = result else { return };
        self.written = cycle.beat;
        let (layout, cluster) = (self.setup.layout, self.setup.cluster);
        self.records.update(&bytes, 2 * usize::from(layout.slots), |unit, bytes| {
            let slot = SlotIndex(u16::try_from(unit / 2).unwrap_or(u16::MAX));
            let offset = layout.record(slot, u8::from(!unit.is_multiple_of(2)));
            ViewRecord::decode(bytes, &Place { cluster, offset, slot }).ok()
        });
        let newest = self.records.values().iter().flatten().map(|record| record.view).max().unwrap_or_default();
        self.follow_published(now_ms, cycle.part);
        let is_known = self.learned_ms.is_some() && newest <= self.view.view;
        if is_known {
            self.lease_end_ms = issued_ms + self.setup.rules.lease_ms;
            self.confirmed_ms = Some(issued_ms);
        } else {
            self.tell_register(now_ms, register::Input::Learn);
        }
    }

    fn follow_published(&mut self, now_ms: u64, part: u64) {
        if self.step == Step::Publish && part >= self.part.number {
            self.step = Step::Done;
            if self.ending == Ending::Stopping {
                self.outputs.push_back(Output::Stopped);
            } else {
                self.ending = Ending::No;
                self.register.handle(now_ms, register::Input::Start);
            }
        }
    }

    fn handle_beats(&mut self, now_ms: u64, (issued_ms, ended_ms): (u64, u64), result: Result<Arc<[u8]>, ()>) {
        let Some(own_beat) = self.beats_read.take() else { return };
        let Ok(bytes) = result else { return };
        let (layout, cluster) = (self.setup.layout, self.setup.cluster);
        self.beats.update(&bytes, usize::from(layout.slots), |unit, bytes| {
            let slot = SlotIndex(u16::try_from(unit).unwrap_or(u16::MAX));
            Beat::decode(bytes, &Place { cluster, offset: layout.beat(slot), slot }).ok()
        });
        let beats = self.beats.values().iter().flatten().map(|beat| (beat.slot, beat.clone())).collect();
        let read = BeatsRead { device: 0, issued_ms, ended_ms, own_beat, beats };
        let lives: Vec<Life> = self.named.keys().copied().collect();
        let is_current = self.observer.is_current(&read);
        for beat in read.beats.values().filter(|beat| beat.slot != self.setup.me.slot) {
            let may_be_newer = |life: &Life| is_current && self.named.get(life).is_some_and(|named_ms| issued_ms >= *named_ms);
            self.evidences.handle_beat(beat, (0, ended_ms), lives.iter().copied(), may_be_newer);
        }
        self.observer.handle_read(&read, lives.iter().map(|life| life.slot));
        self.follow_silence(now_ms);
        let owed = self.view.owed.iter().map(|owed| owed.life);
        let left: Vec<Life> = owed.filter(|life| self.judge(life, now_ms) == Some(Evidence::Left)).collect();
        for life in left {
            self.left_ms.entry(life.slot).or_insert(ended_ms);
        }
        self.tell_register(now_ms, register::Input::Learn);
    }

    fn follow_register(&mut self, now_ms: u64) {
        while let Some(output) = self.register.poll_output() {
            match output {
                register::Output::Disk(op) => {
                    let tag = (self.registers << TAG_LIFE_SHIFT) | op.tag;
                    self.outputs.push_back(Output::Disk { tag, kind: op.kind });
                }
                register::Output::Learned { body, digest } | register::Output::Contested { body, digest, .. } => {
                    self.handle_learned(now_ms, body, digest);
                }
                register::Output::ProposalLost { .. } => self.is_proposing = false,
                register::Output::ProposalRefused { reason } => {
                    self.is_proposing = false;
                    self.log(format!("the proposal was refused: {reason:?}"));
                }
                register::Output::Blocked { offset, reason, .. } => {
                    let text = format!("the view register does not go on: {reason:?} at byte {}", offset.0);
                    let is_over = self.register.status().phase == RegisterPhase::Halted;
                    self.outputs.push_back(if is_over { Output::Halted(text) } else { Output::Log(text) });
                }
            }
        }
    }

    fn handle_learned(&mut self, now_ms: u64, body: ViewBody, digest: Digest) {
        if self.learned_ms.is_some() && body.view <= self.view.view {
            return;
        }
        (self.view, self.digest, self.learned_ms) = (body, digest, Some(now_ms));
        self.is_proposing = false;
        self.waits = None;
        // A cycle from before knows nothing of this view.
        self.confirmed_ms = None;
        self.next_cycle_ms = 0;
        self.next_read_ms = 0;
        let lives: Vec<Life> = self.view.members.iter().copied().chain(self.view.owed.iter().map(|owed| owed.life)).collect();
        self.named.retain(|life, _| lives.contains(life));
        for life in lives {
            self.named.entry(life).or_insert(now_ms);
        }
        self.evidences.keep(|life| self.named.contains_key(life));
        self.expired.retain(|life| self.view.owed.iter().any(|owed| owed.life == *life));
        let owed: Vec<Life> = self.view.owed.iter().map(|owed| owed.life).collect();
        self.log(format!(
            "view {}: {:?}, owed {:?}",
            self.view.view,
            self.members(),
            owed.iter().map(|life| life.slot.0).collect::<Vec<_>>()
        ));
        let is_member = self.is_member();
        self.part.view = self.view.view;
        self.part.state = if is_member { NodeState::Member } else { NodeState::Joining };
        self.part.number += 1;
        let is_lost = !is_member && (self.was_member || owed.iter().any(|life| self.is_mine(life)));
        self.was_member |= is_member;
        if is_lost && self.ending == Ending::No {
            self.log(format!("view {} is without this node: its vote is refused", self.view.view));
            self.begin_ending(now_ms, Ending::Lost);
        }
    }

    fn begin_ending(&mut self, now_ms: u64, ending: Ending) {
        self.register.handle(now_ms, register::Input::Abandon);
        self.ending = ending;
        self.ending_since_ms = now_ms;
        self.step = Step::Refuse;
        #[cfg(any(test, feature = "planted"))]
        if self.has(Mistake::LeftBeforeRefused) {
            self.step = Step::Quiet;
        }
    }

    /// Refuse, unregister, let the register's last write end, *left*: in this order.
    fn follow_ending(&mut self, now_ms: u64) {
        if self.ending == Ending::No || self.calling.is_some() {
            return;
        }
        match (self.step, self.ring) {
            // corosync is not there, or has never been asked by this process: its vote, if there is one, is taken back all the same.
            (Step::Refuse, Some((ring, _))) if now_ms >= self.next_poll_ms => {
                self.next_poll_ms = now_ms + FAST_MS;
                self.call(Call::Poll { cast: Cast::Against, ring: ring.id, until_ms: u64::MAX });
            }
            (Step::Unregister, _) if now_ms >= self.next_poll_ms => {
                self.next_poll_ms = now_ms + UNREGISTER_MS;
                self.call(Call::Unregister);
            }
            (Step::Quiet, _) if !self.register.status().is_writing => {
                if self.ending == Ending::Stopping {
                    self.record_left();
                    self.part.state = NodeState::Left;
                    self.step = Step::Publish;
                } else {
                    self.step = Step::Done;
                    self.outputs.push_back(Output::DrawIncarnation);
                }
            }
            _ => {}
        }
    }

    /// Every life of this machine that a view may name.
    fn record_left(&mut self) {
        let me = self.setup.me;
        let lives = self.view.owed.iter().map(|owed| owed.life).chain(self.view.members.iter().copied());
        let earlier: Vec<Incarnation> =
            lives.filter(|life| life.slot == me.slot && life.boot == me.boot).map(|life| life.incarnation).collect();
        for incarnation in earlier.iter().copied().chain([me.incarnation]) {
            if !self.part.left.has(incarnation) {
                self.part.left = self.part.left.with(incarnation, self.view.view, |named| earlier.contains(&named));
            }
        }
        self.part.number += 1;
        self.next_cycle_ms = 0;
    }

    /// The next life: the one before has left.
    fn begin_life(&mut self, now_ms: u64, incarnation: Incarnation) {
        self.record_left();
        self.setup.me.incarnation = incarnation;
        self.part.incarnation = incarnation;
        self.part.state = NodeState::Joining;
        self.was_member = false;
        // A part that is on its way is of the life before: it has no word of this.
        self.step = Step::Publish;
        self.register = register_of(&self.setup);
        self.registers += 1;
        self.log(format!("left; comes back as {incarnation}"));
        self.follow_register(now_ms);
    }

    fn call(&mut self, call: Call) {
        self.calling = Some(call);
        self.outputs.push_back(Output::Call(call));
    }

    fn handle_called(&mut self, now_ms: u64, call: Call, is_taken: bool) {
        self.calling = None;
        match call {
            Call::Register => {
                self.is_registered = is_taken;
                self.next_poll_ms = if is_taken { 0 } else { now_ms + self.setup.rules.interval_ms };
            }
            Call::Unregister => {
                // With the votes of a ring from before the cut this node has quorum until its own ring changes. If that takes longer than any
                // change does, the others are in its ring.
                let is_together = now_ms >= self.ending_since_ms + RING_TOKENS * self.setup.rules.skew_ms;
                if is_taken || is_together {
                    self.is_registered = false;
                    self.step = if self.step == Step::Unregister { Step::Quiet } else { self.step };
                }
            }
            Call::Poll { cast, ring, .. } => {
                let is_present = self.ring.is_some_and(|(present, _)| present.id == ring);
                if is_taken && is_present {
                    if self.cast.replace(cast) != Some(cast) {
                        let word = if cast == Cast::For { "given" } else { "refused" };
                        self.log(format!("vote {word} in ring {}.{:x}", ring.node, ring.sequence));
                    }
                    if cast == Cast::For {
                        self.dropped = SlotSet::default();
                    } else if self.step == Step::Refuse {
                        self.next_poll_ms = 0;
                        self.step = Step::Unregister;
                        #[cfg(any(test, feature = "planted"))]
                        if self.has(Mistake::StaysRegistered) {
                            self.step = Step::Quiet;
                        }
                    }
                }
            }
        }
    }

    /// Judged by what the disk shows; the own slot by what this process knows.
    fn judge(&self, life: &Life, now_ms: u64) -> Option<Evidence> {
        if life.slot == self.setup.me.slot {
            let is_left = life.boot == self.setup.me.boot && self.part.left.has(life.incarnation);
            let is_other_boot = life.boot != self.setup.me.boot;
            return if is_left { Some(Evidence::Left) } else { is_other_boot.then_some(Evidence::Rebooted) };
        }
        let rules = &self.setup.rules;
        let lease_ms = u32::try_from(rules.lease_ms + rules.outlive_ms).unwrap_or(u32::MAX);
        let timings = Timings {
            lease_ms,
            expiry_ms: u32::try_from(expiry_ms(lease_ms, rules.drift_ppm)).unwrap_or(u32::MAX),
            drift_ppm: rules.drift_ppm,
            ..Timings::default()
        };
        let named_ms = self.named.get(life).copied().unwrap_or(now_ms);
        match self.evidences.judge(life, &self.observer, &timings, (Witness::MemberOfLastView { from_ms: 0 }, named_ms), now_ms) {
            Verdict::Gone(evidence) => Some(evidence),
            Verdict::GoneAt { .. } | Verdict::MayLive => None,
        }
    }

    /// Silence of who is owed counts when a read from after the view was learned shows it: whoever beat before it was decided might not
    /// have known of it.
    fn follow_silence(&mut self, now_ms: u64) {
        let learned_ms = self.learned_ms.unwrap_or(u64::MAX);
        #[cfg(any(test, feature = "planted"))]
        let learned_ms = if self.has(Mistake::SilenceFromBefore) { 0 } else { learned_ms };
        let was_looked_at = |slot| self.observer.watched(slot).is_some_and(|watched| watched.looked_ms >= learned_ms);
        let owed = self.view.owed.iter().map(|owed| owed.life).filter(|life| was_looked_at(life.slot));
        let silent: Vec<Life> = owed.filter(|life| self.judge(life, now_ms) == Some(Evidence::Expired)).collect();
        self.expired.extend(silent);
    }

    /// Why the votes of an owed life count no more; none: they may.
    fn gone_by(&self, life: &Life, now_ms: u64) -> Option<Evidence> {
        match self.judge(life, now_ms) {
            None | Some(Evidence::Expired) => self.expired.contains(life).then_some(Evidence::Expired),
            found => found,
        }
    }

    fn propose(&mut self, now_ms: u64) {
        let Some((ring, _)) = self.ring.filter(|_| self.ending == Ending::No && self.learned_ms.is_some() && !self.is_proposing) else {
            return;
        };
        // Who knows what the disk shows proposes: a process that slept reads first.
        if self.confirmed_ms.is_none() || now_ms >= self.lease_end_ms {
            return;
        }
        let shown: BTreeMap<SlotIndex, Shown> = self
            .observer
            .beats()
            .filter(|(slot, _)| **slot != self.setup.me.slot)
            .map(|(slot, beat)| {
                let age_ms = self.observer.watched(*slot).map_or(u64::MAX, |watched| watched.age_ms(now_ms));
                let is_at_work = matches!(beat.daemon.state, NodeState::Joining | NodeState::Member);
                let is_fresh = is_at_work && age_ms <= self.setup.rules.fresh_ms;
                (*slot, Shown { life: beat.life(), is_fresh, hears: beat.daemon.hears })
            })
            .collect();
        let owed = self.view.owed.iter().filter_map(|owed| Some((owed.life, self.gone_by(&owed.life, now_ms)?)));
        let gone = self.view.members.iter().filter_map(|life| Some((*life, self.judge(life, now_ms)?))).chain(owed).collect();
        let question = Question {
            me: self.setup.me,
            view: &self.view,
            digest: self.digest,
            ring: ring.members,
            shown: &shown,
            gone: &gone,
            standing: &self.setup.standing,
            configuration: &self.setup.configuration,
        };
        let Some((body, turn)) = question.answer() else {
            self.waits = None;
            return;
        };
        let since_ms = match self.waits {
            Some((view, id, since_ms)) if view == body.view && id == ring.id => since_ms,
            _ => now_ms,
        };
        self.waits = Some((body.view, ring.id, since_ms));
        if turn == Turn::Now || now_ms >= since_ms + self.setup.rules.patience_ms {
            self.is_proposing = true;
            self.register.handle(now_ms, register::Input::Propose(body));
        }
    }

    /// Give a vote, if one is due. Undecided, nothing is said: corosync waits.
    fn vote(&mut self, now_ms: u64) {
        if self.calling.is_some() || self.ending != Ending::No || now_ms < self.next_poll_ms || !self.is_member() {
            return;
        }
        if !self.is_registered {
            self.call(Call::Register);
            return;
        }
        if let Some((ring, _)) = self.ring.filter(|(ring, since_ms)| self.may_vote(ring, *since_ms, now_ms)) {
            self.next_poll_ms = now_ms + self.setup.rules.interval_ms;
            let until_ms = self.lease_end_ms;
            #[cfg(any(test, feature = "planted"))]
            let until_ms = if self.has(Mistake::VoteWithoutLease) { u64::MAX } else { until_ms };
            self.call(Call::Poll { cast: Cast::For, ring: ring.id, until_ms });
        }
    }

    fn may_vote(&self, ring: &Ring, since_ms: u64, now_ms: u64) -> bool {
        let is_confirmed = self.confirmed_ms.is_some_and(|confirmed_ms| confirmed_ms >= since_ms);
        #[cfg(any(test, feature = "planted"))]
        let is_confirmed = is_confirmed || self.has(Mistake::VoteOnOldKnowledge);
        let is_live = now_ms + CALL_MS <= self.lease_end_ms;
        #[cfg(any(test, feature = "planted"))]
        let is_live = is_live || self.has(Mistake::VoteWithoutLease);
        let are_gone = self.view.owed.iter().all(|owed| self.gone_by(&owed.life, now_ms).is_some());
        #[cfg(any(test, feature = "planted"))]
        let are_gone = are_gone || self.has(Mistake::VoteBeforeGone);
        is_confirmed && is_live && are_gone && ring.members == self.members() && self.has_formed(since_ms, now_ms)
    }

    /// Others learn of a change up to a token later, and have the quorum of before until then; not who has left since: it had none.
    fn has_formed(&self, since_ms: u64, now_ms: u64) -> bool {
        let has_left = |slot: SlotIndex| self.left_ms.get(&slot).is_some_and(|left_ms| *left_ms >= since_ms);
        now_ms >= since_ms + observed_ms(self.setup.rules.skew_ms, self.setup.rules.drift_ppm) || self.dropped.iter().all(has_left)
    }
}
