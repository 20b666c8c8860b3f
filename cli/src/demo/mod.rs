//! What: `deadbolt demo`: the main job, watchable: three nodes, a cut network, a killed node, and a counter that loses nothing.
//! Owns: the order of the phases, the verdict.
//! Invariants: "held" is said only if every phase came to its end, no update was lost, tokens only grew and the device was found clean;
//!   the nodes are separate processes that share the device and their sockets, and end with the demo, whatever ends it.
//! Does not: switch faults on inside a daemon: it cuts a network and kills processes.
//! Called by: the verbs.

mod nodes;
mod phases;
mod report;
mod tally;
pub mod worker;

use crate::verbs::{EXIT_FAILED, EXIT_OK, parse_time};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::program::explain;
use deadbolt_cluster_core::timing::{Wishes, derive};
use deadbolt_disk_format::Timings;
use deadbolt_trial::{Network, Place};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nodes::Node;
use report::Report;
use serde_json::Value;
use std::{
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tally::{Judgement, judge};

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// One JSON object instead of the timeline
    #[arg(long)]
    json: bool,
    /// How long a storage stall the nodes tolerate
    #[arg(long, default_value = "1s", value_parser = parse_time)]
    stall: u32,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// Do not use what only root may: loop devices and namespaces
    #[arg(long)]
    no_root: bool,
}

/// Beginning of the directories' names; the sweep looks for it.
const PREFIX: &str = "deadbolt-demo-";
/// How often the nodes are asked for their view. Chosen: every poll at the demo's stall.
const LOOK: Duration = Duration::from_millis(100);

/// A signal asked the demo to end.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: i32) {
    IS_INTERRUPTED.store(true, Ordering::SeqCst);
}

fn watch_signals() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.context("watching for signals")?;
    }
    Ok(())
}

/// The running demo.
#[derive(Debug)]
struct Demo {
    report: Report,
    timings: Timings,
    // In this order: nodes end before their network and their device go.
    nodes: Vec<Node>,
    network: Network,
    place: Place,
    /// Newest view that was told.
    view: u64,
    looked: Instant,
}

/// Runs the demo.
#[must_use]
pub fn run(arguments: &DemoArguments) -> u8 {
    let mut report = Report::new(arguments.json);
    match prepare(arguments, &mut report) {
        Ok((timings, place, network)) => {
            let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
            let count = usize::from(arguments.nodes);
            let nodes = names.iter().take(count).enumerate().map(|(index, name)| Node::new(place.path(), name, index, index + 1 == count));
            let nodes = nodes.collect();
            Demo { report, timings, nodes, network, place, view: 0, looked: Instant::now() }.play()
        }
        Err(error) => {
            report.finish(&judge(std::iter::empty(), 0), Some(&explain(&error)));
            EXIT_FAILED
        }
    }
}

fn prepare(arguments: &DemoArguments, report: &mut Report) -> Result<(Timings, Place, Network)> {
    watch_signals()?;
    let timings = derive(&Wishes::stall(arguments.stall))?;
    let place = Place::prepare(PREFIX, arguments.no_root)?;
    std::fs::write(place.path().join(worker::COUNTER_FILE), 0u64.to_le_bytes())?;
    let mut notes = place.notes.clone();
    let count = usize::from(arguments.nodes);
    let namespaces = if place.may_use_namespaces { Network::namespaces(count).map_err(Some) } else { Err(None) };
    let network = match namespaces {
        Ok(network) => network,
        Err(reason) => {
            if let Some(reason) = reason {
                notes.push(format!("no network namespaces, a relay is used: {reason:#}"));
            }
            Network::relay(count)?
        }
    };
    let trees = if place.has_pid_namespaces { "a PID namespace per node" } else { "a process tree per node" };
    let what = format!("{} nodes on {}, {}, {trees}, stall {} ms", count, place.device.display(), network.describe(), arguments.stall);
    report.say(&format!("deadbolt demo: {what}"));
    report.environment(what);
    for note in notes {
        report.note(note);
    }
    Ok((timings, place, network))
}

impl Demo {
    fn play(mut self) -> u8 {
        let ended = self.phases();
        let judgement = self.judgement();
        let failure = match (ended, &judgement) {
            (Err(error), _) => Some(explain(&error)),
            (Ok(()), Judgement { lost_updates: 1.., .. }) => Some(format!("{} updates were lost", judgement.lost_updates)),
            (Ok(()), Judgement { is_too_large: true, .. }) => Some("the counter is larger than all increments".into()),
            (Ok(()), Judgement { fallen_token: Some((before, after)), .. }) => Some(format!("token {after} was given after {before}")),
            (Ok(()), _) => None,
        };
        debug_assert!(failure.is_some() || judgement.is_held());
        if failure.is_some() && !IS_INTERRUPTED.load(Ordering::SeqCst) {
            for node in &self.nodes {
                eprintln!("--- last words of {}\n{}", node.name(), node.last_words(25));
            }
        }
        self.report.finish(&judgement, failure.as_deref());
        if failure.is_none() { EXIT_OK } else { EXIT_FAILED }
    }

    fn judgement(&mut self) -> Judgement {
        for node in &mut self.nodes {
            // What cannot be read shows as missing increments.
            let _ = node.end_worker(Duration::ZERO);
        }
        judge(self.nodes.iter().map(Node::tally), self.counter().unwrap_or(0))
    }

    fn counter(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        std::fs::File::open(self.place.path().join(worker::COUNTER_FILE))?.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Tends the workers and tells the news until `is_over`; answers how long that took.
    fn wait(&mut self, what: &str, at_most: Duration, mut is_over: impl FnMut(&mut Self) -> Result<bool>) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            if IS_INTERRUPTED.load(Ordering::SeqCst) {
                bail!("interrupted");
            }
            for node in &mut self.nodes {
                node.tend()?;
            }
            if is_over(self)? {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > at_most {
                bail!("{what}: not after {} s", at_most.as_secs());
            }
            if self.looked.elapsed() > LOOK {
                self.tell_news();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A line for each new view, as the first member that answers sees it.
    fn tell_news(&mut self) {
        self.looked = Instant::now();
        let statuses = self.nodes.iter().filter_map(|node| node.status());
        let newest = statuses.max_by_key(|status| status.get("view").and_then(Value::as_u64).unwrap_or(0));
        let Some(status) = newest else { return };
        let view = status.get("view").and_then(Value::as_u64).unwrap_or(0);
        if view <= self.view {
            return;
        }
        self.view = view;
        let owed = names(status.get("owed"));
        let owed = if owed.is_empty() { String::new() } else { format!("; owed, not yet proved gone: {owed}") };
        self.report.say(&format!("          view {view}: members {}{owed}", names(status.get("members"))));
    }
}

/// A list of names as people read it.
fn names(list: Option<&Value>) -> String {
    let names = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    names.collect::<Vec<&str>>().join(" ")
}
