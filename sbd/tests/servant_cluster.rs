//! What: the servant that asks corosync, with real corosync: two nodes, a cut, a death, a stop.
//! Owns: nothing.
//! Invariants: nothing is left behind, no process and no namespace.
//! Does not: run without root, the package corosync, and namespaces; it says so.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]

#[allow(dead_code)]
mod peers;

use std::time::{Duration, Instant};

use deadbolt_disk::now_ns;
use deadbolt_sbd_core::{HealthWatch, Opinion, Report, Servant, Standing};
use deadbolt_tests::corosync::{LONG, Peer, await_true, is_possible};
use nix::sys::signal::Signal;
use peers::{Asked, TOKEN_MS};

const SBD: &str = env!("CARGO_BIN_EXE_sbd");
const PROGRAMS: [&str; 5] = ["corosync", "ip", "nsenter", "unshare", "mount"];
/// Stock's I/O and loop timeouts.
const WINDOW_MS: u32 = 4000;

/// Two nodes with corosync at work, joined.
fn pair(quorum: &str) -> [Peer; 2] {
    deadbolt_tests::corosync::peers(&["n1", "n2"], TOKEN_MS, quorum).try_into().unwrap()
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

fn is(opinion: Opinion) -> impl Fn(&Report) -> bool {
    move |report| report.opinion == opinion
}

#[test]
fn quorum_is_asked_for_and_missed() {
    if !is_possible(&PROGRAMS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = pair("");
    let [mut asked, mut other] = [&a, &b].map(|peer| Asked::start(peer, Servant::Cluster, SBD, folder.path()));
    let whole = |report: &Report| report.opinion == Opinion::Healthy && report.notice_ms > 0;
    let report = asked.until("quorum", whole);
    other.until("quorum", whole);
    // Token 500, consensus 1.2 times that, and the watchdog.
    assert_eq!(report.notice_ms, 500 + 600 + 5000);

    let cut = Instant::now();
    assert!(a.run("ip link set port1 down"));
    asked.until("the loss of quorum", is(Opinion::Unhealthy));
    assert!(cut.elapsed() < Duration::from_millis(report.notice_ms.into()), "{:?}", cut.elapsed());
    eprintln!("a cut was reported after {:?}", cut.elapsed());
    other.until("the loss of quorum", is(Opinion::Unhealthy));
    // The next child has to know that there was quorum.
    asked.handle.end();
    while asked.next(LONG).is_some() {}
    await_true("the child's end", || asked.handle.start_again().unwrap());
    asked.until("the loss of quorum, by another child", |report| {
        assert_ne!(report.opinion, Opinion::Healthy);
        report.opinion == Opinion::Unhealthy
    });
    assert!(a.run("ip link set port1 up"));
    asked.until("quorum again", whole);
    other.until("quorum again", whole);

    a.signal(Signal::SIGKILL);
    asked.until("nobody", is(Opinion::Away));
    other.until("the loss of quorum", is(Opinion::Unhealthy));
}

#[test]
fn one_of_two_nodes_is_not_enough_once_both_were_there() {
    if !is_possible(&PROGRAMS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = pair("  two_node: 1\n");
    let mut asked = Asked::start(&a, Servant::Cluster, SBD, folder.path());
    let report =
        asked.until("quorum", |report| report.opinion == Opinion::Healthy && a.run("corosync-quorumtool -s | grep -q 'Quorate:.*Yes'"));
    assert_eq!(report.notice_ms, 0, "alone in the group, a loss of the other would not be noticed");
    let mut other = Asked::start(&b, Servant::Cluster, SBD, folder.path());
    asked.until("both", |report| report.opinion == Opinion::Healthy && report.notice_ms > 0);
    other.until("both", |report| report.opinion == Opinion::Healthy && report.notice_ms > 0);
    assert!(a.run("ip link set port1 down"));
    // corosync itself calls each of the two quorate; sbd does not.
    asked.until("the loss of the other", is(Opinion::Unhealthy));
    other.until("the loss of the other", is(Opinion::Unhealthy));
}

#[test]
fn a_corosync_that_stands_still_is_nobody_s_good_word() {
    if !is_possible(&PROGRAMS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = pair("");
    let mut asked = Asked::start(&a, Servant::Cluster, SBD, folder.path());
    let mut watch = HealthWatch::new(Servant::Cluster, WINDOW_MS);
    let first = asked.until("quorum", |report| report.opinion == Opinion::Healthy && report.notice_ms > 0);
    watch.handle_report(now_ms(), &first);
    a.signal(Signal::SIGSTOP);
    let stopped_ms = now_ms();
    while watch.standing(now_ms()) == Standing::Healthy {
        if let Some(report) = asked.next(Duration::from_millis(100)) {
            watch.handle_report(now_ms(), &report);
        }
        assert!(now_ms() < stopped_ms + u64::from(WINDOW_MS) + 1000, "still healthy");
    }
    // Longer than the watchdog's time: what it says then is not believed at once.
    while now_ms() < stopped_ms + 5500 {
        assert!(asked.next(Duration::from_millis(100)).is_none_or(|report| report.as_of_ms <= stopped_ms + 300));
    }
    a.signal(Signal::SIGCONT);
    let again = asked.until("its good word", |report| {
        watch.handle_report(now_ms(), report);
        report.opinion == Opinion::Healthy
    });
    assert!(again.as_of_ms >= stopped_ms + 5500 + u64::from(first.notice_ms), "{again:?}, stopped at {stopped_ms}");
    assert_eq!(watch.standing(now_ms()), Standing::Healthy);
    drop(b);
}
