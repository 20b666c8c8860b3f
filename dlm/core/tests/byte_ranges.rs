//! Random requests for byte ranges, by a node alone and by the plain reference, in step: replacing, splitting, merging, waits and their order,
//! tries, queries, cancels, ends of waits, deadlocks across files, transactions, the death of processes and orphans. A seed decides everything.
//! `DEADBOLT_FULL=1` runs millions of operations; `DEADBOLT_DLM_SEED=n` runs one seed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it did")]

mod bytes;
mod node;
mod random;

use bytes::lockstep::{Lockstep, Step};
use bytes::{Ask, CELLS, Cells, Id, Owner};
use deadbolt_dlm_core::mode::STATUSES;
use deadbolt_dlm_core::{LockStatus, RangeMode};
use random::{Random, seeds};

const SESSIONS: usize = 4;
const SESSION_LOCKS_MAX: usize = 3;
const TIMEOUT_MAX: u64 = 300;
/// Long enough for deadlocks to be found.
const LONG_MS: u64 = 1500;
const STEPS_PER_RUN: u64 = 200;

struct Generator {
    random: Random,
    serial: u64,
    sessions: Vec<u64>,
    next_session: u64,
    /// Some runs have one file, few cells or few owners, so that the same meet often; some give much back, so that much is free.
    files: usize,
    cells: usize,
    owners: usize,
    free_percent: usize,
    transaction_percent: usize,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (files, cells, owners) = (1 + random.below(3), random.one(&[2, 5, CELLS]), 1 + random.below(3));
        let (free_percent, transaction_percent) = (random.one(&[20, 40, 60]), random.one(&[0, 0, 50]));
        let (serial, sessions, next_session) = (0, Vec::new(), 0);
        Self { random, serial, sessions, next_session, files, cells, owners, free_percent, transaction_percent }
    }

    fn next(&mut self, lockstep: &Lockstep) -> Step {
        while self.sessions.len() < SESSIONS {
            self.next_session += 1;
            self.sessions.push(self.next_session);
        }
        let place = self.random.below(self.sessions.len());
        let session = self.sessions[place];
        match self.random.below(200) {
            0..=1 => {
                self.sessions.remove(place);
                return Step::Die(session);
            }
            2..=5 => return Step::Pass(self.random.next() % 400),
            6 => return Step::Pass(LONG_MS),
            _ => {}
        }
        let bytes = &lockstep.bytes;
        let locks: Vec<Id> = bytes.locks.iter().filter(|lock| lock.session == session).map(|lock| lock.id).collect();
        let waits: Vec<u64> = bytes.waits.iter().filter(|wait| wait.session == session).map(|wait| wait.serial).collect();
        self.serial += 1;
        let ask = self.ask(&locks, &waits);
        Step::Ask(session, self.serial, ask)
    }

    fn ask(&mut self, locks: &[Id], waits: &[u64]) -> Ask {
        if locks.is_empty() || (locks.len() < SESSION_LOCKS_MAX && self.random.chance(10)) {
            return self.open();
        }
        // Somebody else's, or nobody's, now and then.
        let lock = if self.random.chance(2) { 1 + self.random.next() % self.serial } else { self.random.one(locks) };
        match self.random.below(100) {
            0..=2 => Ask::Close { lock, is_forced: self.random.chance(50) },
            3..=9 => Ask::Query { owner: self.owner(lock), cells: self.cells(5) },
            10..=19 if !waits.is_empty() => Ask::Cancel { request: self.random.one(waits) },
            20 => Ask::Cancel { request: 1 + self.random.next() % self.serial },
            _ => {
                let (owner, cells) = (self.owner(lock), self.cells(self.free_percent));
                let timeout = if self.random.chance(20) { 1 + self.random.next() % TIMEOUT_MAX } else { 0 };
                Ask::Range { owner, cells, is_try: self.random.chance(10), is_spared: self.random.chance(10), timeout }
            }
        }
    }

    fn open(&mut self) -> Ask {
        let file = b'a' + u8::try_from(self.random.below(self.files)).unwrap();
        let transaction = if self.random.chance(self.transaction_percent) { 1 + self.random.next() % 3 } else { 0 };
        if self.random.chance(10) {
            return Ask::Adopt { file, transaction };
        }
        Ask::Open { file, transaction, is_persistent: self.random.chance(20) }
    }

    fn owner(&mut self, lock: Id) -> Owner {
        Owner { lock, number: u64::try_from(self.random.below(self.owners)).unwrap() }
    }

    fn cells(&mut self, free_percent: usize) -> Cells {
        let ends = [self.random.below(self.cells), self.random.below(self.cells)];
        let is_reversed = self.random.chance(1);
        let (first, last) = if (ends[0] > ends[1]) == is_reversed { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
        let kind = if self.random.chance(free_percent) { None } else { Some(self.random.one(&[RangeMode::Read, RangeMode::Write])) };
        Cells { first, last, kind }
    }
}

/// Runs a seed; where it fails: what was done, and why it failed.
fn run(seed: u64, seen: &mut [usize; STATUSES.len()]) -> Result<(), (Vec<Step>, String)> {
    let (mut generator, mut lockstep, mut history) = (Generator::new(seed), Lockstep::new(), Vec::new());
    for _ in 0..STEPS_PER_RUN {
        let step = generator.next(&lockstep);
        history.push(step.clone());
        match lockstep.take(&step) {
            Ok(told) => told.iter().for_each(|told| seen[usize::from(told.2.number())] += 1),
            Err(error) => return Err((history, error)),
        }
    }
    Ok(())
}

fn replay(history: &[Step]) -> Result<(), String> {
    let mut lockstep = Lockstep::new();
    history.iter().try_for_each(|step| lockstep.take(step).map(drop))
}

#[test]
fn ranges_are_what_the_reference_makes_of_them() {
    let (mut seen, seeds) = ([0; STATUSES.len()], seeds(300, 20_000));
    for seed in seeds.clone() {
        if let Err((history, error)) = run(seed, &mut seen) {
            let (history, error) = random::shorten(history, error, replay);
            let steps: Vec<String> = history.iter().map(|step| format!("{step:?}")).collect();
            panic!("seed {seed}:\n{}\n{error}", steps.join("\n"));
        }
    }
    println!("{} operations: {seen:?}", STEPS_PER_RUN * (seeds.end - seeds.start));
    let limits = [LockStatus::NoMemory, LockStatus::Stopped];
    let expected = STATUSES.iter().filter(|status| !limits.contains(status)).map(|status| seen[usize::from(status.number())]);
    assert!(seeds.count() == 1 || expected.min() > Some(100), "hardly compared: {seen:?}");
}
