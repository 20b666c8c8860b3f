//! What: what is kept for a while of a resource on which this node has no lock any more: mastery, where another node is the home, or who is
//!   master, where a third one is: who locks and gives back the same names again and again asks nobody, or the master alone.
//! Owns: which places are kept, and how long.
//! Invariants: nothing is known of a kept resource but who is its master: its value block went with its last lock; that another node is master
//!   is a guess, which that one may refuse; there are a bounded number; a node that stops keeps none; they count for no lockspace.
//! Does not: judge requests: the first one makes it a resource like any other.
//! Called by: `service`.

use super::LockService;
use super::places::{KEPT, Place};
use crate::name::Key;
use crate::peers::ME;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Places kept at most (chosen: what a node works on in some seconds; a few hundred kilobytes at most).
pub(super) const KEPT_MAX: usize = if cfg!(test) { 3 } else { 8192 };
/// How long a place is kept that nobody uses, at least, and twice that at most, in milliseconds (chosen: longer than pauses in work; short for
/// whoever waits until a dead master is proved gone).
pub(super) const KEEP_MS: u64 = if cfg!(test) { 40 } else { 5000 };

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// In the order in which they were listed. A place may be in use meanwhile, or gone.
    order: VecDeque<u32>,
    sweep_ms: Option<u64>,
    /// Of the sweep that has begun.
    left: usize,
}

impl Kept {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.sweep_ms
    }
}

impl LockService {
    /// Keeps mastery of a resource whose last lock is gone; false: it has to go back.
    pub(super) fn keep_mastery(&mut self, number: u32, key: &Key) -> bool {
        if self.is_stopped || !self.view.is_member {
            return false;
        }
        // What stands in the list had another home when it came there; should this node be the home by now, no harm is done.
        let is_listed = self.places.get(number).is_some_and(|place| place.is_listed);
        if !is_listed && self.home(key) == self.me {
            return false;
        }
        let Some(place) = self.places.get_mut(number) else { return false };
        place.lone = KEPT;
        let lockspace = place.lockspace;
        self.put_on_list(number);
        self.uses_fewer(lockspace);
        true
    }

    /// The last lock of this node is gone: remembers its master, where that spares asking the home.
    pub(super) fn remember_master(&mut self, number: u32) {
        let (Some(place), Some(key)) = (self.places.get(number), self.places.key(number)) else { return };
        let master = place.master.filter(|master| !place.is_master() && *master != ME && self.is_peer_member(*master));
        let home = self.home(&key);
        let is_spared = home != self.me && master.and_then(|master| self.peers.life(master)).is_some_and(|master| master != home);
        let is_remembered = is_spared && !self.is_stopped && self.view.is_member;
        if let Some(place) = self.places.get_mut(number) {
            place.master = master.filter(|_| is_remembered);
        }
        if is_remembered {
            self.put_on_list(number);
        }
    }

    fn put_on_list(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number) else { return };
        place.is_fresh = true;
        if !core::mem::replace(&mut place.is_listed, true) {
            self.kept.order.push_back(number);
            self.kept.sweep_ms.get_or_insert(self.now_ms.saturating_add(KEEP_MS));
        }
        if self.kept.order.len() > KEPT_MAX {
            self.look_at_oldest(true);
        }
    }

    /// The one that was listed first: back to its home, or to the end of the list.
    fn look_at_oldest(&mut self, is_full: bool) {
        let Some(number) = self.kept.order.pop_front() else { return };
        let Some(place) = self.places.get_mut(number).filter(|place| place.is_listed) else { return };
        let is_idle = place.is_kept() || place.is_remembered();
        if is_idle && place.is_fresh && !is_full {
            place.is_fresh = false;
            self.kept.order.push_back(number);
            return;
        }
        place.is_listed = false;
        if is_idle {
            self.end_keeping(number);
        }
    }

    fn end_keeping(&mut self, number: u32) {
        let (Some(key), Some(place)) = (self.places.key(number), self.places.get_mut(number)) else { return };
        let (is_kept, stamp) = (place.is_kept(), place.stamp);
        if is_kept {
            place.lone = 0;
            self.return_mastery(number, &key, (self.counter, stamp));
        } else {
            place.master = None;
        }
        self.forget_place(number);
    }

    /// What nobody has used for a while goes back, a slice in one turn.
    pub(super) fn sweep_kept(&mut self, slice: usize) {
        if self.kept.sweep_ms.is_none_or(|sweep_ms| self.now_ms < sweep_ms) {
            return;
        }
        if self.kept.left == 0 {
            self.kept.left = self.kept.order.len();
        }
        let count = self.kept.left.min(slice);
        self.kept.left -= count;
        for _ in 0..count {
            self.look_at_oldest(false);
        }
        if self.kept.left == 0 {
            self.kept.sweep_ms = (!self.kept.order.is_empty()).then(|| self.now_ms.saturating_add(KEEP_MS));
        }
    }

    /// Gives back what is kept, of one lockspace or of all.
    pub(super) fn give_kept_back(&mut self, lockspace: Option<u32>) {
        let is_idle = |place: &Place| place.is_kept() || place.is_remembered();
        let is_it = |place: &Place| is_idle(place) && lockspace.is_none_or(|lockspace| place.lockspace == lockspace);
        let numbers: Vec<u32> = self.kept.order.iter().copied().filter(|number| self.places.get(*number).is_some_and(is_it)).collect();
        for number in numbers {
            self.end_keeping(number);
        }
    }
}
