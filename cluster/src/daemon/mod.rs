//! What: the process `deadboltd` in its daemon part: sockets, engines and the shared page around one `Node`.
//! Owns: the event loop, the disk engines, the sockets of the node directory.
//! Invariants: the loop never waits for a disk; it advances the page's turn counter on every turn; nothing is sent to a client after the
//!   lease that sbd published has run out.
//! Does not: decide; write the beat; start processes but fence agents and heuristics, or threads but theirs and those of ejections; write
//!   node.toml, but for a new name.
//! Called by: `deadboltd --daemon`, started by the supervisor.

pub mod control;
mod effects;
mod locks;
pub mod status;

use crate::{
    agents::AgentDone,
    config::{NodeDirectory, NodeFile},
    devices::{self, ClusterDevice, DevicesError},
    heuristics::Heuristics,
    links::{LinkEvent, Links},
    look::{self, Seen},
    node::{Node, NodeInput, NodeSetup, arbitrate},
    protection::{EjectDone, Protection},
    seal::ClusterKey,
    supervisor,
};
use anyhow::{Context, Result};
use control::{ControlRequest, ControlSocket};
use deadbolt_cluster_core::{membership, timing};
use deadbolt_disk::{Access, BackendChoice, Completion, Engine, now_ns};
use deadbolt_disk_format::{Beat, Configuration, Incarnation, LeftLives, Life, NodeEntry, SlotIndex, ViewBody, ViewNumber, sbd::Command};
use deadbolt_dlm::server::Server;
use deadbolt_sbd::{
    page::{DaemonSide, Page, SbdState},
    pill::{Pill, PillKey, encode_pill},
};
use effects::Effects;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// How the daemon is started by the supervisor.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The node's directory.
    pub directory: NodeDirectory,
    /// What stands for the protected devices that the supervisor has registered on; none where there are none.
    pub protected: Option<u32>,
}

/// How one incarnation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// *Left* is recorded; go on under a new incarnation.
    NewIncarnation,
    /// *Left* is recorded and a stop was asked for.
    Stopped,
    /// The node must be reset; the page says so already.
    Reset,
}

/// Exit code after a clean stop.
const EXIT_STOPPED: u8 = 0;
/// Exit code of a daemon that asked for a reset.
const EXIT_RESET: u8 = 70;
/// Where the number of the incarnation stands in a tag: below the node's part, above every counter.
const EPOCH_SHIFT: u32 = 48;
/// How often the turn counter is advanced at least: by every fourth part of the stall tolerance, and this often where that is longer.
const TURN: Duration = Duration::from_millis(250);
/// How long the first look waits for the last devices once a majority has answered. Chosen: far above a read.
const LOOK: Duration = Duration::from_secs(1);

/// CLOCK_BOOTTIME in ms.
pub(crate) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Runs the daemon until it stops; returns its exit code.
///
/// # Errors
/// It could not start.
pub fn run(options: &DaemonOptions) -> Result<u8> {
    raise_descriptor_limit();
    let page = Page::from_environment().context("the daemon is started by the supervisor (deadboltd --supervise), not by hand")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut daemon = Daemon::open(options, page)?;
        loop {
            match daemon.live().await? {
                // The life that left held nothing; its word must not speak for the next one.
                Outcome::NewIncarnation => daemon.side.set_holds(false),
                Outcome::Stopped => return daemon.finish().await,
                Outcome::Reset => return Ok(EXIT_RESET),
            }
        }
    });
    runtime.shutdown_background();
    code
}

/// What lasts across incarnations of one process.
pub(crate) struct Daemon {
    directory: NodeDirectory,
    file: NodeFile,
    key: ClusterKey,
    devices: Vec<ClusterDevice>,
    engines: Vec<Engine>,
    completions: mpsc::UnboundedReceiver<(usize, Completion)>,
    side: DaemonSide,
    published: AsyncFd<std::os::fd::OwnedFd>,
    slot: SlotIndex,
    initial: Option<Configuration>,
    /// Number of the incarnation within this process, for the tags of disk work.
    epoch: u8,
    /// Writes that were submitted and whose answer was not taken yet: device and tag.
    writes: BTreeSet<(usize, u64)>,
    terminate: Signal,
    /// Where fence agents answer; the receiver is here, too.
    agents: (mpsc::UnboundedSender<AgentDone>, mpsc::UnboundedReceiver<AgentDone>),
    heuristics: Heuristics,
    protection: Option<Protection>,
    ejections: (mpsc::UnboundedSender<EjectDone>, mpsc::UnboundedReceiver<EjectDone>),
    /// A stop was asked for: the next incarnation, if there is one, goes on stopping.
    is_stopping: bool,
}

impl Daemon {
    fn open(options: &DaemonOptions, page: Page) -> Result<Self> {
        let directory = options.directory.clone();
        let file = directory.read_node()?;
        let key = directory.read_key()?;
        let devices = devices::open_for(&file, Access::ReadWrite)?;
        let first = devices.first().context("node.toml names no device")?;
        timing::check(&first.superblock.timings)?;
        let (slot, initial) = find_slot(&directory, &file, &devices)?;
        let protection = Protection::of(&file, first.superblock.cluster, slot)?;
        check_registered(protection.as_ref().map(Protection::mark), options.protected)?;
        let heuristics = Heuristics::start(&file).context("no thread for the heuristics")?;
        let side = page.daemon();
        let (sender, completions) = mpsc::unbounded_channel();
        let mut engines = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let sender = sender.clone();
            let sink = Box::new(move |completion| {
                let _ = sender.send((index, completion));
            });
            engines.push(Engine::start(device.device.clone(), BackendChoice::Threads, sink)?);
        }
        let event = side.published_event().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the AsyncFd, always returns itself and stays open until the AsyncFd is dropped.
        let published = unsafe { AsyncFd::register(event)? };
        Ok(Self {
            directory,
            file,
            key,
            devices,
            engines,
            completions,
            side,
            published,
            slot,
            initial,
            epoch: 0,
            writes: BTreeSet::new(),
            terminate: signal(SignalKind::terminate())?,
            agents: mpsc::unbounded_channel(),
            heuristics,
            ejections: mpsc::unbounded_channel(),
            protection,
            is_stopping: false,
        })
    }

    /// One incarnation, from its first read to its end.
    async fn live(&mut self) -> Result<Outcome> {
        self.wait_for_sbd().await?;
        self.drain().await?;
        let seen = self.turning(first_look(&self.devices)).await??;
        let view = look::newest_view(&seen).map_err(|view| DevicesError::NoBody { view })?;
        let mut node = self.make_node(look::newest_beat(&seen, self.slot), &view)?;
        let me = node.me();
        let first = self.devices.first().context("no device")?;
        let (link_sender, mut link_events) = mpsc::channel(4096);
        let (datagram_sender, mut datagrams) = mpsc::channel(256);
        let (cluster, timings) = (first.superblock.cluster, &first.superblock.timings);
        let links = Links::start(&self.file.addresses, self.key.clone(), cluster, me, timings, link_sender, datagram_sender)?;
        let (control_sender, mut control_requests) = mpsc::channel(64);
        let group = self.file.group_number()?;
        let _control = ControlSocket::bind(&self.directory.control_socket(), group, control_sender)?;
        let server = Server::bind(&self.directory.lock_socket(), group, effects::accept_hook(&self.file))?;
        let mut effects = Effects::new(links, server);
        node.handle(now_ms(), NodeInput::Start);
        if self.is_stopping {
            node.handle(now_ms(), NodeInput::Stop);
        }
        let longest = self.longest_turn();
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut alarm_ms = None;
        loop {
            self.side.advance_turn();
            // Before anything else: a flood of messages must not keep this node from saying that it lives.
            if now_ms() >= node.next_deadline() {
                node.handle(now_ms(), NodeInput::Tick);
            }
            if let Some(outcome) = self.apply(&mut node, &mut effects)? {
                return Ok(outcome);
            }
            let deadline_ms = node.next_deadline();
            if alarm_ms.replace(deadline_ms) != Some(deadline_ms) {
                let wait = Duration::from_millis(deadline_ms.saturating_sub(now_ms())).min(longest);
                alarm.as_mut().reset(tokio::time::Instant::now() + wait);
            }
            tokio::select! {
                biased;
                ready = self.published.readable() => {
                    ready?.clear_ready();
                    self.side.clear_published();
                    self.read_page(&mut node)?;
                }
                _ = self.terminate.recv() => {
                    self.is_stopping = true;
                    node.handle(now_ms(), NodeInput::Stop);
                }
                Some((device, completion)) = self.completions.recv() => self.handle_completion(&mut node, device, completion),
                Some(datagram) = datagrams.recv() => effects.handle_datagram(&mut node, &datagram),
                Some(event) = link_events.recv() => effects.handle_link(&mut node, event),
                () = effects.clients_ready() => {
                    if let Some(outcome) = self.serve_clients(&mut node, &mut effects)? {
                        return Ok(outcome);
                    }
                }
                Some(AgentDone { victim, off_at_ms }) = self.agents.1.recv() => {
                    node.handle(now_ms(), NodeInput::AgentDone { victim, off_at_ms });
                }
                Some(EjectDone { victim, is_ejected }) = self.ejections.1.recv() => {
                    node.handle(now_ms(), NodeInput::EjectDone { victim, is_ejected });
                }
                Some(standing) = self.heuristics.next() => node.handle(now_ms(), NodeInput::Standing(standing)),
                Some(request) = control_requests.recv() => self.handle_control(&mut node, &mut effects, request),
                () = &mut alarm => alarm_ms = None,
            }
        }
    }

    /// The lease of an incarnation begins with sbd's first complete cycle.
    async fn wait_for_sbd(&mut self) -> Result<()> {
        loop {
            self.side.advance_turn();
            match self.side.sbd_state() {
                SbdState::Alive => return Ok(()),
                SbdState::Condemned => anyhow::bail!("sbd ends this node"),
                SbdState::Stopped => anyhow::bail!("sbd has stopped"),
                SbdState::None | SbdState::Starting => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until no write that an earlier incarnation submitted is on its way any more; a read that hangs on one of three devices hinders
    /// nobody. Answers to it cannot be taken for those to the next one: the tags carry the number of the incarnation.
    async fn drain(&mut self) -> Result<()> {
        let is_writing =
            |(device, engine): (usize, &Engine)| engine.outstanding().iter().any(|(tag, _)| self.writes.contains(&(device, *tag)));
        let wait = async {
            while self.engines.iter().enumerate().any(is_writing) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        self.turning(wait).await?;
        // Answers that are still on their way to the channel carry the old number.
        self.epoch = self.epoch.wrapping_add(1);
        Ok(())
    }

    /// Waits for something while the loop's turn counter advances.
    async fn turning<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut turn = tokio::time::interval(self.longest_turn());
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = turn.tick() => self.side.advance_turn(),
            }
        }
    }

    fn longest_turn(&self) -> Duration {
        let stall_ms = self.devices.first().map_or(0, |device| device.superblock.timings.stall_ms);
        TURN.min(Duration::from_millis(u64::from(stall_ms / 4).max(1)))
    }

    fn make_node(&mut self, beat: Option<&Beat>, view: &ViewBody) -> Result<Node> {
        let first = self.devices.first().context("no device")?;
        // What an earlier incarnation was granted is none of this one's.
        self.side.extend(0, 0);
        let boot = self.side.boot();
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
        let me = Life { slot: self.slot, boot, incarnation: Incarnation(incarnation) };
        let carried_left = beat.map_or_else(LeftLives::default, |beat| membership::carried_left(beat, boot, view));
        let name = self.file.name.clone();
        let key = PillKey::new(self.key.bytes());
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        let setup = NodeSetup {
            membership: membership::Setup {
                me,
                devices: self.devices.len(),
                slots: first.superblock.slots,
                timings: first.superblock.timings,
                carried_left,
                carried_vouches: beat.map_or_else(Vec::new, |beat| beat.daemon.vouches.clone()),
                // Beyond every number of an earlier daemon of this boot: parts are published less often than once per microsecond.
                first_number: now_ns() / 1000,
                initial: self.initial.clone(),
                arbiter: arbitrate,
                protected: self.protection.as_ref().map_or(0, Protection::mark),
            },
            cluster: first.superblock.cluster,
            layouts: self.devices.iter().map(|device| device.superblock.layout).collect(),
            seed: u64::from_le_bytes(incarnation[..8].try_into().unwrap_or_default()),
            wall_offset_ms: wall_ms.saturating_sub(now_ms()),
            encode_pill: Box::new(move |victim, serial, sector_bytes| {
                let pill = Pill { command: Command::Reset, sender: &name, victim: victim.boot, serial };
                encode_pill(&pill, &key, sector_bytes)
            }),
        };
        let mut node = Node::new(setup, now_ms());
        node.handle(now_ms(), NodeInput::Standing(self.heuristics.standing()));
        tracing::info!(node = %self.file.name, slot = me.slot.0, boot = %me.boot, incarnation = %me.incarnation, "incarnation begins");
        Ok(node)
    }

    /// Does what the node wants, in order.
    fn apply(&mut self, node: &mut Node, effects: &mut Effects) -> Result<Option<Outcome>> {
        while let Some(output) = node.poll_output() {
            if let Some(outcome) = effects.apply(self, node, output)? {
                return Ok(Some(outcome));
            }
        }
        effects.flush();
        Ok(None)
    }

    /// Answers clients turn after turn while they go on at once, without asking every other source each time.
    fn serve_clients(&mut self, node: &mut Node, effects: &mut Effects) -> Result<Option<Outcome>> {
        loop {
            effects.handle_clients(node);
            let outcome = self.apply(node, effects)?;
            if outcome.is_some() || !effects.have_clients_more() {
                return Ok(outcome);
            }
        }
    }

    /// A view may have given this node another name: under the old one it would not be found at its next start.
    fn follow_name(&mut self, nodes: &[NodeEntry]) {
        let Some(name) = nodes.iter().find(|node| node.slot == self.slot).map(|node| &node.name).filter(|name| **name != self.file.name)
        else {
            return;
        };
        tracing::info!(old = %self.file.name, new = %name, "this node has another name; its node.toml follows, sbd at the next start");
        if let Err(error) = self.directory.rename(name) {
            tracing::error!(%error, "node.toml still has the old name; the next start tries again");
        }
        self.file.name.clone_from(name);
    }

    fn read_page(&mut self, node: &mut Node) -> Result<()> {
        match self.side.sbd_state() {
            SbdState::Condemned => anyhow::bail!("sbd ends this node"),
            SbdState::None | SbdState::Starting | SbdState::Alive | SbdState::Stopped => {}
        }
        let (lease_end_ms, own_end_ms) = (self.side.lease_end_ns() / 1_000_000, self.side.own_end_ns() / 1_000_000);
        let (published, beat) = (self.side.published_number(), self.side.beat());
        node.handle(now_ms(), NodeInput::Lifeline { lease_end_ms, own_end_ms, published, beat });
        Ok(())
    }

    fn handle_completion(&mut self, node: &mut Node, device: usize, completion: Completion) {
        self.writes.remove(&(device, completion.tag));
        let Some(tag) = self.untag(completion.tag) else { return };
        let result = completion.result.map_err(|error| {
            tracing::warn!(device, %error, "disk operation failed");
        });
        node.handle(
            now_ms(),
            NodeInput::Disk {
                tag,
                device,
                issued_ms: completion.issued_ns / 1_000_000,
                ended_ms: completion.ended_ns.div_ceil(1_000_000),
                result,
            },
        );
    }

    /// The tag of disk work as the engine carries it.
    pub(crate) fn tag(&self, tag: u64) -> u64 {
        tag | (u64::from(self.epoch) << EPOCH_SHIFT)
    }

    /// The tag of this incarnation's disk work; none for an answer to an earlier one.
    fn untag(&self, tag: u64) -> Option<u64> {
        let epoch = u64::from(self.epoch) << EPOCH_SHIFT;
        let mask = u64::from(u8::MAX) << EPOCH_SHIFT;
        (tag & mask == epoch).then_some(tag & !mask)
    }

    fn handle_control(&mut self, node: &mut Node, effects: &mut Effects, request: ControlRequest) {
        effects.handle_control(self, node, request);
    }

    /// After a clean stop: sbd disarms and writes its last beat.
    async fn finish(&mut self) -> Result<u8> {
        self.side.request_stop();
        let wait = async {
            while self.side.sbd_state() != SbdState::Stopped {
                self.side.advance_turn();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = Duration::from_millis(u64::from(self.devices.first().map_or(5000, |device| device.superblock.timings.lease_ms)));
        if tokio::time::timeout(patience, wait).await.is_err() {
            tracing::warn!("sbd did not stop within the lease");
        }
        Ok(EXIT_STOPPED)
    }
}

/// Each lock client takes three descriptors, and the usual soft limit is 1024; where the limit stays, clients beyond it wait to be accepted.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(RLIMIT_NOFILE) {
        let _ = setrlimit(RLIMIT_NOFILE, hard, hard);
    }
}

/// Every device is asked at once; one that does not answer hinders nobody for long.
async fn first_look(devices: &[ClusterDevice]) -> Result<Vec<Seen>> {
    let mut looks = tokio::task::JoinSet::new();
    for device in devices {
        let device = device.clone();
        looks.spawn_blocking(move || Seen::read(&device));
    }
    let mut seen = Vec::new();
    let mut failed = None;
    let until = tokio::time::Instant::now() + LOOK;
    loop {
        tokio::select! {
            look = looks.join_next() => match look {
                None => break,
                Some(look) => match look? {
                    Ok(one) => seen.push(one),
                    Err(error) => failed = Some(error),
                },
            },
            () = tokio::time::sleep_until(until), if look::is_majority(&seen, devices.len()) => break,
        }
    }
    // Blocking reads cannot be taken back.
    looks.detach_all();
    match failed {
        Some(error) if !look::is_majority(&seen, devices.len()) => Err(error.into()),
        _ => Ok(seen),
    }
}

/// This node's slot: by its name in the newest view; slot 0 with the configuration that `init` left, on a device where nobody was ever in.
///
/// # Errors
/// The node is not configured.
pub fn find_slot(directory: &NodeDirectory, file: &NodeFile, devices: &[ClusterDevice]) -> Result<(SlotIndex, Option<Configuration>)> {
    let first = devices.first().context("node.toml names no device")?;
    let view = look::newest_view_on(devices)?;
    if let Some(node) = view.configuration.nodes.iter().find(|node| node.name.eq_ignore_ascii_case(&file.name)) {
        return Ok((node.slot, None));
    }
    let path = initial_file(directory);
    if view.view == ViewNumber(0) && path.exists() {
        let configuration = crate::initial::read(&path, &first.superblock, file)?;
        return Ok((SlotIndex(0), Some(configuration)));
    }
    let names: Vec<&str> = view.configuration.nodes.iter().map(|node| node.name.as_str()).collect();
    anyhow::bail!(
        "node {} is not configured in cluster {} (nodes: {}); run `deadbolt join`",
        file.name,
        first.superblock.name,
        names.join(", ")
    )
}

/// Others eject this node from what its beat says that it has registered on, and that was done once, at the start of the node.
fn check_registered(wanted: Option<u32>, registered: Option<u32>) -> Result<()> {
    anyhow::ensure!(
        wanted == registered,
        "protected_devices in node.toml are not those that this node has registered on at its start: stop the node and start it, or write \
         back what stood there"
    );
    Ok(())
}

/// The name that a view gave this node while it was away: no node has the name of the file, but a configured node's slot still carries it.
///
/// # Errors
/// The devices cannot be read.
pub fn find_new_name(file: &NodeFile, devices: &[ClusterDevice]) -> Result<Option<String>> {
    let nodes = look::newest_view_on(devices)?.configuration.nodes;
    let is_own = |name: &str| file.former_names.iter().chain([&file.name]).any(|own| own.eq_ignore_ascii_case(name));
    if nodes.iter().any(|node| node.name.eq_ignore_ascii_case(&file.name)) {
        return Ok(None);
    }
    let own: BTreeSet<SlotIndex> =
        look::sbd_names_on(devices)?.into_iter().filter(|(_, name)| is_own(name)).map(|(slot, _)| slot).collect();
    let mut found = nodes.into_iter().filter(|node| own.contains(&node.slot));
    // Two that may be meant are none.
    Ok(found.next().map(|node| node.name).filter(|_| found.next().is_none()))
}

/// Where `init` leaves the wishes for the first view.
#[must_use]
pub fn initial_file(directory: &NodeDirectory) -> PathBuf {
    directory.0.join("initial.toml")
}

/// Answers that wait for evidence: an operator's fence.
pub(crate) type Waiting = BTreeMap<Life, Vec<oneshot::Sender<serde_json::Value>>>;
pub(crate) type NetworkEvent = LinkEvent;
pub(crate) use supervisor::is_descendant;
