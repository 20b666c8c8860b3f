//! What: rings, several deadlocks at once, edges that come and go, and a random world whose whole history is known.
//! Owns: pictures made by hand, the world.
//! Invariants: none of its own.
//! Does not: know messages.
//! Called by: `cargo test`.

use super::*;
use crate::mode::Mode;
use crate::random::Random;
use deadbolt_disk_format::types::{BootId, Incarnation, SlotIndex};
use std::println;
use std::vec;

fn life(slot: u16) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) }
}

fn session(number: u64) -> Transaction {
    Transaction { life: Some(life(u16::try_from(number % 7).unwrap())), number, part: 0 }
}

fn lock_of(number: u64) -> u32 {
    u32::try_from(number).unwrap()
}

/// `who` waits since `waited_ms` for what `others` have.
fn wait(who: u64, waited_ms: u64, others: &[u64]) -> Wait {
    let blocker = |other: &u64| Blocker {
        who: session(*other),
        life: session(*other).life.unwrap(),
        lock: lock_of(*other),
        pid: lock_of(*other),
        claim: Claim::Mode(Mode::Pr),
        is_held: true,
        mark: 1,
    };
    Wait {
        id: WaitId { life: session(who).life.unwrap(), lock: lock_of(who), op: 1, is_range: false },
        who: session(who),
        pid: lock_of(who),
        claim: Claim::Mode(Mode::Ex),
        lockspace: b"a".to_vec(),
        resource: ResourceName::new(b"b").unwrap(),
        waited_ms,
        may_fail: true,
        blockers: others.iter().map(blocker).collect(),
    }
}

fn picture(waits: &[Wait]) -> Picture {
    waits.iter().map(|wait| (wait.id, wait.clone())).collect()
}

fn locks(verdict: &Verdict) -> Vec<u32> {
    verdict.victims.iter().map(|victim| victim.id.lock).collect()
}

#[test]
fn a_ring_of_any_length_loses_its_youngest_wait_once() {
    for length in [2, 3, 10, 10_000] {
        let waits: Vec<Wait> = (0..length).map(|who| wait(who, 1000 + (who * 7) % length, &[(who + 1) % length])).collect();
        let (mut search, ring) = (Search::default(), picture(&waits));
        let first = search.judge(&ring);
        assert!(first.is_suspicious && first.victims.is_empty(), "one picture proves nothing");
        let second = search.judge(&ring);
        assert_eq!(locks(&second), [0], "ring of {length}");
        assert!(second.is_suspicious, "who was to fail is looked after");
        let cycle = &second.victims[0].cycle;
        assert_eq!(cycle.steps.len() as u64 + u64::from(cycle.left_out), length);
        let is_closed = cycle.steps.last().map(|step| step.blocker) == cycle.steps.first().map(|step| step.waiter);
        assert_eq!(is_closed, cycle.left_out == 0);
        // Its failure is on its way: nobody else fails for it.
        assert!(search.judge(&ring).victims.is_empty());
        assert!(!search.judge(&picture(&[])).is_suspicious, "nobody waits any more");
    }
}

#[test]
fn the_cycle_is_named() {
    let waits = [wait(1, 300, &[2]), wait(2, 400, &[1])];
    let mut search = Search::default();
    search.judge(&picture(&waits));
    let verdict = search.judge(&picture(&waits));
    let text = "process 1 of slot 1 waits for EX on a/b, on which process 2 of slot 2 has PR; \
                process 2 of slot 2 waits for EX on a/b, on which process 1 of slot 1 has PR";
    assert_eq!(std::string::ToString::to_string(&verdict.victims[0].cycle), text);
}

#[test]
fn several_cycles_at_once_each_lose_one() {
    // Two apart, and two that share transaction 10, which waits in two places.
    let mut waits = vec![wait(1, 10, &[2]), wait(2, 20, &[1]), wait(3, 10, &[4]), wait(4, 20, &[5]), wait(5, 30, &[3])];
    waits.extend([wait(10, 50, &[11]), wait(11, 40, &[10]), wait(12, 45, &[10])]);
    let mut second_place = wait(10, 60, &[12]);
    second_place.id.lock = 110;
    waits.push(second_place);
    // Behind all of them, in none.
    waits.push(wait(20, 1, &[1, 3, 10]));
    let mut search = Search::default();
    search.judge(&picture(&waits));
    let mut victims = locks(&search.judge(&picture(&waits)));
    victims.sort_unstable();
    assert_eq!(victims, [1, 3, 11, 12]);
}

#[test]
fn who_must_not_fail_does_not() {
    let mut waits = [wait(1, 10, &[2]), wait(2, 20, &[3]), wait(3, 30, &[1])];
    waits[0].may_fail = false;
    let mut search = Search::default();
    search.judge(&picture(&waits));
    assert_eq!(locks(&search.judge(&picture(&waits))), [2]);
    for wait in &mut waits {
        wait.may_fail = false;
    }
    let mut search = Search::default();
    for turn in 0..3 {
        let verdict = search.judge(&picture(&waits));
        assert!(verdict.victims.is_empty());
        assert_eq!(verdict.is_suspicious, turn == 0, "a cycle that stays is not looked at without end");
    }
}

#[test]
fn a_transaction_of_all_nodes_may_wait_for_itself_and_a_session_may_not() {
    let everywhere = Transaction { life: None, number: 5, part: 0 };
    let mut own = wait(5, 300, &[5]);
    let mut search = Search::default();
    search.judge(&picture(core::slice::from_ref(&own)));
    assert!(search.judge(&picture(core::slice::from_ref(&own))).victims.is_empty());
    own.who = everywhere;
    own.blockers[0].who = everywhere;
    search.judge(&picture(core::slice::from_ref(&own)));
    assert_eq!(locks(&search.judge(&picture(&[own]))), [5]);
}

#[test]
fn edges_of_different_instants_make_no_cycle() {
    let (one, other) = (wait(1, 300, &[2]), wait(2, 300, &[1]));
    let mut search = Search::default();
    assert!(search.judge(&picture(&[one.clone(), other.clone()])).is_suspicious);
    let mut later = other.clone();
    later.id.op = 2;
    assert!(search.judge(&picture(&[one.clone(), later])).victims.is_empty(), "another operation");
    let mut regained = one;
    regained.blockers[0].mark = 2;
    assert!(search.judge(&picture(&[regained, other])).victims.is_empty(), "another grant");
}

#[test]
fn many_waits_without_a_cycle_are_looked_at_once() {
    // Each waits for the ten before it: nothing but the number of edges may count.
    let waits: Vec<Wait> = (0..10_000_u64).map(|who| wait(who, 500, &(who.saturating_sub(10)..who).collect::<Vec<_>>())).collect();
    let verdict = Search::default().judge(&picture(&waits));
    assert!(verdict.victims.is_empty() && !verdict.is_suspicious);
}

#[test]
fn a_tangle_is_undone_in_pieces() {
    // Everybody waits for everybody: all but one must fail, and no turn takes for ever.
    let waits: Vec<Wait> = (0..150).map(|who| wait(who, 500, &(0..150).filter(|other| *other != who).collect::<Vec<_>>())).collect();
    let mut search = Search::default();
    let mut failed = BTreeSet::new();
    let mut is_suspicious = true;
    while is_suspicious {
        let left: Vec<Wait> = waits.iter().filter(|wait| !failed.contains(&wait.id.lock)).cloned().collect();
        let verdict = search.judge(&picture(&left));
        failed.extend(locks(&verdict));
        is_suspicious = verdict.is_suspicious;
    }
    assert_eq!(failed.len(), 149);
}

const MASTERS: usize = 3;
const RESOURCES: usize = 9;
const TRANSACTIONS: usize = 7;

#[derive(Clone, Copy, PartialEq)]
struct Place {
    who: usize,
    op: u64,
    since: usize,
}

/// Resources that one at a time has, with their lines; a transaction may wait in several.
#[derive(Clone, Default)]
struct World {
    lines: [Vec<Place>; RESOURCES],
    last_op: u64,
    now: usize,
    cancelled: usize,
}

impl World {
    fn step(&mut self, random: &mut Random) {
        self.now += 1;
        let (who, resource) = (random.below(TRANSACTIONS), random.below(RESOURCES));
        let place = self.lines[resource].iter().position(|place| place.who == who);
        let is_waiting = self.lines.iter().filter(|line| line.iter().skip(1).any(|place| place.who == who)).count();
        match place {
            // Who waits has stopped, but for one more request now and then; giving up is rare.
            None if is_waiting == 0 || (is_waiting == 1 && random.below(4) == 0) => {
                self.last_op += 1;
                self.lines[resource].push(Place { who, op: self.last_op, since: self.now });
            }
            Some(0) if is_waiting == 0 => {
                self.lines[resource].remove(0);
            }
            Some(index) if index > 0 && random.below(15) == 0 => {
                self.cancelled += 1;
                self.lines[resource].remove(index);
            }
            _ => {}
        }
    }

    fn add_part(&self, master: usize, picture: &mut Picture) {
        for (resource, line) in self.lines.iter().enumerate().filter(|(resource, _)| resource % MASTERS == master) {
            for (place, next) in line.iter().zip(line.iter().skip(1)) {
                let other = u64::try_from(place.who).unwrap();
                let mut edge = wait(u64::try_from(next.who).unwrap(), u64::try_from(self.now - next.since).unwrap(), &[other]);
                edge.id.op = next.op;
                edge.id.lock = u32::try_from(resource * 100 + next.who).unwrap();
                edge.blockers[0].mark = place.op;
                edge.blockers[0].lock = u32::try_from(resource * 100 + place.who).unwrap();
                picture.insert(edge.id, edge);
            }
        }
    }

    /// Operations whose wait lies on a cycle, by brute force, without those in `ended`.
    fn deadlocked(&self, ended: &BTreeSet<u64>) -> BTreeSet<u64> {
        let mut reach = [[false; TRANSACTIONS]; TRANSACTIONS];
        let edges: Vec<(usize, usize, u64)> = self
            .lines
            .iter()
            .flat_map(|line| line.iter().zip(line.iter().skip(1)).map(|(place, next)| (next.who, place.who, next.op)))
            .filter(|(_, _, op)| !ended.contains(op))
            .collect();
        for (from, to, _) in &edges {
            reach[*from][*to] = true;
        }
        for middle in 0..TRANSACTIONS {
            for from in 0..TRANSACTIONS {
                for to in 0..TRANSACTIONS {
                    reach[from][to] |= reach[from][middle] && reach[middle][to];
                }
            }
        }
        edges.into_iter().filter(|(from, to, _)| reach[*to][*from]).map(|(_, _, op)| op).collect()
    }

    /// Each master is seen at an instant of its own.
    fn gather(&mut self, random: &mut Random) -> Picture {
        let mut picture = Picture::new();
        for master in 0..MASTERS {
            for _ in 0..random.below(12) {
                self.step(random);
            }
            self.add_part(master, &mut picture);
        }
        picture
    }
}

/// One world's life; victims, of them wrongly chosen, and cycles left at the end.
fn run(seed: u64, is_careless: bool) -> (usize, usize, usize) {
    let (mut random, mut world, mut search) = (Random(seed), World::default(), Search::default());
    let (mut victims, mut wrong) = (0, 0);
    let mut stood = World::default();
    for turn in 0..60 {
        if turn >= 50 {
            // Nothing moves any more but victims.
            let mut picture = Picture::new();
            (0..MASTERS).for_each(|master| world.add_part(master, &mut picture));
            let chosen = search.judge(&picture).victims;
            for victim in chosen {
                world.lines.iter_mut().for_each(|line| line.retain(|place| place.op != victim.id.op));
            }
            continue;
        }
        let picture = world.gather(&mut random);
        if is_careless {
            search.judge(&picture);
        }
        let mut ended = BTreeSet::new();
        for victim in search.judge(&picture).victims {
            victims += 1;
            // What stood between the two gatherings is what counts, less what earlier victims have ended.
            let was_right = stood.deadlocked(&ended).contains(&victim.id.op) || world.deadlocked(&ended).contains(&victim.id.op);
            wrong += usize::from(!was_right);
            ended.insert(victim.id.op);
        }
        stood = world.clone();
        for _ in 0..random.below(6) {
            world.step(&mut random);
        }
        // The failure reaches its master only now; an operation that was granted meanwhile stays.
        for line in &mut world.lines {
            let first = line.first().map(|place| place.op);
            line.retain(|place| !ended.contains(&place.op) || Some(place.op) == first);
        }
    }
    (victims, wrong, world.deadlocked(&BTreeSet::new()).len())
}

#[test]
fn no_wait_fails_that_was_in_no_deadlock_and_no_deadlock_stays() {
    let (mut victims, mut wrong) = (0, 0);
    for seed in 0..300 {
        let (chosen, mistaken, left) = run(seed, false);
        assert_eq!((mistaken, left), (0, 0), "seed {seed}: wrongly chosen, left");
        victims += chosen;
        wrong += run(seed, true).1;
    }
    println!("{victims} victims; believing single pictures chooses {wrong} wrongly");
    assert!(victims > 300 && wrong > 20, "{victims} {wrong}");
}
