//! Faults that nothing in the rules survives: how each ends. Where it can be seen it ends in a stop or a refusal, and no promise of
//! safety falls; where nobody can see it, this says which promise falls, so that nobody believes otherwise.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadbolt_simulator::{Outcome, Plan, run};

/// Seeds of each fault.
const SEEDS: u64 = 12;

/// How a fault ends.
enum End {
    /// Somebody sees it and says one of these; safety holds.
    Seen(&'static [&'static str]),
    /// Nobody can see it: in some seed this promise falls.
    Unseen(&'static str),
}
use End::{Seen, Unseen};

fn outcomes(settings: &[&str]) -> Vec<Outcome> {
    let common =
        ["clients=2", "resources=2", "think_ms=20", "hold_ms=50", "safety_s=40", "fault_gap_ms=2000", "fault_ms=15000", "reboot_ms=3000"];
    let plan = |seed| {
        let mut plan = Plan::new(seed, true);
        common.iter().chain(settings).for_each(|text| plan.options.set(text).unwrap());
        plan
    };
    (1..=SEEDS).map(|seed| run(&plan(seed), true)).collect()
}

fn judge(settings: &[&str], end: &End) {
    let outcomes = outcomes(settings);
    let fallen: Vec<&str> = outcomes.iter().flat_map(|outcome| &outcome.violations).map(|violation| violation.promise).collect();
    match end {
        Seen(words) => {
            assert!(fallen.iter().all(|promise| promise.starts_with('L')), "{settings:?}: {fallen:?}");
            let is_said = |word: &&&str| outcomes.iter().flat_map(|outcome| &outcome.lines).any(|line| line.contains(**word));
            assert!(words.iter().find(is_said).is_some(), "{settings:?}: nobody said any of {words:?}");
        }
        Unseen(promise) => assert!(fallen.contains(promise), "{settings:?}: {promise} did not fall, but {fallen:?}"),
    }
}

macro_rules! ends {
    ($($name:ident: [$($setting:literal),*] => $end:expr;)*) => {
        $(#[test]
        fn $name() {
            judge(&[$($setting),*], &$end);
        })*
    };
}

ends! {
    // The own beat is read back every second.
    lost_beats: ["unfair_lost_beats=5", "crash=1"] => Seen(&["OwnPlaceReverted", "ForeignBeat"]);
    // The next look at the records, a poll later.
    a_lost_record: ["unfair_lost_record=5", "crash=2"] => Seen(&["WentBack", "Foreign at", "MissingRecord"]);
    // The owner looks at its body every second; one that dies before leaves a view that nobody can learn.
    a_lost_body: ["unfair_lost_body=5", "crash=2"] => Seen(&["cannot read the newest view", "MissingBody"]);
    a_forgotten_ballot: ["unfair_forgotten_ballot=5", "crash=2"] => Seen(&["WentBack", "Foreign at"]);
    stale_votes: ["unfair_stale_votes=5", "cut=2", "crash=1"] => Seen(&["OwnPlaceReverted", "WentBack"]);
    both_votes_of_a_living_node_rotten: ["unfair_rot_both_votes=3", "crash=1"] => Seen(&["UnreadableVote"]);
    the_vote_of_a_dead_node_rotten: ["unfair_rot_dead_vote=5", "crash=2"] => Seen(&["UnreadableVote"]);
    the_only_copy_rotten: ["unfair_rot_only_copy=5", "crash=5", "fault_gap_ms=300"] => Seen(&["cannot read the newest view", "MissingBody", "MissingRecord"]);
    superblocks_rotten: ["unfair_rot_superblocks=1", "crash=2"] => Seen(&["sbd does not start"]);
    // Mostly seen; but beats are written and read back there, too, and the others see silence.
    another_device_for_a_while: ["unfair_swap=5", "crash=1"] => Unseen("S3");
    all_go_back_to_an_old_image: ["unfair_old_image=1"] => Unseen("S1");
    // Where no vouch and no freeze keeps whoever has lost its path.
    a_clock_beyond_its_rate: ["unfair_clock_rate=5", "disk_hang=5", "cut=5", "freeze_s=0"] => Unseen("S3");
    // Every lease on it is over at once, its watchdog's time too.
    a_clock_that_jumps: ["unfair_clock_jump=5", "disk_hang=5"] => Seen(&["the watchdog fires"]);
    a_guest_stopped_with_its_clock: ["unfair_guest_pause=5"] => Unseen("S3");
    a_copy_of_a_node_that_stalls: ["unfair_clone=5", "pause_node=5"] => Unseen("S7");
    writes_that_land_later_than_d: ["unfair_late_landing=500", "crash=5", "disk_hang=5"] => Unseen("S3");
    a_watchdog_later_than_its_table: ["unfair_watchdog=1000", "pause_node=5"] => Unseen("S3");
}
