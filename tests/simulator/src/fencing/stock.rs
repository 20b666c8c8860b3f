//! What: the stock program in the simulated world: its watcher, one servant per device, and its sender.
//! Owns: what is known of it: docs/compat.md; what a servant last saw, and when the watchdog was fed for it.
//! Invariants: it leaves no record; it obeys any message, whatever stands behind the sender.
//! Does not: use anything of ours.
//! Called by: the world.

use super::{
    io::{Answer, Owner},
    watcher::IO_S,
    world::{Event, Pid, World, slot_of},
};
use crate::{disk::SECTOR_BYTES, io::Work, machine::Watchdog};
use deadbolt_disk_format::{
    ByteOffset,
    sbd::{Command, Mailbox, Tail, mailbox_offset},
};
use deadbolt_sbd_core::{ResetCommand, watch_quorum};

/// How late its watchdog fires at most: the second that is reckoned with has to cover the drift of two clocks, too.
const LATE_MS: u64 = 600;
/// How often the inquisitor looks and feeds.
const FEED_MS: u64 = 500;

/// A watcher of the stock program.
#[derive(Debug)]
pub(crate) struct StockWatcher {
    pub(crate) pid: Pid,
    /// By device: when the last read that showed nothing was issued, local ms.
    good_ms: Vec<Option<u64>>,
    issued_ms: Vec<u64>,
}

/// A message of the stock program on its way.
#[derive(Debug)]
pub(crate) struct StockSender {
    pub(crate) machine: usize,
    victim: usize,
    /// The boot that could act when it was sent.
    claimed: Option<u64>,
    stops: u64,
    sector: Vec<u8>,
    pub(crate) command: Command,
    good: usize,
    answered: usize,
}

impl World {
    pub(crate) fn start_stock(&mut self, machine: usize) {
        let (pid, now_ms, devices) = (self.new_pid(), self.local_ms(machine), self.disks.len());
        self.machines[machine].stock = Some(StockWatcher { pid, good_ms: vec![None; devices], issued_ms: vec![now_ms; devices] });
        let granted_ms = self.setup.times[0] * 1000;
        let late_ms = i64::try_from(self.random.below(LATE_MS + 1)).unwrap_or(0);
        let look = self.machines[machine].watchdog.as_ref().map_or(0, |watchdog| watchdog.look);
        let fires_ms = now_ms + u64::from(granted_ms);
        self.machines[machine].watchdog = Some(Watchdog { fires_ms, granted_ms, shortest_ms: granted_ms, late_ms, look });
        self.check_fed(machine);
        self.watch_watchdog(machine);
        // Its servants erase what they find at the start.
        let offset = ByteOffset(mailbox_offset(slot_of(machine), 512));
        for device in 0..devices {
            self.submit(machine, Owner::Watcher(pid), device, 0, Work::Write(offset, vec![0; SECTOR_BYTES]));
        }
        self.queue.after(1, Event::Stock { machine, pid, device: None });
    }

    pub(crate) fn stop_stock(&mut self, machine: usize) {
        self.machines[machine].watchdog = None;
        self.end_processes(machine);
        let text = format!("{}: the stock watcher has stopped", self.machines[machine].name);
        self.note(&text);
        self.restart_stopped(machine);
    }

    /// A servant's next read, or the inquisitor's look.
    pub(crate) fn stock_turn(&mut self, machine: usize, pid: Pid, device: Option<usize>) {
        let now_ms = self.local_ms(machine);
        let needed = watch_quorum(u32::try_from(self.disks.len()).unwrap_or(u32::MAX));
        let tolerated_ms = u64::from(IO_S + self.setup.times[2]) * 1000;
        let place = &mut self.machines[machine];
        let Some(stock) = place.stock.as_mut().filter(|stock| stock.pid == pid) else { return };
        if let Some(device) = device {
            stock.issued_ms[device] = now_ms;
            let offset = ByteOffset(mailbox_offset(slot_of(machine), 512));
            return self.submit(machine, Owner::Watcher(pid), device, 1, Work::Read(offset, SECTOR_BYTES));
        }
        let good = stock.good_ms.iter().flatten().filter(|at_ms| now_ms < **at_ms + tolerated_ms).count();
        if u32::try_from(good).unwrap_or(0) >= needed
            && let Some(watchdog) = &mut place.watchdog
        {
            watchdog.fires_ms = now_ms + u64::from(watchdog.granted_ms);
            self.join(machine);
            self.check_fed(machine);
            self.check_acting(machine);
        }
        self.at_local(machine, now_ms + FEED_MS, Event::Stock { machine, pid, device });
    }

    pub(crate) fn stock_takes(&mut self, machine: usize, device: usize, tag: u64, answer: &Answer) {
        let Some(stock) = &mut self.machines[machine].stock else { return };
        let pid = stock.pid;
        let command = answer.as_ref().ok().and_then(|bytes| Mailbox::decode(bytes).ok()).map(|mailbox| mailbox.command);
        match command {
            Some(Command::Reset | Command::Crashdump) => return self.stock_ends(machine, ResetCommand::Reset),
            Some(Command::Off) => return self.stock_ends(machine, ResetCommand::Off),
            Some(_) => stock.good_ms[device] = Some(stock.issued_ms[device]),
            None => {}
        }
        let loop_ms = if tag == 0 { 1 } else { u64::from(self.setup.times[2]) * 1000 };
        let now_ms = self.local_ms(machine);
        self.at_local(machine, now_ms + loop_ms, Event::Stock { machine, pid, device: Some(device) });
    }

    /// Whatever becomes of the reset, it ends, and feeds no more.
    fn stock_ends(&mut self, machine: usize, command: ResetCommand) {
        self.machines[machine].stock = None;
        self.begin_reset(machine, command);
    }

    // Its sender.

    pub(crate) fn send_stock(&mut self, machine: usize, victim: usize, command: Command) {
        let pid = self.new_pid();
        let sector = Mailbox { command, sender: format!("stock{machine}"), tail: Tail::Absent }.encode(512);
        let claimed = self.acting_boot(victim);
        let text = format!("{} sends {} a {command:?} of stock", self.machines[machine].name, self.machines[victim].name);
        self.note(&text);
        let stops = self.machines[victim].truth.stops;
        let sender = StockSender { machine, victim, claimed, stops, sector: sector.clone(), command, good: 0, answered: 0 };
        self.stock_senders.insert(pid, sender);
        let offset = ByteOffset(mailbox_offset(slot_of(victim), 512));
        for device in 0..self.disks.len() {
            self.submit(machine, Owner::Stock(pid), device, 0, Work::WriteThenRead(offset, sector.clone(), offset, SECTOR_BYTES));
        }
        if !command.is_deadly() {
            self.machines[victim].truth.erased_us = self.queue.now_us();
        }
    }

    pub(crate) fn stock_sender_answer(&mut self, pid: Pid, _device: usize, answer: &Answer) {
        let devices = self.disks.len();
        let Some(sender) = self.stock_senders.get_mut(&pid) else { return };
        sender.answered += 1;
        sender.good += usize::from(answer.as_ref().is_ok_and(|bytes| **bytes == *sender.sector));
        let is_over = sender.answered == devices;
        let machine = sender.machine;
        if is_over && sender.command.is_deadly() && sender.good > devices / 2 {
            let now_ms = self.local_ms(machine);
            self.at_local(machine, now_ms + u64::from(self.setup.times[3]) * 1000, Event::StockSent { pid });
        } else if is_over {
            self.stock_senders.remove(&pid);
        }
    }

    /// It has waited for its time and calls the victim gone.
    pub(crate) fn stock_sender_ends(&mut self, pid: Pid) {
        let Some(sender) = self.stock_senders.remove(&pid) else { return };
        if self.machines[sender.victim].truth.stops == sender.stops {
            self.check_stock_success(sender.victim, sender.claimed);
        }
    }
}
