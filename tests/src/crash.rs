//! What: the images that a power cut may leave of an operation of several writes.
//! Owns: a device that keeps every write in order; which parts of a write may have landed.
//! Invariants: a write that was complete before the next one began is durable; a write on its way may have landed in any of its
//!   sectors, in any order, but a sector lands whole or not at all.
//! Does not: judge images.
//! Called by: the tests of everything that writes more than once.

use deadbolt_disk::{AlignedBuf, Geometry, IoError, MemoryDevice, RawDevice};
use deadbolt_disk_format::ByteOffset;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The smallest sector there is: what tears no further.
const SECTOR_BYTES: usize = 512;
/// How many tears of each kind are made of one write; a longer one is torn in its first, its last and some places between.
const TEARS_MAX: usize = 24;

/// A write, complete before the next one began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Where.
    pub offset: ByteOffset,
    /// What.
    pub data: Vec<u8>,
}

/// A device in memory that keeps what is written to it.
#[derive(Debug)]
pub struct Recorder {
    device: MemoryDevice,
    writes: Arc<Mutex<Vec<Write>>>,
}

impl Recorder {
    /// Over a device; other paths of it keep nothing.
    #[must_use]
    pub fn new(device: MemoryDevice) -> Self {
        Self { device, writes: Arc::default() }
    }

    /// The list to which every write is added when it is complete.
    #[must_use]
    pub fn writes(&self) -> Arc<Mutex<Vec<Write>>> {
        Arc::clone(&self.writes)
    }
}

impl RawDevice for Recorder {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }
    fn is_writable(&self) -> bool {
        true
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
        self.device.read_at(offset, buffer)
    }
    fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError> {
        self.device.write_at(offset, buffer)?;
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).push(Write { offset, data: buffer.to_vec() });
        Ok(())
    }
}

/// When the power went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// So many writes were complete.
    pub complete: usize,
    /// Sectors of the next one that had landed; empty: none had.
    pub landed: Vec<usize>,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} writes", self.complete)?;
        match self.landed.as_slice() {
            [] => Ok(()),
            [only] => write!(f, " and sector {only} of the next"),
            [first, .., last] => write!(f, " and {} sectors of the next, {first} to {last}", self.landed.len()),
        }
    }
}

/// Which sectors of a write of `data` over `old` may have landed, without those that change nothing: from the front, from the
/// back, one alone.
#[must_use]
pub fn tears(old: &[u8], data: &[u8]) -> Vec<Vec<usize>> {
    let sectors = old.chunks(SECTOR_BYTES).zip(data.chunks(SECTOR_BYTES)).enumerate();
    let changed: Vec<usize> = sectors.filter(|(_, (old, new))| old != new).map(|(sector, _)| sector).collect();
    let mut tears: Vec<Vec<usize>> = Vec::new();
    for cut in sample(changed.len()) {
        tears.push(changed[..cut].to_vec());
        tears.push(changed[cut..].to_vec());
        tears.push(vec![changed[cut]]);
    }
    tears.retain(|landed| !landed.is_empty() && landed.len() < changed.len());
    tears.sort();
    tears.dedup();
    tears
}

/// Some of the numbers below `count`: all of them if they are few.
fn sample(count: usize) -> Vec<usize> {
    let ends = TEARS_MAX / 3;
    let step = (count / ends).max(1);
    (0..count).filter(|number| count <= TEARS_MAX || *number < ends || *number + ends >= count || number.is_multiple_of(step)).collect()
}

/// Puts the sectors that landed, or everything, into an image.
pub fn land(image: &mut [u8], write: &Write, landed: Option<&[usize]>) {
    let start = usize::try_from(write.offset.0).unwrap_or(usize::MAX);
    for (sector, piece) in write.data.chunks(SECTOR_BYTES).enumerate() {
        let at = start + sector * SECTOR_BYTES;
        if landed.is_none_or(|landed| landed.contains(&sector)) {
            image[at..at + piece.len()].copy_from_slice(piece);
        }
    }
}

/// Every image that a power cut may leave of these writes over `before`, the last one being whole: each is handed to `judge`.
/// Returns how many they were.
pub fn each_image(before: &[u8], writes: &[Write], mut judge: impl FnMut(&[u8], &Moment)) -> usize {
    let mut image = before.to_vec();
    let mut count = 0;
    for (complete, write) in writes.iter().enumerate() {
        judge(&image, &Moment { complete, landed: Vec::new() });
        let start = usize::try_from(write.offset.0).unwrap_or(usize::MAX);
        let old = image[start..start + write.data.len()].to_vec();
        let tears = tears(&old, &write.data);
        count += 1 + tears.len();
        for landed in tears {
            land(&mut image, write, Some(&landed));
            judge(&image, &Moment { complete, landed });
            image[start..start + old.len()].copy_from_slice(&old);
        }
        land(&mut image, write, None);
    }
    judge(&image, &Moment { complete: writes.len(), landed: Vec::new() });
    count + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_three_sectors_has_five_tears_and_one_that_changes_one_sector_none() {
        let write = |data: Vec<u8>| Write { offset: ByteOffset(512), data };
        let mut seen = Vec::new();
        let before = vec![0; 4096];
        let writes = [write(vec![1; 1536]), write([vec![1; 1024], vec![2; 512]].concat())];
        let count = each_image(&before, &writes, |image, moment| {
            let sectors: Vec<u8> = image.chunks(512).map(|sector| sector[511]).collect();
            assert!(image.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "a sector was torn");
            seen.push((moment.complete, sectors[1..4].to_vec()));
        });
        let wanted: [(usize, [u8; 3]); 8] = [
            (0, [0, 0, 0]),
            (0, [1, 0, 0]),
            (0, [1, 1, 0]),
            (0, [0, 1, 0]),
            (0, [0, 1, 1]),
            (0, [0, 0, 1]),
            (1, [1, 1, 1]),
            (2, [1, 1, 2]),
        ];
        assert_eq!(count, seen.len());
        assert_eq!(seen, wanted.map(|(complete, sectors)| (complete, sectors.to_vec())));
    }

    #[test]
    fn long_writes_are_torn_at_both_ends_and_between() {
        let tears = tears(&vec![0; 1 << 20], &vec![1; 1 << 20]);
        assert!(tears.len() < 80, "{}", tears.len());
        for landed in [vec![0], vec![2047], (0..2047).collect(), (1..2048).collect::<Vec<_>>()] {
            assert!(tears.contains(&landed), "{:?}", &landed[..1]);
        }
    }

    #[test]
    fn a_recorder_keeps_what_was_written_in_order() {
        let recorder = Recorder::new(MemoryDevice::new(4096, 512));
        let writes = recorder.writes();
        for (offset, byte) in [(512, 1), (0, 2)] {
            recorder.write_at(ByteOffset(offset), &AlignedBuf::copy_of(&[byte; 512])).unwrap();
        }
        assert!(recorder.write_at(ByteOffset(4096), &AlignedBuf::zeroed(512)).is_err(), "beyond the end");
        let kept: Vec<(u64, u8)> = writes.lock().unwrap().iter().map(|write| (write.offset.0, write.data[0])).collect();
        assert_eq!(kept, [(512, 1), (0, 2)]);
    }
}
