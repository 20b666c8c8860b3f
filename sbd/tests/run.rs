//! What: `sbd run` as a process: under a supervisor with the shared page, and in a PID namespace with a real reboot(2).
//! Owns: the supervisor's and the daemon's side.
//! Invariants: no watchdog device is opened; sysrq is out of reach.
//! Does not: look inside.
//! Called by: `cargo test`; as root for the namespace.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{CLUSTER, Held, Image, STOCK, attach, beat, has_stock, made, ours, sbd, wait_for, write};
use deadbolt_disk::{ByteOffset, now_ns};
use deadbolt_disk_format::sbd::{Command as PillCommand, SbdNode, mailbox_offset, node_offset};
use deadbolt_disk_format::{
    BootId, Configuration, DaemonPart, Incarnation, Layout, Life, NodeState, Place, SlotIndex, Timings, ViewBody, ViewNumber, ViewRecord,
    encode_body_place,
};
use deadbolt_sbd::page::{DaemonSide, Page, ResetRequest, SbdState};
use deadbolt_sbd::pill::{Pill, PillKey, encode_pill};

const SLOT: SlotIndex = SlotIndex(2);
const LIMIT: Duration = Duration::from_secs(10);

/// A node without root: the test is its supervisor and its daemon.
struct Node {
    sbd: Held,
    page: Page,
    daemon: DaemonSide,
    image: Image,
    layout: Layout,
    alive: Arc<AtomicBool>,
}

impl Node {
    fn start(boot: u8) -> Self {
        let image = Image::new();
        let layout = common::format(image.path(), 512);
        Self::start_on(image, layout, boot)
    }

    fn start_on(image: Image, layout: Layout, boot: u8) -> Self {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "09".repeat(32)).unwrap();
        let (page, descriptors) = Page::create().unwrap();
        let supervisor = page.supervisor();
        supervisor.advance_alive(now_ns());
        let alive = Arc::new(AtomicBool::new(true));
        let (mine, turner) = (Arc::downgrade(&alive), page.daemon());
        std::thread::spawn(move || {
            while let Some(alive) = mine.upgrade() {
                if alive.load(Ordering::SeqCst) {
                    supervisor.advance_alive(now_ns());
                }
                turner.advance_turn();
                drop(alive);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut command = Command::new(ours());
        command.args(["run", "--device", image.path(), "--slot", "2", "--name", "node2", "--watchdog", "process", "--reset", "tree"]);
        command.args(["--boot", &format!("{boot:02x}").repeat(16), "--shared-device", "--allow-unprotected", "--key-file"]);
        command.arg(key.path()).stderr(Stdio::inherit());
        descriptors.pass_to(&mut command);
        page.supervisor().daemon_starts();
        let sbd = Held(command.spawn().unwrap());
        let daemon = page.daemon();
        wait_for("the first lease", LIMIT, || daemon.sbd_state() == SbdState::Alive);
        Self { sbd, page, daemon, image, layout, alive }
    }

    fn write_pill(&self, sector: &[u8]) {
        write(self.image.path(), ByteOffset(mailbox_offset(SLOT, 512)), sector);
    }
}

fn part(number: u64, state: NodeState) -> DaemonPart {
    DaemonPart { number, incarnation: Incarnation([6; 16]), state, ..DaemonPart::default() }
}

#[test]
fn a_node_lives_stops_cleanly_and_comes_back() {
    let mut node = Node::start(1);
    node.daemon.publish(&part(1, NodeState::Member));
    node.daemon.wake();
    wait_for("publication", LIMIT, || node.daemon.published_number() == 1);
    let fed = node.page.supervisor().fed_until_ns().unwrap();
    wait_for("feeding", LIMIT, || node.page.supervisor().fed_until_ns().is_some_and(|until| until > fed));
    assert!(common::out(&sbd(ours(), &format!("-d {} list", node.image.path()))).contains("2\tnode2\tclear"), "stock tools find it");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.sbd.0.id().try_into().unwrap()), nix::sys::signal::Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(node.daemon.sbd_state(), SbdState::Alive, "a member is not stopped by a signal");
    node.daemon.publish(&part(2, NodeState::Left));
    wait_for("publication of left", LIMIT, || node.daemon.published_number() == 2 || node.daemon.sbd_state() == SbdState::Stopped);
    node.daemon.request_stop();
    let status = node.sbd.wait(LIMIT).unwrap();
    assert!(status.success());
    assert_eq!((node.daemon.sbd_state(), node.page.supervisor().fed_until_ns()), (SbdState::Stopped, None));
    assert!(beat(node.image.path(), &node.layout, SLOT).unwrap().is_stopped);
    let Node { image, layout, .. } = node;
    let again = Node::start_on(image, layout, 1);
    assert_eq!(beat(again.image.path(), &again.layout, SLOT).unwrap().daemon.state, NodeState::Left, "the last words stand");
}

#[test]
fn a_pill_becomes_a_request_to_the_supervisor() {
    for (command, expected) in [(PillCommand::Reset, ResetRequest::Reset), (PillCommand::Off, ResetRequest::Off)] {
        let node = Node::start(7);
        let pill = Pill { command, sender: "other", victim: BootId([7; 16]), serial: 1 };
        let started = Instant::now();
        node.write_pill(&encode_pill(&pill, &PillKey::new(&[9; 32]), 512));
        wait_for("the request", LIMIT, || node.page.supervisor().reset_request() == Some(expected));
        assert!(started.elapsed() < Duration::from_secs(1));
        assert_eq!((node.daemon.lease_end_ns(), node.daemon.sbd_state()), (0, SbdState::Condemned));
        let fed = node.page.supervisor().fed_until_ns();
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(node.page.supervisor().fed_until_ns(), fed, "never fed again");
        wait_for("the answer on the disk", LIMIT, || {
            beat(node.image.path(), &node.layout, SLOT).is_some_and(|beat| beat.acknowledged.is_some())
        });
    }
}

#[test]
fn without_its_supervisor_there_is_no_lease() {
    let node = Node::start(1);
    node.alive.store(false, Ordering::SeqCst);
    let started = Instant::now();
    wait_for("the end of the lease", LIMIT, || node.page.supervisor().reset_request().is_some());
    assert!(started.elapsed() > Duration::from_secs(3), "a lease lasts 3.5 s, and nothing else ended the life");
    assert_eq!(node.daemon.lease_end_ns(), 0);
}

#[test]
fn a_stopped_sbd_does_not_act_on_its_old_belief() {
    let node = Node::start(1);
    let pid = nix::unistd::Pid::from_raw(node.sbd.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let fed_until = node.page.supervisor().fed_until_ns().unwrap();
    std::thread::sleep(Duration::from_millis(3700));
    assert!(now_ns() > fed_until, "the process watchdog's deadline has passed");
    let end = node.daemon.lease_end_ns();
    assert!(now_ns() > end);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    wait_for("the request", LIMIT, || node.page.supervisor().reset_request() == Some(ResetRequest::Reset));
    assert_eq!(node.daemon.lease_end_ns(), 0, "no lease was given after the stop");
    assert!(node.page.supervisor().fed_until_ns().unwrap() <= fed_until.max(end), "nor the watchdog fed");
}

#[test]
fn what_is_not_this_nodes_is_refused() {
    let image = Image::new();
    common::format(image.path(), 512);
    let run = |line: &str| {
        let output = Command::new(ours()).arg("run").args(line.split_whitespace()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let boot = "11".repeat(16);
    let base = format!("--boot {boot} --name node2 --watchdog none --reset tree");
    let device = format!("--device {}", image.path());
    let blank = Image::new();
    for (line, reason) in [
        (format!("{device} --slot 9 {base} --allow-unprotected"), "slot 9 does not exist"),
        (format!("{device} {device} --slot 2 {base} --allow-unprotected"), "same device"),
        (format!("--device {} --slot 2 {base} --allow-unprotected", blank.path()), "not formatted by Deadbolt"),
        (format!("--device /nonexistent --slot 2 {base} --allow-unprotected"), "/nonexistent"),
        (format!("{device} --slot 2 {base}"), "does not run like this"),
        (format!("{device} --slot 2 {base} --allow-unprotected --key-file /nonexistent"), "/nonexistent"),
        (format!("{device} --slot 2 {base} --allow-unprotected --page-fd 1,2,3,4"), "four descriptor numbers"),
        ("--slot 2".to_owned(), "required"),
    ] {
        let (code, said) = run(&line);
        assert_eq!(code, Some(2), "{line}: {said}");
        assert!(said.contains(reason), "{line}: {said}");
    }
    assert!(sbd(ours(), &format!("-d {} allocate stranger", image.path())).status.success());
    let (code, said) = run(&format!("{device} --slot 0 {base} --allow-unprotected"));
    assert!(code == Some(2) && said.contains("\"stranger\""), "{said}");
    let _ = CLUSTER;
}

#[test]
fn a_stock_message_ends_our_node_in_its_namespace() {
    if !has_stock() {
        return;
    }
    for sector_bytes in [512, 4096] {
        let image = Image::new();
        let Some(device) = attach(&image, sector_bytes) else { return };
        let path = device.path().to_str().unwrap();
        let layout = common::format(path, sector_bytes);
        let boot = "22".repeat(16);
        let script = format!(
            "{} run --device {path} --slot 2 --name node2 --boot {boot} --watchdog none --reset reboot --allow-unprotected",
            ours().display()
        );
        let Some(node) = made(deadbolt_tests::node::Node::start(common::folder(), "node2", &script)) else { return };
        wait_for("the first beats", LIMIT, || beat(path, &layout, SLOT).is_some_and(|beat| beat.beat > 3));
        let sent = std::thread::spawn({
            let line = format!("-d {path} -n me message node2 reset");
            move || sbd(STOCK, &line)
        });
        assert!(node.died_by(std::time::Instant::now() + Duration::from_secs(3)).is_some(), "{}", node.log());
        assert!(sent.join().unwrap().status.success());
        assert!(beat(path, &layout, SLOT).unwrap().acknowledged.is_some(), "and it had answered");
    }
}

#[test]
fn a_stock_create_over_a_live_node_is_told_and_mended() {
    if !has_stock() {
        return;
    }
    let image = Image::new();
    let Some(device) = attach(&image, 512) else { return };
    let path = device.path().to_str().unwrap();
    let layout = common::format(path, 512);
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(ours());
    command.args(["run", "--device", path, "--slot", "2", "--name", "node2", "--boot", &"33".repeat(16)]);
    command.args(["--watchdog", "none", "--reset", "tree", "--allow-unprotected", "--shared-device"]);
    let mut node = Held(command.stderr(told.reopen().unwrap()).spawn().unwrap());
    wait_for("the first beats", LIMIT, || beat(path, &layout, SLOT).is_some_and(|beat| beat.beat > 3));
    let is_listed = || common::out(&sbd(STOCK, &format!("-d {path} list"))).contains("2\tnode2\tclear");
    assert!(is_listed());
    assert!(sbd(STOCK, &format!("-d {path} create")).status.success());
    wait_for("the name", LIMIT, is_listed);
    let said = |what: &str| std::fs::read_to_string(told.path()).unwrap().lines().filter(|line| line.contains(what)).count();
    wait_for("the line", LIMIT, || said("is not in use any more") > 0);
    // A stock allocation that meets this slot: the sector as it writes it.
    let name_at = ByteOffset(node_offset(SLOT, 512));
    let thief = SbdNode { is_in_use: true, name: "thief".into() }.encode(512);
    std::thread::sleep(Duration::from_millis(500));
    write(path, name_at, &thief);
    wait_for("the other line", LIMIT, || said("carries the name \"thief\"") > 0);
    let seen = beat(path, &layout, SLOT).unwrap().beat;
    wait_for("more beats", LIMIT, || beat(path, &layout, SLOT).is_some_and(|beat| beat.beat > seen + 5));
    assert_eq!(common::read(path, name_at, 512), thief);
    assert_eq!((said("is not in use any more"), said("carries the name")), (1, 1));
    assert!(node.0.try_wait().unwrap().is_none(), "it lives on");
}

/// A decided view as its proposer in slot `slot` leaves it; `is_whole`: with its body.
fn write_view(path: &str, layout: &Layout, slot: u16, view: u64, timings: Timings, is_whole: bool) {
    let slot = SlotIndex(slot);
    let life = Life { slot, boot: BootId([7; 16]), incarnation: Incarnation([7; 16]) };
    let configuration = Configuration { timings, ..Configuration::default() };
    let body = ViewBody { view: ViewNumber(view), proposer: Some(life), members: vec![life], configuration, ..ViewBody::default() };
    let record = ViewRecord { life, sequence: view, view: body.view, digest: body.digest(), place: 1, wall_ms: 0 };
    let place = |offset| Place { cluster: CLUSTER, offset, slot };
    if is_whole {
        let offset = layout.body(slot, 1);
        write(path, offset, &encode_body_place(&body.encode_value(), &place(offset), &life, view, layout.place_bytes).unwrap());
    }
    let offset = layout.record(slot, 0);
    write(path, offset, &record.encode(&place(offset))[..]);
}

#[test]
fn times_of_the_newest_view_must_be_the_superblocks() {
    let image = Image::new();
    let layout = common::format(image.path(), 512);
    let path = image.path();
    let run = || {
        let mut command = Command::new(ours());
        command.args(["run", "--device", path, "--slot", "2", "--name", "node2", "--boot", &"44".repeat(16)]);
        let told = tempfile::NamedTempFile::new().unwrap();
        command.args(["--watchdog", "none", "--reset", "tree", "--allow-unprotected"]).stderr(told.reopen().unwrap());
        let status = Held(command.spawn().unwrap()).wait(LIMIT);
        (status.and_then(|status| status.code()), std::fs::read_to_string(told.path()).unwrap())
    };
    write_view(path, &layout, 0, 3, common::timings(), true);
    write_view(path, &layout, 1, 4, Timings { lease_ms: 4000, ..common::timings() }, true);
    let (code, said) = run();
    assert_eq!(code, Some(2));
    assert!(said.contains("view 4 has other times than the superblock (lease 3500, in the view 4000)"), "{said}");
    assert_eq!(beat(path, &layout, SLOT), None, "nothing was written");
    assert!(!common::out(&sbd(ours(), &format!("-d {path} list"))).contains("node2"));
    // Another node's newer record counts, whatever slot it stands in; its body is found in the place of who wrote it.
    write_view(path, &layout, 7, 5, common::timings(), true);
    drop(Node::start_on(image, layout, 1));
}

#[test]
fn a_view_without_a_body_is_told_and_stops_nothing() {
    let image = Image::new();
    let layout = common::format(image.path(), 512);
    write_view(image.path(), &layout, 0, 9, Timings::default(), false);
    drop(Node::start_on(image, layout, 1));
}
