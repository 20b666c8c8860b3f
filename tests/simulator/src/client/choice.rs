//! What: what a client does next: everything that the lock service offers, in any order.
//! Owns: the weights of the actions, the modes and flags of each request.
//! Invariants: only requests that the service must accept; every lock is given back after a while, whatever is waited for, so that no two
//!   clients wait for each other for ever.
//! Does not: read answers.
//! Called by: the world, at each turn of a client.

use super::{Client, Lock, What, block, name_of};
use crate::{
    check::locks::{LockKey, Written, is_writing},
    machine::Pid,
    world::World,
};
use deadbolt_dlm_core::{ClientRequest, Flags, Mode, client::Lvb, mode::MODES};

/// A wait that is longer is given up.
const PATIENCE_US: u64 = 5_000_000;

/// How often a client that is to want nothing looks whether that is over.
const QUIET_US: u64 = 200_000;

/// Spell of work between two rests, for clients that do not think.
const SPELL_US: u64 = 200_000;

/// A spell that granted so many locks is over early: those that follow show little that these did not, and a run without faults and with fast
/// clients would take as long as ten others.
const SPELL_GRANTS: u64 = 40;

/// The present spell: which one since the world began, and the locks granted before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spell {
    number: u64,
    granted: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Join(usize),
    Leave(usize),
    Lock(usize),
    Convert(u32),
    Unlock(u32),
    ForceUnlock(u32),
    Read(u32),
    Write(u32),
    Cancel(u64),
    Range(u32),
    Many(usize),
    Adopt(usize),
    Purge(usize),
    /// Sits on what it has.
    Wait,
    End,
}

/// Nobody else can change what a lock in this mode protects.
fn is_protecting(mode: Mode) -> bool {
    matches!(mode, Mode::Pr | Mode::Pw | Mode::Ex)
}

impl Lock {
    fn is_idle(&self) -> bool {
        !self.is_busy && !self.has_io
    }
}

impl World {
    /// A client does one thing, or waits for an answer.
    pub(super) fn client_acts(&mut self, machine: usize, pid: Pid) {
        let now_us = self.queue.now_us();
        self.note_spell();
        let rest_us = self.rest_us();
        let Some(client) = self.client(machine, pid) else { return };
        if rest_us > 0 && client.locks.is_empty() && client.asked.is_empty() {
            return self.plan_client(machine, pid, rest_us);
        }
        let next_us = client.locks.values().filter(|lock| lock.is_idle() && !client.is_bound()).map(|lock| lock.until_us).min();
        let patient_us = client.asked.values().filter(|asked| client.gives_up(&asked.what)).map(|asked| asked.since_us + PATIENCE_US).min();
        let pause_us = 1000 + self.random.below(self.options.hold_ms * 500 + 1);
        let actions = self.actions(machine, pid);
        let total: u64 = actions.iter().map(|(weight, _)| weight).sum();
        let mut drawn = self.random.below(total);
        let chosen = actions.into_iter().find(|(weight, _)| {
            let is_it = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_it
        });
        match (chosen, [next_us, patient_us].into_iter().flatten().min()) {
            (Some((_, Action::Wait)), _) => self.plan_client(machine, pid, pause_us),
            (Some((_, action)), _) => {
                self.client_does(machine, pid, action);
                self.think(machine, pid);
            }
            (None, Some(at_us)) => self.plan_client(machine, pid, at_us.saturating_sub(now_us).max(1000)),
            (None, None) if self.is_quiet => self.plan_client(machine, pid, QUIET_US),
            (None, None) => {}
        }
    }

    fn spell_us(&self) -> u64 {
        SPELL_US + 10 * self.options.think_ms * 1000
    }

    /// From the begin of a spell to that of the next.
    fn period_us(&self) -> u64 {
        self.spell_us() + self.options.rest_ms * 1000
    }

    fn note_spell(&mut self) {
        let number = self.queue.now_us() / self.period_us();
        if self.spell.number != number {
            self.spell = Spell { number, granted: self.facts.granted };
        }
    }

    /// How long nothing new is begun; 0: it may be. All clients work and rest together: those that never rest show the same over and over,
    /// and those that rest alone do not meet.
    fn rest_us(&self) -> u64 {
        let at_us = self.queue.now_us() % self.period_us();
        let is_over = at_us >= self.spell_us() || self.facts.granted >= self.spell.granted + SPELL_GRANTS;
        if self.options.rest_ms > 0 && is_over { self.period_us() - at_us } else { 0 }
    }

    /// What it can do now, by weight.
    fn actions(&self, machine: usize, pid: Pid) -> Vec<(u64, Action)> {
        let now_us = self.queue.now_us();
        let Some(client) = self.machines[machine].clients.get(&pid) else { return Vec::new() };
        let mut actions = Vec::new();
        for (id, lock) in client.locks.iter().filter(|(_, lock)| lock.is_idle() && lock.uses > 0 && is_protecting(lock.mode)) {
            let can_write = lock.mode.is_writer() && lock.seen.is_some();
            actions.push((3, Action::Read(*id)));
            actions.extend(can_write.then_some((9, Action::Write(*id))));
        }
        if client.is_cut_off {
            return actions;
        }
        let is_bound = client.is_bound();
        for (id, lock) in client.locks.iter().filter(|(_, lock)| lock.is_idle()) {
            let is_over = self.is_quiet || lock.is_wanted || now_us >= lock.until_us;
            let may_unlock = !is_bound && lock.ranging.is_empty();
            actions.extend(may_unlock.then_some((if is_over { 20 } else { 1 }, Action::Unlock(*id))));
            actions.extend((!self.is_quiet && now_us < lock.until_us).then_some((4, Action::Convert(*id))));
        }
        for (serial, asked) in &client.asked {
            let is_impatient = now_us >= asked.since_us + PATIENCE_US;
            let is_waiting = asked.what.is_wait() && !asked.is_cancelled && client.gives_up(&asked.what);
            let may_cancel = is_impatient || (!self.is_quiet && client.transaction == 0);
            actions.extend((is_waiting && may_cancel).then_some((if is_impatient { 5 } else { 1 }, Action::Cancel(*serial))));
            if let (What::Convert { lock, .. }, true) = (&asked.what, is_waiting)
                && client.locks.get(lock).is_some_and(|lock| !lock.has_io)
            {
                actions.push((u64::from(is_impatient), Action::ForceUnlock(*lock)));
            }
        }
        if !self.is_quiet {
            if self.rest_us() == 0 {
                self.new_actions(client, &mut actions);
            }
            actions.extend((!client.locks.is_empty() || !client.asked.is_empty()).then_some((10, Action::Wait)));
        } else {
            self.cleaning_actions(client, &mut actions);
        }
        actions
    }

    /// What begins something new.
    fn new_actions(&self, client: &Client, actions: &mut Vec<(u64, Action)>) {
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let concerns = |what: &What, space: usize| match what {
            What::Join { space: other } | What::Leave { space: other } => *other == space,
            What::Purge { space: other } => *other == space,
            other => other.resources().iter().any(|resource| resource / per_space == space),
        };
        let new = client.asked.values().filter(|asked| matches!(asked.what, What::Lock { .. } | What::Many { .. } | What::Adopt { .. }));
        let waiting: usize = new.map(|asked| asked.what.resources().len()).sum();
        let has_room = client.locks.len() + waiting < usize::try_from(self.options.locks).unwrap_or(1);
        for space in 0..usize::try_from(self.options.lockspaces).unwrap_or(1) {
            let is_joined = client.spaces.contains_key(&space);
            let is_changing = client
                .asked
                .values()
                .any(|asked| matches!(asked.what, What::Join { .. } | What::Leave { .. }) && concerns(&asked.what, space));
            let is_used = client.asked.values().any(|asked| concerns(&asked.what, space))
                || client.locks.values().any(|lock| lock.resource / per_space == space);
            if !is_joined && !is_changing {
                actions.push((10, Action::Join(space)));
            } else if is_joined && !is_changing {
                actions.extend(has_room.then_some((20, Action::Lock(space))));
                self.more_actions(space, has_room, actions);
                actions.extend((!is_used && self.options.session_ends > 0).then_some((1, Action::Leave(space))));
            }
        }
        self.range_actions(client, actions);
        actions.extend((self.options.session_ends > 0).then_some((1, Action::End)));
    }

    fn client_does(&mut self, machine: usize, pid: Pid, action: Action) {
        match action {
            Action::Join(space) => {
                let name = space_name(space);
                self.ask(machine, pid, What::Join { space }, |serial| ClientRequest::JoinLockspace { serial, name });
            }
            Action::Leave(space) => {
                let Some(lockspace) = self.client(machine, pid).and_then(|client| client.spaces.get(&space).copied()) else { return };
                self.ask(machine, pid, What::Leave { space }, |serial| ClientRequest::LeaveLockspace { serial, lockspace });
            }
            Action::Lock(space) => self.client_locks(machine, pid, space),
            Action::Convert(id) => self.client_converts(machine, pid, id),
            Action::Unlock(id) => self.client_unlocks(machine, pid, id, Flags::NONE),
            Action::ForceUnlock(id) => self.client_unlocks(machine, pid, id, Flags::FORCEUNLOCK),
            Action::Read(id) => self.use_lock(machine, pid, id, false),
            Action::Write(id) => self.use_lock(machine, pid, id, true),
            Action::Cancel(request) => self.client_cancels(machine, pid, request),
            Action::Range(id) => self.client_ranges(machine, pid, id),
            Action::Many(space) => self.client_asks_many(machine, pid, space),
            Action::Adopt(space) => self.client_adopts(machine, pid, space),
            Action::Purge(space) => self.client_purges(machine, pid, space),
            // Most ends are the faults' matter; here a program simply exits, with what it has.
            Action::Wait => {}
            Action::End if self.random.chance(self.options.session_ends) => self.kill_client(machine, pid),
            Action::End => {}
        }
    }

    fn client_locks(&mut self, machine: usize, pid: Pid, space: usize) {
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let resource = space * per_space + self.random.index(per_space);
        let mode = self.some_mode();
        let mut flags = self.some_flags();
        if mode == Mode::Nl && !flags.has(Flags::NOQUEUE) && self.random.chance(300) {
            flags = flags.with(Flags::EXPEDITE);
        }
        let lvb = flags.has(Flags::VALBLK).then(|| block(resource, 0));
        let (flags, timeout_ms) = (flags.with(self.some_persistence()), self.some_timeout());
        let Some((owner, lockspace)) = self.client(machine, pid).and_then(|client| Some((client.transaction, *client.spaces.get(&space)?)))
        else {
            return;
        };
        self.ask_timed(machine, pid, What::Lock { resource, mode, flags }, timeout_ms, |serial| ClientRequest::Lock {
            serial,
            lockspace,
            resource: name_of(resource, per_space),
            mode,
            flags,
            owner,
            timeout_ms,
            lvb,
        });
    }

    fn client_converts(&mut self, machine: usize, pid: Pid, id: u32) {
        let now_us = self.queue.now_us();
        let mode = self.some_mode();
        let mut flags = self.some_flags();
        let Some(client) = self.client(machine, pid) else { return };
        let Some((resource, before)) = client.locks.get(&id).map(|lock| (lock.resource, lock.mode)) else { return };
        let owner = client.transaction;
        let is_down = mode < before && before.is_down(mode);
        if self.random.chance(150) && (mode > before || before.is_middle(mode)) {
            flags = flags.with(Flags::QUECVT);
        }
        if self.random.chance(200) && !flags.has(Flags::NOQUEUE) {
            flags = flags.with(Flags::CONVDEADLK);
        }
        if self.random.chance(50) {
            flags = flags.with(Flags::IVVALBLK);
        }
        let alternatives = [(Flags::ALTPR, Mode::Pr), (Flags::ALTCW, Mode::Cw), (Flags::CONVDEADLK, Mode::Nl)];
        let others = alternatives.into_iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, mode)| mode);
        let mut modes = vec![if is_down { mode } else { before }];
        if !is_down {
            modes.extend(before.is_middle(mode).then_some(mode).into_iter().chain(others));
        }
        // What is not written is not asked for with a number, so that one that turns up was written by mistake.
        let may_write = is_writing(Some(before), mode) || modes.iter().any(|other| is_writing(Some(before), *other));
        let (written, lvb) = self.some_block(resource, flags, may_write);
        let key = LockKey { client: pid, lock: id };
        self.facts.locks.converting(now_us, key, modes.clone(), written, is_down);
        let (flags, timeout_ms) = (flags.with(self.some_persistence()), self.some_timeout());
        self.facts.locks.persists(key, flags.has(Flags::PERSISTENT));
        if let Some(lock) = self.client(machine, pid).and_then(|client| client.locks.get_mut(&id)) {
            lock.is_busy = true;
            lock.seen = lock.seen.filter(|_| is_protecting(mode) && modes.iter().all(|mode| is_protecting(*mode)));
        }
        let what = What::Convert { lock: id, resource, before, mode, flags, written };
        self.ask_timed(machine, pid, what, timeout_ms, |serial| ClientRequest::Convert {
            serial,
            lock: id,
            mode,
            flags,
            owner,
            timeout_ms,
            lvb,
        });
    }

    fn client_unlocks(&mut self, machine: usize, pid: Pid, id: u32, force: Flags) {
        let now_us = self.queue.now_us();
        let flags = [Flags::NONE, Flags::VALBLK, Flags::VALBLK, Flags::VALBLK, Flags::IVVALBLK][self.random.index(5)];
        let Some(client) = self.client(machine, pid) else { return };
        let Some(lock) = client.locks.remove(&id) else { return };
        // What it overtakes may have been granted by then.
        let mut may_write = lock.mode.is_writer();
        for asked in client.asked.values_mut() {
            if let What::Convert { lock, mode, .. } = asked.what
                && lock == id
            {
                asked.is_cancelled = true;
                may_write |= mode.is_writer();
            }
            asked.is_cancelled |= matches!(asked.what, What::Range { lock, .. } if lock == id);
        }
        let (written, lvb) = self.some_block(lock.resource, flags, may_write);
        self.facts.locks.releasing(now_us, LockKey { client: pid, lock: id }, written);
        self.ask(machine, pid, What::Unlock { resource: lock.resource, written }, |serial| ClientRequest::Unlock {
            serial,
            lock: id,
            flags: flags.with(force),
            lvb,
        });
    }

    /// What goes with a request as value block: something new where it may be written.
    fn some_block(&mut self, resource: usize, flags: Flags, may_write: bool) -> (Option<Written>, Option<Lvb>) {
        let is_mark = flags.has(Flags::IVVALBLK);
        let is_asked = is_mark || flags.has(Flags::VALBLK);
        let written = (may_write && is_asked).then(|| Written { number: self.facts.locks.new_number(), is_mark });
        (written, flags.has(Flags::VALBLK).then(|| block(resource, written.map_or(0, |written| written.number))))
    }

    fn client_cancels(&mut self, machine: usize, pid: Pid, request: u64) {
        let Some(asked) = self.client(machine, pid).and_then(|client| client.asked.get_mut(&request)) else { return };
        asked.is_cancelled = true;
        let lock = if let What::Convert { lock, .. } = asked.what { Some(lock) } else { None };
        let by_lock = lock.filter(|_| self.random.chance(500));
        self.ask(machine, pid, What::Cancel, |serial| match by_lock {
            Some(lock) => ClientRequest::Cancel { serial, lock },
            None => ClientRequest::CancelRequest { serial, request },
        });
    }

    fn some_mode(&mut self) -> Mode {
        if self.random.chance(300) { Mode::Ex } else { MODES[self.random.index(MODES.len())] }
    }

    fn some_flags(&mut self) -> Flags {
        const CHOICES: [Flags; 7] = [
            Flags::NOQUEUE,
            Flags::NOQUEUE.with(Flags::NOQUEUEBAST),
            Flags::ALTPR,
            Flags::ALTCW,
            Flags::NODLCKWT,
            Flags::NOORDER,
            Flags::HEADQUE,
        ];
        let mut flags = Flags::NONE;
        if self.random.chance(750) {
            flags = flags.with(Flags::VALBLK);
        }
        if self.random.chance(300) {
            // Those that ignore the order can keep others waiting for ever: not while everybody must be served.
            let count = if self.is_calm { 5 } else { CHOICES.len() };
            flags = flags.with(CHOICES[self.random.index(count)]);
        }
        flags
    }
}

/// A lockspace's name.
pub(super) fn space_name(space: usize) -> Vec<u8> {
    format!("simulated-{space}").into_bytes()
}
