//! What: what may go wrong with a fence, between a sender and a watcher of ours: the rows of the table in docs/failures.md that need
//! nodes which really die.
//! Owns: each trouble, made on real devices.
//! Invariants: a report of a death comes after it.
//! Does not: use stock sbd.
//! Called by: the test program beside it.

use std::process::{Command, Output};

use deadbolt_disk::{ByteOffset, LoopDevice};
use deadbolt_tests::hung_disk::Hold;
use deadbolt_tests::node::Watch;

use super::*;
use crate::common::{Image, attach, folder, read, two_paths, write};

/// T of the shortest time that the imitated watchdog grants, D, and the half second that the budget leaves for everything else.
const KNOWN_WITHIN: Duration = Duration::from_millis(500 + 2010 + 500 + 500);

struct Disk {
    device: LoopDevice,
    _image: Image,
}

fn disk(sector_bytes: u32) -> Option<Disk> {
    let image = Image::new();
    Some(Disk { device: attach(&image, sector_bytes)?, _image: image })
}

fn watcher(name: &str, device: &Path, options: &str, library: Option<&Path>) -> Option<Node> {
    let program = ours();
    let watch = Watch::new(&program, name, device).options(options);
    let watch = if let Some(library) = library { watch.watchdog(library) } else { watch };
    let node = made(watch.start(folder()))?;
    node.await_work(device, START).unwrap();
    Some(node)
}

/// A message from the machine whose watcher leaves what it sees in `run`.
fn send_from(run: &Path, devices: &[&Path], words: &str) -> (Output, Duration) {
    let mut command = Command::new(ours());
    for device in devices {
        command.arg("-d").arg(device);
    }
    let began = Instant::now();
    let output = command.args(words.split(' ')).env("DEADBOLT_RUN_DIR", run).env_remove("SBD_DEVICE").output().unwrap();
    (output, began.elapsed())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_that_has_been_silent_long_enough_is_fenced_in_the_time_of_the_write() {
    let (Some(library), Some(disk)) = (library(), disk(512)) else { return };
    let device = disk.device.path();
    create(&ours(), device, "-1 2 -4 7", &["sender", "victim"]);
    let Some(sender) = watcher("sender", device, "", Some(&library)) else { return };
    let Some(victim) = watcher("victim", device, "", Some(&library)) else { return };
    // Long enough that the sender's watcher has seen its last beat.
    std::thread::sleep(Duration::from_secs(2));
    drop(victim);
    // L = 3.50 s + 2 T. T = 3.02 s; W = 10.01 s, D = 0.52 s.
    let early = send_from(sender.folder(), &[device], "-n sender message victim reset");
    assert!(early.0.status.success() && said(&early.0).contains("evidence: expired"), "{early:?}");
    assert!((Duration::from_secs(8)..Duration::from_secs(13)).contains(&early.1), "{early:?}");
    // The watcher looks at the nodes every one or two seconds, so that it may have seen the last beat so much later than this sender.
    std::thread::sleep(Duration::from_millis(2200));
    for words in ["-n sender message victim reset", "-n sender message victim off"] {
        let late = send_from(sender.folder(), &[device], words);
        eprintln!("long dead, {words}: {:.3} s", late.1.as_secs_f64());
        assert!(late.0.status.success() && said(&late.0).contains("evidence: expired"), "{late:?}");
        assert!(late.1 < Duration::from_millis(300), "{late:?}");
    }
    // A machine whose watcher has seen nothing waits for all of it.
    let elsewhere = tempfile::tempdir_in(folder()).unwrap();
    let unseen = send_from(elsewhere.path(), &[device], "-n sender message victim reset");
    assert!(unseen.0.status.success() && unseen.1 > Duration::from_secs(10), "{unseen:?}");
    assert_eq!(sender.died(), None, "{}", sender.log());
}

#[test]
fn a_message_that_is_overwritten_is_written_again() {
    let (Some(library), Some(mut disk)) = (library(), two_paths(512)) else { return };
    let device = disk.sender.path().to_path_buf();
    create(&ours(), &device, "-1 2 -4 7", &["victim"]);
    let Some(victim) = watcher("victim", disk.victim.path(), "", Some(&library)) else { return };
    disk.hung.hold(Hold::Reads).unwrap();
    let (sent, died) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_from(folder(), &[&device], "-n sender message victim reset"));
        let mailbox = || read(device.to_str().unwrap(), ByteOffset(1024), 512)[0];
        common::wait_for("the message", Duration::from_secs(5), || mailbox() == 2);
        // What a `test` or `clear` of a stock tool leaves.
        write(device.to_str().unwrap(), ByteOffset(1024), &[0; 512]);
        common::wait_for("the message again", Duration::from_secs(5), || mailbox() == 2);
        disk.hung.hold(Hold::Nothing).unwrap();
        (sender.join().unwrap(), victim.died_by(Instant::now() + START))
    });
    assert!(sent.0.status.success() && died.is_some(), "{sent:?} {}", victim.log());
}

#[test]
fn a_message_of_another_is_not_cleared_while_its_victim_may_live() {
    let (Some(library), Some(mut disk)) = (library(), two_paths(512)) else { return };
    let device = disk.sender.path().to_path_buf();
    create(&ours(), &device, "-1 2 -4 7", &["victim"]);
    let Some(victim) = watcher("victim", disk.victim.path(), "", Some(&library)) else { return };
    disk.hung.hold(Hold::Reads).unwrap();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_from(folder(), &[&device], "-n sender message victim reset"));
        common::wait_for("the message", Duration::from_secs(5), || read(device.to_str().unwrap(), ByteOffset(1024), 512)[0] == 2);
        let cleared = send_from(folder(), &[&device], "-n other message victim clear");
        assert_eq!(cleared.0.status.code(), Some(1), "{cleared:?}");
        assert!(said(&cleared.0).contains("\"sender\" has asked"), "{cleared:?}");
        assert!(sender.join().unwrap().0.status.success());
    });
    assert!(victim.died().is_some());
}

#[test]
fn one_of_three_devices_that_hangs_delays_no_fence() {
    let (Some(library), Some(mut hung), Some(second), Some(third)) = (library(), two_paths(512), disk(512), disk(512)) else { return };
    let first = hung.victim.path().to_path_buf();
    let devices = [first.as_path(), second.device.path(), third.device.path()];
    for device in [hung.sender.path(), devices[1], devices[2]] {
        create(&ours(), device, "-1 2 -4 7", &["victim"]);
    }
    let others = format!("-d {} -d {}", devices[1].display(), devices[2].display());
    let Some(victim) = watcher("victim", &first, &others, Some(&library)) else { return };
    hung.hung.hold(Hold::Reads).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(victim.died(), None, "two of three are enough: {}", victim.log());
    let sent = send_from(folder(), &devices, "-n sender message victim reset");
    eprintln!("one of three devices hangs: known after {:.2} s", sent.1.as_secs_f64());
    let died = victim.died_by(Instant::now() + START);
    assert!(sent.0.status.success() && said(&sent.0).contains("evidence: acknowledged"), "{sent:?}");
    assert!(died.is_some() && sent.1 < KNOWN_WITHIN + Duration::from_millis(300), "{sent:?}");
}

#[test]
fn a_node_that_is_back_before_the_sender_knows_is_seen_by_its_boot() {
    let Some(disk) = disk(4096) else { return };
    let device = disk.device.path();
    create(&ours(), device, "-1 2 -4 7", &["victim"]);
    // Without a watchdog neither its answer nor its silence proves anything.
    let Some(victim) = watcher("victim", device, "", None) else { return };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_from(folder(), &[device], "-n sender message victim reset"));
        assert!(victim.died_by(Instant::now() + START).is_some());
        let again = watcher("victim", device, "", None).unwrap();
        let sent = sender.join().unwrap();
        assert!(sent.0.status.success() && said(&sent.0).contains("evidence: rebooted"), "{sent:?}");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(again.died(), None, "the message was for the boot before: {}", again.log());
    });
}

#[test]
fn a_watcher_that_dies_takes_its_node_along_and_one_that_is_stopped_too() {
    let (Some(library), Some(disk)) = (library(), disk(512)) else { return };
    let device = disk.device.path();
    create(&ours(), device, "-1 2 -4 7", &["killed", "stopped"]);
    for (name, signal) in [("killed", "KILL"), ("stopped", "STOP")] {
        let Some(node) = watcher(name, device, "", Some(&library)) else { return };
        node.tell(signal).unwrap();
        assert!(node.died_by(Instant::now() + Duration::from_secs(5)).is_some(), "{name}: {}", node.log());
    }
}

#[test]
fn times_are_changed_while_a_node_lives() {
    let (Some(library), Some(disk)) = (library(), disk(512)) else { return };
    let device = disk.device.path();
    create(&ours(), device, "-1 2 -4 7", &["node"]);
    let Some(node) = watcher("node", device, "", Some(&library)) else { return };
    let lease = || {
        let output = sbd(ours(), &format!("-d {} --json check", device.display()));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split("lease ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    // L = 3.50 s + 2 T.
    assert_eq!(lease(), 3500 + 2 * 3020);
    for (words, leased, header) in [
        ("-1 4 -4 9", 3500 + 2 * 5040, "watchdog 4 s, allocate 0 s, loop 1 s, msgwait 9 s"),
        ("-1 1 -4 6", 3500 + 2 * 2010, "watchdog 1 s, allocate 0 s, loop 1 s, msgwait 6 s"),
    ] {
        let retimed = sbd(ours(), &format!("-d {} {words} retime", device.display()));
        assert!(retimed.status.success(), "{retimed:?} {}", node.log());
        assert_eq!(String::from_utf8_lossy(&retimed.stdout).trim(), header);
        assert_eq!(lease(), leased);
    }
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(node.died(), None, "{}", node.log());
    let refused = sbd(ours(), &format!("-d {} -4 3 retime", device.display()));
    assert!(!refused.status.success() && said(&refused).contains("proves nothing"), "{refused:?}");
    assert!(sbd(ours(), &format!("-d {} -n other allocate other", device.display())).status.success());
    let foreign = sbd(ours(), &format!("-d {} -4 8 retime", device.display()));
    assert!(!foreign.status.success() && said(&foreign).contains("leaves no record of ours"), "{foreign:?}");
    let sent = send_from(folder(), &[device], "-n sender message node reset");
    assert!(sent.0.status.success() && node.died().is_some(), "{sent:?}");
}
