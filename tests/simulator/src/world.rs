//! What: the simulated world: machines, disks, network, and the loop that lets one event happen after the other.
//! Owns: true time, chance, everything that exists; the beginning and the end of machines.
//! Invariants: one thread, one seed; the same options give the same run, event by event.
//! Does not: inject faults (`fault.rs`), judge (`check/`).
//! Called by: `run.rs`.

use crate::{
    check::{Facts, Violation},
    clock::Clock,
    disk::Disk,
    fault::{Faults, Rotten},
    io::Operation,
    log::Log,
    machine::{Machine, Page, Path, Pid, Process, SbdState},
    net::Network,
    options::Options,
    plan::Plan,
    queue::Queue,
    random::{Random, mix},
};
use deadbolt_cluster::seal::ClusterKey;
use deadbolt_cluster_core::{
    membership::default_disk_votes,
    timing::{DRIVERS, Driver, UNKNOWN_DRIVER, Wishes, derive},
};
use deadbolt_disk_format::{ClusterUuid, Configuration, NodeEntry, SlotIndex, Timings};
use deadbolt_dlm_core::{ClientReply, ClientRequest};
use deadbolt_sbd::pill::PillKey;
use std::collections::{BTreeMap, BTreeSet};

/// Something that happens.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is what its handler's doc says")]
pub enum Event {
    SbdTurn { machine: usize, pid: Pid },
    SbdDisk(Box<Operation>),
    FeederTurn { machine: usize, pid: Pid },
    Watchdog { machine: usize, boot: u64, look: u64 },
    MachineEnds { machine: usize, boot: u64 },
    MachineStarts { machine: usize },
    DaemonLook { machine: usize, pid: Pid },
    DaemonTick { machine: usize, pid: Pid },
    DaemonDisk(Box<Operation>),
    PageRung { machine: usize, pid: Pid },
    RestartDaemon { machine: usize, boot: u64 },
    Land(u64),
    LandLate(u64),
    Complete(u64),
    Datagram { machine: usize, frame: Vec<u8> },
    Connect { machine: usize, pid: Pid, epoch: u64 },
    Connected { connection: u64, end: usize },
    Frame { connection: u64, end: usize },
    Broken { connection: u64, end: usize },
    CutLasts { from: usize, to: usize },
    ClientTurn { machine: usize, pid: Pid },
    Request { machine: usize, session: u64, request: Box<ClientRequest> },
    Reply { machine: usize, session: u64, reply: Box<ClientReply> },
    SessionEnds { machine: usize, session: u64 },
    KillClient { machine: usize, pid: Pid },
    StartClients { machine: usize, boot: u64 },
    Fault,
    FaultEnds(crate::fault::Ending),
}

impl Event {
    fn number(&self) -> u64 {
        let (kind, a, b): (u64, u64, u64) = match self {
            Self::SbdTurn { machine, pid } => (1, *machine as u64, *pid),
            Self::SbdDisk(operation) => (2, operation.machine as u64, operation.tag),
            Self::FeederTurn { machine, pid } => (3, *machine as u64, *pid),
            Self::Watchdog { machine, look, .. } => (4, *machine as u64, *look),
            Self::MachineEnds { machine, boot } => (5, *machine as u64, *boot),
            Self::MachineStarts { machine } => (6, *machine as u64, 0),
            Self::DaemonLook { machine, pid } => (7, *machine as u64, *pid),
            Self::DaemonTick { machine, pid } => (8, *machine as u64, *pid),
            Self::DaemonDisk(operation) => (9, operation.machine as u64, operation.tag),
            Self::PageRung { machine, pid } => (10, *machine as u64, *pid),
            Self::RestartDaemon { machine, boot } => (11, *machine as u64, *boot),
            Self::Land(number) => (12, *number, 0),
            Self::LandLate(number) => (13, *number, 0),
            Self::Complete(number) => (14, *number, 0),
            Self::Datagram { machine, frame } => (15, *machine as u64, frame.len() as u64),
            Self::Connect { machine, pid, .. } => (16, *machine as u64, *pid),
            Self::Connected { connection, end } => (17, *connection, *end as u64),
            Self::Frame { connection, end } => (18, *connection, *end as u64),
            Self::Broken { connection, end } => (19, *connection, *end as u64),
            Self::CutLasts { from, to } => (20, *from as u64, *to as u64),
            Self::ClientTurn { machine, pid } => (21, *machine as u64, *pid),
            Self::Request { session, request, .. } => (22, *session, request.serial()),
            Self::Reply { machine, session, .. } => (23, *machine as u64, *session),
            Self::SessionEnds { machine, session } => (24, *machine as u64, *session),
            Self::KillClient { machine, pid } => (25, *machine as u64, *pid),
            Self::StartClients { machine, boot } => (26, *machine as u64, *boot),
            Self::Fault => (27, 0, 0),
            Self::FaultEnds(_) => (28, 0, 0),
        };
        kind ^ a.rotate_left(8) ^ b.rotate_left(24)
    }
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(crate) options: Options,
    pub(crate) timings: Timings,
    pub(crate) cluster: ClusterUuid,
    pub(crate) configuration: Configuration,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) pill_key: PillKey,
    pub(crate) queue: Queue<Event>,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    /// Of the watchdogs.
    pub(crate) driver: Driver,
    pub(crate) disks: Vec<Disk>,
    /// Vote units that rotted.
    pub(crate) rotten: Vec<Rotten>,
    /// When a vote unit or a views record was last written.
    pub(crate) register_changed_us: u64,
    /// What the device that lies goes back to.
    pub(crate) liars_copy: Option<Disk>,
    /// Devices that are not the cluster's.
    pub(crate) others: Vec<Disk>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) network: Network,
    pub(crate) operations: BTreeMap<u64, Box<Operation>>,
    pub(crate) next_operation: u64,
    pub(crate) next_pid: Pid,
    pub(crate) facts: Facts,
    pub(crate) log: Log,
    /// Two machines may have the same slot.
    pub(crate) has_clones: bool,
    /// Machines start only when they are told to.
    pub(crate) is_scripted: bool,
    /// Answers to the sessions of a transcript.
    pub(crate) scripted_replies: Vec<(u64, ClientReply)>,
    /// Faults come no more.
    pub(crate) is_calm: bool,
    /// Clients ask for nothing new.
    pub(crate) is_quiet: bool,
    /// The spell in which clients work.
    pub(crate) spell: crate::client::Spell,
    /// Machines that do not start.
    pub(crate) frozen: BTreeSet<usize>,
    /// Broken promises that are known: nothing keeps them yet.
    pub(crate) expected: Vec<Violation>,
    violations: Vec<Violation>,
}

fn address(machine: usize) -> String {
    format!("127.0.0.{}:7700", machine + 1)
}

impl World {
    /// A cluster that was formatted and never started.
    ///
    /// # Panics
    /// Never for options within their ranges: their times can be derived.
    #[must_use]
    pub fn new(plan: &Plan, is_tracing: bool) -> Self {
        let options = plan.options.clone();
        let mut random = plan.random(0x5eed);
        let stall_ms = u32::try_from(options.stall_ms).unwrap_or(u32::MAX);
        let driver = driver_of(&options);
        // One that may fire a whole second early is asked for two.
        let watchdog_ms = (driver.earliness_ms >= 1000).then_some(2000);
        let freeze_ms = u32::try_from(options.freeze_s * 1000).ok();
        let wishes = Wishes { driver, watchdog_ms, freeze_ms, ..Wishes::stall(stall_ms) };
        let timings = derive(&wishes).expect("the range of the option is that of the timing");
        let count = usize::try_from(options.nodes).unwrap_or(1);
        let names: Vec<String> = (0..count).map(|index| format!("n{}", index + 1)).collect();
        let cluster = ClusterUuid([0xc1; 16]);
        let devices = u16::try_from(options.devices).unwrap_or(1);
        let cells = usize::try_from(options.resources * options.lockspaces).unwrap_or(1);
        let disks: Vec<Disk> = (0..devices).map(|number| Disk::formatted(cluster, number, devices, timings, &names, cells)).collect();
        let nodes = names.iter().enumerate().map(|(index, name)| NodeEntry {
            slot: slot_of(index),
            votes: 1,
            name: name.clone(),
            addresses: vec![address(index)],
        });
        let configuration = Configuration {
            version: 1,
            disk_votes: if options.disk_votes == 0 { default_disk_votes(count) } else { u16::try_from(options.disk_votes).unwrap_or(1) },
            disk_votes_pinned: options.disk_votes > 0,
            format_level: 1,
            timings,
            nodes: nodes.collect(),
        };
        // A generator of their own: whatever the wall clocks show, the run is the same.
        let mut walls = plan.random(mix(options.wall));
        let machines = names.iter().enumerate();
        let machines = machines.map(|(index, name)| new_machine((&mut random, &mut walls), &options, index, name)).collect();
        let key = "5e".repeat(32);
        let mut facts = Facts::default();
        for (device, disk) in disks.iter().enumerate() {
            disk.infos().iter().for_each(|(_, offset, bytes)| facts.unit_written(device, *offset, &disk.read(*offset, *bytes)));
        }
        Self {
            options,
            timings,
            cluster,
            configuration,
            cluster_key: ClusterKey::parse(&key).expect("64 hexadecimal digits"),
            pill_key: PillKey::new(&[0x5e; 32]),
            queue: Queue::default(),
            random,
            faults: Faults::new(plan),
            driver,
            disks,
            rotten: Vec::new(),
            register_changed_us: 0,
            liars_copy: None,
            others: Vec::new(),
            machines,
            network: Network::default(),
            operations: BTreeMap::new(),
            next_operation: 0,
            next_pid: 0,
            facts,
            log: Log::new(is_tracing),
            has_clones: false,
            is_scripted: false,
            scripted_replies: Vec::new(),
            is_calm: false,
            is_quiet: false,
            spell: crate::client::Spell::default(),
            frozen: BTreeSet::new(),
            expected: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Switches every machine on, each at its own time.
    pub fn power_on(&mut self) {
        for machine in 0..self.machines.len() {
            let span = self.random.below(500_000);
            self.queue.after(span, Event::MachineStarts { machine });
        }
    }

    /// Lets time pass until an instant, or until a promise is broken.
    pub fn run_until(&mut self, end_us: u64) {
        while self.violations.is_empty() {
            let Some(event) = self.queue.next_until(end_us) else { break };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        self.log.event(self.queue.now_us(), event.number());
        self.check_event(&event);
        self.dispatch(event);
        self.file_found();
    }

    /// Files what the checkers found.
    pub(crate) fn file_found(&mut self) {
        for violation in self.facts.take_found() {
            self.note(&format!("*** {}: {}", violation.promise, violation.what));
            let list = if crate::expected::is_known(&violation) { &mut self.expected } else { &mut self.violations };
            list.push(violation);
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::SbdTurn { machine, pid } if self.may_run(machine, Process::Sbd) => self.sbd_planned(machine, pid),
            Event::SbdTurn { machine, .. } => self.defer(machine, Process::Sbd, event),
            Event::SbdDisk(operation) => self.sbd_again(*operation),
            Event::FeederTurn { machine, pid } if self.may_run(machine, Process::Feeder) => self.feeder_turn(machine, pid),
            Event::FeederTurn { machine, .. } => self.defer(machine, Process::Feeder, event),
            Event::Watchdog { machine, boot, look } => self.look_at_watchdog(machine, boot, look),
            Event::MachineEnds { machine, boot } => {
                if self.machines[machine].boot_number == boot {
                    self.end_machine(machine);
                }
            }
            Event::MachineStarts { machine } if self.may_start(machine) => self.start_machine(machine),
            Event::MachineStarts { .. } => {}
            Event::DaemonLook { machine, pid } if self.may_run(machine, Process::Daemon) => self.daemon_looks(machine, pid),
            Event::DaemonLook { machine, .. } => self.defer(machine, Process::Daemon, event),
            Event::DaemonTick { machine, pid } if self.may_run(machine, Process::Daemon) => self.daemon_planned(machine, pid),
            Event::DaemonTick { machine, .. } => self.defer(machine, Process::Daemon, event),
            Event::DaemonDisk(operation) => self.daemon_again(*operation),
            Event::PageRung { machine, pid } if self.may_run(machine, Process::Daemon) => self.read_page(machine, pid),
            Event::PageRung { machine, .. } => self.defer(machine, Process::Daemon, event),
            Event::RestartDaemon { machine, boot } => self.restart_daemon(machine, boot),
            Event::Land(number) => self.land(number),
            Event::LandLate(number) => self.land_late(number),
            Event::Complete(number) => self.complete(number),
            Event::Fault => self.inject(),
            Event::FaultEnds(ending) if !self.is_calm => self.end_fault(ending),
            other => self.dispatch_messages(other),
        }
    }

    fn dispatch_messages(&mut self, event: Event) {
        match event {
            Event::Datagram { machine, frame } => self.datagram(machine, frame),
            Event::Connect { machine, pid, epoch } => self.connect(machine, pid, epoch),
            Event::Connected { connection, end } => self.connected(connection, end),
            Event::Frame { connection, end } => self.frame(connection, end),
            Event::Broken { connection, end } => self.broken(connection, end),
            Event::CutLasts { from, to } => self.cut_lasts(from, to),
            Event::ClientTurn { machine, pid } => self.client_turn(machine, pid),
            Event::Request { machine, session, request } => self.client_request(machine, session, *request),
            Event::Reply { session, reply, .. } if session >= crate::script::SESSIONS => self.scripted_replies.push((session, *reply)),
            Event::Reply { machine, session, reply } => self.client_reply(machine, session, *reply),
            Event::SessionEnds { machine, session } => self.session_ends(machine, session),
            Event::KillClient { machine, pid } => self.kill_client(machine, pid),
            Event::StartClients { machine, boot } => {
                let is_alive = self.machines[machine].daemon.as_mut().is_some_and(|daemon| daemon.node().is_some());
                if is_alive && self.machines[machine].boot_number == boot {
                    self.start_clients(machine);
                }
            }
            _ => {}
        }
    }

    fn sbd_again(&mut self, operation: Operation) {
        if let crate::io::Owner::Sbd(pid) = operation.owner {
            self.sbd_completion(operation.machine, pid, operation);
        }
    }

    fn daemon_again(&mut self, operation: Operation) {
        if let crate::io::Owner::Daemon(pid, epoch) = operation.owner {
            self.daemon_completion(operation.machine, pid, epoch, operation);
        }
    }

    fn may_run(&self, machine: usize, process: Process) -> bool {
        !self.machines[machine].is_stopped(process)
    }

    /// Keeps an event for a process that is stopped.
    pub(crate) fn defer(&mut self, machine: usize, process: Process, event: Event) {
        if let Some(waiting) = self.machines[machine].stopped.get_mut(&process) {
            waiting.push(event);
        }
    }

    /// Stops a process.
    pub(crate) fn stop_process(&mut self, machine: usize, process: Process) {
        self.machines[machine].stopped.entry(process).or_default();
    }

    /// Lets a process continue; what waited for it comes in its order.
    pub(crate) fn continue_process(&mut self, machine: usize, process: Process) {
        for event in self.machines[machine].stopped.remove(&process).unwrap_or_default() {
            // Before whatever comes now: sockets keep their order.
            self.dispatch(event);
        }
    }

    pub(crate) fn new_pid(&mut self) -> Pid {
        self.next_pid += 1;
        self.next_pid
    }

    pub(crate) fn local_ms(&self, machine: usize) -> u64 {
        self.machines[machine].clock.ms(self.queue.now_us())
    }

    pub(crate) fn wall_ms(&self, machine: usize) -> u64 {
        self.machines[machine].wall_offset_ms + self.queue.now_us() / 1000
    }

    /// Something worth a line has happened; the state that the world is in by then counts among those seen.
    pub(crate) fn note(&mut self, text: &str) {
        self.log.line(self.queue.now_us(), text);
        self.remember_state();
    }

    /// Machines that are no copies of others; those stand behind them.
    pub(crate) fn node_count(&self) -> usize {
        self.machines.iter().filter(|machine| !machine.is_clone).count()
    }

    /// The machine at one of these addresses.
    pub(crate) fn machine_at(&self, addresses: &[String]) -> Option<usize> {
        let first = addresses.first()?;
        let number: usize = first.strip_prefix("127.0.0.")?.split_once(':')?.0.parse().ok()?;
        let index = number.checked_sub(1).filter(|index| *index < self.machines.len())?;
        // A copy has the same address, and answers where the first does not.
        let copy = self.machines.iter().position(|machine| machine.is_clone && machine.is_on && machine.slot == slot_of(index));
        Some(copy.filter(|_| !self.machines[index].is_on).unwrap_or(index))
    }

    // Machines.

    /// A copy that was refused or has died is not switched on again by itself.
    fn may_start(&self, machine: usize) -> bool {
        !self.machines[machine].is_clone || self.options.unfair_clone > 0 && !self.is_calm
    }

    pub(crate) fn start_machine(&mut self, machine: usize) {
        if self.machines[machine].is_on || self.frozen.contains(&machine) {
            return;
        }
        let has_orphans = self.operations.values().any(|operation| operation.machine == machine);
        if has_orphans && self.options.process_watchdog == 1 {
            // The supervisor numbers a new boot only when every process of the one before is reaped, its disk operations included.
            return self.queue.after(10_000, Event::MachineStarts { machine });
        }
        // After a clean stop only the processes start anew; under a process watchdog every start is a boot of its own.
        let is_new_boot = !self.machines[machine].is_stopping || self.options.process_watchdog == 1;
        let place = &mut self.machines[machine];
        place.is_on = true;
        place.is_stopping = false;
        place.boot_number += u64::from(is_new_boot);
        place.page = Page::default();
        place.stopped.clear();
        let text = format!("{}: starts in boot {}", place.name, place.boot_number);
        self.note(&text);
        self.start_sbd(machine);
        if self.machines[machine].is_on {
            self.start_daemon(machine);
        }
    }

    /// Power, watchdog or reset: everything on the machine ends at this instant.
    pub(crate) fn end_machine(&mut self, machine: usize) {
        if !self.machines[machine].is_on {
            return;
        }
        self.note(&format!("{}: boot {} ends", self.machines[machine].name, self.machines[machine].boot_number));
        *self.facts.resets.entry(machine).or_default() += 1;
        self.switch_off(machine);
        self.machines[machine].is_stopping = false;
        let span = self.random.range(100, self.options.reboot_ms.max(100)) * 1000;
        self.queue.after(span, Event::MachineStarts { machine });
    }

    /// Power fails, and stays off until somebody starts the machine.
    pub(crate) fn lose_power(&mut self, machine: usize) {
        if self.machines[machine].is_on {
            self.note(&format!("{}: boot {} ends", self.machines[machine].name, self.machines[machine].boot_number));
            self.switch_off(machine);
            self.machines[machine].is_stopping = false;
        }
    }

    pub(crate) fn switch_off(&mut self, machine: usize) {
        self.lose_connections(machine);
        self.orphan_operations(machine);
        let now_us = self.queue.now_us();
        let boot = self.machines[machine].boot_number;
        self.facts.locks.machine_ended(now_us, machine, boot);
        let place = &mut self.machines[machine];
        place.clients.keys().for_each(|client| self.facts.waits.client_gone(now_us, *client));
        place.is_on = false;
        place.ended_us = now_us;
        place.sbd = None;
        place.feeder = None;
        place.watchdog = None;
        place.daemon = None;
        place.clients.clear();
        place.stopped.clear();
        place.page = Page::default();
    }

    /// sbd has stopped cleanly.
    pub(crate) fn sbd_stopped(&mut self, machine: usize) {
        self.ring_daemon(machine);
        if self.machines[machine].daemon.is_none() {
            self.finish_stop(machine);
        }
    }

    /// sbd does not start: the service is tried again later.
    pub(crate) fn sbd_refused(&mut self, machine: usize) {
        self.end_processes(machine);
        self.start_later(machine);
    }

    /// Everything has stopped; the node is started again after a while. Where sbd died before it could disarm it, the watchdog comes first.
    pub(crate) fn finish_stop(&mut self, machine: usize) {
        if self.machines[machine].watchdog.is_some() {
            return;
        }
        self.end_processes(machine);
        if !self.is_scripted {
            self.start_later(machine);
        }
    }

    fn end_processes(&mut self, machine: usize) {
        self.note(&format!("{}: is stopped", self.machines[machine].name));
        self.switch_off(machine);
        self.machines[machine].is_stopping = true;
    }

    fn start_later(&mut self, machine: usize) {
        let span_ms = self.machines[machine].restart_ms.max(1);
        self.queue.after(span_ms * 1000, Event::MachineStarts { machine });
    }

    pub(crate) fn ask_sbd_to_stop(&mut self, machine: usize) {
        self.machines[machine].page.is_stop_requested = true;
        self.wake_sbd(machine);
    }

    /// Finds out in how many different situations the world was: roles, views, locks, cuts.
    fn remember_state(&mut self) {
        let mut sum = 0u64;
        for machine in &self.machines {
            let view = match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
                Some(crate::machine::Stage::Live(node)) => {
                    node.view().members.len() as u64 | (node.view().owed.len() as u64) << 8 | 1 << 16
                }
                Some(_) => 2 << 16,
                None => 3 << 16,
            };
            let sbd = machine.sbd.as_ref().map_or(9, |sbd| sbd.lifeline.status().phase as u64);
            let bits = [machine.is_on, machine.page.holds, machine.page.lease_end_ms > 0, machine.page.state == SbdState::Condemned];
            let bits = bits.iter().fold(0, |sum, bit| sum << 1 | u64::from(*bit));
            let stopped = machine.stopped.keys().fold(0u64, |sum, process| sum | 1 << (*process as u64));
            let paths = machine
                .paths
                .iter()
                .fold(0, |sum, path| sum << 2 | u64::from(path.hangs > 0) << 1 | u64::from(path.fails_reads || path.fails_writes));
            let doing = machine.clients.values().fold(0u64, |sum, client| mix(sum ^ client.number()));
            sum = mix(sum ^ view ^ sbd << 24 ^ bits << 32 ^ stopped << 40 ^ paths << 48 ^ mix(doing));
        }
        for (from, to) in self.network.cuts() {
            sum = mix(sum ^ (*from as u64) << 8 ^ *to as u64);
        }
        self.log.state(sum);
    }

    /// What was broken.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Adds what a checker of a whole phase found.
    pub(crate) fn add_violation(&mut self, promise: &'static str, what: String) {
        self.note(&format!("*** {promise}: {what}"));
        self.violations.push(Violation { promise, what, at_us: self.queue.now_us() });
    }
}

fn driver_of(options: &Options) -> Driver {
    let number = if options.process_watchdog == 1 { 0 } else { usize::try_from(options.watchdog_driver).unwrap_or(0) };
    DRIVERS.get(number).copied().unwrap_or(UNKNOWN_DRIVER)
}

/// The slot of a machine's node.
pub(crate) fn slot_of(machine: usize) -> SlotIndex {
    SlotIndex(u16::try_from(machine).unwrap_or(u16::MAX))
}

pub(crate) fn new_machine((random, walls): (&mut Random, &mut Random), options: &Options, index: usize, name: &str) -> Machine {
    let drift = i64::try_from(options.drift_ppm).unwrap_or(0);
    let rate = i64::try_from(random.below(2 * options.drift_ppm + 1)).unwrap_or(0) - drift;
    let base_ms = random.range(10_000, 10_000_000);
    let devices = usize::try_from(options.devices).unwrap_or(1);
    Machine {
        slot: slot_of(index),
        name: name.to_owned(),
        clock: Clock::new(0, base_ms, rate),
        boot_number: 0,
        is_on: false,
        ended_us: 0,
        page: Page::default(),
        sbd: None,
        feeder: None,
        watchdog: None,
        daemon: None,
        clients: BTreeMap::new(),
        paths: vec![Path::default(); devices],
        stopped: BTreeMap::new(),
        wall_offset_ms: walls.below(2_000_000_000_000),
        is_stopping: false,
        restart_ms: 1000,
        is_clone: false,
        crash_at_step: None,
    }
}
