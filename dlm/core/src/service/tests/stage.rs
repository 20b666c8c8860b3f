//! What: some nodes with some sessions each, an instant network and a clock, for scenes of one subject.
//! Owns: the driver.
//! Invariants: none of its own.
//! Does not: judge.
//! Called by: the files of scenes.

use super::*;

/// Sessions 1 to 3 of every node; the process of session s is 100 + s.
pub(super) const SESSIONS: u64 = 3;

pub(super) struct Stage {
    pub(super) nodes: BTreeMap<u16, LockService>,
    /// Node, session, reply.
    pub(super) replies: Vec<(u16, u64, ClientReply)>,
    pub(super) now_ms: u64,
    /// Messages between nodes are kept back while this is set.
    pub(super) is_held_back: bool,
    pub(super) kept: VecDeque<(u16, Input)>,
    pub(super) space: u32,
    view: u64,
    serial: u64,
}

impl Stage {
    pub(super) fn new(slots: u16) -> Self {
        let nodes = (0..slots).map(|slot| (slot, LockService::new(life(slot, 1)))).collect();
        let (replies, kept) = (Vec::new(), VecDeque::new());
        let mut stage = Self { nodes, replies, now_ms: 1000, is_held_back: false, kept, space: 0, view: 0, serial: 0 };
        stage.next_view(&[]);
        for slot in 0..slots {
            stage.input(slot, Input::Permit { may_grant: true });
            for session in 1..=SESSIONS {
                stage.open(slot, session);
            }
        }
        stage
    }

    pub(super) fn open(&mut self, slot: u16, session: u64) {
        let info = SessionInfo { pid: 100 + u32::try_from(session).unwrap() };
        self.input(slot, Input::SessionOpened { session, info });
        let serial = self.ask(slot, session, |serial| ClientRequest::JoinLockspace { serial, name: b"space".to_vec() });
        match self.answer(serial) {
            Some(ClientReply::Joined { lockspace, .. }) => self.space = *lockspace,
            other => panic!("not joined: {other:?}"),
        }
    }

    /// All nodes that are left learn a view of themselves and, as owed, of these slots.
    pub(super) fn next_view(&mut self, owed: &[u16]) {
        self.view += 1;
        let members: Vec<Life> = self.nodes.keys().map(|slot| life(*slot, 1)).collect();
        let number = ViewNumber(self.view);
        let owed: Vec<Owed> = owed.iter().map(|slot| Owed { life: life(*slot, 1), removed_in: number }).collect();
        for slot in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(slot, Input::View { number, members: members.clone(), owed: owed.clone(), is_member: true });
        }
    }

    pub(super) fn input(&mut self, to: u16, input: Input) {
        let mut queue = VecDeque::from([(to, input)]);
        while let Some((to, input)) = queue.pop_front() {
            let Some(service) = self.nodes.get_mut(&to) else { continue };
            let from = service.me;
            service.handle(self.now_ms, input);
            while let Some(output) = service.poll_output() {
                match output {
                    Output::Send { to, message } if self.is_held_back => self.kept.push_back((to.slot.0, Input::Peer { from, message })),
                    Output::Send { to, message } => queue.push_back((to.slot.0, Input::Peer { from, message })),
                    Output::Reply { session, reply } => self.replies.push((to, session, reply)),
                    Output::Holds(is_held) => queue.push_back((to, Input::HoldsPublished(is_held))),
                    _ => {}
                }
            }
            if service.has_work() {
                queue.push_back((to, Input::Tick));
            }
        }
    }

    pub(super) fn let_go(&mut self) {
        self.is_held_back = false;
        while let Some((to, input)) = self.kept.pop_front() {
            self.input(to, input);
        }
    }

    /// Time passes; every node that wants to know it is told.
    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        for slot in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.nodes[&slot].next_deadline().is_some_and(|at_ms| at_ms <= self.now_ms) {
                self.input(slot, Input::Tick);
            }
        }
    }

    pub(super) fn ask(&mut self, slot: u16, session: u64, make: impl FnOnce(u64) -> ClientRequest) -> u64 {
        self.serial += 1;
        self.input(slot, Input::Request { session, request: make(self.serial) });
        self.serial
    }

    pub(super) fn lock(&mut self, (slot, session): (u16, u64), resource: &[u8], mode: Mode, flags: Flags) -> u64 {
        self.lock_for((slot, session), resource, mode, flags, (0, 0))
    }

    pub(super) fn lock_for(
        &mut self,
        (slot, session): (u16, u64),
        resource: &[u8],
        mode: Mode,
        flags: Flags,
        (owner, timeout_ms): (u64, u32),
    ) -> u64 {
        let (lockspace, resource) = (self.space, name(resource));
        self.ask(slot, session, |serial| ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb: None })
    }

    pub(super) fn convert(&mut self, (slot, session): (u16, u64), lock: u32, mode: Mode, flags: Flags, timeout_ms: u32) -> u64 {
        let lvb = flags.has(Flags::VALBLK).then_some([9; 32]);
        self.ask(slot, session, |serial| ClientRequest::Convert { serial, lock, mode, flags, owner: 0, timeout_ms, lvb })
    }

    pub(super) fn unlock(&mut self, (slot, session): (u16, u64), lock: u32, flags: Flags) -> u64 {
        self.ask(slot, session, |serial| ClientRequest::Unlock { serial, lock, flags, lvb: None })
    }

    /// The one answer to a request, if it has come.
    pub(super) fn answer(&self, serial: u64) -> Option<&ClientReply> {
        let mut found = self.replies.iter().filter(|(.., reply)| reply.answers() == Some(serial));
        let answer = found.next();
        assert!(found.next().is_none(), "{serial} is answered twice");
        answer.map(|(.., reply)| reply)
    }

    pub(super) fn status(&self, serial: u64) -> Option<LockStatus> {
        self.answer(serial).map(|reply| match reply {
            ClientReply::Completed { status, .. } | ClientReply::ManyCompleted { status, .. } | ClientReply::Queried { status, .. } => {
                *status
            }
            other => panic!("no status: {other:?}"),
        })
    }

    /// The lock that a request got.
    pub(super) fn granted(&self, serial: u64) -> u32 {
        match self.answer(serial) {
            Some(ClientReply::Completed { lock, status: LockStatus::Success, mode: Some(_), .. }) => *lock,
            other => panic!("not granted: {other:?}"),
        }
    }

    /// Locks that were told to stand in the way, with the mode, since the last call.
    pub(super) fn blocking(&mut self) -> Vec<(u32, Mode)> {
        let is_told = |reply: &ClientReply| matches!(reply, ClientReply::Blocking { .. });
        let (told, rest) = core::mem::take(&mut self.replies).into_iter().partition::<Vec<_>, _>(|(.., reply)| is_told(reply));
        self.replies = rest;
        let modes = told.into_iter().filter_map(|(.., reply)| match reply {
            ClientReply::Blocking { lock, mode } => Some((lock, mode)),
            _ => None,
        });
        modes.collect()
    }
}
