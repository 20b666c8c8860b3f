//! What: keys of persistent reservations, and what a SCSI device answers about them (PERSISTENT RESERVE IN).
//! Owns: the form of a node's key; the decoders of the answers; the numbers of the types.
//! Invariants: a key names one boot of one node and is never zero; a decoder takes arbitrary bytes and never panics.
//! Does not: talk to a device, or decide whether a node is gone.
//! Called by: the shell of reservations, the machine of an ejection.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest as _, Sha256};

use crate::types::{BootId, ClusterUuid};

/// First byte of every key of ours.
const MARK: u64 = 0xdb;
const MARK_SHIFT: u32 = 56;
const OWNER_SHIFT: u32 = 24;
const BOOT_MASK: u64 = (1 << OWNER_SHIFT) - 1;

/// A key as a device keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReservationKey(pub u64);

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The part of a key that names its node: the same in all of its boots, and whatever is restarted, replaced or renumbered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeyOwner(u32);

impl KeyOwner {
    /// Of a node's name, which is the same in capitals.
    #[must_use]
    pub fn new(cluster: ClusterUuid, node: &str) -> Self {
        let name: String = node.to_ascii_lowercase();
        let digest = Sha256::new().chain_update(b"deadbolt key of").chain_update(cluster.0).chain_update(name.as_bytes()).finalize();
        Self(u32::from_be_bytes(core::array::from_fn(|index| digest[index])))
    }

    /// The node's key in one of its boots.
    #[must_use]
    pub fn key(self, boot: BootId) -> ReservationKey {
        let digest = Sha256::digest(boot.0);
        let boot = u64::from_be_bytes(core::array::from_fn(|index| digest[index])) & BOOT_MASK;
        ReservationKey(MARK << MARK_SHIFT | u64::from(self.0) << OWNER_SHIFT | boot)
    }

    /// Is this a key of the node, of whatever boot?
    #[must_use]
    pub fn owns(self, key: ReservationKey) -> bool {
        key.0 >> OWNER_SHIFT == MARK << (MARK_SHIFT - OWNER_SHIFT) | u64::from(self.0)
    }
}

/// What a reservation keeps from whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservationType {
    /// Only its holder writes.
    WriteExclusive,
    /// Only its holder reads and writes.
    ExclusiveAccess,
    /// Only registered nodes write: the type of fencing.
    WriteExclusiveRegistrantsOnly,
    /// Only registered nodes read and write.
    ExclusiveAccessRegistrantsOnly,
    /// Only registered nodes write, and all of them hold it.
    WriteExclusiveAllRegistrants,
    /// Only registered nodes read and write, and all of them hold it.
    ExclusiveAccessAllRegistrants,
}

/// Type, number in SCSI, number in Linux and NVMe, name.
const TYPES: [(ReservationType, u8, u32, &str); 6] = [
    (ReservationType::WriteExclusive, 1, 1, "write exclusive"),
    (ReservationType::ExclusiveAccess, 3, 2, "exclusive access"),
    (ReservationType::WriteExclusiveRegistrantsOnly, 5, 3, "write exclusive, registrants only"),
    (ReservationType::ExclusiveAccessRegistrantsOnly, 6, 4, "exclusive access, registrants only"),
    (ReservationType::WriteExclusiveAllRegistrants, 7, 5, "write exclusive, all registrants"),
    (ReservationType::ExclusiveAccessAllRegistrants, 8, 6, "exclusive access, all registrants"),
];

impl ReservationType {
    /// By the number that Linux gives it.
    #[must_use]
    pub fn of_linux(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == number).map(|row| row.0)
    }

    fn of_scsi(number: u8) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// The number that Linux gives it.
    #[must_use]
    pub fn linux(self) -> u32 {
        TYPES.iter().find(|row| row.0 == self).map_or(0, |row| row.2)
    }
}

impl fmt::Display for ReservationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TYPES.iter().find(|row| row.0 == *self).map_or("", |row| row.3))
    }
}

/// The reservation of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Whose it is; zero where all registered nodes hold it.
    pub holder: ReservationKey,
    /// What it keeps from whom.
    pub kind: ReservationType,
}

/// Keys of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeysSeen {
    /// One for each path that is registered; the same key may come more than once.
    pub keys: Vec<ReservationKey>,
    /// How many there are; more than were seen where the answer had no room.
    pub count: usize,
}

/// What a device can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Registrations can outlive the loss of its power.
    pub keeps_over_power_loss: bool,
    /// Is the type of fencing known? None: it does not say.
    pub knows_type: Option<bool>,
}

/// Why an answer is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// Fewer bytes than its form has.
    #[error("the device's answer about reservations has {found} bytes, at least {needed} were needed; it is broken, look at the target")]
    Short {
        /// Bytes that came.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A length that its form cannot have.
    #[error(
        "the device's answer about reservations names a length of {found} bytes, which it cannot have; it is broken, look at the target"
    )]
    Length {
        /// Length named.
        found: u32,
    },
    /// A type that is not defined.
    #[error("the device names a reservation of type {found}, which is not defined; it is broken, look at the target")]
    Type {
        /// Number found.
        found: u8,
    },
}

const HEAD_BYTES: usize = 8;
const KEY_BYTES: usize = 8;
/// Bytes behind the head of an answer that names a reservation.
const RESERVATION_BYTES: u32 = 16;
const TYPE_AT: usize = 21;

fn piece<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], AnswerError> {
    let needed = at + N;
    let found = bytes.len();
    bytes.get(at..needed).and_then(|piece| piece.try_into().ok()).ok_or(AnswerError::Short { found, needed })
}

/// The answer to READ KEYS.
///
/// # Errors
/// [`AnswerError`].
pub fn decode_keys(bytes: &[u8]) -> Result<KeysSeen, AnswerError> {
    let length = u32::from_be_bytes(piece(bytes, 4)?);
    let length_bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if !length_bytes.is_multiple_of(KEY_BYTES) {
        return Err(AnswerError::Length { found: length });
    }
    let list = bytes.get(HEAD_BYTES..).unwrap_or_default();
    let list = list.get(..length_bytes).unwrap_or(list);
    let keys = list.chunks_exact(KEY_BYTES).filter_map(|key| key.try_into().ok()).map(|key| ReservationKey(u64::from_be_bytes(key)));
    Ok(KeysSeen { keys: keys.collect(), count: length_bytes / KEY_BYTES })
}

/// The answer to READ RESERVATION; none: there is none.
///
/// # Errors
/// [`AnswerError`].
pub fn decode_reservation(bytes: &[u8]) -> Result<Option<Reservation>, AnswerError> {
    match u32::from_be_bytes(piece(bytes, 4)?) {
        0 => Ok(None),
        RESERVATION_BYTES => {
            let [scope_and_type] = piece(bytes, TYPE_AT)?;
            let number = scope_and_type & 0x0f;
            let kind = ReservationType::of_scsi(number).ok_or(AnswerError::Type { found: number })?;
            Ok(Some(Reservation { holder: ReservationKey(u64::from_be_bytes(piece(bytes, HEAD_BYTES)?)), kind }))
        }
        found => Err(AnswerError::Length { found }),
    }
}

/// The answer to REPORT CAPABILITIES.
///
/// # Errors
/// [`AnswerError`].
pub fn decode_capabilities(bytes: &[u8]) -> Result<Capabilities, AnswerError> {
    let [length_high, length_low, can, says, types]: [u8; 5] = piece(bytes, 0)?;
    let length = u16::from_be_bytes([length_high, length_low]);
    if length < 8 {
        return Err(AnswerError::Length { found: u32::from(length) });
    }
    let knows_type = (says & 0x80 != 0).then_some(types & 0x20 != 0);
    Ok(Capabilities { keeps_over_power_loss: can & 0x01 != 0, knows_type })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const CLUSTER: ClusterUuid = ClusterUuid([1; 16]);

    #[test]
    fn a_key_names_a_node_and_its_boot() {
        let owner = KeyOwner::new(CLUSTER, "alpha");
        let (one, two) = (owner.key(BootId([1; 16])), owner.key(BootId([2; 16])));
        assert_ne!(one, two);
        assert_eq!((one.0 >> 56, two.0 >> 24), (0xdb, one.0 >> 24));
        assert!(owner.owns(one) && owner.owns(two));
        assert_eq!(KeyOwner::new(CLUSTER, "ALPHA"), owner);
        for other in [KeyOwner::new(CLUSTER, "beta"), KeyOwner::new(ClusterUuid([2; 16]), "alpha")] {
            assert!(!other.owns(one) && !owner.owns(other.key(BootId([1; 16]))));
        }
        for foreign in [0, 1, one.0 ^ 1 << 56, one.0 ^ 1 << 24] {
            assert!(!owner.owns(ReservationKey(foreign)), "{foreign:#x}");
        }
        // Kept on devices while versions change: the bytes must not.
        assert_eq!(one, ReservationKey(GOLDEN), "{one}");
    }

    const GOLDEN: u64 = 0xdb7d_3fca_1490_7c4d;

    #[test]
    fn keys_are_read_as_far_as_they_came() {
        let mut bytes = vec![0, 0, 0, 9, 0, 0, 0, 16];
        bytes.extend_from_slice(&0x11_u64.to_be_bytes());
        bytes.extend_from_slice(&0x22_u64.to_be_bytes());
        bytes.extend_from_slice(&[0xff; 40]);
        let keys = |bytes: &[u8]| decode_keys(bytes).map(|seen| (seen.keys.iter().map(|key| key.0).collect::<Vec<_>>(), seen.count));
        assert_eq!(keys(&bytes), Ok((vec![0x11, 0x22], 2)));
        assert_eq!(keys(&bytes[..20]), Ok((vec![0x11], 2)));
        assert_eq!(keys(&bytes[..8]), Ok((vec![], 2)));
        assert_eq!(keys(&bytes[..7]), Err(AnswerError::Short { found: 7, needed: 8 }));
        assert_eq!(keys(&[0; 8]), Ok((vec![], 0)));
        assert_eq!(keys(&[0, 0, 0, 0, 0, 0, 0, 7, 1]), Err(AnswerError::Length { found: 7 }));
        assert_eq!(keys(&[0xff; 16]), Err(AnswerError::Length { found: u32::MAX }));
    }

    #[test]
    fn a_reservation_has_a_holder_and_a_type() {
        let mut bytes = [0; 24];
        assert_eq!(decode_reservation(&bytes[..8]), Ok(None));
        bytes[7] = 16;
        bytes[15] = 0x11;
        for (number, kind) in [
            (0x05, Some(ReservationType::WriteExclusiveRegistrantsOnly)),
            (0x01, Some(ReservationType::WriteExclusive)),
            (0x04, None),
            (0x00, None),
        ] {
            bytes[21] = number;
            match (decode_reservation(&bytes), kind) {
                (Ok(Some(found)), Some(kind)) => assert_eq!(found, Reservation { holder: ReservationKey(0x11), kind }),
                (Err(error), None) => assert_eq!(error, AnswerError::Type { found: number }),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(decode_reservation(&bytes[..21]), Err(AnswerError::Short { found: 21, needed: 22 }));
        bytes[7] = 24;
        assert_eq!(decode_reservation(&bytes), Err(AnswerError::Length { found: 24 }));
        assert!(decode_reservation(&[]).is_err());
    }

    #[test]
    fn types_have_their_numbers() {
        for (kind, scsi, linux, _) in TYPES {
            assert_eq!((ReservationType::of_scsi(scsi), ReservationType::of_linux(linux), kind.linux()), (Some(kind), Some(kind), linux));
        }
        assert_eq!((ReservationType::of_scsi(2), ReservationType::of_linux(0), ReservationType::of_linux(7)), (None, None, None));
    }

    #[test]
    fn capabilities_are_believed_only_where_they_are_said() {
        let seen = |bytes: &[u8]| decode_capabilities(bytes).map(|can| (can.keeps_over_power_loss, can.knows_type));
        assert_eq!(seen(&[0, 8, 0x01, 0x80, 0x20, 0, 0, 0]), Ok((true, Some(true))));
        assert_eq!(seen(&[0, 8, 0x1e, 0x80, 0xdf, 1, 0, 0]), Ok((false, Some(false))));
        assert_eq!(seen(&[0, 8, 0, 0x7f, 0xff, 1, 0, 0]), Ok((false, None)));
        assert_eq!(seen(&[0, 7, 0, 0x80, 0, 0, 0, 0]), Err(AnswerError::Length { found: 7 }));
        assert_eq!(seen(&[0, 8, 0, 0x80]), Err(AnswerError::Short { found: 4, needed: 5 }));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_taken(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), length in 0_u32..40) {
            let mut named = bytes.clone();
            if let Some(place) = named.get_mut(4..8) {
                place.copy_from_slice(&length.to_be_bytes());
            }
            for bytes in [&bytes, &named] {
                if let Ok(seen) = decode_keys(bytes) {
                    assert!(seen.keys.len() <= seen.count && seen.keys.len() * KEY_BYTES <= bytes.len());
                }
                let _ = (decode_reservation(bytes), decode_capabilities(bytes));
            }
        }
    }
}
