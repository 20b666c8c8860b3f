//! What: several nodes, an instant network and a clock.
//! Owns: a driver that delivers until nothing moves and wakes whoever has a deadline.
//! Invariants: no request is answered twice.
//! Does not: choose anything by chance.
//! Called by: `deadlocks`, `ranges`.

use super::*;
use crate::client::RangeKind;

/// Sessions of each node; the process of session 3 on slot 1 is 103.
const SESSIONS: u64 = 4;

pub(super) struct Timed {
    pub(super) nodes: BTreeMap<u16, LockService>,
    pub(super) now: u64,
    pub(super) replies: Vec<(u16, ClientReply)>,
    pub(super) logs: Vec<String>,
    pub(super) space: u32,
    serial: u64,
}

impl Timed {
    pub(super) fn new(slots: u16) -> Self {
        let nodes = (0..slots).map(|slot| (slot, LockService::new(life(slot, 1)))).collect();
        let mut timed = Self { nodes, now: 1000, replies: Vec::new(), logs: Vec::new(), space: 0, serial: 0 };
        timed.view(1, &[]);
        for slot in 0..slots {
            timed.input(slot, Input::Permit { may_grant: true });
            for session in 1..=SESSIONS {
                let pid = 100 * u32::from(slot) + u32::try_from(session).unwrap();
                timed.input(slot, Input::SessionOpened { session, info: SessionInfo { pid } });
                let request = ClientRequest::JoinLockspace { serial: 0, name: b"s".to_vec() };
                timed.input(slot, Input::Request { session, request });
                let Some((_, ClientReply::Joined { lockspace, .. })) = timed.replies.pop() else { panic!("joined at once") };
                timed.space = lockspace;
            }
        }
        timed
    }

    pub(super) fn input(&mut self, to: u16, input: Input) {
        let mut queue = VecDeque::from([(to, input)]);
        while let Some((to, input)) = queue.pop_front() {
            let Some(service) = self.nodes.get_mut(&to) else { continue };
            let me = service.me;
            service.handle(self.now, input);
            while let Some(output) = service.poll_output() {
                match output {
                    Output::Send { to, message } => queue.push_back((to.slot.0, Input::Peer { from: me, message })),
                    Output::Reply { reply, .. } => self.replies.push((to, reply)),
                    Output::Holds(is_held) => queue.push_back((to, Input::HoldsPublished(is_held))),
                    Output::Log(text) => self.logs.push(text),
                    Output::Recovered(_) => {}
                }
            }
        }
    }

    /// Time goes by; whoever has a deadline is woken.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(next) = self.nodes.values().filter_map(LockService::next_deadline).min().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            let due = self.nodes.iter().filter(|(_, node)| node.next_deadline().is_some_and(|at| at <= self.now));
            for slot in due.map(|(slot, _)| *slot).collect::<Vec<_>>() {
                self.input(slot, Input::Tick);
            }
        }
        self.now = end;
    }

    /// All nodes that are there are members.
    pub(super) fn view(&mut self, number: u64, owed: &[u16]) {
        let members: Vec<Life> = self.nodes.keys().map(|slot| life(*slot, 1)).collect();
        let to_owed = |slot: &u16| Owed { life: life(*slot, 1), removed_in: ViewNumber(number) };
        let owed: Vec<Owed> = owed.iter().map(to_owed).collect();
        for slot in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (members, owed) = (members.clone(), owed.clone());
            self.input(slot, Input::View { number: ViewNumber(number), members, owed, is_member: true });
        }
    }

    pub(super) fn ask(&mut self, slot: u16, session: u64, request: impl FnOnce(u64) -> ClientRequest) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        self.input(slot, Input::Request { session, request: request(serial) });
        serial
    }

    pub(super) fn lock(&mut self, slot: u16, session: u64, resource: &[u8], mode: Mode, flags: Flags) -> u64 {
        let (lockspace, resource) = (self.space, name(resource));
        let (owner, timeout_ms, lvb) = (0, 0, None);
        self.ask(slot, session, |serial| ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb })
    }

    /// A lock that is granted at once.
    pub(super) fn take(&mut self, slot: u16, session: u64, resource: &[u8], mode: Mode) -> u32 {
        let serial = self.lock(slot, session, resource, mode, Flags::NONE);
        self.replies
            .iter()
            .find_map(|(_, reply)| match reply {
                ClientReply::Completed { serial: found, lock, status: LockStatus::Success, .. } if *found == serial => Some(*lock),
                _ => None,
            })
            .unwrap()
    }

    pub(super) fn unlock(&mut self, slot: u16, session: u64, lock: u32) -> u64 {
        self.ask(slot, session, |serial| ClientRequest::Unlock { serial, lock, flags: Flags::NONE, lvb: None })
    }

    pub(super) fn range(&mut self, (slot, session, lock): (u16, u64, u32), owner: u64, kind: RangeKind, (start, end): (u64, u64)) -> u64 {
        let (flags, timeout_ms) = (Flags::NONE, 0);
        self.ask(slot, session, |serial| ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms })
    }

    /// How a request ended; none: it waits.
    pub(super) fn status(&self, wanted: u64) -> Option<LockStatus> {
        let found: Vec<LockStatus> = self
            .replies
            .iter()
            .filter_map(|(_, reply)| match reply {
                ClientReply::Completed { serial, status, .. } if *serial == wanted => Some(*status),
                _ => None,
            })
            .collect();
        assert!(found.len() < 2, "answered twice: {found:?}");
        found.first().copied()
    }

    /// Why a request is about to fail.
    pub(super) fn cycle(&self, wanted: u64) -> Option<String> {
        self.replies.iter().find_map(|(_, reply)| match reply {
            ClientReply::DeadlockCycle { serial, cycle } if *serial == wanted => Some(std::string::ToString::to_string(cycle)),
            _ => None,
        })
    }
}
