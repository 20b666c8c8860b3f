//! What: what clients of the random test do with orphans and bounded waits, and what must come of it.
//! Owns: adoption, purge, timeouts; the check that an operation ends as it does for a cause.
//! Invariants: none of its own.
//! Does not: know how an orphan that nobody was told of came to be: its grant may have met the death of its session.
//! Called by: `cluster`.

use super::*;
use crate::client::ALL_SLOTS;

impl World {
    /// An operation fails only as somebody asked for.
    pub(super) fn check_cause(&self, serial: u64, asked: &Asked, status: LockStatus) -> Checked {
        let (Asked::Lock { flags, .. } | Asked::Convert { flags, .. }) = asked else { return Ok(()) };
        let has_cause = match status {
            LockStatus::Success => true,
            LockStatus::Again => flags.has(Flags::NOQUEUE),
            LockStatus::Deadlock => !flags.has(Flags::NODLCKWT) && !flags.has(Flags::NOQUEUE),
            LockStatus::Cancelled => self.cancelled.contains(&serial),
            LockStatus::TimedOut => self.deadlines.get(&serial).is_some_and(|deadline| *deadline <= self.now()),
            _ => false,
        };
        if has_cause { Ok(()) } else { Err(format!("S9: {asked:?} (serial {serial}) ended with {status:?} for no cause")) }
    }

    /// Sometimes a wait is bounded.
    pub(super) fn new_timeout(&mut self, serial: u64) -> u32 {
        if !self.random.chance(15) {
            return 0;
        }
        let timeout = 1 + u32::try_from(self.random.below(300)).unwrap();
        self.deadlines.insert(serial, self.now() + u64::from(timeout));
        timeout
    }

    pub(super) fn new_adoption(&mut self, serial: u64, space: usize) -> (Asked, ClientRequest) {
        // What is known to be there, most of the time.
        let mut known =
            self.held.values().filter(|held| held.session == 0 && held.name.0 == space).map(|held| (held.name.1, held.modes[0]));
        let (resource, mode) = known.next().unwrap_or((self.random.below(RESOURCES), MODES[self.random.below(6)]));
        let request = ClientRequest::Lock {
            serial,
            lockspace: lockspace_number(SPACES[space]),
            resource: name(&[u8::try_from(resource).unwrap() + b'a']),
            mode,
            flags: Flags::ORPHAN,
            owner: 0,
            timeout_ms: 0,
            lvb: None,
        };
        (Asked::Adopt { space, resource }, request)
    }

    pub(super) fn adopted(&mut self, life: Life, session: u64, lock: u32, name: (usize, usize), mode: Option<Mode>) -> Checked {
        let Some(mode) = mode else { return Ok(()) };
        let now = self.now();
        if self.held.get(&(life, lock)).is_some_and(|held| held.session != 0 || held.name != name || !held.modes.contains(&mode)) {
            return Err(format!("S2: {:?} was adopted in {mode}", self.held[&(life, lock)]));
        }
        let new = Held { session, name, modes: vec![], is_busy: false, is_unlocking: false, is_persistent: true, since: now };
        let held = self.held.entry((life, lock)).or_insert(new);
        (held.session, held.modes, held.is_busy) = (session, vec![mode], false);
        self.check_compatible(life, lock, name, mode)
    }

    /// A session ends: its persistent locks stay, in the mode that they have or in one that they are just getting.
    pub(super) fn leave_orphans(&mut self, life: Life, session: u64, client: &Client) {
        for asked in client.asked.values() {
            if let Asked::Convert { lock, wanted, .. } = asked
                && let Some(held) = self.held.get_mut(&(life, *lock)).filter(|held| held.is_persistent)
            {
                held.modes.push(*wanted);
            }
        }
        for ((owner, _), held) in &mut self.held {
            if *owner == life && held.session == session && held.is_persistent {
                held.session = 0;
            }
        }
        // What was on its way back goes.
        self.held.retain(|(owner, _), held| *owner != life || held.session != 0 || !held.is_unlocking);
    }

    /// When all is quiet: one session asks for all of them, wherever they are.
    pub(super) fn new_purge(&mut self, life: Life, (session, serial): (u64, u64), space: usize) -> Option<(Asked, ClientRequest)> {
        let client = &self.nodes[&life].clients[&session];
        let is_asking = client.asked.values().any(|asked| matches!(asked, Asked::Purge { .. }));
        let is_joined = client.spaces.contains(&space);
        if is_asking || !is_joined || client.purged.contains(&space) {
            return None;
        }
        let request = ClientRequest::Purge { serial, lockspace: lockspace_number(SPACES[space]), slot: ALL_SLOTS, pid: 0 };
        // From now on they may be gone, here at once.
        self.held.retain(|_, held| held.session != 0 || held.name.0 != space);
        Some((Asked::Purge { space }, request))
    }

    pub(super) fn purged(&mut self, life: Life, session: u64, space: usize) -> Checked {
        let client = self.nodes.get_mut(&life).and_then(|node| node.clients.get_mut(&session));
        client.unwrap().purged.insert(space);
        Ok(())
    }

    pub(super) fn is_purged(&self) -> bool {
        let mut clients = self.nodes.values().flat_map(|node| node.clients.values());
        clients.any(|client| client.purged.len() == SPACES.len())
    }
}
