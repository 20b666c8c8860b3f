//! What: the writes of a format, each read back before the next kind.
//! Owns: the proof that several devices are several; putting back what a mark replaced when they are not.
//! Invariants: no device is committed before all of them hold everything else, read back.
//! Does not: plan; see `fresh` in disk/format.
//! Called by: the format function beside it.

use super::examine::read;
use super::{FormatError, Target};
use deadbolt_disk::AlignedBuf;
use deadbolt_disk_format::fresh::{Fresh, Step, Write};
use deadbolt_disk_format::{SuperblockChoice, UNIT_BYTES, choose_superblock, read_superblocks};

/// Everything, on all devices.
pub(super) fn write_all(targets: &[Target], plans: &[Fresh]) -> Result<(), FormatError> {
    write_marks(targets, plans)?;
    for (target, plan) in targets.iter().zip(plans) {
        for write in plan.body()? {
            put(target, &write)?;
        }
        // Read back in a second round: a write that is lost to a later one's misdirection is seen too.
        for write in plan.body()?.filter(|write| matches!(write.step, Step::Fill)) {
            check_fill(target, plan, &write)?;
        }
        for write in plan.body()?.filter(|write| matches!(write.step, Step::Copy)) {
            check(target, &write)?;
        }
        check(target, &plan.mark()?)?;
    }
    for (target, plan) in targets.iter().zip(plans) {
        put(target, &plan.commit()?)?;
    }
    for (target, plan) in targets.iter().zip(plans) {
        check_committed(target, plan)?;
    }
    Ok(())
}

/// The marks carry the devices' uuids: read again they tell whether the devices are really different ones.
fn write_marks(targets: &[Target], plans: &[Fresh]) -> Result<(), FormatError> {
    let mut before = Vec::new();
    for (target, plan) in targets.iter().zip(plans) {
        let mark = plan.mark()?;
        let old = read(target.device.as_ref(), mark.offset, UNIT_BYTES).map_err(target.io(false))?;
        before.push(Write { data: old, ..mark });
    }
    for (target, plan) in targets.iter().zip(plans) {
        put(target, &plan.mark()?)?;
    }
    for (target, plan) in targets.iter().zip(plans) {
        let mark = plan.mark()?;
        let found = read(target.device.as_ref(), mark.offset, UNIT_BYTES).map_err(target.io(true))?;
        if found == mark.data {
            continue;
        }
        let mut others = targets.iter().zip(plans).filter(|(other, _)| other.path != target.path);
        let same = others.find_map(|(other, plan)| (plan.mark().ok()?.data == found).then_some(other));
        for (target, old) in targets.iter().zip(&before) {
            put(target, old)?;
        }
        return Err(match same {
            Some(other) => FormatError::SameDevice { first: target.path.clone(), second: other.path.clone() },
            None => FormatError::NotReadBack { path: target.path.clone(), offset: mark.offset },
        });
    }
    Ok(())
}

fn put(target: &Target, write: &Write) -> Result<(), FormatError> {
    target.device.write_at(write.offset, &AlignedBuf::copy_of(&write.data)).map_err(target.io(true))
}

fn check(target: &Target, write: &Write) -> Result<(), FormatError> {
    let found = read(target.device.as_ref(), write.offset, write.data.len()).map_err(target.io(true))?;
    compare(target, write, &found)
}

/// As [`check`], for a piece that later copies of the superblock were written into.
fn check_fill(target: &Target, plan: &Fresh, write: &Write) -> Result<(), FormatError> {
    let mut found = read(target.device.as_ref(), write.offset, write.data.len()).map_err(target.io(true))?;
    for offset in plan.superblock().layout.superblocks {
        let inside = offset.0.checked_sub(write.offset.0).and_then(|inside| usize::try_from(inside).ok());
        if let Some(copy) = inside.and_then(|inside| found.get_mut(inside..inside + UNIT_BYTES)) {
            copy.fill(0);
        }
    }
    compare(target, write, &found)
}

fn compare(target: &Target, write: &Write, found: &[u8]) -> Result<(), FormatError> {
    match write.data.iter().zip(found).position(|(wanted, found)| wanted != found) {
        None => Ok(()),
        Some(index) => {
            let mut offset = write.offset;
            offset.0 += index as u64;
            Err(FormatError::NotReadBack { path: target.path.clone(), offset })
        }
    }
}

/// The last word has the reader that every start uses.
fn check_committed(target: &Target, plan: &Fresh) -> Result<(), FormatError> {
    let copies = read_superblocks(target.size_bytes(), |offset| read(target.device.as_ref(), offset, UNIT_BYTES).ok());
    match choose_superblock(&copies) {
        SuperblockChoice::Agreed { superblock, copies: [true, true, true, true], .. } if superblock == *plan.superblock() => Ok(()),
        _ => Err(FormatError::NotReadBack { path: target.path.clone(), offset: plan.commit()?.offset }),
    }
}
