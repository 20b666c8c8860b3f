//! What: the command line of `deadbolt-sim`.
//! Owns: its arguments, its texts, its exit codes.
//! Invariants: exit codes are those of docs/exit-codes.md: 0 every promise held, 1 one was broken, 2 usage.
//! Does not: simulate; see the library.
//! Called by: the program, and the front door under its `sim` verb.

use crate::{
    Options, Plan, bench,
    plan::{PROGRAM, parse_faults},
    report, run,
    runner::{Batch, all_cores, run_batch, run_checked},
    shrink::shrink,
};
use clap::{ArgGroup, Parser};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::Write,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

/// A promise was broken.
const EXIT_BROKEN: u8 = 1;
/// The command line was wrong.
const EXIT_USAGE: u8 = 2;
/// Lines shown of a single run, if not all are wanted.
const LINES_SHOWN: usize = 60;
/// Pause between two lines that say how far many runs are.
const PROGRESS: Duration = Duration::from_secs(60);

/// Simulate whole clusters under faults, each run decided by its seed; exit 0 only if every promise held.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    version,
    group = ArgGroup::new("what").required(true).multiple(true).args(["seed", "seeds", "hours", "list_options", "bench"]),
    after_help = "Exit codes: 0 every promise held, 1 a promise was broken, 2 wrong usage.\n\
                  A failing seed is printed as one line that replays it, at the commit that it names.\n\
                  Examples: deadbolt-sim --seeds 1000\n          \
                            deadbolt-sim --seed 17 --trace\n          \
                            deadbolt-sim --seed 17 --shrink"
)]
struct Arguments {
    /// Run one seed, and print its options, its last lines, what it broke and its hash
    #[arg(long, conflicts_with_all = ["seeds", "hours", "list_options"])]
    seed: Option<u64>,
    /// Run so many seeds
    #[arg(long, value_name = "COUNT")]
    seeds: Option<u64>,
    /// The first of many seeds
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    first: u64,
    /// Begin new seeds for so long (alone or with --seeds: whichever ends first)
    #[arg(long, value_parser = parse_hours)]
    hours: Option<Duration>,
    /// Threads for many seeds [default: one per core]
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Set an option instead of drawing it; may be given again
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Begin with calm options instead of drawn ones: no faults, no clients
    #[arg(long)]
    calm: bool,
    /// Simulate drop-in fencing: watchers and senders without a daemon, beside the stock program
    #[arg(long, conflicts_with_all = ["calm", "list_options", "bench"])]
    fencing: bool,
    /// Let only the faults with these numbers happen ("none": none)
    #[arg(long, value_name = "3,17", value_parser = parse_faults, conflicts_with_all = ["seeds", "hours"])]
    faults: Option<BTreeSet<u64>>,
    /// Print every line of the run, not only the last ones
    #[arg(long, conflicts_with_all = ["seeds", "hours"])]
    trace: bool,
    /// Look for a smaller run that breaks the same promise, and print its replay line
    #[arg(long, conflicts_with_all = ["seeds", "hours", "trace", "json", "twice"])]
    shrink: bool,
    /// Look no longer than this
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "shrink")]
    shrink_seconds: u64,
    /// Run every seed twice; the second run has to show the same as the first
    #[arg(long)]
    twice: bool,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// List the options that --set knows
    #[arg(long)]
    list_options: bool,
    /// Measure how fast the simulator is on one core
    #[arg(long, exclusive = true)]
    bench: bool,
}

fn parse_hours(text: &str) -> Result<Duration, String> {
    let hours: f64 = text.parse().map_err(|_| format!("{text:?} is no number of hours"))?;
    Duration::try_from_secs_f64(hours * 3600.0).map_err(|error| error.to_string())
}

/// Runs the program with the arguments behind its name; returns its exit code.
pub fn main_from<I, T>(arguments: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let name = std::iter::once(OsString::from(PROGRAM));
    match Arguments::try_parse_from(name.chain(arguments.into_iter().map(Into::into))) {
        Ok(arguments) => arguments.run(),
        Err(error) => {
            let is_question = !error.use_stderr();
            // Nowhere to complain when even this cannot be printed.
            let _ = error.print();
            if is_question { 0 } else { EXIT_USAGE }
        }
    }
}

impl Arguments {
    fn run(&self) -> u8 {
        if let Err(text) = self.set.iter().try_for_each(|setting| Options::calm().set(setting)) {
            complain(&format!("{PROGRAM}: {text}"));
            return EXIT_USAGE;
        }
        match self.seed {
            _ if self.list_options => {
                show(&report::options());
                0
            }
            _ if self.bench => run_bench(),
            Some(seed) if self.shrink => self.run_shrink(seed),
            Some(seed) => self.run_one(seed),
            None => self.run_many(),
        }
    }

    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan { is_fencing: self.fencing, ..Plan::new(seed, self.calm) };
        plan.faults.clone_from(&self.faults);
        for setting in &self.set {
            // They were all tried at the start.
            let _ = plan.options.set(setting);
        }
        plan
    }

    fn run_one(&self, seed: u64) -> u8 {
        let outcome = run_checked(&self.plan(seed), self.twice, self.trace);
        if self.json {
            show(&report::run_json(&outcome).to_string());
        } else {
            show(&report::run(&outcome, if self.trace { usize::MAX } else { LINES_SHOWN }));
        }
        exit_code(outcome.violations.is_empty())
    }

    fn run_shrink(&self, seed: u64) -> u8 {
        let end = Instant::now() + Duration::from_secs(self.shrink_seconds);
        let outcome = run_checked(&self.plan(seed), false, false);
        let Some(shrunk) = shrink(outcome, end, &mut |plan| run(plan, false)) else {
            show("every promise held: there is nothing to shrink");
            return 0;
        };
        show(&report::run(&shrunk.outcome, LINES_SHOWN));
        show(&format!(
            "{} runs tried, {}",
            shrunk.tries,
            if shrunk.is_complete { "nothing smaller was found" } else { "the time is over" }
        ));
        EXIT_BROKEN
    }

    fn run_many(&self) -> u8 {
        let batch = Batch {
            first: self.first,
            count: self.seeds.unwrap_or(u64::MAX),
            time: self.hours,
            jobs: self.jobs.unwrap_or_else(all_cores),
            is_twice: self.twice,
        };
        let started = Instant::now();
        let mut told = started;
        let mut failures = Vec::new();
        let totals = run_batch(&batch, &|seed| self.plan(seed), |outcome, totals| {
            match (outcome.violations.is_empty(), self.json) {
                (true, _) => {}
                (false, true) => failures.push(report::failure_json(outcome)),
                (false, false) => show(&report::failure(outcome)),
            }
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                complain(&format!("{:>6} s: {}", started.elapsed().as_secs(), report::progress(totals)));
            }
        });
        let elapsed = started.elapsed();
        if self.json {
            show(&report::totals_json(&totals, elapsed, cpu_time(), &failures).to_string());
        } else {
            show(&report::totals(&totals, elapsed, cpu_time()));
        }
        exit_code(totals.failing == 0)
    }
}

fn run_bench() -> u8 {
    let speed = bench::measure(&cpu_time);
    match &speed {
        Ok(speed) => show(&speed.to_string()),
        Err(broken) => complain(broken),
    }
    exit_code(speed.is_ok())
}

fn exit_code(has_held: bool) -> u8 {
    if has_held { 0 } else { EXIT_BROKEN }
}

/// What this process has used of all cores.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    // The exit code still counts when nobody reads.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn complain(text: &str) {
    // Nowhere to complain when even this cannot be printed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_has_its_exit_code() {
        for wrong in [
            "",
            "--seed x",
            "--seed 1 --seeds 2",
            "--seed 1 --first 2",
            "--seeds 2 --trace",
            "--seeds 2 --faults 3",
            "--seed 1 --faults x",
            "--seeds 1 --jobs 0",
            "--hours -1",
            "--hours nan",
            "--bench --seed 1",
            "--seed 1 --set nodes=99",
            "--seed 1 --set nodez=1",
        ] {
            assert_eq!(main_from(wrong.split_whitespace()), EXIT_USAGE, "{wrong}");
        }
    }
}
