//! What: maps whose keys are numbers that we or the daemon gave.
//! Owns: how they are spread.
//! Invariants: no key is chosen by somebody who would gain from collisions.
//! Does not: keep an order.
//! Called by: `routing`, the server.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Small numbers spread well enough under one multiplication.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 over the golden ratio, odd.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

pub(crate) type Numbered<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;
