//! A small lock manager that is right because it is plain: one node, vectors, loops, each rule once, in the order of the published facts.
//! It is the second opinion on the product, and knows nothing of it but the numbers of modes, flags and results.

mod arguments;
mod resource;
pub(crate) mod tables;

use deadbolt_dlm_core::client::Lvb;
use deadbolt_dlm_core::{Flags, LockStatus, Mode, ResultFlags};
use resource::Resource;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A lock is known by the serial of the request that made it.
pub(crate) type Id = u64;

/// What a session is told.
pub(crate) type Told = (u64, Answer);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Done { serial: u64, lock: Option<Id>, status: LockStatus, mode: Option<Mode>, flags: ResultFlags, lvb: Option<Lvb> },
    Blocking { lock: Id, mode: Mode },
}

/// What a session asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Lock { resource: u8, mode: Mode, flags: Flags, lvb: Option<Lvb> },
    Convert { lock: Id, mode: Mode, flags: Flags, lvb: Option<Lvb> },
    Unlock { lock: Id, flags: Flags, lvb: Option<Lvb> },
    Cancel { lock: Id },
    CancelRequest { request: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) serial: u64,
    pub(crate) mode: Mode,
    flags: Flags,
    lvb: Option<Lvb>,
}

#[derive(Clone, Debug)]
pub(crate) struct Lock {
    pub(crate) id: Id,
    pub(crate) session: u64,
    pub(crate) granted: Option<Mode>,
    pub(crate) wanted: Option<Wanted>,
    is_demoted: bool,
    /// Which grant of the resource was this lock's last that gave it more than it had; tokens follow it.
    pub(crate) grant: u64,
    /// The granted mode that its session knows of: one that was demoted hears of it when the conversion ends.
    known: Option<Mode>,
    /// The strongest blocked mode that its holder heard of since the last grant.
    told: Option<Mode>,
}

impl Lock {
    fn wanted(&self) -> &Wanted {
        self.wanted.as_ref().expect("something is asked of this lock")
    }

    fn answer(&self, status: LockStatus, mode: Option<Mode>) -> Told {
        let flags = if self.is_demoted { ResultFlags::DEMOTED } else { ResultFlags::default() };
        let serial = self.wanted().serial;
        (self.session, Answer::Done { serial, lock: mode.map(|_| self.id), status, mode, flags, lvb: None })
    }

    /// An answer that changes nothing about the lock.
    fn as_it_is(&self, serial: u64, status: LockStatus) -> Told {
        simple(self.session, serial, self.known.map(|mode| (self.id, mode)), status)
    }

    fn blocks(&self, mode: Mode) -> bool {
        self.granted.is_some_and(|granted| !tables::is_compatible(granted, mode))
    }

    /// Facts 1.5: nobody hears of a mode that he does not block, nor a second time of the same or a lower one.
    fn tell(&mut self, mode: Mode, told: &mut Vec<Told>) {
        if self.blocks(mode) && self.told.is_none_or(|before| before < mode) {
            self.told = Some(mode);
            told.push((self.session, Answer::Blocking { lock: self.id, mode }));
        }
    }
}

/// One node.
#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) resources: BTreeMap<u8, Resource>,
}

impl Reference {
    /// Everything that is told because of one request, in order.
    pub(crate) fn ask(&mut self, session: u64, serial: u64, ask: Ask) -> Vec<Told> {
        let mut told = Vec::new();
        match ask {
            Ask::Lock { resource, mode, flags, lvb } => {
                if arguments::is_lock_legal(mode, flags) {
                    let wanted = Some(Wanted { serial, mode, flags, lvb });
                    let lock = Lock { id: serial, session, granted: None, wanted, is_demoted: false, grant: 0, known: None, told: None };
                    let resource = self.resources.entry(resource).or_default();
                    resource.request(lock, &mut told);
                    resource.settle(&mut told);
                } else {
                    told.push(simple(session, serial, None, LockStatus::Invalid));
                }
            }
            Ask::Convert { lock, mode, flags, lvb } => self.convert(session, lock, Wanted { serial, mode, flags, lvb }, &mut told),
            Ask::Unlock { lock, flags, lvb } => self.unlock((session, serial), lock, flags, lvb, &mut told),
            Ask::Cancel { lock } => {
                let found = self.find(session, |found| found.id == lock);
                self.cancel(session, serial, found, &mut told);
            }
            Ask::CancelRequest { request } => {
                let found = self.find(session, |found| found.wanted.as_ref().is_some_and(|wanted| wanted.serial == request));
                self.cancel(session, serial, found, &mut told);
            }
        }
        self.resources.retain(|_, resource| !resource.is_empty());
        told
    }

    /// Facts 1.4: a process that dies gives back all its locks, and marks what it may have been writing.
    pub(crate) fn close(&mut self, session: u64) -> Vec<Told> {
        let mut told = Vec::new();
        for resource in self.resources.values_mut() {
            let dead = resource.locks().filter(|lock| lock.session == session);
            let mut dead: Vec<(bool, Reverse<Id>)> = dead.map(|lock| (lock.wanted.is_none(), Reverse(lock.id))).collect();
            // What waits goes first: nothing is granted to the dead. The last to come first: nobody moves up for a moment.
            dead.sort_unstable();
            for (_, Reverse(id)) in dead {
                resource.unlock(id, Flags::IVVALBLK, None);
                resource.settle(&mut told);
            }
        }
        self.resources.retain(|_, resource| !resource.is_empty());
        told.retain(|(to, _)| *to != session);
        told
    }

    fn find(&self, session: u64, is_wanted: impl Fn(&Lock) -> bool) -> Option<(u8, Lock)> {
        self.resources.iter().find_map(|(name, resource)| {
            let lock = resource.locks().find(|lock| lock.session == session && is_wanted(lock))?;
            Some((*name, lock.clone()))
        })
    }

    fn convert(&mut self, session: u64, id: Id, wanted: Wanted, told: &mut Vec<Told>) {
        let serial = wanted.serial;
        let Some((name, lock)) = self.find(session, |lock| lock.id == id) else {
            return told.push(simple(session, serial, None, LockStatus::NotFound));
        };
        let Some(granted) = lock.granted.filter(|_| lock.wanted.is_none()) else {
            return told.push(lock.as_it_is(serial, LockStatus::Busy));
        };
        if !arguments::is_convert_legal(granted, wanted.mode, wanted.flags, wanted.lvb.is_some()) {
            return told.push(lock.as_it_is(serial, LockStatus::Invalid));
        }
        let resource = self.resources.get_mut(&name).unwrap();
        resource.granted.iter_mut().find(|lock| lock.id == id).unwrap().wanted = Some(wanted);
        resource.convert(id, told);
        resource.settle(told);
    }

    fn unlock(&mut self, (session, serial): (u64, u64), id: Id, flags: Flags, lvb: Option<Lvb>, told: &mut Vec<Told>) {
        let Some((name, lock)) = self.find(session, |lock| lock.id == id) else {
            return told.push(simple(session, serial, None, LockStatus::NotFound));
        };
        if !arguments::is_unlock_legal(flags) {
            return told.push(lock.as_it_is(serial, LockStatus::Invalid));
        }
        if lock.wanted.is_some() && !flags.has(Flags::FORCEUNLOCK) {
            return told.push(lock.as_it_is(serial, LockStatus::Busy));
        }
        if lock.wanted.is_some() {
            // Every request has its answer: the one that is cut short is cancelled.
            told.push(lock.as_it_is(lock.wanted().serial, LockStatus::Cancelled));
        }
        told.push(simple(session, serial, None, LockStatus::Unlocked));
        let resource = self.resources.get_mut(&name).unwrap();
        resource.unlock(id, flags, lvb);
        resource.settle(told);
    }

    fn cancel(&mut self, session: u64, serial: u64, found: Option<(u8, Lock)>, told: &mut Vec<Told>) {
        let Some((name, lock)) = found else { return told.push(simple(session, serial, None, LockStatus::NotFound)) };
        let resource = self.resources.get_mut(&name).unwrap();
        if lock.wanted.is_some() {
            resource.cancel(lock.id, told);
        }
        told.push(simple(session, serial, lock.granted.map(|mode| (lock.id, mode)), LockStatus::Success));
        resource.settle(told);
    }
}

/// An answer without flags and value block.
fn simple(session: u64, serial: u64, lock: Option<(Id, Mode)>, status: LockStatus) -> Told {
    let (lock, mode) = lock.unzip();
    (session, Answer::Done { serial, lock, status, mode, flags: ResultFlags::default(), lvb: None })
}
