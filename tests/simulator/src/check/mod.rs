//! What: the promises of the design, section 10, as checkers over what really happens in the simulated world.
//! Owns: the truth that no node knows: who lives, what landed, who holds.
//! Invariants: a checker judges by the truth, never by what a node says of itself.
//! Does not: change anything in the world.
//! Called by: the world, after every event that may break a promise.

pub mod image;
pub(crate) mod live;
pub mod lives;
pub mod locks;
pub mod outage;
pub mod ranges;
pub mod units;
pub mod views;
pub mod waits;

use crate::world::{Event, World};
use deadbolt_disk_format::{Digest, Evidence, Incarnation, Life, SlotIndex, ViewNumber};
use std::collections::{BTreeMap, BTreeSet};

/// A broken promise by its name, and what happened.
pub type Found = (&'static str, String);

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
    /// Locks, and changes of byte ranges, granted to clients so far.
    pub granted: u64,
    /// Views decided so far.
    pub views: BTreeMap<ViewNumber, Digest>,
    /// Resets so far, by machine: whatever ended a boot but a clean stop.
    pub resets: BTreeMap<usize, u64>,
    /// Pills written so far.
    pub pills: u64,
    pub(crate) locks: locks::LockHistory,
    pub(crate) waits: waits::WaitHistory,
    /// End of the newest lease of each machine's boot, local ms.
    leases: BTreeMap<usize, (u64, u64)>,
    /// Lives that some view or report called gone.
    gone: BTreeMap<Life, Evidence>,
    incarnations: BTreeMap<Incarnation, usize>,
    /// What each machine's node has learned last, and when.
    last_view: BTreeMap<usize, (Life, ViewNumber, u64)>,
    ledger: units::Ledger,
    newest: views::Newest,
    /// When the last beat of each slot landed.
    beats: BTreeMap<SlotIndex, u64>,
    outage: outage::Outage,
    /// The newest question of each life that was consented to (none: by itself alone), and when first.
    consents: BTreeMap<Life, (Option<u32>, u64)>,
    /// Devices that a fault has damaged: what is found there is nobody's fault.
    pub(crate) damaged: BTreeSet<usize>,
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

    /// When a machine's node has learned the newest view that it knows.
    pub(crate) fn learned_us(&self, machine: usize) -> u64 {
        self.last_view.get(&machine).map_or(0, |(.., learned_us)| *learned_us)
    }

    /// A consent to this life's question is given.
    pub(crate) fn consented(&mut self, now_us: u64, life: Life, serial: Option<u32>) {
        let newest = self.consents.entry(life).or_insert((serial, now_us));
        if newest.0 != serial {
            *newest = (serial, now_us);
        }
    }

    /// A protected value was written; S2 as a lost update.
    pub(crate) fn cell_written(&mut self, now_us: u64, machine: usize, cell: usize, found: u64, before: u64) {
        self.now_us = now_us;
        if found != before {
            self.breaks("S2", format!("a lost update: machine {machine} writes value {cell}, read as {before}, over {found}"));
        }
    }
}

impl World {
    /// Files what a checker found.
    pub(crate) fn report(&mut self, now_us: u64, found: Vec<Found>) {
        self.facts.now_us = now_us;
        for (promise, what) in found {
            self.facts.breaks(promise, what);
        }
    }

    /// What must hold at the instant of an event, whatever follows from it.
    pub(crate) fn check_event(&mut self, event: &Event) {
        let machine = match event {
            Event::SbdTurn { machine, .. }
            | Event::FeederTurn { machine, .. }
            | Event::DaemonTick { machine, .. }
            | Event::ClientTurn { machine, .. }
            | Event::Reply { machine, .. } => *machine,
            _ => return,
        };
        self.check_alive(machine);
        if self.has_clones {
            self.check_slots();
        }
    }
}
