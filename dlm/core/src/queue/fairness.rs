//! What: nobody is passed for ever: after enough others have gone first, the first of a queue has precedence.
//! Owns: how often the first of each queue was passed.
//! Invariants: who stands in the way of others never has to wait for them here, so that precedence makes no deadlock; new NL locks with
//!   EXPEDITE and conversions that give up or keep what is held are never held up.
//! Does not: judge compatibility.
//! Called by: `queue`.

use super::{Entry, Line, Place, Resource, blocks};
use crate::mode::Flags;

/// So many may pass the first of a queue; then it has precedence (chosen: rare enough to leave the usual order alone).
pub(super) const PASSES_MAX: u8 = 64;

/// How often the first of a queue was passed since it became the first, or the last one before it had its turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passes {
    converting: u8,
    waiting: u8,
}

fn is_owed(passes: u8, queue: &Line) -> bool {
    passes >= PASSES_MAX && !queue.is_empty()
}

impl Resource {
    /// The first that waits may go before conversions that do not stand in its way.
    pub(super) fn is_waiting_owed(&self) -> bool {
        is_owed(self.passes.waiting, &self.waiting)
    }

    /// The first of a queue that this one, though compatible, must let go before it.
    pub(super) fn yields_to(&self, entry: &Entry, place: Place) -> Option<&Entry> {
        let is_conversion = entry.granted.is_some();
        let is_next = |is_its_queue: bool| is_its_queue && place == Place::First;
        let first = if is_owed(self.passes.converting, &self.converting) {
            if is_next(is_conversion) { None } else { self.converting.after(None) }
        } else if self.is_waiting_owed() {
            if is_next(!is_conversion) { None } else { self.waiting.after(None) }
        } else {
            None
        };
        let (_, first) = first?;
        let gains_nothing = entry.granted.zip(entry.wanted).is_some_and(|(granted, wanted)| granted.is_down(wanted));
        let is_in_the_way = first.wanted.is_some_and(|wanted| blocks(entry, wanted)) || self.converting.wants_beside(entry.granted);
        (!gains_nothing && !is_in_the_way).then_some(first)
    }

    /// Somebody got what he wanted before those that stand in the queues; he is on none of them.
    pub(super) fn count_passed(&mut self) {
        self.passes.converting = self.passes.converting.saturating_add(1);
        self.passes.waiting = self.passes.waiting.saturating_add(1);
    }

    /// The first of a queue is granted in its turn. Who was put at the front had no turn.
    pub(super) fn count_turn(&mut self, is_converting: bool, flags: Flags) {
        self.count_passed();
        if !flags.has(Flags::HEADQUE) {
            *(if is_converting { &mut self.passes.converting } else { &mut self.passes.waiting }) = 0;
        }
    }

    /// May it stand at the front of this queue, as it wants?
    pub(super) fn may_lead(&self, is_converting: bool, flags: Flags) -> bool {
        let is_owed =
            if is_converting { is_owed(self.passes.converting, &self.converting) } else { is_owed(self.passes.waiting, &self.waiting) };
        flags.has(Flags::HEADQUE) && !is_owed
    }

    /// Puts a lock on a queue, at its front or at its end.
    pub(super) fn stand(&mut self, is_converting: bool, entry: Entry, is_leading: bool) {
        let (queue, passes) =
            if is_converting { (&mut self.converting, &mut self.passes.converting) } else { (&mut self.waiting, &mut self.passes.waiting) };
        if queue.is_empty() {
            *passes = 0;
        } else if is_leading {
            *passes = passes.saturating_add(1);
        }
        if is_leading {
            queue.push_front(entry);
        } else {
            queue.push(entry);
        }
    }
}
