//! What: which half of a cut goes on, by what the nodes say of themselves.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: test cliques and votes (the quorum disk's own tests do).
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

use deadbolt_cluster::node::arbitrate;
use deadbolt_cluster_core::membership::{ArbitrationInput, ArbitrationNode};
use deadbolt_disk_format::{SlotIndex, SlotSet};

/// Four members, cut 0 1 | 2 3; score and preference of each. Answers with the lower slot of the half that goes on.
fn winner(said: [(u8, u8); 4]) -> u16 {
    let nodes =
        (0u16..).zip(said).map(|(slot, (score, preference))| ArbitrationNode { slot: SlotIndex(slot), is_member: true, score, preference });
    let one = |slot: u16| -> SlotSet { core::iter::once(SlotIndex(slot)).collect() };
    let input = ArbitrationInput {
        nodes: nodes.collect(),
        edges: [(0, 1), (1, 0), (2, 3), (3, 2)].map(|(from, to)| (SlotIndex(from), one(to))).into(),
        configured_votes: (0..4).map(|slot| (SlotIndex(slot), 1)).collect(),
        disk_votes: 3,
    };
    let choice = arbitrate(&input).unwrap();
    choice.members.iter().next().unwrap().0
}

#[test]
fn score_then_preference_then_the_lowest_slot() {
    assert_eq!(winner([(10, 0); 4]), 0);
    assert_eq!(winner([(10, 0), (10, 0), (10, 0), (10, 7)]), 2);
    // 1 is better than 2, and 0 is no number.
    assert_eq!(winner([(10, 0), (10, 2), (10, 0), (10, 1)]), 2);
    assert_eq!(winner([(10, 0), (10, 1), (10, 0), (10, 2)]), 0);
    // The same number for two: the lower slot first.
    assert_eq!(winner([(10, 1), (10, 0), (10, 1), (10, 0)]), 0);
    assert_eq!(winner([(5, 1), (10, 0), (10, 0), (10, 0)]), 2);
}
