//! What: what goes wrong, and how it ends.
//! Owns: when faults come, the choice of their kinds by weight, the end of each, the end of all.
//! Invariants: every fault that ends by itself is ended; in the calm phase none begins, and only whoever ends them all ends any.
//! Does not: know what a fault should lead to.
//! Called by: the world.

mod clocks;
mod data;
mod liar;
mod machines;
mod network;
mod paths;
mod unfair;

use crate::{
    disk::Disk,
    machine::{PROCESSES, Process},
    plan::Plan,
    random::{Random, mix},
    world::{Event, World},
};
pub use data::Rotten;
use std::collections::BTreeSet;

/// When faults come and which of them happen. Each draws from a generator of its own: leaving one out moves no other.
#[derive(Debug)]
pub struct Faults {
    schedule: Random,
    own: Random,
    number: u64,
    only: Option<BTreeSet<u64>>,
    /// Two of four superblock copies stay what they are: the even ones or the odd ones.
    spared_copies: usize,
}

impl Faults {
    /// Those of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let schedule = plan.random(0xfa17);
        Self { own: schedule.clone(), schedule, number: 0, only: plan.faults.clone(), spared_copies: plan.random(0x5b).index(2) }
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
#[derive(Clone, Debug)]
pub enum Ending {
    /// These directions heal.
    Heal(Vec<(usize, usize)>),
    /// It goes on: these directions are cut (again).
    Cut(Vec<(usize, usize)>),
    /// It goes on: this node loses every path, too, for that long.
    Lose(usize, u64),
    /// A path answers again.
    Release(usize, usize),
    /// A path is quick again.
    Quicken(usize, usize),
    /// A path works again.
    Mend(usize, usize),
    /// A path shows its device as it is again.
    Straighten(usize, usize),
    /// Processes continue.
    Continue(usize, Vec<Process>),
    /// A guest goes on, with its clock.
    GoOn(usize),
    /// All machines lose power, and the devices are what they were.
    PutBack(Vec<Disk>),
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
    ("cut_pair", World::inject_cut_pair),
    ("disk_read_error", World::inject_read_error),
    ("disk_write_error", World::inject_write_error),
    ("disk_hang_for_ever", World::inject_hang_for_ever),
    ("path_loss", World::inject_path_loss),
    ("disk_lost_for_all", World::inject_lost_for_all),
    ("disk_late", World::inject_late),
    ("disk_stray", World::inject_stray),
    ("crash_at_step", World::inject_crash_at_step),
    ("wall_jump", World::inject_wall_jump),
    ("clock_rate", World::inject_clock_rate),
    ("lost_write", World::inject_lost_write),
    ("lost_ballot", World::inject_lost_ballot),
    ("stray_write", World::inject_stray_write),
    ("stray_read", World::inject_stray_read),
    ("rotten_read", World::inject_rotten_read),
    ("disk_stale", World::inject_stale),
    ("rot", World::inject_rot),
    ("clone", World::inject_clone),
    ("lie", World::inject_lie),
    ("unfair_lost_beats", World::inject_unfair_lost_beats),
    ("unfair_lost_record", World::inject_unfair_lost_record),
    ("unfair_lost_body", World::inject_unfair_lost_body),
    ("unfair_forgotten_ballot", World::inject_unfair_forgotten_ballot),
    ("unfair_stale_votes", World::inject_unfair_stale_votes),
    ("unfair_rot_both_votes", World::inject_unfair_rot_both_votes),
    ("unfair_rot_dead_vote", World::inject_unfair_rot_dead_vote),
    ("unfair_rot_only_copy", World::inject_unfair_rot_only_copy),
    ("unfair_rot_superblocks", World::inject_unfair_rot_superblocks),
    ("unfair_swap", World::inject_unfair_swap),
    ("unfair_old_image", World::inject_unfair_old_image),
    ("unfair_clock_rate", World::inject_unfair_clock_rate),
    ("unfair_clock_jump", World::inject_unfair_clock_jump),
    ("unfair_guest_pause", World::inject_unfair_guest_pause),
    ("unfair_clone", World::inject_unfair_clone),
    ("disk_lost_apart", World::inject_lost_apart),
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
        if self.faults.begin() && !self.is_rewriting() && !self.is_clone_looking() {
            self.inject_one();
        }
        self.plan_fault();
    }

    fn inject_one(&mut self) {
        // Each kind draws as many lots as it weighs, and the smallest of all lots wins: without one kind the others stay what they are.
        let lots = self.faults.own.number();
        let lot = |number: usize, name: &str| {
            let mut random = Random::new(mix(lots ^ number as u64));
            (0..self.options.get(name).unwrap_or(0)).map(|_| random.number()).min()
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
        self.ends_after(span, ending);
    }

    fn ends_after(&mut self, span_us: u64, ending: Ending) {
        self.queue.after(span_us, Event::FaultEnds(ending));
    }

    fn some_machine(&mut self) -> usize {
        self.faults.own.index(self.machines.len())
    }

    /// Two different machines; none where there is only one.
    fn some_pair(&mut self) -> Option<(usize, usize)> {
        let count = self.machines.len();
        let first = self.some_machine();
        (count > 1).then(|| (first, (first + 1 + self.faults.own.index(count - 1)) % count))
    }

    /// Where one device lies, the others are well.
    fn some_device(&mut self) -> usize {
        let drawn = self.faults.own.index(self.disks.len());
        self.liar().unwrap_or(drawn)
    }

    /// The one of three devices that may lie.
    pub(crate) fn liar(&self) -> Option<usize> {
        let liar = usize::try_from(self.options.liar).ok()?.checked_sub(1)?;
        (self.disks.len() == 3).then_some(liar)
    }

    /// A fault ends.
    pub(crate) fn end_fault(&mut self, ending: Ending) {
        match ending {
            Ending::Heal(ways) => ways.into_iter().for_each(|(from, to)| self.heal(from, to)),
            Ending::Cut(ways) => self.cut_all(&ways),
            Ending::Lose(machine, span_us) if !self.is_calm && !self.is_clone_looking() => self.lose_paths(machine, span_us),
            Ending::Lose(..) => {}
            Ending::Release(machine, device) => self.release(machine, device),
            Ending::Quicken(machine, device) => self.machines[machine].paths[device].extra_us = 0,
            Ending::Mend(machine, device) => self.mend(machine, device),
            Ending::Straighten(machine, device) => self.machines[machine].paths[device].detour = None,
            Ending::Continue(machine, processes) => {
                processes.into_iter().for_each(|process| self.continue_process(machine, process));
            }
            Ending::GoOn(machine) => self.guest_goes_on(machine),
            Ending::PutBack(images) => self.put_back(images),
        }
    }

    /// Every fault of these machines and between them ends, also one that would not by itself; those of others stay for good.
    pub(crate) fn end_faults(&mut self, machines: &[usize]) {
        self.is_calm = true;
        self.heal_ways_between(machines);
        self.options.net_loss = 0;
        self.options.net_repeat = 0;
        self.options.net_delay_us = 0;
        self.options.net_replay = 0;
        for machine in machines.iter().copied() {
            for device in 0..self.disks.len() {
                self.mend_path(machine, device);
            }
            if self.machines[machine].clock.is_still() {
                self.guest_goes_on(machine);
            }
            for process in PROCESSES {
                self.continue_process(machine, process);
            }
            self.machines[machine].crash_at_step = None;
        }
        for copy in self.node_count()..self.machines.len() {
            self.switch_off(copy);
        }
    }
}
