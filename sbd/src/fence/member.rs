//! What: since when has this machine's own cluster lost a node? By corosync's tools, where there is a corosync.
//! Owns: the questions, and the judgement of what was printed.
//! Invariants: a node is lost only where this side has quorum, knows the node by name, and does not count it as a member; it was lost no
//! later than an answer, and stays lost only within one membership of corosync's; no answer is no loss.
//! Does not: prove anything: a node that its cluster has lost lives on for the time that its record publishes.
//! Called by: the fence, for a victim under the rule *cluster*.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::now_ms;
use crate::servant::tool::{ToolEnd, run_tool};

/// What the servants of the victim ask by its libraries, too. Pacemaker would not do: it also loses a node whose corosync is well.
const STATUS: (&str, &[&str]) = ("corosync-quorumtool", &["-s"]);
const NODES: (&str, &[&str]) = ("corosync-cmapctl", &["nodelist."]);
/// How long one question may take, and how often they are asked.
const LIMIT: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(1);

/// A membership in which the node is lost, and when that was known.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Loss {
    ring: String,
    since_ms: u64,
}

/// Asks until the fence is over; says since when the node is lost, and none while it is not, or nobody knows.
pub(super) fn ask(victim: &str, say: &Sender<Option<u64>>, is_over: &Arc<AtomicBool>) {
    let mut loss = None;
    while !is_over.load(Ordering::SeqCst) {
        let nodes = run(NODES);
        let ring = ring_without(victim, &nodes, &run(STATUS));
        loss = next_loss(loss, ring, now_ms());
        if say.send(loss.as_ref().map(|loss| loss.since_ms)).is_err() {
            return;
        }
        std::thread::sleep(EVERY);
    }
}

fn run((tool, words): (&str, &[&str])) -> String {
    let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    match run_tool(tool, &words, LIMIT) {
        ToolEnd::Done { code: Some(0), text } => text,
        ToolEnd::Done { .. } | ToolEnd::Hung | ToolEnd::NotStarted { .. } => String::new(),
    }
}

/// Between two memberships the node may have been in one that nobody asked about.
fn next_loss(before: Option<Loss>, ring: Option<String>, answered_ms: u64) -> Option<Loss> {
    let ring = ring?;
    Some(before.filter(|loss| loss.ring == ring).unwrap_or(Loss { ring, since_ms: answered_ms }))
}

/// The membership, if it has quorum and lacks the node.
fn ring_without(victim: &str, nodes: &str, status: &str) -> Option<String> {
    let numbers = numbers_of(victim, nodes)?;
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    // The tool asks for the first before it asks for the members, and for the flags behind.
    let has_quorum = value("Quorate") == Some("Yes") && value("Flags")?.split_whitespace().any(|flag| flag == "Quorate");
    let (_, table) = status.split_once("Membership information")?;
    let mut members = table.lines().filter_map(|line| line.split_whitespace().next()).filter(|word| word.parse::<u32>().is_ok()).peekable();
    let is_lost = members.peek().is_some() && !members.any(|member| numbers.contains(&member));
    (has_quorum && is_lost).then(|| value("Ring ID").map(str::to_owned)).flatten()
}

/// The numbers of the nodes of this name, in lines `nodelist.node.0.name (str) = NAME`. Where a node has no name, its first address is
/// its name for Pacemaker, and so for its sbd. None: nobody is called so, or not everybody has a number.
fn numbers_of<'a>(victim: &str, nodes: &'a str) -> Option<Vec<&'a str>> {
    let values: Vec<(&str, &str, &str)> = nodes
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let (node, key) = key.split_whitespace().next()?.strip_prefix("nodelist.node.")?.split_once('.')?;
            Some((node, key, value.trim()))
        })
        .collect();
    let value = |node: &str, key: &str| values.iter().find(|(of, known, _)| *of == node && *known == key).map(|(_, _, value)| *value);
    let is_it = |node: &&str| value(node, "name").or(value(node, "ring0_addr")).is_some_and(|name| name.eq_ignore_ascii_case(victim));
    // Each node has exactly one first address.
    let all = values.iter().filter(|(_, key, _)| *key == "ring0_addr").map(|(node, ..)| *node);
    let numbers: Option<Vec<&str>> = all.filter(is_it).map(|node| value(node, "nodeid")).collect();
    numbers.filter(|numbers| !numbers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODELIST: &str = "nodelist.local_node_pos (u32) = 0
nodelist.node.0.name (str) = alpha
nodelist.node.0.nodeid (u32) = 1
nodelist.node.0.ring0_addr (str) = 10.99.7.1
nodelist.node.1.name (str) = beta
nodelist.node.1.nodeid (u32) = 2
nodelist.node.1.ring0_addr (str) = 10.99.7.2
nodelist.node.2.nodeid (u32) = 11
nodelist.node.2.ring0_addr (str) = gamma
nodelist.node.3.name (str) = delta
nodelist.node.3.ring0_addr (str) = 10.99.7.4
";

    fn status(quorate: &str, flags: &str, members: &[&str]) -> String {
        let lines: String = members.iter().map(|member| format!("        {member:>2}          1 somebody\n")).collect();
        format!(
            "Quorum information\n------------------\nNodes:            3\nNode ID:          1\nRing ID:          1.d\nQuorate:          {quorate}\n\n\
             Votequorum information\nQuorum:           2  \nFlags:            {flags} \n\n\
             Membership information\n----------------------\n    Nodeid      Votes Name\n{lines}"
        )
    }

    #[test]
    fn a_node_is_lost_only_by_a_quorate_word_about_it() {
        let well = |members: &[&str]| status("Yes", "2Node Quorate WaitForAll", members);
        let table = [
            ("beta", NODELIST, well(&["1", "11"]), true),
            ("BETA", NODELIST, well(&["1", "11"]), true),
            ("gamma", NODELIST, well(&["1", "2"]), true),
            ("beta", NODELIST, well(&["1", "2"]), false),
            ("beta", NODELIST, status("No", "Quorate", &["1"]), false),
            ("beta", NODELIST, status("Yes", "", &["1"]), false),
            ("beta", NODELIST, well(&[]), false),
            ("beta", NODELIST, String::new(), false),
            ("beta", "", well(&["1"]), false),
            ("10.99.7.2", NODELIST, well(&["1"]), false),
            ("delta", NODELIST, well(&["1"]), false),
            ("epsilon", NODELIST, well(&["1"]), false),
        ];
        for (victim, nodes, status, expected) in table {
            assert_eq!(ring_without(victim, nodes, &status), expected.then(|| "1.d".to_owned()), "{victim} {status}");
        }
    }

    #[test]
    fn a_loss_lasts_for_one_membership_and_counts_from_its_first_answer() {
        let mut loss = None;
        for (ring, answered_ms, expected) in [
            (None, 1, None),
            (Some("a"), 5, Some(5)),
            (Some("a"), 9, Some(5)),
            (Some("b"), 12, Some(12)),
            (None, 15, None),
            (Some("b"), 20, Some(20)),
        ] {
            loss = next_loss(loss, ring.map(str::to_owned), answered_ms);
            assert_eq!(loss.as_ref().map(|loss| loss.since_ms), expected, "{ring:?} at {answered_ms}");
        }
    }
}
