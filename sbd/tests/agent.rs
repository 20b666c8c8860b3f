//! What: the fence agent as its callers run it, on image files; unmodified fence_sbd over our sbd on a loop device.
//! Owns: the images; the processes that stand for a local sbd.
//! Invariants: no success without its effect; asking changes no byte.
//! Does not: kill a node (see `pacemaker`).
//! Called by: `cargo test`; with xmllint and Debian's package fence-agents for the second half.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod common;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Held, Image, attach, ours, out, read, sbd, write};
use deadbolt_disk::ByteOffset;

const MSGWAIT: Duration = Duration::from_secs(6);
const SCHEMA: &str = "/usr/share/cluster/relaxng/metadata.rng";
const FENCE_SBD: &str = "/usr/sbin/fence_sbd";

/// The mailbox of the first slot, with sectors of 512 bytes.
const MAILBOX: ByteOffset = ByteOffset(1024);

/// Runs the agent as a fencer does: no arguments, lines on standard input.
fn agent_with(lines: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fence_deadbolt"));
    command.env_remove("SBD_DEVICE").env("SBD_PIDFILE", "/nonexistent/sbd.pid").envs(environment.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn agent(lines: &str) -> Output {
    agent_with(lines, &[])
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An area with slots for these names, in this order.
fn area(names: &[&str]) -> Image {
    let image = Image::new();
    let path = image.path();
    assert!(sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 {} create", MSGWAIT.as_secs())).status.success());
    for name in names {
        assert!(sbd(ours(), &format!("-d {path} allocate {name}")).status.success());
    }
    image
}

fn mailbox(path: &str) -> Vec<u8> {
    read(path, MAILBOX, 512)
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

#[test]
fn metadata_are_as_fence_agents_want_them() {
    let metadata = agent("action=metadata\n");
    assert_eq!(code(&metadata), 0);
    if !Path::new(SCHEMA).exists() {
        eprintln!("skipped: needs the package fence-agents");
        return;
    }
    let validated =
        Command::new("xmllint").args(["--noout", "--relaxng", SCHEMA, "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut validated) = validated else {
        eprintln!("skipped: needs xmllint");
        return;
    };
    validated.stdin.take().unwrap().write_all(&metadata.stdout).unwrap();
    let validated = validated.wait_with_output().unwrap();
    assert!(validated.status.success(), "{}", complaint(&validated));
}

#[test]
fn an_old_message_satisfies_nobody() {
    let image = area(&["victim"]);
    let path = image.path();
    for (action, word) in [("off", "off"), ("off", "off"), ("reboot", "reset")] {
        let began = Instant::now();
        let done = agent(&format!("action={action}\nnodename=cluster-name\nplug=victim\ndevices={path}\n"));
        assert_eq!(code(&done), 0, "{done:?}");
        assert!(began.elapsed() >= MSGWAIT, "{action} in {:?}", began.elapsed());
        assert!(out(&done).contains("evidence: msgwait"), "{done:?}");
        assert_eq!(out(&sbd(ours(), &format!("-d {path} list"))), format!("0\tvictim\t{word}\t{}\n", host()));
        let asked = agent(&format!("action=status\nport=victim\ndevices={path}\n"));
        assert_eq!((code(&asked), out(&asked).starts_with("Status: UNKNOWN\n")), (8, true), "the word in the mailbox is no status");
    }
    let crashed = agent(&format!("action=reboot\nplug=victim\ncrashdump=1\ndevices={path}\n"));
    assert_eq!((code(&crashed), mailbox(path)[0]), (0, 5));
    let off = agent(&format!("action=reboot\nmethod=onoff\nplug=victim\ndevices={path}\n"));
    assert_eq!((code(&off), mailbox(path)[0]), (0, 3));
}

#[test]
fn nothing_is_claimed_without_proof() {
    let image = area(&["victim"]);
    let path = image.path();
    let fails = |lines: &str, word: &str| {
        let began = Instant::now();
        let failed = agent(lines);
        assert_eq!(code(&failed), 1, "{lines}: {failed:?}");
        assert!(complaint(&failed).contains(word), "{lines}: {}", complaint(&failed));
        assert!(began.elapsed() < MSGWAIT, "{lines}");
        assert!(failed.stdout.is_empty(), "{lines}: {failed:?}");
    };
    fails(&format!("action=off\nplug=nobody\ndevices={path}\n"), "nobody");
    fails(&format!("action=off\nplug=victim\ndevices={path},/nonexistent\n"), "/nonexistent");
    fails(&format!("action=off\nplug=victim\npower_timeout=1\ndevices={path}\n"), "victim");
    fails(&format!("action=off\nplug=victim\nport=other\ndevices={path}\n"), "two victims");
    // A header whose msgwait was lost.
    let mut header = read(path, ByteOffset(0), 512);
    header[28..32].fill(0);
    write(path, ByteOffset(0), &header);
    fails(&format!("action=off\nplug=victim\ndevices={path}\n"), "msgwait");
}

#[test]
fn on_leaves_the_mailbox_alone() {
    let image = area(&["victim"]);
    let path = image.path();
    assert!(sbd(ours(), &format!("-d {path} -n other message victim exit")).status.success());
    let before = read(path, ByteOffset(0), 1 << 20);
    let began = Instant::now();
    let on = agent(&format!("action=on\nplug=victim\ndevices={path}\n"));
    assert_eq!((code(&on), out(&on).contains("nothing was written")), (0, true));
    assert!(began.elapsed() < MSGWAIT);
    assert!(read(path, ByteOffset(0), 1 << 20) == before);
}

#[test]
fn who_asks_is_told_what_a_majority_says() {
    let images = [area(&["a", "one", "b"]), area(&["b", "A"]), area(&["c", "a"])];
    let three: Vec<&str> = images.iter().map(Image::path).collect();
    let ask = |action: &str, devices: &str| agent(&format!("action={action}\ndevices={devices}\n"));
    let before: Vec<Vec<u8>> = three.iter().map(|path| read(path, ByteOffset(0), 1 << 20)).collect();
    let listed = ask("list", &three.join(","));
    assert_eq!((code(&listed), out(&listed)), (0, "a,a\nb,b\n".to_owned()));
    let listed = ask("list-status", &three.join(","));
    assert_eq!((code(&listed), out(&listed)), (0, "a,a,UNKNOWN\nb,b,UNKNOWN\n".to_owned()));
    let environment = agent_with("action=list\n", &[("SBD_DEVICE", &three.join(";"))]);
    assert_eq!(out(&environment), "a,a\nb,b\n");
    for action in ["monitor", "validate-all"] {
        for (devices, expected) in [
            (three.join(","), 0),
            (format!("{},{},/nonexistent", three[0], three[1]), 0),
            (format!("{},/nonexistent", three[0]), 1),
            ("/dev/null".to_owned(), 1),
        ] {
            let asked = ask(action, &devices);
            assert_eq!(code(&asked), expected, "{action} {devices}: {asked:?}");
        }
    }
    assert!(three.iter().zip(before).all(|(path, before)| read(path, ByteOffset(0), 1 << 20) == before), "asking writes nothing");
    // A header that was damaged does not count.
    write(three[0], ByteOffset(0), &[0; 512]);
    assert_eq!(code(&ask("monitor", &three.join(","))), 0);
    write(three[1], ByteOffset(0), &[0; 512]);
    assert_eq!(code(&ask("monitor", &three.join(","))), 1);
}

#[test]
fn a_machine_with_a_slot_needs_a_living_sbd() {
    let image = area(&[&host()]);
    let lines = format!("action=monitor\ndevices={}\n", image.path());
    let dead = agent(&lines);
    assert_eq!((code(&dead), complaint(&dead).contains("does not run")), (1, true), "{dead:?}");
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("sbd.pid");
    for (name, expected) in [("sbd: inquisitor", 0), ("other", 1)] {
        let process = Held(Command::new("sleep").arg0(name).arg("60").spawn().unwrap());
        // As stock writes it.
        std::fs::write(&pidfile, format!("{:>10}\n", process.0.id())).unwrap();
        let asked = agent_with(&lines, &[("SBD_PIDFILE", pidfile.to_str().unwrap())]);
        assert_eq!(code(&asked), expected, "{name}: {asked:?}");
    }
}

#[test]
fn unmodified_fence_sbd_works_over_our_sbd() {
    if !Path::new(FENCE_SBD).exists() {
        eprintln!("skipped: needs the package fence-agents");
        return;
    }
    let image = area(&["victim"]);
    let Some(device) = attach(&image, 512) else { return };
    let path = device.path().to_str().unwrap();
    let fence_sbd = |line: &str| {
        let mut command = Command::new(FENCE_SBD);
        command.args(["--devices", path, "--sbd-path", ours().to_str().unwrap()]).args(line.split(' ')).env_remove("SBD_DEVICE");
        let output = command.output().unwrap();
        (code(&output), out(&output), complaint(&output))
    };
    let word = || mailbox(path)[0];
    for (line, expected, said, left) in [
        ("-o monitor", 0, "", 0),
        ("-o list", 0, "victim,victim", 0),
        ("-o status -n victim", 0, "Status: ON", 0),
        ("-o reboot -n victim", 0, "Success: Rebooted", 2),
        ("-o status -n victim", 2, "Status: OFF", 2),
        ("-o on -n victim", 0, "Success: Powered ON", 0),
        ("-o off -n victim", 0, "Success: Powered OFF", 3),
        ("-o on -n victim", 0, "Success: Powered ON", 0),
        ("-o off -n nobody", 1, "", 0),
    ] {
        let (code, text, complaint) = fence_sbd(line);
        assert_eq!((code, text.contains(said), word()), (expected, true, left), "{line}: {text}{complaint}");
    }
}

#[test]
fn a_device_without_reservations_proves_nothing_and_hides_no_other_proof() {
    let (image, plain) = (area(&["victim"]), Image::new());
    let (path, plain) = (image.path(), plain.path());
    let off = agent(&format!("action=off\nplug=victim\ndevices={path}\nprotected_devices={plain}\n"));
    assert_eq!((code(&off), out(&off).contains("evidence: msgwait")), (0, true), "{off:?}");
    let cut = agent(&format!("action=off\nplug=victim\ndevices={path}\nprotected_devices={plain}\npower_timeout=1\n"));
    assert_eq!(code(&cut), 1);
    assert!(complaint(&cut).contains("not ejected") && complaint(&cut).contains("is not known for this device"), "{cut:?}");
    for (action, plug, word) in [
        ("on", host(), "is not known for this device"),
        ("on", "victim".into(), "only by itself"),
        ("validate-all", host(), "is not known"),
    ] {
        let failed = agent(&format!("action={action}\nplug={plug}\ndevices={path}\nprotected_devices={plain}\n"));
        assert_eq!((code(&failed), complaint(&failed).contains(word)), (1, true), "{action}: {failed:?}");
    }
}
