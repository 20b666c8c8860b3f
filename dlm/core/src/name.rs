//! What: the names of resources and lockspaces as keys, and the hash that gives each resource its home.
//! Owns: the lockspace number and the rendezvous weight; both must come out the same on every node.
//! Invariants: a key is at most 64 bytes of any content; weights depend on slots only, so a restart moves no share.
//! Does not: know who is a member.
//! Called by: `wire`, `service`.

use crate::client::RESOURCE_BYTES_MAX;
use deadbolt_disk_format::types::SlotIndex;

/// A resource: its lockspace and its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) lockspace: u32,
    length: u8,
    bytes: [u8; RESOURCE_BYTES_MAX],
}

impl Key {
    /// `None` when the name is empty or too long.
    pub(crate) fn new(lockspace: u32, name: &[u8]) -> Option<Self> {
        let mut bytes = [0; RESOURCE_BYTES_MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        if name.is_empty() { None } else { Some(Self { lockspace, length: u8::try_from(name.len()).ok()?, bytes }) }
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// Weight of a slot for this resource: the highest is its home.
    pub(crate) fn weight(&self, slot: SlotIndex) -> u64 {
        let head = self.lockspace.to_le_bytes().into_iter().chain(slot.0.to_le_bytes());
        // FNV-1a, then the finaliser of splitmix64: FNV alone leaves the high bits of short names alike.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in head.chain(self.name().iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:08x}/{}", self.lockspace, self.name().escape_ascii())
    }
}

/// Number of a lockspace: CRC-32 of `dlm:ls:` + name + a zero byte (compatibility: the Linux DLM's numbers).
pub(crate) fn lockspace_number(name: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in b"dlm:ls:".iter().chain(name).chain(&[0]) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockspace_numbers_are_crc32() {
        // Check value computed with another implementation (zlib's crc32).
        assert_eq!(lockspace_number(b"default"), 0x5378_88af);
    }

    #[test]
    fn shares_are_even() {
        let mut counts = [0u32; 4];
        for number in 0..4000u32 {
            let key = Key::new(7, std::format!("resource-{number}").as_bytes()).unwrap();
            let home = (0..4u16).max_by_key(|slot| key.weight(SlotIndex(*slot))).unwrap();
            counts[usize::from(home)] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn names_have_limits() {
        assert!(Key::new(1, b"").is_none());
        assert!(Key::new(1, &[7; 65]).is_none());
        assert_eq!(Key::new(1, &[7; 64]).unwrap().name(), &[7; 64]);
    }
}
