//! What: a small mutator with a seed: bits, bytes, pieces of other inputs.
//! Owns: its random numbers.
//! Invariants: the same seed gives the same inputs on every machine.
//! Does not: look at coverage; the fuzzers do.
//! Called by: the mutation test.

/// Longest input that it makes.
const BYTES_MAX: usize = 6000;
/// Values at which lengths and counts go wrong.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, b'"', b'{'];

/// Makes inputs out of inputs.
#[derive(Clone, Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// Any seed but 0, which it would never leave.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// xorshift64: enough for choosing.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap_or(0)
    }

    /// One of the inputs, changed in a few places.
    pub fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs.get(self.below(inputs.len())).cloned().unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, inputs);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(bytes.len());
        let kind = self.below(8);
        match (kind, bytes.get_mut(at)) {
            (0 | 1, Some(byte)) => *byte ^= 1 << self.below(8),
            (2, Some(byte)) => *byte = EDGES[self.below(EDGES.len())],
            (3, Some(byte)) => *byte = byte.wrapping_add(1),
            (4, Some(_)) => drop(bytes.drain(at..(at + 1 + self.below(8)).min(bytes.len()))),
            (5, Some(_)) => bytes.truncate(at),
            (6, _) => {
                let other = inputs.get(self.below(inputs.len())).map(Vec::as_slice).unwrap_or_default();
                let from = self.below(other.len());
                let piece = other[from..(from + 1 + self.below(40)).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.insert(at, EDGES[self.below(EDGES.len())]),
        }
    }
}
