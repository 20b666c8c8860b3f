//! A small lock manager that is right because it is plain: one node, vectors, loops, each rule once, in the order of the published facts.
//! It is the second opinion on the product, and knows nothing of it but the numbers of modes, flags and results.

mod arguments;
mod many;
mod resource;
pub(crate) mod tables;

use deadbolt_dlm_core::client::{Lvb, NONE_FAILED};
use deadbolt_dlm_core::{Flags, LockStatus, Mode, ResultFlags};
use many::Many;
use resource::Resource;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A lock is known by the serial of the request that made it.
pub(crate) type Id = u64;

/// What a session is told.
pub(crate) type Told = (u64, Answer);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Done {
        serial: u64,
        lock: Option<Id>,
        status: LockStatus,
        mode: Option<Mode>,
        flags: ResultFlags,
        lvb: Option<Lvb>,
    },
    Blocking {
        lock: Id,
        mode: Mode,
    },
    /// Of many: which one failed; the locks in the order asked.
    Many {
        serial: u64,
        status: LockStatus,
        failed: u16,
        locks: Vec<Id>,
    },
}

/// What goes with a request, an unlock or a conversion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Options {
    pub(crate) flags: Flags,
    pub(crate) lvb: Option<Lvb>,
    /// Longest wait; 0 for ever.
    pub(crate) timeout: u32,
}

/// What a session asks. Serial 0: nobody wants the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Lock {
        resource: u8,
        mode: Mode,
        options: Options,
    },
    /// Several locks, known by the serial of the request and those that follow it, in the order asked.
    Many {
        items: Vec<(u8, Mode)>,
        options: Options,
    },
    Convert {
        lock: Id,
        mode: Mode,
        options: Options,
    },
    Unlock {
        lock: Id,
        options: Options,
    },
    Cancel {
        lock: Id,
    },
    CancelRequest {
        request: u64,
    },
    /// Orphans of a session, or of all.
    Purge {
        of: Option<u64>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) serial: u64,
    pub(crate) mode: Mode,
    flags: Flags,
    lvb: Option<Lvb>,
    /// Until when it waits; 0 for ever.
    pub(crate) until: u64,
    /// Who asked before whom.
    turn: u64,
}

impl Wanted {
    fn new(serial: u64, mode: Mode, options: Options, now: u64) -> Self {
        let until = if options.timeout == 0 { 0 } else { now + u64::from(options.timeout) };
        Self { serial, mode, flags: options.flags, lvb: options.lvb, until, turn: 0 }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Lock {
    pub(crate) id: Id,
    /// 0: an orphan's.
    pub(crate) session: u64,
    /// The session whose process has it, or had it last.
    pub(crate) process: u64,
    is_persistent: bool,
    /// Its session has not been told of it.
    pub(crate) is_in_many: bool,
    /// It was asked for with others, for one owner; a conversion gives it one of its own.
    is_shared: bool,
    /// Which came before which.
    born: u64,
    pub(crate) granted: Option<Mode>,
    pub(crate) wanted: Option<Wanted>,
    is_demoted: bool,
    /// Which grant of the resource was this lock's last that gave it more than it had; tokens follow it.
    pub(crate) grant: u64,
    /// The granted mode that its session knows of: one that was demoted hears of it when the conversion ends.
    known: Option<Mode>,
    /// The strongest blocked mode that its holder was told of since the last grant.
    told: Option<Mode>,
    /// The last that its session heard of since the last end of a request: nobody hears that twice, nor of less after more than PR.
    heard: Option<Mode>,
}

impl Lock {
    fn new(id: Id, session: u64, wanted: Wanted) -> Self {
        let (is_persistent, born) = (wanted.flags.has(Flags::PERSISTENT), wanted.turn);
        let (process, granted, wanted) = (session, None, Some(wanted));
        let (is_in_many, is_shared, is_demoted, grant, known, told, heard) = (false, false, false, 0, None, None, None);
        Self { id, session, process, is_persistent, is_in_many, is_shared, born, granted, wanted, is_demoted, grant, known, told, heard }
    }

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
            let is_known = self.heard.is_some_and(|heard| heard == mode || (heard > mode && heard > Mode::Pr));
            if !is_known {
                self.heard = Some(mode);
                told.push((self.session, Answer::Blocking { lock: self.id, mode }));
            }
        }
    }
}

/// One node.
#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) resources: BTreeMap<u8, Resource>,
    /// Requests for many under way, by session and serial.
    manies: BTreeMap<(u64, u64), Many>,
    turns: u64,
}

impl Reference {
    /// Everything that is told because of one request, in order. `rank`: which of several orphans comes first.
    pub(crate) fn ask(&mut self, now: u64, session: u64, serial: u64, ask: Ask, rank: impl Fn(Id) -> u32) -> Vec<Told> {
        let mut told = Vec::new();
        match ask {
            Ask::Lock { mode, options, .. } if !arguments::is_lock_legal(mode, options.flags) => {
                told.push(simple(session, serial, None, LockStatus::Invalid));
            }
            Ask::Lock { resource, mode, options } if options.flags.has(Flags::ORPHAN) => {
                told.push(self.adopt(session, serial, resource, mode, rank));
                self.settle(&mut told);
            }
            Ask::Lock { resource, mode, options } => {
                let lock = Lock::new(serial, session, self.in_turn(Wanted::new(serial, mode, options, now)));
                self.resources.entry(resource).or_default().request(lock, &mut told);
                self.settle(&mut told);
            }
            Ask::Many { items, options } => self.ask_many((session, serial), &items, options, now, &mut told),
            Ask::Convert { lock, mode, options } => {
                let wanted = self.in_turn(Wanted::new(serial, mode, options, now));
                self.convert(session, lock, wanted, &mut told);
            }
            Ask::Unlock { lock, options } => self.unlock((session, serial), lock, options, &mut told),
            Ask::Cancel { lock } => {
                let found = self.find_own(session, lock);
                self.cancel(session, serial, found, &mut told);
            }
            Ask::CancelRequest { request } => {
                let is_it = |found: &Lock| found.wanted.as_ref().is_some_and(|wanted| wanted.serial == request);
                let found = self.find(|found| found.session == session && is_it(found));
                self.cancel(session, serial, found, &mut told);
            }
            Ask::Purge { of } => {
                let mut orphans = self.locks(|lock| lock.session == 0 && of.is_none_or(|of| of == lock.process));
                orphans.sort_by_key(|(_, lock)| rank(lock.id));
                for (name, lock) in orphans {
                    self.end(name, &lock, &mut told);
                }
                told.push(simple(session, serial, None, LockStatus::Success));
            }
        }
        self.go_on(&mut told);
        told.retain(|(to, answer)| *to != 0 && !matches!(answer, Answer::Done { serial: 0, .. }));
        told
    }

    fn in_turn(&mut self, wanted: Wanted) -> Wanted {
        self.turns += 1;
        Wanted { turn: self.turns, ..wanted }
    }

    /// Facts 1.4: a process that dies gives back all its locks, and marks what it may have been writing; those that are to outlive it
    /// become orphans, without what was asked of them.
    pub(crate) fn close(&mut self, session: u64) -> Vec<Told> {
        let mut told = Vec::new();
        self.manies.retain(|(of, _), _| *of != session);
        let mut dead = self.locks(|lock| lock.session == session);
        // What waits goes first: nothing is granted to the dead. The last to come first: nobody moves up for a moment.
        dead.sort_by_key(|(_, lock)| (lock.wanted.is_none(), Reverse(lock.born)));
        for (name, lock) in dead {
            if !lock.is_persistent || lock.is_in_many {
                self.end(name, &lock, &mut told);
                continue;
            }
            let resource = self.resources.get_mut(&name).unwrap();
            let left = resource.find_mut(lock.id).unwrap();
            left.session = 0;
            // The end of another of its locks may have let it in.
            if left.wanted.is_some() {
                resource.cancel(lock.id, LockStatus::Cancelled, &mut told);
                self.settle(&mut told);
            }
        }
        self.go_on(&mut told);
        told.retain(|(to, _)| *to != session && *to != 0);
        told
    }

    /// Waits that have lasted as long as they may.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<Told> {
        let mut told = Vec::new();
        let until = |lock: &Lock| lock.wanted.as_ref().map(|wanted| (wanted.until, wanted.turn)).filter(|(until, _)| *until != 0);
        let mut late = self.locks(|lock| until(lock).is_some_and(|(until, _)| until <= now));
        late.sort_by_key(|(_, lock)| until(lock));
        for (name, Lock { id, .. }) in late {
            let resource = self.resources.get_mut(&name).unwrap();
            // The end of another's wait may have let it in.
            if resource.find_mut(id).is_some_and(|lock| lock.wanted.is_some()) {
                resource.cancel(id, LockStatus::TimedOut, &mut told);
                self.settle(&mut told);
            }
        }
        self.go_on(&mut told);
        told
    }

    /// When the first wait ends.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let until = |lock: &Lock| lock.wanted.as_ref().map(|wanted| wanted.until).filter(|until| *until != 0);
        self.resources.values().flat_map(Resource::locks).filter_map(until).min()
    }

    fn settle(&mut self, told: &mut Vec<Told>) {
        self.resources.values_mut().for_each(|resource| resource.settle(told));
    }

    /// A lock of the dead is given back: what may have been half written is in doubt.
    fn end(&mut self, name: u8, lock: &Lock, told: &mut Vec<Told>) {
        self.resources.get_mut(&name).unwrap().unlock(lock.id, Flags::IVVALBLK, None);
        self.settle(told);
    }

    fn locks(&self, is_wanted: impl Fn(&Lock) -> bool) -> Vec<(u8, Lock)> {
        let all = self.resources.iter().flat_map(|(name, resource)| resource.locks().map(|lock| (*name, lock)));
        all.filter(|(_, lock)| is_wanted(lock)).map(|(name, lock)| (name, lock.clone())).collect()
    }

    /// A lock that its session knows.
    fn find_own(&self, session: u64, id: Id) -> Option<(u8, Lock)> {
        self.find(|lock| lock.session == session && lock.id == id && !lock.is_in_many)
    }

    fn find(&self, is_wanted: impl Fn(&Lock) -> bool) -> Option<(u8, Lock)> {
        self.locks(is_wanted).pop()
    }

    /// Facts 1.3, ORPHAN: an orphan of this name and mode, at once or not at all.
    fn adopt(&mut self, session: u64, serial: u64, name: u8, mode: Mode, rank: impl Fn(Id) -> u32) -> Told {
        let orphans = self.locks(|lock| lock.session == 0).into_iter().filter(|(of, _)| *of == name);
        let orphans: Vec<Lock> = orphans.map(|(_, lock)| lock).collect();
        let Some(found) = orphans.iter().filter(|lock| lock.granted == Some(mode)).min_by_key(|lock| rank(lock.id)) else {
            let status = if orphans.is_empty() { LockStatus::NotFound } else { LockStatus::Again };
            return simple(session, serial, None, status);
        };
        let lock = self.resources.get_mut(&name).and_then(|resource| resource.find_mut(found.id)).unwrap();
        (lock.session, lock.process, lock.told, lock.heard) = (session, session, None, None);
        simple(session, serial, Some((found.id, mode)), LockStatus::Success)
    }

    fn convert(&mut self, session: u64, id: Id, wanted: Wanted, told: &mut Vec<Told>) {
        let serial = wanted.serial;
        let Some((name, lock)) = self.find_own(session, id) else {
            return told.push(simple(session, serial, None, LockStatus::NotFound));
        };
        let Some(granted) = lock.granted.filter(|_| lock.wanted.is_none()) else {
            return told.push(lock.as_it_is(serial, LockStatus::Busy));
        };
        // What may have to wait needs an answer.
        let is_down = wanted.mode < granted && (granted, wanted.mode) != (Mode::Pr, Mode::Cw);
        if !arguments::is_convert_legal(granted, wanted.mode, wanted.flags, wanted.lvb.is_some()) || (serial == 0 && !is_down) {
            return told.push(lock.as_it_is(serial, LockStatus::Invalid));
        }
        let lock = self.resources.get_mut(&name).and_then(|resource| resource.find_mut(id)).unwrap();
        if std::mem::take(&mut lock.is_shared) {
            // Who has it now is told anew whom it keeps out.
            lock.told = None;
            self.settle(told);
        }
        let resource = self.resources.get_mut(&name).unwrap();
        let lock = resource.find_mut(id).unwrap();
        lock.is_persistent = wanted.flags.has(Flags::PERSISTENT);
        lock.wanted = Some(wanted);
        resource.convert(id, told);
        self.settle(told);
    }

    fn unlock(&mut self, (session, serial): (u64, u64), id: Id, options: Options, told: &mut Vec<Told>) {
        let Some((name, lock)) = self.find_own(session, id) else {
            return told.push(simple(session, serial, None, LockStatus::NotFound));
        };
        if !arguments::is_unlock_legal(lock.granted, options.flags, options.lvb.is_some()) {
            return told.push(lock.as_it_is(serial, LockStatus::Invalid));
        }
        if lock.wanted.is_some() && !options.flags.has(Flags::FORCEUNLOCK) {
            return told.push(lock.as_it_is(serial, LockStatus::Busy));
        }
        if let Some(wanted) = &lock.wanted {
            // Every request has its answer: the one that is cut short is cancelled.
            told.push(lock.as_it_is(wanted.serial, LockStatus::Cancelled));
        }
        told.push(simple(session, serial, None, LockStatus::Unlocked));
        self.resources.get_mut(&name).unwrap().unlock(id, options.flags, options.lvb);
        self.settle(told);
    }

    fn cancel(&mut self, session: u64, serial: u64, found: Option<(u8, Lock)>, told: &mut Vec<Told>) {
        let Some((name, lock)) = found else { return told.push(simple(session, serial, None, LockStatus::NotFound)) };
        if lock.wanted.is_some() {
            self.resources.get_mut(&name).unwrap().cancel(lock.id, LockStatus::Cancelled, told);
        }
        told.push(simple(session, serial, lock.granted.map(|mode| (lock.id, mode)), LockStatus::Success));
        self.settle(told);
    }
}

/// An answer without flags and value block.
fn simple(session: u64, serial: u64, lock: Option<(Id, Mode)>, status: LockStatus) -> Told {
    let (lock, mode) = lock.unzip();
    (session, Answer::Done { serial, lock, status, mode, flags: ResultFlags::default(), lvb: None })
}
