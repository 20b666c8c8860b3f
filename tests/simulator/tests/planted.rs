//! Each planted mistake is found by a seed, and the same seed holds without it: a simulator that never fails proves nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadbolt_simulator::{
    Plan,
    planted::{MISTAKES, Planted, Shell},
    run,
    script::replay,
};

/// What every seed of a kind is drawn or told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Draw {
    /// Everything as an ordinary seed has it.
    Ordinary,
    /// Three nodes, some faults of every kind.
    Mixed,
    /// Daemons that die while the disk is slow.
    Deaths,
    /// A bad network while the disk is slow.
    Partitions,
    /// Disks that are lost for one and for all, and come back.
    Outages,
    /// No seed: commands of its own below, because such an order of events is rare.
    Scripted,
}
use Draw::{Deaths, Mixed, Ordinary, Outages, Partitions, Scripted};

/// For each mistake, in the order of their numbers: the seed that found it, and the promise that fell. Where a change of the program moves
/// runs, the test looks for another seed and says which.
const FOUND: &[(Draw, u64, &str)] = &[
    (Mixed, 2, "L3"),
    (Deaths, 7, "S9"),
    (Mixed, 49, "S3"),
    (Mixed, 32, "S12"),
    (Ordinary, 36, "S3"),
    (Mixed, 15, "S1"),
    (Mixed, 9, "S1"),
    (Partitions, 5, "S1"),
    (Mixed, 8, "S4"),
    (Mixed, 2, "S2"),
    (Mixed, 2, "S2"),
    (Mixed, 3, "S12"),
    (Mixed, 2, "S4"),
    (Mixed, 43, "L1"),
    (Mixed, 8, "S4"),
    (Ordinary, 9, "S5"),
    (Scripted, 0, ""),
    (Mixed, 8, "S10"),
    (Mixed, 1, "S4"),
    (Mixed, 1, "L3"),
    (Outages, 1, "S3"),
    (Outages, 1, "S3"),
];
/// Seeds that are searched where the known one does not find it.
const SEARCHED: u64 = 400;

fn plan(draw: Draw, seed: u64, mistake: u64) -> Plan {
    let common = "clients=2 resources=2 think_ms=1 hold_ms=50 safety_s=30 fault_gap_ms=500 fault_ms=2000";
    let settings = match draw {
        Ordinary | Scripted => String::new(),
        Mixed => format!("{common} crash=3 cut=3 kill_daemon=3 pause_node=3 disk_hang=3 stop_node=3 kill_client=3"),
        Deaths => format!("{common} safety_s=40 kill_daemon=5 disk_slow=5 stop_node=5 kill_sbd=2"),
        Outages => format!(
            "{common} nodes=2 resources=1 locks=1 stall_ms=1000 reboot_ms=100 fault_gap_ms=2000 fault_ms=8000 safety_s=120 freeze_s=20 \
             path_loss=6 disk_lost_apart=6 crash=3 cut=6 flap=3"
        ),
        Partitions => {
            format!(
                "{common} nodes=5 safety_s=40 clients=1 resources=1 think_ms=0 hold_ms=0 fault_gap_ms=200 \
                 cut=5 cut_one_way=5 cut_pair=5 net_loss=300 pause_daemon=10 disk_slow=10 disk_late=5"
            )
        }
    };
    let mut plan = Plan::new(seed, draw != Ordinary);
    settings.split_whitespace().for_each(|setting| plan.options.set(setting).unwrap());
    plan.options.mistake = mistake;
    plan
}

fn fallen(draw: Draw, seed: u64, mistake: u64) -> Option<&'static str> {
    run(&plan(draw, seed, mistake), false).violations.first().map(|violation| violation.promise)
}

#[test]
fn each_planted_mistake_is_found() {
    assert_eq!(FOUND.len(), MISTAKES.len());
    let mut wrong = Vec::new();
    for ((mistake, number), (draw, seed, promise)) in MISTAKES.iter().zip(1..).zip(FOUND) {
        if *draw == Scripted {
            continue;
        }
        let seeds = std::iter::once(*seed).chain(1..=SEARCHED);
        let found = seeds.into_iter().find_map(|seed| fallen(*draw, seed, number).map(|promise| (seed, promise)));
        println!("{number:>2} {mistake:?}: {found:?}");
        if found != Some((*seed, *promise)) {
            wrong.push(format!("{number} {mistake:?}: found by {found:?}, not by {:?}", (seed, promise)));
        }
        assert_eq!(fallen(*draw, *seed, 0), None, "seed {seed} ({draw:?}) without a mistake");
    }
    assert!(wrong.is_empty(), "write the seeds down anew:\n{}", wrong.join("\n"));
}

/// A daemon dies while its node's disk is slow.
const RESTARTED: &str = "
slow n3 0 900
---

kill n3 daemon
---

wait 10
---
";

/// sbd sees it and resets the node before anything worse can come of it: the node is lost for nothing.
#[test]
fn a_restart_without_the_record_is_found() {
    let replayed = |mistake: u64| replay(&format!("cluster nodes=3 process_watchdog=0 mistake={mistake}\n---\n{RESTARTED}"));
    let number = 1 + MISTAKES.iter().position(|mistake| *mistake == Planted::Shell(Shell::RestartWithoutRecord)).unwrap();
    let (with, without) = (replayed(u64::try_from(number).unwrap()), replayed(0));
    assert!(with.contains("n3: sbd resets: DaemonRestartedUnrecorded"), "{with}");
    assert!(!without.contains("resets") && !without.contains("is broken"), "{without}");
}
