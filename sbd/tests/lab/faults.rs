//! What: what makes stock sbd, or the agent that drives it, report a fence that did not happen.
//! Owns: each fault, made on a real device.
//! Invariants: the node of which a death is reported is seen alive after the report.
//! Does not: look at times that are too short; that is `times`.
//! Called by: the test program beside it.

use std::process::{Command, Stdio};

use deadbolt_disk::ByteOffset;
use deadbolt_tests::hung_disk::Hold;
use deadbolt_tests::node::Watch;

use super::*;
use crate::common::{Image, TwoPaths, attach, folder, out, read, two_paths, write};

/// The device is full when the message is written; its reader lives on.
fn on_a_full_device(whose: Whose) -> Option<(Sent, Node)> {
    let library = library()?;
    let mut disk = two_paths(512)?;
    let program = whose.program();
    create(&program, disk.victim.path(), "-1 2 -4 7", &["victim"]);
    let node = made(Watch::new(&program, "victim", disk.sender.path()).watchdog(&library).start(folder()))?;
    node.await_work(disk.sender.path(), START).unwrap();
    disk.hung.hold(Hold::Full).unwrap();
    let sent = send(whose, disk.victim.path(), "victim", "reset");
    report(&format!("a full device, {whose:?}"), &sent, &node);
    assert_eq!(node.died(), None);
    assert!(out(&sbd(&program, &format!("-d {} list", disk.sender.path().display()))).contains("victim\tclear"), "nothing was written");
    Some((sent, node))
}

#[test]
fn stock_calls_a_write_that_failed_a_fence() {
    if !has_stock() {
        return;
    }
    let Some((sent, node)) = on_a_full_device(Whose::Stock) else { return };
    assert!(sent.is_success(), "{sent:?}");
    assert_eq!(node.died_by(Instant::now() + Duration::from_secs(1)), None, "{}", node.log());
}

#[test]
fn ours_says_that_a_write_failed() {
    let Some((sent, _)) = on_a_full_device(Whose::Ours) else { return };
    assert_eq!(sent.output.status.code(), Some(1), "{sent:?}");
}

/// A first fence is under way, its victim does not read: a second one, by this agent. Whether the first was still under way then.
fn second_fence(whose: Whose, agent: &str) -> Option<(Sent, Node, bool)> {
    let library = library()?;
    let mut disk = two_paths(512)?;
    let program = whose.program();
    create(&program, disk.sender.path(), "-1 2 -4 8", &["victim"]);
    let node = made(Watch::new(&program, "victim", disk.victim.path()).watchdog(&library).start(folder()))?;
    node.await_work(disk.victim.path(), START).unwrap();
    disk.hung.hold(Hold::Reads).unwrap();
    let line = format!("-n other -d {} message victim off", disk.sender.path().display());
    let mut first = common::Held(Command::new(&program).args(line.split(' ')).stdout(Stdio::null()).spawn().unwrap());
    common::wait_for("the first message", Duration::from_secs(5), || read_mailbox(&disk) == 3);
    let mut command = Command::new(agent);
    command.args(["--action=off", "--plug=victim"]).arg(format!("--devices={}", disk.sender.path().display()));
    let began = Instant::now();
    let output = command.output().unwrap();
    let sent = Sent { began, ended: Instant::now(), output };
    let is_first_under_way = first.0.try_wait().unwrap().is_none();
    let agent = Path::new(agent).file_name().unwrap().to_string_lossy();
    report(&format!("{agent} while a message to a node of {whose:?} is under way"), &sent, &node);
    Some((sent, node, is_first_under_way))
}

/// The command in the mailbox of slot 0.
fn read_mailbox(disk: &TwoPaths) -> u8 {
    read(disk.sender.path().to_str().unwrap(), ByteOffset(1024), 512)[0]
}

#[test]
fn the_agent_of_stock_believes_the_text_of_a_mailbox() {
    const AGENT: &str = "/usr/sbin/fence_sbd";
    if !has_stock() {
        return;
    }
    if !Path::new(AGENT).exists() {
        eprintln!("skipped: needs the package fence-agents");
        return;
    }
    let Some((sent, node, is_first_under_way)) = second_fence(Whose::Stock, AGENT) else { return };
    assert!(sent.is_success() && is_first_under_way, "{sent:?}");
    assert_eq!(node.died(), None, "{}", node.log());
}

#[test]
fn the_agent_of_ours_does_not() {
    for whose in [Whose::Stock, Whose::Ours].into_iter().filter(|whose| whose.is_here()) {
        let Some((sent, node, _)) = second_fence(whose, env!("CARGO_BIN_EXE_fence_deadbolt")) else { return };
        let died = node.died_by(Instant::now() + START);
        assert!(sent.is_success(), "{sent:?}");
        assert_eq!(sent.outlived(died.unwrap()), Some(Duration::ZERO), "{sent:?} {}", node.log());
    }
}

/// A crash dump is asked for where there is no sysrq.
fn crash(whose: Whose) -> Option<(Sent, Node)> {
    let library = library()?;
    let image = Image::new();
    let device = attach(&image, 512)?;
    let program = whose.program();
    create(&program, device.path(), "-1 2 -4 7", &["victim"]);
    let node = made(Watch::new(&program, "victim", device.path()).watchdog(&library).start(folder()))?;
    node.await_work(device.path(), START).unwrap();
    let sent = send(whose, device.path(), "victim", "crashdump");
    report(&format!("crashdump without sysrq, {whose:?}"), &sent, &node);
    Some((sent, node))
}

#[test]
fn stock_disarms_its_watchdog_before_a_crash_that_does_not_come() {
    if !has_stock() {
        return;
    }
    let Some((sent, node)) = crash(Whose::Stock) else { return };
    assert!(sent.is_success(), "{sent:?}");
    // Longer than the watchdog would have taken.
    assert_eq!(node.died_by(Instant::now() + Duration::from_secs(3)), None, "{}", node.log());
    let seen = node.watchdog();
    assert!(seen.stops > 0 && seen.until.is_none() && seen.fired.is_none(), "{seen:?}");
}

#[test]
fn ours_ends_a_node_that_cannot_crash() {
    let Some((sent, node)) = crash(Whose::Ours) else { return };
    let died = node.died_by(Instant::now() + START);
    assert!(died.is_some() && node.watchdog().stops == 0, "{died:?} {:?} {}", node.watchdog(), node.log());
    assert_eq!(sent.outlived(died.unwrap()), Some(Duration::ZERO), "{sent:?}");
}

/// The header loses the word that says how long a sender waits.
fn on_a_damaged_header(whose: Whose) -> Option<(Sent, Node)> {
    let library = library()?;
    let image = Image::new();
    let device = attach(&image, 512)?;
    let path = device.path().to_str().unwrap();
    let program = whose.program();
    create(&program, device.path(), "-1 2 -4 7", &["victim"]);
    let node = made(Watch::new(&program, "victim", device.path()).watchdog(&library).start(folder()))?;
    let mut header = read(path, ByteOffset(0), 512);
    header[28..32].fill(0);
    // Its next cycle is a second away now.
    node.await_work(device.path(), START).unwrap();
    write(path, ByteOffset(0), &header);
    let sent = send(whose, device.path(), "victim", "reset");
    report(&format!("a header without msgwait, {whose:?}"), &sent, &node);
    Some((sent, node))
}

#[test]
fn stock_believes_a_damaged_header() {
    if !has_stock() {
        return;
    }
    let Some((sent, node)) = on_a_damaged_header(Whose::Stock) else { return };
    assert!(sent.is_success() && sent.took() < Duration::from_secs(1), "{sent:?}");
    assert!(node.died().is_none_or(|died| died > sent.ended), "{}", node.log());
}

#[test]
fn ours_claims_nothing_by_a_damaged_header() {
    let Some((sent, node)) = on_a_damaged_header(Whose::Ours) else { return };
    let died = node.died_by(sent.ended).unwrap_or_else(Instant::now);
    assert!(sent.outlived(died).is_none_or(|span| span.is_zero()), "{sent:?} {}", node.log());
}

#[test]
fn stock_hides_nodes_behind_a_damaged_header() {
    if !has_stock() {
        return;
    }
    let image = Image::new();
    let Some(device) = attach(&image, 512) else { return };
    let path = device.path().to_str().unwrap();
    create(Path::new(STOCK), device.path(), "-1 2 -4 7", &["first", "second"]);
    let mut header = read(path, ByteOffset(0), 512);
    header[9] = 1;
    write(path, ByteOffset(0), &header);
    let listed = sbd(STOCK, &format!("-d {path} list"));
    assert!(listed.status.success() && out(&listed) == "0\tfirst\tclear\t\n", "{listed:?}");
    for line in ["list", "allocate second", "message second exit"] {
        assert_eq!(sbd(ours(), &format!("-d {path} {line}")).status.code(), Some(1), "{line}");
    }
}
