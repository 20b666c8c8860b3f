//! What: faults that only root can make: a hung disk, reboot(2) in a PID namespace, the pill of the stock tool.
//! Owns: nothing beyond its clusters.
//! Invariants: the hung disk's server goes with the test, and with it every wait for it.
//! Does not: touch the machine's own watchdog.
//! Called by: `cargo test`; skipped where there is no root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, deadbolt, directory, expect, image, is_root, wait};
use deadbolt_disk::{LoopDevice, LoopOptions, attach_loop};
use deadbolt_tests::hung_disk::{Hold, HungDisk, serve_if_asked};
use serde_json::Value;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(40);

/// The FUSE server runs in a copy of this program, under this name.
#[test]
fn hung_disk_server() {
    serve_if_asked();
}

fn attach(file: &Path) -> Option<LoopDevice> {
    if !is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    match attach_loop(file, LoopOptions { autoclear: true, ..LoopOptions::default() }) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: no loop device: {error}");
            None
        }
    }
}

#[test]
fn status_answers_while_the_disk_hangs() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let place = directory();
    let mut disk = HungDisk::start(&image(&place.path().join("image"))).unwrap();
    let Some(attached) = attach(disk.path()) else { return };
    let mut cluster = Cluster::on(place, attached.path().to_path_buf());
    cluster.stall = "5s";
    let cluster = cluster.with(&["a"], &[]);
    let boot = cluster.field("a", "boot").unwrap();
    disk.hold(Hold::All).unwrap();
    let begin = Instant::now();
    let mut times = Vec::new();
    let mut saw_hang = false;
    // Shorter than the tolerated stall: nothing else may come of it.
    while begin.elapsed() < Duration::from_millis(4000) {
        let asked = Instant::now();
        let status = cluster.status("a").unwrap();
        times.push(asked.elapsed());
        assert_eq!(status["state"], "member", "{status}");
        saw_hang |= status["disks"][0]["oldest_ms"].as_u64().is_some_and(|age| age > 1000);
        std::thread::sleep(Duration::from_millis(50));
    }
    disk.hold(Hold::Nothing).unwrap();
    times.sort_unstable();
    let (middle, longest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("{} answers while the disk hung: half within {middle:?}, all within {longest:?}", times.len());
    assert!(saw_hang, "status did not show the hang");
    // The time is that of a whole process. A machine that is busy with other tests may delay a few of them.
    assert!(times[times.len() * 9 / 10] < Duration::from_millis(100), "{times:?}");
    wait("the lease is renewed", PATIENCE, || {
        let status = cluster.status("a").unwrap_or_default();
        status["disks"][0]["oldest_ms"].as_u64().is_none_or(|age| age < 100) && status["quorate"] == true
    });
    assert_eq!(cluster.field("a", "boot").unwrap(), boot, "a stall that is tolerated reset the node");
    expect(&mut cluster.lock("a", "r", &["--wait", "5s"], &["true"]), 0);
    // Everything of the cluster goes before the disk does.
    drop(cluster);
    drop(attached);
}

#[test]
fn one_of_three_disks_may_hang() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let place = directory();
    let mut disk = HungDisk::start(&image(&place.path().join("third"))).unwrap();
    let files = [image(&place.path().join("first")), image(&place.path().join("second")), disk.path().to_path_buf()];
    let Some(attached) = files.iter().map(|file| attach(file)).collect::<Option<Vec<LoopDevice>>>() else { return };
    let mut cluster = Cluster::on(place, attached[0].path().to_path_buf());
    cluster.more_devices = attached[1..].iter().map(|device| device.path().to_path_buf()).collect();
    let cluster = cluster.with(&["a", "b"], &[]);
    cluster.wait_members(&["a", "b"]);
    let before = |name| (cluster.field(name, "boot").unwrap(), cluster.field(name, "incarnation").unwrap());
    let lives = [before("a"), before("b")];
    disk.hold(Hold::All).unwrap();
    // Longer than a lease at a stall of 1 s.
    std::thread::sleep(Duration::from_secs(5));
    for name in ["a", "b"] {
        expect(&mut cluster.lock(name, "r", &["--wait", "5s"], &["true"]), 0);
    }
    let status = cluster.status("a").unwrap();
    let hung: Vec<bool> = status["disks"].as_array().unwrap().iter().map(|disk| disk["hung"].as_bool().unwrap()).collect();
    assert_eq!(hung, [false, false, true], "{status}");
    assert_eq!([before("a"), before("b")], lives, "two good disks of three did not keep the nodes alive");
    disk.hold(Hold::Nothing).unwrap();
    wait("the third disk answers", PATIENCE, || cluster.status("a").is_some_and(|status| status["disks"][2]["hung"] == false));
    assert_eq!([before("a"), before("b")], lives);
    drop(cluster);
    drop(attached);
}

#[test]
fn loop_devices_of_both_sector_sizes_carry_a_cluster() {
    for sector_bytes in [512, 4096] {
        let place = directory();
        let file = image(&place.path().join("device"));
        if attach(&file).is_none() {
            return;
        }
        let attached = attach_loop(&file, LoopOptions { sector_bytes, autoclear: true, ..LoopOptions::default() }).unwrap();
        let mut cluster = Cluster::on(place, attached.path().to_path_buf()).with(&["a", "b"], &[]);
        cluster.wait_members(&["a", "b"]);
        for name in ["a", "b"] {
            expect(&mut cluster.lock(name, "r", &["--wait", "5s"], &["true"]), 0);
        }
        cluster.stop("b");
        cluster.stop("a");
        expect(deadbolt().arg("fsck").arg(attached.path()), 0);
        drop(cluster);
        drop(attached);
    }
}

#[test]
fn a_pill_reboots_a_pid_namespace_and_the_others_wait_for_evidence() {
    let place = directory();
    let file = image(&place.path().join("device"));
    let Some(attached) = attach(&file) else { return };
    if let Err(error) = deadbolt_cluster::supervisor::check_pid_namespace() {
        eprintln!("skipped: {error}");
        return;
    }
    let mut cluster = Cluster::on(place, attached.path().to_path_buf()).with(&["a", "b"], &["--pid-namespace"]);
    cluster.wait_members(&["a", "b"]);
    let boot = cluster.info("b").unwrap().boot;
    let said: Value = serde_json::from_str(expect(cluster.verb("fence", "a").args(["b", "--json"]), 0).trim()).unwrap();
    eprintln!("{said}");
    assert!(["acknowledged", "rebooted", "expired"].iter().any(|word| said["evidence"] == *word), "{said}");
    // D passes before anything of the old life may be touched, whatever became of its sockets.
    assert!(said["waited_ms"].as_u64().unwrap() >= 500, "{said}");
    wait("b lives again", PATIENCE, || cluster.info("b").is_some_and(|info| info.boot != boot));
    let log = cluster.log("b");
    assert!(log.contains("reboot(2)"), "b was not ended by reboot(2): {log}");
    cluster.wait_member("b");
    cluster.wait_members(&["a", "b"]);
    drop(cluster);
    drop(attached);
}

#[test]
fn the_pill_of_the_stock_tool_ends_our_node() {
    const STOCK: &str = "/usr/sbin/sbd";
    if !Path::new(STOCK).exists() {
        eprintln!("skipped: needs {STOCK} (package sbd)");
        return;
    }
    let place = directory();
    let file = image(&place.path().join("device"));
    let Some(attached) = attach(&file) else { return };
    let mut cluster = Cluster::on(place, attached.path().to_path_buf()).with(&["a", "b"], &[]);
    cluster.wait_members(&["a", "b"]);
    let boot = cluster.info("b").unwrap().boot;
    let said = expect(Command::new(STOCK).arg("-d").arg(attached.path()).arg("list"), 0);
    assert!(said.contains('a') && said.contains('b'), "{said}");
    expect(Command::new(STOCK).arg("-d").arg(attached.path()).args(["message", "b", "reset"]), 0);
    let time = wait("b lives again", PATIENCE, || cluster.info("b").is_some_and(|info| info.boot != boot));
    eprintln!("the stock pill ended b within {time:?}");
    assert!(cluster.log("b").contains("reset"));
    cluster.wait_member("b");
    cluster.wait_members(&["a", "b"]);
    drop(cluster);
    drop(attached);
}
