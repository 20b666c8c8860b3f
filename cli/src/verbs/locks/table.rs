//! What: locks as a table, waits as a list.
//! Owns: both texts.
//! Invariants: every row of the answer that the form is about has a line.
//! Does not: judge.
//! Called by: `deadbolt locks`.

use super::rows::{bytes, claim, columns, part, place, quoted, since, waits, whose};
use crate::verbs::printable;
use deadbolt_cluster::lock_documents::{LocksAnswer, ResourceColumns, WhoColumns};
use std::collections::BTreeMap;

const NONE: &str = "no lock that fits is known here";

/// Every lock and every range.
pub(super) fn all(answer: &LocksAnswer) -> Vec<String> {
    let has_owners = answer.locks.iter().any(|row| row.who.owner.is_some()) || !answer.ranges.is_empty();
    let line = |on: &ResourceColumns, who: &WhoColumns, owner: Option<u64>, words: [String; 4]| {
        let [holds, wants, since, token] = words;
        let pid = if who.orphan { format!("{} (orphan)", who.pid) } else { who.pid.to_string() };
        let mut line = vec![quoted(&on.lockspace), quoted(&on.resource), printable(&who.node), pid];
        line.extend(has_owners.then(|| owner.map_or_else(|| "-".into(), |owner| owner.to_string())));
        line.extend([holds, wants, since, on.master.as_deref().map_or_else(|| "-".into(), printable), token]);
        line
    };
    let word = |text: &Option<String>| text.as_deref().map_or_else(|| "-".into(), printable);
    let mut by_resource: BTreeMap<(&str, &str), Vec<Vec<String>>> = BTreeMap::new();
    for row in &answer.locks {
        let words = [word(&row.granted), word(&row.requested), since(Some(row.since_ms)), word(&row.token)];
        by_resource.entry((&row.on.lockspace, &row.on.resource)).or_default().push(line(&row.on, &row.who, row.who.owner, words));
    }
    for row in &answer.ranges {
        let (mut holds, mut wants) = (bytes(&row.bytes), "-".to_owned());
        if row.state != "granted" {
            std::mem::swap(&mut holds, &mut wants);
        }
        let owner = Some(row.bytes.range_owner).filter(|owner| *owner != 0).or(row.who.owner);
        let words = [holds, wants, since(row.since_ms), "-".into()];
        by_resource.entry((&row.on.lockspace, &row.on.resource)).or_default().push(line(&row.on, &row.who, owner, words));
    }
    if by_resource.is_empty() {
        return vec![NONE.into()];
    }
    let mut head = vec!["lockspace", "resource", "node", "pid"];
    head.extend(has_owners.then_some("owner"));
    head.extend(["holds", "wants", "since", "master", "token"]);
    let mut lines = vec![head.into_iter().map(str::to_owned).collect()];
    lines.extend(by_resource.into_values().flatten());
    columns(&lines)
}

/// Every wait, by resource, and who is in its way.
pub(super) fn waiting(answer: &LocksAnswer) -> Vec<String> {
    let mut lines = Vec::new();
    let mut last: Option<(&str, &str)> = None;
    for wait in waits(answer) {
        let here = (wait.on.lockspace.as_str(), wait.on.resource.as_str());
        if last != Some(here) {
            last = Some(here);
            lines.push(format!(
                "{}, master {}",
                place(wait.on),
                wait.on.master.as_deref().map_or_else(|| "not known yet".into(), printable)
            ));
        }
        let has = wait.has.as_ref().map_or_else(String::new, |has| format!(", has {has}"));
        lines.push(format!("  {} waits {} for {}{has}", wait.whose(), since(wait.since_ms), wait.wants));
        match wait.waits_for {
            None => lines.push("    for whom: its master knows".into()),
            Some([]) => lines.push("    nobody is in its way: it waits for recovery, or for this cluster to be quorate".into()),
            Some(blockers) => {
                for blocker in blockers {
                    let what = if blocker.holds { "has" } else { "came first, for" };
                    lines.push(format!("    {} {what} {}", whose(&blocker.who, part(blocker)), claim(blocker)));
                }
            }
        }
        if wait.left_out > 0 {
            lines.push(format!("    and {} more", wait.left_out));
        }
    }
    if lines.is_empty() {
        lines.push("nobody waits, as far as is known here".into());
    }
    lines
}
