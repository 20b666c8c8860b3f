//! What: judgement of the node's own sector in the SBD area, by which stock tools find its mailbox.
//! Owns: when that sector is written anew, and when people are told.
//! Invariants: a sector in which another name stands is never written; nor is any sector twice within the gap.
//! Does not: decode bytes, or let a name weigh anything in a cycle.
//! Called by: the lifeline machine.

use alloc::string::String;

/// What a stock tool finds in the node's own sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameSeen {
    /// It was not read in this cycle.
    NotRead,
    /// This node's name.
    Own,
    /// Not in use: somebody made the area anew.
    Empty,
    /// Bytes that are no node sector.
    Damaged,
    /// Another name: somebody gave the slot away.
    Other {
        /// Which.
        name: String,
    },
}

/// Remembers what was said and done about one device's sector.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameWatch {
    said: Option<NameSeen>,
    acted_ms: Option<u64>,
    is_due: bool,
}

impl NameWatch {
    /// Takes in one more read; answers what people must be told.
    pub(crate) fn handle_read(&mut self, now_ms: u64, gap_ms: u64, found: NameSeen) -> Option<NameSeen> {
        let is_free = self.acted_ms.is_none_or(|acted_ms| now_ms >= acted_ms + gap_ms);
        self.is_due = is_free && matches!(found, NameSeen::Empty | NameSeen::Damaged);
        match found {
            NameSeen::Own => self.said = None,
            NameSeen::Empty | NameSeen::Damaged | NameSeen::Other { .. } if is_free && self.said.as_ref() != Some(&found) => {
                self.acted_ms = Some(now_ms);
                self.said = Some(found.clone());
                return Some(found);
            }
            NameSeen::NotRead | NameSeen::Empty | NameSeen::Damaged | NameSeen::Other { .. } => {}
        }
        None
    }

    /// The last read asks for a rewrite.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// The rewrite is on its way.
    pub(crate) fn handle_rewriting(&mut self, now_ms: u64) {
        self.is_due = false;
        self.acted_ms = Some(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_rewritten_unless_it_is_taken_and_told_of_once() {
        use NameSeen::{Damaged, Empty, NotRead, Own};
        let other = |name: &str| NameSeen::Other { name: name.into() };
        // time, found -> told, rewritten; the gap is 100
        let table = [
            (0, Own, false, false),
            (10, Empty, true, true),
            (20, Empty, false, false), // the rewrite was lost, or is not yet seen
            (110, Empty, false, true), // again, quietly
            (120, Own, false, false),
            (130, Empty, false, false),
            (210, NotRead, false, false),
            (220, Empty, true, true), // it was mended in between: this is news
            (330, Damaged, true, true),
            (440, other("a"), true, false),
            (550, other("a"), false, false),
            (560, other("b"), true, false),
            (570, other("a"), false, false),
            (660, other("a"), true, false),
            (670, Own, false, false),
        ];
        let mut watch = NameWatch::default();
        for (now_ms, found, is_told, is_rewritten) in table {
            let told = watch.handle_read(now_ms, 100, found.clone());
            assert_eq!((told.is_some(), watch.is_due()), (is_told, is_rewritten), "at {now_ms}");
            assert!(told.is_none_or(|told| told == found));
            if watch.is_due() {
                watch.handle_rewriting(now_ms);
            }
        }
    }
}
