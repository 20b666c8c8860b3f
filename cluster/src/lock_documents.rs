//! What: the JSON of `locks` and `lockspaces`, as the daemon says it and the front door reads it.
//! Owns: the field names that scripts parse; docs/status.md lists them.
//! Invariants: names only ever get added; what is absent is `null`.
//! Does not: know the lock service; choose; print.
//! Called by: the daemon's control socket, `deadbolt locks` and `deadbolt lockspaces`.

use serde::{Deserialize, Serialize};

/// The request `locks`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocksRequest {
    /// `locks`.
    pub op: String,
    /// Pattern for the lockspace's name.
    pub lockspace: Option<String>,
    /// Pattern for the resource's name.
    pub resource: Option<String>,
    /// Name of the node, or number of its slot, whose locks.
    pub node: Option<String>,
    /// Process whose locks.
    pub pid: Option<u32>,
    /// Transaction, or owner of ranges, whose locks.
    pub owner: Option<u64>,
    /// Mode that is held or wanted.
    pub mode: Option<String>,
    /// Only what waits.
    pub waiting: bool,
    /// Where the piece before ended.
    pub from: u64,
    /// Most locks and ranges; the others are counted.
    pub limit: Option<usize>,
}

/// The answer to `locks`, and what `deadbolt locks --json` prints.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LocksAnswer {
    /// Always true.
    pub ok: bool,
    /// Nodes whose word this is.
    pub nodes: Vec<String>,
    /// Members of the newest view.
    pub members: Vec<String>,
    /// The locks.
    pub locks: Vec<LockRow>,
    /// The byte ranges.
    pub ranges: Vec<RangeRow>,
    /// Locks and ranges that fit and are not here.
    pub left_out: usize,
    /// Where the next piece begins.
    pub next: Option<u64>,
}

/// Which resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ResourceColumns {
    /// Lockspace.
    pub lockspace: String,
    /// Resource.
    pub resource: String,
    /// Its master.
    pub master: Option<String>,
    /// The row is its master's word.
    pub by_master: bool,
}

/// Whose.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct WhoColumns {
    /// Its node.
    pub node: String,
    /// Its node's slot.
    pub slot: u16,
    /// Its process.
    pub pid: u32,
    /// Number of the lock on that node.
    pub lock: u32,
    /// Number of the session on that node, where the lock is for that.
    pub session: Option<u64>,
    /// Number of the transaction that it is for.
    pub owner: Option<u64>,
    /// Its process is gone.
    pub orphan: bool,
}

/// Bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct BytesColumns {
    /// `read` or `write`.
    pub kind: String,
    /// The first byte.
    pub start: u64,
    /// The last one; none: to the end.
    pub end: Option<u64>,
    /// Whose among those who share the lock.
    pub range_owner: u64,
}

/// A lock.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LockRow {
    /// Of which resource.
    #[serde(flatten)]
    pub on: ResourceColumns,
    /// Whose.
    #[serde(flatten)]
    pub who: WhoColumns,
    /// `granted`, `converting`, `waiting`.
    pub state: String,
    /// Mode held.
    pub granted: Option<String>,
    /// Mode waited for.
    pub requested: Option<String>,
    /// For how long it is in this state.
    pub since_ms: u64,
    /// Number of its grant.
    pub token: Option<String>,
    /// Whom it waits for, where that is known.
    pub waits_for: Option<Vec<InTheWayRow>>,
    /// How many more.
    pub waits_for_left_out: usize,
}

/// Bytes that a lock has or waits for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RangeRow {
    /// Of which resource.
    #[serde(flatten)]
    pub on: ResourceColumns,
    /// Whose.
    #[serde(flatten)]
    pub who: WhoColumns,
    /// Which.
    #[serde(flatten)]
    pub bytes: BytesColumns,
    /// `granted`, `waiting`.
    pub state: String,
    /// For how long it waits, where that is known.
    pub since_ms: Option<u64>,
    /// Whom it waits for, where that is known.
    pub waits_for: Option<Vec<InTheWayRow>>,
    /// How many more.
    pub waits_for_left_out: usize,
}

/// Somebody who is in the way of a wait.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct InTheWayRow {
    /// Who.
    #[serde(flatten)]
    pub who: WhoColumns,
    /// It has what is in the way; else it waits for it and came first.
    pub holds: bool,
    /// The mode in the way.
    pub mode: Option<String>,
    /// The bytes in the way.
    pub bytes: Option<BytesColumns>,
}

/// The request `lockspaces`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LockspacesRequest {
    /// `lockspaces`.
    pub op: String,
    /// Pattern for the name.
    pub lockspace: Option<String>,
    /// Where the piece before ended.
    pub from: u64,
}

/// The answer to `lockspaces`, and what `deadbolt lockspaces --json` prints.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LockspacesAnswer {
    /// Always true.
    pub ok: bool,
    /// The node that counted.
    pub node: String,
    /// Members of the newest view.
    pub members: Vec<String>,
    /// Grants may leave now.
    pub may_grant: bool,
    /// Members that recovery waits for.
    pub recovery_waits_for: Vec<String>,
    /// By name.
    pub lockspaces: Vec<LockspaceRow>,
    /// Where the next piece begins.
    pub next: Option<u64>,
}

/// A lockspace.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LockspaceRow {
    /// Its name.
    pub lockspace: String,
    /// Its number.
    pub number: u32,
    /// Members that use it.
    pub members: Vec<String>,
    /// Sessions of the node that use it.
    pub sessions: usize,
    /// Locks of these.
    pub locks: usize,
    /// Of these, how many wait.
    pub waiting: usize,
    /// Resources of which the node is master.
    pub resources: usize,
    /// Owed nodes that keep something in it from being granted.
    pub gated_by: Vec<String>,
}
