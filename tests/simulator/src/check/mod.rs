//! What: the promises of the design, section 10, as checkers over what really happens in the simulated world.
//! Owns: the truth that no node knows: who lives, what landed, who holds.
//! Invariants: a checker judges by the truth, never by what a node says of itself.
//! Does not: change anything in the world.
//! Called by: the world, after every event that may break a promise.

pub mod locks;
pub mod units;

use crate::{
    daemon::short,
    io::Owner,
    machine::Stage,
    world::{Event, World},
};
use deadbolt_disk_format::{Digest, Evidence, Incarnation, Life, SlotIndex, ViewNumber};
use std::collections::{BTreeMap, BTreeSet};

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its name, S1 to S12 or L1 to L4.
    pub promise: &'static str,
    /// What happened.
    pub what: String,
    /// True time, us.
    pub at_us: u64,
}

/// The truth.
#[derive(Debug, Default)]
pub struct Facts {
    /// Locks granted to clients so far.
    pub granted: u64,
    /// Views decided so far.
    pub views: BTreeMap<ViewNumber, Digest>,
    pub(crate) locks: locks::LockHistory,
    /// End of the newest lease of each machine's boot, local ms.
    leases: BTreeMap<usize, (u64, u64)>,
    /// Lives that some view or report called gone.
    gone: BTreeMap<Life, Evidence>,
    /// Lives that a view has removed.
    removed: BTreeSet<Life>,
    incarnations: BTreeMap<Incarnation, usize>,
    last_view: BTreeMap<usize, (Life, ViewNumber)>,
    ledger: units::Ledger,
    found: Vec<Violation>,
    now_us: u64,
}

impl Facts {
    fn breaks(&mut self, promise: &'static str, what: String) {
        self.found.push(Violation { promise, what, at_us: self.now_us });
    }

    /// The broken promises, once.
    pub(crate) fn take_found(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.found)
    }

    /// A lease was published.
    pub(crate) fn leased(&mut self, machine: usize, boot: u64, lease_end_ms: u64) {
        let known = self.leases.entry(machine).or_default();
        *known = if known.0 == boot { (boot, known.1.max(lease_end_ms)) } else { (boot, lease_end_ms) };
    }

    /// A protected value was written; S5 and the lost update.
    pub(crate) fn cell_written(&mut self, now_us: u64, machine: usize, cell: usize, found: u64, before: u64) {
        self.now_us = now_us;
        if found != before {
            self.breaks("S2", format!("a lost update: machine {machine} writes value {cell}, read as {before}, over {found}"));
        }
    }

    /// An operation landed.
    pub(crate) fn landed(&mut self, now_us: u64, machine: usize, boot: u64, owner: Owner) {
        self.now_us = now_us;
        let id = crate::disk::boot_id(machine, boot);
        let is_client = matches!(owner, Owner::Client(_));
        let called = self.gone.iter().find(|(life, evidence)| {
            // After left and idle restart the boot goes on; only its clients of that time must be silent, and they hold nothing.
            life.boot == id && !matches!(evidence, Evidence::Left | Evidence::IdleRestart)
        });
        if let Some((life, evidence)) = called {
            let (life, evidence) = (*life, evidence.word());
            let whose = if is_client { "a client" } else { "the node" };
            self.breaks("S5", format!("an operation of {whose} landed after {} was called gone ({evidence})", short(life)));
        }
    }

    /// A daemon's incarnation begins.
    pub(crate) fn incarnation_begins(&mut self, machine: usize, life: Life) {
        self.incarnations.insert(life.incarnation, machine);
    }
}

impl World {
    /// Files what a checker found.
    pub(crate) fn report(&mut self, now_us: u64, found: Vec<(&'static str, String)>) {
        self.facts.now_us = now_us;
        for (promise, what) in found {
            self.facts.breaks(promise, what);
        }
    }

    /// S5: a client acts only within the lease of its node.
    pub(crate) fn check_lease(&mut self, machine: usize, what: &str) {
        let now_ms = self.local_ms(machine);
        let boot = self.machines[machine].boot_number;
        let lease = self.facts.leases.get(&machine).filter(|(of, _)| *of == boot).map_or(0, |(_, end_ms)| *end_ms);
        if now_ms >= lease {
            let text = format!("{what} on {} at {now_ms}, its lease ended at {lease}", self.machines[machine].name);
            self.report(self.queue.now_us(), vec![("S5", text)]);
        }
    }

    /// S1, S3, S4: what a node has learned.
    pub(crate) fn facts_of_node(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let Some(Stage::Live(node)) = self.machines[machine].daemon.as_ref().map(|daemon| &daemon.stage) else { return };
        let (me, view) = (node.me(), node.view());
        let number = view.view;
        let known = self.facts.last_view.get(&machine).filter(|(life, _)| *life == me).map_or(ViewNumber(0), |(_, number)| *number);
        if number == known {
            return;
        }
        let body = view.clone();
        let digest = body.digest();
        self.facts.now_us = now_us;
        self.facts.last_view.insert(machine, (me, number));
        if number < known {
            self.facts.breaks("S4", format!("{} goes back from view {known} to {number}", short(me)));
        }
        let first = *self.facts.views.entry(number).or_insert(digest);
        if first != digest {
            self.facts.breaks("S1", format!("view {number} was decided twice; {} learned the second", short(me)));
        }
        for owed in &body.owed {
            self.facts.removed.insert(owed.life);
        }
        let released: Vec<(Life, Evidence)> = body.released.iter().map(|gone| (gone.life, gone.evidence)).collect();
        for (life, evidence) in released {
            self.check_gone("S3", &life, evidence);
        }
        let members: Vec<String> = body.members.iter().map(|life| short(*life)).collect();
        self.note(&format!(
            "{} learns view {number}: {:?}, {}; owed {}",
            self.machines[machine].name,
            body.reason,
            members.join(", "),
            body.owed.len()
        ));
    }

    /// S3, S9: who is called gone must be gone: machine reset and drained, or nothing held and never again.
    pub(crate) fn check_gone(&mut self, promise: &'static str, life: &Life, evidence: Evidence) {
        let now_us = self.queue.now_us();
        if self.facts.gone.contains_key(life) {
            return;
        }
        self.facts.gone.insert(*life, evidence);
        let Some(machine) = self.facts.incarnations.get(&life.incarnation).copied() else { return };
        let place = &self.machines[machine];
        let is_same_boot = place.boot(machine) == life.boot;
        let is_idle = matches!(evidence, Evidence::Left | Evidence::IdleRestart);
        if is_idle {
            if let Some(holder) = self.facts.locks.held_by(machine, place.boot_number).filter(|_| is_same_boot && is_life(place, life)) {
                let text = format!("{} is called gone ({}), and its client {holder} holds a lock", short(*life), evidence.word());
                self.report(now_us, vec![(promise, text)]);
            }
            return;
        }
        let text = if place.is_on && is_same_boot {
            Some("its machine is on")
        } else if self.operations.values().any(|operation| {
            operation.machine == machine && crate::disk::boot_id(machine, operation.boot) == life.boot && !operation.is_landed
        }) {
            Some("an operation of it has not landed yet")
        } else {
            None
        };
        if let Some(text) = text {
            let text = format!("{} is called gone ({}), and {text}", short(*life), evidence.word());
            self.report(now_us, vec![(promise, text)]);
        }
    }

    /// S7: at most one machine lives in a slot.
    pub(crate) fn check_slots(&mut self) {
        let mut living: BTreeMap<SlotIndex, usize> = BTreeMap::new();
        let mut found = Vec::new();
        for (index, machine) in self.machines.iter().enumerate() {
            if machine.is_on && machine.page.lease_end_ms > machine.clock.ms(self.queue.now_us()) {
                if let Some(other) = living.insert(machine.slot, index) {
                    found.push(("S7", format!("{} and {} live in slot {}", self.machines[other].name, machine.name, machine.slot.0)));
                }
            }
        }
        self.report(self.queue.now_us(), found);
    }

    /// What an event may have broken beyond what was checked while it was handled.
    pub(crate) fn check_after(&mut self, event: &Event) {
        if matches!(event, Event::SbdTurn { .. }) && self.has_clones {
            self.check_slots();
        }
    }
}

fn is_life(place: &crate::machine::Machine, life: &Life) -> bool {
    place.daemon.as_ref().and_then(crate::machine::Daemon::life) == Some(*life)
}
