//! What: what the demo says: a timeline for people, or one JSON object.
//! Owns: the phases' results, the words.
//! Invariants: with `--json` nothing but the object is printed on standard output.
//! Does not: judge.
//! Called by: the demo.

use super::tally::Judgement;
use serde_json::{Value, json};
use std::time::Instant;

/// One phase that came to its end.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    /// Its name.
    pub(super) name: &'static str,
    /// How long it took.
    pub(super) time_ms: u64,
    /// How long it should take at most.
    pub(super) budget_ms: u64,
    /// What happened.
    pub(super) detail: String,
}

impl Phase {
    fn is_late(&self) -> bool {
        self.time_ms > self.budget_ms
    }
}

/// Everything said so far.
#[derive(Debug)]
pub(super) struct Report {
    begin: Instant,
    is_json: bool,
    phases: Vec<Phase>,
    environment: Vec<String>,
}

fn in_seconds(time_ms: u64) -> String {
    format!("{}.{} s", time_ms / 1000, time_ms % 1000 / 100)
}

impl Report {
    pub(super) fn new(is_json: bool) -> Self {
        Self { begin: Instant::now(), is_json, phases: Vec::new(), environment: Vec::new() }
    }

    /// A line of the timeline.
    pub(super) fn say(&self, text: &str) {
        if !self.is_json {
            let passed = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            println!("{:>8}  {text}", in_seconds(passed));
        }
    }

    /// A line about the machine.
    pub(super) fn note(&mut self, text: String) {
        if !self.is_json {
            println!("          note: {text}");
        }
        self.environment.push(text);
    }

    /// What the machine offers; no line is printed.
    pub(super) fn environment(&mut self, text: String) {
        self.environment.push(text);
    }

    /// A phase begins.
    pub(super) fn begin(&self, name: &str, what: &str) {
        if !self.is_json {
            println!();
        }
        self.say(&format!("[{name}] {what}"));
    }

    /// A phase has ended.
    pub(super) fn end(&mut self, phase: Phase) {
        let late = if phase.is_late() { ", LATE" } else { "" };
        self.say(&format!(
            "[{}] done in {} (budget {}{late}): {}",
            phase.name,
            in_seconds(phase.time_ms),
            in_seconds(phase.budget_ms),
            phase.detail
        ));
        self.phases.push(phase);
    }

    /// The last words.
    pub(super) fn finish(&self, judgement: &Judgement, failure: Option<&str>) {
        let is_held = failure.is_none();
        if self.is_json {
            println!("{}", self.object(judgement, failure));
            return;
        }
        println!();
        println!("{:<12} {:>9} {:>9}", "phase", "time", "budget");
        for phase in &self.phases {
            let late = if phase.is_late() { "  late" } else { "" };
            println!("{:<12} {:>9} {:>9}{late}", phase.name, in_seconds(phase.time_ms), in_seconds(phase.budget_ms));
        }
        println!();
        println!(
            "counter {}, acknowledged increments {}, under way when a worker was ended {}, lost updates {}",
            judgement.counter, judgement.done, judgement.in_flight, judgement.lost_updates
        );
        if let Some(failure) = failure {
            println!("broken: {failure}");
        }
        println!("verdict: {}", word(is_held));
    }

    fn object(&self, judgement: &Judgement, failure: Option<&str>) -> Value {
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|phase| {
                json!({
                    "name": phase.name,
                    "time_ms": phase.time_ms,
                    "budget_ms": phase.budget_ms,
                    "within_budget": !phase.is_late(),
                    "detail": phase.detail,
                })
            })
            .collect();
        json!({
            "verdict": word(failure.is_none()),
            "lost_updates": judgement.lost_updates,
            "counter": judgement.counter,
            "acknowledged": judgement.done,
            "in_flight": judgement.in_flight,
            "failure": failure,
            "phases": phases,
            "environment": self.environment,
        })
    }
}

fn word(is_held: bool) -> &'static str {
    if is_held { "held" } else { "broken" }
}
