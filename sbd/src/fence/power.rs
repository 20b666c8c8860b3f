//! What: does a node live, as far as its beats show; without a message to it.
//! Owns: how long it is looked at.
//! Invariants: writes nothing; silence counts as death only after W + D, seen from before by this machine's own watcher; a power state
//! only where no program of stock can live there since.
//! Does not: fence.
//! Called by: the fence agent, `message clear`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use deadbolt_disk_format::span::{expiry_ms, observed_ms};
use deadbolt_disk_format::{Beat, BootId, DeviceUuid, Rule, WatchdogKind};
use deadbolt_sbd_core::{BeatVersion, OwnPlace};

use super::work::{look, open_place};
use super::{ANSWER, DRIFT_PPM, Evidence, FenceError, History, PowerState, STORAGE_DELAY_MS, check_devices, say_beat};
use crate::area::AreaError;

/// Time between the two looks: more than two intervals of beats of every watcher of ours.
const BETWEEN: Duration = Duration::from_millis(700);

struct Seen {
    first: BeatVersion,
    second: Beat,
    second_ms: u64,
    known: Option<(BeatVersion, u64)>,
    is_signed: bool,
}

fn look_twice(device: &Path, victim: &str) -> Result<Option<Seen>, AreaError> {
    let (area, placement, header, slot) = open_place(device, victim, ANSWER)?;
    let known = History::read(DeviceUuid(header.uuid)).seen.get(&slot).copied();
    let OwnPlace::Beat(first) = look(&area, &placement, 0)?.place else { return Ok(None) };
    std::thread::sleep(BETWEEN);
    let read = look(&area, &placement, 0)?;
    let OwnPlace::Beat(second) = read.place else { return Ok(None) };
    let is_signed = read.is_signed || placement.has_own_name();
    Ok(Some(Seen { first: BeatVersion::of(&first), second: *second, second_ms: read.issued_ms, known, is_signed }))
}

/// Looks for signs of life; writes nothing.
///
/// # Errors
/// The devices make no sense.
pub fn power_state(devices: &[PathBuf], victim: &str) -> Result<PowerState, FenceError> {
    check_devices(devices)?;
    let looks: Vec<Result<Option<Seen>, AreaError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = devices.iter().map(|device| scope.spawn(move || look_twice(device, victim))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut reasons = Vec::new();
    let mut seen = Vec::new();
    for (device, look) in devices.iter().zip(looks) {
        match look {
            Ok(Some(found)) => seen.push(found),
            Ok(None) => reasons.push(format!("{}: {victim:?} has a slot, and its sbd writes no sign of life into it", device.display())),
            Err(error) => reasons.push(format!("{}: {error}", device.display())),
        }
    }
    if let Some(alive) = seen.iter().find(|seen| seen.first != BeatVersion::of(&seen.second) && !seen.second.is_stopped) {
        return Ok(PowerState::Alive { detail: say_beat(&alive.second) });
    }
    // The victim may beat on any of its devices: silence counts only where all of them show it.
    if seen.len() == devices.len() && seen.iter().all(|seen| seen.is_signed && is_expired(seen)) {
        let detail = seen.first().map(|seen| say_beat(&seen.second)).unwrap_or_default();
        return Ok(PowerState::Gone { evidence: Evidence::Expired, detail });
    }
    reasons.extend(seen.iter().map(|seen| format!("{}; it did not change within {} ms", say_beat(&seen.second), BETWEEN.as_millis())));
    Ok(PowerState::Unknown { reason: reasons.join("; ") })
}

/// The life that a node's place shows; another program may live there since.
pub(crate) struct LifeSeen {
    pub(crate) boot: BootId,
    pub(crate) is_gone: bool,
}

/// The lives that a node's places show, by one look at each.
pub(crate) fn lives_of(devices: &[PathBuf], node: &str) -> Vec<LifeSeen> {
    let look = |device: &PathBuf| {
        let (area, placement, header, slot) = open_place(device, node, ANSWER).ok()?;
        let known = History::read(DeviceUuid(header.uuid)).seen.get(&slot).copied();
        let read = look(&area, &placement, 0).ok()?;
        let OwnPlace::Beat(beat) = read.place else { return None };
        let (boot, first) = (beat.boot, BeatVersion::of(&beat));
        let is_gone =
            beat.is_stopped || is_expired(&Seen { first, second: *beat, second_ms: read.issued_ms, known, is_signed: read.is_signed });
        Some(LifeSeen { boot, is_gone })
    };
    devices.iter().filter_map(look).collect()
}

fn is_expired(seen: &Seen) -> bool {
    let beat = &seen.second;
    let wait_ms = expiry_ms(beat.lease_ms, DRIFT_PPM) + observed_ms(u64::from(STORAGE_DELAY_MS), DRIFT_PPM);
    let is_silent = seen.known.is_some_and(|(known, at_ms)| known == BeatVersion::of(beat) && seen.second_ms >= at_ms + wait_ms);
    beat.rule == Rule::Disk && beat.watchdog != WatchdogKind::None && !beat.is_stopped && is_silent
}
