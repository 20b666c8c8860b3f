//! What: `deadbolt lockspaces`.
//! Owns: its arguments, the table.
//! Invariants: says whose counts these are.
//! Does not: ask other nodes.
//! Called by: the verbs.

use super::{
    EXIT_OK, NodeArguments,
    locks::{columns, parse_pattern, quoted},
    printable,
};
use anyhow::{Context, Result};
use clap::Args;
use deadbolt_cluster::{
    ask::ask,
    config::NodeDirectory,
    lock_documents::{LockspaceRow, LockspacesAnswer, LockspacesRequest},
};
use std::{collections::BTreeMap, time::Duration};

const EXAMPLES: &str = "\
Examples:
  deadbolt lockspaces              every lockspace that a member uses
  deadbolt lockspaces 'gfs*'       those with such names
  deadbolt lockspaces --gated      those in which something waits for a node that is not gone yet
  deadbolt lockspaces --node b     those that node b uses";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LockspacesArguments {
    /// Only lockspaces whose names look like this: * for any bytes, ? for one
    #[arg(value_parser = parse_pattern)]
    lockspace: Option<String>,
    /// Only lockspaces that this member uses
    #[arg(long)]
    node: Option<String>,
    /// Only lockspaces in which something waits for a node that is not gone yet
    #[arg(long)]
    gated: bool,
    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    where_: NodeArguments,
}

pub(super) fn run(arguments: &LockspacesArguments) -> Result<u8> {
    let request = LockspacesRequest { op: "lockspaces".into(), lockspace: arguments.lockspace.clone(), from: 0 };
    let mut answer = gather(&arguments.where_.directory(), &request)?;
    if let Some(node) = &arguments.node {
        let known = answer.members.iter().any(|member| member.eq_ignore_ascii_case(node));
        anyhow::ensure!(known, "node {node:?} is no member; members are {}", answer.members.join(", "));
        answer.lockspaces.retain(|row| row.members.iter().any(|member| member.eq_ignore_ascii_case(node)));
    }
    answer.lockspaces.retain(|row| !arguments.gated || !row.gated_by.is_empty());
    if arguments.json {
        say!("{}", serde_json::to_string(&answer)?);
        return Ok(EXIT_OK);
    }
    for line in lines(&answer) {
        say!("{line}");
    }
    Ok(EXIT_OK)
}

/// All pieces, their counts added up.
fn gather(directory: &NodeDirectory, request: &LockspacesRequest) -> Result<LockspacesAnswer> {
    let mut whole = LockspacesAnswer::default();
    let mut rows: BTreeMap<u32, LockspaceRow> = BTreeMap::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let said = ask(directory, &serde_json::to_value(LockspacesRequest { from, ..request.clone() })?, Duration::from_secs(5))?;
        let piece: LockspacesAnswer = serde_json::from_value(said).context("the daemon's answer is of another version of deadbolt")?;
        for row in &piece.lockspaces {
            let whole = rows.entry(row.number).or_insert_with(|| LockspaceRow { locks: 0, waiting: 0, resources: 0, ..row.clone() });
            whole.locks += row.locks;
            whole.waiting += row.waiting;
            whole.resources += row.resources;
        }
        next = piece.next;
        whole = piece;
    }
    whole.lockspaces = rows.into_values().collect();
    whole.lockspaces.sort_by(|one, other| one.lockspace.cmp(&other.lockspace));
    Ok(whole)
}

fn lines(answer: &LockspacesAnswer) -> Vec<String> {
    let names = |names: &[String]| if names.is_empty() { "-".into() } else { printable(&names.join(",")) };
    let state = |row: &LockspaceRow| match (row.gated_by.is_empty(), answer.recovery_waits_for.is_empty(), answer.may_grant) {
        (false, ..) => format!("waits until gone: {}", names(&row.gated_by)),
        (_, false, _) => format!("recovery waits for {}", names(&answer.recovery_waits_for)),
        (_, _, false) => "grants nothing: not quorate".into(),
        _ => "runs".into(),
    };
    let head = ["lockspace", "number", "members", "sessions", "locks", "waiting", "resources", "state"];
    let mut table: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
    for row in &answer.lockspaces {
        let counts = [row.sessions, row.locks, row.waiting, row.resources].map(|count| count.to_string());
        let mut line = vec![quoted(&row.lockspace), format!("{:08x}", row.number), names(&row.members)];
        line.extend(counts);
        line.push(state(row));
        table.push(line);
    }
    let mut lines = if answer.lockspaces.is_empty() { vec!["no lockspace that fits is known here".into()] } else { columns(&table) };
    let node = printable(&answer.node);
    lines.push(format!("Counted on {node}: its sessions and their locks, the resources that it masters. Other nodes have their own."));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_says_what_stops_a_lockspace() {
        let row = LockspaceRow {
            lockspace: "s".into(),
            number: 0x5378_88af,
            members: vec!["a".into(), "b".into()],
            locks: 7,
            ..Default::default()
        };
        let mut answer = LockspacesAnswer { node: "a".into(), may_grant: true, lockspaces: vec![row], ..Default::default() };
        let line = |answer: &LockspacesAnswer| lines(answer)[1].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line(&answer), "s 537888af a,b 0 7 0 0 runs");
        answer.may_grant = false;
        assert!(line(&answer).ends_with("grants nothing: not quorate"));
        answer.recovery_waits_for = vec!["b".into()];
        assert!(line(&answer).ends_with("recovery waits for b"));
        answer.lockspaces[0].gated_by = vec!["c".into()];
        assert!(line(&answer).ends_with("waits until gone: c"));
        answer.lockspaces.clear();
        assert_eq!(lines(&answer)[0], "no lockspace that fits is known here");
    }
}
