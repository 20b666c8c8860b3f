//! What: a slot for a node, and back.
//! Owns: the rule by which two who want the same slot in the same moment do not both believe that they have it.
//! Invariants: who was answered a slot wrote its name there within the allocate time of the look that showed it free, and found it there
//! after another allocate time; a slot is freed only where nobody lives and no message waits.
//! Does not: print.
//! Called by: `allocate`, `release`, the watcher.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use deadbolt_disk_format::sbd::Command;
use deadbolt_disk_format::{SLOTS_MAX, SlotIndex};

use crate::area::{Area, AreaError, is_same_name};
use crate::fence::{PowerState, lives_of, power_state};
use crate::options::VOUCH;

/// How often a slot is tried for while others try too.
const TRIES: usize = 64;
/// A living watcher of stock answers a test within its loop time; more than that for a slow device.
const ANSWER_SPARE: Duration = Duration::from_secs(2);

/// Why a slot was not given or freed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SlotError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error("no name was given")]
    NoName,
    #[error(
        "writing the name took {took_ms} ms, longer than the allocate time of {allocate_s} s: another node may have been given slot {slot} in between; look at `list`, then try again"
    )]
    Slow { slot: SlotIndex, took_ms: u128, allocate_s: u32 },
    #[error("others took each free slot that was tried; try again")]
    Contended,
    #[error("{node:?} lives: {detail}; stop its sbd first")]
    Lives { node: String, detail: String },
    #[error(
        "nothing shows that {node:?} is gone: {reason}; stop its sbd cleanly, or fence it, or see for yourself that its machine is off, and say so: {VOUCH}"
    )]
    Unknown { node: String, reason: String },
    #[error("the message {} waits in the mailbox of {node:?}; clear it first, or say that the node is gone: {VOUCH}", command.word())]
    Waiting { node: String, command: Command },
}

/// The slot of a node, given to it if it has none. `said` is called before a free one is claimed.
///
/// Slots are registers without compare-and-swap. Who writes a name within the allocate time of having seen the slot free, then waits for
/// the allocate time, and still finds its own name there, is alone: everybody else who saw it free has written by then.
pub(crate) fn allocate_slot(area: &Area, name: &str, said: impl Fn(SlotIndex)) -> Result<SlotIndex, SlotError> {
    // Compatibility: a longer name is cut at 63 bytes, in the slot and wherever names are compared.
    if name.is_empty() {
        return Err(SlotError::NoName);
    }
    let allocate_s = area.plausible_header()?.allocate_s;
    let wait = Duration::from_secs(u64::from(allocate_s));
    for tried in 0..TRIES {
        let began = Instant::now();
        let slots = area.slots()?;
        if let Some(slot) = slots.iter().find(|slot| is_same_name(&slot.name, name)) {
            return Ok(slot.index);
        }
        let free: Vec<SlotIndex> = (0..SLOTS_MAX).map(SlotIndex).filter(|index| slots.iter().all(|slot| slot.index != *index)).collect();
        // The first one, as stock does; who lost it to another goes elsewhere than the next who lost it.
        let index = if tried == 0 { 0 } else { spread(name, tried) % free.len().max(1) };
        let slot = *free.get(index).ok_or(AreaError::Full)?;
        said(slot);
        area.write_name(slot, name)?;
        let took = began.elapsed();
        std::thread::sleep(wait);
        if !wait.is_zero() && took >= wait {
            return Err(SlotError::Slow { slot, took_ms: took.as_millis(), allocate_s });
        }
    }
    Err(SlotError::Contended)
}

/// A number that differs between names and between tries.
fn spread(name: &str, tried: usize) -> usize {
    name.bytes().fold(tried, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)))
}

/// Frees a node's slot on every device. Nobody may live there: neither a watcher of ours, which beats, nor one of stock, which answers,
/// whatever a person vouches for.
pub(crate) fn release(devices: &[PathBuf], areas: &[Area], node: &str, is_vouched: bool) -> Result<(), SlotError> {
    for area in areas {
        let slot = area.slots()?.into_iter().find(|slot| is_same_name(&slot.name, node));
        let command = slot.map(|slot| slot.mailbox.command).unwrap_or_default();
        if command.is_deadly() && !is_vouched {
            return Err(SlotError::Waiting { node: node.to_owned(), command });
        }
    }
    match power_state(devices, node) {
        Ok(PowerState::Alive { detail }) => return Err(SlotError::Lives { node: node.to_owned(), detail }),
        // A record that neither beats nor stopped may be that of a node which its cluster keeps alive without this disk.
        Ok(PowerState::Unknown { reason }) if !is_vouched && lives_of(devices, node).iter().any(|life| !life.is_gone) => {
            return Err(SlotError::Unknown { node: node.to_owned(), reason });
        }
        Ok(_) | Err(_) => {}
    }
    for area in areas {
        if is_answered(area, node)? {
            return Err(SlotError::Lives { node: node.to_owned(), detail: "it answers a test".to_owned() });
        }
    }
    for area in areas {
        if let Some(slot) = area.find(node)? {
            area.free(slot)?;
        }
    }
    Ok(())
}

/// Does anybody answer a test?
fn is_answered(area: &Area, node: &str) -> Result<bool, SlotError> {
    if area.find(node)?.is_none() {
        return Ok(false);
    }
    let header = area.send(node, Command::Test, "release")?;
    let end = Instant::now() + Duration::from_secs(u64::from(header.loop_s)) + ANSWER_SPARE;
    while Instant::now() < end {
        if area.command_of(node)? == Command::Clear {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk::MemoryDevice;
    use deadbolt_disk_format::sbd::area_bytes;
    use std::sync::Arc;

    fn open(device: &MemoryDevice) -> Area {
        Area::over(Arc::new(device.second_path()), crate::fence::ANSWER).unwrap()
    }

    fn device() -> MemoryDevice {
        let device = MemoryDevice::new(usize::try_from(area_bytes(512)).unwrap(), 512);
        open(&device).create([5, 1, 1, 10], [1; 16], || ()).unwrap();
        device
    }

    #[test]
    fn many_who_want_a_slot_at_once_get_one_each() {
        let device = device();
        let names: Vec<String> = (0..24).map(|number| format!("node{number}")).collect();
        let slots: Vec<SlotIndex> = std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|name| {
                    let area = open(&device);
                    scope.spawn(move || allocate_slot(&area, name, |_| ()).unwrap())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let found = open(&device).slots().unwrap();
        assert_eq!(found.len(), names.len());
        for (name, slot) in names.iter().zip(slots) {
            assert!(found.iter().any(|found| found.name == *name && found.index == slot), "{name} {slot}");
        }
    }

    #[test]
    fn a_name_has_one_slot_however_long_it_is() {
        let area = open(&device());
        assert!(matches!(allocate_slot(&area, "", |_| ()), Err(SlotError::NoName)));
        let long = allocate_slot(&area, &"n".repeat(70), |_| ()).unwrap();
        assert_eq!(allocate_slot(&area, &"N".repeat(63), |_| ()).unwrap(), long);
    }

    #[test]
    fn a_slot_is_freed_where_nobody_lives_and_no_message_waits() {
        let device = device();
        let area = open(&device);
        let slot = allocate_slot(&area, "alpha", |_| ()).unwrap();
        area.send("alpha", Command::Reset, "beta").unwrap();
        let release = || release(&[], &[open(&device)], "alpha", false);
        assert!(matches!(release(), Err(SlotError::Waiting { command: Command::Reset, .. })));
        area.send("alpha", Command::Clear, "beta").unwrap();
        // Somebody answers a test: a watcher of stock.
        std::thread::scope(|scope| {
            let area = open(&device);
            let watcher = scope.spawn(move || {
                while area.command_of("alpha").unwrap() != Command::Test {
                    std::thread::sleep(Duration::from_millis(10));
                }
                area.send("alpha", Command::Clear, "").unwrap();
            });
            assert!(matches!(release(), Err(SlotError::Lives { .. })));
            watcher.join().unwrap();
        });
        release().unwrap();
        assert!(area.slots().unwrap().is_empty());
        assert_eq!(allocate_slot(&area, "beta", |_| ()).unwrap(), slot);
        assert!(release().is_ok(), "one without a slot has none to give back");
    }
}
