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
use deadbolt_disk_format::sbd::SbdNode;
use deadbolt_disk_format::{Beat, DAEMON_PART_BYTES, DaemonPart, Timings};
use deadbolt_sbd_core::{
    ClusterSeen, CycleSeen, DaemonSeen, DiskFailed, Input, Lifeline, LifelineConfig, MailboxSeen, NameSeen, Output, OwnPlace, PhaseName,
    RefuseReason, ResetCommand, ResetReason,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::area::is_same_name;
use crate::feeder::{Feeder, FeederAnswer, FeederConfig};
use crate::flush::Flush;
use crate::log::Log;
use crate::page::{Page, SbdSide, SbdState};
use crate::pill::{PillKey, read_mailbox, signed_mailbox};
use crate::placement::Placement;
use crate::reset::ResetAction;
use crate::say::{say_note, say_reset};
use crate::watch::{Sampler, SbdTimes};
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
/// Marks the tag of a look at other nodes.
const SAMPLE_TAG: u64 = 1 << 63;
const NS_PER_MS: u64 = 1_000_000;

/// One device of the cluster.
#[derive(Clone)]
pub struct LifeDevice {
    /// The device.
    pub device: Arc<dyn RawDevice>,
    /// Where this node's place is on it.
    pub placement: Placement,
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
    /// For a drop-in watcher.
    pub watch: Option<WatchSetup>,
}

/// What the life of a drop-in watcher has beside that of a node of ours.
pub struct WatchSetup {
    /// How it begins.
    pub begin: WatchBegin,
    /// What a reset is for that no message asked for.
    pub timeout_action: ResetCommand,
    /// Are the file systems flushed when no cycle is completed for a while?
    pub flushes: bool,
    /// The cluster on this node, if it has a say.
    pub cluster: Option<Box<dyn ClusterWord>>,
    /// Looks at the other nodes, and at the header.
    pub sampler: Sampler,
    /// What follows from other times in the header.
    pub(crate) retimed: Box<dyn Fn(SbdTimes) -> Timings + Send>,
    /// Called once, with the first lease.
    pub alive: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for WatchSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchSetup").field("begin", &self.begin).finish_non_exhaustive()
    }
}

/// How the life of a watcher begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchBegin {
    /// Up to the first complete cycle and no further: [`LifeEnd::Ready`].
    Try,
    /// Behind a life that ended so, as the same writer.
    Resume {
        /// The last beat handed out.
        beat: u64,
        /// Devices whose mailbox it had not read, a bit each.
        unread: u32,
    },
}

/// What the cluster on this node says of it.
pub trait ClusterWord: Send {
    /// Become readable when there is something new.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
    /// What holds now.
    fn poll_word(&mut self, now_ms: u64) -> ClusterSeen;
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
    /// The first cycle of a watcher is complete and nothing is armed.
    Ready {
        /// The last beat handed out.
        beat: u64,
        /// Not later than the issue of the first cycle.
        since_ms: u64,
        /// Devices whose mailbox was not read, a bit each.
        unread: u32,
    },
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
    /// A look at other nodes; none of the machine's.
    Sample,
}

struct Life {
    machine: Lifeline,
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
    watch: Option<WatchSetup>,
    first_cycle_ms: Option<u64>,
    samples: u64,
    flush: Option<Flush>,
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
        watch: setup.watch,
        first_cycle_ms: None,
        samples: 0,
        flush: None,
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

/// Waits until one of the descriptors is readable; answers which of the first three.
fn wait<'a>(first: [BorrowedFd<'a>; 3], others: impl Iterator<Item = BorrowedFd<'a>>, span_ms: u64) -> [bool; 3] {
    let mut polled: Vec<PollFd<'_>> =
        first.into_iter().chain(others).map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
    let timeout = u16::try_from(span_ms).map_or(PollTimeout::MAX, PollTimeout::from);
    if poll(&mut polled, timeout).is_err() {
        return [false; 3];
    }
    [0, 1, 2].map(|index| polled[index].any().unwrap_or(false))
}

impl Life {
    fn run(&mut self, bell: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> LifeEnd {
        self.side.start(self.config.boot, self.config.writer, self.config.timings.reset_ms);
        self.give(match self.watch.as_ref().map(|watch| watch.begin) {
            Some(WatchBegin::Resume { beat, unread }) => Input::Resume { beat, unread },
            Some(WatchBegin::Try) | None => Input::Start,
        });
        let wake_page = self.side.wake_event().try_clone_to_owned();
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            let span_ms = self.span_ms();
            let wake = wake_page.as_ref().map_or(bell, |wake| wake.as_fd());
            let cluster = self.watch.iter().filter_map(|watch| watch.cluster.as_ref()).flat_map(|cluster| cluster.descriptors());
            let rung = wait([bell, stop, wake], cluster, span_ms);
            if rung[0] {
                let mut count = [0; 8];
                let _ = nix::unistd::read(bell, &mut count);
            }
            self.take_completions();
            if rung[2] {
                self.side.clear_wake();
            }
            if self.watch.is_some() {
                self.take_cluster();
                self.sample();
            } else {
                self.take_words();
            }
            if rung[2] {
                self.give(Input::Woken);
            }
            if rung[1] {
                let mut signal = [0; 128];
                let _ = nix::unistd::read(stop, &mut signal);
                self.give(Input::StopAsked);
            }
            self.take_answers();
            if self.flush.as_mut().is_some_and(|flush| flush.is_over(now_ms())) {
                self.flush = None;
            }
            self.reset_again();
        }
    }

    fn span_ms(&self) -> u64 {
        let haste = matches!(self.machine.status().phase, PhaseName::Condemned | PhaseName::Stopping) && self.reset_due.is_none();
        let turn_ms = if haste { HASTE_MS } else { self.turn_ms() };
        self.machine.next_deadline().map_or(turn_ms, |deadline_ms| deadline_ms.saturating_sub(now_ms()).min(turn_ms))
    }

    /// A watcher that asks no cluster has no words to look at: it wakes for its cycles alone.
    fn turn_ms(&self) -> u64 {
        let poll_ms = u64::from(self.config.timings.poll_ms);
        let has_words = self.watch.as_ref().is_none_or(|watch| watch.cluster.is_some() || self.flush.is_some());
        if has_words { TURN_MS.min(poll_ms) } else { poll_ms }
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
            if work == Work::Sample {
                if let Some(watch) = &mut self.watch {
                    watch.sampler.handle_read(device, completion.result.ok().as_deref(), now_ms());
                    if let Some(times) = watch.sampler.poll_times() {
                        self.log.say(&format!("the devices name other times: watchdog {} s, loop {} s", times.watchdog_s, times.loop_s));
                        let timings = (watch.retimed)(times);
                        self.give(Input::Retimed(timings));
                    }
                }
                continue;
            }
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
                Work::Rename | Work::Sample => Input::NameDone { tag },
            };
            self.give(input);
        }
    }

    /// The mailbox is the last sector of the read; where there are two, the first is the node's.
    fn cycle_of(&self, device: usize, bytes: &[u8]) -> Result<CycleSeen, DiskFailed> {
        let (_, sector_bytes) = self.devices[device].placement.mailbox();
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
        let (place, error) = self.devices[device].placement.decode(bytes);
        if let Some(error) = error {
            self.log.say(&format!("device {}: own beat unit: {error}", self.devices[device].name));
        }
        place
    }

    fn take_cluster(&mut self) {
        let cluster = self.watch.as_mut().and_then(|watch| watch.cluster.as_mut());
        if let Some(seen) = cluster.map(|cluster| cluster.poll_word(now_ms())) {
            self.give(Input::ClusterSeen(seen));
        }
    }

    /// Tags of the machine count from 1; those of the looks have the highest bit.
    fn sample(&mut self) {
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.begin != WatchBegin::Try) else { return };
        for (device, read) in watch.sampler.poll_reads(now_ms()) {
            self.samples += 1;
            self.submit(SAMPLE_TAG | self.samples, device, Work::Sample, read);
        }
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
            vouched_until_ms: words.vouched_until_ns / NS_PER_MS,
            frozen_until_ms: words.frozen_until_ns / NS_PER_MS,
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
            Some(FeederAnswer::Set { reset_ms }) => {
                self.log.say(&format!("the watchdog has another time: it resets this node within {reset_ms} ms of its last feed"));
                self.give(Input::WatchdogSet { reset_ms });
            }
            None => self.give(Input::Tick),
        }
    }

    fn submit(&mut self, tag: u64, device: usize, work: Work, operation: Operation) {
        self.works.insert(tag, (device, work));
        self.engines[device].submit(tag, operation);
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Cycle { tag, device, beat } => self.write_cycle(tag, device, *beat),
            Output::ReadOwn { tag, device } => {
                let (offset, bytes) = self.devices[device].placement.beat();
                self.submit(tag, device, Work::Own, Operation::Read { offset, bytes });
            }
            Output::ReadMailbox { tag, device } => {
                let (offset, bytes) = self.devices[device].placement.mailbox();
                self.submit(tag, device, Work::Mailbox, Operation::Read { offset, bytes });
            }
            Output::ClearMailbox { tag, device } => {
                let placement = self.devices[device].placement;
                let (offset, bytes) = placement.mailbox();
                let is_signed = self.watch.is_some() && !placement.has_own_name();
                let data = if is_signed { signed_mailbox(self.config.boot, placement.sector_bytes()) } else { vec![0; bytes] };
                self.submit(tag, device, Work::Clear, Operation::Write { offset, data });
            }
            Output::RewriteName { tag, device } => {
                let node = SbdNode { is_in_use: true, name: self.node.clone() };
                let placement = self.devices[device].placement;
                let data = node.encode(placement.sector_bytes());
                self.submit(tag, device, Work::Rename, Operation::Write { offset: placement.node_sector().0, data });
            }
            Output::Arm => self.arm(),
            Output::PublishLease { lease_end_ms, own_end_ms, before_ms, number, beat, cycle_ms } => {
                self.publish_lease((lease_end_ms, own_end_ms), before_ms, (number, beat), cycle_ms);
            }
            Output::EndLease => {
                self.side.end_lease();
                if self.machine.status().phase == PhaseName::Condemned {
                    self.side.set_state(SbdState::Condemned);
                }
            }
            Output::PublishIdle { generation } => self.side.set_idle_generation(generation),
            Output::RetireFeeder { is_crash } => {
                // Nothing is written after an answer.
                self.flush = None;
                if let Some(feeder) = &self.feeder {
                    feeder.retire(is_crash);
                }
            }
            Output::SetWatchdog { watchdog_ms } => {
                if let Some(feeder) = &self.feeder {
                    feeder.set_time(watchdog_ms);
                }
            }
            Output::Flush { until_ms } => {
                if self.watch.as_ref().is_some_and(|watch| watch.flushes) {
                    self.flush = Flush::start(until_ms, &self.log);
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
        self.first_cycle_ms.get_or_insert_with(now_ms);
        let placement = &self.devices[device].placement;
        let (mut read_offset, mut read_bytes) = placement.mailbox();
        if placement.has_own_name() && now_ms() >= self.nameless_until_ms[device] {
            // The node's sector stands right before its mailbox.
            (read_offset, read_bytes) = (placement.node_sector().0, 2 * read_bytes);
        }
        let (write_offset, data) = placement.encode(beat, &self.node);
        self.submit(tag, device, Work::Cycle, Operation::WriteThenRead { write_offset, data, read_offset, read_bytes });
    }

    fn arm(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| watch.begin == WatchBegin::Try) {
            let (status, since_ms) = (self.machine.status(), self.first_cycle_ms.unwrap_or(0));
            self.end = Some(LifeEnd::Ready { beat: status.beat, since_ms, unread: status.unread });
            return;
        }
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

    fn publish_lease(&mut self, (end_ms, own_end_ms): (u64, u64), before_ms: Option<u64>, (number, beat): (u64, u64), cycle_ms: u64) {
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
        feeder.set_lease_end(end_ms * NS_PER_MS);
        self.side.publish_cycle((end_ms * NS_PER_MS, own_end_ms * NS_PER_MS), number, beat, cycle_ms * 1000);
        if is_first {
            self.side.set_state(SbdState::Alive);
            if let Some(watch) = &mut self.watch {
                std::mem::replace(&mut watch.alive, Box::new(|| ()))();
            }
        }
    }

    fn begin_reset(&mut self, command: ResetCommand, reason: &ResetReason) {
        let timeout_action = self.watch.as_ref().map(|watch| watch.timeout_action);
        let command = timeout_action.filter(|_| !matches!(reason, ResetReason::Pill { .. })).unwrap_or(command);
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
