//! What: a deadlock as data: who waits for whom, for what, where.
//! Owns: its bytes in both protocols, its words.
//! Invariants: a cycle fits in a frame of a client beside its other fields.
//! Does not: search.
//! Called by: `waits`, `client`, `wire`; programs of users read it.

use crate::bytes::{DecodeError, Reader, Writer};
use crate::client::{LOCKSPACE_BYTES_MAX, ResourceName, checked_count, read_resource};
use crate::mode::Mode;
use crate::ranges::Span;
use crate::wire::{read_span, write_span};
use alloc::vec::Vec;
use core::fmt::{Display, Formatter};

/// Most steps of a cycle that are named (16 of them with the longest names fill three quarters of a frame).
pub const CYCLE_STEPS_MAX: usize = 16;

/// What is wanted or had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// A lock.
    Mode(Mode),
    /// Bytes.
    Range(Span),
}

/// One of those who wait for each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CycleParty {
    /// Node.
    pub slot: u16,
    /// Process on that node.
    pub pid: u32,
    /// For whom, as it was asked for (of a lock or of a range); 0 for the session.
    pub owner: u64,
}

/// One who waits, and who is in its way. The next step is about what that one waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CycleStep {
    /// Who waits.
    pub waiter: CycleParty,
    /// For what.
    pub wanted: Claim,
    /// Of which lockspace.
    pub lockspace: Vec<u8>,
    /// Of which resource.
    pub resource: ResourceName,
    /// Who is in the way.
    pub blocker: CycleParty,
    /// With what.
    pub claim: Claim,
    /// The blocker has it; else it waits for it itself, and came first.
    pub is_held: bool,
}

/// Who waits for whom, beginning with the request that fails; the last one's blocker is the first one's waiter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cycle {
    /// At most [`CYCLE_STEPS_MAX`], the first ones.
    pub steps: Vec<CycleStep>,
    /// How many more there are.
    pub left_out: u32,
}

impl Display for Claim {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Mode(mode) => mode.fmt(f),
            Self::Range(span) => span.fmt(f),
        }
    }
}

impl Display for CycleParty {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        write!(f, "process {} of slot {}", self.pid, self.slot)?;
        if self.owner == 0 { Ok(()) } else { write!(f, " (owner {})", self.owner) }
    }
}

impl Display for CycleStep {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        let Self { waiter, wanted, blocker, claim, .. } = self;
        let (space, resource) = (self.lockspace.escape_ascii(), self.resource.as_bytes().escape_ascii());
        write!(f, "{waiter} waits for {wanted} on {space}/{resource}, ")?;
        match (self.is_held, claim) {
            (true, Claim::Mode(mode)) => write!(f, "on which {blocker} has {mode}"),
            (true, Claim::Range(span)) => write!(f, "of which {blocker} has {span}"),
            (false, claim) => write!(f, "for which {blocker} came first with {claim}"),
        }
    }
}

impl Display for Cycle {
    /// "process 7 of slot 1 waits for EX on space/a, on which process 9 of slot 2 has PR; process 9 ..."
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "{}{step}", if number == 0 { "" } else { "; " })?;
        }
        if self.left_out == 0 { Ok(()) } else { write!(f, "; and {} more", self.left_out) }
    }
}

pub(crate) fn write_claim(w: &mut Writer, claim: &Claim) {
    match claim {
        Claim::Mode(mode) => {
            w.u8(0).u8(mode.number());
        }
        Claim::Range(span) => write_span(w.u8(1), span),
    }
}

pub(crate) fn read_claim(r: &mut Reader<'_>) -> Result<Claim, DecodeError> {
    Ok(if r.bool("is_range")? { Claim::Range(read_span(r)?) } else { Claim::Mode(Mode::from_number(r.u8()?)?) })
}

/// Lockspace and resource.
pub(crate) fn read_names(r: &mut Reader<'_>) -> Result<(Vec<u8>, ResourceName), DecodeError> {
    Ok((r.name("lockspace name length", LOCKSPACE_BYTES_MAX)?.to_vec(), read_resource(r)?))
}

fn write_party(w: &mut Writer, party: &CycleParty) {
    w.u16(party.slot).u32(party.pid).u64(party.owner);
}

fn read_party(r: &mut Reader<'_>) -> Result<CycleParty, DecodeError> {
    Ok(CycleParty { slot: r.u16()?, pid: r.u32()?, owner: r.u64()? })
}

pub(crate) fn write_cycle(w: &mut Writer, cycle: &Cycle) {
    w.u32(cycle.left_out).u8(u8::try_from(cycle.steps.len()).unwrap_or(u8::MAX));
    for step in &cycle.steps {
        write_party(w, &step.waiter);
        write_claim(w, &step.wanted);
        write_party(w.name(&step.lockspace).name(step.resource.as_bytes()), &step.blocker);
        write_claim(w, &step.claim);
        w.u8(step.is_held.into());
    }
}

pub(crate) fn read_cycle(r: &mut Reader<'_>) -> Result<Cycle, DecodeError> {
    let left_out = r.u32()?;
    let count = checked_count("step count", r.u8()?.into(), 0..=CYCLE_STEPS_MAX)?;
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let (waiter, wanted, (lockspace, resource)) = (read_party(r)?, read_claim(r)?, read_names(r)?);
        let (blocker, claim) = (read_party(r)?, read_claim(r)?);
        steps.push(CycleStep { waiter, wanted, lockspace, resource, blocker, claim, is_held: r.bool("is_held")? });
    }
    Ok(Cycle { steps, left_out })
}
