//! What: properties of every record: what is written is read again, nothing else is.
//! Owns: one sample of each record, shared with the golden images.
//! Invariants: any single flipped bit is noticed; arbitrary bytes never panic.
//! Does not: judge meaning across records; that is fsck's.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

mod samples;

use deadbolt_disk_format::head::{MAGIC, decode_head};
use deadbolt_disk_format::sbd::{Mailbox, SbdHeader, SbdNode};
use deadbolt_disk_format::*;
use proptest::prelude::*;
use samples::*;

/// Decodes bytes as each record in turn; the answer is who accepts them.
fn accepted_by(bytes: &[u8], place: &Place) -> Vec<RecordType> {
    let mut accepted = Vec::new();
    let mut note = |is_good: bool, record| {
        if is_good {
            accepted.push(record);
        }
    };
    note(Superblock::decode(bytes, place.offset).is_ok(), RecordType::Superblock);
    note(Beat::decode(bytes, place).is_ok(), RecordType::Beat);
    note(Ballot::decode(bytes, place).is_ok(), RecordType::Vote);
    note(ViewRecord::decode(bytes, place).is_ok(), RecordType::ViewRecord);
    note(decode_body_place(bytes, place).is_ok(), RecordType::ViewBody);
    note(Requests::decode(bytes, place).is_ok(), RecordType::Requests);
    note(JournalEntry::decode(bytes, place).is_ok(), RecordType::Journal);
    note(ToolClaim::decode(bytes, place).is_ok(), RecordType::ToolClaim);
    accepted
}

#[test]
fn every_sample_is_read_as_itself_and_as_nothing_else() {
    for sample in samples() {
        assert_eq!(accepted_by(&sample.bytes, &sample.place), [sample.record], "{:?}", sample.record);
    }
}

#[test]
fn every_single_flipped_bit_is_noticed() {
    for sample in samples() {
        let mut bytes = sample.bytes.clone();
        for index in 0..bytes.len() {
            for mask in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                bytes[index] ^= mask;
                assert_eq!(accepted_by(&bytes, &sample.place), [], "{:?} byte {index} mask {mask:#x}", sample.record);
                bytes[index] ^= mask;
            }
        }
    }
}

#[test]
fn every_tear_between_two_good_records_is_noticed_or_harmless() {
    for sample in samples() {
        let other = vec![0; sample.bytes.len()];
        for cut in (512..sample.bytes.len()).step_by(512) {
            let mut torn = sample.bytes[..cut].to_vec();
            torn.extend_from_slice(&other[cut..]);
            let is_whole = torn == sample.bytes;
            assert_eq!(accepted_by(&torn, &sample.place).is_empty(), !is_whole, "{:?} cut at {cut}", sample.record);
        }
        for cut in (0..=sample.bytes.len()).step_by(512).filter(|cut| *cut < sample.bytes.len()) {
            let mut old = vec![0xaa; sample.bytes.len()];
            old[..cut].copy_from_slice(&sample.bytes[..cut]);
            assert_eq!(accepted_by(&old, &sample.place), [], "{:?} over other bytes, cut at {cut}", sample.record);
        }
    }
}

#[test]
fn another_place_cluster_slot_or_type_is_refused() {
    for sample in samples() {
        let place = sample.place;
        let elsewhere = Place { offset: ByteOffset(place.offset.0 + 4096), ..place };
        assert_eq!(accepted_by(&sample.bytes, &elsewhere), [], "{:?}", sample.record);
        if sample.record == RecordType::Superblock {
            continue;
        }
        let foreign = Place { cluster: ClusterUuid([9; 16]), ..place };
        assert_eq!(accepted_by(&sample.bytes, &foreign), [], "{:?}", sample.record);
        let other = Place { slot: SlotIndex(place.slot.0 ^ 1), ..place };
        assert_eq!(accepted_by(&sample.bytes, &other), [], "{:?}", sample.record);
    }
}

#[test]
fn unwritten_and_foreign_bytes_have_their_own_answers() {
    let place = samples()[1].place;
    assert_eq!(Beat::decode(&[0; 4096], &place), Err(RecordError::NotARecord { found: [0; 8], is_all_zero: true }));
    let mut nearly = [0; 4096];
    nearly[4095] = 1;
    assert_eq!(Beat::decode(&nearly, &place), Err(RecordError::NotARecord { found: [0; 8], is_all_zero: false }));
    assert!(matches!(Beat::decode(&[0xff; 4096], &place), Err(RecordError::NotARecord { is_all_zero: false, .. })));
    assert_eq!(Beat::decode(&[0; 511], &place), Err(RecordError::TooShort { found: 511, needed: 4096 }));
}

#[test]
fn a_newer_version_and_a_reserved_byte_are_named() {
    let sample = samples().into_iter().find(|sample| sample.record == RecordType::Vote).unwrap();
    let mut newer = sample.bytes.clone();
    newer[10] = 2;
    reseal(&mut newer);
    assert_eq!(Ballot::decode(&newer, &sample.place), Err(RecordError::UnknownVersion { found: 2, known: 1 }));
    for offset in [42, 43, 200, 507] {
        let mut set = sample.bytes.clone();
        set[offset] = 1;
        reseal(&mut set);
        assert_eq!(Ballot::decode(&set, &sample.place), Err(RecordError::ReservedNotZero { offset }));
    }
}

#[test]
fn an_interrupted_format_is_named_where_a_superblock_is_looked_for() {
    let offset = ByteOffset(2 << 20);
    let place = Place { cluster: CLUSTER, offset, slot: SlotIndex::NONE };
    let mark = tool_claim().encode(&place).unwrap();
    assert_eq!(Superblock::decode(mark.as_slice(), offset), Err(RecordError::FormatUnfinished { cluster: CLUSTER }));
}

#[test]
fn a_body_of_one_write_never_passes_under_the_head_of_another() {
    let place = Place { cluster: CLUSTER, offset: ByteOffset(0x0030_0000), slot: SlotIndex(3) };
    let value = view_body().encode_value();
    let older = encode_body_place(&value, &place, &life(3), 7, 8192).unwrap();
    let newer = encode_body_place(&value, &place, &life(3), 8, 8192).unwrap();
    let mut torn = newer[..512].to_vec();
    torn.extend_from_slice(&older[512..]);
    assert!(decode_body_place(&torn, &place).is_err());
    // Even where every checksum fits, head and body must be of one write.
    let mut forged = newer.clone();
    forged[80] ^= 1;
    reseal(&mut forged);
    assert!(matches!(decode_body_place(&forged, &place), Err(RecordError::BadField { field: "BODY_SEQUENCE", .. })));
    assert!(encode_body_place(&[1; 8192 - 519], &place, &life(3), 7, 8192).is_err());
    let most = encode_body_place(&[1; 8192 - 520], &place, &life(3), 7, 8192).unwrap();
    assert_eq!(decode_body_place(&most, &place).unwrap().2, [1; 8192 - 520]);
}

#[test]
fn the_largest_view_fits_every_place() {
    for slots in [1u16, 2, 32, 255] {
        let layout = Layout::new(1 << 30, 512, slots).unwrap();
        let mut body = ViewBody { view: ViewNumber(u64::MAX), proposer: Some(life(0)), ..ViewBody::default() };
        for slot in 0..slots {
            let name = format!("{slot:0>63}");
            let addresses = vec!["x".repeat(64); 4];
            body.configuration.nodes.push(NodeEntry { slot: SlotIndex(slot), votes: 1, name, addresses });
            body.members.push(life(slot));
            body.owed.push(Owed { life: Life { boot: BootId([7; 16]), ..life(slot) }, removed_in: ViewNumber(1) });
            let released = Released { life: life(slot), evidence: Evidence::Expired, waited_ms: u32::MAX, witness: SlotIndex(slot) };
            body.released.push(released);
        }
        body.check().unwrap();
        let place = Place { cluster: CLUSTER, offset: layout.body(SlotIndex(0), 0), slot: SlotIndex(0) };
        let bytes = encode_body_place(&body.encode_value(), &place, &life(0), 1, layout.place_bytes).unwrap();
        let (_, _, value) = decode_body_place(&bytes, &place).unwrap();
        assert_eq!(ViewBody::decode_value(&value).unwrap(), body);
    }
}

#[test]
fn one_view_has_one_encoding_whatever_the_order_of_its_lists() {
    let body = view_body();
    let mut shuffled = body.clone();
    shuffled.members.reverse();
    shuffled.configuration.nodes.reverse();
    assert_eq!(shuffled.digest(), body.digest());
    let decoded = ViewBody::decode_value(&shuffled.encode_value()).unwrap();
    assert_eq!(decoded, body);
    let mut longer = body.encode_value();
    longer.push(0);
    assert!(matches!(ViewBody::decode_value(&longer), Err(RecordError::BadField { field: "VALUE_LENGTH", .. })));
    // A second encoding of the same view would have a second digest: refused.
    let value = body.encode_value();
    for index in 0..value.len() {
        let mut changed = value.clone();
        changed[index] ^= 1;
        if let Ok(other) = ViewBody::decode_value(&changed) {
            assert_ne!(other, body, "byte {index}");
            assert_eq!(other.encode_value(), changed, "byte {index} is not part of the view");
        }
    }
}

#[test]
fn two_lives_in_one_slot_and_two_names_alike_are_no_view() {
    let mut twice = view_body();
    twice.members.push(Life { boot: BootId([0xee; 16]), ..twice.members[0] });
    assert!(matches!(ViewBody::decode_value(&twice.encode_value()), Err(RecordError::BadField { field: "MEMBERS", .. })));
    let mut alike = view_body();
    alike.configuration.nodes[1].name = alike.configuration.nodes[0].name.to_uppercase();
    assert!(matches!(ViewBody::decode_value(&alike.encode_value()), Err(RecordError::BadField { field: "NODE_NAME_TWICE", .. })));
}

fn any_life() -> impl Strategy<Value = Life> {
    (0u16..255, any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(slot, boot, incarnation)| Life {
        slot: SlotIndex(slot),
        boot: BootId(boot),
        incarnation: Incarnation(incarnation),
    })
}

fn any_part() -> impl Strategy<Value = DaemonPart> {
    let state = prop_oneof![
        Just(NodeState::None),
        Just(NodeState::Joining),
        Just(NodeState::Member),
        Just(NodeState::Left),
        Just(NodeState::Condemned)
    ];
    let vouches = prop::collection::vec((0u16..255, any::<u32>()), 0..=16);
    (any::<[u64; 6]>(), any::<[[u8; 16]; 6]>(), state, any::<bool>(), 0u8..=100, any::<[u64; 4]>(), vouches).prop_map(
        |(numbers, incarnations, state, holds, score, hears, vouches)| DaemonPart {
            number: numbers[0],
            incarnation: Incarnation(incarnations[0]),
            state,
            holds,
            score,
            preference: incarnations[0][4],
            protected: u32::from_le_bytes([incarnations[0][0], incarnations[0][1], incarnations[0][2], incarnations[0][3]]),
            view: ViewNumber(numbers[1]),
            hears: SlotSet(hears),
            left: LeftLives {
                newest: Incarnation(incarnations[1]),
                view: ViewNumber(numbers[2]),
                earlier: [2, 3, 4, 5].map(|index| Incarnation(incarnations[index])),
            },
            consent_view: ViewNumber(numbers[3]),
            consent_instant_ms: numbers[4],
            vouches: vouches.into_iter().map(|(slot, serial)| Vouch { slot: SlotIndex(slot), serial }).collect(),
        },
    )
}

fn place_for(slot: SlotIndex, offset: u64) -> Place {
    Place { cluster: CLUSTER, offset: ByteOffset(offset), slot }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn beats_are_read_as_written(
        part in any_part(), life in any_life(), numbers in any::<[u64; 4]>(), words in any::<[u32; 4]>(),
        flags in any::<[bool; 5]>(), command in any::<u8>(),
    ) {
        let beat = Beat {
            slot: life.slot, boot: life.boot, writer: life.incarnation, beat: numbers[0], lease_ms: words[0], reset_ms: words[1],
            rule: if flags[0] { Rule::Disk } else { Rule::Cluster },
            watchdog: if flags[1] { WatchdogKind::Device } else { WatchdogKind::Process },
            is_stopped: flags[2], is_idle: flags[3],
            acknowledged: flags[4].then_some(Acknowledgement { reset_ms: words[2], command }),
            wall_ms: numbers[1], boottime_ms: numbers[2], outlive_ms: words[3], daemon: part,
        };
        let place = place_for(life.slot, numbers[3]);
        let bytes = beat.encode(&place);
        prop_assert_eq!(Beat::decode(bytes.as_slice(), &place).unwrap(), beat.clone());
        prop_assert_eq!(beat.encode_with_part(&place, &beat.daemon.encode()), bytes);
        prop_assert_eq!(DaemonPart::decode(&beat.daemon.encode()).unwrap(), beat.daemon);
    }

    #[test]
    fn ballots_and_records_are_read_as_written(life in any_life(), numbers in any::<[u64; 4]>(), digest in any::<[u8; 32]>(), at in any::<u8>()) {
        let place = place_for(life.slot, numbers[0]);
        let view = ViewNumber(numbers[1].max(1));
        let ballot = Ballot {
            life, sequence: numbers[2], view, entered: numbers[3].max(1), accepted: 1, digest: Digest(digest), place: at,
        };
        prop_assert_eq!(Ballot::decode(ballot.encode(&place).as_slice(), &place).unwrap(), ballot);
        let record = ViewRecord { life, sequence: numbers[2], view, digest: Digest(digest), place: at, wall_ms: numbers[3] };
        prop_assert_eq!(ViewRecord::decode(record.encode(&place).as_slice(), &place).unwrap(), record);
    }

    #[test]
    fn requests_and_journal_are_read_as_written(
        life in any_life(), victims in prop::collection::vec((any_life(), any::<[u64; 2]>()), 0..=8), text in "\\PC{0,200}", numbers in any::<[u64; 5]>(),
    ) {
        let place = place_for(life.slot, numbers[0]);
        let requests = victims.into_iter()
            .map(|(victim, words)| FenceRequest { victim, view: ViewNumber(words[0]), serial: words[1] }).collect();
        let requests = Requests { life, sequence: numbers[1], requests };
        prop_assert_eq!(Requests::decode(requests.encode(&place).unwrap().as_slice(), &place).unwrap(), requests);
        let entry = JournalEntry {
            life, sequence: numbers[1], view: ViewNumber(numbers[2]), wall_ms: numbers[3], boottime_ms: numbers[4], text,
        };
        let read = JournalEntry::decode(entry.encode(&place).as_slice(), &place).unwrap();
        prop_assert!(entry.text.starts_with(&read.text));
        prop_assert!(read.text.len() > 380 || read.text == entry.text);
    }

    #[test]
    fn sbd_sectors_are_read_as_written(words in any::<[u32; 4]>(), uuid in any::<[u8; 16]>(), name in "[a-zA-Z0-9.-]{0,63}", large in any::<bool>(), command in any::<u8>()) {
        let sector_bytes = if large { 4096 } else { 512 };
        let header = SbdHeader {
            slots: 255, sector_bytes, watchdog_s: words[0], allocate_s: words[1], loop_s: words[2], msgwait_s: words[3], minor: 1, uuid,
        };
        prop_assert_eq!(SbdHeader::decode(&header.encode(), sector_bytes).unwrap(), header);
        let node = SbdNode { is_in_use: true, name: name.clone() };
        prop_assert_eq!(SbdNode::decode(&node.encode(sector_bytes)).unwrap(), node);
        let tail = sbd::MailboxTail { victim_boot: BootId(uuid), serial: u64::from(words[0]), mac: uuid };
        for tail in [sbd::Tail::Absent, sbd::Tail::Present(tail)] {
            let mailbox = Mailbox { command: sbd::Command::from_byte(command), sender: name.clone(), tail };
            let sector = mailbox.encode(sector_bytes);
            prop_assert_eq!(sector.len(), sector_bytes as usize);
            prop_assert_eq!(Mailbox::decode(&sector).unwrap(), mailbox);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000), record in 0u16..12, is_sealed in any::<bool>(), offset in any::<u64>()) {
        let mut bytes = bytes;
        let place = place_for(SlotIndex(1), offset);
        if is_sealed && bytes.len() >= 512 {
            // Behind a good checksum and head the payload is still arbitrary.
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..10].copy_from_slice(&record.to_le_bytes());
            bytes[10..12].copy_from_slice(&1u16.to_le_bytes());
            bytes[16..32].copy_from_slice(&CLUSTER.0);
            bytes[32..40].copy_from_slice(&offset.to_le_bytes());
            bytes[40..44].copy_from_slice(&[1, 0, 0, 0]);
            reseal(&mut bytes);
        }
        let _ = accepted_by(&bytes, &place);
        let _ = decode_head(&bytes);
        let _ = DaemonPart::decode(&bytes);
        let _ = ViewBody::decode_value(&bytes);
        let _ = SbdHeader::decode(&bytes, 512);
        let _ = SbdNode::decode(&bytes);
        let _ = node_record::decode_node_record(&bytes, &place);
        let _ = Mailbox::decode(&bytes);
    }

    #[test]
    fn damaged_values_never_panic_and_never_decode_to_two_digests(at in 0usize..400, byte in any::<u8>(), cut in 0usize..500) {
        let mut value = view_body().encode_value();
        if let Some(place) = value.get_mut(at) { *place = byte; }
        value.truncate(cut.max(1));
        if let Ok(body) = ViewBody::decode_value(&value) {
            prop_assert_eq!(body.encode_value(), value);
        }
    }
}
