//! What: for which resources this node, as home, knows all there is to know, so that it may make somebody master of a free one.
//! Owns: the parts of that authority; how a view narrows it, how a hand-over moves it.
//! Invariants: it grows only by a hand-over of the present view, or when every member has answered and nobody is owed; a node that hands a
//!   part over is not home of it any more and has lost it in the step in which it learned the view.
//! Does not: know the resources' masters.
//! Called by: `service`.

use crate::name::Key;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// Most parts, and most conditions of one, that are remembered: beyond that a part is given up until the next whole recovery (chosen: more
/// than the view changes of a bad minute).
pub(super) const PARTS_MAX: usize = 16;

/// The home of a resource among these lives: the highest weight.
pub(super) fn home_among(members: &[Life], key: &Key) -> Option<Life> {
    match members {
        [alone] => Some(*alone),
        members => members.iter().copied().max_by_key(|life| (key.weight(life.slot), life.slot)),
    }
}

/// The resources whose home among `members` is `home`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Condition {
    pub(crate) members: Vec<Life>,
    pub(crate) home: Life,
}

impl Condition {
    fn holds(&self, key: &Key) -> bool {
        home_among(&self.members, key) == Some(self.home)
    }
}

/// The resources for which all conditions hold, oldest first.
pub(crate) type Part = Vec<Condition>;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(super) struct Authority(Vec<Part>);

fn with_last(mut part: Part, last: &Condition) -> Option<Part> {
    if part.last() != Some(last) {
        part.push(last.clone());
    }
    (part.len() <= PARTS_MAX).then_some(part)
}

impl Authority {
    /// Over everything whose home this is.
    pub(super) fn whole(members: &[Life], home: Life) -> Self {
        Self([[Condition { members: members.to_vec(), home }].to_vec()].to_vec())
    }

    pub(super) fn covers(&self, key: &Key) -> bool {
        self.0.iter().any(|part| part.iter().all(|condition| condition.holds(key)))
    }

    #[cfg(test)]
    fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// A view is learned: what has another home now is not covered any more.
    pub(super) fn narrow(&mut self, members: &[Life], me: Life) {
        let last = Condition { members: members.to_vec(), home: me };
        self.0 = core::mem::take(&mut self.0).into_iter().filter_map(|part| with_last(part, &last)).collect();
    }

    /// What a member that was not there when a part was narrowed last may now be home of.
    pub(super) fn parts_for(&self, newcomer: &Life) -> Vec<Part> {
        let is_new = |part: &&Part| part.last().is_some_and(|last| !last.members.contains(newcomer));
        self.0.iter().filter(is_new).cloned().collect()
    }

    /// Parts handed over in the present view.
    pub(super) fn take(&mut self, parts: Vec<Part>, members: &[Life], me: Life) {
        let last = Condition { members: members.to_vec(), home: me };
        let room = PARTS_MAX.saturating_sub(self.0.len());
        self.0.extend(parts.into_iter().filter_map(|part| with_last(part, &last)).take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::types::{BootId, Incarnation, SlotIndex};

    fn lives(slots: &[u16]) -> Vec<Life> {
        slots.iter().map(|slot| Life { slot: SlotIndex(*slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) }).collect()
    }

    fn keys() -> impl Iterator<Item = Key> {
        (0..200_u32).map(|number| Key::new(1, &number.to_le_bytes()).unwrap())
    }

    /// At every moment each resource is covered by one node at most, and by its home when nobody was lost.
    #[test]
    fn a_join_moves_the_share_and_a_removal_leaves_a_hole() {
        let (two, three) = (lives(&[0, 1]), lives(&[0, 1, 2]));
        let mut of: Vec<Authority> = two.iter().map(|life| Authority::whole(&two, *life)).collect();
        let handed: Vec<Vec<Part>> = of.iter().map(|authority| authority.parts_for(&three[2])).collect();
        for (authority, life) in of.iter_mut().zip(&two) {
            assert!(authority.parts_for(&two[1]).is_empty());
            authority.narrow(&three, *life);
        }
        let mut newcomer = Authority::default();
        for parts in handed {
            newcomer.take(parts, &three, three[2]);
        }
        of.push(newcomer);
        for key in keys() {
            let covering: Vec<Life> =
                of.iter().zip(&three).filter(|(authority, _)| authority.covers(&key)).map(|(_, life)| *life).collect();
            assert_eq!(covering, [home_among(&three, &key).unwrap()]);
        }
        // Slot 2 is lost with what it had been handed; the others are home of it again, without knowing it.
        of.pop();
        for (authority, life) in of.iter_mut().zip(&two) {
            authority.narrow(&two, *life);
        }
        for key in keys() {
            let covering = of.iter().filter(|authority| authority.covers(&key)).count();
            assert_eq!(covering, usize::from(home_among(&three, &key) != Some(three[2])));
        }
    }

    #[test]
    fn what_has_too_many_conditions_is_given_up() {
        let mut authority = Authority::whole(&lives(&[0, 1]), lives(&[0])[0]);
        for slot in 2..20 {
            authority.narrow(&lives(&[0, slot]), lives(&[0])[0]);
        }
        assert!(authority.is_none());
    }
}
