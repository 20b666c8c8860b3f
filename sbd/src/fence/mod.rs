//! What: fencing through the mailbox of an SBD area: is the victim gone, and by which evidence.
//! Owns: what a fence answers; nothing else calls a node gone.
//! Invariants: `Gone` names evidence that was seen; a failed write, a stale mailbox or a header that cannot be true is never `Gone`.
//! Does not: print or choose a victim; asking for the power state writes nothing.
//! Called by: the fence agent, `message`; the simulator goes by its times.

mod history;
mod member;
mod power;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use deadbolt_disk::now_ns;
use deadbolt_disk_format::reservation::{KeyOwner, ReservationKey};
use deadbolt_disk_format::sbd::{Command, SbdHeader};
use deadbolt_disk_format::span::{expiry_ms, observed_ms};
use deadbolt_disk_format::{Beat, Rule, WatchdogKind};
use deadbolt_sbd_core::{Ejected, FenceVerdict, Fencer, FencerConfig, majority};

use crate::eject::{DEVICE_LIMIT, DeviceErrors, eject};
use crate::options::DEVICES_MAX;
pub use deadbolt_sbd_core::Proof as Evidence;
pub(crate) use history::{History, run_folder};
pub(crate) use power::lives_of;
pub use power::power_state;
use work::{DeviceWork, FirstLook, Message, Order, Said};

/// How long a device may take to answer, and what a node of stock tolerates unless it is told otherwise (compatibility).
pub const ANSWER: Duration = Duration::from_secs(3);
/// How long all devices are waited for once enough have answered. Chosen: one that answers late must not delay the message by more.
const GRACE: Duration = Duration::from_millis(300);
/// Longest time between two judgements: what is due is due at an instant.
const TURN: Duration = Duration::from_millis(20);
/// What is waited beyond the last instant at which something can be proved: the looks that show it. Chosen: several of them.
const LAST_LOOKS_MS: u64 = 1000;
/// D: an assumption, as in every cluster of ours (docs/timing.md).
const STORAGE_DELAY_MS: u32 = 500;
/// How late the watchdog of a node of stock may fire, s: its driver is not known.
const LATENESS_S: u64 = 1;
/// rho, 1 %.
const DRIFT_PPM: u32 = 10_000;

/// A victim to be ended.
#[derive(Clone, Copy, Debug)]
pub struct FenceRequest<'a> {
    /// The cluster's SBD devices, all of them.
    pub devices: &'a [PathBuf],
    /// Its name in the slots.
    pub victim: &'a str,
    /// What it shall do; only deadly commands fence.
    pub command: Command,
    /// Name of who asks, for people.
    pub sender: &'a str,
    /// How long a node of stock is taken to tolerate an I/O: its option `-I`, which stands on no disk.
    pub io: Duration,
    /// Longest time to wait for evidence once the message is written.
    pub limit: Duration,
    /// The devices from which it is ejected, as a further proof.
    pub protected: Option<Protected<'a>>,
}

/// Devices that know their users by reservation keys.
#[derive(Clone, Copy, Debug)]
pub struct Protected<'a> {
    /// All devices that the victim may write.
    pub devices: &'a [PathBuf],
    /// This node's key, which is registered on all of them.
    pub own: ReservationKey,
    /// Who the victim is to them.
    pub victim: KeyOwner,
}

/// How a fence ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FenceReport {
    /// The victim is gone.
    Gone {
        /// By what.
        evidence: Evidence,
        /// From the request to the proof.
        waited: Duration,
        /// What was seen, for people.
        detail: String,
    },
    /// The message was written, and nothing proves that it was obeyed.
    NotProved {
        /// Why not, and what to do.
        reason: String,
    },
}

/// Why nothing could be asked or sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// Not 1 to 3 devices.
    #[error("{found} devices were named: name one to {DEVICES_MAX}, all that the cluster's sbd uses")]
    Devices {
        /// How many.
        found: usize,
    },
    /// Two paths lead to one device.
    #[error("{} and {} are the same device: a message on both would count twice; name each device once", first.display(), second.display())]
    SameDevice {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A command that ends nobody.
    #[error("{:?} is no fence: use reset, off or crashdump", command.word())]
    Command {
        /// Which.
        command: Command,
    },
    /// No majority of the devices took the message.
    #[error("written and read back on {written} of {devices} devices, {needed} are needed: {reasons}")]
    NotWritten {
        /// Devices that took it.
        written: usize,
        /// All of them.
        devices: usize,
        /// More than half.
        needed: usize,
        /// What was wrong with the others.
        reasons: String,
    },
}

/// Is a node alive?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PowerState {
    /// It gave a sign of life within its lease.
    Alive {
        /// What was seen, for people.
        detail: String,
    },
    /// It is proved gone.
    Gone {
        /// By what.
        evidence: Evidence,
        /// What was seen, for people.
        detail: String,
    },
    /// Neither is shown.
    Unknown {
        /// Why not, and what to do.
        reason: String,
    },
}

fn check_devices(devices: &[PathBuf]) -> Result<(), FenceError> {
    if (1..=DEVICES_MAX).contains(&devices.len()) { Ok(()) } else { Err(FenceError::Devices { found: devices.len() }) }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Sends the message and waits for evidence.
///
/// # Errors
/// The request makes no sense, or the message could not be written on a majority of the devices.
pub fn fence(request: &FenceRequest<'_>) -> Result<FenceReport, FenceError> {
    check_devices(request.devices)?;
    if !request.command.is_deadly() {
        return Err(FenceError::Command { command: request.command });
    }
    let mut fence = Fence::start(request);
    let report = fence.run(request);
    fence.is_over.store(true, Ordering::SeqCst);
    report
}

/// A fence under way.
struct Fence {
    began_ms: u64,
    said: Receiver<(usize, Said)>,
    orders: Vec<Option<Sender<Order>>>,
    is_over: Arc<AtomicBool>,
    headers: Vec<SbdHeader>,
    /// One line for each device that cannot be used.
    reasons: Vec<String>,
    fencer: Fencer,
    /// Devices that have answered: whether it is a stock one, or that it failed.
    answered: usize,
    written: usize,
    ejection: Option<EjectionUnderWay>,
}

/// An ejection, by a thread of its own.
struct EjectionUnderWay {
    done: Receiver<Result<(), DeviceErrors>>,
    result: Option<Result<(), DeviceErrors>>,
    devices: usize,
}

impl EjectionUnderWay {
    fn start(protected: &Protected<'_>) -> Self {
        let (say, done) = channel();
        let (devices, own, victim) = (protected.devices.to_vec(), protected.own, protected.victim);
        let work = move || say.send(eject(&devices, Ejected::Node(victim), own, DEVICE_LIMIT, &Arc::default()));
        // Without a thread nobody answers, which proves nothing.
        let _ = std::thread::Builder::new().name("eject".into()).spawn(work);
        Self { done, result: None, devices: protected.devices.len() }
    }

    /// Takes in its end, if it comes within the time given. True: it has ended.
    fn hear(&mut self, span: Duration) -> bool {
        if self.result.is_none() {
            match self.done.recv_timeout(span) {
                Ok(result) => self.result = Some(result),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => self.result = Some(Err(DeviceErrors(Vec::new()))),
            }
        }
        true
    }

    /// What was seen, if it proves that the victim is gone.
    fn proof(&self) -> Option<String> {
        let is_proved = matches!(self.result, Some(Ok(())));
        is_proved.then(|| format!("its keys were taken away and its I/O aborted on all {} protected devices, read back", self.devices))
    }
}

impl Fence {
    fn start(request: &FenceRequest<'_>) -> Self {
        let (say, said) = channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let message = Message { victim: request.victim.to_owned(), command: request.command, sender: request.sender.to_owned() };
        let start = |(device, path): (usize, &PathBuf)| {
            let (order, orders) = channel();
            let (path, message, say) = (path.clone(), message.clone(), say.clone());
            let work = DeviceWork { device, path, message, limit: ANSWER, say, orders, is_over: Arc::clone(&is_over) };
            std::thread::Builder::new().name("sbd-message".into()).spawn(move || work.run()).ok().map(|_| order)
        };
        let orders = request.devices.iter().enumerate().map(start).collect();
        Self {
            began_ms: now_ms(),
            said,
            orders,
            is_over,
            headers: Vec::new(),
            reasons: Vec::new(),
            fencer: Fencer::new(config(request.devices.len(), None, (true, 0))),
            answered: 0,
            written: 0,
            ejection: request.protected.as_ref().map(EjectionUnderWay::start),
        }
    }

    fn needed(&self) -> usize {
        usize::try_from(majority(u32::try_from(self.orders.len()).unwrap_or(u32::MAX))).unwrap_or(usize::MAX)
    }

    fn run(&mut self, request: &FenceRequest<'_>) -> Result<FenceReport, FenceError> {
        let found = self.look_first(request);
        check_distinct(request.devices, &found)?;
        let is_stock = found.iter().any(|look| look.is_stock);
        // Without a header that can be true the times prove nothing; evidence still may.
        let loop_s = self.headers.iter().map(|header| header.loop_s).max().unwrap_or(0);
        let stand_ms = u64::try_from(request.io.as_millis()).unwrap_or(u64::MAX).saturating_add(u64::from(loop_s) * 1000);
        self.fencer = Fencer::new(config(request.devices.len(), safe_msgwait(&self.headers, request.io).ok(), (is_stock, stand_ms)));
        for look in &found {
            self.fencer.handle_read(&look.read, look.known);
        }
        for (device, order) in self.orders.iter().enumerate().filter_map(|(device, order)| Some((device, order.as_ref()?))) {
            let _ = order.send(Order { victim_boot: self.fencer.boot_on(device) });
        }
        match self.write(request) {
            Err(error) => self.wait_for_ejection(request).ok_or(error),
            Ok(()) => self.wait(request),
        }
    }

    fn gone(&self, evidence: Evidence, detail: String) -> FenceReport {
        FenceReport::Gone { evidence, waited: Duration::from_millis(now_ms().saturating_sub(self.began_ms)), detail }
    }

    /// Where the message cannot be sent, only this can still prove something.
    fn wait_for_ejection(&mut self, request: &FenceRequest<'_>) -> Option<FenceReport> {
        let ejection = self.ejection.as_mut()?;
        ejection.hear(request.limit.min(DEVICE_LIMIT * 2));
        let proof = ejection.proof()?;
        Some(self.gone(Evidence::Ejected, format!("{proof}; the message was written on {} of {} devices", self.written, self.orders.len())))
    }

    /// The first look at every device, until enough have answered and the others had their grace.
    fn look_first(&mut self, request: &FenceRequest<'_>) -> Vec<FirstLook> {
        let mut found = Vec::new();
        let mut end_ms = now_ms() + u64::try_from(ANSWER.as_millis()).unwrap_or(0) * 2;
        while self.answered < self.orders.len() {
            let left = Duration::from_millis(end_ms.saturating_sub(now_ms()));
            let Ok((device, said)) = self.said.recv_timeout(left) else { break };
            self.answered += 1;
            match said {
                Said::Found(look) => {
                    self.headers.push(look.header.clone());
                    found.push(look);
                }
                Said::Failed(error) => self.reasons.push(format!("{}: {error}", request.devices[device].display())),
                Said::Written { .. } | Said::Read(_) => {}
            }
            if found.len() == self.needed() {
                end_ms = end_ms.min(now_ms() + u64::try_from(GRACE.as_millis()).unwrap_or(0));
            }
        }
        found
    }

    /// Waits until the message stands on more than half of the devices.
    fn write(&mut self, request: &FenceRequest<'_>) -> Result<(), FenceError> {
        let end_ms = now_ms() + u64::try_from(ANSWER.as_millis()).unwrap_or(0) * 3;
        while self.fencer.written_ms().is_none() {
            let can_be = self.orders.len().saturating_sub(self.reasons.len()) >= self.needed();
            if !can_be || now_ms() >= end_ms {
                let waited = (now_ms() >= end_ms).then(|| format!("not every device answered within {} s", ANSWER.as_secs() * 3));
                let reasons = self.reasons.iter().cloned().chain(waited).collect::<Vec<_>>().join("; ");
                return Err(FenceError::NotWritten { written: self.written, devices: self.orders.len(), needed: self.needed(), reasons });
            }
            self.hear(request, TURN);
        }
        Ok(())
    }

    fn hear(&mut self, request: &FenceRequest<'_>, span: Duration) {
        let mut next = self.said.recv_timeout(span);
        loop {
            match next {
                Ok((_, Said::Read(read))) => self.fencer.handle_read(&read, None),
                Ok((device, Said::Written { ended_ms })) => {
                    self.written += 1;
                    self.fencer.handle_written(device, ended_ms);
                }
                Ok((device, Said::Failed(error))) => self.reasons.push(format!("{}: {error}", request.devices[device].display())),
                // One that answers late takes part by what its thread shows from now on.
                Ok((device, Said::Found(look))) => {
                    if self.headers.iter().any(|header| header.uuid == look.header.uuid && header.uuid != [0; 16]) {
                        self.reasons.push(format!("{} is another path to a device that was named", request.devices[device].display()));
                        self.orders[device] = None;
                        next = self.said.try_recv().map_err(|_| RecvTimeoutError::Timeout);
                        continue;
                    }
                    self.headers.push(look.header);
                    self.fencer.handle_read(&look.read, look.known);
                }
                Err(RecvTimeoutError::Disconnected) => return std::thread::sleep(span),
                Err(RecvTimeoutError::Timeout) => return,
            }
            next = self.said.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn wait(&mut self, request: &FenceRequest<'_>) -> Result<FenceReport, FenceError> {
        let words = self.ask_cluster(request);
        let limit_ms = u64::try_from(request.limit.as_millis()).unwrap_or(u64::MAX);
        let written_ms = self.fencer.written_ms().unwrap_or_else(now_ms);
        loop {
            let now = now_ms();
            words.iter().flat_map(Receiver::try_iter).for_each(|lost_ms| self.fencer.handle_lost(lost_ms));
            let lost_due_ms = match self.fencer.judge(now) {
                FenceVerdict::Gone(evidence) => return Ok(self.gone(evidence, self.say_seen(now))),
                // The cluster may have noticed its loss only after the message.
                FenceVerdict::Wait(Some((due_ms, Evidence::ClusterLost))) => due_ms + LAST_LOOKS_MS,
                FenceVerdict::Wait(_) => 0,
            };
            let is_ejection_over = self.ejection.as_mut().is_none_or(|ejection| ejection.hear(Duration::ZERO));
            if let Some(proof) = self.ejection.as_ref().and_then(EjectionUnderWay::proof) {
                return Ok(self.gone(Evidence::Ejected, format!("{proof}; {}", self.say_seen(now))));
            }
            let most_ms = if is_ejection_over { most_ms(self.longest_ms(), lost_due_ms.saturating_sub(written_ms)) } else { u64::MAX };
            if now >= written_ms.saturating_add(most_ms.min(limit_ms)) {
                return Ok(FenceReport::NotProved { reason: self.say_unproved(now, request.io, limit_ms < most_ms) });
            }
            self.hear(request, TURN);
        }
    }

    /// Asks this machine's own cluster about a victim that its cluster may keep alive.
    fn ask_cluster(&self, request: &FenceRequest<'_>) -> Option<Receiver<Option<u64>>> {
        self.fencer.victim().filter(|beat| beat.rule == Rule::Cluster)?;
        let (say, words) = channel();
        let (victim, is_over) = (request.victim.to_owned(), Arc::clone(&self.is_over));
        let asker = std::thread::Builder::new().name("sbd-member".into()).spawn(move || member::ask(&victim, &say, &is_over));
        asker.ok().map(|_| words)
    }

    /// The longest time from the message after which something can still be proved.
    fn longest_ms(&self) -> u64 {
        let msgwait_ms = self.headers.iter().map(|header| u64::from(header.msgwait_s) * 1000).max().unwrap_or(0);
        let delay_ms = observed_ms(u64::from(STORAGE_DELAY_MS), DRIFT_PPM);
        // Until its lease ends one that cannot read its mailbox may still write beats; the silence that counts begins after the last.
        let lease_ms = self.fencer.victim().map_or(0, |beat| u64::from(beat.lease_ms) + expiry_ms(beat.lease_ms, DRIFT_PPM) + delay_ms);
        let outlive_ms = self.fencer.victim().map_or(0, |beat| observed_ms(u64::from(beat.outlive_ms), DRIFT_PPM) + delay_ms);
        msgwait_ms.max(lease_ms).max(outlive_ms) + LAST_LOOKS_MS
    }

    fn say_seen(&self, now: u64) -> String {
        let on = format!("the message stood on {} of {} devices", self.written, self.orders.len());
        let for_ms = now.saturating_sub(self.fencer.written_ms().unwrap_or(now));
        match self.fencer.victim() {
            Some(beat) => format!("{on} for {for_ms} ms; {}", say_beat(beat)),
            None => format!("{on} for {for_ms} ms; its sbd leaves no record of ours"),
        }
    }

    fn say_unproved(&self, now: u64, io: Duration, is_cut: bool) -> String {
        let seen = self.say_seen(now);
        let why = match (self.fencer.victim(), safe_msgwait(&self.headers, io)) {
            _ if is_cut => "evidence was waited for no longer; allow more time".to_owned(),
            (Some(beat), _) if beat.rule == Rule::Cluster => {
                "its cluster may keep it alive without its disk, so that silence proves nothing, and this machine's corosync does not say that it has lost it: look at that node, or use another fencing device".to_owned()
            }
            (_, Err(reason)) => reason,
            (None, Ok(_)) => {
                "the message was taken out of its mailbox before it can have been read, or its record cannot be read: send it again".to_owned()
            }
            _ => "it goes on beating and does not obey: look at the log of its sbd".to_owned(),
        };
        let ejection = match self.ejection.as_ref().map(|ejection| &ejection.result) {
            Some(Some(Err(errors))) => format!("; not ejected: {errors}"),
            Some(None) => "; not ejected within this time".to_owned(),
            _ => String::new(),
        };
        format!("{why} ({seen}){ejection}")
    }
}

/// An area has a uuid of its own; only very old ones have none.
fn check_distinct(paths: &[PathBuf], found: &[FirstLook]) -> Result<(), FenceError> {
    for (index, look) in found.iter().enumerate() {
        let same = found.iter().take(index).find(|other| other.header.uuid == look.header.uuid && look.header.uuid != [0; 16]);
        if let Some(other) = same {
            return Err(FenceError::SameDevice { first: paths[other.read.device].clone(), second: paths[look.read.device].clone() });
        }
    }
    Ok(())
}

/// How long evidence is waited for: `longest_ms`, and for a loss that the cluster noticed only within that time until it proves something,
/// `lost_due_ms` behind the message; but not for each further loss, or a victim that comes back again and again would be ended for ever.
#[must_use]
pub fn most_ms(longest_ms: u64, lost_due_ms: u64) -> u64 {
    longest_ms.max(lost_due_ms.min(2 * longest_ms))
}

/// What a sender goes by.
#[must_use]
pub fn config(devices: usize, msgwait_ms: Option<u64>, (may_be_stock, stand_ms): (bool, u64)) -> FencerConfig {
    FencerConfig { devices, storage_delay_ms: STORAGE_DELAY_MS, drift_ppm: DRIFT_PPM, msgwait_ms, may_be_stock, lost_ms: None, stand_ms }
}

pub(crate) fn say_beat(beat: &Beat) -> String {
    let rule = match beat.rule {
        Rule::Disk => "disk",
        Rule::Cluster => "cluster",
    };
    let watchdog = if beat.watchdog == WatchdogKind::None { ", no watchdog" } else { "" };
    format!("last beat {} of boot {}, rule {rule}, lease {} ms{watchdog}", beat.beat, beat.boot, beat.lease_ms)
}

/// The time after which a node without a record of ours is dead, if the area's times can be true: it tolerates its I/O time and its loop
/// time without a read, and then its watchdog has to fire. Its I/O time is not on the disk: stock's default stands for it.
///
/// # Errors
/// Why they cannot be true.
pub fn safe_msgwait(headers: &[SbdHeader], io: Duration) -> Result<u64, String> {
    for header in headers {
        let needed_s = io.as_secs() + u64::from(header.loop_s) + u64::from(header.watchdog_s) + LATENESS_S;
        if u64::from(header.msgwait_s) < needed_s {
            return Err(format!(
                "msgwait {} s is less than {needed_s} s, which are the loop's {} s, the watchdog's {} s and {LATENESS_S} s for its lateness, and {} s for I/O: waiting proves nothing; create the area with other times",
                header.msgwait_s,
                header.loop_s,
                header.watchdog_s,
                io.as_secs()
            ));
        }
    }
    match headers.iter().map(|header| u64::from(header.msgwait_s) * 1000).max() {
        Some(msgwait_ms) => Ok(msgwait_ms),
        None => Err("no header can be read".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(devices: &[PathBuf], command: Command) -> FenceRequest<'_> {
        FenceRequest { devices, victim: "a", command, sender: "b", io: ANSWER, limit: Duration::ZERO, protected: None }
    }

    #[test]
    fn a_loss_that_is_noticed_again_and_again_lengthens_the_wait_once() {
        let table = [(0, 30_000), (20_000, 30_000), (45_000, 45_000), (60_000, 60_000), (90_000, 60_000)];
        for (lost_due_ms, expected) in table {
            assert_eq!(most_ms(30_000, lost_due_ms), expected);
        }
    }

    #[test]
    fn what_cannot_be_a_fence_is_refused() {
        let one = [PathBuf::from("/nonexistent")];
        let refused = |devices: &[PathBuf], command| fence(&request(devices, command)).unwrap_err();
        assert!(matches!(refused(&[], Command::Reset), FenceError::Devices { found: 0 }));
        assert!(matches!(refused(&vec![one[0].clone(); 4], Command::Reset), FenceError::Devices { found: 4 }));
        assert!(matches!(refused(&one, Command::Test), FenceError::Command { command: Command::Test }));
        assert!(matches!(refused(&one, Command::Reset), FenceError::NotWritten { written: 0, .. }));
        assert!(matches!(power_state(&one, "a").unwrap(), PowerState::Unknown { .. }));
        assert!(power_state(&[], "a").is_err());
    }
}
