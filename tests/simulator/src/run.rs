//! What: one run: a phase with faults, then a phase in which everything must come back.
//! Owns: the two phases and their verdict.
//! Invariants: a run is a function of seed, options and program.
//! Does not: choose seeds or print.
//! Called by: the runner, the tests.

use crate::{
    check::Violation,
    panics::caught,
    plan::Plan,
    world::{World, view_members},
};
use std::collections::HashSet;

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// What was run.
    pub plan: Plan,
    /// Broken promises; none: all held.
    pub violations: Vec<Violation>,
    /// Hash of the event log.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Faults that came, those left out included.
    pub faults: u64,
    /// Simulated time, us.
    pub simulated_us: u64,
    /// Locks granted.
    pub granted: u64,
    /// Views decided.
    pub views: usize,
    /// Fingerprints of distinct states.
    pub states: HashSet<u64>,
    /// Lines for people.
    pub lines: Vec<String>,
}

/// Runs a plan. A panic is a broken promise, too.
#[must_use]
pub fn run(plan: &Plan, is_tracing: bool) -> Outcome {
    let mut world = World::new(plan, is_tracing);
    if let Some(text) = caught(&plan.to_string(), || both_phases(&mut world)) {
        world.add_violation("panic", text);
    }
    let (hash, events) = (world.log.hash(), world.log.events());
    let (states, lines) = std::mem::take(&mut world.log).into_parts();
    Outcome {
        plan: plan.clone(),
        violations: world.violations().to_vec(),
        hash,
        events,
        faults: world.faults.count(),
        simulated_us: world.queue.now_us(),
        granted: world.facts.granted,
        views: world.facts.views.len(),
        states,
        lines,
    }
}

fn both_phases(world: &mut World) {
    world.power_on();
    world.plan_fault();
    world.run_until(world.options.safety_s * 1_000_000);
    if world.violations().is_empty() && world.options.fault_gap_ms > 0 {
        check_liveness(world);
    }
}

/// Heals everything, and demands that all come together and every client is served.
fn check_liveness(world: &mut World) {
    world.note("--- calm: no fault begins any more");
    world.end_all_faults();
    let timings = world.timings;
    // Every earlier life has to be proved gone; the slowest evidence is W + F + D of a starter, twice for one that is reset again.
    let bound_us = 2 * u64::from(timings.expiry_ms + timings.freeze_ms + timings.storage_delay_ms + timings.lease_ms) * 1000
        + world.options.reboot_ms * 1000
        + 30_000_000;
    let start_us = world.queue.now_us();
    let mut converged_us = None;
    while world.violations().is_empty() && world.queue.now_us() < start_us + bound_us {
        let next_us = world.queue.now_us() + 500_000;
        world.run_until(next_us);
        if is_converged(world) {
            converged_us = Some(world.queue.now_us());
            break;
        }
    }
    if !world.violations().is_empty() {
        return;
    }
    if converged_us.is_none() && world.is_at_dead_end() {
        return world.note("a vote unit of a dead node is rotten: nothing can be decided until a person acts");
    }
    if converged_us.is_none() {
        let text = world.describe();
        return world.add_violation("L3", format!("no common view {} s after the faults stopped: {text}", bound_us / 1_000_000));
    }
    check_service(world);
}

/// L1: every client that asks is answered.
fn check_service(world: &mut World) {
    let span_us = 20_000_000 + world.options.hold_ms * 1000 * 20 * world.options.nodes;
    let before = world.facts.granted;
    let end_us = world.queue.now_us() + span_us;
    world.run_until(end_us);
    if world.violations().is_empty() && world.options.clients > 0 && world.facts.granted == before {
        let text = world.describe();
        world.add_violation("L1", format!("no lock was granted for {} s in a healthy cluster: {text}", span_us / 1_000_000));
    }
}

fn is_converged(world: &World) -> bool {
    let count = world.machines.len();
    let views: Vec<_> = world.machines.iter().filter_map(view_members).collect();
    views.len() == count && views.iter().all(|members| members.len() == count && Some(members) == views.first())
}

impl World {
    /// Where everybody stands, for a report.
    pub(crate) fn describe(&mut self) -> String {
        let mut text = Vec::new();
        for index in 0..self.machines.len() {
            let now_ms = self.local_ms(index);
            let machine = &self.machines[index];
            let sbd = machine.sbd.as_ref().map(|sbd| sbd.lifeline.status());
            let node = match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
                Some(crate::machine::Stage::Live(node)) => {
                    let status = node.status(now_ms);
                    format!(
                        "{:?} in view {} of {} owed {}, hears {:?}, register {:?}, blocked {:?}",
                        status.membership.state,
                        node.view().view,
                        node.view().members.len(),
                        node.view().owed.len(),
                        status
                            .membership
                            .peers
                            .iter()
                            .map(|peer| (peer.slot.0, peer.is_heard, peer.beat_age_ms, peer.verdict))
                            .collect::<Vec<_>>(),
                        status.register.phase,
                        status.blocked
                    )
                }
                Some(other) => format!("daemon {}", other.name()),
                None => "no daemon".into(),
            };
            text.push(format!("{} (on: {}, sbd: {:?}): {node}", machine.name, machine.is_on, sbd.map(|status| status.phase)));
        }
        let cuts: Vec<_> = self.network.cuts().collect();
        format!("{}; cuts {cuts:?}", text.join("; "))
    }
}
