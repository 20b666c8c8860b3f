//! What: a thread that drives one register over one engine per device.
//! Owns: the register, its engines, the order of its inputs.
//! Invariants: every completion reaches the register, in the order in which it came; dropping the driver never waits for a device.
//! Does not: retry or cancel I/O.
//! Called by: the membership daemon; the process tests.

use deadbolt_disk::{BackendChoice, Completion, Engine, EngineError, IoError, Operation, RawDevice, now_ns};
use deadbolt_qdisk_core::{DiskDone, DiskOp, DiskOpKind, Input, IoFailed, Output, Register, RegisterStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest sleep without a deadline; only bounds how stale a status can be. Chosen.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What the register has to say. Never [`Output::Disk`].
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an event lives for one call")]
pub enum Event {
    /// An output of the register.
    Register(Output),
    /// An operation failed; the register knows and goes on.
    DiskFailed {
        /// Which device, by its place in the list given to [`drive`].
        device: usize,
        /// How.
        error: IoError,
    },
}

/// Why a register cannot be driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// No engine for a device.
    #[error("device {device} gets no I/O engine: {source}")]
    Engine {
        /// Which device.
        device: usize,
        /// Why.
        source: EngineError,
    },
    /// No thread.
    #[error("no thread for the view register: {source}; raise the limit on processes")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
}

#[allow(clippy::large_enum_variant, reason = "a few at a time")]
enum Message {
    Input(Input),
    Done { device: usize, completion: Completion },
    Stop,
}

/// The way to a driven register. Dropped, it stops the thread; operations on their way stay with the kernel.
#[derive(Debug)]
pub struct Driver {
    messages: Sender<Message>,
    status: Arc<Mutex<RegisterStatus>>,
}

impl Driver {
    /// Hands over an input; returns at once.
    pub fn handle(&self, input: Input) {
        // The thread ends only by `Stop`, which only `drop` sends.
        let _ = self.messages.send(Message::Input(input));
    }

    /// The state after the last input handled; never waits for a device.
    #[must_use]
    pub fn status(&self) -> RegisterStatus {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
    }
}

/// Starts an engine per device and a thread for the register; `events` is called on that thread and must not block. The register
/// does nothing before [`Input::Start`]: the caller gives it when no write of an earlier life can land any more. On devices that
/// nodes of one machine share, and on files, that rule needs [`BackendChoice::Threads`].
///
/// # Errors
/// [`DriveError`].
pub fn drive(
    register: Register,
    devices: Vec<Arc<dyn RawDevice>>,
    choice: BackendChoice,
    events: Box<dyn FnMut(Event) + Send>,
) -> Result<Driver, DriveError> {
    let (messages, inbox) = channel();
    let mut engines = Vec::new();
    for (device, raw) in devices.into_iter().enumerate() {
        let done = messages.clone();
        let sink = move |completion| {
            // After the driver's end nobody waits for it.
            let _ = done.send(Message::Done { device, completion });
        };
        let engine = Engine::start(raw, choice, Box::new(sink));
        engines.push(engine.map_err(|source| DriveError::Engine { device, source })?);
    }
    let status = Arc::new(Mutex::new(register.status()));
    let carrier = Carrier { register, engines, events, status: Arc::clone(&status) };
    std::thread::Builder::new()
        .name("deadbolt-register".into())
        .spawn(move || carrier.run(&inbox))
        .map_err(|source| DriveError::Thread { source })?;
    Ok(Driver { messages, status })
}

struct Carrier {
    register: Register,
    engines: Vec<Engine>,
    events: Box<dyn FnMut(Event) + Send>,
    status: Arc<Mutex<RegisterStatus>>,
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

impl Carrier {
    fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let until = self.register.next_deadline();
            // One more than the difference: the clock's milliseconds are cut off.
            let sleep = until.map_or(SLEEP_MAX, |at| Duration::from_millis(at.saturating_sub(now_ms())).min(SLEEP_MAX));
            let input = match inbox.recv_timeout(sleep) {
                Ok(Message::Input(input)) => input,
                Ok(Message::Done { device, completion }) => self.done(device, completion),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => Input::Tick,
            };
            self.register.handle(now_ms(), input);
            *self.status.lock().unwrap_or_else(PoisonError::into_inner) = self.register.status();
            while let Some(output) = self.register.poll_output() {
                match output {
                    Output::Disk(op) => self.submit(op),
                    other => (self.events)(Event::Register(other)),
                }
            }
        }
    }

    fn done(&mut self, device: usize, completion: Completion) -> Input {
        let result = completion.result.map_err(|error| {
            (self.events)(Event::DiskFailed { device, error });
            IoFailed
        });
        Input::Disk(DiskDone { tag: completion.tag, device, result })
    }

    fn submit(&mut self, op: DiskOp) {
        let operation = match op.kind {
            DiskOpKind::Read { offset, bytes } => Operation::Read { offset, bytes },
            DiskOpKind::Write { offset, data } => Operation::Write { offset, data },
            DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                Operation::WriteThenRead { write_offset, data, read_offset, read_bytes }
            }
        };
        if let Some(engine) = self.engines.get(op.device) {
            engine.submit(op.tag, operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk::MemoryDevice;
    use deadbolt_disk_format::{
        Ballot, BootId, ClusterUuid, Digest, Incarnation, Layout, Life, Place, SlotIndex, ViewBody, ViewNumber, ViewRecord,
    };
    use deadbolt_qdisk_core::{RegisterConfig, RegisterPhase};
    use std::time::Instant;

    const CLUSTER: ClusterUuid = ClusterUuid([3; 16]);

    fn formatted() -> (MemoryDevice, Layout) {
        let layout = Layout::new(8 << 20, 512, 4).unwrap();
        let device = MemoryDevice::new(8 << 20, 512);
        for slot in (0..4).map(SlotIndex) {
            let life = Life { slot, boot: BootId::NONE, incarnation: Incarnation::NONE };
            let (view, digest) = (ViewNumber(0), Digest::NONE);
            for index in 0..2u8 {
                let sequence = u64::from(index);
                let offset = layout.vote(slot, index);
                let ballot = Ballot { life, sequence, view, entered: 0, accepted: 0, digest, place: 0 };
                device.overwrite(offset, &*ballot.encode(&Place { cluster: CLUSTER, offset, slot }));
                let offset = layout.record(slot, index);
                let record = ViewRecord { life, sequence, view, digest, place: 0, wall_ms: 0 };
                device.overwrite(offset, &*record.encode(&Place { cluster: CLUSTER, offset, slot }));
            }
        }
        (device, layout)
    }

    #[test]
    fn a_view_is_decided_and_a_hung_device_hangs_only_itself() {
        let (device, layout) = formatted();
        let life = Life { slot: SlotIndex(1), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
        let register = Register::new(RegisterConfig { cluster: CLUSTER, me: life, layouts: vec![layout], seed: 1, wall_offset_ms: 0 });
        let (events, heard) = channel();
        let device = Arc::new(device);
        let devices: Vec<Arc<dyn RawDevice>> = vec![Arc::clone(&device) as Arc<dyn RawDevice>];
        let sink = move |event| {
            let _ = events.send(event);
        };
        let driver = drive(register, devices, BackendChoice::Threads, Box::new(sink)).unwrap();
        assert_eq!(driver.status().phase, RegisterPhase::Stopped);
        let wait_for_view = |wanted: u64| loop {
            match heard.recv_timeout(Duration::from_secs(20)).unwrap() {
                Event::Register(Output::Learned { body, digest }) if body.view.0 == wanted => return digest,
                Event::Register(Output::Learned { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        driver.handle(Input::Start);
        wait_for_view(0);
        let body = ViewBody { view: ViewNumber(1), members: vec![life], ..ViewBody::default() };
        driver.handle(Input::Propose(body.clone()));
        assert_eq!(wait_for_view(1), body.digest());

        device.inject(deadbolt_disk::Fault::new(deadbolt_disk::Touches::Reads, deadbolt_disk::FaultKind::Hang));
        driver.handle(Input::Learn);
        let asked = Instant::now();
        while driver.status().outstanding_since_ms.is_none() {
            assert!(asked.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        assert_eq!(driver.status().view, Some(ViewNumber(1)), "answers while the device hangs");
        drop(driver);
        device.clear_faults();
        device.release_hung();
    }
}
