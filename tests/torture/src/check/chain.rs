//! What: whether the counters of a run lost anything, and whether value blocks told the truth.
//! Owns: what each counter can be after each act, in the order of the tokens.
//! Invariants: an increment that was acknowledged is there for ever; one whose client was killed within it is there or not, until the next
//!   reader sees which.
//! Does not: check that tokens are in the order of time; the holds do.
//! Called by: the checker.

use super::{
    Judgement,
    story::{Access, Act},
};
use crate::history::{Field, LifeName, Value};

/// What a counter can be.
struct Counter {
    value: u64,
    /// A write was begun whose end nobody has told yet.
    pending: Option<u64>,
    /// The two fields may differ since the last write was not acknowledged.
    may_differ: bool,
    writer: Option<LifeName>,
}

impl Counter {
    fn is_possible(&self, value: u64) -> bool {
        value == self.value || Some(value) == self.pending
    }

    fn describe(&self) -> String {
        self.pending.map_or_else(|| self.value.to_string(), |pending| format!("{} or {pending}", self.value))
    }
}

/// Checks every counter.
pub(super) fn check(mut accesses: Vec<Access>, last: &[u64], judgement: &mut Judgement) {
    accesses.sort_by_key(|access| (access.resource, access.token, access.at));
    for (resource, found) in (0..).zip(last) {
        let begin = accesses.partition_point(|access| access.resource < resource);
        let of_resource = accesses[begin..].iter().take_while(|access| access.resource == resource);
        let mut counter = Counter { value: 0, pending: None, may_differ: false, writer: None };
        of_resource.for_each(|access| act(&mut counter, access, judgement));
        compare(&mut counter, *found, &format!("at the end resource {resource}"), judgement);
    }
}

fn act(counter: &mut Counter, access: &Access, judgement: &mut Judgement) {
    let Access { token, at, life, resource, .. } = access;
    let place = format!("resource {resource}, client {life} under token {}.{} at {at}", token.0, token.1);
    match access.act {
        Act::Read { front, back } => read(counter, access, (front, back), &place, judgement),
        Act::Write(value) => {
            counter.pending = Some(value);
            (counter.may_differ, counter.writer) = (true, Some(*life));
        }
        Act::Done => {
            judgement.increments += 1;
            counter.value = counter.pending.take().unwrap_or(counter.value);
            counter.may_differ = false;
        }
        Act::Value(Value::Counter(value)) => {
            judgement.values_good += 1;
            if counter.pending.is_some() || counter.may_differ || value != counter.value {
                judgement.blame(format!("{place}: the value block was given as good with {value}, the counter is {}", counter.describe()));
            }
        }
        Act::Value(Value::Doubtful) => judgement.values_doubtful += 1,
        Act::Value(Value::Foreign) => judgement.blame(format!("{place}: the value block holds what nobody wrote")),
        Act::Value(Value::None) => {}
    }
}

fn read(counter: &mut Counter, access: &Access, (front, back): (Field, Field), place: &str, judgement: &mut Judgement) {
    compare(counter, front.value, place, judgement);
    if front != back && !counter.may_differ {
        judgement.blame(format!("{place}: somebody writes meanwhile: {front:?} and {back:?}"));
    }
    let is_own = front.token == access.token && counter.writer == Some(access.life);
    if front.token >= access.token && !is_own {
        judgement.blame(format!("{place}: a later grant has written: {front:?}"));
    }
}

/// What was found settles what was open.
fn compare(counter: &mut Counter, found: u64, place: &str, judgement: &mut Judgement) {
    if !counter.is_possible(found) {
        judgement.lost_updates += counter.value.saturating_sub(found).max(1);
        judgement.blame(format!("{place}: the counter is {found}, it was {}", counter.describe()));
    }
    (counter.value, counter.pending) = (found, None);
}
