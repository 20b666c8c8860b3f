//! What: the history of locks as clients see it, against a reference model: compatible modes, tokens that grow, value blocks as registers.
//! Owns: who holds what in truth, the value blocks that were sent, and which of them may still be read.
//! Invariants: a client holds from the moment it reads its grant until it sends its unlock, is gone, or its machine's boot has ended; while
//!   a conversion is under way it relies on no more than every mode allows that the lock may be in.
//! Does not: know queues or masters: how a grant came about does not matter here.
//! Called by: the clients and machines of the world.

mod orphans;

use crate::{
    check::{Found, ranges::RangeHistory},
    machine::Pid,
};
use deadbolt_dlm_core::{
    Mode, Token,
    mode::{LvbTransfer, MODES},
};
use orphans::Orphans;
pub use orphans::{Purge, Unanswered};
use std::collections::{BTreeMap, BTreeSet};

/// A lock: which client's, and its number there. Never used twice in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LockKey {
    /// The client.
    pub client: Pid,
    /// The number that its node gave.
    pub lock: u32,
}

/// A lock that a client holds.
#[derive(Clone, Debug)]
struct Held {
    machine: usize,
    boot: u64,
    resource: usize,
    /// Modes that it may be in.
    modes: Vec<Mode>,
    /// It outlives its client.
    is_persistent: bool,
}

impl Held {
    fn is_surely_writer(&self) -> bool {
        self.modes.iter().all(|mode| mode.is_writer())
    }
}

/// What a client read as value block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Block {
    /// It did not ask, or the block does not go this way.
    Unread,
    /// It came, marked as not valid.
    Invalid,
    /// The resource has none.
    Nothing,
    /// This one.
    Value(u64),
}

/// A write to a value block: its number, unique in a run and growing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The number, which is the content too.
    pub number: u64,
    /// It marks the block as not valid instead of writing it.
    pub is_mark: bool,
}

/// A grant as its client reads it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Which machine, in which boot.
    pub place: (usize, u64),
    /// Which resource.
    pub resource: usize,
    /// Mode before; none: a new lock.
    pub before: Option<Mode>,
    /// Mode granted.
    pub mode: Mode,
    /// Its number.
    pub token: Token,
    /// The value block that came.
    pub block: Block,
    /// Newest write that was reported done when this was asked for.
    pub floor: u64,
    /// A write that goes with it, if that took effect.
    pub written: Option<Written>,
}

/// The value block of a resource as a register with one writer at a time.
#[derive(Debug, Default)]
struct Register {
    /// The newest write that has certainly been sent.
    last: Option<Written>,
    last_sent_us: u64,
    /// Number of the newest write that was reported done.
    done: u64,
    /// Writes that may have happened or not.
    maybe: BTreeSet<u64>,
    /// Writes that never happened.
    void: BTreeSet<u64>,
    /// Since when a writer is dead that nobody has written after.
    doubt_us: Option<u64>,
}

impl Register {
    fn is_last(&mut self, now_us: u64, written: Written) {
        (self.last, self.last_sent_us, self.doubt_us) = (Some(written), now_us, None);
        self.maybe.retain(|number| *number > written.number);
    }
}

#[derive(Debug, Default)]
struct Resource {
    /// The newest token of each mode.
    newest: [Token; 6],
    tokens: BTreeSet<Token>,
    /// Locks held, and since when there has been one all the time: so long its master must have remembered the block.
    held: usize,
    kept_us: u64,
    /// A client died while it asked: its request may still be granted and taken back, which marks the block.
    is_haunted: bool,
    register: Register,
}

/// All resources.
#[derive(Debug, Default)]
pub struct LockHistory {
    held: BTreeMap<LockKey, Held>,
    resources: BTreeMap<usize, Resource>,
    numbers: u64,
    /// When a view was learned or a client died last: both may make a block invalid that was written.
    stirred_us: u64,
    orphans: Orphans,
    /// The byte ranges that belong to the locks.
    pub ranges: RangeHistory,
}

fn exclude(one: &[Mode], other: &[Mode]) -> bool {
    one.iter().all(|one| other.iter().all(|other| !one.is_compatible(*other)))
}

/// Does a conversion between these modes write the block?
#[must_use]
pub fn is_writing(before: Option<Mode>, mode: Mode) -> bool {
    before.is_some() && mode.lvb_transfer(before) == LvbTransfer::Write
}

impl LockHistory {
    fn resource(&mut self, resource: usize) -> &mut Resource {
        self.resources.entry(resource).or_default()
    }

    /// A number for a write.
    pub fn new_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A client asks for something: what it reads must not be older than this.
    pub fn floor(&mut self, resource: usize) -> u64 {
        self.resource(resource).register.done
    }

    /// A view was learned somewhere.
    pub fn view_learned(&mut self, now_us: u64) {
        self.stirred_us = now_us;
    }

    /// A client reads a grant.
    pub fn granted(&mut self, now_us: u64, key: LockKey, grant: &Grant) -> Vec<Found> {
        let mut found = self.check_modes(key, grant.resource, grant.mode);
        if let Some(written) = grant.written {
            self.settle_write(now_us, grant, written);
        }
        found.extend(self.check_token(grant));
        found.extend(self.check_block(grant));
        self.keep(now_us, key, grant.place, grant.resource, grant.mode);
        found
    }

    fn keep(&mut self, now_us: u64, key: LockKey, (machine, boot): (usize, u64), resource: usize, mode: Mode) {
        let is_persistent = self.held.get(&key).is_some_and(|held| held.is_persistent);
        let held = Held { machine, boot, resource, modes: vec![mode], is_persistent };
        if self.held.insert(key, held).is_none() {
            let resource = self.resource(resource);
            if resource.held == 0 {
                resource.kept_us = now_us;
            }
            resource.held += 1;
        }
    }

    /// The last request about a lock says whether it outlives its client.
    pub fn persists(&mut self, key: LockKey, is_persistent: bool) {
        if let Some(held) = self.held.get_mut(&key) {
            held.is_persistent = is_persistent;
        }
    }

    /// A conversion was sent: the modes that the lock may be in from now on, and what goes with it, certainly or perhaps.
    pub fn converting(&mut self, now_us: u64, key: LockKey, modes: Vec<Mode>, written: Option<Written>, is_certain: bool) {
        let Some(held) = self.held.get_mut(&key) else { return };
        let resource = held.resource;
        held.modes = modes;
        if let Some(written) = written {
            self.write(now_us, resource, written, is_certain);
        }
    }

    /// A conversion ended without a grant: what is kept is as much a promise as a grant.
    pub fn kept(&mut self, key: LockKey, mode: Mode, written: Option<Written>) -> Vec<Found> {
        let Some(held) = self.held.get_mut(&key) else { return Vec::new() };
        held.modes = vec![mode];
        let resource = held.resource;
        if let Some(written) = written {
            let register = &mut self.resource(resource).register;
            register.maybe.remove(&written.number);
            register.void.insert(written.number);
        }
        self.check_modes(key, resource, mode)
    }

    /// An unlock was sent, with a write or without.
    pub fn releasing(&mut self, now_us: u64, key: LockKey, written: Option<Written>) {
        let Some(held) = self.held.get(&key) else { return };
        let (resource, is_certain) = (held.resource, held.is_surely_writer());
        if let Some(written) = written {
            self.write(now_us, resource, written, is_certain);
        }
        self.drop_held(key);
        self.ranges.dropped(key.client, Some(key.lock));
    }

    /// An unlock or a down-conversion was reported done.
    pub fn done(&mut self, resource: usize, written: Written) {
        let register = &mut self.resource(resource).register;
        if !register.maybe.contains(&written.number) {
            register.done = register.done.max(written.number);
        }
    }

    /// A client is gone that still asked for these: what it held, it may have been writing under.
    pub fn ended(&mut self, now_us: u64, client: Pid, asked: impl Iterator<Item = usize>) {
        self.stirred_us = now_us;
        asked.for_each(|resource| self.resource(resource).is_haunted = true);
        self.ranges.dropped(client, None);
        for key in self.keys_of(client) {
            if let Some(held) = self.held.get(&key).filter(|held| held.is_surely_writer()) {
                let resource = held.resource;
                self.resource(resource).register.doubt_us.get_or_insert(now_us);
            }
            self.drop_held(key);
        }
    }

    /// All clients of a boot are gone.
    pub fn machine_ended(&mut self, now_us: u64, machine: usize, boot: u64) {
        let of_boot = self.held.iter().filter(|(_, held)| (held.machine, held.boot) == (machine, boot));
        let clients: BTreeSet<Pid> = of_boot.map(|(key, _)| key.client).collect();
        self.stirred_us = now_us;
        clients.into_iter().for_each(|client| self.ended(now_us, client, std::iter::empty()));
        self.orphans.machine_ended(machine);
        self.ranges.machine_ended(machine, boot);
    }

    /// A client of a boot that holds something that excludes anybody.
    #[must_use]
    pub fn held_by(&self, machine: usize, boot: u64) -> Option<Pid> {
        let is_it = |held: &&Held| (held.machine, held.boot) == (machine, boot) && !held.modes.contains(&Mode::Nl);
        let held = self.held.iter().find(|(_, held)| is_it(held)).map(|(key, _)| key.client);
        held.or_else(|| self.ranges.holder(|_, of_machine, of_boot| (of_machine, of_boot) == (machine, boot)))
    }

    /// Does a client hold anything that excludes anybody?
    #[must_use]
    pub fn holds(&self, client: Pid) -> bool {
        let held = self.keys_of(client).into_iter().filter_map(|key| self.held.get(&key));
        held.into_iter().any(|held| !held.modes.contains(&Mode::Nl)) || self.ranges.holder(|other, _, _| other == client).is_some()
    }

    fn keys_of(&self, client: Pid) -> Vec<LockKey> {
        let range = LockKey { client, lock: 0 }..=LockKey { client, lock: u32::MAX };
        self.held.range(range).map(|(key, _)| *key).collect()
    }

    fn drop_held(&mut self, key: LockKey) {
        if let Some(held) = self.held.remove(&key) {
            self.resource(held.resource).held -= 1;
        }
    }

    fn write(&mut self, now_us: u64, resource: usize, written: Written, is_certain: bool) {
        let register = &mut self.resource(resource).register;
        if is_certain {
            register.is_last(now_us, written);
        } else {
            register.maybe.insert(written.number);
        }
    }

    /// A write that went with a conversion, now that its result is known.
    fn settle_write(&mut self, now_us: u64, grant: &Grant, written: Written) {
        let register = &mut self.resource(grant.resource).register;
        let was_open = register.maybe.remove(&written.number);
        if !is_writing(grant.before, grant.mode) {
            register.void.insert(written.number);
            return;
        }
        if was_open {
            register.is_last(now_us, written);
        }
        register.done = register.done.max(written.number);
    }

    /// S2.
    fn check_modes(&self, key: LockKey, resource: usize, mode: Mode) -> Vec<Found> {
        let others = self.held.iter().filter(|(other, held)| **other != key && held.resource == resource);
        let excluding = others.filter(|(_, held)| exclude(&held.modes, &[mode]));
        excluding.map(|(other, held)| ("S2", format!("r{resource}: {key:?} has {mode} while {other:?} holds {held:?}"))).collect()
    }

    /// S4.
    fn check_token(&mut self, grant: &Grant) -> Option<Found> {
        let (number, mode, token) = (grant.resource, grant.mode, grant.token);
        if grant.before.is_some_and(|before| mode < before && before.is_down(mode)) {
            return None;
        }
        let resource = self.resource(number);
        let excluding = MODES.into_iter().zip(resource.newest).filter(|(other, _)| !other.is_compatible(mode));
        let greater = excluding.map(|(_, newest)| newest).find(|newest| *newest >= token);
        let is_new = resource.tokens.insert(token);
        if let Some(newest) = resource.newest.get_mut(usize::from(mode.number())) {
            *newest = token.max(*newest);
        }
        match greater {
            Some(greater) => Some(("S4", format!("r{number}: token {token} for {mode} after {greater} for what excludes it"))),
            None if !is_new => Some(("S4", format!("r{number}: token {token} is given twice"))),
            None => None,
        }
    }

    /// S12, and S9 where a block that was written is called invalid for no reason.
    fn check_block(&mut self, grant: &Grant) -> Option<Found> {
        let (number, mode, stirred_us) = (grant.resource, grant.mode, self.stirred_us);
        let resource = self.resource(number);
        let register = &resource.register;
        let last = register.last.filter(|last| !last.is_mark);
        let is_stable = mode >= Mode::Cw;
        let was_kept = |since_us: u64| resource.held > 0 && resource.kept_us < since_us;
        let is_settled = |written: &Written| written.number <= grant.floor;
        let text = match grant.block {
            Block::Unread => None,
            Block::Invalid => {
                let is_sure = register.doubt_us.is_none() && register.maybe.is_empty() && !resource.is_haunted;
                let is_wrong = is_sure && stirred_us < register.last_sent_us && last.is_some_and(|last| is_settled(&last));
                return is_wrong.then(|| ("S9", format!("r{number}: value block {last:?} was reported written, and is called invalid")));
            }
            Block::Nothing => {
                let is_lost = register.last.is_some_and(|last| is_stable || is_settled(&last)) && was_kept(register.last_sent_us);
                let is_doubtful = is_stable && register.doubt_us.is_some_and(was_kept);
                (is_lost || is_doubtful).then(|| "none".to_string())
            }
            Block::Value(value) => {
                let is_last = register.last.is_some_and(|last| !last.is_mark && last.number == value);
                let is_right = if is_stable {
                    let is_later = register.last.is_none_or(|last| last.number < value);
                    (is_last && register.doubt_us.is_none()) || (is_later && register.maybe.contains(&value))
                } else {
                    value > 0 && value >= grant.floor && !register.void.contains(&value)
                };
                (!is_right).then(|| value.to_string())
            }
        };
        text.map(|text| {
            (
                "S12",
                format!("r{number}: {mode} after {:?} reads block {text}, floor {}, {:?}", grant.before, grant.floor, resource.register),
            )
        })
    }
}

#[cfg(test)]
mod tests;
