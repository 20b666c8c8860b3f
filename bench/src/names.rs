//! What: resource names as a cluster file system makes them, the same in every run.
//! Owns: the form of the names.
//! Invariants: different numbers below 2^40 give different names.
//! Does not: allocate.
//! Called by: floors and measurements.

/// Length of a name.
pub(crate) const NAME_BYTES: usize = 24;

/// A name.
pub(crate) type Name = [u8; NAME_BYTES];

/// Names are spread over this many block numbers: 4 PiB in blocks of 4 KiB.
const BLOCKS: u64 = 1 << 40;
/// Type of an inode's lock.
const INODE: u64 = 2;

fn write_hex(number: u64, places: &mut [u8]) {
    let mut rest = number;
    for place in places.iter_mut().rev() {
        *place = b' ';
        if rest != 0 {
            *place = *b"0123456789abcdef".get(usize::try_from(rest & 15).unwrap_or(0)).unwrap_or(&b'0');
        }
        rest >>= 4;
    }
}

/// The `number`-th name: type right-aligned in 8 places, block number in 16, both in hex, blank filled.
pub(crate) fn name(number: u64) -> Name {
    let mut name = [0; NAME_BYTES];
    let (kind, block) = name.split_at_mut(8);
    write_hex(INODE, kind);
    // An odd factor: a permutation of the block numbers, and neighbours lie far apart.
    write_hex(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS + BLOCKS, block);
    name
}

/// The names of these numbers, one after the other.
pub(crate) fn names(first: u64, count: u64) -> Vec<Name> {
    (first..first + count).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_form_and_differ() {
        assert_eq!(&name(0), b"       2     10000000000");
        assert_eq!(&name(1), b"       2     1b97f4a7c15");
        let different: std::collections::BTreeSet<Name> = names(0, 10_000).into_iter().collect();
        assert_eq!(different.len(), 10_000);
    }
}
