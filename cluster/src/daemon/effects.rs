//! What: what the node wants, done; what the sockets say, put to the node.
//! Owns: the connections to peers, the lock clients' sessions, the answers that wait for evidence.
//! Invariants: outputs are done in their order; a reply to a client leaves only while the lease runs.
//! Does not: decide.
//! Called by: the daemon's loop.

use super::{
    Daemon, NetworkEvent, Outcome, Waiting,
    control::{ControlRequest, failure},
    locks::{answer_locks, answer_lockspaces},
    now_ms,
    status::{DeviceStatus, ShellStatus, status_json},
};
use crate::{
    agents,
    config::NodeFile,
    links::{Datagram, Links},
    node::{DiskWork, Node, NodeInput, NodeOutput},
};
use anyhow::Result;
use deadbolt_cluster_core::{
    hello::NodeMessage,
    membership::{Alteration, ChangeRequest},
};
use deadbolt_disk::{Operation, now_ns};
use deadbolt_disk_format::{Evidence, Life, NodeState, Vouch};
use deadbolt_dlm::server::{Server, ServerEvent};
use deadbolt_dlm_core::{ClientReply, service as locks};
use deadbolt_qdisk_core::register::DiskOpKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};

/// A connection with a peer.
struct Connection {
    number: u64,
    outgoing: mpsc::Sender<Vec<u8>>,
}

pub(super) struct Effects {
    links: Links,
    server: Server,
    connections: BTreeMap<Life, Connection>,
    waiting: Waiting,
    /// Of the part published last: state, holds, vouches.
    said: Option<(NodeState, bool, Vec<Vouch>)>,
}

impl Effects {
    pub(super) fn new(links: Links, server: Server) -> Self {
        Self { links, server, connections: BTreeMap::new(), waiting: Waiting::new(), said: None }
    }

    pub(super) fn apply(&mut self, daemon: &mut Daemon, node: &mut Node, output: NodeOutput) -> Result<Option<Outcome>> {
        match output {
            NodeOutput::Disk(work) => submit(daemon, work),
            NodeOutput::Publish(part) => {
                daemon.side.publish_bytes(part.number, &part.encode());
                // What others wait for goes with a cycle of its own, begun after it was left there; the rest with the next poll.
                let said = Some((part.state, part.holds, part.vouches));
                if self.said != said {
                    self.said = said;
                    daemon.side.wake();
                }
            }
            NodeOutput::SetHolds(holds) => daemon.side.set_holds(holds),
            NodeOutput::Extend { vouched_until_ms, frozen_until_ms } => {
                daemon.side.extend(vouched_until_ms.saturating_mul(1_000_000), frozen_until_ms.saturating_mul(1_000_000));
            }
            NodeOutput::SayHello(hello, _) => self.links.say_hello(&hello),
            NodeOutput::Follow(nodes) => {
                daemon.follow_name(&nodes);
                self.links.follow(&nodes);
            }
            NodeOutput::Send(peer, frame) => self.send(node, peer, frame.encode()),
            NodeOutput::Close(peer) => {
                self.connections.remove(&peer);
                node.handle(now_ms(), NodeInput::Disconnected(peer));
            }
            NodeOutput::Reply(session, reply) => self.reply(daemon, session, &reply),
            NodeOutput::PollFast(until_ms) => {
                daemon.side.poll_fast_until(until_ms.saturating_mul(1_000_000));
                daemon.side.wake();
            }
            NodeOutput::CallAgent { victim, name } => {
                agents::call(&daemon.file.fence_agents, &name, victim, now_ms, &daemon.agents.0);
            }
            NodeOutput::Eject { victim, name } => eject(daemon, victim, &name),
            NodeOutput::ResetSelf(reason) => return Ok(Some(reset_self(daemon, &reason))),
            NodeOutput::NewIncarnation => return Ok(Some(Outcome::NewIncarnation)),
            NodeOutput::Stopped => return Ok(Some(Outcome::Stopped)),
            NodeOutput::Fenced { victim, evidence, waited_ms } => self.answer_fence(node, victim, evidence, waited_ms),
            NodeOutput::Log(text) => tracing::info!("{text}"),
        }
        Ok(None)
    }

    fn send(&mut self, node: &mut Node, peer: Life, frame: Vec<u8>) {
        let is_lost = self.connections.get(&peer).is_some_and(|connection| connection.outgoing.try_send(frame).is_err());
        if is_lost {
            // The stream resumes from its last confirmed message on the next connection.
            self.connections.remove(&peer);
            node.handle(now_ms(), NodeInput::Disconnected(peer));
        }
    }

    fn reply(&mut self, daemon: &Daemon, session: u64, reply: &ClientReply) {
        if !reply.is_grant() || now_ns() < daemon.side.lease_end_ns() {
            self.server.reply(session, reply);
        }
    }

    pub(super) fn handle_datagram(&mut self, node: &mut Node, datagram: &Datagram) {
        if let Some(hello) = self.links.open(datagram) {
            node.handle(now_ms(), NodeInput::Hello(hello));
        }
    }

    pub(super) fn handle_link(&mut self, node: &mut Node, event: NetworkEvent) {
        match event {
            NetworkEvent::Connected { connection, peer, link, outgoing } => {
                self.links.handle_connected(peer.slot, link);
                self.connections.insert(peer, Connection { number: connection, outgoing });
                node.handle(now_ms(), NodeInput::Connected(peer));
            }
            NetworkEvent::Frames { connection, peer, frames } => {
                if self.connections.get(&peer).is_some_and(|known| known.number == connection) {
                    node.handle_all(now_ms(), frames.into_iter().map(|frame| NodeInput::Frame(peer, frame)));
                }
            }
            NetworkEvent::Disconnected { connection, peer } => {
                if self.connections.get(&peer).is_some_and(|known| known.number == connection) {
                    self.connections.remove(&peer);
                    node.handle(now_ms(), NodeInput::Disconnected(peer));
                }
            }
            NetworkEvent::Request { message, reply } => {
                let _ = reply.send(NodeMessage::Answer(take_request(node, message)));
            }
        }
    }

    /// Waits until clients have something to say.
    pub(super) async fn clients_ready(&mut self) {
        self.server.ready().await;
    }

    /// Clients that were just answered say more already.
    pub(super) fn have_clients_more(&mut self) -> bool {
        self.server.has_more()
    }

    /// Puts everything that clients said to the node; the answers of all of it leave together.
    pub(super) fn handle_clients(&mut self, node: &mut Node) {
        let said = std::iter::from_fn(|| self.server.next_event());
        node.handle_all(now_ms(), said.map(|event| NodeInput::Locks(input_of(event))));
    }

    /// Sends the clients what they were answered in this turn.
    pub(super) fn flush(&mut self) {
        self.server.flush();
    }

    pub(super) fn handle_control(&mut self, daemon: &mut Daemon, node: &mut Node, request: ControlRequest) {
        let ControlRequest { request, uid, reply } = request;
        let op = request.get("op").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_reading = matches!(op.as_str(), "status" | "locks" | "lockspaces");
        let owner = nix::unistd::geteuid().as_raw();
        if !is_reading && uid != 0 && uid != owner {
            let _ = reply.send(failure("this request is for root (or the owner of the node)"));
            return;
        }
        let answer = match op.as_str() {
            "status" => status_json(&node.status(now_ms()), &shell_status(daemon), &self.links),
            "locks" => answer_locks(node, &request),
            "lockspaces" => answer_lockspaces(node, &request),
            "stop" => {
                daemon.is_stopping = true;
                node.handle(now_ms(), NodeInput::Stop);
                json!({ "ok": true })
            }
            "leave" => {
                node.handle(now_ms(), NodeInput::Leave);
                json!({ "ok": true })
            }
            "remove" => remove_node(node, &request),
            "change" => change(node, &request),
            "fence" => return self.handle_fence(node, &request, reply),
            "" => failure("the object has no text field `op`; requests are status, locks, lockspaces, stop, leave, remove, change, fence"),
            other => {
                failure(&format!("unknown request {other:?}; requests are status, locks, lockspaces, stop, leave, remove, change, fence"))
            }
        };
        let _ = reply.send(answer);
    }

    /// Answered by evidence, or by an operator's word at once.
    fn handle_fence(&mut self, node: &mut Node, request: &Value, reply: oneshot::Sender<Value>) {
        let name = request.get("node").and_then(Value::as_str).unwrap_or_default();
        let Some(slot) = node.slot_of(name) else {
            let _ = reply.send(failure(&format!("no node {name:?} is configured; see `deadbolt status`")));
            return;
        };
        let by_word = request.get("operator").and_then(Value::as_bool) == Some(true);
        match node.begin_fence(slot, by_word) {
            Err(reason) => {
                let gone = node.last_released(slot).filter(|_| !by_word);
                let _ = reply.send(gone.map_or_else(|| failure(&reason), |gone| gone_json(node, gone.life, gone.evidence, 0)));
            }
            Ok(life) => {
                self.waiting.entry(life).or_default().push(reply);
                node.handle(now_ms(), NodeInput::Fence(slot));
                if by_word {
                    node.handle(now_ms(), NodeInput::OperatorConfirms(slot));
                }
            }
        }
    }

    fn answer_fence(&mut self, node: &Node, victim: Life, evidence: Evidence, waited_ms: u64) {
        for reply in self.waiting.remove(&victim).unwrap_or_default() {
            let answer = gone_json(node, victim, evidence, waited_ms);
            let _ = reply.send(answer);
        }
    }
}

fn input_of(event: ServerEvent) -> locks::Input {
    match event {
        ServerEvent::Opened { session, pid, .. } => {
            locks::Input::SessionOpened { session, info: locks::SessionInfo { pid: u32::try_from(pid).unwrap_or(0) } }
        }
        ServerEvent::Request { session, request } => locks::Input::Request { session, request },
        ServerEvent::Closed { session, pid, fault } => {
            if let Some(fault) = fault {
                tracing::warn!("lock session {session} of process {pid} is ended, with all its locks: {fault}");
            }
            locks::Input::SessionClosed { session }
        }
    }
}

/// The daemon ends with "holds" set: sbd stops its cycles and the node is reset.
fn reset_self(daemon: &Daemon, reason: &str) -> Outcome {
    tracing::error!("this node is reset: {reason}");
    daemon.side.set_holds(true);
    Outcome::Reset
}

/// The answer of a fence: who is gone, and by what evidence.
fn gone_json(node: &Node, victim: Life, evidence: Evidence, waited_ms: u64) -> Value {
    json!({
        "ok": true,
        "node": node.name_of(victim.slot),
        "boot": victim.boot.to_string(),
        "evidence": evidence.word(),
        "waited_ms": waited_ms,
    })
}

/// Takes a node out of the configuration that is neither member nor owed.
fn remove_node(node: &mut Node, request: &Value) -> Value {
    let name = request.get("node").and_then(Value::as_str).unwrap_or_default();
    match node.check_removal(name) {
        Err(reason) => failure(&reason),
        Ok(slot) => {
            node.handle(now_ms(), NodeInput::Change(ChangeRequest::RemoveNode { slot }));
            json!({ "ok": true })
        }
    }
}

/// Takes an alteration that could be made now; a later view has it.
fn change(node: &mut Node, request: &Value) -> Value {
    let alteration = match alteration_of(node, request) {
        Ok(alteration) => alteration,
        Err(reason) => return failure(&reason),
    };
    if let Some(reason) = node.refuse_alteration(&alteration) {
        return failure(&reason);
    }
    let slot = match &alteration {
        Alteration::Node { slot, .. } => Some(slot.0),
        Alteration::DiskVotes(_) => None,
    };
    node.handle(now_ms(), NodeInput::Change(ChangeRequest::Alter(alteration)));
    slot.map_or_else(|| json!({ "ok": true }), |slot| json!({ "ok": true, "slot": slot }))
}

fn alteration_of(node: &Node, request: &Value) -> std::result::Result<Alteration, String> {
    let given = |field: &str| request.get(field).filter(|value| !value.is_null());
    let votes_of = |field: &str| {
        let number = |value: &Value| value.as_u64().and_then(|votes| u16::try_from(votes).ok());
        let wrong = |value: &Value| format!("{field} is {value}; it is a number up to {}, or null", u16::MAX);
        given(field).map(|value| number(value).ok_or_else(|| wrong(value))).transpose()
    };
    let of_node = ["node", "name", "votes", "addresses"];
    if request.get("disk_votes").is_some() {
        return match of_node.into_iter().find(|field| given(field).is_some()) {
            Some(other) => Err(format!("{other} beside disk_votes: change one after the other")),
            None => votes_of("disk_votes").map(Alteration::DiskVotes),
        };
    }
    let node_name = request.get("node").and_then(Value::as_str).unwrap_or_default();
    let slot = node.slot_of(node_name).ok_or_else(|| format!("no node {node_name:?} is configured; see `deadbolt status`"))?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = |value: &Value| value.as_array().and_then(|list| list.iter().map(text).collect::<Option<Vec<String>>>());
    let name = given("name").map(|value| text(value).ok_or_else(|| format!("name is {value}; it is a text"))).transpose()?;
    let addresses = given("addresses").map(|value| texts(value).ok_or("addresses is no list of texts")).transpose()?;
    let votes = votes_of("votes")?;
    if name.is_none() && votes.is_none() && addresses.is_none() {
        return Err(format!("nothing to change about {node_name}: give name, votes or addresses"));
    }
    Ok(Alteration::Node { slot, name, votes, addresses })
}

/// Asked only of who has registered.
fn eject(daemon: &Daemon, victim: Life, name: &str) {
    if let Some(protection) = &daemon.protection {
        protection.eject(name, victim, &daemon.ejections.0);
    }
}

fn submit(daemon: &mut Daemon, work: DiskWork) {
    let tag = daemon.tag(work.tag);
    if !matches!(work.kind, DiskOpKind::Read { .. }) {
        daemon.writes.insert((work.device, tag));
    }
    let operation = match work.kind {
        DiskOpKind::Read { offset, bytes } => Operation::Read { offset, bytes },
        DiskOpKind::Write { offset, data } => Operation::Write { offset, data },
        DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
            Operation::WriteThenRead { write_offset, data, read_offset, read_bytes }
        }
    };
    if let Some(engine) = daemon.engines.get(work.device) {
        engine.submit(tag, operation);
    }
}

fn take_request(node: &mut Node, message: NodeMessage) -> std::result::Result<(), String> {
    match message {
        NodeMessage::AddNode(addition) => {
            if let Some(reason) = node.refuse_addition(&addition) {
                return Err(reason);
            }
            node.handle(now_ms(), NodeInput::Change(ChangeRequest::AddNode(addition)));
            Ok(())
        }
        NodeMessage::Locks(_)
        | NodeMessage::RemoveNode { .. }
        | NodeMessage::Answer(_)
        | NodeMessage::Decided(_)
        | NodeMessage::Beyond(_) => Err("only a new node may ask without a place, and only to be added".into()),
    }
}

fn shell_status(daemon: &Daemon) -> ShellStatus {
    let now = now_ns();
    let first = daemon.devices.first();
    let cycle_us = daemon.side.cycle_us();
    let devices = daemon
        .devices
        .iter()
        .zip(&daemon.engines)
        .map(|(device, engine)| DeviceStatus {
            path: device.path.display().to_string(),
            // Counted in whole milliseconds: a quick cycle is 0, and one nonetheless.
            latency_us: (daemon.side.lease_end_ns() > 0).then_some(cycle_us),
            oldest_ms: engine.outstanding().iter().map(|(_, since)| now.saturating_sub(*since) / 1_000_000).max(),
            backend: match engine.backend() {
                deadbolt_disk::Backend::IoUring => "io_uring".into(),
                deadbolt_disk::Backend::Threads => "threads".into(),
            },
        })
        .collect();
    ShellStatus {
        name: daemon.file.name.clone(),
        cluster: first.map(|device| device.superblock.name.clone()).unwrap_or_default(),
        cluster_uuid: first.map(|device| device.superblock.cluster.to_string()).unwrap_or_default(),
        now_ms: now / 1_000_000,
        devices,
        reset_ms: daemon.side.reset_ms(),
        watchdog: daemon.file.watchdog.clone(),
    }
}

/// Who may connect to the lock socket: under a process watchdog only processes of the node's tree, unless they say `--unprotected`.
pub(super) fn accept_hook(file: &NodeFile) -> deadbolt_dlm::server::AcceptHook {
    let must_be_inside = file.watchdog == "process";
    let supervisor: Option<i32> = std::env::var(crate::supervisor::SUPERVISOR_PID_VARIABLE).ok().and_then(|text| text.parse().ok());
    Box::new(move |peer, is_unprotected| {
        let is_inside = supervisor.is_some_and(|supervisor| super::is_descendant(peer.pid, supervisor));
        if !must_be_inside || is_inside || is_unprotected {
            Ok(())
        } else {
            Err(format!(
                "process {} is not part of this node's process tree, which the process watchdog could not end; use `deadbolt lock` or say --unprotected",
                peer.pid
            ))
        }
    })
}
