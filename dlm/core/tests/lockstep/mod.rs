//! The product and the reference side by side: each step goes to both, and what they say and what stands on their queues must be the same.

pub(crate) mod text;

use crate::node::{Node, pid};
use crate::reference::{Answer, Ask, Id, Lock, Options, Reference, Told};
use deadbolt_dlm_core::client::{ALL_SLOTS, ResourceName};
use deadbolt_dlm_core::service::{LockSnapshot, LockState};
use deadbolt_dlm_core::{ClientReply, ClientRequest, Flags, Input, LockStatus, Token};
use std::collections::BTreeMap;
use text::{Step, write_told};

/// No lock has this number.
const NO_LOCK: u32 = u32::MAX;

/// Marks the owner of many locks at once.
const MANY: u64 = 1 << 63;

pub(crate) struct Lockstep {
    node: Node,
    reference: Reference,
    /// Serial of the request that made it, by the product's number of the lock.
    ids: BTreeMap<u32, Id>,
    numbers: BTreeMap<Id, u32>,
    /// The lock that a request was about.
    about: BTreeMap<u64, Id>,
    /// Greatest token of each resource that was seen.
    tokens: BTreeMap<u8, Token>,
    /// Which grant of a lock was seen last, and its token.
    grants: BTreeMap<Id, (u64, Token)>,
    /// Tokens in the replies of this step.
    announced: Vec<Token>,
}

impl Lockstep {
    pub(crate) fn new() -> Self {
        Self {
            node: Node::new(),
            reference: Reference::default(),
            ids: BTreeMap::new(),
            numbers: BTreeMap::new(),
            about: BTreeMap::new(),
            tokens: BTreeMap::new(),
            grants: BTreeMap::new(),
            announced: Vec::new(),
        }
    }

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Does it in both; what it brings, or how they differ.
    pub(crate) fn take(&mut self, step: &Step) -> Result<Vec<Told>, String> {
        self.node.now += if let Step::Pass(time) = step { *time } else { 1 };
        let mut replies = self.node.input(Input::Tick);
        let mut expected = self.reference.expire(self.node.now);
        // The next of many locks may come when the time for all is over.
        while self.reference.next_deadline().is_some_and(|at| at <= self.node.now) {
            replies.extend(self.node.input(Input::Tick));
            expected.extend(self.reference.expire(self.node.now));
        }
        match step {
            Step::Ask(session, serial, ask) => {
                self.node.open(*session);
                self.about.extend(self.about(*serial, ask).map(|lock| (*serial, lock)));
                let request = self.request(*serial, ask);
                replies.extend(self.node.ask(*session, request));
                let rank = |id: Id| self.numbers.get(&id).copied().unwrap_or_default();
                expected.extend(self.reference.ask(self.node.now, *session, *serial, ask.clone(), rank));
            }
            Step::Die(session) => {
                replies.extend(self.node.close(*session));
                expected.extend(self.reference.close(*session));
            }
            Step::Pass(_) => {}
        }
        self.compare(replies, expected)
    }

    /// The lock that a request is about.
    fn about(&self, serial: u64, ask: &Ask) -> Option<Id> {
        match ask {
            Ask::Lock { options, .. } => Some(serial).filter(|_| !options.flags.has(Flags::ORPHAN)),
            Ask::Convert { lock, .. } | Ask::Unlock { lock, .. } | Ask::Cancel { lock } => Some(*lock),
            Ask::CancelRequest { request } => self.about.get(request).copied(),
            Ask::Many { .. } | Ask::Purge { .. } => None,
        }
    }

    fn request(&self, serial: u64, ask: &Ask) -> ClientRequest {
        let number = |id: &Id| self.numbers.get(id).copied().unwrap_or(NO_LOCK);
        let lockspace = self.node.lockspace;
        match *ask {
            Ask::Lock { resource, mode, options: Options { flags, lvb, timeout } } => {
                // Each lock is for somebody of its own: the reference does not search deadlocks across resources.
                let (resource, owner, timeout_ms) = (ResourceName::new(&[resource]).unwrap(), serial, timeout);
                ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb }
            }
            Ask::Many { ref items, options: Options { flags, timeout, .. } } => {
                let items = items.iter().map(|(resource, mode)| (ResourceName::new(&[*resource]).unwrap(), *mode)).collect();
                // Nobody else's number, also when one of these locks is converted.
                let (owner, timeout_ms) = (serial | MANY, timeout);
                ClientRequest::LockMany { serial, lockspace, items, flags, owner, timeout_ms }
            }
            Ask::Convert { ref lock, mode, options: Options { flags, lvb, timeout } } => {
                let (lock, owner, timeout_ms) = (number(lock), *lock, timeout);
                ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb }
            }
            Ask::Unlock { ref lock, options: Options { flags, lvb, .. } } => {
                ClientRequest::Unlock { serial, lock: number(lock), flags, lvb }
            }
            Ask::Cancel { ref lock } => ClientRequest::Cancel { serial, lock: number(lock) },
            Ask::CancelRequest { request } => ClientRequest::CancelRequest { serial, request },
            Ask::Purge { of } => ClientRequest::Purge { serial, lockspace, slot: ALL_SLOTS, pid: of.map_or(0, pid) },
        }
    }

    fn compare(&mut self, replies: Vec<(u64, ClientReply)>, mut expected: Vec<Told>) -> Result<Vec<Told>, String> {
        let mut found = Vec::new();
        for (session, reply) in replies {
            found.push((session, self.translate(reply)?));
        }
        // What one request brings has an order for each lock; between locks there is none.
        let order = |(session, answer): &Told| match answer {
            Answer::Done { serial, .. } => (*session, self.about.get(serial).copied()),
            Answer::Blocking { lock, .. } => (*session, Some(*lock)),
            Answer::Many { .. } => (*session, None),
        };
        found.sort_by_key(order);
        expected.sort_by_key(order);
        if found != expected {
            let lines = |told: &[Told]| told.iter().map(|told| format!("    {}\n", write_told(told))).collect::<String>();
            return Err(format!("product:\n{}reference:\n{}", lines(&found), lines(&expected)));
        }
        self.compare_queues()?;
        Ok(found)
    }

    fn translate(&mut self, reply: ClientReply) -> Result<Answer, String> {
        match reply {
            ClientReply::Completed { serial, lock, status, mode, flags, lvb, token } => {
                if status != LockStatus::Success && token != Token::default() {
                    return Err(format!("{status:?} with token {token}"));
                }
                self.announced.push(token);
                // The number of a lock that is not there (any more) says nothing.
                let adopted = self.ids.get(&lock).copied();
                let about = self.about.get(&serial).copied().or(adopted).filter(|_| mode.is_some());
                self.about.extend(about.map(|id| (serial, id)));
                let lock = about.filter(|id| self.is_number_of(lock, *id));
                Ok(Answer::Done { serial, lock, status, mode, flags, lvb })
            }
            ClientReply::Blocking { lock, mode } => {
                let lock = self.ids.get(&lock).copied().ok_or(format!("blocking callback of an unknown lock {lock}"))?;
                Ok(Answer::Blocking { lock, mode })
            }
            ClientReply::ManyCompleted { serial, status, failed, locks } => {
                self.announced.extend(locks.iter().map(|(_, token)| *token));
                let ids: Vec<Id> = (serial..).take(locks.len()).collect();
                let is_right = locks.iter().zip(&ids).all(|((lock, _), id)| self.is_number_of(*lock, *id));
                if is_right { Ok(Answer::Many { serial, status, failed, locks: ids }) } else { Err(format!("other locks: {locks:?}")) }
            }
            ClientReply::Refused { serial, status, reason } if !reason.is_empty() => {
                Ok(Answer::Done { serial, lock: None, status, mode: None, flags: Default::default(), lvb: None })
            }
            other => Err(format!("unexpected {other:?}")),
        }
    }

    /// A number first heard of is learned; it may have been another lock's, long ago.
    fn is_number_of(&mut self, number: u32, id: Id) -> bool {
        let known = *self.numbers.entry(id).or_insert(number);
        if let Some(before) = self.ids.insert(number, id).filter(|before| *before != id) {
            self.numbers.remove(&before);
        }
        known == number
    }

    fn compare_queues(&mut self) -> Result<(), String> {
        let snapshot = self.node.service.snapshot();
        let mut found: BTreeMap<u8, Vec<LockSnapshot>> =
            snapshot.into_iter().map(|resource| (resource.resource[0], resource.locks)).collect();
        let resources = std::mem::take(&mut self.reference.resources);
        for (name, resource) in &resources {
            let locks = found.remove(name).unwrap_or_default();
            let is_same =
                locks.len() == resource.locks().count() && locks.iter().zip(resource.locks()).all(|(one, other)| self.is_same(one, other));
            if !is_same {
                return Err(format!("product's queues: {locks:#?}\nreference: {resource:#?}"));
            }
            self.compare_tokens(*name, locks.iter().zip(resource.locks()))?;
        }
        self.reference.resources = resources;
        self.announced.clear();
        // The product also wakes to look for deadlocks.
        let (found_at, wanted_at) = (self.node.service.next_deadline(), self.reference.next_deadline());
        if wanted_at.is_some_and(|wanted| found_at.is_none_or(|found| found > wanted)) {
            return Err(format!("the product wants to wake at {found_at:?}, the reference at {wanted_at:?}"));
        }
        if found.is_empty() { Ok(()) } else { Err(format!("product's queues: {found:#?}\nreference: nothing")) }
    }

    /// A lock whose number was not heard of yet (it waits) is learned here.
    fn is_same(&mut self, found: &LockSnapshot, wanted: &Lock) -> bool {
        let state = match (wanted.granted, &wanted.wanted) {
            (Some(_), None) => LockState::Granted,
            (Some(_), Some(_)) => LockState::Converting,
            (None, _) => LockState::Waiting,
        };
        self.is_number_of(found.who.lock, wanted.id)
            && (found.who.pid, found.state) == (pid(wanted.process), state)
            && (found.granted, found.wanted) == (wanted.granted, wanted.wanted.as_ref().map(|wanted| wanted.mode))
    }

    /// Tokens follow the order of the grants, whatever becomes of the resource between them.
    fn compare_tokens<'a>(&mut self, name: u8, locks: impl Iterator<Item = (&'a LockSnapshot, &'a Lock)>) -> Result<(), String> {
        let mut new = Vec::new();
        for (found, wanted) in locks.filter(|(_, wanted)| wanted.granted.is_some()) {
            match self.grants.get(&wanted.id) {
                Some((grant, token)) if *grant == wanted.grant && *token == found.token => {}
                Some((grant, token)) if *grant == wanted.grant => {
                    return Err(format!("lock {} has token {} after {token}, and was not granted again", wanted.id, found.token));
                }
                _ => new.push((wanted.grant, found.token, wanted.id, wanted.session == 0 || wanted.is_in_many)),
            }
        }
        new.sort_unstable();
        for (grant, token, id, is_untold) in new {
            let last = self.tokens.insert(name, token).unwrap_or_default();
            if token <= last || !(is_untold || self.announced.contains(&token)) {
                return Err(format!("lock {id} has token {token} after {last} of {}, announced {:?}", char::from(name), self.announced));
            }
            self.grants.insert(id, (grant, token));
        }
        Ok(())
    }
}
