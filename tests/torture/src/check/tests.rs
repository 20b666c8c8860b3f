//! What: histories with planted mistakes, each of which has to be found, beside good ones that must not be blamed.
//! Owns: a small language for histories.
//! Invariants: every rule of the checker has a history that breaks it and nothing else.
//! Does not: start anything.
//! Called by: `cargo test`.

use super::*;
use crate::history::{Event, Field, Line, Value};
use deadbolt_dlm::Mode;

const BOUNDS: Bounds = Bounds { outage_ns: 1000, calm_ns: 500 };

fn life(node: usize, slot: u32) -> LifeName {
    LifeName { node, crew: 1, slot, life: 0 }
}

/// One lock of one client, step by step at given times.
struct Client {
    op: u32,
    resource: u8,
    token: Number,
    lines: Vec<Line>,
}

impl Client {
    fn asks(at: u64, mode: Mode) -> Self {
        let lines = vec![(at, Event::Ask { op: 1, resource: 0, mode: mode.number() })];
        Self { op: 1, resource: 0, token: (0, 0), lines }
    }

    /// Asks and gets it in the next instant.
    fn gets(at: u64, mode: Mode, token: u64) -> Self {
        Self::asks(at, mode).got(at + 1, token, Value::None)
    }

    fn on(mut self, resource: u8) -> Self {
        self.resource = resource;
        for (_, event) in &mut self.lines {
            if let Event::Ask { resource: asked, .. } = event {
                *asked = resource;
            }
        }
        self
    }

    fn say(mut self, at: u64, event: Event) -> Self {
        self.lines.push((at, event));
        self
    }

    fn got(mut self, at: u64, token: u64, value: Value) -> Self {
        self.token = (1, token);
        let event = Event::Got { op: self.op, token: self.token, value, is_kept: false };
        self.say(at, event)
    }

    fn converts(self, at: u64, mode: Mode) -> Self {
        let op = self.op;
        self.say(at, Event::Convert { op, mode: mode.number() })
    }

    fn converted(mut self, at: u64, token: u64) -> Self {
        self.token = (1, token);
        let event = Event::Converted { op: self.op, token: self.token, value: Value::None };
        self.say(at, event)
    }

    fn reads(self, at: u64, value: u64, token: u64) -> Self {
        let field = Field { value, token: (u64::from(token > 0), token) };
        let op = self.op;
        self.say(at, Event::Read { op, front: field, back: field })
    }

    fn writes(self, at: u64, value: u64) -> Self {
        let op = self.op;
        self.say(at, Event::Write { op, value })
    }

    fn done(self, at: u64) -> Self {
        let op = self.op;
        self.say(at, Event::Done { op })
    }

    /// Reads, writes one more, is done.
    fn increments(self, at: u64, before: u64, token: u64) -> Self {
        self.reads(at, before, token).writes(at + 1, before + 1).done(at + 2)
    }

    fn frees(self, at: u64) -> Self {
        let op = self.op;
        self.say(at, Event::Free { op }).say(at + 1, Event::Freed { op }).say(at + 1, Event::End)
    }
}

fn judged(clients: Vec<Client>, deeds: Vec<(u64, Deed)>, last: u64) -> Judgement {
    let named = clients.into_iter().zip(0..).map(|(client, slot)| (life(0, slot), client.lines));
    judge(&Written { histories: named.collect(), deeds }, &[last], BOUNDS).unwrap()
}

#[track_caller]
fn holds(clients: Vec<Client>, last: u64) -> Judgement {
    let judgement = judged(clients, Vec::new(), last);
    assert!(judgement.is_held(), "{:?}", judgement.violations);
    judgement
}

#[track_caller]
fn blamed(judgement: &Judgement, word: &str) {
    assert!(judgement.violations.iter().any(|said| said.contains(word)), "{word}: {:?}", judgement.violations);
    let others: Vec<&String> = judgement.violations.iter().filter(|said| !said.contains(word)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn one_after_the_other_holds() {
    let first = Client::gets(10, Mode::Ex, 1).increments(12, 0, 0).frees(20);
    let second = Client::asks(11, Mode::Ex).got(21, 2, Value::Counter(1)).increments(22, 1, 1).frees(30);
    let judgement = holds(vec![first, second], 2);
    assert_eq!((judgement.grants, judgement.increments, judgement.values_good), (2, 2, 1));
    assert_eq!(judgement.worst_wait_ns, 10);
}

#[test]
fn readers_stand_beside_each_other_and_nobody_beside_a_writer() {
    holds(vec![Client::gets(10, Mode::Pr, 1).frees(20), Client::gets(12, Mode::Pr, 2).frees(22)], 0);
    for (one, other) in [(Mode::Ex, Mode::Ex), (Mode::Pr, Mode::Ex), (Mode::Ex, Mode::Cr), (Mode::Pw, Mode::Pw), (Mode::Cw, Mode::Pr)] {
        let clients = vec![Client::gets(10, one, 1).frees(20), Client::gets(12, other, 2).frees(22)];
        blamed(&judged(clients, Vec::new(), 0), "held together");
    }
    holds(vec![Client::gets(10, Mode::Ex, 1).frees(20), Client::gets(12, Mode::Ex, 2).on(1).frees(22)], 0);
}

#[test]
fn a_killed_holder_holds_until_its_kill_and_no_longer() {
    let clients = || vec![Client::gets(10, Mode::Ex, 1), Client::asks(11, Mode::Ex).got(30, 2, Value::Doubtful).frees(40)];
    let killed = |at| vec![(at, Deed::Killed { life: life(0, 0) })];
    assert!(judged(clients(), killed(29), 0).is_held());
    blamed(&judged(clients(), killed(31), 0), "held together");
    // With all of its node.
    let crew_killed = |at| vec![(at, Deed::CrewKilled { node: 0, crew: 1 })];
    blamed(&judged(clients(), crew_killed(31), 0), "held together");
    // One that had been killed before is not the one that the kill of its node found.
    assert!(judged(clients(), [killed(29), crew_killed(31)].concat(), 0).is_held());
    // Nothing but its own last line is known.
    assert!(judged(clients(), Vec::new(), 0).is_held());
    let acts = vec![Client::gets(10, Mode::Ex, 1).reads(35, 0, 0), Client::asks(11, Mode::Ex).got(30, 2, Value::Doubtful).frees(40)];
    blamed(&judged(acts, Vec::new(), 0), "held together");
}

#[test]
fn a_conversion_keeps_what_both_modes_have() {
    let up = |other: Client| vec![Client::gets(10, Mode::Pr, 1).converts(20, Mode::Ex).converted(30, 3).frees(40), other];
    holds(up(Client::gets(12, Mode::Pr, 2).frees(25)), 0);
    blamed(&judged(up(Client::gets(24, Mode::Cw, 2).frees(26)), Vec::new(), 0), "held together");
    blamed(&judged(up(Client::gets(31, Mode::Pr, 4).frees(33)), Vec::new(), 0), "held together");
    let down = |other: Client| vec![Client::gets(10, Mode::Ex, 1).converts(20, Mode::Pr).converted(30, 1).frees(40), other];
    holds(down(Client::asks(12, Mode::Pr).got(25, 2, Value::None).frees(26)), 0);
    blamed(&judged(down(Client::asks(12, Mode::Pr).got(19, 2, Value::None).frees(26)), Vec::new(), 0), "held together");
    blamed(&judged(down(Client::asks(12, Mode::Ex).got(25, 2, Value::None).frees(26)), Vec::new(), 0), "held together");
    // Killed on the way down.
    let killed =
        |mode| vec![Client::gets(10, Mode::Ex, 1).converts(20, Mode::Pr), Client::asks(12, mode).got(25, 2, Value::None).frees(26)];
    let deeds = vec![(30, Deed::Killed { life: life(0, 0) })];
    assert!(judged(killed(Mode::Pr), deeds.clone(), 0).is_held());
    blamed(&judged(killed(Mode::Ex), deeds, 0), "held together");
}

#[test]
fn a_token_that_falls_is_found() {
    let order = |first, second| {
        vec![Client::gets(10, Mode::Ex, first).frees(20), Client::asks(11, Mode::Ex).got(21, second, Value::None).frees(30)]
    };
    holds(order(1, 2), 0);
    blamed(&judged(order(2, 1), Vec::new(), 0), "a token fell");
    blamed(&judged(order(2, 2), Vec::new(), 0), "a token fell");
    // Readers, one of which asks after the other has its grant.
    let readers = |second| vec![Client::gets(10, Mode::Pr, 5).frees(30), Client::gets(20, Mode::Pr, second).frees(30)];
    holds(readers(6), 0);
    blamed(&judged(readers(4), Vec::new(), 0), "a token did not grow");
    blamed(&judged(readers(5), Vec::new(), 0), "a token did not grow");
}

#[test]
fn a_lost_update_is_found() {
    let second = |before| Client::gets(20, Mode::Ex, 2).increments(22, before, before).frees(30);
    let first = || Client::gets(10, Mode::Ex, 1).increments(12, 0, 0).frees(15);
    holds(vec![first(), second(1)], 2);
    let judgement = judged(vec![first(), second(0)], Vec::new(), 1);
    blamed(&judgement, "the counter is 0, it was 1");
    assert_eq!(judgement.lost_updates, 1);
    // A late write set it back when nobody looked any more.
    let judgement = judged(vec![first(), second(1)], Vec::new(), 1);
    blamed(&judgement, "at the end resource 0");
    assert_eq!(judgement.lost_updates, 1);
    // More than anybody can have written.
    blamed(&judged(vec![first()], Vec::new(), 2), "the counter is 2, it was 1");
}

#[test]
fn an_increment_under_way_counts_or_not_but_not_first_one_then_the_other() {
    let killed = || Client::gets(10, Mode::Ex, 1).reads(12, 0, 0).writes(13, 1);
    for found in [0, 1] {
        holds(vec![killed()], found);
        holds(vec![killed(), Client::gets(20, Mode::Pr, 2).reads(22, found, found).frees(30)], found);
    }
    blamed(&judged(vec![killed()], Vec::new(), 2), "it was 0 or 1");
    let reader = Client::gets(20, Mode::Pr, 2).reads(22, 1, 1).frees(30);
    blamed(&judged(vec![killed(), reader], Vec::new(), 0), "at the end");
}

#[test]
fn a_writer_beside_a_reader_is_found() {
    let fields = |front, back| Event::Read {
        op: 1,
        front: Field { value: front, token: (1, front) },
        back: Field { value: back, token: (1, back) },
    };
    let first = || Client::gets(10, Mode::Ex, 1).increments(12, 0, 0).frees(15);
    let reader = |front, back| Client::gets(20, Mode::Pr, 2).say(22, fields(front, back)).frees(30);
    holds(vec![first(), reader(1, 1)], 1);
    blamed(&judged(vec![first(), reader(1, 0)], Vec::new(), 1), "somebody writes meanwhile");
    // A writer that was killed leaves the fields apart.
    holds(vec![Client::gets(10, Mode::Ex, 1).reads(12, 0, 0).writes(13, 1), reader(1, 0)], 1);
    // What was read twice under one grant changed.
    let twice = Client::gets(20, Mode::Pr, 2).reads(22, 1, 1).reads(25, 2, 1).frees(30);
    blamed(&judged(vec![first(), twice], Vec::new(), 2), "the counter is 2, it was 1");
    // A field that a later grant wrote.
    let late = Client::gets(20, Mode::Pr, 2).reads(22, 1, 9).frees(30);
    blamed(&judged(vec![first(), late], Vec::new(), 1), "a later grant has written");
}

#[test]
fn a_value_block_that_is_given_as_good_tells_the_counter() {
    let first = || Client::gets(10, Mode::Ex, 1).increments(12, 0, 0).frees(15);
    let second = |value| Client::asks(20, Mode::Pr).got(21, 2, value).reads(22, 1, 1).frees(30);
    for value in [Value::Counter(1), Value::Doubtful, Value::None] {
        holds(vec![first(), second(value)], 1);
    }
    blamed(&judged(vec![first(), second(Value::Counter(0))], Vec::new(), 1), "the value block was given as good");
    blamed(&judged(vec![first(), second(Value::Foreign)], Vec::new(), 1), "nobody wrote");
    // Its writer was killed under EX: whatever it says, it is in doubt.
    let killed = || Client::gets(10, Mode::Ex, 1).reads(12, 0, 0).writes(13, 1);
    for value in [0, 1] {
        blamed(&judged(vec![killed(), second(Value::Counter(value))], Vec::new(), 1), "the value block was given as good");
    }
    holds(vec![killed(), second(Value::Doubtful)], 1);
}

#[test]
fn who_waits_too_long_is_found_and_the_time_of_a_fault_does_not_count() {
    let waits = |until| vec![Client::asks(10, Mode::Ex).got(until, 1, Value::None).frees(until + 1)];
    let fault = |at| vec![(at, Deed::Fault { node: 1, kind: "kill".into() })];
    assert!(judged(waits(510), Vec::new(), 0).is_held());
    let late = judged(waits(511), Vec::new(), 0);
    blamed(&late, "waited at resource 0");
    assert_eq!(late.stuck_waiters, 1);
    assert!(judged(waits(1510), fault(100), 0).is_held());
    blamed(&judged(waits(1511), fault(100), 0), "waited at resource 0");
    // Two faults that overlap count once.
    assert!(judged(waits(1610), [fault(100), fault(200)].concat(), 0).is_held());
    blamed(&judged(waits(1611), [fault(100), fault(200)].concat(), 0), "waited at resource 0");
    // Never answered: until it was killed.
    let never = || vec![Client::asks(10, Mode::Ex)];
    let killed = |at| vec![(at, Deed::Killed { life: life(0, 0) })];
    assert!(judged(never(), killed(500), 0).is_held());
    blamed(&judged(never(), killed(600), 0), "never answered");
    // An unlock is waited for, too.
    let slow = Client::gets(10, Mode::Ex, 1).say(20, Event::Free { op: 1 }).say(600, Event::Freed { op: 1 });
    blamed(&judged(vec![slow], Vec::new(), 0), "waited at resource 0");
}

#[test]
fn a_session_that_ends_without_a_fault_is_found() {
    let lost = || vec![Client::gets(10, Mode::Ex, 1).reads(12, 0, 0).say(50, Event::Lost)];
    blamed(&judged(lost(), Vec::new(), 0), "lost its session");
    let fault = |node| vec![(40, Deed::Fault { node, kind: "kill".into() })];
    blamed(&judged(lost(), fault(1), 0), "lost its session");
    assert!(judged(lost(), fault(0), 0).is_held());
    // What it held counts until its last act.
    let other = |at| Client::asks(11, Mode::Ex).got(at, 2, Value::Doubtful).frees(60);
    let both = |at| lost().into_iter().chain([other(at)]).collect();
    assert!(judged(both(13), fault(0), 0).is_held());
    // One task saw it, the other one acts on.
    let acts = || lost().remove(0).say(55, Event::Read { op: 1, front: Field::default(), back: Field::default() });
    assert!(judged(vec![acts(), other(56)], fault(0), 0).is_held());
    blamed(&judged(vec![acts(), other(54)], fault(0), 0), "held together");
    let early = vec![lost().remove(0), Client::asks(9, Mode::Ex).got(11, 2, Value::Doubtful).frees(60)];
    assert!(!judged(early, fault(0), 0).is_held());
}

#[test]
fn an_odd_answer_and_a_history_that_no_client_makes_are_found() {
    let odd = Client::asks(10, Mode::Ex).say(11, Event::Odd { said: "what?".into() });
    blamed(&judged(vec![odd], Vec::new(), 0), "what?");
    for lines in [
        vec![(1, Event::Free { op: 1 })],
        vec![(1, Event::Ask { op: 1, resource: 0, mode: 9 })],
        vec![(1, Event::Ask { op: 1, resource: 0, mode: 5 }), (2, Event::Free { op: 1 })],
    ] {
        let written = Written { histories: BTreeMap::from([(life(0, 0), lines)]), deeds: Vec::new() };
        assert!(judge(&written, &[0], BOUNDS).is_err());
    }
}
