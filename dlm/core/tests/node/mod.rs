//! A node alone, and what it says to its sessions.

use deadbolt_disk_format::types::{BootId, Incarnation, Life, SlotIndex, ViewNumber};
use deadbolt_dlm_core::{ClientReply, ClientRequest, Input, LockService, Output, SessionInfo};
use std::collections::{BTreeSet, VecDeque};

const LOCKSPACE: &[u8] = b"space";

pub(crate) struct Node {
    pub(crate) service: LockService,
    pub(crate) now: u64,
    pub(crate) lockspace: u32,
    sessions: BTreeSet<u64>,
}

/// The process of a session.
pub(crate) fn pid(session: u64) -> u32 {
    u32::try_from(session).unwrap() + 1000
}

impl Node {
    pub(crate) fn new() -> Self {
        let me = Life { slot: SlotIndex(0), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
        let mut node = Self { service: LockService::new(me), now: 0, lockspace: 0, sessions: BTreeSet::new() };
        node.input(Input::View { number: ViewNumber(1), members: vec![me], owed: vec![], is_member: true });
        node.input(Input::Permit { may_grant: true });
        node
    }

    /// Gives it an input, publishes what it wants published, and returns what it says to sessions.
    pub(crate) fn input(&mut self, input: Input) -> Vec<(u64, ClientReply)> {
        let (mut replies, mut inputs) = (Vec::new(), VecDeque::from([input]));
        while let Some(input) = inputs.pop_front() {
            self.service.handle(self.now, input);
            while let Some(output) = self.service.poll_output() {
                match output {
                    Output::Reply { session, reply } => replies.push((session, reply)),
                    Output::Holds(is_held) => inputs.push_back(Input::HoldsPublished(is_held)),
                    Output::Send { .. } => panic!("there is nobody to send to"),
                    _ => {}
                }
            }
        }
        replies
    }

    /// A session begins when it is first heard of.
    pub(crate) fn ask(&mut self, session: u64, request: ClientRequest) -> Vec<(u64, ClientReply)> {
        self.open(session);
        self.input(Input::Request { session, request })
    }

    pub(crate) fn close(&mut self, session: u64) -> Vec<(u64, ClientReply)> {
        self.sessions.remove(&session);
        self.input(Input::SessionClosed { session })
    }

    pub(crate) fn open(&mut self, session: u64) {
        if !self.sessions.insert(session) {
            return;
        }
        self.input(Input::SessionOpened { session, info: SessionInfo { pid: pid(session) } });
        let request = ClientRequest::JoinLockspace { serial: 0, name: LOCKSPACE.to_vec() };
        let replies = self.input(Input::Request { session, request });
        let [(_, ClientReply::Joined { lockspace, .. })] = replies[..] else { panic!("joined at once: {replies:?}") };
        self.lockspace = lockspace;
    }
}
