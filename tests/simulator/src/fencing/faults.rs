//! What: what goes wrong in a world of drop-in fencing, and how it ends.
//! Owns: when faults come, the choice of their kinds, the end of each, the end of all; who fences whom, and when.
//! Invariants: each fault draws from a generator of its own, so that leaving one out leaves the others what they are and when they come.
//! Does not: hurt a node without a watchdog in a way that only a watchdog ends.
//! Called by: the world.

use super::{
    setup::pick,
    world::{Event, Part, World, slot_of},
};
use crate::{disk::SECTOR_BYTES, plan::Plan, random::Random};
use deadbolt_disk_format::{
    ByteOffset,
    node_record::node_record_fields,
    sbd::{Command, node_offset},
};
use deadbolt_sbd_core::{Opinion, PhaseName};
use std::{collections::BTreeSet, rc::Rc};

/// When faults come, and which of them happen.
#[derive(Debug)]
pub(crate) struct Schedule {
    schedule: Random,
    own: Random,
    pub(crate) number: u64,
    only: Option<BTreeSet<u64>>,
}

impl Schedule {
    pub(crate) fn new(plan: &Plan) -> Self {
        let schedule = plan.random(0xfa17);
        Self { own: schedule.clone(), schedule, number: 0, only: plan.faults.clone() }
    }

    fn begin(&mut self) -> bool {
        self.number += 1;
        self.own = self.schedule.fork();
        self.only.as_ref().is_none_or(|only| only.contains(&self.number))
    }
}

/// How a fault ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Over {
    Release { machine: usize, device: usize, kind: usize },
    Mend { machine: usize, device: usize },
    Quicken { machine: usize, device: usize },
    Straighten { machine: usize, device: usize },
    Resume { machine: usize, part: Part },
    Join { machine: usize },
    Says { machine: usize },
}

const KINDS: &[fn(&mut World, usize)] = &[
    World::inject_hang,
    World::inject_hang,
    World::inject_disk_gone,
    World::inject_disk_gone,
    World::inject_device_gone,
    World::inject_fail,
    World::inject_slow,
    World::inject_stale,
    World::inject_crash,
    World::inject_kill,
    World::inject_pause,
    World::inject_pause,
    World::inject_stop,
    World::inject_loss,
    World::inject_loss,
    World::inject_word,
    World::inject_rot,
];

impl World {
    fn own(&mut self) -> &mut Random {
        &mut self.faults.own
    }

    /// The next fault.
    pub(crate) fn begin_fault(&mut self) {
        if self.is_calm {
            return;
        }
        let happens = self.faults.begin();
        let gap_ms = self.setup.fault_gap_ms;
        let span = self.faults.schedule.range(gap_ms / 4, gap_ms * 2) * 1000;
        self.queue.after(span, Event::Fault);
        if happens {
            let machine = self.faults.own.index(self.machines.len());
            let kind = pick(self.own(), KINDS);
            kind(self, machine);
        }
    }

    fn said(&mut self, machine: usize, what: &str) {
        let text = format!("fault {}: {}: {what}", self.faults.number, self.machines[machine].name);
        self.note(&text);
    }

    fn ends(&mut self, over: Over) {
        let most_ms = self.setup.fault_ms;
        let span = self.own().range(most_ms / 5, most_ms) * 1000;
        self.queue.after(span, Event::Over(over));
    }

    fn hang(&mut self, machine: usize, device: usize, kinds: &[usize]) {
        for kind in kinds {
            self.machines[machine].paths[device].hangs[*kind] += 1;
        }
    }

    fn some_device(&mut self) -> usize {
        let count = self.disks.len();
        self.own().index(count)
    }

    fn inject_hang(&mut self, machine: usize) {
        let device = self.some_device();
        let kinds: &[usize] = pick(self.own(), &[&[0][..], &[1], &[0, 1]]);
        self.said(machine, &format!("device {device} hangs ({kinds:?}: 0 reads, 1 writes)"));
        self.hang(machine, device, kinds);
        kinds.iter().for_each(|kind| self.ends(Over::Release { machine, device, kind: *kind }));
    }

    /// Every path of a machine, and it may be that its cluster goes on, or goes, too.
    fn inject_disk_gone(&mut self, machine: usize) {
        self.said(machine, "all devices hang");
        if self.own().chance(500) {
            self.lose(machine);
            self.ends(Over::Join { machine });
        }
        for device in 0..self.disks.len() {
            self.hang(machine, device, &[0, 1]);
            [0, 1].into_iter().for_each(|kind| self.ends(Over::Release { machine, device, kind }));
        }
    }

    /// One device, for all machines.
    fn inject_device_gone(&mut self, machine: usize) {
        let device = self.some_device();
        self.said(machine, &format!("device {device} hangs for all"));
        for machine in 0..self.machines.len() {
            self.hang(machine, device, &[0, 1]);
            [0, 1].into_iter().for_each(|kind| self.ends(Over::Release { machine, device, kind }));
        }
    }

    fn inject_fail(&mut self, machine: usize) {
        let device = self.some_device();
        self.said(machine, &format!("device {device} fails"));
        self.machines[machine].paths[device].fails = true;
        self.ends(Over::Mend { machine, device });
    }

    fn inject_slow(&mut self, machine: usize) {
        let device = self.some_device();
        let extra_us = self.own().range(20_000, 4_000_000);
        self.said(machine, &format!("device {device} takes {extra_us} us more"));
        self.machines[machine].paths[device].extra_us = extra_us;
        self.ends(Over::Quicken { machine, device });
    }

    /// The stock program does not read its own writes back, and would not see it.
    fn inject_stale(&mut self, machine: usize) {
        let device = self.some_device();
        if self.machines[machine].is_stock {
            return;
        }
        self.said(machine, &format!("reads of device {device} show it as it is now"));
        self.machines[machine].paths[device].stale = Some(Rc::new(self.disks[device].clone()));
        self.ends(Over::Straighten { machine, device });
    }

    fn inject_crash(&mut self, machine: usize) {
        if self.machines[machine].is_on {
            self.said(machine, "loses power");
            self.end_machine(machine);
        }
    }

    /// Its watchdog runs on; the service may be started again in the same boot. The stock program would erase its message then.
    fn inject_kill(&mut self, machine: usize) {
        if !self.machines[machine].setup.has_watchdog {
            return;
        }
        self.said(machine, "the watcher is killed");
        self.end_processes(machine);
        let span = self.own().range(1000, 6_000_000);
        if !self.machines[machine].is_stock {
            self.start_later(machine, span);
        }
    }

    fn inject_pause(&mut self, machine: usize) {
        let parts: &[Part] = pick(self.own(), &[&[Part::Watcher][..], &[Part::Feeder], &[Part::Watcher, Part::Feeder]]);
        if !self.machines[machine].setup.has_watchdog {
            return;
        }
        self.said(machine, &format!("{parts:?} paused"));
        for part in parts {
            self.machines[machine].truth.paused_us = self.queue.now_us();
            self.pause(machine, *part);
            self.ends(Over::Resume { machine, part: *part });
        }
    }

    fn inject_stop(&mut self, machine: usize) {
        self.said(machine, "is stopped cleanly");
        self.stop_watcher(machine);
    }

    fn inject_loss(&mut self, machine: usize) {
        self.said(machine, "is cut off");
        self.lose(machine);
        self.ends(Over::Join { machine });
    }

    fn inject_word(&mut self, machine: usize) {
        let opinion = pick(self.own(), &[Opinion::Unhealthy, Opinion::Unsure, Opinion::Away]);
        self.said(machine, &format!("its corosync says {opinion:?}"));
        self.machines[machine].standing.says = Some(opinion);
        self.ends(Over::Says { machine });
    }

    /// Bits of its record turn on a device; not where it is the last word of a boot that goes on.
    fn inject_rot(&mut self, machine: usize) {
        let device = self.some_device();
        let writes_again = self.machines[machine].watcher.as_ref().is_some_and(|watcher| watcher.life.status().phase == PhaseName::Living);
        if self.machines[machine].is_on && !writes_again {
            return;
        }
        self.said(machine, &format!("its record on device {device} rots"));
        let offset = ByteOffset(node_offset(slot_of(machine), 512));
        let mut sector = self.disks[device].read(offset, SECTOR_BYTES);
        let at = node_record_fields::HEAD.offset + self.own().index(node_record_fields::HEAD.size);
        sector[at] ^= 1 << self.own().below(8);
        self.disks[device].write(offset, &sector);
    }

    pub(crate) fn end_fault(&mut self, over: &Over) {
        match *over {
            Over::Release { machine, device, kind } => self.release(machine, device, kind),
            Over::Mend { machine, device } => self.machines[machine].paths[device].fails = false,
            Over::Quicken { machine, device } => self.machines[machine].paths[device].extra_us = 0,
            Over::Straighten { machine, device } => self.machines[machine].paths[device].stale = None,
            Over::Resume { machine, part } => self.resume(machine, part),
            Over::Join { machine } => self.join(machine),
            Over::Says { machine } => self.machines[machine].standing.says = None,
        }
    }

    /// Nothing begins any more, and all are healed.
    pub(crate) fn end_faults(&mut self) {
        self.is_calm = true;
        self.note("--- no fault begins any more, and all are healed");
        for machine in 0..self.machines.len() {
            for device in 0..self.disks.len() {
                let path = &mut self.machines[machine].paths[device];
                (path.fails, path.extra_us, path.stale) = (false, 0, None);
                for kind in [0, 1] {
                    self.machines[machine].paths[device].hangs[kind] = 0;
                    self.release(machine, device, kind);
                }
            }
            [Part::Watcher, Part::Feeder].into_iter().for_each(|part| self.resume(machine, part));
            self.machines[machine].standing.says = None;
            self.join(machine);
            self.queue.after(1, Event::PowerOn { machine });
        }
    }

    /// Whom its cluster has lost it fences, most of the time.
    pub(crate) fn fence_lost(&mut self, victim: usize) {
        let is_there = |machine: &usize| self.machines[*machine].is_on && !self.machines[*machine].standing.is_lost;
        let others: Vec<usize> = (0..self.machines.len()).filter(|machine| *machine != victim).filter(is_there).collect();
        if !self.is_calm && self.machines[victim].standing.is_lost && !others.is_empty() && self.random.chance(600) {
            let machine = pick(&mut self.random, &others);
            self.fence(machine, victim, Command::Reset, None);
        }
    }

    /// Somebody is sent a message, and by more than one at times.
    pub(crate) fn plan_fence(&mut self) {
        if self.is_calm {
            return;
        }
        let count = self.machines.len();
        let gap_ms = self.setup.fence_gap_ms;
        let span = self.random.range(gap_ms / 4, gap_ms * 2) * 1000;
        self.queue.after(span, Event::Fence);
        let victim = self.random.index(count);
        let on: Vec<usize> = (0..count).filter(|machine| *machine != victim && self.machines[*machine].is_on).collect();
        if on.is_empty() {
            return;
        }
        for _ in 0..self.random.range(1, 2) {
            let machine = pick(&mut self.random, &on);
            let command = pick(&mut self.random, &[Command::Reset, Command::Reset, Command::Off]);
            match self.random.below(10) {
                0 => self.send_stock(machine, victim, pick(&mut self.random.clone(), &[Command::Clear, Command::Test])),
                1 | 2 => self.send_stock(machine, victim, command),
                _ => self.fence(machine, victim, command, None),
            }
        }
    }
}
