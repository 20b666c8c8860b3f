//! What: a disk that is really reached over a network: node3 exports it, nodes 1 and 2 log in; reservations, and a path that is cut.
//! Owns: how a target is made in the kernel (LIO) and in a program (tgt), and what each of them can.
//! Invariants: what is demanded of both is the same but for what one of them does not know.
//! Does not: use anything of ours but in `attach`: it shows what fencing by reservations can lean on.
//! Called by: the table of scenarios.

use super::{SHORT, Setup, seconds};
use crate::{Lab, Options, say};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// A target.
pub(super) struct Target {
    name: &'static str,
    /// Exports /dev/shared0 of node3 under the name in $TARGET.
    pub(super) export: &'static str,
    /// Is preempt-and-abort known? Else preempt alone.
    knows_abort: bool,
}

pub(super) const ENVIRONMENT: &str = "set -e; TARGET=iqn.2026-01.vm:disk; PORTAL=10.0.0.3:3260;";
pub(super) const LIO: Target = Target {
    name: "iscsi-lio",
    export: "
        modprobe -a target_core_mod target_core_iblock iscsi_target_mod
        core=/sys/kernel/config/target/core/iblock_0/disk
        mkdir -p $core /var/target/pr
        echo udev_path=/dev/shared0 >$core/control
        echo 5f2d4c1e-8b7a-4e0f-9a51-2d6c3b4a5f60 >$core/wwn/vpd_unit_serial
        echo 1 >$core/enable
        group=/sys/kernel/config/target/iscsi/$TARGET/tpgt_1
        mkdir -p $group/np/$PORTAL $group/lun/lun_0
        ln -s $core $group/lun/lun_0/disk
        for word in authentication=0 generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0; do
            echo ${word#*=} >$group/attrib/${word%=*}
        done
        echo 1 >$group/enable
    ",
    knows_abort: true,
};
pub(super) const TGT: Target = Target {
    name: "iscsi-tgt",
    export: "
        setsid tgtd --foreground </dev/null >/dev/console 2>&1 &
        for i in $(seq 100); do
            if tgtadm --mode sys --op show >/dev/null 2>&1; then break; fi
            sleep 0.2
        done
        tgtadm --lld iscsi --mode target --op new --tid 1 --targetname $TARGET
        tgtadm --lld iscsi --mode logicalunit --op new --tid 1 --lun 1 --backing-store /dev/shared0
        tgtadm --lld iscsi --mode target --op bind --tid 1 --initiator-address ALL
    ",
    knows_abort: false,
};
/// An initiator at work.
pub(super) const INITIATOR: &str = "
    modprobe -a iscsi_tcp sd_mod sg
    mkdir -p /etc/iscsi /run/lock/iscsi
    echo InitiatorName=iqn.2026-01.vm:$(hostname) >/etc/iscsi/initiatorname.iscsi
    setsid iscsid --foreground </dev/null >/dev/console 2>&1 &
    for i in $(seq 50); do
        if iscsiadm --mode discovery --type sendtargets --portal $PORTAL >/dev/null 2>&1; then break; fi
        sleep 0.2
    done
";
/// It gives a silent path up after five seconds, and notices silence after four.
pub(super) const LOGIN: &str = "
    for word in session.timeo.replacement_timeout=5 conn[0].timeo.noop_out_interval=2 conn[0].timeo.noop_out_timeout=2; do
        iscsiadm --mode node --targetname $TARGET --portal $PORTAL --op update --name node.${word%=*} --value ${word#*=}
    done
    iscsiadm --mode node --targetname $TARGET --portal $PORTAL --login
    for i in $(seq 50); do
        if [ -e /dev/sda ]; then exit 0; fi
        sleep 0.2
    done
    exit 1
";
/// One sector, past every cache.
pub(super) const WRITE: &str = "dd if=/dev/zero of=/dev/sda bs=512 count=1 seek=8 oflag=direct";
const READ: &str = "dd if=/dev/sda of=/dev/null bs=512 count=1 iflag=direct";
/// Write exclusive, registrants only: the type that fencing uses.
const TYPE: &str = "--prout-type=5";
/// What the path may be given up after: noop interval and timeout, replacement, and an emulated machine's slowness.
const GIVEN_UP: Duration = Duration::from_secs(20);

/// With the kernel's target.
///
/// # Errors
/// Something did not behave as SCSI says.
pub fn lio(_: &Setup) -> Result<()> {
    run(&LIO)
}

/// With the target in a program.
///
/// # Errors
/// Something did not behave as SCSI says.
pub fn tgt(_: &Setup) -> Result<()> {
    run(&TGT)
}

/// Our own way to such a disk and back.
///
/// # Errors
/// A disk was not found, or something else was answered than is true.
pub fn attach(setup: &Setup) -> Result<()> {
    let options = Options { shares: vec![("programs".to_owned(), setup.programs.clone())], ..Options::default() };
    let lab = Lab::up(3, &options)?;
    lab.good(3, &format!("{ENVIRONMENT}{}", LIO.export), SHORT)?;
    let deadbolt = |words: &str| lab.exec(1, &format!("{ENVIRONMENT} /share/programs/deadbolt {words}"), SHORT);
    let missing = deadbolt("attach iscsi://10.0.0.3/$TARGET")?;
    ensure!(missing.code != 0, "without iscsid: {}", missing.text);
    lab.good(1, &format!("{ENVIRONMENT}{INITIATOR}"), SHORT)?;
    let begin = Instant::now();
    let path = deadbolt("attach iscsi://10.0.0.3/$TARGET")?.good()?;
    let took = begin.elapsed();
    ensure!(path.trim() == "/dev/sda", "attached as {path:?}");
    ensure!(deadbolt("attach iscsi://10.0.0.3:3260/$TARGET/0")?.good()? == path, "attached again it has another path");
    let none = deadbolt("attach iscsi://10.0.0.3/$TARGET/7")?;
    ensure!(none.code != 0 && none.text.contains("shows no disk 7; it has 0"), "a disk that is not there: {}", none.text);
    let other = deadbolt("attach iscsi://10.0.0.3/iqn.2026-01.vm:other")?;
    ensure!(other.code != 0, "a target that is not there: {}", other.text);
    deadbolt("format --cluster vm --nodes 3 /dev/sda")?.good()?;
    deadbolt("fsck /dev/sda")?.good()?;
    deadbolt("detach /dev/sda")?.good()?;
    ensure!(lab.exec(1, READ, SHORT)?.code != 0, "the disk is still there");
    say(&format!("iscsi-attach: attached after {}", seconds(took)));
    Ok(())
}

fn run(target: &Target) -> Result<()> {
    let lab = Lab::up(3, &Options::default())?;
    let begin = Instant::now();
    lab.good(3, &format!("{ENVIRONMENT}{}", target.export), SHORT)?;
    let exported = begin.elapsed();
    let begin = Instant::now();
    lab.good_on(&[1, 2], &format!("{ENVIRONMENT}{INITIATOR}{LOGIN}"), SHORT)?;
    say(&format!("{}: exported after {}, both logged in after {}", target.name, seconds(exported), seconds(begin.elapsed())));
    lab.good(1, "echo over the network | dd of=/dev/sda bs=512 conv=sync oflag=direct", SHORT)?;
    let read = lab.good(2, "dd if=/dev/sda bs=512 count=1 iflag=direct status=none | head -c 16", SHORT)?;
    ensure!(read == "over the network", "node2 reads {read:?}");
    reservations(&lab, target)?;
    path(&lab, target)
}

/// Both register; node1 reserves, then throws node2 out.
fn reservations(lab: &Lab, target: &Target) -> Result<()> {
    let persist = |node: usize, words: &str| lab.exec(node, &format!("sg_persist {words} /dev/sda"), SHORT);
    for (node, key) in [(1, "0x1"), (2, "0x2")] {
        persist(node, &format!("--out --register --param-sark={key}"))?.good()?;
    }
    persist(1, &format!("--out --reserve --param-rk=0x1 {TYPE}"))?.good()?;
    lab.good(2, WRITE, SHORT).context("a registered node may write")?;
    let preempt = |how: &str| persist(1, &format!("--out {how} --param-rk=0x1 --param-sark=0x2 {TYPE}"));
    let begin = Instant::now();
    let abort = preempt("--preempt-abort")?;
    ensure!((abort.code == 0) == target.knows_abort, "preempt and abort answers {}: {}", abort.code, abort.text);
    if !target.knows_abort {
        preempt("--preempt")?.good()?;
    }
    let took = begin.elapsed();
    let keys = persist(1, "--in --read-keys")?.good()?;
    ensure!(keys.contains("0x1\n") && !keys.contains("0x2"), "the keys after it:\n{keys}");
    let refused = lab.exec(2, WRITE, SHORT)?;
    ensure!(refused.code != 0, "node2 still writes");
    ensure!(lab.good(2, "dmesg", SHORT)?.contains("reservation conflict"), "node2's write failed otherwise:\n{}", refused.text);
    ensure!(persist(2, &format!("--out --reserve --param-rk=0x2 {TYPE}"))?.code != 0, "node2 reserves with a key that is gone");
    lab.good(1, WRITE, SHORT)?;
    persist(1, "--out --clear --param-rk=0x1")?.good()?;
    lab.good(2, WRITE, SHORT).context("after the clearing everybody may write")?;
    let how = if target.knows_abort { "preempt and abort" } else { "preempt (abort is not known)" };
    say(&format!("{}: node2 thrown out by {how} in {}, its write refused", target.name, seconds(took)));
    Ok(())
}

/// Node1 loses its path and gets it back.
fn path(lab: &Lab, target: &Target) -> Result<()> {
    lab.cut(1, 3);
    let begin = Instant::now();
    let failed = lab.exec(1, WRITE, SHORT)?;
    let given_up = begin.elapsed();
    ensure!(failed.code != 0 && given_up < GIVEN_UP, "without a path: code {} after {given_up:?}: {}", failed.code, failed.text);
    lab.good(2, WRITE, SHORT).context("node2's path was not cut")?;
    lab.heal();
    let begin = Instant::now();
    lab.good(1, &format!("for i in $(seq 150); do if {READ}; then exit 0; fi; sleep 0.2; done; exit 1"), SHORT)?;
    let back = begin.elapsed();
    say(&format!("{}: path cut: a write fails after {}; healed: back after {}", target.name, seconds(given_up), seconds(back)));
    Ok(())
}
