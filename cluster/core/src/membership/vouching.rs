//! What: this life's vouches for others: taken, written, looked after, granted.
//! Owns: the vouches that stand in the own beat.
//! Invariants: a grant leaves only after the vouch that names its request is complete on a majority, and after a look issued later found no
//!   pill for the other and no ballot for a later view; a vouch stands until a newer one for its slot replaces it or a view says that
//!   the other is gone, across the lives of this node.
//! Does not: read the disk, lengthen a lease.
//! Called by: the membership machine.

use super::{Membership, Output, Role};
use crate::hello::Beyond as Message;
use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::beat::VOUCHES_MAX;
use deadbolt_disk_format::{Life, SlotIndex, ViewBody, ViewNumber, Vouch};

/// A vouch that is being made.
#[derive(Clone, Copy, Debug)]
struct Work {
    serial: u32,
    view: ViewNumber,
    /// Number of the daemon part that carries it first.
    number: u64,
    since_ms: u64,
    is_looking: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Vouching {
    /// By slot: the serial, and for whom; none: an earlier life's.
    standing: BTreeMap<SlotIndex, (u32, Option<Life>)>,
    works: BTreeMap<Life, Work>,
    /// Newest requests that wait for the end of the one before.
    waiting: BTreeMap<Life, u32>,
    /// Members that have not said yet that they know the present view, and since when they know less than this life.
    behind: BTreeMap<Life, u64>,
}

impl Vouching {
    /// With the vouches of the life before.
    pub(crate) fn new(carried: &[Vouch]) -> Self {
        Self { standing: carried.iter().map(|vouch| (vouch.slot, (vouch.serial, None))).collect(), ..Self::default() }
    }

    pub(crate) fn standing(&self) -> Vec<Vouch> {
        self.standing.iter().take(VOUCHES_MAX).map(|(slot, (serial, _))| Vouch { slot: *slot, serial: *serial }).collect()
    }

    pub(crate) fn handle_view(&mut self, body: &ViewBody, now_ms: u64) {
        let is_gone = |life: &Life| body.released.iter().any(|gone| gone.life == *life);
        self.standing.retain(|_, (_, life)| !life.as_ref().is_some_and(is_gone));
        self.works.retain(|life, _| body.members.contains(life));
        self.waiting.retain(|life, _| body.members.contains(life));
        self.behind.retain(|life, _| body.members.contains(life));
        for life in &body.members {
            self.behind.entry(*life).or_insert(now_ms);
        }
    }

    /// A life knows the present view.
    pub(crate) fn handle_caught_up(&mut self, life: &Life) {
        self.behind.remove(life);
    }
}

impl Membership {
    pub(crate) fn handle_vouch_asked(&mut self, from: Life, serial: u32) {
        self.vouching.waiting.insert(from, serial);
        self.begin_vouching(from);
    }

    /// Only a member that lives on its own cycles vouches, and for members.
    fn begin_vouching(&mut self, life: Life) {
        let patience_ms = u64::from(self.timings().lease_ms);
        let is_busy = self.vouching.works.get(&life).is_some_and(|work| self.now_ms < work.since_ms + patience_ms);
        if is_busy {
            return;
        }
        let Some(serial) = self.vouching.waiting.remove(&life) else { return };
        let is_full = self.vouching.standing.len() >= VOUCHES_MAX && !self.vouching.standing.contains_key(&life.slot);
        let is_same = self.vouching.standing.get(&life.slot).is_some_and(|(standing, _)| *standing == serial);
        let is_member = self.role == Role::Member && self.known.body.members.contains(&life);
        let may_vouch = is_member && self.has_own_path() && self.may_follow(&life);
        if !may_vouch || is_full || is_same {
            return;
        }
        self.vouching.standing.insert(life.slot, (serial, Some(life)));
        self.publish();
        let work = Work { serial, view: self.known.body.view, number: self.number, since_ms: self.now_ms, is_looking: false };
        self.vouching.works.insert(life, work);
    }

    /// Who cannot read the present view holds up recovery and joins in it: it is given a lease's time to get its path back, from the first
    /// view that it missed, and then given up.
    fn may_follow(&self, life: &Life) -> bool {
        let lease_ms = u64::from(self.timings().lease_ms);
        self.vouching.behind.get(life).is_none_or(|since_ms| self.now_ms < since_ms + lease_ms)
    }

    /// Once it is complete on the disk: whatever ended the other before can be seen there now.
    pub(crate) fn follow_vouching(&mut self) {
        let published = self.published;
        for (life, work) in &mut self.vouching.works {
            if !work.is_looking && published >= work.number {
                work.is_looking = true;
                self.outputs.push_back(Output::LookFor { life: *life, serial: work.serial, view: work.view });
            }
        }
    }

    /// What the look found: nothing against the other, or something.
    pub(crate) fn handle_looked(&mut self, life: Life, serial: u32, is_free: bool) {
        let Some(work) = self.vouching.works.get(&life).copied().filter(|work| work.serial == serial) else { return };
        self.vouching.works.remove(&life);
        if is_free && work.view == self.known.body.view {
            self.outputs.push_back(Output::Tell { peer: life, message: Message::Grant { serial } });
        }
        self.begin_vouching(life);
    }
}
