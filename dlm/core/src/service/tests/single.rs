//! What: one node alone: the client protocol's semantics, one behaviour each.
//! Owns: a driver that answers `Holds` and collects replies.
//! Invariants: none of its own.
//! Does not: simulate a network.
//! Called by: `cargo test`.

use super::*;

/// Lock, status, mode, flags, value block, token.
type Answer = (u32, LockStatus, Option<Mode>, ResultFlags, Option<[u8; 32]>, Token);

struct Node {
    service: LockService,
    replies: Vec<(u64, ClientReply)>,
    serial: u64,
    space: u32,
}

const VALUE: [u8; 32] = [7; 32];

impl Node {
    fn new() -> Self {
        let me = life(0, 1);
        let mut node = Self { service: LockService::new(me), replies: Vec::new(), serial: 0, space: 0 };
        node.input(Input::View { number: ViewNumber(1), members: vec![me], owed: vec![], is_member: true });
        node.input(Input::Permit { may_grant: true });
        for session in 1..=4 {
            node.input(Input::SessionOpened { session, info: SessionInfo { pid: 100 } });
            node.input(Input::Request { session, request: ClientRequest::JoinLockspace { serial: 0, name: b"space".to_vec() } });
            let Some((_, ClientReply::Joined { lockspace, .. })) = node.replies.pop() else { panic!("joined at once") };
            node.space = lockspace;
        }
        node
    }

    fn input(&mut self, input: Input) {
        self.input_at(5, input);
    }

    fn input_at(&mut self, now_ms: u64, input: Input) {
        self.service.handle(now_ms, input);
        while let Some(output) = self.service.poll_output() {
            match output {
                Output::Reply { session, reply } => self.replies.push((session, reply)),
                Output::Holds(is_held) => self.input(Input::HoldsPublished(is_held)),
                Output::Send { .. } => panic!("nobody to send to"),
                _ => {}
            }
        }
    }

    fn ask(&mut self, session: u64, request: ClientRequest) -> u64 {
        self.input(Input::Request { session, request });
        self.serial
    }

    fn lock_with(&mut self, session: u64, mode: Mode, flags: Flags) -> u64 {
        self.serial += 1;
        let (serial, lockspace, resource) = (self.serial, self.space, name(b"r"));
        self.ask(session, ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner: 0, timeout_ms: 0, lvb: None })
    }

    fn lock(&mut self, session: u64, mode: Mode) -> u64 {
        self.lock_with(session, mode, Flags::NONE)
    }

    fn convert(&mut self, session: u64, lock: u32, mode: Mode, flags: Flags, lvb: Option<[u8; 32]>) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        self.ask(session, ClientRequest::Convert { serial, lock, mode, flags, owner: 0, timeout_ms: 0, lvb })
    }

    fn unlock(&mut self, session: u64, lock: u32, flags: Flags, lvb: Option<[u8; 32]>) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        self.ask(session, ClientRequest::Unlock { serial, lock, flags, lvb })
    }

    /// The one completion of a serial, if it has come.
    fn answer(&self, wanted: u64) -> Option<Answer> {
        let mut found = self.replies.iter().filter_map(|(_, reply)| match reply {
            ClientReply::Completed { serial, lock, status, mode, flags, lvb, token } if *serial == wanted => {
                Some((*lock, *status, *mode, *flags, *lvb, *token))
            }
            _ => None,
        });
        let answer = found.next();
        assert!(found.next().is_none(), "answered twice");
        answer
    }

    fn granted(&self, serial: u64) -> u32 {
        match self.answer(serial) {
            Some((lock, LockStatus::Success, ..)) => lock,
            other => panic!("not granted: {other:?}"),
        }
    }

    fn status(&self, serial: u64) -> Option<LockStatus> {
        self.answer(serial).map(|answer| answer.1)
    }

    fn blocking(&mut self) -> Vec<(u32, Mode)> {
        let told = self.replies.iter().filter_map(|(_, reply)| match reply {
            ClientReply::Blocking { lock, mode } => Some((*lock, *mode)),
            _ => None,
        });
        let told = told.collect();
        self.replies.retain(|(_, reply)| !matches!(reply, ClientReply::Blocking { .. }));
        told
    }
}

use crate::mode::{MODES, Token};

#[test]
fn a_second_lock_is_granted_only_when_compatible() {
    for first in MODES {
        for second in MODES {
            let mut node = Node::new();
            let (one, two) = (node.lock(1, first), node.lock(2, second));
            node.granted(one);
            assert_eq!(node.status(two).is_some(), first.is_compatible(second), "{first} {second}");
        }
    }
}

#[test]
fn readers_do_not_pass_a_waiting_writer() {
    let mut node = Node::new();
    let reader = node.lock(1, Mode::Pr);
    let writer = node.lock(2, Mode::Ex);
    let late = node.lock(3, Mode::Pr);
    let reader = node.granted(reader);
    assert_eq!((node.status(writer), node.status(late)), (None, None));
    assert_eq!(node.blocking(), [(reader, Mode::Ex)]);
    node.unlock(1, reader, Flags::NONE, None);
    let writer = node.granted(writer);
    assert_eq!(node.status(late), None);
    assert_eq!(node.blocking(), [(writer, Mode::Pr)]);
    node.unlock(2, writer, Flags::NONE, None);
    node.granted(late);
}

#[test]
fn a_conversion_passes_waiting_conversions_unless_told() {
    for flags in [Flags::NONE, Flags::QUECVT] {
        let mut node = Node::new();
        let (a, b, c) = (node.lock(1, Mode::Cr), node.lock(2, Mode::Pr), node.lock(3, Mode::Nl));
        let (a, _, c) = (node.granted(a), node.granted(b), node.granted(c));
        let up = node.convert(1, a, Mode::Pw, Flags::NONE, None);
        assert_eq!(node.status(up), None);
        let barging = node.convert(3, c, Mode::Pr, flags, None);
        assert_eq!(node.status(barging).is_some(), flags == Flags::NONE);
    }
}

#[test]
fn a_new_request_never_passes_a_waiting_conversion() {
    let mut node = Node::new();
    let (a, b) = (node.lock(1, Mode::Pr), node.lock(2, Mode::Pr));
    let (a, b) = (node.granted(a), node.granted(b));
    let up = node.convert(1, a, Mode::Ex, Flags::NONE, None);
    let new = node.lock(3, Mode::Pr);
    assert_eq!((node.status(up), node.status(new)), (None, None));
    let expedite = node.lock_with(4, Mode::Nl, Flags::EXPEDITE);
    node.granted(expedite);
    node.unlock(2, b, Flags::NONE, None);
    node.granted(up);
    assert_eq!(node.status(new), None);
}

#[test]
fn two_conversions_that_wait_for_each_other_are_found_at_once() {
    let cases = [
        (Flags::NONE, Some((LockStatus::Deadlock, Some(Mode::Pr)))),
        (Flags::NOQUEUE, Some((LockStatus::Again, Some(Mode::Pr)))),
        (Flags::NODLCKWT, None),
        (Flags::CONVDEADLK, None),
    ];
    for (flags, expected) in cases {
        let mut node = Node::new();
        let (a, b) = (node.lock(1, Mode::Pr), node.lock(2, Mode::Pr));
        let (a, b) = (node.granted(a), node.granted(b));
        let first = node.convert(1, a, Mode::Ex, Flags::NONE, None);
        let second = node.convert(2, b, Mode::Ex, flags, None);
        assert_eq!(node.answer(second).map(|answer| (answer.1, answer.2)), expected, "{flags:?}");
        // Demoted to NL, the second lets the first through and is granted after it.
        assert_eq!(node.status(first).is_some(), flags == Flags::CONVDEADLK);
        if flags == Flags::CONVDEADLK {
            node.unlock(1, a, Flags::NONE, None);
            let answer = node.answer(second).unwrap();
            assert_eq!((answer.1, answer.3), (LockStatus::Success, ResultFlags::DEMOTED));
        }
    }
}

#[test]
fn a_demoted_conversion_gives_up_the_front_too() {
    let mut node = Node::new();
    let (a, b) = (node.lock(1, Mode::Pr), node.lock(2, Mode::Pr));
    let (a, b) = (node.granted(a), node.granted(b));
    let first = node.convert(1, a, Mode::Cw, Flags::NONE, None);
    let second = node.convert(2, b, Mode::Pw, Flags::CONVDEADLK.with(Flags::HEADQUE), None);
    node.granted(first);
    node.unlock(1, a, Flags::NONE, None);
    node.granted(second);
}

#[test]
fn a_deadlock_that_is_not_refused_is_told() {
    for flags in [Flags::NODLCKWT, Flags::NODLCKWT.with(Flags::HEADQUE)] {
        let mut node = Node::new();
        let (a, b) = (node.lock(1, Mode::Pr), node.lock(2, Mode::Pr));
        let locks = [node.granted(a), node.granted(b)];
        let first = node.convert(1, locks[0], Mode::Ex, Flags::NONE, None);
        assert_eq!(node.blocking(), [(locks[1], Mode::Ex)]);
        let second = node.convert(2, locks[1], Mode::Ex, flags, None);
        // The one behind is told; the second knew already that it is in the way of the first.
        let behind: &[(u32, Mode)] = if flags.has(Flags::HEADQUE) { &[(locks[0], Mode::Ex)] } else { &[] };
        assert_eq!((node.status(first), node.status(second), node.blocking().as_slice()), (None, None, behind), "{flags:?}");
    }
}

#[test]
fn who_is_put_at_the_front_does_not_wait_for_those_behind() {
    let mut node = Node::new();
    let reader = node.lock(1, Mode::Pr);
    let waiter = node.lock(2, Mode::Cw);
    let front = node.lock_with(3, Mode::Cr, Flags::HEADQUE);
    assert_eq!((node.status(reader).is_some(), node.status(waiter), node.status(front).is_some()), (true, None, true));
    let mut node = Node::new();
    let (reader, nl, other) = (node.lock(1, Mode::Pr), node.lock(4, Mode::Nl), node.lock(4, Mode::Nl));
    let (_, nl, other) = (node.granted(reader), node.granted(nl), node.granted(other));
    node.convert(4, nl, Mode::Cw, Flags::NONE, None);
    for flags in [Flags::HEADQUE, Flags::NOORDER] {
        let up = node.convert(4, other, Mode::Cr, flags.with(Flags::QUECVT), None);
        node.granted(up);
        let down = node.convert(4, other, Mode::Nl, Flags::NONE, None);
        node.granted(down);
    }
}

#[test]
fn a_try_fails_and_leaves_nothing() {
    let mut node = Node::new();
    let held = node.lock(1, Mode::Ex);
    let held = node.granted(held);
    let failed = node.lock_with(2, Mode::Pr, Flags::NOQUEUE);
    assert_eq!(node.answer(failed).map(|answer| (answer.1, answer.2)), Some((LockStatus::Again, None)));
    assert_eq!(node.blocking(), []);
    node.lock_with(2, Mode::Pr, Flags::NOQUEUE.with(Flags::NOQUEUEBAST));
    assert_eq!(node.blocking(), [(held, Mode::Pr)]);
    assert_eq!(node.service.status().locks, 1);
}

#[test]
fn alternatives_queue_heads_and_disorder() {
    let mut node = Node::new();
    let reader = node.lock(1, Mode::Pr);
    node.granted(reader);
    let alternative = node.lock_with(2, Mode::Ex, Flags::ALTPR);
    let answer = node.answer(alternative).unwrap();
    assert_eq!((answer.1, answer.2, answer.3), (LockStatus::Success, Some(Mode::Pr), ResultFlags::ALTMODE));
    let (writer, _) = (node.lock(3, Mode::Ex), node.blocking());
    let disorder = node.lock_with(4, Mode::Pr, Flags::NOORDER);
    node.granted(disorder);
    let head = node.lock_with(4, Mode::Ex, Flags::HEADQUE);
    for (session, serial) in [(1, reader), (2, alternative), (4, disorder)] {
        let lock = node.granted(serial);
        node.unlock(session, lock, Flags::NONE, None);
    }
    node.granted(head);
    assert_eq!(node.status(writer), None);
}

#[test]
fn the_value_block_goes_from_writer_to_reader() {
    let mut node = Node::new();
    let keeper = node.lock(3, Mode::Nl);
    node.granted(keeper);
    let writer = node.lock(1, Mode::Ex);
    let writer = node.granted(writer);
    node.convert(1, writer, Mode::Nl, Flags::VALBLK, Some(VALUE));
    let reader = node.lock_with(2, Mode::Pr, Flags::VALBLK);
    let answer = node.answer(reader).unwrap();
    assert_eq!((answer.4, answer.3), (Some(VALUE), ResultFlags::default()));
    // Unlock from PR writes nothing; unlock of a PW with IVVALBLK marks it.
    node.unlock(2, answer.0, Flags::VALBLK, Some([9; 32]));
    let marker = node.lock(2, Mode::Pw);
    let marker = node.granted(marker);
    node.unlock(2, marker, Flags::IVVALBLK, None);
    let reader = node.lock_with(2, Mode::Pr, Flags::VALBLK);
    let answer = node.answer(reader).unwrap();
    assert_eq!((answer.4, answer.3), (Some(VALUE), ResultFlags::VALNOTVALID));
}

#[test]
fn a_session_that_dies_frees_its_locks_and_marks_what_it_may_have_written() {
    let mut node = Node::new();
    let keeper = node.lock(3, Mode::Nl);
    node.granted(keeper);
    let writer = node.lock(1, Mode::Ex);
    node.granted(writer);
    let waiter = node.lock_with(2, Mode::Pr, Flags::VALBLK);
    let waiting_dead = node.lock(1, Mode::Ex);
    node.input(Input::SessionClosed { session: 1 });
    let answer = node.answer(waiter).unwrap();
    assert_eq!((answer.1, answer.3), (LockStatus::Success, ResultFlags::VALNOTVALID));
    assert_eq!(node.status(waiting_dead), None);
    node.input(Input::SessionClosed { session: 2 });
    node.input(Input::SessionClosed { session: 3 });
    node.input_at(5 + super::super::IDLE_MS, Input::Tick);
    let status = node.service.status();
    assert_eq!((status.locks, status.mastered, status.holds), (0, 0, false));
}

#[test]
fn nothing_is_granted_to_the_dead() {
    let mut node = Node::new();
    let keeper = node.lock(3, Mode::Nl);
    node.granted(keeper);
    let holder = node.lock(1, Mode::Pr);
    node.granted(holder);
    node.lock(1, Mode::Ex);
    node.input(Input::SessionClosed { session: 1 });
    let reader = node.lock_with(2, Mode::Pr, Flags::VALBLK);
    assert_eq!(node.answer(reader).unwrap().3, ResultFlags::default(), "nobody can have written");
}

#[test]
fn cancel_takes_back_what_waits_and_nothing_else() {
    let mut node = Node::new();
    let held = node.lock(1, Mode::Ex);
    let held = node.granted(held);
    let waiter = node.lock(2, Mode::Pr);
    node.serial += 1;
    let serial = node.serial;
    node.ask(2, ClientRequest::CancelRequest { serial, request: waiter });
    assert_eq!((node.status(waiter), node.status(serial)), (Some(LockStatus::Cancelled), Some(LockStatus::Success)));
    node.serial += 1;
    let serial = node.serial;
    node.ask(1, ClientRequest::Cancel { serial, lock: held });
    assert_eq!(node.answer(serial).map(|answer| (answer.1, answer.2)), Some((LockStatus::Success, Some(Mode::Ex))));
    assert_eq!(node.service.status().locks, 1);
}

#[test]
fn one_operation_per_lock_and_only_the_owner() {
    let mut node = Node::new();
    let (a, b) = (node.lock(1, Mode::Pr), node.lock(2, Mode::Pr));
    let (a, _) = (node.granted(a), node.granted(b));
    let up = node.convert(1, a, Mode::Ex, Flags::NONE, None);
    let busy = node.convert(1, a, Mode::Nl, Flags::NONE, None);
    assert_eq!(node.status(busy), Some(LockStatus::Busy));
    let busy = node.unlock(1, a, Flags::NONE, None);
    assert_eq!(node.status(busy), Some(LockStatus::Busy));
    let foreign = node.unlock(2, a, Flags::NONE, None);
    assert_eq!(node.status(foreign), Some(LockStatus::NotFound));
    let forced = node.unlock(1, a, Flags::FORCEUNLOCK, None);
    assert_eq!((node.status(up), node.status(forced)), (Some(LockStatus::Cancelled), Some(LockStatus::Unlocked)));
}

#[test]
fn a_blocking_callback_comes_once_per_strength() {
    let mut node = Node::new();
    let held = node.lock(1, Mode::Pr);
    let held = node.granted(held);
    node.lock(2, Mode::Cw);
    assert_eq!(node.blocking(), [(held, Mode::Cw)]);
    node.lock(3, Mode::Cw);
    assert_eq!(node.blocking(), []);
    node.lock(3, Mode::Ex);
    assert_eq!(node.blocking(), [(held, Mode::Ex)]);
    node.lock(4, Mode::Pw);
    assert_eq!(node.blocking(), []);
}

#[test]
fn tokens_grow_even_when_the_resource_was_forgotten_between() {
    let mut node = Node::new();
    let mut last = Token::default();
    for _ in 0..3 {
        let serial = node.lock(1, Mode::Ex);
        let answer = node.answer(serial).unwrap();
        assert!(answer.5 > last, "{:?} after {last:?}", answer.5);
        last = answer.5;
        node.unlock(1, answer.0, Flags::NONE, None);
        assert_eq!(node.service.status().mastered, 0);
    }
}

#[test]
fn a_grant_waits_for_the_permit_and_for_publication() {
    let me = life(0, 1);
    let mut service = LockService::new(me);
    let now_ms = core::cell::Cell::new(1);
    let mut outputs = |input: Input| {
        service.handle(now_ms.get(), input);
        core::iter::from_fn(|| service.poll_output()).filter(|output| !matches!(output, Output::Log(_))).collect::<Vec<_>>()
    };
    outputs(Input::View { number: ViewNumber(1), members: vec![me], owed: vec![], is_member: true });
    outputs(Input::SessionOpened { session: 1, info: SessionInfo::default() });
    let joined = outputs(Input::Request { session: 1, request: ClientRequest::JoinLockspace { serial: 1, name: b"s".to_vec() } });
    let [Output::Reply { reply: ClientReply::Joined { lockspace, .. }, .. }] = joined[..] else { panic!("{joined:?}") };
    let lock = ClientRequest::Lock {
        serial: 2,
        lockspace,
        resource: name(b"r"),
        mode: Mode::Ex,
        flags: Flags::NONE,
        owner: 0,
        timeout_ms: 0,
        lvb: None,
    };
    assert_eq!(outputs(Input::Request { session: 1, request: lock }), [Output::Holds(true)]);
    assert_eq!(outputs(Input::HoldsPublished(true)), []);
    assert!(matches!(outputs(Input::Permit { may_grant: true })[..], [Output::Reply { .. }]));
    assert_eq!(outputs(Input::Permit { may_grant: false }), []);
    let unlock = ClientRequest::Unlock { serial: 3, lock: 1, flags: Flags::NONE, lvb: None };
    assert!(matches!(outputs(Input::Request { session: 1, request: unlock })[..], [Output::Reply { .. }]), "it may come back at once");
    now_ms.set(now_ms.get() + super::super::IDLE_MS);
    assert_eq!(outputs(Input::Tick), [Output::Holds(false)], "nothing is held any more");
    let lock = ClientRequest::Lock {
        serial: 4,
        lockspace,
        resource: name(b"r"),
        mode: Mode::Ex,
        flags: Flags::NONE,
        owner: 0,
        timeout_ms: 0,
        lvb: None,
    };
    assert_eq!(outputs(Input::Request { session: 1, request: lock }), [Output::Holds(true)]);
    assert_eq!(outputs(Input::Permit { may_grant: true }), [], "granted, but not published");
    let told = outputs(Input::Lose { reason: "removed".into() });
    assert!(matches!(told[..], [Output::Reply { reply: ClientReply::Lost { .. }, .. }]), "{told:?}");
    assert_eq!(outputs(Input::HoldsPublished(true)), [], "what is lost is not given back");
}

fn join(session: u64, serial: u64, name: &[u8]) -> Input {
    Input::Request { session, request: ClientRequest::JoinLockspace { serial, name: name.to_vec() } }
}

#[test]
fn lockspaces_are_bounded_and_their_names_forgotten() {
    let mut node = Node::new();
    let refusals = |node: &Node, wanted: LockStatus| {
        node.replies.iter().filter(|(_, reply)| matches!(reply, ClientReply::Refused { status, .. } if *status == wanted)).count()
    };
    for number in 0..100u64 {
        node.input(join(1, number, &number.to_le_bytes()));
    }
    assert_eq!(
        (refusals(&node, LockStatus::NoMemory), node.service.names.len()),
        (100 - (SESSION_LOCKSPACES_MAX - 1), SESSION_LOCKSPACES_MAX)
    );
    let sessions = u64::try_from(NODE_LOCKSPACES_MAX / SESSION_LOCKSPACES_MAX).unwrap();
    node.replies.clear();
    for session in 10..10 + sessions {
        node.input(Input::SessionOpened { session, info: SessionInfo::default() });
        for number in 0..63u64 {
            node.input(join(session, number, &[session.to_le_bytes(), number.to_le_bytes()].concat()));
        }
    }
    assert!(refusals(&node, LockStatus::NoMemory) == 0);
    let last = 10 + sessions;
    node.input(Input::SessionOpened { session: last, info: SessionInfo::default() });
    (0..64u64).for_each(|number| node.input(join(last, number, &[last, number, 1].map(u64::to_le_bytes).concat())));
    assert_eq!((refusals(&node, LockStatus::NoMemory), node.service.lockspaces.len()), (64, NODE_LOCKSPACES_MAX));
    for session in 1..=last {
        node.input(Input::SessionClosed { session });
    }
    assert!(node.service.names.is_empty() && node.service.lockspaces.is_empty(), "{} names", node.service.names.len());
}

#[test]
fn what_waits_for_an_answer_is_bounded() {
    let mut service = Node::new().service;
    let space = *service.lockspaces.keys().next().unwrap();
    // Another member comes and says nothing: what it is home of waits.
    service.handle(2, Input::View { number: ViewNumber(2), members: vec![life(0, 1), life(1, 1)], owed: vec![], is_member: true });
    let homes_at_other = |byte: &u8| service.home(&Key::new(space, &[*byte]).unwrap()) == life(1, 1);
    let byte = (b'a'..=b'z').find(homes_at_other).unwrap();
    let lock = |serial| {
        let (resource, flags) = (name(&[byte]), Flags::NONE);
        ClientRequest::Lock { serial, lockspace: space, resource, mode: Mode::Ex, flags, owner: 0, timeout_ms: 0, lvb: None }
    };
    service.handle(2, Input::Request { session: 1, request: lock(2) });
    service.handle(2, Input::Request { session: 2, request: lock(1) });
    service.handle(2, join(1, 3, b"other"));
    service.handle(2, join(1, 4, b"other"));
    for serial in 100..120 {
        service.handle(2, Input::Request { session: 1, request: ClientRequest::CancelRequest { serial, request: 2 } });
    }
    for serial in 0..u64::try_from(SESSION_REQUESTS_MAX).unwrap() {
        service.handle(2, Input::Request { session: 1, request: lock(1000 + serial) });
    }
    let (mut busy, mut refused, mut last) = (0, 0, 0);
    while let Some(output) = service.poll_output() {
        match output {
            Output::Reply { reply: ClientReply::Refused { status: LockStatus::NoMemory, .. }, .. } => refused += 1,
            Output::Reply { reply: ClientReply::Refused { serial, status: LockStatus::Busy, .. }, .. } => last = serial,
            Output::Reply { reply: ClientReply::Completed { status: LockStatus::Busy, .. }, .. } => busy += 1,
            _ => {}
        }
    }
    // One lock, one lockspace and the cancels that were taken wait already.
    let waiting = 2 + OPERATION_CANCELS_MAX;
    assert_eq!((last, busy, refused), (4, 20 - OPERATION_CANCELS_MAX, waiting));
    assert_eq!(service.locks.len(), 2 + SESSION_REQUESTS_MAX - waiting);
}

#[test]
fn a_posted_request_has_no_answer() {
    let mut node = Node::new();
    let lock = node.lock(1, Mode::Ex);
    let lock = node.granted(lock);
    node.replies.clear();
    let convert = |lock, mode| {
        let (serial, flags, lvb) = (0, Flags::VALBLK, Some(VALUE));
        Input::Request { session: 1, request: ClientRequest::Convert { serial, lock, mode, flags, owner: 0, timeout_ms: 0, lvb } }
    };
    let unlock = |session| Input::Request { session, request: ClientRequest::Unlock { serial: 0, lock, flags: Flags::NONE, lvb: None } };
    // Only downwards; what is refused is not done, and not answered either.
    for refused in [convert(lock + 1, Mode::Nl), convert(lock, Mode::Ex), unlock(2)] {
        node.input(refused);
    }
    node.input(convert(lock, Mode::Pr));
    let reader = node.lock_with(2, Mode::Pr, Flags::VALBLK);
    assert_eq!(node.answer(reader).unwrap().4, Some(VALUE));
    node.input(unlock(1));
    let posted = node.replies.iter().filter(|(_, reply)| reply.answers() == Some(0)).count();
    assert_eq!((posted, node.service.sessions[&1].unanswered, node.service.locks.len()), (0, 0, 1));
}
