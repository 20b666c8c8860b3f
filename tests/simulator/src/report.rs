//! What: what runs showed, as lines for people and as JSON.
//! Owns: the words.
//! Invariants: a failing run is one line that a shell takes as the command that replays it.
//! Does not: print.
//! Called by: the program, the tests.

use crate::{Options, Outcome, check::Violation, options::OPTIONS, runner::Totals};
use serde_json::{Map, Value, json};
use std::{fmt::Write, time::Duration};

fn broken(violation: &Violation) -> String {
    let (seconds, us) = (violation.at_us / 1_000_000, violation.at_us % 1_000_000);
    format!("{} at {seconds}.{us:06} s: {}", violation.promise, violation.what)
}

/// A failing run: the command that replays it, and what it broke.
#[must_use]
pub fn failure(outcome: &Outcome) -> String {
    let first = outcome.violations.first().map_or_else(String::new, broken);
    format!("{}; {first}", outcome.plan)
}

/// One run: its options, its last lines, its verdict.
#[must_use]
pub fn run(outcome: &Outcome, lines: usize) -> String {
    let options = if outcome.plan.is_fencing { String::new() } else { outcome.plan.options.to_string() };
    let mut text = format!("seed {}\n{options}", outcome.plan.seed);
    for line in outcome.lines.iter().skip(outcome.lines.len().saturating_sub(lines)) {
        let _ = writeln!(text, "{line}");
    }
    for violation in &outcome.expected {
        let _ = writeln!(text, "known, nothing keeps it yet: {}", broken(violation));
    }
    for violation in &outcome.violations {
        let _ = writeln!(text, "broken: {}", broken(violation));
    }
    let (granted, views) = if outcome.plan.is_fencing { ("proofs", "fences") } else { ("locks granted", "views") };
    let _ = writeln!(
        text,
        "{} events, {} faults, {} {granted}, {} {views}, {} distinct states, {} s simulated",
        outcome.events,
        outcome.faults,
        outcome.granted,
        outcome.views,
        outcome.states.len(),
        outcome.simulated_us / 1_000_000
    );
    let verdict = if outcome.violations.is_empty() { "every promise held" } else { "a promise was broken" };
    let _ = write!(text, "hash {:016x}\nreplay: {}\nverdict: {verdict}", outcome.hash, outcome.plan);
    text
}

/// What many runs showed so far, in one line.
#[must_use]
pub fn progress(totals: &Totals) -> String {
    format!(
        "{} runs, {} broke a promise; {} events, {} distinct states, {} s simulated",
        totals.runs,
        totals.failing,
        totals.events,
        totals.states.len(),
        totals.simulated_us / 1_000_000
    )
}

/// What many runs showed.
#[must_use]
pub fn totals(totals: &Totals, elapsed: Duration, cpu: Duration) -> String {
    let known: String =
        totals.expected.iter().map(|(promise, runs)| format!("\n{promise} in {runs} runs: known, nothing keeps it yet")).collect();
    format!(
        "{}{known}\n{} faults, {} views or fences, {} locks granted or proofs\n{:.0} s, {:.0} events per second, {:.1} simulated seconds per CPU second",
        progress(totals),
        totals.faults,
        totals.views,
        totals.granted,
        elapsed.as_secs_f64(),
        per(totals.events, elapsed),
        per(totals.simulated_us, cpu) / 1e6
    )
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// One run as JSON.
#[must_use]
pub fn run_json(outcome: &Outcome) -> Value {
    let options: Map<String, Value> = OPTIONS.iter().map(|info| (info.name.into(), outcome.plan.options.get(info.name).into())).collect();
    json!({
        "seed": outcome.plan.seed,
        "held": outcome.violations.is_empty(),
        "broken": broken_json(outcome),
        "replay": outcome.plan.to_string(),
        "hash": format!("{:016x}", outcome.hash),
        "options": options,
        "events": outcome.events,
        "faults": outcome.faults,
        "granted": outcome.granted,
        "views": outcome.views,
        "states": outcome.states.len(),
        "simulated_us": outcome.simulated_us,
    })
}

/// A failing run among many, as JSON.
#[must_use]
pub fn failure_json(outcome: &Outcome) -> Value {
    json!({ "seed": outcome.plan.seed, "broken": broken_json(outcome), "replay": outcome.plan.to_string() })
}

fn broken_json(outcome: &Outcome) -> Vec<Value> {
    let object = |violation: &Violation| json!({ "promise": violation.promise, "at_us": violation.at_us, "what": violation.what });
    outcome.violations.iter().map(object).collect()
}

/// What many runs showed, as JSON.
#[must_use]
pub fn totals_json(totals: &Totals, elapsed: Duration, cpu: Duration, failures: &[Value]) -> Value {
    json!({
        "held": totals.failing == 0,
        "runs": totals.runs,
        "expected": totals.expected,
        "failing": failures,
        "events": totals.events,
        "faults": totals.faults,
        "granted": totals.granted,
        "views": totals.views,
        "states": totals.states.len(),
        "simulated_us": totals.simulated_us,
        "elapsed_s": elapsed.as_secs_f64(),
        "cpu_s": cpu.as_secs_f64(),
    })
}

/// The options with unit, range, draw and meaning.
#[must_use]
pub fn options() -> String {
    let mut text = format!("{:<18} {:<18} {:<14} {:<28} what it does\n", "option", "range", "calm", "a seed draws");
    let calm = Options::calm();
    for info in OPTIONS {
        let range = format!("{}-{}", info.low, info.high);
        let calm = calm.get(info.name).unwrap_or(0);
        let _ = writeln!(text, "{:<18} {range:<18} {calm:<14} {:<28} {} ({})", info.name, info.draw.to_string(), info.help, info.unit);
    }
    text.truncate(text.trim_end().len());
    text
}
