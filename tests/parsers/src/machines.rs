//! What: the machines that take what was decoded: the ordered channel and the lock service, driven by scripts of bytes.
//! Owns: the form of the scripts.
//! Invariants: no order of well-formed messages, from clients or from holders of the key, makes a machine panic.
//! Does not: prove what is granted to whom; the tests and models of the lock service do.
//! Called by: the table of targets.

use crate::samples::life;
use deadbolt_cluster_core::channel::{Channel, Frame};
use deadbolt_disk_format::{Life, Owed, ViewNumber};
use deadbolt_dlm_core::client::FRAME_BYTES_MAX;
use deadbolt_dlm_core::{ClientReply, ClientRequest, Input, LockService, Output, SessionInfo, rewrite_message};
use std::collections::VecDeque;

/// Takes pieces off the front of a script; what is missing reads as zero.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }
    /// A piece with its length in front.
    fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (piece, rest) = self.0.split_at(length);
        self.0 = rest;
        piece
    }
}

/// The ordered channel: frames with a length byte each. Payloads are delivered once and in order, and what waits is counted right.
pub fn check_channel(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut channel = Channel::new(1);
    let mut delivered = 0;
    while !script.0.is_empty() {
        let mut out = Vec::new();
        match script.byte() {
            0 => drop(channel.send(script.piece().to_vec())),
            1 => drop(channel.handle_connected()),
            2 => channel.handle_disconnected(),
            3 => out.extend(channel.poll_confirm()),
            _ => {
                let Some(frame) = Frame::decode(script.piece()) else { continue };
                let sequence = if let Frame::Data { sequence, .. } = &frame { *sequence } else { 0 };
                if let Ok(Some(_)) = channel.handle_frame(frame, &mut out) {
                    assert_eq!(sequence, delivered + 1, "delivered out of order");
                    delivered = sequence;
                }
            }
        }
        let _ = channel.poll_overrun();
        for frame in out {
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
    }
}

/// A node of the script: its service, and what is on its way to it.
struct Node {
    me: Life,
    service: LockService,
    inbox: VecDeque<(Life, Vec<u8>)>,
}

/// Messages that are carried between two turns of a script: two services cannot keep each other busy for ever.
const CARRIED_MAX: usize = 1000;

/// Two lock services with clients, and a third node that says anything. Every message and reply they send can be read.
pub fn check_lock_service(bytes: &[u8]) {
    let mut nodes = [0, 1].map(|slot| Node { me: life(slot), service: LockService::new(life(slot)), inbox: VecDeque::new() });
    let mut script = Script(bytes);
    let (mut view, mut now_ms) = (0, 0);
    while !script.0.is_empty() {
        now_ms += 10;
        let op = script.byte();
        let at = usize::from(op >> 7);
        match op & 7 {
            0 => {
                let session = u64::from(script.byte() % 4);
                if let Ok(request) = ClientRequest::decode(script.piece()) {
                    nodes[at].service.handle(now_ms, Input::Request { session, request });
                }
            }
            1 => {
                let from = if op & 0x40 == 0 { life(2) } else { nodes[1 - at].me };
                let mut message = vec![2];
                message.extend_from_slice(&u64::to_le_bytes(view));
                message.extend_from_slice(script.piece());
                nodes[at].service.handle(now_ms, Input::Peer { from, message });
            }
            2 => nodes[at]
                .service
                .handle(now_ms, Input::SessionOpened { session: u64::from(script.byte() % 4), info: SessionInfo { pid: 1 } }),
            3 => nodes[at].service.handle(now_ms, Input::SessionClosed { session: u64::from(script.byte() % 4) }),
            4 => {
                view += 1;
                let (is_in, is_owed) = (script.byte(), script.byte());
                for node in &mut nodes {
                    node.service.handle(now_ms, view_of(view, is_in, is_owed, node.me));
                }
            }
            5 => nodes[at].service.handle(now_ms, Input::Permit { may_grant: op & 0x40 == 0 }),
            6 if op & 0x40 == 0 => nodes[at].service.handle(now_ms, Input::Stop),
            6 => nodes[at].service.handle(now_ms, Input::Lose { reason: "the script says so".into() }),
            _ => nodes[at].service.handle(now_ms, Input::Tick),
        }
        carry(&mut nodes, now_ms);
    }
}

fn view_of(number: u64, is_in: u8, is_owed: u8, me: Life) -> Input {
    let lives = |mask: u8| (0..3u16).filter(move |slot| mask & (1 << slot) != 0).map(life);
    let members: Vec<Life> = lives(is_in).collect();
    let owed = lives(is_owed & !is_in).map(|life| Owed { life, removed_in: ViewNumber(number) }).collect();
    Input::View { number: ViewNumber(number), is_member: members.contains(&me), members, owed }
}

/// Delivers everything that is on its way, and answers what waits for an answer.
fn carry(nodes: &mut [Node; 2], now_ms: u64) {
    for _ in 0..CARRIED_MAX {
        let mut is_quiet = true;
        for at in 0..2 {
            while let Some(output) = nodes[at].service.poll_output() {
                is_quiet = false;
                take_output(nodes, at, now_ms, output);
            }
            if let Some((from, message)) = nodes[at].inbox.pop_front() {
                is_quiet = false;
                nodes[at].service.handle(now_ms, Input::Peer { from, message });
            }
        }
        if is_quiet {
            return;
        }
    }
}

fn take_output(nodes: &mut [Node; 2], at: usize, now_ms: u64, output: Output) {
    match output {
        Output::Send { to, message } => {
            assert_eq!(rewrite_message(&message).as_ref(), Ok(&message), "a message that cannot be read");
            let from = nodes[at].me;
            if let Some(node) = nodes.iter_mut().find(|node| node.me == to) {
                node.inbox.push_back((from, message));
            }
        }
        Output::Reply { reply, .. } => {
            let bytes = reply.encode();
            assert!(bytes.len() <= FRAME_BYTES_MAX);
            assert_eq!(ClientReply::decode(&bytes), Ok(reply), "a reply that cannot be read");
        }
        Output::Holds(is_held) => nodes[at].service.handle(now_ms, Input::HoldsPublished(is_held)),
        _ => {}
    }
}
