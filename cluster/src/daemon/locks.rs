//! What: the answers to `locks` and `lockspaces`.
//! Owns: the way from the lock service's values to the documents; the refusals of bad filters.
//! Invariants: an answer is one bounded piece, made from memory.
//! Does not: ask other nodes.
//! Called by: the daemon's effects.

use super::{control::failure, now_ms};
use crate::{
    lock_documents::{
        BytesColumns, InTheWayRow, LockRow, LocksAnswer, LocksRequest, LockspaceRow, LockspacesAnswer, LockspacesRequest, RangeRow,
        ResourceColumns, WhoColumns,
    },
    node::Node,
};
use deadbolt_disk_format::{Life, SlotIndex};
use deadbolt_dlm::MODES;
use deadbolt_dlm_core::{
    Claim, Mode, RangeMode, Span,
    pattern::{Pattern, readable},
    service::{self as locks, Filter, InTheWay, LockSnapshot, LockState, RangeSnapshot, ResourceSnapshot, WaitsFor, Who},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Most locks and ranges of one answer where the request names no limit.
const LIMIT: usize = 4096;

/// The answer to `locks`.
pub(super) fn answer_locks(node: &Node, request: &Value) -> Value {
    answer(request, |request: LocksRequest| {
        let filter = filter_of(node, &request)?;
        let page = node.locks().list(&filter, request.from, request.limit.unwrap_or(LIMIT));
        let teller = Teller { node, now_ms: now_ms() };
        let mut answer = LocksAnswer { ok: true, nodes: vec![node.name()], members: node.member_names(), ..LocksAnswer::default() };
        (answer.left_out, answer.next) = (page.left_out, page.next);
        for resource in &page.resources {
            answer.locks.extend(resource.locks.iter().map(|lock| teller.lock_row(resource, lock)));
            answer.ranges.extend(resource.ranges.iter().map(|range| teller.range_row(resource, range)));
        }
        Ok(answer)
    })
}

/// The answer to `lockspaces`.
pub(super) fn answer_lockspaces(node: &Node, request: &Value) -> Value {
    answer(request, |request: LockspacesRequest| {
        let pattern = pattern_of("lockspace", request.lockspace.as_deref())?;
        let page = node.locks().list_lockspaces(pattern.as_ref(), request.from);
        let names = |lives: &[Life]| lives.iter().map(|life| node.name_of(life.slot)).collect::<Vec<String>>();
        let row = |it: &locks::LockspaceSnapshot| LockspaceRow {
            lockspace: readable(&it.lockspace),
            number: it.number,
            members: names(&it.members),
            sessions: it.sessions,
            locks: it.locks,
            waiting: it.waiting,
            resources: it.resources,
            gated_by: names(&it.gated_by),
        };
        Ok(LockspacesAnswer {
            ok: true,
            node: node.name(),
            members: node.member_names(),
            may_grant: page.may_grant,
            recovery_waits_for: names(&page.awaited),
            lockspaces: page.lockspaces.iter().map(row).collect(),
            next: page.next,
        })
    })
}

fn answer<R: DeserializeOwned, A: Serialize>(request: &Value, make: impl FnOnce(R) -> Result<A, String>) -> Value {
    let read = serde_json::from_value(request.clone()).map_err(|error| error.to_string());
    let made = read.and_then(make).and_then(|answer| serde_json::to_value(answer).map_err(|error| error.to_string()));
    made.unwrap_or_else(|error| failure(&error))
}

fn pattern_of(field: &str, text: Option<&str>) -> Result<Option<Pattern>, String> {
    text.map(Pattern::new).transpose().map_err(|error| format!("{field}: {error}"))
}

fn filter_of(node: &Node, request: &LocksRequest) -> Result<Filter, String> {
    let mode = |text: &str| {
        let known: Option<Mode> = MODES.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("mode: {text:?} is not a mode; use NL, CR, CW, PR, PW or EX"))
    };
    Ok(Filter {
        lockspace: pattern_of("lockspace", request.lockspace.as_deref())?,
        resource: pattern_of("resource", request.resource.as_deref())?,
        slot: request.node.as_deref().map(|name| slot_of(node, name)).transpose()?,
        pid: request.pid,
        owner: request.owner,
        mode: request.mode.as_deref().map(mode).transpose()?,
        is_waiting: request.waiting,
    })
}

/// By name, else by number.
fn slot_of(node: &Node, name: &str) -> Result<SlotIndex, String> {
    let by_number = || name.parse().ok().map(SlotIndex).filter(|slot| node.has_slot(*slot));
    node.slot_of(name).or_else(by_number).ok_or_else(|| {
        format!("node: no node {name:?} is configured, nor is it the slot of one; configured are {}", node.configured_names().join(", "))
    })
}

struct Teller<'a> {
    node: &'a Node,
    now_ms: u64,
}

impl Teller<'_> {
    fn resource(&self, resource: &ResourceSnapshot) -> ResourceColumns {
        ResourceColumns {
            lockspace: readable(&resource.lockspace),
            resource: readable(&resource.resource),
            master: resource.master.map(|life| self.node.name_of(life.slot)),
            by_master: resource.is_masters_word,
        }
    }

    fn who(&self, who: &Who) -> WhoColumns {
        WhoColumns {
            node: self.node.name_of(who.life.slot),
            slot: who.life.slot.0,
            pid: who.pid,
            lock: who.lock,
            session: who.session,
            owner: who.owner,
            orphan: who.is_orphan,
        }
    }

    fn lock_row(&self, resource: &ResourceSnapshot, lock: &LockSnapshot) -> LockRow {
        let (waits_for, waits_for_left_out) = self.waits_for(lock.waits_for.as_ref());
        let state = match lock.state {
            LockState::Granted => "granted",
            LockState::Converting => "converting",
            LockState::Waiting => "waiting",
        };
        LockRow {
            on: self.resource(resource),
            who: self.who(&lock.who),
            state: state.into(),
            granted: lock.granted.map(|mode| mode.name().into()),
            requested: lock.wanted.map(|mode| mode.name().into()),
            since_ms: self.now_ms.saturating_sub(lock.since_ms),
            token: lock.granted.map(|_| lock.token.to_string()),
            waits_for,
            waits_for_left_out,
        }
    }

    fn range_row(&self, resource: &ResourceSnapshot, range: &RangeSnapshot) -> RangeRow {
        let (waits_for, waits_for_left_out) = self.waits_for(range.waits_for.as_ref());
        RangeRow {
            on: self.resource(resource),
            who: self.who(&range.who),
            bytes: bytes_columns(range.bytes, range.part),
            state: if range.is_held { "granted" } else { "waiting" }.into(),
            since_ms: range.since_ms.map(|since_ms| self.now_ms.saturating_sub(since_ms)),
            waits_for,
            waits_for_left_out,
        }
    }

    fn waits_for(&self, waits_for: Option<&WaitsFor>) -> (Option<Vec<InTheWayRow>>, usize) {
        let row = |it: &InTheWay| {
            let (mode, bytes) = match it.claim {
                Claim::Mode(mode) => (Some(mode.name().into()), None),
                Claim::Range(bytes) => (None, Some(bytes_columns(bytes, it.part))),
            };
            InTheWayRow { who: self.who(&it.who), holds: it.is_held, mode, bytes }
        };
        let rows = waits_for.map(|waits_for| waits_for.first.iter().map(row).collect());
        (rows, waits_for.map_or(0, |waits_for| waits_for.left_out))
    }
}

fn bytes_columns(bytes: Span, part: u64) -> BytesColumns {
    let kind = match bytes.kind {
        RangeMode::Read => "read",
        RangeMode::Write => "write",
    };
    let end = Some(bytes.end).filter(|end| *end != u64::MAX);
    BytesColumns { kind: kind.into(), start: bytes.start, end, range_owner: part }
}
