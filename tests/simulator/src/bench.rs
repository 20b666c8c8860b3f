//! What: how fast the simulator is.
//! Owns: the two loads that are measured, and the loop that they are compared with.
//! Invariants: loads and loop take turns on one core, and the best of several turns counts, so that other work on the machine shifts
//!   the ratios little.
//! Does not: own a clock; the program lends it one.
//! Called by: `deadbolt-sim --bench`.

use crate::{Outcome, Plan, random::mix, run};
use std::{fmt, hint::black_box, time::Duration};

const TURNS: u32 = 5;
const LOOP_ROUNDS: u32 = 20_000_000;
/// Three nodes, and nothing to do.
const IDLE: &[&str] = &["safety_s=500"];
/// Three nodes with clients that never pause.
const LOAD: &[&str] = &["safety_s=4", "clients=8", "resources=16"];

/// What was measured, each per CPU second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Million rounds of the loop: one multiplication waits for the other.
    pub loop_rounds: f64,
    /// Simulated seconds of an idle cluster.
    pub idle_s: f64,
    /// Thousand events of a busy cluster.
    pub load_events: f64,
}

/// Measures with a clock of CPU time.
///
/// # Errors
/// A run broke a promise.
pub fn measure(cpu_time: &dyn Fn() -> Duration) -> Result<Speed, String> {
    let mut best = Speed::default();
    for _ in 0..TURNS {
        let (_, seconds) = timed(cpu_time, || black_box((0..LOOP_ROUNDS).fold(black_box(1), |sum, _| mix(sum))));
        best.loop_rounds = best.loop_rounds.max(f64::from(LOOP_ROUNDS) / 1e6 / seconds);
        let (simulated_us, _, seconds) = measure_run(cpu_time, IDLE)?;
        best.idle_s = best.idle_s.max(simulated_us / 1e6 / seconds);
        let (_, events, seconds) = measure_run(cpu_time, LOAD)?;
        best.load_events = best.load_events.max(events / 1e3 / seconds);
    }
    Ok(best)
}

fn timed<T>(cpu_time: &dyn Fn() -> Duration, work: impl FnOnce() -> T) -> (T, f64) {
    let before = cpu_time();
    let result = work();
    (result, cpu_time().saturating_sub(before).as_secs_f64().max(1e-9))
}

/// Simulated us, events and CPU seconds of a calm run with these options.
fn measure_run(cpu_time: &dyn Fn() -> Duration, settings: &[&str]) -> Result<(f64, f64, f64), String> {
    let mut plan = Plan::new(1, true);
    settings.iter().try_for_each(|setting| plan.options.set(setting))?;
    let (outcome, seconds) = timed(cpu_time, || run(&plan, false));
    let Outcome { violations, simulated_us, events, .. } = outcome;
    match violations.first() {
        Some(broken) => Err(format!("{plan}\n{}: {}", broken.promise, broken.what)),
        None => Ok((float(simulated_us), float(events), seconds)),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(number: u64) -> f64 {
    number as f64
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loop_rounds, idle_s, load_events } = self;
        writeln!(f, "per CPU second on one core, best of {TURNS}; in brackets per million rounds of the loop")?;
        writeln!(f, "loop                 {loop_rounds:>8.0} million rounds")?;
        writeln!(f, "idle, three nodes    {idle_s:>8.0} simulated seconds ({:.2})", idle_s / loop_rounds)?;
        write!(f, "load, 24 clients     {load_events:>8.0} thousand events ({:.2})", load_events / loop_rounds)
    }
}
