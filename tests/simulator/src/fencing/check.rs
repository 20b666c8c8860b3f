//! What: the promises of drop-in fencing as checkers over what really happens.
//! Owns: the truth that no program knows: which boot can act, what was claimed of it, until when it may live.
//! Invariants: judges by the truth, never by what a program says of itself; changes nothing but the truth.
//! Does not: know evidence; a claim is a claim.
//! Called by: the world, where something happens.

use super::{
    io::STORAGE_DELAY_US,
    sender::{Sender, is_deadly_for},
    watcher::decode_place,
    world::{World, slot_of},
};
use crate::disk::SECTOR_BYTES;
use deadbolt_disk_format::{
    ByteOffset,
    sbd::{mailbox_offset, node_offset},
};
use deadbolt_sbd_core::{ClusterSay, OwnPlace, Proof, watch_quorum};
use std::collections::BTreeMap;

/// What is true of a machine.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// The boot in which services may run.
    acting: Option<u64>,
    /// Clean stops of the stock program, which leaves no word: who stops and starts again is another one.
    pub(crate) stops: u64,
    /// When they ended by a reset, by boot, true us.
    ended_us: BTreeMap<u64, u64>,
    /// End of the lease that this boot has, local ms.
    leased_until_ms: u64,
    /// The boot whose acknowledgement stands on a device.
    answered: Option<u64>,
    /// A fence has called this boot gone, and all before it.
    gone: u64,
    /// Somebody wrote something harmless over its messages, true us.
    pub(crate) erased_us: u64,
    /// Its feeder was paused last, true us.
    pub(crate) paused_us: u64,
    pub(crate) resets: u64,
}

impl World {
    fn truth(&mut self, machine: usize) -> &mut Truth {
        &mut self.machines[machine].truth
    }

    /// The boot in which services may run.
    pub(crate) fn acting_boot(&self, machine: usize) -> Option<u64> {
        self.machines[machine].truth.acting
    }

    fn name_and_boot(&self, machine: usize) -> String {
        format!("{}, boot {}", self.machines[machine].name, self.machines[machine].boot)
    }

    /// The watcher has started: services may begin. S9: not in a boot that was called gone.
    pub(crate) fn check_acting(&mut self, machine: usize) {
        let boot = self.machines[machine].boot;
        self.truth(machine).acting = Some(boot);
        self.check_not_gone(machine, boot, "acts");
    }

    fn check_not_gone(&mut self, machine: usize, boot: u64, does: &str) {
        if self.machines[machine].truth.gone >= boot {
            let text = format!("{} {does} after it was called gone", self.name_and_boot(machine));
            self.breaks("S9", text);
        }
    }

    /// S9: who has answered is never fed again, nor who was called gone.
    pub(crate) fn check_fed(&mut self, machine: usize) {
        let boot = self.machines[machine].boot;
        self.check_not_gone(machine, boot, "feeds its watchdog");
        if self.machines[machine].truth.answered == Some(boot) {
            let text = format!("{} feeds its watchdog after its answer", self.name_and_boot(machine));
            self.breaks("S9", text);
        }
    }

    /// The watchdog was opened under the lease of the trial's cycle.
    pub(crate) fn check_opened(&mut self, machine: usize, until_ms: u64) {
        let truth = self.truth(machine);
        truth.leased_until_ms = truth.leased_until_ms.max(until_ms);
    }

    pub(crate) fn check_leased(&mut self, machine: usize, lease_end_ms: u64) {
        self.truth(machine).leased_until_ms = lease_end_ms;
    }

    /// S5: nobody acts past its lease.
    fn check_lease(&mut self, machine: usize) {
        let (now_ms, truth) = (self.local_ms(machine), &self.machines[machine].truth);
        let until_ms = truth.leased_until_ms;
        if truth.acting.is_some() && !self.machines[machine].is_stock && now_ms > until_ms {
            let text = format!("{} acts at {now_ms} ms, its lease ended at {until_ms} ms", self.name_and_boot(machine));
            self.breaks("S5", text);
        }
    }

    /// A boot ends. L4: in calm only where somebody asked for it.
    pub(crate) fn check_end(&mut self, machine: usize) {
        self.check_lease(machine);
        let now_us = self.queue.now_us();
        let truth = self.truth(machine);
        if let Some(boot) = truth.acting.take() {
            truth.ended_us.insert(boot, now_us);
        }
        (truth.leased_until_ms, truth.resets) = (0, truth.resets + 1);
    }

    /// Services have ended, for the watcher is to stop.
    pub(crate) fn check_idle(&mut self, machine: usize) {
        let is_stock = self.machines[machine].stock.is_some();
        let truth = self.truth(machine);
        truth.acting = None;
        truth.stops += u64::from(is_stock);
    }

    /// S9: under the rule *disk* a watchdog is disarmed with its word on the disk.
    pub(crate) fn check_disarmed(&mut self, machine: usize) {
        let (boot, slot) = (self.boot_id(machine), slot_of(machine));
        let Some(watcher) = &self.machines[machine].watcher else { return };
        let says = |device: &&usize| {
            let sector = self.disks[**device].read(ByteOffset(node_offset(slot, 512)), SECTOR_BYTES);
            matches!(decode_place(**device, slot, &sector), OwnPlace::Beat(beat) if beat.boot == boot && beat.is_stopped)
        };
        let count = watcher.devices.iter().filter(says).count();
        let needed = watch_quorum(u32::try_from(self.disks.len()).unwrap_or(u32::MAX));
        let is_disk = self.machines[machine].setup.say != ClusterSay::KeepsAlive;
        if is_disk && u32::try_from(count).unwrap_or(0) < needed {
            let text = format!("{} disarms, and says stopped on {count} devices", self.name_and_boot(machine));
            self.breaks("S9", text);
        }
    }

    /// S9: nothing of a boot that was called gone lands. Takes down an answer.
    pub(crate) fn check_landed(&mut self, machine: usize, boot: u64, device: usize, offset: ByteOffset, data: &[u8]) {
        self.check_not_gone(machine, boot, "has written");
        let slot = slot_of(machine);
        if offset.0 == node_offset(slot, 512)
            && let OwnPlace::Beat(beat) = decode_place(device, slot, data)
            && beat.acknowledged.is_some()
        {
            self.truth(machine).answered = Some(boot);
        }
    }

    /// S9: a victim that is called gone can act no more, and what it has issued has landed. L2: in calm within the printed bound.
    pub(crate) fn check_success(&mut self, sender: &Sender, proof: Proof) {
        let (now_us, victim) = (self.queue.now_us(), sender.victim);
        if let Some(due_us) = sender.due_us.filter(|due_us| now_us > *due_us) {
            let late_ms = (now_us - due_us) / 1000;
            self.breaks("L2", format!("{} was proved gone ({proof}) {late_ms} ms later than printed", self.name_and_boot(victim)));
        }
        let Some(claimed) = sender.claimed else { return };
        let name = self.machines[victim].name.clone();
        let truth = self.truth(victim);
        // The stock program that was to end has ended, and another watcher began in the same boot.
        if truth.stops != sender.stops {
            return;
        }
        if truth.acting == Some(claimed) {
            return self.breaks("S9", format!("{name} acts in boot {claimed}, and is called gone: {proof}"));
        }
        // What stock waits has no room for D.
        if proof == Proof::Msgwait {
            return;
        }
        truth.gone = truth.gone.max(claimed);
        if let Some(ended_us) = truth.ended_us.get(&claimed).filter(|ended_us| now_us < **ended_us + STORAGE_DELAY_US) {
            let ago_ms = (now_us - ended_us) / 1000;
            self.breaks("S9", format!("{name} is called gone ({proof}) {ago_ms} ms after its reset: its commands may still act"));
        }
    }

    /// L2: no fence is under way that should have ended. Where somebody else has written into a mailbox, the stock program may live there,
    /// and its time is waited for.
    pub(crate) fn check_overdue(&mut self) {
        let now_us = self.queue.now_us();
        let late =
            self.senders.values().find(|sender| sender.has_signed_mailboxes() && sender.due_us.is_some_and(|due_us| now_us > due_us));
        if let Some(victim) = late.map(|sender| sender.victim) {
            let text = format!("{} has been dead for long, and is not proved gone in the time of a write", self.name_and_boot(victim));
            self.breaks("L2", text);
        }
    }

    /// S9 for the stock program's sender, where its time is long enough for a node of ours (docs/timing.md).
    pub(crate) fn check_stock_success(&mut self, victim: usize, claimed: Option<u64>) {
        let msgwait_ms = u64::from(self.setup.times[3]) * 1000;
        let sent_us = self.queue.now_us().saturating_sub(msgwait_ms * 1000 + 10_000_000);
        let place = &self.machines[victim];
        if place.watcher.is_none() {
            return;
        }
        let is_disk = place.setup.has_watchdog && place.setup.say != ClusterSay::KeepsAlive;
        let needed_ms = u64::from(self.needed_ms(victim));
        let is_undisturbed = place.truth.erased_us < sent_us && place.truth.paused_us < sent_us;
        let is_long = msgwait_ms >= needed_ms + needed_ms / 50 + 100;
        if is_disk && is_undisturbed && is_long && claimed.is_some() && place.truth.acting == claimed {
            let text = format!("{} acts, and a stock sender that has waited {msgwait_ms} ms calls it gone", self.name_and_boot(victim));
            self.breaks("S9", text);
        }
    }

    /// At the end of calm: S5, and L1: no message stands before somebody who should have obeyed it.
    pub(crate) fn check_all(&mut self) {
        for machine in 0..self.machines.len() {
            self.check_lease(machine);
            let boot = self.boot_id(machine);
            // A device that went back does not count for it, and is not read until it starts anew.
            let Some(watcher) = self.machines[machine].watcher.as_ref().filter(|watcher| watcher.life.status().away == 0) else { continue };
            let offset = ByteOffset(mailbox_offset(slot_of(machine), 512));
            let stands = |device: &&usize| is_deadly_for(&self.disks[**device].read(offset, SECTOR_BYTES), Some(boot));
            if let Some(device) = watcher.devices.iter().find(stands) {
                let text = format!("{} does not obey the message on device {device}", self.name_and_boot(machine));
                self.breaks("L1", text);
            }
        }
    }
}
