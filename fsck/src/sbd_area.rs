//! What: the checks of the SBD area against itself, the timings and the configured names.
//! Owns: SD findings.
//! Invariants: nothing that stock tools may write at any time is an error by itself.
//! Does not: judge a message; sbd does.
//! Called by: the check, last.

use crate::Checker;
use deadbolt_disk_format::fresh::sbd_header_of;
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdHeader, SbdNode, Tail, area_bytes, mailbox_offset, node_offset};
use deadbolt_disk_format::{ByteOffset, SLOTS_MAX, SlotIndex, Superblock, ViewBody};
use std::collections::BTreeMap;

impl Checker<'_> {
    pub(crate) fn check_sbd_area(&mut self, superblock: &Superblock, newest: Option<&ViewBody>) {
        self.reader.forget();
        self.check_header(superblock);
        let mut names: BTreeMap<SlotIndex, String> = BTreeMap::new();
        for slot in (0..SLOTS_MAX).map(SlotIndex) {
            if let Some(node) = self.check_node(superblock, slot) {
                names.insert(slot, node);
            }
            self.check_mailbox(superblock, slot);
        }
        self.check_names(superblock, &names, newest);
    }

    fn sector(&mut self, superblock: &Superblock, offset: u64, slot: Option<SlotIndex>) -> Option<Vec<u8>> {
        self.report.units += 1;
        let bytes = usize::try_from(superblock.sector_bytes).unwrap_or(512);
        match self.reader.read_within(ByteOffset(offset), bytes, area_bytes(superblock.sector_bytes)) {
            Ok(sector) => Some(sector),
            Err(error) => {
                self.report.add("IO-001", Some(ByteOffset(offset)), slot, error);
                None
            }
        }
    }

    fn check_header(&mut self, superblock: &Superblock) {
        let Some(sector) = self.sector(superblock, 0, None) else { return };
        let header = match SbdHeader::decode(&sector, superblock.sector_bytes) {
            Ok(header) => header,
            Err(error) => return self.report.add("SD-001", Some(ByteOffset(0)), None, error),
        };
        if header.uuid != superblock.device.0 {
            self.report.add("SD-008", Some(ByteOffset(0)), None, "stock tools read the header, ours the superblock");
        }
        let least = sbd_header_of(superblock).msgwait_s;
        if header.msgwait_s < least || header.msgwait_s / 2 < header.watchdog_s {
            let detail = format!("{} s with a watchdog of {} s; the times need {least} s", header.msgwait_s, header.watchdog_s);
            self.report.add("SD-002", Some(ByteOffset(0)), None, detail);
        }
    }

    fn check_node(&mut self, superblock: &Superblock, slot: SlotIndex) -> Option<String> {
        let offset = node_offset(slot, superblock.sector_bytes);
        let sector = self.sector(superblock, offset, Some(slot))?;
        match SbdNode::decode(&sector) {
            Ok(node) => node.is_in_use.then_some(node.name),
            Err(error) => {
                self.report.add("SD-003", Some(ByteOffset(offset)), Some(slot), error);
                None
            }
        }
    }

    fn check_mailbox(&mut self, superblock: &Superblock, slot: SlotIndex) {
        let offset = mailbox_offset(slot, superblock.sector_bytes);
        let Some(sector) = self.sector(superblock, offset, Some(slot)) else { return };
        let mailbox = match Mailbox::decode(&sector) {
            Ok(mailbox) => mailbox,
            Err(error) => return self.report.add("SD-007", Some(ByteOffset(offset)), Some(slot), error),
        };
        let place = Some(ByteOffset(offset));
        match (mailbox.command, mailbox.tail) {
            (Command::Unknown(byte), _) => self.report.add("SD-007", place, Some(slot), format!("command {byte}")),
            (_, Tail::Malformed) => self.report.add("SD-007", place, Some(slot), "bytes behind the sender that are no tail of ours"),
            (Command::Clear, Tail::Absent | Tail::Present(_)) => {}
            (command, tail) => {
                let meant = match tail {
                    Tail::Present(tail) => format!(", for boot {}", tail.victim_boot),
                    Tail::Absent | Tail::Malformed => String::new(),
                };
                self.report.add("SD-006", place, Some(slot), format!("{} from {:?}{meant}", command.word(), mailbox.sender));
            }
        }
    }

    fn check_names(&mut self, superblock: &Superblock, names: &BTreeMap<SlotIndex, String>, newest: Option<&ViewBody>) {
        let place = |slot| Some(ByteOffset(node_offset(slot, superblock.sector_bytes)));
        let mut seen: BTreeMap<String, SlotIndex> = BTreeMap::new();
        for (slot, name) in names {
            if let Some(first) = seen.insert(name.to_ascii_lowercase(), *slot) {
                self.report.add("SD-004", place(*slot), Some(*slot), format!("{name:?} stands in slots {first} and {slot}"));
            }
        }
        let Some(body) = newest else { return };
        for node in &body.configuration.nodes {
            match names.get(&node.slot) {
                Some(name) if name.eq_ignore_ascii_case(&node.name) => {}
                Some(name) => {
                    let detail = format!("{name:?}, configured is {:?}", node.name);
                    self.report.add("SD-005", place(node.slot), Some(node.slot), detail);
                }
                None => self.report.add("SD-009", place(node.slot), Some(node.slot), format!("{:?}", node.name)),
            }
        }
    }
}
