//! What: who could be the next view: maximal cliques of the mutual edges, the vote rule, the order among them.
//! Owns: the rule by which every node that sees the same edges proposes the same members.
//! Invariants: pure; the answer depends on nothing but its arguments; exact to 32 nodes, bounded and deterministic above.
//! Does not: judge freshness of beats, wait for stability, or decide; the register decides.
//! Called by: the membership machine before it proposes a view.

use alloc::{collections::BTreeMap, vec::Vec};
use core::cmp::{Ordering, Reverse};
use deadbolt_disk_format::{Configuration, SLOTS_MAX, SlotIndex, SlotSet};

/// Up to this many nodes the list of cliques is complete. Chosen: 3^(32/3), about 1.2e5 cliques, is the worst case and takes well under a second.
pub const EXACT_NODES_MAX: u32 = 32;
/// Steps of the search above [`EXACT_NODES_MAX`] nodes. Chosen: some tens of milliseconds; a healthy graph needs a few hundred.
const STEPS_MAX: u32 = 20_000;

fn and(a: &SlotSet, b: &SlotSet) -> SlotSet {
    SlotSet(core::array::from_fn(|index| a.0[index] & b.0[index]))
}
fn without(a: &SlotSet, b: &SlotSet) -> SlotSet {
    SlotSet(core::array::from_fn(|index| a.0[index] & !b.0[index]))
}
fn union(a: &SlotSet, b: &SlotSet) -> SlotSet {
    SlotSet(core::array::from_fn(|index| a.0[index] | b.0[index]))
}
/// The slots, ascending; in steps of what is there, for the search asks often.
fn slots_of(set: &SlotSet) -> impl Iterator<Item = SlotIndex> {
    (0u16..).step_by(64).zip(set.0).flat_map(|(base, mut word)| {
        core::iter::from_fn(move || {
            let bit = u16::try_from(word.trailing_zeros()).ok().filter(|_| word != 0)?;
            word &= word - 1;
            Some(SlotIndex(base + bit))
        })
    })
}
fn is_empty(a: &SlotSet) -> bool {
    a.0 == [0; 4]
}

/// Mutual edges: `i-j` exists only where i hears j **and** j hears i.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    neighbours: BTreeMap<SlotIndex, SlotSet>,
}

impl Graph {
    /// From what each node says it hears. The caller leaves out nodes whose beat or daemon part is not fresh.
    #[must_use]
    pub fn from_hears(hears: &BTreeMap<SlotIndex, SlotSet>) -> Self {
        let neighbours = hears
            .iter()
            .map(|(&slot, heard)| {
                let mutual =
                    slots_of(heard).filter(|&other| other != slot && hears.get(&other).is_some_and(|theirs| theirs.contains(slot)));
                (slot, mutual.collect())
            })
            .collect();
        Self { neighbours }
    }

    /// The nodes that take part.
    #[must_use]
    pub fn nodes(&self) -> SlotSet {
        self.neighbours.keys().copied().collect()
    }

    /// Does each of the two hear the other?
    #[must_use]
    pub fn is_edge(&self, a: SlotIndex, b: SlotIndex) -> bool {
        self.neighbours.get(&a).is_some_and(|set| set.contains(b))
    }

    fn neighbours_of(&self, slot: SlotIndex) -> SlotSet {
        self.neighbours.get(&slot).copied().unwrap_or_default()
    }
}

/// The cliques found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cliques {
    /// Maximal cliques, ascending, without doubles.
    pub sets: Vec<SlotSet>,
    /// Are these all of them? Always so up to [`EXACT_NODES_MAX`] nodes.
    pub is_complete: bool,
}

struct Search {
    /// By slot.
    neighbours: Vec<SlotSet>,
    steps_left: Option<u32>,
    found: Vec<SlotSet>,
    is_complete: bool,
}

impl Search {
    fn near(&self, slot: SlotIndex) -> SlotSet {
        self.neighbours.get(usize::from(slot.0)).copied().unwrap_or_default()
    }

    /// Bron and Kerbosch with a pivot: `clique` grows by `open`; `closed` were tried before.
    fn grow(&mut self, clique: SlotSet, mut open: SlotSet, mut closed: SlotSet) {
        if let Some(left) = &mut self.steps_left {
            if *left == 0 {
                self.is_complete = false;
                return;
            }
            *left -= 1;
        }
        if is_empty(&open) {
            if is_empty(&closed) && !is_empty(&clique) {
                self.found.push(clique);
            }
            return;
        }
        let pivot = slots_of(&union(&open, &closed))
            .max_by_key(|&slot| (and(&self.near(slot), &open).count(), Reverse(slot)))
            .map(|slot| self.near(slot))
            .unwrap_or_default();
        for slot in slots_of(&without(&open, &pivot)) {
            let near = self.near(slot);
            let mut larger = clique;
            larger.insert(slot);
            self.grow(larger, and(&open, &near), and(&closed, &near));
            open.remove(slot);
            closed.insert(slot);
        }
    }

    /// One maximal clique around each node, nearest by degree first, so that a search cut short still offers good ones.
    fn greedy(&mut self, nodes: &SlotSet) {
        for seed in slots_of(nodes) {
            let mut clique: SlotSet = core::iter::once(seed).collect();
            let mut open = and(&self.near(seed), nodes);
            while let Some(next) = slots_of(&open).max_by_key(|&slot| (and(&self.near(slot), &open).count(), Reverse(slot))) {
                clique.insert(next);
                open = and(&open, &self.near(next));
            }
            self.found.push(clique);
        }
    }
}

/// The maximal cliques among `nodes`.
#[must_use]
pub fn maximal_cliques(graph: &Graph, nodes: &SlotSet) -> Cliques {
    let nodes = and(nodes, &graph.nodes());
    let is_small = nodes.count() <= EXACT_NODES_MAX;
    let mut search = Search {
        neighbours: (0..SLOTS_MAX).map(|slot| graph.neighbours_of(SlotIndex(slot))).collect(),
        steps_left: (!is_small).then_some(STEPS_MAX),
        found: Vec::new(),
        is_complete: true,
    };
    if !is_small {
        search.greedy(&nodes);
    }
    search.grow(SlotSet::default(), nodes, SlotSet::default());
    let mut sets = search.found;
    sets.sort_unstable_by(|a, b| slots_of(a).cmp(slots_of(b)));
    sets.dedup();
    Cliques { sets, is_complete: search.is_complete }
}

/// May the votes of the disk be counted? Only by who lives on its own cycles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskVotes {
    /// The proposer has the disk.
    Counted,
    /// It has not.
    NotCounted,
}

/// What the order among cliques looks at.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Votes of each configured node.
    pub votes: BTreeMap<SlotIndex, u16>,
    /// Votes of the disk.
    pub disk_votes: u16,
    /// Heuristics score per node, already in steps and settled; a missing node counts as 0.
    pub scores: BTreeMap<SlotIndex, u8>,
    /// Nodes with their own path to the disk.
    pub with_path: SlotSet,
    /// Administrator's preference, best first.
    pub preference: Vec<SlotIndex>,
}

impl Standing {
    /// Votes as configured; scores, paths and preferences equal for all.
    #[must_use]
    pub fn from_configuration(configuration: &Configuration) -> Self {
        Self {
            votes: configuration.nodes.iter().map(|node| (node.slot, node.votes)).collect(),
            disk_votes: configuration.disk_votes,
            ..Self::default()
        }
    }

    /// Votes of all configured nodes and the disk.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.votes.values().map(|&votes| u32::from(votes)).sum::<u32>() + u32::from(self.disk_votes)
    }

    /// More than half of the total.
    #[must_use]
    pub fn quorum(&self) -> u32 {
        self.total() / 2 + 1
    }

    /// Votes of these nodes; an unconfigured node has none.
    #[must_use]
    pub fn votes_of(&self, nodes: &SlotSet) -> u32 {
        slots_of(nodes).filter_map(|slot| self.votes.get(&slot)).map(|&votes| u32::from(votes)).sum()
    }

    /// Have these nodes, with the disk where it counts, a quorum?
    #[must_use]
    pub fn is_eligible(&self, nodes: &SlotSet, disk: DiskVotes) -> bool {
        let disk_votes = match disk {
            DiskVotes::Counted => u32::from(self.disk_votes),
            DiskVotes::NotCounted => 0,
        };
        !is_empty(nodes) && self.votes_of(nodes) + disk_votes >= self.quorum()
    }

    /// `Greater`: `a` is to be preferred. Votes, score, own paths, preference, lowest slots. Equal only for equal sets.
    #[must_use]
    pub fn rank(&self, a: &SlotSet, b: &SlotSet) -> Ordering {
        let score = |set: &SlotSet| slots_of(set).filter_map(|slot| self.scores.get(&slot)).map(|&score| u32::from(score)).sum::<u32>();
        let paths = |set: &SlotSet| and(set, &self.with_path).count();
        self.votes_of(a)
            .cmp(&self.votes_of(b))
            .then_with(|| score(a).cmp(&score(b)))
            .then_with(|| paths(a).cmp(&paths(b)))
            .then_with(|| {
                let preferred = self.preference.iter().find(|slot| a.contains(**slot) != b.contains(**slot));
                preferred.map_or(Ordering::Equal, |slot| a.contains(*slot).cmp(&b.contains(*slot)))
            })
            .then_with(|| lowest_first(a, b))
    }
}

/// `Greater`: `a` has the lowest slot in which the two differ.
fn lowest_first(a: &SlotSet, b: &SlotSet) -> Ordering {
    slots_of(&union(&without(a, b), &without(b, a)))
        .next()
        .map_or(Ordering::Equal, |slot| if a.contains(slot) { Ordering::Greater } else { Ordering::Less })
}

/// The answer: whom to propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Members of the present view that stay. Empty only where there was no member left to ask.
    pub stay: SlotSet,
    /// Let in with this view.
    pub join: SlotSet,
}

impl Choice {
    /// Everybody in the next view.
    #[must_use]
    pub fn members(&self) -> SlotSet {
        union(&self.stay, &self.join)
    }
}

/// The best eligible clique of `members`, with those of `joiners` that form a clique with all of it. With no members (a formatted
/// device, or all of them proved gone) the joiners are ranked among themselves. Joiners count for the quorum: without that, one
/// member short of votes could never let in the node that would help it.
#[must_use]
pub fn choose(graph: &Graph, members: &SlotSet, joiners: &SlotSet, standing: &Standing, disk: DiskVotes) -> Option<Choice> {
    let joiners = without(joiners, members);
    if is_empty(members) {
        let join = best(maximal_cliques(graph, &joiners).sets, standing, disk)?;
        return Some(Choice { stay: SlotSet::default(), join });
    }
    let with_joiners = |stay: SlotSet| Choice { stay, join: joiners_of(graph, &stay, &joiners, standing) };
    maximal_cliques(graph, members)
        .sets
        .into_iter()
        .map(with_joiners)
        .filter(|choice| standing.is_eligible(&choice.members(), disk))
        .max_by(|a, b| standing.rank(&a.stay, &b.stay))
}

fn best(sets: Vec<SlotSet>, standing: &Standing, disk: DiskVotes) -> Option<SlotSet> {
    sets.into_iter().filter(|set| standing.is_eligible(set, disk)).max_by(|a, b| standing.rank(a, b))
}

fn joiners_of(graph: &Graph, stay: &SlotSet, joiners: &SlotSet, standing: &Standing) -> SlotSet {
    let near = slots_of(stay).fold(*joiners, |left, slot| and(&left, &graph.neighbours_of(slot)));
    maximal_cliques(graph, &near).sets.into_iter().max_by(|a, b| standing.rank(a, b)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec};

    fn set(slots: &[u16]) -> SlotSet {
        slots.iter().copied().map(SlotIndex).collect()
    }

    /// One-way edges: (a, b) is "a hears b".
    fn graph(nodes: &[u16], hears: &[(u16, u16)]) -> Graph {
        let mut map: BTreeMap<SlotIndex, SlotSet> = nodes.iter().map(|&node| (SlotIndex(node), SlotSet::default())).collect();
        for &(a, b) in hears {
            map.get_mut(&SlotIndex(a)).unwrap().insert(SlotIndex(b));
        }
        Graph::from_hears(&map)
    }

    fn both(edges: &[(u16, u16)]) -> Vec<(u16, u16)> {
        edges.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect()
    }

    fn standing(votes: &[u16], disk_votes: u16) -> Standing {
        let votes = (0u16..).zip(votes).map(|(slot, &votes)| (SlotIndex(slot), votes)).collect();
        Standing { votes, disk_votes, ..Standing::default() }
    }

    #[test]
    fn cliques_of_small_graphs() {
        type Row<'a> = (&'a str, &'a [u16], Vec<(u16, u16)>, Vec<SlotSet>);
        let table: Vec<Row<'_>> = vec![
            ("nobody", &[], vec![], vec![]),
            ("alone", &[3], vec![], vec![set(&[3])]),
            ("triangle", &[0, 1, 2], both(&[(0, 1), (1, 2), (0, 2)]), vec![set(&[0, 1, 2])]),
            ("chain", &[0, 1, 2], both(&[(0, 1), (1, 2)]), vec![set(&[0, 1]), set(&[1, 2])]),
            ("one-way break", &[0, 1], vec![(0, 1)], vec![set(&[0]), set(&[1])]),
            ("hears a stranger", &[0], vec![(0, 9)], vec![set(&[0])]),
            ("2:1", &[0, 1, 2], both(&[(0, 1)]), vec![set(&[0, 1]), set(&[2])]),
            (
                "square",
                &[0, 1, 2, 3],
                both(&[(0, 1), (1, 2), (2, 3), (3, 0)]),
                vec![set(&[0, 1]), set(&[0, 3]), set(&[1, 2]), set(&[2, 3])],
            ),
            ("top of the range", &[254, 0], both(&[(0, 254)]), vec![set(&[0, 254])]),
        ];
        for (name, nodes, edges, expected) in table {
            let graph = graph(nodes, &edges);
            let found = maximal_cliques(&graph, &graph.nodes());
            assert_eq!((found.sets, found.is_complete), (expected, true), "{name}");
        }
    }

    /// Against the definition, on every graph of up to five nodes.
    #[test]
    fn cliques_are_exact_on_all_graphs_of_five_nodes() {
        let pairs: Vec<(u16, u16)> = (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))).collect();
        for code in 0u32..1 << pairs.len() {
            let edges: Vec<_> = pairs.iter().enumerate().filter(|(index, _)| code & (1 << index) != 0).map(|(_, &pair)| pair).collect();
            let graph = graph(&[0, 1, 2, 3, 4], &both(&edges));
            let is_clique = |set: &SlotSet| set.iter().all(|a| set.iter().all(|b| a == b || graph.is_edge(a, b)));
            let mut expected: Vec<SlotSet> = (1u64..32)
                .map(|bits| SlotSet([bits, 0, 0, 0]))
                .filter(|set| {
                    is_clique(set)
                        && (0..5).map(SlotIndex).filter(|slot| !set.contains(*slot)).all(|slot| {
                            let mut larger = *set;
                            larger.insert(slot);
                            !is_clique(&larger)
                        })
                })
                .collect();
            expected.sort_by(|a, b| a.iter().cmp(b.iter()));
            assert_eq!(maximal_cliques(&graph, &graph.nodes()).sets, expected, "graph {code:#x}");
        }
    }

    /// The worst case for 32 nodes: ten triples and a pair, all edges but those inside a group.
    #[test]
    fn thirty_two_nodes_are_exact() {
        let nodes: Vec<u16> = (0..32).collect();
        let edges: Vec<_> = (0u16..32).flat_map(|a| (0u16..32).filter(move |b| a / 3 != b / 3).map(move |b| (a, b))).collect();
        let graph = graph(&nodes, &edges);
        let found = maximal_cliques(&graph, &graph.nodes());
        assert!(found.is_complete);
        assert_eq!(found.sets.len(), 3usize.pow(10) * 2);
    }

    #[test]
    fn above_thirty_two_nodes_the_work_is_bounded_and_the_answer_the_same() {
        let nodes: Vec<u16> = (0..120).collect();
        let edges: Vec<_> = (0u16..120).flat_map(|a| (0u16..120).filter(move |b| a / 3 != b / 3).map(move |b| (a, b))).collect();
        let hard = graph(&nodes, &edges);
        let first = maximal_cliques(&hard, &hard.nodes());
        assert!(!first.is_complete);
        assert!(first.sets.iter().all(|set| set.count() == 40));
        assert_eq!(first, maximal_cliques(&hard, &hard.nodes()));

        let complete: Vec<_> = (0u16..255).flat_map(|a| (0u16..255).map(move |b| (a, b))).collect();
        let easy = graph(&(0..255).collect::<Vec<_>>(), &complete);
        let found = maximal_cliques(&easy, &easy.nodes());
        assert_eq!((found.sets.len(), found.is_complete), (1, true));
    }

    /// Votes of the nodes, disk votes, who is there, with the disk or not: eligible?
    #[test]
    fn vote_table() {
        use DiskVotes::{Counted, NotCounted};
        type Row<'a> = (&'a [u16], u16, &'a [u16], DiskVotes, bool);
        let table: &[Row<'_>] = &[
            (&[1, 1], 1, &[0], Counted, true),
            (&[1, 1], 1, &[0], NotCounted, false),
            (&[1, 1], 1, &[0, 1], NotCounted, true),
            (&[1, 1, 1], 2, &[2], Counted, true),
            (&[1, 1, 1], 2, &[0, 1], NotCounted, false),
            (&[1, 1, 1], 2, &[0, 1, 2], NotCounted, true),
            (&[1, 1, 1, 1], 1, &[0, 1], Counted, true),
            (&[1, 1, 1, 1], 1, &[0], Counted, false),
            (&[3, 1, 1], 1, &[0], Counted, true),
            (&[3, 1, 1], 1, &[1, 2], Counted, false),
            (&[1], 0, &[0], Counted, true),
            (&[1, 1], 1, &[], Counted, false),
            (&[0, 0, 1], 1, &[0, 1], Counted, false),
            (&[1, 1], 1, &[7], Counted, false),
        ];
        for &(votes, disk_votes, nodes, disk, expected) in table {
            assert_eq!(standing(votes, disk_votes).is_eligible(&set(nodes), disk), expected, "{votes:?} {disk_votes} {nodes:?} {disk:?}");
        }
    }

    #[test]
    fn order_table() {
        let plain = standing(&[1, 1, 1, 1, 2], 3);
        let scored = Standing { scores: [(SlotIndex(3), 10)].into(), ..plain.clone() };
        let pathed = Standing { with_path: set(&[3]), ..plain.clone() };
        let preferring = Standing { preference: vec![SlotIndex(2), SlotIndex(3)], ..plain.clone() };
        let table: Vec<(&str, &Standing, &[u16], &[u16])> = vec![
            ("more votes", &plain, &[4], &[0]),
            ("votes before the number of nodes", &plain, &[4, 3], &[0, 1]),
            ("lowest slot", &plain, &[0, 3], &[1, 2]),
            ("score", &scored, &[2, 3], &[0, 1]),
            ("votes before score", &scored, &[0, 4], &[2, 3]),
            ("own path", &pathed, &[2, 3], &[0, 1]),
            ("preference", &preferring, &[2, 1], &[0, 3]),
            ("second preference", &preferring, &[3], &[0]),
        ];
        for (name, standing, better, worse) in table {
            assert_eq!(standing.rank(&set(better), &set(worse)), Ordering::Greater, "{name}");
            assert_eq!(standing.rank(&set(worse), &set(better)), Ordering::Less, "{name}, turned");
        }
        assert_eq!(plain.rank(&set(&[1, 2]), &set(&[1, 2])), Ordering::Equal);
    }

    #[test]
    fn choice_table() {
        struct Row {
            name: &'static str,
            hears: Graph,
            members: SlotSet,
            joiners: SlotSet,
            standing: Standing,
            expected: Option<(SlotSet, SlotSet)>,
        }
        let three = [0, 1, 2];
        let all = both(&[(0, 1), (1, 2), (0, 2)]);
        let row = |name, hears, members: &[u16], joiners: &[u16], standing, expected: Option<(&[u16], &[u16])>| Row {
            name,
            hears,
            members: set(members),
            joiners: set(joiners),
            standing,
            expected: expected.map(|(stay, join)| (set(stay), set(join))),
        };
        let one = || standing(&[1, 1, 1], 2);
        let table = vec![
            row("formatted", graph(&three, &all), &[], &[0, 1, 2], one(), Some((&[], &three))),
            row("nothing changed", graph(&three, &all), &three, &[], one(), Some((&three, &[]))),
            row("chain", graph(&three, &both(&[(0, 1), (1, 2)])), &three, &[], one(), Some((&[0, 1], &[]))),
            row("2:1", graph(&three, &both(&[(1, 2)])), &three, &[], one(), Some((&[1, 2], &[]))),
            row("one node with the disk", graph(&[2], &[]), &three, &[], one(), Some((&[2], &[]))),
            row("join", graph(&three, &all), &[0, 1], &[2], one(), Some((&[0, 1], &[2]))),
            row("nobody is removed to let another in", graph(&three, &both(&[(0, 1), (1, 2)])), &[0, 1], &[2], one(), Some((&[0, 1], &[]))),
            row("outsiders do not outvote", graph(&three, &both(&[(1, 2)])), &[0], &[1, 2], one(), Some((&[0], &[]))),
            row("too few", graph(&[0], &[]), &[0, 1], &[], standing(&[1, 1, 1, 1], 1), None),
            row(
                "a joiner makes the quorum",
                graph(&[0, 2], &both(&[(0, 2)])),
                &[0, 1],
                &[2],
                standing(&[1, 1, 1, 1], 1),
                Some((&[0], &[2])),
            ),
            row("nobody there", graph(&[], &[]), &three, &[], one(), None),
        ];
        for row in table {
            let choice = choose(&row.hears, &row.members, &row.joiners, &row.standing, DiskVotes::Counted);
            assert_eq!(choice.map(|choice| (choice.stay, choice.join)), row.expected, "{}", row.name);
        }
    }

    #[test]
    fn standing_from_configuration_has_the_total() {
        let configuration = Configuration {
            disk_votes: 2,
            nodes: (0..3)
                .map(|slot| deadbolt_disk_format::NodeEntry { slot: SlotIndex(slot), votes: 1, name: String::new(), addresses: vec![] })
                .collect(),
            ..Configuration::default()
        };
        let standing = Standing::from_configuration(&configuration);
        assert_eq!((standing.total(), standing.quorum()), (5, 3));
    }
}
