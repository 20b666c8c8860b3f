//! What: `sbd retime`: other times for an area while its nodes live.
//! Owns: the order: who has to wait longer waits first, who may live longer lives so last.
//! Invariants: at no moment is a node's death reported by times that it does not live by yet; an unsafe set is refused, and so is an area
//! with a slot whose node leaves no record of ours: a watcher of stock ends when the header changes.
//! Does not: change a node's own options.
//! Called by: `stock`.

use std::time::{Duration, Instant};

use deadbolt_disk::Access;
use deadbolt_disk_format::Beat;
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_sbd_core::OwnPlace;

use crate::area::{Area, AreaError};
use crate::fence::safe_msgwait;
use crate::options::StockOptions;
use crate::pill::is_signed;
use crate::stock::{Say, open};

/// How long the nodes may take to live by other times. Chosen: they look at the header every four seconds.
const ADOPT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Two looks at a record that lives show two beats.
const BEAT: Duration = Duration::from_millis(700);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum RetimeError {
    #[error("name the devices with -d or SBD_DEVICE")]
    NoDevice,
    #[error("give new times: -1 watchdog, -2 allocate, -3 loop, -4 msgwait")]
    NoTimes,
    #[error("{device}: {source}")]
    Area { device: String, source: AreaError },
    #[error("the devices have different times: give all four, and stop every sbd first (`create` makes an area anew)")]
    Differ,
    #[error("{0}")]
    Unsafe(String),
    #[error(
        "{node:?} leaves no record of ours in its slot, or one from before: a watcher of stock sbd ends when the header changes; stop it, or `release` the slot if nobody lives there"
    )]
    Foreign { node: String },
    #[error(
        "{node:?} does not live by the new times within {within_s} s; the header names them, msgwait is the longer one; look at the log of its sbd"
    )]
    NotAdopted { node: String, within_s: u64 },
}

/// True: all devices and all living nodes have the new times.
pub(crate) fn retime(options: &StockOptions) -> bool {
    match run(options) {
        Ok(times) => {
            Say::out(&format!("{times}\n"));
            true
        }
        Err(error) => {
            Say::err(&format!("retime: {error}\n"));
            false
        }
    }
}

/// What stands in a node's slot.
struct Record {
    node: String,
    place: OwnPlace,
    /// No program of stock has been started there since.
    is_own: bool,
}

struct Areas<'a> {
    opened: Vec<(&'a str, Area)>,
}

impl<'a> Areas<'a> {
    fn open(options: &'a StockOptions) -> Result<Self, RetimeError> {
        let open = |device: &'a String| {
            let area = open(options, device, Access::ReadWrite).map_err(|source| RetimeError::Area { device: device.clone(), source })?;
            Ok((device.as_str(), area))
        };
        Ok(Self { opened: options.devices.iter().map(open).collect::<Result<_, RetimeError>>()? })
    }

    fn each<T>(&self, work: impl Fn(&Area) -> Result<T, AreaError>) -> Result<Vec<T>, RetimeError> {
        let one = |(device, area): &(&str, Area)| work(area).map_err(|source| RetimeError::Area { device: (*device).to_owned(), source });
        self.opened.iter().map(one).collect()
    }

    fn headers(&self) -> Result<Vec<SbdHeader>, RetimeError> {
        self.each(Area::plausible_header)
    }

    /// Each keeps its own uuid.
    fn write(&self, times: [u32; 4]) -> Result<(), RetimeError> {
        self.each(|area| area.write_times(times)).map(drop)
    }

    /// The records of all nodes, on the first device.
    fn records(&self) -> Result<Vec<Record>, RetimeError> {
        let Some((device, area)) = self.opened.first() else { return Err(RetimeError::NoDevice) };
        let read = || -> Result<Vec<Record>, AreaError> {
            let header = area.plausible_header()?;
            let record = |slot: crate::area::Slot| {
                let placement = area.placement(slot.index, &header);
                let (place, mailbox) = area.read_place(&placement)?;
                let is_own = placement.has_own_name() || matches!(&place, OwnPlace::Beat(beat) if is_signed(&mailbox, beat.boot));
                Ok(Record { node: slot.name, place, is_own })
            };
            area.slots()?.into_iter().map(record).collect()
        };
        read().map_err(|source| RetimeError::Area { device: (*device).to_owned(), source })
    }

    /// The nodes that live, by their records.
    fn living(&self) -> Result<Vec<(String, Beat)>, RetimeError> {
        let first = self.records()?;
        std::thread::sleep(BEAT);
        let mut living = Vec::new();
        for (before, now) in first.into_iter().zip(self.records()?) {
            match (before.place, now.place) {
                (OwnPlace::Beat(before), OwnPlace::Beat(beat)) if before.beat != beat.beat && !beat.is_stopped => {
                    living.push((now.node, *beat));
                }
                (OwnPlace::Beat(_), OwnPlace::Beat(_)) if now.is_own => {}
                _ => return Err(RetimeError::Foreign { node: now.node }),
            }
        }
        Ok(living)
    }
}

fn times_of(header: &SbdHeader) -> [u32; 4] {
    [header.watchdog_s, header.allocate_s, header.loop_s, header.msgwait_s]
}

fn run(options: &StockOptions) -> Result<String, RetimeError> {
    if options.devices.is_empty() {
        return Err(RetimeError::NoDevice);
    }
    let areas = Areas::open(options)?;
    let headers = areas.headers()?;
    let Some(old) = headers.first().map(times_of).filter(|old| headers.iter().all(|header| times_of(header) == *old)) else {
        return Err(RetimeError::Differ);
    };
    let wanted = options.given_times;
    if wanted.iter().all(Option::is_none) {
        return Err(RetimeError::NoTimes);
    }
    let new = [0, 1, 2, 3].map(|index| wanted[index].unwrap_or(old[index]));
    let header = SbdHeader { watchdog_s: new[0], allocate_s: new[1], loop_s: new[2], msgwait_s: new[3], ..headers[0].clone() };
    safe_msgwait(&[header], Duration::from_secs(u64::from(options.io_s))).map_err(RetimeError::Unsafe)?;
    let living = areas.living()?;
    // Who sends from now on waits for the longer time; who sent before waits for the old one still.
    let longest = old[3].max(new[3]);
    if longest > old[3] {
        areas.write([old[0], old[1], old[2], longest])?;
        std::thread::sleep(Duration::from_secs(u64::from(old[3])));
    }
    areas.write([new[0], new[1], new[2], longest])?;
    if (old[0], old[2]) != (new[0], new[2]) {
        await_nodes(&areas, &living)?;
    }
    if new[3] < longest {
        areas.write(new)?;
    }
    Ok(format!("watchdog {} s, allocate {} s, loop {} s, msgwait {} s", new[0], new[1], new[2], new[3]))
}

/// Waits until every node that lived publishes another lease than before.
fn await_nodes(areas: &Areas<'_>, living: &[(String, Beat)]) -> Result<(), RetimeError> {
    let end = Instant::now() + ADOPT;
    loop {
        let records = areas.records()?;
        let has_old = |(name, before): &&(String, Beat)| {
            let now = records.iter().find(|record| record.node == *name).map(|record| &record.place);
            // Another boot has read the header itself.
            matches!(now, Some(OwnPlace::Beat(now)) if now.boot == before.boot && !now.is_stopped && now.lease_ms == before.lease_ms)
        };
        let Some((node, _)) = living.iter().find(has_old) else { return Ok(()) };
        if Instant::now() >= end {
            return Err(RetimeError::NotAdopted { node: node.clone(), within_s: ADOPT.as_secs() });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
