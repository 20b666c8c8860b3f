//! What: what a node looks at before it acts: the newest decided view and its own beat, over all devices.
//! Owns: which of several devices' answers counts.
//! Invariants: a majority of devices has answered; a device that lags or lies hides nothing that another one shows.
//! Does not: learn a view (the register does, with records and scans of its own).
//! Called by: the daemon at the start of an incarnation, the supervisor and the verbs that need the configuration, the simulator.

use crate::devices::{ClusterDevice, DevicesError};
use deadbolt_disk_format::{Beat, SlotIndex, ViewBody, ViewNumber, ViewRecord};

/// What one device showed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Every good beat.
    pub beats: Vec<Beat>,
    /// Every decided view in somebody's record, with its body where that can be read.
    pub views: Vec<(ViewRecord, Option<ViewBody>)>,
}

impl Seen {
    /// Reads a device.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(device: &ClusterDevice) -> Result<Self, DevicesError> {
        Ok(Self { beats: device.beats()?, views: device.views()? })
    }
}

/// The newest decided view; the default one (number 0) where nobody was ever in.
///
/// # Errors
/// Its number, where no device has its body.
pub fn newest_view(seen: &[Seen]) -> Result<ViewBody, ViewNumber> {
    let views = || seen.iter().flat_map(|seen| &seen.views);
    let Some(newest) = views().map(|(record, _)| record).max_by_key(|record| record.view) else {
        return Ok(ViewBody::default());
    };
    let mut bodies = views().filter(|(record, _)| (record.view, record.digest) == (newest.view, newest.digest));
    bodies.find_map(|(_, body)| body.clone()).ok_or(newest.view)
}

/// The newest beat in a slot; each life goes on from the number of the one before.
#[must_use]
pub fn newest_beat(seen: &[Seen], slot: SlotIndex) -> Option<&Beat> {
    seen.iter().flat_map(|seen| &seen.beats).filter(|beat| beat.slot == slot).max_by_key(|beat| beat.beat)
}

/// Have enough of so many devices answered?
#[must_use]
pub fn is_majority<T>(answers: &[T], devices: usize) -> bool {
    answers.len() * 2 > devices
}

/// Asks one device after the other.
fn ask<T>(devices: &[ClusterDevice], read: impl Fn(&ClusterDevice) -> Result<T, DevicesError>) -> Result<Vec<T>, DevicesError> {
    let mut answers = Vec::new();
    let mut failed = None;
    for device in devices {
        match read(device) {
            Ok(answer) => answers.push(answer),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if !is_majority(&answers, devices.len()) => Err(error),
        _ => Ok(answers),
    }
}

/// Reads the newest view.
///
/// # Errors
/// A majority of the devices fails, or no device has the body of the newest view.
pub fn newest_view_on(devices: &[ClusterDevice]) -> Result<ViewBody, DevicesError> {
    let seen = ask(devices, |device| Ok(Seen { views: device.views()?, ..Seen::default() }))?;
    newest_view(&seen).map_err(|view| DevicesError::NoBody { view })
}

/// Names in the SBD areas by slot, each place as often as it stands in an area.
///
/// # Errors
/// A majority of the devices fails.
pub fn sbd_names_on(devices: &[ClusterDevice]) -> Result<Vec<(SlotIndex, String)>, DevicesError> {
    Ok(ask(devices, ClusterDevice::sbd_names)?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Digest, Incarnation, Life};

    fn seen(view: u64, has_body: bool) -> Seen {
        let body = ViewBody { view: ViewNumber(view), ..ViewBody::default() };
        let life = Life { slot: SlotIndex(0), boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) };
        let digest = if has_body { body.digest() } else { Digest([view.to_le_bytes()[0]; 32]) };
        let record = ViewRecord { life, sequence: 1, view: body.view, place: 0, digest, wall_ms: 0 };
        Seen { beats: Vec::new(), views: vec![(record, has_body.then_some(body))] }
    }

    #[test]
    fn the_newest_view_of_all_counts_and_any_device_may_have_its_body() {
        assert_eq!(newest_view(&[]).map(|body| body.view), Ok(ViewNumber(0)));
        assert_eq!(newest_view(&[seen(3, true), seen(5, true)]).map(|body| body.view), Ok(ViewNumber(5)), "the first device lags");
        assert_eq!(newest_view(&[seen(3, true), seen(5, false)]).map(|body| body.view), Err(ViewNumber(5)), "an older view is no answer");
        let mut lost = seen(5, true);
        lost.views[0].1 = None;
        assert_eq!(newest_view(&[lost, seen(5, true)]).map(|body| body.view), Ok(ViewNumber(5)), "the first device lost the body");
    }
}
