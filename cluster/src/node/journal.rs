//! What: this node's last words on the disk.
//! Owns: the own journal ring: next sequence, entries that wait.
//! Invariants: one write in flight per device; a hung device loses words, never the node.
//! Does not: decide anything; no decision reads the journal.
//! Called by: the node.

use super::{DiskWork, Part};
use deadbolt_disk_format::{ClusterUuid, JournalEntry, Layout, Life, Place, UNIT_BYTES, ViewNumber, records::JOURNAL_TEXT_BYTES_MAX};
use deadbolt_qdisk_core::register::DiskOpKind;
use std::collections::VecDeque;

/// Entries that may wait for the disk; older ones are dropped.
const WAITING_MAX: usize = 64;

#[derive(Debug, Default)]
struct Lane {
    is_busy: bool,
    waiting: VecDeque<u64>,
}

#[derive(Debug)]
pub(super) struct Journal {
    me: Life,
    cluster: ClusterUuid,
    wall_offset_ms: u64,
    next: Option<u64>,
    unnumbered: VecDeque<(u64, ViewNumber, String)>,
    entries: VecDeque<JournalEntry>,
    lanes: Vec<Lane>,
    reads_pending: usize,
    highest: u64,
}

impl Journal {
    pub(super) fn new(me: Life, cluster: ClusterUuid, wall_offset_ms: u64) -> Self {
        Self {
            me,
            cluster,
            wall_offset_ms,
            next: None,
            unnumbered: VecDeque::new(),
            entries: VecDeque::new(),
            lanes: Vec::new(),
            reads_pending: 0,
            highest: 0,
        }
    }

    /// Reads the own ring, to go on behind it.
    pub(super) fn start(&mut self, layouts: &[Layout]) -> Vec<DiskWork> {
        self.lanes = layouts.iter().map(|_| Lane { is_busy: true, waiting: VecDeque::new() }).collect();
        self.reads_pending = layouts.len();
        let read = |layout: &Layout| DiskOpKind::Read {
            offset: layout.journal(self.me.slot, 0),
            bytes: usize::from(layout.journal_units) * UNIT_BYTES,
        };
        layouts.iter().enumerate().map(|(device, layout)| DiskWork { tag: Part::Journal.tag(0), device, kind: read(layout) }).collect()
    }

    pub(super) fn push(&mut self, now_ms: u64, view: ViewNumber, text: String) {
        self.unnumbered.push_back((now_ms, view, text));
        while self.unnumbered.len() > WAITING_MAX {
            self.unnumbered.pop_front();
        }
        self.number();
    }

    fn number(&mut self) {
        let Some(next) = self.next.as_mut() else { return };
        while let Some((now_ms, view, mut text)) = self.unnumbered.pop_front() {
            while text.len() > JOURNAL_TEXT_BYTES_MAX {
                text.pop();
            }
            let entry = JournalEntry {
                life: self.me,
                sequence: *next,
                view,
                wall_ms: self.wall_offset_ms.saturating_add(now_ms),
                boottime_ms: now_ms,
                text,
            };
            self.lanes.iter_mut().for_each(|lane| lane.waiting.push_back(*next));
            self.entries.push_back(entry);
            *next = next.saturating_add(1);
        }
        while self.entries.len() > WAITING_MAX {
            self.entries.pop_front();
        }
    }

    pub(super) fn handle_done(&mut self, device: usize, result: Result<&[u8], &()>, layouts: &[Layout]) {
        if let Some(lane) = self.lanes.get_mut(device) {
            lane.is_busy = false;
        }
        if self.next.is_some() {
            return;
        }
        if let (Ok(bytes), Some(layout)) = (result, layouts.get(device)) {
            for (index, unit) in (0..layout.journal_units).zip(bytes.chunks_exact(UNIT_BYTES)) {
                let place = Place { cluster: self.cluster, offset: layout.journal(self.me.slot, index), slot: self.me.slot };
                if let Ok(entry) = JournalEntry::decode(unit, &place) {
                    self.highest = self.highest.max(entry.sequence);
                }
            }
        }
        self.reads_pending = self.reads_pending.saturating_sub(1);
        if self.reads_pending == 0 {
            self.next = Some(self.highest.saturating_add(1));
            self.number();
        }
    }

    /// The next write per idle device.
    pub(super) fn poll_work(&mut self, layouts: &[Layout]) -> Vec<DiskWork> {
        let mut work = Vec::new();
        for (device, (lane, layout)) in self.lanes.iter_mut().zip(layouts).enumerate() {
            if lane.is_busy || self.next.is_none() {
                continue;
            }
            while let Some(sequence) = lane.waiting.pop_front() {
                let Some(entry) = self.entries.iter().find(|entry| entry.sequence == sequence) else { continue };
                let index = u16::try_from(sequence % u64::from(layout.journal_units.max(1))).unwrap_or(0);
                let place = Place { cluster: self.cluster, offset: layout.journal(self.me.slot, index), slot: self.me.slot };
                let kind = DiskOpKind::Write { offset: place.offset, data: entry.encode(&place).to_vec() };
                lane.is_busy = true;
                work.push(DiskWork { tag: Part::Journal.tag(sequence), device, kind });
                break;
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Incarnation, SlotIndex};

    #[test]
    fn words_on_the_disk_never_end_a_node() {
        let me = Life { slot: SlotIndex(1), boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) };
        let (layout, cluster) = (Layout::new(16 << 20, 512, 4).unwrap(), ClusterUuid([3; 16]));
        let mut journal = Journal::new(me, cluster, 0);
        assert_eq!(journal.start(&[layout]).len(), 1);
        let place = Place { cluster, offset: layout.journal(me.slot, 0), slot: me.slot };
        let last = JournalEntry { life: me, sequence: u64::MAX, view: ViewNumber(1), wall_ms: 0, boottime_ms: 0, text: String::new() };
        let ring = [last.encode(&place).to_vec(), vec![0xff; UNIT_BYTES]].concat();
        journal.handle_done(0, Ok(&ring), &[layout]);
        for _ in 0..3 {
            journal.push(1, ViewNumber(2), "words".into());
        }
        assert_eq!(journal.poll_work(&[layout]).len(), 1);
    }
}
