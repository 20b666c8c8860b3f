//! What: a message to a node that has been dead for long.
//! Owns: how long that is.
//! Invariants: the sender of ours is on a machine whose watcher saw the last beat; stock's has nothing to see.
//! Does not: kill by a message.
//! Called by: the program.

use crate::{
    floors::{LIST, SECTOR},
    lab::{Bench, Lab, Whose, median},
};
use anyhow::{Result, bail};
use deadbolt_bench::sheet::{Case, Reach, Row};
use std::{thread::sleep, time::Duration};

const NAMES: [&str; 2] = ["long dead: `message reset` returns, stock", "long dead: `message reset` returns, ours"];

/// The sender's watcher looks at the others every second, or two where the header is looked at between.
const SEEN: Duration = Duration::from_secs(2);
/// W + D with the default times, 15.93 s + 0.51 s, counted from when the sender's watcher saw the last beat, which may be two seconds after it.
const LONG: Duration = Duration::from_secs(19);
/// Messages in a round, where they are short.
const MESSAGES: usize = 3;

pub(crate) fn case(bench: &Bench, whose: Whose) -> Case {
    let row = Row::new(whose.of(NAMES), "ms");
    let row = whose.of([row.clone(), row.over(&[SECTOR, LIST]).reach(Reach::Value(300.0))]);
    bench.beside(whose, vec![row], measure)
}

fn measure(lab: &Lab, whose: Whose) -> Result<Vec<f64>> {
    let disk = lab.disk(whose, &["victim", "sender"])?;
    let device = disk.path();
    if whose == Whose::Stock {
        return Ok(vec![millis(lab.reset(whose, &lab.nowhere(), device, "victim")?.took())]);
    }
    let sender = lab.node(whose, "sender", device, device)?;
    let victim = lab.node(whose, "victim", device, device)?;
    sleep(SEEN);
    drop(victim);
    sleep(LONG);
    let one = |_| {
        let sent = lab.reset(whose, sender.folder(), device, "victim")?;
        if !String::from_utf8_lossy(&sent.output.stderr).contains("evidence: expired") {
            bail!("another evidence than silence: {:?}", sent.output);
        }
        Ok(millis(sent.took()))
    };
    Ok(vec![median((0..MESSAGES).map(one).collect::<Result<_>>()?)?])
}

pub(crate) fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
