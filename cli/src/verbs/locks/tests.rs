//! What: the texts of `deadbolt locks`, from answers made by hand.
//! Owns: the answers.
//! Invariants: none of its own.
//! Does not: ask a daemon; the process tests do.
//! Called by: `cargo test`.

use super::*;
use deadbolt_cluster::lock_documents::{BytesColumns, InTheWayRow, LockRow, RangeRow, ResourceColumns, WhoColumns};

fn who(node: &str, pid: u32) -> WhoColumns {
    WhoColumns { node: node.into(), pid, lock: pid, session: Some(pid.into()), ..WhoColumns::default() }
}

fn on(resource: &str, by_master: bool) -> ResourceColumns {
    ResourceColumns { lockspace: "s".into(), resource: resource.into(), master: Some("a".into()), by_master }
}

fn has(who: WhoColumns, mode: &str) -> InTheWayRow {
    InTheWayRow { who, holds: true, mode: Some(mode.into()), bytes: None }
}

fn first(who: WhoColumns, mode: &str) -> InTheWayRow {
    InTheWayRow { holds: false, ..has(who, mode) }
}

fn held(resource: &str, who: WhoColumns, mode: &str) -> LockRow {
    let (on, granted, state) = (on(resource, true), Some(mode.into()), "granted".into());
    LockRow { on, who, granted, state, since_ms: 500, token: Some("1.2".into()), ..LockRow::default() }
}

fn wait(resource: &str, who: WhoColumns, mode: &str, waits_for: Option<Vec<InTheWayRow>>) -> LockRow {
    let (on, requested, state) = (on(resource, waits_for.is_some()), Some(mode.into()), "waiting".into());
    LockRow { on, who, requested, state, since_ms: 12_300, waits_for, ..LockRow::default() }
}

fn answer(locks: Vec<LockRow>) -> LocksAnswer {
    LocksAnswer { ok: true, nodes: vec!["a".into()], members: vec!["a".into(), "b".into()], locks, ..LocksAnswer::default() }
}

/// 1 has r and waits for 2 on q, 2 waits for 1 on r, and 3 behind it; 4 waits for 5 alone.
fn tangled() -> LocksAnswer {
    answer(vec![
        wait("q", who("a", 1), "PR", Some(vec![has(who("b", 2), "EX")])),
        wait("r", who("b", 2), "EX", Some(vec![has(who("a", 1), "PR")])),
        wait("r", who("b", 3), "PR", Some(vec![first(who("b", 2), "EX")])),
        wait("z", who("a", 4), "PW", Some(vec![has(who("b", 5), "PW")])),
    ])
}

#[test]
fn a_table_has_a_line_for_each_lock_and_range() {
    let mut answer = answer(vec![held("r", who("a", 1), "PR"), wait("inode 7", who("b", 2), "EX", None)]);
    let bytes = |range_owner, start, end| BytesColumns { kind: "write".into(), start, end, range_owner };
    let range = |state: &str, bytes| RangeRow { on: on("r", true), who: who("a", 1), bytes, state: state.into(), ..RangeRow::default() };
    answer.ranges = vec![range("granted", bytes(9, 0, Some(99))), range("waiting", bytes(0, 50, None))];
    assert_eq!(
        table::all(&answer),
        [
            "lockspace  resource   node  pid  owner  holds       wants      since   master  token",
            "s          \"inode 7\"  b     2    -      -           EX         12.3 s  a       -",
            "s          r          a     1    -      PR          -          500 ms  a       1.2",
            "s          r          a     1    9      write 0-99  -          -       a       -",
            "s          r          a     1    -      -           write 50-  -       a       -",
        ]
    );
    let none = LocksAnswer::default();
    assert_eq!(table::all(&none), ["no lock that fits is known here"]);
    assert_eq!(table::waiting(&none), ["nobody waits, as far as is known here"]);
    assert_eq!(graph::Graph::new(&none).text(), ["nobody waits, as far as is known here"]);
}

#[test]
fn waits_are_told_by_resource_with_who_is_in_the_way() {
    let mut asked = wait("q", who("a", 1), "EX", Some(vec![has(who("b", 2), "PR"), first(who("b", 3), "PW")]));
    (asked.granted, asked.waits_for_left_out) = (Some("CR".into()), 4);
    let elsewhere = wait("r", WhoColumns { owner: Some(77), ..who("a", 1) }, "PR", None);
    let recovering = wait("r", who("b", 9), "PR", Some(Vec::new()));
    assert_eq!(
        table::waiting(&answer(vec![asked, elsewhere, recovering])),
        [
            "s/q, master a",
            "  a:1 waits 12.3 s for EX, has CR",
            "    b:2 has PR",
            "    b:3 came first, for PW",
            "    and 4 more",
            "s/r, master a",
            "  a:1 owner 77 waits 12.3 s for PR",
            "    for whom: its master knows",
            "  b:9 waits 12.3 s for PR",
            "    nobody is in its way: it waits for recovery, or for this cluster to be quorate",
        ]
    );
}

#[test]
fn the_graph_names_ends_and_cycles() {
    assert_eq!(
        graph::Graph::new(&tangled()).text(),
        [
            "a:1 -> b:2: waits 12.3 s for PR on s/q; the other has EX",
            "b:2 -> a:1: waits 12.3 s for EX on s/r; the other has PR",
            "b:3 -> b:2: waits 12.3 s for PR on s/r; the other came first, for EX",
            "a:4 -> b:5: waits 12.3 s for PW on s/z; the other has PW",
            "waits for nobody itself: b:5 (1 right behind it)",
            "cycle: a:1 -> b:2 -> a:1",
        ]
    );
}

#[test]
fn a_transaction_is_one_party_on_every_node_and_sessions_are_not() {
    let shared = |node: &str, pid| WhoColumns { owner: Some(7), session: None, ..who(node, pid) };
    let rows = vec![
        wait("q", shared("a", 1), "PR", Some(vec![has(who("b", 2), "EX")])),
        wait("r", who("b", 2), "EX", Some(vec![has(shared("b", 3), "PR")])),
    ];
    let cycle = graph::Graph::new(&answer(rows)).text().pop().unwrap();
    assert_eq!(cycle, "cycle: a:1 owner 7 -> b:2 -> a:1 owner 7");
    let rows = vec![
        wait("q", who("a", 1), "PR", Some(vec![has(who("b", 2), "EX")])),
        wait("r", who("b", 2), "EX", Some(vec![has(who("b", 1), "PR")])),
    ];
    assert!(graph::Graph::new(&answer(rows)).text().iter().all(|line| !line.starts_with("cycle")));
}

#[test]
fn dot_is_for_graphviz_and_names_do_it_no_harm() {
    let mut tangled = tangled();
    tangled.locks[3].on.resource = "a\\x00\"]; evil".into();
    tangled.locks.push(wait("y", who("a", 6), "EX", None));
    assert_eq!(
        graph::Graph::new(&tangled).dot(),
        [
            "digraph waits_for {",
            "  node [shape=box];",
            "  p0 [label=\"a:4\"];",
            "  p1 [label=\"b:5\"];",
            "  p2 [label=\"a:1\", color=red];",
            "  p3 [label=\"b:2\", color=red];",
            "  p4 [label=\"b:3\"];",
            "  p5 [label=\"a:6\"];",
            "  p0 -> p1 [label=\"PW on s/\\\"a\\\\x00\\\"]; evil\\\", 12.3 s; has PW\"];",
            "  p2 -> p3 [label=\"PR on s/q, 12.3 s; has EX\", color=red];",
            "  p3 -> p2 [label=\"EX on s/r, 12.3 s; has PR\", color=red];",
            "  p4 -> p3 [label=\"PR on s/r, 12.3 s; came first: EX\", style=dashed];",
            "  q0 [label=\"a knows for whom\", shape=ellipse];",
            "  p5 -> q0 [label=\"EX on s/y, 12.3 s\", style=dotted];",
            "}",
        ]
    );
}

#[test]
fn answers_of_several_nodes_become_one_by_the_masters_word() {
    let mut whole = answer(vec![wait("r", who("a", 1), "EX", None), held("own", who("a", 1), "EX")]);
    let mut other = answer(vec![wait("r", who("a", 1), "EX", Some(vec![has(who("b", 2), "PR")])), held("r", who("b", 2), "PR")]);
    (other.nodes, other.left_out) = (vec!["b".into()], 3);
    assert!(coverage(&whole)[1].contains("ssh b deadbolt locks --json"), "{:?}", coverage(&whole));
    gather::merge(&mut whole, other.clone());
    gather::sort(&mut whole);
    let found: Vec<_> = whole.locks.iter().map(|row| (row.on.resource.as_str(), row.who.pid, row.waits_for.is_some())).collect();
    assert_eq!(found, [("own", 1, false), ("r", 1, true), ("r", 2, false)]);
    assert_eq!(
        coverage(&whole),
        ["3 more fit and are not shown: give a narrower filter or a higher --limit.", "Seen from all members: a, b."]
    );
    // The other way round, too.
    gather::merge(&mut other, answer(vec![wait("r", who("a", 1), "EX", None)]));
    assert!(other.locks[0].waits_for.is_some() && other.locks.len() == 2);
}
