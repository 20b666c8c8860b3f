//! What: `deadbolt locks`.
//! Owns: its arguments; what is said below the rows about what they cover.
//! Invariants: what is left out is said; a bad filter is refused before anything is asked.
//! Does not: choose rows (the daemon does), ask other nodes.
//! Called by: the verbs.

mod gather;
mod graph;
mod rows;
mod table;

use super::{EXIT_OK, NodeArguments, parse_mode};
use anyhow::Result;
use clap::{Args, ValueEnum};
use deadbolt_cluster::lock_documents::{LocksAnswer, LocksRequest};
use deadbolt_dlm::{Mode, pattern::Pattern};
use std::path::PathBuf;

pub(super) use rows::{columns, quoted};

const EXAMPLES: &str = "\
Patterns: * stands for any bytes, ? for one, \\xNN for the byte NN, \\*, \\? and \\\\ for themselves.

Examples:
  deadbolt locks                         what this node knows
  deadbolt locks 'inode *' --mode EX     who has or wants EX on resources with such names
  deadbolt locks --waiting               who waits, since when, for whom
  deadbolt locks --waiting --pid 4711    what process 4711 waits for, and who waits for it
  deadbolt locks --graph                 the same as one graph: who is at the end of it, and cycles
  deadbolt locks --graph=dot | dot -Tsvg > waits.svg
  ssh b deadbolt locks --json | deadbolt locks --with -
                                         with what node b knows";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LocksArguments {
    /// Only resources whose names look like this
    #[arg(value_parser = parse_pattern)]
    resource: Option<String>,
    /// Only lockspaces whose names look like this
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    lockspace: Option<String>,
    /// Only locks of this node (name, or number of its slot)
    #[arg(long)]
    node: Option<String>,
    /// Only locks of processes with this number
    #[arg(long)]
    pid: Option<u32>,
    /// Only locks of this transaction, and byte ranges of this owner
    #[arg(long)]
    owner: Option<u64>,
    /// Only locks that have or want this mode: NL, CR, CW, PR, PW or EX
    #[arg(long, value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Only who waits: since when and for whom; the other filters then fit either side
    #[arg(long)]
    waiting: bool,
    /// Who waits for whom, as a graph: text, or dot for Graphviz
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text", conflicts_with = "json")]
    graph: Option<GraphForm>,
    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Most locks and byte ranges to show; the others are counted
    #[arg(long, default_value_t = 10_000)]
    limit: usize,
    /// Add what another node's `deadbolt locks --json` printed, with the same filters; - for standard input
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    #[command(flatten)]
    where_: NodeArguments,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum GraphForm {
    Text,
    Dot,
}

/// The daemon reads it again; here it is refused with a place in the command line.
pub(super) fn parse_pattern(text: &str) -> Result<String, String> {
    Pattern::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(super) fn run(arguments: &LocksArguments) -> Result<u8> {
    let request = LocksRequest {
        op: "locks".into(),
        lockspace: arguments.lockspace.clone(),
        resource: arguments.resource.clone(),
        node: arguments.node.clone(),
        pid: arguments.pid,
        owner: arguments.owner,
        mode: arguments.mode.map(|mode| mode.name().into()),
        waiting: arguments.waiting || arguments.graph.is_some(),
        from: 0,
        limit: Some(arguments.limit),
    };
    let mut answer = gather::gather(&arguments.where_.directory(), &request, arguments.limit)?;
    for file in &arguments.with {
        gather::merge(&mut answer, gather::read(file)?);
    }
    gather::sort(&mut answer);
    if arguments.json {
        say!("{}", serde_json::to_string(&answer)?);
        return Ok(EXIT_OK);
    }
    let graph = graph::Graph::new(&answer);
    let lines = match arguments.graph {
        Some(GraphForm::Dot) => graph.dot(),
        Some(GraphForm::Text) => graph.text(),
        None if arguments.waiting => table::waiting(&answer),
        None => table::all(&answer),
    };
    for line in lines {
        say!("{line}");
    }
    let mark = if arguments.graph == Some(GraphForm::Dot) { "// " } else { "" };
    for line in coverage(&answer) {
        say!("{mark}{line}");
    }
    Ok(EXIT_OK)
}

/// What the rows cover, and how to see the rest.
fn coverage(answer: &LocksAnswer) -> Vec<String> {
    let mut lines = Vec::new();
    if answer.left_out > 0 {
        lines.push(format!("{} more fit and are not shown: give a narrower filter or a higher --limit.", answer.left_out));
    }
    let missing: Vec<&str> = answer.members.iter().filter(|member| !answer.nodes.contains(member)).map(String::as_str).collect();
    let nodes = answer.nodes.join(", ");
    if let Some(first) = missing.first() {
        lines.push(format!("Seen from {nodes}: all locks on the resources mastered there, and the locks of its own processes elsewhere."));
        lines.push(format!("Not asked: {}. To add one: ssh {first} deadbolt locks --json | deadbolt locks --with -", missing.join(", ")));
    } else {
        lines.push(format!("Seen from all members: {nodes}."));
    }
    lines
}

#[cfg(test)]
mod tests;
