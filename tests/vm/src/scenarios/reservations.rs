//! What: a node ejected from a disk over iSCSI by the fence agent, and let in again after it was booted anew.
//! Owns: what is demanded of a target that aborts, and of one that does not.
//! Invariants: where the agent says *ejected*, the victim's next write has failed with a reservation conflict.
//! Does not: run a daemon: the SBD area is watched by nobody, so that nothing else can prove anything in time.
//! Called by: the table of scenarios.

use super::iscsi::{ENVIRONMENT, INITIATOR, LIO, LOGIN, TGT, Target, WRITE};
use super::{SHORT, Setup, seconds};
use crate::{Lab, Options, Said, Way, say};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// The disk that is shared without a network holds the SBD area. Its msgwait is less than stock's times: waiting for it proves nothing.
const AREA: &str = "
    ln -s /share/programs/deadbolt /run/sbd
    /run/sbd -d /dev/shared1 -4 3 -1 3 create
    /run/sbd -d /dev/shared1 allocate node1
    /run/sbd -d /dev/shared1 allocate node2
";
/// Well below the time in which anything else could prove something.
const AT_ONCE: Duration = Duration::from_secs(8);

/// With both targets.
///
/// # Errors
/// A node that was ejected writes on, or one was called ejected that was not.
pub fn run(setup: &Setup) -> Result<()> {
    let mut lab = up(setup, &LIO)?;
    lio(&mut lab)?;
    unable(&lab)?;
    drop(lab);
    tgt(&up(setup, &TGT)?)
}

fn up(setup: &Setup, target: &Target) -> Result<Lab> {
    let options = Options { disks: 2, shares: vec![("programs".into(), setup.programs.clone())], ..Options::default() };
    let lab = Lab::up(3, &options)?;
    lab.good(3, &format!("{ENVIRONMENT}{}", target.export), SHORT)?;
    lab.good(1, AREA, SHORT)?;
    lab.good_on(&[1, 2], &format!("{ENVIRONMENT}{INITIATOR}{LOGIN}"), SHORT)?;
    lab.good_on(&[1, 2], "ln -s /share/programs/deadbolt /run/fence_deadbolt", SHORT)?;
    Ok(lab)
}

fn agent(lab: &Lab, node: usize, action: &str, victim: usize) -> Result<Said> {
    let words = format!("-o {action} -n node{victim} --devices=/dev/shared1 --protected-devices=/dev/sda --power-timeout=6");
    lab.exec(node, &format!("/run/fence_deadbolt {words}"), SHORT)
}

fn keys(lab: &Lab) -> Result<usize> {
    let text = lab.good(3, "cat /sys/kernel/config/target/core/iblock_0/disk/pr/res_pr_registered_i_pts", SHORT)?;
    Ok(text.lines().filter(|line| line.contains("iqn.")).count())
}

fn lio(lab: &mut Lab) -> Result<()> {
    let validated = agent(lab, 1, "validate-all", 2)?;
    ensure!(validated.code == 0, "validate-all: {}", validated.text);
    for node in [1, 2] {
        agent(lab, node, "on", node)?.good()?;
        lab.good(node, WRITE, SHORT).with_context(|| format!("node{node} is registered"))?;
    }
    let other = agent(lab, 1, "on", 2)?;
    ensure!(other.code == 1 && other.text.contains("by itself"), "a node registers another: {}", other.text);
    ensure!(keys(lab)? == 2, "two nodes have registered, {} keys are there", keys(lab)?);

    let begin = Instant::now();
    let off = agent(lab, 1, "off", 2)?;
    let took = begin.elapsed();
    ensure!(off.code == 0 && off.text.contains("evidence: ejected") && took < AT_ONCE, "off after {took:?}: {}", off.text);
    let refused = lab.exec(2, WRITE, SHORT)?;
    ensure!(refused.code != 0, "node2 writes on");
    ensure!(lab.good(2, "dmesg", SHORT)?.contains("reservation conflict"), "node2's write failed otherwise:\n{}", refused.text);
    lab.good(1, WRITE, SHORT).context("node1 writes on")?;
    say(&format!("reservations: ejected after {}; its next write meets a reservation conflict", seconds(took)));

    let again = agent(lab, 1, "off", 2)?;
    ensure!(again.code == 1 && again.text.contains("no key of the victim"), "an ejection of nobody: {}", again.text);
    let back = agent(lab, 2, "on", 2)?;
    ensure!(back.code == 1 && back.text.contains("reboot it"), "node2 comes back in the same boot: {}", back.text);
    let other_way = agent(lab, 2, "off", 1)?;
    ensure!(other_way.code == 1 && other_way.text.contains("this node's key"), "who was ejected ejects: {}", other_way.text);

    lab.kill(2)?;
    lab.wait_end(2, SHORT)?;
    lab.start(&[2])?;
    let begin = Instant::now();
    lab.good(2, &format!("ln -s /share/programs/deadbolt /run/fence_deadbolt; {ENVIRONMENT}{INITIATOR}{LOGIN}"), SHORT)?;
    let refused = lab.exec(2, WRITE, SHORT)?;
    ensure!(refused.code != 0, "node2 writes in its next boot, without a key");
    agent(lab, 2, "on", 2)?.good()?;
    lab.good(2, WRITE, SHORT).context("node2 has registered in its next boot")?;
    ensure!(keys(lab)? == 2, "node2 is back, {} keys are there", keys(lab)?);
    say(&format!("reservations: booted anew it is refused until it registers; it writes {} after its boot", seconds(begin.elapsed())));
    hung(lab)?;
    without_message(lab)
}

/// A device that does not answer proves nothing, and holds nobody up for ever.
fn hung(lab: &Lab) -> Result<()> {
    lab.cut(1, 3);
    let begin = Instant::now();
    let off = agent(lab, 1, "off", 2)?;
    let took = begin.elapsed();
    lab.heal();
    ensure!(off.code == 1 && off.text.contains("not ejected"), "without a path: {}", off.text);
    lab.good(2, WRITE, SHORT).context("node2 was not ejected")?;
    say(&format!("reservations: without a path the agent fails after {}", seconds(took)));
    Ok(())
}

/// Where no message can be sent, an ejection is still a proof.
fn without_message(lab: &Lab) -> Result<()> {
    let back = lab.exec(1, &format!("for i in $(seq 150); do if {WRITE}; then exit 0; fi; sleep 0.2; done; exit 1"), SHORT)?;
    ensure!(back.code == 0, "node1's path is not back: {}", back.text);
    lab.disk(1, 1, Way::Error)?;
    let off = agent(lab, 1, "off", 2)?;
    ensure!(off.code == 0 && off.text.contains("evidence: ejected"), "without the SBD device: {}", off.text);
    ensure!(lab.exec(2, WRITE, SHORT)?.code != 0, "node2 writes on");
    lab.disk(1, 1, Way::Ok)?;
    say("reservations: ejected although the SBD device fails");
    Ok(())
}

/// A SCSI disk without reservations.
fn unable(lab: &Lab) -> Result<()> {
    lab.good(
        3,
        "modprobe -a sd_mod scsi_debug; for i in $(seq 50); do if [ -e /dev/sda ]; then exit 0; fi; sleep 0.2; done; exit 1",
        SHORT,
    )?;
    lab.good(3, "ln -s /share/programs/deadbolt /run/fence_deadbolt", SHORT)?;
    for action in ["validate-all", "on", "off"] {
        let said = agent(lab, 3, action, if action == "off" { 2 } else { 3 })?;
        ensure!(said.code == 1 && said.text.contains("/dev/sda: the device refuses read keys"), "scsi_debug: {action}: {}", said.text);
    }
    say("reservations: scsi_debug: refused by every action");
    Ok(())
}

/// It keeps no key over its power loss, so that none is registered; and where one was by other means, it knows no abort.
fn tgt(lab: &Lab) -> Result<()> {
    let on = agent(lab, 1, "on", 1)?;
    ensure!(on.code == 1 && on.text.contains("not available"), "tgt: on: {}", on.text);
    let mut keys = Vec::new();
    for (node, other) in [(1, 2), (2, 1)] {
        let off = agent(lab, node, "off", other)?;
        let key = off.text.split_once("this node's key ").and_then(|(_, rest)| rest.split_whitespace().next());
        ensure!(off.code == 1, "tgt: off: {}", off.text);
        let key = key.with_context(|| format!("tgt: off names no key: {}", off.text))?;
        lab.good(node, &format!("sg_persist --out --register-ignore --param-sark={key} /dev/sda"), SHORT)?;
        keys.push(key.to_owned());
    }
    lab.good(1, &format!("sg_persist --out --reserve --param-rk={} --prout-type=5 /dev/sda", keys[0]), SHORT)?;
    let off = agent(lab, 1, "off", 2)?;
    ensure!(off.code == 1 && off.text.contains("not available: the device refuses preempt-and-abort"), "tgt: off: {}", off.text);
    lab.good(2, WRITE, SHORT).context("tgt: node2 was not called ejected, and writes on")?;
    say("reservations: tgt: on and off say that it is not available");
    Ok(())
}
