//! What: what a client makes of an answer, and whether this answer may be given to that request.
//! Owns: the table of results that each request may end with.
//! Invariants: every request is answered once; the modes that a client relies on are those that were said last.
//! Does not: choose what follows.
//! Called by: the world, with every reply that reaches a client.

use super::{Asked, Client, Lock, What, number_in};
use crate::{
    check::{
        locks::{Block, Grant, LockKey},
        ranges::RangeKey,
    },
    machine::{Pid, Process},
    world::{Event, World},
};
use deadbolt_disk_format::ViewNumber;
use deadbolt_dlm_core::{
    ClientReply, Cycle, CycleStep, Flags, LockStatus, Mode, ResultFlags, Token,
    client::{Lvb, NONE_FAILED, RangeKind},
    mode::LvbTransfer,
};
use std::collections::BTreeSet;

/// `Completed`, but for its serial.
#[derive(Clone, Debug)]
struct Ending {
    lock: u32,
    status: LockStatus,
    mode: Option<Mode>,
    flags: ResultFlags,
    lvb: Option<Lvb>,
    token: Token,
}

impl Ending {
    fn says_deadlock(&self) -> bool {
        self.status == LockStatus::Deadlock || self.flags.has(ResultFlags::DEMOTED)
    }
}

impl World {
    /// A reply reaches the client.
    pub(crate) fn client_reply(&mut self, machine: usize, pid: Pid, reply: ClientReply) {
        if self.machines[machine].is_stopped(Process::Clients) {
            return self.defer(machine, Process::Clients, Event::Reply { machine, session: pid, reply: Box::new(reply) });
        }
        let now_us = self.queue.now_us();
        if self.client(machine, pid).is_none_or(|client| client.is_killed) {
            return;
        }
        if let Some(serial) = reply.answers() {
            self.facts.waits.ended(now_us, pid, serial);
        }
        let Some(client) = self.client(machine, pid) else { return };
        let found = match reply {
            ClientReply::Joined { serial, lockspace } => match client.asked.remove(&serial).map(|asked| asked.what) {
                Some(What::Join { space }) => {
                    client.spaces.insert(space, lockspace);
                    None
                }
                other => Some(format!("Joined answers {other:?}")),
            },
            ClientReply::LockspaceLeft { serial } => match client.asked.remove(&serial).map(|asked| asked.what) {
                Some(What::Leave { space }) => {
                    client.spaces.remove(&space);
                    None
                }
                other => Some(format!("LockspaceLeft answers {other:?}")),
            },
            ClientReply::Refused { serial, status, reason } => {
                let asked = client.asked.remove(&serial);
                self.plan_client(machine, pid, super::RETRY_US);
                let is_right = asked.is_some_and(|asked| matches!(asked.what, What::Join { .. })) && status == LockStatus::Stopped;
                (!is_right).then(|| format!("a request is refused: {status:?}, {reason}"))
            }
            ClientReply::Completed { serial, lock, status, mode, flags, lvb, token } => match client.asked.remove(&serial) {
                Some(asked) => self.completed(machine, pid, (serial, &asked), &Ending { lock, status, mode, flags, lvb, token }),
                None => Some(format!("serial {serial} is answered twice, or was never asked")),
            },
            ClientReply::Blocking { lock, .. } => {
                if let Some(lock) = client.locks.get_mut(&lock) {
                    lock.is_wanted = client.is_obedient;
                }
                None
            }
            ClientReply::Lost { .. } => {
                self.cut_off(machine, pid);
                None
            }
            ClientReply::ManyCompleted { serial, status, failed, locks } => match client.asked.remove(&serial) {
                Some(asked) => self.many_completed(machine, pid, &asked, status, (failed, &locks)),
                None => Some(format!("serial {serial} is answered twice, or was never asked")),
            },
            ClientReply::DeadlockCycle { serial, cycle } => self.is_victim(machine, pid, serial, &cycle),
            ClientReply::Welcome { .. } => None,
            other => Some(format!("nobody asked for {other:?}")),
        };
        let found = found.map(|text| ("S9", format!("client {pid} on {}: {text}", self.machines[machine].name)));
        self.report(now_us, found.into_iter().collect());
        self.think(machine, pid);
    }

    /// The end of an operation; what is wrong with it, if anything.
    fn completed(&mut self, machine: usize, pid: Pid, (serial, asked): (u64, &Asked), ending: &Ending) -> Option<String> {
        let now_us = self.queue.now_us();
        let is_met = ending.says_deadlock() && self.facts.waits.has_other_conversion(pid, serial);
        // A master that is lost may have demoted it, and granted others on the strength of that.
        let is_met = is_met || (ending.flags.has(ResultFlags::DEMOTED) && self.facts.learned_us(machine) > asked.since_us);
        let wrong = judge(asked, ending, now_us, is_met).map(|text| format!("{text}: {asked:?} ends with {ending:?}"));
        let place = (machine, self.machines[machine].boot_number);
        // A master that was removed and does not know it grants null and CR locks beside writers that it does not see any more.
        let is_of_now = ViewNumber(ending.token.view) >= self.facts.newest_view();
        let floor = if is_of_now { asked.floor } else { 0 };
        match asked.what {
            What::Lock { resource, flags, .. } => {
                if let (LockStatus::Success, Some(mode)) = (ending.status, ending.mode) {
                    let block = block_of(resource, None, flags, mode, ending);
                    let grant = Grant { place, resource, before: None, mode, token: ending.token, block, floor, written: None };
                    self.granted(machine, pid, asked.since_us, ending.lock, &grant);
                    self.facts.locks.persists(LockKey { client: pid, lock: ending.lock }, flags.has(Flags::PERSISTENT));
                }
            }
            What::Convert { lock, resource, before, flags, written, .. } => {
                let key = LockKey { client: pid, lock };
                let before = if ending.flags.has(ResultFlags::DEMOTED) { Mode::Nl } else { before };
                let is_unlocking = self.client(machine, pid).is_none_or(|client| !client.locks.contains_key(&lock));
                match ending.mode {
                    // A forced unlock has overtaken it: whatever it got is on its way back.
                    _ if is_unlocking => {}
                    Some(mode) if ending.status == LockStatus::Success => {
                        let (before, token) = (Some(before), ending.token);
                        let block = block_of(resource, before, flags, mode, ending);
                        let grant = Grant { place, resource, before, mode, token, block, floor, written };
                        self.granted(machine, pid, asked.since_us, ending.lock, &grant);
                    }
                    Some(mode) => {
                        let found = self.facts.locks.kept(key, mode, written);
                        self.report(now_us, found);
                        if let Some(lock) = self.client(machine, pid).and_then(|client| client.locks.get_mut(&lock)) {
                            (lock.is_busy, lock.mode) = (false, mode);
                        }
                    }
                    None => {}
                }
            }
            What::Unlock { resource, written } => {
                if let Some(written) = written {
                    self.facts.locks.done(resource, written);
                }
            }
            What::Range { lock, owner, .. } => {
                if let Some(lock) = self.client(machine, pid).and_then(|client| client.locks.get_mut(&lock)) {
                    lock.ranging.remove(&owner);
                }
                let key = RangeKey { client: pid, lock, owner };
                let is_done = ending.status == LockStatus::Success;
                self.facts.granted += u64::from(is_done);
                let found = self.facts.locks.ranges.answered(key, is_done);
                self.report(now_us, found);
                self.check_lease(machine, "a byte range is granted to a client");
            }
            What::Adopt { resource, mode } => self.adoption_ended(machine, pid, asked.since_us, (resource, mode), ending),
            What::Purge { .. } if ending.status == LockStatus::Success => self.facts.locks.purged((pid, serial)),
            What::Join { .. } | What::Leave { .. } | What::Cancel | What::Many { .. } | What::Purge { .. } => {}
        }
        wrong
    }

    /// All of several locks are granted, or none is.
    fn many_completed(
        &mut self,
        machine: usize,
        pid: Pid,
        asked: &Asked,
        status: LockStatus,
        (failed, locks): (u16, &[(u32, Token)]),
    ) -> Option<String> {
        let What::Many { items, flags } = &asked.what else { return Some(format!("many locks answer {asked:?}")) };
        let now_us = self.queue.now_us();
        let place = (machine, self.machines[machine].boot_number);
        for ((resource, mode), (lock, token)) in items.iter().zip(locks) {
            let (resource, mode, token, block) = (*resource, *mode, *token, Block::Unread);
            let grant = Grant { place, resource, before: None, mode, token, block, floor: 0, written: None };
            self.granted(machine, pid, asked.since_us, *lock, &grant);
            self.facts.locks.persists(LockKey { client: pid, lock: *lock }, flags.has(Flags::PERSISTENT));
        }
        let is_all = status == LockStatus::Success;
        let is_whole = locks.len() == if is_all { items.len() } else { 0 };
        let is_named = failed == NONE_FAILED || (!is_all && usize::from(failed) < items.len());
        let wrong = judge_wait(asked, status, now_us).or((!is_whole || !is_named).then_some("neither all nor none"));
        wrong.map(|text| format!("{text}: {asked:?} ends with {status:?}, {failed}, {locks:?}"))
    }

    /// A request is about to fail because of a deadlock; what speaks against it.
    fn is_victim(&mut self, machine: usize, pid: Pid, serial: u64, cycle: &Cycle) -> Option<String> {
        let number_of = |step: &CycleStep| self.resource_named(&step.lockspace, step.resource.as_bytes());
        let flaw = self.facts.waits.flaw(pid, serial, cycle, number_of);
        let Some(asked) = self.client(machine, pid).and_then(|client| client.asked.get_mut(&serial)) else {
            return Some(format!("a deadlock of {serial}, which waits for nothing: {cycle}"));
        };
        asked.has_cycle = true;
        flaw.map(|flaw| format!("a deadlock that was none, {flaw}: {cycle}"))
    }

    /// An orphan is adopted, or not.
    fn adoption_ended(&mut self, machine: usize, pid: Pid, since_us: u64, (resource, mode): (usize, Mode), ending: &Ending) {
        let now_us = self.queue.now_us();
        if ending.status == LockStatus::Success {
            let place = (machine, self.machines[machine].boot_number);
            self.begin_holding(machine, pid, ending.lock, resource, mode);
            let found = self.facts.locks.adopted(now_us, LockKey { client: pid, lock: ending.lock }, place, resource, mode);
            self.report(now_us, found);
            return self.check_lease(machine, "an orphan is given to a client");
        }
        // Another one may have been faster, and not know it yet.
        let is_rival = |client: &Client| {
            client.asked.values().any(|asked| matches!(asked.what, What::Adopt { resource: other, .. } if other == resource))
        };
        if ending.status != LockStatus::Stopped && !self.machines[machine].clients.values().any(is_rival) {
            let found = self.facts.locks.not_adopted(machine, (resource, mode), since_us, ending.status);
            self.report(now_us, found.into_iter().collect());
        }
    }

    /// A client has a lock from now on, or has it anew.
    fn begin_holding(&mut self, machine: usize, pid: Pid, id: u32, resource: usize, mode: Mode) {
        let now_us = self.queue.now_us();
        let until_us = now_us + self.random.below(self.options.hold_ms * 1000 + 1);
        let uses = self.random.below(4);
        self.facts.granted += 1;
        let Some(client) = self.client(machine, pid) else { return };
        let lock = client.locks.entry(id).or_insert_with(|| Lock {
            resource,
            mode,
            is_busy: false,
            is_wanted: false,
            until_us,
            has_io: false,
            seen: None,
            uses,
            ranging: BTreeSet::new(),
        });
        (lock.is_busy, lock.mode, lock.uses) = (false, mode, uses);
    }

    /// A client reads its grant.
    fn granted(&mut self, machine: usize, pid: Pid, asked_us: u64, id: u32, grant: &Grant) {
        let now_us = self.queue.now_us();
        self.begin_holding(machine, pid, id, grant.resource, grant.mode);
        let found = self.facts.locks.granted(now_us, LockKey { client: pid, lock: id }, grant);
        self.report(now_us, found);
        self.check_lease(machine, "a lock is granted to a client");
        self.check_gate(machine, asked_us, grant);
    }
}

fn block_of(resource: usize, before: Option<Mode>, flags: Flags, mode: Mode, ending: &Ending) -> Block {
    if !flags.has(Flags::VALBLK) || mode.lvb_transfer(before) != LvbTransfer::Read {
        Block::Unread
    } else if ending.flags.has(ResultFlags::VALNOTVALID) {
        Block::Invalid
    } else {
        ending.lvb.map_or(Block::Nothing, |lvb| Block::Value(number_in(resource, &lvb)))
    }
}

/// May this request end so? What is wrong, if anything.
fn judge(asked: &Asked, ending: &Ending, now_us: u64, is_met: bool) -> Option<&'static str> {
    let (before, wanted, flags) = match asked.what {
        What::Lock { mode, flags, .. } => (None, mode, flags),
        What::Convert { before, mode, flags, .. } => (Some(before), mode, flags),
        What::Unlock { .. } => {
            let is_right = ending.status == LockStatus::Unlocked && ending.mode.is_none();
            return (!is_right).then_some("an unlock that does not unlock");
        }
        What::Cancel => {
            let is_right = matches!(ending.status, LockStatus::Success | LockStatus::NotFound);
            return (!is_right).then_some("a cancel that is refused");
        }
        What::Range { kind: RangeKind::Unlock, .. } => {
            return (ending.status != LockStatus::Success).then_some("bytes that are not given back");
        }
        What::Range { .. } => return judge_wait(asked, ending.status, now_us),
        What::Adopt { mode, .. } => {
            let is_given = ending.status == LockStatus::Success && ending.mode == Some(mode) && ending.lock != 0;
            let is_refused = matches!(ending.status, LockStatus::Again | LockStatus::Busy | LockStatus::NotFound | LockStatus::Stopped);
            return (!is_given && !is_refused).then_some("an adoption that cannot end so");
        }
        What::Purge { .. } => {
            let is_right = matches!(ending.status, LockStatus::Success | LockStatus::NotFound);
            return (!is_right).then_some("a purge that is refused");
        }
        What::Join { .. } | What::Leave { .. } | What::Many { .. } => return Some("an operation's end for what is none"),
    };
    let is_demoted = ending.flags.has(ResultFlags::DEMOTED);
    if is_demoted && (before.is_none() || !flags.has(Flags::CONVDEADLK)) {
        return Some("demoted without consent");
    }
    if is_demoted && !is_met {
        return Some("demoted for nobody");
    }
    let kept = if is_demoted { Some(Mode::Nl) } else { before };
    let is_kept = ending.mode == kept;
    let alternative = if flags.has(Flags::ALTPR) { Some(Mode::Pr) } else { flags.has(Flags::ALTCW).then_some(Mode::Cw) };
    match ending.status {
        LockStatus::Success => {
            let is_alternative = ending.flags.has(ResultFlags::ALTMODE);
            let is_right = ending.mode == if is_alternative { alternative } else { Some(wanted) };
            let is_unneeded = is_alternative && alternative == Some(wanted);
            let is_block_unasked = ending.lvb.is_some() && !flags.has(Flags::VALBLK);
            (!is_right || is_unneeded || is_block_unasked || ending.lock == 0).then_some("a grant of what was not asked for")
        }
        LockStatus::Stopped => before.is_some().then_some("a conversion refused by a stop"),
        // Two conversions of one resource wait for each other without more words.
        LockStatus::Deadlock if before.is_some() && is_met && !is_silenced(flags) => {
            (!is_kept).then_some("a deadlock that changes the lock")
        }
        status => judge_wait(asked, status, now_us).or((!is_kept).then_some("a request that fails and changes the lock")),
    }
}

fn is_silenced(flags: Flags) -> bool {
    flags.has(Flags::NOQUEUE) || flags.has(Flags::NODLCKWT)
}

/// May what waits, or cannot wait, end so? What is wrong, if anything.
fn judge_wait(asked: &Asked, status: LockStatus, now_us: u64) -> Option<&'static str> {
    let flags = asked.what.flags();
    match status {
        LockStatus::Success | LockStatus::Stopped => None,
        LockStatus::Again => (!flags.has(Flags::NOQUEUE)).then_some("a try that was none"),
        LockStatus::Deadlock => (is_silenced(flags) || !asked.has_cycle).then_some("a deadlock that cannot be one"),
        LockStatus::Cancelled => (!asked.is_cancelled).then_some("cancelled by nobody"),
        LockStatus::TimedOut => {
            // Clocks that go too fast, and a clock that counts in ms.
            let least_us = u64::from(asked.timeout_ms).saturating_sub(1) * 980;
            (asked.timeout_ms == 0 || now_us < asked.since_us + least_us).then_some("a wait that ends too early")
        }
        LockStatus::Unlocked | LockStatus::Invalid | LockStatus::NotFound | LockStatus::Busy | LockStatus::NoMemory => {
            Some("a result that this request cannot have")
        }
    }
}
