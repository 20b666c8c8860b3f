//! What: the shell of a sender of ours in the simulated world: look, write the message, look again and again, judge.
//! Owns: the order of a fence; the same as in sbd/src/fence/mod.rs, work.rs and member.rs.
//! Invariants: what is told to the fencer is what reads and writes through this machine's paths showed, with the machine's own clock.
//! Does not: judge; the fencer does.
//! Called by: the world.

use super::{
    io::{Answer, Owner},
    watcher::decode_place,
    world::{Event, Pid, World, slot_of},
};
use crate::{disk::SECTOR_BYTES, io::Work};
use deadbolt_disk_format::{
    BootId, ByteOffset, Rule,
    sbd::{Command, Mailbox, SbdHeader, Tail, mailbox_offset, node_offset},
    span::{expiry_ms, observed_ms},
};
use deadbolt_sbd::{
    fence::{ANSWER, config, most_ms, safe_msgwait},
    pill::{is_signed, unsealed_message},
};
use deadbolt_sbd_core::{FenceVerdict, Fencer, OwnPlace, Proof, VictimRead, majority};
use std::sync::Arc;

const ANSWER_MS: u64 = 3000;
const GRACE_MS: u64 = 300;
const TURN_MS: u64 = 20;
const LOOK_MS: u64 = 50;
const LAST_LOOKS_MS: u64 = 1000;
const STORAGE_DELAY_MS: u64 = 500;
const DRIFT_PPM: u32 = 10_000;
/// How often the own cluster is asked.
const ASK_MS: u64 = 1000;

/// What a device's thread is at.
#[derive(Clone, Debug)]
enum Step {
    Open,
    First,
    /// Waits for the order.
    Found,
    Write,
    ReadBack,
    /// What was read back is another message: is it as good?
    Other,
    Sleep,
    Look,
    Again,
    AgainRead,
    Done,
}

#[derive(Debug)]
struct Thread {
    step: Step,
    tag: u64,
    issued_ms: u64,
    before: Arc<[u8]>,
    /// The first look showed the mailbox as the watcher of that boot had left it.
    is_signed: bool,
    /// The boot that it is told to name.
    order: Option<Option<BootId>>,
    sector: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Look { end_ms: u64 },
    Write { end_ms: u64 },
    Wait { written_ms: u64 },
}

/// A fence under way.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) machine: usize,
    pub(crate) victim: usize,
    command: Command,
    /// The boot that could act when the fence began.
    pub(crate) claimed: Option<u64>,
    pub(crate) stops: u64,
    threads: Vec<Thread>,
    stage: Stage,
    fencer: Fencer,
    headers: Vec<SbdHeader>,
    first: Vec<VictimRead>,
    answered: usize,
    failed: usize,
    /// A membership without the victim, and since when that is known, ms.
    loss: Option<(u64, u64)>,
    is_asking: bool,
    /// In calm it has to have proved its victim gone by then, us.
    pub(crate) due_us: Option<u64>,
}

impl Sender {
    fn needed(&self) -> usize {
        usize::try_from(majority(u32::try_from(self.threads.len()).unwrap_or(u32::MAX))).unwrap_or(usize::MAX)
    }

    /// Nobody but the victim's own watcher, and who saw its name there, has written into a mailbox: silence proves something.
    pub(crate) fn has_signed_mailboxes(&self) -> bool {
        self.threads.iter().all(|thread| thread.is_signed)
    }

    /// The longest time from the message after which something can still be proved.
    fn longest_ms(&self) -> u64 {
        let msgwait_ms = self.headers.iter().map(|header| u64::from(header.msgwait_s) * 1000).max().unwrap_or(0);
        let delay_ms = observed_ms(STORAGE_DELAY_MS, DRIFT_PPM);
        let lease_ms = self.fencer.victim().map_or(0, |beat| u64::from(beat.lease_ms) + expiry_ms(beat.lease_ms, DRIFT_PPM) + delay_ms);
        let outlive_ms = self.fencer.victim().map_or(0, |beat| observed_ms(u64::from(beat.outlive_ms), DRIFT_PPM) + delay_ms);
        msgwait_ms.max(lease_ms).max(outlive_ms) + LAST_LOOKS_MS
    }
}

impl World {
    /// Starts a fence; `due_us` is when it has to be over in calm.
    pub(crate) fn fence(&mut self, machine: usize, victim: usize, command: Command, due_us: Option<u64>) {
        let (pid, now_ms) = (self.new_pid(), self.local_ms(machine));
        let thread =
            || Thread { step: Step::Open, tag: 0, issued_ms: 0, before: Arc::default(), is_signed: false, order: None, sector: Vec::new() };
        let devices = self.disks.len();
        let sender = Sender {
            machine,
            victim,
            command,
            claimed: self.acting_boot(victim),
            stops: self.machines[victim].truth.stops,
            threads: (0..devices).map(|_| thread()).collect(),
            stage: Stage::Look { end_ms: now_ms + 2 * ANSWER_MS },
            fencer: Fencer::new(config(devices, None, (true, 0))),
            headers: Vec::new(),
            first: Vec::new(),
            answered: 0,
            failed: 0,
            loss: None,
            is_asking: false,
            due_us,
        };
        let text = format!(
            "{} fences {} ({command:?}), which acts in boot {:?}",
            self.machines[machine].name, self.machines[victim].name, sender.claimed
        );
        self.note(&text);
        self.asked += 1;
        self.senders.insert(pid, sender);
        for device in 0..devices {
            let bytes = SECTOR_BYTES * (1 + 2 * self.machines.len());
            self.thread_submit(pid, device, Step::Open, Work::Read(ByteOffset(0), bytes));
        }
        self.queue.after(1, Event::Sender { pid });
    }

    // The devices' threads.

    fn thread_submit(&mut self, pid: Pid, device: usize, step: Step, work: Work) {
        let tag = self.new_pid();
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let machine = sender.machine;
        let now_ms = self.machines[machine].clock.ms(self.queue.now_us());
        let thread = &mut sender.threads[device];
        (thread.step, thread.tag, thread.issued_ms) = (step, tag, now_ms);
        self.at_local(machine, now_ms + ANSWER_MS, Event::Thread { pid, device, tag });
        self.submit(machine, Owner::Sender(pid), device, tag, work);
    }

    fn place_read(&self, victim: usize) -> Work {
        Work::Read(ByteOffset(node_offset(slot_of(victim), 512)), 2 * SECTOR_BYTES)
    }

    fn mailbox_read(&self, victim: usize) -> Work {
        Work::Read(ByteOffset(mailbox_offset(slot_of(victim), 512)), SECTOR_BYTES)
    }

    fn mailbox_write(&self, victim: usize, sector: Vec<u8>) -> Work {
        Work::Write(ByteOffset(mailbox_offset(slot_of(victim), 512)), sector)
    }

    /// A pause is over, or an answer has not come in time.
    pub(crate) fn thread_due(&mut self, pid: Pid, device: usize, tag: u64) {
        let Some(sender) = self.senders.get(&pid) else { return };
        let (thread, victim) = (&sender.threads[device], sender.victim);
        if thread.tag != tag {
            return;
        }
        if matches!(thread.step, Step::Sleep) {
            return self.thread_submit(pid, device, Step::Look, self.place_read(victim));
        }
        self.sender_answer(pid, device, tag, Err(()));
    }

    fn sleep(&mut self, pid: Pid, device: usize) {
        let tag = self.new_pid();
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        (sender.threads[device].step, sender.threads[device].tag) = (Step::Sleep, tag);
        let (machine, now_ms) = (sender.machine, self.machines[sender.machine].clock.ms(self.queue.now_us()));
        self.at_local(machine, now_ms + LOOK_MS, Event::Thread { pid, device, tag });
    }

    fn thread_fails(&mut self, pid: Pid, device: usize) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let text = format!("    device {device} fails at {:?}", sender.threads[device].step);
        sender.threads[device].step = Step::Done;
        sender.failed += 1;
        sender.answered += 1;
        self.note(&text);
        self.hear(pid);
    }

    pub(crate) fn sender_answer(&mut self, pid: Pid, device: usize, tag: u64, answer: Answer) {
        let Some(sender) = self.senders.get_mut(&pid).filter(|sender| sender.threads[device].tag == tag) else { return };
        let (victim, machine) = (sender.victim, sender.machine);
        let now_ms = self.machines[machine].clock.ms(self.queue.now_us());
        let thread = &mut sender.threads[device];
        thread.tag = 0;
        match (thread.step.clone(), answer) {
            (Step::Open | Step::First | Step::Write | Step::ReadBack | Step::Other, Err(())) => self.thread_fails(pid, device),
            (Step::Open, Ok(_)) => self.thread_submit(pid, device, Step::First, self.place_read(victim)),
            (Step::First, Ok(bytes)) => {
                let read = read_of(device, victim, thread.issued_ms, now_ms, &bytes, false);
                (thread.before, thread.is_signed) = (bytes[SECTOR_BYTES..].into(), read.is_signed);
                thread.step = Step::Found;
                self.found(pid, device, read);
            }
            (Step::Write, Ok(_)) => self.thread_submit(pid, device, Step::ReadBack, self.mailbox_read(victim)),
            (Step::ReadBack, Ok(bytes)) if *bytes == *thread.sector => self.written(pid, device, now_ms),
            (Step::ReadBack, Ok(_)) => self.thread_submit(pid, device, Step::Other, self.place_read(victim)),
            (Step::Other, Ok(bytes)) if stands(thread, &bytes[SECTOR_BYTES..]) => self.written(pid, device, now_ms),
            (Step::Other, Ok(_)) => self.thread_fails(pid, device),
            (Step::Look, Ok(bytes)) => self.looked(pid, device, now_ms, &bytes),
            (Step::Again, Ok(_)) => self.thread_submit(pid, device, Step::AgainRead, self.mailbox_read(victim)),
            (Step::Look | Step::Again | Step::AgainRead, _) => self.sleep(pid, device),
            (Step::Found | Step::Sleep | Step::Done, _) => {}
        }
    }

    fn looked(&mut self, pid: Pid, device: usize, now_ms: u64, bytes: &[u8]) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let (victim, thread) = (sender.victim, &sender.threads[device]);
        let is_current = stands(thread, &bytes[SECTOR_BYTES..]);
        let read = read_of(device, victim, thread.issued_ms, now_ms, bytes, is_current);
        let boot = thread.order.flatten();
        let is_other_boot = matches!(&read.place, OwnPlace::Beat(beat) if Some(beat.boot) != boot);
        // Who took it away may have been a program of stock at its start.
        let sector = encode(sender, now_ms, boot, false);
        sender.fencer.handle_read(&read, None);
        if !is_current && boot.is_some() && !is_other_boot {
            self.thread_submit(pid, device, Step::Again, self.mailbox_write(victim, sector));
        } else {
            self.sleep(pid, device);
        }
        self.hear(pid);
    }

    // What is made of it.

    /// A device's first look; one that answers late takes part by what it shows from now on.
    fn found(&mut self, pid: Pid, device: usize, read: VictimRead) {
        let header = self.setup.header(device);
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        sender.answered += 1;
        sender.headers.push(header);
        if let Stage::Look { end_ms } = &mut sender.stage {
            sender.first.push(read);
            if sender.first.len() == usize::try_from(majority(u32::try_from(sender.threads.len()).unwrap_or(u32::MAX))).unwrap_or(0) {
                *end_ms = (*end_ms).min(self.machines[sender.machine].clock.ms(self.queue.now_us()) + GRACE_MS);
            }
        } else {
            let known = self.machines[sender.machine].seen.get(&(device, slot_of(sender.victim))).copied();
            sender.fencer.handle_read(&read, known);
            self.begin_writing(pid, device);
        }
        self.hear(pid);
    }

    fn written(&mut self, pid: Pid, device: usize, now_ms: u64) {
        if let Some(sender) = self.senders.get_mut(&pid) {
            sender.fencer.handle_written(device, now_ms);
        }
        self.sleep(pid, device);
        self.hear(pid);
    }

    fn begin_writing(&mut self, pid: Pid, device: usize) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let Some(boot) = sender.threads[device].order.filter(|_| matches!(sender.threads[device].step, Step::Found)) else { return };
        let serial = self.machines[sender.machine].clock.ms(self.queue.now_us());
        let sector = encode(sender, serial, boot, sender.threads[device].is_signed);
        sender.threads[device].sector.clone_from(&sector);
        let victim = sender.victim;
        self.thread_submit(pid, device, Step::Write, self.mailbox_write(victim, sector));
    }

    pub(crate) fn sender_turn(&mut self, pid: Pid) {
        self.hear(pid);
        if let Some(sender) = self.senders.get(&pid) {
            let machine = sender.machine;
            let now_ms = self.local_ms(machine);
            self.at_local(machine, now_ms + TURN_MS, Event::Sender { pid });
        }
    }

    /// Whatever follows from what is known now.
    fn hear(&mut self, pid: Pid) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let now_ms = self.machines[sender.machine].clock.ms(self.queue.now_us());
        match sender.stage {
            Stage::Look { end_ms } => {
                if sender.answered == sender.threads.len() || now_ms >= end_ms {
                    sender.stage = Stage::Write { end_ms: now_ms + 3 * ANSWER_MS };
                    self.order(pid);
                }
            }
            Stage::Write { end_ms } => {
                if sender.fencer.written_ms().is_some() {
                    let written_ms = sender.fencer.written_ms().unwrap_or(now_ms);
                    sender.stage = Stage::Wait { written_ms };
                    self.begin_asking(pid);
                    self.hear(pid);
                } else if sender.threads.len() - sender.failed.min(sender.threads.len()) < sender.needed() || now_ms >= end_ms {
                    self.sender_fails(pid, "not written");
                }
            }
            Stage::Wait { written_ms } => {
                let verdict = sender.fencer.judge(now_ms);
                let lost_due_ms = match verdict {
                    FenceVerdict::Gone(proof) => return self.sender_succeeds(pid, proof),
                    FenceVerdict::Wait(Some((due_ms, Proof::ClusterLost))) => due_ms + LAST_LOOKS_MS,
                    FenceVerdict::Wait(_) => 0,
                };
                if now_ms >= written_ms + most_ms(sender.longest_ms(), lost_due_ms.saturating_sub(written_ms)) {
                    self.sender_fails(pid, "not proved");
                }
            }
        }
    }

    /// Every device is told for which boot to write.
    fn order(&mut self, pid: Pid) {
        let devices = self.disks.len();
        let io = ANSWER;
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let loop_s = sender.headers.iter().map(|header| header.loop_s).max().unwrap_or(0);
        let stand_ms = ANSWER_MS + u64::from(loop_s) * 1000;
        sender.fencer = Fencer::new(config(devices, safe_msgwait(&sender.headers, io).ok(), (true, stand_ms)));
        #[cfg(feature = "planted")]
        if let Some(crate::planted::Planted::Fencer(mistake)) = self.mistake {
            sender.fencer.plant(mistake);
        }
        let seen = &self.machines[sender.machine].seen;
        for read in std::mem::take(&mut sender.first) {
            let known = seen.get(&(read.device, slot_of(sender.victim))).copied();
            sender.fencer.handle_read(&read, known);
        }
        for device in 0..devices {
            sender.threads[device].order = Some(sender.fencer.boot_on(device));
        }
        (0..devices).for_each(|device| self.begin_writing(pid, device));
        self.hear(pid);
    }

    // The own cluster.

    fn begin_asking(&mut self, pid: Pid) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        if sender.fencer.victim().is_some_and(|beat| beat.rule == Rule::Cluster) && !sender.is_asking {
            sender.is_asking = true;
            self.ask_cluster(pid);
        }
    }

    pub(crate) fn ask_cluster(&mut self, pid: Pid) {
        let Some(sender) = self.senders.get(&pid) else { return };
        let is_lost = !self.machines[sender.machine].standing.is_lost && self.machines[sender.victim].standing.is_lost;
        let ring = is_lost.then_some(self.ring);
        // The tool says what was so when it looked, which may be a while ago.
        let span = self.random.below(1_000_000);
        self.queue.after(span, Event::ClusterSays { pid, ring });
    }

    /// A loss is known from the answer on, for as long as the membership is the same.
    pub(crate) fn cluster_says(&mut self, pid: Pid, ring: Option<u64>) {
        let Some(sender) = self.senders.get_mut(&pid) else { return };
        let now_ms = self.machines[sender.machine].clock.ms(self.queue.now_us());
        let loss = sender.loss;
        sender.loss = ring.map(|ring| loss.filter(|(known, _)| *known == ring).unwrap_or((ring, now_ms)));
        sender.fencer.handle_lost(sender.loss.map(|(_, since_ms)| since_ms));
        let machine = sender.machine;
        self.at_local(machine, now_ms + ASK_MS, Event::AskCluster { pid });
        self.hear(pid);
    }

    // Its end.

    fn sender_succeeds(&mut self, pid: Pid, proof: Proof) {
        let Some(sender) = self.senders.remove(&pid) else { return };
        self.proved += 1;
        let text = format!("{} calls {} gone: {proof}", self.machines[sender.machine].name, self.machines[sender.victim].name);
        self.note(&text);
        self.check_success(&sender, proof);
    }

    fn sender_fails(&mut self, pid: Pid, why: &str) {
        let Some(sender) = self.senders.remove(&pid) else { return };
        let text = format!("{} gives up on {}: {why}", self.machines[sender.machine].name, self.machines[sender.victim].name);
        self.note(&text);
        if sender.due_us.is_some() {
            self.breaks("L2", format!("in calm, {text}"));
        }
    }
}

fn encode(sender: &Sender, now_ms: u64, boot: Option<BootId>, is_signed: bool) -> Vec<u8> {
    unsealed_message(sender.command, &format!("n{}", sender.machine), boot, (now_ms, is_signed), 512)
}

fn read_of(device: usize, victim: usize, issued_ms: u64, ended_ms: u64, bytes: &[u8], is_current: bool) -> VictimRead {
    let place = decode_place(device, slot_of(victim), &bytes[..SECTOR_BYTES]);
    let is_signed = matches!(&place, OwnPlace::Beat(beat) if is_signed(&bytes[SECTOR_BYTES..], beat.boot));
    VictimRead { device, issued_ms, ended_ms, place, is_current, is_signed }
}

fn stands(thread: &Thread, mailbox: &[u8]) -> bool {
    *mailbox == *thread.sector || (*mailbox != *thread.before && is_deadly_for(mailbox, thread.order.flatten()))
}

/// Whoever wrote it: the victim ends if it reads this.
pub(crate) fn is_deadly_for(mailbox: &[u8], boot: Option<BootId>) -> bool {
    Mailbox::decode(mailbox).is_ok_and(|mailbox| {
        mailbox.command.is_deadly()
            && match mailbox.tail {
                Tail::Absent => true,
                Tail::Present(tail) => Some(tail.victim_boot) == boot,
                Tail::Malformed => false,
            }
    })
}
