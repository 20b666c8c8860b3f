//! What: faults between a machine and a device: slow, hung, failing, lost, single operations that come late.
//! Owns: what each does to the path, and its end.
//! Invariants: one that hangs for ever ends when all faults do.
//! Does not: touch what stands on a device.
//! Called by: the table of faults.

use super::Ending;
use crate::{
    disk::Areas,
    io::{Mishap, MishapKind},
    world::World,
};

/// Most operations that one fault makes late.
const LATE_MOST: u64 = 5;

impl World {
    pub(super) fn some_path(&mut self) -> (usize, usize) {
        (self.some_machine(), self.some_device())
    }

    pub(super) fn note_path(&mut self, machine: usize, device: usize, text: &str) {
        self.note_fault(&format!("{}: device {device} {text}", self.machines[machine].name));
    }

    pub(super) fn inject_slow(&mut self) {
        let (machine, device) = self.some_path();
        let extra_us = self.faults.own.below(self.options.stall_ms * 1000);
        self.note_path(machine, device, &format!("takes up to {} ms more", extra_us / 1000));
        self.machines[machine].paths[device].extra_us = extra_us;
        self.ends(Ending::Quicken(machine, device));
    }

    pub(super) fn inject_hang(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "hangs");
        self.machines[machine].paths[device].hangs += 1;
        self.ends(Ending::Release(machine, device));
    }

    /// Until somebody repairs it, across every boot.
    pub(super) fn inject_hang_for_ever(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "hangs for ever");
        self.machines[machine].paths[device].hangs += 1;
    }

    pub(super) fn inject_hang_all(&mut self) {
        let device = self.some_device();
        self.note_fault(&format!("device {device} hangs for all"));
        for machine in 0..self.machines.len() {
            self.machines[machine].paths[device].hangs += 1;
            self.ends(Ending::Release(machine, device));
        }
    }

    /// Every path of every node hangs from this instant to the same instant, up to half as long again as a freeze may last.
    pub(super) fn inject_lost_for_all(&mut self) {
        let most_us = u64::from(self.timings.freeze_ms) * 1500;
        let span_us = if self.faults.own.chance(500) { self.span_us() } else { self.faults.own.range(1, most_us + 2) };
        self.note_fault(&format!("all lose all devices for {} ms", span_us / 1000));
        for machine in 0..self.machines.len() {
            self.lose_paths(machine, span_us);
        }
    }

    /// All lose every path, one after the other within a lease, and get them back one after the other, one of them maybe long before.
    pub(super) fn inject_lost_apart(&mut self) {
        let (lease_us, freeze_us) = (u64::from(self.timings.lease_ms) * 1000, u64::from(self.timings.freeze_ms) * 1000);
        let span_us = if self.faults.own.chance(500) { self.span_us() } else { self.faults.own.range(1, freeze_us + 2) };
        self.note_fault(&format!("all lose all devices within {} ms, for about {} ms", lease_us / 1000, span_us / 1000));
        let first_back = self.some_machine();
        for machine in 0..self.machines.len() {
            let after_us = self.faults.own.below(lease_us);
            let own_span_us = if machine == first_back { span_us / 3 } else { self.faults.own.range(span_us / 2, span_us + 1) };
            self.ends_after(after_us, Ending::Lose(machine, own_span_us));
        }
    }

    /// One node loses every path at once.
    pub(super) fn inject_path_loss(&mut self) {
        let machine = self.some_machine();
        let span_us = self.span_us();
        self.note_fault(&format!("{} loses all devices for {} ms", self.machines[machine].name, span_us / 1000));
        self.lose_paths(machine, span_us);
    }

    pub(super) fn lose_paths(&mut self, machine: usize, span_us: u64) {
        for device in (0..self.disks.len()).filter(|device| self.liar().is_none_or(|liar| liar == *device)).collect::<Vec<_>>() {
            self.machines[machine].paths[device].hangs += 1;
            self.ends_after(span_us, Ending::Release(machine, device));
        }
    }

    pub(super) fn inject_error(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "answers with errors");
        self.fail(machine, device, true, true);
    }

    pub(super) fn inject_read_error(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "fails to read");
        self.fail(machine, device, true, false);
    }

    pub(super) fn inject_write_error(&mut self) {
        let (machine, device) = self.some_path();
        self.note_path(machine, device, "fails to write");
        self.fail(machine, device, false, true);
    }

    fn fail(&mut self, machine: usize, device: usize, reads: bool, writes: bool) {
        let path = &mut self.machines[machine].paths[device];
        path.fails_reads |= reads;
        path.fails_writes |= writes;
        self.ends(Ending::Mend(machine, device));
    }

    /// Some of the next operations land at once and answer long after; others overtake them.
    pub(super) fn inject_late(&mut self) {
        self.delay_some(MishapKind::LateAnswer, "answers late");
    }

    /// Some of the next operations land long after they were sent; others overtake them.
    pub(super) fn inject_stray(&mut self) {
        self.delay_some(MishapKind::LateLanding, "is reached late");
    }

    fn delay_some(&mut self, kind: fn(u64) -> MishapKind, text: &str) {
        let (machine, device) = self.some_path();
        let count = self.faults.own.range(1, LATE_MOST);
        self.note_path(machine, device, &format!("{text}, {count} times"));
        for _ in 0..count {
            let kind = kind(self.span_us());
            self.machines[machine].paths[device].mishaps.push(Mishap { kind, areas: Areas::ALL });
        }
    }

    pub(super) fn mend(&mut self, machine: usize, device: usize) {
        let path = &mut self.machines[machine].paths[device];
        path.fails_reads = false;
        path.fails_writes = false;
    }

    /// The path works again, whatever was wrong with it.
    pub(super) fn mend_path(&mut self, machine: usize, device: usize) {
        self.mend(machine, device);
        let path = &mut self.machines[machine].paths[device];
        path.extra_us = 0;
        path.mishaps.clear();
        path.detour = None;
        path.hangs = path.hangs.min(1);
        self.release(machine, device);
    }
}
