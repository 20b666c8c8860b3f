//! What: what happened in a run: a hash of all of it, and lines for people.
//! Owns: the hash, the count of events, the last lines.
//! Invariants: two runs with the same seed, options and program have the same hash.
//! Does not: judge.
//! Called by: the world.

use crate::random::mix;
use std::collections::{HashSet, VecDeque};

/// Lines kept for a failure report.
const LINES_KEPT: usize = 400;

/// The log of a run.
#[derive(Debug, Default)]
pub struct Log {
    hash: u64,
    events: u64,
    states: HashSet<u64>,
    lines: VecDeque<String>,
    is_tracing: bool,
}

impl Log {
    /// A log that keeps every line, if wanted.
    #[must_use]
    pub fn new(is_tracing: bool) -> Self {
        Self { is_tracing, ..Self::default() }
    }

    /// An event, as a number.
    pub fn event(&mut self, now_us: u64, what: u64) {
        self.events += 1;
        self.hash = mix(self.hash ^ now_us.rotate_left(20) ^ what);
    }

    /// A state of the world, as a fingerprint.
    pub fn state(&mut self, fingerprint: u64) {
        self.states.insert(fingerprint);
    }

    /// A line for people; part of the hash.
    pub fn line(&mut self, now_us: u64, text: &str) {
        let bytes = text.bytes().fold(0u64, |sum, byte| sum.rotate_left(5).wrapping_mul(31).wrapping_add(u64::from(byte)));
        self.hash = mix(self.hash ^ bytes);
        if !self.is_tracing && self.lines.len() >= LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>5}.{:06} {text}", now_us / 1_000_000, now_us % 1_000_000));
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How many lines there are.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.lines.len()
    }

    /// The lines from one on, in a log that keeps all.
    #[must_use]
    pub fn lines_from(&self, first: usize) -> Vec<String> {
        self.lines.iter().skip(first).cloned().collect()
    }

    /// The fingerprints of distinct states, and the lines kept.
    #[must_use]
    pub fn into_parts(self) -> (HashSet<u64>, Vec<String>) {
        (self.states, self.lines.into())
    }
}
