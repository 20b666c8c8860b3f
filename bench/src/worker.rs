//! What: processes that measure for the benchmark: a fresh one where memory counts, several where clients contend.
//! Owns: how one is told what to do, and how it answers.
//! Invariants: ends with the benchmark, whatever ends that.
//! Does not: know what its figures mean.
//! Called by: measurements (`Worker`); the hidden verb `bench-worker`, which is the process (`work`).

use crate::{
    cluster::client::{self, Contend, Pairs},
    service::{
        memory::{self, Part},
        rebuild::{self, Before},
    },
};
use anyhow::{Context, Result, bail};
use deadbolt_trial::{Tied, children::own_program};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

/// How long a worker may take to end after its last word.
const PATIENCE: Duration = Duration::from_secs(5);
/// A worker's word that it waits for the others.
const READY: &str = "ready";

/// What a worker does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Measures memory; answers with `Measured`.
    Memory { part: Part, entries: u64 },
    /// Measures a recovery; answers with `Measured`.
    Rebuild { before: Before, entries: u64 },
    /// Takes one lock again and again; answers with its turns.
    Contend(Contend),
    /// Locks and unlocks; answers with the number of pairs.
    Pairs(Pairs),
}

/// Does what a worker is told; returns its answer.
///
/// # Errors
/// The order cannot be read, or what failed.
pub fn work(order: &str) -> Result<String> {
    let order = serde_json::from_str(order).with_context(|| format!("{order:?} is no order of a benchmark"))?;
    Ok(match order {
        Order::Memory { part, entries } => serde_json::to_string(&memory::measure(part, entries)?)?,
        Order::Rebuild { before, entries } => serde_json::to_string(&rebuild::measure(before, entries)?)?,
        Order::Contend(contend) => serde_json::to_string(&client::contend(&contend)?)?,
        Order::Pairs(pairs) => serde_json::to_string(&client::count_pairs(&pairs)?)?,
    })
}

/// Says that this worker can begin, and waits until it may.
pub(crate) fn wait_for_begin() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).context("telling the benchmark")?;
    std::io::stdin().read_line(&mut String::new()).context("waiting for the benchmark")?;
    Ok(())
}

/// A worker at work.
pub(crate) struct Worker {
    process: Tied,
    words: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(order: &Order) -> Result<Self> {
        let mut command = own_program();
        command.arg("bench-worker").arg(serde_json::to_string(order)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Tied::spawn(&mut command, None)?;
        let words = process.child().stdin.take().context("a worker has no standard input")?;
        let said = BufReader::new(process.child().stdout.take().context("a worker has no standard output")?);
        Ok(Self { process, words, said })
    }

    /// Starts several that begin at one moment.
    pub(crate) fn start_all(orders: &[Order]) -> Result<Vec<Self>> {
        let mut workers: Vec<Self> = orders.iter().map(Self::start).collect::<Result<_>>()?;
        for worker in &mut workers {
            let mut line = String::new();
            worker.said.read_line(&mut line)?;
            if line.trim_end() != READY {
                bail!("a worker did not begin; its reason stands above");
            }
        }
        workers.iter_mut().try_for_each(|worker| writeln!(worker.words).context("telling a worker to begin"))?;
        Ok(workers)
    }

    /// Its answer.
    pub(crate) fn answer<T: DeserializeOwned>(mut self) -> Result<T> {
        let mut said = String::new();
        self.said.read_to_string(&mut said)?;
        match self.process.wait(PATIENCE) {
            Some(0) => serde_json::from_str(&said).context("what a worker said"),
            code => bail!("a worker ended with {code:?}; its reason stands above"),
        }
    }
}
