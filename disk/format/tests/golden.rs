//! What: the bytes of version 1 of every record and of the SBD area, compared with files that never change.
//! Owns: the text form of a golden image: its size, then every row of 16 bytes that is not all zero.
//! Invariants: an image is both read and written; a difference is a change of the format.
//! Does not: rewrite by itself; `DEADBOLT_GOLDEN=write` does, and the difference is reviewed.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

mod samples;

use deadbolt_disk_format::node_record::{NodeRecord, decode_node_record, encode_node_sector, node_record_place};
use deadbolt_disk_format::sbd::{Command, Mailbox, MailboxTail, SbdHeader, SbdNode, Tail};
use deadbolt_disk_format::*;
use samples::*;
use std::fmt::Write as _;
use std::path::PathBuf;

fn text_of(note: &str, bytes: &[u8]) -> String {
    let mut text = format!("# {note}\nsize {}\n", bytes.len());
    for (row, chunk) in bytes.chunks(16).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        write!(text, "{:08x}:", row * 16).unwrap();
        for byte in chunk {
            write!(text, " {byte:02x}").unwrap();
        }
        let letter = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        writeln!(text, "  {}", chunk.iter().map(letter).collect::<String>()).unwrap();
    }
    text
}

fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(size) = line.strip_prefix("size ") {
            bytes = vec![0; size.parse().unwrap()];
        } else {
            let (offset, rest) = line.split_once(": ").unwrap();
            let offset = usize::from_str_radix(offset, 16).unwrap();
            let (hex, _) = rest.split_once("  ").unwrap();
            for (index, byte) in hex.split(' ').enumerate() {
                bytes[offset + index] = u8::from_str_radix(byte, 16).unwrap();
            }
        }
    }
    bytes
}

/// Compares with the file; returns the file's bytes, which the caller then decodes.
fn golden(name: &str, note: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/format-v1").join(name).with_extension("hex");
    let text = text_of(note, bytes);
    if std::env::var("DEADBOLT_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(stored, text, "{name}: the bytes of version 1 have changed");
    let stored = bytes_of(&stored);
    assert_eq!(stored, bytes, "{name}: the text form lost something");
    stored
}

#[test]
fn every_record_of_version_1() {
    for sample in samples() {
        let place = sample.place;
        let name = sample.record.name();
        let note = format!("{name} of the sample cluster, at offset {} of a device of 16 MiB", place.offset.0);
        let bytes = golden(name, &note, &sample.bytes);
        match sample.record {
            RecordType::Superblock => assert_eq!(Superblock::decode(&bytes, place.offset).unwrap(), superblock()),
            RecordType::Beat => assert_eq!(Beat::decode(&bytes, &place).unwrap(), beat()),
            RecordType::Vote => assert_eq!(Ballot::decode(&bytes, &place).unwrap(), ballot()),
            RecordType::ViewRecord => assert_eq!(ViewRecord::decode(&bytes, &place).unwrap(), view_record()),
            RecordType::ViewBody => {
                let (writer, sequence, value) = decode_body_place(&bytes, &place).unwrap();
                assert_eq!((writer, sequence), (life(3), 8));
                assert_eq!(ViewBody::decode_value(&value).unwrap(), view_body());
            }
            RecordType::Requests => assert_eq!(Requests::decode(&bytes, &place).unwrap(), requests()),
            RecordType::Journal => assert_eq!(JournalEntry::decode(&bytes, &place).unwrap(), journal_entry()),
            RecordType::ToolClaim => assert_eq!(ToolClaim::decode(&bytes, &place).unwrap(), tool_claim()),
        }
    }
}

#[test]
fn the_empty_records_that_format_writes() {
    let place = Place { cluster: CLUSTER, offset: layout().vote(SlotIndex(3), 1), slot: SlotIndex(3) };
    let empty = Ballot::empty(SlotIndex(3), 1);
    let bytes = golden("vote-empty", "second vote unit of slot 3, never voted", empty.encode(&place).as_slice());
    assert_eq!(Ballot::decode(&bytes, &place).unwrap(), empty);
    let place = Place { offset: layout().record(SlotIndex(3), 0), ..place };
    let empty = ViewRecord::empty(SlotIndex(3), 0);
    let bytes = golden("view-record-empty", "first view record of slot 3, no view known", empty.encode(&place).as_slice());
    assert_eq!(ViewRecord::decode(&bytes, &place).unwrap(), empty);
}

#[test]
fn a_view_has_this_digest() {
    let hex: String = view_body().digest().0.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = golden("view-body-digest", "digest of the sample view", hex.as_bytes());
    assert_eq!(bytes, hex.as_bytes());
}

#[test]
fn the_sbd_area_has_the_bytes_that_stock_tools_write() {
    // Measured with the reference: watchdog 7, allocate 0, loop 1, msgwait 14, sectors of 512 bytes.
    let header =
        SbdHeader { slots: 255, sector_bytes: 512, watchdog_s: 7, allocate_s: 0, loop_s: 1, msgwait_s: 14, minor: 1, uuid: CLUSTER.0 };
    let bytes = header.encode();
    let measured =
        [0x53, 0x42, 0x44, 0x5f, 0x53, 0x42, 0x44, 0x5f, 2, 0xff, 0, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x0e, 1];
    assert_eq!(bytes[..33], measured);
    assert_eq!(bytes[33..49], CLUSTER.0);
    assert_eq!(SbdHeader::decode(&golden("sbd-header", "SBD header, sectors of 512 bytes", &bytes), 512).unwrap(), header);
    let node = SbdNode { is_in_use: true, name: "alpha".into() };
    assert_eq!(SbdNode::decode(&golden("sbd-node", "SBD node sector", &node.encode(512))).unwrap(), node);
    let stock = Mailbox { command: Command::Exit, sender: "sender".into(), tail: Tail::Absent };
    let bytes = golden("sbd-mailbox-stock", "SBD mailbox as a stock tool writes it", &stock.encode(512));
    assert_eq!(bytes[..8], *b"\x04sender\0");
    assert_eq!(Mailbox::decode(&bytes).unwrap(), stock);
    let tail = MailboxTail { victim_boot: life(1).boot, serial: 0x0102_0304_0506_0708, mac: *b"authentication!!" };
    let ours = Mailbox { command: Command::Reset, sender: "alpha".into(), tail: Tail::Present(tail) };
    let bytes = golden("sbd-mailbox-ours", "SBD mailbox with our tail", &ours.encode(512));
    assert_eq!(Mailbox::decode(&bytes).unwrap(), ours);
}

#[test]
fn a_node_sector_carries_a_beat_where_stock_tools_do_not_look() {
    let beat = Beat { daemon: DaemonPart::default(), rule: Rule::Disk, outlive_ms: 0, is_stopped: false, is_idle: false, ..beat() };
    let place = node_record_place(CLUSTER.0, beat.slot, 512);
    let node = SbdNode { is_in_use: true, name: "alpha".into() };
    let bytes = golden("sbd-node-record", "SBD node sector with our record", &encode_node_sector(&node, &beat, &place, 512));
    assert_eq!(bytes[..128], node.encode(512)[..128]);
    assert_eq!(SbdNode::decode(&bytes).unwrap(), node);
    assert_eq!(decode_node_record(&bytes, &place), NodeRecord::Beat(Box::new(beat.clone())));
    assert_eq!(decode_node_record(&node.encode(512), &place), NodeRecord::Absent);
    // In another slot, another area, or with any bit of it changed, it is no news.
    for other in [node_record_place(CLUSTER.0, SlotIndex(4), 512), node_record_place([9; 16], beat.slot, 512)] {
        assert!(matches!(decode_node_record(&bytes, &other), NodeRecord::Damaged(_)));
    }
    for bit in 128 * 8..260 * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(decode_node_record(&flipped, &place), NodeRecord::Damaged(_)), "bit {bit}");
    }
    assert!(matches!(decode_node_record(&bytes[..200], &place), NodeRecord::Damaged(_)));
}
