//! What: every operation of several writes, cut by a power loss at every write and inside every write: what readers make of it.
//! Owns: a small cluster's device, the plans of writes, the register driven by hand so that its writes can be cut.
//! Invariants: half a format is refused with a clear text, half a record is no news, half a decision is decided or open and never two;
//!   the image after the last write is whole.
//! Does not: cut `sbd create` (sbd/src/area.rs does, where the operation is) or what does not exist: nothing grows a device, fsck
//!   writes nothing.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

#[path = "../../../disk/format/tests/samples/mod.rs"]
mod samples;

use deadbolt_cluster::devices::{self, DevicesError};
use deadbolt_disk::{Access, MemoryDevice};
use deadbolt_disk_format::fresh::{Fresh, Step, sbd_header_of};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdNode, Tail, mailbox_offset, node_offset};
use deadbolt_disk_format::*;
use deadbolt_fsck::{CheckOptions, Report, Source};
use deadbolt_qdisk_core::{DiskDone, DiskOp, DiskOpKind, Input, Output, Register, RegisterConfig, RegisterPhase};
use deadbolt_tests::crash::{Moment, Write, each_image, land, tears};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 4 << 20;
const SLOTS: u16 = 2;
const OLD: ClusterUuid = ClusterUuid([1; 16]);
const NEW: ClusterUuid = ClusterUuid([2; 16]);

fn superblock(cluster: ClusterUuid, number: u16, count: u16) -> Superblock {
    Superblock {
        cluster,
        device: DeviceUuid([cluster.0[0], u8::try_from(number).unwrap() + 1].repeat(8).try_into().unwrap()),
        device_number: number,
        device_count: count,
        name: format!("cluster-{}", cluster.0[0]),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes: 512,
        slots: SLOTS,
        device_bytes: SIZE as u64,
        timings: timings(),
        layout: Layout::new(SIZE as u64, 512, SLOTS).unwrap(),
        formatted_wall_ms: 1,
    }
}

fn timings() -> Timings {
    Timings { stall_ms: 1000, poll_ms: 100, watchdog_ms: 1000, expiry_ms: 3200, storage_delay_ms: 500, ..Timings::default() }
}

fn plan(superblock: &Superblock) -> Vec<(Step, Write)> {
    let fresh = Fresh::new(superblock.clone(), &sbd_header_of(superblock), Vec::new(), "workbench").unwrap();
    fresh.writes().unwrap().map(|write| (write.step, Write { offset: write.offset, data: write.data })).collect()
}

fn formatted(superblock: &Superblock) -> Vec<u8> {
    let mut image = vec![0; SIZE];
    for (_, write) in plan(superblock) {
        land(&mut image, &write, None);
    }
    image
}

fn choice(image: &[u8]) -> SuperblockChoice {
    let unit = |offset: ByteOffset| {
        let start = usize::try_from(offset.0).ok()?;
        image.get(start..start + UNIT_BYTES).map(<[u8]>::to_vec)
    };
    choose_superblock(&read_superblocks(SIZE as u64, unit))
}

fn fsck(image: &[u8]) -> Report {
    let device = MemoryDevice::new(SIZE, 512);
    device.overwrite(ByteOffset(0), image);
    deadbolt_fsck::check(&Source::of_device("image", Arc::new(device)), CheckOptions { pause: Duration::ZERO })
}

fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|finding| finding.code.code).collect()
}

/// Image files, as a node opens them; none where the temporary folder has no direct I/O.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// What a node says that starts on these images.
    fn open(&self, images: &[&[u8]]) -> Option<Result<(), String>> {
        let paths: Vec<PathBuf> = (0..images.len()).map(|number| self.0.path().join(number.to_string())).collect();
        for (path, image) in paths.iter().zip(images) {
            std::fs::write(path, image).unwrap();
        }
        match devices::open(&paths, Access::ReadWrite) {
            Err(DevicesError::Open(error)) if error.to_string().contains("direct I/O") => None,
            opened => Some(opened.map(|_| ()).map_err(|error| error.to_string())),
        }
    }
}

#[test]
fn a_format_cut_anywhere_is_the_old_device_or_refused_or_whole() {
    let files = Files::new();
    let old = superblock(OLD, 0, 1);
    let used = used_device(&old);
    let new = superblock(NEW, 0, 1);
    let writes = plan(&new);
    let steps: Vec<Step> = writes.iter().map(|(step, _)| *step).collect();
    let writes: Vec<Write> = writes.into_iter().map(|(_, write)| write).collect();
    let befores = [("blank", vec![0; SIZE], false), ("bytes of others", vec![0x5a; SIZE], false), ("a used cluster", used, true)];
    for (name, before, has_cluster) in befores {
        let mut seen = BTreeSet::new();
        let judge = |image: &[u8], moment: &Moment| {
            let step = steps.get(moment.complete);
            let context = || format!("{name}: {moment}, at {step:?}");
            let opened = if moment.landed.is_empty() { files.open(&[image]) } else { None };
            match choice(image) {
                SuperblockChoice::Agreed { superblock, .. } if superblock.cluster == OLD => {
                    // Nothing but the mark may be under way.
                    assert!(has_cluster && step == Some(&Step::Mark), "{}", context());
                    assert_eq!(fsck(image).errors(), 0, "{}", context());
                    seen.insert("old");
                }
                SuperblockChoice::Unfinished { cluster } => {
                    assert!(cluster == NEW && step.is_some(), "{}", context());
                    let report = fsck(image);
                    assert_eq!(codes(&report), BTreeSet::from(["SB-002"]), "{}: {report}", context());
                    assert!(report.errors() > 0 && report.exit_code() == 4);
                    if let Some(opened) = opened {
                        let text = opened.unwrap_err();
                        assert!(text.contains("has not ended; run the format again"), "{}: {text}", context());
                    }
                    seen.insert("unfinished");
                }
                SuperblockChoice::Agreed { superblock, copies, .. } => {
                    // The last write's first sector is what makes the device valid.
                    let is_committed = step.is_none() || step == Some(&Step::Commit) && moment.landed.contains(&0);
                    assert!(superblock == new && is_committed && copies == [true; 4], "{}", context());
                    let report = fsck(image);
                    assert_eq!((report.errors(), report.findings.len()), (0, 0), "{}: {report}", context());
                    assert!(opened.is_none_or(|opened| opened.is_ok()), "{}", context());
                    seen.insert("whole");
                }
                // Not ours yet: the mark has not landed.
                SuperblockChoice::Absent => {
                    assert!(!has_cluster && step == Some(&Step::Mark), "{}", context());
                    assert!(fsck(image).errors() > 0, "{}", context());
                    assert!(opened.is_none_or(|opened| opened.unwrap_err().contains("deadbolt format")), "{}", context());
                    seen.insert("absent");
                }
                other => panic!("{}: {other:?}", context()),
            }
        };
        let images = each_image(&before, &writes, judge);
        assert!(images >= 32, "{name}: only {images} images");
        assert_eq!(seen, BTreeSet::from([if has_cluster { "old" } else { "absent" }, "unfinished", "whole"]), "{name}");
    }
}

#[test]
fn three_devices_are_a_cluster_only_with_the_very_last_commit() {
    let files = Files::new();
    let superblocks: Vec<Superblock> = (0..3).map(|number| superblock(NEW, number, 3)).collect();
    let plans: Vec<Vec<(Step, Write)>> = superblocks.iter().map(plan).collect();
    // As the format writes them: the marks of all, then what lies between, then the commits of all.
    let pick = |wanted: fn(Step) -> bool| {
        let all = plans.iter().enumerate().flat_map(|(device, plan)| plan.iter().map(move |(step, write)| (device, *step, write)));
        all.filter(move |(_, step, _)| wanted(*step)).collect::<Vec<_>>()
    };
    let order =
        [pick(|step| step == Step::Mark), pick(|step| !matches!(step, Step::Mark | Step::Commit)), pick(|step| step == Step::Commit)];
    let order = order.concat();
    let mut images = vec![vec![0; SIZE]; 3];
    for (number, (device, step, write)) in order.iter().enumerate() {
        let good = images.iter().filter(|image| matches!(choice(image), SuperblockChoice::Agreed { .. })).count();
        assert_eq!(good, (number + 3).saturating_sub(order.len()), "before write {number}");
        if *step == Step::Commit
            && let Some(opened) = files.open(&images.iter().map(Vec::as_slice).collect::<Vec<_>>())
        {
            let text = opened.unwrap_err();
            assert!(text.contains("has not ended; run the format again"), "{text}");
        }
        land(&mut images[*device], write, None);
    }
    for image in &images {
        assert_eq!(fsck(image).findings.len(), 0);
    }
    assert!(files.open(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).is_none_or(|opened| opened.is_ok()));
}

fn life(slot: u16, number: u8) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId([number; 16]), incarnation: Incarnation([number; 16]) }
}

/// The views of a cluster's first minutes: somebody is first, another joins, goes, and is proved gone.
fn next_view(before: &ViewBody, digest: Digest, me: Life) -> ViewBody {
    // Long addresses, so that a body has several sectors that can tear.
    let other = life(1 - me.slot.0, 9);
    let node = |slot: u16, name: &str| NodeEntry { slot: SlotIndex(slot), votes: 1, name: name.into(), addresses: vec!["x".repeat(60); 4] };
    let mut next = ViewBody {
        view: ViewNumber(before.view.0 + 1),
        predecessor: digest,
        proposer: Some(me),
        members: vec![me],
        owed: before.owed.clone(),
        configuration: before.configuration.clone(),
        ..ViewBody::default()
    };
    next.configuration.version += 1;
    match before.view.0 % 4 {
        0 if before.configuration.nodes.is_empty() => {
            next.reason = ViewReason::Initial;
            next.configuration.nodes = vec![node(0, "alpha")];
        }
        1 => {
            next.reason = ViewReason::Join;
            next.configuration.nodes = vec![node(0, "alpha"), node(1, "beta")];
            next.configuration.disk_votes = 1;
            next.members = vec![me.min(other), me.max(other)];
        }
        _ => {
            next.reason = ViewReason::Remove;
            let gone = before.members.iter().filter(|life| **life != me);
            let owed: Vec<Owed> = gone.map(|life| Owed { life: *life, removed_in: next.view }).collect();
            next.owed.retain(|owed| !before.members.contains(&owed.life));
            next.released = next
                .owed
                .drain(..)
                .map(|owed| Released { life: owed.life, evidence: Evidence::Expired, waited_ms: 0, witness: me.slot })
                .collect();
            next.owed = owed;
        }
    }
    next.owed.sort_by_key(|owed| owed.life);
    next
}

/// What stands on a device: an image, and what was written since. Copying it is cheap.
#[derive(Clone)]
struct Disk<'a> {
    base: &'a [u8],
    units: BTreeMap<usize, Vec<u8>>,
}

impl<'a> Disk<'a> {
    fn new(base: &'a [u8]) -> Self {
        Self { base, units: BTreeMap::new() }
    }
    fn read(&self, offset: ByteOffset, bytes: usize) -> Vec<u8> {
        let start = usize::try_from(offset.0).unwrap();
        let mut found = self.base[start..start + bytes].to_vec();
        for (at, unit) in self.units.range(start..start + bytes) {
            found[at - start..at - start + UNIT_BYTES].copy_from_slice(unit);
        }
        found
    }
    fn write(&mut self, offset: ByteOffset, data: &[u8]) {
        let start = usize::try_from(offset.0).unwrap();
        for (number, unit) in data.chunks(UNIT_BYTES).enumerate() {
            self.units.insert(start + number * UNIT_BYTES, unit.to_vec());
        }
    }
    fn image(&self) -> Vec<u8> {
        let mut image = self.base.to_vec();
        for (at, unit) in &self.units {
            image[*at..*at + UNIT_BYTES].copy_from_slice(unit);
        }
        image
    }
    /// Does an operation, whole.
    fn run(&mut self, kind: &DiskOpKind) -> Vec<u8> {
        match kind {
            DiskOpKind::Read { offset, bytes } => self.read(*offset, *bytes),
            DiskOpKind::Write { offset, data } => {
                self.write(*offset, data);
                Vec::new()
            }
            DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                self.write(*write_offset, data);
                self.read(*read_offset, *read_bytes)
            }
        }
    }
}

fn write_of(kind: &DiskOpKind) -> Option<Write> {
    match kind {
        DiskOpKind::Read { .. } => None,
        DiskOpKind::Write { offset, data } => Some(Write { offset: *offset, data: data.clone() }),
        DiskOpKind::WriteThenRead { write_offset, data, .. } => Some(Write { offset: *write_offset, data: data.clone() }),
    }
}

/// A node's register, driven by hand.
struct Voter {
    me: Life,
    register: Register,
    now_ms: u64,
    /// Operations on their way, at most one per device.
    under_way: Vec<DiskOp>,
    /// What it said is decided.
    learned: BTreeMap<ViewNumber, (Digest, ViewBody)>,
}

impl Voter {
    fn start(superblocks: &[Superblock], me: Life) -> Self {
        let layouts = superblocks.iter().map(|superblock| superblock.layout).collect();
        let config = RegisterConfig { cluster: superblocks[0].cluster, me, layouts, seed: u64::from(me.slot.0), wall_offset_ms: 0 };
        let mut voter = Self { me, register: Register::new(config), now_ms: 0, under_way: Vec::new(), learned: BTreeMap::new() };
        voter.handle(Input::Start);
        voter
    }

    fn handle(&mut self, input: Input) {
        self.register.handle(self.now_ms, input);
        while let Some(output) = self.register.poll_output() {
            match output {
                Output::Disk(operation) => self.under_way.push(operation),
                Output::Learned { body, digest } | Output::Contested { body, digest, .. } => {
                    self.learned.insert(body.view, (digest, body));
                }
                Output::ProposalLost { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn newest(&self) -> Option<&(Digest, ViewBody)> {
        self.learned.values().next_back()
    }

    fn propose(&mut self) {
        let (digest, body) = self.newest().unwrap();
        let next = next_view(body, *digest, self.me);
        next.check().unwrap();
        self.handle(Input::Propose(next));
    }

    fn is_resting(&self) -> bool {
        self.under_way.is_empty() && self.register.status().phase == RegisterPhase::Idle
    }

    /// Completes the operation that came first; where none is under way time goes on.
    fn step(&mut self, disks: &mut [Disk<'_>]) {
        if self.under_way.is_empty() {
            self.now_ms = self.register.next_deadline().unwrap().max(self.now_ms + 1);
            return self.handle(Input::Tick);
        }
        let operation = self.under_way.remove(0);
        let result = Ok(Arc::from(disks[operation.device].run(&operation.kind)));
        self.handle(Input::Disk(DiskDone { tag: operation.tag, device: operation.device, result }));
    }

    /// Runs until it has nothing to do.
    fn rest(&mut self, disks: &mut [Disk<'_>]) {
        for _ in 0..2000 {
            if self.is_resting() {
                return;
            }
            self.step(disks);
        }
        panic!("it does not come to rest: {:?}", self.register.status());
    }
}

/// A device on which a cluster lived: three views, names, a beat, a message, an event.
fn used_device(superblock: &Superblock) -> Vec<u8> {
    let empty = formatted(superblock);
    let mut disks = [Disk::new(&empty)];
    let mut voter = Voter::start(std::slice::from_ref(superblock), life(0, 3));
    voter.rest(&mut disks);
    for _ in 0..3 {
        voter.propose();
        voter.rest(&mut disks);
    }
    assert_eq!(voter.newest().unwrap().1.view, ViewNumber(3));
    let mut image = disks[0].image();
    for (slot, name) in [(0, "alpha"), (1, "beta")] {
        let data = SbdNode { is_in_use: true, name: name.into() }.encode(512);
        land(&mut image, &Write { offset: ByteOffset(node_offset(SlotIndex(slot), 512)), data }, None);
    }
    image
}

/// Everything that a power loss may leave while these operations are under way: each write not begun, torn, or landed.
fn losses<'a>(disks: &[Disk<'a>], under_way: &[DiskOp], tears_max: usize) -> Vec<Vec<Disk<'a>>> {
    let mut worlds = vec![disks.to_vec()];
    for operation in under_way {
        let Some(write) = write_of(&operation.kind) else { continue };
        let old = disks[operation.device].read(write.offset, write.data.len());
        let torn = tears(&old, &write.data);
        let step = torn.len().div_ceil(tears_max).max(1);
        let mut contents: Vec<Vec<u8>> = vec![write.data.clone()];
        for landed in torn.iter().step_by(step) {
            let mut content = old.clone();
            land(&mut content, &Write { offset: ByteOffset(0), data: write.data.clone() }, Some(landed));
            contents.push(content);
        }
        let landed = worlds.iter().flat_map(|world| {
            contents.iter().map(|content| {
                let mut world = world.clone();
                world[operation.device].write(write.offset, content);
                world
            })
        });
        let landed: Vec<_> = landed.collect();
        worlds.extend(landed);
    }
    worlds
}

/// After the loss somebody goes on: what was said to be decided is found, and the next view can be decided.
fn go_on(superblocks: &[Superblock], world: &[Disk<'_>], writer: &Voter, me: Life) {
    let mut disks = world.to_vec();
    let mut survivor = Voter::start(superblocks, me);
    survivor.rest(&mut disks);
    let (said, found) = (writer.newest(), survivor.newest().unwrap().clone());
    if let Some((digest, body)) = said {
        assert!(found.1.view >= body.view, "view {} is forgotten, {} was found", body.view, found.1.view);
        assert!(found.1.view > body.view || found.0 == *digest, "view {} has two values", body.view);
        assert!(found.1.view.0 <= body.view.0 + 1, "a view that nobody proposed");
    }
    survivor.propose();
    survivor.rest(&mut disks);
    assert!(survivor.newest().unwrap().1.view > found.1.view, "it does not go on: {:?}", survivor.register.status());
    // Whoever comes after that finds the same.
    let mut third = Voter::start(superblocks, life(1 - me.slot.0, 6));
    third.rest(&mut disks);
    assert_eq!(third.newest().unwrap().0, survivor.newest().unwrap().0);
}

#[test]
fn a_view_cut_while_it_is_decided_is_decided_or_open_and_the_others_go_on() {
    for (count, tears_max) in [(1u16, usize::MAX), (3, 2)] {
        let superblocks: Vec<Superblock> = (0..count).map(|number| superblock(NEW, number, count)).collect();
        let images: Vec<Vec<u8>> = superblocks.iter().map(formatted).collect();
        let mut disks: Vec<Disk<'_>> = images.iter().map(|image| Disk::new(image)).collect();
        let mut writer = Voter::start(&superblocks, life(0, 3));
        writer.rest(&mut disks);
        let mut worlds_seen = 0;
        for _ in 0..3 {
            writer.propose();
            while !writer.is_resting() {
                for world in losses(&disks, &writer.under_way, tears_max) {
                    worlds_seen += 1;
                    // The other node, and the next life of the one that was lost.
                    go_on(&superblocks, &world, &writer, life(u16::from(worlds_seen % 2 == 0), 7));
                    if count == 1 {
                        let report = fsck(&world[0].image());
                        assert_eq!(report.errors(), 0, "{report}");
                    }
                }
                writer.step(&mut disks);
            }
        }
        assert_eq!(writer.newest().unwrap().1.view, ViewNumber(3));
        assert!(worlds_seen > 35, "{count} devices: {worlds_seen}");
        println!("{count} devices: {worlds_seen} losses");
    }
}

/// The sequence of a record, if its reader takes it.
fn sequence_of(record: RecordType, bytes: &[u8], place: &Place) -> Option<u64> {
    match record {
        RecordType::Superblock => Superblock::decode(bytes, place.offset).ok().map(|found| found.generation),
        RecordType::Beat => Beat::decode(bytes, place).ok().map(|found| found.beat),
        RecordType::Vote => Ballot::decode(bytes, place).ok().map(|found| found.sequence),
        RecordType::ViewRecord => ViewRecord::decode(bytes, place).ok().map(|found| found.sequence),
        RecordType::ViewBody => decode_body_place(bytes, place).ok().map(|(_, sequence, _)| sequence),
        RecordType::Requests => Requests::decode(bytes, place).ok().map(|found| found.sequence),
        RecordType::Journal => JournalEntry::decode(bytes, place).ok().map(|found| found.sequence),
        RecordType::ToolClaim => ToolClaim::decode(bytes, place).ok().map(|found| found.sequence),
    }
}

/// The sample as it would have been one write earlier.
fn older(sample: &samples::Sample, sequence: u64) -> Vec<u8> {
    if sample.record == RecordType::ViewBody {
        let mut body = samples::view_body();
        body.configuration.nodes.iter_mut().for_each(|node| node.addresses = vec!["x".repeat(60); 4]);
        return encode_body_place(&body.encode_value(), &sample.place, &samples::life(3), sequence, 8192).unwrap();
    }
    let mut older = sample.bytes.clone();
    older[80..88].copy_from_slice(&sequence.to_le_bytes());
    samples::reseal(&mut older);
    older
}

#[test]
fn a_record_cut_while_it_is_written_is_the_old_one_the_new_one_or_no_news() {
    for sample in samples::samples() {
        let (record, place) = (sample.record, sample.place);
        let newest = sequence_of(record, &sample.bytes, &place).unwrap();
        let old = older(&sample, newest + 100);
        assert_eq!(sequence_of(record, &old, &place), Some(newest + 100), "{record:?}");
        let write = Write { offset: ByteOffset(0), data: sample.bytes.clone() };
        // Over another record, over nothing, over rot.
        for (before, sequence) in [(old.clone(), Some(newest + 100)), (vec![0; old.len()], None), (vec![0x5a; old.len()], None)] {
            let mut torn = 0;
            each_image(&before, std::slice::from_ref(&write), |image, moment| {
                let wanted = match (moment.complete, moment.landed.is_empty()) {
                    (1, _) => Some(newest),
                    (_, true) => sequence,
                    _ => {
                        torn += 1;
                        None
                    }
                };
                assert_eq!(sequence_of(record, image, &place), wanted, "{record:?}: {moment}");
            });
            // Short records differ in one sector only, unless something else stood behind them.
            let can_tear = record == RecordType::ViewBody || before[0] == 0x5a;
            assert_eq!(torn > 0, can_tear, "{record:?}");
        }
    }
}

#[test]
fn names_messages_and_claims_are_one_sector_each_and_a_check_reads_them_before_and_after() {
    let image = used_device(&superblock(OLD, 0, 1));
    assert_eq!(codes(&fsck(&image)), BTreeSet::new());
    let node = |name: &str| SbdNode { is_in_use: true, name: name.into() }.encode(512);
    let message = Mailbox { command: Command::Reset, sender: "alpha".into(), tail: Tail::Absent }.encode(512);
    let layout = superblock(OLD, 0, 1).layout;
    let place = Place { cluster: OLD, offset: layout.tool, slot: SlotIndex::NONE };
    let claim =
        ToolClaim { boot: BootId([1; 16]), run: Incarnation([2; 16]), sequence: 1, tool: Tool::Fsck, wall_ms: 1, host: "workbench".into() };
    let writes = [
        ("a name", Write { offset: ByteOffset(node_offset(SlotIndex(1), 512)), data: node("gamma") }, "SD-005"),
        ("a message", Write { offset: ByteOffset(mailbox_offset(SlotIndex(1), 512)), data: message }, "SD-006"),
        ("a claim", Write { offset: layout.tool, data: claim.encode(&place).unwrap().to_vec() }, "TL-001"),
    ];
    for (name, write, code) in writes {
        let mut found = Vec::new();
        let images = each_image(&image, &[write], |image, _| found.push(codes(&fsck(image))));
        assert_eq!(images, 2, "{name} can tear");
        assert_eq!(found, [BTreeSet::new(), BTreeSet::from([code])], "{name}");
    }
}
