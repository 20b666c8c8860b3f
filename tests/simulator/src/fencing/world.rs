//! What: the world of drop-in fencing: machines, devices, time, and who is told what happens.
//! Owns: the events and their order; power, processes, pauses of machines.
//! Invariants: an event for a process or a boot that is over changes nothing; a paused process sees its events when it continues.
//! Does not: decide anything that the machines decide.
//! Called by: the run.

use super::{
    check::Truth,
    io::{Operation, Path},
    sender::Sender,
    setup::{NodeSetup, Setup},
    stock::{StockSender, StockWatcher},
    watcher::{Tried, Watcher},
};
use crate::{
    check::Violation,
    clock::Clock,
    disk::{Disk, boot_id},
    log::Log,
    machine::{Feeder, Watchdog},
    plan::Plan,
    queue::Queue,
    random::{Random, mix},
};
use deadbolt_disk_format::{BootId, SlotIndex};
use deadbolt_sbd_core::{BeatVersion, Opinion};
use std::collections::BTreeMap;

/// Number of a process; never used twice in a run.
pub(crate) type Pid = u64;

/// What can be paused by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Part {
    Watcher,
    Feeder,
}

#[derive(Debug)]
pub(crate) enum Event {
    Land(u64),
    Complete(u64),
    LandLate(u64),
    PowerOn { machine: usize },
    Ends { machine: usize, boot: u64 },
    StartWatcher { machine: usize, boot: u64 },
    Tried { machine: usize, pid: Pid },
    TrialOver { machine: usize, pid: Pid },
    Turn { machine: usize, pid: Pid },
    Answered { machine: usize, pid: Pid, operation: Box<Operation> },
    Feeder { machine: usize, pid: Pid },
    Watchdog { machine: usize, boot: u64, look: u64 },
    Ask { machine: usize, pid: Pid },
    Report { machine: usize, pid: Pid, opinion: Opinion, as_of_ms: u64 },
    Stock { machine: usize, pid: Pid, device: Option<usize> },
    StockSent { pid: Pid },
    Sender { pid: Pid },
    Thread { pid: Pid, device: usize, tag: u64 },
    AskCluster { pid: Pid },
    ClusterSays { pid: Pid, ring: Option<u64> },
    Fence,
    FenceLost { victim: usize },
    Fault,
    Over(super::faults::Over),
}

/// What corosync makes of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// The others have lost it.
    pub(crate) is_lost: bool,
    /// From then on it knows that itself, true us.
    pub(crate) known_us: u64,
    /// Its own corosync calls it no member, whatever the others say, or does not answer at all.
    pub(crate) says: Option<Opinion>,
    /// No change before that, true us: a membership lasts for a while.
    pub(crate) steady_until_us: u64,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) setup: NodeSetup,
    pub(crate) name: String,
    pub(crate) clock: Clock,
    pub(crate) boot: u64,
    pub(crate) is_on: bool,
    pub(crate) stays_off: bool,
    /// The stock program watches now.
    pub(crate) is_stock: bool,
    /// Since when devices are looked for, local ms.
    pub(crate) looking_ms: Option<u64>,
    pub(crate) tried: Option<Tried>,
    pub(crate) watcher: Option<Watcher>,
    pub(crate) stock: Option<StockWatcher>,
    pub(crate) feeder: Option<Feeder>,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) paths: Vec<Path>,
    pub(crate) paused: BTreeMap<Part, Vec<Event>>,
    /// What its watcher saw of other nodes in this boot.
    pub(crate) seen: BTreeMap<(usize, SlotIndex), (BeatVersion, u64)>,
    pub(crate) standing: Standing,
    pub(crate) truth: Truth,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) queue: Queue<Event>,
    pub(crate) random: Random,
    pub(crate) log: Log,
    pub(crate) disks: Vec<Disk>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) operations: BTreeMap<u64, Operation>,
    pub(crate) senders: BTreeMap<Pid, Sender>,
    pub(crate) stock_senders: BTreeMap<Pid, StockSender>,
    pub(crate) next_number: u64,
    /// Number of corosync's membership.
    pub(crate) ring: u64,
    pub(crate) faults: super::faults::Schedule,
    pub(crate) is_calm: bool,
    pub(crate) asked: u64,
    pub(crate) proved: u64,
    pub(crate) found: Vec<Violation>,
    #[cfg(feature = "planted")]
    pub(crate) mistake: Option<crate::planted::Planted>,
}

/// The slot of a machine: one for each, as `allocate` gives them.
pub(crate) fn slot_of(machine: usize) -> SlotIndex {
    SlotIndex(u16::try_from(machine).unwrap_or(u16::MAX))
}

impl World {
    pub(crate) fn new(plan: &Plan, is_tracing: bool) -> Self {
        let setup = Setup::drawn(plan.random(0xfe2ce));
        let mut random = plan.random(0x0dd5);
        let names: Vec<String> = (0..setup.nodes.len()).map(|number| format!("n{number}")).collect();
        let disks = (0..setup.devices).map(|device| Disk::stock(&setup.header(device), &names)).collect();
        let machine = |(node, name): (&NodeSetup, String)| Machine {
            setup: *node,
            name,
            clock: Clock::new(0, 1_000_000 + random.below(100_000_000), node.rate_ppm),
            boot: 0,
            is_on: false,
            stays_off: false,
            is_stock: node.is_stock,
            looking_ms: None,
            tried: None,
            watcher: None,
            stock: None,
            feeder: None,
            watchdog: None,
            paths: (0..setup.devices).map(|_| Path::default()).collect(),
            paused: BTreeMap::new(),
            seen: BTreeMap::new(),
            standing: Standing::default(),
            truth: Truth::default(),
        };
        let machines = setup.nodes.iter().zip(names).map(machine).collect();
        let mut world = Self {
            queue: Queue::default(),
            random,
            log: Log::new(is_tracing),
            disks,
            machines,
            operations: BTreeMap::new(),
            senders: BTreeMap::new(),
            stock_senders: BTreeMap::new(),
            next_number: 0,
            ring: 1,
            faults: super::faults::Schedule::new(plan),
            is_calm: false,
            asked: 0,
            proved: 0,
            found: Vec::new(),
            #[cfg(feature = "planted")]
            mistake: crate::planted::mistake_of(plan.options.mistake),
            setup,
        };
        world.note(&format!("{:?}", world.setup.clone()));
        world
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.fingerprint();
        self.log.line(self.queue.now_us(), text);
    }

    pub(crate) fn breaks(&mut self, promise: &'static str, what: String) {
        let at_us = self.queue.now_us();
        self.log.line(at_us, &format!("BROKEN {promise}: {what}"));
        self.found.push(Violation { promise, what, at_us });
    }

    pub(crate) fn new_pid(&mut self) -> Pid {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn local_ms(&self, machine: usize) -> u64 {
        self.machines[machine].clock.ms(self.queue.now_us())
    }

    /// An event at an instant of a machine's clock.
    pub(crate) fn at_local(&mut self, machine: usize, local_ms: u64, event: Event) {
        let at_us = self.machines[machine].clock.when(self.queue.now_us(), local_ms);
        self.queue.at(at_us, event);
    }

    pub(crate) fn boot_id(&self, machine: usize) -> BootId {
        boot_id(machine, self.machines[machine].boot)
    }

    /// Runs until an instant, or until a promise is broken.
    pub(crate) fn run_until(&mut self, end_us: u64) {
        while self.found.is_empty()
            && let Some(event) = self.queue.next_until(end_us)
        {
            self.handle(event);
        }
    }

    fn paused_part(&self, event: &Event) -> Option<(usize, Part)> {
        let (machine, part) = match event {
            Event::Turn { machine, .. }
            | Event::Answered { machine, .. }
            | Event::Tried { machine, .. }
            | Event::Report { machine, .. } => (*machine, Part::Watcher),
            Event::Stock { machine, .. } => (*machine, Part::Watcher),
            Event::Feeder { machine, .. } => (*machine, Part::Feeder),
            _ => return None,
        };
        self.machines[machine].paused.contains_key(&part).then_some((machine, part))
    }

    fn handle(&mut self, event: Event) {
        if let Some((machine, part)) = self.paused_part(&event) {
            self.machines[machine].paused.entry(part).or_default().push(event);
            return;
        }
        self.log.event(self.queue.now_us(), 0);
        match event {
            Event::Land(number) => self.land(number),
            Event::Complete(number) => self.complete(number),
            Event::LandLate(number) => self.land_late(number),
            Event::PowerOn { machine } => self.power_on(machine),
            Event::Ends { machine, boot } => {
                if self.machines[machine].is_on && self.machines[machine].boot == boot {
                    self.end_machine(machine);
                }
            }
            Event::StartWatcher { machine, boot } => {
                if self.machines[machine].is_on && self.machines[machine].boot == boot {
                    self.start_watcher(machine);
                }
            }
            Event::Tried { machine, pid } => self.go_on(machine, pid),
            Event::TrialOver { machine, pid } => self.end_trial(machine, pid),
            Event::Turn { machine, pid } => self.watcher_planned(machine, pid),
            Event::Answered { machine, pid, operation } => self.watcher_takes(machine, pid, *operation),
            Event::Feeder { machine, pid } => self.feeder_turn(machine, pid),
            Event::Watchdog { machine, boot, look } => self.look_at_watchdog(machine, boot, look),
            Event::Ask { machine, pid } => self.ask_servant(machine, pid),
            Event::Report { machine, pid, opinion, as_of_ms } => self.take_report(machine, pid, opinion, as_of_ms),
            Event::Stock { machine, pid, device } => self.stock_turn(machine, pid, device),
            Event::StockSent { pid } => self.stock_sender_ends(pid),
            Event::Sender { pid } => self.sender_turn(pid),
            Event::Thread { pid, device, tag } => self.thread_due(pid, device, tag),
            Event::AskCluster { pid } => self.ask_cluster(pid),
            Event::ClusterSays { pid, ring } => self.cluster_says(pid, ring),
            Event::Fence => self.plan_fence(),
            Event::FenceLost { victim } => self.fence_lost(victim),
            Event::Fault => self.begin_fault(),
            Event::Over(over) => self.end_fault(&over),
        }
    }

    /// A fingerprint of where everybody stands, for a count of distinct states.
    fn fingerprint(&mut self) {
        let one = |sum: u64, place: &Machine| {
            let life = place.watcher.as_ref().map_or(0, |watcher| 1 + watcher.life.status().phase as u64);
            let hangs = place.paths.iter().fold(0, |sum, path| sum * 8 + u64::from(path.hangs[0].min(1) + 2 * path.hangs[1].min(1)));
            let flags = [place.is_on, place.is_stock, place.standing.is_lost, place.feeder.is_some(), place.watchdog.is_some()];
            let bits = flags.iter().fold(place.paused.len() as u64, |sum, flag| sum * 2 + u64::from(*flag));
            mix(sum ^ mix(life + 16 * bits + 4096 * hangs))
        };
        let sum = self.machines.iter().fold(self.senders.len() as u64, one);
        self.log.state(sum);
    }

    // Power, processes.

    pub(crate) fn power_on(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        if place.is_on || (place.stays_off && !self.is_calm) {
            return;
        }
        place.boot += 1;
        (place.is_on, place.stays_off) = (true, false);
        let text = format!("{}: on, boot {}", place.name, place.boot);
        self.note(&text);
        let span = self.random.range(100_000, 2_000_000);
        self.start_later(machine, span);
    }

    /// The watcher of this boot is started after a span.
    pub(crate) fn start_later(&mut self, machine: usize, span_us: u64) {
        let boot = self.machines[machine].boot;
        self.queue.after(span_us, Event::StartWatcher { machine, boot });
    }

    pub(crate) fn end_machine(&mut self, machine: usize) {
        self.check_end(machine);
        self.end_processes(machine);
        self.orphan_operations(machine);
        let gone: Vec<Pid> = self.senders.iter().filter(|(_, sender)| sender.machine == machine).map(|(pid, _)| *pid).collect();
        gone.iter().for_each(|pid| drop(self.senders.remove(pid)));
        self.stock_senders.retain(|_, sender| sender.machine != machine);
        let place = &mut self.machines[machine];
        place.is_on = false;
        place.watchdog = None;
        place.seen.clear();
        let text = format!("{}: boot {} is over", place.name, place.boot);
        self.note(&text);
        self.lose(machine);
        let span = self.random.range(100, self.setup.reboot_ms) * 1000;
        self.queue.after(span, Event::PowerOn { machine });
    }

    /// All processes of the watcher are gone; the watchdog is not.
    pub(crate) fn end_processes(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        (place.watcher, place.stock, place.feeder, place.tried, place.looking_ms) = (None, None, None, None, None);
        place.paused.clear();
    }

    pub(crate) fn pause(&mut self, machine: usize, part: Part) {
        if part == Part::Feeder {
            self.stop_feeder(machine);
        }
        self.machines[machine].paused.entry(part).or_default();
    }

    pub(crate) fn resume(&mut self, machine: usize, part: Part) {
        for event in self.machines[machine].paused.remove(&part).unwrap_or_default() {
            self.queue.after(1, event);
        }
    }

    // The cluster manager beside sbd.

    /// The others lose a machine.
    pub(crate) fn lose(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        if self.machines[machine].standing.is_lost || now_us < self.machines[machine].standing.steady_until_us {
            return;
        }
        self.ring += 1;
        let notice_ms = u64::from(self.machines[machine].setup.notice_ms.max(1000));
        let span_us = self.machines[machine].clock.span_us(self.random.below(notice_ms));
        let standing = &mut self.machines[machine].standing;
        (standing.is_lost, standing.known_us, standing.steady_until_us) = (true, now_us + span_us, now_us + 2_000_000);
        let text = format!("{}: lost by its cluster", self.machines[machine].name);
        self.note(&text);
        let span = self.random.below(3_000_000);
        self.queue.after(span, Event::FenceLost { victim: machine });
    }

    pub(crate) fn join(&mut self, machine: usize) {
        let standing = &mut self.machines[machine].standing;
        if standing.is_lost {
            standing.is_lost = false;
            self.ring += 1;
        }
    }
}
