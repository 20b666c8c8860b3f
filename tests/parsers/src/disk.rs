//! What: the checks of everything that is read from a device.
//! Owns: the canonical form: what a decoder takes, its encoder writes with the same bytes.
//! Invariants: each record is tried as it came and behind a good head, for a checksum keeps a mutator out and a forger not.
//! Does not: judge meaning across records, but for `device`, which runs the programs that do.
//! Called by: the table of targets.

use crate::samples::{CLUSTER, layout, life, reseal};
use deadbolt_disk::{AlignedBuf, MemoryDevice, RawDevice};
use deadbolt_disk_format::fresh::{Fresh, sbd_header_of};
use deadbolt_disk_format::head::{HEAD_BYTES, MAGIC, decode_head};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdHeader, SbdNode, Tail};
use deadbolt_disk_format::signatures::{Window, detect_known, windows};
use deadbolt_disk_format::*;
use deadbolt_fsck::{CheckOptions, Source};
use deadbolt_qdisk_core::{DiskDone, DiskOpKind, Input, IoFailed, Output, Register, RegisterConfig, RegisterPhase};
use deadbolt_sbd::pill::{PillKey, encode_pill, read_mailbox};
use deadbolt_sbd_core::{Authenticity, LegacyPills, MailboxVerdict, PillAge, judge_mailbox};
use deadbolt_tests::crash::Recorder;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The slot whose units are checked.
const SLOT: SlotIndex = SlotIndex(3);

fn own(offset: ByteOffset) -> Place {
    Place { cluster: CLUSTER, offset, slot: SLOT }
}

fn nobodys(offset: ByteOffset) -> Place {
    Place { cluster: CLUSTER, offset, slot: SlotIndex::NONE }
}

/// The input as a record that passes every check of its head: what a forger could write, or a program with a mistake.
fn behind_head(bytes: &[u8], record: RecordType, place: &Place) -> Vec<u8> {
    let mut unit = bytes.to_vec();
    unit.resize(UNIT_BYTES, 0);
    unit[..8].copy_from_slice(&MAGIC);
    unit[8..10].copy_from_slice(&record.number().to_le_bytes());
    unit[10..12].copy_from_slice(&1u16.to_le_bytes());
    unit[16..32].copy_from_slice(&place.cluster.0);
    unit[32..40].copy_from_slice(&place.offset.0.to_le_bytes());
    unit[40..42].copy_from_slice(&place.slot.0.to_le_bytes());
    reseal(&mut unit);
    unit
}

/// What is taken is written again with the same bytes.
fn check_record<T>(
    bytes: &[u8],
    record: RecordType,
    place: &Place,
    decode: fn(&[u8], &Place) -> Result<T, RecordError>,
    encode: impl Fn(&T, &Place) -> Vec<u8>,
) {
    let _ = decode_head(bytes);
    for unit in [bytes.to_vec(), behind_head(bytes, record, place)] {
        if let Ok(value) = decode(&unit, place) {
            // A reader takes one unit; what follows in a longer buffer is not the record's.
            assert_eq!(encode(&value, place), unit[..UNIT_BYTES], "a second encoding of a {}", record.name());
        }
    }
}

/// A copy of the superblock.
pub fn check_superblock(bytes: &[u8]) {
    for offset in layout().superblocks {
        for unit in [bytes.to_vec(), behind_head(bytes, RecordType::Superblock, &nobodys(offset))] {
            if let Ok(superblock) = Superblock::decode(&unit, offset) {
                let copy = superblock.layout.superblocks.iter().position(|place| *place == offset).unwrap();
                assert_eq!(superblock.encode(copy).unwrap()[..], unit[..UNIT_BYTES], "a second encoding of a superblock");
                let _ = superblock.permission();
                let _ = sbd_header_of(&superblock);
                let copies =
                    [Ok(superblock.clone()), Ok(superblock.clone()), Err(RecordError::TooShort { found: 0, needed: 1 }), Ok(superblock)];
                assert!(matches!(choose_superblock(&copies), SuperblockChoice::Agreed { copies: [true, true, false, true], .. }));
            }
        }
    }
}

/// A beat.
pub fn check_beat(bytes: &[u8]) {
    check_record(bytes, RecordType::Beat, &own(layout().beat(SLOT)), Beat::decode, |beat, place| beat.encode(place).to_vec());
}

/// The daemon's part of a beat, from a beat or from the page.
pub fn check_daemon_part(bytes: &[u8]) {
    if let Ok(part) = DaemonPart::decode(bytes) {
        assert_eq!(part.encode(), bytes[..DAEMON_PART_BYTES], "a second encoding of a daemon's part");
    }
}

/// A ballot.
pub fn check_vote(bytes: &[u8]) {
    check_record(bytes, RecordType::Vote, &own(layout().vote(SLOT, 1)), Ballot::decode, |ballot, place| ballot.encode(place).to_vec());
}

/// A view record.
pub fn check_view_record(bytes: &[u8]) {
    let place = own(layout().record(SLOT, 0));
    check_record(bytes, RecordType::ViewRecord, &place, ViewRecord::decode, |record, place| record.encode(place).to_vec());
}

/// A place for a body.
pub fn check_view_body(bytes: &[u8]) {
    let place = own(layout().body(SLOT, 4));
    let mut forged = behind_head(bytes, RecordType::ViewBody, &place);
    let body_bytes = usize::try_from(u32::from_le_bytes(forged[12..16].try_into().unwrap())).unwrap();
    if let Some(body) = forged.get(HEAD_BYTES..HEAD_BYTES.saturating_add(body_bytes)) {
        let checksum = crc32fast::hash(body);
        forged[44..48].copy_from_slice(&checksum.to_le_bytes());
        reseal(&mut forged);
    }
    for bytes in [bytes.to_vec(), forged] {
        if let Ok((life, sequence, value)) = decode_body_place(&bytes, &place) {
            let place_bytes = u32::try_from(bytes.len()).unwrap();
            assert_eq!(encode_body_place(&value, &place, &life, sequence, place_bytes).unwrap(), bytes, "a second encoding of a place");
            check_view_value(&value);
        }
    }
}

/// A view: its bytes are what the digest names, so there may be one encoding only.
pub fn check_view_value(bytes: &[u8]) {
    if let Ok(body) = ViewBody::decode_value(bytes) {
        assert_eq!(body.check(), Ok(()));
        assert_eq!(body.encode_value(), bytes, "a second encoding of a view");
        assert_eq!(body.digest(), view::digest_of_value(bytes));
    }
}

/// A node's fencing requests.
pub fn check_requests(bytes: &[u8]) {
    let place = own(layout().request(SLOT));
    check_record(bytes, RecordType::Requests, &place, Requests::decode, |requests, place| requests.encode(place).unwrap().to_vec());
}

/// A journal entry.
pub fn check_journal(bytes: &[u8]) {
    let place = own(layout().journal(SLOT, 1));
    check_record(bytes, RecordType::Journal, &place, JournalEntry::decode, |entry, place| entry.encode(place).to_vec());
}

/// A tool's claim.
pub fn check_tool_claim(bytes: &[u8]) {
    let place = nobodys(layout().tool);
    check_record(bytes, RecordType::ToolClaim, &place, ToolClaim::decode, |claim, place| claim.encode(place).unwrap().to_vec());
}

/// The header of the SBD area. Stock tools ignore its reserved bytes, so the bytes have no canonical form; the value has.
pub fn check_sbd_header(bytes: &[u8]) {
    for sector_bytes in [512, 4096] {
        if let Ok(header) = SbdHeader::decode(bytes, sector_bytes) {
            assert_eq!(SbdHeader::decode(&header.encode(), sector_bytes), Ok(header));
        }
    }
}

/// A node of the SBD area. What stands behind the end of a name is ignored, as stock tools do.
pub fn check_sbd_node(bytes: &[u8]) {
    if let Ok(node) = SbdNode::decode(bytes) {
        let again = SbdNode::decode(&node.encode(512)).unwrap();
        assert_eq!(again.is_in_use, node.is_in_use);
        if std::str::from_utf8(&bytes[1..64]).is_ok() {
            assert_eq!(again, node);
        }
    }
}

/// The key of the pills that are checked.
fn pill_key() -> &'static PillKey {
    static KEY: OnceLock<PillKey> = OnceLock::new();
    KEY.get_or_init(|| PillKey::new(&[7; 32]))
}

/// A mailbox, as it came, and its input laid over a pill of ours: only the very bytes that a holder of the key wrote are a pill of ours.
pub fn check_sbd_mailbox(bytes: &[u8]) {
    let boot = life(3).boot;
    if let Ok(mailbox) = Mailbox::decode(bytes) {
        let again = Mailbox::decode(&mailbox.encode(512)).unwrap();
        assert_eq!(again.command, mailbox.command);
        assert!(again.tail == mailbox.tail || mailbox.tail == Tail::Malformed, "a tail is read as it was written");
        let seen = read_mailbox(bytes, Some(pill_key())).unwrap();
        assert!(seen.tail.is_none_or(|tail| tail.authenticity == Authenticity::Forged), "a pill was made without the key");
        for (legacy, age) in [(LegacyPills::Accept, PillAge::ThisLife), (LegacyPills::Refuse, PillAge::BeforeThisBoot)] {
            let verdict = judge_mailbox(&seen, boot, legacy, age);
            let may_obey = seen.tail.is_none() && legacy == LegacyPills::Accept && Command::from_byte(seen.command).is_deadly();
            assert_eq!(matches!(verdict, MailboxVerdict::Obey(_)), may_obey);
        }
    }
    let pill = deadbolt_sbd::pill::Pill { command: Command::Reset, sender: "alpha", victim: boot, serial: 7 };
    let good = encode_pill(&pill, pill_key(), 512);
    let changed: Vec<u8> = good.iter().zip(bytes.iter().chain(std::iter::repeat(&0))).map(|(good, mask)| good ^ mask).collect();
    let seen = read_mailbox(&changed, Some(pill_key())).unwrap();
    let is_verified = seen.tail.is_some_and(|tail| tail.authenticity == Authenticity::Verified);
    assert_eq!(is_verified, changed == good, "verified is what the key's holder wrote");
}

/// Signatures of what else may stand on a device: three windows of its beginning.
pub fn check_signatures(bytes: &[u8]) {
    const SIZE: u64 = 64 << 20;
    let seen: Vec<Window<'_>> = windows(SIZE).into_iter().map(|(offset, _)| Window { offset, bytes }).collect();
    for signature in detect_known(&seen, SIZE) {
        assert!(signature.offset < SIZE);
    }
    for size in
        [0, 511, u64::from(u32::from_le_bytes(std::array::from_fn(|index| bytes.get(index).copied().unwrap_or_default()))), u64::MAX]
    {
        assert!(windows(size).iter().all(|(offset, length)| offset.checked_add(*length as u64).is_some_and(|end| end <= size)));
    }
}

/// Size of the device that is damaged.
const DEVICE_BYTES: u64 = 4 << 20;
const SECTOR_BYTES: u32 = 512;
const SLOTS: u16 = 2;

/// A small formatted device with two nodes.
fn base() -> &'static (Superblock, Vec<u8>) {
    static BASE: OnceLock<(Superblock, Vec<u8>)> = OnceLock::new();
    BASE.get_or_init(|| {
        let layout = Layout::new(DEVICE_BYTES, SECTOR_BYTES, SLOTS).unwrap();
        let superblock = Superblock {
            layout,
            slots: SLOTS,
            device_bytes: DEVICE_BYTES,
            device_count: 1,
            device_number: 0,
            ..crate::samples::superblock()
        };
        let device = MemoryDevice::new(usize::try_from(DEVICE_BYTES).unwrap(), SECTOR_BYTES);
        let header = sbd_header_of(&superblock);
        for write in Fresh::new(superblock.clone(), &header, Vec::new(), "host").unwrap().writes().unwrap() {
            device.overwrite(write.offset, &write.data);
        }
        (superblock, device.contents())
    })
}

/// A whole device: the input is a list of damages. Every reader - the choice of the superblock, fsck, the register of a node that
/// starts - comes to an end without a panic, and writes nothing that it may not write.
///
/// A damage: unit (1 byte, of the used ones in order), flags (1: seal the head anew, 2: from the second 512 bytes on), offset (1),
/// length (1), bytes.
pub fn check_device(bytes: &[u8]) {
    let (superblock, image) = base();
    let size = image.len();
    let device = MemoryDevice::new(size, SECTOR_BYTES);
    device.overwrite(ByteOffset(0), image);
    let units = superblock.layout.units();
    let mut rest = bytes;
    while let Some(([unit, flags, at, length], more)) = rest.split_first_chunk::<4>() {
        let (data, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        let (_, offset, _) = units[usize::from(*unit) % units.len()];
        let start = usize::try_from(offset.0).unwrap() + usize::from(*at) + if flags & 2 == 2 { HEAD_BYTES } else { 0 };
        device.overwrite(ByteOffset(start as u64), data);
        if flags & 1 == 1 {
            let mut head = read(&device, offset, UNIT_BYTES);
            reseal(&mut head);
            device.overwrite(offset, &head);
        }
    }
    let copies = read_superblocks(DEVICE_BYTES, |offset| Some(read(&device, offset, UNIT_BYTES)));
    let choice = choose_superblock(&copies);
    let recorder = Recorder::new(device.second_path());
    let writes = recorder.writes();
    let report = deadbolt_fsck::check(&Source::of_device("damaged", Arc::new(recorder)), CheckOptions { pause: Duration::ZERO });
    assert!(writes.lock().unwrap().is_empty(), "a check has written");
    if let SuperblockChoice::Agreed { superblock, .. } = choice {
        start_register(&superblock, &device);
    } else {
        assert!(report.errors() > 0, "{report}");
    }
}

fn read(device: &MemoryDevice, offset: ByteOffset, bytes: usize) -> Vec<u8> {
    let mut buffer = AlignedBuf::zeroed(bytes);
    match device.read_at(offset, &mut buffer) {
        Ok(()) => buffer.to_vec(),
        Err(_) => Vec::new(),
    }
}

/// A register starts on the device and proposes a view; it writes into its own units only.
fn start_register(superblock: &Superblock, device: &MemoryDevice) {
    let me = life(1);
    let layout = superblock.layout;
    if !layout.has_slot(me.slot) {
        return;
    }
    let config = RegisterConfig { cluster: superblock.cluster, me, layouts: vec![layout], seed: 1, wall_offset_ms: 0 };
    let mut register = Register::new(config);
    register.handle(0, Input::Start);
    let (mut now_ms, mut has_proposed) = (0, false);
    for _ in 0..60 {
        let mut operations = Vec::new();
        while let Some(output) = register.poll_output() {
            if let Output::Disk(operation) = output {
                operations.push(operation);
            }
        }
        let Some(operation) = operations.pop() else {
            let Some(deadline) = register.next_deadline() else {
                let status = register.status();
                match status.view {
                    Some(view) if !has_proposed && status.phase == RegisterPhase::Idle => {
                        has_proposed = true;
                        let view = ViewNumber(view.0.saturating_add(1));
                        register.handle(
                            now_ms,
                            Input::Propose(ViewBody { view, predecessor: status.digest, members: vec![me], ..ViewBody::default() }),
                        );
                        continue;
                    }
                    _ => return,
                }
            };
            now_ms = deadline.max(now_ms + 1);
            register.handle(now_ms, Input::Tick);
            continue;
        };
        let result = match operation.kind {
            DiskOpKind::Read { offset, bytes } => Ok(read(device, offset, bytes)),
            DiskOpKind::Write { offset, data } => write_own(&layout, device, offset, &data).map(|()| Vec::new()),
            DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                write_own(&layout, device, write_offset, &data).map(|()| read(device, read_offset, read_bytes))
            }
        };
        let result = result.map(Arc::from);
        register.handle(now_ms, Input::Disk(DiskDone { tag: operation.tag, device: operation.device, result }));
    }
}

fn write_own(layout: &Layout, device: &MemoryDevice, offset: ByteOffset, data: &[u8]) -> Result<(), IoFailed> {
    let slot = SlotIndex(1);
    let mut own = vec![layout.vote(slot, 0), layout.vote(slot, 1), layout.record(slot, 0), layout.record(slot, 1)];
    own.extend((0..layout.places).map(|place| layout.body(slot, place)));
    assert!(own.contains(&offset), "a register wrote at {}, which is not its own", offset.0);
    device.write_at(offset, &AlignedBuf::copy_of(data)).map_err(|_| IoFailed)
}
