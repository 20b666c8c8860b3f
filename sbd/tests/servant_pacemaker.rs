//! What: the servant that asks Pacemaker, with real Pacemaker on real corosync.
//! Owns: nothing.
//! Invariants: nothing is left behind, no process and no namespace.
//! Does not: run without root, the packages corosync and pacemaker, and namespaces; it says so.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]

#[allow(dead_code)]
mod peers;

use deadbolt_sbd_core::{Opinion, Report, Servant};
use nix::sys::signal::Signal;
use peers::{is_possible, lone};

const SBD: &str = env!("CARGO_BIN_EXE_sbd");
const PROGRAMS: [&str; 8] = ["corosync", "pacemakerd", "crm_mon", "crmadmin", "ip", "nsenter", "unshare", "mount"];

fn is(opinion: Opinion) -> impl Fn(&Report) -> bool {
    move |report| report.opinion == opinion
}

#[test]
fn a_node_is_healthy_while_pacemaker_works_and_calls_it_so() {
    if !is_possible(&PROGRAMS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut node = lone();
    let mut asked = node.servant(Servant::Pacemaker, SBD, folder.path());
    asked.until("nobody", is(Opinion::Away));
    node.start_pacemaker(None);
    asked.until("health", is(Opinion::Healthy));

    // The tools hang with it, and are killed.
    node.signal_daemon("pacemaker-based", Signal::SIGSTOP);
    asked.until("no answer", is(Opinion::Unsure));
    node.signal_daemon("pacemaker-based", Signal::SIGCONT);
    asked.until("health again", is(Opinion::Healthy));
}

#[test]
fn pacemaker_begins_and_ends_when_sbd_has_asked() {
    if !is_possible(&PROGRAMS) || !is_possible(&["sbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut node = lone();
    node.start_pacemaker(Some(SBD));
    // It waits, with no daemon of its own at work.
    peers::await_true("pacemakerd", || node.run("crmadmin -P --output-as=xml | grep wait_for_ping"));
    assert!(!node.run("timeout 3 crm_mon -1 && cibadmin -Q"));
    let mut asked = node.servant_with(Servant::Pacemaker, "/usr/sbin/sbd", folder.path(), |setup| setup.sync_startup = true);
    asked.until("health", is(Opinion::Healthy));
    peers::await_true("a resource", || node.run("crm_resource --locate -r thing | grep alpha"));
    node.stop_pacemaker();
    asked.until("a clean end", is(Opinion::ShutDown));
    asked.until("nobody", is(Opinion::Away));
    peers::await_true("the end of pacemakerd", || node.is_pacemaker_gone());
}
