//! What: three nodes and an instant network: what the design promises, one scene each.
//! Owns: a driver that delivers until nothing moves and counts messages.
//! Invariants: none of its own.
//! Does not: search; `cluster` does.
//! Called by: `cargo test`.

use super::*;
use crate::wire::{LvbCopy, OpKind, OpResult, Party, Report, ReportOp};

struct Scene {
    nodes: BTreeMap<u16, LockService>,
    replies: Vec<(u16, ClientReply)>,
    messages: usize,
    recovered: Vec<u16>,
    serial: u64,
}

impl Scene {
    fn new(slots: u16) -> Self {
        let nodes = (0..slots).map(|slot| (slot, LockService::new(life(slot, 1)))).collect();
        let mut scene = Self { nodes, replies: Vec::new(), messages: 0, recovered: Vec::new(), serial: 0 };
        let members: Vec<u16> = (0..slots).collect();
        scene.view(1, &members, &[]);
        for slot in members {
            scene.input(slot, Input::Permit { may_grant: true });
            scene.input(slot, Input::SessionOpened { session: 1, info: SessionInfo { pid: 7 } });
        }
        scene
    }

    fn input(&mut self, to: u16, input: Input) {
        let mut queue = VecDeque::from([(to, input)]);
        while let Some((to, input)) = queue.pop_front() {
            let Some(service) = self.nodes.get_mut(&to) else { continue };
            let me = service.me;
            service.handle(1, input);
            while let Some(output) = service.poll_output() {
                match output {
                    Output::Send { to, message } => {
                        self.messages += 1;
                        queue.push_back((to.slot.0, Input::Peer { from: me, message }));
                    }
                    Output::Reply { reply, .. } => self.replies.push((to, reply)),
                    Output::Holds(is_held) => queue.push_back((to, Input::HoldsPublished(is_held))),
                    Output::Recovered(_) => self.recovered.push(to),
                    Output::Log(_) => {}
                }
            }
            if service.has_work() {
                queue.push_back((to, Input::Tick));
            }
        }
    }

    /// Everybody learns a view at once; every slot has its first life.
    fn view(&mut self, number: u64, slots: &[u16], removed: &[(u16, u64)]) {
        let members: Vec<Life> = slots.iter().map(|slot| life(*slot, 1)).collect();
        let to_owed = |(slot, view): &(u16, u64)| Owed { life: life(*slot, 1), removed_in: ViewNumber(*view) };
        let owed: Vec<Owed> = removed.iter().map(to_owed).collect();
        for slot in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (members, owed, is_member) = (members.clone(), owed.clone(), slots.contains(&slot));
            self.input(slot, Input::View { number: ViewNumber(number), members, owed, is_member });
        }
    }

    fn join(&mut self, slot: u16, name: &[u8]) -> u32 {
        self.input(slot, Input::Request { session: 1, request: ClientRequest::JoinLockspace { serial: 0, name: name.to_vec() } });
        match self.replies.pop() {
            Some((_, ClientReply::Joined { lockspace, .. })) => lockspace,
            other => panic!("not joined: {other:?}"),
        }
    }

    fn lock(&mut self, slot: u16, lockspace: u32, mode: Mode, flags: Flags) -> u64 {
        self.serial += 1;
        let (serial, resource) = (self.serial, name(b"r"));
        let request = ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner: 0, timeout_ms: 0, lvb: None };
        self.input(slot, Input::Request { session: 1, request });
        serial
    }

    fn unlock(&mut self, slot: u16, lock: u32, lvb: Option<[u8; 32]>) {
        self.serial += 1;
        let flags = if lvb.is_some() { Flags::VALBLK } else { Flags::NONE };
        let request = ClientRequest::Unlock { serial: self.serial, lock, flags, lvb };
        self.input(slot, Input::Request { session: 1, request });
    }

    /// Lock, flags and value block of a grant.
    fn granted(&self, wanted: u64) -> Option<(u32, ResultFlags, Option<[u8; 32]>)> {
        self.replies.iter().find_map(|(_, reply)| match reply {
            ClientReply::Completed { serial, lock, status: LockStatus::Success, flags, lvb, .. } if *serial == wanted => {
                Some((*lock, *flags, *lvb))
            }
            _ => None,
        })
    }
}

#[test]
fn the_first_user_becomes_master_and_needs_no_message_any_more() {
    for slot in 0..3 {
        let mut scene = Scene::new(3);
        let space = scene.join(slot, b"space");
        let first = scene.lock(slot, space, Mode::Nl, Flags::NONE);
        assert!(scene.granted(first).is_some());
        scene.messages = 0;
        for _ in 0..10 {
            let serial = scene.lock(slot, space, Mode::Ex, Flags::NONE);
            let (lock, ..) = scene.granted(serial).unwrap();
            scene.unlock(slot, lock, None);
        }
        assert_eq!(scene.messages, 0);
    }
}

#[test]
fn a_remote_lock_waits_is_called_for_and_granted_with_the_value() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let held = scene.lock(0, space, Mode::Ex, Flags::NONE);
    let keeper = scene.lock(2, space, Mode::Nl, Flags::NONE);
    let wanted = scene.lock(1, space, Mode::Pr, Flags::VALBLK);
    assert!(scene.granted(wanted).is_none() && scene.granted(keeper).is_some());
    let (lock, ..) = scene.granted(held).unwrap();
    assert!(scene.replies.contains(&(0, ClientReply::Blocking { lock, mode: Mode::Pr })));
    scene.unlock(0, lock, Some([3; 32]));
    assert_eq!(scene.granted(wanted).map(|grant| (grant.1, grant.2)), Some((ResultFlags::default(), Some([3; 32]))));
}

#[test]
fn a_dead_writer_leaves_the_value_in_doubt_wherever_the_master_was() {
    for first in [0, 2] {
        let mut scene = Scene::new(3);
        let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
        // The first user is master: node 0 survives, node 2 does not.
        scene.lock(first, space, Mode::Nl, Flags::NONE);
        let keeper = scene.lock(0, space, Mode::Nl, Flags::NONE);
        let writer = scene.lock(2, space, Mode::Ex, Flags::NONE);
        assert!(scene.granted(keeper).is_some() && scene.granted(writer).is_some());
        scene.nodes.remove(&2);
        scene.view(2, &[0, 1], &[(2, 2)]);
        scene.view(3, &[0, 1], &[]);
        let reader = scene.lock(1, space, Mode::Pr, Flags::VALBLK);
        assert_eq!(scene.granted(reader).map(|grant| grant.1), Some(ResultFlags::VALNOTVALID), "first user {first}");
    }
}

#[test]
fn a_value_survives_its_master_when_a_holder_has_kept_writers_out() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let writer = scene.lock(2, space, Mode::Ex, Flags::NONE);
    let (writer, ..) = scene.granted(writer).unwrap();
    let reader = scene.lock(0, space, Mode::Pr, Flags::VALBLK);
    scene.unlock(2, writer, Some([8; 32]));
    assert_eq!(scene.granted(reader).and_then(|grant| grant.2), Some([8; 32]));
    scene.nodes.remove(&2);
    scene.view(2, &[0, 1], &[(2, 2)]);
    scene.view(3, &[0, 1], &[]);
    let late = scene.lock(1, space, Mode::Pr, Flags::VALBLK);
    assert_eq!(scene.granted(late).map(|grant| (grant.1, grant.2)), Some((ResultFlags::default(), Some([8; 32]))));
}

#[test]
fn an_old_copy_is_not_valid_because_somebody_kept_writers_out() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    // Node 2 is master and dies; node 0 keeps the first value at NL and later a lock that knows of the second but has not its content.
    let first = scene.lock(2, space, Mode::Ex, Flags::NONE);
    let keeper = scene.lock(2, space, Mode::Nl, Flags::NONE);
    let (first, ..) = scene.granted(first).unwrap();
    scene.unlock(2, first, Some([1; 32]));
    let old = scene.lock(0, space, Mode::Nl, Flags::VALBLK);
    assert_eq!(scene.granted(old).and_then(|grant| grant.2), Some([1; 32]));
    let second = scene.lock(2, space, Mode::Ex, Flags::NONE);
    let (second, ..) = scene.granted(second).unwrap();
    scene.unlock(2, second, Some([2; 32]));
    let silent = scene.lock(0, space, Mode::Pr, Flags::NONE);
    assert!(scene.granted(silent).is_some() && scene.granted(keeper).is_some());
    scene.nodes.remove(&2);
    scene.view(2, &[0, 1], &[]);
    let reader = scene.lock(1, space, Mode::Pr, Flags::VALBLK);
    assert_eq!(scene.granted(reader).map(|grant| grant.1), Some(ResultFlags::VALNOTVALID));
}

#[test]
fn a_life_that_was_out_of_a_view_was_master_all_the_time() {
    for views in [&[2, 3][..], &[3]] {
        let mut scene = Scene::new(2);
        let space = (0..2).map(|slot| scene.join(slot, b"space")).max().unwrap();
        let writer = scene.lock(0, space, Mode::Ex, Flags::NONE);
        let keeper = scene.lock(0, space, Mode::Nl, Flags::NONE);
        let (writer, ..) = scene.granted(writer).unwrap();
        scene.unlock(0, writer, Some([1; 32]));
        assert!(scene.granted(keeper).is_some());
        scene.nodes.remove(&1);
        for number in views {
            if *number == 2 { scene.view(2, &[1], &[(0, 2)]) } else { scene.view(3, &[0], &[]) }
        }
        let reader = scene.lock(0, space, Mode::Pr, Flags::VALBLK);
        let granted = scene.granted(reader).map(|(_, flags, value)| (flags, value));
        assert_eq!(granted, Some((ResultFlags::default(), Some([1; 32]))), "{views:?}");
    }
}

#[test]
fn a_down_conversion_whose_master_died_stays_given_up() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let keeper = scene.lock(2, space, Mode::Nl, Flags::NONE);
    let held = scene.lock(0, space, Mode::Ex, Flags::NONE);
    let waiting = scene.lock(1, space, Mode::Ex, Flags::NONE);
    let (lock, ..) = scene.granted(held).unwrap();
    assert!(scene.granted(keeper).is_some() && scene.granted(waiting).is_none());
    scene.nodes.remove(&2);
    let (serial, lvb) = (99, None);
    let request = ClientRequest::Convert { serial, lock, mode: Mode::Cr, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb };
    scene.input(0, Input::Request { session: 1, request });
    scene.view(2, &[0, 1], &[(2, 2)]);
    // The resource waits for the owed node; who gives up need not.
    assert!(scene.granted(serial).is_some());
    let lower = ClientRequest::Convert { serial: 100, lock, mode: Mode::Nl, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb };
    scene.input(0, Input::Request { session: 1, request: lower });
    assert!(scene.granted(100).is_some() && scene.granted(waiting).is_none());
    scene.view(3, &[0, 1], &[]);
    assert!(scene.granted(waiting).is_some());
}

#[test]
fn outside_the_view_nothing_is_granted_and_what_is_held_stays() {
    let mut scene = Scene::new(2);
    let space = (0..2).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let held = scene.lock(0, space, Mode::Pr, Flags::NONE);
    scene.view(2, &[1], &[(0, 2)]);
    let new = scene.lock(0, space, Mode::Nl, Flags::NONE);
    assert!(scene.granted(held).is_some() && scene.granted(new).is_none());
    assert_eq!(scene.nodes[&0].snapshot()[0].locks[0].granted, Some(Mode::Pr));
    scene.input(0, Input::Lose { reason: "removed from view 2".into() });
    assert!(matches!(scene.replies.last(), Some((0, ClientReply::Lost { .. }))));
    assert!(scene.nodes[&0].status().holds, "only a reset proves that its clients hold nothing");
}

#[test]
fn a_message_of_a_newer_view_waits_for_that_view() {
    let mut scene = Scene::new(2);
    let mut other = LockService::new(life(1, 1));
    let both = || Input::View { number: ViewNumber(2), members: vec![life(0, 1), life(1, 1)], owed: vec![], is_member: true };
    other.handle(1, both());
    let early: Vec<Output> = core::iter::from_fn(|| other.poll_output()).collect();
    scene.nodes.remove(&1);
    for output in early {
        let Output::Send { message, .. } = output else { continue };
        scene.input(0, Input::Peer { from: life(1, 1), message });
    }
    scene.input(0, Input::Peer { from: life(1, 1), message: vec![1, 2, 3] });
    scene.input(0, both());
    let status = scene.nodes[&0].status();
    assert_eq!((status.view.0, status.awaited), (2, vec![life(1, 1)]), "its first round came early, its second is still due");
}

fn home_of(nodes: &[u16], space: u32) -> u16 {
    let key = Key::new(space, b"r").unwrap();
    nodes.iter().copied().max_by_key(|slot| key.weight(life(*slot, 1).slot)).unwrap()
}

fn lock_request(serial: u64, lockspace: u32, resource: &[u8], mode: Mode) -> Input {
    let request =
        ClientRequest::Lock { serial, lockspace, resource: name(resource), mode, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb: None };
    Input::Request { session: 1, request }
}

fn unlock_request(serial: u64, lock: u32) -> Input {
    Input::Request { session: 1, request: ClientRequest::Unlock { serial, lock, flags: Flags::NONE, lvb: None } }
}

#[test]
fn a_request_to_a_home_that_was_master_until_now_is_answered() {
    let mut scene = Scene::new(2);
    let space = (0..2).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let home = home_of(&[0, 1], space);
    let other = 1 - home;
    let first = scene.lock(home, space, Mode::Pr, Flags::NONE);
    let second = scene.lock(other, space, Mode::Pr, Flags::NONE);
    let (first, ..) = scene.granted(first).unwrap();
    let (second, ..) = scene.granted(second).unwrap();
    scene.unlock(home, first, None);
    // Both come in one go: the home has given mastery back before it sees the second.
    let service = scene.nodes.get_mut(&other).unwrap();
    service.handle(1, unlock_request(901, second));
    service.handle(1, lock_request(902, space, b"r", Mode::Pr));
    scene.input(other, Input::Tick);
    assert!(scene.granted(902).is_some(), "{:?}", scene.nodes[&other].snapshot());
}

#[test]
fn what_a_client_asked_during_recovery_is_answered_and_tokens_grow() {
    let mut scene = Scene::new(2);
    let space = (0..2).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let home = home_of(&[0, 1], space);
    let held = scene.lock(home, space, Mode::Ex, Flags::NONE);
    let (lock, ..) = scene.granted(held).unwrap();
    // The home learns the view first and cannot finish before the other does.
    let members = vec![life(0, 1), life(1, 1)];
    let view = Input::View { number: ViewNumber(2), members, owed: vec![], is_member: true };
    let service = scene.nodes.get_mut(&home).unwrap();
    service.handle(1, view.clone());
    service.handle(1, unlock_request(901, lock));
    service.handle(1, lock_request(902, space, b"r", Mode::Ex));
    assert!(!service.status().awaited.is_empty());
    scene.input(1 - home, view);
    let token = |wanted| {
        scene.replies.iter().find_map(|(_, reply)| match reply {
            ClientReply::Completed { serial, status: LockStatus::Success, token, .. } if *serial == wanted => Some(*token),
            _ => None,
        })
    };
    assert!(token(902).is_some() && token(902) > token(held), "{:?}", scene.replies);
}

#[test]
fn the_answer_to_an_earlier_announcement_confirms_no_later_one() {
    let mut scene = Scene::new(2);
    let ask = |session| Input::Request { session, request: ClientRequest::JoinLockspace { serial: 1, name: b"space".to_vec() } };
    let space = scene.join(1, b"space");
    let mut joiner = scene.nodes.remove(&0).unwrap();
    let messages = |joiner: &mut LockService, inputs: Vec<Input>| {
        inputs.into_iter().for_each(|input| joiner.handle(1, input));
        let sent = core::iter::from_fn(|| joiner.poll_output()).filter_map(|output| match output {
            Output::Send { message, .. } => Some(message),
            _ => None,
        });
        sent.collect::<Vec<_>>()
    };
    // A client asks and goes before the answer; another asks.
    let (opened, closed) = (Input::SessionOpened { session: 2, info: SessionInfo::default() }, Input::SessionClosed { session: 1 });
    let arriving = messages(&mut joiner, vec![opened, ask(1), closed]);
    let lost = messages(&mut joiner, vec![ask(2)]);
    assert!(!arriving.is_empty() && !lost.is_empty());
    // The second announcement is lost in a cut; the answer to the first is not.
    scene.replies.clear();
    let other = scene.nodes.get_mut(&1).unwrap();
    for message in arriving {
        other.handle(1, Input::Peer { from: life(0, 1), message });
    }
    let answers = messages(other, vec![]);
    assert!(!answers.is_empty() && !other.joins[&life(0, 1)].contains(&space));
    scene.nodes.insert(0, joiner);
    for message in answers {
        scene.input(0, Input::Peer { from: life(1, 1), message });
    }
    assert_eq!(scene.replies, [], "nobody would wait for this node's locks, were it removed now");
}

#[test]
fn an_answer_said_again_gives_an_old_value_no_new_number() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    // Node 2 is master; node 0 writes value 1, and the answer to that is lost with the view; node 1 writes value 2.
    let keeper = scene.lock(2, space, Mode::Nl, Flags::NONE);
    let first = scene.lock(0, space, Mode::Ex, Flags::VALBLK);
    let second = scene.lock(1, space, Mode::Ex, Flags::VALBLK);
    let (first, ..) = scene.granted(first).unwrap();
    assert!(scene.granted(keeper).is_some() && scene.granted(second).is_none());
    let request = ClientRequest::Convert {
        serial: 99,
        lock: first,
        mode: Mode::Nl,
        flags: Flags::VALBLK,
        owner: 0,
        timeout_ms: 0,
        lvb: Some([1; 32]),
    };
    let mut writer = scene.nodes.remove(&0).unwrap();
    writer.handle(1, Input::Request { session: 1, request });
    while let Some(output) = writer.poll_output() {
        let Output::Send { message, .. } = output else { continue };
        scene.input(2, Input::Peer { from: life(0, 1), message });
    }
    scene.nodes.insert(0, writer);
    let (second, ..) = scene.granted(second).unwrap();
    scene.unlock(1, second, Some([2; 32]));
    scene.view(2, &[0, 1, 2], &[]);
    assert!(scene.granted(99).is_some());
    // A reader that knows the number but not the value keeps writers out; the master dies.
    let silent = scene.lock(1, space, Mode::Pr, Flags::NONE);
    assert!(scene.granted(silent).is_some());
    scene.nodes.remove(&2);
    scene.view(3, &[0, 1], &[(2, 3)]);
    scene.view(4, &[0, 1], &[]);
    let reader = scene.lock(1, space, Mode::Pr, Flags::VALBLK);
    let (_, flags, value) = scene.granted(reader).unwrap();
    assert!(flags.has(ResultFlags::VALNOTVALID) || value == Some([2; 32]), "{value:?} is not the last one written");
}

#[test]
fn a_request_on_its_way_to_a_former_master_is_taken_back_there() {
    let mut scene = Scene::new(3);
    let space = (0..3).map(|slot| scene.join(slot, b"space")).max().unwrap();
    let home = home_of(&[0, 1, 2], space);
    let (master, asker) = ((home + 1) % 3, (home + 2) % 3);
    let kept = scene.lock(master, space, Mode::Nl, Flags::NONE);
    let held = scene.lock(asker, space, Mode::Nl, Flags::NONE);
    let (kept, held) = (scene.granted(kept).unwrap().0, scene.granted(held).unwrap().0);
    scene.unlock(master, kept, None);
    let sent = |scene: &mut Scene, inputs: Vec<Input>| {
        let service = scene.nodes.get_mut(&asker).unwrap();
        inputs.into_iter().for_each(|input| service.handle(1, input));
        let sent = core::iter::from_fn(|| service.poll_output()).filter_map(|output| match output {
            Output::Send { to, message } => Some((to.slot.0, message)),
            _ => None,
        });
        sent.collect::<Vec<_>>()
    };
    let early = sent(&mut scene, vec![unlock_request(901, held), lock_request(902, space, b"r", Mode::Ex)]);
    let mut late = sent(&mut scene, vec![lock_request(903, space, b"r", Mode::Ex)]);
    assert_eq!((early.len(), late.len()), (1, 1));
    // The first empties the master; who asks becomes master itself, while the last request is still on its way to the old one.
    for (to, message) in early {
        scene.input(to, Input::Peer { from: life(asker, 1), message });
    }
    let (first, ..) = scene.granted(902).unwrap();
    let last = scene.nodes[&asker].locks.iter().max_by_key(|(_, lock)| lock.op).unwrap().0;
    let request = ClientRequest::Unlock { serial: 904, lock: last, flags: Flags::FORCEUNLOCK, lvb: None };
    for (to, message) in sent(&mut scene, vec![Input::Request { session: 1, request }, unlock_request(905, first)]) {
        if to == master {
            late.push((to, message));
        } else {
            scene.input(to, Input::Peer { from: life(asker, 1), message });
        }
    }
    let again = scene.lock(master, space, Mode::Pr, Flags::NONE);
    for (to, message) in late {
        scene.input(to, Input::Peer { from: life(asker, 1), message });
    }
    let (again, ..) = scene.granted(again).unwrap();
    scene.unlock(master, again, None);
    assert!(scene.nodes.values().all(|node| node.locks.is_empty() && node.owners.is_empty()), "{:?}", scene.nodes[&master].snapshot());
}

/// A small generator, so that locks and resources often meet.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len().try_into().unwrap())).unwrap()]
    }

    fn is_heads(&mut self) -> bool {
        self.below(2) == 0
    }

    fn key(&mut self) -> Key {
        Key::new(crate::name::lockspace_number(b"s"), self.of(&[b"a", b"b"])).unwrap()
    }

    fn record(&mut self) -> Record {
        let (key, mode, lock, op) = (self.key(), self.of(&crate::mode::MODES), self.of(&[0, 1, 2]), self.of(&[1, 2, u64::MAX]));
        let (flags, lvb, number, pid) = (Flags(u32::try_from(self.below(1 << 19)).unwrap()), Some([1; 32]), self.of(&[0, u64::MAX]), 1);
        let copy = LvbCopy { sequence: number, is_invalid: self.is_heads(), value: lvb };
        let token = crate::mode::Token { view: number, counter: number };
        let granted = self.is_heads().then_some(mode);
        let party = self.of(&[Party::Session(1), Party::Transaction(1)]);
        let kind = self.of(&[OpKind::New, OpKind::Convert, OpKind::Unlock]);
        let pending = self.is_heads().then_some(ReportOp { kind, mode: Mode::Pr, flags, lvb, is_cancelled: self.is_heads() });
        let report = Report { key, lock, pid, party, op, granted, token, lvb: copy, pending };
        let result = OpResult { op, status: self.of(&crate::mode::STATUSES), mode: granted, flags: ResultFlags(2), token, lvb: copy };
        let other = life(self.of(&[0, 1, 2]), 1);
        match self.below(30) {
            0 => Record::Request { key, lock, pid, party, op, mode, flags, is_lookup: self.is_heads(), is_retry: self.is_heads() },
            1 => Record::Convert { lock, op, mode, flags, lvb },
            2 => Record::Unlock { lock, op, flags, lvb },
            3 => Record::Cancel { lock, op },
            4 => Record::Completed { lock, result },
            5 => Record::Blocking { lock, mode },
            6 => Record::MasterIs { key, master: other, counter: number, stamp: 1, is_taken: self.is_heads(), is_asked: self.is_heads() },
            7 => Record::Released { key, counter: number, stamp: 1 },
            8 => Record::NotMaster { lock, op },
            9 => Record::Join { announcement: number, name: b"s".to_vec() },
            10 => Record::JoinAnswer { lockspace: key.lockspace, announcement: self.of(&[1, number]), is_refused: self.is_heads() },
            11 => Record::Leave { lockspace: key.lockspace },
            12 => Record::Standing { gathered: number },
            13 => Record::Claim { key, stamp: 1 },
            14 => Record::Report(report),
            15 => Record::AnswersEnd,
            16 => Record::Take { key, counter: number, stamp: 1 },
            17 => Record::Forward { origin: other, report },
            18 => Record::TakeEnd { key },
            19 => Record::Taken { key },
            20 => Record::Have { lock, op },
            21 => Record::Again(report),
            22 => Record::Appointed { key, master: other, stamp: 1 },
            23 => Record::ReleasesSeen { count: 3 },
            24 => Record::Whose { lock, pid, party },
            25 => Record::Query { key, request: number, asker: other },
            26 => Record::Queried { request: self.of(&[1, number]), lvb: copy, left_out: 0, locks: vec![] },
            27 => Record::Purge { request: number, lockspace: key.lockspace, pid: 0 },
            28 => Record::Purged { request: self.of(&[1, number]) },
            _ => Record::Share { parts: Vec::new() },
        }
    }

    fn request(&mut self, serial: u64) -> ClientRequest {
        let (key, mode, lock, lvb) = (self.key(), self.of(&crate::mode::MODES), self.of(&[0, 1, 2]), Some([2; 32]));
        let resource = name(key.name());
        match self.below(8) {
            0 => ClientRequest::JoinLockspace { serial, name: b"s".to_vec() },
            1 => ClientRequest::Lock {
                serial,
                lockspace: key.lockspace,
                resource,
                mode,
                flags: self.of(&[Flags::NONE, Flags::PERSISTENT, Flags::ORPHAN]),
                owner: self.of(&[0, 9]),
                timeout_ms: self.of(&[0, 5]),
                lvb,
            },
            2 => ClientRequest::Convert { serial, lock, mode, flags: Flags::VALBLK, owner: 0, timeout_ms: 5, lvb },
            3 => ClientRequest::Unlock { serial, lock, flags: Flags::FORCEUNLOCK, lvb },
            4 => ClientRequest::QueryResource { serial, lockspace: key.lockspace, resource },
            5 => ClientRequest::Query { serial, lock },
            6 => ClientRequest::Purge { serial, lockspace: key.lockspace, slot: 1, pid: 0 },
            _ => ClientRequest::Cancel { serial, lock },
        }
    }
}

#[test]
fn no_sequence_of_records_of_a_member_makes_the_service_panic() {
    let mut dice = Dice(1);
    let view = |number| Input::View {
        number: ViewNumber(number),
        members: vec![life(0, 1), life(1, 1)],
        owed: vec![Owed { life: life(2, 1), removed_in: ViewNumber(1) }],
        is_member: true,
    };
    let mut recovered = 0;
    for _ in 0..200 {
        let mut service = LockService::new(life(0, 1));
        service.handle(1, view(1));
        service.handle(1, Input::Permit { may_grant: true });
        service.handle(1, Input::SessionOpened { session: 1, info: SessionInfo::default() });
        for step in 0..80 {
            let message = dice.record().append(wire::begin_message(service.view.number));
            service.handle(2, Input::Peer { from: life(1, 1), message });
            service.handle(3, Input::Request { session: 1, request: dice.request(100 + step) });
            if dice.below(20) == 0 {
                service.handle(4, view(service.view.number + 1));
            }
            while let Some(output) = service.poll_output() {
                match output {
                    Output::Holds(is_held) => service.handle(5, Input::HoldsPublished(is_held)),
                    Output::Recovered(_) => recovered += 1,
                    _ => {}
                }
            }
        }
    }
    assert!(recovered > 20, "only {recovered} recoveries: the records do not get far");
}

#[test]
fn a_lock_alone_keeps_what_was_asked_between_two_views() {
    let mut timed = super::timed::Timed::new(2);
    // Mastered where it is asked for, so that it needs no queue.
    let resources: Vec<Vec<u8>> = (b'a'..=b'z').map(|letter| vec![letter]).collect();
    let locks: Vec<u32> = resources.iter().map(|resource| timed.take(0, 1, resource, Mode::Ex)).collect();
    let members = vec![life(0, 1), life(1, 1)];
    let view = |number| Input::View { number: ViewNumber(number), members: members.clone(), owed: vec![], is_member: true };
    timed.input(0, view(2));
    let (mode, flags, owner, timeout_ms, lvb) = (Mode::Pr, Flags::NONE, 0, 0, None);
    let converts: Vec<u64> = locks
        .iter()
        .map(|lock| timed.ask(0, 1, |serial| ClientRequest::Convert { serial, lock: *lock, mode, flags, owner, timeout_ms, lvb }))
        .collect();
    timed.input(0, view(3));
    timed.input(1, view(3));
    for convert in converts {
        let is_done =
            |reply: &ClientReply| matches!(reply, ClientReply::Completed { serial, mode: Some(Mode::Pr), .. } if *serial == convert);
        assert!(timed.replies.iter().any(|(_, reply)| is_done(reply)), "{:?}", timed.status(convert));
    }
}

#[test]
fn a_recovery_of_many_resources_needs_no_deep_stack() {
    let mut stage = stage::Stage::new(1);
    for number in 0..20_000_u32 {
        stage.lock((0, 1), &number.to_le_bytes(), Mode::Ex, Flags::NONE);
    }
    stage.next_view(&[]);
    assert_eq!(stage.nodes[&0].status().mastered, 20_000);
}
