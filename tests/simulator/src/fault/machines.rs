//! What: faults of machines and processes: deaths, pauses, clean stops.
//! Owns: who dies or stops, and which process continues when.
//! Invariants: what ends here ends as it would: a machine with everything on it, a process with its descriptors.
//! Does not: start anything again; the world and the supervisor do.
//! Called by: the table of faults.

use super::Ending;
use crate::{
    machine::{Machine, PROCESSES, Process},
    world::{World, new_machine},
};
use deadbolt_cluster::node::NodeInput;
use deadbolt_sbd_core::PhaseName;

/// Longest way, in steps of its disk and network work, to a crash at a step.
const STEPS_MOST: u64 = 30;

impl World {
    pub(super) fn inject_crash(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{} loses power", self.machines[machine].name));
        self.end_machine(machine);
    }

    /// At an instant at which something has just landed, come back or arrived there.
    pub(super) fn inject_crash_at_step(&mut self) {
        let machine = self.some_machine();
        let steps = self.faults.own.range(1, STEPS_MOST);
        self.note_fault(&format!("{} loses power at its step {steps} from now", self.machines[machine].name));
        self.machines[machine].crash_at_step = Some(steps);
    }

    pub(super) fn inject_power_all(&mut self) {
        self.note_fault("all lose power");
        (0..self.machines.len()).for_each(|machine| self.end_machine(machine));
    }

    pub(super) fn inject_kill_daemon(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{}: the daemon is killed", self.machines[machine].name));
        self.exit_daemon(machine, crate::daemon::EXIT_KILLED);
    }

    pub(super) fn inject_kill_sbd(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{}: sbd is killed", self.machines[machine].name));
        self.kill_sbd(machine);
    }

    /// sbd dies, with its feeder.
    pub(crate) fn kill_sbd(&mut self, machine: usize) {
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

    pub(super) fn inject_kill_client(&mut self) {
        let machine = self.some_machine();
        let pids: Vec<u64> = self.machines[machine].clients.keys().copied().collect();
        if let Some(pid) = pids.get(self.faults.own.index(pids.len())).copied() {
            self.note_fault(&format!("{}: client {pid} is killed", self.machines[machine].name));
            self.kill_client(machine, pid);
        }
    }

    fn pause(&mut self, machine: usize, processes: &[Process]) {
        self.note_fault(&format!("{}: {processes:?} stopped", self.machines[machine].name));
        processes.iter().for_each(|process| self.pause_process(machine, *process));
        self.ends(Ending::Continue(machine, processes.to_vec()));
    }

    /// Stops a process; a feeder, it may be, after its check.
    pub(crate) fn pause_process(&mut self, machine: usize, process: Process) {
        if process == Process::Feeder {
            self.stop_feeder(machine);
        }
        self.stop_process(machine, process);
    }

    pub(super) fn inject_pause_node(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &PROCESSES);
    }

    pub(super) fn inject_pause_daemon(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Daemon]);
    }

    pub(super) fn inject_pause_sbd(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Sbd]);
    }

    pub(super) fn inject_pause_feeder(&mut self) {
        let machine = self.some_machine();
        self.pause(machine, &[Process::Feeder]);
    }

    pub(super) fn inject_stop(&mut self) {
        let machine = self.some_machine();
        self.note_fault(&format!("{} is stopped cleanly", self.machines[machine].name));
        self.machines[machine].restart_ms = self.faults.own.range(100, self.options.reboot_ms.max(100));
        self.stop_cleanly(machine);
    }

    /// As `deadbolt stop` does.
    pub(crate) fn stop_cleanly(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        if !place.is_on || place.is_stopping || place.is_stopped(Process::Daemon) {
            return;
        }
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

    /// A copy of a node that lives and beats is switched on: it has to see that, and to leave the slot alone.
    pub(super) fn inject_clone(&mut self) {
        let living: Vec<usize> = (0..self.machines.len()).filter(|machine| self.is_living(*machine)).collect();
        if let Some(original) = living.get(self.faults.own.index(living.len())).copied() {
            self.clone_machine(original);
        }
    }

    /// Switches a second machine on that has everything of the first but its clock. There is one at a time.
    pub(super) fn clone_machine(&mut self, original: usize) {
        let clone = self.machines.iter().position(|machine| machine.is_clone);
        if self.machines[original].is_clone || clone.is_some_and(|clone| self.machines[clone].is_on) {
            return;
        }
        self.note_fault(&format!("{}: a copy is switched on", self.machines[original].name));
        let (mut random, mut walls) = (self.faults.own.fork(), self.faults.own.fork());
        let mut copy = new_machine((&mut random, &mut walls), &self.options, original, &self.machines[original].name);
        copy.is_clone = true;
        let number = clone.unwrap_or(self.machines.len());
        if let Some(known) = self.machines.get_mut(number) {
            copy.boot_number = known.boot_number;
            *known = copy;
        } else {
            self.machines.push(copy);
        }
        self.has_clones = true;
        self.start_machine(number);
    }

    /// Does a copy look whether its slot is in use? Nothing else happens meanwhile: who is not seen to beat may be taken for dead.
    pub(super) fn is_clone_looking(&self) -> bool {
        let is_opening = |machine: &Machine| machine.sbd.as_ref().is_some_and(|sbd| sbd.lifeline.status().phase == PhaseName::Opening);
        self.options.unfair_clone == 0 && self.machines.iter().any(|machine| machine.is_clone && is_opening(machine))
    }
}
