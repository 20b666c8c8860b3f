//! What: the laboratory's own faults: each does what it says, and its end takes it away.
//! Owns: nothing.
//! Invariants: every fault that another scenario leans on is seen here from within a guest.
//! Does not: use anything of ours, or a watchdog.
//! Called by: the table of scenarios.

use super::{SHORT, Setup, seconds};
use crate::{Lab, Options, Pause, Way, say};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::Write,
    time::{Duration, Instant},
};

const READ: &str = "dd if=/dev/shared0 of=/dev/null bs=4096 count=1 iflag=direct";
const PING: &str = "ping -c 1 -W 2 node2";
/// How long a request is watched that is not to end, and a machine that is to stand still.
const WATCHED: Duration = Duration::from_secs(4);
/// What a command and its answer may take of it.
const ANSWER: Duration = Duration::from_millis(1500);

/// Every fault once.
///
/// # Errors
/// One does not do what it says.
pub fn run(_: &Setup) -> Result<()> {
    let mut lab = Lab::up(2, &Options { sector_bytes: 4096, ..Options::default() })?;
    disk(&lab)?;
    network(&lab)?;
    pauses(&mut lab)?;
    power(&mut lab)?;
    lab.disk(1, 0, Way::Unplug)?;
    lab.good(1, "for i in $(seq 50); do if [ ! -e /sys/block/vdb ]; then exit 0; fi; sleep 0.2; done; exit 1", SHORT)?;
    lab.good(2, READ, SHORT).context("the other node's disk")?;
    say("faults: disk pulled out: held");
    Ok(())
}

fn disk(lab: &Lab) -> Result<()> {
    ensure!(lab.good(1, "cat /sys/block/vdb/queue/logical_block_size", SHORT)?.trim() == "4096", "the sectors have another size");
    let file = file(b"\0some bytes\n")?;
    lab.put(1, file.path(), "/tmp/file")?;
    lab.good(1, "dd if=/tmp/file of=/dev/shared0 bs=4096 conv=sync oflag=direct", SHORT)?;
    let seen = lab.good(2, "dd if=/dev/shared0 bs=4096 count=1 iflag=direct status=none | head -c 12 | od -An -c", SHORT)?;
    ensure!(seen.split_whitespace().collect::<String>() == "\\0somebytes\\n", "node2 sees {seen}");

    lab.disk(1, 0, Way::Error)?;
    let said = lab.exec(1, READ, SHORT)?;
    ensure!(said.code != 0 && said.text.contains("Input/output error"), "with errors: code {}: {}", said.code, said.text);
    lab.good(2, READ, SHORT).context("the other node's way")?;
    lab.disk(1, 0, Way::Ok)?;
    lab.good(1, READ, SHORT)?;

    lab.disk(1, 0, Way::Hang)?;
    lab.good(1, &format!("{READ} & echo $! >/run/reader"), SHORT)?;
    std::thread::sleep(WATCHED);
    ensure!(lab.exec(1, "[ -d /proc/$(cat /run/reader) ]", SHORT)?.code == 0, "a request did not hang");
    lab.good(2, READ, SHORT).context("the other node's way")?;
    lab.disk(1, 0, Way::Ok)?;
    lab.good(1, "while [ -d /proc/$(cat /run/reader) ]; do sleep 0.1; done", SHORT).context("a request that hung")?;

    lab.disk(1, 0, Way::Slow(5))?;
    let begin = Instant::now();
    lab.good(1, &format!("for i in $(seq 15); do {READ}; done"), SHORT)?;
    ensure!(begin.elapsed() > Duration::from_secs(2), "15 requests at 5 a second took {:?}", begin.elapsed());
    lab.disk(1, 0, Way::Ok)?;
    say("faults: disk with errors, hung, slow, and well again: held");
    Ok(())
}

fn network(lab: &Lab) -> Result<()> {
    let is_heard = |words: &str| Ok::<bool, anyhow::Error>(lab.exec(1, words, SHORT)?.code == 0);
    ensure!(is_heard(PING)?, "node2 is not heard");
    for (way, from, to) in [("to it", 1, 2), ("from it", 2, 1)] {
        lab.cut_way(from, to);
        ensure!(!is_heard(PING)?, "node2 is heard with the way {way} cut");
        lab.heal();
        ensure!(is_heard(PING)?, "node2 is not heard after the healing");
    }
    lab.link(2, false)?;
    ensure!(!is_heard(PING)?, "node2 is heard without a cable");
    lab.link(2, true)?;
    ensure!(
        is_heard(&format!("for i in $(seq 10); do if {PING}; then exit 0; fi; done; exit 1"))?,
        "node2 is not heard with its cable back"
    );
    say("faults: network cut one way, the other way, cable pulled, and well again: held");
    Ok(())
}

/// How far a guest's clock has fallen behind this machine's during the pause.
fn fallen_behind(lab: &mut Lab, pause: Pause) -> Result<Duration> {
    let uptime = |lab: &Lab| Ok::<f64, anyhow::Error>(lab.good(1, "cut -d' ' -f1 /proc/uptime", SHORT)?.trim().parse()?);
    let (before, begin) = (uptime(lab)?, Instant::now());
    lab.freeze(1, pause)?;
    std::thread::sleep(WATCHED);
    lab.thaw(1)?;
    let passed = uptime(lab)? - before;
    Ok(begin.elapsed().saturating_sub(Duration::try_from_secs_f64(passed)?))
}

fn pauses(lab: &mut Lab) -> Result<()> {
    let clocks = fallen_behind(lab, Pause::Clocks)?;
    ensure!(clocks + ANSWER > WATCHED, "the guest's clock fell {clocks:?} behind in a pause of {WATCHED:?}");
    let process = fallen_behind(lab, Pause::Process)?;
    ensure!(process < ANSWER, "the guest's clock fell {process:?} behind although only its process stood still");
    say(&format!(
        "faults: stopped for {}: its clock is {} behind with its clocks paused, else {}",
        seconds(WATCHED),
        seconds(clocks),
        seconds(process)
    ));
    Ok(())
}

fn power(lab: &mut Lab) -> Result<()> {
    lab.good(1, "echo kept | dd of=/dev/shared0 bs=4096 conv=sync oflag=direct; touch /tmp/lost", SHORT)?;
    lab.kill(1)?;
    match lab.wait_end(1, SHORT)? {
        Some(end) if end.reason == "killed" => {}
        other => bail!("a killed machine: {other:?}"),
    }
    ensure!(lab.exec(1, "true", SHORT).is_err(), "a killed machine answers");
    lab.start(&[1])?;
    let kept = lab.good(1, "[ ! -e /tmp/lost ]; dd if=/dev/shared0 bs=4096 count=1 iflag=direct status=none | head -c 4", SHORT)?;
    ensure!(kept == "kept", "the disk has {kept:?}");
    lab.exec(1, "echo c >/proc/sysrq-trigger", SHORT).err().context("a machine survives a panic")?;
    let end = lab.wait_end(1, SHORT)?;
    ensure!(end.as_ref().is_some_and(|end| end.reason == "guest-panic"), "a panic: {end:?}");
    lab.start(&[1])?;
    say("faults: power lost, panic, started again: held");
    Ok(())
}

fn file(bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    Ok(file)
}
