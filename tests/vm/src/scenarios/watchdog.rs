//! What: a node lives by `sbd run` with a watchdog of the kernel; its disk hangs; the watchdog resets it while its lease still runs.
//! Owns: what is measured: from the issue of the last beat to the reset, and from the last feed.
//! Invariants: times are this machine's; a guest's clock is used for its rate alone.
//! Does not: cover a paused guest, whose clock and watchdog stand still together.
//! Called by: the table of scenarios, `tests/vm/tests/one.rs`.

use super::{SHORT, SOFTDOG_FIRES, seconds};
use crate::{End, Lab, Line, Options, Setup, Way, say};
use anyhow::{Context, Result, bail, ensure};
use deadbolt_disk_format::{
    Beat, BootId, ByteOffset, Place, SlotIndex, Superblock, SuperblockChoice, UNIT_BYTES, choose_superblock, read_superblocks,
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

const SLOT: SlotIndex = SlotIndex(0);
/// How often the disk is looked at: a beat is seen this much after it landed, at most.
const LOOK: Duration = Duration::from_millis(2);
/// How long a request that was let through may take to reach the file.
const LANDING: Duration = Duration::from_millis(100);
/// Beats before the fault, so that the guest's clock is known to a few milliseconds.
const BEATS: u64 = 10;
/// A machine that has not ended so long after its lease is not going to.
const MARGIN: Duration = Duration::from_secs(20);
/// What sbd says when it withholds the feed.
const WITHHELD: &str = "the watchdog is not fed any more";

/// A watchdog of a guest.
struct Driver {
    /// Its name, for `deadbolt format` and for modprobe.
    name: &'static str,
    /// Is it a device of the machine? Else it is a part of the kernel.
    is_device: bool,
    /// Was it what ended the machine? Sbd itself resets the node too, when the lease has ended.
    has_fired: fn(&End, &[Line]) -> bool,
}

const SOFTDOG: Driver =
    Driver { name: "softdog", is_device: false, has_fired: |_, lines| lines.iter().any(|line| line.text.contains(SOFTDOG_FIRES)) };
const I6300ESB: Driver = Driver { name: "i6300esb", is_device: true, has_fired: |end, _| end.is_by_device };

impl Driver {
    fn format(&self) -> String {
        let program = "/share/programs/deadbolt";
        let format = format!("{program} format --cluster vm --nodes 1 --driver {} /dev/shared0", self.name);
        format!("{format} && {program} timing --device /dev/shared0")
    }

    /// The program is every program of ours, by the name under which it is called.
    fn start(&self) -> String {
        let options = "--device /dev/shared0 --slot 0 --name node1 --watchdog /dev/watchdog --reset reboot";
        format!(
            "modprobe {}
             ln -s /share/programs/deadbolt /run/sbd
             boot=$(cat /proc/sys/kernel/random/boot_id)
             setsid /run/sbd run {options} --boot $boot </dev/null >/dev/console 2>&1 &",
            self.name
        )
    }
}

/// The beats of one life of the node, as they are seen on the disk from this machine.
struct Beats<'a> {
    file: &'a File,
    place: Place,
    /// The boot before, whose beat may still stand there.
    before: Option<BootId>,
    newest: Option<Beat>,
    /// When the guest's clock stood at zero, by the beat that came here fastest.
    zero: Option<Instant>,
}

impl<'a> Beats<'a> {
    /// Before the life begins.
    fn new(file: &'a File, superblock: &Superblock) -> Result<Self> {
        let place = Place { cluster: superblock.cluster, offset: superblock.layout.beat(SLOT), slot: SLOT };
        let mut beats = Self { file, place, before: None, newest: None, zero: None };
        beats.before = beats.read()?.map(|beat| beat.boot);
        Ok(beats)
    }

    fn read(&self) -> Result<Option<Beat>> {
        let mut bytes = [0; UNIT_BYTES];
        self.file.read_exact_at(&mut bytes, self.place.offset.0)?;
        Ok(Beat::decode(&bytes, &self.place).ok())
    }

    /// Answers the newest beat's number.
    fn look(&mut self) -> Result<Option<u64>> {
        let beat = self.read()?;
        let now = Instant::now();
        if let Some(beat) = beat.filter(|beat| Some(beat.boot) != self.before)
            && self.newest.as_ref().is_none_or(|newest| newest.beat != beat.beat)
        {
            let zero = now.checked_sub(Duration::from_millis(beat.boottime_ms)).context("the guest runs longer than this machine")?;
            self.zero = Some(self.zero.map_or(zero, |known| known.min(zero)));
            self.newest = Some(beat);
        }
        Ok(self.newest.as_ref().map(|beat| beat.beat))
    }

    /// When the newest beat was issued.
    fn issued(&self) -> Option<Instant> {
        Some(self.zero? + Duration::from_millis(self.newest.as_ref()?.boottime_ms))
    }
}

/// What one run showed.
struct Measured {
    beat_to_reset: Duration,
    /// From sbd's word that it withholds the feed, and one interval of the feeder: from the last feed, at most.
    feed_to_reset: Duration,
}

/// With softdog.
///
/// # Errors
/// A run in which the node was not reset by its watchdog, or not in its time.
pub fn softdog(setup: &Setup) -> Result<()> {
    run(setup, &SOFTDOG)
}

/// With the watchdog device that qemu imitates.
///
/// # Errors
/// As with softdog.
pub fn i6300esb(setup: &Setup) -> Result<()> {
    run(setup, &I6300ESB)
}

/// As often as wanted, each time in a new life of the same machine.
fn run(setup: &Setup, driver: &Driver) -> Result<()> {
    let shares = vec![("programs".into(), setup.programs.clone())];
    let mut lab = Lab::up(1, &Options { shares, has_i6300esb: driver.is_device, ..Options::default() })?;
    let told = lab.good(1, &driver.format(), SHORT)?;
    let superblock = superblock(lab.disk_file(0)?)?;
    let timings = superblock.timings;
    let time = |ms: u32| Duration::from_millis(ms.into());
    let (stall, lease, reset) = (time(timings.stall_ms), time(timings.lease_ms), time(timings.reset_ms));
    let name = driver.name;
    for value in ["stall", "T ", "L lease"] {
        let line = told.lines().find(|line| line.starts_with(value));
        say(&format!("{name}: {}", line.with_context(|| format!("no {value} in the budget:\n{told}"))?));
    }
    let mut all = Vec::new();
    for number in 1..=setup.repeat {
        if number > 1 {
            lab.start(&[1])?;
        }
        let one = one(&lab, &superblock, driver).with_context(|| format!("run {number}"))?;
        let (beat, feed) = (one.beat_to_reset, one.feed_to_reset);
        say(&format!("{name}: run {number}: reset {} after the last beat, {} after the last feed", seconds(beat), seconds(feed)));
        ensure!(beat >= stall, "run {number}: reset {beat:?} after the issue of the last beat; a stall of {stall:?} harms nobody");
        ensure!(beat <= lease, "run {number}: reset {beat:?} after the issue of the last beat; the lease is {lease:?}");
        ensure!(feed <= reset, "run {number}: reset {feed:?} after the last feed; T is {reset:?}");
        all.push(one);
    }
    let range = |of: fn(&Measured) -> Duration| {
        let (least, most) = (all.iter().map(of).min().unwrap_or_default(), all.iter().map(of).max().unwrap_or_default());
        format!("{} to {}", seconds(least), seconds(most))
    };
    let (beat, feed) = (range(|one| one.beat_to_reset), range(|one| one.feed_to_reset));
    say(&format!("{name}: {} of {} reset by it; after the last beat {beat}, after the last feed {feed}", all.len(), setup.repeat));
    Ok(())
}

fn one(lab: &Lab, superblock: &Superblock, driver: &Driver) -> Result<Measured> {
    let mut beats = Beats::new(lab.disk_file(0)?, superblock)?;
    lab.good(1, &driver.start(), SHORT)?;
    let begin = Instant::now();
    let mut first = None;
    loop {
        ensure!(begin.elapsed() < SHORT, "the node does not beat:\n{}", lab.last_words(1));
        std::thread::sleep(LOOK);
        if let Some(beat) = beats.look()?
            && beat >= *first.get_or_insert(beat) + BEATS
        {
            break;
        }
    }
    lab.disk(1, 0, Way::Hang)?;
    // What was under way lands; what hangs now does so when the machine ends, and is no complete cycle.
    std::thread::sleep(LANDING);
    beats.look()?;
    let limit = Duration::from_millis(superblock.timings.lease_ms.into()) + MARGIN;
    let end = lab.wait_end(1, limit)?.with_context(|| format!("the node lives on:\n{}", lab.last_words(1)))?;
    let lines = lab.console(1)?;
    let withheld = lines.iter().find(|line| line.text.contains(WITHHELD)).map(|line| line.at);
    if end.reason != "guest-reset" || !(driver.has_fired)(&end, &lines) {
        bail!("the node ended by {}, and not by its watchdog:\n{}", end.reason, lab.last_words(1));
    }
    let interval = Duration::from_millis(superblock.timings.feed_ms.into());
    let issued = beats.issued().context("no beat was seen")?;
    let withheld = withheld.with_context(|| format!("sbd did not say that it withholds the feed:\n{}", lab.last_words(1)))?;
    Ok(Measured {
        beat_to_reset: end.at.saturating_duration_since(issued),
        feed_to_reset: end.at.saturating_duration_since(withheld) + interval,
    })
}

fn superblock(file: &File) -> Result<Superblock> {
    let copies = read_superblocks(file.metadata()?.len(), |ByteOffset(offset)| {
        let mut bytes = vec![0; UNIT_BYTES];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    });
    match choose_superblock(&copies) {
        SuperblockChoice::Agreed { superblock, .. } => Ok(superblock),
        other => bail!("the device was not formatted: {other:?}"),
    }
}
