//! What: S3, S5, S7, S9: who lives, who acts, and who is called gone or stopped without being so.
//! Owns: nothing.
//! Invariants: a machine acts while it is on, and until its last command has landed.
//! Does not: read what nodes say of themselves.
//! Called by: the world.

use super::{Facts, World, locks::Grant};
use crate::{
    daemon::short,
    io::{Owner, Work},
    machine::Daemon,
};
use deadbolt_disk_format::{Beat, Evidence, Life, NodeState, Place, SlotIndex, UNIT_BYTES, ViewNumber};
use deadbolt_dlm_core::Mode;
use std::collections::BTreeMap;

impl Facts {
    /// A lease was published.
    pub(crate) fn leased(&mut self, machine: usize, boot: u64, lease_end_ms: u64) {
        let known = self.leases.entry(machine).or_default();
        *known = if known.0 == boot { (boot, known.1.max(lease_end_ms)) } else { (boot, lease_end_ms) };
    }

    /// The watchdog runs no more, and no lease with it.
    pub(crate) fn disarmed(&mut self, machine: usize) {
        self.leases.remove(&machine);
    }

    /// A daemon's incarnation begins.
    pub(crate) fn incarnation_begins(&mut self, machine: usize, life: Life) {
        self.incarnations.insert(life.incarnation, machine);
    }

    /// An operation landed.
    pub(crate) fn landed(&mut self, now_us: u64, machine: usize, boot: u64, owner: Owner) {
        self.now_us = now_us;
        if matches!(owner, Owner::Sbd(_)) {
            self.beats.insert(crate::world::slot_of(machine), now_us);
        }
        let id = crate::disk::boot_id(machine, boot);
        let called = self.gone.iter().find(|(life, evidence)| {
            // After left and idle restart the boot goes on; only its clients of that time must be silent, and they hold nothing.
            life.boot == id && !matches!(evidence, Evidence::Left | Evidence::IdleRestart)
        });
        if let Some((life, evidence)) = called {
            let (life, evidence) = (*life, evidence.word());
            let whose = if matches!(owner, Owner::Client(_)) { "a client" } else { "the node" };
            self.breaks("S5", format!("an operation of {whose} landed after {} was called gone ({evidence})", short(life)));
        }
    }

    fn lease_end_ms(&self, machine: usize, boot: u64) -> Option<u64> {
        self.leases.get(&machine).filter(|(of, _)| *of == boot).map(|(_, end_ms)| *end_ms)
    }
}

impl World {
    /// S5: a client acts only within the lease of its node.
    pub(crate) fn check_lease(&mut self, machine: usize, what: &str) {
        let now_ms = self.local_ms(machine);
        let lease = self.facts.lease_end_ms(machine, self.machines[machine].boot_number).unwrap_or(0);
        if now_ms >= lease {
            let text = format!("{what} on {} at {now_ms}, its lease ended at {lease}", self.machines[machine].name);
            self.report(self.queue.now_us(), vec![("S5", text)]);
        }
    }

    /// S5: a machine under a watchdog is off by the end of its lease.
    pub(super) fn check_alive(&mut self, machine: usize) {
        let place = &self.machines[machine];
        if place.watchdog.is_none() {
            return;
        }
        let now_ms = self.local_ms(machine);
        if let Some(lease) = self.facts.lease_end_ms(machine, place.boot_number).filter(|lease| now_ms >= *lease) {
            let text = format!("{} lives at {now_ms}, its lease ended at {lease}", place.name);
            self.report(self.queue.now_us(), vec![("S5", text)]);
        }
    }

    /// Why a life may still act: its machine is on, or something that it sent is on its way.
    pub(super) fn may_act(&self, life: &Life) -> Option<&'static str> {
        let machine = *self.facts.incarnations.get(&life.incarnation)?;
        let place = &self.machines[machine];
        let is_of_it = |boot: u64| crate::disk::boot_id(machine, boot) == life.boot;
        if place.is_on && place.boot(machine) == life.boot {
            return Some("its machine is on");
        }
        let mut operations = self.operations.values();
        let is_on_its_way = operations.any(|operation| operation.machine == machine && is_of_it(operation.boot) && !operation.is_landed);
        is_on_its_way.then_some("an operation of it has not landed yet")
    }

    /// What speaks against *held nothing*: the incarnation goes on, or a client of it holds a lock.
    pub(super) fn holds_something(&self, life: &Life) -> Option<&'static str> {
        let machine = *self.facts.incarnations.get(&life.incarnation)?;
        let place = &self.machines[machine];
        if place.boot(machine) != life.boot || !place.is_on {
            return None;
        }
        let is_present = place.daemon.as_ref().and_then(Daemon::life) == Some(*life);
        let is_held = place.clients.values().any(|client| client.life == *life && self.facts.locks.holds(client.pid));
        match (is_held, is_present && place.page.holds) {
            (true, _) => Some("a client of it holds a lock"),
            (false, true) => Some("its daemon says that something is held"),
            (false, false) => None,
        }
    }

    /// S3: nothing that excludes a writer is granted while a write of an owed life's client to that resource may still land. (That such a
    /// client holds it still is S2.)
    pub(crate) fn check_gate(&mut self, machine: usize, asked_us: u64, grant: &Grant) {
        let Some((_, view, learned_us)) = self.facts.last_view.get(&machine).copied() else { return };
        // What was asked before the view was learned may have been granted before it, and only be said again in it.
        if grant.mode.is_compatible(Mode::Pw) || view != ViewNumber(grant.token.view) || asked_us <= learned_us {
            return;
        }
        let owed = self.facts.newest.owed.get(&view).into_iter().flatten();
        if let Some(life) = owed.copied().find(|life| self.is_writing(life, grant.resource)) {
            let text =
                format!("r{} is granted in view {view}, {} is owed and a write of its client has not landed", grant.resource, short(life));
            self.report(self.queue.now_us(), vec![("S3", text)]);
        }
    }

    fn is_writing(&self, life: &Life, resource: usize) -> bool {
        let Some(machine) = self.facts.incarnations.get(&life.incarnation).copied() else { return false };
        let mut operations = self.operations.values().filter(|operation| operation.machine == machine && !operation.is_landed);
        operations.any(|operation| {
            let is_of_client = matches!(operation.owner, Owner::Client(_)) && crate::disk::boot_id(machine, operation.boot) == life.boot;
            is_of_client && matches!(operation.work, Work::WriteCell(of, ..) if of == resource)
        })
    }

    /// S7: at most one machine lives in a slot.
    pub(crate) fn check_slots(&mut self) {
        let now_us = self.queue.now_us();
        let mut slots: BTreeMap<SlotIndex, &str> = BTreeMap::new();
        let mut found = Vec::new();
        for machine in self.machines.iter().filter(|machine| machine.is_on && machine.page.lease_end_ms > machine.clock.ms(now_us)) {
            if let Some(other) = slots.insert(machine.slot, &machine.name) {
                found.push(("S7", format!("{other} and {} live in slot {}", machine.name, machine.slot.0)));
            }
        }
        self.report(now_us, found);
    }

    /// S9: a watchdog is disarmed only when nobody has to wait for this node: it is in no view, or *left* or *held nothing* is on disk.
    pub(crate) fn check_disarm(&mut self, machine: usize) {
        let boot = self.machines[machine].boot(machine);
        let number = self.machines[machine].boot_number;
        let named: Vec<Life> = self.facts.named_lives().collect();
        let mut mine =
            named.into_iter().filter(|life| life.boot == boot && self.facts.incarnations.get(&life.incarnation) == Some(&machine));
        let open = mine.find(|life| !self.is_recorded(life));
        let holder = self.facts.locks.held_by(machine, number);
        let text = match (open, holder) {
            (Some(life), _) => Some(format!("{} stops, and *left* of {} is not on disk", self.machines[machine].name, short(life))),
            (None, Some(client)) => Some(format!("{} stops, and client {client} holds a lock", self.machines[machine].name)),
            (None, None) => None,
        };
        self.facts.disarmed(machine);
        self.report(self.queue.now_us(), text.map(|text| ("S9", text)).into_iter().collect());
    }

    /// Does a majority of devices say that this life left, or held nothing?
    fn is_recorded(&self, life: &Life) -> bool {
        let says = |device: &crate::disk::Disk| {
            let offset = device.layout().beat(life.slot);
            let place = Place { cluster: self.cluster, offset, slot: life.slot };
            Beat::decode(&device.read(offset, UNIT_BYTES), &place).is_ok_and(|beat| {
                let daemon = &beat.daemon;
                let is_it = daemon.incarnation == life.incarnation;
                beat.boot == life.boot
                    && ((is_it && (daemon.state == NodeState::Left || beat.is_idle)) || daemon.left.has(life.incarnation))
            })
        };
        self.disks.iter().filter(|disk| says(disk)).count() * 2 > self.disks.len()
    }
}
