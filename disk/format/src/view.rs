//! What: the body of a view: its canonical bytes, its digest, and the place that carries it.
//! Owns: the order of the fields in a value; the head of a body place.
//! Invariants: one value has one encoding (lists are sorted, no slack), so equal digests mean equal views.
//! Does not: judge whether a view may be proposed; see qdisk core and cluster core.
//! Called by: qdisk core, cluster core, fsck, `deadbolt why`.

use crate::head::{Cursor, EncodeError, HEAD_BYTES, Head, Place, RecordError, RecordType};
use crate::head::{check_place, check_reserved, check_zero, decode_head, fields, push, seal_head};
use crate::register::life_of;
use crate::types::{
    BootId, Configuration, Digest, Evidence, Incarnation, Life, NAME_BYTES_MAX, NodeEntry, Owed, Released, SLOTS_MAX, SlotIndex, Timings,
    ViewBody, ViewNumber, ViewReason,
};
use alloc::{string::String, vec, vec::Vec};
use core::cmp::Ordering;
use sha2::Digest as _;

/// Version of the canonical value; its own, because digests outlive the records around it.
pub const VALUE_VERSION: u16 = 1;
/// The most addresses of a node.
pub const ADDRESSES_MAX: usize = 4;
/// Longest address: an IPv6 address with scope and port, in brackets, rounded up.
pub const ADDRESS_BYTES_MAX: usize = 64;
/// Bytes of a life inside a value: slot, boot, incarnation.
pub const LIFE_BYTES: usize = 34;
/// The sequence in front of a value: it ties the body to its head.
pub const BODY_PREFIX_BYTES: usize = 8;

fields! {
    /// Payload of a body place's head: nothing but zero.
    pub mod body_fields from 88 to 508 {
        RESERVED: 88, 420;
    }
}
fields! {
    /// The fixed start of a value; the lists follow in the order of their counts.
    pub mod value_fields from 0 to 170 {
        VALUE_VERSION: 0, 2;
        REASON: 2, 1;
        HAS_PROPOSER: 3, 1;
        VIEW: 4, 8;
        PREDECESSOR: 12, 32;
        PROPOSER: 44, 34;
        CONFIGURATION_VERSION: 78, 8;
        DISK_VOTES: 86, 2;
        DISK_VOTES_PINNED: 88, 1;
        RESERVED: 89, 1;
        FORMAT_LEVEL: 90, 2;
        TIMINGS: 92, 56;
        RESERVED_LISTS: 148, 14;
        MEMBER_COUNT: 162, 2;
        OWED_COUNT: 164, 2;
        RELEASED_COUNT: 166, 2;
        NODE_COUNT: 168, 2;
    }
}

/// All times in the order of their bytes, 14 words: the superblock carries them in the same order.
#[must_use]
pub fn timings_words(timings: &Timings) -> [u32; 14] {
    [
        timings.stall_ms,
        timings.poll_ms,
        timings.feed_ms,
        timings.watchdog_ms,
        timings.lateness_ms,
        timings.earliness_ms,
        timings.cycle_ms,
        timings.reset_ms,
        timings.lease_ms,
        timings.expiry_ms,
        timings.storage_delay_ms,
        timings.freeze_ms,
        timings.detect_ms,
        timings.drift_ppm,
    ]
}
/// The opposite of [`timings_words`].
#[must_use]
pub fn timings_of_words(words: &[u32; 14]) -> Timings {
    let [
        stall_ms,
        poll_ms,
        feed_ms,
        watchdog_ms,
        lateness_ms,
        earliness_ms,
        cycle_ms,
        reset_ms,
        lease_ms,
        expiry_ms,
        storage_delay_ms,
        freeze_ms,
        detect_ms,
        drift_ppm,
    ] = *words;
    Timings {
        stall_ms,
        poll_ms,
        feed_ms,
        watchdog_ms,
        lateness_ms,
        earliness_ms,
        cycle_ms,
        reset_ms,
        lease_ms,
        expiry_ms,
        storage_delay_ms,
        freeze_ms,
        detect_ms,
        drift_ppm,
    }
}

fn reason_number(reason: ViewReason) -> u8 {
    match reason {
        ViewReason::Initial => 0,
        ViewReason::Join => 1,
        ViewReason::Leave => 2,
        ViewReason::Remove => 3,
        ViewReason::Release => 4,
        ViewReason::Configure => 5,
        ViewReason::Restart => 6,
    }
}
fn reason_of(number: u8) -> Result<ViewReason, RecordError> {
    Ok(match number {
        0 => ViewReason::Initial,
        1 => ViewReason::Join,
        2 => ViewReason::Leave,
        3 => ViewReason::Remove,
        4 => ViewReason::Release,
        5 => ViewReason::Configure,
        6 => ViewReason::Restart,
        value => return Err(RecordError::BadField { field: "REASON", value: u64::from(value) }),
    })
}
fn evidence_number(evidence: Evidence) -> u8 {
    match evidence {
        Evidence::Left => 1,
        Evidence::IdleRestart => 2,
        Evidence::Ejected => 3,
        Evidence::Rebooted => 4,
        Evidence::Acknowledged => 5,
        Evidence::Expired => 6,
        Evidence::Agent => 7,
        Evidence::Operator => 8,
    }
}
fn evidence_of(number: u8) -> Result<Evidence, RecordError> {
    Ok(match number {
        1 => Evidence::Left,
        2 => Evidence::IdleRestart,
        3 => Evidence::Ejected,
        4 => Evidence::Rebooted,
        5 => Evidence::Acknowledged,
        6 => Evidence::Expired,
        7 => Evidence::Agent,
        8 => Evidence::Operator,
        value => return Err(RecordError::BadField { field: "EVIDENCE", value: u64::from(value) }),
    })
}

fn push_life(value: &mut Vec<u8>, life: &Life) {
    push(value, &life.slot.0.to_le_bytes());
    push(value, &life.boot.0);
    push(value, &life.incarnation.0);
}
fn push_count(value: &mut Vec<u8>, count: usize) {
    push(value, &u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
}
fn push_string(value: &mut Vec<u8>, text: &str, most: usize) {
    let bytes = text.as_bytes().get(..most.min(text.len())).unwrap_or_default();
    push(value, &[u8::try_from(bytes.len()).unwrap_or(u8::MAX)]);
    push(value, bytes);
}
fn sorted<T: Copy, K: Ord>(list: &[T], key: impl FnMut(&T) -> K) -> Vec<T> {
    let mut list = list.to_vec();
    list.sort_by_key(key);
    list
}
fn released_key(released: &Released) -> (Life, u8, u32, u16) {
    (released.life, evidence_number(released.evidence), released.waited_ms, released.witness.0)
}

impl ViewBody {
    /// Is this life of a node in the view, as a member or as one that is owed?
    #[must_use]
    pub fn names(&self, slot: SlotIndex, incarnation: Incarnation) -> bool {
        let mut lives = self.members.iter().chain(self.owed.iter().map(|owed| &owed.life));
        lives.any(|life| (life.slot, life.incarnation) == (slot, incarnation))
    }

    /// The canonical bytes: lists sorted, no head, no padding. See [`ViewBody::check`] for what a reader would refuse.
    #[must_use]
    pub fn encode_value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(256);
        push(&mut value, &VALUE_VERSION.to_le_bytes());
        push(&mut value, &[reason_number(self.reason), u8::from(self.proposer.is_some())]);
        push(&mut value, &self.view.0.to_le_bytes());
        push(&mut value, &self.predecessor.0);
        match &self.proposer {
            Some(life) => push_life(&mut value, life),
            None => push(&mut value, &[0; LIFE_BYTES]),
        }
        let configuration = &self.configuration;
        push(&mut value, &configuration.version.to_le_bytes());
        push(&mut value, &configuration.disk_votes.to_le_bytes());
        push(&mut value, &[u8::from(configuration.disk_votes_pinned), 0]);
        push(&mut value, &configuration.format_level.to_le_bytes());
        for word in timings_words(&configuration.timings) {
            push(&mut value, &word.to_le_bytes());
        }
        push(&mut value, &[0; value_fields::RESERVED_LISTS.size]);
        push_count(&mut value, self.members.len());
        push_count(&mut value, self.owed.len());
        push_count(&mut value, self.released.len());
        push_count(&mut value, configuration.nodes.len());
        for member in sorted(&self.members, |life| *life) {
            push_life(&mut value, &member);
        }
        for owed in sorted(&self.owed, |owed| (owed.life, owed.removed_in)) {
            push_life(&mut value, &owed.life);
            push(&mut value, &owed.removed_in.0.to_le_bytes());
        }
        for released in sorted(&self.released, released_key) {
            push_life(&mut value, &released.life);
            push(&mut value, &[evidence_number(released.evidence)]);
            push(&mut value, &released.waited_ms.to_le_bytes());
            push(&mut value, &released.witness.0.to_le_bytes());
        }
        let mut nodes: Vec<&NodeEntry> = configuration.nodes.iter().collect();
        nodes.sort_by_key(|node| node.slot);
        for node in nodes {
            push(&mut value, &node.slot.0.to_le_bytes());
            push(&mut value, &node.votes.to_le_bytes());
            push_string(&mut value, &node.name, NAME_BYTES_MAX);
            let addresses = node.addresses.get(..ADDRESSES_MAX.min(node.addresses.len())).unwrap_or_default();
            push(&mut value, &[u8::try_from(addresses.len()).unwrap_or(u8::MAX)]);
            for address in addresses {
                push_string(&mut value, address, ADDRESS_BYTES_MAX);
            }
        }
        value
    }

    /// Judges canonical bytes. Whoever got them from a place compares the digest with the one that the ballot or record names.
    ///
    /// # Errors
    /// Whatever no encoder writes: a second encoding of a view would have a second digest.
    pub fn decode_value(bytes: &[u8]) -> Result<Self, RecordError> {
        use value_fields as at;
        let mut cursor = Cursor::new(bytes);
        let version = cursor.u16()?;
        if version != VALUE_VERSION {
            return Err(RecordError::UnknownVersion { found: version, known: VALUE_VERSION });
        }
        let reason = reason_of(cursor.u8()?)?;
        let has_proposer = flag_of(cursor.u8()?, "HAS_PROPOSER")?;
        let view = ViewNumber(cursor.u64()?);
        let predecessor = Digest(cursor.array()?);
        let proposer_bytes = cursor.take(LIFE_BYTES)?;
        let proposer = if has_proposer {
            Some(take_life(&mut Cursor::new(proposer_bytes))?)
        } else {
            check_zero(bytes, at::PROPOSER.offset, at::PROPOSER.offset + at::PROPOSER.size)?;
            None
        };
        let configuration_version = cursor.u64()?;
        let disk_votes = cursor.u16()?;
        let disk_votes_pinned = flag_of(cursor.u8()?, "DISK_VOTES_PINNED")?;
        cursor.take(at::RESERVED.size)?;
        let format_level = cursor.u16()?;
        let mut words = [0; 14];
        for word in &mut words {
            *word = cursor.u32()?;
        }
        cursor.take(at::RESERVED_LISTS.size)?;
        check_reserved(bytes, at::FIELDS)?;
        let [members, owed, released, nodes] = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let body = Self {
            view,
            predecessor,
            proposer,
            reason,
            members: take_list(&mut cursor, members, take_life)?,
            owed: take_list(&mut cursor, owed, take_owed)?,
            released: take_list(&mut cursor, released, take_released)?,
            configuration: Configuration {
                version: configuration_version,
                disk_votes,
                disk_votes_pinned,
                format_level,
                timings: timings_of_words(&words),
                nodes: take_list(&mut cursor, nodes, take_node)?,
            },
        };
        if cursor.left() != 0 {
            return Err(RecordError::BadField { field: "VALUE_LENGTH", value: bytes.len() as u64 });
        }
        body.check()?;
        Ok(body)
    }

    /// SHA-256 of the canonical bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_of_value(&self.encode_value())
    }

    /// Would a reader accept it? Whoever makes a view asks this before the view goes anywhere.
    ///
    /// # Errors
    /// The first value that cannot be: two lives in one slot, a list out of order, a name that is empty, too long or taken.
    pub fn check(&self) -> Result<(), RecordError> {
        let bad = |field, slot: SlotIndex| Err(RecordError::BadField { field, value: u64::from(slot.0) });
        if let Some(life) = not_ascending(&self.members, |one, two| one.slot.cmp(&two.slot)) {
            return bad("MEMBERS", life.slot);
        }
        if let Some(owed) = not_ascending(&self.owed, |one, two| one.life.cmp(&two.life)) {
            return bad("OWED", owed.life.slot);
        }
        let unsorted = self.released.windows(2).find(|pair| matches!(pair, [one, two] if released_key(one) > released_key(two)));
        if let Some([_, two]) = unsorted {
            return bad("RELEASED", two.life.slot);
        }
        let nodes = &self.configuration.nodes;
        if let Some(node) = not_ascending(nodes, |one, two| one.slot.cmp(&two.slot)) {
            return bad("NODES", node.slot);
        }
        for (index, node) in nodes.iter().enumerate() {
            if !is_name(&node.name) {
                return bad("NODE_NAME", node.slot);
            }
            if nodes.iter().skip(index + 1).any(|other| other.name.eq_ignore_ascii_case(&node.name)) {
                return bad("NODE_NAME_TWICE", node.slot);
            }
            if node.addresses.len() > ADDRESSES_MAX {
                return bad("NODE_ADDRESSES", node.slot);
            }
            if node.addresses.iter().any(|address| address.is_empty() || address.len() > ADDRESS_BYTES_MAX) {
                return bad("NODE_ADDRESS", node.slot);
            }
        }
        let lives = self.members.iter().chain(self.owed.iter().map(|owed| &owed.life)).chain(self.proposer.as_ref());
        let slots = lives.map(|life| life.slot).chain(nodes.iter().map(|node| node.slot));
        match slots.into_iter().find(|slot| slot.0 >= SLOTS_MAX) {
            Some(slot) => bad("SLOT", slot),
            None => Ok(()),
        }
    }
}

/// Is this a name that a node can have: 1 to 63 bytes, no control characters, no space?
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(|letter| letter.is_control() || letter.is_whitespace())
}

/// SHA-256 of bytes that are a canonical value.
#[must_use]
pub fn digest_of_value(value: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(value).into())
}

fn not_ascending<T>(list: &[T], compare: impl Fn(&T, &T) -> Ordering) -> Option<&T> {
    list.windows(2).find_map(|pair| match pair {
        [one, two] if compare(one, two) != Ordering::Less => Some(two),
        _ => None,
    })
}
fn flag_of(byte: u8, field: &'static str) -> Result<bool, RecordError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(RecordError::BadField { field, value: u64::from(value) }),
    }
}
fn take_list<T>(
    cursor: &mut Cursor<'_>,
    count: u16,
    mut take: impl FnMut(&mut Cursor<'_>) -> Result<T, RecordError>,
) -> Result<Vec<T>, RecordError> {
    // No capacity is reserved by a count from the medium: the bytes themselves bound the list.
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(take(cursor)?);
    }
    Ok(list)
}
fn take_life(cursor: &mut Cursor<'_>) -> Result<Life, RecordError> {
    Ok(Life { slot: SlotIndex(cursor.u16()?), boot: BootId(cursor.array()?), incarnation: Incarnation(cursor.array()?) })
}
fn take_owed(cursor: &mut Cursor<'_>) -> Result<Owed, RecordError> {
    Ok(Owed { life: take_life(cursor)?, removed_in: ViewNumber(cursor.u64()?) })
}
fn take_released(cursor: &mut Cursor<'_>) -> Result<Released, RecordError> {
    Ok(Released {
        life: take_life(cursor)?,
        evidence: evidence_of(cursor.u8()?)?,
        waited_ms: cursor.u32()?,
        witness: SlotIndex(cursor.u16()?),
    })
}
fn take_string(cursor: &mut Cursor<'_>, field: &'static str) -> Result<String, RecordError> {
    let length = cursor.u8()?;
    match core::str::from_utf8(cursor.take(usize::from(length))?) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(RecordError::BadField { field, value: u64::from(length) }),
    }
}
fn take_node(cursor: &mut Cursor<'_>) -> Result<NodeEntry, RecordError> {
    let slot = SlotIndex(cursor.u16()?);
    let votes = cursor.u16()?;
    let name = take_string(cursor, "NODE_NAME")?;
    let count = u16::from(cursor.u8()?);
    let addresses = take_list(cursor, count, |cursor| take_string(cursor, "NODE_ADDRESS"))?;
    Ok(NodeEntry { slot, votes, name, addresses })
}

/// Makes a body place: head, sequence, value, zero up to the place's end.
///
/// # Errors
/// When the value does not fit.
pub fn encode_body_place(value: &[u8], place: &Place, life: &Life, sequence: u64, place_bytes: u32) -> Result<Vec<u8>, EncodeError> {
    let place_bytes = usize::try_from(place_bytes).unwrap_or(0);
    let most = place_bytes.saturating_sub(HEAD_BYTES + BODY_PREFIX_BYTES);
    let body_bytes = BODY_PREFIX_BYTES + value.len();
    let too_long = EncodeError::TooLong { what: "view body", found: value.len(), most };
    let (Ok(length), true) = (u32::try_from(body_bytes), value.len() <= most) else {
        return Err(too_long);
    };
    let mut bytes = vec![0; place_bytes];
    if let Some(area) = bytes.get_mut(HEAD_BYTES..HEAD_BYTES + body_bytes) {
        let (prefix, rest) = area.split_at_mut(BODY_PREFIX_BYTES);
        prefix.copy_from_slice(&sequence.to_le_bytes());
        rest.copy_from_slice(value);
    }
    let body_checksum = crc32fast::hash(bytes.get(HEAD_BYTES..HEAD_BYTES + body_bytes).unwrap_or_default());
    let head = Head {
        record: RecordType::ViewBody,
        body_bytes: length,
        body_checksum,
        place: *place,
        boot: life.boot,
        incarnation: life.incarnation,
        sequence,
    };
    seal_head(&head, &mut bytes, |_| ());
    Ok(bytes)
}

/// Judges a whole body place; returns who wrote it, its sequence, and the value's bytes.
///
/// # Errors
/// Whatever makes it no news: torn, misdirected, foreign, damaged.
pub fn decode_body_place(bytes: &[u8], place: &Place) -> Result<(Life, u64, Vec<u8>), RecordError> {
    let head = decode_head(bytes)?;
    check_place(&head, place, RecordType::ViewBody)?;
    check_reserved(bytes, body_fields::FIELDS)?;
    let body_bytes = usize::try_from(head.body_bytes).unwrap_or(usize::MAX);
    if body_bytes < BODY_PREFIX_BYTES {
        return Err(RecordError::BadField { field: "BODY_BYTES", value: u64::from(head.body_bytes) });
    }
    let end = HEAD_BYTES.saturating_add(body_bytes);
    let Some(body) = bytes.get(HEAD_BYTES..end) else {
        return Err(RecordError::TooShort { found: bytes.len(), needed: end });
    };
    let computed = crc32fast::hash(body);
    if computed != head.body_checksum {
        return Err(RecordError::Checksum { found: head.body_checksum, computed });
    }
    let mut cursor = Cursor::new(body);
    let sequence = cursor.u64()?;
    if sequence != head.sequence {
        return Err(RecordError::BadField { field: "BODY_SEQUENCE", value: sequence });
    }
    check_zero(bytes, end, bytes.len())?;
    let value = cursor.take(cursor.left())?.to_vec();
    Ok((life_of(&head), sequence, value))
}
