//! What: what this machine has seen of other nodes' beats: which beat stood where, and since when.
//! Owns: a small file per SBD area under the run directory, written by the watcher, read by senders.
//! Invariants: a line says no more than "this beat stood there at that instant already"; lines of another boot of this machine, and
//! lines that cannot be read, say nothing.
//! Does not: judge silence; a sender adds a read of its own.
//! Called by: the watcher (write), the fencer (read).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use deadbolt_disk_format::{BootId, DeviceUuid, Incarnation, SlotIndex};
use deadbolt_sbd_core::BeatVersion;

/// Names the folder instead of [`FOLDER`]; for tests, and for several nodes on one machine.
const VARIABLE: &str = "DEADBOLT_RUN_DIR";
/// Where it stands; gone with the boot.
const FOLDER: &str = "/run/deadbolt";
/// First word of the file, and its version.
const MARK: &str = "deadbolt-sbd-seen 1";

/// What was seen, by slot: a beat, and the instant (CLOCK_BOOTTIME, ms) at which a read that showed it had ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct History {
    pub(crate) seen: BTreeMap<SlotIndex, (BeatVersion, u64)>,
}

/// Where this machine keeps what it knows until it is booted again.
pub(crate) fn run_folder() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
}

fn path(area: DeviceUuid) -> PathBuf {
    run_folder().join(format!("sbd-seen-{area}"))
}

/// CLOCK_BOOTTIME begins anew with each boot of the kernel.
fn kernel_boot() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

impl History {
    /// Takes in that a beat stood in a slot at `at_ms`. True: it is another one than before.
    pub(crate) fn handle_seen(&mut self, slot: SlotIndex, version: BeatVersion, at_ms: u64) -> bool {
        let is_new = self.seen.get(&slot).is_none_or(|(known, _)| *known != version);
        if is_new {
            self.seen.insert(slot, (version, at_ms));
        }
        is_new
    }

    /// What this machine has seen on an area; nothing where there is no file, or none that can be read.
    pub(crate) fn read(area: DeviceUuid) -> Self {
        let text = std::fs::read_to_string(path(area)).unwrap_or_default();
        kernel_boot().map(|boot| Self::parse(&text, &boot)).unwrap_or_default()
    }

    /// Leaves it for senders: the whole file at once.
    pub(crate) fn write(&self, area: DeviceUuid) -> io::Result<()> {
        let (folder, path) = (run_folder(), path(area));
        std::fs::create_dir_all(&folder)?;
        let next = path.with_extension(std::process::id().to_string());
        std::fs::write(&next, self.text(&kernel_boot()?))?;
        std::fs::rename(&next, &path)
    }

    fn text(&self, boot: &str) -> String {
        let mut text = format!("{MARK} {boot}\n");
        for (slot, (version, at_ms)) in &self.seen {
            let _ = writeln!(text, "{slot} {} {} {} {at_ms}", version.boot, version.writer, version.beat);
        }
        text
    }

    fn parse(text: &str, boot: &str) -> Self {
        let mut lines = text.lines();
        if lines.next() != Some(&format!("{MARK} {boot}")) {
            return Self::default();
        }
        Self { seen: lines.filter_map(parse_line).collect() }
    }
}

fn parse_line(line: &str) -> Option<(SlotIndex, (BeatVersion, u64))> {
    let words: Vec<&str> = line.split(' ').collect();
    let [slot, boot, writer, beat, at_ms] = words[..] else { return None };
    let id = |text: &str| {
        let digits: String = text.chars().filter(|digit| *digit != '-').collect();
        (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
    };
    let version = BeatVersion { boot: BootId(id(boot)?), writer: Incarnation(id(writer)?), beat: beat.parse().ok()? };
    Some((SlotIndex(slot.parse().ok()?), (version, at_ms.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_only_in_the_same_boot() {
        let version = |beat| BeatVersion { boot: BootId([1; 16]), writer: Incarnation([0xab; 16]), beat };
        let mut history = History::default();
        assert!(history.handle_seen(SlotIndex(3), version(7), 100));
        assert!(!history.handle_seen(SlotIndex(3), version(7), 900), "the first instant counts");
        assert!(history.handle_seen(SlotIndex(200), version(u64::MAX), 500));
        let text = history.text("here");
        assert_eq!(History::parse(&text, "here"), history);
        assert_eq!(History::parse(&text, "there"), History::default());
        for broken in ["", "garbage", &text.replace(" 7 ", " x "), &text.replace("3 0", "3 0 0"), &format!("{text}9 9 9 9 9\n")] {
            assert!(History::parse(broken, "here").seen.len() <= 2);
        }
    }
}
