//! What: the shell of the daemon and its supervisor in the simulated world: one `Node` joined to disk, network, page and clients.
//! Owns: the order in which what the node says is done; the same order as in the real shell.
//! Invariants: an incarnation starts only when nothing of the one before is on its way to a disk; a reply that grants leaves only while the
//!   lease runs.
//! Does not: decide anything that the node decides.
//! Called by: the world.

use crate::{
    io::{Operation, Owner, Work},
    machine::{Daemon, Pid, Process, SbdState, Stage},
    world::{Event, World},
};
use deadbolt_cluster::{
    look::{self, Seen},
    node::{DiskWork, Node, NodeInput, NodeOutput, NodeSetup, arbitrate},
    seal::DatagramSealer,
};
use deadbolt_cluster_core::membership;
use deadbolt_disk_format::{
    Beat, ByteOffset, Incarnation, LeftLives, Life, Place, SlotIndex, UNIT_BYTES, ViewBody, ViewNumber, ViewRecord, decode_body_place,
    sbd::Command,
};
use deadbolt_dlm_core::{ClientReply, service::MoveRule};
use deadbolt_qdisk_core::register::DiskOpKind;
use deadbolt_sbd::pill::{Pill, encode_pill};
use std::collections::BTreeMap;

/// Exit code of a daemon that asked for a reset.
pub(crate) const EXIT_RESET: u8 = 70;
/// Exit code of a daemon that a signal ended.
pub(crate) const EXIT_KILLED: u8 = 137;
/// How often the daemon looks for sbd, and for the end of old disk work.
const LOOK_US: u64 = 20_000;
const SBD_AREA_BYTES: u64 = 2 << 20;
/// Pause before the supervisor starts the daemon again.
const RESTART_US: u64 = 200_000;

impl World {
    /// The supervisor starts a daemon.
    pub(crate) fn start_daemon(&mut self, machine: usize) {
        let pid = self.new_pid();
        let place = &mut self.machines[machine];
        place.page.generation += 1;
        place.daemon = Some(Daemon {
            pid,
            epoch: 0,
            stage: Stage::WaitForSbd,
            is_stopping: place.is_stopping,
            outstanding: 0,
            writing: 0,
            tick_at_us: 0,
            sealer: None,
            follow: Vec::new(),
            connections: BTreeMap::new(),
            said: None,
            is_page_rung: false,
        });
        self.queue.after(LOOK_US, Event::DaemonLook { machine, pid });
    }

    /// What a daemon does while it does not live: waits, or ends.
    pub(crate) fn daemon_looks(&mut self, machine: usize, pid: Pid) {
        let place = &mut self.machines[machine];
        let Some(daemon) = place.daemon.as_mut().filter(|daemon| daemon.pid == pid) else { return };
        let state = place.page.state;
        match daemon.stage {
            Stage::WaitForSbd => match state {
                SbdState::Alive => daemon.stage = Stage::Drain,
                SbdState::None => {}
                SbdState::Condemned | SbdState::Stopped => return self.exit_daemon(machine, 1),
            },
            Stage::Drain if daemon.writing == 0 => return self.begin_incarnation(machine, pid),
            Stage::Finish if state == SbdState::Stopped => return self.exit_daemon(machine, 0),
            Stage::Zombie { code } if daemon.outstanding == 0 => return self.daemon_reaped(machine, code),
            Stage::Live(_) => return,
            Stage::Drain | Stage::Finish | Stage::Zombie { .. } => {}
        }
        self.queue.after(LOOK_US, Event::DaemonLook { machine, pid });
    }

    /// As the shell does at the start of an incarnation: own beat and newest view are read, then the node is made.
    fn begin_incarnation(&mut self, machine: usize, pid: Pid) {
        let now_ms = self.local_ms(machine);
        let answering = self.machines[machine].paths.iter().filter(|path| path.hangs == 0).count();
        if answering * 2 <= self.disks.len() {
            return self.queue.after(LOOK_US, Event::DaemonLook { machine, pid });
        }
        let seen: Vec<Seen> = (0..self.disks.len()).filter_map(|device| self.first_look(machine, device)).collect();
        let view = look::newest_view(&seen).ok().filter(|_| look::is_majority(&seen, self.disks.len()));
        let Some(view) = view else {
            self.note(&format!("{}: the daemon cannot read the newest view", self.machines[machine].name));
            return self.exit_daemon(machine, 1);
        };
        let setup = self.node_setup(machine, now_ms, look::newest_beat(&seen, self.machines[machine].slot), &view);
        let me = setup.membership.me;
        self.note(&format!(
            "{}: an incarnation begins in boot {}: {}",
            self.machines[machine].name,
            self.machines[machine].boot_number,
            short(me)
        ));
        let sealer = DatagramSealer::new(self.cluster_key.clone(), self.cluster, me.slot, me.incarnation);
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        daemon.epoch += 1;
        daemon.sealer = Some(sealer);
        daemon.follow.clear();
        daemon.connections.clear();
        daemon.said = None;
        let is_stopping = daemon.is_stopping;
        let mut node = Node::new(setup, now_ms);
        // Every request is looked at: runs are short.
        node.follow_load(MoveRule { sample: 1, turns: self.options.move_turns.try_into().unwrap_or(u32::MAX) });
        daemon.stage = Stage::Live(Box::new(node));
        #[cfg(feature = "planted")]
        self.plant_into_node(machine);
        self.facts.incarnation_begins(machine, me);
        self.extend(machine, 0, 0);
        self.node_give(machine, NodeInput::Start);
        if is_stopping {
            self.node_give(machine, NodeInput::Stop);
        }
        self.ring_daemon(machine);
        self.start_clients(machine);
    }

    #[cfg(feature = "planted")]
    fn plant_into_node(&mut self, machine: usize) {
        if let Some(crate::planted::Planted::Node(mistake)) = self.mistake()
            && let Some(node) = self.machines[machine].daemon.as_mut().and_then(Daemon::node)
        {
            node.plant(mistake);
        }
    }

    fn node_setup(&mut self, machine: usize, now_ms: u64, beat: Option<&Beat>, view: &ViewBody) -> NodeSetup {
        let slot = self.machines[machine].slot;
        let boot = self.machines[machine].boot(machine);
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&self.random.number().to_le_bytes());
        incarnation[8..].copy_from_slice(&self.random.number().to_le_bytes());
        let carried_left = beat.map_or_else(LeftLives::default, |beat| membership::carried_left(beat, boot, view));
        let name = self.machines[machine].name.clone();
        let key = self.pill_key.clone();
        let initial = (view.view == ViewNumber(0) && slot == SlotIndex(0)).then(|| self.configuration.clone());
        NodeSetup {
            membership: membership::Setup {
                me: Life { slot, boot, incarnation: Incarnation(incarnation) },
                devices: self.disks.len(),
                slots: self.disks[0].layout().slots,
                timings: self.timings,
                carried_left,
                carried_vouches: beat.map_or_else(Vec::new, |beat| beat.daemon.vouches.clone()),
                first_number: now_ms * 1000,
                initial,
                protected: 0,
                arbiter: arbitrate,
            },
            cluster: self.cluster,
            layouts: self.disks.iter().map(|disk| *disk.layout()).collect(),
            seed: self.random.number(),
            wall_offset_ms: self.machines[machine].wall_offset_ms,
            encode_pill: Box::new(move |victim, serial, sector_bytes| {
                let pill = Pill { command: Command::Reset, sender: &name, victim: victim.boot, serial };
                encode_pill(&pill, &key, sector_bytes)
            }),
        }
    }

    /// The own beat and the decided views on a device; none where it does not answer.
    fn first_look(&mut self, machine: usize, device: usize) -> Option<Seen> {
        let layout = *self.disks[device].layout();
        let cluster = self.cluster;
        let at = |offset: ByteOffset, slot| Place { cluster, offset, slot };
        let own = at(layout.beat(self.machines[machine].slot), self.machines[machine].slot);
        let beat = Beat::decode(&self.look(machine, device, own.offset, UNIT_BYTES)?, &own).ok();
        let mut seen = Seen { beats: beat.into_iter().collect(), views: Vec::new() };
        for slot in (0..layout.slots).map(SlotIndex) {
            for index in 0..2 {
                let offset = layout.record(slot, index);
                let record = ViewRecord::decode(&self.look(machine, device, offset, UNIT_BYTES)?, &at(offset, slot));
                let Some(record) = record.ok().filter(|record| record.view > ViewNumber(0)) else { continue };
                let place = at(layout.body(slot, record.place), slot);
                let bytes = self.look(machine, device, place.offset, usize::try_from(layout.place_bytes).unwrap_or(0))?;
                let value = decode_body_place(&bytes, &place).ok().map(|(_, _, value)| value);
                let body = value.and_then(|value| ViewBody::decode_value(&value).ok()).filter(|body| body.digest() == record.digest);
                seen.views.push((record, body));
            }
        }
        Some(seen)
    }

    /// One input to the node, and everything that follows from it.
    pub(crate) fn node_give(&mut self, machine: usize, input: NodeInput) {
        let now_ms = self.local_ms(machine);
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        let Some(node) = daemon.node() else { return };
        node.handle(now_ms, input);
        self.node_follow(machine);
    }

    /// Does what the node wants, in order, and plans its next turn.
    fn node_follow(&mut self, machine: usize) {
        loop {
            let output = self.machines[machine].daemon.as_mut().and_then(Daemon::node).and_then(Node::poll_output);
            let Some(output) = output else { break };
            if !self.node_act(machine, output) {
                return;
            }
        }
        self.facts_of_node(machine);
        self.plan_daemon(machine);
    }

    /// Plans a tick at the node's deadline, unless an earlier one is planned.
    fn plan_daemon(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let now_ms = self.local_ms(machine);
        let place = &mut self.machines[machine];
        let clock = place.clock;
        let Some(daemon) = place.daemon.as_mut() else { return };
        let pid = daemon.pid;
        let planned_us = daemon.tick_at_us;
        let Some(node) = daemon.node() else { return };
        let at_us = clock.when(now_us, node.next_deadline().max(now_ms + 1));
        if planned_us <= now_us || at_us < planned_us {
            daemon.tick_at_us = at_us;
            self.queue.at(at_us, Event::DaemonTick { machine, pid });
        }
    }

    /// A planned turn has come.
    pub(crate) fn daemon_planned(&mut self, machine: usize, pid: Pid) {
        let now_ms = self.local_ms(machine);
        let now_us = self.queue.now_us();
        let Some(daemon) = self.machines[machine].daemon.as_mut().filter(|daemon| daemon.pid == pid) else { return };
        if now_us < daemon.tick_at_us {
            return;
        }
        let Some(node) = daemon.node() else { return };
        if now_ms >= node.next_deadline() {
            self.node_give(machine, NodeInput::Tick);
        } else {
            self.plan_daemon(machine);
        }
    }

    /// Rings the daemon: something changed in the page.
    pub(crate) fn ring_daemon(&mut self, machine: usize) {
        if let Some(daemon) = &mut self.machines[machine].daemon
            && !std::mem::replace(&mut daemon.is_page_rung, true)
        {
            let pid = daemon.pid;
            self.queue.after(10, Event::PageRung { machine, pid });
        }
    }

    /// The daemon reads the page.
    pub(crate) fn read_page(&mut self, machine: usize, pid: Pid) {
        let place = &mut self.machines[machine];
        let Some(daemon) = place.daemon.as_mut().filter(|daemon| daemon.pid == pid) else { return };
        daemon.is_page_rung = false;
        if !matches!(daemon.stage, Stage::Live(_)) {
            return;
        }
        let page = &place.page;
        if page.state == SbdState::Condemned {
            return self.exit_daemon(machine, 1);
        }
        let input = NodeInput::Lifeline {
            lease_end_ms: page.lease_end_ms,
            own_end_ms: page.own_end_ms,
            published: page.published,
            beat: page.beat,
        };
        self.node_give(machine, input);
    }

    /// Leaves in the page until when the lease runs beyond the own cycle's.
    fn extend(&mut self, machine: usize, vouched_until_ms: u64, frozen_until_ms: u64) {
        let page = &mut self.machines[machine].page;
        let before = std::mem::replace(&mut page.vouched_until_ms, vouched_until_ms);
        let before = (before, std::mem::replace(&mut page.frozen_until_ms, frozen_until_ms));
        if before != (vouched_until_ms, frozen_until_ms) {
            self.wake_sbd(machine);
        }
    }

    /// The daemon's disk work came back.
    pub(crate) fn daemon_completion(&mut self, machine: usize, pid: Pid, epoch: u64, operation: Operation) {
        let now_ms = self.local_ms(machine);
        let place = &mut self.machines[machine];
        let is_stopped = place.is_stopped(Process::Daemon);
        let Some(daemon) = place.daemon.as_mut().filter(|daemon| daemon.pid == pid) else { return };
        let is_zombie = matches!(daemon.stage, Stage::Zombie { .. });
        if is_stopped && !is_zombie {
            // The engine's thread is stopped too: the answer is taken when it continues.
            return self.defer(machine, Process::Daemon, Event::DaemonDisk(Box::new(operation)));
        }
        daemon.outstanding = daemon.outstanding.saturating_sub(1);
        daemon.writing = daemon.writing.saturating_sub(usize::from(operation.work.is_write()));
        if daemon.epoch != epoch || is_zombie {
            return;
        }
        let result = match operation.result {
            Ok(crate::io::Answer::Bytes(bytes)) => Ok(bytes),
            Ok(crate::io::Answer::Cell(_)) | Err(()) => Err(()),
        };
        let (tag, device, issued_ms) = (operation.tag, operation.device, operation.issued_ms);
        self.node_give(machine, NodeInput::Disk { tag, device, issued_ms, ended_ms: now_ms + 1, result });
    }

    /// Does one thing that the node wants; false: the incarnation is over.
    fn node_act(&mut self, machine: usize, output: NodeOutput) -> bool {
        match output {
            NodeOutput::Disk(work) => self.node_disk(machine, work),
            NodeOutput::Publish(part) => {
                let said = Some((part.state, part.holds, part.vouches.clone()));
                self.publish_part(machine, part);
                let Some(daemon) = self.machines[machine].daemon.as_mut() else { return false };
                if daemon.said != said {
                    daemon.said = said;
                    self.wake_sbd(machine);
                }
            }
            NodeOutput::SetHolds(holds) => self.machines[machine].page.holds = holds,
            NodeOutput::Extend { vouched_until_ms, frozen_until_ms } => {
                self.check_frozen(machine, frozen_until_ms);
                self.extend(machine, vouched_until_ms, frozen_until_ms);
            }
            NodeOutput::SayHello(hello, nodes) => self.say_hello(machine, &hello, &nodes),
            NodeOutput::Follow(nodes) => self.follow(machine, nodes),
            NodeOutput::Send(peer, frame) => self.send_frame(machine, &peer, frame),
            NodeOutput::Close(peer) => self.close(machine, &peer),
            NodeOutput::Reply(session, reply) => self.reply(machine, session, reply),
            NodeOutput::PollFast(until_ms) => {
                let page = &mut self.machines[machine].page;
                page.fast_until_ms = page.fast_until_ms.max(until_ms);
                self.wake_sbd(machine);
            }
            // No simulated node has a fence agent: nobody answers.
            NodeOutput::CallAgent { .. } | NodeOutput::Eject { .. } => {}
            NodeOutput::ResetSelf(reason) => {
                self.note(&format!("{}: the daemon wants a reset: {reason}", self.machines[machine].name));
                self.machines[machine].page.holds = true;
                self.exit_daemon(machine, EXIT_RESET);
                return false;
            }
            NodeOutput::NewIncarnation => {
                self.note(&format!("{}: goes on under a new incarnation", self.machines[machine].name));
                self.end_incarnation(machine, Stage::Drain);
                // The life that left held nothing; its word must not speak for the next one.
                self.machines[machine].page.holds = false;
                return false;
            }
            NodeOutput::Stopped => {
                self.note(&format!("{}: has left", self.machines[machine].name));
                self.end_incarnation(machine, Stage::Finish);
                self.machines[machine].page.is_stop_requested = true;
                return false;
            }
            NodeOutput::Fenced { victim, evidence, .. } => {
                self.note(&format!("{}: reports {} fenced: {}", self.machines[machine].name, short(victim), evidence.word()));
                self.check_gone("S9", &victim, evidence);
            }
            NodeOutput::Log(text) => self.note(&format!("{}: {text}", self.machines[machine].name)),
        }
        true
    }

    fn node_disk(&mut self, machine: usize, work: DiskWork) {
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        daemon.outstanding += 1;
        daemon.writing += usize::from(!matches!(work.kind, DiskOpKind::Read { .. }));
        let owner = Owner::Daemon(daemon.pid, daemon.epoch);
        let kind = match work.kind {
            DiskOpKind::Read { offset, bytes } => Work::Read(offset, bytes),
            DiskOpKind::Write { offset, data } => Work::Write(offset, data),
            DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                // Nothing but a pill is written to the SBD area by a daemon.
                self.facts.pills += u64::from(write_offset.0 < SBD_AREA_BYTES && work.device == 0);
                Work::WriteThenRead(write_offset, data, read_offset, read_bytes)
            }
        };
        self.submit(machine, owner, work.device, work.tag, kind);
    }

    /// A grant leaves only while the lease runs.
    fn reply(&mut self, machine: usize, session: u64, reply: ClientReply) {
        if !reply.is_grant() || self.local_ms(machine) < self.machines[machine].page.lease_end_ms {
            self.send_reply(machine, session, reply);
        }
    }

    /// The incarnation is over; its sockets close.
    fn end_incarnation(&mut self, machine: usize, stage: Stage) {
        self.close_all(machine);
        let Some(daemon) = self.machines[machine].daemon.as_mut() else { return };
        let pid = daemon.pid;
        daemon.stage = stage;
        daemon.sealer = None;
        daemon.follow.clear();
        self.close_sessions(machine);
        self.queue.after(LOOK_US / 20, Event::DaemonLook { machine, pid });
    }

    /// The daemon's process ends; it is reaped when its disk work is.
    pub(crate) fn exit_daemon(&mut self, machine: usize, code: u8) {
        if self.machines[machine].daemon.is_some() {
            self.note(&format!("{}: the daemon ends with code {code}", self.machines[machine].name));
            self.machines[machine].stopped.remove(&Process::Daemon);
            self.end_incarnation(machine, Stage::Zombie { code });
        }
    }

    /// As the supervisor judges the end of a daemon.
    fn daemon_reaped(&mut self, machine: usize, code: u8) {
        let is_process = self.options.process_watchdog == 1;
        let place = &mut self.machines[machine];
        place.daemon = None;
        place.page.ended = place.page.generation;
        if code == 0 || place.is_stopping {
            if place.sbd.is_none() {
                self.finish_stop(machine);
            } else if code != 0 {
                self.ask_sbd_to_stop(machine);
            }
        } else if place.page.holds {
            if is_process {
                self.note(&format!("{}: the supervisor ends the tree", self.machines[machine].name));
                self.end_machine(machine);
            }
        } else {
            let boot = place.boot_number;
            self.queue.after(RESTART_US, Event::RestartDaemon { machine, boot });
        }
    }

    /// Starts the daemon again once "held nothing" of the one before is on the disk.
    pub(crate) fn restart_daemon(&mut self, machine: usize, boot: u64) {
        let place = &self.machines[machine];
        if !place.is_on || place.boot_number != boot || place.daemon.is_some() || place.is_stopping || place.sbd.is_none() {
            return;
        }
        let is_recorded = place.page.idle_generation >= place.page.generation;
        #[cfg(feature = "planted")]
        let is_recorded = is_recorded || self.has_shell_mistake(crate::planted::Shell::RestartWithoutRecord);
        if is_recorded {
            self.start_daemon(machine);
        } else {
            self.queue.after(LOOK_US, Event::RestartDaemon { machine, boot });
        }
    }
}

/// A life in few letters.
pub(crate) fn short(life: Life) -> String {
    let number = u64::from_be_bytes([
        life.boot.0[8],
        life.boot.0[9],
        life.boot.0[10],
        life.boot.0[11],
        life.boot.0[12],
        life.boot.0[13],
        life.boot.0[14],
        life.boot.0[15],
    ]);
    format!("slot {} boot {number} incarnation {:02x}{:02x}", life.slot.0, life.incarnation.0[0], life.incarnation.0[1])
}
