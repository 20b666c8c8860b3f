//! What: what stands on a device before it is formatted: signatures, a cluster of ours, nodes that live on it.
//! Owns: the watch for live beats.
//! Invariants: reads only; a piece that cannot be read is an error, never "nothing there".
//! Does not: decide whether it may be overwritten.
//! Called by: the format function beside it.

use super::{FormatError, Target};
use deadbolt_disk::{AlignedBuf, IoError, RawDevice};
use deadbolt_disk_format::signatures::{Signature, Window, detect_known, windows};
use deadbolt_disk_format::{
    Beat, ByteOffset, Place, RecordError, SlotIndex, Superblock, SuperblockChoice, UNIT_BYTES, choose_superblock, read_superblocks,
};
use std::time::{Duration, Instant};

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Examined {
    /// Everything that was recognised.
    pub(super) signatures: Vec<Signature>,
    /// A cluster of ours, even if only one copy of its superblock is left.
    pub(super) superblock: Option<Superblock>,
    /// Slots whose beats changed while they were watched.
    pub(super) live: Vec<SlotIndex>,
}

impl Examined {
    /// What would be lost, each thing once: several copies of one are one loss.
    pub(super) fn lost(&self) -> Vec<Signature> {
        let mut lost: Vec<Signature> = Vec::new();
        for signature in &self.signatures {
            if !lost.iter().any(|known| known.name == signature.name) {
                lost.push(signature.clone());
            }
        }
        lost
    }
    /// Units to be made zero, so that nothing of the old is recognised later: its superblocks, foreign signatures.
    pub(super) fn wipe(&self, device_bytes: u64) -> Vec<ByteOffset> {
        let unit = UNIT_BYTES as u64;
        let found = self.signatures.iter().map(|signature| signature.offset - signature.offset % unit);
        let old = self.superblock.iter().flat_map(|superblock| superblock.layout.superblocks).map(|offset| offset.0);
        let mut offsets: Vec<u64> = found.chain(old).filter(|offset| offset.saturating_add(unit) <= device_bytes).collect();
        offsets.sort_unstable();
        offsets.dedup();
        offsets.into_iter().map(ByteOffset).collect()
    }
}

/// Reads a piece; pieces that end inside the last sector are read whole sectors at a time.
pub(super) fn read(device: &dyn RawDevice, offset: ByteOffset, bytes: usize) -> Result<Vec<u8>, IoError> {
    let mut buffer = AlignedBuf::zeroed(bytes);
    device.read_at(offset, &mut buffer)?;
    Ok(buffer.get(..bytes).unwrap_or_default().to_vec())
}

/// Looks at everything that a format would destroy.
pub(super) fn examine(target: &Target) -> Result<Examined, FormatError> {
    let device_bytes = target.size_bytes();
    let sector = u64::from(target.device.geometry().logical_sector_bytes);
    let mut pieces = Vec::new();
    for (offset, bytes) in windows(device_bytes) {
        let bytes = bytes - bytes % usize::try_from(sector).unwrap_or(512);
        if bytes > 0 {
            pieces.push((offset, read(target.device.as_ref(), ByteOffset(offset), bytes).map_err(target.io(false))?));
        }
    }
    let seen: Vec<Window<'_>> = pieces.iter().map(|(offset, bytes)| Window { offset: *offset, bytes }).collect();
    let mut signatures = detect_known(&seen, device_bytes);
    let (superblock, is_unfinished) = find_superblock(target);
    if is_unfinished {
        // What an interrupted format has left of ours is nobody's; it was judged when that format began.
        signatures.retain(|signature| !matches!(signature.name, "deadbolt" | "sbd"));
    }
    let live = match &superblock {
        Some(superblock) => watch(target, superblock)?,
        None => Vec::new(),
    };
    Ok(Examined { signatures, superblock, live })
}

fn find_superblock(target: &Target) -> (Option<Superblock>, bool) {
    let copies = read_superblocks(target.size_bytes(), |offset| read(target.device.as_ref(), offset, UNIT_BYTES).ok());
    match choose_superblock(&copies) {
        SuperblockChoice::Agreed { superblock, .. } | SuperblockChoice::Alone { superblock, .. } => (Some(superblock), false),
        // Contradicting or half-overwritten copies: nodes may live by any of them.
        choice => {
            let is_unfinished = matches!(choice, SuperblockChoice::Unfinished { .. });
            (copies.into_iter().find_map(Result::ok), is_unfinished)
        }
    }
}

/// Who writes beats? Two intervals when all beats say that they stopped; as long as an observer would wait otherwise.
fn watch(target: &Target, superblock: &Superblock) -> Result<Vec<SlotIndex>, FormatError> {
    let layout = &superblock.layout;
    if layout.beats.0.saturating_add(layout.beats_bytes()) > target.size_bytes() {
        return Ok(Vec::new());
    }
    let bytes = usize::try_from(layout.beats_bytes()).unwrap_or(UNIT_BYTES);
    let look = || read(target.device.as_ref(), layout.beats, bytes).map_err(target.io(false));
    let first = look()?;
    let is_resting = (0..layout.slots).map(SlotIndex).all(|slot| is_resting(superblock, slot, &first));
    let interval = Duration::from_millis(u64::from(superblock.timings.poll_ms.clamp(10, 5000)));
    let patience = Duration::from_millis(u64::from(superblock.timings.expiry_ms.clamp(20, 120_000)));
    let start = Instant::now();
    loop {
        std::thread::sleep(interval);
        let again = look()?;
        let live = changed(&first, &again);
        let waited = start.elapsed();
        if !live.is_empty() || waited >= 2 * interval && is_resting || waited >= patience + interval {
            return Ok(live);
        }
    }
}

/// Never written, or its writer stopped cleanly. Whatever cannot be read may be a living node's.
fn is_resting(superblock: &Superblock, slot: SlotIndex, area: &[u8]) -> bool {
    let start = usize::from(slot.0) * UNIT_BYTES;
    let place = Place { cluster: superblock.cluster, offset: superblock.layout.beat(slot), slot };
    match Beat::decode(area.get(start..start + UNIT_BYTES).unwrap_or_default(), &place) {
        Ok(beat) => beat.is_stopped,
        Err(RecordError::NotARecord { is_all_zero, .. }) => is_all_zero,
        Err(_) => false,
    }
}

fn changed(first: &[u8], again: &[u8]) -> Vec<SlotIndex> {
    let pairs = first.chunks(UNIT_BYTES).zip(again.chunks(UNIT_BYTES));
    (0..).zip(pairs).filter(|(_, (before, after))| before != after).map(|(slot, _)| SlotIndex(slot)).collect()
}
