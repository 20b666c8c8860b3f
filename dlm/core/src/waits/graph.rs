//! What: who waits for whom, as a graph of transactions.
//! Owns: finding what lies on cycles, in time linear in the edges.
//! Invariants: no recursion; the same waits give the same answer.
//! Does not: know pictures of other instants.
//! Called by: `waits`.

use super::{Blocker, Transaction, Wait};
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

/// One reason why a transaction waits.
#[derive(Clone, Copy, Debug)]
struct Edge<'a> {
    to: usize,
    wait: &'a Wait,
    blocker: &'a Blocker,
}

/// Edges by the transaction that waits.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: BTreeMap<Transaction, usize>,
    edges: Vec<Vec<Edge<'a>>>,
}

/// Not visited yet, or in no group.
const NONE: usize = usize::MAX;

impl<'a> Graph<'a> {
    /// A session that waits for a lock of its own is no deadlock: another of its threads may give that back.
    pub(super) fn new(waits: &[&'a Wait]) -> Self {
        let mut graph = Self { nodes: BTreeMap::new(), edges: Vec::new() };
        for wait in waits {
            let from = graph.node(wait.who);
            for blocker in &wait.blockers {
                let to = graph.node(blocker.who);
                let is_own = from == to && wait.who.life.is_some();
                if let Some(edges) = graph.edges.get_mut(from).filter(|_| !is_own) {
                    edges.push(Edge { to, wait, blocker });
                }
            }
        }
        graph
    }

    fn node(&mut self, who: Transaction) -> usize {
        let number = *self.nodes.entry(who).or_insert(self.edges.len());
        if number == self.edges.len() {
            self.edges.push(Vec::new());
        }
        number
    }

    pub(super) fn edges(&self) -> impl Iterator<Item = (&'a Wait, &'a Blocker)> + '_ {
        self.edges.iter().flatten().map(|edge| (edge.wait, edge.blocker))
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(&Wait, &Blocker) -> bool) {
        for edges in &mut self.edges {
            edges.retain(|edge| is_kept(edge.wait, edge.blocker));
        }
    }

    /// Drops every edge that lies on no cycle.
    pub(super) fn keep_cycles(&mut self) {
        let groups = self.groups();
        for (edges, group) in self.edges.iter_mut().zip(&groups) {
            edges.retain(|edge| groups.get(edge.to) == Some(group));
        }
    }

    /// Numbers the strongly connected groups of transactions (Tarjan): who reaches each other has the same number.
    fn groups(&self) -> Vec<usize> {
        let mut walk = Walk {
            order: vec![NONE; self.edges.len()],
            low: vec![NONE; self.edges.len()],
            group: vec![NONE; self.edges.len()],
            ..Walk::default()
        };
        for start in 0..self.edges.len() {
            if walk.order.get(start) == Some(&NONE) {
                walk.enter(start);
            }
            while let Some((node, next)) = walk.path.pop() {
                let Some(edge) = self.edges.get(node).and_then(|edges| edges.get(next)) else {
                    walk.leave(node);
                    continue;
                };
                walk.path.push((node, next + 1));
                if walk.order.get(edge.to) == Some(&NONE) {
                    walk.enter(edge.to);
                } else if walk.group.get(edge.to) == Some(&NONE) {
                    walk.lower(node, walk.order.get(edge.to).copied());
                }
            }
        }
        walk.group
    }

    /// For each group, of the waits that may fail, the one that began last. Only after `keep_cycles`: every edge lies on a cycle.
    pub(super) fn youngest(&self) -> Vec<&'a Wait> {
        let groups = self.groups();
        let mut youngest: BTreeMap<usize, &'a Wait> = BTreeMap::new();
        for (edges, group) in self.edges.iter().zip(&groups) {
            for wait in edges.iter().map(|edge| edge.wait).filter(|wait| wait.may_fail) {
                let best = youngest.entry(*group).or_insert(wait);
                if (wait.waited_ms, wait.id) < (best.waited_ms, best.id) {
                    *best = wait;
                }
            }
        }
        youngest.into_values().collect()
    }

    /// A shortest cycle through a wait, beginning with it.
    pub(super) fn cycle(&self, wait: &Wait) -> Vec<(&'a Wait, &'a Blocker)> {
        let Some(start) = self.nodes.get(&wait.who).copied() else { return Vec::new() };
        let mut came_by: BTreeMap<usize, (usize, Edge<'a>)> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            let is_first = node == start;
            for edge in self.edges.get(node).into_iter().flatten().filter(|edge| !is_first || edge.wait.id == wait.id) {
                if let Entry::Vacant(place) = came_by.entry(edge.to) {
                    place.insert((node, *edge));
                    queue.push_back(edge.to);
                }
            }
            if came_by.contains_key(&start) {
                break;
            }
        }
        let mut cycle = Vec::new();
        let mut node = start;
        while let Some((from, edge)) = came_by.get(&node) {
            cycle.push((edge.wait, edge.blocker));
            node = *from;
            if node == start {
                break;
            }
        }
        cycle.reverse();
        cycle
    }
}

/// The state of the walk through all transactions.
#[derive(Default)]
struct Walk {
    /// When each was first seen.
    order: Vec<usize>,
    /// The earliest one that it reaches among those without a group.
    low: Vec<usize>,
    group: Vec<usize>,
    /// Seen, and in no group yet.
    open: Vec<usize>,
    /// The way to where the walk is, with the next edge to take of each.
    path: Vec<(usize, usize)>,
    seen: usize,
}

impl Walk {
    fn enter(&mut self, node: usize) {
        for place in [self.order.get_mut(node), self.low.get_mut(node)].into_iter().flatten() {
            *place = self.seen;
        }
        self.seen += 1;
        self.open.push(node);
        self.path.push((node, 0));
    }

    fn lower(&mut self, node: usize, to: Option<usize>) {
        if let Some((low, to)) = self.low.get_mut(node).zip(to) {
            *low = (*low).min(to);
        }
    }

    /// All edges of a node are taken: it closes its group, or hands on what it reaches.
    fn leave(&mut self, node: usize) {
        if self.low.get(node) != self.order.get(node) {
            let reached = self.low.get(node).copied();
            if let Some((parent, _)) = self.path.last().copied() {
                self.lower(parent, reached);
            }
            return;
        }
        while let Some(member) = self.open.pop() {
            if let Some(group) = self.group.get_mut(member) {
                *group = node;
            }
            if member == node {
                break;
            }
        }
    }
}
