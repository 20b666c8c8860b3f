#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing, reason = "slots of a test world are small")]
//! A small world for the machine alone: a register that takes the first proposal, beats that land at once, a network with cuts.

mod beyond;

use super::*;
use crate::observer::tests::beat;
use crate::timing::{Wishes, derive};
use alloc::{string::ToString, vec, vec::Vec};
use deadbolt_disk_format::{Acknowledgement, Beat, BootId, Incarnation, Rule, SlotSet, ViewReason};

const STEP_MS: u64 = 50;

struct Place {
    machine: Option<Membership>,
    boot: u8,
    incarnation: u8,
    beat: u64,
    is_alive: bool,
    part: DaemonPart,
    published: u64,
    acknowledged: Option<Acknowledgement>,
    reboot_at_ms: Option<u64>,
    recovers: bool,
    holds: bool,
    is_stopped: bool,
    is_blind: bool,
    /// Its path to the disk hangs.
    is_cut_off: bool,
    own_end_ms: u64,
    /// By the daemon's word: of a vouch, of a freeze.
    extended: (u64, u64),
}

struct World {
    now_ms: u64,
    places: Vec<Place>,
    beats: BTreeMap<SlotIndex, Beat>,
    views: Vec<ViewBody>,
    cut: Vec<(usize, usize)>,
    fenced: Vec<Evidence>,
    resets: usize,
    disk_votes: u16,
    /// Does a fence agent do its work when it is called?
    has_good_agent: bool,
    /// When an agent was called, and by whom.
    calls: Vec<(u64, usize)>,
    /// What each node says of its protected devices.
    protected: Vec<u32>,
    /// Do the devices abort?
    can_eject: bool,
    /// When an ejection was asked for, and by whom.
    ejections: Vec<(u64, usize)>,
    /// Messages on their way: to whom, from whom.
    told: Vec<(Life, Life, Message)>,
}

fn timings() -> Timings {
    derive(&Wishes::stall(1000)).unwrap()
}

fn configuration(nodes: u16, disk_votes: u16) -> Configuration {
    Configuration {
        version: 1,
        disk_votes,
        disk_votes_pinned: false,
        format_level: 1,
        timings: timings(),
        nodes: (0..nodes)
            .map(|slot| NodeEntry {
                slot: SlotIndex(slot),
                votes: 1,
                name: format!("n{slot}"),
                addresses: vec![format!("127.0.0.1:{slot}")],
            })
            .collect(),
    }
}

/// Cliques by trying every set: enough for the few nodes of these tests.
fn largest(input: &ArbitrationInput) -> Option<Choice> {
    let slots: Vec<SlotIndex> = input.nodes.iter().map(|node| node.slot).collect();
    let total = input.configured_votes.values().sum::<u16>() + input.disk_votes;
    let is_clique = |set: &Vec<SlotIndex>| set.iter().all(|a| set.iter().all(|b| a == b || input.edges[a].contains(*b)));
    let sets = (1u32..1 << slots.len()).map(|bits| (0..slots.len()).filter(|n| bits & (1 << n) != 0).map(|n| slots[n]).collect::<Vec<_>>());
    let is_member = |slot: &SlotIndex| input.nodes.iter().any(|node| node.slot == *slot && node.is_member);
    let best = sets
        .filter(|set| is_clique(set) && set.iter().any(is_member))
        .filter(|set| set.len() as u16 + input.disk_votes > total / 2)
        .max_by_key(|set| (set.iter().filter(|slot| is_member(slot)).count(), set.len(), core::cmp::Reverse(set[0])))?;
    let (members, joiners) = best.into_iter().partition::<Vec<_>, _>(is_member);
    Some(Choice { members: members.into_iter().collect(), joiners: joiners.into_iter().collect() })
}

impl World {
    fn new(nodes: usize, disk_votes: u16, protected: &[u32]) -> Self {
        let mut world = Self {
            disk_votes,
            now_ms: 1000,
            places: Vec::new(),
            beats: BTreeMap::new(),
            views: Vec::new(),
            cut: Vec::new(),
            fenced: Vec::new(),
            resets: 0,
            has_good_agent: false,
            calls: Vec::new(),
            protected: protected.to_vec(),
            can_eject: false,
            ejections: Vec::new(),
            told: Vec::new(),
        };
        for slot in 0..nodes {
            world.places.push(Place {
                machine: None,
                boot: 1,
                incarnation: 0,
                beat: 0,
                is_alive: true,
                part: DaemonPart::default(),
                acknowledged: None,
                reboot_at_ms: None,
                recovers: true,
                holds: false,
                is_stopped: false,
                is_blind: false,
                is_cut_off: false,
                own_end_ms: 0,
                extended: (0, 0),
                published: 0,
            });
            world.boot(slot, nodes);
        }
        world
    }

    fn boot(&mut self, slot: usize, nodes: usize) {
        let place = &mut self.places[slot];
        place.incarnation += 1;
        place.is_alive = true;
        place.is_stopped = false;
        place.holds = false;
        let carried_left = place.part.left;
        let setup = Setup {
            me: Life {
                slot: SlotIndex(slot as u16),
                boot: BootId([place.boot; 16]),
                incarnation: Incarnation([place.incarnation * 16 + slot as u8 + 1; 16]),
            },
            devices: 1,
            slots: 32,
            timings: timings(),
            carried_left,
            carried_vouches: self.beats.get(&SlotIndex(slot as u16)).map_or_else(Vec::new, |beat| beat.daemon.vouches.clone()),
            first_number: self.now_ms * 1000,
            initial: (slot == 0 && self.views.is_empty()).then(|| configuration(nodes as u16, self.disk_votes)),
            arbiter: largest,
            protected: self.protected[slot],
        };
        let mut machine = Membership::new(setup, self.now_ms);
        let (body, digest) = self.views.last().map_or((ViewBody::default(), Digest::NONE), |body| (body.clone(), body.digest()));
        machine.handle(self.now_ms, Input::Learned { body, digest, may_act: true });
        place.extended = (0, 0);
        place.machine = Some(machine);
    }

    fn kill(&mut self, slot: usize) {
        self.places[slot].is_alive = false;
        self.places[slot].machine = None;
    }

    fn can_talk(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        for slot in 0..self.places.len() {
            if self.places[slot].reboot_at_ms.is_some_and(|at| self.now_ms >= at) {
                let place = &mut self.places[slot];
                place.reboot_at_ms = None;
                place.boot += 1;
                place.acknowledged = None;
                place.part = DaemonPart::default();
                self.boot(slot, self.places.len());
            }
            self.turn(slot);
        }
    }

    fn turn(&mut self, slot: usize) {
        let now_ms = self.now_ms;
        let Some(mut machine) = self.places[slot].machine.take() else { return };
        let place = &mut self.places[slot];
        if !place.is_cut_off {
            place.beat += 1;
            let mut own = beat(slot as u16, place.beat);
            own.boot = BootId([place.boot; 16]);
            own.daemon = place.part.clone();
            own.acknowledged = place.acknowledged;
            own.is_stopped = place.is_stopped;
            self.beats.insert(SlotIndex(slot as u16), own);
            place.published = place.part.number;
            place.own_end_ms = now_ms + u64::from(timings().lease_ms);
        }
        let (own_beat, published, recovers, own_end_ms) = (place.beat, place.published, place.recovers, place.own_end_ms);
        let lease_end_ms = own_end_ms.max(place.extended.0).max(place.extended.1);
        if now_ms >= lease_end_ms {
            return self.kill(slot);
        }
        machine.handle(now_ms, Input::Lifeline { lease_end_ms, own_end_ms, published });
        self.take_told(slot, &mut machine);
        let place = &mut self.places[slot];
        if !place.is_blind && !place.is_cut_off {
            let read = BeatsRead { device: 0, issued_ms: now_ms, ended_ms: now_ms + 1, own_beat, beats: self.beats.clone() };
            machine.handle(now_ms, Input::Beats(read));
        }
        if let Some(body) = self.views.last().filter(|_| !self.places[slot].is_cut_off) {
            if recovers && body.owed.is_empty() {
                machine.handle(now_ms, Input::Recovered(body.view));
            }
            machine.handle(now_ms, Input::Learned { body: body.clone(), digest: body.digest(), may_act: true });
        }
        machine.handle(now_ms, Input::Tick);
        let mut next = Some(machine);
        while let Some(output) = next.as_mut().and_then(Membership::poll_output) {
            self.follow(slot, &mut next, output);
        }
        self.places[slot].machine = next;
    }

    fn follow(&mut self, slot: usize, machine: &mut Option<Membership>, output: Output) {
        let now_ms = self.now_ms;
        match output {
            Output::Publish(part) => self.places[slot].part = part,
            Output::Extend { .. } | Output::Tell { .. } | Output::LookFor { .. } => self.follow_beyond(slot, machine, output),
            Output::SayHello(hello) => {
                for other in 0..self.places.len() {
                    if other != slot
                        && self.can_talk(slot, other)
                        && let Some(peer) = self.places[other].machine.as_mut()
                    {
                        peer.handle(now_ms, Input::Linked { peer: hello.life, is_up: true });
                        peer.handle(now_ms, Input::Hello(hello));
                    }
                }
            }
            Output::Propose(body) => {
                if body.view.0 == self.views.len() as u64 + 1 {
                    self.check(&body);
                    self.views.push(body);
                }
                if let Some(machine) = machine {
                    machine.handle(now_ms, Input::ProposalEnded);
                }
            }
            Output::AbandonRegister => {
                if let Some(machine) = machine {
                    machine.handle(now_ms, Input::RegisterQuiet);
                }
            }
            Output::WritePill { victim, .. } => {
                let input = self.write_pill(victim);
                machine.iter_mut().for_each(|machine| machine.handle(now_ms, input.clone()));
            }
            Output::CallAgent { victim } => {
                self.calls.push((now_ms, slot));
                let off_at_ms = self.has_good_agent.then_some(now_ms);
                machine.iter_mut().for_each(|machine| machine.handle(now_ms, Input::AgentDone { victim, off_at_ms }));
            }
            Output::Eject { victim } => {
                self.ejections.push((now_ms, slot));
                let is_ejected = self.can_eject;
                machine.iter_mut().for_each(|machine| machine.handle(now_ms, Input::EjectDone { victim, is_ejected }));
            }
            Output::ResetSelf(_) => {
                *machine = None;
                self.reset(slot);
            }
            Output::NewIncarnation => {
                self.boot(slot, self.places.len());
                *machine = self.places[slot].machine.take();
            }
            Output::Stopped => {
                *machine = None;
                self.places[slot].is_stopped = true;
                let part = self.places[slot].part.clone();
                let entry = self.beats.get_mut(&SlotIndex(slot as u16)).unwrap();
                entry.is_stopped = true;
                entry.beat += 1;
                entry.daemon = part;
            }
            Output::Fenced { evidence, .. } => self.fenced.push(evidence),
            Output::StopLocks => self.places[slot].holds = false,
            Output::View { .. } | Output::Permit(_) | Output::HoldsPublished(_) | Output::Journal(_) => {}
        }
    }

    fn write_pill(&mut self, victim: Life) -> Input {
        let victim_slot = usize::from(victim.slot.0);
        let place = &self.places[victim_slot];
        if place.machine.is_some() && BootId([place.boot; 16]) == victim.boot {
            self.reset(victim_slot);
        }
        Input::PillDone { victim, is_written: true }
    }

    fn follow_beyond(&mut self, slot: usize, machine: &mut Option<Membership>, output: Output) {
        let Some(machine) = machine else { return };
        match output {
            Output::Extend { vouched_until_ms, frozen_until_ms } => self.places[slot].extended = (vouched_until_ms, frozen_until_ms),
            Output::Tell { peer, message } => self.told.push((peer, machine.setup.me, message)),
            Output::LookFor { life, serial, view } if !self.places[slot].is_cut_off => {
                let is_free = self.views.last().is_some_and(|body| body.view == view);
                machine.handle(self.now_ms, Input::Looked { life, serial, is_free });
            }
            _ => {}
        }
    }

    /// What was told a life since its last turn.
    fn take_told(&mut self, slot: usize, machine: &mut Membership) {
        let (mine, others) = core::mem::take(&mut self.told).into_iter().partition(|(peer, ..)| *peer == machine.setup.me);
        self.told = others;
        let mine: Vec<(Life, Life, Message)> = mine;
        for (_, from, message) in mine {
            if self.can_talk(slot, usize::from(from.slot.0)) {
                machine.handle(self.now_ms, Input::Told { from, message });
            }
        }
    }

    /// sbd acknowledges in one more beat, then the machine is reset and comes back later under another boot.
    fn reset(&mut self, slot: usize) {
        self.resets += 1;
        let place = &mut self.places[slot];
        place.machine = None;
        place.acknowledged = Some(Acknowledgement { reset_ms: timings().reset_ms, command: 2 });
        place.reboot_at_ms = Some(self.now_ms + 3000);
        place.beat += 1;
        let entry = self.beats.get_mut(&SlotIndex(slot as u16)).unwrap();
        entry.acknowledged = place.acknowledged;
        entry.beat = place.beat;
    }

    /// What every view must satisfy against the one before it.
    fn check(&self, body: &ViewBody) {
        let Some(before) = self.views.last() else { return };
        let proposer = body.proposer.unwrap();
        let is_restart = body.reason == ViewReason::Restart;
        assert!(before.members.contains(&proposer) || is_restart, "an outsider proposed {body:?}");
        for life in before.members.iter().chain(before.owed.iter().map(|owed| &owed.life)) {
            let is_kept = body.members.contains(life) || body.owed.iter().any(|owed| owed.life == *life);
            let is_released = body.released.iter().any(|released| released.life == *life);
            assert!(is_kept || is_released, "{life:?} was forgotten in {body:?}");
        }
        for released in &body.released {
            let place = &self.places[usize::from(released.life.slot.0)];
            let is_same_boot = BootId([place.boot; 16]) == released.life.boot;
            let lives_on = is_same_boot && place.machine.as_ref().is_some_and(|machine| machine.setup.me == released.life);
            assert!(!lives_on, "{released:?} lives");
        }
    }

    fn run_until(&mut self, at_most_ms: u64, what: &str, is_done: impl Fn(&Self) -> bool) {
        let end = self.now_ms + at_most_ms;
        while !is_done(self) {
            assert!(self.now_ms < end, "{what} did not happen within {at_most_ms} ms; last view {:?}", self.views.last());
            self.step();
        }
    }

    fn members(&self) -> Vec<u16> {
        self.views.last().map_or_else(Vec::new, |body| body.members.iter().map(|life| life.slot.0).collect())
    }

    fn whole(nodes: usize) -> Self {
        Self::whole_with(nodes, default_disk_votes(nodes))
    }

    fn whole_with(nodes: usize, disk_votes: u16) -> Self {
        Self::new(nodes, disk_votes, &vec![0; nodes]).all_in()
    }

    /// All in, each with its word about its protected devices.
    fn protected(words: &[u32]) -> Self {
        Self::new(words.len(), default_disk_votes(words.len()), words).all_in()
    }

    fn all_in(mut self) -> Self {
        let all: Vec<u16> = (0..self.places.len() as u16).collect();
        self.run_until(10_000, "everybody in", |world| world.members() == all);
        self.run_until(5000, "everybody knows", |world| world.places.iter().all(|place| place.part.state == NodeState::Member));
        self
    }

    fn hold(&mut self, slot: usize) {
        self.places[slot].holds = true;
        let now_ms = self.now_ms;
        self.places[slot].machine.as_mut().unwrap().handle(now_ms, Input::Holds(true));
    }

    fn evidence(&self, slot: u16) -> Option<Evidence> {
        self.views.iter().flat_map(|body| &body.released).rfind(|released| released.life.slot.0 == slot).map(|released| released.evidence)
    }
}

#[test]
fn three_nodes_form_a_cluster() {
    let world = World::whole(3);
    assert_eq!(world.views[0].reason, ViewReason::Initial);
    assert_eq!(world.views.last().unwrap().reason, ViewReason::Join);
}

#[test]
fn who_has_come_back_makes_the_quorum_that_releases_its_earlier_life() {
    // Votes 3 + 1, quorum 3: the member that is left has 2 with the disk.
    let mut world = World::whole_with(3, 1);
    for slot in [1, 2] {
        world.reset(slot);
    }
    world.run_until(20_000, "all in again", |world| {
        world.evidence(1).is_some() && world.evidence(2).is_some() && world.members() == [0, 1, 2]
    });
}

#[test]
fn a_dead_node_is_owed_until_it_expired() {
    let mut world = World::whole(3);
    world.kill(2);
    world.run_until(3000, "removal", |world| world.members() == [0, 1]);
    let removed_at = world.now_ms;
    assert_eq!(world.views.last().unwrap().owed.len(), 1);
    world.run_until(5000, "release", |world| world.views.last().unwrap().owed.is_empty());
    assert_eq!(world.evidence(2), Some(Evidence::Expired));
    let waited = world.now_ms - removed_at;
    assert!(waited >= 1500, "only {waited} ms after the removal");
}

#[test]
fn a_node_whose_reads_are_late_removes_nobody_for_it() {
    // Node 2 goes and comes back while node 0, the first proposer, sees no beat: neither its old life's silence nor its new one counts.
    let mut world = World::whole(3);
    world.places[0].is_blind = true;
    world.reset(2);
    world.run_until(20_000, "in again", |world| world.members() == [0, 1, 2] && world.evidence(2).is_some());
    let views = world.views.len();
    (0..200).for_each(|_| world.step());
    assert_eq!(world.views.len(), views, "{:?}", world.views.last());
    world.places[0].is_blind = false;
    (0..200).for_each(|_| world.step());
    assert_eq!(world.views.len(), views, "{:?}", world.views.last());
}

#[test]
fn a_loser_that_holds_nothing_leaves_without_a_reset_and_comes_back() {
    let mut world = World::whole(3);
    world.cut = vec![(0, 2), (1, 2)];
    world.run_until(4000, "removal", |world| world.members() == [0, 1]);
    world.run_until(2000, "left", |world| world.evidence(2) == Some(Evidence::Left));
    assert_eq!(world.resets, 0);
    world.cut.clear();
    world.run_until(3000, "rejoin", |world| world.members() == [0, 1, 2]);
}

#[test]
fn a_loser_that_holds_something_is_reset_once() {
    let mut world = World::whole(3);
    world.hold(0);
    world.step();
    world.cut = vec![(0, 2), (0, 1)];
    world.run_until(4000, "removal", |world| world.members() == [1, 2]);
    world.run_until(6000, "release", |world| world.views.last().unwrap().owed.is_empty());
    assert!(matches!(world.evidence(0), Some(Evidence::Acknowledged | Evidence::Rebooted)));
    assert_eq!(world.resets, 1);
    world.cut.clear();
    world.run_until(8000, "rejoin", |world| world.members() == [0, 1, 2]);
}

/// Who loses its edges one after the other must not go on with one whose last word is as old.
#[test]
fn a_cut_that_is_seen_edge_by_edge_removes_who_is_behind_it() {
    let mut world = World::whole(3);
    let (views, began_ms) = (world.views.len(), world.now_ms);
    world.cut.push((0, 2));
    world.run_until(1000, "a hello", |world| world.now_ms >= began_ms + 200);
    world.cut.push((0, 1));
    world.run_until(3000, "the two go on", |world| world.members() == [1, 2]);
    assert_eq!(world.views.len(), views + 1, "{:?}", world.views.last());
    // Detection, two quick polls, and one in which the last edge was lost.
    assert!(world.now_ms <= began_ms + 200 + u64::from(timings().detect_ms) + 4 * STEP_MS);
}

#[test]
fn two_nodes_split_and_one_goes_on() {
    let mut world = World::whole(2);
    world.cut = vec![(0, 1)];
    world.run_until(4000, "removal", |world| world.members() == [0]);
    world.run_until(3000, "left", |world| world.evidence(1) == Some(Evidence::Left));
    world.cut.clear();
    world.run_until(3000, "rejoin", |world| world.members() == [0, 1]);
}

#[test]
fn nobody_is_let_in_before_recovery_is_finished_everywhere() {
    let mut world = World::whole(3);
    world.places[1].recovers = false;
    world.cut = vec![(0, 2), (1, 2)];
    world.run_until(4000, "left", |world| world.evidence(2) == Some(Evidence::Left));
    world.cut.clear();
    for _ in 0..100 {
        world.step();
    }
    assert_eq!(world.members(), [0, 1]);
    world.places[1].recovers = true;
    world.run_until(3000, "rejoin", |world| world.members() == [0, 1, 2]);
}

#[test]
fn after_a_clean_stop_of_all_anybody_starts_at_once() {
    let mut world = World::whole(3);
    for slot in 0..3 {
        let now_ms = world.now_ms;
        world.places[slot].machine.as_mut().unwrap().handle(now_ms, Input::Stop);
    }
    world.run_until(4000, "stop", |world| world.places.iter().all(|place| place.is_stopped));
    let before = world.views.len();
    world.places[1].boot += 1;
    world.boot(1, 3);
    world.run_until(2000, "restart", |world| world.views.len() > before);
    let body = world.views.last().unwrap();
    assert_eq!((body.reason, world.members()), (ViewReason::Restart, vec![1]));
}

#[test]
fn after_a_total_loss_a_single_node_waits_w_and_f() {
    let mut world = World::whole(3);
    (0..3).for_each(|slot| world.kill(slot));
    let before = world.views.len();
    world.places[2].boot += 1;
    world.boot(2, 3);
    let start = world.now_ms;
    world.run_until(80_000, "restart", |world| world.views.len() > before);
    assert!(world.now_ms - start >= 63_000, "{} ms", world.now_ms - start);
    assert_eq!(world.members(), [2]);
    assert_eq!(world.views.last().unwrap().owed, []);
}

#[test]
fn an_operator_s_fence_ends_with_evidence() {
    let mut world = World::whole(3);
    let now_ms = world.now_ms;
    world.places[0].machine.as_mut().unwrap().handle(now_ms, Input::Fence(SlotIndex(1)));
    world.run_until(5000, "evidence", |world| !world.fenced.is_empty());
    assert_eq!(world.resets, 1);
    world.run_until(10_000, "rejoin", |world| world.members() == [0, 1, 2]);
}

#[test]
fn an_agent_s_word_comes_before_silence_is_long_enough() {
    let mut world = World::whole(3);
    world.has_good_agent = true;
    world.kill(1);
    let start = world.now_ms;
    world.run_until(10_000, "evidence", |world| world.evidence(1).is_some());
    let timings = timings();
    assert_eq!(world.evidence(1), Some(Evidence::Agent));
    assert!(world.now_ms - start < u64::from(timings.expiry_ms), "{} ms", world.now_ms - start);
    let [(called_ms, 0)] = world.calls[..] else { panic!("{:?}", world.calls) };
    assert!(world.now_ms >= called_ms + u64::from(timings.storage_delay_ms), "what is on its way in the storage may still land");
}

#[test]
fn who_is_ejected_is_gone_at_once_though_silence_would_take_longer() {
    let mut world = World::protected(&[7, 7, 7]);
    world.can_eject = true;
    world.kill(1);
    let start = world.now_ms;
    world.run_until(10_000, "evidence", |world| world.evidence(1).is_some());
    assert_eq!(world.evidence(1), Some(Evidence::Ejected));
    assert!(world.now_ms - start < u64::from(timings().expiry_ms), "{} ms", world.now_ms - start);
    let [(_, 0)] = world.ejections[..] else { panic!("{:?}", world.ejections) };
}

#[test]
fn nobody_ejects_whose_list_of_devices_is_another_one() {
    for words in [[7, 7, 0], [7, 0, 7], [0, 7, 0], [7, 8, 7]] {
        let mut world = World::protected(&words);
        world.can_eject = true;
        world.kill(1);
        world.run_until(10_000, "evidence", |world| world.evidence(1).is_some());
        let is_same = words[0] == words[1] && words[1] != 0;
        assert_eq!(world.evidence(1), Some(if is_same { Evidence::Ejected } else { Evidence::Expired }), "{words:?}");
        assert_eq!(!world.ejections.is_empty(), is_same, "{words:?}");
    }
}

#[test]
fn an_ejection_that_fails_proves_nothing_and_is_tried_again_in_turn() {
    let mut world = World::protected(&[7, 7, 7]);
    world.kill(1);
    let last = world.beats.get_mut(&SlotIndex(1)).unwrap();
    last.rule = Rule::Cluster;
    last.beat += 1;
    world.run_until(10_000, "removal", |world| world.members() == [0, 2]);
    let end = world.now_ms + 10_000;
    world.run_until(20_000, "the time", |world| world.now_ms >= end);
    assert_eq!(world.evidence(1), None);
    let of = |slot: usize| world.ejections.iter().filter(|call| call.1 == slot).map(|call| call.0).collect::<Vec<u64>>();
    assert!(of(0).len() > 2 && of(2)[0] > of(0)[0], "{:?}", world.ejections);
    world.can_eject = true;
    world.run_until(11_000, "evidence", |world| world.evidence(1) == Some(Evidence::Ejected));
}

#[test]
fn agents_that_fail_prove_nothing_and_are_called_in_turn() {
    let mut world = World::whole(3);
    world.kill(1);
    // Of such a node silence proves nothing.
    let last = world.beats.get_mut(&SlotIndex(1)).unwrap();
    last.rule = Rule::Cluster;
    last.beat += 1;
    world.run_until(10_000, "removal", |world| world.members() == [0, 2]);
    let end = world.now_ms + 70_000;
    world.run_until(80_000, "the time", |world| world.now_ms >= end);
    assert_eq!(world.evidence(1), None);
    let of = |slot: usize| world.calls.iter().filter(|call| call.1 == slot).map(|call| call.0).collect::<Vec<u64>>();
    let (first, second) = (of(0), of(2));
    assert_eq!((first.len(), second.len()), (3, 2), "{:?}", world.calls);
    assert!(second[0] >= first[0] + 30_000 && first[1] >= first[0] + 30_000, "{:?}", world.calls);
    world.has_good_agent = true;
    world.run_until(31_000, "evidence", |world| world.evidence(1) == Some(Evidence::Agent));
}

#[test]
fn a_life_that_is_not_removed_is_no_victim_of_an_agent() {
    let mut world = World::whole(3);
    world.has_good_agent = true;
    let end = world.now_ms + 40_000;
    world.run_until(50_000, "the time", |world| world.now_ms >= end);
    assert!(world.calls.is_empty());
    // A word about a life that nobody waits for is dropped.
    let now_ms = world.now_ms;
    let unknown = Life { slot: SlotIndex(1), boot: BootId([9; 16]), incarnation: Incarnation([9; 16]) };
    let machine = world.places[0].machine.as_mut().unwrap();
    machine.handle(now_ms, Input::AgentDone { victim: unknown, off_at_ms: Some(now_ms) });
    assert_eq!(machine.judge(&unknown, now_ms + 10_000), Verdict::MayLive);
}

#[test]
fn the_last_survivor_starts_again_although_its_own_earlier_life_is_owed() {
    let mut world = World::whole(2);
    world.hold(1);
    world.step();
    world.cut = vec![(0, 1)];
    world.run_until(4000, "removal", |world| world.members() == [0]);
    world.kill(0);
    world.kill(1);
    assert_eq!(world.views.last().unwrap().owed.len(), 1);
    let before = world.views.len();
    world.places[1].boot += 1;
    world.places[1].acknowledged = None;
    world.places[1].reboot_at_ms = None;
    world.boot(1, 2);
    world.run_until(80_000, "restart", |world| world.views.len() > before);
    assert_eq!(world.members(), [1]);
    assert_eq!(world.views.last().unwrap().owed, []);
}

#[test]
fn without_a_stream_hellos_make_no_edge() {
    let mut world = World::whole(2);
    let now_ms = world.now_ms;
    let peer = world.views.last().unwrap().members[1];
    let machine = world.places[0].machine.as_mut().unwrap();
    assert!(machine.hears().contains(peer.slot));
    machine.handle(now_ms, Input::Linked { peer, is_up: false });
    assert!(machine.hears().contains(peer.slot), "a stream lost for a moment is made anew");
    let later_ms = now_ms + 2000;
    let hello = machine.heard[&peer.slot].hello;
    machine.handle(later_ms, Input::Hello(hello));
    assert!(!machine.hears().contains(peer.slot));
}

#[test]
fn a_node_is_added_and_removed_by_views() {
    let mut world = World::whole(2);
    let change = ChangeRequest::AddNode(Addition {
        name: "late".to_string(),
        addresses: vec!["127.0.0.1:9".to_string()],
        votes: 1,
        occupied: SlotSet::default(),
    });
    let now_ms = world.now_ms;
    world.places[1].machine.as_mut().unwrap().handle(now_ms, Input::Change(change));
    world.run_until(3000, "addition", |world| world.views.last().unwrap().configuration.nodes.len() == 3);
    let configuration = &world.views.last().unwrap().configuration;
    assert_eq!((configuration.version, configuration.disk_votes, configuration.nodes[2].slot), (2, 2, SlotIndex(2)));
    let now_ms = world.now_ms;
    world.places[0].machine.as_mut().unwrap().handle(now_ms, Input::Change(ChangeRequest::RemoveNode { slot: SlotIndex(2) }));
    world.run_until(3000, "removal", |world| world.views.last().unwrap().configuration.nodes.len() == 2);
}

fn alter(world: &mut World, slot: usize, alteration: Alteration) {
    let now_ms = world.now_ms;
    world.places[slot].machine.as_mut().unwrap().handle(now_ms, Input::Change(ChangeRequest::Alter(alteration)));
}

fn of_node(slot: u16, name: Option<&str>, votes: Option<u16>, addresses: Option<&[&str]>) -> Alteration {
    let addresses = addresses.map(|addresses| addresses.iter().map(ToString::to_string).collect());
    Alteration::Node { slot: SlotIndex(slot), name: name.map(ToString::to_string), votes, addresses }
}

#[test]
fn names_votes_and_addresses_are_altered_by_views() {
    let mut world = World::whole(3);
    let lives = world.views.last().unwrap().members.clone();
    alter(&mut world, 1, of_node(2, Some("other"), Some(3), Some(&["127.0.0.1:2", "192.0.2.8:7"])));
    world.run_until(3000, "the alteration", |world| world.views.last().unwrap().configuration.nodes[2].votes == 3);
    alter(&mut world, 0, Alteration::DiskVotes(Some(1)));
    world.run_until(3000, "the disk's votes", |world| world.views.last().unwrap().configuration.disk_votes == 1);
    let body = world.views.last().unwrap().clone();
    let node = &body.configuration.nodes[2];
    assert_eq!((node.name.as_str(), node.addresses.len(), body.configuration.version), ("other", 2, 3));
    assert_eq!((body.members, body.reason), (lives, ViewReason::Configure));
    assert!(body.configuration.disk_votes_pinned);
    alter(&mut world, 0, Alteration::DiskVotes(None));
    world.run_until(3000, "the rule again", |world| world.views.last().unwrap().configuration.disk_votes == 2);
}

#[test]
fn an_alteration_without_a_quorum_by_the_new_rule_is_refused_or_given_up() {
    let mut world = World::whole(3);
    world.kill(2);
    world.run_until(20_000, "removal", |world| world.members() == [0, 1]);
    let end = world.now_ms + 200;
    world.run_until(1000, "all know", |world| world.now_ms >= end);
    let far = of_node(2, None, Some(9), None);
    assert!(world.places[0].machine.as_ref().unwrap().refuse_alteration(&far).unwrap().contains("4 of 13 votes"));
    alter(&mut world, 0, far);
    let views = world.views.len();
    let end = world.now_ms + ALTERATION_MS;
    world.run_until(40_000, "the time", |world| world.now_ms > end);
    assert!(world.views[views..].iter().all(|body| body.configuration.nodes[2].votes == 1));
    assert!(world.places[0].machine.as_ref().unwrap().changes.is_empty(), "it would be done later, though it was said to have failed");
}

#[test]
fn what_cannot_be_altered_is_refused_with_the_reason() {
    let mut world = World::whole(3);
    let end = world.now_ms + 200;
    world.run_until(1000, "all know", |world| world.now_ms >= end);
    let machine = world.places[0].machine.as_ref().unwrap();
    for (alteration, words) in [
        (of_node(7, None, Some(1), None), "no node is configured in slot 7"),
        (of_node(0, Some("N1"), None, None), "is taken by node n1"),
        (of_node(0, Some(""), None, None), "is empty"),
        (of_node(0, None, None, Some(&[])), "0 addresses"),
        (of_node(0, None, None, Some(&["0.0.0.0:7"])), "no address that others can reach"),
        (of_node(0, None, None, Some(&["host:7"])), "no address that others can reach"),
        (of_node(0, None, None, Some(&["127.0.0.1:1"])), "is that of node n1"),
        (of_node(0, None, None, Some(&["192.0.2.7:7"])), "keep one of these"),
        (of_node(0, None, Some(u16::MAX), None), "votes in all"),
        (of_node(0, None, None, Some(&["192.0.2.7:7", "192.0.2.7:7"])), "is given twice"),
        (Alteration::DiskVotes(Some(0)), "from 1 to nodes - 1"),
        (Alteration::DiskVotes(Some(3)), "from 1 to nodes - 1"),
    ] {
        let refused = machine.refuse_alteration(&alteration).unwrap_or_default();
        assert!(refused.contains(words), "{alteration:?}: {refused:?}");
    }
    for good in [
        of_node(0, Some("n0"), None, None),
        of_node(0, None, Some(0), None),
        of_node(2, None, None, Some(&["[2001:db8::1]:7", "127.0.0.1:2"])),
    ] {
        assert_eq!(machine.refuse_alteration(&good), None);
    }
}

#[test]
fn votes_of_the_disk_that_were_set_for_more_nodes_shrink_with_them() {
    let mut world = World::whole(3);
    alter(&mut world, 0, Alteration::DiskVotes(Some(2)));
    world.run_until(3000, "the votes", |world| world.views.last().unwrap().configuration.disk_votes_pinned);
    world.kill(2);
    world.run_until(20_000, "removal", |world| world.members() == [0, 1]);
    let now_ms = world.now_ms;
    world.places[0].machine.as_mut().unwrap().handle(now_ms, Input::Change(ChangeRequest::RemoveNode { slot: SlotIndex(2) }));
    world.run_until(40_000, "two nodes", |world| world.views.last().unwrap().configuration.nodes.len() == 2);
    let configuration = &world.views.last().unwrap().configuration;
    assert_eq!((configuration.disk_votes, configuration.disk_votes_pinned), (1, true));
}

#[test]
fn the_disk_alone_never_gets_a_quorum() {
    let mut world = World::whole(2);
    alter(&mut world, 0, of_node(0, None, Some(0), None));
    world.run_until(3000, "the votes", |world| world.views.last().unwrap().configuration.nodes[0].votes == 0);
    let machine = world.places[1].machine.as_ref().unwrap();
    assert!(machine.refuse_alteration(&of_node(1, None, Some(0), None)).unwrap().contains("it alone would decide"));
}

#[test]
fn an_alteration_that_changes_nothing_keeps_no_other_waiting() {
    let mut world = World::whole(3);
    alter(&mut world, 1, of_node(2, None, Some(1), None));
    let begin = world.now_ms;
    alter(&mut world, 1, of_node(2, None, Some(2), None));
    world.run_until(3000, "the other", |world| world.views.last().unwrap().configuration.nodes[2].votes == 2);
    assert!(world.now_ms - begin < 3000);
}

#[test]
fn an_addition_that_waits_for_a_quorum_keeps_no_alteration_waiting() {
    let mut world = World::whole(3);
    world.kill(2);
    world.run_until(20_000, "removal", |world| world.members() == [0, 1]);
    let end = world.now_ms + 200;
    world.run_until(1000, "all know", |world| world.now_ms >= end);
    // 2 of 3 nodes and 3 disk votes: 5 of 15.
    let heavy = Addition { name: "late".into(), addresses: vec!["127.0.0.1:9".into()], votes: 9, occupied: SlotSet::default() };
    let now_ms = world.now_ms;
    world.places[0].machine.as_mut().unwrap().handle(now_ms, Input::Change(ChangeRequest::AddNode(heavy)));
    alter(&mut world, 0, of_node(1, Some("other"), None, None));
    world.run_until(3000, "the name", |world| world.views.last().unwrap().configuration.nodes[1].name == "other");
    assert_eq!(world.views.last().unwrap().configuration.nodes.len(), 3);
}

#[test]
fn names_that_cannot_be_told_apart_are_refused() {
    for bad in ["", "LOCAL", "a b", "a/b", &"x".repeat(64), "\u{fc}"] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
    assert!(check_name("node-1.example_x").is_ok());
}

#[test]
fn ends_are_carried_on_for_views_that_are_being_decided() {
    let boot = BootId([7; 16]);
    let life = |number: u8| Life { slot: SlotIndex(1), boot, incarnation: Incarnation([number; 16]) };
    let mut own = beat(1, 9);
    own.boot = boot;
    let carried = |own: &Beat, members: &[Life]| carried_left(own, boot, &ViewBody { members: members.to_vec(), ..ViewBody::default() });
    for number in 1..=7 {
        own.daemon.incarnation = life(number).incarnation;
        own.is_idle = false;
        assert!(!carried(&own, &[]).has(life(number).incarnation), "it has not ended");
        own.is_idle = true;
        own.daemon.left = carried(&own, &[life(1)]);
    }
    let has = |number: u8| own.daemon.left.has(life(number).incarnation);
    assert_eq!([1, 2, 3, 4, 5, 6, 7].map(has), [true, false, false, true, true, true, true], "the first is still waited for");
    assert_eq!(carried(&Beat { boot: BootId([8; 16]), ..own.clone() }, &[]), LeftLives::default(), "of another boot");
}
