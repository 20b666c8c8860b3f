//! Many locks by one request (docs/locks.md): one after the other in the order of their names, all or none. Its session hears of them, and of
//! who waits for them, when it has all.

use super::{Answer, Id, Lock, NONE_FAILED, Options, Reference, Told, Wanted, arguments};
use deadbolt_dlm_core::{Flags, LockStatus, Mode};

#[derive(Clone, Debug)]
pub(super) struct Many {
    /// By name; each with its number in the request.
    items: Vec<(u8, Mode, u16)>,
    taken: usize,
    options: Options,
    until: u64,
}

impl Many {
    fn locks(&self, serial: u64) -> Vec<(u8, Id)> {
        self.items.iter().map(|(name, _, number)| (*name, serial + u64::from(*number))).collect()
    }
}

impl Reference {
    pub(super) fn ask_many(&mut self, of: (u64, u64), items: &[(u8, Mode)], options: Options, now: u64, told: &mut Vec<Told>) {
        let is_twice = |number: &usize| items[..*number].iter().any(|(name, _)| *name == items[*number].0);
        let is_legal = arguments::is_many_legal(options.flags) && !items.is_empty();
        let twice = (0..items.len()).find(is_twice).filter(|_| is_legal);
        if !is_legal || twice.is_some() {
            let failed = twice.map_or(NONE_FAILED, |number| u16::try_from(number).unwrap());
            return told.push(ended(of, LockStatus::Invalid, failed, Vec::new()));
        }
        let mut items: Vec<(u8, Mode, u16)> = items.iter().zip(0..).map(|((name, mode), number)| (*name, *mode, number)).collect();
        items.sort_by_key(|(name, ..)| *name);
        let until = if options.timeout == 0 { 0 } else { now + u64::from(options.timeout) };
        self.manies.insert(of, Many { items, taken: 0, options, until });
        self.take_next(of, told);
    }

    fn take_next(&mut self, of: (u64, u64), told: &mut Vec<Told>) {
        let many = self.manies[&of].clone();
        let (name, mode, number) = many.items[many.taken];
        let wanted = self.in_turn(Wanted { until: many.until, ..Wanted::new(of.1, mode, many.options, 0) });
        let lock = Lock { is_in_many: true, is_shared: true, ..Lock::new(of.1 + u64::from(number), of.0, wanted) };
        self.resources.entry(name).or_default().request(lock, told);
        self.settle(told);
    }

    /// The end of a step: what was told of locks of many is told of the whole, or brings the next lock.
    pub(super) fn go_on(&mut self, told: &mut Vec<Told>) {
        let (mut at, mut complete) = (0, Vec::new());
        while at < told.len() {
            let (session, answer) = told[at].clone();
            let of = match answer {
                Answer::Done { serial, .. } if self.manies.contains_key(&(session, serial)) => (session, serial),
                Answer::Blocking { lock, .. } if self.is_in_many(lock) => {
                    told.remove(at);
                    continue;
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            let Answer::Done { status, .. } = answer else { unreachable!("only these are looked at") };
            let many = self.manies.get_mut(&of).unwrap();
            many.taken += usize::from(status == LockStatus::Success);
            let many = many.clone();
            if status != LockStatus::Success {
                let failed = many.items[many.taken].2;
                told[at] = ended(of, status, failed, Vec::new());
                self.manies.remove(&of);
                for (name, id) in many.locks(of.1).into_iter().take(many.taken) {
                    self.resources.get_mut(&name).unwrap().unlock(id, Flags::NONE, None);
                    self.settle(told);
                }
            } else if many.taken < many.items.len() {
                told.remove(at);
                self.take_next(of, told);
            } else {
                told.remove(at);
                complete.push((of, many));
            }
        }
        complete.iter().for_each(|(of, many)| self.complete(*of, many, told));
        // A resource goes with its last lock, unless the next of many comes in the same instant.
        self.resources.retain(|_, resource| !resource.is_empty());
    }

    fn is_in_many(&self, id: Id) -> bool {
        self.find(|lock| lock.id == id).is_some_and(|(_, lock)| lock.is_in_many)
    }

    fn complete(&mut self, of: (u64, u64), many: &Many, told: &mut Vec<Told>) {
        self.manies.remove(&of);
        let locks = many.locks(of.1);
        let ids = (of.1..).take(locks.len()).collect();
        told.push(ended(of, LockStatus::Success, NONE_FAILED, ids));
        for (name, id) in locks {
            let lock = self.resources.get_mut(&name).and_then(|resource| resource.find_mut(id)).unwrap();
            lock.is_in_many = false;
            told.extend(lock.heard.map(|mode| (of.0, Answer::Blocking { lock: id, mode })));
        }
    }
}

fn ended((session, serial): (u64, u64), status: LockStatus, failed: u16, locks: Vec<Id>) -> Told {
    (session, Answer::Many { serial, status, failed, locks })
}
