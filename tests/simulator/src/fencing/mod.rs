//! What: drop-in fencing simulated: machines without a daemon of ours, each with its watcher, and senders on them.
//! Owns: the run of such a world: a phase with faults, then calm, and what is demanded of it.
//! Invariants: a run is a function of seed and program.
//! Does not: contain a decision of the product: shells are imitated, the lifeline and the fencer are the real ones.
//! Called by: `run`, for plans that say so.

mod check;
mod faults;
mod io;
mod sender;
mod setup;
mod stock;
mod watcher;
mod world;

use crate::{Outcome, Plan, panics::caught};
use deadbolt_disk_format::{sbd::Command, span::observed_ms};
use deadbolt_sbd_core::ClusterSay;
use watcher::Watcher;
use world::{Event, World};

/// How long everybody has to live again after all faults: a sender of ours may wait twice for the longest lease of these worlds, 90 s, and
/// writes its message again meanwhile where a stock program has emptied the mailbox at its start.
const SETTLE_S: u64 = 300;
/// They live when they have lived for so long: what the stock program was sent before has come about.
const STEADY_S: u64 = 15;
/// Nobody may be reset for so long without a message.
const QUIET_S: u64 = 10;
/// Beyond what is printed: the looks, the writes, a cycle and a turn of the feeder.
const SLACK_MS: u64 = 1200;

/// Runs a plan of this kind.
#[must_use]
pub fn run(plan: &Plan, is_tracing: bool) -> Outcome {
    let mut world = World::new(plan, is_tracing);
    if let Some(text) = caught(&plan.to_string(), || world.all_phases()) {
        world.breaks("panic", text);
    }
    let (hash, events) = (world.log.hash(), world.log.events());
    let (states, lines) = std::mem::take(&mut world.log).into_parts();
    Outcome {
        plan: plan.clone(),
        violations: world.found,
        expected: Vec::new(),
        hash,
        events,
        faults: world.faults.number,
        simulated_us: world.queue.now_us(),
        granted: world.proved,
        views: usize::try_from(world.asked).unwrap_or(usize::MAX),
        states,
        lines,
    }
}

impl World {
    fn all_phases(&mut self) {
        for machine in 0..self.machines.len() {
            self.power_on(machine);
        }
        self.queue.after(15_000_000, Event::Fault);
        self.queue.after(15_000_000, Event::Fence);
        self.run_until((15 + self.setup.safety_s) * 1_000_000);
        self.end_faults();
        self.settle();
        self.stay_quiet();
        self.fence_the_living();
        self.settle();
        self.fence_the_dead();
        self.check_all();
    }

    fn run_for(&mut self, span_us: u64) {
        self.run_until(self.queue.now_us() + span_us);
    }

    fn is_settled(&self) -> bool {
        self.senders.is_empty() && self.stock_senders.is_empty() && (0..self.machines.len()).all(|machine| self.is_well(machine))
    }

    /// It can act, and is fed.
    fn is_well(&self, machine: usize) -> bool {
        let place = &self.machines[machine];
        let is_fed = |watcher: &Watcher| watcher.is_fed(self.local_ms(machine));
        self.acting_boot(machine) == Some(place.boot) && (place.stock.is_some() || place.watcher.as_ref().is_some_and(is_fed))
    }

    /// L1: everybody comes back, every fence ends.
    fn settle(&mut self) {
        let mut well_s = 0;
        for _ in 0..SETTLE_S {
            self.run_for(1_000_000);
            well_s = if self.is_settled() { well_s + 1 } else { 0 };
            if well_s == STEADY_S || !self.found.is_empty() {
                return;
            }
        }
        let well: Vec<usize> = (0..self.machines.len()).filter(|machine| self.is_well(*machine)).collect();
        let text = format!("{SETTLE_S} s after all faults only {well:?} live; {} fences have not ended", self.senders.len());
        self.breaks("L1", text);
    }

    /// L4: nobody is reset without a message.
    fn stay_quiet(&mut self) {
        let resets = |world: &Self| -> Vec<u64> { world.machines.iter().map(|place| place.truth.resets).collect() };
        let before = resets(self);
        self.run_for(QUIET_S * 1_000_000);
        if self.found.is_empty() && resets(self) != before {
            self.breaks("L4", format!("resets without a fault or a message: {before:?}, then {:?}", resets(self)));
        }
    }

    /// Machines with a watcher of ours that ends by its watchdog, and another one that fences it.
    fn some_victim(&mut self, is_it: impl Fn(ClusterSay) -> bool) -> Option<(usize, usize)> {
        let fits = |machine: &usize| {
            let place = &self.machines[*machine];
            place.watcher.is_some() && place.setup.has_watchdog && is_it(place.setup.say)
        };
        let victims: Vec<usize> = (0..self.machines.len()).filter(fits).collect();
        let victim = *victims.get(self.random.index(victims.len()))?;
        let others: Vec<usize> = (0..self.machines.len()).filter(|machine| *machine != victim).collect();
        Some((others[self.random.index(others.len())], victim))
    }

    /// L2: who lives and obeys is proved gone by its answer, within the time that docs/timing.md prints.
    fn fence_the_living(&mut self) {
        let Some((machine, victim)) = self.some_victim(|_| true).filter(|_| self.found.is_empty()) else { return };
        let times = self.base_timings();
        let granted_ms = self.machines[victim].setup.granted_ms(1000);
        let reset_ms = deadbolt_sbd_core::reset_ms_of(granted_ms, times.lateness_ms, times.drift_ppm);
        let answer_ms = observed_ms(u64::from(reset_ms) + u64::from(times.storage_delay_ms), times.drift_ppm);
        let due_us = self.queue.now_us() + (answer_ms + u64::from(times.poll_ms) + SLACK_MS) * 1020;
        self.fence(machine, victim, Command::Reset, Some(due_us));
        self.run_for(1);
    }

    /// L2: who has been dead for long is proved gone in the time of a write.
    fn fence_the_dead(&mut self) {
        let Some((machine, victim)) = self.some_victim(|say| say != ClusterSay::KeepsAlive).filter(|_| self.found.is_empty()) else {
            return;
        };
        // A watcher without one of its devices, which it may have been since its start, has not seen that the victim is silent there.
        let sees_all = |watcher: &Watcher| watcher.devices.len() == self.disks.len() && watcher.life.status().away == 0;
        if !self.machines[machine].watcher.as_ref().is_some_and(sees_all) {
            return;
        }
        self.is_calm = false;
        self.machines[victim].stays_off = true;
        let expiry_ms = self.machines[victim].watcher.as_ref().map_or(0, |watcher| watcher.expiry_ms());
        self.end_machine(victim);
        self.run_for((u64::from(expiry_ms) + 3000) * 1030);
        if self.found.is_empty() {
            let due_us = self.queue.now_us() + SLACK_MS * 1000;
            self.fence(machine, victim, Command::Reset, Some(due_us));
            self.run_for(SLACK_MS * 1000 + 1_000_000);
            self.check_overdue();
        }
    }
}
