//! What: the work of a fence on one device, by a thread of its own: look, write the message, look again and again.
//! Owns: the order: a place is read before the message is written, and judged only by reads issued after that.
//! Invariants: a device that hangs holds up nobody; a message that was lost is written again, unless another boot lives there;
//! one of somebody else that ends the same node is as good.
//! Does not: judge.
//! Called by: the fence.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use deadbolt_disk::{Access, now_ns};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdHeader, Tail};
use deadbolt_disk_format::{BootId, SlotIndex};
use deadbolt_sbd_core::{BeatVersion, OwnPlace, VictimRead};

use super::history::History;
use crate::area::{Area, AreaError};
use crate::pill::{is_signed, unsealed_message};
use crate::placement::Placement;

/// Interval of the looks while a message is in the air (design, section 5).
const LOOK: Duration = Duration::from_millis(50);

/// A message to a node.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) victim: String,
    pub(crate) command: Command,
    pub(crate) sender: String,
}

/// What a device's thread says.
pub(crate) enum Said {
    /// The first look, before anything was written.
    Found(FirstLook),
    /// The message was written and read back.
    Written { ended_ms: u64 },
    /// Another look.
    Read(VictimRead),
    /// It cannot be used.
    Failed(AreaError),
}

/// What a device shows before anything is written.
pub(crate) struct FirstLook {
    pub(crate) header: SbdHeader,
    /// The device is not one that we formatted.
    pub(crate) is_stock: bool,
    pub(crate) read: VictimRead,
    /// What this machine saw there earlier.
    pub(crate) known: Option<(BeatVersion, u64)>,
}

/// What a device's thread is told: write, for this boot.
pub(crate) struct Order {
    pub(crate) victim_boot: Option<BootId>,
}

/// One device's thread.
pub(crate) struct DeviceWork {
    pub(crate) device: usize,
    pub(crate) path: PathBuf,
    pub(crate) message: Message,
    pub(crate) limit: Duration,
    pub(crate) say: Sender<(usize, Said)>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) is_over: Arc<AtomicBool>,
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

impl DeviceWork {
    pub(crate) fn run(self) {
        if let Err(error) = self.work() {
            // Who listens may have heard enough.
            let _ = self.say.send((self.device, Said::Failed(error)));
        }
    }

    fn work(&self) -> Result<(), AreaError> {
        let area = Area::open(&self.path, Access::ReadWrite, self.limit)?;
        let header = area.plausible_header()?;
        let slot = area.find(&self.message.victim)?.ok_or_else(|| AreaError::NoSlot { name: self.message.victim.clone() })?;
        let placement = area.placement(slot, &header);
        let known = History::read(deadbolt_disk_format::DeviceUuid(header.uuid)).seen.get(&slot).copied();
        let (read, before) = look_at(&area, &placement, self.device, |_| false)?;
        let is_stock = !placement.has_own_name();
        let is_signed = read.is_signed;
        let _ = self.say.send((self.device, Said::Found(FirstLook { header, is_stock, read, known })));
        let Ok(order) = self.orders.recv() else { return Ok(()) };
        let sector = self.encode(&placement, order.victim_boot, is_signed);
        let stands = |mailbox: &[u8]| mailbox == sector || (mailbox != before && is_deadly_for(mailbox, order.victim_boot));
        match area.write_mailbox(&placement, &sector) {
            // Somebody else's message for the same victim came in between.
            Err(AreaError::ReadBack) if look_at(&area, &placement, self.device, stands)?.0.is_current => {}
            written => written?,
        }
        let _ = self.say.send((self.device, Said::Written { ended_ms: now_ms() }));
        while !self.is_over.load(Ordering::SeqCst) {
            // A path that fails may come back.
            if let Ok((read, _)) = look_at(&area, &placement, self.device, stands) {
                self.say_read(&area, &placement, &order, read);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// A message that names its boot is written again where it is gone; one that names none, as on a device of ours, could meet the boot
    /// after.
    fn say_read(&self, area: &Area, placement: &Placement, order: &Order, read: VictimRead) {
        let is_other_boot = matches!(&read.place, OwnPlace::Beat(beat) if Some(beat.boot) != order.victim_boot);
        let is_lost = !read.is_current;
        let _ = self.say.send((self.device, Said::Read(read)));
        if is_lost && order.victim_boot.is_some() && !is_other_boot && !placement.has_own_name() {
            // Who took it away may have been a program of stock at its start.
            let _ = area.write_mailbox(placement, &self.encode(placement, order.victim_boot, false));
        }
    }

    /// On a device of ours pills prove their writer by the cluster's key, which a tool has not; without a tail it is a stock message.
    fn encode(&self, placement: &Placement, victim_boot: Option<BootId>, is_signed: bool) -> Vec<u8> {
        let victim_boot = victim_boot.filter(|_| !placement.has_own_name());
        unsealed_message(self.message.command, &self.message.sender, victim_boot, (now_ms(), is_signed), placement.sector_bytes())
    }
}

/// One look at the victim's place.
pub(crate) fn look(area: &Area, placement: &Placement, device: usize) -> Result<VictimRead, AreaError> {
    look_at(area, placement, device, |_| false).map(|(read, _)| read)
}

/// A look, and the mailbox that was seen; current when a message that `stands` is in it through this path.
fn look_at(area: &Area, placement: &Placement, device: usize, stands: impl Fn(&[u8]) -> bool) -> Result<(VictimRead, Vec<u8>), AreaError> {
    let issued_ms = now_ms();
    let (place, mailbox) = area.read_place(placement)?;
    let is_signed = matches!(&place, OwnPlace::Beat(beat) if is_signed(&mailbox, beat.boot));
    Ok((VictimRead { device, issued_ms, ended_ms: now_ms(), place, is_current: stands(&mailbox), is_signed }, mailbox))
}

/// Whoever wrote it: the victim ends if it reads this. Two that fence the same node leave each other's message alone.
fn is_deadly_for(mailbox: &[u8], boot: Option<BootId>) -> bool {
    Mailbox::decode(mailbox).is_ok_and(|mailbox| {
        mailbox.command.is_deadly()
            && match mailbox.tail {
                Tail::Absent => true,
                Tail::Present(tail) => Some(tail.victim_boot) == boot,
                Tail::Malformed => false,
            }
    })
}

/// The slot of a node on a device that is only read.
pub(crate) fn open_place(path: &Path, node: &str, limit: Duration) -> Result<(Area, Placement, SbdHeader, SlotIndex), AreaError> {
    let area = Area::open(path, Access::Read, limit)?;
    let header = area.plausible_header()?;
    let slot = area.find(node)?.ok_or_else(|| AreaError::NoSlot { name: node.to_owned() })?;
    let placement = area.placement(slot, &header);
    Ok((area, placement, header, slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::sbd::MailboxTail;

    #[test]
    fn anybodys_message_that_ends_this_boot_is_as_good() {
        let boot = BootId([1; 16]);
        let tail = |boot| Tail::Present(MailboxTail { victim_boot: boot, serial: 1, mac: [0; 16] });
        let table = [
            (Command::Reset, Tail::Absent, true),
            (Command::Off, tail(boot), true),
            (Command::Off, tail(BootId([2; 16])), false),
            (Command::Reset, Tail::Malformed, false),
            (Command::Test, Tail::Absent, false),
            (Command::Clear, tail(boot), false),
        ];
        for (command, tail, expected) in table {
            let mut sector = Mailbox { command, sender: "other".into(), tail }.encode(512);
            if tail == Tail::Malformed {
                sector[200] = 1;
            }
            assert_eq!(is_deadly_for(&sector, Some(boot)), expected, "{command:?} {tail:?}");
        }
    }
}
