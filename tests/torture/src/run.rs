//! What: a whole run: a cluster, its crews, faults, the end, the judgement.
//! Owns: the order of these, the verdict, the printed figures.
//! Invariants: when the faults have stopped, every client has to get its lock within the bound; whoever does not is a violation.
//! Does not: take a node that needs longer than its budget for an error where the machine is slow: what waits is measured.
//! Called by: `torture`.

use crate::{
    area::Area,
    check::{Bounds, Judgement, judge},
    client::stop_file,
    cluster::{Cluster, NODES},
    crew::calm_file,
    faults::Faults,
    history::{Written, now_ns},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster_core::timing::{Wishes, budget_crash, budget_partition, derive};
use deadbolt_simulator::random::Random;
use deadbolt_trial::{
    Place,
    children::{own_program, run_to_end},
    node::Shape,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Beginning of the directories' names; the sweep looks for it.
const PREFIX: &str = "deadbolt-torture-";
/// What a loaded machine may add to the budget of a fault. Chosen: what its processes need to start.
const SLACK: Duration = Duration::from_secs(2);
/// Time for processes to end. Chosen.
const END: Duration = Duration::from_secs(10);

/// Arguments of a run.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// For how long faults are made
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How many client processes, on all nodes together
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..=1000))]
    clients: u32,
    /// Of the draws: which faults, which work [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    times: Times,
    /// One JSON object at the end instead of the timeline
    #[arg(long)]
    json: bool,
    /// Copy histories and logs to this directory, which is made
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Times that the judgement needs.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Times {
    /// How long a storage stall the nodes tolerate, in ms
    #[arg(long, default_value_t = 2000)]
    stall_ms: u32,
    /// How long a client may wait, besides the budgets of faults, in ms
    #[arg(long, default_value_t = 10_000)]
    queue_ms: u64,
}

impl Times {
    /// From a fault until nobody waits for it any more.
    fn outage(&self) -> Result<Duration> {
        let timings = derive(&Wishes::stall(self.stall_ms))?;
        Ok(Duration::from_millis(budget_crash(&timings).total_ms().max(budget_partition(&timings).total_ms())) + SLACK)
    }

    fn bounds(&self) -> Result<Bounds> {
        Ok(Bounds { outage_ns: u64::try_from(self.outage()?.as_nanos())?, calm_ns: self.queue_ms * 1_000_000 })
    }
}

/// Arguments of a judgement alone.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// What `--keep` of a run made
    directory: PathBuf,
    #[command(flatten)]
    times: Times,
}

/// Judges what a run kept.
///
/// # Errors
/// Files that cannot be read, or that no client wrote.
pub(crate) fn check(arguments: &CheckArguments) -> Result<u8> {
    let judgement = judge_files(&arguments.directory, arguments.times)?;
    print_figures(&judgement);
    Ok(u8::from(!judgement.is_held()))
}

fn judge_files(directory: &Path, times: Times) -> Result<Judgement> {
    let last = Area::open_all(directory)?.iter().map(|area| Ok(area.front()?.value)).collect::<Result<Vec<u64>>>()?;
    judge(&Written::read(directory)?, &last, times.bounds()?)
}

fn print_figures(judgement: &Judgement) {
    let figures = judgement.json();
    for (name, value) in figures.as_object().into_iter().flatten().filter(|(name, _)| *name != "violations") {
        println!("{name:>22} {value}");
    }
    judgement.violations.iter().for_each(|violation| println!("violation: {violation}"));
}

struct Run<'a> {
    arguments: &'a RunArguments,
    begin: Instant,
    outage: Duration,
    violations: Vec<String>,
}

/// Runs all of it.
///
/// # Errors
/// The cluster could not be made or did not come back.
pub(crate) fn run(arguments: &RunArguments) -> Result<u8> {
    let Times { stall_ms, queue_ms } = arguments.times;
    let outage = arguments.times.outage()?;
    let place = Place::prepare(PREFIX, false)?;
    if !place.has_pid_namespaces || !place.may_use_namespaces {
        bail!("this needs root and PID namespaces: {}", place.notes.join("; "));
    }
    let seed = arguments.seed.map_or_else(now_ns, Ok)?;
    let mut run = Run { arguments, begin: Instant::now(), outage, violations: Vec::new() };
    run.say(&format!(
        "{} nodes on {}, {} clients, seed {seed}, stall {} ms",
        NODES.len(),
        place.device.display(),
        arguments.clients,
        stall_ms
    ));
    run.say(&format!("a client waits at most {} ms for a fault and {} ms in queues", outage.as_millis(), queue_ms));
    place.notes.iter().for_each(|note| run.say(&format!("note: {note}")));
    Area::open_all(place.path())?;
    let shape = Shape { nodes: NODES.len(), stall_ms, has_pid_namespaces: true };
    let mut random = Random::new(seed);
    let mut cluster = Cluster::form(place, shape, arguments.clients, random.number(), outage)?;
    let ended = run.play(&mut cluster, Faults::new(random));
    let kept = arguments.keep.as_ref().map_or(Ok(()), |to| keep(cluster.path(), to));
    ended?;
    kept?;
    let judgement = run.judge(&cluster)?;
    run.report(&judgement);
    Ok(u8::from(!judgement.is_held()))
}

impl Run<'_> {
    fn say(&self, text: &str) {
        if !self.arguments.json {
            println!("{:>7.1} s {text}", self.begin.elapsed().as_secs_f64());
        }
    }

    fn play(&mut self, cluster: &mut Cluster, mut faults: Faults) -> Result<()> {
        cluster.make_whole()?;
        self.say("three members, each with its clients");
        let end = Instant::now() + Duration::from_secs(self.arguments.seconds);
        while Instant::now() < end {
            let pause = Instant::now() + faults.pause();
            cluster.tend_until("a pause", self.outage, |_| Ok(Instant::now() >= pause))?;
            cluster.make_whole()?;
            let begin = Instant::now();
            let what = faults.make(cluster)?;
            cluster.tend_until("the crews end", 2 * self.outage + END, |cluster| Ok(!cluster.is_whole()))?;
            cluster.make_whole()?;
            self.say(&format!("{what}: whole again after {:.1} s", begin.elapsed().as_secs_f64()));
        }
        self.end(cluster)
    }

    /// Nothing is killed any more: everybody gets a lock and ends.
    fn end(&mut self, cluster: &mut Cluster) -> Result<()> {
        File::create(calm_file(cluster.path()))?;
        let outage = self.outage;
        cluster.tend_until("the last fault is over", 2 * outage, |cluster| {
            Ok(cluster.since_last_fault().is_none_or(|since| since > outage))
        })?;
        cluster.make_whole()?;
        File::create(stop_file(cluster.path()))?;
        let begin = Instant::now();
        let late = cluster.end_crews(Duration::from_millis(self.arguments.times.queue_ms) + END)?;
        self.say(&format!("every client told to end did so within {:.1} s", begin.elapsed().as_secs_f64()));
        for name in late {
            self.violations.push(format!("clients on {name} did not get their last lock"));
        }
        if !self.violations.is_empty() {
            for seat in &cluster.seats {
                let (_, said) = run_to_end(seat.node.verb("locks"), None)?;
                eprintln!("--- locks as {} sees them\n{said}--- its last words\n{}", seat.node.name(), seat.node.last_words(20));
            }
            return Ok(());
        }
        for index in (0..NODES.len()).rev() {
            cluster.drop_crew(index)?;
            let Cluster { seats, network, .. } = &mut *cluster;
            seats.get_mut(index).context("no such node")?.node.stop(network)?;
        }
        let mut check = own_program();
        check.arg("fsck").arg(&cluster.place.device);
        match run_to_end(check, None)? {
            (Some(0), _) => {}
            (code, said) => self.violations.push(format!("fsck of the device ended with {code:?}: {}", said.trim_end())),
        }
        Ok(())
    }

    fn judge(&mut self, cluster: &Cluster) -> Result<Judgement> {
        let mut judgement = judge_files(cluster.path(), self.arguments.times)?;
        judgement.violations.append(&mut self.violations);
        Ok(judgement)
    }

    fn report(&self, judgement: &Judgement) {
        if self.arguments.json {
            println!("{}", judgement.json());
        } else {
            print_figures(judgement);
        }
    }
}

/// Copies what people look at after a failure.
fn keep(run: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && name != "device" {
            std::fs::copy(entry.path(), to.join(&name))?;
        }
        let log = entry.path().join("deadbolt.log");
        if log.exists() {
            std::fs::copy(log, to.join(format!("log-{}", name.to_string_lossy())))?;
        }
    }
    Ok(())
}
