//! What: the beat unit: sbd's own part, and the daemon's part that it carries.
//! Owns: their fields; the 320 bytes of the daemon's part are the same on disk and in shared memory.
//! Invariants: the whole beat lies in the first 512 bytes of its unit; an all-zero daemon's part is "nothing written yet".
//! Does not: judge freshness; that is the observer's.
//! Called by: sbd (encode), every observer (decode), the daemon (its part).

use crate::head::{Field, Head, Place, RecordError, RecordType, Unit, check_reserved, fields, open_short, put, seal_short};
use crate::head::{bytes_of, u8_of, u16_of, u32_of, u64_of};
use crate::types::{
    Acknowledgement, Beat, DAEMON_PART_BYTES, DaemonPart, EARLIER_LEFT, Incarnation, LeftLives, Life, NodeState, Rule, SLOTS_MAX,
    SlotIndex, SlotSet, ViewNumber, Vouch, WatchdogKind,
};
use alloc::vec::Vec;

/// The most vouches that one node's beat carries.
pub const VOUCHES_MAX: usize = 16;
/// Bytes of one vouch.
pub const VOUCH_BYTES: usize = 8;

fields! {
    /// Payload of a beat unit: sbd's own part, then the daemon's.
    pub mod beat_fields from 88 to 508 {
        LEASE_MS: 88, 4;
        RESET_MS: 92, 4;
        RULE: 96, 1;
        WATCHDOG: 97, 1;
        FLAGS: 98, 1;
        ACKNOWLEDGED_COMMAND: 99, 1;
        ACKNOWLEDGED_RESET_MS: 100, 4;
        WALL_MS: 104, 8;
        BOOTTIME_MS: 112, 8;
        OUTLIVE_MS: 120, 4;
        RESERVED_A: 124, 4;
        DAEMON: 128, 320;
        RESERVED_B: 448, 60;
    }
}
fields! {
    /// The daemon's part of a beat; offsets from its own start.
    pub mod daemon_fields from 0 to 320 {
        NUMBER: 0, 8;
        INCARNATION: 8, 16;
        STATE: 24, 1;
        HOLDS: 25, 1;
        SCORE: 26, 1;
        VOUCH_COUNT: 27, 1;
        PROTECTED: 28, 4;
        VIEW: 32, 8;
        HEARS: 40, 32;
        CONSENT_VIEW: 72, 8;
        CONSENT_INSTANT_MS: 80, 8;
        VOUCHES: 88, 128;
        LEFT_INCARNATION: 216, 16;
        LEFT_VIEW: 232, 8;
        EARLIER_LEFT: 240, 64;
        PREFERENCE: 304, 1;
        RESERVED_B: 305, 15;
    }
}
fields! {
    /// One vouch; offsets from its own start.
    pub mod vouch_fields from 0 to 8 {
        SLOT: 0, 2;
        RESERVED: 2, 2;
        SERIAL: 4, 4;
    }
}
const _: () = assert!(beat_fields::DAEMON.size == DAEMON_PART_BYTES);
const _: () = assert!(daemon_fields::VOUCHES.size == VOUCHES_MAX * VOUCH_BYTES);
// Words in shared memory are copied as u64; the part keeps its alignment in a unit.
const _: () = assert!(beat_fields::DAEMON.offset.is_multiple_of(8));

const FLAG_STOPPED: u8 = 1;
const FLAG_IDLE: u8 = 2;
const FLAG_ACKNOWLEDGED: u8 = 4;

fn earlier_left_field(index: usize) -> Field {
    let size = daemon_fields::EARLIER_LEFT.size / EARLIER_LEFT;
    Field { offset: daemon_fields::EARLIER_LEFT.offset + index * size, size, ..daemon_fields::EARLIER_LEFT }
}

fn vouch_field(index: usize) -> Field {
    Field { name: "VOUCH", offset: daemon_fields::VOUCHES.offset + index * VOUCH_BYTES, size: VOUCH_BYTES }
}

impl DaemonPart {
    /// Its 320 bytes.
    ///
    /// # Panics
    /// With more than [`VOUCHES_MAX`] vouches: to drop one silently would end a life that counts on it.
    #[must_use]
    pub fn encode(&self) -> [u8; DAEMON_PART_BYTES] {
        use daemon_fields as at;
        assert!(self.vouches.len() <= VOUCHES_MAX, "more vouches than a beat carries");
        let mut part = [0; DAEMON_PART_BYTES];
        let state = match self.state {
            NodeState::None => 0,
            NodeState::Joining => 1,
            NodeState::Member => 2,
            NodeState::Left => 3,
            NodeState::Condemned => 4,
        };
        put(&mut part, at::NUMBER, &self.number.to_le_bytes());
        put(&mut part, at::INCARNATION, &self.incarnation.0);
        put(&mut part, at::STATE, &[state]);
        put(&mut part, at::HOLDS, &[u8::from(self.holds)]);
        put(&mut part, at::SCORE, &[self.score]);
        put(&mut part, at::PREFERENCE, &[self.preference]);
        put(&mut part, at::VOUCH_COUNT, &[u8::try_from(self.vouches.len()).unwrap_or(u8::MAX)]);
        put(&mut part, at::PROTECTED, &self.protected.to_le_bytes());
        put(&mut part, at::VIEW, &self.view.0.to_le_bytes());
        for (word, bytes) in self.hears.0.iter().enumerate() {
            let field = Field { offset: at::HEARS.offset + word * 8, size: 8, ..at::HEARS };
            put(&mut part, field, &bytes.to_le_bytes());
        }
        put(&mut part, at::CONSENT_VIEW, &self.consent_view.0.to_le_bytes());
        put(&mut part, at::CONSENT_INSTANT_MS, &self.consent_instant_ms.to_le_bytes());
        put(&mut part, at::LEFT_INCARNATION, &self.left.newest.0);
        put(&mut part, at::LEFT_VIEW, &self.left.view.0.to_le_bytes());
        for (index, incarnation) in self.left.earlier.iter().enumerate() {
            put(&mut part, earlier_left_field(index), &incarnation.0);
        }
        for (index, vouch) in self.vouches.iter().enumerate() {
            let field = vouch_field(index);
            put(&mut part, field, &vouch.slot.0.to_le_bytes());
            put(&mut part, Field { offset: field.offset + vouch_fields::SERIAL.offset, size: 4, ..field }, &vouch.serial.to_le_bytes());
        }
        part
    }

    /// Judges 320 bytes, from a beat or from shared memory.
    ///
    /// # Errors
    /// Too short, a reserved byte set, or a value that is never written.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        use daemon_fields as at;
        let Some(part) = bytes.get(..DAEMON_PART_BYTES) else {
            return Err(RecordError::TooShort { found: bytes.len(), needed: DAEMON_PART_BYTES });
        };
        check_reserved(part, at::FIELDS)?;
        let state = match u8_of(part, at::STATE) {
            0 => NodeState::None,
            1 => NodeState::Joining,
            2 => NodeState::Member,
            3 => NodeState::Left,
            4 => NodeState::Condemned,
            value => return Err(RecordError::BadField { field: "STATE", value: u64::from(value) }),
        };
        let holds = match u8_of(part, at::HOLDS) {
            0 => false,
            1 => true,
            value => return Err(RecordError::BadField { field: "HOLDS", value: u64::from(value) }),
        };
        let score = u8_of(part, at::SCORE);
        if score > 100 {
            return Err(RecordError::BadField { field: "SCORE", value: u64::from(score) });
        }
        let mut hears = SlotSet::default();
        for (index, word) in hears.0.iter_mut().enumerate() {
            *word = u64_of(part, Field { offset: at::HEARS.offset + index * 8, size: 8, ..at::HEARS });
        }
        Ok(Self {
            number: u64_of(part, at::NUMBER),
            incarnation: Incarnation(bytes_of(part, at::INCARNATION)),
            state,
            holds,
            score,
            preference: u8_of(part, at::PREFERENCE),
            protected: u32_of(part, at::PROTECTED),
            view: ViewNumber(u64_of(part, at::VIEW)),
            hears,
            consent_view: ViewNumber(u64_of(part, at::CONSENT_VIEW)),
            consent_instant_ms: u64_of(part, at::CONSENT_INSTANT_MS),
            vouches: decode_vouches(part)?,
            left: LeftLives {
                newest: Incarnation(bytes_of(part, at::LEFT_INCARNATION)),
                view: ViewNumber(u64_of(part, at::LEFT_VIEW)),
                earlier: core::array::from_fn(|index| Incarnation(bytes_of(part, earlier_left_field(index)))),
            },
        })
    }
}

fn decode_vouches(part: &[u8]) -> Result<Vec<Vouch>, RecordError> {
    use daemon_fields as at;
    let count = usize::from(u8_of(part, at::VOUCH_COUNT));
    if count > VOUCHES_MAX {
        return Err(RecordError::BadField { field: "VOUCH_COUNT", value: count as u64 });
    }
    let mut vouches = Vec::with_capacity(count);
    for index in 0..VOUCHES_MAX {
        let field = vouch_field(index);
        let bytes: [u8; VOUCH_BYTES] = bytes_of(part, field);
        if index >= count {
            if bytes != [0; VOUCH_BYTES] {
                return Err(RecordError::ReservedNotZero { offset: field.offset });
            }
            continue;
        }
        check_reserved(&bytes, vouch_fields::FIELDS)?;
        let slot = u16_of(&bytes, vouch_fields::SLOT);
        if slot >= SLOTS_MAX {
            return Err(RecordError::BadField { field: "VOUCH_SLOT", value: u64::from(slot) });
        }
        vouches.push(Vouch { slot: SlotIndex(slot), serial: u32_of(&bytes, vouch_fields::SERIAL) });
    }
    Ok(vouches)
}

impl Beat {
    /// The life whose daemon's part it carries.
    #[must_use]
    pub fn life(&self) -> Life {
        Life { slot: self.slot, boot: self.boot, incarnation: self.daemon.incarnation }
    }

    /// The bytes of a beat unit.
    ///
    /// # Panics
    /// When the beat's slot is not the place's, or with too many vouches.
    #[must_use]
    pub fn encode(&self, place: &Place) -> Unit {
        self.encode_with_part(place, &self.daemon.encode())
    }
    /// The same around a daemon's part that is already bytes (copied from shared memory); `self.daemon` is not looked at.
    ///
    /// # Panics
    /// When the beat's slot is not the place's.
    #[must_use]
    pub fn encode_with_part(&self, place: &Place, part: &[u8; DAEMON_PART_BYTES]) -> Unit {
        use beat_fields as at;
        assert_eq!(self.slot, place.slot, "a beat belongs into its own slot");
        let head = Head {
            record: RecordType::Beat,
            body_bytes: 0,
            body_checksum: 0,
            place: *place,
            boot: self.boot,
            incarnation: self.writer,
            sequence: self.beat,
        };
        let mut flags = 0;
        for (is_set, flag) in [(self.is_stopped, FLAG_STOPPED), (self.is_idle, FLAG_IDLE), (self.acknowledged.is_some(), FLAG_ACKNOWLEDGED)]
        {
            if is_set {
                flags |= flag;
            }
        }
        let rule = match self.rule {
            Rule::Disk => 0,
            Rule::Cluster => 1,
        };
        let watchdog = match self.watchdog {
            WatchdogKind::Device => 0,
            WatchdogKind::Process => 1,
            WatchdogKind::None => 2,
        };
        seal_short(&head, |unit| {
            put(unit, at::LEASE_MS, &self.lease_ms.to_le_bytes());
            put(unit, at::RESET_MS, &self.reset_ms.to_le_bytes());
            put(unit, at::RULE, &[rule]);
            put(unit, at::WATCHDOG, &[watchdog]);
            put(unit, at::FLAGS, &[flags]);
            if let Some(answer) = self.acknowledged {
                put(unit, at::ACKNOWLEDGED_COMMAND, &[answer.command]);
                put(unit, at::ACKNOWLEDGED_RESET_MS, &answer.reset_ms.to_le_bytes());
            }
            put(unit, at::WALL_MS, &self.wall_ms.to_le_bytes());
            put(unit, at::BOOTTIME_MS, &self.boottime_ms.to_le_bytes());
            put(unit, at::OUTLIVE_MS, &self.outlive_ms.to_le_bytes());
            put(unit, at::DAEMON, part);
        })
    }
    /// Judges a beat unit.
    ///
    /// # Errors
    /// Whatever makes it no news. Never a reason to think that a node is dead.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use beat_fields as at;
        let head = open_short(bytes, place, RecordType::Beat, at::FIELDS)?;
        let rule = match u8_of(bytes, at::RULE) {
            0 => Rule::Disk,
            1 => Rule::Cluster,
            value => return Err(RecordError::BadField { field: "RULE", value: u64::from(value) }),
        };
        let watchdog = match u8_of(bytes, at::WATCHDOG) {
            0 => WatchdogKind::Device,
            1 => WatchdogKind::Process,
            2 => WatchdogKind::None,
            value => return Err(RecordError::BadField { field: "WATCHDOG", value: u64::from(value) }),
        };
        let flags = u8_of(bytes, at::FLAGS);
        if flags & !(FLAG_STOPPED | FLAG_IDLE | FLAG_ACKNOWLEDGED) != 0 {
            return Err(RecordError::BadField { field: "FLAGS", value: u64::from(flags) });
        }
        let answer =
            Acknowledgement { reset_ms: u32_of(bytes, at::ACKNOWLEDGED_RESET_MS), command: u8_of(bytes, at::ACKNOWLEDGED_COMMAND) };
        let acknowledged = (flags & FLAG_ACKNOWLEDGED != 0).then_some(answer);
        if acknowledged.is_none() && answer != (Acknowledgement { reset_ms: 0, command: 0 }) {
            return Err(RecordError::BadField { field: "ACKNOWLEDGED_COMMAND", value: u64::from(answer.command) });
        }
        Ok(Self {
            slot: head.place.slot,
            boot: head.boot,
            writer: head.incarnation,
            beat: head.sequence,
            lease_ms: u32_of(bytes, at::LEASE_MS),
            reset_ms: u32_of(bytes, at::RESET_MS),
            rule,
            watchdog,
            is_stopped: flags & FLAG_STOPPED != 0,
            is_idle: flags & FLAG_IDLE != 0,
            acknowledged,
            wall_ms: u64_of(bytes, at::WALL_MS),
            boottime_ms: u64_of(bytes, at::BOOTTIME_MS),
            outlive_ms: u32_of(bytes, at::OUTLIVE_MS),
            daemon: DaemonPart::decode(bytes.get(at::DAEMON.offset..).unwrap_or_default())?,
        })
    }
}
