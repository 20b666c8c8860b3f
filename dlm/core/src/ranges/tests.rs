//! What: the ranges of one resource against a model that keeps one cell per byte and judges everything anew after each step.
//! Owns: the model, the random operations.
//! Invariants: none of its own.
//! Does not: know messages.
//! Called by: `cargo test`.

use super::*;
use crate::peers::PeerId;
use crate::random::Random;
use std::string::String;
use std::vec;
use std::{format, println};

/// Bytes of the model; the last one stands at the end of all bytes.
const BYTES: usize = 14;
const OWNERS: usize = 5;

fn owner(number: usize) -> RangeOwner {
    // Two owners share a lock, two locks a node.
    let lock = u32::try_from(number / 2).unwrap();
    let peer = PeerId::of(u16::try_from(1 + number / 4).unwrap());
    RangeOwner { owner: Owner { peer, lock }, number: u64::try_from(number).unwrap() }
}

fn byte(index: usize) -> u64 {
    u64::MAX - u64::try_from(BYTES - 1 - index).unwrap()
}

fn span(first: usize, last: usize, kind: RangeMode) -> Span {
    Span { start: byte(first), end: byte(last), kind }
}

#[derive(Clone, Copy, Debug)]
struct ModelWait {
    owner: usize,
    op: u64,
    first: usize,
    last: usize,
    kind: RangeMode,
    is_try: bool,
}

#[derive(Default)]
struct Model {
    cells: [[Option<RangeMode>; BYTES]; OWNERS],
    waits: Vec<ModelWait>,
    results: Vec<(usize, u64, LockStatus)>,
}

impl Model {
    fn others_conflict(&self, owner: usize, first: usize, last: usize, kind: RangeMode) -> Vec<usize> {
        let conflicts = |other: &usize| {
            (first..=last).any(|byte| self.cells[*other][byte].is_some_and(|has| has == RangeMode::Write || kind == RangeMode::Write))
        };
        (0..OWNERS).filter(|other| *other != owner && conflicts(other)).collect()
    }

    /// Which earlier wait keeps it back?
    fn behind(&self, index: usize) -> Vec<usize> {
        let wait = self.waits[index];
        let is_behind = |other: &&ModelWait| {
            let overlap = other.first <= wait.last && wait.first <= other.last;
            let excludes = other.kind == RangeMode::Write || wait.kind == RangeMode::Write;
            let blockers = self.others_conflict(other.owner, other.first, other.last, other.kind);
            other.owner != wait.owner && overlap && excludes && !blockers.contains(&wait.owner)
        };
        self.waits[..index].iter().filter(is_behind).map(|other| other.owner).collect()
    }

    fn blockers(&self, index: usize) -> Vec<usize> {
        let wait = self.waits[index];
        let mut blockers = self.others_conflict(wait.owner, wait.first, wait.last, wait.kind);
        blockers.extend(self.behind(index));
        blockers.sort_unstable();
        blockers.dedup();
        blockers
    }

    fn settle(&mut self) {
        let mut index = 0;
        while index < self.waits.len() {
            let wait = self.waits[index];
            let is_free = self.blockers(index).is_empty();
            if !is_free && !wait.is_try {
                index += 1;
                continue;
            }
            self.waits.remove(index);
            let status = if is_free { LockStatus::Success } else { LockStatus::Again };
            self.results.push((wait.owner, wait.op, status));
            if is_free {
                for cell in &mut self.cells[wait.owner][wait.first..=wait.last] {
                    *cell = (*cell).max(Some(wait.kind));
                }
            }
            index = 0;
        }
    }

    fn ask(&mut self, wait: ModelWait, may_grant: bool) {
        if self.cells[wait.owner][wait.first..=wait.last].iter().all(|cell| *cell >= Some(wait.kind)) {
            self.results.push((wait.owner, wait.op, LockStatus::Success));
            return;
        }
        self.waits.push(wait);
        if may_grant {
            self.settle();
        }
    }
}

fn compare(ranges: &Ranges, model: &Model) -> Result<(), String> {
    let mut cells = [[None; BYTES]; OWNERS];
    let mut last: Option<(RangeOwner, Span)> = None;
    for (holder, span) in ranges.held() {
        let row = (0..OWNERS).find(|index| owner(*index) == holder).unwrap();
        for (index, cell) in cells[row].iter_mut().enumerate() {
            if span.start <= byte(index) && byte(index) <= span.end {
                *cell = Some(span.kind);
            }
        }
        if let Some((before, piece)) = last.filter(|(before, _)| *before == holder)
            && piece.end.checked_add(1) == Some(span.start)
            && piece.kind == span.kind
        {
            return Err(format!("{before:?} has two pieces where one is enough: {piece:?} {span:?}"));
        }
        last = Some((holder, span));
    }
    if cells != model.cells {
        return Err(format!("held: {cells:?}, expected {:?}", model.cells));
    }
    let ops: Vec<u64> = ranges.waiting().map(|wait| wait.op).collect();
    let expected: Vec<u64> = model.waits.iter().map(|wait| wait.op).collect();
    if ops != expected {
        return Err(format!("waiting: {ops:?}, expected {expected:?}"));
    }
    Ok(())
}

/// From each owner the same owners must be reached, whatever edges are left out.
fn compare_edges(ranges: &Ranges, model: &Model) -> Result<(), String> {
    let close = |mut reach: [[bool; OWNERS]; OWNERS]| {
        for middle in 0..OWNERS {
            for from in 0..OWNERS {
                for to in 0..OWNERS {
                    reach[from][to] |= reach[from][middle] && reach[middle][to];
                }
            }
        }
        reach
    };
    let (mut found, mut expected) = ([[false; OWNERS]; OWNERS], [[false; OWNERS]; OWNERS]);
    for (index, wait) in model.waits.iter().enumerate() {
        for blocker in model.blockers(index) {
            expected[wait.owner][blocker] = true;
        }
    }
    let number = |of: RangeOwner| usize::try_from(of.number).unwrap();
    for (wait, blockers) in ranges.edges(&mut 1_000_000) {
        for blocker in blockers {
            let (from, to) = (number(wait.owner), number(blocker.owner));
            if !expected[from][to] {
                return Err(format!("{wait:?} does not wait for {blocker:?}"));
            }
            found[from][to] = true;
        }
    }
    if close(found) == close(expected) { Ok(()) } else { Err(format!("edges {found:?}, expected {expected:?}")) }
}

fn step(random: &mut Random, op: u64, may_grant: bool, ranges: &mut Ranges, model: &mut Model) -> Result<(), String> {
    let (mut out, who) = (Vec::new(), random.below(OWNERS));
    let (a, b) = (random.below(BYTES), random.below(BYTES));
    let (first, last) = (a.min(b), if random.below(3) == 0 { a.min(b) } else { a.max(b) });
    let kind = if random.below(2) == 0 { RangeMode::Read } else { RangeMode::Write };
    model.results.clear();
    match random.below(20) {
        0..=9 => {
            let is_try = random.below(4) == 0;
            let flags = if is_try { Flags::NOQUEUE } else { Flags::NONE };
            let wait = RangeWait { owner: owner(who), op, span: span(first, last, kind), flags, since_ms: 0 };
            model.ask(ModelWait { owner: who, op, first, last, kind, is_try }, may_grant);
            ranges.ask(wait, may_grant, &mut out);
        }
        10..=15 => {
            let kind = [None, None, Some(RangeMode::Read)][random.below(3)];
            for cell in &mut model.cells[who][first..=last] {
                *cell = (*cell).min(kind);
            }
            ranges.lower(owner(who), (byte(first), byte(last)), kind);
        }
        16..=17 => {
            if let Some(wait) = model.waits.get(random.below(model.waits.len().max(1))).copied() {
                model.waits.retain(|other| other.op != wait.op);
                model.results.push((wait.owner, wait.op, LockStatus::Cancelled));
                ranges.end(owner(wait.owner), wait.op, LockStatus::Cancelled, &mut out);
            }
        }
        18 => {
            let gone: Vec<usize> = (0..OWNERS).filter(|index| owner(*index).owner == owner(who).owner).collect();
            for index in &gone {
                model.cells[*index] = [None; BYTES];
            }
            model.waits.retain(|wait| !gone.contains(&wait.owner));
            ranges.drop_lock(owner(who).owner);
        }
        _ => {
            let conflict = ranges.conflict(owner(who), &span(first, last, kind)).map(|(other, _)| usize::try_from(other.number).unwrap());
            let expected = model.others_conflict(who, first, last, kind);
            if conflict.is_some() == expected.is_empty() || conflict.is_some_and(|conflict| !expected.contains(&conflict)) {
                return Err(format!("conflict {conflict:?}, expected one of {expected:?}"));
            }
        }
    }
    if may_grant {
        model.settle();
        ranges.settle(true, &mut out);
    }
    let results: Vec<_> = out.iter().map(|result| (usize::try_from(result.owner.number).unwrap(), result.op, result.status)).collect();
    if results != model.results {
        return Err(format!("results {results:?}, expected {:?}", model.results));
    }
    compare(ranges, model)?;
    compare_edges(ranges, model)
}

#[test]
fn ranges_do_what_a_table_of_bytes_does() {
    let mut ends = [0_usize; 3];
    for seed in 0..400_u64 {
        let mut random = Random(seed);
        let (mut ranges, mut model) = (Ranges::default(), Model::default());
        for op in 1..=150 {
            // Sometimes the gate is closed for a while.
            let may_grant = (op / 25) % 3 != 1;
            if let Err(error) = step(&mut random, op, may_grant, &mut ranges, &mut model) {
                panic!("seed {seed}, step {op}: {error}");
            }
            for (_, _, status) in &model.results {
                ends[[LockStatus::Success, LockStatus::Again, LockStatus::Cancelled].iter().position(|known| known == status).unwrap()] +=
                    1;
            }
        }
    }
    println!("granted, refused, cancelled: {ends:?}");
    assert!(ends.iter().all(|count| *count > 1000), "{ends:?}");
}

#[test]
fn a_part_in_the_middle_is_given_back_and_taken_again() {
    let (mut spans, whole) = (Spans::default(), Span { start: 0, end: u64::MAX, kind: RangeMode::Write });
    spans.raise(&whole);
    spans.lower(10, 19, None);
    spans.lower(30, 39, Some(RangeMode::Read));
    let pieces = [(0, 9, RangeMode::Write), (20, 29, RangeMode::Write), (30, 39, RangeMode::Read), (40, u64::MAX, RangeMode::Write)];
    let pieces: Vec<Span> = pieces.into_iter().map(|(start, end, kind)| Span { start, end, kind }).collect();
    assert_eq!(spans.iter().collect::<Vec<_>>(), pieces);
    assert!(!spans.covers(&Span { start: 5, end: 25, kind: RangeMode::Read }));
    assert!(spans.covers(&Span { start: 20, end: u64::MAX, kind: RangeMode::Read }));
    assert!(!spans.covers(&Span { start: 20, end: u64::MAX, kind: RangeMode::Write }));
    spans.raise(&whole);
    assert_eq!(spans.iter().collect::<Vec<_>>(), vec![whole]);
    spans.lower(0, u64::MAX, None);
    assert!(spans.is_empty());
}

/// A scan of everything would make this take minutes.
#[test]
fn many_ranges_and_long_lines_stay_cheap() {
    let mut ranges = Ranges::default();
    let mut out = Vec::new();
    let lock = owner(0).owner;
    let ask = |who: u64, start: u64, end: u64, kind| RangeWait {
        owner: RangeOwner { owner: lock, number: who },
        op: who,
        span: Span { start, end, kind },
        flags: Flags::NONE,
        since_ms: 0,
    };
    let count = 20_000;
    for who in 0..count {
        let kind = if who % 2 == 0 { RangeMode::Read } else { RangeMode::Write };
        ranges.ask(ask(who, who * 10, who * 10 + 8, kind), true, &mut out);
    }
    assert_eq!((out.len(), ranges.held().count()), (20_000, 20_000));
    // Many want everything.
    for who in count..count + 500 {
        ranges.ask(ask(who, 0, u64::MAX, RangeMode::Write), true, &mut out);
    }
    assert_eq!(out.len(), 20_000);
    let mut budget = 1_000_000;
    let edges: usize = ranges.edges(&mut budget).iter().map(|(_, blockers)| blockers.len()).sum();
    assert_eq!(edges, 20_000 + 499, "a line has one edge from each to the one before it");
    // Lines that nothing shortens end with the budget.
    budget = 10_000;
    assert!(ranges.edges(&mut budget).len() < 500);
    assert_eq!(budget, 0);
    for who in 0..count {
        ranges.lower(ask(who, 0, 0, RangeMode::Read).owner, (0, u64::MAX), None);
    }
    ranges.settle(true, &mut out);
    assert_eq!(out.len(), 20_001);
}
