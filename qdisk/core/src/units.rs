//! What: the units of a table as the last read showed them, decoded.
//! Owns: the bytes of that read, and the value of each unit.
//! Invariants: a value is kept only for a unit whose bytes are the same as at the read before, all of them; every other unit is decoded.
//! Does not: know what a unit means, or whether it is to be believed.
//! Called by: the register (votes, records), the node (beats).

use alloc::{sync::Arc, vec::Vec};
use deadbolt_disk_format::UNIT_BYTES;

/// A table, unit by unit. Decoding must be a function of a unit's number and bytes.
#[derive(Debug)]
pub struct Units<T> {
    bytes: Arc<[u8]>,
    values: Vec<T>,
}

impl<T> Default for Units<T> {
    fn default() -> Self {
        Self { bytes: Arc::default(), values: Vec::new() }
    }
}

fn unit(bytes: &[u8], index: usize) -> &[u8] {
    let from = index.saturating_mul(UNIT_BYTES).min(bytes.len());
    let to = from.saturating_add(UNIT_BYTES).min(bytes.len());
    bytes.get(from..to).unwrap_or_default()
}

impl<T> Units<T> {
    /// Takes a read of the first `count` units, of which the last may be short or missing. False: nothing has changed.
    pub fn update(&mut self, bytes: &Arc<[u8]>, count: usize, decode: impl Fn(usize, &[u8]) -> T) -> bool {
        let is_same = Arc::ptr_eq(&self.bytes, bytes) || self.bytes == *bytes;
        if is_same && self.values.len() == count {
            return false;
        }
        self.values.truncate(count);
        for index in 0..count {
            let found = unit(bytes, index);
            match self.values.get_mut(index) {
                Some(value) if unit(&self.bytes, index) != found => *value = decode(index, found),
                Some(_) => {}
                None => self.values.push(decode(index, found)),
            }
        }
        self.bytes = Arc::clone(bytes);
        true
    }

    /// What the units say.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::cell::RefCell;

    fn table(firsts: &[u8]) -> Arc<[u8]> {
        firsts.iter().flat_map(|first| vec![*first; UNIT_BYTES]).collect()
    }

    #[test]
    fn only_units_with_other_bytes_are_decoded() {
        let decoded = RefCell::new(Vec::new());
        let decode = |index, bytes: &[u8]| {
            decoded.borrow_mut().push(index);
            (bytes.first().copied(), bytes.last().copied(), bytes.len())
        };
        let full = |byte| (Some(byte), Some(byte), UNIT_BYTES);
        let mut units = Units::default();
        let first = table(&[1, 2, 3]);
        assert!(units.update(&first, 3, decode));
        assert!(!units.update(&first, 3, decode), "the same allocation");
        assert!(!units.update(&table(&[1, 2, 3]), 3, decode), "the same bytes");
        assert_eq!(decoded.take(), [0, 1, 2]);
        assert!(units.update(&table(&[1, 9, 3]), 3, decode));
        assert_eq!((decoded.take(), units.values()), (vec![1], &[full(1), full(9), full(3)][..]));
        for changed in 0..UNIT_BYTES {
            let mut bytes = table(&[1, 9, 3]).to_vec();
            bytes[2 * UNIT_BYTES + changed] ^= 0x10;
            units.update(&bytes.into(), 3, decode);
            assert_eq!(decoded.take(), [2], "byte {changed}");
            units.update(&table(&[1, 9, 3]), 3, decode);
            assert_eq!(decoded.take(), [2]);
        }
    }

    #[test]
    fn a_short_read_is_no_old_news() {
        let mut units = Units::default();
        let length = |_, bytes: &[u8]| bytes.len();
        units.update(&table(&[1, 2]), 2, length);
        let cut: Arc<[u8]> = vec![1; UNIT_BYTES + 7].into();
        assert!(units.update(&cut, 2, length));
        assert_eq!(units.values(), [UNIT_BYTES, 7]);
        assert!(units.update(&Arc::default(), 2, length));
        assert_eq!(units.values(), [0, 0]);
        assert!(units.update(&table(&[1, 2, 3]), 3, length));
        assert_eq!(units.values(), [UNIT_BYTES; 3]);
    }
}
