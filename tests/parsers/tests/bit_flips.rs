//! What: every single bit of everything that is sealed or carries no checksum, flipped: detected, or without effect, or named here.
//! Owns: the exceptions: what stock SBD's format cannot detect, bit for bit (docs/formats/sbd.md lists them).
//! Invariants: a bit that is neither detected nor without effect nor named is a failed test; so is a named one that is detected.
//! Does not: repeat the records of ours on disk, whose bits are flipped in disk/format/tests/records.rs.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

use deadbolt_cluster::seal::{ClusterKey, DatagramSealer, End, RECORD_BYTES_MAX, StreamHalf, stream_halves};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdHeader, SbdNode, Tail, header_fields, mailbox_fields, node_fields};
use deadbolt_disk_format::{BootId, ClusterUuid, Incarnation, SlotIndex};
use deadbolt_sbd::pill::{Pill, PillKey, encode_pill, read_mailbox};
use deadbolt_sbd_core::{LegacyPills, MailboxVerdict, PillAge, ResetCommand, judge_mailbox};
use std::collections::BTreeMap;
use std::ops::Range;

const CLUSTER: ClusterUuid = ClusterUuid([7; 16]);
const BOOT: BootId = BootId([3; 16]);

/// Every copy of the bytes with one bit flipped: its byte, its bit, the copy.
fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, u8, Vec<u8>)> + '_ {
    (0..bytes.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))).map(|(byte, bit)| {
        let mut copy = bytes.to_vec();
        copy[byte] ^= 1 << bit;
        (byte, bit, copy)
    })
}

/// What a flip makes of a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// The reader refuses the sector.
    Detected,
    /// It reads as before.
    None,
    /// It reads as something else: the format cannot tell.
    Changed,
}

/// Compares the bytes of each effect with what is named: ranges of bytes, all eight bits of each.
fn expect(what: &str, found: &BTreeMap<(usize, u8), Effect>, named: &[(Range<usize>, Effect)]) {
    for ((byte, bit), effect) in found {
        let wanted = named.iter().find(|(range, _)| range.contains(byte)).map(|(_, effect)| *effect);
        assert_eq!(Some(*effect), wanted, "{what}: bit {bit} of byte {byte}");
    }
}

#[test]
fn a_header_without_a_checksum_protects_magic_version_and_sector_size_alone() {
    let header =
        SbdHeader { slots: 255, sector_bytes: 512, watchdog_s: 5, allocate_s: 2, loop_s: 1, msgwait_s: 10, minor: 1, uuid: [9; 16] };
    let found = flips(&header.encode())
        .map(|(byte, bit, sector)| {
            let effect = match SbdHeader::decode(&sector, 512) {
                Err(_) => Effect::Detected,
                Ok(read) if read == header => Effect::None,
                Ok(_) => Effect::Changed,
            };
            ((byte, bit), effect)
        })
        .collect();
    use header_fields as at;
    expect(
        "header",
        &found,
        &[
            (0..at::SLOTS.offset, Effect::Detected),
            (at::SLOTS.offset..at::RESERVED_A.offset, Effect::Changed),
            (at::RESERVED_A.offset..at::SECTOR_BYTES.offset, Effect::None),
            (at::SECTOR_BYTES.offset..at::WATCHDOG_S.offset, Effect::Detected),
            (at::WATCHDOG_S.offset..at::RESERVED_B.offset, Effect::Changed),
            (at::RESERVED_B.offset..512, Effect::None),
        ],
    );
}

#[test]
fn a_node_sector_protects_little_and_is_never_taken_for_another_nodes_life() {
    let node = SbdNode { is_in_use: true, name: "alpha".into() };
    let mut found = BTreeMap::new();
    for (byte, bit, sector) in flips(&node.encode(512)) {
        let effect = match SbdNode::decode(&sector) {
            Err(_) => Effect::Detected,
            Ok(read) if read == node => Effect::None,
            Ok(read) => {
                // Either the slot looks free, or it carries a name that is not this node's: its owner sees that and says so.
                assert!(!read.is_in_use || read.name != node.name);
                Effect::Changed
            }
        };
        found.insert((byte, bit), effect);
    }
    use node_fields as at;
    assert_eq!(found.remove(&(at::IN_USE.offset, 0)), Some(Effect::Changed), "taken or free is one bit");
    // With the zero behind the name.
    let end = at::NAME.offset + node.name.len() + 1;
    expect("node", &found, &[(0..1, Effect::Detected), (at::NAME.offset..end, Effect::Changed), (end..512, Effect::None)]);
}

fn verdict(sector: &[u8], key: Option<&PillKey>, legacy: LegacyPills) -> MailboxVerdict {
    judge_mailbox(&read_mailbox(sector, key).unwrap(), BOOT, legacy, PillAge::ThisLife)
}

#[test]
fn an_empty_mailbox_is_one_bit_away_from_a_pill_of_a_stock_tool_and_from_none_of_ours() {
    let key = PillKey::new(&[1; 32]);
    let empty = Mailbox::default().encode(512);
    for (byte, bit, sector) in flips(&empty) {
        for legacy in [LegacyPills::Accept, LegacyPills::Refuse] {
            let wanted = match (byte, bit) {
                (0, 0) => MailboxVerdict::Answer,
                // The one bit that resets a node for nothing, where pills of stock tools are obeyed: a stop, not a wrong deed.
                (0, 1) if legacy == LegacyPills::Accept => MailboxVerdict::Obey(ResetCommand::Reset),
                (0, 1 | 2) => MailboxVerdict::Refused,
                (0, 7) => MailboxVerdict::Ignored,
                (0, _) => MailboxVerdict::Unknown,
                // A sender without a command, or bytes of no meaning: still empty.
                _ => MailboxVerdict::Empty,
            };
            assert_eq!(verdict(&sector, Some(&key), legacy), wanted, "bit {bit} of byte {byte}, {legacy:?}");
        }
    }
}

#[test]
fn a_pill_of_ours_with_a_flipped_bit_is_obeyed_by_nobody_with_the_key() {
    let key = PillKey::new(&[1; 32]);
    for command in [Command::Reset, Command::Off, Command::Crashdump] {
        let pill = encode_pill(&Pill { command, sender: "alpha", victim: BOOT, serial: 9 }, &key, 512);
        assert!(matches!(verdict(&pill, Some(&key), LegacyPills::Refuse), MailboxVerdict::Obey(_)));
        for (byte, bit, sector) in flips(&pill) {
            let found = verdict(&sector, Some(&key), LegacyPills::Accept);
            assert!(!matches!(found, MailboxVerdict::Obey(_) | MailboxVerdict::Stale), "bit {bit} of byte {byte}: {found:?}");
            assert!(byte == mailbox_fields::COMMAND.offset || found == MailboxVerdict::Refused, "bit {bit} of byte {byte}: {found:?}");
            // Without the key nobody can tell; what is obeyed then still names this boot, and asks for a death.
            if let MailboxVerdict::Obey(_) = verdict(&sector, None, LegacyPills::Refuse) {
                let Tail::Present(tail) = Mailbox::decode(&sector).unwrap().tail else { panic!("no tail") };
                assert_eq!(tail.victim_boot, BOOT);
            }
        }
    }
}

#[test]
fn a_pill_of_a_stock_tool_with_a_flipped_bit_is_another_order_or_none() {
    let pill = Mailbox { command: Command::Reset, sender: "alpha".into(), tail: Tail::Absent }.encode(512);
    for (byte, bit, sector) in flips(&pill) {
        let wanted = match (byte, bit) {
            (0, 0) => MailboxVerdict::Obey(ResetCommand::Off),
            (0, 1) => MailboxVerdict::Empty,
            (0, 7) => MailboxVerdict::Ignored,
            (0, _) => MailboxVerdict::Unknown,
            // The sender is for people.
            (1..65, _) => MailboxVerdict::Obey(ResetCommand::Reset),
            // Bytes that no stock tool writes: refused as forged, and said.
            _ => MailboxVerdict::Refused,
        };
        assert_eq!(verdict(&sector, None, LegacyPills::Accept), wanted, "bit {bit} of byte {byte}");
    }
}

fn key() -> ClusterKey {
    ClusterKey::parse(&"07".repeat(32)).unwrap()
}

#[test]
fn a_datagram_with_a_flipped_bit_is_dropped() {
    let sealer = |slot: u16| DatagramSealer::new(key(), CLUSTER, SlotIndex(slot), Incarnation([u8::try_from(slot).unwrap(); 16]));
    let good = sealer(0).seal(SlotIndex(1), &[5; 92]);
    let mut receiver = sealer(1);
    for (byte, bit, frame) in flips(&good) {
        assert!(receiver.open(&frame).is_err(), "bit {bit} of byte {byte}");
    }
    // None of them has moved the counter or the memory of incarnations: the good one is still taken.
    assert!(receiver.open(&good).is_ok());
}

fn halves(end: End, caller: [u8; 16]) -> (StreamHalf, StreamHalf) {
    stream_halves(&key(), CLUSTER, end, &caller, &[2; 16])
}

/// What a receiver makes of the bytes of a connection: the records before the first that does not open.
fn received(mut half: StreamHalf, mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        // A length over the limit closes the connection; one beyond what came waits for more.
        let Some(sealed) = rest.get(..length).filter(|_| length <= RECORD_BYTES_MAX) else { break };
        let Some(record) = half.open(sealed) else { break };
        records.push(record);
        bytes = &rest[length..];
    }
    records
}

#[test]
fn a_connection_with_a_flipped_bit_delivers_what_came_before_it_and_nothing_else() {
    let (mut send, _) = halves(End::Caller, [1; 16]);
    let sent: Vec<Vec<u8>> = (0..4u8).map(|number| vec![number; 20 + usize::from(number)]).collect();
    let mut starts = Vec::new();
    let mut bytes = Vec::new();
    for record in &sent {
        starts.push(bytes.len());
        bytes.extend(send.seal(record));
    }
    assert_eq!(received(halves(End::Callee, [1; 16]).1, &bytes), sent);
    for (byte, bit, changed) in flips(&bytes) {
        let whole_before = starts.iter().filter(|start| **start <= byte).count() - 1;
        assert_eq!(received(halves(End::Callee, [1; 16]).1, &changed), sent[..whole_before], "bit {bit} of byte {byte}");
    }
}

#[test]
fn a_flipped_bit_in_an_opening_leaves_two_ends_without_a_common_key() {
    let (mut send, _) = halves(End::Caller, [1; 16]);
    let first = send.seal(b"\0identification");
    for (byte, bit, nonce) in flips(&[1; 16]) {
        let seen = halves(End::Callee, nonce.try_into().unwrap()).1;
        assert!(received(seen, &first).is_empty(), "bit {bit} of byte {byte}");
    }
}
