//! What: all devices read once, side by side.
//! Owns: who counts as readable, and which names stand on a majority.
//! Invariants: a device counts only with a header that can be true, and only once, whatever paths lead to it.
//! Does not: write.
//! Called by: the agent's actions that ask.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use deadbolt_disk::Access;

use crate::area::{Area, AreaError, is_same_name};

/// How long a device may take; stock's default for its I/O (compatibility), for opening and for reading.
const ANSWER: Duration = Duration::from_secs(6);

/// What one device holds.
struct Seen {
    uuid: [u8; 16],
    names: Vec<String>,
}

/// What was found.
pub(super) struct Survey {
    seen: Vec<Seen>,
    count: usize,
    /// Why the others do not count, a line each.
    pub(super) troubles: Vec<String>,
}

fn read(path: &Path) -> Result<Seen, AreaError> {
    let area = Area::open(path, Access::Read, ANSWER)?;
    let uuid = area.plausible_header()?.uuid;
    Ok(Seen { uuid, names: area.slots()?.into_iter().map(|slot| slot.name).collect() })
}

impl Survey {
    pub(super) fn of(devices: &[PathBuf]) -> Self {
        let (answer, answers) = channel();
        for (index, device) in devices.iter().enumerate() {
            let (device, answer) = (device.clone(), answer.clone());
            // The thread of a device that hangs stays with the kernel; without one the device counts as silent.
            let _ = std::thread::Builder::new().name("fence-survey".into()).spawn(move || answer.send((index, read(&device))));
        }
        drop(answer);
        let end = Instant::now() + ANSWER;
        let mut found: Vec<Option<Result<Seen, AreaError>>> = devices.iter().map(|_| None).collect();
        while let Ok((index, result)) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Some(place) = found.get_mut(index) {
                *place = Some(result);
            }
        }
        let mut survey = Self { seen: Vec::new(), count: devices.len(), troubles: Vec::new() };
        for (device, result) in devices.iter().zip(found) {
            survey.take(device, result);
        }
        survey
    }

    fn take(&mut self, device: &Path, result: Option<Result<Seen, AreaError>>) {
        let device = device.display();
        match result {
            // A header of minor version 0 has no uuid.
            Some(Ok(seen)) if seen.uuid != [0; 16] && self.seen.iter().any(|other| other.uuid == seen.uuid) => {
                self.troubles.push(format!("{device}: this is one of the other devices again; it is not counted twice"));
            }
            Some(Ok(seen)) => self.seen.push(seen),
            Some(Err(error)) => self.troubles.push(format!("{device}: {error}")),
            None => self.troubles.push(format!("{device}: no answer within {} s", ANSWER.as_secs())),
        }
    }

    fn needed(&self) -> usize {
        self.count / 2 + 1
    }

    /// Can a fence be sent from here?
    pub(super) fn check_majority(&self) -> Result<(), String> {
        let (good, count, needed) = (self.seen.len(), self.count, self.needed());
        if good >= needed {
            return Ok(());
        }
        Err(format!("{good} of {count} devices can be read and have a good header, {needed} are needed"))
    }

    /// The names that a fence can reach: those with a slot on a majority of all devices.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<&String> = self.seen.iter().flat_map(|seen| &seen.names).collect();
        names.sort_by_key(|name| name.to_ascii_lowercase());
        names.dedup_by(|one, two| is_same_name(one, two));
        names.into_iter().filter(|name| self.has(name)).cloned().collect()
    }

    /// Has a node a slot on a majority of all devices?
    pub(super) fn has(&self, name: &str) -> bool {
        let holders = self.seen.iter().filter(|seen| seen.names.iter().any(|other| is_same_name(other, name)));
        holders.count() >= self.needed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(devices: &[(u8, &[&str])], count: usize) -> Survey {
        let mut survey = Survey { seen: Vec::new(), count, troubles: Vec::new() };
        for (uuid, names) in devices {
            let seen = Seen { uuid: [*uuid; 16], names: names.iter().map(|name| (*name).to_owned()).collect() };
            survey.take(Path::new("/dev/x"), Some(Ok(seen)));
        }
        survey
    }

    #[test]
    fn a_majority_of_all_devices_decides() {
        for (readable, count, is_enough) in [(1, 1, true), (1, 2, false), (2, 2, true), (1, 3, false), (2, 3, true), (0, 1, false)] {
            let devices: Vec<(u8, &[&str])> = (1..=readable).map(|uuid| (uuid, &["a"][..])).collect();
            let survey = survey(&devices, count);
            assert_eq!((survey.check_majority().is_ok(), survey.has("a")), (is_enough, is_enough), "{readable} of {count}");
        }
    }

    #[test]
    fn names_are_those_that_a_message_reaches() {
        let survey = survey(&[(1, &["b", "Node", "only"]), (2, &["node", "b"])], 3);
        assert_eq!(survey.names(), ["b", "Node"]);
        assert!(survey.has("NODE") && !survey.has("only"));
    }

    #[test]
    fn one_device_is_not_counted_twice() {
        let twice = survey(&[(1, &["a"]), (1, &["a"])], 2);
        assert!(twice.check_majority().is_err() && twice.troubles.len() == 1);
        assert!(survey(&[(0, &["a"]), (0, &["a"])], 2).check_majority().is_ok(), "old headers have no uuid");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let survey = Survey::of(&["/nonexistent".into(), "/dev/null".into()]);
        assert_eq!(survey.troubles.len(), 2);
        assert!(survey.check_majority().unwrap_err().starts_with("0 of 2"));
    }
}
