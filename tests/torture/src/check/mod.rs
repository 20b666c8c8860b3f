//! What: the judgement of a run by what its clients wrote down.
//! Owns: the rules; docs/torture.md says them in words.
//! Invariants: a violation is named only where the files prove it: no assumption on scheduling or on how long a message takes.
//! Does not: talk to a node.
//! Called by: the run.

mod chain;
mod story;
#[cfg(test)]
mod tests;

use crate::history::{Deed, LifeName, Number, Why, Written};
use anyhow::Result;
use deadbolt_dlm::MODES;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use story::{Grant, Hold, Story, Wait};

/// How many violations of one kind are told in full.
const TOLD_MAX: usize = 20;

/// How long somebody may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    /// From a fault until nobody waits for it any more.
    pub(crate) outage_ns: u64,
    /// For the rest of every wait: those before in the queue, searches for deadlocks.
    pub(crate) calm_ns: u64,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) grants: u64,
    pub(crate) conversions: u64,
    pub(crate) increments: u64,
    pub(crate) lost_updates: u64,
    pub(crate) refused: BTreeMap<Why, u64>,
    /// Value blocks that were given as good and compared with the counter.
    pub(crate) values_good: u64,
    pub(crate) values_doubtful: u64,
    pub(crate) clients: u64,
    pub(crate) clients_killed: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) worst_wait_ns: u64,
    pub(crate) worst_calm_wait_ns: u64,
    pub(crate) stuck_waiters: u64,
    pub(crate) violations: Vec<String>,
}

impl Judgement {
    pub(crate) fn is_held(&self) -> bool {
        self.violations.is_empty()
    }

    fn blame(&mut self, what: String) {
        self.violations.push(what);
    }

    /// For programs.
    pub(crate) fn json(&self) -> Json {
        let refused: BTreeMap<String, u64> = self.refused.iter().map(|(why, count)| (format!("{why:?}"), *count)).collect();
        json!({
            "verdict": if self.is_held() { "held" } else { "violated" },
            "grants": self.grants, "conversions": self.conversions, "refused": refused,
            "increments": self.increments, "lost_updates": self.lost_updates,
            "values_good": self.values_good, "values_doubtful": self.values_doubtful,
            "clients": self.clients, "clients_killed": self.clients_killed, "sessions_lost": self.sessions_lost,
            "faults": self.faults,
            "worst_wait_ms": self.worst_wait_ns / 1_000_000, "worst_calm_wait_ms": self.worst_calm_wait_ns / 1_000_000,
            "stuck_waiters": self.stuck_waiters,
            "violations": self.violations,
        })
    }
}

/// Judges a run; `last`: what stands in each resource's file at the end.
///
/// # Errors
/// Histories that no client can have written.
pub(crate) fn judge(written: &Written, last: &[u64], bounds: Bounds) -> Result<Judgement> {
    let mut story = Story::default();
    for (life, lines) in &written.histories {
        story.add(*life, lines, known_alive(*life, written))?;
    }
    let mut judgement = Judgement {
        grants: u64::try_from(story.grants.len())?,
        conversions: story.conversions,
        refused: std::mem::take(&mut story.refused),
        clients: u64::try_from(written.histories.len())?,
        sessions_lost: u64::try_from(story.lost.len())?,
        ..Judgement::default()
    };
    std::mem::take(&mut story.odd).into_iter().for_each(|odd| judgement.blame(format!("an answer that makes no sense: {odd}")));
    check_holds(std::mem::take(&mut story.holds), &mut judgement);
    check_order(&story.grants, &mut judgement);
    chain::check(std::mem::take(&mut story.accesses), last, &mut judgement);
    let outages = Outages::new(&written.deeds, bounds);
    check_waits(&story.waits, &outages, bounds, &mut judgement);
    for (at, life) in story.lost.iter().filter(|(at, life)| !outages.concern(life.node, *at)) {
        judgement.blame(format!("client {life} lost its session at {at}, and nothing had happened to its node"));
    }
    for (_, deed) in &written.deeds {
        match deed {
            Deed::Killed { .. } => judgement.clients_killed += 1,
            Deed::Fault { kind, .. } => *judgement.faults.entry(kind.clone()).or_default() += 1,
            Deed::CrewKilled { .. } => {}
        }
    }
    Ok(judgement)
}

/// When the kill of a client, or of all of its node, found it alive.
fn known_alive(life: LifeName, written: &Written) -> Option<u64> {
    let killed = written.deeds.iter().find(|(_, deed)| *deed == Deed::Killed { life });
    let crew_killed = || {
        let next = LifeName { life: life.life + 1, ..life };
        let is_last = !written.histories.contains_key(&next);
        let whole = Deed::CrewKilled { node: life.node, crew: life.crew };
        written.deeds.iter().find(|(_, deed)| is_last && *deed == whole)
    };
    killed.or_else(crew_killed).map(|(at, _)| *at)
}

/// Incompatible modes never stand together, and the later one of two has the larger number.
fn check_holds(mut holds: Vec<Hold>, judgement: &mut Judgement) {
    holds.sort_unstable_by_key(|hold| (hold.resource, hold.from));
    let mut told = 0;
    for of_resource in holds.chunk_by(|one, other| one.resource == other.resource) {
        let mut standing: Vec<Hold> = Vec::new();
        let mut largest: [Option<(Number, LifeName)>; 6] = [None; 6];
        for hold in of_resource {
            standing.retain(|before| before.to > hold.from);
            let others = standing.iter().filter(|before| (before.life, before.op) != (hold.life, hold.op));
            for before in others.filter(|before| !before.mode.is_compatible(hold.mode)) {
                told += 1;
                if told <= TOLD_MAX {
                    judgement.blame(format!("held together: {}; and {}", describe(before), describe(hold)));
                }
            }
            for mode in MODES.iter().filter(|mode| !mode.is_compatible(hold.mode)) {
                if let Some((token, life)) = largest[usize::from(mode.number())]
                    && (hold.token < token || (hold.token == token && hold.life != life))
                {
                    judgement.blame(format!("a token fell: {} comes after {token:?} of client {life} in {mode}", describe(hold)));
                }
            }
            let place = &mut largest[usize::from(hold.mode.number())];
            *place = (*place).max(Some((hold.token, hold.life)));
            standing.push(*hold);
        }
    }
}

fn describe(hold: &Hold) -> String {
    let Hold { life, op, resource, mode, token, from, to } = hold;
    format!("resource {resource} in {mode} by client {life}, lock {op}, token {}.{}, from {from} to {to}", token.0, token.1)
}

/// Who asks after another has its grant gets a larger number, in whatever mode.
fn check_order(grants: &[Grant], judgement: &mut Judgement) {
    // By resource and time; at one instant the question comes first, so that nothing is demanded of both at once.
    let mut times: Vec<(u8, u64, bool, usize)> = Vec::with_capacity(2 * grants.len());
    for (index, grant) in grants.iter().enumerate() {
        times.push((grant.resource, grant.asked, false, index));
        times.push((grant.resource, grant.got, true, index));
    }
    times.sort_unstable();
    let mut least: Vec<Number> = vec![(0, 0); grants.len()];
    let mut largest = (0, 0);
    let mut present = None;
    for (resource, _, is_got, index) in times {
        if present != Some(resource) {
            (present, largest) = (Some(resource), (0, 0));
        }
        if !is_got {
            least[index] = largest;
            continue;
        }
        let grant = grants[index];
        if grant.token <= least[index] {
            let Grant { life, resource, token, asked, .. } = grant;
            judgement.blame(format!(
                "a token did not grow: client {life} asked for resource {resource} at {asked} and got {token:?}; {:?} was given before",
                least[index]
            ));
        }
        largest = largest.max(grant.token);
    }
}

/// When waiting has a cause that was made.
struct Outages {
    /// Apart from each other, in order.
    merged: Vec<(u64, u64)>,
    of_nodes: Vec<(usize, u64, u64)>,
}

impl Outages {
    fn new(deeds: &[(u64, Deed)], bounds: Bounds) -> Self {
        let faults = deeds.iter().filter_map(|(at, deed)| match deed {
            Deed::Fault { node, .. } => Some((*node, *at, at + bounds.outage_ns)),
            _ => None,
        });
        let of_nodes: Vec<(usize, u64, u64)> = faults.collect();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (_, from, to) in &of_nodes {
            match merged.last_mut() {
                Some(last) if *from <= last.1 => last.1 = last.1.max(*to),
                _ => merged.push((*from, *to)),
            }
        }
        Self { merged, of_nodes }
    }

    fn concern(&self, node: usize, at: u64) -> bool {
        self.of_nodes.iter().any(|(other, from, to)| *other == node && (*from..*to).contains(&at))
    }

    /// The part of a wait that no outage covers.
    fn calm_part(&self, from: u64, to: u64) -> u64 {
        let covered = self.merged.iter().map(|(begin, end)| to.min(*end).saturating_sub(from.max(*begin)));
        (to - from).saturating_sub(covered.sum())
    }
}

fn check_waits(waits: &[Wait], outages: &Outages, bounds: Bounds, judgement: &mut Judgement) {
    for wait in waits {
        let calm = outages.calm_part(wait.from, wait.to);
        judgement.worst_wait_ns = judgement.worst_wait_ns.max(wait.to - wait.from);
        judgement.worst_calm_wait_ns = judgement.worst_calm_wait_ns.max(calm);
        if calm > bounds.calm_ns {
            judgement.stuck_waiters += 1;
            let Wait { life, resource, from, to, is_answered } = wait;
            let end = if *is_answered { "answered" } else { "never answered" };
            judgement
                .blame(format!("client {life} waited at resource {resource} from {from} to {to}, {end}; {calm} ns of it for no fault"));
        }
    }
}
