//! What: faults of what stands on a device, or of what one operation makes of it: lost, astray, rotten, old.
//! Owns: which units may be hit fairly; see the head of `disk.rs` for the reasons.
//! Invariants: a fair fault takes nothing away that nobody else can give back.
//! Does not: judge what follows.
//! Called by: the table of faults.

use super::Ending;
use crate::{
    disk::{Areas, Disk, SECTOR_BYTES, UnitInfo},
    io::{Mishap, MishapKind},
    machine::{Detour, Path, Stage},
    world::World,
};
use deadbolt_disk_format::{
    Area, Ballot, ByteOffset, Digest, Life, Place, SlotIndex, UNIT_BYTES, ViewBody, ViewNumber, ViewRecord, decode_body_place,
    sbd::mailbox_offset,
};
use deadbolt_sbd_core::PhaseName;
use std::{collections::BTreeSet, rc::Rc};

/// Where a write that goes astray, or nowhere, takes nothing away: what is lost is seen by its writer, or needed by nobody.
const NEEDLESS: Areas = Areas::SBD.and(Areas::REQUESTS).and(Areas::JOURNAL);

/// A vote unit, record or body that rotted while its owner lived.
#[derive(Clone, Copy, Debug)]
pub struct Rotten {
    device: usize,
    info: UnitInfo,
    owner: Life,
}

impl World {
    pub(super) fn arm_mishap(&mut self, text: &str, kind: MishapKind, areas: Areas) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, text);
        self.machines[machine].paths[device].mishaps.push(Mishap { kind, areas });
    }

    pub(super) fn inject_lost_write(&mut self) {
        self.arm_mishap("loses a write", MishapKind::LostWrite, NEEDLESS);
    }

    /// The scan after a ballot shows its writer that it is not there.
    pub(super) fn inject_lost_ballot(&mut self) {
        self.arm_mishap("loses a ballot", MishapKind::LostBallot, Areas::VOTE);
    }

    pub(super) fn inject_stray_write(&mut self) {
        let device = self.some_device();
        let Some((to, _)) = self.harmless_unit(device) else { return };
        let machine = self.some_machine();
        self.note_path(machine, device, &format!("writes astray, to byte {}", to.0));
        self.machines[machine].paths[device].mishaps.push(Mishap { kind: MishapKind::StrayWrite(to), areas: NEEDLESS });
    }

    pub(super) fn inject_stray_read(&mut self) {
        let units = self.disks[0].bytes() / UNIT_BYTES as u64;
        let from = ByteOffset(self.faults.own.below(units / 2) * UNIT_BYTES as u64);
        self.arm_mishap("reads astray", MishapKind::StrayRead(from), Areas::ALL);
    }

    pub(super) fn inject_rotten_read(&mut self) {
        let random = self.faults.own.fork();
        self.arm_mishap("turns bits of a read", MishapKind::RottenRead(random), Areas::ALL);
    }

    /// For a while a path shows everything but votes as it is now.
    pub(super) fn inject_stale(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "shows only what stands there now");
        let image = Rc::new(self.disks[device].clone());
        self.machines[machine].paths[device].detour = Some(Detour::Stale(image, Areas::ALL.without(Areas::VOTE)));
        self.ends(Ending::Straighten(machine, device));
    }

    /// Bits turn in a unit that somebody can give back, or that nobody needs.
    pub(super) fn inject_rot(&mut self) {
        let device = self.some_device();
        let chosen = match self.faults.own.below(4) {
            0 => self.some_unit(device, |world, info| world.is_vote_of_the_living(device, info)),
            1 => self.some_unit(device, |world, info| world.is_view_of_the_living(device, info) || world.is_said_elsewhere(device, info)),
            _ => None,
        };
        if let Some(info @ (area, offset, bytes)) = chosen {
            if let Some(owner) = self.living(area) {
                self.rotten.push(Rotten { device, info, owner });
            }
            self.rot(device, offset, bytes, &format!("{area:?}"));
        } else if let Some((offset, bytes)) = self.harmless_unit(device) {
            self.rot(device, offset, bytes, &format!("byte {}", offset.0));
        }
    }

    pub(super) fn rot(&mut self, device: usize, offset: ByteOffset, bytes: usize, text: &str) {
        self.note_fault(&format!("device {device}: {text} rots"));
        self.disks[device].rot(offset, bytes, &mut self.faults.own);
        self.facts.damaged.insert(device);
    }

    /// One of the units for which something holds.
    pub(super) fn some_unit(&mut self, device: usize, holds: impl Fn(&Self, &UnitInfo) -> bool) -> Option<UnitInfo> {
        let infos = Rc::clone(self.disks[device].infos());
        let fitting: Vec<UnitInfo> = infos.iter().filter(|info| holds(self, info)).copied().collect();
        fitting.get(self.faults.own.index(fitting.len())).copied()
    }

    /// A unit that may be overwritten at any time, of each kind as often.
    fn harmless_unit(&mut self, device: usize) -> Option<(ByteOffset, usize)> {
        let chosen = match self.faults.own.below(4) {
            0 => {
                // Not a name: one that turns into another is taken for that, and a person has to say whose the slot is.
                let slots = u64::from(self.disks[device].layout().slots);
                let slot = SlotIndex(u16::try_from(self.faults.own.below(slots)).unwrap_or(0));
                return Some((ByteOffset(mailbox_offset(slot, 512)), SECTOR_BYTES));
            }
            1 => self.some_unit(device, |world, (area, _, _)| matches!(area, Area::Beat(slot) if !world.is_last_word(*slot))),
            2 => {
                let spared = self.faults.spared_copies;
                self.some_unit(device, |_, (area, _, _)| matches!(area, Area::Superblock(copy) if copy % 2 != spared))
            }
            _ => self.some_unit(device, |_, (area, _, _)| matches!(area, Area::Requests(_) | Area::Journal(..) | Area::Tool)),
        };
        chosen.map(|(_, offset, bytes)| (offset, bytes))
    }

    /// Is it such a beat?
    pub(crate) fn is_needed_beat(&self, device: usize, offset: ByteOffset) -> bool {
        matches!(self.disks[device].info_at(offset), Some((Area::Beat(slot), _, _)) if self.is_last_word(slot))
    }

    /// May the beat of a slot be all that tells how a life that the view names has ended?
    fn is_last_word(&self, slot: SlotIndex) -> bool {
        self.facts.named_lives().any(|life| life.slot == slot && self.view_of(life).is_none())
    }

    /// The life that owns a unit, if it is well.
    fn living(&self, area: Area) -> Option<Life> {
        let (Area::Vote(slot, _) | Area::Record(slot, _) | Area::Body(slot, _)) = area else { return None };
        let machine = (0..self.machines.len()).find(|machine| self.machines[*machine].slot == slot && self.machines[*machine].is_on)?;
        let daemon = self.machines[machine].daemon.as_ref()?;
        daemon.life().filter(|_| self.is_living(machine))
    }

    /// Does it live in some view, with nothing wrong with it?
    pub(super) fn is_living(&self, machine: usize) -> bool {
        // A fault that is over may still keep an operation back.
        if self.waits_for_disk(machine, 50 + 2 * self.options.disk_us / 1000) {
            return false;
        }
        let machine = &self.machines[machine];
        let is_beating = machine.sbd.as_ref().is_some_and(|sbd| sbd.lifeline.status().phase == PhaseName::Living);
        let is_untouched = machine.stopped.is_empty() && machine.crash_at_step.is_none() && !machine.is_stopping;
        let has_view = match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
            Some(Stage::Live(node)) => node.view().view > ViewNumber(0),
            _ => false,
        };
        machine.is_on && is_beating && is_untouched && has_view && machine.paths.iter().all(Path::is_well)
    }

    pub(super) fn is_vote_of_the_living(&self, device: usize, info: &UnitInfo) -> bool {
        let Area::Vote(slot, _) = info.0 else { return false };
        let layout = *self.disks[device].layout();
        let is_good = |index: u8| ballot(&self.disks[device], self.at(layout.vote(slot, index), slot)).is_some();
        self.living(info.0).is_some() && is_good(0) && is_good(1)
    }

    /// The record or the body of the view that its owner is in, which gives it back.
    fn is_view_of_the_living(&self, device: usize, info: &UnitInfo) -> bool {
        let (Area::Record(slot, _) | Area::Body(slot, _)) = info.0 else { return false };
        let Some(view) = self.living(info.0).and_then(|life| self.view_of(life)) else { return false };
        self.says(device, slot, view)
    }

    fn at(&self, offset: ByteOffset, slot: SlotIndex) -> Place {
        Place { cluster: self.cluster, offset, slot }
    }

    /// Does another slot's record name the same view, with a body of its own?
    pub(super) fn is_said_elsewhere(&self, device: usize, info: &UnitInfo) -> bool {
        let disk = &self.disks[device];
        let (slot, digest) = match info.0 {
            Area::Record(slot, _) => match record(disk, self.at(info.1, slot)) {
                Some(record) if record.view > ViewNumber(0) => (slot, record.digest),
                _ => return false,
            },
            Area::Body(slot, _) => match body_digest(disk, self.at(info.1, slot)) {
                Some(digest) => (slot, digest),
                None => return false,
            },
            _ => return false,
        };
        let others = (0..disk.layout().slots).map(SlotIndex).filter(|other| *other != slot);
        let mut records = others.flat_map(|other| [0, 1].map(|index| (other, disk.layout().record(other, index))));
        records.any(|(other, offset)| {
            record(disk, self.at(offset, other)).is_some_and(|record| {
                let place = self.at(disk.layout().body(other, record.place), other);
                record.digest == digest && body_digest(disk, place) == Some(digest)
            })
        })
    }

    /// Does a slot's own record on a device name this view, with its body?
    fn says(&self, device: usize, slot: SlotIndex, view: ViewNumber) -> bool {
        let disk = &self.disks[device];
        let layout = *disk.layout();
        [0, 1]
            .into_iter()
            .filter_map(|index| record(disk, self.at(layout.record(slot, index), slot)))
            .any(|record| record.view == view && body_digest(disk, self.at(layout.body(slot, record.place), slot)) == Some(record.digest))
    }

    /// The view of a life, while it lives.
    fn view_of(&self, life: Life) -> Option<ViewNumber> {
        self.machines.iter().find_map(|machine| match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
            Some(Stage::Live(node)) if node.me() == life => Some(node.view().view),
            _ => None,
        })
    }

    /// Is what rotted still missing, in the view that it matters for?
    fn is_missing(&self, rotten: &Rotten, view: ViewNumber) -> bool {
        match rotten.info.0 {
            Area::Vote(slot, _) => ballot(&self.disks[rotten.device], self.at(rotten.info.1, slot)).is_none(),
            Area::Record(slot, _) | Area::Body(slot, _) => !self.says(rotten.device, slot, view),
            _ => false,
        }
    }

    /// Has the living owner of what rotted on the only device still to give it back? No other fault may take that owner away meanwhile.
    pub(super) fn is_rewriting(&self) -> bool {
        let is_wanted = |rotten: &Rotten| self.view_of(rotten.owner).is_some_and(|view| self.is_missing(rotten, view));
        self.disks.len() == 1 && self.rotten.iter().any(is_wanted)
    }

    /// Did owners of what rotted end before they had given it back, so that nothing can be decided any more?
    pub(crate) fn is_at_dead_end(&self) -> bool {
        let view = self.facts.newest_view();
        let is_lost = |rotten: &&Rotten| self.view_of(rotten.owner).is_none() && self.is_missing(rotten, view);
        let slots = || (0..self.disks[0].layout().slots).map(SlotIndex);
        let is_vote = |rotten: &Rotten| matches!(rotten.info.0, Area::Vote(..));
        let is_final = |rotten: &&Rotten| is_vote(rotten) || !slots().any(|slot| self.says(rotten.device, slot, view));
        let devices: BTreeSet<usize> = self.rotten.iter().filter(is_lost).filter(is_final).map(|rotten| rotten.device).collect();
        devices.len() * 2 > self.disks.len()
    }
}

fn ballot(disk: &Disk, place: Place) -> Option<Ballot> {
    Ballot::decode(&disk.read(place.offset, UNIT_BYTES), &place).ok()
}

fn record(disk: &Disk, place: Place) -> Option<ViewRecord> {
    ViewRecord::decode(&disk.read(place.offset, UNIT_BYTES), &place).ok()
}

fn body_digest(disk: &Disk, place: Place) -> Option<Digest> {
    let bytes = usize::try_from(disk.layout().place_bytes).unwrap_or(0);
    let (_, _, value) = decode_body_place(&disk.read(place.offset, bytes), &place).ok()?;
    ViewBody::decode_value(&value).ok().map(|body| body.digest())
}
