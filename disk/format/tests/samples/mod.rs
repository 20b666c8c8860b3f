//! What: one sample of each record, with every field set to something that can be recognised in a dump.
//! Owns: the values behind the golden images; changing one is changing an image.
//! Invariants: no clock, no randomness.
//! Does not: compare anything.
//! Called by: the test programs beside it.
#![allow(dead_code, reason = "each test program uses some of it")]

use deadbolt_disk_format::head::CHECKSUM_OFFSET;
use deadbolt_disk_format::*;

pub(crate) const CLUSTER: ClusterUuid = ClusterUuid(*b"cluster-uuid-016");
pub(crate) const DEVICE_BYTES: u64 = 16 << 20;

pub(crate) struct Sample {
    pub(crate) record: RecordType,
    pub(crate) place: Place,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn layout() -> Layout {
    Layout::new(DEVICE_BYTES, 512, 32).unwrap()
}
pub(crate) fn life(slot: u16) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId(*b"boot-of-machine1"), incarnation: Incarnation(*b"life-of-daemon-1") }
}
pub(crate) fn timings() -> Timings {
    Timings {
        stall_ms: 5000,
        poll_ms: 250,
        feed_ms: 100,
        watchdog_ms: 2000,
        lateness_ms: 200,
        earliness_ms: 100,
        cycle_ms: 50,
        reset_ms: 2220,
        lease_ms: 8300,
        expiry_ms: 8500,
        storage_delay_ms: 500,
        freeze_ms: 60_000,
        detect_ms: 1500,
        drift_ppm: 10_000,
    }
}
pub(crate) fn superblock() -> Superblock {
    Superblock {
        cluster: CLUSTER,
        device: DeviceUuid(*b"device-uuid-0016"),
        device_number: 1,
        device_count: 3,
        name: "golden".into(),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes: 512,
        slots: 32,
        device_bytes: DEVICE_BYTES,
        timings: timings(),
        layout: layout(),
        formatted_wall_ms: 1_700_000_000_000,
    }
}
pub(crate) fn beat() -> Beat {
    Beat {
        slot: SlotIndex(3),
        boot: life(3).boot,
        writer: Incarnation(*b"life-of-sbd-0001"),
        beat: 77,
        lease_ms: 8300,
        reset_ms: 2220,
        rule: Rule::Cluster,
        watchdog: WatchdogKind::Process,
        is_stopped: true,
        is_idle: true,
        acknowledged: Some(Acknowledgement { reset_ms: 1111, command: 2 }),
        wall_ms: 1_700_000_000_001,
        boottime_ms: 123_456,
        outlive_ms: 0,
        daemon: DaemonPart {
            number: 42,
            incarnation: life(3).incarnation,
            state: NodeState::Member,
            holds: true,
            score: 97,
            preference: 0,
            protected: 0,
            view: ViewNumber(12),
            hears: [SlotIndex(0), SlotIndex(64), SlotIndex(254)].into_iter().collect(),
            left: LeftLives { newest: Incarnation(*b"life-that-left-1"), view: ViewNumber(11), earlier: [Incarnation::NONE; 4] },
            consent_view: ViewNumber(12),
            consent_instant_ms: 123_000,
            vouches: vec![Vouch { slot: SlotIndex(1), serial: 5 }, Vouch { slot: SlotIndex(2), serial: 6 }],
        },
    }
}
pub(crate) fn view_body() -> ViewBody {
    let node = |slot: u16, name: &str| NodeEntry {
        slot: SlotIndex(slot),
        votes: 1 + slot,
        name: name.into(),
        addresses: vec![format!("192.0.2.{slot}:7700"), "[2001:db8::1]:7700".into()],
    };
    ViewBody {
        view: ViewNumber(12),
        predecessor: Digest(*b"digest-of-view-eleven-32-bytes--"),
        proposer: Some(life(0)),
        reason: ViewReason::Remove,
        members: vec![life(0), life(3)],
        owed: vec![Owed { life: life(1), removed_in: ViewNumber(12) }],
        released: vec![Released { life: life(2), evidence: Evidence::Acknowledged, waited_ms: 2720, witness: SlotIndex(3) }],
        configuration: Configuration {
            version: 4,
            disk_votes: 2,
            disk_votes_pinned: true,
            format_level: 1,
            timings: timings(),
            nodes: vec![node(0, "alpha"), node(1, "beta"), node(2, "gamma"), node(3, "delta")],
        },
    }
}
pub(crate) fn ballot() -> Ballot {
    Ballot { life: life(3), sequence: 9, view: ViewNumber(12), entered: 515, accepted: 259, digest: view_body().digest(), place: 4 }
}
pub(crate) fn view_record() -> ViewRecord {
    ViewRecord { life: life(3), sequence: 10, view: ViewNumber(12), digest: view_body().digest(), place: 4, wall_ms: 1_700_000_000_002 }
}
pub(crate) fn requests() -> Requests {
    let request = |slot, serial| FenceRequest { victim: life(slot), view: ViewNumber(12), serial };
    Requests { life: life(3), sequence: 6, requests: vec![request(1, 1), request(2, 2)] }
}
pub(crate) fn journal_entry() -> JournalEntry {
    JournalEntry {
        life: life(3),
        sequence: 33,
        view: ViewNumber(12),
        wall_ms: 1_700_000_000_003,
        boottime_ms: 124_000,
        text: "view 12: beta removed, wrote a pill".into(),
    }
}
pub(crate) fn tool_claim() -> ToolClaim {
    ToolClaim {
        boot: life(0).boot,
        run: Incarnation(*b"device-uuid-0016"),
        sequence: 1,
        tool: Tool::Format,
        wall_ms: 1_700_000_000_004,
        host: "workbench".into(),
    }
}

pub(crate) fn samples() -> Vec<Sample> {
    let layout = layout();
    let slot = SlotIndex(3);
    let at = |offset| Place { cluster: CLUSTER, offset, slot };
    let nobody = |offset| Place { cluster: CLUSTER, offset, slot: SlotIndex::NONE };
    let body_place = at(layout.body(slot, 4));
    let sample = |record, place, bytes: &[u8]| Sample { record, place, bytes: bytes.to_vec() };
    let short = |record, place: Place, encode: &dyn Fn(&Place) -> Unit| sample(record, place, encode(&place).as_slice());
    vec![
        short(RecordType::Superblock, nobody(layout.superblocks[2]), &|_| superblock().encode(2).unwrap()),
        short(RecordType::Beat, at(layout.beat(slot)), &|place| beat().encode(place)),
        short(RecordType::Vote, at(layout.vote(slot, 1)), &|place| ballot().encode(place)),
        short(RecordType::ViewRecord, at(layout.record(slot, 0)), &|place| view_record().encode(place)),
        sample(RecordType::ViewBody, body_place, &encode_body_place(&view_body().encode_value(), &body_place, &life(3), 8, 8192).unwrap()),
        short(RecordType::Requests, at(layout.request(slot)), &|place| requests().encode(place).unwrap()),
        short(RecordType::Journal, at(layout.journal(slot, 1)), &|place| journal_entry().encode(place)),
        short(RecordType::ToolClaim, nobody(layout.tool), &|place| tool_claim().encode(place).unwrap()),
    ]
}

/// Puts the right checksum behind changed head bytes, as a newer or a broken program would.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let checksum = crc32fast::hash(&bytes[..CHECKSUM_OFFSET]);
    bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
}
