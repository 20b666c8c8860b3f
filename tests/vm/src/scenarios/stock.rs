//! What: the SBD area of a shared disk, watched by stock sbd in one guest or both, or by ours in one of them.
//! Owns: how either is started in a guest.
//! Invariants: no sender is told of a death before it has come.
//! Does not: look for stock's mistakes.
//! Called by: the table of scenarios.

use super::{SHORT, SOFTDOG_FIRES, Setup, seconds};
use crate::{End, Lab, Options, Said, Way, say};
use anyhow::{Context, Result, anyhow, ensure};
use std::time::{Duration, Instant};

/// Without Pacemaker; the distribution's default for the other refuses to start then.
const ENVIRONMENT: &str = "export SBD_PACEMAKER=no SBD_SYNC_RESOURCE_STARTUP=no;";
const STOCK: &str = "/usr/sbin/sbd";
const OURS: &str = "/run/sbd";
/// One after the other: two nodes that look for a slot at the same time may find the same one.
const PREPARE: &str = "
    sbd -d /dev/shared0 create
    sbd -d /dev/shared0 allocate node1
    sbd -d /dev/shared0 allocate node2
";
/// Stock's defaults: what a sender waits, and within what a node that lost its disk is gone.
const MSGWAIT: Duration = Duration::from_secs(10);
/// A victim that reads its mailbox every second is gone by then, also in an emulated machine.
const GONE: Duration = Duration::from_secs(8);

/// Two nodes under stock sbd; the second is told to reset.
///
/// # Errors
/// It is not reset, or its sender does not wait.
pub fn alone(_: &Setup) -> Result<()> {
    let lab = Lab::up(2, &Options::default())?;
    lab.good(1, PREPARE, SHORT)?;
    let begin = Instant::now();
    lab.good_on(&[1, 2], &watch(STOCK), SHORT)?;
    say(&format!("sbd-stock: both watch after {}", seconds(begin.elapsed())));
    let fence = Fence::send(&lab, STOCK, 1, 2)?;
    fence.judge("sbd-stock: stock to stock", GONE)?;
    ensure!(fence.waited >= MSGWAIT, "the sender waited {:?} only", fence.waited);
    Ok(())
}

/// Stock in one node, ours in the other: each ends the other, and ours ends itself without its disk.
///
/// # Errors
/// A node is not reset, or its sender answers before that.
pub fn mixed(setup: &Setup) -> Result<()> {
    let options = Options { shares: vec![("programs".into(), setup.programs.clone())], ..Options::default() };
    let mut lab = Lab::up(2, &options)?;
    lab.good(1, PREPARE, SHORT)?;
    lab.good(1, &watch(STOCK), SHORT)?;
    watch_ours(&lab)?;
    Fence::send(&lab, STOCK, 1, 2)?.judge("sbd-mixed: stock to ours", GONE)?;
    lab.start(&[2])?;
    watch_ours(&lab)?;
    Fence::send(&lab, OURS, 2, 1)?.judge("sbd-mixed: ours to stock", GONE)?;
    lab.start(&[1])?;
    lab.good(1, &watch(STOCK), SHORT)?;
    lab.disk(2, 0, Way::Hang)?;
    Fence::send(&lab, STOCK, 1, 2)?.judge("sbd-mixed: stock to ours, whose disk hangs", MSGWAIT)
}

/// Starts a watcher, and returns when it has read and cleared a test. The sender, which would wait on, has written long before it is ended.
fn watch(program: &str) -> String {
    format!(
        "{ENVIRONMENT}
        modprobe softdog
        setsid {program} -d /dev/shared0 -n $(hostname) -w /dev/watchdog watch </dev/null >/dev/console 2>&1 &
        timeout 3 {STOCK} -d /dev/shared0 message $(hostname) test
        for i in $(seq 40); do
            sleep 0.5
            if pidof sbd && {STOCK} -d /dev/shared0 list | grep -q \"$(hostname).clear\"; then exit 0; fi
        done
        exit 1"
    )
}

fn watch_ours(lab: &Lab) -> Result<()> {
    let started = lab.good(2, &format!("ln -s /share/programs/deadbolt {OURS}; {}", watch(OURS)), SHORT);
    started.with_context(|| format!("ours does not watch:\n{}", lab.last_words(2))).map(|_| ())
}

/// A message and what came of it.
struct Fence {
    victim: usize,
    end: End,
    /// Its watchdog was what ended it.
    by_watchdog: bool,
    /// From the order to the victim's end, and to the sender's answer.
    gone: Duration,
    waited: Duration,
    said: Said,
}

impl Fence {
    fn send(lab: &Lab, program: &str, sender: usize, victim: usize) -> Result<Self> {
        let order = format!("{ENVIRONMENT} {program} -d /dev/shared0 message node{victim} reset");
        let begin = Instant::now();
        let (sent, ended) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| (lab.exec(sender, &order, SHORT), begin.elapsed()));
            let ended = lab.wait_end(victim, SHORT);
            (thread.join(), ended)
        });
        let (said, waited) = sent.map_err(|_| anyhow!("the sender panicked"))?;
        let end = ended?.with_context(|| format!("node{victim} lives on:\n{}", lab.last_words(victim)))?;
        let by_watchdog = lab.console(victim)?.iter().any(|line| line.text.contains(SOFTDOG_FIRES));
        Ok(Self { victim, by_watchdog, gone: end.at.saturating_duration_since(begin), end, waited, said: said? })
    }

    fn judge(&self, what: &str, limit: Duration) -> Result<()> {
        let (gone, waited) = (self.gone, self.waited);
        let by = if self.by_watchdog { "softdog" } else { "itself" };
        say(&format!(
            "{what}: gone {} after the order, by {by}; the sender answers {} after {}",
            seconds(gone),
            self.said.code,
            seconds(waited)
        ));
        ensure!(self.said.code == 0, "the sender says:\n{}", self.said.text);
        ensure!(self.end.reason == "guest-reset" && gone < limit, "node{} ended by {} after {gone:?}", self.victim, self.end.reason);
        ensure!(gone < waited, "the sender answered before");
        Ok(())
    }
}
