//! What: the lives that this node has to do with, as small numbers.
//! Owns: the table of lives.
//! Invariants: a number stands for one life for ever; this node's own is [`ME`].
//! Does not: know who is a member.
//! Called by: `queue`, `service`.

use alloc::vec::Vec;
use core::num::NonZeroU16;
use deadbolt_disk_format::types::Life;

/// A life in few bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PeerId(NonZeroU16);

/// This node.
pub(crate) const ME: PeerId = PeerId(NonZeroU16::MIN);

/// Lives by number.
#[derive(Debug)]
pub(crate) struct Peers(Vec<Life>);

impl Peers {
    pub(crate) fn new(me: Life) -> Self {
        Self(alloc::vec![me])
    }

    /// The number of a life, new if need be.
    pub(crate) fn id(&mut self, life: Life) -> PeerId {
        if let Some(known) = self.find(&life) {
            return known;
        }
        self.0.push(life);
        // Whoever meets 65,535 lives gets one number for all after them; a node restarts before that.
        PeerId(NonZeroU16::new(u16::try_from(self.0.len()).unwrap_or(u16::MAX)).unwrap_or(NonZeroU16::MAX))
    }

    pub(crate) fn find(&self, life: &Life) -> Option<PeerId> {
        // The newest are the present ones.
        let index = self.0.iter().rposition(|known| known == life)?;
        NonZeroU16::new(u16::try_from(index + 1).ok()?).map(PeerId)
    }

    pub(crate) fn life(&self, id: PeerId) -> Option<Life> {
        self.0.get(usize::from(id.0.get()) - 1).copied()
    }
}

#[cfg(test)]
impl PeerId {
    pub(crate) fn of(number: u16) -> Self {
        Self(NonZeroU16::new(number).unwrap())
    }
}
