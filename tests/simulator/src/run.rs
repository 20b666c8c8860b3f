//! What: one run: a phase with faults; a phase in which a core is healed and all others stay as they are; a phase in which all are healed.
//! Owns: the phases and their verdict; the choice of the core, and of what is wrong with everybody else.
//! Invariants: a run is a function of seed, options and program.
//! Does not: choose seeds or print.
//! Called by: the runner, the tests.

use crate::{
    check::{Violation, live::Verdict},
    machine::PROCESSES,
    panics::caught,
    plan::Plan,
    world::{Event, World},
};
use std::collections::HashSet;

/// Every so many seeds fsck reads the devices at the end.
const FSCK_EVERY: u64 = 8;

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// What was run.
    pub plan: Plan,
    /// Broken promises; none: all held.
    pub violations: Vec<Violation>,
    /// Broken promises that nothing keeps yet, and that are known.
    pub expected: Vec<Violation>,
    /// Hash of the event log.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Faults that came, those left out included.
    pub faults: u64,
    /// Simulated time, us.
    pub simulated_us: u64,
    /// Locks granted; in the world of drop-in fencing: fences that proved their victim gone.
    pub granted: u64,
    /// Views decided; in the world of drop-in fencing: fences.
    pub views: usize,
    /// Fingerprints of distinct states.
    pub states: HashSet<u64>,
    /// Lines for people.
    pub lines: Vec<String>,
}

/// Runs a plan. A panic is a broken promise, too.
#[must_use]
pub fn run(plan: &Plan, is_tracing: bool) -> Outcome {
    if plan.is_fencing {
        return crate::fencing::run(plan, is_tracing);
    }
    let mut world = World::new(plan, is_tracing);
    if let Some(text) = caught(&plan.to_string(), || all_phases(&mut world, plan.seed)) {
        world.add_violation("panic", text);
    }
    let (hash, events) = (world.log.hash(), world.log.events());
    let (states, lines) = std::mem::take(&mut world.log).into_parts();
    Outcome {
        plan: plan.clone(),
        violations: world.violations().to_vec(),
        expected: std::mem::take(&mut world.expected),
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

fn all_phases(world: &mut World, seed: u64) {
    world.power_on();
    world.plan_fault();
    world.run_until(world.options.safety_s * 1_000_000);
    if world.violations().is_empty() && world.options.core == 1 {
        world.check_some_core();
    }
    if world.violations().is_empty() {
        world.check_all();
    }
    if world.violations().is_empty() && seed.is_multiple_of(FSCK_EVERY) {
        world.check_images();
    }
}

/// What stays wrong with a machine outside the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Frozen {
    /// Without power.
    Dead,
    /// Its processes stand still, until its watchdog ends it.
    Paused,
    /// Its paths to the devices hang.
    WithoutDisk,
    /// So, and nobody can reach it.
    Lost,
    /// Nobody can reach it; it has its disk.
    CutOff,
}

impl World {
    /// L1 to L4 for a part of the machines, while all others stay broken.
    fn check_some_core(&mut self) {
        let count = self.node_count();
        let disk_votes = usize::from(self.configuration.disk_votes);
        let least = (count + disk_votes) / 2 + 1;
        let size = self.random.range(least.saturating_sub(disk_votes).max(1) as u64, count as u64);
        let mut core: Vec<usize> = (0..count).collect();
        while core.len() as u64 > size {
            core.remove(self.random.index(core.len()));
        }
        self.note(&format!("--- no fault begins any more; {core:?} are healed, the others stay broken"));
        self.end_faults(&core);
        for machine in 0..count {
            if !core.contains(&machine) {
                self.freeze(machine, &core);
            }
        }
        self.judge_core(&core);
    }

    /// L1 to L4 for all machines.
    fn check_all(&mut self) {
        self.note("--- no fault begins any more, and all are healed");
        let all: Vec<usize> = (0..self.node_count()).collect();
        self.end_faults(&all);
        for machine in std::mem::take(&mut self.frozen) {
            self.queue.after(1, Event::MachineStarts { machine });
        }
        self.judge_core(&all);
    }

    fn judge_core(&mut self, core: &[usize]) {
        if self.check_core(core) == Verdict::NoCore {
            self.note("--- a member outside the core has gone on without it, or nothing can be decided until a person acts");
        }
    }

    fn freeze(&mut self, machine: usize, core: &[usize]) {
        // A single node of the core could not outvote a member that lives and has its disk.
        let members = self.members_in(core);
        let kinds = [Frozen::Dead, Frozen::Paused, Frozen::WithoutDisk, Frozen::Lost, Frozen::CutOff];
        let kind = kinds[self.random.index(if members > 1 { kinds.len() } else { kinds.len() - 1 })];
        self.note(&format!("    {}: {kind:?} for good", self.machines[machine].name));
        if matches!(kind, Frozen::Lost | Frozen::CutOff) {
            for other in (0..self.machines.len()).filter(|other| *other != machine) {
                self.cut(machine, other);
                self.cut(other, machine);
            }
        }
        match kind {
            Frozen::Dead => {
                self.frozen.insert(machine);
                self.end_machine(machine);
            }
            Frozen::Paused => {
                self.frozen.insert(machine);
                self.stop_feeder(machine);
                PROCESSES.into_iter().for_each(|process| self.stop_process(machine, process));
            }
            Frozen::WithoutDisk | Frozen::Lost => self.machines[machine].paths.iter_mut().for_each(|path| path.hangs += 1),
            Frozen::CutOff => {}
        }
    }

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
