//! What: disk operations on their way: from a process, over its machine's path, to the device and back.
//! Owns: when they land and when they answer; what becomes of them when their machine or process ends.
//! Invariants: an operation of a machine that was reset lands within D of the reset or never; one of a process that was killed goes on; the
//!   read of a write-then-read is issued after the write's completion.
//! Does not: know what the bytes mean.
//! Called by: sbd, daemon and clients of the world.

use crate::{
    disk::{Areas, Disk, turn_bits},
    machine::{Detour, Pid},
    random::Random,
    world::{Event, World},
};
use deadbolt_disk_format::ByteOffset;
use std::{rc::Rc, sync::Arc};

/// How many times D an unfair operation may take to land after its machine's reset.
const BEYOND: u64 = 20;

/// Whose an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// sbd's disk thread.
    Sbd(Pid),
    /// The daemon, in one of its incarnations.
    Daemon(Pid, u64),
    /// A client.
    Client(Pid),
}

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Reads.
    Read(ByteOffset, usize),
    /// Writes.
    Write(ByteOffset, Vec<u8>),
    /// Writes, and reads when that is complete.
    WriteThenRead(ByteOffset, Vec<u8>, ByteOffset, usize),
    /// Reads a protected value.
    ReadCell(usize),
    /// Writes a protected value: where, what was read before, what to write.
    WriteCell(usize, u64, u64),
}

impl Work {
    /// Where its first stage begins; nowhere for a protected value.
    pub(crate) fn offset(&self) -> Option<ByteOffset> {
        match self {
            Self::Read(offset, _) | Self::Write(offset, _) | Self::WriteThenRead(offset, ..) => Some(*offset),
            Self::ReadCell(_) | Self::WriteCell(..) => None,
        }
    }

    /// Does its first stage change the device?
    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Self::Write(..) | Self::WriteThenRead(..) | Self::WriteCell(..))
    }
}

/// What happens to one operation, once.
#[derive(Clone, Debug)]
pub struct Mishap {
    pub(crate) kind: MishapKind,
    /// To which kinds of area.
    pub(crate) areas: Areas,
}

/// In which way.
#[derive(Clone, Debug)]
pub enum MishapKind {
    /// It lands at once and answers so late, us.
    LateAnswer(u64),
    /// It lands so late, us.
    LateLanding(u64),
    /// A write that is acknowledged and never lands.
    LostWrite,
    /// The same, for a ballot that a scan follows.
    LostBallot,
    /// A write that is acknowledged and lands there.
    StrayWrite(ByteOffset),
    /// A ballot that its own scan sees and that is lost after that.
    ForgottenWrite,
    /// A read that shows what stands there.
    StrayRead(ByteOffset),
    /// A read in which bits were turned on the way.
    RottenRead(Random),
}

impl Mishap {
    /// Can it happen to the next effect of this operation?
    fn suits(&self, operation: &Operation, disk: &Disk) -> bool {
        let (offset, is_write) = match &operation.work {
            Work::Write(offset, _) => (*offset, true),
            Work::WriteThenRead(write, _, _, _) if !operation.has_written => (*write, true),
            Work::Read(offset, _) | Work::WriteThenRead(_, _, offset, _) => (*offset, false),
            Work::ReadCell(_) | Work::WriteCell(..) => return matches!(self.kind, MishapKind::LateAnswer(_) | MishapKind::LateLanding(_)),
        };
        let is_possible = match self.kind {
            MishapKind::LateAnswer(_) | MishapKind::LateLanding(_) => true,
            MishapKind::LostWrite | MishapKind::StrayWrite(_) => is_write,
            MishapKind::LostBallot | MishapKind::ForgottenWrite => is_write && matches!(operation.work, Work::WriteThenRead(..)),
            MishapKind::StrayRead(_) | MishapKind::RottenRead(_) => !is_write,
        };
        is_possible && self.areas.has(disk, offset)
    }
}

/// An operation on its way.
#[derive(Debug)]
pub struct Operation {
    pub(crate) machine: usize,
    pub(crate) boot: u64,
    pub(crate) owner: Owner,
    pub(crate) device: usize,
    pub(crate) tag: u64,
    pub(crate) issued_ms: u64,
    pub(crate) work: Work,
    /// The write is done; the read is on its way.
    pub(crate) has_written: bool,
    pub(crate) is_landed: bool,
    /// Only some sectors of its write land: the machine lost its power in the middle.
    pub(crate) is_torn: bool,
    /// What stood there before a write that is going to be forgotten.
    pub(crate) forgets: Option<Vec<u8>>,
    pub(crate) result: Result<Answer, ()>,
}

impl Operation {
    /// Is its next effect a change of the device?
    pub(crate) fn writes_next(&self) -> bool {
        self.work.is_write() && !self.has_written
    }
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Bytes; none for a write.
    Bytes(Arc<[u8]>),
    /// A protected value.
    Cell(u64),
}

impl World {
    /// Sends an operation on its way.
    pub(crate) fn submit(&mut self, machine: usize, owner: Owner, device: usize, tag: u64, work: Work) {
        self.next_operation += 1;
        let number = self.next_operation;
        let issued_ms = self.local_ms(machine);
        let boot = self.machines[machine].boot_number;
        let result = Ok(Answer::Bytes(Arc::default()));
        let operation = Box::new(Operation {
            machine,
            boot,
            owner,
            device,
            tag,
            issued_ms,
            work,
            has_written: false,
            is_landed: false,
            is_torn: false,
            forgets: None,
            result,
        });
        self.operations.insert(number, operation);
        self.travel(number);
    }

    /// Is an operation of this boot on its way for longer than this?
    pub(crate) fn waits_for_disk(&self, machine: usize, most_ms: u64) -> bool {
        let place = &self.machines[machine];
        let (is_on, boot, now_ms) = (place.is_on, place.boot_number, self.local_ms(machine));
        let mut own = self.operations.values().filter(|operation| operation.machine == machine && operation.boot == boot);
        is_on && own.any(|operation| operation.issued_ms + most_ms < now_ms)
    }

    /// Plans the landing, or lets the operation wait where the path hangs.
    fn travel(&mut self, number: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        let (machine, device) = (operation.machine, operation.device);
        let Some(path) = self.machines[machine].paths.get_mut(device) else { return };
        if path.hangs > 0 {
            path.stuck.push(number);
            return;
        }
        let span = self.options.disk_us / 2 + path.extra_us;
        let span = self.random.range(span / 4 + 1, span + 1);
        self.queue.after(span, Event::Land(number));
    }

    /// An operation reaches its device.
    pub(crate) fn land(&mut self, number: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        let (machine, boot, device) = (operation.machine, operation.boot, operation.device);
        // Else its fate was drawn when its machine was reset.
        let is_there = self.machines[machine].is_on && self.machines[machine].boot_number == boot;
        if !is_there || self.step(machine) {
            return;
        }
        if self.machines[machine].paths[device].hangs > 0 {
            // On its way when the path broke: it may be there already, and only its answer hangs.
            if self.random.chance(500) {
                self.take_effect(number, None);
            }
            self.machines[machine].paths[device].stuck.push(number);
            return;
        }
        let mishap = self.take_mishap(number);
        if let Some(MishapKind::LateLanding(span_us)) = mishap {
            return self.queue.after(span_us, Event::Land(number));
        }
        if self.fails(number) {
            self.fail_operation(number);
        } else {
            self.take_effect(number, mishap.as_ref());
        }
        let span = self.random.range(1, self.options.disk_us / 2 + 1);
        let span = if let Some(MishapKind::LateAnswer(span_us)) = mishap { span_us } else { span };
        self.queue.after(span, Event::Complete(number));
        // Or it is there, and nobody on the machine has heard of it.
        self.step(machine);
    }

    /// The next mishap of the path that suits an operation.
    fn take_mishap(&mut self, number: u64) -> Option<MishapKind> {
        let operation = self.operations.get(&number)?;
        let disk = &self.disks[operation.device];
        let mishaps = &mut self.machines[operation.machine].paths[operation.device].mishaps;
        let index = mishaps.iter().position(|mishap| mishap.suits(operation, disk))?;
        Some(mishaps.remove(index).kind)
    }

    fn fails(&self, number: u64) -> bool {
        self.operations.get(&number).is_some_and(|operation| {
            let path = &self.machines[operation.machine].paths[operation.device];
            if operation.writes_next() { path.fails_writes } else { path.fails_reads }
        })
    }

    /// It fails with its effect, without, or with a part of it.
    fn fail_operation(&mut self, number: u64) {
        let fate = self.random.below(4);
        if let Some(operation) = self.operations.get_mut(&number) {
            operation.is_torn = fate == 0;
        }
        if fate < 2 {
            self.take_effect(number, None);
        }
        if let Some(operation) = self.operations.get_mut(&number) {
            operation.result = Err(());
            operation.is_landed = true;
            operation.has_written = true;
        }
    }

    /// Counts a step of a machine towards its crash at a step; true: it has just lost its power.
    pub(crate) fn step(&mut self, machine: usize) -> bool {
        let Some(left) = self.machines[machine].crash_at_step.filter(|_| self.machines[machine].is_on) else { return false };
        self.machines[machine].crash_at_step = Some(left - 1).filter(|left| *left > 0);
        if left > 1 {
            return false;
        }
        self.end_machine(machine);
        true
    }

    /// The operation does what it was sent for, unless something else happens to it.
    fn take_effect(&mut self, number: u64, mishap: Option<&MishapKind>) {
        let Some(mut operation) = self.operations.remove(&number) else { return };
        match &operation.work {
            Work::Write(offset, data) | Work::WriteThenRead(offset, data, _, _) if operation.writes_next() => {
                operation.forgets = self.write(&operation, *offset, data, mishap);
            }
            Work::Write(..) => {}
            Work::Read(offset, bytes) | Work::WriteThenRead(_, _, offset, bytes) => {
                let bytes = self.read((operation.machine, operation.device), *offset, *bytes, mishap);
                operation.result = Ok(Answer::Bytes(bytes));
                self.forget(&mut operation);
            }
            Work::ReadCell(cell) => operation.result = Ok(Answer::Cell(self.disks[operation.device].cell(*cell))),
            Work::WriteCell(cell, before, value) => {
                let disk = &mut self.disks[operation.device];
                let found = disk.cell(*cell);
                disk.set_cell(*cell, *value);
                self.facts.cell_written(self.queue.now_us(), operation.machine, *cell, found, *before);
            }
        }
        operation.is_landed = true;
        let is_read = matches!(operation.work, Work::Read(..) | Work::ReadCell(_)) || operation.has_written;
        if !is_read {
            self.facts.landed(self.queue.now_us(), operation.machine, operation.boot, operation.owner);
        }
        self.operations.insert(number, operation);
    }

    /// Writes; answers what is to be put back once the writer has seen its write.
    fn write(&mut self, operation: &Operation, offset: ByteOffset, data: &[u8], mishap: Option<&MishapKind>) -> Option<Vec<u8>> {
        self.facts.unit_written(operation.device, offset, data);
        if mishap.is_some_and(|mishap| !matches!(mishap, MishapKind::LateAnswer(_) | MishapKind::LateLanding(_))) {
            self.facts.damaged.insert(operation.device);
        }
        if Areas::VOTE.and(Areas::RECORD).has(&self.disks[operation.device], offset) {
            self.register_changed_us = self.queue.now_us();
        }
        let is_needed = matches!(mishap, Some(MishapKind::StrayWrite(to)) if self.is_needed_beat(operation.device, *to));
        let disk = self.target(operation.machine, operation.device);
        match mishap {
            // What it would have overwritten has become the last word on a life: it is lost instead.
            Some(MishapKind::StrayWrite(_)) if is_needed => {}
            Some(MishapKind::LostWrite | MishapKind::LostBallot) => {}
            Some(MishapKind::StrayWrite(to)) => disk.write_astray(*to, data),
            Some(MishapKind::ForgottenWrite) => {
                let before = disk.read(offset, data.len());
                disk.write(offset, data);
                return Some(before);
            }
            _ if operation.is_torn => self.disks[operation.device].write_torn(offset, data, &mut self.random),
            _ => disk.write(offset, data),
        }
        None
    }

    fn forget(&mut self, operation: &mut Operation) {
        if let (Some(before), Work::WriteThenRead(offset, ..)) = (operation.forgets.take(), &operation.work) {
            self.target(operation.machine, operation.device).write(*offset, &before);
        }
    }

    /// The device that a path leads to.
    pub(crate) fn target(&mut self, machine: usize, device: usize) -> &mut Disk {
        match self.machines[machine].paths[device].detour {
            Some(Detour::Other(other)) => &mut self.others[other],
            _ => &mut self.disks[device],
        }
    }

    /// Reads without a delay: what a program looks at before it lives. Nothing where the path does not answer.
    pub(crate) fn look(&mut self, machine: usize, device: usize, offset: ByteOffset, bytes: usize) -> Option<Arc<[u8]>> {
        let path = &self.machines[machine].paths[device];
        let is_open = path.hangs == 0 && !path.fails_reads;
        is_open.then(|| self.read((machine, device), offset, bytes, None))
    }

    fn read(&mut self, (machine, device): (usize, usize), offset: ByteOffset, bytes: usize, mishap: Option<&MishapKind>) -> Arc<[u8]> {
        let detour = &self.machines[machine].paths[device].detour;
        let disk = match detour {
            Some(Detour::Other(other)) => &self.others[*other],
            Some(Detour::Stale(image, areas)) if areas.has(image, offset) => image.as_ref(),
            _ => &self.disks[device],
        };
        let from = if let Some(MishapKind::StrayRead(from)) = mishap { *from } else { offset };
        let mut found = disk.read_shared(from, bytes);
        if let Some(MishapKind::RottenRead(random)) = mishap {
            turn_bits(Arc::make_mut(&mut found), &mut random.clone());
        }
        if mishap.is_some() || detour.is_some() || disk.is_tainted(offset, bytes) {
            self.facts.suspicious_read(device, self.cluster, &Rc::clone(disk.infos()), offset, &found);
        }
        found
    }

    /// An operation's answer reaches its process.
    pub(crate) fn complete(&mut self, number: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        let (machine, boot, device) = (operation.machine, operation.boot, operation.device);
        let has_read_left = matches!(operation.work, Work::WriteThenRead(..)) && !operation.has_written;
        if !self.machines[machine].is_on || self.machines[machine].boot_number != boot {
            self.operations.remove(&number);
            return;
        }
        if self.step(machine) {
            return;
        }
        if self.machines[machine].paths[device].hangs > 0 {
            self.machines[machine].paths[device].stuck.push(number);
            return;
        }
        if has_read_left {
            if let Some(operation) = self.operations.get_mut(&number) {
                operation.has_written = true;
                operation.is_landed = false;
            }
            self.travel(number);
        } else if let Some(operation) = self.operations.remove(&number) {
            self.answer(*operation);
        }
    }

    fn answer(&mut self, operation: Operation) {
        let machine = operation.machine;
        match operation.owner {
            Owner::Sbd(pid) => self.sbd_completion(machine, pid, operation),
            Owner::Daemon(pid, epoch) => self.daemon_completion(machine, pid, epoch, operation),
            Owner::Client(pid) => self.client_completion(machine, pid, &operation),
        }
    }

    /// One hang of a path ends; after the last, what waited goes on.
    pub(crate) fn release(&mut self, machine: usize, device: usize) {
        let Some(path) = self.machines[machine].paths.get_mut(device) else { return };
        path.hangs = path.hangs.saturating_sub(1);
        if path.hangs > 0 {
            return;
        }
        for number in std::mem::take(&mut path.stuck) {
            match self.operations.get(&number) {
                Some(operation) if operation.is_landed => self.queue.after(1, Event::Complete(number)),
                Some(_) => self.travel(number),
                None => {}
            }
        }
    }

    /// The machine's boot is over: what has left it lands within D, whole or torn, or never.
    pub(crate) fn orphan_operations(&mut self, machine: usize) {
        let boot = self.machines[machine].boot_number;
        self.machines[machine].paths.iter_mut().for_each(|path| path.stuck.clear());
        let delay_us = u64::from(self.timings.storage_delay_ms) * 1000;
        let numbers: Vec<u64> = self
            .operations
            .iter()
            .filter(|(_, operation)| operation.machine == machine && operation.boot == boot)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let Some(operation) = self.operations.get_mut(&number) else { continue };
            if operation.is_landed || !operation.writes_next() || self.random.chance(400) {
                self.operations.remove(&number);
                continue;
            }
            operation.is_torn = self.random.chance(200);
            let is_beyond = self.random.chance(self.options.unfair_late_landing);
            let span = self.random.below(if is_beyond { delay_us * BEYOND } else { delay_us });
            self.queue.after(span, Event::LandLate(number));
        }
    }

    /// What was on its way when its machine was reset lands.
    pub(crate) fn land_late(&mut self, number: u64) {
        self.take_effect(number, None);
        self.operations.remove(&number);
    }
}
