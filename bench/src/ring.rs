//! What: the plainest ring in shared memory: one writer, one reader, records of one cache line.
//! Owns: the order of the two counters' stores.
//! Invariants: a record is read once, after all of it was written; a full ring takes nothing.
//! Does not: sleep, wake, or check what is in it. It is a floor, not the ring of the lock clients.
//! Called by: the floors.

use crate::pair::Shareable;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records that fit.
const RECORDS: usize = 1024;
/// Words of a record: one cache line.
const WORDS: usize = 8;

/// One record.
pub(crate) type Record = [u64; WORDS];

/// A counter in a cache line of its own, and away from the line that the processor fetches along with it.
#[repr(C, align(128))]
struct Counter(AtomicU64);

/// The ring as it lies in memory.
#[repr(C)]
pub(crate) struct Ring {
    written: Counter,
    read: Counter,
    records: [[AtomicU64; WORDS]; RECORDS],
}

// SAFETY: atomic numbers alone.
unsafe impl Shareable for Ring {}

/// One ring in each direction.
#[repr(C)]
pub(crate) struct RingPair {
    pub(crate) there: Ring,
    pub(crate) back: Ring,
}

// SAFETY: as above.
unsafe impl Shareable for RingPair {}

fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0) % RECORDS
}

/// The side that writes.
pub(crate) struct Writer<'a> {
    ring: &'a Ring,
    written: u64,
    /// What the reader had read when it was last looked at.
    read: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(ring: &'a Ring) -> Self {
        Self { ring, written: 0, read: 0 }
    }

    /// False: the ring is full.
    pub(crate) fn write(&mut self, record: &Record) -> bool {
        if self.written - self.read == RECORDS as u64 {
            self.read = self.ring.read.0.load(Ordering::Acquire);
            if self.written - self.read == RECORDS as u64 {
                return false;
            }
        }
        let Some(words) = self.ring.records.get(place(self.written)) else { return false };
        for (word, value) in words.iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
        self.written += 1;
        self.ring.written.0.store(self.written, Ordering::Release);
        true
    }
}

/// The side that reads.
pub(crate) struct Reader<'a> {
    ring: &'a Ring,
    read: u64,
    /// What had been written when it was last looked at.
    written: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(ring: &'a Ring) -> Self {
        Self { ring, read: 0, written: 0 }
    }

    /// The next record, if there is one.
    pub(crate) fn read(&mut self) -> Option<Record> {
        if self.read == self.written {
            self.written = self.ring.written.0.load(Ordering::Acquire);
            if self.read == self.written {
                return None;
            }
        }
        let words = self.ring.records.get(place(self.read))?;
        let record = std::array::from_fn(|index| words.get(index).map_or(0, |word| word.load(Ordering::Relaxed)));
        self.read += 1;
        self.ring.read.0.store(self.read, Ordering::Release);
        Some(record)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::pair::Shared;

    #[test]
    fn a_full_ring_takes_nothing_and_an_empty_one_gives_nothing() {
        let shared = Shared::<Ring>::new().unwrap();
        let (mut writer, mut reader) = (Writer::new(&shared), Reader::new(&shared));
        assert_eq!(reader.read(), None);
        for round in 0..3 {
            for number in 0..RECORDS as u64 {
                assert!(writer.write(&[number + round; WORDS]));
            }
            assert!(!writer.write(&[0; WORDS]));
            for number in 0..RECORDS as u64 {
                assert_eq!(reader.read(), Some([number + round; WORDS]));
            }
            assert_eq!(reader.read(), None);
        }
    }
}
