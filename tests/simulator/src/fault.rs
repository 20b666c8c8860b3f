//! What: what goes wrong, and how it ends.
//! Owns: the choice of faults by their weights, the healing of each.
//! Invariants: every fault that ends by itself is ended; in the calm phase none begins.
//! Does not: know what a fault should lead to.
//! Called by: the world.

use crate::{
    machine::{PROCESSES, Process},
    plan::Plan,
    random::{Random, mix},
    world::{Event, World},
};
use deadbolt_cluster::node::NodeInput;
use std::collections::BTreeSet;

/// When faults come and which of them happen. Each draws from a generator of its own: leaving one out moves no other.
#[derive(Debug)]
pub struct Faults {
    schedule: Random,
    own: Random,
    number: u64,
    only: Option<BTreeSet<u64>>,
}

impl Faults {
    /// Those of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let schedule = plan.random(0xfa17);
        Self { own: schedule.clone(), schedule, number: 0, only: plan.faults.clone() }
    }

    /// How many have come so far, those left out included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.number
    }

    /// The next fault; does it happen?
    fn begin(&mut self) -> bool {
        self.number += 1;
        self.own = self.schedule.fork();
        self.only.as_ref().is_none_or(|only| only.contains(&self.number))
    }
}

/// How a fault ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// These directions heal.
    Heal(Vec<(usize, usize)>),
    /// These directions are cut and healed again, so many times.
    Flap(Vec<(usize, usize)>, u32),
    /// A path answers again.
    Release(usize, usize),
    /// A path is quick again.
    Quicken(usize, usize),
    /// A path works again.
    Mend(usize, usize),
    /// Processes continue.
    Continue(usize, Vec<Process>),
}

type Inject = fn(&mut World);

/// New ones go to the end, so that seeds keep theirs.
const FAULTS: &[(&str, Inject)] = &[
    ("cut", World::inject_cut),
    ("cut_one_way", World::inject_cut_one_way),
    ("flap", World::inject_flap),
    ("clog", World::inject_clog),
    ("disk_slow", World::inject_slow),
    ("disk_hang", World::inject_hang),
    ("disk_hang_all", World::inject_hang_all),
    ("disk_error", World::inject_error),
    ("crash", World::inject_crash),
    ("kill_daemon", World::inject_kill_daemon),
    ("kill_sbd", World::inject_kill_sbd),
    ("kill_client", World::inject_kill_client),
    ("pause_node", World::inject_pause_node),
    ("pause_daemon", World::inject_pause_daemon),
    ("pause_sbd", World::inject_pause_sbd),
    ("pause_feeder", World::inject_pause_feeder),
    ("stop_node", World::inject_stop),
    ("power_all", World::inject_power_all),
];

impl World {
    /// Plans the next fault.
    pub(crate) fn plan_fault(&mut self) {
        if self.options.fault_gap_ms > 0 {
            let span = self.faults.schedule.below(2 * self.options.fault_gap_ms * 1000 + 1);
            self.queue.after(span, Event::Fault);
        }
    }

    /// Lets one fault happen, and plans the next.
    pub(crate) fn inject(&mut self) {
        if self.is_calm {
            return;
        }
        if self.faults.begin() {
            self.inject_one();
            self.remember_state();
        }
        self.plan_fault();
    }

    fn inject_one(&mut self) {
        // Each kind draws as many lots as it weighs, and the smallest of all lots wins: without one kind the others stay what they are.
        let lots = self.faults.own.next();
        let lot = |number: usize, name: &str| {
            let mut random = Random::new(mix(lots ^ number as u64));
            (0..self.options.get(name).unwrap_or(0)).map(|_| random.next()).min()
        };
        let kinds = FAULTS.iter().enumerate();
        let chosen = kinds.filter_map(|(number, (name, inject))| Some((lot(number, name)?, inject))).min_by_key(|(lot, _)| *lot);
        if let Some((_, inject)) = chosen {
            inject(self);
        }
    }

    fn note_fault(&mut self, text: &str) {
        self.note(&format!("fault {}: {text}", self.faults.number));
    }

    fn span_us(&mut self) -> u64 {
        self.faults.own.range(1, self.options.fault_ms * 1000)
    }

    fn ends(&mut self, ending: Ending) {
        let span = self.span_us();
        self.queue.after(span, Event::FaultEnds(ending));
    }

    fn some_machine(&mut self) -> usize {
        self.faults.own.index(self.machines.len())
    }

    fn some_device(&mut self) -> usize {
        self.faults.own.index(self.disks.len())
    }

    fn cut_all(&mut self, ways: &[(usize, usize)]) {
        ways.iter().for_each(|(from, to)| self.cut(*from, *to));
    }

    fn inject_cut(&mut self) {
        let count = self.machines.len();
        let side: Vec<bool> = (0..count).map(|_| self.faults.own.chance(500)).collect();
        let ways: Vec<(usize, usize)> =
            (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| side[*a] != side[*b]).collect();
        let names: Vec<&str> = (0..count).filter(|index| side[*index]).map(|index| self.machines[index].name.as_str()).collect();
        self.note_fault(&format!("{{{}}} cut off from the others", names.join(" ")));
        self.cut_all(&ways);
        self.ends(Ending::Heal(ways));
    }

    fn one_way(&mut self) -> Vec<(usize, usize)> {
        let (from, to) = (self.some_machine(), self.some_machine());
        if from == to { Vec::new() } else { vec![(from, to)] }
    }

    fn inject_cut_one_way(&mut self) {
        let ways = self.one_way();
        self.note_fault(&format!("one way is cut: {ways:?}"));
        self.cut_all(&ways);
        self.ends(Ending::Heal(ways));
    }

    fn inject_flap(&mut self) {
        let mut ways = self.one_way();
        if self.faults.own.chance(500) {
            ways.extend(ways.clone().into_iter().map(|(from, to)| (to, from)));
        }
        let times = u32::try_from(self.faults.own.range(2, 20)).unwrap_or(2);
        self.note_fault(&format!("flaps {times} times: {ways:?}"));
        self.cut_all(&ways);
        self.ends(Ending::Flap(ways, times));
    }

    fn inject_clog(&mut self) {
        let count = self.machines.len();
        self.note_fault("every way is clogged and opened again");
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                self.cut(from, to);
                self.ends(Ending::Heal(vec![(from, to)]));
            }
        }
    }

    fn inject_slow(&mut self) {
        let (machine, device) = (self.some_machine(), self.some_device());
        let extra_us = self.faults.own.below(self.options.stall_ms * 1000);
        self.note_fault(&format!("{}: device {device} takes up to {} ms more", self.machines[machine].name, extra_us / 1000));
        self.machines[machine].paths[device].extra_us = extra_us;
        self.ends(Ending::Quicken(machine, device));
    }

    fn inject_hang(&mut self) {
        let (machine, device) = (self.some_machine(), self.some_device());
        self.note_fault(&format!("{}: device {device} hangs", self.machines[machine].name));
        self.machines[machine].paths[device].is_hung = true;
        self.ends(Ending::Release(machine, device));
    }

    fn inject_hang_all(&mut self) {
        let device = self.some_device();
        self.note_fault(&format!("device {device} hangs for all"));
        for machine in 0..self.machines.len() {
            self.machines[machine].paths[device].is_hung = true;
            self.ends(Ending::Release(machine, device));
        }
    }

    fn inject_error(&mut self) {
        let (machine, device) = (self.some_machine(), self.some_device());
        self.note_fault(&format!("{}: device {device} answers with errors", self.machines[machine].name));
        self.machines[machine].paths[device].is_failing = true;
        self.ends(Ending::Mend(machine, device));
    }

    fn inject_crash(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{} loses power", self.machines[machine].name));
        self.end_machine(machine);
    }

    fn inject_power_all(&mut self) {
        self.note_fault("all lose power");
        (0..self.machines.len()).for_each(|machine| self.end_machine(machine));
    }

    fn inject_kill_daemon(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{}: the daemon is killed", self.machines[machine].name));
        self.exit_daemon(machine, crate::daemon::EXIT_KILLED);
    }

    fn inject_kill_sbd(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{}: sbd is killed", self.machines[machine].name));
        let is_process = self.options.process_watchdog == 1;
        let place = &mut self.machines[machine];
        if place.sbd.is_none() {
            return;
        }
        let was_armed = place.watchdog.is_some();
        place.sbd = None;
        place.feeder = None;
        if is_process && was_armed {
            // The supervisor sees it at once.
            self.end_machine(machine);
        } else if !was_armed {
            // It ended before it armed anything: the start has failed, and is tried again.
            self.end_machine(machine);
        }
    }

    fn inject_kill_client(&mut self) {
        let machine = self.some_machine();
        let pids: Vec<u64> = self.machines[machine].clients.keys().copied().collect();
        if let Some(pid) = pids.get(self.faults.own.index(pids.len())).copied() {
            self.note_fault(&format!("{}: client {pid} is killed", self.machines[machine].name));
            self.kill_client(machine, pid);
        }
    }

    fn pause(&mut self, machine: usize, processes: &[Process]) {
        self.note_fault(&format!("{}: {processes:?} stopped", self.machines[machine].name));
        if processes.contains(&Process::Feeder) {
            self.stop_feeder(machine);
        }
        processes.iter().for_each(|process| self.stop_process(machine, *process));
        self.ends(Ending::Continue(machine, processes.to_vec()));
    }

    fn inject_pause_node(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &PROCESSES);
    }

    fn inject_pause_daemon(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Daemon]);
    }

    fn inject_pause_sbd(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Sbd]);
    }

    fn inject_pause_feeder(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Feeder]);
    }

    fn inject_stop(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{} is stopped cleanly", self.machines[machine].name));
        let restart_ms = self.faults.own.range(100, self.options.reboot_ms.max(100));
        let place = &mut self.machines[machine];
        if !place.is_on || place.is_stopping || place.is_stopped(Process::Daemon) {
            return;
        }
        place.restart_ms = restart_ms;
        place.is_stopping = true;
        match place.daemon.as_mut() {
            Some(daemon) => {
                daemon.is_stopping = true;
                // Clients first: the daemon cannot record left while they hold something.
                let pids: Vec<u64> = place.clients.keys().copied().collect();
                pids.into_iter().for_each(|pid| self.kill_client(machine, pid));
                self.node_give(machine, NodeInput::Stop);
            }
            None => self.ask_sbd_to_stop(machine),
        }
    }

    /// A fault ends.
    pub(crate) fn end_fault(&mut self, ending: Ending) {
        match ending {
            Ending::Heal(ways) => ways.into_iter().for_each(|(from, to)| self.heal(from, to)),
            Ending::Flap(ways, times) => {
                for (from, to) in &ways {
                    if times % 2 == 0 {
                        self.heal(*from, *to);
                    } else {
                        self.cut(*from, *to);
                    }
                }
                if times > 1 || times % 2 == 1 {
                    self.ends(Ending::Flap(ways, times.saturating_sub(1)));
                }
            }
            Ending::Release(machine, device) => self.release(machine, device),
            Ending::Quicken(machine, device) => self.machines[machine].paths[device].extra_us = 0,
            Ending::Mend(machine, device) => self.machines[machine].paths[device].is_failing = false,
            Ending::Continue(machine, processes) => {
                processes.into_iter().for_each(|process| self.continue_process(machine, process));
            }
        }
    }
}
