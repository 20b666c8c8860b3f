//! What: one node's life as a single machine: membership, view register and lock service wired together.
//! Owns: who hears what from whom; the numbering of disk work; the ordered channels to the peers.
//! Invariants: opens nothing, reads no clock; the same wiring runs in the daemon and in the simulator. A grant leaves only while the
//!   lease published by sbd runs.
//! Does not: decide anything that a core decides.
//! Called by: the daemon's loop and the simulator.

mod journal;
mod looks;
mod pills;
mod status;

pub use status::NodeStatus;

use deadbolt_cluster_core::{
    channel::{Channel, ChannelError, Frame},
    hello::{Hello, NodeMessage},
    membership::{self, Addition, Alteration, ArbitrationInput, ChangeRequest, Choice, Membership, OwnStanding},
    observer::BeatsRead,
};
use deadbolt_disk_format::{
    Beat, ClusterUuid, DaemonPart, Evidence, Layout, Life, NodeEntry, Place, Released, SlotIndex, SlotSet, ViewBody,
};
use deadbolt_dlm_core::{ClientReply, service as locks};
use deadbolt_qdisk_core::{
    candidates::{self, DiskVotes, Graph, Standing},
    register::{self, DiskOpKind, Register, RegisterConfig},
    units::Units,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Which part of the node a piece of disk work belongs to; the top byte of its tag. The byte below is the shell's, counters have 48 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Register,
    Beats,
    Pill,
    Journal,
    Look,
}

const PART_SHIFT: u32 = 56;
const COUNTER_BITS: u32 = 48;

impl Part {
    fn tag(self, inner: u64) -> u64 {
        let number: u64 = match self {
            Self::Register => 1,
            Self::Beats => 2,
            Self::Pill => 3,
            Self::Journal => 4,
            Self::Look => 5,
        };
        (number << PART_SHIFT) | (inner & ((1 << COUNTER_BITS) - 1))
    }

    fn of(tag: u64) -> Option<(Self, u64)> {
        let inner = tag & ((1 << PART_SHIFT) - 1);
        let part = match tag >> PART_SHIFT {
            1 => Self::Register,
            2 => Self::Beats,
            3 => Self::Pill,
            4 => Self::Journal,
            5 => Self::Look,
            _ => return None,
        };
        Some((part, inner))
    }
}

/// Makes a mailbox sector with a pill: victim, serial, sector size.
pub type PillEncoder = Box<dyn Fn(&Life, u64, u32) -> Vec<u8>>;

/// How a node begins.
pub struct NodeSetup {
    /// For the membership machine.
    pub membership: membership::Setup,
    /// The cluster on the devices.
    pub cluster: ClusterUuid,
    /// One per device.
    pub layouts: Vec<Layout>,
    /// Spreads contending proposals; any number.
    pub seed: u64,
    /// Wall time at `now_ms` 0, ms since 1970, for stamps that people read.
    pub wall_offset_ms: u64,
    /// Makes the bytes of a pill.
    pub encode_pill: PillEncoder,
}

impl std::fmt::Debug for NodeSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeSetup").field("me", &self.membership.me).finish_non_exhaustive()
    }
}

/// What the node is told.
#[derive(Debug)]
pub enum NodeInput {
    /// No write of an earlier life can land any more: read the disk.
    Start,
    /// A poll has come.
    Tick,
    /// Disk work came back.
    Disk {
        /// As given.
        tag: u64,
        /// As given.
        device: usize,
        /// When it was issued, ms.
        issued_ms: u64,
        /// When it ended, ms.
        ended_ms: u64,
        /// What was read, or nothing.
        result: Result<Arc<[u8]>, ()>,
    },
    /// What sbd publishes.
    Lifeline {
        /// End of the lease, ms.
        lease_end_ms: u64,
        /// End of the lease by the last own cycle alone, ms.
        own_end_ms: u64,
        /// Number of the daemon part that is on disk.
        published: u64,
        /// Newest own beat that is complete.
        beat: u64,
    },
    /// An authenticated hello.
    Hello(Hello),
    /// A connection with a peer stands.
    Connected(Life),
    /// A frame from a peer.
    Frame(Life, Frame),
    /// The connection with a peer is gone.
    Disconnected(Life),
    /// Something from a lock client.
    Locks(locks::Input),
    /// A change of configuration.
    Change(ChangeRequest),
    /// An operator's fence.
    Fence(SlotIndex),
    /// An operator's word that a node is gone.
    OperatorConfirms(SlotIndex),
    /// The fence agent of a node was called, or there is none.
    AgentDone {
        /// For whom.
        victim: Life,
        /// When it had seen that the node is out of action, ms; none: it has not.
        off_at_ms: Option<u64>,
    },
    /// A life's keys were to be taken away on every protected device.
    EjectDone {
        /// Whose.
        victim: Life,
        /// Is that so?
        is_ejected: bool,
    },
    /// What this node says of itself.
    Standing(OwnStanding),
    /// Stop cleanly.
    Stop,
    /// Stop cleanly and leave the configuration.
    Leave,
}

/// A piece of disk work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskWork {
    /// Comes back with the answer.
    pub tag: u64,
    /// Which device.
    pub device: usize,
    /// What to do.
    pub kind: DiskOpKind,
}

/// What the node wants done.
#[derive(Debug)]
pub enum NodeOutput {
    /// Disk work.
    Disk(DiskWork),
    /// Leave these bytes to sbd.
    Publish(DaemonPart),
    /// Set or clear the word that says whether something may be held; before anything else of this batch leaves.
    SetHolds(bool),
    /// Send a hello to these nodes.
    SayHello(Hello, Vec<NodeEntry>),
    /// Leave these ends of leases to sbd, ms; 0: none.
    Extend {
        /// By a vouch.
        vouched_until_ms: u64,
        /// By a freeze.
        frozen_until_ms: u64,
    },
    /// Keep connections to these nodes.
    Follow(Vec<NodeEntry>),
    /// Send a frame to a peer.
    Send(Life, Frame),
    /// Close the connection with a peer: it broke the stream's rules, or its life is out of the view.
    Close(Life),
    /// An answer for a lock client's session.
    Reply(u64, ClientReply),
    /// Poll and beat every 50 ms until this instant.
    PollFast(u64),
    /// Call the fence agent of this node, if there is one; answer `AgentDone`.
    CallAgent {
        /// At whom.
        victim: Life,
        /// The node's name.
        name: String,
    },
    /// Take the victim's reservation keys away on every protected device; answer `EjectDone`.
    Eject {
        /// Whose.
        victim: Life,
        /// The node's name.
        name: String,
    },
    /// This node must be reset.
    ResetSelf(String),
    /// Go on under a new incarnation.
    NewIncarnation,
    /// *Left* is on disk; stop.
    Stopped,
    /// An operator's fence ended with evidence.
    Fenced {
        /// Who.
        victim: Life,
        /// By what.
        evidence: Evidence,
        /// How long it took, ms.
        waited_ms: u64,
    },
    /// A line for the log.
    Log(String),
}

/// Longest time for which a node that is to leave hands over what it is master of, in milliseconds (chosen: far more than some ten thousand
/// resources take, and short for whoever waits for the stop).
const HAND_OVER_MS: u64 = 1000;

/// A mistake that tests plant.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedMistake {
    /// In the membership machine.
    Membership(membership::planted::Mistake),
    /// In the view register.
    Register(register::planted::Mistake),
    /// In the lock service.
    Locks(locks::Mistake),
}

/// One node. See the module's head.
pub struct Node {
    setup: NodeSetup,
    membership: Membership,
    register: Register,
    locks: locks::LockService,
    channels: BTreeMap<Life, Channel>,
    last_stream: u64,
    /// Lives with which messages were lost.
    lost_streams: BTreeSet<Life>,
    /// Lives that were in a view and are not any more.
    past: BTreeSet<Life>,
    nodes: Vec<NodeEntry>,
    view: ViewBody,
    lease_end_ms: u64,
    own_beat: u64,
    /// Per device: own beat that was complete when the read now in flight was issued; none: no read in flight.
    beat_reads: Vec<Option<u64>>,
    /// Per device: the beats as last read.
    beats: Vec<Units<Option<Beat>>>,
    is_abandoning: bool,
    is_leaving: bool,
    /// Until when what this node is master of may still go to others before it leaves the view.
    hand_over_until_ms: Option<u64>,
    pills: pills::Pills,
    looks: looks::Looks,
    journal: journal::Journal,
    outputs: VecDeque<NodeOutput>,
    last_tick_ms: u64,
    blocked: Option<String>,
    permit: bool,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("me", &self.setup.membership.me).field("view", &self.view.view).finish_non_exhaustive()
    }
}

/// Slots in the administrator's order; those of the same number by slot.
fn preference(input: &ArbitrationInput) -> Vec<SlotIndex> {
    let mut preferred: Vec<(u8, SlotIndex)> = input.nodes.iter().map(|node| (node.preference, node.slot)).collect();
    preferred.retain(|(number, _)| *number > 0);
    preferred.sort_unstable();
    preferred.into_iter().map(|(_, slot)| slot).collect()
}

/// The arbiter that the membership machine asks: cliques and ranking of the quorum disk.
#[must_use]
pub fn arbitrate(input: &ArbitrationInput) -> Option<Choice> {
    let slots =
        |is_member: bool| -> SlotSet { input.nodes.iter().filter(|node| node.is_member == is_member).map(|node| node.slot).collect() };
    let standing = Standing {
        votes: input.configured_votes.clone(),
        disk_votes: input.disk_votes,
        // Every candidate is taken for one with a path of its own: this version's nodes do not live without.
        scores: input.nodes.iter().map(|node| (node.slot, node.score)).collect(),
        preference: preference(input),
        ..Standing::default()
    };
    let choice = candidates::choose(&Graph::from_hears(&input.edges), &slots(true), &slots(false), &standing, DiskVotes::Counted)?;
    Some(Choice { members: choice.stay, joiners: choice.join })
}

impl Node {
    /// A life that knows nothing yet.
    #[must_use]
    pub fn new(setup: NodeSetup, now_ms: u64) -> Self {
        let me = setup.membership.me;
        let register = Register::new(RegisterConfig {
            cluster: setup.cluster,
            me,
            layouts: setup.layouts.clone(),
            seed: setup.seed,
            wall_offset_ms: setup.wall_offset_ms,
        });
        Self {
            membership: Membership::new(setup.membership.clone(), now_ms),
            register,
            locks: locks::LockService::new(me),
            channels: BTreeMap::new(),
            last_stream: 0,
            lost_streams: BTreeSet::new(),
            past: BTreeSet::new(),
            nodes: Vec::new(),
            view: ViewBody::default(),
            lease_end_ms: 0,
            own_beat: 0,
            beat_reads: vec![None; setup.layouts.len()],
            beats: setup.layouts.iter().map(|_| Units::default()).collect(),
            is_abandoning: false,
            is_leaving: false,
            hand_over_until_ms: None,
            pills: pills::Pills::new(me, setup.cluster),
            looks: looks::Looks::default(),
            journal: journal::Journal::new(me, setup.cluster, setup.wall_offset_ms),
            outputs: VecDeque::new(),
            last_tick_ms: now_ms,
            blocked: None,
            permit: false,
            setup,
        }
    }

    /// Plants a mistake into one of the node's machines.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, mistake: PlantedMistake) {
        match mistake {
            PlantedMistake::Membership(mistake) => self.membership.plant(mistake),
            PlantedMistake::Register(mistake) => self.register.plant(mistake),
            PlantedMistake::Locks(mistake) => self.locks.plant(mistake),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<NodeOutput> {
        self.outputs.pop_front()
    }

    /// When the node wants a `Tick` at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        self.locks.next_deadline().into_iter().fold(self.poll_deadline(), u64::min)
    }

    fn poll_deadline(&self) -> u64 {
        let tick = self.membership.next_deadline(self.last_tick_ms);
        self.register.next_deadline().into_iter().fold(tick, u64::min)
    }

    /// Takes an event.
    pub fn handle(&mut self, now_ms: u64, input: NodeInput) {
        self.take(now_ms, input);
        self.settle(now_ms);
    }

    /// Takes events that came together: what they make the lock service say to a peer goes in one message.
    pub fn handle_all(&mut self, now_ms: u64, inputs: impl Iterator<Item = NodeInput>) {
        self.update_permit(now_ms);
        for input in inputs {
            self.take(now_ms, input);
        }
        self.settle(now_ms);
    }

    fn take(&mut self, now_ms: u64, input: NodeInput) {
        match input {
            NodeInput::Start => self.handle_start(now_ms),
            NodeInput::Tick => self.handle_tick(now_ms),
            NodeInput::Disk { tag, device, issued_ms, ended_ms, result } => {
                self.handle_disk(now_ms, (tag, device), (issued_ms, ended_ms), result)
            }
            NodeInput::Lifeline { lease_end_ms, own_end_ms, published, beat } => {
                self.lease_end_ms = lease_end_ms;
                self.own_beat = beat;
                self.membership.handle(now_ms, membership::Input::Lifeline { lease_end_ms, own_end_ms, published });
            }
            NodeInput::Hello(hello) => self.membership.handle(now_ms, membership::Input::Hello(hello)),
            NodeInput::Connected(peer) => self.handle_connected(peer),
            NodeInput::Frame(peer, frame) => self.handle_frame(now_ms, peer, frame),
            NodeInput::Disconnected(peer) => {
                if let Some(channel) = self.channels.get_mut(&peer) {
                    channel.handle_disconnected();
                }
                self.membership.handle(now_ms, membership::Input::Linked { peer, is_up: false });
            }
            NodeInput::Locks(input) => self.locks.handle(now_ms, input),
            NodeInput::Change(change) => self.membership.handle(now_ms, membership::Input::Change(change)),
            NodeInput::Fence(slot) => self.membership.handle(now_ms, membership::Input::Fence(slot)),
            NodeInput::OperatorConfirms(slot) => self.membership.handle(now_ms, membership::Input::OperatorConfirms(slot)),
            NodeInput::AgentDone { victim, off_at_ms } => {
                self.membership.handle(now_ms, membership::Input::AgentDone { victim, off_at_ms });
            }
            NodeInput::EjectDone { victim, is_ejected } => {
                self.membership.handle(now_ms, membership::Input::EjectDone { victim, is_ejected });
            }
            NodeInput::Standing(standing) => self.membership.handle(now_ms, membership::Input::Standing(standing)),
            NodeInput::Stop => self.begin_stop(now_ms),
            NodeInput::Leave => {
                self.is_leaving = true;
                self.begin_stop(now_ms);
            }
        }
    }

    /// Passes outputs on until nothing moves any more.
    fn settle(&mut self, now_ms: u64) {
        loop {
            self.update_permit(now_ms);
            let mut is_quiet = true;
            while let Some(output) = self.register.poll_output() {
                is_quiet = false;
                self.follow_register(now_ms, output);
            }
            while let Some(output) = self.membership.poll_output() {
                is_quiet = false;
                self.follow_membership(now_ms, output);
            }
            while let Some(output) = self.locks.poll_output() {
                is_quiet = false;
                self.follow_locks(now_ms, output);
            }
            if is_quiet {
                break;
            }
        }
        self.finish_abandoning(now_ms);
    }

    /// This life was in a view and is not any more: nothing it says matters. A life that no view has named yet is not out, also where an
    /// earlier life of its slot is still a member: after a total loss nobody else is there to come together with.
    fn is_out(&self, peer: &Life) -> bool {
        let was_removed = self.view.owed.iter().any(|owed| owed.life == *peer) || self.view.released.iter().any(|gone| gone.life == *peer);
        was_removed || self.past.contains(peer)
    }

    fn handle_connected(&mut self, peer: Life) {
        if self.is_out(&peer) || self.lost_streams.contains(&peer) {
            self.outputs.push_back(NodeOutput::Close(peer));
            return;
        }
        let first = self.channel(peer).handle_connected();
        self.outputs.push_back(NodeOutput::Send(peer, first));
    }

    /// The stream with a peer; a new one has a number that these two lives never used.
    fn channel(&mut self, peer: Life) -> &mut Channel {
        self.last_stream += 1;
        let stream = self.setup.seed.wrapping_add(self.last_stream);
        self.channels.entry(peer).or_insert_with(|| Channel::new(stream))
    }

    /// Once a life has begun to leave, the register gets answers only: no ballot, record or repair follows.
    fn tell_register(&mut self, now_ms: u64, input: register::Input) {
        if !self.is_abandoning {
            self.register.handle(now_ms, input);
        }
    }

    fn handle_start(&mut self, now_ms: u64) {
        self.tell_register(now_ms, register::Input::Start);
        let read = self.journal.start(&self.setup.layouts);
        self.push_disk(read);
    }

    fn handle_tick(&mut self, now_ms: u64) {
        if now_ms < self.poll_deadline() {
            // The end of a lock's wait alone is no reason to read disks.
            return self.locks.handle(now_ms, locks::Input::Tick);
        }
        self.last_tick_ms = now_ms;
        self.tell_register(now_ms, register::Input::Tick);
        self.tell_register(now_ms, register::Input::Learn);
        self.read_beats();
        self.follow_leave(now_ms);
        self.membership.handle(now_ms, membership::Input::Tick);
        let confirms: Vec<(Life, Frame)> =
            self.channels.iter_mut().filter_map(|(peer, channel)| channel.poll_confirm().map(|frame| (*peer, frame))).collect();
        self.outputs.extend(confirms.into_iter().map(|(peer, frame)| NodeOutput::Send(peer, frame)));
    }

    /// One read of the beat table per device at a time; a hung device is simply not asked again.
    fn read_beats(&mut self) {
        for device in 0..self.beat_reads.len() {
            let is_idle = self.beat_reads.get(device).is_some_and(Option::is_none);
            if let (true, Some(layout)) = (is_idle, self.setup.layouts.get(device)) {
                let bytes = usize::try_from(layout.beats_bytes()).unwrap_or(0);
                let kind = DiskOpKind::Read { offset: layout.beats, bytes };
                if let Some(read) = self.beat_reads.get_mut(device) {
                    *read = Some(self.own_beat);
                }
                self.outputs.push_back(NodeOutput::Disk(DiskWork { tag: Part::Beats.tag(0), device, kind }));
            }
        }
    }

    fn handle_disk(&mut self, now_ms: u64, (tag, device): (u64, usize), times: (u64, u64), result: Result<Arc<[u8]>, ()>) {
        match Part::of(tag) {
            Some((Part::Register, tag)) => {
                let result = result.map_err(|()| register::IoFailed);
                self.register.handle(now_ms, register::Input::Disk(register::DiskDone { tag, device, result }));
            }
            Some((Part::Beats, _)) => {
                let own_beat = self.beat_reads.get_mut(device).and_then(Option::take);
                if let (Ok(bytes), Some(own_beat)) = (result, own_beat) {
                    let read = self.decode_beats(device, times, own_beat, &bytes);
                    self.membership.handle(now_ms, membership::Input::Beats(read));
                }
            }
            Some((Part::Pill, serial)) => {
                if let Some((victim, is_written)) = self.pills.handle_done(serial, result.as_deref()) {
                    self.membership.handle(now_ms, membership::Input::PillDone { victim, is_written });
                }
                let next = self.pills.poll_work(&self.setup.layouts);
                self.push_disk(next);
            }
            Some((Part::Look, tag)) => {
                let on = (device, self.setup.layouts.as_slice());
                if let Some((life, serial, is_free)) = self.looks.handle_done(tag, on, self.setup.cluster, result.as_deref()) {
                    self.membership.handle(now_ms, membership::Input::Looked { life, serial, is_free });
                }
            }
            Some((Part::Journal, _)) => {
                self.journal.handle_done(device, result.as_deref(), &self.setup.layouts);
                let next = self.journal.poll_work(&self.setup.layouts);
                self.push_disk(next);
            }
            None => {}
        }
    }

    fn decode_beats(&mut self, device: usize, (issued_ms, ended_ms): (u64, u64), own_beat: u64, bytes: &Arc<[u8]>) -> BeatsRead {
        let mut beats = BTreeMap::new();
        if let (Some(layout), Some(units)) = (self.setup.layouts.get(device), self.beats.get_mut(device)) {
            let cluster = self.setup.cluster;
            units.update(bytes, usize::from(layout.slots), |unit, bytes| {
                let slot = SlotIndex(u16::try_from(unit).unwrap_or(u16::MAX));
                // A bad beat is no news.
                Beat::decode(bytes, &Place { cluster, offset: layout.beat(slot), slot }).ok()
            });
            beats.extend(units.values().iter().flatten().map(|beat| (beat.slot, beat.clone())));
        }
        BeatsRead { device, issued_ms, ended_ms, own_beat, beats }
    }

    fn push_disk(&mut self, work: Vec<DiskWork>) {
        self.outputs.extend(work.into_iter().map(NodeOutput::Disk));
    }

    fn handle_frame(&mut self, now_ms: u64, peer: Life, frame: Frame) {
        let mut out = Vec::new();
        let is_resume = matches!(frame, Frame::Resume { .. });
        let Some(channel) = self.channels.get_mut(&peer) else { return };
        let payload = channel.handle_frame(frame, &mut out);
        if is_resume && payload.is_ok() {
            self.membership.handle(now_ms, membership::Input::Linked { peer, is_up: true });
        }
        self.follow_overrun(peer);
        self.outputs.extend(out.into_iter().map(|frame| NodeOutput::Send(peer, frame)));
        match payload {
            Ok(Some(bytes)) => self.handle_message(now_ms, peer, &bytes),
            Ok(None) => {}
            Err(error) => {
                if error == ChannelError::StreamLost {
                    // These two lives can never again rely on each other: one of them has to leave, and comes back as another.
                    self.lost_streams.insert(peer);
                    self.membership.handle(now_ms, membership::Input::Linked { peer, is_up: false });
                }
                self.outputs.push_back(NodeOutput::Log(format!("stream of slot {}: {error}", peer.slot)));
                self.outputs.push_back(NodeOutput::Close(peer));
            }
        }
    }

    fn handle_message(&mut self, now_ms: u64, peer: Life, bytes: &[u8]) {
        match NodeMessage::decode(bytes) {
            Some(NodeMessage::Locks(message)) => self.locks.handle(now_ms, locks::Input::Peer { from: peer, message }),
            Some(NodeMessage::RemoveNode { slot }) if slot == peer.slot => {
                self.membership.handle(now_ms, membership::Input::Change(ChangeRequest::RemoveNode { slot }));
            }
            Some(NodeMessage::Decided(view)) if view > self.view.view => self.tell_register(now_ms, register::Input::Learn),
            Some(NodeMessage::Beyond(message)) => self.membership.handle(now_ms, membership::Input::Told { from: peer, message }),
            Some(_) => {}
            None => self.outputs.push_back(NodeOutput::Log(format!("slot {} sent a message that is not one; it is dropped", peer.slot))),
        }
    }

    /// Sends an ordered message to a peer; it waits until a connection stands.
    fn send(&mut self, peer: Life, message: &NodeMessage) {
        if self.is_out(&peer) {
            return;
        }
        if let Some(frame) = self.channel(peer).send(message.encode()) {
            self.outputs.push_back(NodeOutput::Send(peer, frame));
        }
        self.follow_overrun(peer);
    }

    /// A peer that does not take what is sent to it counts as silent until it has caught up.
    fn follow_overrun(&mut self, peer: Life) {
        if let Some(is_overrun) = self.channels.get_mut(&peer).and_then(Channel::poll_overrun) {
            self.membership.handle(self.last_tick_ms, membership::Input::Linked { peer, is_up: !is_overrun });
        }
    }

    fn peers(&self) -> Vec<Life> {
        let me = self.setup.membership.me;
        self.view.members.iter().copied().filter(|life| *life != me).collect()
    }

    fn follow_register(&mut self, now_ms: u64, output: register::Output) {
        match output {
            register::Output::Disk(op) => {
                if matches!(op.kind, DiskOpKind::Write { .. } | DiskOpKind::WriteThenRead { .. }) {
                    self.outputs.push_back(NodeOutput::PollFast(now_ms + 1000));
                }
                self.outputs.push_back(NodeOutput::Disk(DiskWork { tag: Part::Register.tag(op.tag), device: op.device, kind: op.kind }));
            }
            register::Output::Learned { body, digest } => self.handle_learned(now_ms, body, digest, true),
            register::Output::Contested { body, digest, later } => {
                self.outputs.push_back(NodeOutput::Log(format!(
                    "view {} is decided, and there is a ballot for view {later}: it is not acted in",
                    body.view
                )));
                self.handle_learned(now_ms, body, digest, false);
            }
            register::Output::ProposalLost { winner } => {
                self.outputs.push_back(NodeOutput::Log(format!("own proposal lost, the newest view is {winner}")));
                self.membership.handle(now_ms, membership::Input::ProposalEnded);
            }
            register::Output::ProposalRefused { reason } => {
                self.outputs.push_back(NodeOutput::Log(format!("own proposal refused: {reason:?}")));
                self.membership.handle(now_ms, membership::Input::ProposalEnded);
            }
            register::Output::Blocked { device, offset, reason } => {
                let text = format!("the view register does not go on: {reason:?} at byte {} of device {device}", offset.0);
                let status = self.register.status();
                let is_over = status.phase == register::RegisterPhase::Halted || status.devices * 2 <= self.setup.layouts.len();
                if is_over {
                    self.outputs.push_back(NodeOutput::ResetSelf(text.clone()));
                }
                self.blocked = Some(text.clone());
                self.note(now_ms, text);
            }
        }
    }

    fn handle_learned(&mut self, now_ms: u64, body: ViewBody, digest: deadbolt_disk_format::Digest, may_act: bool) {
        self.blocked = None;
        if body.configuration.nodes != self.nodes {
            self.nodes.clone_from(&body.configuration.nodes);
            self.outputs.push_back(NodeOutput::Follow(self.nodes.clone()));
        }
        if body.view > self.view.view {
            let before = std::mem::replace(&mut self.view, body.clone());
            self.past.extend(before.members.into_iter().filter(|life| !body.members.contains(life)));
            self.drop_channels();
            for peer in self.peers() {
                self.send(peer, &NodeMessage::Decided(body.view));
            }
        }
        self.membership.handle(now_ms, membership::Input::Learned { body, digest, may_act });
    }

    /// A stream ends with the view that is without its peer's life; its connection is closed, so that the next life can be reached.
    fn drop_channels(&mut self) {
        let over: Vec<Life> = self.channels.keys().copied().filter(|peer| self.is_out(peer)).collect();
        for peer in over {
            self.channels.remove(&peer);
            self.outputs.push_back(NodeOutput::Close(peer));
        }
    }

    fn follow_membership(&mut self, now_ms: u64, output: membership::Output) {
        match output {
            membership::Output::Publish(part) => self.outputs.push_back(NodeOutput::Publish(part)),
            membership::Output::SayHello(hello) => self.outputs.push_back(NodeOutput::SayHello(hello, self.nodes.clone())),
            membership::Output::Propose(body) => {
                self.outputs.push_back(NodeOutput::PollFast(now_ms + 1000));
                self.tell_register(now_ms, register::Input::Propose(body));
            }
            membership::Output::AbandonRegister => {
                // Nothing is held here, and nothing may be from now on.
                self.locks.handle(now_ms, locks::Input::Stop);
                self.tell_register(now_ms, register::Input::Abandon);
                self.is_abandoning = true;
            }
            membership::Output::View { body, is_member } => {
                self.locks.handle(now_ms, locks::Input::View { number: body.view, members: body.members, owed: body.owed, is_member });
            }
            membership::Output::Permit(permit) => self.permit = permit,
            membership::Output::HoldsPublished(holds) => self.locks.handle(now_ms, locks::Input::HoldsPublished(holds)),
            membership::Output::WritePill { victim, view, serial } => {
                self.outputs.push_back(NodeOutput::PollFast(now_ms + 10_000));
                let sectors: Vec<Vec<u8>> =
                    self.setup.layouts.iter().map(|layout| (self.setup.encode_pill)(&victim, serial, layout.sector_bytes)).collect();
                self.pills.begin(victim, view, serial, sectors);
                let work = self.pills.poll_work(&self.setup.layouts);
                self.push_disk(work);
            }
            membership::Output::CallAgent { victim } => {
                self.outputs.push_back(NodeOutput::CallAgent { victim, name: self.name_of(victim.slot) });
            }
            membership::Output::Eject { victim } => {
                self.outputs.push_back(NodeOutput::Eject { victim, name: self.name_of(victim.slot) });
            }
            membership::Output::Tell { peer, message } => self.send(peer, &NodeMessage::Beyond(message)),
            membership::Output::LookFor { life, serial, view } => {
                let work = self.looks.begin((life, serial), view, &self.setup.layouts);
                self.push_disk(work);
            }
            membership::Output::Extend { vouched_until_ms, frozen_until_ms } => {
                self.outputs.push_back(NodeOutput::Extend { vouched_until_ms, frozen_until_ms });
            }
            membership::Output::ResetSelf(reason) => {
                self.note(now_ms, format!("reset: {reason}"));
                self.outputs.push_back(NodeOutput::ResetSelf(reason));
            }
            membership::Output::NewIncarnation => self.outputs.push_back(NodeOutput::NewIncarnation),
            membership::Output::Stopped => self.outputs.push_back(NodeOutput::Stopped),
            membership::Output::StopLocks => {
                self.locks.handle(now_ms, locks::Input::Stop);
            }
            membership::Output::Fenced { victim, evidence, waited_ms } => {
                self.outputs.push_back(NodeOutput::Fenced { victim, evidence, waited_ms })
            }
            membership::Output::Journal(text) => self.note(now_ms, text),
        }
    }

    fn follow_locks(&mut self, now_ms: u64, output: locks::Output) {
        match output {
            locks::Output::Send { to, message } => self.send(to, &NodeMessage::Locks(message)),
            locks::Output::Holds(holds) => {
                self.outputs.push_back(NodeOutput::SetHolds(holds));
                self.membership.handle(now_ms, membership::Input::Holds(holds));
            }
            locks::Output::Recovered(view) => self.membership.handle(now_ms, membership::Input::Recovered(view)),
            locks::Output::Log(text) => self.outputs.push_back(NodeOutput::Log(text)),
            locks::Output::Reply { session, reply } => self.outputs.push_back(NodeOutput::Reply(session, reply)),
            _ => {}
        }
    }

    /// The lock service may grant while the membership permits it and the lease runs.
    fn update_permit(&mut self, now_ms: u64) {
        let may_grant = self.permit && now_ms < self.lease_end_ms;
        self.locks.handle(now_ms, locks::Input::Permit { may_grant });
    }

    /// A life that leaves is quiet once no write of the register is in the air; a read that hangs on one of three devices hinders nobody.
    fn finish_abandoning(&mut self, now_ms: u64) {
        if self.is_abandoning && !self.register.status().is_writing {
            self.membership.handle(now_ms, membership::Input::RegisterQuiet);
            while let Some(output) = self.membership.poll_output() {
                self.follow_membership(now_ms, output);
            }
        }
    }

    /// Asks the other members to forget this node, then stops.
    /// When resources move to the node that works on them.
    pub fn follow_load(&mut self, rule: locks::MoveRule) {
        self.locks.follow_load(rule);
    }

    /// Nothing new is begun here, and others become master of what they have locks on, so that its value blocks stay good.
    fn begin_stop(&mut self, now_ms: u64) {
        self.hand_over_until_ms.get_or_insert(now_ms + HAND_OVER_MS);
        self.locks.handle(now_ms, locks::Input::Stop);
    }

    fn follow_leave(&mut self, now_ms: u64) {
        let is_late = self.hand_over_until_ms.is_some_and(|until_ms| now_ms >= until_ms);
        if self.hand_over_until_ms.is_none() || !(is_late || self.locks.has_handed_over()) {
            return;
        }
        self.hand_over_until_ms = None;
        if self.is_leaving {
            let slot = self.setup.membership.me.slot;
            for peer in self.peers() {
                self.send(peer, &NodeMessage::RemoveNode { slot });
            }
        }
        self.membership.handle(now_ms, membership::Input::Stop);
    }

    fn note(&mut self, now_ms: u64, text: String) {
        self.journal.push(now_ms, self.view.view, text.clone());
        let work = self.journal.poll_work(&self.setup.layouts);
        self.push_disk(work);
        self.outputs.push_back(NodeOutput::Log(text));
    }

    /// Why a node cannot be added, if it cannot.
    #[must_use]
    pub fn refuse_addition(&self, addition: &Addition) -> Option<String> {
        let is_member = self.view.members.contains(&self.setup.membership.me);
        if !is_member {
            return Some("this node is not a member now; ask another one".into());
        }
        self.membership.refuse_addition(addition)
    }

    /// Why the configuration cannot be altered so, if it cannot.
    #[must_use]
    pub fn refuse_alteration(&self, alteration: &Alteration) -> Option<String> {
        let is_member = self.view.members.contains(&self.setup.membership.me);
        if !is_member {
            return Some("this node is not a member now; ask another one".into());
        }
        self.membership.refuse_alteration(alteration)
    }

    /// The newest view that this node has learned.
    #[must_use]
    pub fn view(&self) -> &ViewBody {
        &self.view
    }

    /// This life.
    #[must_use]
    pub fn me(&self) -> Life {
        self.setup.membership.me
    }

    /// The name of a slot's node.
    #[must_use]
    pub fn name_of(&self, slot: SlotIndex) -> String {
        self.nodes.iter().find(|node| node.slot == slot).map_or_else(|| format!("slot {slot}"), |node| node.name.clone())
    }

    /// Whom an operator's fence of this slot would end.
    ///
    /// # Errors
    /// It is this node, or nothing is known to live there.
    pub fn begin_fence(&self, slot: SlotIndex, by_word: bool) -> Result<Life, String> {
        let name = self.name_of(slot);
        let is_member = self.view.members.contains(&self.me());
        if by_word && !is_member {
            return Err("this node is not a member now; a person's word is taken by a member, which puts it into a view".into());
        }
        match self.membership.fence_target(slot) {
            Some(life) if life == self.me() => Err(format!("{name} is this node; fence it from another one, or use `deadbolt stop`")),
            Some(life) => Ok(life),
            None => Err(format!(
                "node {name} is neither in the view nor owed, and no fresh beat of it is on the disk: there is nothing to fence"
            )),
        }
    }

    /// The newest life of a slot that a view released, and by what evidence.
    #[must_use]
    pub fn last_released(&self, slot: SlotIndex) -> Option<Released> {
        self.membership.last_released(slot)
    }

    /// May this node be taken out of the configuration?
    ///
    /// # Errors
    /// Why not.
    pub fn check_removal(&self, name: &str) -> Result<SlotIndex, String> {
        let slot = self.slot_of(name).ok_or_else(|| format!("no node {name:?} is configured; see `deadbolt status`"))?;
        let has = |life: &Life| life.slot == slot;
        if !self.view.members.contains(&self.me()) {
            Err("this node is not a member now; ask a member".into())
        } else if slot == self.me().slot {
            Err(format!("{name} is this node; use `deadbolt leave`"))
        } else if self.view.members.iter().any(has) {
            Err(format!("{name} is a member; use `deadbolt leave` on it, or `deadbolt fence {name}` first if it cannot be reached"))
        } else if self.view.owed.iter().any(|owed| has(&owed.life)) {
            Err(format!("{name} was removed and is not proved gone yet; wait, or use `deadbolt fence {name}`"))
        } else {
            Ok(slot)
        }
    }

    /// The slot of a configured node.
    #[must_use]
    pub fn slot_of(&self, name: &str) -> Option<SlotIndex> {
        self.nodes.iter().find(|node| node.name.eq_ignore_ascii_case(name)).map(|node| node.slot)
    }

    /// Everything that people want to know, without waiting for anything.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> NodeStatus {
        NodeStatus {
            membership: self.membership.status(now_ms),
            register: self.register.status(),
            blocked: self.blocked.clone(),
            locks: self.locks.status(),
        }
    }

    /// Is a node configured in this slot?
    #[must_use]
    pub fn has_slot(&self, slot: SlotIndex) -> bool {
        self.nodes.iter().any(|node| node.slot == slot)
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.name_of(self.me().slot)
    }

    /// Names of the members of the newest view.
    #[must_use]
    pub fn member_names(&self) -> Vec<String> {
        self.view.members.iter().map(|life| self.name_of(life.slot)).collect()
    }

    /// Names of the configured nodes.
    #[must_use]
    pub fn configured_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// The locks that this node knows of.
    #[must_use]
    pub fn locks(&self) -> &locks::LockService {
        &self.locks
    }
}
