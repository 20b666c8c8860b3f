//! What: the fence agents under Pacemaker's own fencer, against a node that really dies.
//! Owns: namespaces in which pacemaker-fenced runs alone, with /usr/sbin/fence_deadbolt and directories of its own.
//! Invariants: outside these namespaces no file changes; the fencer ends with the test.
//! Does not: run a cluster.
//! Called by: `cargo test`; as root with Debian's packages pacemaker, pacemaker-cli-utils, fence-agents and sbd.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Held, Image, STOCK, attach, folder, has_stock, made, ours, out, sbd, wait_for};
use deadbolt_disk::LoopDevice;
use deadbolt_tests::node::{Node, Watch};

const FENCED: [&str; 2] = ["/usr/lib/pacemaker/pacemaker-fenced", "/usr/libexec/pacemaker/pacemaker-fenced"];
const LIMIT: Duration = Duration::from_secs(10);
const MSGWAIT: Duration = Duration::from_secs(6);

/// Pacemaker's fencer, alone in its namespaces.
struct Fencer {
    /// First process of the namespaces.
    init: String,
    _held: Held,
}

impl Fencer {
    /// None without root, Pacemaker or the file systems that this takes, which is said.
    fn start() -> Option<Self> {
        let Some(fenced) = FENCED.iter().find(|path| Path::new(path).exists()).filter(|_| Path::new("/usr/sbin/stonith_admin").exists())
        else {
            eprintln!("skipped: needs the packages pacemaker and pacemaker-cli-utils");
            return None;
        };
        let script = format!(
            "set -e
            mount --make-rprivate /
            for place in /run /dev/shm /var/lib/pacemaker /var/log; do mount -t tmpfs none $place; done
            mkdir -p /var/lib/pacemaker/cores /run/sbin/upper /run/sbin/work
            mount -t overlay none -o lowerdir=/usr/sbin,upperdir=/run/sbin/upper,workdir=/run/sbin/work /usr/sbin
            touch /usr/sbin/fence_deadbolt
            mount --bind {} /usr/sbin/fence_deadbolt
            hostname fencer
            ip link set lo up
            echo ready
            PCMK_logfile=none exec {fenced} -s",
            env!("CARGO_BIN_EXE_fence_deadbolt")
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script]);
        let mut held = Held(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?);
        let mut line = String::new();
        BufReader::new(held.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            eprintln!("skipped: needs root, namespaces and an overlay file system");
            return None;
        }
        let id = held.0.id();
        let init = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap().trim().to_owned();
        let fencer = Self { init, _held: held };
        wait_for("an answer of the fencer", LIMIT, || fencer.admin("-L").0 == 0);
        Some(fencer)
    }

    fn run(&self, line: &str) -> Output {
        let entered = ["--target", &self.init, "--mount", "--net", "--pid", "--ipc", "--uts", "--"];
        Command::new("nsenter").args(entered).args(line.split_whitespace()).output().unwrap()
    }

    /// `stonith_admin`: its exit code, its output, how long it took.
    fn admin(&self, line: &str) -> (i32, String, Duration) {
        let began = Instant::now();
        let output = self.run(&format!("/usr/sbin/stonith_admin {line}"));
        let text = format!("{}{}", out(&output), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text, began.elapsed())
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> (String, Duration) {
        let (code, text, took) = self.admin(line);
        assert_eq!(code, 0, "stonith_admin {line}: {text}");
        (text, took)
    }

    #[track_caller]
    fn fails(&self, line: &str) -> Duration {
        let (code, text, took) = self.admin(line);
        assert_ne!(code, 0, "stonith_admin {line}: {text}");
        took
    }
}

/// A loop device with slots for `victim` and `other`.
fn device(image: &Image) -> Option<LoopDevice> {
    let device = attach(image, 512)?;
    let path = device.path().to_str().unwrap();
    assert!(sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 {} create", MSGWAIT.as_secs())).status.success());
    for name in ["victim", "other"] {
        assert!(sbd(ours(), &format!("-d {path} allocate {name}")).status.success());
    }
    Some(device)
}

fn listed(path: &str) -> String {
    out(&sbd(ours(), &format!("-d {path} list")))
}

/// A node under stock sbd, at work.
fn stock_node(path: &str) -> Option<Node> {
    let path = Path::new(path);
    let node = made(Watch::new(Path::new(STOCK), "victim", path).start(folder()))?;
    node.await_work(path, LIMIT).unwrap();
    Some(node)
}

#[test]
fn pacemaker_fences_a_node_by_our_agent() {
    if !has_stock() {
        return;
    }
    let image = Image::new();
    let (Some(device), Some(fencer)) = (device(&image), Fencer::start()) else { return };
    let path = device.path().to_str().unwrap();
    let Some(node) = stock_node(path) else { return };
    fencer.succeeds(&format!("-R disk -a fence_deadbolt -o devices={path}"));
    fencer.succeeds("-Q disk");
    assert!(fencer.succeeds("-s disk").0.contains("victim"));
    assert!(fencer.succeeds("-l other").0.contains("disk"));
    assert!(fencer.succeeds("-l nobody").0.contains("0 fence devices"));
    assert_eq!(node.died(), None, "asking killed the node");
    let before = listed(path);

    let (_, took) = fencer.succeeds("-B victim");
    assert!(node.died().is_some(), "told to be gone before it was: {}", node.log());
    assert!(took >= MSGWAIT, "{took:?}");
    eprintln!("reboot of a living node under stock sbd: {took:?}");
    assert_eq!(listed(path), before.replace("victim\tclear\t", "victim\treset\tfencer"));

    // What stands in the mailbox is evidence of nothing: each fence waits for its own.
    for _ in 0..2 {
        let (_, took) = fencer.succeeds("-F victim");
        assert!(took >= MSGWAIT, "{took:?}");
        assert!(listed(path).contains("victim\toff\tfencer"));
    }
    // And nobody erases it. A node is unfenced by itself only, and a fencer alone calls itself so.
    let before = listed(path);
    fencer.fails("-U victim");
    fencer.succeeds(&format!("-R own -a fence_deadbolt -o devices={path} -o pcmk_host_list=localhost"));
    let (_, took) = fencer.succeeds("-U localhost");
    assert!(took < MSGWAIT, "{took:?}");
    assert_eq!(listed(path), before);
}

#[test]
fn pacemaker_is_not_kept_waiting_for_a_node_under_our_sbd() {
    let image = Image::new();
    let Some(library) = made(deadbolt_tests::watchdog::library(folder())) else { return };
    let (Some(device), Some(fencer)) = (device(&image), Fencer::start()) else { return };
    let path = device.path().to_str().unwrap();
    let program = ours();
    let Some(node) = made(Watch::new(&program, "victim", device.path()).watchdog(&library).start(folder())) else { return };
    node.await_work(device.path(), LIMIT).unwrap();
    fencer.succeeds(&format!("-R disk -a fence_deadbolt -o devices={path} -o pcmk_host_check=status"));
    // Its own signs of life are asked for; of the other slot's node there are none.
    assert!(fencer.succeeds("-l victim").0.contains("disk"));
    assert!(fencer.succeeds("-l other").0.contains("0 fence devices"));
    assert_eq!(node.died(), None, "asking killed the node");

    let (_, took) = fencer.succeeds("-B victim");
    assert!(node.died().is_some(), "told to be gone before it was: {}", node.log());
    assert!(took < MSGWAIT, "{took:?}");
    eprintln!("reboot of a living node under our sbd: {took:?}");
    // What it left is no sign of life.
    let asked = fencer.run(&format!("/usr/sbin/fence_deadbolt -o status -n victim --devices={path}"));
    assert_ne!(asked.status.code(), Some(0), "{asked:?}");
}

#[test]
fn pacemaker_is_told_what_failed() {
    let image = Image::new();
    let (Some(device), Some(fencer)) = (device(&image), Fencer::start()) else { return };
    let path = device.path().to_str().unwrap();
    // One device of two is no majority; a name without a slot gets no message.
    fencer.succeeds(&format!(
        "-R half -a fence_deadbolt -o devices={path},/nonexistent -o pcmk_host_list=victim -o pcmk_host_check=static-list"
    ));
    fencer
        .succeeds(&format!("-R nameless -a fence_deadbolt -o devices={path} -o pcmk_host_map=ghost:nobody -o pcmk_host_check=static-list"));
    fencer.fails("-Q half");
    for line in ["-F victim", "-B victim", "-F ghost"] {
        fencer.fails(line);
    }
    fencer.fails("-K -a fence_deadbolt -o devices=/nonexistent");
    fencer.succeeds(&format!("-K -a fence_deadbolt -o devices={path}"));
    // The map's name is the slot's; Pacemaker's own name for the node is not.
    fencer.succeeds(&format!("-R mapped -a fence_deadbolt -o devices={path} -o pcmk_host_map=cluster-name:other"));
    fencer.succeeds("-F cluster-name");
    assert!(listed(path).contains("other\toff\tfencer"));
}

#[test]
fn pacemaker_fences_a_node_by_fence_sbd_over_our_sbd() {
    if !has_stock() {
        return;
    }
    if !Path::new("/usr/sbin/fence_sbd").exists() {
        eprintln!("skipped: needs the package fence-agents");
        return;
    }
    let image = Image::new();
    let (Some(device), Some(fencer)) = (device(&image), Fencer::start()) else { return };
    let path = device.path().to_str().unwrap();
    let Some(node) = stock_node(path) else { return };
    fencer.succeeds(&format!("-R disk -a fence_sbd -o devices={path} -o sbd_path={}", ours().display()));
    fencer.succeeds("-Q disk");
    assert!(fencer.succeeds("-s disk").0.contains("victim"));
    let (_, took) = fencer.succeeds("-F victim");
    assert!(node.died().is_some() && took >= MSGWAIT, "{took:?}");
    eprintln!("off of a living node by fence_sbd: {took:?}");
    fencer.succeeds("-U victim");
    assert!(listed(path).contains("victim\tclear"));
    fencer.succeeds("-B victim");
    assert!(listed(path).contains("victim\treset"));
}
