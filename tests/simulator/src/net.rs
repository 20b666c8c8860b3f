//! What: the network: datagrams that get lost, connections that break, ways that are cut.
//! Owns: which directions are cut; the connections and what is on its way on them.
//! Invariants: a connection delivers in order or breaks, and nothing of one connection on another; a datagram passes the production seal.
//! Does not: order or repeat messages across connections (the channel does).
//! Called by: the world.

use crate::{
    machine::{Daemon, Pid, Process, Stage},
    world::{Event, World},
};
use deadbolt_cluster::node::NodeInput;
use deadbolt_cluster_core::{
    channel::Frame,
    hello::{Beyond, Hello, NodeMessage},
};
use deadbolt_disk_format::{Life, NodeEntry};
use std::collections::{BTreeMap, VecDeque};

/// Pause between two tries to connect.
const RECONNECT_US: u64 = 200_000;
/// Old datagrams kept for replay.
const REPLAY_KEPT: usize = 256;
/// Once there are so many, one in so many new ones takes the place of any kept one, so that some stay for long.
const REPLAY_TURNOVER: u64 = 8;

/// One end of a connection.
#[derive(Debug)]
struct End {
    machine: usize,
    pid: Pid,
    life: Life,
    is_open: bool,
    /// When the last frame sent to this end arrives.
    arrives_us: u64,
    /// Frames on their way to this end, in order: one event of arrival for each.
    coming: VecDeque<Frame>,
    /// Frames to this end that wait for a cut to heal.
    held: VecDeque<Frame>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    ends: [End; 2],
}

/// The network.
#[derive(Debug, Default)]
pub struct Network {
    /// Directions that are cut, and how often.
    cut: BTreeMap<(usize, usize), u32>,
    /// From when to when directions were cut.
    cut_spans: BTreeMap<(usize, usize), Vec<(u64, u64)>>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Old datagrams: to whom, bytes.
    old: Vec<(usize, Vec<u8>)>,
}

impl Network {
    /// Does a direction work?
    #[must_use]
    pub fn is_open(&self, from: usize, to: usize) -> bool {
        !self.cut.contains_key(&(from, to))
    }

    /// Did a direction work all the time?
    pub(crate) fn was_open(&self, from: usize, to: usize, since_us: u64, until_us: u64) -> bool {
        let spans = self.cut_spans.get(&(from, to)).map_or(&[][..], Vec::as_slice);
        spans.iter().all(|(cut_us, healed_us)| *healed_us < since_us || until_us < *cut_us)
    }

    /// Directions that are cut.
    pub fn cuts(&self) -> impl Iterator<Item = &(usize, usize)> {
        self.cut.keys()
    }
}

impl World {
    fn way_us(&mut self) -> u64 {
        let most = self.options.net_us;
        self.random.range(most / 4 + 1, most + 1)
    }

    // Datagrams.

    pub(crate) fn say_hello(&mut self, machine: usize, hello: &Hello, nodes: &[NodeEntry]) {
        let me = self.machines[machine].slot;
        let bytes = hello.encode();
        for node in nodes.iter().filter(|node| node.slot != me) {
            let Some(target) = self.machine_at(&node.addresses) else { continue };
            let Some(sealer) = self.machines[machine].daemon.as_mut().and_then(|daemon| daemon.sealer.as_mut()) else { return };
            let frame = sealer.seal(node.slot, &bytes);
            self.send_datagram(machine, target, frame);
        }
    }

    fn send_datagram(&mut self, from: usize, to: usize, frame: Vec<u8>) {
        if !self.network.is_open(from, to) || self.random.chance(self.options.net_loss) {
            return;
        }
        let mut span = self.way_us();
        if self.options.net_delay_us > 0 {
            span += self.random.below(self.options.net_delay_us);
        }
        if self.random.chance(self.options.net_repeat) {
            let later = span + self.random.below(2_000_000);
            self.queue.after(later, Event::Datagram { machine: to, frame: frame.clone() });
        }
        self.replay(to, &frame);
        self.queue.after(span, Event::Datagram { machine: to, frame });
    }

    /// Somebody who has listened sends an old datagram again, to whom it was meant for or to another.
    fn replay(&mut self, to: usize, frame: &[u8]) {
        if self.options.net_replay == 0 {
            return;
        }
        let kept = &mut self.network.old;
        if kept.len() < REPLAY_KEPT {
            kept.push((to, frame.to_vec()));
        } else if self.random.below(REPLAY_TURNOVER) == 0 {
            kept[self.random.index(REPLAY_KEPT)] = (to, frame.to_vec());
        }
        if self.random.chance(self.options.net_replay) {
            let (to, frame) = self.network.old[self.random.index(self.network.old.len())].clone();
            let machine = if self.random.chance(100) { self.random.index(self.machines.len()) } else { to };
            let span = self.way_us();
            self.queue.after(span, Event::Datagram { machine, frame });
        }
    }

    /// A datagram arrives.
    pub(crate) fn datagram(&mut self, machine: usize, frame: Vec<u8>) {
        if !self.machines[machine].is_on {
            return;
        }
        if self.machines[machine].is_stopped(Process::Daemon) {
            // The socket's buffer.
            return self.defer(machine, Process::Daemon, Event::Datagram { machine, frame });
        }
        if self.step(machine) {
            return;
        }
        let Some(sealer) = self.machines[machine].daemon.as_mut().and_then(|daemon| daemon.sealer.as_mut()) else { return };
        // An older one than has come is news of a link, not of its sender.
        let Some(opened) = sealer.open(&frame).ok().filter(|opened| opened.is_newest) else { return };
        let is_senders = |hello: &Hello| hello.life.slot == opened.from && hello.life.incarnation == opened.incarnation;
        let hello = Hello::decode(&opened.payload).filter(is_senders);
        if let Some(hello) = hello {
            self.hello_heard(machine, &hello);
            self.node_give(machine, NodeInput::Hello(hello));
        }
    }

    // Connections.

    /// Keeps a connection with every node of a higher slot.
    pub(crate) fn follow(&mut self, machine: usize, nodes: Vec<NodeEntry>) {
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        let pid = daemon.pid;
        let epoch = daemon.epoch;
        let is_first = daemon.follow.is_empty();
        daemon.follow = nodes;
        if is_first {
            self.queue.after(1, Event::Connect { machine, pid, epoch });
        }
    }

    /// A try to connect with everybody that is missing.
    pub(crate) fn connect(&mut self, machine: usize, pid: Pid, epoch: u64) {
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Connect { machine, pid, epoch });
        }
        let slot = self.machines[machine].slot;
        let Some(daemon) = self.machines[machine].daemon.as_ref().filter(|daemon| daemon.pid == pid && daemon.epoch == epoch) else {
            return;
        };
        if !matches!(daemon.stage, Stage::Live(_)) {
            return;
        }
        let targets: Vec<usize> = daemon
            .follow
            .iter()
            .filter(|node| node.slot > slot && !daemon.connections.keys().any(|life| life.slot == node.slot))
            .filter_map(|node| self.machine_at(&node.addresses))
            .collect();
        for target in targets {
            self.connect_to(machine, target);
        }
        self.queue.after(RECONNECT_US, Event::Connect { machine, pid, epoch });
    }

    fn connect_to(&mut self, machine: usize, target: usize) {
        if !self.network.is_open(machine, target)
            || !self.network.is_open(target, machine)
            || self.machines[target].is_stopped(Process::Daemon)
        {
            return;
        }
        let mut ends = Vec::new();
        for index in [machine, target] {
            let Some(daemon) = self.machines[index].daemon.as_ref() else { return };
            let Some(life) = daemon.life() else { return };
            ends.push(End {
                machine: index,
                pid: daemon.pid,
                life,
                is_open: true,
                arrives_us: 0,
                coming: VecDeque::new(),
                held: VecDeque::new(),
            });
        }
        let Ok(mut ends) = <[End; 2]>::try_from(ends) else { return };
        self.network.next += 1;
        let number = self.network.next;
        for (index, end) in ends.iter_mut().enumerate() {
            // No frame overtakes the handshake.
            end.arrives_us = self.queue.now_us() + self.way_us();
            self.queue.at(end.arrives_us, Event::Connected { connection: number, end: index });
        }
        self.network.connections.insert(number, Connection { ends });
    }

    fn end_of(&mut self, connection: u64, end: usize) -> Option<&mut End> {
        self.network.connections.get_mut(&connection).and_then(|found| found.ends.get_mut(end))
    }

    /// Is the process of an end still the one that made it?
    fn is_current(&self, connection: u64, end: usize) -> Option<usize> {
        let end = self.network.connections.get(&connection).and_then(|found| found.ends.get(end))?;
        let daemon = self.machines[end.machine].daemon.as_ref()?;
        (daemon.pid == end.pid && daemon.life() == Some(end.life) && end.is_open).then_some(end.machine)
    }

    fn peer_of(&self, connection: u64, end: usize) -> Option<Life> {
        self.network.connections.get(&connection).and_then(|found| found.ends.get(1 - end)).map(|peer| peer.life)
    }

    /// A connection stands for one end.
    pub(crate) fn connected(&mut self, connection: u64, end: usize) {
        let Some(peer) = self.peer_of(connection, end) else { return };
        let Some(machine) = self.is_current(connection, end) else {
            // Who was called has ended meanwhile: its machine answers with a reset.
            let gone = self.end_of(connection, end).map(|end| end.machine);
            return self.break_connection(connection, gone);
        };
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Connected { connection, end });
        }
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        if let Some(older) = daemon.connections.insert(peer, connection)
            && older != connection
        {
            self.break_connection(older, None);
        }
        self.node_give(machine, NodeInput::Connected(peer));
    }

    /// Sends a frame to a peer, if a connection stands.
    pub(crate) fn send_frame(&mut self, machine: usize, peer: &Life, frame: Frame) {
        let connection = self.machines[machine].daemon.as_ref().and_then(|daemon| daemon.connections.get(peer).copied());
        let Some(connection) = connection else { return };
        if let Frame::Data { payload, .. } = &frame
            && let Some(NodeMessage::Beyond(Beyond::Consent { serial })) = NodeMessage::decode(payload)
        {
            self.facts.consented(self.queue.now_us(), *peer, Some(serial));
        }
        let to = self.network.connections.get(&connection).and_then(|found| found.ends.iter().position(|end| end.machine != machine));
        if let Some(to) = to {
            self.push_frame(connection, to, machine, frame);
        }
    }

    fn push_frame(&mut self, connection: u64, to: usize, from: usize, frame: Frame) {
        let now_us = self.queue.now_us();
        let span = self.way_us();
        let Some(target) = self.end_of(connection, to).map(|end| end.machine) else { return };
        let is_open = self.network.is_open(from, target);
        let Some(end) = self.end_of(connection, to) else { return };
        if !is_open || !end.held.is_empty() {
            end.held.push_back(frame);
            return;
        }
        end.arrives_us = end.arrives_us.max(now_us + span);
        end.coming.push_back(frame);
        let at_us = end.arrives_us;
        self.queue.at(at_us, Event::Frame { connection, end: to });
    }

    /// A frame arrives.
    pub(crate) fn frame(&mut self, connection: u64, end: usize) {
        let (Some(machine), Some(peer)) = (self.is_current(connection, end), self.peer_of(connection, end)) else { return };
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Frame { connection, end });
        }
        if self.step(machine) {
            return;
        }
        let frame = self.end_of(connection, end).and_then(|end| end.coming.pop_front());
        let known = self.machines[machine].daemon.as_ref().and_then(|daemon| daemon.connections.get(&peer).copied());
        if let Some(frame) = frame.filter(|_| known == Some(connection)) {
            self.node_give(machine, NodeInput::Frame(peer, frame));
        }
    }

    /// The node closes its connection with a peer.
    pub(crate) fn close(&mut self, machine: usize, peer: &Life) {
        let connection = self.machines[machine].daemon.as_mut().and_then(|daemon| daemon.connections.remove(peer));
        if let Some(connection) = connection {
            self.break_connection(connection, Some(machine));
        }
        let now_ms = self.local_ms(machine);
        // Its outputs are followed by the loop that this close came from.
        if let Some(node) = self.machines[machine].daemon.as_mut().and_then(Daemon::node) {
            node.handle(now_ms, NodeInput::Disconnected(*peer));
        }
    }

    /// All connections of a daemon close.
    pub(crate) fn close_all(&mut self, machine: usize) {
        let connections: Vec<u64> = self.machines[machine]
            .daemon
            .as_mut()
            .map_or_else(Vec::new, |daemon: &mut Daemon| std::mem::take(&mut daemon.connections).into_values().collect());
        for connection in connections {
            self.break_connection(connection, Some(machine));
        }
    }

    /// A connection breaks: at once for the one that closed it, later for the other. What is on its way is lost.
    fn break_connection(&mut self, connection: u64, by: Option<usize>) {
        let detect_us = u64::from(self.timings.detect_ms) * 1000;
        for end in 0..2 {
            let Some(machine) = self.end_of(connection, end).map(|end| end.machine) else { continue };
            if by == Some(machine) {
                if let Some(end) = self.end_of(connection, end) {
                    end.is_open = false;
                }
                continue;
            }
            let is_told = by.is_some_and(|by| self.network.is_open(by, machine));
            let span = if is_told { self.way_us() } else { self.random.range(detect_us / 2, detect_us) };
            self.queue.after(span, Event::Broken { connection, end });
        }
    }

    /// One end learns that its connection is gone.
    pub(crate) fn broken(&mut self, connection: u64, end: usize) {
        let (Some(machine), Some(peer)) = (self.is_current(connection, end), self.peer_of(connection, end)) else { return };
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Broken { connection, end });
        }
        if let Some(end) = self.end_of(connection, end) {
            end.is_open = false;
        }
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        if daemon.connections.get(&peer) == Some(&connection) {
            daemon.connections.remove(&peer);
            self.node_give(machine, NodeInput::Disconnected(peer));
        }
        if self.network.connections.get(&connection).is_some_and(|found| found.ends.iter().all(|end| !end.is_open)) {
            self.network.connections.remove(&connection);
        }
    }

    /// The machine is gone: its peers notice when nothing is answered any more.
    pub(crate) fn lose_connections(&mut self, machine: usize) {
        let numbers: Vec<u64> = self
            .network
            .connections
            .iter()
            .filter(|(_, found)| found.ends.iter().any(|end| end.machine == machine && end.is_open))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            for end in 0..2 {
                if let Some(end) = self.end_of(number, end).filter(|end| end.machine == machine) {
                    end.is_open = false;
                }
            }
            self.break_connection(number, None);
        }
    }

    // Cuts.

    /// Cuts a direction; connections that need it break if that lasts.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        let count = self.network.cut.entry((from, to)).or_default();
        *count += 1;
        if *count == 1 {
            self.network.cut_spans.entry((from, to)).or_default().push((self.queue.now_us(), u64::MAX));
        }
        let detect_us = u64::from(self.timings.detect_ms) * 1000;
        let span = self.random.range(detect_us / 2, detect_us);
        self.queue.after(span, Event::CutLasts { from, to });
    }

    /// A cut has lasted for the detection time.
    pub(crate) fn cut_lasts(&mut self, from: usize, to: usize) {
        if self.network.is_open(from, to) {
            return;
        }
        let numbers: Vec<u64> = self
            .network
            .connections
            .iter()
            .filter(|(_, found)| {
                let machines = [found.ends[0].machine, found.ends[1].machine];
                machines == [from, to] || machines == [to, from]
            })
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.break_connection(number, None);
        }
    }

    /// Heals a direction once.
    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        if let Some(count) = self.network.cut.get_mut(&(from, to)) {
            *count -= 1;
            if *count > 0 {
                return;
            }
            self.network.cut.remove(&(from, to));
            if let Some((_, healed_us)) = self.network.cut_spans.get_mut(&(from, to)).and_then(|spans| spans.last_mut()) {
                *healed_us = self.queue.now_us();
            }
        }
        let numbers: Vec<u64> = self.network.connections.keys().copied().collect();
        for number in numbers {
            for end in 0..2 {
                let Some(found) = self.network.connections.get_mut(&number) else { continue };
                if found.ends[end].machine == to && found.ends[1 - end].machine == from {
                    for frame in std::mem::take(&mut found.ends[end].held) {
                        self.push_frame(number, end, from, frame);
                    }
                }
            }
        }
    }
}
