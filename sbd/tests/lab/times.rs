//! What: times under which a node of stock sbd outlives the report of its death, though they follow the documented rule.
//! Owns: a disk whose victims' reads hang from a known moment on; the message is sent in that moment.
//! Invariants: a cycle of the victim has ended just before, so that the moment is the same in every run.
//! Does not: use a wall clock.
//! Called by: the test program beside it.

use deadbolt_tests::hung_disk::Hold;
use deadbolt_tests::node::Watch;

use super::Whose::{Ours, Stock};
use super::*;
use crate::common::{TwoPaths, folder, two_paths};

/// Times of the area, options of the watcher, whether its main process is woken now and then.
#[derive(Clone, Copy)]
struct Case {
    what: &'static str,
    times: &'static str,
    options: &'static str,
    is_woken: bool,
}

const WOKEN: Case = Case { what: "3/6, woken", times: "-1 3 -4 6", options: "", is_woken: true };
const SLOW: Case = Case { what: "5/10, -I 10", times: "-1 5 -4 10", options: "-I 10", is_woken: false };
const QUIET: Case = Case { what: "3/6", times: "-1 3 -4 6", options: "", is_woken: false };
const DEFAULT: Case = Case { what: "5/10", times: "-1 5 -4 10", options: "", is_woken: false };
const DEFAULT_WOKEN: Case = Case { what: "5/10, woken", times: "-1 5 -4 10", options: "", is_woken: true };

/// Holds up the watcher's next cycle until a second of the clock begins, and with it all that follow. Stock compares whole seconds of that
/// clock: a node whose last cycle ended early in a second lives longest.
fn to_a_second(disk: &mut TwoPaths) {
    let clock = || Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    disk.hung.hold(Hold::Reads).unwrap();
    common::wait_for("a read", START, || disk.hung.held().unwrap() > 0);
    std::thread::sleep(Duration::from_secs(clock().as_secs() + 1) - clock());
    disk.hung.hold(Hold::Nothing).unwrap();
}

/// A message of `sender` to a node of `watcher`.
fn run((sender, watcher, case): (Whose, Whose, Case)) -> Option<(Sent, Node)> {
    let library = library()?;
    let mut disk = two_paths(512)?;
    let program = watcher.program();
    create(&program, disk.sender.path(), case.times, &["victim"]);
    let watch = Watch::new(&program, "victim", disk.victim.path()).options(case.options).watchdog(&library);
    // The main process of ours has no children of this kind; the signal would end it.
    let watch = if case.is_woken && watcher == Whose::Stock { watch.woken() } else { watch };
    let node = made(watch.start(folder()))?;
    node.await_work(disk.sender.path(), START).unwrap();
    to_a_second(&mut disk);
    node.await_work(disk.sender.path(), START).unwrap();
    disk.hung.hold(Hold::Reads).unwrap();
    // Ours can be told what the victim tolerates.
    let options = if sender == Ours { case.options } else { "" };
    let sent = message(&sender.program(), disk.sender.path(), options, "victim", "reset").unwrap();
    let died = node.died_by(Instant::now() + START);
    report(&format!("reads hang, {}, by {sender:?} to {watcher:?}", case.what), &sent, &node);
    assert!(died.is_some(), "{}", node.log());
    Some((sent, node))
}

/// Runs the cases side by side: nearly all of their time is sleep. How long each node outlived the report; none where nothing was
/// claimed. Nothing where this cannot be run.
fn outlived(cases: &[(Whose, Whose, Case)]) -> Option<Vec<Option<Duration>>> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = cases.iter().map(|case| scope.spawn(move || run(*case))).collect();
        let judge = |(sent, node): (Sent, Node)| sent.outlived(node.died().unwrap());
        runs.into_iter().map(|run| run.join().unwrap().map(judge)).collect()
    })
}

#[test]
fn nodes_of_stock_outlive_the_report_of_their_death() {
    if !has_stock() {
        return;
    }
    let Some(spans) = outlived(&[(Stock, Stock, WOKEN), (Stock, Stock, SLOW)]) else { return };
    assert!(spans[0].is_some_and(|span| span > Duration::from_millis(300)), "{spans:?}");
    assert!(spans[1].is_some_and(|span| span > Duration::from_secs(3)), "{spans:?}");
}

#[test]
fn nodes_of_ours_do_not() {
    let Some(spans) = outlived(&[(Ours, Ours, WOKEN), (Ours, Ours, SLOW)]) else { return };
    assert_eq!(spans, [Some(Duration::ZERO); 2]);
}

#[test]
fn at_stocks_own_times_its_report_is_true_of_nodes_of_ours() {
    if !has_stock() {
        return;
    }
    let Some(spans) = outlived(&[(Stock, Ours, DEFAULT)]) else { return };
    assert_eq!(spans, [Some(Duration::ZERO)]);
}

#[test]
fn the_other_times_as_they_are() {
    if !is_all() || !has_stock() {
        return;
    }
    for case in [QUIET, DEFAULT, DEFAULT_WOKEN] {
        let Some(spans) = outlived(&[(Stock, Stock, case), (Stock, Ours, case), (Ours, Stock, case)]) else { return };
        // Where the times prove nothing, ours claims nothing.
        assert!(spans[2].is_none_or(|span| span.is_zero()), "{spans:?}");
        let _ = outlived(&[(Ours, Ours, case)]);
    }
    let Some(spans) = outlived(&[(Stock, Ours, SLOW), (Ours, Stock, SLOW)]) else { return };
    assert_eq!(spans[1], None, "msgwait is too short for what the victim tolerates");
}
