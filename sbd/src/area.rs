//! What: the SBD area of one device, read and written by tools.
//! Owns: the opened device and the sector size that its area is laid out in.
//! Invariants: every message is read back and compared; a header that is not plausible is never trusted for a fence.
//! Does not: wait or print.
//! Called by: `stock`, `fence`, the fence agent.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadbolt_disk::{
    Access, BackendChoice, ByteOffset, Completion, Device, DeviceKind, Engine, EngineError, IoError, OpenError, Operation, RawDevice,
};
use deadbolt_disk_format::sbd::{Command, Mailbox, SBD_MINOR, SbdError, SbdHeader, SbdNode, Tail, area_bytes, mailbox_offset, node_offset};
use deadbolt_disk_format::{
    NAME_BYTES_MAX, SLOTS_MAX, SlotIndex, Superblock, SuperblockChoice, UNIT_BYTES, choose_superblock, read_superblocks,
};

use deadbolt_sbd_core::OwnPlace;

use crate::placement::Placement;

/// An SBD area. Its operations go through an engine: a device that hangs keeps neither its caller nor the end of the process.
pub(crate) struct Area {
    engine: Engine,
    answers: Mutex<(u64, Receiver<Completion>)>,
    limit: Duration,
    sector_bytes: u32,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AreaError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{0}; make the area with `sbd create`")]
    Header(#[from] SbdError),
    #[error("the header says {slots} slots; {SLOTS_MAX} is the only number ever written: it is damaged")]
    Slots { slots: u8 },
    #[error("{name:?} has no slot here; give it one with `allocate`")]
    NoSlot { name: String },
    #[error("all {SLOTS_MAX} slots are taken")]
    Full,
    #[error("the message that was read back is not the one that was written: it was overwritten, or the device loses writes")]
    ReadBack,
    #[error(
        "this device belongs to the Deadbolt cluster {cluster:?}: creating the area anew would take its nodes' names; use `deadbolt format`"
    )]
    Ours { cluster: String },
    #[error("no answer within {waited_s} s")]
    NoAnswer { waited_s: u64 },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One slot in use, or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) index: SlotIndex,
    pub(crate) name: String,
    pub(crate) mailbox: Mailbox,
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(UNIT_BYTES)
}

/// Names are equal without regard to case in their first 63 bytes (compatibility).
pub(crate) fn is_same_name(one: &str, two: &str) -> bool {
    let cut = |name: &str| name.as_bytes().get(..NAME_BYTES_MAX).unwrap_or(name.as_bytes()).to_ascii_lowercase();
    cut(one) == cut(two)
}

impl Area {
    pub(crate) fn open(path: &Path, access: Access, limit: Duration) -> Result<Self, AreaError> {
        Self::over(Arc::new(Device::open_within(path, access, limit)?), limit)
    }

    pub(crate) fn over(device: Arc<dyn RawDevice>, limit: Duration) -> Result<Self, AreaError> {
        let (sender, answers) = channel();
        // Who waits no longer needs no answer.
        let sink = move |completion| drop(sender.send(completion));
        let sector_bytes = device.geometry().logical_sector_bytes;
        let is_file = device.geometry().kind == DeviceKind::File;
        let engine = Engine::start(device, BackendChoice::Auto, Box::new(sink))?;
        let mut area = Self { engine, answers: Mutex::new((0, answers)), limit, sector_bytes };
        // A file has no sector size of its own: the area's header says in which it was made.
        if is_file && sector_bytes == 512 && area.header_of(4096).is_ok() {
            area.sector_bytes = 4096;
        }
        Ok(area)
    }

    /// One operation and its answer; answers that came too late are of no use to anybody.
    fn ask(&self, operation: Operation) -> Result<Arc<[u8]>, AreaError> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.0 += 1;
        let tag = answers.0;
        self.engine.submit(tag, operation);
        let end = Instant::now() + self.limit;
        loop {
            let Ok(completion) = answers.1.recv_timeout(end.saturating_duration_since(Instant::now())) else {
                return Err(AreaError::NoAnswer { waited_s: self.limit.as_secs() });
            };
            if completion.tag == tag {
                return Ok(completion.result?);
            }
        }
    }

    /// A node's place in this area, which is a stock one or that of a device of ours.
    pub(crate) fn placement(&self, slot: SlotIndex, header: &SbdHeader) -> Placement {
        match self.superblock() {
            Some(superblock) if superblock.layout.has_slot(slot) => Placement::ours(superblock.cluster, superblock.layout, slot),
            _ => Placement::stock(header.uuid, self.sector_bytes, slot),
        }
    }

    /// A node's beat and the bytes of its mailbox; the beat was read together with the mailbox, or after it.
    pub(crate) fn read_place(&self, placement: &Placement) -> Result<(OwnPlace, Vec<u8>), AreaError> {
        let ((beat_offset, beat_bytes), (offset, bytes)) = (placement.beat(), placement.mailbox());
        if !placement.has_own_name() {
            // The beat stands in the sector right before the mailbox: one read shows both.
            let both = self.read(beat_offset.0, u64::try_from(beat_bytes + bytes).unwrap_or(0))?;
            let (beat, mailbox) = both.split_at(beat_bytes);
            return Ok((placement.decode(beat).0, mailbox.to_vec()));
        }
        let mailbox = self.read(offset.0, u64::try_from(bytes).unwrap_or(0))?.to_vec();
        let beat = self.read(beat_offset.0, u64::try_from(beat_bytes).unwrap_or(0))?;
        Ok((placement.decode(&beat).0, mailbox))
    }

    /// Writes a mailbox and reads it back.
    pub(crate) fn write_mailbox(&self, placement: &Placement, sector: &[u8]) -> Result<(), AreaError> {
        let (offset, bytes) = placement.mailbox();
        self.write(offset.0, sector)?;
        if self.read(offset.0, u64::try_from(bytes).unwrap_or(0))?[..] == *sector { Ok(()) } else { Err(AreaError::ReadBack) }
    }

    pub(crate) fn into_device(self) -> Arc<dyn RawDevice> {
        Arc::clone(self.engine.device())
    }

    fn superblock(&self) -> Option<Superblock> {
        let device_bytes = self.engine.device().geometry().size_bytes;
        let copies = read_superblocks(device_bytes, |offset| self.read(offset.0, 4096).ok().map(|buffer| buffer.to_vec()));
        match choose_superblock(&copies) {
            SuperblockChoice::Agreed { superblock, .. } | SuperblockChoice::Alone { superblock, .. } => Some(superblock),
            _ => None,
        }
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Arc<[u8]>, AreaError> {
        self.ask(Operation::Read { offset: ByteOffset(offset), bytes: size(bytes) })
    }

    fn write(&self, offset: u64, sector: &[u8]) -> Result<(), AreaError> {
        self.ask(Operation::Write { offset: ByteOffset(offset), data: sector.to_vec() }).map(drop)
    }

    fn header_of(&self, sector_bytes: u32) -> Result<SbdHeader, AreaError> {
        let sector = self.read(0, u64::from(self.sector_bytes))?;
        Ok(SbdHeader::decode(&sector, sector_bytes)?)
    }

    pub(crate) fn header(&self) -> Result<SbdHeader, AreaError> {
        self.header_of(self.sector_bytes)
    }

    /// A header fit to be trusted for a fence or an allocation.
    pub(crate) fn plausible_header(&self) -> Result<SbdHeader, AreaError> {
        let header = self.header()?;
        if u16::from(header.slots) != SLOTS_MAX {
            return Err(AreaError::Slots { slots: header.slots });
        }
        Ok(header)
    }

    /// Writes a new area. `said` is called before anything is written. No header stands while the slots are written: a half-made
    /// area would otherwise show what stood there before as names and messages.
    pub(crate) fn create(&self, times: [u32; 4], uuid: [u8; 16], said: impl FnOnce()) -> Result<(), AreaError> {
        if let Some(superblock) = self.superblock() {
            return Err(AreaError::Ours { cluster: superblock.name });
        }
        said();
        let [watchdog_s, allocate_s, loop_s, msgwait_s] = times;
        let sector_bytes = self.sector_bytes;
        let slots = u8::try_from(SLOTS_MAX).unwrap_or(u8::MAX);
        let header = SbdHeader { slots, sector_bytes, watchdog_s, allocate_s, loop_s, msgwait_s, minor: SBD_MINOR, uuid };
        self.write(0, &vec![0; size(u64::from(sector_bytes))])?;
        for index in 0..SLOTS_MAX {
            let slot = SlotIndex(index);
            self.write(node_offset(slot, sector_bytes), &SbdNode::default().encode(sector_bytes))?;
            self.write(mailbox_offset(slot, sector_bytes), &Mailbox::default().encode(sector_bytes))?;
        }
        self.write(0, &header.encode())
    }

    /// The slots in use.
    pub(crate) fn slots(&self) -> Result<Vec<Slot>, AreaError> {
        let header = self.plausible_header()?;
        let area = self.read(0, area_bytes(self.sector_bytes))?;
        let sector = |offset: u64| area.get(size(offset)..size(offset) + size(u64::from(self.sector_bytes))).unwrap_or_default();
        let mut slots = Vec::new();
        for index in 0..u16::from(header.slots) {
            let index = SlotIndex(index);
            let node = SbdNode::decode(sector(node_offset(index, self.sector_bytes))).unwrap_or_default();
            if node.is_in_use {
                let mailbox = Mailbox::decode(sector(mailbox_offset(index, self.sector_bytes)))?;
                slots.push(Slot { index, name: node.name, mailbox });
            }
        }
        Ok(slots)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Option<SlotIndex>, AreaError> {
        self.plausible_header()?;
        Ok(self.slots()?.into_iter().find(|slot| is_same_name(&slot.name, name)).map(|slot| slot.index))
    }

    /// Writes a name into a slot.
    pub(crate) fn write_name(&self, slot: SlotIndex, name: &str) -> Result<(), AreaError> {
        let node = SbdNode { is_in_use: true, name: name.to_owned() };
        self.write(node_offset(slot, self.sector_bytes), &node.encode(self.sector_bytes))
    }

    /// Writes other times into the header, and reads them back.
    pub(crate) fn write_times(&self, [watchdog_s, allocate_s, loop_s, msgwait_s]: [u32; 4]) -> Result<(), AreaError> {
        let header = SbdHeader { watchdog_s, allocate_s, loop_s, msgwait_s, ..self.plausible_header()? };
        self.write(0, &header.encode())?;
        if self.header()? == header { Ok(()) } else { Err(AreaError::ReadBack) }
    }

    /// Frees a slot; its mailbox first, so that the next owner finds no message in it.
    pub(crate) fn free(&self, slot: SlotIndex) -> Result<(), AreaError> {
        self.write(mailbox_offset(slot, self.sector_bytes), &Mailbox::default().encode(self.sector_bytes))?;
        self.write(node_offset(slot, self.sector_bytes), &SbdNode::default().encode(self.sector_bytes))
    }

    /// Writes a message and reads it back.
    pub(crate) fn send(&self, name: &str, command: Command, sender: &str) -> Result<SbdHeader, AreaError> {
        let header = self.plausible_header()?;
        let slot = self.find(name)?.ok_or_else(|| AreaError::NoSlot { name: name.to_owned() })?;
        let offset = mailbox_offset(slot, self.sector_bytes);
        let sector = Mailbox { command, sender: sender.to_owned(), tail: Tail::Absent }.encode(self.sector_bytes);
        self.write(offset, &sector)?;
        if self.read(offset, u64::from(self.sector_bytes))?[..] == sector[..] { Ok(header) } else { Err(AreaError::ReadBack) }
    }

    /// The command that stands in a node's mailbox.
    pub(crate) fn command_of(&self, name: &str) -> Result<Command, AreaError> {
        let slots = self.slots()?;
        let slot =
            slots.into_iter().find(|slot| is_same_name(&slot.name, name)).ok_or_else(|| AreaError::NoSlot { name: name.to_owned() })?;
        Ok(slot.mailbox.command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk::MemoryDevice;
    use deadbolt_tests::crash::{Recorder, each_image};

    fn over(device: Arc<dyn RawDevice>) -> Area {
        Area::over(device, crate::fence::ANSWER).unwrap()
    }

    const TIMES: [u32; 4] = [5, 0, 1, 10];

    /// A device with room for the area and no more.
    fn device_of(image: &[u8], sector_bytes: u32) -> MemoryDevice {
        let device = MemoryDevice::new(size(area_bytes(sector_bytes)), sector_bytes);
        device.overwrite(ByteOffset(0), image);
        device
    }

    #[test]
    fn an_area_cut_while_it_is_made_is_refused_or_whole() {
        for sector_bytes in [512, 4096] {
            // Over another area with a node and a pill for it, and over bytes that look like names.
            let old = device_of(&[], sector_bytes);
            let area = over(Arc::new(old.second_path()));
            area.create(TIMES, [1; 16], || ()).unwrap();
            area.write_name(SlotIndex(0), "alpha").unwrap();
            area.send("alpha", Command::Reset, "beta").unwrap();
            for before in [old.contents(), [1, b'x', 0, 2].repeat(old.contents().len() / 4)] {
                let recorder = Recorder::new(device_of(&before, sector_bytes));
                let writes = recorder.writes();
                over(Arc::new(recorder)).create(TIMES, [2; 16], || ()).unwrap();
                let writes = writes.lock().unwrap();
                let judge = |image: &[u8], moment: &deadbolt_tests::crash::Moment| {
                    let area = over(Arc::new(device_of(image, sector_bytes)));
                    match area.header() {
                        Ok(header) if moment.complete == 0 => {
                            assert_eq!((header.uuid, area.slots().unwrap().len()), ([1; 16], 1), "{moment}")
                        }
                        Ok(header) => {
                            assert_eq!((header.uuid, moment.complete), ([2; 16], writes.len()), "{moment}");
                            assert!(area.slots().unwrap().is_empty(), "{moment}");
                        }
                        Err(error) => {
                            assert!(error.to_string().contains("sbd create"), "{moment}: {error}");
                            assert!(area.slots().is_err() && area.find("alpha").is_err() && area.plausible_header().is_err(), "{moment}");
                            assert!(moment.complete < writes.len(), "{moment}");
                        }
                    }
                };
                let images = each_image(&before, &writes, judge);
                assert!(images > 511, "{images}");
            }
        }
    }

    #[test]
    fn a_slot_is_claimed_and_a_message_sent_with_one_sector() {
        let recorder = Recorder::new(device_of(&[], 512));
        let writes = recorder.writes();
        let area = over(Arc::new(recorder));
        area.create(TIMES, [1; 16], || ()).unwrap();
        let made = writes.lock().unwrap().len();
        area.write_name(SlotIndex(0), "alpha").unwrap();
        area.send("alpha", Command::Test, "beta").unwrap();
        let writes = writes.lock().unwrap();
        let claimed: Vec<(u64, usize)> = writes[made..].iter().map(|write| (write.offset.0, write.data.len())).collect();
        assert_eq!(claimed, [(512, 512), (1024, 512)]);
    }

    #[test]
    fn names_are_compared_as_stock_does() {
        let long = "n".repeat(63);
        for (one, two, same) in
            [("a", "A", true), ("a", "b", false), (&format!("{long}x") as &str, &format!("{long}y") as &str, true), ("", "a", false)]
        {
            assert_eq!(is_same_name(one, two), same, "{one} {two}");
        }
    }
}
