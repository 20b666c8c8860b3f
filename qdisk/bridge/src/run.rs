//! What: the loop of the quorum device: one machine, one device, one connection to corosync.
//! Owns: the process's lock, the engine, the order in which events reach the machine.
//! Invariants: a vote is cast under the guard; a call is answered before anything else is handled; memberships are taken before time.
//! Does not: decide.
//! Called by: the verb `run`.

use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadbolt_corosync::{Corosync, Device, Poll};
use deadbolt_disk::{BackendChoice, Completion, Engine, Operation, RawDevice, now_ns};
use deadbolt_disk_format::{BootId, Incarnation, Life};
use deadbolt_qdevice_core::{Bridge, Call, Cast, Input, Output, Ring, RingId, Rules, Setup};
use deadbolt_qdisk::devices::ClusterDevice;
use deadbolt_qdisk_core::register::DiskOpKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::BridgeError;
use crate::configuration::{Configured, slot_of};
use crate::guard::Guard;

/// The name under which the device is registered.
const NAME: &std::ffi::CStr = c"deadbolt-qdevice";
const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// How long a clean stop may take, beside four tokens. Chosen: some cycles; a service manager kills after much longer.
const STOP_MS: u64 = 5000;

fn system(what: &'static str) -> impl Fn(io::Error) -> BridgeError {
    move |source| BridgeError::System { what, source }
}

fn os(what: &'static str) -> impl Fn(nix::Error) -> BridgeError {
    move |source| BridgeError::System { what, source: source.into() }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Held by this process until its last write has ended: an earlier one that hangs in a write keeps it.
fn lock(configured: &Configured, device: &ClusterDevice) -> Result<UnixListener, BridgeError> {
    let name = format!("deadbolt-qdevice-{}-{}", device.superblock.cluster, configured.own_slot());
    let address = SocketAddr::from_abstract_name(name).map_err(system("a lock"))?;
    UnixListener::bind_addr(&address).map_err(BridgeError::Second)
}

fn kernel_boot() -> Result<BootId, BridgeError> {
    let text = std::fs::read_to_string(KERNEL_BOOT).map_err(system(KERNEL_BOOT))?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut boot = BootId::NONE;
    for (byte, pair) in boot.0.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).map_err(|error| system(KERNEL_BOOT)(io::Error::other(error)))?;
    }
    Ok(boot)
}

fn draw() -> Result<[u8; 16], BridgeError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| system("random bits")(io::Error::other(error.to_string())))?;
    Ok(bytes)
}

struct Shell {
    bridge: Bridge,
    corosync: Device,
    engine: Engine,
    done: Receiver<Completion>,
    guard: Guard,
    is_stopped: bool,
    stop_ms: u64,
}

pub(crate) fn run(calls: Corosync, configured: &Configured, device: &ClusterDevice, rules: Rules) -> Result<(), BridgeError> {
    let _lock = lock(configured, device)?;
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTERM);
    stops.add(Signal::SIGINT);
    // Before any thread: all inherit it.
    stops.thread_block().map_err(os("signals"))?;
    let signals = SignalFd::with_flags(&stops, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(os("signals"))?;
    let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(os("an eventfd"))?);
    let (completions, done) = channel();
    let waker = Arc::clone(&wake);
    let sink = move |completion| {
        // After the loop's end nobody waits for it.
        let _ = completions.send(completion);
        let _ = waker.write(1);
    };
    let raw: Arc<dyn RawDevice> = Arc::clone(&device.device) as Arc<dyn RawDevice>;
    let engine = Engine::start(raw, BackendChoice::Threads, Box::new(sink));
    let engine = engine.map_err(|error| system("an I/O engine")(io::Error::other(error.to_string())))?;
    let bridge = Bridge::new(setup(configured, device, rules)?);
    let corosync = Device::open(calls, NAME.to_owned())?;
    let guard = Guard::new().map_err(os("a timer"))?;
    let mut shell = Shell { bridge, corosync, engine, done, guard, is_stopped: false, stop_ms: STOP_MS + 4 * rules.skew_ms };
    eprintln!("deadbolt-qdevice: slot {} on {}", configured.own_slot(), configured.path);
    shell.handle(Input::Start)?;
    shell.serve(&signals, &wake)
}

fn setup(configured: &Configured, device: &ClusterDevice, rules: Rules) -> Result<Setup, BridgeError> {
    let slot = configured.own_slot();
    let random = draw()?;
    let me = Life { slot, boot: kernel_boot()?, incarnation: Incarnation(random) };
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    Ok(Setup {
        me,
        cluster: device.superblock.cluster,
        layout: device.superblock.layout,
        rules,
        standing: configured.standing(),
        configuration: configured.configuration(device.superblock.timings),
        carried: device.beats()?.into_iter().find(|beat| beat.slot == slot),
        seed: u64::from_le_bytes(std::array::from_fn(|index| random.get(index).copied().unwrap_or(0))),
        wall_offset_ms: wall_ms.saturating_sub(now_ms()),
    })
}

impl Shell {
    fn serve(&mut self, signals: &SignalFd, wake: &EventFd) -> Result<(), BridgeError> {
        let mut stop_by_ms = u64::MAX;
        while !self.is_stopped {
            let until_ms = self.bridge.next_deadline().min(stop_by_ms);
            let sleep = Duration::from_millis(until_ms.saturating_sub(now_ms()).min(1000));
            let ready = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut descriptors = [ready(self.corosync.descriptor()), ready(wake.as_fd()), ready(signals.as_fd())];
            match poll(&mut descriptors, PollTimeout::try_from(sleep).unwrap_or(PollTimeout::ZERO)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(os("poll")(error)),
            }
            self.take_memberships()?;
            let _ = wake.read();
            while let Ok(completion) = self.done.try_recv() {
                self.handle(input_of(completion))?;
            }
            if stop_by_ms == u64::MAX && matches!(signals.read_signal(), Ok(Some(_))) {
                stop_by_ms = now_ms() + self.stop_ms;
                self.handle(Input::Stop)?;
            }
            self.handle(Input::Tick)?;
            if now_ms() >= stop_by_ms && !self.is_stopped {
                return Err(BridgeError::NotLeft);
            }
        }
        Ok(())
    }

    fn take_memberships(&mut self) -> Result<(), BridgeError> {
        for announced in self.corosync.dispatch()? {
            let (node, sequence) = announced.ring;
            let members = announced.nodes.into_iter().map(slot_of).collect();
            self.handle(Input::Ring(Ring { id: RingId { node, sequence }, members }))?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<(), BridgeError> {
        self.bridge.handle(now_ms(), input);
        while let Some(output) = self.bridge.poll_output() {
            match output {
                Output::Disk { tag, kind } => self.engine.submit(tag, operation_of(kind)),
                Output::Call(call) => {
                    let is_taken = self.call(call)?;
                    self.bridge.handle(now_ms(), Input::Called { call, is_taken });
                }
                Output::DrawIncarnation => {
                    let incarnation = Incarnation(draw()?);
                    self.bridge.handle(now_ms(), Input::Incarnation(incarnation));
                }
                Output::Stopped => self.is_stopped = true,
                Output::Halted(text) => return Err(BridgeError::Halted(text)),
                Output::Log(text) => eprintln!("deadbolt-qdevice: {} ms: {text}", now_ms()),
            }
        }
        Ok(())
    }

    fn call(&mut self, call: Call) -> Result<bool, BridgeError> {
        match call {
            Call::Register => match self.corosync.register() {
                Ok(()) => Ok(true),
                Err(error) => {
                    eprintln!("deadbolt-qdevice: {error}");
                    Ok(false)
                }
            },
            Call::Poll { cast: Cast::Against, ring, .. } => {
                Ok(matches!(self.corosync.poll(false, (ring.node, ring.sequence))?, Poll::Taken | Poll::NotRegistered))
            }
            Call::Poll { cast: Cast::For, ring, until_ms } => {
                let corosync = &self.corosync;
                let cast = self.guard.before(until_ms, || corosync.poll(true, (ring.node, ring.sequence))).map_err(os("a timer"))?;
                Ok(cast.transpose()? == Some(Poll::Taken))
            }
            Call::Unregister => {
                self.corosync.unregister()?;
                // What it counts for changes only when the message about it has come round, or with the next ring.
                Ok(!self.corosync.state()?.is_quorate)
            }
        }
    }
}

fn input_of(completion: Completion) -> Input {
    Input::Disk {
        tag: completion.tag,
        issued_ms: completion.issued_ns / 1_000_000,
        // Rounded up: silence counts from here.
        ended_ms: completion.ended_ns.div_ceil(1_000_000),
        result: completion.result.map_err(|_| ()),
    }
}

fn operation_of(kind: DiskOpKind) -> Operation {
    match kind {
        DiskOpKind::Read { offset, bytes } => Operation::Read { offset, bytes },
        DiskOpKind::Write { offset, data } => Operation::Write { offset, data },
        DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
            Operation::WriteThenRead { write_offset, data, read_offset, read_bytes }
        }
    }
}
