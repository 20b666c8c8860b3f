//! Who waits for whom, and who of them must fail: cycles found by walking, nothing kept between two looks.

use super::{Bytes, Told, Wait};
use deadbolt_dlm_core::LockStatus;
use std::collections::BTreeSet;

/// Who stands still as long as one of its requests waits: a range's owner within a session, or (`true`) within a transaction.
type Party = (bool, u64, u64);

fn is_session(party: Party) -> bool {
    !party.0
}

impl Bytes {
    fn party(&self, owner: super::Owner) -> Party {
        let lock = self.lock(owner.lock).expect("ranges end with their lock");
        let number = if lock.transaction == 0 { lock.session } else { lock.transaction };
        (lock.transaction != 0, number, owner.number)
    }

    /// For whom this waits. A session that waits for itself may be helped by another of its threads.
    fn blockers(&self, place: usize) -> Vec<Party> {
        let wait = &self.waits[place];
        let own = self.party(wait.owner);
        let earlier = self.earlier(place).map(|other| other.owner);
        let all = self.holders(wait.owner, wait.cells).chain(earlier).map(|owner| self.party(owner));
        all.filter(|party| *party != own || !is_session(own)).collect()
    }

    /// Does this wait, for whomever it waits, in the end wait for itself by way of waits of which `is_usable`?
    fn is_in_cycle(&self, place: usize, is_usable: impl Fn(&Wait) -> bool) -> bool {
        let goal = self.party(self.waits[place].owner);
        let (mut open, mut seen) = (self.blockers(place), BTreeSet::new());
        while let Some(party) = open.pop() {
            if party == goal {
                return true;
            }
            if seen.insert(party) {
                let its = (0..self.waits.len()).filter(|other| self.party(self.waits[*other].owner) == party);
                open.extend(its.filter(|other| is_usable(&self.waits[*other])).flat_map(|other| self.blockers(other)));
            }
        }
        false
    }

    /// The product fails these to end deadlocks: each must be the last to come of a cycle, but for those that are spared.
    pub(crate) fn fail(&mut self, victims: &[u64]) -> Result<Vec<Told>, String> {
        for serial in victims {
            let place = self.waits.iter().position(|wait| wait.serial == *serial).ok_or(format!("{serial} does not wait"))?;
            let since = self.waits[place].since;
            if self.waits[place].is_spared {
                return Err(format!("{serial} is to be spared"));
            }
            if !self.is_in_cycle(place, |other| other.is_spared || other.since < since) {
                return Err(format!("{serial} is not the last to come of a cycle"));
            }
        }
        for serial in victims {
            if let Some(place) = self.waits.iter().position(|wait| wait.serial == *serial) {
                self.end(place, LockStatus::Deadlock);
                self.grant();
            }
        }
        Ok(self.finish())
    }

    /// A wait that a search for deadlocks must end. Who stands behind an own wait for all of the same waits for whatever that one waits for:
    /// its end alone would help nobody.
    pub(crate) fn deadlocked(&self) -> Option<u64> {
        let is_implied = |place: usize| {
            let (own, cells) = (self.party(self.waits[place].owner), self.waits[place].cells);
            self.earlier(place).any(|other| self.party(other.owner) == own && other.cells.contain(cells))
        };
        let is_it = |place: &usize| !self.waits[*place].is_spared && !is_implied(*place) && self.is_in_cycle(*place, |_| true);
        (0..self.waits.len()).find(is_it).map(|place| self.waits[place].serial)
    }
}
