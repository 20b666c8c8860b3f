//! What: the times in the newest decided view, as far as they can be read without a part in the register.
//! Owns: the comparison with the superblock's, by which this life will be lived.
//! Invariants: reads only; a body counts only under the digest that a views record names.
//! Does not: propose, vote or follow a change while running.
//! Called by: `run`, before anything is written.

use std::path::PathBuf;

use deadbolt_disk::{AlignedBuf, Device, IoError};
use deadbolt_disk_format::view::timings_words;
use deadbolt_disk_format::{
    ByteOffset, Digest, Place, SlotIndex, Superblock, Timings, UNIT_BYTES, ViewBody, ViewNumber, ViewRecord, decode_body_place,
};

use crate::run::RunError;

/// In the order of [`timings_words`].
const NAMES: &str = "stall poll feed watchdog lateness earliness cycle reset lease expiry storage_delay freeze detect drift";

/// The newest view that some record on these devices names, and its times if a body of it can be read.
pub(crate) fn newest_timings(devices: &[(PathBuf, Device, Superblock)]) -> Result<Option<(ViewNumber, Option<Timings>)>, RunError> {
    let mut newest: Option<(ViewNumber, Option<Timings>)> = None;
    for (path, device, superblock) in devices {
        let io = |source| RunError::Io { path: path.clone(), source };
        for record in records(device, superblock).map_err(io)? {
            let (known, timings) = newest.unwrap_or_default();
            if record.view > known || (record.view == known && timings.is_none() && known > ViewNumber(0)) {
                newest = Some((record.view, body(device, superblock, &record).map_err(io)?.map(|body| body.configuration.timings)));
            }
        }
    }
    Ok(newest)
}

fn read(device: &Device, offset: ByteOffset, bytes: u64) -> Result<AlignedBuf, IoError> {
    let mut buffer = AlignedBuf::zeroed(usize::try_from(bytes).unwrap_or(0));
    device.read_at(offset, &mut buffer).map(|()| buffer)
}

fn records(device: &Device, superblock: &Superblock) -> Result<Vec<ViewRecord>, IoError> {
    let layout = &superblock.layout;
    let table = read(device, layout.records, layout.records_bytes())?;
    let places = (0..layout.slots).flat_map(|slot| [(SlotIndex(slot), 0), (SlotIndex(slot), 1)]);
    let decode = |((slot, index), unit): ((SlotIndex, u8), &[u8])| {
        ViewRecord::decode(unit, &Place { cluster: superblock.cluster, offset: layout.record(slot, index), slot }).ok()
    };
    Ok(places.zip(table.chunks_exact(UNIT_BYTES)).filter_map(decode).collect())
}

fn body(device: &Device, superblock: &Superblock, record: &ViewRecord) -> Result<Option<ViewBody>, IoError> {
    let (layout, slot) = (&superblock.layout, record.life.slot);
    if !layout.has_slot(slot) || record.place >= layout.places || record.digest == Digest::NONE {
        return Ok(None);
    }
    let offset = layout.body(slot, record.place);
    let bytes = read(device, offset, u64::from(layout.place_bytes))?;
    let value = decode_body_place(&bytes, &Place { cluster: superblock.cluster, offset, slot }).ok().map(|(_, _, value)| value);
    Ok(value
        .and_then(|value| ViewBody::decode_value(&value).ok())
        .filter(|body| body.digest() == record.digest && body.view == record.view))
}

/// The times that differ, for people.
pub(crate) fn say_differences(superblock: &Timings, view: &Timings) -> Option<String> {
    let differs = |(name, (ours, theirs)): (&str, (u32, u32))| (ours != theirs).then(|| format!("{name} {ours}, in the view {theirs}"));
    let pairs = timings_words(superblock).into_iter().zip(timings_words(view));
    let found: Vec<String> = NAMES.split(' ').zip(pairs).filter_map(differs).collect();
    (!found.is_empty()).then(|| found.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_name() {
        let changed = Timings { stall_ms: 1, freeze_ms: 2, drift_ppm: 3, ..Timings::default() };
        let said = say_differences(&Timings::default(), &changed).unwrap();
        assert_eq!(said, "stall 0, in the view 1; freeze 0, in the view 2; drift 0, in the view 3");
        assert_eq!((say_differences(&changed, &changed), NAMES.split(' ').count()), (None, timings_words(&changed).len()));
    }
}
