//! What: has this machine's own cluster lost a node? By Pacemaker's `crm_node`, where there is one.
//! Owns: the questions, and the judgement of what was printed.
//! Invariants: a node is lost only where this side has quorum, knows the node by name, and does not count it as a member; an answer
//! counts from before the question; no answer is no loss.
//! Does not: prove anything: a node that its cluster has lost lives on for the time that its record publishes.
//! Called by: the fence, for a victim under the rule *cluster*.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::now_ms;
use crate::servant::tool::{ToolEnd, run_tool};

const TOOL: &str = "crm_node";
/// How long one question may take, and how often they are asked.
const LIMIT: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(1);

/// Asks until the fence is over; says the instant before each answer that the node is lost, and none for every other answer.
pub(super) fn ask(victim: &str, say: &Sender<Option<u64>>, is_over: &Arc<AtomicBool>) {
    while !is_over.load(Ordering::SeqCst) {
        let asked_ms = now_ms();
        let is_lost = is_lost(&run("--quorum"), &run("--list"), victim);
        if say.send(is_lost.then_some(asked_ms)).is_err() {
            return;
        }
        std::thread::sleep(EVERY);
    }
}

fn run(question: &str) -> String {
    match run_tool(TOOL, &[OsStr::new(question)], LIMIT) {
        ToolEnd::Done { code: Some(0), text } => text,
        ToolEnd::Done { .. } | ToolEnd::Hung | ToolEnd::NotStarted { .. } => String::new(),
    }
}

/// `quorum` is 1 or 0; `list` has a line for each node that was ever a member: number, name, `member` or `lost`.
fn is_lost(quorum: &str, list: &str, victim: &str) -> bool {
    let states: Vec<&str> = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter_map(|words| if let [_, name, state] = words[..] { name.eq_ignore_ascii_case(victim).then_some(state) } else { None })
        .collect();
    quorum.trim() == "1" && !states.is_empty() && states.iter().all(|state| *state == "lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_lost_only_by_a_quorate_word_about_it() {
        let list = "1 alpha member\n2 beta lost\n3 gamma lost\n4 gamma member\n";
        let table = [
            ("1\n", list, "beta", true),
            ("1", list, "BETA", true),
            ("0\n", list, "beta", false),
            ("", list, "beta", false),
            ("1", list, "alpha", false),
            ("1", list, "delta", false),
            ("1", list, "gamma", false),
            ("1", "", "beta", false),
            ("1", "2 beta\n", "beta", false),
            ("1", "2 beta unknown\n", "beta", false),
            ("1", "2 be ta lost\n", "beta", false),
        ];
        for (quorum, list, victim, expected) in table {
            assert_eq!(is_lost(quorum, list, victim), expected, "{quorum:?} {list:?} {victim}");
        }
    }
}
