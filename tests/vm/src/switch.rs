//! What: the network of a lab: hands frames from node to node, but for cut ways.
//! Owns: this side of every node's network socket, the set of cut ways, one thread.
//! Invariants: a frame goes over a way whole or not at all; a node that takes no frames holds up nobody else's.
//! Does not: learn or route: a node's number is the last byte of its address.
//! Called by: the lab.

use anyhow::Result;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// The first bytes of every node's address: one that nobody was assigned.
pub(crate) const ADDRESS: [u8; 5] = [0x52, 0x54, 0, 0xdb, 0];
/// Two addresses and a type: what is shorter is no frame.
const HEADER_BYTES: usize = 14;
/// More than any frame.
const FRAME_BYTES: usize = 1 << 16;
/// Frames of one node that are handed on before the next node's turn.
const TURN: usize = 64;

/// The switch.
#[derive(Debug)]
pub(crate) struct Switch {
    nodes: usize,
    cut: Arc<[AtomicBool]>,
    /// Readable for the thread when this goes.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Begins with every way open; answers the nodes' ends.
    pub(crate) fn start(nodes: usize) -> Result<(Self, Vec<OwnedFd>)> {
        // Packets: frames keep their bounds, and the queue is bounded by bytes, not by a machine's setting of ten.
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let (our, their) = pair()?;
            ours.push(our);
            theirs.push(their);
        }
        let cut: Arc<[AtomicBool]> = (0..nodes * nodes).map(|_| AtomicBool::new(false)).collect();
        let (stop, stopped) = pair()?;
        let ways = Arc::clone(&cut);
        let thread = std::thread::Builder::new().name("switch".into()).spawn(move || hand_on(&ours, &stopped, &ways))?;
        Ok((Self { nodes, cut, stop: Some(stop), thread: Some(thread) }, theirs))
    }

    /// Cuts or mends the way from one node to another; nodes count from 0.
    pub(crate) fn set_cut(&self, from: usize, to: usize, is_cut: bool) {
        if let Some(way) = self.cut.get(from * self.nodes + to) {
            way.store(is_cut, Ordering::SeqCst);
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hand_on(nodes: &[OwnedFd], stopped: &OwnedFd, cut: &[AtomicBool]) {
    let mut frame = vec![0; FRAME_BYTES];
    loop {
        let mut wanted: Vec<PollFd<'_>> =
            nodes.iter().chain([stopped]).map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if wanted.last().is_some_and(|stopped| stopped.any() != Some(false)) {
            return;
        }
        let ready: Vec<bool> = wanted.iter().map(|node| node.any() == Some(true)).collect();
        for (from, socket) in nodes.iter().enumerate().filter(|(from, _)| ready.get(*from) == Some(&true)) {
            for _ in 0..TURN {
                let Ok(bytes @ 1..) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) else { break };
                let frame = frame.get(..bytes).unwrap_or_default();
                for to in targets(frame, nodes.len()) {
                    let is_open = cut.get(from * nodes.len() + to).is_some_and(|way| !way.load(Ordering::SeqCst));
                    if let Some(target) = nodes.get(to).filter(|_| to != from && is_open) {
                        // Full, or no machine at the other end: lost, as on any wire.
                        let _ = send(target.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
                    }
                }
            }
        }
    }
}

/// Whom a frame is for.
fn targets(frame: &[u8], nodes: usize) -> std::ops::Range<usize> {
    match frame {
        _ if frame.len() < HEADER_BYTES => 0..0,
        [first, ..] if first & 1 == 1 => 0..nodes,
        [a, b, c, d, e, node, ..] if [*a, *b, *c, *d, *e] == ADDRESS && *node > 0 => {
            let index = usize::from(*node) - 1;
            index..(index + 1).min(nodes)
        }
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame_to(node: u8, text: &[u8]) -> Vec<u8> {
        [&ADDRESS[..], &[node], &[0; 8], text].concat()
    }

    fn taken(socket: &OwnedFd, limit: Duration) -> Option<Vec<u8>> {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap();
        if poll(&mut wanted, limit).unwrap() == 0 {
            return None;
        }
        let mut buffer = [0; 256];
        let bytes = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
        Some(buffer[..bytes].to_vec())
    }

    #[test]
    fn frames_go_to_whom_they_are_for_and_not_over_cut_ways() {
        let (switch, nodes) = Switch::start(3).unwrap();
        let send = |from: usize, frame: &[u8]| send(nodes[from].as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        let (soon, long) = (Duration::from_millis(50), Duration::from_secs(5));
        send(0, &frame_to(2, b"one"));
        assert_eq!(taken(&nodes[1], long), Some(frame_to(2, b"one")));
        let all = [&[0xff; 14][..], b"all"].concat();
        send(2, &all);
        assert_eq!((taken(&nodes[0], long), taken(&nodes[1], long)), (Some(all.clone()), Some(all)));
        switch.set_cut(0, 1, true);
        send(0, &frame_to(2, b"lost"));
        send(1, &frame_to(1, b"one way"));
        assert_eq!(taken(&nodes[0], long), Some(frame_to(1, b"one way")));
        assert_eq!((taken(&nodes[1], soon), taken(&nodes[2], soon)), (None, None));
        switch.set_cut(0, 1, false);
        send(0, &frame_to(2, b"again"));
        assert_eq!(taken(&nodes[1], long), Some(frame_to(2, b"again")));
        send(0, &frame_to(9, b"nobody"));
        send(0, b"short");
        assert_eq!(taken(&nodes[2], soon), None);
    }
}
