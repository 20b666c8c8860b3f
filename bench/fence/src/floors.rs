//! What: the floors of a fence: what this machine takes for a message's bare work.
//! Owns: the names by which rows refer to them.
//! Invariants: by the same path, and on the same kind of device, as the programs.
//! Does not: use sbd, but for its start.
//! Called by: the program, and rows that stand beside a floor.

use crate::lab::{Bench, Lab, SECTOR_BYTES, Whose, median};
use anyhow::Result;
use deadbolt_bench::sheet::{Case, Row};
use deadbolt_disk::{Access, AlignedBuf, ByteOffset, Device};
use std::time::Instant;

pub(crate) const SECTOR: &str = "floor: a sector written and read back";
pub(crate) const LIST: &str = "floor: `sbd list`, ours";
const LIST_STOCK: &str = "floor: `sbd list`, stock";

/// Times in a round.
const SECTORS: u32 = 64;
const LISTS: u32 = 8;

pub(crate) fn cases(bench: &Bench) -> [Case; 3] {
    let list = |whose, name| Case::new(vec![Row::new(name, "ms")], bench.guard(whose, move |lab| Ok(vec![list(lab, whose)?])));
    let sector = Case::new(vec![Row::new(SECTOR, "ms")], bench.guard(Whose::Ours, |lab| Ok(vec![sector(lab)?])));
    [sector, list(Whose::Ours, LIST), list(Whose::Stock, LIST_STOCK)]
}

/// Milliseconds of the median of so many pieces of work.
fn time(count: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let once = |_| {
        let begin = Instant::now();
        work()?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    };
    median((0..count).map(once).collect::<Result<_>>()?)
}

fn sector(lab: &Lab) -> Result<f64> {
    let disk = lab.disk(Whose::Ours, &[])?;
    let device = Device::open(disk.path(), Access::ReadWrite)?;
    let mut buffer = AlignedBuf::zeroed(usize::try_from(SECTOR_BYTES)?);
    let offset = ByteOffset(u64::from(SECTOR_BYTES) * 2);
    time(SECTORS, || {
        device.write_at(offset, &buffer)?;
        Ok(device.read_at(offset, &mut buffer)?)
    })
}

fn list(lab: &Lab, whose: Whose) -> Result<f64> {
    let disk = lab.disk(whose, &["victim"])?;
    time(LISTS, || lab.sbd(whose, disk.path(), "list"))
}
