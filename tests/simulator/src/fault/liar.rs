//! What: the lies of one device of three.
//! Owns: which lie comes; the copy that the device goes back to.
//! Invariants: only the device that the options name, while every path to the two others is well; it goes back only where both others
//!   have what it forgets.
//! Does not: lie with one device.
//! Called by: the table of faults.

use crate::{
    disk::{Areas, Disk},
    io::{Mishap, MishapKind},
    world::World,
};
use deadbolt_disk_format::{Area, Ballot, ByteOffset, Digest, Place, SlotIndex, UNIT_BYTES, ViewRecord};
use std::collections::BTreeSet;

/// How long nothing of the register may have been written before a device goes back: longer than any round of it takes over well paths.
const QUIET_US: u64 = 2_000_000;

impl World {
    pub(super) fn inject_lie(&mut self) {
        let Some(device) = self.liar() else { return };
        match self.faults.own.below(4) {
            0 => self.go_back(device),
            1 => {
                let machine = self.some_machine();
                self.note_path(machine, device, "is another cluster's for a while");
                self.swap(machine, device);
            }
            2 => {
                let machine = self.some_machine();
                self.note_path(machine, device, "acknowledges a beat or a body and loses it");
                let areas = Areas::BEAT.and(Areas::BODY);
                self.machines[machine].paths[device].mishaps.push(Mishap { kind: MishapKind::LostWrite, areas });
            }
            _ => {
                if let Some((area, offset, bytes)) = self.some_unit(device, |_, info| !matches!(info.0, Area::Superblock(_))) {
                    self.rot(device, offset, bytes, &format!("{area:?}"));
                }
            }
        }
    }

    /// Keeps a copy the first time, and every time after it went back to one.
    fn go_back(&mut self, device: usize) {
        match self.liars_copy.take() {
            None => self.liars_copy = Some(self.disks[device].clone()),
            Some(image) if self.is_register_quiet() => {
                self.note_fault(&format!("device {device} is what it was before"));
                self.disks[device].put_back(image);
                self.facts.damaged.insert(device);
            }
            Some(image) => self.liars_copy = Some(image),
        }
    }

    /// Nothing of the register is on its way or new, and all devices say the same.
    fn is_register_quiet(&self) -> bool {
        let areas = Areas::VOTE.and(Areas::RECORD);
        let is_coming = self.operations.values().any(|operation| {
            let disk = &self.disks[operation.device];
            operation.writes_next() && operation.work.offset().is_some_and(|offset| areas.has(disk, offset))
        });
        let words: BTreeSet<Vec<Word>> = self.disks.iter().map(|disk| self.words(disk)).collect();
        !is_coming && self.queue.now_us() >= self.register_changed_us + QUIET_US && words.len() == 1
    }

    /// What every slot says on a device: its newest ballot and its newest record.
    fn words(&self, disk: &Disk) -> Vec<Word> {
        let at = |offset: ByteOffset, slot: SlotIndex| Place { cluster: self.cluster, offset, slot };
        let layout = disk.layout();
        let word = |slot: SlotIndex| {
            let ballots = [0, 1].map(|index| {
                let place = at(layout.vote(slot, index), slot);
                Ballot::decode(&disk.read(place.offset, UNIT_BYTES), &place).ok()
            });
            let records = [0, 1].map(|index| {
                let place = at(layout.record(slot, index), slot);
                ViewRecord::decode(&disk.read(place.offset, UNIT_BYTES), &place).ok()
            });
            let ballot = ballots.into_iter().flatten().max_by_key(|ballot| ballot.sequence);
            let record = records.into_iter().flatten().max_by_key(|record| (record.view, record.sequence));
            (
                ballot.map(|ballot| (ballot.view.0, ballot.entered, ballot.accepted, ballot.digest)),
                record.map(|record| (record.view.0, record.digest)),
            )
        };
        (0..layout.slots).map(SlotIndex).map(word).collect()
    }
}

type Word = (Option<(u64, u64, u64, Digest)>, Option<(u64, Digest)>);
