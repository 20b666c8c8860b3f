//! What: the look at mailbox and vote table that comes before a vouch is granted.
//! Owns: the reads of each look, and what they found.
//! Invariants: nothing was found only when a majority of devices showed both, all of it readable; whatever was found on one device counts.
//! Does not: decide for whom to vouch.
//! Called by: the node.

use super::{DiskWork, Part};
use deadbolt_disk_format::sbd::{Command, Mailbox, Tail, mailbox_offset};
use deadbolt_disk_format::{Ballot, ByteOffset, ClusterUuid, Layout, Life, Place, SlotIndex, UNIT_BYTES, ViewNumber};
use deadbolt_qdisk_core::register::DiskOpKind;
use std::collections::BTreeMap;

/// Of a look's tag: the device in the low bits, then which of the two reads.
const DEVICE_BITS: u32 = 8;
const MAILBOX: u64 = 1 << DEVICE_BITS;
const LOOK_SHIFT: u32 = DEVICE_BITS + 1;

#[derive(Clone, Copy, Debug)]
struct Look {
    life: Life,
    serial: u32,
    view: ViewNumber,
    /// A bit per device, where the read was good.
    votes: u64,
    mailboxes: u64,
    has_found: bool,
    /// Reads on their way.
    pending: usize,
}

/// The looks on their way.
#[derive(Debug, Default)]
pub(super) struct Looks {
    last: u64,
    looks: BTreeMap<u64, Look>,
}

impl Looks {
    /// The reads of a look.
    pub(super) fn begin(&mut self, (life, serial): (Life, u32), view: ViewNumber, layouts: &[Layout]) -> Vec<DiskWork> {
        self.last += 1;
        // One that hangs is of no use to anybody any more.
        self.looks.retain(|_, look| look.life != life);
        let mut work = Vec::new();
        for (device, layout) in layouts.iter().enumerate() {
            let tag = (self.last << LOOK_SHIFT) | u64::try_from(device).unwrap_or(u64::from(u8::MAX));
            let votes = DiskOpKind::Read { offset: layout.votes, bytes: usize::try_from(layout.votes_bytes()).unwrap_or(0) };
            let offset = ByteOffset(mailbox_offset(life.slot, layout.sector_bytes));
            let mailbox = DiskOpKind::Read { offset, bytes: usize::try_from(layout.sector_bytes).unwrap_or(0) };
            work.push(DiskWork { tag: Part::Look.tag(tag), device, kind: votes });
            work.push(DiskWork { tag: Part::Look.tag(tag | MAILBOX), device, kind: mailbox });
        }
        let look = Look { life, serial, view, votes: 0, mailboxes: 0, has_found: false, pending: work.len() };
        self.looks.insert(self.last, look);
        work
    }

    /// Takes an answer; says what the look found once it has ended.
    pub(super) fn handle_done(
        &mut self,
        tag: u64,
        (device, layouts): (usize, &[Layout]),
        cluster: ClusterUuid,
        result: Result<&[u8], &()>,
    ) -> Option<(Life, u32, bool)> {
        let number = tag >> LOOK_SHIFT;
        let look = self.looks.get_mut(&number)?;
        let layout = layouts.get(device)?;
        let bit = 1 << device;
        look.pending = look.pending.saturating_sub(1);
        match result {
            Ok(bytes) if tag & MAILBOX == 0 => {
                look.votes |= bit;
                look.has_found |= has_later_ballot(bytes, layout, cluster, look.view);
            }
            Ok(bytes) => {
                look.mailboxes |= bit;
                look.has_found |= may_be_pill(bytes, &look.life);
            }
            Err(()) => {}
        }
        let good = usize::try_from((look.votes & look.mailboxes).count_ones()).unwrap_or(0);
        let is_majority = good * 2 > layouts.len();
        if !look.has_found && !is_majority && look.pending > 0 {
            return None;
        }
        let look = self.looks.remove(&number)?;
        Some((look.life, look.serial, is_majority && !look.has_found))
    }
}

/// A unit that cannot be read is an unknown promise.
fn has_later_ballot(bytes: &[u8], layout: &Layout, cluster: ClusterUuid, view: ViewNumber) -> bool {
    (0..layout.slots).map(SlotIndex).flat_map(|slot| [(slot, 0), (slot, 1)]).any(|(slot, index)| {
        let offset = layout.vote(slot, index);
        let from = usize::try_from(offset.0 - layout.votes.0).unwrap_or(usize::MAX);
        let unit = bytes.get(from..from.saturating_add(UNIT_BYTES)).unwrap_or_default();
        Ballot::decode(unit, &Place { cluster, offset, slot }).map_or(true, |ballot| ballot.view > view)
    })
}

/// Whether it is genuine is for the other's sbd to say; one for another boot was not meant for this life.
fn may_be_pill(sector: &[u8], life: &Life) -> bool {
    let Ok(mailbox) = Mailbox::decode(sector) else { return true };
    let is_for_other_boot = matches!(&mailbox.tail, Tail::Present(tail) if tail.victim_boot != life.boot);
    mailbox.command.byte() != Command::Clear.byte() && !is_for_other_boot
}
