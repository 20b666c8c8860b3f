//! What: memory that direct I/O accepts.
//! Owns: its allocation.
//! Invariants: starts at a multiple of 4096, length a multiple of 512, every byte initialised; never moves while it lives.
//! Does not: know sectors of a device; the device checks length and offset.
//! Called by: devices, engine and tools.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Alignment of every buffer: the largest logical sector there is, and the page size.
const ALIGN_BYTES: usize = 4096;
/// The smallest sector: lengths are multiples of it.
const LENGTH_STEP: usize = 512;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN_BYTES]);

const _: () = assert!(size_of::<Page>() == ALIGN_BYTES && align_of::<Page>() == ALIGN_BYTES);

/// A buffer for direct I/O: aligned to 4096 bytes, its length a multiple of 512.
#[derive(Clone)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    bytes: usize,
}

impl AlignedBuf {
    /// A buffer of zeroes; `bytes` is rounded up to a multiple of 512.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(LENGTH_STEP);
        let pages = vec![Page([0; ALIGN_BYTES]); bytes.div_ceil(ALIGN_BYTES)];
        Self { pages, bytes }
    }

    /// The buffer with another length, zeroes where it has to grow: what was read before stays in the rest of it.
    #[must_use]
    pub(crate) fn resized(self, bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(LENGTH_STEP);
        if bytes <= self.pages.len() * ALIGN_BYTES { Self { bytes, ..self } } else { Self::zeroed(bytes) }
    }

    /// A copy of `data`, padded with zeroes to a multiple of 512.
    #[must_use]
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buffer = Self::zeroed(data.len());
        buffer[..data.len()].copy_from_slice(data);
        buffer
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are one contiguous, initialised allocation of at least `bytes` bytes without padding
        // (size equals alignment, proved above), borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.bytes) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; the exclusive borrow of self makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.bytes) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::AlignedBuf;

    #[test]
    fn is_aligned_and_padded() {
        for (asked, given) in [(0, 0), (1, 512), (512, 512), (513, 1024), (4096, 4096), (9000, 9216)] {
            let buffer = AlignedBuf::zeroed(asked);
            assert_eq!(buffer.len(), given);
            assert_eq!(buffer.as_ptr().addr() % 4096, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
        for (asked, given) in [(512, 512), (4096, 4096), (9000, 9216), (100, 512)] {
            let buffer = AlignedBuf::copy_of(&[9; 1000]).resized(asked);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % 4096), (given, 0));
            assert_eq!(buffer[0], if asked > 4096 { 0 } else { 9 });
        }
        let copy = AlignedBuf::copy_of(&[7; 600]);
        assert_eq!((copy.len(), copy[599], copy[600]), (1024, 7, 0));
    }
}
