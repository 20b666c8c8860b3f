//! What: who waits for whom, as one graph over all resources: as text and for Graphviz.
//! Owns: the parties, the edges, the cycles among them.
//! Invariants: parties are those of the search for deadlocks: a session, a transaction, each owner of ranges; a cycle that is told is one.
//! Does not: end deadlocks (the lock service does).
//! Called by: `deadbolt locks --graph`.

use super::rows::{claim, part, place, since, waits, whose};
use crate::verbs::printable;
use deadbolt_cluster::lock_documents::{LocksAnswer, WhoColumns};
use std::collections::{BTreeMap, BTreeSet};

/// Who is to go on before the other does.
type Party = (Option<(String, u64)>, u64, u64);

/// A lock's session or transaction, and the owner of ranges.
fn party(who: &WhoColumns, part: u64) -> Party {
    match (who.owner, who.session) {
        (Some(owner), _) => (None, owner, part),
        (None, Some(session)) => (Some((who.node.clone(), session)), 0, part),
        // Nobody stands behind an orphan: it is a party of its own.
        (None, None) => (Some((who.node.clone(), u64::MAX)), who.lock.into(), part),
    }
}

#[derive(Debug)]
struct Edge {
    from: usize,
    to: usize,
    wants: String,
    since: String,
    claim: String,
    is_held: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Graph {
    names: Vec<String>,
    edges: Vec<Edge>,
    /// Waits of which nobody in their way is known: party, what, and why.
    open: Vec<(usize, String, String)>,
}

impl Graph {
    pub(super) fn new(answer: &LocksAnswer) -> Self {
        let mut graph = Self::default();
        let mut numbers = BTreeMap::new();
        let mut number = |graph: &mut Self, who: &WhoColumns, part: u64| {
            *numbers.entry(party(who, part)).or_insert_with(|| {
                graph.names.push(whose(who, part));
                graph.names.len() - 1
            })
        };
        for wait in waits(answer) {
            let from = number(&mut graph, wait.who, wait.part);
            let (wants, since) = (format!("{} on {}", wait.wants, place(wait.on)), since(wait.since_ms));
            let blockers = wait.waits_for.unwrap_or_default();
            for blocker in blockers {
                let to = number(&mut graph, &blocker.who, part(blocker));
                let (wants, since, claim, is_held) = (wants.clone(), since.clone(), claim(blocker), blocker.holds);
                graph.edges.push(Edge { from, to, wants, since, claim, is_held });
            }
            let master = || wait.on.master.as_deref().map_or_else(|| "its master, not known yet,".into(), printable);
            let why = match (wait.waits_for, wait.left_out) {
                (None, _) => format!("{} knows for whom", master()),
                (Some([]), _) => "recovery, or a cluster that is not quorate".into(),
                (Some(_), 0) => continue,
                (Some(_), more) => format!("{more} more"),
            };
            graph.open.push((from, format!("{wants}, {since}"), why));
        }
        graph
    }

    /// Cycles, each once: followed from party to party along their first edges that lead into one.
    fn cycles(&self) -> Vec<Vec<usize>> {
        let mut next: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.names.len()];
        let mut before = next.clone();
        for edge in self.edges.iter().filter(|edge| edge.from != edge.to) {
            if let (Some(next), Some(before)) = (next.get_mut(edge.from), before.get_mut(edge.to)) {
                next.insert(edge.to);
                before.insert(edge.from);
            }
        }
        // Whoever waits for nobody is in no cycle, nor is, without it, whoever waited for it alone.
        let mut ends: Vec<usize> = (0..next.len()).filter(|party| next.get(*party).is_some_and(BTreeSet::is_empty)).collect();
        while let Some(end) = ends.pop() {
            for from in before.get(end).cloned().unwrap_or_default() {
                if let Some(next) = next.get_mut(from)
                    && next.remove(&end)
                    && next.is_empty()
                {
                    ends.push(from);
                }
            }
        }
        let mut cycles = Vec::new();
        let mut seen = BTreeSet::new();
        for start in 0..next.len() {
            let mut path = Vec::new();
            let mut at = Some(start).filter(|start| next.get(*start).is_some_and(|next| !next.is_empty()));
            while let Some(party) = at.filter(|party| seen.insert(*party)) {
                path.push(party);
                at = next.get(party).and_then(|next| next.first().copied());
            }
            if let Some(first) = at.and_then(|at| path.iter().position(|party| *party == at)) {
                cycles.push(path.split_off(first));
            }
        }
        cycles
    }

    fn name(&self, party: usize) -> &str {
        self.names.get(party).map_or("-", |name| name)
    }

    /// One line for each edge; then who is at the end of it all, and the cycles.
    pub(super) fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for edge in &self.edges {
            let what = if edge.is_held { "has" } else { "came first, for" };
            let (from, to) = (self.name(edge.from), self.name(edge.to));
            lines.push(format!("{from} -> {to}: waits {} for {}; the other {what} {}", edge.since, edge.wants, edge.claim));
        }
        for (from, what, why) in &self.open {
            lines.push(format!("{} -> ?: waits for {what}; {why}", self.name(*from)));
        }
        if lines.is_empty() {
            return vec!["nobody waits, as far as is known here".into()];
        }
        let waiting: BTreeSet<usize> = self.edges.iter().map(|edge| edge.from).chain(self.open.iter().map(|(from, ..)| *from)).collect();
        let mut ends: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for edge in self.edges.iter().filter(|edge| !waiting.contains(&edge.to)) {
            ends.entry(edge.to).or_default().insert(edge.from);
        }
        for (end, waiters) in ends {
            lines.push(format!("waits for nobody itself: {} ({} right behind it)", self.name(end), waiters.len()));
        }
        for cycle in self.cycles() {
            let names: Vec<&str> = cycle.iter().chain(cycle.first()).map(|party| self.name(*party)).collect();
            lines.push(format!("cycle: {}", names.join(" -> ")));
        }
        lines
    }

    /// For Graphviz: what is had with solid lines, what came first with dashed ones, cycles in red.
    pub(super) fn dot(&self) -> Vec<String> {
        let cycles = self.cycles();
        let red: BTreeSet<usize> = cycles.iter().flatten().copied().collect();
        let is_red = |from: usize, to: usize| {
            let follows =
                |cycle: &Vec<usize>| cycle.iter().zip(cycle.iter().cycle().skip(1)).any(|(one, next)| (*one, *next) == (from, to));
            cycles.iter().any(follows)
        };
        let mut lines = vec!["digraph waits_for {".to_owned(), "  node [shape=box];".into()];
        for (party, name) in self.names.iter().enumerate() {
            let color = if red.contains(&party) { ", color=red" } else { "" };
            lines.push(format!("  p{party} [label={}{color}];", dot_text(name)));
        }
        for edge in &self.edges {
            let what = if edge.is_held { "has" } else { "came first:" };
            let label = dot_text(&format!("{}, {}; {what} {}", edge.wants, edge.since, edge.claim));
            let style = if edge.is_held { "" } else { ", style=dashed" };
            let color = if is_red(edge.from, edge.to) { ", color=red" } else { "" };
            lines.push(format!("  p{} -> p{} [label={label}{style}{color}];", edge.from, edge.to));
        }
        for (number, (from, what, why)) in self.open.iter().enumerate() {
            lines.push(format!("  q{number} [label={}, shape=ellipse];", dot_text(why)));
            lines.push(format!("  p{from} -> q{number} [label={}, style=dotted];", dot_text(what)));
        }
        lines.push("}".into());
        lines
    }
}

fn dot_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
