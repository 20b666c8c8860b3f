//! What: two whole nodes on a disk over iSCSI; one is cut off while it holds a lock, is ejected from the disk by the other, and comes back
//!   after a boot.
//! Owns: what is demanded: the other goes on by the evidence *ejected*, before a lease or an acknowledgement could have ended.
//! Invariants: when the lock is granted anew, the old holder's writes are refused by the disk.
//! Does not: look at how a target behaves (`iscsi`), or at the fence agent (`reservations`).
//! Called by: the table of scenarios.

use super::iscsi::{ENVIRONMENT, INITIATOR, LIO, LOGIN, WRITE};
use super::{SHORT, Setup, seconds};
use crate::{Lab, Options, say};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

const PROGRAM: &str = "/share/programs/deadbolt";
/// What both nodes are made with.
const MADE: &str = "--watchdog /dev/watchdog --watchdog-driver softdog --reservations";
/// How long the survivor may wait for the lock. Without reservations it would be the answer to a pill, T and D, or W and D: above ten
/// seconds with this watchdog.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Cut, ejected, reset, back.
///
/// # Errors
/// One of the promises did not hold.
pub fn run(setup: &Setup) -> Result<()> {
    let options = Options { shares: vec![("programs".into(), setup.programs.clone())], ..Options::default() };
    let mut lab = Lab::up(3, &options)?;
    lab.good(3, &format!("{ENVIRONMENT}{}", LIO.export), SHORT)?;
    lab.good_on(&[1, 2], &format!("{ENVIRONMENT}modprobe softdog; {INITIATOR}{LOGIN}"), SHORT)?;
    let init = format!("{PROGRAM} init /dev/sda --cluster vm --nodes 2 --driver softdog --name node1 --address 10.0.0.1:7001 {MADE}");
    lab.good(1, &init, SHORT)?;
    let key = lab.good(1, "cat /var/lib/deadbolt/cluster.key", SHORT)?;
    let join = format!("{PROGRAM} join /dev/sda --key-file /run/key --name node2 --address 10.0.0.2:7001 {MADE}");
    lab.good(2, &format!("(umask 077; echo '{}' >/run/key) && {join}", key.trim()), SHORT)?;
    let node = lab.good(2, "cat /var/lib/deadbolt/node.toml", SHORT)?;
    lab.good(2, &format!("setsid {PROGRAM} lock held -- sh -c 'touch /run/held; sleep 600' </dev/null >/dev/console 2>&1 &"), SHORT)?;
    lab.good(2, "for i in $(seq 100); do if [ -e /run/held ]; then exit 0; fi; sleep 0.2; done; exit 1", SHORT)?;
    let status = lab.good(1, &format!("{PROGRAM} status --json"), SHORT)?;
    ensure!(status.contains("\"can_be_ejected\": true") || status.contains("\"can_be_ejected\":true"), "node2 cannot be ejected: {status}");

    lab.cut(1, 2);
    let begin = Instant::now();
    lab.good(1, &format!("{PROGRAM} lock --wait 60s held -- true"), SHORT).context("the lock of the node that was cut off")?;
    let took = begin.elapsed();
    let why = lab.good(1, &format!("{PROGRAM} why"), SHORT)?;
    ensure!(why.contains("ejected"), "gone by something else:\n{why}");
    ensure!(took < AT_ONCE, "granted after {took:?}");
    say(&format!("ejection: cut off with a lock; the lock is granted anew after {}, by the evidence ejected", seconds(took)));
    // Its watchdog or its sbd ends it; until then its writes are refused.
    let refused = lab.exec(2, WRITE, SHORT);
    ensure!(refused.as_ref().map_or(true, |said| said.code != 0), "node2 writes on");
    lab.wait_end(2, SHORT)?.context("node2 goes on without the disk")?;
    lab.heal();

    lab.start(&[2])?;
    lab.good(2, &format!("{ENVIRONMENT}modprobe softdog; {INITIATOR}{LOGIN}"), SHORT)?;
    ensure!(lab.exec(2, WRITE, SHORT)?.code != 0, "node2 writes in its next boot, without a key");
    let files = format!(
        "umask 077; mkdir -p /var/lib/deadbolt; cd /var/lib/deadbolt; echo '{}' >cluster.key; cat >node.toml <<'END'\n{node}\nEND\n",
        key.trim()
    );
    lab.good(2, &format!("{files}{PROGRAM} start"), 2 * SHORT).context("node2 is back")?;
    say("ejection: booted anew it registers, and is a member again");
    Ok(())
}
