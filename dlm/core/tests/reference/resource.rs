//! One resource: three queues, the grant rules in their order, the value block.

use super::tables::{is_read, is_write};
use super::{Answer, Id, Lock, Told};
use deadbolt_dlm_core::client::Lvb;
use deadbolt_dlm_core::{Flags, LockStatus, Mode, ResultFlags};

#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    pub(crate) granted: Vec<Lock>,
    pub(crate) converting: Vec<Lock>,
    pub(crate) waiting: Vec<Lock>,
    pub(crate) value: Option<Lvb>,
    pub(crate) is_marked: bool,
    grants: u64,
}

/// When a request is looked at: as it comes, or later on its queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    Later,
}

impl Resource {
    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.converting.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn locks(&self) -> impl Iterator<Item = &Lock> {
        self.granted.iter().chain(&self.converting).chain(&self.waiting)
    }

    pub(crate) fn find_mut(&mut self, id: Id) -> Option<&mut Lock> {
        self.granted.iter_mut().chain(&mut self.converting).chain(&mut self.waiting).find(|lock| lock.id == id)
    }

    /// Facts 1.2, rules 1 to 10 in their order. Rule 4 is about recovery: one node alone has none.
    fn is_grantable(&self, lock: &Lock, mode: Mode, look: Look) -> bool {
        let flags = lock.wanted().flags;
        let is_conversion = lock.granted.is_some();
        let in_the_way = |other: &Lock| other.id != lock.id && other.blocks(mode);
        // 1
        if flags.has(Flags::EXPEDITE) {
            return true;
        }
        // 2
        if self.granted.iter().any(in_the_way) {
            return false;
        }
        // 3
        if self.converting.iter().any(in_the_way) {
            return false;
        }
        // 5
        if is_conversion && look == Look::First && !flags.has(Flags::QUECVT) {
            return true;
        }
        // 6
        if is_conversion && look == Look::First {
            return self.converting.is_empty();
        }
        // 7
        if flags.has(Flags::NOORDER) {
            return true;
        }
        // 8
        if is_conversion {
            return self.converting[0].id == lock.id;
        }
        // 9
        if look == Look::First {
            return self.converting.is_empty() && self.waiting.is_empty();
        }
        // 10
        self.converting.is_empty() && self.waiting[0].id == lock.id
    }

    /// The mode in which the lock can be granted now, if any: the one asked for, else an alternative (facts 1.3: ALTPR, ALTCW).
    fn grantable_mode(&self, lock: &Lock, look: Look) -> Option<Mode> {
        let wanted = lock.wanted();
        let mut modes = vec![wanted.mode];
        if wanted.flags.has(Flags::ALTPR) {
            modes.push(Mode::Pr);
        }
        if wanted.flags.has(Flags::ALTCW) {
            modes.push(Mode::Cw);
        }
        modes.into_iter().find(|mode| self.is_grantable(lock, *mode, look))
    }

    /// A new request looks at the queues for the first time.
    pub(crate) fn request(&mut self, lock: Lock, told: &mut Vec<Told>) {
        if let Some(mode) = self.grantable_mode(&lock, Look::First) {
            self.grant(lock, mode, Look::First, told);
        } else if lock.wanted().flags.has(Flags::NOQUEUE) {
            self.refuse(&lock, told);
        } else {
            let place = if lock.wanted().flags.has(Flags::HEADQUE) { 0 } else { self.waiting.len() };
            self.waiting.insert(place, lock);
        }
    }

    /// A conversion looks at the queues for the first time; its lock stands on the granted queue and carries what is wanted.
    pub(crate) fn convert(&mut self, id: Id, told: &mut Vec<Told>) {
        let mut lock = self.take(id);
        let flags = lock.wanted().flags;
        if let Some(mode) = self.grantable_mode(&lock, Look::First) {
            self.grant(lock, mode, Look::First, told);
        } else if flags.has(Flags::NOQUEUE) {
            self.refuse(&lock, told);
            self.insert_granted(lock);
        } else if !self.is_deadlock(&lock) {
            self.queue_conversion(lock);
        } else if flags.has(Flags::CONVDEADLK) {
            // It goes to the end whatever HEADQUE says: at the front it would keep out those that it was demoted for.
            lock.granted = Some(Mode::Nl);
            lock.is_demoted = true;
            self.converting.push(lock);
        } else if flags.has(Flags::NODLCKWT) {
            self.queue_conversion(lock);
            self.tell_deadlocked(told);
        } else {
            told.push(lock.answer(LockStatus::Deadlock, lock.granted));
            self.insert_granted(lock);
        }
    }

    fn queue_conversion(&mut self, lock: Lock) {
        let place = if lock.wanted().flags.has(Flags::HEADQUE) { 0 } else { self.converting.len() };
        self.converting.insert(place, lock);
    }

    /// Facts 1.7: of two queued conversions the one behind holds what keeps out the one ahead.
    fn is_deadlock(&self, lock: &Lock) -> bool {
        if lock.wanted().flags.has(Flags::HEADQUE) {
            self.converting.iter().any(|behind| behind.blocks(lock.wanted().mode))
        } else {
            self.converting.iter().any(|ahead| lock.blocks(ahead.wanted().mode))
        }
    }

    /// NODLCKWT (facts 1.3): instead of the refusal, the one behind hears what the one ahead wants.
    fn tell_deadlocked(&mut self, told: &mut Vec<Told>) {
        for behind in 1..self.converting.len() {
            let ahead: Vec<Mode> = self.converting[..behind].iter().map(|lock| lock.wanted().mode).collect();
            tell_strongest(&mut self.converting[behind], &ahead, told);
        }
    }

    /// NOQUEUE (facts 1.3): a new request leaves nothing, a conversion the lock as it was; NOQUEUEBAST tells those in the way.
    fn refuse(&mut self, lock: &Lock, told: &mut Vec<Told>) {
        told.push(lock.answer(LockStatus::Again, lock.granted));
        let wanted = lock.wanted();
        if wanted.flags.has(Flags::NOQUEUEBAST) {
            self.granted.iter_mut().chain(&mut self.converting).for_each(|holder| holder.tell(wanted.mode, told));
        }
    }

    /// Facts 1.2: the convert queue from the front, again after every grant; then the whole wait queue; then the holders are told
    /// (facts 1.5: those on the granted queue) of the strongest mode that waits for them.
    pub(crate) fn settle(&mut self, told: &mut Vec<Told>) {
        while let Some((place, mode)) = self.first_grantable(&self.converting) {
            let lock = self.converting.remove(place);
            self.grant(lock, mode, Look::Later, told);
        }
        while let Some((place, mode)) = self.first_grantable(&self.waiting) {
            let lock = self.waiting.remove(place);
            self.grant(lock, mode, Look::Later, told);
        }
        let blocked: Vec<Mode> = self.converting.iter().chain(&self.waiting).map(|lock| lock.wanted().mode).collect();
        self.granted.iter_mut().for_each(|holder| tell_strongest(holder, &blocked, told));
    }

    fn first_grantable(&self, queue: &[Lock]) -> Option<(usize, Mode)> {
        queue.iter().enumerate().find_map(|(place, lock)| self.grantable_mode(lock, Look::Later).map(|mode| (place, mode)))
    }

    fn grant(&mut self, mut lock: Lock, mode: Mode, look: Look, told: &mut Vec<Told>) {
        let wanted = lock.wanted().clone();
        let mut flags = ResultFlags::default();
        if mode != wanted.mode {
            flags = flags.with(ResultFlags::ALTMODE);
        }
        if lock.is_demoted {
            flags = flags.with(ResultFlags::DEMOTED);
        }
        // Facts 1.8, SYNCSTS of VMS.
        if look == Look::First && wanted.flags.has(Flags::SYNCSTS) {
            flags = flags.with(ResultFlags::SYNCH);
        }
        let takes_part = wanted.flags.has(Flags::VALBLK);
        let mut lvb = None;
        if is_write(lock.granted, mode) {
            self.write(wanted.flags, wanted.lvb);
        } else if is_read(lock.granted, mode) && takes_part {
            lvb = self.value;
        }
        if takes_part && self.is_marked {
            flags = flags.with(ResultFlags::VALNOTVALID);
        }
        let is_down = lock.granted.is_some_and(|before| mode < before && (before, mode) != (Mode::Pr, Mode::Cw));
        if !is_down {
            self.grants += 1;
            lock.grant = self.grants;
        }
        lock.granted = Some(mode);
        lock.told = None;
        let (session, serial, id) = (lock.session, wanted.serial, lock.id);
        told.push((session, Answer::Done { serial, lock: Some(id), status: LockStatus::Success, mode: Some(mode), flags, lvb }));
        self.insert_granted(lock);
    }

    /// Facts 1.6: a write needs VALBLK and a buffer; IVVALBLK marks instead.
    fn write(&mut self, flags: Flags, lvb: Option<Lvb>) {
        if flags.has(Flags::IVVALBLK) {
            self.is_marked = true;
        } else if flags.has(Flags::VALBLK) && lvb.is_some() {
            self.value = lvb;
            self.is_marked = false;
        }
    }

    /// Removes a lock from whatever queue it stands on.
    fn take(&mut self, id: Id) -> Lock {
        let queues = [&mut self.granted, &mut self.converting, &mut self.waiting];
        let queue = queues.into_iter().find(|queue| queue.iter().any(|lock| lock.id == id)).expect("it stands on a queue");
        let place = queue.iter().position(|lock| lock.id == id).unwrap();
        queue.remove(place)
    }

    /// A lock is given back: only from PW and EX is anything written (facts 1.6).
    pub(crate) fn unlock(&mut self, id: Id, flags: Flags, lvb: Option<Lvb>) {
        let lock = self.take(id);
        if matches!(lock.granted, Some(Mode::Pw | Mode::Ex)) {
            self.write(flags, lvb);
        }
    }

    /// What is asked of a lock ends: a new request leaves nothing, a conversion leaves the lock as it was granted.
    pub(crate) fn cancel(&mut self, id: Id, status: LockStatus, told: &mut Vec<Told>) {
        let lock = self.take(id);
        told.push(lock.answer(status, lock.granted));
        if lock.granted.is_some() {
            self.insert_granted(lock);
        }
    }

    /// High modes first, equal ones as they came (facts 1.2).
    fn insert_granted(&mut self, mut lock: Lock) {
        lock.wanted = None;
        lock.is_demoted = false;
        lock.known = lock.granted;
        lock.heard = None;
        let place = self.granted.iter().position(|other| other.granted < lock.granted).unwrap_or(self.granted.len());
        self.granted.insert(place, lock);
    }
}

/// A PR holder that only CW waits for hears of CW (facts 1.5): the strongest of those that it blocks.
fn tell_strongest(holder: &mut Lock, blocked: &[Mode], told: &mut Vec<Told>) {
    if let Some(strongest) = blocked.iter().copied().filter(|mode| holder.blocks(*mode)).max() {
        holder.tell(strongest, told);
    }
}
