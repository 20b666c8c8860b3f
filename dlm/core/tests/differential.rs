//! Random operations against a node alone and against the reference, in step. A seed decides everything.
//! The reference has no bound of fairness (docs/locks.md), and a run is too short to meet it; byte ranges have a test of their own
//! (`byte_ranges.rs`). `DEADBOLT_FULL=1` runs millions of operations; `DEADBOLT_DLM_SEED=n` runs one seed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it did")]

mod lockstep;
mod node;
mod random;
mod reference;

use deadbolt_dlm_core::mode::{MODES, STATUSES};
use deadbolt_dlm_core::{Flags, LockStatus, Mode};
use lockstep::Lockstep;
use lockstep::text::{Step, read_step, write_queues, write_step};
use random::{Random, seeds};
use reference::{Answer, Ask, Lock, Options, Told};

const RESOURCES: usize = 3;
const SESSIONS: usize = 4;
const STEPS_PER_RUN: u64 = 200;

/// Flags that are legal with what is asked, most of the time.
const LOCK_FLAGS: [Flags; 10] = [
    Flags::PERSISTENT,
    Flags::ORPHAN,
    Flags::SYNCSTS,
    Flags::NOQUEUE,
    Flags::HEADQUE,
    Flags::NOORDER,
    Flags::ALTPR,
    Flags::ALTCW,
    Flags::NODLCKBLK,
    Flags::EXPEDITE,
];
const MANY_FLAGS: [Flags; 5] = [Flags::PERSISTENT, Flags::NOQUEUE, Flags::HEADQUE, Flags::NOORDER, Flags::NODLCKBLK];
const CONVERT_FLAGS: [Flags; 11] = [
    Flags::PERSISTENT,
    Flags::SYNCSTS,
    Flags::NOQUEUE,
    Flags::QUECVT,
    Flags::HEADQUE,
    Flags::NOORDER,
    Flags::ALTPR,
    Flags::ALTCW,
    Flags::CONVDEADLK,
    Flags::NODLCKWT,
    Flags::IVVALBLK,
];

struct Generator {
    random: Random,
    serial: u64,
    sessions: Vec<u64>,
    next_session: u64,
    /// Some runs use few kinds of flags, so that their queues grow long; some use wrong ones.
    flag_percent: usize,
    bad_percent: usize,
    /// Some runs use few modes and one resource, so that the same meet often.
    modes: Vec<Mode>,
    resources: usize,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (flag_percent, bad_percent) = (random.one(&[0, 10, 50]), random.one(&[0, 0, 5]));
        let (kinds, resources) = (2 + random.below(8), 1 + random.below(RESOURCES));
        let modes = (0..kinds).map(|_| random.one(&MODES)).collect();
        Self { random, serial: 0, sessions: Vec::new(), next_session: 0, flag_percent, bad_percent, modes, resources }
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
            2 => return Step::Pass(self.random.next() % 20),
            3 => {
                let one = 1 + self.random.next() % self.next_session;
                let of = self.random.chance(80).then_some(one);
                return self.step(session, Ask::Purge { of });
            }
            _ => {}
        }
        let locks = lockstep.reference().resources.values().flat_map(|resource| resource.locks());
        let mine: Vec<&Lock> = locks.filter(|lock| lock.session == session).collect();
        let ask = self.ask(&mine);
        if matches!(ask, Ask::Unlock { .. } | Ask::Convert { .. }) && self.random.chance(10) {
            return Step::Ask(session, 0, ask);
        }
        self.step(session, ask)
    }

    fn step(&mut self, session: u64, ask: Ask) -> Step {
        let serial = self.serial + 1;
        // Each of many locks has a number of its own.
        self.serial += if let Ask::Many { items, .. } = &ask { u64::try_from(items.len().max(1)).unwrap() } else { 1 };
        Step::Ask(session, serial, ask)
    }

    fn ask(&mut self, mine: &[&Lock]) -> Ask {
        let asked: Vec<&Lock> = mine.iter().copied().filter(|lock| lock.wanted.is_some()).collect();
        let idle: Vec<&Lock> = mine.iter().copied().filter(|lock| lock.wanted.is_none()).collect();
        match self.random.below(100) {
            0..=9 if mine.len() < 4 => self.many(),
            10..=29 if mine.len() < 4 => self.lock(),
            30..=59 if !idle.is_empty() => self.convert(&idle),
            60..=84 if !idle.is_empty() => self.unlock(&idle),
            85..=89 if !asked.is_empty() => Ask::Cancel { lock: self.random.one(&asked).id },
            90..=94 if !asked.is_empty() => Ask::CancelRequest { request: self.random.one(&asked).wanted.as_ref().unwrap().serial },
            95 if !asked.is_empty() => self.unlock(&asked),
            96 if !asked.is_empty() => self.convert(&asked),
            97 if !idle.is_empty() => Ask::Cancel { lock: self.random.one(&idle).id },
            98 => Ask::CancelRequest { request: self.random.next() % (self.serial + 1) },
            _ => self.lock(),
        }
    }

    fn mode(&mut self) -> Mode {
        self.random.one(&self.modes)
    }

    fn flags(&mut self, of: &[Flags]) -> Flags {
        let mut flags = Flags::NONE;
        while self.random.chance(self.flag_percent) {
            flags = flags.with(self.random.one(of));
        }
        if flags.has(Flags::NOQUEUE) && self.random.chance(50) {
            flags = flags.with(Flags::NOQUEUEBAST);
        }
        if self.random.chance(self.bad_percent) {
            // What the reference does not know has its own scenes.
            let unknown = Flags::PERSISTENT.with(Flags::ORPHAN).with(Flags::SYNCSTS);
            flags = flags.with(Flags((1 << self.random.below(32)) & !unknown.0));
        }
        flags
    }

    /// With a value block and a bounded wait, or without.
    fn options(&mut self, flags: Flags) -> Options {
        let timeout = if self.random.chance(10) { 1 + u32::try_from(self.random.below(30)).unwrap() } else { 0 };
        let mut options = Options { flags, lvb: None, timeout };
        if self.random.chance(50) {
            options.flags = flags.with(Flags::VALBLK);
            // Without one: a bad argument.
            options.lvb = (!self.random.chance(self.bad_percent)).then(|| [u8::try_from(self.random.below(256)).unwrap(); 32]);
        }
        options
    }

    fn lock(&mut self) -> Ask {
        let (mut flags, mode) = (self.flags(&LOCK_FLAGS), self.mode());
        if mode != Mode::Nl && !self.random.chance(self.bad_percent) {
            flags = Flags(flags.0 & !Flags::EXPEDITE.0);
        }
        let resource = b'a' + u8::try_from(self.random.below(self.resources)).unwrap();
        Ask::Lock { resource, mode, options: self.options(flags) }
    }

    fn many(&mut self) -> Ask {
        let flags = self.flags(&MANY_FLAGS);
        let timeout = if self.random.chance(20) { 1 + u32::try_from(self.random.below(30)).unwrap() } else { 0 };
        let mut items = Vec::new();
        for resource in b'a'.. {
            let is_more = items.len() < self.resources || self.random.chance(self.bad_percent);
            if !is_more {
                break;
            }
            let resource = b'a' + (resource - b'a') % u8::try_from(self.resources).unwrap();
            items.insert(self.random.below(items.len() + 1), (resource, self.mode()));
        }
        if items.len() > 1 && self.random.chance(30) {
            items.pop();
        }
        Ask::Many { items, options: Options { flags, lvb: None, timeout } }
    }

    fn convert(&mut self, of: &[&Lock]) -> Ask {
        let (lock, mode, mut flags) = (self.random.one(of).id, self.mode(), self.flags(&CONVERT_FLAGS));
        if !flags.has(Flags::NOQUEUE) && self.random.chance(self.flag_percent) {
            flags = flags.with(Flags::CONVDEADLK);
        }
        Ask::Convert { lock, mode, options: self.options(flags) }
    }

    fn unlock(&mut self, of: &[&Lock]) -> Ask {
        let lock = self.random.one(of).id;
        let mut flags = if self.random.chance(10) { Flags::FORCEUNLOCK } else { Flags::NONE };
        if self.random.chance(10) {
            flags = flags.with(Flags::IVVALBLK);
        }
        if self.random.chance(self.bad_percent) {
            flags = flags.with(Flags(1 << self.random.below(32)));
        }
        Ask::Unlock { lock, options: Options { timeout: 0, ..self.options(flags) } }
    }
}

/// What came out of the runs: a generator that never gets somewhere compares nothing there.
#[derive(Default, Debug)]
struct Seen {
    statuses: [usize; STATUSES.len()],
    /// DEMOTED, VALNOTVALID, ALTMODE, SYNCH.
    flags: [usize; 4],
    value_blocks: usize,
    blocking: usize,
    /// How many at once ended.
    many: [usize; STATUSES.len()],
}

impl Seen {
    fn count(&mut self, told: &[Told]) {
        for (_, answer) in told {
            match answer {
                Answer::Blocking { .. } => self.blocking += 1,
                Answer::Many { status, .. } => self.many[usize::from(status.number())] += 1,
                Answer::Done { status, flags, lvb, .. } => {
                    self.statuses[usize::from(status.number())] += 1;
                    self.value_blocks += usize::from(lvb.is_some());
                    (0..4).filter(|bit| flags.0 & (1 << bit) != 0).for_each(|bit| self.flags[bit] += 1);
                }
            }
        }
    }
}

/// Runs a seed; where it fails: what was done, and why it failed.
fn run(seed: u64, seen: &mut Seen) -> Result<(), (Vec<Step>, String)> {
    let (mut generator, mut lockstep, mut history) = (Generator::new(seed), Lockstep::new(), Vec::new());
    for _ in 0..STEPS_PER_RUN {
        let step = generator.next(&lockstep);
        // What is printed of a failure can be kept as a transcript.
        assert_eq!(read_step(&write_step(&step)).as_ref(), Some(&step));
        history.push(step.clone());
        match lockstep.take(&step) {
            Ok(told) => seen.count(&told),
            Err(error) => return Err((history, error)),
        }
    }
    Ok(())
}

fn replay(history: &[Step]) -> Result<(), String> {
    let mut lockstep = Lockstep::new();
    history.iter().try_for_each(|step| lockstep.take(step).map(drop))
}

/// The steps, and the queues before the last of them.
fn tell(history: &[Step]) -> String {
    let (_, before) = history.split_last().unwrap();
    let mut lockstep = Lockstep::new();
    before.iter().for_each(|step| drop(lockstep.take(step)));
    let steps: Vec<String> = history.iter().map(write_step).collect();
    let queues: Vec<String> = lockstep.reference().resources.keys().map(|name| write_queues(lockstep.reference(), *name)).collect();
    format!("{}\nbefore the last of them:\n{}", steps.join("\n"), queues.join("\n"))
}

#[test]
fn the_product_does_what_the_reference_does() {
    let (mut seen, seeds) = (Seen::default(), seeds(1500, 15_000));
    for seed in seeds.clone() {
        if let Err((history, error)) = run(seed, &mut seen) {
            let (history, error) = random::shorten(history, error, replay);
            panic!("seed {seed}:\n{}\n{error}", tell(&history));
        }
    }
    println!("{} operations: {seen:?}", STEPS_PER_RUN * (seeds.end - seeds.start));
    let limits = [LockStatus::NoMemory, LockStatus::Stopped];
    let expected = STATUSES.iter().filter(|status| !limits.contains(status)).map(|status| seen.statuses[usize::from(status.number())]);
    let ends = [LockStatus::Success, LockStatus::Again, LockStatus::Cancelled, LockStatus::TimedOut, LockStatus::Invalid];
    let many = ends.map(|status| seen.many[usize::from(status.number())]);
    let all = expected.chain(seen.flags).chain([seen.value_blocks, seen.blocking]).chain(many);
    assert!(seeds.count() == 1 || all.min() > Some(100), "hardly compared: {seen:?}");
}
