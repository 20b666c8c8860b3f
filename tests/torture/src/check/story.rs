//! What: what one client's history proves: when it held what at least, how long it waited, what it saw.
//! Owns: the certain part of every hold.
//! Invariants: a hold counts from the moment when the client had its grant in hands to the moment before it began to give it back; of a
//!   client that was killed, until the last moment at which it is known to have lived. Whoever overlaps with that broke the rule.
//! Does not: compare clients.
//! Called by: the checker.

use crate::history::{Event, Field, LifeName, Line, Number, Value, Why, mode};
use anyhow::{Context, Result};
use deadbolt_dlm::{MODES, Mode};
use std::collections::BTreeMap;

/// A mode held for certain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hold {
    pub(super) life: LifeName,
    pub(super) op: u32,
    pub(super) resource: u8,
    pub(super) mode: Mode,
    pub(super) token: Number,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// A grant with a number of its own: asked for, in hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grant {
    pub(super) life: LifeName,
    pub(super) resource: u8,
    pub(super) token: Number,
    pub(super) asked: u64,
    pub(super) got: u64,
}

/// What a client saw or did under a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    Value(Value),
    Read { front: Field, back: Field },
    Write(u64),
    Done,
}

/// One act, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    pub(super) token: Number,
    pub(super) at: u64,
    pub(super) life: LifeName,
    pub(super) resource: u8,
    pub(super) act: Act,
}

/// How long somebody waited for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait {
    pub(super) life: LifeName,
    pub(super) resource: u8,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) is_answered: bool,
}

/// What all histories prove.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) holds: Vec<Hold>,
    pub(super) grants: Vec<Grant>,
    pub(super) accesses: Vec<Access>,
    pub(super) waits: Vec<Wait>,
    pub(super) conversions: u64,
    pub(super) refused: BTreeMap<Why, u64>,
    pub(super) lost: Vec<(u64, LifeName)>,
    pub(super) odd: Vec<String>,
}

/// Does `one` keep out everything that `other` keeps out?
fn covers(one: Mode, other: Mode) -> bool {
    MODES.iter().all(|third| one.is_compatible(*third) <= other.is_compatible(*third))
}

#[derive(Debug)]
struct Op {
    resource: u8,
    wanted: Mode,
    /// Since when it waits for an answer.
    waits: Option<u64>,
    held: Option<(Mode, Number, u64)>,
    /// When something was said of it last.
    last: u64,
}

struct Walk<'a> {
    story: &'a mut Story,
    life: LifeName,
    ops: BTreeMap<u32, Op>,
}

impl Story {
    /// Adds one client's history; `known_alive`: when something else than its history saw it live last.
    ///
    /// # Errors
    /// Events in an order that no client makes.
    pub(super) fn add(&mut self, life: LifeName, lines: &[Line], known_alive: Option<u64>) -> Result<()> {
        let mut walk = Walk { story: self, life, ops: BTreeMap::new() };
        for (at, event) in lines {
            walk.event(*at, event).with_context(|| format!("client {life} at {at}: {event:?}"))?;
        }
        let lost = lines.iter().find(|(_, event)| *event == Event::Lost);
        walk.story.lost.extend(lost.map(|(at, _)| (*at, life)));
        // One that saw its session end holds each lock as long as it acts under it: its other tasks may not know yet.
        let last = lines.last().map_or(0, |(at, _)| *at);
        walk.end(lost.is_none().then(|| known_alive.map_or(last, |known| known.max(last))));
        Ok(())
    }
}

impl Walk<'_> {
    fn touch(&mut self, op: u32, at: u64) -> Result<()> {
        self.op(op)?.last = at;
        Ok(())
    }

    fn op(&mut self, op: u32) -> Result<&mut Op> {
        self.ops.get_mut(&op).context("no such lock")
    }

    fn answered(&mut self, op: u32, to: u64) -> Result<u64> {
        let life = self.life;
        let known = self.op(op)?;
        let from = known.waits.take().context("nothing was asked")?;
        let wait = Wait { life, resource: known.resource, from, to, is_answered: true };
        self.story.waits.push(wait);
        self.touch(op, to)?;
        Ok(from)
    }

    fn close(&mut self, op: u32, to: u64) -> Result<()> {
        let life = self.life;
        let known = self.op(op)?;
        let (mode, token, from) = known.held.take().context("nothing is held")?;
        let hold = Hold { life, op, resource: known.resource, mode, token, from, to: to.max(from) };
        self.story.holds.push(hold);
        Ok(())
    }

    fn access(&mut self, op: u32, at: u64, act: Act) -> Result<()> {
        let life = self.life;
        let known = self.op(op)?;
        let (_, token, _) = known.held.context("nothing is held")?;
        let access = Access { token, at, life, resource: known.resource, act };
        self.story.accesses.push(access);
        self.touch(op, at)
    }

    fn event(&mut self, at: u64, event: &Event) -> Result<()> {
        match *event {
            Event::Ask { op, resource, mode: wanted } => {
                let new = Op { resource, wanted: mode(wanted)?, waits: Some(at), held: None, last: at };
                anyhow::ensure!(self.ops.insert(op, new).is_none(), "the number is used");
            }
            Event::Got { op, token, value, is_kept } => {
                let asked = self.answered(op, at)?;
                let life = self.life;
                let known = self.op(op)?;
                known.held = Some((known.wanted, token, at));
                let resource = known.resource;
                if !is_kept {
                    self.story.grants.push(Grant { life, resource, token, asked, got: at });
                }
                self.see(op, at, value)?;
            }
            Event::Convert { op, mode: wanted } => {
                let wanted = mode(wanted)?;
                let known = self.op(op)?;
                (known.wanted, known.waits, known.last) = (wanted, Some(at), at);
            }
            Event::Converted { op, token, value } => self.converted(op, at, token, value)?,
            Event::Not { op, why } | Event::Kept { op, why } => {
                self.answered(op, at)?;
                *self.story.refused.entry(why).or_default() += 1;
            }
            Event::Read { op, front, back } => self.access(op, at, Act::Read { front, back })?,
            Event::Write { op, value } => self.access(op, at, Act::Write(value))?,
            Event::Done { op } => self.access(op, at, Act::Done)?,
            Event::Free { op } => {
                self.close(op, at)?;
                self.op(op)?.waits = Some(at);
            }
            Event::Freed { op } => {
                self.answered(op, at)?;
                self.ops.remove(&op);
            }
            Event::Lost | Event::End => {}
            Event::Odd { ref said } => self.story.odd.push(format!("client {}: {said}", self.life)),
        }
        Ok(())
    }

    fn converted(&mut self, op: u32, at: u64, token: Number, value: Value) -> Result<()> {
        let asked = self.answered(op, at)?;
        let life = self.life;
        let known = self.op(op)?;
        let (before, _, _) = known.held.context("nothing is held")?;
        let (now, resource) = (known.wanted, known.resource);
        // A stronger mode keeps the weaker one until it is there; a weaker one holds from when it was asked for.
        let (until, from) = match (covers(now, before), covers(before, now)) {
            (true, _) => (at, at),
            (false, true) => (asked, asked),
            (false, false) => (asked, at),
        };
        self.close(op, until)?;
        self.op(op)?.held = Some((now, token, from));
        self.story.conversions += 1;
        if !before.is_down(now) {
            self.story.grants.push(Grant { life, resource, token, asked, got: at });
        }
        self.see(op, at, value)
    }

    /// A value block counts where no writer may stand beside the reader.
    fn see(&mut self, op: u32, at: u64, value: Value) -> Result<()> {
        let is_stable = matches!(self.op(op)?.wanted, Mode::Pr | Mode::Pw | Mode::Ex);
        if value == Value::Foreign || (is_stable && value != Value::None) { self.access(op, at, Act::Value(value)) } else { Ok(()) }
    }

    /// `alive`: until when it lived; none: its session ended before it did.
    fn end(mut self, alive: Option<u64>) {
        let life = self.life;
        for (op, known) in std::mem::take(&mut self.ops) {
            let alive = alive.unwrap_or(known.last);
            if let Some(from) = known.waits {
                let wait = Wait { life, resource: known.resource, from, to: alive.max(from), is_answered: false };
                self.story.waits.push(wait);
            }
            let Some((mode, token, from)) = known.held else { continue };
            let mut hold = Hold { life, op, resource: known.resource, mode, token, from, to: alive.max(from) };
            if let Some(asked) = known.waits.filter(|_| !covers(known.wanted, mode)) {
                // A conversion to something weaker was under way: that much is held for certain.
                self.story.holds.push(Hold { to: asked.max(from), ..hold });
                if !covers(mode, known.wanted) {
                    continue;
                }
                (hold.mode, hold.from, hold.to) = (known.wanted, asked, alive.max(asked));
            }
            self.story.holds.push(hold);
        }
    }
}
