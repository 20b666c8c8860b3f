//! What: bad input, one row each: a clear error that says what was found, and nothing lost.
//! Owns: nothing beyond its clusters.
//! Invariants: after every row the cluster is as before.
//! Does not: harm a device while a node lives, except with the stock tool's own hand.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, both, deadbolt, directory, expect, image, is_root, run, wait};
use deadbolt_disk::{LoopOptions, attach_loop};
use std::{
    fs,
    io::Write,
    net::{TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

/// The command fails with this code and all of these words; it neither panics nor hangs.
#[track_caller]
fn refuses(command: &mut Command, code: i32, words: &[&str]) {
    let output = run(command);
    let said = both(&output);
    eprintln!("{code}: {}", said.trim_end());
    assert_eq!(output.status.code(), Some(code), "{command:?} said: {said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "{command:?} does not say {word:?}: {said}");
    }
}

fn init(device: &Path, directory: &Path, options: &[&str]) -> Command {
    let mut command = deadbolt();
    command.arg("init").arg(device).args(["--name", "a", "--address", "127.250.0.1:7410", "--no-start", "--watchdog", "process", "--dir"]);
    command.arg(directory).args(options);
    command
}

#[test]
fn devices_that_cannot_be_used_are_refused() {
    let place = directory();
    let path = |name: &str| place.path().join(name);
    let good = image(&path("good"));
    refuses(&mut init(&path("missing"), &path("n"), &[]), 1, &["missing", "No such file"]);
    refuses(&mut init(place.path(), &path("n"), &[]), 1, &["directory"]);
    fs::File::create(path("small")).unwrap().set_len(1 << 20).unwrap();
    refuses(&mut init(&path("small"), &path("n"), &[]), 1, &["small", "bytes"]);
    // Known contents are named, and stay.
    let mut signed = fs::read(&good).unwrap();
    signed[510..512].copy_from_slice(&[0x55, 0xaa]);
    signed[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(path("signed"), &signed).unwrap();
    refuses(&mut init(&path("signed"), &path("n"), &[]), 1, &["ext"]);
    assert!(fs::read(path("signed")).unwrap() == signed, "a refused device was written to");
    // One storage by three names is not three devices.
    std::os::unix::fs::symlink(&good, path("link")).unwrap();
    fs::hard_link(&good, path("hard")).unwrap();
    let mut three = init(&good, &path("n"), &[]);
    three.arg(path("link")).arg(path("hard"));
    refuses(&mut three, 1, &["same"]);
    refuses(
        deadbolt().args(["join", "--name", "b", "--address", "127.250.0.2:7410", "--key-file", "-", "--dir"]).arg(path("n")).arg(&good),
        1,
        &[],
    );
    refuses(deadbolt().args(["why", "--device"]).arg(&good), 1, &["superblock", "deadbolt format"]);
    assert!(!path("n").join("node.toml").exists(), "a refused init left a node behind");
}

#[test]
fn wishes_that_cannot_be_are_refused() {
    let place = directory();
    let device = image(&place.path().join("device"));
    let node = place.path().join("n");
    let row = |options: &[&str], code: i32, words: &[&str]| refuses(&mut init(&device, &node, options), code, words);
    row(&["--nodes", "3", "--disk-votes", "3"], 1, &["disk votes", "nodes - 1"]);
    row(&["--nodes", "3", "--disk-votes", "0"], 1, &["disk votes"]);
    row(&["--stall", "10ms"], 1, &["stall", "500"]);
    row(&["--stall", "1h"], 125, &["unit", "ms, s or m"]);
    row(&["--poll", "1ms"], 1, &["poll", "20"]);
    row(&["--watchdog-time", "100ms", "--driver", "softdog", "--poll", "20s"], 1, &["poll"]);
    row(&["--address", "127.250.0.1:7410"], 1, &["127.250.0.1:7410", "twice"]);
    row(&["--address", "0.0.0.0:7410"], 1, &["0.0.0.0"]);
    row(&["--address", "here"], 1, &["ip:port"]);
    refuses(deadbolt().args(["init", "--name", &"x".repeat(64), "--address", "127.250.0.1:7410"]).arg(&device), 1, &["63"]);
    refuses(deadbolt().args(["init", "--name", "a/b", "--address", "127.250.0.1:7410"]).arg(&device), 1, &["a/b"]);
    refuses(deadbolt().args(["eat"]), 125, &["eat"]);
    refuses(deadbolt().args(["start", "--dir"]).arg(place.path()), 1, &["node.toml", "deadbolt init"]);
    let before = fs::read(&device).unwrap();
    assert!(before.iter().all(|byte| *byte == 0), "a refused init wrote to the device");
}

#[test]
fn joins_that_would_harm_are_refused() {
    // Two slots, and the second one is free for exactly one node.
    let mut cluster = Cluster::new();
    cluster.extra = vec!["--slots".into(), "2".into()];
    cluster.add("a", 2);
    cluster.extra.clear();
    let join = |cluster: &Cluster, name: &str, index: usize| cluster.make("join", name, index);
    refuses(&mut join(&cluster, "A", 5), 1, &["name A", "slot 0"]);
    refuses(&mut join(&cluster, "b", 0), 1, &["address", "node a"]);
    let key = fs::read_to_string(cluster.key_file()).unwrap();
    let key_file = |name: &str, text: &str, mode: u32| {
        let path = cluster.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let with_key = |path: &Path| {
        let mut command = cluster.verb("join", "b");
        command
            .arg(&cluster.device)
            .args(["--name", "b", "--address", &cluster.address(1), "--watchdog", "process", "--key-file"])
            .arg(path);
        command
    };
    refuses(&mut with_key(&key_file("open", &key, 0o644)), 1, &["644", "chmod 600"]);
    refuses(&mut with_key(&key_file("short", "abc", 0o600)), 1, &["key"]);
    // With a wrong key nobody answers: the join gives up, and says what it may be.
    let wrong: String = key.trim().chars().rev().collect();
    refuses(&mut with_key(&key_file("wrong", &wrong, 0o600)), 1, &["key"]);
    assert!(!cluster.node("b").join("node.toml").exists(), "a refused join left a node behind");
    cluster.add("b", 2);
    refuses(&mut join(&cluster, "c", 2), 1, &["slot"]);
    cluster.wait_members(&["a", "b"]);
    // A running node is not started twice, and its directory takes no second node.
    expect(&mut cluster.verb("start", "b"), 0);
    let mut again = join(&cluster, "d", 3);
    again.arg("--dir").arg(cluster.node("b"));
    refuses(&mut again, 125, &["--dir"]);
    refuses(&mut init(&cluster.device, &cluster.node("x"), &[]), 1, &["carries cluster"]);
}

#[test]
fn a_node_on_another_clusters_disk_is_refused() {
    let mut moved = Cluster::of(&["a"]);
    let second = Cluster::of(&["a", "b"]);
    let view = second.field("a", "view").unwrap();
    moved.stop("a");
    // The second cluster has a node of that name, too, which lives.
    let file = moved.node("a").join("node.toml");
    let text = fs::read_to_string(&file).unwrap();
    let redirected = text.replace(moved.device.to_str().unwrap(), second.device.to_str().unwrap());
    fs::write(&file, &redirected).unwrap();
    refuses(&mut moved.verb("start", "a"), 1, &["carries cluster", "belongs to cluster", "node.toml"]);
    // Even a file that does not name its cluster does not take a living node's place.
    let nameless: String = redirected.lines().filter(|line| !line.starts_with("cluster")).map(|line| format!("{line}\n")).collect();
    fs::write(&file, nameless).unwrap();
    refuses(&mut moved.verb("start", "a"), 1, &["another machine lives in this slot"]);
    assert_eq!(second.field("a", "view").unwrap(), view, "the other cluster was disturbed");
    assert_eq!(second.members("b"), ["a", "b"]);
}

fn garbage() -> Vec<Vec<u8>> {
    let random = |length: usize| -> Vec<u8> { (0..length).map(|at| u8::try_from((at * 7919 + length * 31) % 256).unwrap()).collect() };
    let mut all =
        vec![Vec::new(), b"\n\n\n".to_vec(), b"{\"op\":\"eat\"}\n{\"op\":7}\n[]\nnull\n".to_vec(), vec![0xff; 200_000], vec![0; 70_000]];
    all.extend([1, 4, 24, 1400, 100_000].map(random));
    // Lengths that promise more than comes, in both byte orders.
    all.push([u32::MAX.to_le_bytes().as_slice(), b"x"].concat());
    all.push([0x7fff_ffff_u32.to_be_bytes().as_slice(), &[0; 64]].concat());
    all
}

#[test]
fn garbage_on_every_socket_changes_nothing() {
    let cluster = Cluster::of(&["a", "b"]);
    cluster.wait_members(&["a", "b"]);
    let before = (cluster.field("a", "incarnation"), cluster.field("a", "boot"), cluster.field("a", "view"));
    assert!(before.0.is_some() && before.1.is_some());
    for bytes in garbage() {
        for socket in ["control.sock", "lock.sock", "supervisor.sock"] {
            let mut stream = UnixStream::connect(cluster.node("a").join(socket)).unwrap_or_else(|error| panic!("{socket}: {error}"));
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            // A daemon that has seen enough may close.
            let _ = stream.write_all(&bytes);
        }
        let mut stream = TcpStream::connect(cluster.address(0)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let _ = stream.write_all(&bytes);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = socket.send_to(&bytes[..bytes.len().min(60_000)], cluster.address(0));
    }
    expect(&mut cluster.lock("a", "r", &["--wait", "5s"], &["true"]), 0);
    expect(&mut cluster.lock("b", "r", &["--wait", "5s"], &["true"]), 0);
    let after = (cluster.field("a", "incarnation"), cluster.field("a", "boot"), cluster.field("a", "view"));
    assert_eq!(after, before);
    assert!(!cluster.log("a").contains("panicked"));
}

#[test]
fn a_device_that_shrank_is_refused() {
    let mut cluster = Cluster::of(&["a"]);
    cluster.stop("a");
    let file = fs::OpenOptions::new().write(true).open(&cluster.device).unwrap();
    file.set_len(8 << 20).unwrap();
    refuses(&mut cluster.verb("start", "a"), 1, &["bytes"]);
    file.set_len(1 << 20).unwrap();
    refuses(&mut cluster.verb("start", "a"), 1, &[]);
    file.set_len(0).unwrap();
    refuses(&mut cluster.verb("start", "a"), 1, &[]);
}

#[test]
fn devices_that_only_root_can_make_are_refused() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let place = directory();
    let path = |name: &str| place.path().join(name);
    // A file system without direct I/O.
    let ramfs = path("ramfs");
    fs::create_dir(&ramfs).unwrap();
    let script = format!("mount -t ramfs none {0} && truncate -s 16M {0}/image && exec \"$@\"", ramfs.display());
    let mut inside = Command::new("unshare");
    let wanted = init(&ramfs.join("image"), &path("n"), &[]);
    inside.args(["-m", "sh", "-c", &script, "sh"]).arg(wanted.get_program()).args(wanted.get_args());
    refuses(&mut inside, 1, &["direct I/O"]);
    // A device that takes no writes.
    let read_only = image(&path("read-only"));
    let Ok(attached) = attach_loop(&read_only, LoopOptions { read_only: true, autoclear: true, ..LoopOptions::default() }) else {
        eprintln!("skipped the rest: no loop devices");
        return;
    };
    refuses(&mut init(attached.path(), &path("n"), &[]), 1, &["read-only"]);
    drop(attached);
    // A loop device through the page cache.
    let cached = image(&path("cached"));
    let output = Command::new("losetup").args(["--find", "--show"]).arg(&cached).output();
    if let Some(device) = output.ok().filter(|output| output.status.success()).map(|output| String::from_utf8(output.stdout).unwrap()) {
        let device = device.trim();
        let _ = Command::new("losetup").args(["--direct-io=off", device]).status();
        let refused = run(&mut init(Path::new(device), &path("n"), &[]));
        assert!(Command::new("losetup").args(["-d", device]).status().unwrap().success());
        assert_eq!(refused.status.code(), Some(1), "{}", both(&refused));
        assert!(both(&refused).contains("direct I/O"), "{}", both(&refused));
    }
    // The two ends of one device with different sector sizes.
    let end = |sector_bytes| attach_loop(path("ends"), LoopOptions { sector_bytes, autoclear: true, ..LoopOptions::default() }).unwrap();
    image(&path("ends"));
    let first = end(512);
    expect(&mut init(first.path(), &path("first"), &["--allow-unprotected"]), 0);
    drop(first);
    let other = end(4096);
    let mut why = deadbolt();
    refuses(why.args(["why", "--device"]).arg(other.path()), 1, &["4096", "512"]);
}

#[test]
fn a_stock_create_over_a_living_device_stops_nobody() {
    const STOCK: &str = "/usr/sbin/sbd";
    if !Path::new(STOCK).exists() {
        eprintln!("skipped: needs {STOCK} (package sbd)");
        return;
    }
    // The stock program works on block devices only.
    let place = directory();
    let file = image(&place.path().join("device"));
    let attached = if is_root() { attach_loop(&file, LoopOptions { autoclear: true, ..LoopOptions::default() }).ok() } else { None };
    let Some(attached) = attached else {
        eprintln!("skipped: needs root and loop devices");
        return;
    };
    let device = attached.path().to_path_buf();
    let mut cluster = Cluster::on(place, device.clone()).with(&["a", "b"], &[]);
    cluster.wait_members(&["a", "b"]);
    let view = cluster.field("a", "view").unwrap();
    expect(Command::new(STOCK).arg("-d").arg(&device).arg("create"), 0);
    // Both keep their leases: their beats, votes and views lie elsewhere.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((cluster.members("a"), cluster.field("a", "view").unwrap()), (vec!["a".to_owned(), "b".to_owned()], view));
    expect(&mut cluster.lock("a", "r", &["--wait", "5s"], &["true"]), 0);
    cluster.stop("b");
    cluster.start("b");
    wait("b is back", Duration::from_secs(20), || cluster.members("a") == ["a", "b"]);
}
