//! What: locks of real nodes: clients, daemons, the network between them.
//! Owns: the rows, and in which regime each is measured.
//! Invariants: who works on which core is fixed for each row, daemons included.
//! Does not: look into a node.
//! Called by: the benchmark of the lock manager.

pub(crate) mod client;
mod rest;
pub(crate) mod trial;

use crate::{
    floors::{CAS, FUTEX, RING_TABLE, SPIN, TCP},
    locks::{PREFIX, Scale},
    pair::{Pinned, Places},
    sheet::{Case, Measured, Reach, Row},
    worker::{Order, Worker},
};
use anyhow::{Context, Result, bail};
use client::{Contend, Pairs, Shift, Turn};
use deadbolt_dlm::blocking::Lockspace;
use deadbolt_trial::Place;
use std::{
    cell::OnceCell,
    ops::Range,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};
use trial::{DEFAULT_STALL_MS, Trial};

const CACHED: &str = "client: EX that is held already, taken again from the cache, one thread";
const LONELY: &str = "node: local pair of a node that holds nothing else, all sleeping on one core";
const SLEEPING: &str = "node: local pair, synchronous, client and daemon sleeping on one core";
const SPINNING: &str = "node: local pair, synchronous, client and daemon on two cores";
const PIPELINED: &str = "node: local pair, pipelined, client and daemon on two cores";
const SIXTEEN: &str = "node: local pair, 16 clients on one core, daemon on another";
const REMOTE: &str = "nodes: pair mastered on another node, synchronous, all sleeping on one core";
const REMOTE_PIPELINED: &str = "nodes: pair mastered on another node, pipelined";
const HAND_OVER: &str = "nodes: EX hand-over between two nodes, all sleeping on one core";
const HAND_OVER_TURNS: &str = "nodes: turns per change of owner";
const LOCAL_HAND_OVER: &str = "node: EX hand-over between two processes, all sleeping on one core";
const LOCAL_TURNS: &str = "node: turns per change of owner";

/// Nodes.
const NODES: usize = 3;
/// Clients at once in the row with many.
const CLIENTS: u64 = 16;
/// The nodes, started when the first row needs them; or why they could not be.
#[derive(Clone, Default)]
struct Lazy {
    started: Rc<OnceCell<Result<Trial, String>>>,
    programs: Option<PathBuf>,
}

impl Lazy {
    fn get(&self) -> Result<&Trial> {
        let started = self
            .started
            .get_or_init(|| Trial::start(PREFIX, NODES, DEFAULT_STALL_MS, self.programs.as_deref()).map_err(|error| format!("{error:#}")));
        started.as_ref().map_err(|why| anyhow::anyhow!("the nodes did not start: {why}"))
    }
}

/// A row of nodes; `measure` gets them and two cores, or one twice.
fn case(rows: Vec<Row>, lazy: &Lazy, needs: Needs, measure: impl Fn(&Trial, Places) -> Result<Vec<f64>> + 'static) -> Case {
    let lazy = lazy.clone();
    Case::new(rows, move || {
        let places = match needs {
            Needs::OneCore | Needs::Network => Places::one_core()?,
            Needs::TwoCores => match Places::two_cores()? {
                Some(places) => places,
                None => return Ok(Measured::Skipped("this process may use one core only".into())),
            },
        };
        let trial = lazy.get()?;
        if needs == Needs::Network && !trial.has_namespaces() {
            return Ok(Measured::Skipped("the nodes have no network namespaces: not root, or not in this kernel".into()));
        }
        Ok(Measured::Values(measure(trial, places)?))
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    OneCore,
    TwoCores,
    /// Namespaces; all on one core.
    Network,
}

/// All of it, what is at rest first.
pub(crate) fn cases(scale: &Scale) -> Vec<Case> {
    let lazy = Lazy { started: Rc::default(), programs: scale.programs.clone() };
    let mut cases = vec![at_rest(&lazy, scale)];
    let ratio = |name, floors, most| Row::new(name, "ns").over(floors).reach(Reach::Ratio(most));
    let (window, entries) = (scale.window, scale.entries);
    let row = Row::new(CACHED, "ns").over(&[CAS]).reach(Reach::Value(50.0));
    cases.push(case(vec![row], &lazy, Needs::OneCore, move |trial, _| Ok(vec![client::cached_pairs(&trial.socket(0)?, entries)?])));
    let local = [
        (ratio(SLEEPING, &[FUTEX], 1.5), Needs::OneCore, client::pairs as Work),
        (ratio(SPINNING, &[SPIN], 6.0), Needs::TwoCores, client::pairs),
        (ratio(PIPELINED, &[RING_TABLE], 1.8), Needs::TwoCores, client::pipelined_pairs),
    ];
    cases.extend(
        local.map(|(row, needs, work)| {
            case(vec![row], &lazy, needs, move |trial, places| Ok(vec![local_pairs(trial, places, window, work)?]))
        }),
    );
    let row = Row::new(LONELY, "ns");
    cases.push(case(vec![row], &lazy, Needs::OneCore, move |trial, places| Ok(vec![lonely_pairs(trial, places, window)?])));
    cases.push(case(vec![ratio(SIXTEEN, &[RING_TABLE], 1.8)], &lazy, Needs::TwoCores, move |trial, places| {
        Ok(vec![sixteen(trial, places, window)?])
    }));
    let absolute = Row::new(REMOTE_PIPELINED, "ns").over(&[RING_TABLE]).reach(Reach::Value(1e9 / 600_000.0));
    let remote = [(ratio(REMOTE, &[TCP, FUTEX], 1.4), client::pairs as Work), (absolute, client::pipelined_pairs)];
    cases.extend(remote.map(|(row, work)| {
        case(vec![row], &lazy, Needs::Network, move |trial, places| Ok(vec![remote_pairs(trial, places, window, work)?]))
    }));
    let turns = |name| Row::new(name, "turns").reach(Reach::Value(1.05));
    let rows = vec![ratio(HAND_OVER, &[TCP], 1.25), turns(HAND_OVER_TURNS)];
    cases.push(case(rows, &lazy, Needs::Network, move |trial, places| hand_over(trial, places, window, [0, 1])));
    let rows = vec![ratio(LOCAL_HAND_OVER, &[FUTEX], 1.5), turns(LOCAL_TURNS)];
    cases.push(case(rows, &lazy, Needs::OneCore, move |trial, places| hand_over(trial, places, window, [0, 0])));
    cases
}

fn at_rest(lazy: &Lazy, scale: &Scale) -> Case {
    let (lazy, rest) = (lazy.clone(), scale.rest);
    let measure = move || {
        let trial = lazy.get()?;
        rest::measure(trial, &Place::prepare(PREFIX, false)?, rest)
    };
    Case::new(rest::rows(), measure).once()
}

type Work = fn(&Lockspace, Range<u64>) -> Result<()>;

/// Pairs between two looks at the clock.
const BATCH: u64 = 128;
/// Names that a client works on, again and again, so that its node is their master or knows who is: fewer than a node keeps.
pub(super) const NAMES: u64 = 32 * BATCH;

/// Nanoseconds for each pair, batch by batch until the time is over; each batch is told how many were before it.
fn time(window: Duration, work: impl Fn(u64) -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < window {
        work(count)?;
        count += BATCH;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / count as f64)
}

/// The same names over and over. The first round is not counted: it finds cold caches, a ring that nobody has looked at, and no master.
fn again_and_again(space: &Lockspace, window: Duration, work: Work) -> Result<f64> {
    work(space, 0..NAMES)?;
    time(window, |number| {
        let first = number % NAMES;
        work(space, first..first + BATCH)
    })
}

/// While no other lock is held: that the node holds something stays said on the disk for a while after each.
fn lonely_pairs(trial: &Trial, places: Places, window: Duration) -> Result<f64> {
    let _daemons = trial.pin(1, places.far)?;
    let _pinned = Pinned::to(places.near)?;
    again_and_again(&client::join(&trial.socket(0)?)?, window, client::pairs)
}

/// While another lock is held, as on a node at work.
fn local_pairs(trial: &Trial, places: Places, window: Duration, work: Work) -> Result<f64> {
    let _daemons = trial.pin(1, places.far)?;
    let _pinned = Pinned::to(places.near)?;
    let space = client::join(&trial.socket(0)?)?;
    let _other = client::keep(&space, 1)?;
    again_and_again(&space, window, work)
}

fn sixteen(trial: &Trial, places: Places, time: Duration) -> Result<f64> {
    let _daemons = trial.pin(1, places.far)?;
    let shift = Shift { socket: trial.socket(0)?, core: places.near, time };
    let orders: Vec<Order> = (1..=CLIENTS).map(|client| Order::Pairs(Pairs { shift: shift.clone(), first: client << 24 })).collect();
    let workers = Worker::start_all(&orders)?;
    let pairs = workers.into_iter().map(Worker::answer::<u64>).sum::<Result<u64>>()?;
    Ok(time.as_secs_f64() * 1e9 / pairs as f64)
}

/// The second node is first to lock every name, and keeps it.
fn remote_pairs(trial: &Trial, places: Places, window: Duration, work: Work) -> Result<f64> {
    let _daemons = trial.pin(2, places.far)?;
    let _pinned = Pinned::to(places.near)?;
    let master = client::join(&trial.socket(1)?)?;
    let guards = client::keep(&master, NAMES)?;
    if guards.len() as u64 != NAMES {
        bail!("only {} locks in a second at the master", guards.len());
    }
    let space = client::join(&trial.socket(0)?)?;
    let _other = client::keep(&space, 1)?;
    let each = again_and_again(&space, window, work)?;
    drop(guards);
    Ok(each)
}

/// Two processes, each at one of these nodes; nanoseconds for a change of owner, and turns for it.
fn hand_over(trial: &Trial, places: Places, time: Duration, nodes: [usize; 2]) -> Result<Vec<f64>> {
    let _daemons = trial.pin(2, places.far)?;
    let (mut orders, mut others) = (Vec::new(), Vec::new());
    for node in nodes {
        let socket = trial.socket(node)?;
        others.extend(client::keep(&client::join(&socket)?, 1)?);
        orders.push(Order::Contend(Contend { shift: Shift { socket, core: places.near, time }, resource: "contended".into() }));
    }
    let turns: Vec<Vec<Turn>> = Worker::start_all(&orders)?.into_iter().map(Worker::answer).collect::<Result<_>>()?;
    match turns.as_slice() {
        [first, second] => judge(first, second),
        _ => bail!("{} clients contended, not two", turns.len()),
    }
}

/// Only while both were at it.
fn judge(first: &[Turn], second: &[Turn]) -> Result<Vec<f64>> {
    let ends = |turns: &[Turn]| Some((turns.first()?.at, turns.last()?.at));
    let (one, other) = ends(first).zip(ends(second)).context("a client had no turn")?;
    let (begin, end) = (one.0.max(other.0), one.1.min(other.1));
    let of = |turns: &[Turn], owner: usize| {
        turns.iter().filter(|turn| turn.at >= begin && turn.at <= end).map(|turn| (turn.token, owner)).collect::<Vec<_>>()
    };
    let mut all = of(first, 0);
    all.extend(of(second, 1));
    all.sort_unstable();
    let changes = all.windows(2).filter(|pair| matches!(pair, [one, next] if one.1 != next.1)).count();
    if changes == 0 {
        bail!("the lock never changed its owner");
    }
    let (time, turns) = (end.saturating_sub(begin).as_nanos() as f64, all.len() as f64);
    Ok(vec![time / changes as f64, turns / changes as f64])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn turns(list: &[(u64, u64)]) -> Vec<Turn> {
        list.iter().map(|(counter, at)| Turn { token: (1, *counter), at: Duration::from_nanos(*at) }).collect()
    }

    #[test]
    fn turns_and_changes_are_counted_while_both_contend() {
        // The first is alone until 30 and after 60.
        let first = turns(&[(1, 10), (2, 20), (4, 40), (5, 50), (7, 70)]);
        let second = turns(&[(3, 30), (6, 60)]);
        assert_eq!(judge(&first, &second).unwrap(), [15.0, 2.0]);
        assert!(judge(&first, &[]).is_err());
        assert!(judge(&turns(&[(1, 10), (2, 20)]), &turns(&[(3, 30)])).is_err());
    }
}
