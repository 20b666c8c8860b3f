//! What: disk operations of a world of drop-in fencing on their way: to the device, and back to who asked.
//! Owns: when they land and when they answer; what becomes of them when their machine ends.
//! Invariants: an operation of a machine that was reset lands within D of the reset or never; one of a process that ended goes on; the
//!   read of a write-then-read is issued after the write's completion.
//! Does not: know what the bytes mean.
//! Called by: watchers and senders.

use super::world::{Event, Pid, World};
use crate::{disk::Disk, io::Work};
use std::{rc::Rc, sync::Arc};

/// D, true us.
pub(crate) const STORAGE_DELAY_US: u64 = 500_000;

/// Bytes of a read, none of a write; or it failed.
pub(crate) type Answer = Result<Arc<[u8]>, ()>;

/// Whose an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Watcher(Pid),
    Sender(Pid),
    /// A sender of the stock program.
    Stock(Pid),
}

#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) machine: usize,
    boot: u64,
    pub(crate) owner: Owner,
    pub(crate) device: usize,
    pub(crate) tag: u64,
    pub(crate) work: Work,
    has_written: bool,
    is_landed: bool,
    pub(crate) answer: Answer,
}

impl Operation {
    fn writes_next(&self) -> bool {
        self.work.is_write() && !self.has_written
    }
}

/// A path from a machine to a device.
#[derive(Debug, Default)]
pub(crate) struct Path {
    /// Reads hang, writes hang: how many such faults have not ended.
    pub(crate) hangs: [u32; 2],
    pub(crate) fails: bool,
    pub(crate) extra_us: u64,
    /// Reads show the device as it was.
    pub(crate) stale: Option<Rc<Disk>>,
    stuck: Vec<u64>,
}

impl Path {
    fn is_stuck(&self, writes: bool) -> bool {
        self.hangs[usize::from(writes)] > 0
    }

    /// A program may open the device.
    pub(crate) fn is_open(&self) -> bool {
        self.hangs == [0, 0] && !self.fails
    }
}

impl World {
    pub(crate) fn submit(&mut self, machine: usize, owner: Owner, device: usize, tag: u64, work: Work) {
        self.next_number += 1;
        let (number, boot, answer) = (self.next_number, self.machines[machine].boot, Ok(Arc::default()));
        let operation = Operation { machine, boot, owner, device, tag, work, has_written: false, is_landed: false, answer };
        self.operations.insert(number, operation);
        self.travel(number);
    }

    fn travel(&mut self, number: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        let path = &mut self.machines[operation.machine].paths[operation.device];
        if path.is_stuck(operation.writes_next()) {
            path.stuck.push(number);
            return;
        }
        let span = self.setup.disk_us / 2 + path.extra_us;
        let span = self.random.range(span / 4 + 1, span + 1);
        self.queue.after(span, Event::Land(number));
    }

    fn is_of_this_boot(&self, operation: &Operation) -> bool {
        let machine = &self.machines[operation.machine];
        machine.is_on && machine.boot == operation.boot
    }

    pub(crate) fn land(&mut self, number: u64) {
        // Else its fate was drawn when its machine ended.
        let Some(operation) = self.operations.get(&number).filter(|operation| self.is_of_this_boot(operation)) else { return };
        let (machine, device, writes) = (operation.machine, operation.device, operation.writes_next());
        if self.machines[machine].paths[device].is_stuck(writes) {
            // On its way when the path broke: it may be there already, and only its answer hangs.
            if self.random.chance(500) {
                self.take_effect(number);
            }
            self.machines[machine].paths[device].stuck.push(number);
            return;
        }
        let fails = self.machines[machine].paths[device].fails;
        if !fails || self.random.chance(500) {
            self.take_effect(number);
        }
        if let Some(operation) = self.operations.get_mut(&number).filter(|_| fails) {
            (operation.answer, operation.is_landed, operation.has_written) = (Err(()), true, true);
        }
        let span = self.random.range(1, self.setup.disk_us / 2 + 1);
        self.queue.after(span, Event::Complete(number));
    }

    fn take_effect(&mut self, number: u64) {
        let Some(mut operation) = self.operations.remove(&number) else { return };
        let writes = operation.writes_next();
        match &operation.work {
            Work::Write(offset, data) | Work::WriteThenRead(offset, data, _, _) if writes => {
                self.disks[operation.device].write(*offset, data);
                self.check_landed(operation.machine, operation.boot, operation.device, *offset, data);
            }
            Work::Read(offset, bytes) | Work::WriteThenRead(_, _, offset, bytes) => {
                let stale = self.machines[operation.machine].paths[operation.device].stale.as_deref();
                let disk = stale.unwrap_or(&self.disks[operation.device]);
                operation.answer = Ok(disk.read_shared(*offset, *bytes));
            }
            Work::Write(..) | Work::ReadCell(_) | Work::WriteCell(..) => {}
        }
        operation.is_landed = true;
        self.operations.insert(number, operation);
    }

    pub(crate) fn complete(&mut self, number: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        if !self.is_of_this_boot(operation) {
            self.operations.remove(&number);
            return;
        }
        let has_read_left = matches!(operation.work, Work::WriteThenRead(..)) && !operation.has_written;
        let (machine, device, writes) = (operation.machine, operation.device, operation.writes_next());
        if self.machines[machine].paths[device].is_stuck(writes) {
            self.machines[machine].paths[device].stuck.push(number);
        } else if has_read_left {
            if let Some(operation) = self.operations.get_mut(&number) {
                (operation.has_written, operation.is_landed) = (true, false);
            }
            self.travel(number);
        } else if let Some(operation) = self.operations.remove(&number) {
            self.answer(operation);
        }
    }

    fn answer(&mut self, operation: Operation) {
        match operation.owner {
            Owner::Watcher(pid) => self.watcher_answer(pid, operation),
            Owner::Sender(pid) => self.sender_answer(pid, operation.device, operation.tag, operation.answer),
            Owner::Stock(pid) => self.stock_sender_answer(pid, operation.device, &operation.answer),
        }
    }

    /// One hang of a path ends.
    pub(crate) fn release(&mut self, machine: usize, device: usize, kind: usize) {
        let path = &mut self.machines[machine].paths[device];
        path.hangs[kind] = path.hangs[kind].saturating_sub(1);
        for number in std::mem::take(&mut path.stuck) {
            match self.operations.get(&number) {
                Some(operation) if operation.is_landed => self.queue.after(1, Event::Complete(number)),
                Some(_) => self.travel(number),
                None => {}
            }
        }
    }

    /// The machine's boot is over: what has left it lands within D, or never.
    pub(crate) fn orphan_operations(&mut self, machine: usize) {
        self.machines[machine].paths.iter_mut().for_each(|path| path.stuck.clear());
        let boot = self.machines[machine].boot;
        let is_its = |operation: &Operation| operation.machine == machine && operation.boot == boot;
        let numbers: Vec<u64> = self.operations.iter().filter(|(_, operation)| is_its(operation)).map(|(number, _)| *number).collect();
        for number in numbers {
            let is_lost = self.operations.get(&number).is_none_or(|operation| operation.is_landed || !operation.writes_next());
            if is_lost || self.random.chance(400) {
                self.operations.remove(&number);
            } else {
                let span = self.random.below(STORAGE_DELAY_US);
                self.queue.after(span, Event::LandLate(number));
            }
        }
    }

    pub(crate) fn land_late(&mut self, number: u64) {
        self.take_effect(number);
        self.operations.remove(&number);
    }
}
