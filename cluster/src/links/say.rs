//! What: links in words: for the log, for `deadbolt status`.
//! Owns: the sentences and the words that scripts parse.
//! Invariants: what is wrong is said with what to look at.
//! Does not: judge.
//! Called by: the links, the daemon's status.

use super::LinkReport;
use deadbolt_cluster_core::link::{LinkState, OwnFault};

/// The field's word for a state.
#[must_use]
pub const fn state_word(state: LinkState) -> &'static str {
    match state {
        LinkState::New => "new",
        LinkState::Up => "up",
        LinkState::Silent => "silent",
        LinkState::Unheard => "unheard",
        LinkState::Faulty(OwnFault::AddressGone) => "no-address",
        LinkState::Faulty(OwnFault::NoRoute) => "no-route",
    }
}

fn name(report: &LinkReport) -> String {
    format!("link {} with {} ({} to {})", report.status.link, report.node, report.own, report.address)
}

/// Why a link does not work; none if it does, or may yet.
fn fault(report: &LinkReport) -> Option<String> {
    Some(match report.status.state {
        LinkState::New | LinkState::Up => return None,
        LinkState::Silent => "nothing is heard on it".into(),
        LinkState::Unheard => format!("{} is heard and does not hear this node", report.node),
        LinkState::Faulty(OwnFault::AddressGone) => format!("the address {} is not on this machine", report.own.ip()),
        LinkState::Faulty(OwnFault::NoRoute) => "this machine has no way to that address".into(),
    })
}

/// The line for a link that came or went; none where the whole node is away from the start.
#[must_use]
pub fn state_news(report: &LinkReport, was: LinkState, has_other: bool) -> Option<String> {
    match fault(report) {
        None if report.status.state == LinkState::Up && was != LinkState::New => Some(format!("{} works again", name(report))),
        None => None,
        Some(fault) => (was != LinkState::New || has_other).then(|| format!("{} does not work: {fault}", name(report))),
    }
}

/// The line for full-sized packets that are lost, or pass again.
#[must_use]
pub fn full_size_news(report: &LinkReport) -> String {
    full_size(report).unwrap_or_else(|| format!("{}: packets of {} bytes pass again", name(report), report.status.full_bytes))
}

fn full_size(report: &LinkReport) -> Option<String> {
    let status = &report.status;
    let way = match (status.loses_full_in, status.loses_full_out) {
        (false, false) => return None,
        (true, false) => "from it",
        (false, true) => "to it",
        (true, true) => "either way",
    };
    Some(format!(
        "{}: small packets pass, packets of {} bytes {way} do not: something between the two has a smaller MTU and drops them without a word; make the MTU equal on the whole way, or lower it here",
        name(report),
        status.full_bytes
    ))
}

/// What is not as it should be: links with nodes that are heard by another one, and sizes that do not pass.
#[must_use]
pub fn warnings(reports: &[LinkReport]) -> Vec<String> {
    let has_other = |report: &LinkReport| {
        reports.iter().any(|other| other.status.slot == report.status.slot && other.status.state == LinkState::Up)
            || matches!(report.status.state, LinkState::Faulty(_))
    };
    let broken = reports.iter().filter(|report| has_other(report));
    let broken = broken.filter_map(|report| Some(format!("{} does not work: {}", name(report), fault(report)?)));
    broken.chain(reports.iter().filter(|report| report.status.state == LinkState::Up).filter_map(full_size)).collect()
}
