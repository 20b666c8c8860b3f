//! What: the machine that decides what this node proposes, publishes and does about its peers.
//! Owns: this node's role, the evidence collected, pending changes, the fencing of owed lives.
//! Invariants: only a member of the known view proposes its successor, unless every member is proved gone; a life that recorded
//!   *left* acts no more; a node counts as gone only by `evidence`.
//! Does not: decide a view (the register does), grant locks, read clocks or devices.
//! Called by: the daemon's wiring and the simulator.

mod beyond;
mod change;
mod fencing;
mod graph;
#[cfg(feature = "planted")]
pub mod planted;
mod proposal;
mod returns;
mod scores;
mod status;
#[cfg(test)]
mod tests;
mod vouching;

pub use beyond::Ground;
pub use change::{ALTERATION_MS, Addition, Alteration, ChangeRequest, check_name, default_disk_votes, refuse_disk_votes};
pub use graph::{Arbiter, ArbitrationInput, ArbitrationNode, Choice, quorum, total_votes};
pub use scores::{OwnStanding, SCORE_FULL};
pub use status::{MembershipStatus, PeerStatus};

use crate::{
    evidence::{Evidences, Verdict, Witness},
    hello::{Beyond as Message, Hello},
    observer::{BeatsRead, Observer},
    timing::FAST_POLL_MS,
};
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
};
use deadbolt_disk_format::{
    Beat, BootId, Configuration, DaemonPart, Digest, Evidence, LeftLives, Life, NodeEntry, NodeState, Released, SlotIndex, Timings,
    ViewBody, ViewNumber, Vouch,
};

/// How a machine begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This life.
    pub me: Life,
    /// Devices of the cluster.
    pub devices: usize,
    /// Slots reserved on them.
    pub slots: u16,
    /// Times to use before any view is known: the superblock's.
    pub timings: Timings,
    /// What an earlier incarnation of this boot recorded (from the own beat unit).
    pub carried_left: LeftLives,
    /// The vouches in the own beat unit, of whatever life and boot.
    pub carried_vouches: alloc::vec::Vec<Vouch>,
    /// Beyond every part number that an earlier daemon of this boot can have used.
    pub first_number: u64,
    /// The configuration of the first view; only for `init`.
    pub initial: Option<Configuration>,
    /// Which clique goes on.
    pub arbiter: Arbiter,
    /// Tells on which devices this boot has registered its reservation key; 0: on none. See [`DaemonPart::protected`].
    pub protected: u32,
}

/// What earlier incarnations of this boot recorded in the own beat, to be carried on for those who have not seen it: *left*, or sbd's word
/// that the last one held nothing. Also of those that no view names: one may that is being decided.
#[must_use]
pub fn carried_left(beat: &Beat, boot: BootId, view: &ViewBody) -> LeftLives {
    let daemon = &beat.daemon;
    if beat.boot != boot {
        LeftLives::default()
    } else if beat.is_idle || daemon.state == NodeState::Left {
        daemon.left.with(daemon.incarnation, daemon.view, |left| view.names(beat.slot, left))
    } else {
        daemon.left
    }
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A poll has come: publish, say hello, propose, fence.
    Tick,
    /// A read of the beat table ended.
    Beats(BeatsRead),
    /// An authenticated hello came.
    Hello(Hello),
    /// An ordered stream with this life stands, or does not any more (or cannot drain).
    Linked {
        /// With whom.
        peer: Life,
        /// Does it stand?
        is_up: bool,
    },
    /// A view is decided and durable in the own record.
    Learned {
        /// The view.
        body: ViewBody,
        /// Its digest.
        digest: Digest,
        /// A later scan of the vote table showed no ballot beyond it. If there was one, nobody may begin to act in this view, but the
        /// next one has to be proposed: the other's proposer may be dead.
        may_act: bool,
    },
    /// The register gave the own proposal up or failed.
    ProposalEnded,
    /// The register has no ballot in the air and none will follow.
    RegisterQuiet,
    /// What sbd publishes.
    Lifeline {
        /// End of the lease.
        lease_end_ms: u64,
        /// End of the lease by the last own cycle alone.
        own_end_ms: u64,
        /// Number of the daemon part in the last write that is complete on a majority.
        published: u64,
    },
    /// What this node says of itself: how its checks went, and its administrator's preference.
    Standing(OwnStanding),
    /// The lock service holds something, or nothing any more.
    Holds(bool),
    /// The lock service has finished recovery in this view.
    Recovered(ViewNumber),
    /// Somebody asks for a change of the configuration.
    Change(ChangeRequest),
    /// An operator wants the node in this slot ended.
    Fence(SlotIndex),
    /// An operator vouches that the node in this slot is gone.
    OperatorConfirms(SlotIndex),
    /// A pill was written and verified on a majority of devices, or not.
    PillDone {
        /// For whom.
        victim: Life,
        /// Did it work?
        is_written: bool,
    },
    /// The fence agent of a life's node was called, or there is none.
    AgentDone {
        /// For whom.
        victim: Life,
        /// When it had seen that the node is out of action; none: it has not.
        off_at_ms: Option<u64>,
    },
    /// A life's keys were to be taken away on every protected device.
    EjectDone {
        /// Whose.
        victim: Life,
        /// By this node, with abort, and read back?
        is_ejected: bool,
    },
    /// A message about lives beyond the own beat came from a peer.
    Told {
        /// From whom.
        from: Life,
        /// What.
        message: Message,
    },
    /// The look that was asked for has ended.
    Looked {
        /// For whom.
        life: Life,
        /// Of the request.
        serial: u32,
        /// Neither a pill for it nor a ballot for a later view was found.
        is_free: bool,
    },
    /// Leave the view and stop.
    Stop,
}

/// What the machine wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Leave these bytes to sbd.
    Publish(DaemonPart),
    /// Send this hello to every other configured node.
    SayHello(Hello),
    /// Put this value to the register.
    Propose(ViewBody),
    /// Take no further part in the register; answer `RegisterQuiet` once nothing is in the air.
    AbandonRegister,
    /// The view to act in; `is_member` false: stop granting at once.
    View {
        /// The view.
        body: ViewBody,
        /// Is this life in it?
        is_member: bool,
    },
    /// May the lock service grant anything new (the lease is checked besides)?
    Permit(bool),
    /// The beat that carries "holds" is on disk.
    HoldsPublished(bool),
    /// Write the request, then the pill, and verify both.
    WritePill {
        /// At whom.
        victim: Life,
        /// Decided by which view; 0: an operator's command.
        view: ViewNumber,
        /// Number of the request.
        serial: u64,
    },
    /// Call the fence agent of the victim's node, if there is one; answer `AgentDone`.
    CallAgent {
        /// At whom.
        victim: Life,
    },
    /// Take the victim's reservation keys away on every protected device; answer `EjectDone`.
    Eject {
        /// Whose.
        victim: Life,
    },
    /// This node must be reset.
    ResetSelf(String),
    /// *Left* is on disk: go on under a new incarnation.
    NewIncarnation,
    /// *Left* is on disk and a stop was asked for.
    Stopped,
    /// The clients must give back what they hold: a stop was asked for.
    StopLocks,
    /// An operator's fence has ended with evidence.
    Fenced {
        /// Who.
        victim: Life,
        /// By what.
        evidence: Evidence,
        /// How long it took.
        waited_ms: u64,
    },
    /// Tell a peer.
    Tell {
        /// Whom.
        peer: Life,
        /// What.
        message: Message,
    },
    /// Look on a majority of devices for a pill for this life, and for ballots beyond this view; answer `Looked`.
    LookFor {
        /// For whom.
        life: Life,
        /// Of the request.
        serial: u32,
        /// The view known.
        view: ViewNumber,
    },
    /// Leave these ends of leases to sbd; 0: none.
    Extend {
        /// By a vouch.
        vouched_until_ms: u64,
        /// By a freeze.
        frozen_until_ms: u64,
    },
    /// For the journal and the log.
    Journal(String),
}

/// What this life is, in its own eyes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Not in the view; wants in.
    Joining,
    /// In the view.
    Member,
    /// Waits until the register is quiet, then records *left*.
    Leaving,
    /// *Left* is in this daemon part; not yet known to be on disk.
    Recording { number: u64 },
    /// *Left* is on disk. Nothing follows.
    Left,
    /// Removed while it held something.
    Condemned,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) at_ms: u64,
    pub(crate) hello: Hello,
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) body: ViewBody,
    pub(crate) digest: Digest,
    pub(crate) may_act: bool,
    pub(crate) since_ms: u64,
}

/// The machine. See the module's head.
#[derive(Debug)]
pub struct Membership {
    pub(crate) setup: Setup,
    pub(crate) now_ms: u64,
    pub(crate) role: Role,
    pub(crate) known: Known,
    pub(crate) has_view: bool,
    pub(crate) observer: Observer,
    pub(crate) evidences: Evidences,
    /// When each watched life was first named here.
    watched_since: BTreeMap<Life, u64>,
    /// The newest released life per slot, as views named it.
    gone: BTreeMap<SlotIndex, Released>,
    /// Lives with which an ordered stream stands (none: the instant it was lost).
    linked: BTreeMap<Life, Option<u64>>,
    pub(crate) heard: BTreeMap<SlotIndex, Heard>,
    pub(crate) lease_end_ms: u64,
    /// By the last own cycle alone.
    pub(crate) own_end_ms: u64,
    pub(crate) beyond: beyond::Beyond,
    pub(crate) vouching: vouching::Vouching,
    pub(crate) published: u64,
    pub(crate) number: u64,
    pub(crate) holds: bool,
    /// Number of the first daemon part that carries the present `holds`.
    holds_number: u64,
    holds_said: Option<bool>,
    pub(crate) recovered: ViewNumber,
    pub(crate) is_stopping: bool,
    pub(crate) permit: Option<bool>,
    /// What the arbiter was asked last, and its answer.
    arbitrated: Option<(ArbitrationInput, Option<Choice>)>,
    pub(crate) proposal: proposal::Proposals,
    returns: returns::Returns,
    standing: OwnStanding,
    scores: scores::Scores,
    pub(crate) fencing: fencing::Fencing,
    pub(crate) forced: BTreeSet<Life>,
    pub(crate) changes: change::Changes,
    pub(crate) outputs: VecDeque<Output>,
    #[cfg(feature = "planted")]
    mistake: Option<planted::Mistake>,
}

impl Membership {
    /// A life that knows nothing yet.
    #[must_use]
    pub fn new(setup: Setup, now_ms: u64) -> Self {
        Self {
            observer: Observer::new(setup.me.slot, setup.devices),
            known: Known { body: ViewBody::default(), digest: Digest::NONE, may_act: true, since_ms: now_ms },
            now_ms,
            role: Role::Joining,
            has_view: false,
            evidences: Evidences::default(),
            watched_since: BTreeMap::new(),
            gone: BTreeMap::new(),
            linked: BTreeMap::new(),
            heard: BTreeMap::new(),
            lease_end_ms: 0,
            own_end_ms: 0,
            beyond: beyond::Beyond::new(first_serial(&setup.me)),
            vouching: vouching::Vouching::new(&setup.carried_vouches),
            published: 0,
            number: setup.first_number,
            holds: false,
            holds_number: 0,
            holds_said: None,
            recovered: ViewNumber(0),
            is_stopping: false,
            permit: None,
            arbitrated: None,
            proposal: proposal::Proposals::default(),
            returns: returns::Returns::default(),
            standing: OwnStanding::default(),
            scores: scores::Scores::default(),
            fencing: fencing::Fencing::default(),
            forced: BTreeSet::new(),
            changes: change::Changes::default(),
            outputs: VecDeque::new(),
            #[cfg(feature = "planted")]
            mistake: None,
            setup,
        }
    }

    /// The times in force: the view's, or the superblock's before any.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        if self.known.body.view.0 > 0 { &self.known.body.configuration.timings } else { &self.setup.timings }
    }

    /// The newest life of a slot that a view released here, and by what evidence.
    #[must_use]
    pub fn last_released(&self, slot: SlotIndex) -> Option<Released> {
        self.gone.get(&slot).copied()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants a `Tick` at the latest.
    #[must_use]
    pub fn next_deadline(&self, last_tick_ms: u64) -> u64 {
        let poll_ms = u64::from(self.timings().poll_ms);
        let is_open = self.is_edge_missing() || !self.known.body.owed.is_empty();
        let poll = last_tick_ms + if is_open { poll_ms.min(FAST_POLL_MS) } else { poll_ms };
        self.next_silence_ms().map_or(poll, |silence_ms| poll.min(silence_ms.max(last_tick_ms + 1)))
    }

    /// Takes an event.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.now_ms = self.now_ms.max(now_ms);
        match input {
            Input::Tick => self.handle_tick(now_ms),
            Input::Beats(read) => self.handle_beats(&read, now_ms),
            Input::Hello(hello) => self.handle_hello(hello, now_ms),
            Input::Linked { peer, is_up } => self.handle_linked(peer, is_up, now_ms),
            Input::Learned { body, digest, may_act } => self.handle_learned(body, digest, may_act, now_ms),
            Input::ProposalEnded => self.proposal.handle_ended(),
            Input::RegisterQuiet => self.handle_register_quiet(),
            Input::Lifeline { lease_end_ms, own_end_ms, published } => self.handle_lifeline(lease_end_ms, own_end_ms, published),
            Input::Standing(standing) => self.standing = standing,
            Input::Holds(holds) => self.handle_holds(holds),
            Input::Recovered(view) => self.recovered = self.recovered.max(view),
            Input::Change(change) => self.changes.push(change, now_ms),
            Input::Fence(slot) => self.handle_fence(slot, now_ms),
            Input::OperatorConfirms(slot) => self.handle_operator(slot),
            Input::PillDone { victim, is_written } => self.fencing.handle_pill(&victim, is_written, now_ms),
            Input::AgentDone { victim, off_at_ms } => self.handle_agent(victim, off_at_ms, now_ms),
            Input::EjectDone { victim, is_ejected } => self.handle_ejected(victim, is_ejected, now_ms),
            Input::Told { from, message } => self.handle_told(from, message),
            Input::Looked { life, serial, is_free } => self.handle_looked(life, serial, is_free),
            Input::Stop => self.is_stopping = true,
        }
    }

    fn handle_told(&mut self, from: Life, message: Message) {
        match message {
            Message::AskFreeze { view, serial } => self.handle_question(from, view, serial),
            Message::Consent { serial } => self.handle_consent(from, serial),
            Message::AskVouch { serial } => self.handle_vouch_asked(from, serial),
            Message::Grant { serial } => self.handle_grant(from, serial),
        }
    }

    fn handle_tick(&mut self, now_ms: u64) {
        self.publish();
        self.say_hello(now_ms);
        self.follow_stop();
        self.drop_impossible_changes();
        self.take_scores(now_ms);
        self.follow_beyond();
        if self.has_view && matches!(self.role, Role::Joining | Role::Member | Role::Condemned) {
            self.consider(now_ms);
        }
        self.update_permit(now_ms);
    }

    fn handle_beats(&mut self, read: &BeatsRead, now_ms: u64) {
        let lives = self.watched_lives();
        self.observer.handle_read(read, lives.iter().map(|life| life.slot));
        let is_current = self.observer.is_current(read);
        self.watched_since.retain(|life, _| lives.contains(life));
        for life in &lives {
            self.watched_since.entry(*life).or_insert(now_ms);
        }
        let since = &self.watched_since;
        let may_be_newer = |life: &Life| is_current && since.get(life).is_some_and(|since| read.issued_ms >= *since);
        for beat in read.beats.values() {
            self.evidences.handle_beat(beat, (read.device, read.ended_ms), lives.iter().copied(), may_be_newer);
        }
        self.report_fenced(now_ms);
    }

    fn handle_hello(&mut self, hello: Hello, now_ms: u64) {
        let is_me = hello.life.slot == self.setup.me.slot;
        // While the disk shows a living life of that slot, words of any other life are old or made up.
        let is_other_life = self.fresh_life(hello.life.slot).is_some_and(|life| life != hello.life);
        if !is_me && !is_other_life {
            self.proposal.handle_hello(&hello, now_ms, &self.known.body.configuration.timings);
            if hello.view >= self.known.body.view {
                self.vouching.handle_caught_up(&hello.life);
            }
            self.heard.insert(hello.life.slot, Heard { at_ms: now_ms, hello });
        }
    }

    /// A stream that is lost for a moment is made anew; only a longer loss takes the edge.
    fn handle_linked(&mut self, peer: Life, is_up: bool, now_ms: u64) {
        let lost = match self.linked.get(&peer) {
            _ if is_up => None,
            Some(Some(lost_ms)) => Some(*lost_ms),
            Some(None) | None => Some(now_ms),
        };
        self.linked.insert(peer, lost);
        self.linked.retain(|life, lost| life.slot != peer.slot || *life == peer || lost.is_none());
    }

    fn handle_learned(&mut self, body: ViewBody, digest: Digest, may_act: bool, now_ms: u64) {
        if self.has_view && body.view <= self.known.body.view {
            return;
        }
        let is_member = body.members.contains(&self.setup.me);
        let was_member = self.role == Role::Member;
        self.gone.extend(body.released.iter().map(|released| (released.life.slot, *released)));
        self.outputs.push_back(Output::Journal(proposal::describe(&body)));
        self.proposal.handle_view(&body, &self.known.body, is_member, now_ms);
        let after = if self.has_view { self.known.body.view } else { body.view };
        self.returns.handle_view(&body, after, now_ms);
        self.beyond.handle_view();
        self.vouching.handle_view(&body, now_ms);
        self.known = Known { body, digest, may_act, since_ms: now_ms };
        self.has_view = true;
        self.forget_settled();
        match self.role {
            Role::Joining | Role::Member | Role::Condemned if is_member => self.role = Role::Member,
            Role::Member => self.handle_removed(now_ms),
            Role::Joining | Role::Leaving | Role::Recording { .. } | Role::Left | Role::Condemned => {}
        }
        if is_member || was_member {
            self.permit = None;
        }
        if may_act || !is_member {
            let is_member = is_member && self.role == Role::Member;
            self.outputs.push_back(Output::View { body: self.known.body.clone(), is_member });
        }
        self.update_permit(now_ms);
    }

    /// This life was a member and the decided view is without it.
    fn handle_removed(&mut self, now_ms: u64) {
        let holds = self.holds;
        #[cfg(feature = "planted")]
        let holds = holds && !self.has_mistake(planted::Mistake::LeftWhileHolding);
        if holds {
            self.role = Role::Condemned;
            self.outputs.push_back(Output::Journal(format!("removed by view {} while holding locks", self.known.body.view)));
            self.condemn(now_ms);
        } else {
            self.begin_leaving();
        }
    }

    /// Resets itself unless every member of the deciding view is proved gone.
    pub(crate) fn condemn(&mut self, now_ms: u64) {
        // A winner that lives shows fresh beats, and writes the pill anyway; for one that is silent this node waits until it is proved
        // gone, and then proposes the next view with itself in it.
        let lives = |life: &Life| !self.is_dead(life, now_ms) && self.fresh_life(life.slot) == Some(*life);
        if self.known.body.members.iter().any(lives) {
            self.outputs
                .push_back(Output::ResetSelf(format!("view {} went on without this node, which holds locks", self.known.body.view)));
        }
    }

    fn begin_leaving(&mut self) {
        if matches!(self.role, Role::Joining | Role::Member) {
            self.role = Role::Leaving;
            self.outputs.push_back(Output::Permit(false));
            self.permit = Some(false);
            self.outputs.push_back(Output::AbandonRegister);
        }
    }

    fn handle_register_quiet(&mut self) {
        let holds = self.holds;
        #[cfg(feature = "planted")]
        let holds = holds && !self.has_mistake(planted::Mistake::LeftWhileHolding);
        if self.role == Role::Leaving && !holds {
            self.role = Role::Recording { number: self.number + 1 };
            self.publish();
        }
    }

    fn handle_lifeline(&mut self, lease_end_ms: u64, own_end_ms: u64, published: u64) {
        self.lease_end_ms = lease_end_ms;
        self.own_end_ms = own_end_ms.min(lease_end_ms);
        self.published = published;
        self.follow_vouching();
        if let Role::Recording { number } = self.role
            && published >= number
        {
            self.role = Role::Left;
            let next = if self.is_stopping { Output::Stopped } else { Output::NewIncarnation };
            self.outputs.push_back(Output::Journal(format!("left after view {}", self.known.body.view)));
            self.outputs.push_back(next);
        }
        if self.holds_said != Some(self.holds) && published >= self.holds_number && self.holds_number > 0 {
            self.holds_said = Some(self.holds);
            self.outputs.push_back(Output::HoldsPublished(self.holds));
        }
    }

    /// Every word of the lock service is answered, also one that repeats the last.
    fn handle_holds(&mut self, holds: bool) {
        self.holds = holds;
        self.holds_number = self.number + 1;
        self.holds_said = None;
        self.publish();
    }

    fn follow_stop(&mut self) {
        if !self.is_stopping {
            return;
        }
        if self.holds {
            self.outputs.push_back(Output::StopLocks);
        } else {
            self.begin_leaving();
        }
    }

    fn handle_operator(&mut self, slot: SlotIndex) {
        if self.role != Role::Member || !self.known.may_act {
            return;
        }
        let lives: alloc::vec::Vec<Life> = self.watched_lives().into_iter().filter(|life| life.slot == slot).collect();
        for life in lives {
            self.outputs.push_back(Output::Journal(format!("an operator vouches that node {} is gone", self.name_of(slot))));
            self.evidences.handle_operator(life);
        }
    }

    /// Every life whose end matters: members, owed, and those an operator wants ended.
    pub(crate) fn watched_lives(&self) -> BTreeSet<Life> {
        let body = &self.known.body;
        let mut lives: BTreeSet<Life> = body.members.iter().copied().chain(body.owed.iter().map(|owed| owed.life)).collect();
        lives.extend(self.fencing.operator_targets());
        lives.remove(&self.setup.me);
        lives
    }

    /// How long this node must watch a life in silence. W is enough for a member that was with it in its last view: a decided view has
    /// removed it, it has said which freezes it asked for before, and none that this node consented to since lasts when that is confirmed.
    pub(crate) fn witness_of(&self, life: &Life) -> Witness {
        #[cfg(feature = "planted")]
        if self.has_mistake(planted::Mistake::OutsiderUsesW) {
            return Witness::MemberOfLastView { from_ms: 0 };
        }
        let body = &self.known.body;
        let is_member = self.role == Role::Member && body.members.contains(&self.setup.me);
        let is_removed = body.owed.iter().any(|owed| owed.life == *life);
        match self.proposal.unfrozen_ms(life).filter(|_| is_member && is_removed) {
            Some(from_ms) => Witness::MemberOfLastView { from_ms: from_ms.max(self.bound_until_ms(life)) },
            None => Witness::Outsider,
        }
    }

    pub(crate) fn judge(&self, life: &Life, now_ms: u64) -> Verdict {
        let timings = *self.timings();
        self.evidences.judge(life, &self.observer, &timings, (self.witness_of(life), self.named_ms(life)), now_ms)
    }

    /// Since when this node watches a life.
    pub(crate) fn named_ms(&self, life: &Life) -> u64 {
        self.watched_since.get(life).copied().unwrap_or(self.now_ms)
    }

    pub(crate) fn evidence_of(&self, life: &Life, now_ms: u64) -> Option<Evidence> {
        #[cfg(feature = "planted")]
        if let Some(evidence) = self.false_evidence(life) {
            return Some(evidence);
        }
        match self.judge(life, now_ms) {
            Verdict::Gone(evidence) => Some(evidence),
            Verdict::MayLive | Verdict::GoneAt { .. } => None,
        }
    }

    /// Gone by the end of its machine or process tree; *left* is not enough here.
    fn is_dead(&self, life: &Life, now_ms: u64) -> bool {
        !matches!(self.evidence_of(life, now_ms), None | Some(Evidence::Left | Evidence::IdleRestart))
    }

    fn forget_settled(&mut self) {
        let lives = self.watched_lives();
        self.evidences.keep(|life| lives.contains(life));
        self.forced.retain(|life| self.known.body.members.contains(life));
        self.changes.forget_settled(&self.known.body.configuration);
    }

    pub(crate) fn node(&self, slot: SlotIndex) -> Option<&NodeEntry> {
        self.known.body.configuration.nodes.iter().find(|node| node.slot == slot)
    }

    pub(crate) fn name_of(&self, slot: SlotIndex) -> String {
        self.node(slot).map_or_else(|| format!("slot {slot}"), |node| node.name.clone())
    }

    fn publish(&mut self) {
        self.number += 1;
        let state = match self.role {
            Role::Joining | Role::Leaving => NodeState::Joining,
            Role::Member => NodeState::Member,
            Role::Recording { .. } | Role::Left => NodeState::Left,
            Role::Condemned => NodeState::Condemned,
        };
        let carried = self.setup.carried_left;
        let left = if state == NodeState::Left {
            carried.with(self.setup.me.incarnation, self.known.body.view, |left| self.known.body.names(self.setup.me.slot, left))
        } else {
            carried
        };
        self.outputs.push_back(Output::Publish(DaemonPart {
            number: self.number,
            incarnation: self.setup.me.incarnation,
            state,
            holds: self.holds,
            view: self.known.body.view,
            hears: self.hears(),
            left,
            protected: self.setup.protected,
            score: self.standing.score,
            preference: self.standing.preference,
            vouches: self.vouching.standing(),
            ..DaemonPart::default()
        }));
    }

    fn say_hello(&mut self, _now_ms: u64) {
        let state = match self.role {
            Role::Member => NodeState::Member,
            Role::Joining | Role::Leaving => NodeState::Joining,
            Role::Recording { .. } | Role::Left => NodeState::Left,
            Role::Condemned => NodeState::Condemned,
        };
        let hears = self.hears();
        self.outputs.push_back(Output::SayHello(Hello {
            life: self.setup.me,
            state,
            view: self.known.body.view,
            recovered: self.recovered,
            hears,
            is_leaving: self.is_stopping,
            freeze_left_ms: self.freeze_left_ms(),
        }));
    }
}

/// Where a life's serials begin: no vouch that an earlier life asked for may be taken for one of this life.
fn first_serial(me: &Life) -> u32 {
    let [a, b, c, d, ..] = me.incarnation.0;
    u32::from_le_bytes([a, b, c, d])
}
