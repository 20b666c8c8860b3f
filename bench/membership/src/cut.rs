//! What: two nodes of which the second is cut off or dies: when the first grants everything again.
//! Owns: what the second holds, what the first asks for, the instants.
//! Invariants: a grant counts when it was given; every round begins with two members.
//! Does not: look into a node.
//! Called by: the program.

use crate::PREFIX;
use anyhow::{Context, Result, bail};
use deadbolt_bench::{
    DEFAULT_STALL_MS, Trial,
    sheet::{Case, Measured, Reach, Row},
};
use deadbolt_cluster_core::timing::{self, budget_crash, budget_partition};
use deadbolt_dlm::{
    Mode,
    blocking::{Client, Guard, Lockspace, Protection, Wishes},
};
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

const IDLE: &str = "partition, the loser held nothing: everything granted again";
const HOLDING: &str = "partition, the loser held locks: these granted anew";
const UNTOUCHED: &str = "partition, the loser held locks: longest wait for the members' own resources";
const EJECTED: &str = "partition, with reservations on the protected devices";
const KILLED: &str = "node killed, stall tolerance 5 s: its locks granted anew";
const KILLED_SHORT: &str = "node killed, stall tolerance 1 s: its locks granted anew";

const SHORT_STALL_MS: u32 = 1000;
/// Resources of a round.
const RESOURCES: usize = 64;
/// Resources that somebody takes all the time.
const BUSY: usize = 16;
/// Between two of these.
const PAUSE: Duration = Duration::from_millis(4);
/// Who waits longer waits for the loser: it was the home.
const WAITED: Duration = Duration::from_millis(1000);
/// After a node has come: nothing of that is under way any more.
const SETTLE: Duration = Duration::from_millis(1500);
const SECOND: usize = 1;

/// Two nodes, made when the first row needs them.
type Pair = Rc<RefCell<Option<Trial>>>;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    CutIdle,
    CutHolding,
    Killed,
}

pub(crate) fn cases(programs: &Path) -> Vec<Case> {
    let (usual, short): (Pair, Pair) = Default::default();
    let row = |name, most: u64| Row::new(name, "ms").reach(Reach::Value(most as f64));
    let [default, quick] = [DEFAULT_STALL_MS, SHORT_STALL_MS].map(|stall| timing::derive(&timing::Wishes::stall(stall)).ok());
    let partition = default.as_ref().map_or(0, |times| budget_partition(times).total_ms());
    let crash = default.as_ref().map_or(0, |times| budget_crash(times).total_ms().min(10_000));
    let short_crash = quick.as_ref().map_or(0, |times| budget_crash(times).total_ms().min(4500));
    let untouched = Row::new(UNTOUCHED, "ms").reach(Reach::Value(5.0));
    let case = |rows, pair: &Pair, stall_ms, wrong| {
        let (pair, programs) = (pair.clone(), programs.to_path_buf());
        Case::new(rows, move || measure(&mut pair.borrow_mut(), &programs, stall_ms, wrong))
    };
    vec![
        case(vec![row(IDLE, 2000)], &usual, DEFAULT_STALL_MS, Wrong::CutIdle),
        case(vec![row(HOLDING, partition), untouched], &usual, DEFAULT_STALL_MS, Wrong::CutHolding),
        case(vec![row(KILLED, crash)], &usual, DEFAULT_STALL_MS, Wrong::Killed),
        case(vec![row(KILLED_SHORT, short_crash)], &short, SHORT_STALL_MS, Wrong::Killed),
        Case::new(vec![row(EJECTED, 2000)], || Ok(Measured::Skipped("needs a target with reservations: cargo xtask vm ejection".into()))),
    ]
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn measure(pair: &mut Option<Trial>, programs: &Path, stall_ms: u32, wrong: Wrong) -> Result<Measured> {
    if pair.is_none() {
        *pair = Some(Trial::start(PREFIX, 2, stall_ms, Some(programs))?);
    }
    let trial = pair.as_mut().context("no nodes")?;
    if !trial.has_namespaces() {
        return Ok(Measured::Skipped("the nodes have no network namespaces: not root, or not in this kernel".into()));
    }
    let values = go_wrong(trial, wrong);
    trial.heal()?;
    trial.mend()?;
    values.map(Measured::Values)
}

fn join(socket: &Path) -> Result<Lockspace> {
    Ok(Client::connect(socket, Protection { is_unprotected: true })?.join(b"bench")?)
}

fn name(number: usize) -> String {
    format!("resource {number}")
}

/// Asks for all at once, waits for all.
fn take_all(space: &Lockspace) -> Result<Vec<Guard>> {
    let asked: Vec<_> = (0..RESOURCES).map(|number| space.begin(name(number).as_bytes(), Mode::Ex, &Wishes::default())).collect();
    asked.into_iter().map(|asked| Ok(asked?.wait()?)).collect()
}

fn go_wrong(trial: &mut Trial, wrong: Wrong) -> Result<Vec<f64>> {
    sleep(SETTLE);
    let (first, second) = (trial.socket(0)?, trial.socket(SECOND)?);
    let space = join(&first)?;
    let theirs = join(&second)?;
    let mut held = take_all(&theirs)?;
    if wrong == Wrong::CutIdle {
        held.clear();
        // That it held something stays said on the disk for some polls.
        sleep(SETTLE);
    }
    let busy = (wrong == Wrong::CutHolding).then(|| Busy::start(&first)).transpose()?;
    let begin = Instant::now();
    match wrong {
        Wrong::Killed => trial.kill(SECOND)?,
        Wrong::CutIdle | Wrong::CutHolding => trial.cut(SECOND)?,
    }
    let granted = take_all(&space)?;
    let took = begin.elapsed();
    drop(granted);
    // Its session has ended with the node.
    held.into_iter().for_each(Guard::leave);
    drop(theirs);
    let waits = busy.map(Busy::end).transpose()?;
    Ok(std::iter::once(millis(took)).chain(waits.map(millis)).collect())
}

/// Clients of the first node, each taking a resource of its own again and again.
struct Busy {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Duration>>>,
}

impl Busy {
    fn start(socket: &Path) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let clients = (0..BUSY).map(|number| {
            let (is_over, socket): (_, PathBuf) = (is_over.clone(), socket.into());
            spawn(move || take_again_and_again(&join(&socket)?, &format!("busy {number}"), &is_over))
        });
        let busy = Self { clients: clients.collect(), is_over };
        sleep(SETTLE);
        Ok(busy)
    }

    /// The longest wait among those that did not wait for the loser.
    fn end(self) -> Result<Duration> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut waits = Vec::new();
        for client in self.clients {
            waits.push(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        let own: Vec<Duration> = waits.iter().copied().filter(|wait| *wait < WAITED).collect();
        // About half of them have their home here.
        if own.len() < BUSY / 8 {
            bail!("nearly everything waited for the loser: {waits:?}");
        }
        own.into_iter().max().context("nothing was measured")
    }
}

/// The longest wait for one grant, after the first ones.
fn take_again_and_again(space: &Lockspace, name: &str, is_over: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    let warm = Instant::now() + SETTLE / 2;
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        drop(space.lock(name.as_bytes(), Mode::Ex, &Wishes::default())?);
        if begin > warm {
            longest = longest.max(begin.elapsed());
        }
        sleep(PAUSE);
    }
    Ok(longest)
}
