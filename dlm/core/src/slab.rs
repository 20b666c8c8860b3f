//! What: numbered entries in pages: no entry ever moves, and a number is a short way to find it.
//! Owns: which numbers are in use.
//! Invariants: a number stands for one entry from `insert` to `remove`; 0 is never given; iteration goes by number.
//! Does not: hash, or know what the entries are.
//! Called by: `service`.

use alloc::vec::Vec;

/// Entries of a page (chosen: a page of the usual entries is some tens of KiB, so that growth never stops the service).
const PAGE: usize = 1024;

/// A vacant entry names the next one; 0 ends the list.
#[derive(Debug)]
enum Slot<T> {
    Vacant(u32),
    Used(T),
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    pages: Vec<Vec<Slot<T>>>,
    vacant: u32,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), vacant: 0, used: 0 }
    }
}

fn place(number: u32) -> Option<(usize, usize)> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    Some((index / PAGE, index % PAGE))
}

impl<T> Slab<T> {
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn slot(&self, number: u32) -> Option<&Slot<T>> {
        let (page, index) = place(number)?;
        self.pages.get(page)?.get(index)
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<T>> {
        let (page, index) = place(number)?;
        self.pages.get_mut(page)?.get_mut(index)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        match self.slot(number)? {
            Slot::Used(entry) => Some(entry),
            Slot::Vacant(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.slot_mut(number)? {
            Slot::Used(entry) => Some(entry),
            Slot::Vacant(_) => None,
        }
    }

    /// Keeps the entry and gives its number; 0 when there is no number left. Inline: entries are made where they stay.
    #[inline]
    pub(crate) fn insert(&mut self, entry: T) -> u32 {
        let vacant = self.vacant;
        if let Some(slot) = self.slot_mut(vacant) {
            let next = match slot {
                Slot::Vacant(next) => *next,
                Slot::Used(_) => 0,
            };
            *slot = Slot::Used(entry);
            self.vacant = next;
            self.used += 1;
            return vacant;
        }
        let count = match self.pages.last() {
            Some(page) => (self.pages.len() - 1) * PAGE + page.len(),
            None => 0,
        };
        let Ok(number) = u32::try_from(count + 1) else { return 0 };
        if count.is_multiple_of(PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        if let Some(page) = self.pages.last_mut() {
            page.push(Slot::Used(entry));
            self.used += 1;
        }
        number
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let next = self.vacant;
        let slot = self.slot_mut(number)?;
        if matches!(slot, Slot::Vacant(_)) {
            return None;
        }
        let Slot::Used(entry) = core::mem::replace(slot, Slot::Vacant(next)) else { return None };
        self.vacant = number;
        self.used -= 1;
        Some(entry)
    }

    /// Numbers in use among the `count` from `first` on, and where to go on; 0: that was the end.
    pub(crate) fn slice(&self, first: u32, count: u32) -> (Vec<u32>, u32) {
        let last = match self.pages.last() {
            Some(page) => (self.pages.len() - 1) * PAGE + page.len(),
            None => 0,
        };
        let end = first.saturating_add(count);
        let numbers = (first..end).filter(|number| self.get(*number).is_some()).collect();
        (numbers, if usize::try_from(end).is_ok_and(|end| end <= last) { end } else { 0 })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = self.pages.iter().flatten();
        (1..).zip(slots).filter_map(|(number, slot)| match slot {
            Slot::Used(entry) => Some((number, entry)),
            Slot::Vacant(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_number_stands_for_one_entry_and_is_used_again() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..3000_u32).map(|value| slab.insert(value)).collect();
        assert_eq!(numbers, (1..=3000).collect::<Vec<u32>>());
        assert_eq!(slab.remove(2000), Some(1999));
        assert_eq!(slab.remove(2000), None);
        assert_eq!(slab.get(2000), None);
        assert_eq!((slab.get(0), slab.get(3001), slab.get(u32::MAX)), (None, None, None));
        assert_eq!(slab.len(), 2999);
        assert_eq!(slab.insert(70_000), 2000);
        assert_eq!(slab.insert(8), 3001);
        assert_eq!(slab.slice(1, 3), (vec![1, 2, 3], 4));
        assert_eq!(slab.slice(3000, 3), (vec![3000, 3001], 0));
        assert_eq!(slab.iter().filter(|(_, value)| **value == 70_000).map(|(number, _)| number).collect::<Vec<u32>>(), [2000]);
    }
}
