//! What: the records of the search for deadlocks, and their bytes.
//! Owns: kinds 50 to 55.
//! Invariants: as `wire`.
//! Does not: search.
//! Called by: `wire`.

use super::{read_life, write_life};
use crate::bytes::{DecodeError, Reader, Writer};
use crate::cycle::{Cycle, read_claim, read_cycle, read_names, write_claim, write_cycle};
use crate::waits::{Blocker, Transaction, Wait, WaitId};
use alloc::vec::Vec;

/// A record of the search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum WaitRecord {
    /// Master to the searcher: somebody has waited long here.
    LongWait,
    /// Searcher to every member.
    AskWaits { round: u64 },
    /// Back. A wait with many blockers comes in several.
    FoundWait { round: u64, wait: Wait },
    /// Back: that was all.
    WaitsEnd { round: u64 },
    /// Searcher to master: this wait fails, if it is still the same.
    MustFail { id: WaitId, cycle: Cycle },
    /// Master to holder: why the operation is about to fail.
    Deadlocked { lock: u32, op: u64, is_range: bool, cycle: Cycle },
}

fn write_id(w: &mut Writer, id: &WaitId) {
    write_life(w, &id.life);
    w.u32(id.lock).u64(id.op).u8(id.is_range.into());
}

fn read_id(r: &mut Reader<'_>) -> Result<WaitId, DecodeError> {
    Ok(WaitId { life: read_life(r)?, lock: r.u32()?, op: r.u64()?, is_range: r.bool("is_range")? })
}

fn write_transaction(w: &mut Writer, who: &Transaction) {
    w.u8(who.life.is_some().into());
    if let Some(life) = &who.life {
        write_life(w, life);
    }
    w.u64(who.number).u64(who.part);
}

fn read_transaction(r: &mut Reader<'_>) -> Result<Transaction, DecodeError> {
    let life = if r.bool("has_life")? { Some(read_life(r)?) } else { None };
    Ok(Transaction { life, number: r.u64()?, part: r.u64()? })
}

fn write_wait(w: &mut Writer, wait: &Wait) {
    write_id(w, &wait.id);
    write_transaction(w, &wait.who);
    write_claim(w.u32(wait.pid), &wait.claim);
    w.name(&wait.lockspace)
        .name(wait.resource.as_bytes())
        .u64(wait.waited_ms)
        .u8(wait.may_fail.into())
        .u32(u32::try_from(wait.blockers.len()).unwrap_or(u32::MAX));
    for blocker in &wait.blockers {
        write_transaction(w, &blocker.who);
        write_life(w, &blocker.life);
        write_claim(w.u32(blocker.lock).u32(blocker.pid), &blocker.claim);
        w.u8(blocker.is_held.into()).u64(blocker.mark);
    }
}

fn read_wait(r: &mut Reader<'_>) -> Result<Wait, DecodeError> {
    let (id, who, pid, claim, (lockspace, resource)) = (read_id(r)?, read_transaction(r)?, r.u32()?, read_claim(r)?, read_names(r)?);
    let (waited_ms, may_fail, count) = (r.u64()?, r.bool("may_fail")?, r.u32()?);
    let mut blockers = Vec::new();
    for _ in 0..count {
        let (who, life, lock, pid) = (read_transaction(r)?, read_life(r)?, r.u32()?, r.u32()?);
        blockers.push(Blocker { who, life, lock, pid, claim: read_claim(r)?, is_held: r.bool("is_held")?, mark: r.u64()? });
    }
    Ok(Wait { id, who, pid, claim, lockspace, resource, waited_ms, may_fail, blockers })
}

impl WaitRecord {
    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            Self::LongWait => {
                w.u8(50);
            }
            Self::AskWaits { round } => {
                w.u8(51).u64(*round);
            }
            Self::FoundWait { round, wait } => write_wait(w.u8(52).u64(*round), wait),
            Self::WaitsEnd { round } => {
                w.u8(53).u64(*round);
            }
            Self::MustFail { id, cycle } => {
                write_id(w.u8(54), id);
                write_cycle(w, cycle);
            }
            Self::Deadlocked { lock, op, is_range, cycle } => {
                write_cycle(w.u8(55).u32(*lock).u64(*op).u8((*is_range).into()), cycle);
            }
        }
    }

    pub(super) fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            50 => Self::LongWait,
            51 => Self::AskWaits { round: r.u64()? },
            52 => Self::FoundWait { round: r.u64()?, wait: read_wait(r)? },
            53 => Self::WaitsEnd { round: r.u64()? },
            54 => Self::MustFail { id: read_id(r)?, cycle: read_cycle(r)? },
            55 => Self::Deadlocked { lock: r.u32()?, op: r.u64()?, is_range: r.bool("is_range")?, cycle: read_cycle(r)? },
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }
}

#[cfg(test)]
pub(super) fn samples(life: deadbolt_disk_format::types::Life) -> Vec<WaitRecord> {
    use crate::client::ResourceName;
    use crate::cycle::{Claim, CycleParty, CycleStep};
    use crate::ranges::{RangeMode, Span};
    let id = WaitId { life, lock: 1, op: 2, is_range: true };
    let who = Transaction { life: Some(life), number: 3, part: 4 };
    let claim = Claim::Range(Span { start: 5, end: 6, kind: RangeMode::Read });
    let resource = ResourceName::new(b"names").unwrap();
    let blocker = Blocker { who, life, lock: 7, pid: 8, claim, is_held: true, mark: 9 };
    let wait = Wait {
        id,
        who,
        pid: 1,
        claim,
        lockspace: b"space".to_vec(),
        resource,
        waited_ms: 2,
        may_fail: true,
        blockers: alloc::vec![blocker],
    };
    let party = CycleParty { slot: 1, pid: 2, owner: 3 };
    let (waiter, wanted, lockspace, blocker) = (party, claim, b"space".to_vec(), party);
    let step = CycleStep { waiter, wanted, lockspace, resource, blocker, claim, is_held: true };
    let cycle = || Cycle { steps: alloc::vec![step.clone()], left_out: 4 };
    alloc::vec![
        WaitRecord::LongWait,
        WaitRecord::AskWaits { round: 1 },
        WaitRecord::FoundWait { round: 1, wait },
        WaitRecord::WaitsEnd { round: 1 },
        WaitRecord::MustFail { id, cycle: cycle() },
        WaitRecord::Deadlocked { lock: 1, op: 2, is_range: true, cycle: cycle() },
    ]
}
