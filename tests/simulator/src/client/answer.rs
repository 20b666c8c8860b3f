//! What: what a client makes of an answer, and whether this answer may be given to that request.
//! Owns: the table of results that each request may end with.
//! Invariants: every request is answered once; the modes that a client relies on are those that were said last.
//! Does not: choose what follows.
//! Called by: the world, with every reply that reaches a client.

use super::{Asked, Client, Lock, What, number_in};
use crate::{
    check::locks::{Block, Grant, LockKey},
    machine::{Pid, Process},
    world::{Event, World},
};
use deadbolt_disk_format::ViewNumber;
use deadbolt_dlm_core::{ClientReply, Flags, LockStatus, Mode, ResultFlags, Token, client::Lvb, mode::LvbTransfer};

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

impl World {
    /// A reply reaches the client.
    pub(crate) fn client_reply(&mut self, machine: usize, pid: Pid, reply: ClientReply) {
        if self.machines[machine].is_stopped(Process::Clients) {
            return self.defer(machine, Process::Clients, Event::Reply { machine, session: pid, reply: Box::new(reply) });
        }
        let now_us = self.queue.now_us();
        let Some(client) = self.client(machine, pid).filter(|client| !client.is_killed) else { return };
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
                Some(asked) => self.completed(machine, pid, &asked, &Ending { lock, status, mode, flags, lvb, token }),
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
            ClientReply::Welcome { .. } | ClientReply::DeadlockCycle { .. } => None,
            other => Some(format!("nobody asked for {other:?}")),
        };
        let found = found.map(|text| ("S9", format!("client {pid} on {}: {text}", self.machines[machine].name)));
        self.report(now_us, found.into_iter().collect());
        self.think(machine, pid);
    }

    /// The end of an operation; what is wrong with it, if anything.
    fn completed(&mut self, machine: usize, pid: Pid, asked: &Asked, ending: &Ending) -> Option<String> {
        let wrong = judge(asked, ending).map(|text| format!("{text}: {asked:?} ends with {ending:?}"));
        let now_us = self.queue.now_us();
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
            What::Join { .. } | What::Leave { .. } | What::Cancel => {}
        }
        wrong
    }

    /// A client reads its grant.
    fn granted(&mut self, machine: usize, pid: Pid, asked_us: u64, id: u32, grant: &Grant) {
        let now_us = self.queue.now_us();
        let until_us = now_us + self.random.below(self.options.hold_ms * 1000 + 1);
        let uses = self.random.below(4);
        self.facts.granted += 1;
        let (resource, mode) = (grant.resource, grant.mode);
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
        });
        (lock.is_busy, lock.mode, lock.uses) = (false, mode, uses);
        let found = self.facts.locks.granted(now_us, LockKey { client: pid, lock: id }, grant);
        self.report(now_us, found);
        self.check_lease(machine, "a lock is granted to a client");
        self.check_gate(machine, asked_us, grant);
    }

    /// The oldest request without an answer on a machine, for reports.
    pub(crate) fn oldest_request(&self, machine: usize) -> Option<(Pid, &Asked)> {
        let clients = self.machines[machine].clients.values().filter(|client| !client.is_cut_off && !client.is_killed);
        clients.flat_map(|client| client.asked.values().map(|asked| (client.pid, asked))).min_by_key(|(_, asked)| asked.since_us)
    }

    /// Has every client of a machine given back what it had, and nothing asked?
    pub(crate) fn is_idle(&self, machine: usize) -> bool {
        self.machines[machine].clients.values().all(|client: &Client| client.locks.is_empty() && client.asked.is_empty())
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
fn judge(asked: &Asked, ending: &Ending) -> Option<&'static str> {
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
        What::Join { .. } | What::Leave { .. } => return Some("an operation's end for what is none"),
    };
    let is_demoted = ending.flags.has(ResultFlags::DEMOTED);
    if is_demoted && (before.is_none() || !flags.has(Flags::CONVDEADLK)) {
        return Some("demoted without consent");
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
        LockStatus::Again => (!flags.has(Flags::NOQUEUE) || !is_kept).then_some("a try that was none"),
        LockStatus::Deadlock => {
            let is_silenced = flags.has(Flags::NOQUEUE) || flags.has(Flags::NODLCKWT);
            (is_silenced || !is_kept).then_some("a deadlock that cannot be one")
        }
        LockStatus::Cancelled => (!asked.is_cancelled || !is_kept).then_some("cancelled by nobody"),
        LockStatus::Stopped => before.is_some().then_some("a conversion refused by a stop"),
        LockStatus::Unlocked
        | LockStatus::Invalid
        | LockStatus::NotFound
        | LockStatus::Busy
        | LockStatus::NoMemory
        | LockStatus::TimedOut => Some("a result that this request cannot have"),
    }
}
