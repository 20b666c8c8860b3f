//! What: recovery of three nodes' locks after one of them is gone, and what clients of an untouched resource notice of it.
//! Owns: three services in one process that exchange their bytes, each with a clock of its own.
//! Invariants: a node's clock advances by what its service takes, and to the arrival of what it takes in: as if each node had a core of
//!   its own and messages took no time, whatever else runs on this machine's cores.
//! Does not: cross a network, or wait for evidence.
//! Called by: the measurements of the service.

use super::solo::{life, lock_request, posted_unlock, resource};
use crate::{
    clock::used,
    floors::SOCKET,
    locks::Scale,
    names::{Name, name},
    sheet::{Case, Measured, Reach, Row},
    worker::{Order, Worker},
};
use anyhow::{Context, Result, bail};
use deadbolt_disk_format::types::{Life, Owed, ViewNumber};
use deadbolt_dlm_core::{ClientReply, ClientRequest, Input, LockService, LockStatus, Mode, Output, SessionInfo};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

const ALL: &str = "core: rebuild of 1 M locks that the node lost was master of, two survivors";
const ALL_PAUSE: &str = "core: longest pause of an untouched resource meanwhile";
const SPREAD: &str = "core: recovery where 1 M locks were spread over the three, each its own master";
const SPREAD_PAUSE: &str = "core: longest pause of an untouched resource during that";

/// The node that is lost.
const LOST: usize = 2;
/// A session that locks what is rebuilt; every so many locks another one.
const LOCKS_PER_SESSION: u64 = 50_000;
/// The session that uses the untouched resource.
const PROBE: u64 = 1;
/// Requests put in before outputs are polled while tables are filled.
const BATCH: usize = 256;
/// Nothing here takes longer on a node's clock.
const PATIENCE: Duration = Duration::from_secs(60);
/// Names that are tried until one is found whose home is the node itself.
const PROBE_NAMES: u64 = 1000;

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let entries = scale.entries;
    let rows =
        |time, pause| vec![Row::new(time, "ms").over(&[SOCKET]).reach(Reach::Ratio(2.0)), Row::new(pause, "ms").reach(Reach::Value(5.0))];
    vec![
        Case::new(rows(ALL, ALL_PAUSE), move || apart(Before::AtTheLost, entries)),
        Case::new(rows(SPREAD, SPREAD_PAUSE), move || apart(Before::Everywhere, entries)),
    ]
}

/// Who was master of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Before {
    AtTheLost,
    Everywhere,
}

/// A client that takes and gives back the same lock again and again.
#[derive(Default)]
struct Prober {
    name: Option<Name>,
    last_end: Duration,
    longest: Duration,
    is_asking: bool,
}

struct Node {
    life: Life,
    service: LockService,
    /// What its service has taken, waits included.
    clock: Duration,
    /// Messages with the time when they were sent.
    inbox: VecDeque<(Duration, Life, Vec<u8>)>,
    replies: VecDeque<(u64, ClientReply)>,
    recovered: u64,
    lockspace: u32,
    serial: u64,
    prober: Prober,
}

impl Node {
    fn new(slot: u16) -> Self {
        Self {
            life: life(slot),
            service: LockService::new(life(slot)),
            clock: Duration::ZERO,
            inbox: VecDeque::new(),
            replies: VecDeque::new(),
            recovered: 0,
            lockspace: 0,
            serial: 0,
            prober: Prober::default(),
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Nothing is there for the node before that. A client that was not asking has waited for nothing.
    fn idle_until(&mut self, at: Duration) {
        let idle = at.saturating_sub(self.clock);
        self.clock += idle;
        if !self.prober.is_asking {
            self.prober.last_end += idle;
        }
    }

    fn lock_request(&mut self, name: &Name, mode: Mode) -> Result<ClientRequest> {
        Ok(lock_request(self.next_serial(), self.lockspace, resource(name)?, mode))
    }
}

struct World {
    nodes: Vec<Node>,
}

impl World {
    /// Three members with a lockspace that all have joined, each with an untouched resource.
    fn new() -> Result<Self> {
        let mut world = Self { nodes: (0..3).map(Node::new).collect() };
        let members: Vec<Life> = world.nodes.iter().map(|node| node.life).collect();
        for index in 0..world.nodes.len() {
            world.view(index, 1, &members, &[])?;
            world.input(index, Input::Permit { may_grant: true })?;
        }
        world.settle()?;
        for index in 0..world.nodes.len() {
            world.open(index, PROBE)?;
            world.find_untouched(index)?;
        }
        Ok(world)
    }

    fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).context("no such node")
    }

    fn view(&mut self, index: usize, number: u64, members: &[Life], owed: &[Owed]) -> Result<()> {
        let view = Input::View { number: ViewNumber(number), members: members.to_vec(), owed: owed.to_vec(), is_member: true };
        self.input(index, view)
    }

    /// Opens a session that has joined the lockspace.
    fn open(&mut self, index: usize, session: u64) -> Result<()> {
        self.input(index, Input::SessionOpened { session, info: SessionInfo { pid: 1 } })?;
        let serial = self.node(index)?.next_serial();
        self.input(index, Input::Request { session, request: ClientRequest::JoinLockspace { serial, name: b"bench".to_vec() } })?;
        self.settle()?;
        let node = self.node(index)?;
        match node.replies.pop_front() {
            Some((_, ClientReply::Joined { lockspace, .. })) => node.lockspace = lockspace,
            other => bail!("the lockspace was not joined: {other:?}"),
        }
        Ok(())
    }

    /// A resource that is locked without a message has its home and its master here.
    fn find_untouched(&mut self, index: usize) -> Result<()> {
        for number in 0..PROBE_NAMES {
            // Beyond the names of the locks to rebuild.
            let name = name((1 << 30) + number);
            let node = self.node(index)?;
            let request = node.lock_request(&name, Mode::Nl)?;
            self.input(index, Input::Request { session: PROBE, request })?;
            let is_local = self.nodes.iter().all(|node| node.inbox.is_empty());
            self.settle()?;
            let node = self.node(index)?;
            node.replies.clear();
            if is_local {
                node.prober.name = Some(name);
                return Ok(());
            }
        }
        bail!("none of {PROBE_NAMES} names has its home at node {index}");
    }

    /// One input, with everything that follows at this node, on the node's clock.
    fn input(&mut self, index: usize, input: Input) -> Result<()> {
        let node = self.node(index)?;
        let now_ms = u64::try_from(node.clock.as_millis())?;
        let before = used()?;
        node.service.handle(now_ms, input);
        self.poll(index, before)
    }

    /// Takes the outputs; the processor time since `before` is the node's.
    fn poll(&mut self, index: usize, before: Duration) -> Result<()> {
        let node = self.node(index)?;
        let mut sent = Vec::new();
        while let Some(output) = node.service.poll_output() {
            match output {
                Output::Send { to, message } => sent.push((to, message)),
                Output::Reply { reply: ClientReply::Blocking { .. }, .. } => {}
                Output::Reply { session, reply } => node.replies.push_back((session, reply)),
                Output::Holds(is_held) => node.service.handle(0, Input::HoldsPublished(is_held)),
                Output::Recovered(view) => node.recovered = view.0,
                _ => {}
            }
        }
        node.clock += used()?.saturating_sub(before);
        let (from, clock) = (node.life, node.clock);
        for (to, message) in sent {
            // Nobody hears what is said to the lost.
            if let Some(node) = self.nodes.iter_mut().find(|node| node.life == to) {
                node.inbox.push_back((clock, from, message));
            }
        }
        Ok(())
    }

    /// The node whose turn comes first, and whether it is a message; none when nothing is left to do.
    fn next(&self) -> Option<(usize, bool)> {
        let due = |node: &Node| node.service.next_deadline().map(|at_ms| Duration::from_millis(at_ms).max(node.clock));
        let turns = self.nodes.iter().enumerate().flat_map(|(index, node)| {
            let message = node.inbox.front().map(|(sent, ..)| ((*sent).max(node.clock), index, true));
            [message, due(node).map(|at| (at, index, false))].into_iter().flatten()
        });
        turns.min().map(|(_, index, is_message)| (index, is_message))
    }

    /// One turn of the node whose turn it is. False: nothing is left to do.
    fn step(&mut self) -> Result<bool> {
        let Some((index, is_message)) = self.next() else { return Ok(false) };
        let node = self.node(index)?;
        if node.clock > PATIENCE {
            bail!("no end after {} s", PATIENCE.as_secs());
        }
        if is_message {
            let Some((sent, from, message)) = node.inbox.pop_front() else { return Ok(false) };
            node.idle_until(sent);
            self.input(index, Input::Peer { from, message })?;
        } else {
            let at_ms = node.service.next_deadline().unwrap_or(0);
            node.idle_until(Duration::from_millis(at_ms));
            self.input(index, Input::Tick)?;
        }
        Ok(true)
    }

    fn settle(&mut self) -> Result<()> {
        while self.nodes.iter().any(|node| !node.inbox.is_empty()) && self.step()? {}
        Ok(())
    }

    /// Locks these names at a node, in sessions of limited size.
    fn fill(&mut self, index: usize, numbers: impl Iterator<Item = u64>, mode: Mode) -> Result<()> {
        let (mut count, mut session, mut waiting) = (0, 1, 0);
        for number in numbers {
            if count % LOCKS_PER_SESSION == 0 {
                session += 1;
                self.end_batch(index)?;
                self.open(index, session)?;
            }
            count += 1;
            let node = self.node(index)?;
            let request = node.lock_request(&name(number), mode)?;
            node.service.handle(0, Input::Request { session, request });
            waiting += 1;
            if waiting == BATCH {
                waiting = 0;
                self.end_batch(index)?;
            }
        }
        self.end_batch(index)
    }

    fn end_batch(&mut self, index: usize) -> Result<()> {
        self.poll(index, used()?)?;
        self.settle()?;
        let node = self.node(index)?;
        let is_granted = |reply: &ClientReply| matches!(reply, ClientReply::Completed { status: LockStatus::Success, .. });
        if let Some((_, reply)) = node.replies.iter().find(|(_, reply)| !is_granted(reply)) {
            bail!("a lock was not granted: {reply:?}");
        }
        node.replies.clear();
        Ok(())
    }

    /// The client of the untouched resource: takes it, and gives it back as soon as it has it.
    fn probe(&mut self, index: usize) -> Result<()> {
        let node = self.node(index)?;
        let Some(name) = node.prober.name else { return Ok(()) };
        if !node.prober.is_asking {
            node.prober.is_asking = true;
            let request = node.lock_request(&name, Mode::Cr)?;
            self.input(index, Input::Request { session: PROBE, request })?;
        }
        let node = self.node(index)?;
        let answer = node.replies.pop_front();
        node.replies.clear();
        match answer {
            Some((_, ClientReply::Completed { lock, status: LockStatus::Success, .. })) => {
                let (clock, prober) = (node.clock, &mut node.prober);
                prober.longest = prober.longest.max(clock.saturating_sub(prober.last_end));
                prober.last_end = clock;
                prober.is_asking = false;
                self.input(index, Input::Request { session: PROBE, request: posted_unlock(lock) })
            }
            None => Ok(()),
            other => bail!("the untouched resource: {other:?}"),
        }
    }

    /// The survivors learn a view; answers when both have recovered, by the later clock.
    fn recover(&mut self, number: u64, members: &[Life], owed: &[Owed]) -> Result<Duration> {
        let begin = self.nodes.iter().map(|node| node.clock).max().unwrap_or_default();
        for index in 0..members.len() {
            self.node(index)?.idle_until(begin);
            self.view(index, number, members, owed)?;
            self.probe(index)?;
        }
        while self.nodes.iter().any(|node| node.recovered < number) {
            let Some((index, _)) = self.next() else { bail!("recovery in view {number} does not go on") };
            self.step()?;
            self.probe(index)?;
        }
        for index in 0..members.len() {
            self.probe(index)?;
        }
        let end = self.nodes.iter().map(|node| node.clock).max().unwrap_or_default();
        Ok(end.saturating_sub(begin))
    }
}

/// The lost node was first to lock every name, so that it is master of all; the survivors share the locks.
fn fill_at_the_lost(world: &mut World, entries: u64) -> Result<()> {
    world.fill(LOST, 0..entries, Mode::Nl)?;
    world.fill(0, (0..entries).step_by(2), Mode::Pr)?;
    world.fill(1, (1..entries).step_by(2), Mode::Pr)
}

/// Each node locked its own third.
fn fill_everywhere(world: &mut World, entries: u64) -> Result<()> {
    (0..3).try_for_each(|index| world.fill(index, (index as u64..entries).step_by(3), Mode::Ex))
}

/// Has a fresh process measure it: the tables of three nodes go with it.
fn apart(before: Before, entries: u64) -> Result<Measured> {
    Worker::start(&Order::Rebuild { before, entries })?.answer()
}

/// Measures it in this process.
pub(crate) fn measure(before: Before, entries: u64) -> Result<Measured> {
    let mut world = World::new()?;
    match before {
        Before::AtTheLost => fill_at_the_lost(&mut world, entries)?,
        Before::Everywhere => fill_everywhere(&mut world, entries)?,
    }
    let lost = world.nodes.pop().context("three nodes")?.life;
    let members: Vec<Life> = world.nodes.iter().map(|node| node.life).collect();
    let start = world.nodes.iter().map(|node| node.clock).max().unwrap_or_default();
    for node in &mut world.nodes {
        node.inbox.clear();
        (node.clock, node.prober.last_end) = (start, start);
    }
    // First removed, then proved gone: each time the survivors learn a view.
    let removed = world.recover(2, &members, &[Owed { life: lost, removed_in: ViewNumber(2) }])?;
    let gone = world.recover(3, &members, &[])?;
    let longest = world.nodes.iter().map(|node| node.prober.longest).max().unwrap_or_default();
    Ok(Measured::Values(vec![(removed + gone).as_secs_f64() * 1e3, longest.as_secs_f64() * 1e3]))
}
