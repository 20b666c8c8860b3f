//! What: faults that no rule survives, each for itself: one device lies about the only copy, a clock or a watchdog breaks its bound.
//! Owns: what each takes away.
//! Invariants: never drawn; a run asks for one by its option. `tests/unfair.rs` says of each how it ends and whether anybody can see it.
//! Does not: happen in random runs.
//! Called by: the table of faults.

use super::Ending;
use crate::{
    disk::{Areas, Disk},
    io::{Mishap, MishapKind},
    machine::{Detour, PROCESSES},
    world::World,
};
use deadbolt_disk_format::{Area, ClusterUuid, SlotIndex};
use std::rc::Rc;

/// Most beats that are lost one after the other.
const BEATS_MOST: u64 = 200;
/// How wrong a clock without a bound may run, parts per million.
const RATE_MOST_PPM: u64 = 400_000;

impl World {
    pub(super) fn inject_unfair_lost_beats(&mut self) {
        let (machine, device) = self.some_path();
        let count = self.faults.own.range(1, BEATS_MOST);
        self.note_path(machine, device, &format!("acknowledges {count} beats and loses them"));
        for _ in 0..count {
            self.machines[machine].paths[device].mishaps.push(Mishap { kind: MishapKind::LostWrite, areas: Areas::BEAT });
        }
    }

    pub(super) fn inject_unfair_lost_record(&mut self) {
        self.arm_mishap("acknowledges a views record and loses it", MishapKind::LostWrite, Areas::RECORD);
    }

    pub(super) fn inject_unfair_lost_body(&mut self) {
        self.arm_mishap("acknowledges a body and loses it", MishapKind::LostWrite, Areas::BODY);
    }

    pub(super) fn inject_unfair_forgotten_ballot(&mut self) {
        self.arm_mishap("forgets a ballot after its own scan", MishapKind::ForgottenWrite, Areas::VOTE);
    }

    /// For a while a path shows nothing newer, others' votes included.
    pub(super) fn inject_unfair_stale_votes(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "shows only what stands there now, votes too");
        let image = Rc::new(self.disks[device].clone());
        self.machines[machine].paths[device].detour = Some(Detour::Stale(image, Areas::ALL));
        self.ends(Ending::Straighten(machine, device));
    }

    pub(super) fn inject_unfair_rot_both_votes(&mut self) {
        let device = self.some_device();
        let Some((Area::Vote(slot, _), _, bytes)) = self.some_unit(device, |world, info| world.is_vote_of_the_living(device, info)) else {
            return;
        };
        let layout = *self.disks[device].layout();
        for index in 0..2 {
            self.rot(device, layout.vote(slot, index), bytes, &format!("vote {index} of slot {slot}"));
        }
    }

    pub(super) fn inject_unfair_rot_dead_vote(&mut self) {
        let device = self.some_device();
        let is_nobodys = |world: &Self, slot: SlotIndex| !world.machines.iter().any(|machine| machine.slot == slot && machine.is_on);
        let chosen = self.some_unit(device, |world, info| matches!(info.0, Area::Vote(slot, _) if is_nobodys(world, slot)));
        if let Some((area, offset, bytes)) = chosen {
            self.rot(device, offset, bytes, &format!("{area:?}"));
        }
    }

    /// A record or a body that nobody else has.
    pub(super) fn inject_unfair_rot_only_copy(&mut self) {
        let device = self.some_device();
        let chosen = self
            .some_unit(device, |world, info| matches!(info.0, Area::Record(..) | Area::Body(..)) && !world.is_said_elsewhere(device, info));
        if let Some((area, offset, bytes)) = chosen {
            self.rot(device, offset, bytes, &format!("{area:?}"));
        }
    }

    pub(super) fn inject_unfair_rot_superblocks(&mut self) {
        let device = self.some_device();
        for (copy, offset) in self.disks[device].layout().superblocks.into_iter().enumerate().skip(1) {
            self.rot(device, offset, deadbolt_disk_format::UNIT_BYTES, &format!("superblock {copy}"));
        }
    }

    /// A path leads to another cluster's device for a while: what is written there is lost for this one.
    pub(super) fn inject_unfair_swap(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "is another cluster's for a while");
        self.swap(machine, device);
    }

    pub(super) fn swap(&mut self, machine: usize, device: usize) {
        let number = u16::try_from(device).unwrap_or(0);
        let count = u16::try_from(self.disks.len()).unwrap_or(1);
        let names: Vec<String> = self.configuration.nodes.iter().map(|node| node.name.clone()).collect();
        self.others.push(Disk::formatted(ClusterUuid([0xee; 16]), number, count, self.timings, &names, 1));
        self.machines[machine].paths[device].detour = Some(Detour::Other(self.others.len() - 1));
        self.facts.damaged.insert(device);
        self.ends(Ending::Straighten(machine, device));
    }

    /// All machines lose power, and find the devices as they are now.
    pub(super) fn inject_unfair_old_image(&mut self) {
        self.note_fault("a copy of every device is made, to be put back when all machines are off");
        let images = self.disks.clone();
        self.ends(Ending::PutBack(images));
    }

    pub(super) fn put_back(&mut self, images: Vec<Disk>) {
        self.note("fault: all lose power, and the devices are what they were");
        (0..self.machines.len()).for_each(|machine| self.end_machine(machine));
        // Nothing of the lives before is on its way to the copies.
        self.operations.clear();
        for (device, (disk, image)) in self.disks.iter_mut().zip(images).enumerate() {
            disk.put_back(image);
            self.facts.damaged.insert(device);
        }
    }

    pub(super) fn inject_unfair_clock_rate(&mut self) {
        let machine = self.some_machine();
        let rate_ppm = i64::try_from(self.faults.own.below(2 * RATE_MOST_PPM)).unwrap_or(0) - i64::try_from(RATE_MOST_PPM).unwrap_or(0);
        self.note_fault(&format!("{}: the clock is {rate_ppm} ppm fast from now on", self.machines[machine].name));
        self.set_clock(machine, |clock, now_us| clock.set_rate(now_us, rate_ppm));
    }

    pub(super) fn inject_unfair_clock_jump(&mut self) {
        let machine = self.some_machine();
        let by_ms = self.faults.own.below(u64::from(self.timings.expiry_ms) * 2);
        self.note_fault(&format!("{}: the clock jumps by {by_ms} ms", self.machines[machine].name));
        self.set_clock(machine, |clock, now_us| clock.jump(now_us, by_ms));
    }

    /// A guest is stopped with its clock and its watchdog.
    pub(super) fn inject_unfair_guest_pause(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{}: its hypervisor stops it, clock and watchdog too", self.machines[machine].name));
        self.stop_feeder(machine);
        PROCESSES.iter().for_each(|process| self.stop_process(machine, *process));
        self.machines[machine].clock.set_still(self.queue.now_us(), true);
        if let Some(watchdog) = &mut self.machines[machine].watchdog {
            // No look that was planned is for now.
            watchdog.look += 1;
        }
        self.ends(Ending::GoOn(machine));
    }

    pub(super) fn guest_goes_on(&mut self, machine: usize) {
        self.set_clock(machine, |clock, now_us| clock.set_still(now_us, false));
        PROCESSES.iter().for_each(|process| self.continue_process(machine, *process));
    }

    /// The other machine starts whatever the first one is at.
    pub(super) fn inject_unfair_clone(&mut self) {
        let original = self.some_machine();
        self.clone_machine(original);
    }
}
