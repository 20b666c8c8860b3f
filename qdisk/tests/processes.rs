//! What: the view register with 2 to 16 processes on one file, kill -9 among them: no two of them ever know two values for one view.
//! Owns: the image file, the processes (this program run again) and their reports.
//! Invariants: a killed process is started as a new life only after it was reaped: its synchronous writes have ended by then.
//! Does not: need root; leave a process behind (each ends when its standard input does).
//! Called by: `cargo test` in short; in full by `DEADBOLT_FULL=1 cargo test --release -p deadbolt-qdisk --test processes -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::exit, missing_docs, reason = "a test, and the program that it starts")]

use deadbolt_disk::{Access, AlignedBuf, BackendChoice, ByteOffset, Device, RawDevice};
use deadbolt_disk_format::{
    Ballot, BootId, ClusterUuid, Configuration, Digest, Incarnation, Layout, Life, Place, SlotIndex, ViewBody, ViewNumber, ViewRecord,
    decode_body_place,
};
use deadbolt_qdisk::core::{Input, Output, Register, RegisterConfig};
use deadbolt_qdisk::{Event, drive};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const CLUSTER: ClusterUuid = ClusterUuid([5; 16]);
const SLOTS: u16 = 16;
const DEVICE_BYTES: u64 = 16 << 20;
/// What a process of this program is told: image, report, slot, number of its life, views wanted.
const NODE: &str = "DEADBOLT_TEST_REGISTER_NODE";

fn layout() -> Layout {
    Layout::new(DEVICE_BYTES, 512, SLOTS).unwrap()
}

fn place(offset: ByteOffset, slot: SlotIndex) -> Place {
    Place { cluster: CLUSTER, offset, slot }
}

fn format(path: &Path) {
    File::create(path).unwrap().set_len(DEVICE_BYTES).unwrap();
    let device = Device::open(path, Access::ReadWrite).unwrap();
    let write = |offset, unit: &[u8]| device.write_at(offset, &AlignedBuf::copy_of(unit)).unwrap();
    for slot in (0..SLOTS).map(SlotIndex) {
        let life = Life { slot, boot: BootId::NONE, incarnation: Incarnation::NONE };
        let (view, digest) = (ViewNumber(0), Digest::NONE);
        for index in 0..2u8 {
            let sequence = u64::from(index);
            let offset = layout().vote(slot, index);
            let ballot = Ballot { life, sequence, view, entered: 0, accepted: 0, digest, place: 0 };
            write(offset, &*ballot.encode(&place(offset, slot)));
            let offset = layout().record(slot, index);
            let record = ViewRecord { life, sequence, view, digest, place: 0, wall_ms: 0 };
            write(offset, &*record.encode(&place(offset, slot)));
        }
    }
}

/// Not a test: the program of one node, when this file is run again with [`NODE`] set.
#[test]
fn node_process() {
    let Ok(task) = std::env::var(NODE) else { return };
    let words: Vec<&str> = task.split('\n').collect();
    let [image, report, slot, life, views] = words[..] else { panic!("{task}") };
    std::thread::spawn(|| {
        // The parent's end, however it came, is this process's end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(3);
    });
    let report = File::options().append(true).open(report).unwrap();
    run_node(image, report, slot.parse().unwrap(), life.parse().unwrap(), views.parse().unwrap());
    std::process::exit(0);
}

fn run_node(image: &str, mut report: File, slot: u16, life: u8, views: u64) {
    let device: Arc<dyn RawDevice> = Arc::new(Device::open(image, Access::ReadWrite).unwrap());
    let me = Life { slot: SlotIndex(slot), boot: BootId([life; 16]), incarnation: Incarnation([life; 16]) };
    let config = RegisterConfig { cluster: CLUSTER, me, layouts: vec![layout()], seed: 11, wall_offset_ms: 0 };
    let (events, heard) = channel();
    let sink = move |event| {
        let _ = events.send(event);
    };
    let driver = drive(Register::new(config), vec![device], BackendChoice::Threads, Box::new(sink)).unwrap();
    driver.handle(Input::Start);
    let mut asked = None;
    let mut number = 0;
    loop {
        let (body, digest) = match heard.recv_timeout(Duration::from_millis(250)) {
            Ok(Event::Register(Output::Learned { body, digest } | Output::Contested { body, digest, .. })) => (body, digest),
            Ok(Event::Register(Output::ProposalLost { .. })) => continue,
            Ok(Event::Register(Output::Blocked { reason, offset, .. })) => {
                writeln!(report, "blocked {reason:?} {}", offset.0).unwrap();
                continue;
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                driver.handle(Input::Learn);
                continue;
            }
        };
        let took_us = asked.map_or(0, |asked: Instant| asked.elapsed().as_micros());
        // One write: a killed process leaves no half line that parses.
        let line = format!("view {} {digest:?} {took_us} {:?}.\n", body.view, body.predecessor);
        report.write_all(line.as_bytes()).unwrap();
        if body.view.0 >= views {
            return;
        }
        number += 1;
        asked = Some(Instant::now());
        driver.handle(Input::Propose(ViewBody {
            view: ViewNumber(body.view.0 + 1),
            predecessor: digest,
            proposer: Some(me),
            members: vec![me],
            configuration: Configuration { version: number, ..Configuration::default() },
            ..ViewBody::default()
        }));
    }
}

struct Node {
    child: Child,
    slot: u16,
    life: u8,
}

fn start(directory: &Path, slot: u16, life: u8, views: u64) -> Node {
    let report = directory.join(format!("report-{slot}"));
    File::options().create(true).append(true).open(&report).unwrap();
    let image = directory.join("image");
    let task = format!("{}\n{}\n{slot}\n{life}\n{views}", image.display(), report.display());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "node_process", "--nocapture", "--test-threads=1"])
        .env(NODE, task)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Node { child, slot, life }
}

#[derive(Default)]
struct Reports {
    views: BTreeMap<u64, String>,
    predecessors: BTreeMap<u64, String>,
    newest: BTreeMap<u16, u64>,
    took_us: Vec<u64>,
    blocked: usize,
}

fn read_reports(directory: &Path, processes: u16) -> Reports {
    let mut reports = Reports::default();
    for slot in 0..processes {
        let text = std::fs::read_to_string(directory.join(format!("report-{slot}"))).unwrap();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let ["view", view, digest, took_us, predecessor] = words[..] else {
                reports.blocked += usize::from(line.starts_with("blocked"));
                continue;
            };
            let Some(predecessor) = predecessor.strip_suffix('.') else { continue };
            let view: u64 = view.parse().unwrap();
            let first = reports.views.entry(view).or_insert_with(|| digest.into());
            assert_eq!(first, digest, "two values for view {view}");
            reports.predecessors.insert(view, predecessor.into());
            let newest = reports.newest.entry(slot).or_default();
            assert!(*newest <= view, "slot {slot} fell from {newest} to {view}");
            *newest = view;
            let took_us: u64 = took_us.parse().unwrap();
            if took_us > 0 {
                reports.took_us.push(took_us);
            }
        }
    }
    for (view, predecessor) in &reports.predecessors {
        if let Some(before) = view.checked_sub(1).and_then(|before| reports.views.get(&before)) {
            assert_eq!(before, predecessor, "the chain of view {view}");
        }
    }
    reports.took_us.sort_unstable();
    reports
}

/// Every record on the device must name the value that the processes know, with its body.
fn check_image(path: &Path, reports: &Reports) {
    let device = Device::open(path, Access::Read).unwrap();
    for slot in (0..SLOTS).map(SlotIndex) {
        let mut newest: Option<ViewRecord> = None;
        for index in 0..2 {
            let offset = layout().record(slot, index);
            let mut unit = AlignedBuf::zeroed(4096);
            device.read_at(offset, &mut unit).unwrap();
            let record = ViewRecord::decode(&unit, &place(offset, slot)).unwrap();
            if let Some(known) = reports.views.get(&record.view.0) {
                assert_eq!(known, &format!("{:?}", record.digest));
            }
            if newest.is_none_or(|newest| newest.sequence < record.sequence) {
                newest = Some(record);
            }
        }
        if let Some(record) = newest.filter(|record| record.view.0 > 0) {
            let offset = layout().body(slot, record.place);
            let mut body = AlignedBuf::zeroed(usize::try_from(layout().place_bytes).unwrap());
            device.read_at(offset, &mut body).unwrap();
            let (_, _, value) = decode_body_place(&body, &place(offset, slot)).unwrap();
            assert_eq!(ViewBody::decode_value(&value).unwrap().digest(), record.digest);
        }
    }
}

/// Runs until every process has seen `views`; kills one now and then, at most `kills` times.
fn run(processes: u16, views: u64, kills: u32) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    format(&directory.path().join("image"));
    let begun = Instant::now();
    let mut nodes: Vec<Node> = (0..processes).map(|slot| start(directory.path(), slot, 1, views)).collect();
    let mut killed = 0;
    let mut last_kill = Instant::now();
    while !nodes.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(300), "no end: {:?}", read_reports(directory.path(), processes).newest);
        std::thread::sleep(Duration::from_millis(10));
        nodes.retain_mut(|node| match node.child.try_wait().unwrap() {
            None => true,
            Some(status) => {
                assert!(status.success(), "slot {} life {}: {status}", node.slot, node.life);
                false
            }
        });
        if killed < kills && last_kill.elapsed() > Duration::from_millis(60) && !nodes.is_empty() {
            // Which one, and when: by the machine's own noise, which is what kill -9 is like.
            let index = usize::try_from(begun.elapsed().as_micros()).unwrap() % nodes.len();
            let mut node = nodes.swap_remove(index);
            node.child.kill().unwrap();
            let status = node.child.wait().unwrap();
            if !status.success() {
                nodes.push(start(directory.path(), node.slot, node.life + 1, views));
                killed += 1;
            }
            last_kill = Instant::now();
        }
    }
    let elapsed = begun.elapsed();
    let reports = read_reports(directory.path(), processes);
    check_image(&directory.path().join("image"), &reports);
    assert!((0..processes).all(|slot| reports.newest[&slot] >= views));
    let seen = reports.views.keys().filter(|view| (1..=views).contains(view)).count();
    let at = |percent: usize| reports.took_us[(reports.took_us.len() - 1) * percent / 100];
    println!(
        "{processes:2} processes, {views} views ({seen} reported), {killed} killed, 0 disagreements, {} blocked, \
         decide p50 {:.1} ms p99 {:.1} ms, {:.1} s",
        reports.blocked,
        f64::from(u32::try_from(at(50)).unwrap()) / 1000.0,
        f64::from(u32::try_from(at(99)).unwrap()) / 1000.0,
        elapsed.as_secs_f64(),
    );
    assert!(killed > 0 || kills == 0, "nothing was killed");
}

#[test]
fn processes_agree_while_some_are_killed() {
    if std::env::var_os(NODE).is_some() {
        return;
    }
    if std::env::var_os("DEADBOLT_FULL").is_some() {
        for processes in [2, 4, 8, 16] {
            run(processes, 200, 20);
        }
    } else {
        run(2, 40, 2);
        run(5, 30, 3);
    }
}
