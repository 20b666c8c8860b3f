//! What: what will happen, in the order of true time.
//! Owns: the heap of events; what was asked for first comes first among equals.
//! Invariants: time never falls.
//! Does not: know what an event means.
//! Called by: the world.

use std::{cmp::Ordering, collections::BinaryHeap};

#[derive(Debug)]
struct Entry<E> {
    at_us: u64,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest first.
        (other.at_us, other.order).cmp(&(self.at_us, self.order))
    }
}

/// Events by time.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    order: u64,
    now_us: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), order: 0, now_us: 0 }
    }
}

impl<E> Queue<E> {
    /// True time, microseconds since the run began.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Lets an event happen; one that is late happens now.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.order += 1;
        self.heap.push(Entry { at_us: at_us.max(self.now_us), order: self.order, event });
    }

    /// Lets an event happen after a span.
    pub fn after(&mut self, span_us: u64, event: E) {
        self.at(self.now_us.saturating_add(span_us), event);
    }

    /// The next event, if it is not after `end_us`; time goes there.
    pub fn next_until(&mut self, end_us: u64) -> Option<E> {
        if self.heap.peek().is_none_or(|entry| entry.at_us > end_us) {
            self.now_us = self.now_us.max(end_us);
            return None;
        }
        let entry = self.heap.pop()?;
        self.now_us = entry.at_us;
        Some(entry.event)
    }
}
