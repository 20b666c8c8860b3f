//! What: the search for deadlocks across resources, over what all masters know of who waits for whom.
//! Owns: which waits are in a deadlock, and which one of them must fail.
//! Invariants: a cycle counts only when each of its edges stood in two pictures in a row, so that all of them stood at one instant; a wait
//! fails at most once; whoever must not fail is left out, and a cycle of such waits stays.
//! Does not: know messages, timers or queues; gather.
//! Called by: `service::deadlock`.

mod graph;

use crate::client::ResourceName;
use crate::cycle::{CYCLE_STEPS_MAX, Claim, Cycle, CycleParty, CycleStep};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;
use graph::Graph;

/// Most turns of breaking cycles over one picture (bounds work; what is left is found in the next).
const TURNS_MAX: usize = 64;

/// Pictures that may still show a wait that was to fail; after these its master did not let it (chosen: its failure comes before the next).
const PATIENCE: u8 = 2;

/// Whose locks and waits belong together: it goes on when all that it waits for is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Transaction {
    /// Where the number counts; `None`: everywhere, clients of all nodes mean the same one by it.
    pub(crate) life: Option<Life>,
    pub(crate) number: u64,
    /// Whom among those who share the number; 0 where nobody does.
    pub(crate) part: u64,
}

/// One operation that waits; no other one is ever called the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaitId {
    pub(crate) life: Life,
    pub(crate) lock: u32,
    pub(crate) op: u64,
    /// Ranges have numbers of their own.
    pub(crate) is_range: bool,
}

/// Who stands in the way of a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Blocker {
    pub(crate) who: Transaction,
    pub(crate) life: Life,
    pub(crate) lock: u32,
    pub(crate) pid: u32,
    pub(crate) claim: Claim,
    /// It has what it claims; else it waits for it and came first.
    pub(crate) is_held: bool,
    /// Another number when it gave up what it has, or stopped waiting, and did so again since.
    pub(crate) mark: u64,
}

/// A wait, as its master sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wait {
    pub(crate) id: WaitId,
    pub(crate) who: Transaction,
    pub(crate) pid: u32,
    pub(crate) claim: Claim,
    pub(crate) lockspace: Vec<u8>,
    pub(crate) resource: ResourceName,
    /// By its master's clock.
    pub(crate) waited_ms: u64,
    /// It may be failed to end a deadlock.
    pub(crate) may_fail: bool,
    pub(crate) blockers: Vec<Blocker>,
}

/// A wait that must fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Victim {
    pub(crate) id: WaitId,
    pub(crate) cycle: Cycle,
}

/// All waits at the time of one gathering, each master's part seen at an instant of its own.
pub(crate) type Picture = BTreeMap<WaitId, Wait>;

/// What a picture showed.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) victims: Vec<Victim>,
    /// Something looks like a deadlock and must be looked at again.
    pub(crate) is_suspicious: bool,
}

/// An edge that may be part of a cycle: a wait, and what it waits for.
type Edge = (WaitId, Transaction, (Life, u32, bool, u64));

fn edge_of(wait: &Wait, blocker: &Blocker) -> Edge {
    (wait.id, blocker.who, (blocker.life, blocker.lock, blocker.is_held, blocker.mark))
}

/// The search: what the last picture showed, and who was failed already.
#[derive(Debug, Default)]
pub(crate) struct Search {
    before: BTreeSet<Edge>,
    /// With the number of pictures that have shown each since.
    failed: BTreeMap<WaitId, u8>,
}

impl Search {
    /// Looks at a picture that was gathered after the last one had been complete.
    pub(crate) fn judge(&mut self, picture: &Picture) -> Verdict {
        self.failed.retain(|id, pictures| {
            *pictures += 1;
            picture.contains_key(id) && *pictures <= PATIENCE
        });
        let waits: Vec<&Wait> = picture.values().filter(|wait| !self.failed.contains_key(&wait.id)).collect();
        let mut graph = Graph::new(&waits);
        graph.keep_cycles();
        let now: BTreeSet<Edge> = graph.edges().map(|(wait, blocker)| edge_of(wait, blocker)).collect();
        graph.retain(|wait, blocker| self.before.contains(&edge_of(wait, blocker)));
        let is_new = graph.edges().count() < now.len();
        self.before = now;
        let mut verdict = Verdict::default();
        for _ in 0..TURNS_MAX {
            graph.keep_cycles();
            let chosen = graph.youngest();
            if chosen.is_empty() {
                // A master that has just given the resource away cannot fail anything: who was to fail is looked after.
                verdict.is_suspicious = is_new || !self.failed.is_empty();
                return verdict;
            }
            for wait in chosen {
                self.failed.insert(wait.id, 0);
                verdict.victims.push(Victim { id: wait.id, cycle: describe(&graph.cycle(wait)) });
            }
            graph.retain(|wait, _| !self.failed.contains_key(&wait.id));
        }
        verdict.is_suspicious = true;
        verdict
    }
}

/// One of a cycle, with its number as its client knows it.
fn party(who: &Transaction, life: &Life, pid: u32) -> CycleParty {
    let owner = if who.part == 0 && who.life.is_none() { who.number } else { who.part };
    CycleParty { slot: life.slot.0, pid, owner }
}

/// A cycle as its victim and the operator are told of it.
fn describe(cycle: &[(&Wait, &Blocker)]) -> Cycle {
    let step = |(wait, blocker): &(&Wait, &Blocker)| CycleStep {
        waiter: party(&wait.who, &wait.id.life, wait.pid),
        wanted: wait.claim,
        lockspace: wait.lockspace.clone(),
        resource: wait.resource,
        blocker: party(&blocker.who, &blocker.life, blocker.pid),
        claim: blocker.claim,
        is_held: blocker.is_held,
    };
    let left_out = cycle.len().saturating_sub(CYCLE_STEPS_MAX);
    let steps = cycle.iter().take(CYCLE_STEPS_MAX).map(step).collect();
    Cycle { steps, left_out: u32::try_from(left_out).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests;
