//! What: the disk thread of one sbd life: the lifeline machine joined to engines, feeder, page and reset.
//! Owns: the order in which what the machine says is done.
//! Invariants: the clock is read before each input; a lease is stored only while the one before still runs; a reset is tried
//! again until this process is gone.
//! Does not: decide anything that the machine decides.
//! Called by: `run`, tests with imagined devices and watchdogs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::SystemTime;

use deadbolt_disk::{Backend, BackendChoice, Completion, Engine, EngineError, Operation, RawDevice, now_ns};
use deadbolt_disk_format::sbd::{SbdNode, mailbox_offset, node_offset};
use deadbolt_disk_format::{Beat, ByteOffset, ClusterUuid, DAEMON_PART_BYTES, DaemonPart, Layout, Place, RecordError, UNIT_BYTES};
use deadbolt_sbd_core::{
    CycleSeen, DaemonSeen, DiskFailed, Input, Lifeline, LifelineConfig, MailboxSeen, NameSeen, Output, OwnPlace, PhaseName, RefuseReason,
    ResetCommand, ResetReason,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::area::is_same_name;
use crate::feeder::{Feeder, FeederAnswer, FeederConfig};
use crate::log::Log;
use crate::page::{Page, SbdSide, SbdState};
use crate::pill::{PillKey, read_mailbox};
use crate::reset::ResetAction;
use crate::say::{say_note, say_reset};
use crate::watchdog::Watchdog;

/// How often the words of the page are looked at when nothing else happens: every poll interval, and this often where that is longer. Chosen:
/// who writes a word that is urgent rings; the others are the daemon's turns and the supervisor's sign of life, which have far more time.
const TURN_MS: u64 = 250;
/// The same while the feeder's answer or the reset is awaited.
const HASTE_MS: u64 = 2;
/// How often a reset that did not work is tried again.
const RESET_AGAIN_MS: u64 = 200;
/// After a cycle that failed its read leaves the name out for so long: a bad sector beside the mailbox must not cost the lease.
/// Chosen: seldom enough that its failures are no burden.
const NAME_AGAIN_MS: u64 = 10_000;
const NS_PER_MS: u64 = 1_000_000;

/// One device of the cluster.
#[derive(Clone)]
pub struct LifeDevice {
    /// The device.
    pub device: Arc<dyn RawDevice>,
    /// Where its areas lie.
    pub layout: Layout,
    /// For people.
    pub name: String,
}

impl std::fmt::Debug for LifeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LifeDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All that a life needs.
pub struct LifeSetup {
    /// The cluster.
    pub cluster: ClusterUuid,
    /// The node's name in the SBD area.
    pub node: String,
    /// Its devices, in the order of their numbers.
    pub devices: Vec<LifeDevice>,
    /// Which back end drives them.
    pub backend: BackendChoice,
    /// The machine's part.
    pub config: LifelineConfig,
    /// Proves pills; none: pills of our own tools are not checked.
    pub key: Option<PillKey>,
    /// What ends this node.
    pub watchdog: Box<dyn Watchdog>,
    /// How to feed it.
    pub feeder: FeederConfig,
    /// How to end this node at once.
    pub reset: Box<dyn ResetAction>,
    /// The shared page.
    pub page: Page,
    /// Lines for people.
    pub log: Log,
    /// Becomes readable when somebody asks for a clean stop.
    pub stop: OwnedFd,
}

impl std::fmt::Debug for LifeSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LifeSetup").field("devices", &self.devices).field("config", &self.config).finish_non_exhaustive()
    }
}

/// How a life ended; a reset by the machine is seen by nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LifeEnd {
    /// Disarmed; is the stopped beat on a majority of devices?
    Stopped {
        /// It is.
        is_recorded: bool,
    },
    /// Did not start.
    Refused(RefuseReason),
    /// An imagined reset.
    Reset(ResetReason),
}

/// Why a life could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifeError {
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No event descriptor.
    #[error("no event descriptor: {source}; raise `ulimit -n`")]
    Event {
        /// What the kernel said.
        source: io::Error,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Cycle,
    Own,
    Mailbox,
    Clear,
    Rename,
}

struct Life {
    machine: Lifeline,
    cluster: ClusterUuid,
    node: String,
    config: LifelineConfig,
    devices: Vec<LifeDevice>,
    engines: Vec<Engine>,
    completions: Receiver<Completion>,
    works: BTreeMap<u64, (usize, Work)>,
    /// By device: until then the name is not read.
    nameless_until_ms: Vec<u64>,
    key: Option<PillKey>,
    watchdog: Option<Box<dyn Watchdog>>,
    feeder_config: FeederConfig,
    feeder: Option<Feeder>,
    reset: Box<dyn ResetAction>,
    reset_due: Option<(u64, ResetCommand)>,
    side: SbdSide,
    part_bytes: [u8; DAEMON_PART_BYTES],
    part_number: u64,
    is_part_bad: bool,
    log: Log,
    end: Option<LifeEnd>,
}

/// Lives one life. Returns after a clean stop or a refusal.
///
/// # Errors
/// Nothing was armed or written.
pub fn live(setup: LifeSetup) -> Result<LifeEnd, LifeError> {
    let bell =
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| LifeError::Event { source: errno.into() })?;
    let bell = Arc::new(OwnedFd::from(bell));
    let (sender, completions) = channel();
    let engines = start_engines(&setup, &sender, &bell)?;
    for (engine, device) in engines.iter().zip(&setup.devices) {
        let kind = if engine.backend() == Backend::IoUring { "io_uring" } else { "threads" };
        let why = engine.fallback_reason().map_or(String::new(), |reason| format!(" (io_uring refused: {reason})"));
        setup.log.say(&format!("device {} driven by {kind}{why}", device.name));
    }
    let side = setup.page.sbd();
    let mut life = Life {
        machine: Lifeline::new(setup.config.clone()),
        cluster: setup.cluster,
        node: setup.node,
        config: setup.config,
        nameless_until_ms: vec![0; setup.devices.len()],
        devices: setup.devices,
        engines,
        completions,
        works: BTreeMap::new(),
        key: setup.key,
        watchdog: Some(setup.watchdog),
        feeder_config: setup.feeder,
        feeder: None,
        reset: setup.reset,
        reset_due: None,
        side,
        part_bytes: [0; DAEMON_PART_BYTES],
        part_number: 0,
        is_part_bad: false,
        log: setup.log,
        end: None,
    };
    Ok(life.run(bell.as_fd(), setup.stop.as_fd()))
}

fn start_engines(setup: &LifeSetup, sender: &Sender<Completion>, bell: &Arc<OwnedFd>) -> Result<Vec<Engine>, LifeError> {
    let start = |device: &LifeDevice| {
        let (sender, bell) = (sender.clone(), Arc::clone(bell));
        let sink = move |completion: Completion| {
            // A receiver that is gone has ended; its process is about to.
            let _ = sender.send(completion);
            ring(&bell);
        };
        Engine::start(Arc::clone(&device.device), setup.backend, Box::new(sink)).map_err(LifeError::from)
    };
    setup.devices.iter().map(start).collect()
}

#[expect(clippy::host_endian_bytes, reason = "the kernel reads the count in its own order")]
fn ring(bell: &OwnedFd) {
    let _ = nix::unistd::write(bell, &1u64.to_ne_bytes());
}

fn now_ms() -> u64 {
    now_ns() / NS_PER_MS
}

/// Waits until one of the descriptors is readable; answers which.
fn wait(descriptors: [BorrowedFd<'_>; 3], span_ms: u64) -> [bool; 3] {
    let mut polled = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
    let timeout = u16::try_from(span_ms).map_or(PollTimeout::MAX, PollTimeout::from);
    if poll(&mut polled, timeout).is_err() {
        return [false; 3];
    }
    polled.map(|one| one.any().unwrap_or(false))
}

impl Life {
    fn run(&mut self, bell: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> LifeEnd {
        self.side.start(self.config.boot, self.config.writer, self.config.timings.reset_ms);
        self.give(Input::Start);
        let wake_page = self.side.wake_event().try_clone_to_owned();
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            let span_ms = self.span_ms();
            let rung = match &wake_page {
                Ok(wake) => wait([bell, stop, wake.as_fd()], span_ms),
                Err(_) => wait([bell, stop, bell], span_ms),
            };
            if rung[0] {
                let mut count = [0; 8];
                let _ = nix::unistd::read(bell, &mut count);
            }
            self.take_completions();
            if rung[2] {
                self.side.clear_wake();
            }
            self.take_words();
            if rung[2] {
                self.give(Input::Woken);
            }
            if rung[1] {
                let mut signal = [0; 128];
                let _ = nix::unistd::read(stop, &mut signal);
                self.give(Input::StopAsked);
            }
            self.take_answers();
            self.reset_again();
        }
    }

    fn span_ms(&self) -> u64 {
        let haste = matches!(self.machine.status().phase, PhaseName::Condemned | PhaseName::Stopping) && self.reset_due.is_none();
        let turn_ms = if haste { HASTE_MS } else { TURN_MS.min(u64::from(self.config.timings.poll_ms)) };
        self.machine.next_deadline().map_or(turn_ms, |deadline_ms| deadline_ms.saturating_sub(now_ms()).min(turn_ms))
    }

    /// One input, and everything that follows from it.
    fn give(&mut self, input: Input) {
        self.machine.handle(now_ms(), input);
        while let Some(output) = self.machine.poll_output() {
            self.act(output);
        }
    }

    fn take_completions(&mut self) {
        while let Ok(completion) = self.completions.try_recv() {
            let Some((device, work)) = self.works.remove(&completion.tag) else { continue };
            let tag = completion.tag;
            if let Err(error) = &completion.result {
                self.log.say(&format!("device {}: {error}", self.devices[device].name));
            }
            let bytes = completion.result.map_err(|_| DiskFailed);
            if bytes.is_err() && work == Work::Cycle {
                self.nameless_until_ms[device] = now_ms() + NAME_AGAIN_MS;
            }
            let input = match work {
                Work::Cycle => Input::CycleDone { tag, result: bytes.and_then(|bytes| self.cycle_of(device, &bytes)) },
                Work::Mailbox => Input::MailboxRead { tag, result: bytes.and_then(|bytes| self.mailbox_of(&bytes)) },
                Work::Own => Input::OwnRead { tag, result: bytes.map(|bytes| self.own_of(device, &bytes)) },
                Work::Clear => Input::ClearDone { tag, result: bytes.map(drop) },
                Work::Rename => Input::NameDone { tag },
            };
            self.give(input);
        }
    }

    /// The mailbox is the last sector of the read; where there are two, the first is the node's.
    fn cycle_of(&self, device: usize, bytes: &[u8]) -> Result<CycleSeen, DiskFailed> {
        let (_, sector_bytes) = self.mailbox(device);
        let (node, mailbox) = bytes.split_at(bytes.len().saturating_sub(sector_bytes));
        let name = if node.is_empty() { NameSeen::NotRead } else { self.name_of(node) };
        Ok(CycleSeen { mailbox: self.mailbox_of(mailbox)?, name })
    }

    fn name_of(&self, sector: &[u8]) -> NameSeen {
        match SbdNode::decode(sector) {
            Ok(node) if !node.is_in_use => NameSeen::Empty,
            Ok(node) if is_same_name(&node.name, &self.node) => NameSeen::Own,
            Ok(node) => NameSeen::Other { name: node.name },
            Err(_) => NameSeen::Damaged,
        }
    }

    fn mailbox_of(&self, bytes: &[u8]) -> Result<MailboxSeen, DiskFailed> {
        read_mailbox(bytes, self.key.as_ref()).map_err(|error| {
            self.log.say(&format!("own mailbox: {error}"));
            DiskFailed
        })
    }

    fn own_of(&self, device: usize, bytes: &[u8]) -> OwnPlace {
        match Beat::decode(bytes, &self.place(device)) {
            Ok(beat) => OwnPlace::Beat(Box::new(beat)),
            Err(RecordError::NotARecord { is_all_zero: true, .. }) => OwnPlace::NeverWritten,
            Err(error) => {
                self.log.say(&format!("device {}: own beat unit: {error}", self.devices[device].name));
                OwnPlace::Unreadable
            }
        }
    }

    fn place(&self, device: usize) -> Place {
        let slot = self.config.slot;
        Place { cluster: self.cluster, offset: self.devices[device].layout.beat(slot), slot }
    }

    fn take_words(&mut self) {
        let words = self.side.daemon_words();
        let part = self.copy_part();
        let words = DaemonSeen {
            turn: words.turn,
            holds: words.holds,
            fast_poll_until_ms: words.fast_poll_until_ns / NS_PER_MS,
            is_stop_requested: words.is_stop_requested,
            generation: words.generation,
            ended: words.ended,
            supervisor_alive_ms: words.supervisor_alive_ns / NS_PER_MS,
        };
        self.give(Input::Turned { words, part });
    }

    /// The daemon's part, when there is a newer one that can be read. Bytes that no daemon writes never reach the disk.
    fn copy_part(&mut self) -> Option<Box<DaemonPart>> {
        let before = self.part_bytes;
        let number = self.side.copy_part(&mut self.part_bytes)?;
        if number == self.part_number && before == self.part_bytes {
            return None;
        }
        self.part_number = number;
        match DaemonPart::decode(&self.part_bytes) {
            Ok(part) if part.number == number => {
                self.is_part_bad = false;
                Some(Box::new(part))
            }
            found => {
                if !self.is_part_bad {
                    let why = found.err().map_or_else(|| "its number differs".to_owned(), |error| error.to_string());
                    self.log.say(&format!("the daemon's part {number} is not written to the disk: {why}"));
                }
                self.is_part_bad = true;
                None
            }
        }
    }

    fn take_answers(&mut self) {
        match self.feeder.as_ref().and_then(Feeder::poll_answer) {
            Some(FeederAnswer::Retired { reset_ms }) => self.give(Input::FeederRetired { reset_ms }),
            Some(FeederAnswer::Disarmed) => self.give(Input::Disarmed),
            None => self.give(Input::Tick),
        }
    }

    fn submit(&mut self, tag: u64, device: usize, work: Work, operation: Operation) {
        self.works.insert(tag, (device, work));
        self.engines[device].submit(tag, operation);
    }

    fn mailbox(&self, device: usize) -> (ByteOffset, usize) {
        let sector_bytes = self.devices[device].layout.sector_bytes;
        (ByteOffset(mailbox_offset(self.config.slot, sector_bytes)), usize::try_from(sector_bytes).unwrap_or(UNIT_BYTES))
    }

    fn name_offset(&self, device: usize) -> ByteOffset {
        ByteOffset(node_offset(self.config.slot, self.devices[device].layout.sector_bytes))
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Cycle { tag, device, beat } => self.write_cycle(tag, device, *beat),
            Output::ReadOwn { tag, device } => {
                let offset = self.place(device).offset;
                self.submit(tag, device, Work::Own, Operation::Read { offset, bytes: UNIT_BYTES });
            }
            Output::ReadMailbox { tag, device } => {
                let (offset, bytes) = self.mailbox(device);
                self.submit(tag, device, Work::Mailbox, Operation::Read { offset, bytes });
            }
            Output::ClearMailbox { tag, device } => {
                let (offset, bytes) = self.mailbox(device);
                self.submit(tag, device, Work::Clear, Operation::Write { offset, data: vec![0; bytes] });
            }
            Output::RewriteName { tag, device } => {
                let node = SbdNode { is_in_use: true, name: self.node.clone() };
                let data = node.encode(self.devices[device].layout.sector_bytes);
                self.submit(tag, device, Work::Rename, Operation::Write { offset: self.name_offset(device), data });
            }
            Output::Arm => self.arm(),
            Output::PublishLease { lease_end_ms, before_ms, number, beat, cycle_ms } => {
                self.publish_lease(lease_end_ms, before_ms, (number, beat), cycle_ms);
            }
            Output::EndLease => {
                self.side.end_lease();
                if self.machine.status().phase == PhaseName::Condemned {
                    self.side.set_state(SbdState::Condemned);
                }
            }
            Output::PublishIdle { generation } => self.side.set_idle_generation(generation),
            Output::RetireFeeder => {
                if let Some(feeder) = &self.feeder {
                    feeder.retire();
                }
            }
            Output::PublishAcknowledged { reset_ms } => self.side.set_acknowledged(reset_ms),
            Output::Reset { command, reason } => self.begin_reset(command, &reason),
            Output::Disarm => {
                if let Some(feeder) = &self.feeder {
                    feeder.disarm();
                }
            }
            Output::Exit { is_recorded } => {
                self.side.set_state(SbdState::Stopped);
                self.end = Some(LifeEnd::Stopped { is_recorded });
            }
            Output::Refuse(reason) => self.end = Some(LifeEnd::Refused(reason)),
            Output::Say(note) => self.log.say(&say_note(&note, |device| &self.devices[device].name)),
        }
    }

    fn write_cycle(&mut self, tag: u64, device: usize, mut beat: Beat) {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        beat.wall_ms = u64::try_from(wall.as_millis()).unwrap_or(0);
        let place = self.place(device);
        let (mut read_offset, mut read_bytes) = self.mailbox(device);
        if now_ms() >= self.nameless_until_ms[device] {
            // The node's sector stands right before its mailbox.
            (read_offset, read_bytes) = (self.name_offset(device), 2 * read_bytes);
        }
        let data = beat.encode(&place).to_vec();
        self.submit(tag, device, Work::Cycle, Operation::WriteThenRead { write_offset: place.offset, data, read_offset, read_bytes });
    }

    fn arm(&mut self) {
        let Some(watchdog) = self.watchdog.take() else { return };
        match Feeder::start(watchdog, self.feeder_config) {
            Ok(feeder) => {
                let reset_ms = feeder.reset_ms();
                self.log.say(&format!("watchdog armed: it resets this node within {reset_ms} ms of its last feed"));
                self.feeder = Some(feeder);
                self.side.start(self.config.boot, self.config.writer, reset_ms);
                self.give_later(Input::Armed { reset_ms });
            }
            Err(error) => {
                self.log.say(&error.to_string());
                self.give_later(Input::ArmFailed);
            }
        }
    }

    /// An input that arises while outputs are being done: the machine has already handled what led to it.
    fn give_later(&mut self, input: Input) {
        self.machine.handle(now_ms(), input);
    }

    fn publish_lease(&mut self, lease_end_ms: u64, before_ms: Option<u64>, (number, beat): (u64, u64), cycle_ms: u64) {
        let Some(feeder) = &self.feeder else { return };
        let now = now_ns();
        if let Some(before_ms) = before_ms.filter(|before_ms| now >= before_ms * NS_PER_MS) {
            // This thread was stopped between the completion and here: the lease had ended when the new one would have counted.
            let reason = ResetReason::LeaseEnded { lease_end_ms: before_ms, now_ms: now / NS_PER_MS };
            self.side.end_lease();
            self.begin_reset(ResetCommand::Reset, &reason);
            return;
        }
        let is_first = before_ms.is_none();
        feeder.set_lease_end(lease_end_ms * NS_PER_MS);
        self.side.publish_cycle(lease_end_ms * NS_PER_MS, number, beat, cycle_ms * 1000);
        if is_first {
            self.side.set_state(SbdState::Alive);
        }
    }

    fn begin_reset(&mut self, command: ResetCommand, reason: &ResetReason) {
        if let Some(feeder) = &self.feeder {
            feeder.set_lease_end(0);
        }
        self.side.end_lease();
        self.side.set_state(SbdState::Condemned);
        self.log.say(&say_reset(command, reason, |device| &self.devices[device].name));
        self.reset_due = Some((now_ms(), command));
        self.try_reset(Some(reason));
    }

    fn try_reset(&mut self, reason: Option<&ResetReason>) {
        let Some((_, command)) = self.reset_due else { return };
        match (self.reset.reset(command), reason) {
            (Ok(()), Some(reason)) => self.end = Some(LifeEnd::Reset(reason.clone())),
            (Ok(()), None) => {}
            (Err(error), _) => {
                if reason.is_some() && error.kind() != io::ErrorKind::WouldBlock {
                    self.log.say(&format!("the reset did not work ({error}); the watchdog will do it"));
                }
                self.reset_due = Some((now_ms() + RESET_AGAIN_MS, command));
            }
        }
    }

    fn reset_again(&mut self) {
        if self.reset_due.is_some_and(|(at_ms, _)| now_ms() >= at_ms) {
            self.try_reset(None);
        }
    }
}
