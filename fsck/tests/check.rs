//! What: each damage has its finding, a good device none, and a device that is being written none either.
//! Owns: a cluster of two views on a device in memory.
//! Invariants: nothing is ever written by a check.
//! Does not: need root or a disk.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::too_many_lines, reason = "a table of damages is read best as one")]
#![allow(missing_docs, reason = "a test program has no interface")]

use deadbolt_disk::{AlignedBuf, Fault, FaultKind, Geometry, IoError, MemoryDevice, RawDevice, Touches};
use deadbolt_disk_format::fresh::{Fresh, sbd_header_of};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdHeader, SbdNode, Tail, mailbox_offset, node_offset};
use deadbolt_disk_format::*;
use deadbolt_fsck::{CODES, CheckOptions, Report, Severity, Source, check, main_from};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIZE: usize = 16 << 20;
const CLUSTER: ClusterUuid = ClusterUuid([7; 16]);

fn timings() -> Timings {
    Timings { stall_ms: 1000, poll_ms: 100, watchdog_ms: 1000, expiry_ms: 3200, storage_delay_ms: 500, ..Timings::default() }
}
fn superblock() -> Superblock {
    Superblock {
        cluster: CLUSTER,
        device: DeviceUuid([8; 16]),
        device_number: 0,
        device_count: 1,
        name: "trial".into(),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes: 512,
        slots: 8,
        device_bytes: SIZE as u64,
        timings: timings(),
        layout: Layout::new(SIZE as u64, 512, 8).unwrap(),
        formatted_wall_ms: 1,
    }
}
fn life(slot: u16) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId([1 + u8::try_from(slot).unwrap(); 16]), incarnation: Incarnation([9; 16]) }
}
fn first_view() -> ViewBody {
    let node = |slot: u16, name: &str| NodeEntry {
        slot: SlotIndex(slot),
        votes: 1,
        name: name.into(),
        addresses: vec![format!("127.0.0.1:{}", 7000 + slot)],
    };
    ViewBody {
        view: ViewNumber(1),
        members: vec![life(0), life(1)],
        proposer: Some(life(0)),
        configuration: Configuration {
            version: 3,
            disk_votes: 1,
            timings: timings(),
            nodes: vec![node(0, "alpha"), node(1, "beta")],
            ..Configuration::default()
        },
        ..ViewBody::default()
    }
}
fn second_view() -> ViewBody {
    let first = first_view();
    ViewBody {
        view: ViewNumber(2),
        predecessor: first.digest(),
        members: vec![life(0)],
        owed: vec![Owed { life: life(1), removed_in: ViewNumber(2) }],
        reason: ViewReason::Remove,
        ..first
    }
}

struct Disk {
    device: MemoryDevice,
    layout: Layout,
}
impl Disk {
    fn formatted() -> Self {
        Self::one_of(1)
    }
    fn one_of(device_count: u16) -> Self {
        let superblock = Superblock { device_count, ..superblock() };
        let device = MemoryDevice::new(SIZE, 512);
        let header = sbd_header_of(&superblock);
        for write in Fresh::new(superblock.clone(), &header, Vec::new(), "host").unwrap().writes().unwrap() {
            device.overwrite(write.offset, &write.data);
        }
        Self { device, layout: superblock.layout }
    }
    /// Two nodes; both learned view 1, the first also decided view 2.
    fn used() -> Self {
        Self::formatted().use_it()
    }
    fn use_it(self) -> Self {
        self.put_node(0, "alpha");
        self.put_node(1, "beta");
        for slot in 0..2 {
            self.put_body(slot, 0, &first_view());
            self.put_record(slot, 0, 2, &first_view(), 0);
            self.put_beat(slot, 1);
        }
        self.put_body(0, 1, &second_view());
        self.put_ballot(0, 0, 2, &second_view(), 1, 256);
        self.put_record(0, 1, 3, &second_view(), 1);
        self.put_beat(0, 2);
        self
    }
    fn place(&self, slot: u16, offset: ByteOffset) -> Place {
        Place { cluster: CLUSTER, offset, slot: SlotIndex(slot) }
    }
    fn put_body(&self, slot: u16, index: u8, body: &ViewBody) {
        let place = self.place(slot, self.layout.body(SlotIndex(slot), index));
        let bytes = encode_body_place(&body.encode_value(), &place, &life(slot), body.view.0, self.layout.place_bytes).unwrap();
        self.device.overwrite(place.offset, &bytes);
    }
    fn put_record(&self, slot: u16, index: u8, sequence: u64, body: &ViewBody, at: u8) {
        let place = self.place(slot, self.layout.record(SlotIndex(slot), index));
        let record = ViewRecord { life: life(slot), sequence, view: body.view, digest: body.digest(), place: at, wall_ms: 0 };
        self.device.overwrite(place.offset, record.encode(&place).as_slice());
    }
    fn put_ballot(&self, slot: u16, index: u8, sequence: u64, body: &ViewBody, at: u8, entered: u64) {
        let place = self.place(slot, self.layout.vote(SlotIndex(slot), index));
        let ballot = Ballot { life: life(slot), sequence, view: body.view, entered, accepted: entered, digest: body.digest(), place: at };
        self.device.overwrite(place.offset, ballot.encode(&place).as_slice());
    }
    fn put_beat(&self, slot: u16, view: u64) {
        let place = self.place(slot, self.layout.beat(SlotIndex(slot)));
        let daemon = DaemonPart { number: 1, view: ViewNumber(view), state: NodeState::Member, ..DaemonPart::default() };
        let beat = Beat {
            slot: SlotIndex(slot),
            boot: life(slot).boot,
            writer: Incarnation([3; 16]),
            beat: 5,
            lease_ms: 0,
            reset_ms: 0,
            rule: Rule::Disk,
            watchdog: WatchdogKind::Process,
            is_stopped: true,
            is_idle: false,
            acknowledged: None,
            wall_ms: 0,
            boottime_ms: 0,
            outlive_ms: 0,
            daemon,
        };
        self.device.overwrite(place.offset, beat.encode(&place).as_slice());
    }
    fn put_node(&self, slot: u16, name: &str) {
        let node = SbdNode { is_in_use: true, name: name.into() };
        self.device.overwrite(ByteOffset(node_offset(SlotIndex(slot), 512)), &node.encode(512));
    }
    fn check(&self) -> Report {
        let before = self.device.contents();
        let report = check_path(self.device.second_path());
        assert!(self.device.contents() == before, "a check has written");
        report
    }
    /// Codes of all findings, each once.
    fn codes(&self) -> Vec<&'static str> {
        let mut codes: Vec<_> = self.check().findings.iter().map(|finding| finding.code.code).collect();
        codes.dedup();
        codes
    }
    fn zero(&self, offset: ByteOffset, bytes: usize) {
        self.device.overwrite(offset, &vec![0; bytes]);
    }
    fn flip(&self, offset: ByteOffset) {
        self.device.flip_bit(ByteOffset(offset.0 + 100), 3);
    }
}

fn check_path(path: MemoryDevice) -> Report {
    let source = Source::of_device("/dev/trial", Arc::new(path) as Arc<dyn RawDevice>);
    check(&source, CheckOptions { pause: Duration::from_millis(1) })
}

#[test]
fn a_fresh_device_and_a_used_one_are_clean() {
    for disk in [Disk::formatted(), Disk::used()] {
        let report = disk.check();
        assert_eq!(report.findings.len(), 0, "{report}");
        assert_eq!(report.exit_code(), 0);
        // Every unit was judged: 4 superblocks; 2 + 2 + 1 + 6 + 1 + 32 per slot, the tool slot, 511 SBD sectors.
        assert_eq!(report.units, 4 + 8 * 44 + 1 + 511, "{report}");
        assert!(report.bytes_read < disk.layout.end.0 + (1 << 20), "more than the used area was read: {report}");
    }
    assert_eq!(Disk::used().check().newest_view, Some((2, vec![0])));
    assert_eq!(Disk::formatted().check().newest_view, Some((0, vec![])));
}

#[test]
fn numbers_at_the_end_of_their_range_are_findings_and_no_end_of_the_check() {
    let last = ViewBody { view: ViewNumber(u64::MAX), ..second_view() };
    let disk = Disk::used();
    disk.put_body(0, 2, &last);
    disk.put_ballot(0, 0, u64::MAX, &last, 2, 256);
    assert_eq!(disk.codes(), ["VT-004"]);
    disk.put_record(0, 0, u64::MAX, &last, 2);
    assert_eq!(disk.codes(), [""; 0]);
}

#[test]
fn a_removed_life_whose_judges_are_gone_may_be_a_member_again() {
    let third = ViewBody {
        view: ViewNumber(3),
        predecessor: second_view().digest(),
        members: vec![life(0), life(1)],
        owed: Vec::new(),
        ..second_view()
    };
    let disk = Disk::used();
    disk.put_body(0, 2, &third);
    disk.put_ballot(0, 0, 3, &third, 2, 256);
    disk.put_record(0, 0, 4, &third, 2);
    assert_eq!(disk.codes(), [""; 0]);
}

#[test]
fn every_damage_has_its_finding() {
    type Damage = fn(&Disk);
    let table: &[(&[&str], Damage)] = &[
        (&["SB-003"], |disk| disk.flip(disk.layout.superblocks[0])),
        (&["SB-003"], |disk| disk.zero(disk.layout.superblocks[3], 4096)),
        (&["SB-003", "SB-005"], |disk| (0..3).for_each(|copy| disk.flip(disk.layout.superblocks[copy]))),
        (&["SB-001"], |disk| (0..4).for_each(|copy| disk.flip(disk.layout.superblocks[copy]))),
        (&["SB-004"], |disk| {
            let newer = Superblock { generation: 2, ..superblock() }.encode(1).unwrap();
            disk.device.overwrite(disk.layout.superblocks[1], newer.as_slice());
        }),
        (&["SB-006"], |disk| {
            for copy in 0..2 {
                let other = Superblock { formatted_wall_ms: 2, ..superblock() }.encode(copy).unwrap();
                disk.device.overwrite(disk.layout.superblocks[copy], other.as_slice());
            }
        }),
        (&["SB-002"], |disk| {
            let fresh = Fresh::new(superblock(), &sbd_header_of(&superblock()), Vec::new(), "host").unwrap();
            let mark = fresh.mark().unwrap();
            disk.device.overwrite(mark.offset, &mark.data);
        }),
        (&["SB-009"], |disk| {
            for copy in 0..4 {
                let other = Superblock { features_incompatible: 1, ..superblock() }.encode(copy).unwrap();
                disk.device.overwrite(disk.layout.superblocks[copy], other.as_slice());
            }
        }),
        (&["BT-001"], |disk| disk.flip(disk.layout.beat(SlotIndex(0)))),
        (&["BT-002"], |disk| disk.put_beat(1, 2)),
        (&["VT-001"], |disk| disk.flip(disk.layout.vote(SlotIndex(0), 0))),
        (&["VT-001"], |disk| {
            // A misdirected write: another slot's good unit.
            let bytes = disk.device.contents();
            let start = usize::try_from(disk.layout.vote(SlotIndex(0), 0).0).unwrap();
            disk.device.overwrite(disk.layout.vote(SlotIndex(5), 1), &bytes[start..start + 4096]);
        }),
        (&["VT-002"], |disk| disk.zero(disk.layout.vote(SlotIndex(7), 1), 4096)),
        (&["VT-003"], |disk| disk.put_ballot(0, 1, 2, &second_view(), 1, 512)),
        (&["VT-004"], |disk| {
            let later = ViewBody { view: ViewNumber(4), predecessor: Digest([1; 32]), ..first_view() };
            disk.put_body(1, 3, &later);
            disk.put_ballot(1, 1, 3, &later, 3, 257);
        }),
        (&["VT-005"], |disk| disk.put_ballot(0, 0, 2, &second_view(), 1, 257)),
        (&["VR-001"], |disk| disk.flip(disk.layout.record(SlotIndex(5), 1))),
        (&["VR-002"], |disk| disk.zero(disk.layout.record(SlotIndex(5), 1), 4096)),
        (&["VR-003"], |disk| disk.put_record(1, 1, 2, &first_view(), 0)),
        (&["VR-004"], |disk| {
            let other = ViewBody { reason: ViewReason::Leave, ..second_view() };
            disk.put_body(1, 1, &other);
            disk.put_record(1, 1, 3, &other, 1);
        }),
        // One body lost: named by a ballot and by a record of its owner.
        (&["VB-001"], |disk| disk.flip(disk.layout.body(SlotIndex(0), 1))),
        (&["VB-010"], |disk| disk.zero(disk.layout.body(SlotIndex(1), 0), 4096)),
        (&["VB-010"], |disk| disk.flip(disk.layout.body(SlotIndex(1), 0))),
        (&["VB-002"], |disk| {
            let place = disk.place(0, disk.layout.body(SlotIndex(0), 5));
            let bytes = encode_body_place(&[1, 0, 99], &place, &life(0), 1, disk.layout.place_bytes).unwrap();
            disk.device.overwrite(place.offset, &bytes);
        }),
        (&["VB-003"], |disk| disk.device.overwrite(disk.layout.body(SlotIndex(4), 2), b"DEADBOLT torn")),
        (&["VB-004"], |disk| disk.decide(&ViewBody { predecessor: Digest([1; 32]), ..second_view() })),
        (&["VB-005"], |disk| {
            disk.decide(&ViewBody { members: vec![life(0), Life { boot: BootId([77; 16]), ..life(1) }], ..second_view() });
        }),
        (&["VB-006"], |disk| {
            let mut body = second_view();
            body.configuration.disk_votes = 2;
            disk.decide(&body);
        }),
        (&["VB-007"], |disk| disk.decide(&ViewBody { members: vec![life(0), life(8)], ..second_view() })),
        (&["VB-008"], |disk| {
            let mut body = second_view();
            body.configuration.version = 2;
            disk.decide(&body);
        }),
        (&["VB-009"], |disk| disk.decide(&ViewBody { owed: Vec::new(), ..second_view() })),
        (&["RQ-001"], |disk| disk.device.overwrite(disk.layout.request(SlotIndex(0)), b"DEADBOLT")),
        (&["RQ-002"], |disk| {
            let place = disk.place(0, disk.layout.request(SlotIndex(0)));
            let request = FenceRequest { victim: life(1), view: ViewNumber(2), serial: 1 };
            let unit = Requests { life: life(0), sequence: 1, requests: vec![request] }.encode(&place).unwrap();
            disk.device.overwrite(place.offset, unit.as_slice());
        }),
        (&["JR-001"], |disk| disk.device.overwrite(disk.layout.journal(SlotIndex(0), 9), b"garbage")),
        (&["JR-002"], |disk| {
            let place = disk.place(0, disk.layout.journal(SlotIndex(0), 9));
            let entry = JournalEntry { life: life(0), sequence: 10, view: ViewNumber(1), wall_ms: 0, boottime_ms: 0, text: "text".into() };
            disk.device.overwrite(place.offset, entry.encode(&place).as_slice());
        }),
        (&["TL-001"], |disk| {
            let place = Place { cluster: CLUSTER, offset: disk.layout.tool, slot: SlotIndex::NONE };
            let claim =
                ToolClaim { boot: BootId::NONE, run: Incarnation([1; 16]), sequence: 1, tool: Tool::Fsck, wall_ms: 0, host: "host".into() };
            disk.device.overwrite(place.offset, claim.encode(&place).unwrap().as_slice());
        }),
        (&["TL-002"], |disk| disk.device.overwrite(disk.layout.tool, b"garbage")),
        (&["SD-001"], |disk| disk.zero(ByteOffset(0), 512)),
        (&["SD-002"], |disk| {
            let header = SbdHeader { msgwait_s: 1, ..sbd_header_of(&superblock()) };
            disk.device.overwrite(ByteOffset(0), &header.encode());
        }),
        (&["SD-003"], |disk| disk.device.overwrite(ByteOffset(node_offset(SlotIndex(200), 512)), &[2])),
        (&["SD-004"], |disk| disk.put_node(9, "ALPHA")),
        (&["SD-005"], |disk| disk.put_node(1, "gamma")),
        (&["SD-006"], |disk| {
            let mailbox = Mailbox { command: Command::Reset, sender: "beta".into(), tail: Tail::Absent };
            disk.device.overwrite(ByteOffset(mailbox_offset(SlotIndex(1), 512)), &mailbox.encode(512));
        }),
        (&["SD-007"], |disk| disk.device.overwrite(ByteOffset(mailbox_offset(SlotIndex(254), 512)), &[9])),
        (&["SD-008"], |disk| {
            let header = SbdHeader { uuid: [1; 16], ..sbd_header_of(&superblock()) };
            disk.device.overwrite(ByteOffset(0), &header.encode());
        }),
        (&["SD-009"], |disk| disk.zero(ByteOffset(node_offset(SlotIndex(1), 512)), 512)),
    ];
    let mut seen: Vec<&str> = vec!["IO-001", "SB-007", "SB-008", "SB-010", "BT-003"];
    for (expected, damage) in table {
        let disk = Disk::used();
        damage(&disk);
        let mut codes = disk.codes();
        codes.sort_unstable();
        assert_eq!(codes, *expected, "{}", disk.check());
        let is_error = expected.iter().any(|wanted| CODES.iter().any(|code| code.code == *wanted && code.severity == Severity::Error));
        assert_eq!(disk.check().exit_code(), if is_error { 4 } else { 0 });
        seen.extend(*expected);
    }
    let untested: Vec<_> = CODES.iter().map(|code| code.code).filter(|code| !seen.contains(code)).collect();
    assert_eq!(untested, Vec::<&str>::new());
}

#[test]
fn one_of_three_devices_may_lack_the_record_of_a_view_that_its_node_acts_in() {
    for (count, expected) in [(1, vec!["BT-002"]), (3, vec![])] {
        let disk = Disk::one_of(count).use_it();
        disk.put_beat(1, 2);
        assert_eq!(disk.codes(), expected, "{count} devices");
    }
}

impl Disk {
    /// Both nodes have decided this as view 2.
    fn decide(&self, body: &ViewBody) {
        for slot in 0..2 {
            self.put_body(slot, 1, body);
            self.put_record(slot, 1, 3, body, 1);
        }
        self.put_ballot(0, 0, 2, body, 1, 256);
    }
}

#[test]
fn a_node_that_is_not_configured_and_beats_is_noted() {
    let disk = Disk::used();
    let place = disk.place(6, disk.layout.beat(SlotIndex(6)));
    let living = Beat {
        slot: SlotIndex(6),
        boot: life(6).boot,
        writer: Incarnation([3; 16]),
        beat: 1,
        lease_ms: 0,
        reset_ms: 0,
        rule: Rule::Disk,
        watchdog: WatchdogKind::Device,
        is_stopped: false,
        is_idle: false,
        acknowledged: None,
        wall_ms: 0,
        boottime_ms: 0,
        outlive_ms: 0,
        daemon: DaemonPart::default(),
    };
    disk.device.overwrite(place.offset, living.encode(&place).as_slice());
    assert_eq!(disk.codes(), ["BT-003"]);
}

#[test]
fn an_unreadable_unit_hides_no_other() {
    let disk = Disk::used();
    disk.flip(disk.layout.vote(SlotIndex(0), 0));
    let path = disk.device.second_path();
    path.inject(Fault::new(Touches::Reads, FaultKind::Error(5)).within(disk.layout.vote(SlotIndex(3), 1), 4096));
    let report = check_path(path);
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.code.code, finding.slot)).collect();
    assert_eq!(found, [("IO-001", Some(SlotIndex(3))), ("VT-001", Some(SlotIndex(0)))], "{report}");
    assert_eq!(report.exit_code(), 4);
}

#[test]
fn another_size_is_named() {
    let disk = Disk::used();
    let larger = MemoryDevice::new(SIZE + (1 << 20), 512);
    larger.overwrite(ByteOffset(0), &disk.device.contents());
    assert_eq!(check_path(larger).findings.iter().map(|finding| finding.code.code).collect::<Vec<_>>(), ["SB-008"]);
    let smaller = MemoryDevice::new(SIZE - (1 << 20), 512);
    smaller.overwrite(ByteOffset(0), &disk.device.contents());
    let report = check_path(smaller);
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code.code).collect();
    assert_eq!(codes, ["SB-003", "SB-007"], "{report}");
    let other_sector = MemoryDevice::new(SIZE, 4096);
    other_sector.overwrite(ByteOffset(0), &disk.device.contents());
    assert!(check_path(other_sector).findings.iter().any(|finding| finding.code.code == "SB-010"));
}

#[test]
fn a_unit_caught_in_the_middle_of_a_write_is_no_finding() {
    let disk = Disk::used();
    let place = disk.layout.vote(SlotIndex(0), 0);
    let good = disk.device.contents()[usize::try_from(place.0).unwrap()..][..4096].to_vec();
    disk.flip(place);
    let mender = std::thread::spawn({
        let path = disk.device.second_path();
        move || {
            std::thread::sleep(Duration::from_millis(150));
            path.overwrite(place, &good);
        }
    });
    let source = Source::of_device("/dev/trial", Arc::new(disk.device.second_path()) as Arc<dyn RawDevice>);
    let report = check(&source, CheckOptions { pause: Duration::from_millis(200) });
    mender.join().unwrap();
    assert_eq!(report.findings.len(), 0, "{report}");
}

#[test]
fn a_cluster_that_decides_views_all_the_time_is_clean() {
    let disk = Arc::new(Disk::used());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let decided = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writer = std::thread::spawn({
        let (disk, stop, decided) = (Arc::clone(&disk), Arc::clone(&stop), Arc::clone(&decided));
        move || {
            // As a node does it: body, ballot, record, beat; places and units in turn.
            let mut before = second_view();
            let mut turns = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let body = ViewBody { view: ViewNumber(before.view.0 + 1), predecessor: before.digest(), ..before };
                let (index, at) = (u8::try_from(turns % 2).unwrap(), u8::try_from(2 + turns % 4).unwrap());
                disk.put_body(0, at, &body);
                disk.put_ballot(0, 1 - index, 3 + turns, &body, at, 256 * (turns + 2));
                disk.put_record(0, index, 4 + turns, &body, at);
                disk.put_beat(0, body.view.0);
                before = body;
                turns += 1;
                decided.store(turns, std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    // Whichever of the two the machine favours: until both have done enough.
    let (mut seen_live, until) = (0, std::time::Instant::now() + Duration::from_secs(60));
    let is_enough = |seen_live: usize| seen_live > 0 && decided.load(std::sync::atomic::Ordering::Relaxed) > 20;
    for checks in 0.. {
        if (checks >= 30 && is_enough(seen_live)) || std::time::Instant::now() > until {
            break;
        }
        let report = check_path(disk.device.second_path());
        assert_eq!(report.errors(), 0, "{report}");
        seen_live += report.live.len();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert!(is_enough(seen_live));
}

/// A node that decides another view whenever somebody looks at one of its bodies.
struct Restless {
    disk: Disk,
    state: Mutex<(ViewBody, u64)>,
}
impl RawDevice for Restless {
    fn geometry(&self) -> &Geometry {
        self.disk.device.geometry()
    }
    fn is_writable(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
        let layout = &self.disk.layout;
        let own = layout.bodies.0..layout.body(SlotIndex(1), 0).0;
        if own.contains(&offset.0) {
            let mut state = self.state.lock().unwrap();
            for _ in 0..6 {
                let (before, turns) = &mut *state;
                let body = ViewBody { view: ViewNumber(before.view.0 + 1), predecessor: before.digest(), ..before.clone() };
                let (index, at) = (u8::try_from(*turns % 2).unwrap(), u8::try_from(*turns % 6).unwrap());
                self.disk.put_body(0, at, &body);
                self.disk.put_ballot(0, 1 - index, 3 + *turns, &body, at, 256 * (*turns + 2));
                self.disk.put_record(0, index, 4 + *turns, &body, at);
                *state = (body, *turns + 1);
            }
        }
        self.disk.device.read_at(offset, buffer)
    }
    fn write_at(&self, offset: ByteOffset, _: &AlignedBuf) -> Result<(), IoError> {
        Err(IoError::ReadOnly { offset: offset.0 })
    }
}

#[test]
fn a_body_that_moves_between_two_reads_is_no_finding() {
    let restless = Restless { disk: Disk::used(), state: Mutex::new((second_view(), 2)) };
    let source = Source::of_device("/dev/trial", Arc::new(restless) as Arc<dyn RawDevice>);
    let report = check(&source, CheckOptions { pause: Duration::ZERO });
    assert_eq!(report.errors(), 0, "{report}");
}

#[test]
fn arbitrary_devices_never_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20 {
        let disk = Disk::used();
        for _ in 0..200 {
            let offset = next() % disk.layout.end.0;
            disk.device.overwrite(ByteOffset(offset), &next().to_le_bytes());
        }
        let source = Source::of_device("x", Arc::new(disk.device.second_path()) as Arc<dyn RawDevice>);
        let report = check(&source, CheckOptions { pause: Duration::ZERO });
        serde_json::to_string(&report.json()).unwrap();
    }
}

#[test]
fn the_program_has_the_exit_codes_of_fsck() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let disk = Disk::used();
    std::fs::write(&path, disk.device.contents()).unwrap();
    let run = |options: &[&str]| main_from(options.iter().map(std::ffi::OsString::from).chain([path.clone().into_os_string()]));
    assert_eq!(run(&[]), 0);
    assert_eq!(run(&["-a", "-f", "-n", "--json"]), 0);
    disk.flip(disk.layout.superblocks[2]);
    std::fs::write(&path, disk.device.contents()).unwrap();
    assert_eq!(run(&[]), 4);
    assert_eq!(run(&["--no-such-option"]), 16);
    assert_eq!(main_from(Vec::<String>::new()), 16);
    assert_eq!(main_from([folder.path().join("absent")]), 8);
    assert_eq!(main_from([folder.path()]), 8);
    assert_eq!(main_from(["--explain", "SB-001"]), 0);
    assert_eq!(main_from(["--explain", "XX-999"]), 16);
    std::fs::write(&path, []).unwrap();
    assert_eq!(run(&[]), 8);
    std::fs::write(&path, [0; 70_000]).unwrap();
    assert_eq!(run(&[]), 4);
}

#[test]
fn the_page_of_findings_is_that_of_the_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats/findings.md");
    let page = std::fs::read_to_string(path).unwrap();
    let found: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && line.contains('-') && !line.contains("---")).collect();
    let word = |severity| if severity == Severity::Error { "error" } else { "note" };
    let expected: Vec<String> =
        CODES.iter().map(|code| format!("| {} | {} | {} | {} |", code.code, word(code.severity), code.title, code.advice)).collect();
    assert_eq!(found, expected);
    let mut sorted: Vec<&str> = CODES.iter().map(|code| code.code).collect();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, CODES.iter().map(|code| code.code).collect::<Vec<_>>());
}

#[test]
fn one_changed_bit_in_each_unit_is_found_in_each() {
    for byte in [9u64, 100, 511, 600, 4095] {
        let disk = Disk::used();
        let units: Vec<_> = disk.layout.units().into_iter().filter(|(area, ..)| !matches!(area, Area::Superblock(_))).collect();
        for (number, (_, offset, _)) in units.iter().enumerate() {
            disk.device.flip_bit(ByteOffset(offset.0 + byte), u8::try_from(number % 8).unwrap());
        }
        let source = Source::of_device("x", Arc::new(disk.device.second_path()) as Arc<dyn RawDevice>);
        let report = check(&source, CheckOptions { pause: Duration::ZERO });
        for (area, offset, _) in units {
            let is_found = report.findings.iter().any(|finding| finding.offset == Some(offset));
            assert!(is_found, "byte {byte} of {area:?} at {} was not noticed", offset.0);
        }
    }
}
