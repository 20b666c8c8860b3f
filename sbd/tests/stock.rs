//! What: the verbs of stock sbd: by themselves on an image, and against the stock program on loop devices.
//! Owns: the lines and bytes that must be equal.
//! Invariants: whatever the stock program writes we read, and the other way round.
//! Does not: run a node.
//! Called by: `cargo test`; as root with Debian's package sbd for the second half.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Image, STOCK, attach, has_stock, ours, out, read, sbd, write};
use deadbolt_disk::ByteOffset;
use deadbolt_disk_format::node_record::{encode_node_sector, node_record_place};
use deadbolt_disk_format::sbd::{Mailbox, MailboxTail, SbdHeader, SbdNode, Tail};
use deadbolt_disk_format::{Beat, BootId, DaemonPart, Incarnation, Rule, SlotIndex, WatchdogKind};

const HEADER: &str = "Number of slots    : 255
Sector size        : 512
Timeout (watchdog) : 2
Timeout (allocate) : 0
Timeout (loop)     : 1
Timeout (msgwait)  : 4
";

#[test]
fn the_lines_that_others_parse() {
    let image = Image::new();
    let path = image.path();
    let ran = |line: &str| {
        let output = sbd(ours(), &format!("-d {path} {line}"));
        (output.status.code().unwrap(), out(&output))
    };
    assert_eq!(ran("dump"), (1, format!("==Dumping header on disk {path}\n")));
    let (code, created) = ran("-1 2 -2 0 -4 4 create");
    let uuid = created.split("uuid: ").nth(1).unwrap().split(')').next().unwrap().to_owned();
    assert_eq!(code, 0);
    assert_eq!(
        created,
        format!(
            "Initializing device {path}\nCreating version 2.1 header on device 3 (uuid: {uuid})\nInitializing 255 slots on device 3\nDevice {path} is initialized.\n\
             Did you check sbd service down on all nodes before? If not do so now and restart afterwards.\n"
        )
    );
    let dumped = format!(
        "==Dumping header on disk {path}\nHeader version     : 2.1\nUUID               : {uuid}\n{HEADER}==Header on disk {path} is dumped\n"
    );
    assert_eq!(ran("dump"), (0, dumped));
    assert_eq!(ran("list"), (0, String::new()));
    let owned = format!("Slot for NodeA has been allocated on {path}.\n");
    let trying = format!("Trying to allocate slot for NodeA on device {path}.\n");
    assert_eq!(ran("allocate NodeA"), (0, format!("{trying}slot 0 is unused - trying to own\n{owned}")));
    assert_eq!(ran("allocate NodeA"), (0, format!("{trying}{owned}")));
    assert_eq!(ran("allocate nodea").0, 0);
    assert_eq!(ran("-n me message nodea exit"), (0, String::new()));
    assert_eq!(ran("list"), (0, "0\tNodeA\texit\tme\n".to_owned()));
    assert_eq!(ran("-n nodea message LOCAL exit"), (0, String::new()));
    assert_eq!(ran("list"), (0, "0\tNodeA\texit\tnodea\n".to_owned()));
    for line in ["message nodeb exit", "message nodea", "message nodea foo", "allocate", "bogus", "", "watch", "-x list"] {
        assert_eq!(ran(line).0, 1, "{line}");
    }
    assert_eq!(
        (sbd(ours(), "list").status.code(), sbd(ours(), "-h").status.code(), sbd(ours(), "dump").status.code()),
        (Some(0), Some(0), Some(0))
    );
    assert!(out(&sbd(ours(), "query-watchdog")).starts_with("\nDiscovered "));
}

#[test]
fn a_fence_is_not_claimed_when_it_is_not_proved() {
    let image = Image::new();
    let path = image.path();
    assert!(sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 1 create")).status.success());
    assert!(sbd(ours(), &format!("-d {path} allocate victim")).status.success());
    let refused = sbd(ours(), &format!("-d {path} message victim reset"));
    assert_eq!(refused.status.code(), Some(1), "msgwait no longer than the watchdog proves nothing");
    assert!(out(&sbd(ours(), &format!("-d {path} list"))).starts_with("0\tvictim\treset"), "the pill is written all the same");
    // One of two devices is not more than half.
    let one = sbd(ours(), &format!("-d {path} -d /nonexistent message victim exit"));
    assert_eq!(one.status.code(), Some(1));
    // One device by two paths is one device.
    let twice = sbd(ours(), &format!("-d {path} -d /proc/self/root{path} message victim reset"));
    assert!(twice.status.code() == Some(1) && String::from_utf8_lossy(&twice.stderr).contains("the same device"), "{twice:?}");
    // A header that hides slots.
    let mut header = read(path, ByteOffset(0), 512);
    header[9] = 1;
    write(path, ByteOffset(0), &header);
    assert_eq!(sbd(ours(), &format!("-d {path} message victim exit")).status.code(), Some(1));
}

#[test]
fn a_write_that_fails_is_a_failure() {
    let image = Image::new();
    let Some(device) = attach(&image, 512) else { return };
    let path = device.path().to_str().unwrap();
    assert!(sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 2 create")).status.success());
    assert!(sbd(ours(), &format!("-d {path} allocate victim")).status.success());
    drop(device);
    let options = deadbolt_disk::LoopOptions { read_only: true, autoclear: true, ..deadbolt_disk::LoopOptions::default() };
    let device = deadbolt_disk::attach_loop(&image.0, options).unwrap();
    let started = Instant::now();
    assert_eq!(sbd(ours(), &format!("-d {} message victim reset", device.path().display())).status.code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(3), "nothing was sent, nothing is waited for");
}

#[test]
fn our_area_is_never_made_over_a_cluster_of_ours() {
    let image = Image::new();
    common::format(image.path(), 512);
    let before = read(image.path(), ByteOffset(0), 1 << 20);
    let refused = sbd(ours(), &format!("-d {} create", image.path()));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\"test\""), "{refused:?}");
    assert_eq!(read(image.path(), ByteOffset(0), 1 << 20), before);
}

#[test]
fn each_goes_on_where_the_other_wrote() {
    if !has_stock() {
        return;
    }
    for sector_bytes in [512, 4096] {
        let (image, other) = (Image::new(), Image::new());
        let (Some(device), Some(second)) = (attach(&image, sector_bytes), attach(&other, sector_bytes)) else { return };
        let (path, second) = (device.path().to_str().unwrap(), second.path().to_str().unwrap());
        assert!(sbd(ours(), &format!("-d {path} -1 300 -2 0 -3 2 -4 700 create")).status.success());
        assert!(sbd(STOCK, &format!("-d {second} -1 300 -2 0 -3 2 -4 700 create")).status.success());
        assert!(sbd(ours(), &format!("-d {path} allocate NodeA")).status.success());
        assert!(sbd(STOCK, &format!("-d {second} allocate NodeA")).status.success());
        assert!(sbd(STOCK, &format!("-d {path} allocate other")).status.success(), "stock allocates on ours");
        assert!(sbd(ours(), &format!("-d {second} allocate other")).status.success(), "ours allocates on stock's");
        assert!(sbd(ours(), &format!("-d {path} -n me message nodea exit")).status.success());
        assert!(sbd(STOCK, &format!("-d {second} -n me message nodea exit")).status.success());
        let area = 511 * usize::try_from(sector_bytes).unwrap();
        let (mut one, mut two) = (read(path, ByteOffset(0), area), read(second, ByteOffset(0), area));
        for bytes in [&mut one, &mut two] {
            assert_ne!(bytes[33..49], [0; 16]);
            bytes[33..49].fill(0);
        }
        assert!(one == two, "the areas differ with sectors of {sector_bytes} bytes");
    }
}

/// A node under the rule *cluster* that fell silent.
fn silent() -> Beat {
    Beat {
        slot: SlotIndex(0),
        boot: BootId([1; 16]),
        writer: Incarnation([2; 16]),
        beat: 5,
        lease_ms: 2000,
        reset_ms: 500,
        rule: Rule::Cluster,
        watchdog: WatchdogKind::Device,
        is_stopped: false,
        is_idle: false,
        acknowledged: None,
        wall_ms: 0,
        boottime_ms: 0,
        outlive_ms: 3000,
        daemon: DaemonPart::default(),
    }
}

/// An area with its slot and record.
fn area_of(beat: &Beat) -> Image {
    let image = Image::new();
    let path = image.path();
    assert!(sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 6 create")).status.success());
    let header = SbdHeader::decode(&read(path, ByteOffset(0), 512), 512).unwrap();
    let node = SbdNode { is_in_use: true, name: "victim".into() };
    write(path, ByteOffset(512), &encode_node_sector(&node, beat, &node_record_place(header.uuid, beat.slot, 512), 512));
    image
}

#[test]
fn a_check_says_of_each_node_how_it_lives() {
    for (beat, code, said) in [
        (silent(), 0, "victim: rule cluster, lease 2000 ms, T 500 ms"),
        (Beat { is_stopped: true, watchdog: WatchdogKind::None, ..silent() }, 0, "victim: its sbd has stopped, and said so"),
        (Beat { watchdog: WatchdogKind::None, ..silent() }, 1, "victim: UNSAFE: rule cluster, lease 2000 ms, T 500 ms: it has no watchdog"),
        (Beat { lease_ms: 7000, ..silent() }, 1, "it may live for 6500 ms, and msgwait is 6000 ms"),
    ] {
        let image = area_of(&beat);
        let output = sbd(ours(), &format!("-d {} check", image.path()));
        let text = format!("{}{}", out(&output), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn times_are_not_changed_under_a_node_that_may_have_gone_back_to_stock() {
    let image = area_of(&Beat { is_stopped: true, ..silent() });
    let retime = || sbd(ours(), &format!("-d {} -4 9 retime", image.path()));
    let refused = retime();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("or one from before"), "{refused:?}");
    // As its own watcher leaves it.
    let tail = MailboxTail { victim_boot: silent().boot, serial: 1, mac: [0; 16] };
    write(image.path(), ByteOffset(1024), &Mailbox { tail: Tail::Present(tail), ..Mailbox::default() }.encode(512));
    assert!(retime().status.success());
}

#[test]
fn a_slot_of_which_nothing_shows_that_its_node_is_gone_is_freed_on_a_persons_word() {
    let image = area_of(&silent());
    let path = image.path();
    let release = |word: &str| sbd(ours(), &format!("-d {path} {word} release victim"));
    let refused = release("");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing shows that"), "{refused:?}");
    assert!(release("--i-vouch-that-it-is-gone").status.success());
    assert_eq!(out(&sbd(ours(), &format!("-d {path} list"))), "");
    assert_eq!(read(path, ByteOffset(512), 512), [0; 512], "no record is left either");
}

/// A node under the rule *cluster* that is silent: only its cluster's loss bounds its life.
#[test]
fn a_silent_node_that_its_cluster_may_keep_alive_is_gone_only_when_the_cluster_has_lost_it() {
    let message = |members: &str| {
        let image = area_of(&silent());
        let path = image.path();
        let tools = tempfile::tempdir().unwrap();
        let nodes = "nodelist.node.0.ring0_addr (str) = a\nnodelist.node.1.name (str) = victim\nnodelist.node.1.nodeid (u32) = 2\nnodelist.node.1.ring0_addr (str) = b\n";
        let status = format!("Ring ID: 1.5\nQuorate: Yes\nFlags: Quorate\nMembership information\n 1 1 sender\n{members}");
        for (name, text) in [("corosync-cmapctl", nodes), ("corosync-quorumtool", &status)] {
            let tool = tools.path().join(name);
            std::fs::write(&tool, format!("#!/bin/sh\ncat <<END\n{text}END\n")).unwrap();
            std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let path_variable = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new(ours());
        command.args(["-d", path, "message", "victim", "reset"]).env("PATH", path_variable).env_remove("SBD_DEVICE");
        (Instant::now(), command.output().unwrap(), Instant::now())
    };
    let (lost, member) = std::thread::scope(|scope| {
        let lost = scope.spawn(|| message(""));
        (lost.join().unwrap(), message(" 2 1 victim\n"))
    });
    assert!(lost.1.status.success(), "{lost:?}");
    assert!(String::from_utf8_lossy(&lost.1.stderr).contains("evidence: cluster-lost"), "{lost:?}");
    assert!(lost.2 - lost.0 >= Duration::from_secs(6), "never shorter than stock");
    assert_eq!(member.1.status.code(), Some(1), "{member:?}");
    assert!(String::from_utf8_lossy(&member.1.stderr).contains("silence proves nothing"), "{member:?}");
}
