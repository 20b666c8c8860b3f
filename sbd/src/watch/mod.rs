//! What: `sbd watch`: the drop-in daemon of a node in a cluster that is not ours.
//! Owns: the order of its start: devices, slot, a first whole cycle by a trial process, the watchdog, then the life.
//! Invariants: returns success only once the watchdog is armed and the first lease runs; the watchdog is opened behind setsid, while
//! this process has one thread.
//! Does not: decide anything after the start; see `life` and sbd core.
//! Called by: `stock`; the simulator goes by its times.

mod background;
pub(crate) mod boot;
mod cluster;
mod places;
mod sampler;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use deadbolt_disk::{BackendChoice, now_ns};
use deadbolt_disk_format::span::expiry_ms;
use deadbolt_disk_format::{BootId, Incarnation, Timings, WatchdogKind};
use deadbolt_sbd_core::{ClusterSay, LegacyPills, LifelineConfig, Regime, WatchRules, reset_ms_of};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::feeder::FeederConfig;
use crate::life::{ClusterWord, LifeEnd, LifeSetup, WatchBegin, WatchSetup, live};
use crate::log::Log;
use crate::options::{DelayStart, StockOptions};
use crate::page::Page;
use crate::protect::{Protection, lock_memory, use_ordinary_time, use_real_time};
use crate::reset::MachineReset;
use crate::say::say_refusal;
use crate::slots::SlotError;
use crate::watchdog::{ArmedWatchdog, DeviceWatchdog, NoWatchdog, Watchdog, WatchdogError};
use background::{Background, Detached, PidFile, PidFileError, Tried};
use cluster::Servants;
use places::{Found, open_all};
pub use sampler::{Sampler, SbdTimes};

/// Interval of cycles; a longer loop time is no reason to read the mailbox seldom. Chosen: a victim dies a quarter of a second after
/// the message in the mean, and a watcher at rest takes less than a thousandth of a processor.
const POLL_MS: u32 = 500;
/// The feeding thread wakes four times in a watchdog's time, and this often at least; to retire it is woken. Chosen: a life that gets its
/// next cycle just in time is fed long before its watchdog fires.
const FEED_MS_MAX: u32 = 1000;
/// Allowance for one cycle, as in a cluster of ours.
const CYCLE_MS: u32 = 150;
/// rho, 1 %.
const DRIFT_PPM: u32 = 10_000;
/// How late an unknown driver may fire (docs/timing.md, Drivers).
const LATENESS_MS: u32 = 1000;
/// D: how long a command of a dead node may still act at the storage; an assumption.
const STORAGE_DELAY_MS: u32 = 500;
/// How often the cluster's first word is looked for, besides when a servant says something.
const WORD_TURN_MS: u16 = 250;
/// How long the last lines may take before the process ends without them.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Why there is no watcher.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WatchError {
    #[error(
        "SBD_SYNC_RESOURCE_STARTUP is on and Pacemaker is not asked: set SBD_PACEMAKER=yes, or SBD_SYNC_RESOURCE_STARTUP=no if that is meant"
    )]
    NothingToSync,
    #[error("no device and no cluster to ask: name a device with -d or SBD_DEVICE, or let Pacemaker be asked with -P")]
    NothingToWatch,
    #[error("{found} of {count} devices can be used after {waited_s} s, {needed} are needed: {reasons}")]
    Devices { found: usize, count: usize, needed: u32, waited_s: u64, reasons: String },
    #[error("{device}: {source}")]
    Slot { device: String, source: SlotError },
    #[error("{call} failed: {source}")]
    System { call: &'static str, source: std::io::Error },
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Page(#[from] crate::page::PageError),
    #[error(transparent)]
    Life(#[from] crate::life::LifeError),
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    #[error("{0}")]
    Refused(String),
    #[error("no cycle was complete on enough devices within {0} s")]
    NoCycle(u32),
    #[error("{0} ms passed between the first cycle and here, so that the watchdog may not be opened any more: start again")]
    TooLate(u64),
}

fn system(call: &'static str) -> impl Fn(nix::Error) -> WatchError {
    move |errno| WatchError::System { call, source: errno.into() }
}

/// `sbd watch`. Answers in the process that was started once its child lives; the child never comes back.
pub(crate) fn watch(options: &StockOptions, node: &str) -> Result<(), WatchError> {
    if options.syncs_startup && !options.asks_pacemaker {
        return Err(WatchError::NothingToSync);
    }
    if options.devices.is_empty() && options.servants().is_empty() {
        return Err(WatchError::NothingToWatch);
    }
    let found = open_all(options, node)?;
    delay(options, &found);
    match background::detach().map_err(system("fork"))? {
        Detached::Parent(child) => child.wait().map_err(WatchError::Refused),
        Detached::Child(background) => end(stand(options, node, found, background)),
    }
}

/// Ends the child. Nobody waits for it any more, or its parent has read why.
#[allow(clippy::exit, reason = "a child of the program, whose caller is its parent")]
fn end(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

fn delay(options: &StockOptions, found: &Found) {
    let seconds = match options.delay {
        DelayStart::No => 0,
        DelayStart::Seconds(seconds) => seconds,
        DelayStart::Msgwait => found.msgwait_s().map_or(2 * u64::from(options.watchdog_s), u64::from),
    };
    std::thread::sleep(Duration::from_secs(seconds));
}

/// The child: from the first cycle to the end of the watcher. Answers its exit code.
fn stand(options: &StockOptions, node: &str, found: Found, mut background: Background) -> u8 {
    let pid_file = match options.pid_file.as_deref().map(|path| PidFile::take(Path::new(path))).transpose() {
        Ok(pid_file) => pid_file,
        Err(error) => return background.fail(&error.to_string()),
    };
    if options.move_to_root_cgroup {
        background::move_to_root_cgroup();
    }
    let code = match begin(options, node, found, &mut background) {
        Ok((setup, log)) => {
            let end = live(setup);
            let code = say_end(end, &log);
            log.finish(LAST_LINES);
            code
        }
        Err(error) => background.fail(&error.to_string()),
    };
    drop(pid_file);
    code
}

fn say_end(end: Result<LifeEnd, crate::life::LifeError>, log: &Log) -> u8 {
    let (text, code) = match end {
        Ok(LifeEnd::Stopped { is_recorded: true }) => ("stopped cleanly".to_owned(), 0),
        Ok(LifeEnd::Stopped { is_recorded: false }) => ("stopped and disarmed; the last beat does not say so".to_owned(), 0),
        Ok(LifeEnd::Refused(reason)) => (say_refusal(&reason), 1),
        Ok(LifeEnd::Reset(_) | LifeEnd::Ready { .. }) => ("the life ended".to_owned(), 1),
        Err(error) => (error.to_string(), 1),
    };
    log.say(&text);
    code
}

/// Everything up to the armed watchdog, and what the life needs.
fn begin(options: &StockOptions, node: &str, found: Found, background: &mut Background) -> Result<(LifeSetup, Log), WatchError> {
    // Before any thread: one that does not block them would be ended by them, and the process with it.
    let stop = block_signals()?;
    let life = Life::of(options, node, &found)?;
    let (beat, unread) = if found.devices.is_empty() { (0, 0) } else { life.try_once(&found, background)? };
    let missing = found.missing.clone();
    let mut setup = life.setup(found, Log::silent(), stop, WatchBegin::Resume { beat, unread })?;
    if let Some(watch) = &mut setup.watch {
        watch.timeout_action = options.timeout_action.command;
        watch.flushes = options.timeout_action.flushes;
        if !options.servants().is_empty() {
            let times = (life.timings.stall_ms, life.timings.watchdog_ms);
            watch.cluster = Some(Box::new(Servants::start(options, node, times, now_ns() / 1_000_000)?));
        }
    }
    if let Some(cluster) = setup.watch.as_mut().and_then(|watch| watch.cluster.as_mut()).filter(|_| setup.devices.is_empty()) {
        wait_for_word(cluster.as_mut(), setup.stop.as_fd())?;
    }
    // The last that may fail: from here on the machine is reset if this process does not go on.
    let (watchdog, granted_ms) = life.open_watchdog(options)?;
    setup.config.timings = with_granted(life.timings, granted_ms);
    setup.watchdog = Box::new(ArmedWatchdog::new(watchdog, granted_ms));
    if let Some(watch) = &mut setup.watch {
        watch.alive = background.take_alive();
    }
    // From here on there are threads.
    setup.log = Log::to_syslog(c"sbd");
    setup.feeder.protection = protect(options, &setup.log);
    missing.iter().for_each(|reason| setup.log.say(&format!("counts as lost until sbd is started anew: {reason}")));
    let log = setup.log.clone();
    Ok((setup, log))
}

/// Without a device the first good word of the cluster stands for the first cycle: a watchdog that ran before it would reset every
/// machine whose cluster is slow to start.
fn wait_for_word(cluster: &mut dyn ClusterWord, stop: BorrowedFd<'_>) -> Result<(), WatchError> {
    while cluster.poll_word(now_ns() / 1_000_000).any_ms.is_none() {
        let descriptors = std::iter::once(stop).chain(cluster.descriptors());
        let mut polled: Vec<PollFd<'_>> = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        if poll(&mut polled, WORD_TURN_MS).is_ok() && polled[0].any().unwrap_or(false) {
            return Err(WatchError::Refused("asked to stop before the cluster called this node well".to_owned()));
        }
    }
    Ok(())
}

/// The watchdog runs with this time already: the first beat behind that has to publish the lease that follows from it.
#[must_use]
pub fn with_granted(timings: Timings, granted_ms: u32) -> Timings {
    let reset_ms = reset_ms_of(granted_ms, timings.lateness_ms, timings.drift_ppm);
    let lease_ms = timings.lease_ms.max(timings.stall_ms.saturating_add(reset_ms.saturating_mul(2)));
    let expiry_ms = u32::try_from(expiry_ms(lease_ms, timings.drift_ppm)).unwrap_or(u32::MAX);
    Timings { lease_ms, expiry_ms, ..timings }
}

/// What a life of this watcher is, without what it lives with.
struct Life {
    node: String,
    boot: BootId,
    writer: Incarnation,
    timings: Timings,
    watchdog: WatchdogKind,
    rules: WatchRules,
    io_s: u32,
}

impl Life {
    fn of(options: &StockOptions, node: &str, found: &Found) -> Result<Self, WatchError> {
        let mut writer = Incarnation::NONE;
        getrandom::fill(&mut writer.0)
            .map_err(|error| WatchError::System { call: "getrandom", source: std::io::Error::other(error.to_string()) })?;
        let cluster = match (!options.servants().is_empty(), options.devices.is_empty(), options.cluster_first) {
            (false, ..) => ClusterSay::None,
            (true, true, _) => ClusterSay::Alone,
            (true, false, true) => ClusterSay::MustAgree,
            (true, false, false) => ClusterSay::KeepsAlive,
        };
        Ok(Self {
            node: node.to_owned(),
            boot: boot::machine_boot().map_err(|source| WatchError::System { call: "reading the boot id", source })?,
            writer,
            timings: timings(options.io_s, found.times().unwrap_or(SbdTimes { watchdog_s: options.watchdog_s, loop_s: options.loop_s })),
            watchdog: if options.has_watchdog { WatchdogKind::Device } else { WatchdogKind::None },
            rules: WatchRules {
                devices: u32::try_from(options.devices.len()).unwrap_or(u32::MAX),
                cluster,
                start: options.start,
                crash_reset_ms: if options.crash_s > 0 {
                    reset_ms_of(options.crash_s.saturating_mul(1000), LATENESS_MS, DRIFT_PPM)
                } else {
                    0
                },
            },
            io_s: options.io_s,
        })
    }

    fn setup(&self, found: Found, log: Log, stop: OwnedFd, begin: WatchBegin) -> Result<LifeSetup, WatchError> {
        let (times, io_s) = (found.times(), self.io_s);
        Ok(LifeSetup {
            node: self.node.clone(),
            backend: BackendChoice::Auto,
            config: LifelineConfig {
                // Each device has its own; see `Placement`.
                slot: found.devices.first().map_or(deadbolt_disk_format::SlotIndex(0), |device| device.placement.slot()),
                boot: self.boot,
                writer: self.writer,
                devices: found.devices.len(),
                timings: self.timings,
                watchdog: self.watchdog,
                legacy: LegacyPills::Accept,
                regime: Regime::Watch(self.rules),
            },
            devices: found.devices,
            key: None,
            watchdog: Box::new(NoWatchdog),
            feeder: FeederConfig {
                watchdog_ms: self.timings.watchdog_ms,
                lateness_ms: self.timings.lateness_ms,
                drift_ppm: self.timings.drift_ppm,
                reset_ms_max: u32::MAX,
                feed_ms: self.timings.feed_ms,
                protection: Protection::None,
            },
            reset: Box::new(MachineReset),
            page: Page::create()?.0,
            log,
            stop,
            watch: Some(WatchSetup {
                begin,
                timeout_action: deadbolt_sbd_core::ResetCommand::Reset,
                flushes: false,
                cluster: None,
                sampler: Sampler::new(found.samples.into_iter(), times),
                retimed: Box::new(move |times| timings(io_s, times)),
                alive: Box::new(|| ()),
            }),
        })
    }

    /// A whole cycle on enough devices, by a process of its own: what hangs there hangs nobody. Answers the last beat, and the devices
    /// whose mailbox was not read.
    fn try_once(&self, found: &Found, background: &mut Background) -> Result<(u64, u32), WatchError> {
        let limit_s = (self.timings.watchdog_ms + self.timings.stall_ms).div_ceil(1000);
        let tried = background.try_life(Duration::from_secs(u64::from(limit_s)), || {
            let log = Log::to_syslog(c"sbd");
            let stop = block_signals().map_err(|error| error.to_string())?;
            let setup = self.setup(found.clone(), log.clone(), stop, WatchBegin::Try).map_err(|error| error.to_string())?;
            let end = live(setup).map_err(|error| error.to_string());
            log.finish(LAST_LINES);
            match end? {
                LifeEnd::Ready { beat, since_ms, unread } => Ok(Tried { beat, since_ms, unread }),
                LifeEnd::Refused(reason) => Err(say_refusal(&reason)),
                LifeEnd::Stopped { .. } | LifeEnd::Reset(_) => Err("the first cycle was the last".to_owned()),
            }
        });
        let tried = tried.map_err(WatchError::Refused)?.ok_or(WatchError::NoCycle(limit_s))?;
        // Others may count a life gone at the end of the lease of that cycle. A watchdog opened later than this could keep a machine
        // alive beyond it whose earlier watcher died.
        let spent_ms = (now_ns() / 1_000_000).saturating_sub(tried.since_ms);
        if spent_ms >= u64::from(self.timings.stall_ms) {
            return Err(WatchError::TooLate(spent_ms));
        }
        Ok((tried.beat, tried.unread))
    }

    fn open_watchdog(&self, options: &StockOptions) -> Result<(Box<dyn Watchdog>, u32), WatchError> {
        if !options.has_watchdog {
            return Ok((Box::new(NoWatchdog), self.timings.watchdog_ms));
        }
        let path = Path::new(&options.watchdog_device);
        let mut watchdog = DeviceWatchdog::new(path).crash_time(options.crash_s);
        let granted_ms =
            if options.keeps_watchdog_time { watchdog.arm_as_it_is()? } else { watchdog.arm(self.timings.watchdog_ms, now_ns())? };
        Ok((Box::new(watchdog), granted_ms))
    }
}

/// The times of a watcher, from those that its device or its options name. The node is tolerated without a cycle for as long as stock
/// tolerates it, the I/O time and the loop time, less one interval: so that with the default times a watchdog whose lateness is not
/// known has fired when a stock sender stops waiting.
#[must_use]
pub fn timings(io_s: u32, SbdTimes { watchdog_s, loop_s }: SbdTimes) -> Timings {
    let watchdog_ms = watchdog_s.max(1).saturating_mul(1000);
    let reset_ms = reset_ms_of(watchdog_ms, LATENESS_MS, DRIFT_PPM);
    let poll_ms = POLL_MS.min(loop_s.max(1).saturating_mul(1000));
    let stall_ms = io_s.saturating_add(loop_s).max(1).saturating_mul(1000) - poll_ms;
    let lease_ms = stall_ms.saturating_add(reset_ms.saturating_mul(2));
    Timings {
        stall_ms,
        poll_ms,
        feed_ms: (watchdog_ms / 4).min(FEED_MS_MAX),
        watchdog_ms,
        lateness_ms: LATENESS_MS,
        cycle_ms: CYCLE_MS,
        reset_ms,
        lease_ms,
        expiry_ms: u32::try_from(expiry_ms(lease_ms, DRIFT_PPM)).unwrap_or(u32::MAX),
        storage_delay_ms: STORAGE_DELAY_MS,
        drift_ppm: DRIFT_PPM,
        ..Timings::default()
    }
}

/// Locks memory and tries real-time scheduling; each that is missing is one line for people. Stock goes on without, and so does this.
fn protect(options: &StockOptions, log: &Log) -> Protection {
    if let Err(missing) = lock_memory() {
        log.say(&missing.to_string());
    }
    if !options.has_real_time {
        return Protection::None;
    }
    match use_real_time() {
        Ok(()) => {
            use_ordinary_time();
            Protection::RealTime
        }
        Err(missing) => {
            log.say(&missing.to_string());
            Protection::None
        }
    }
}

/// TERM and INT become readable instead of ending this process: a watcher ends only when that is safe.
fn block_signals() -> Result<OwnedFd, WatchError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        signals.add(signal);
    }
    signals.thread_block().map_err(system("sigprocmask"))?;
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.add(Signal::SIGINT);
    SignalFd::with_flags(&asked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(OwnedFd::from).map_err(system("signalfd"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_sbd_core::ClusterSeen;

    /// Says nothing good for so many looks.
    struct Slow(u32);

    impl ClusterWord for Slow {
        fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }
        fn poll_word(&mut self, now_ms: u64) -> ClusterSeen {
            let any_ms = (self.0 == 0).then_some(now_ms);
            self.0 = self.0.saturating_sub(1);
            ClusterSeen { any_ms, ..ClusterSeen::default() }
        }
    }

    #[test]
    fn without_a_device_the_first_good_word_is_waited_for_unless_asked_to_stop() {
        let (stop, ask) = nix::unistd::pipe().unwrap();
        assert!(wait_for_word(&mut Slow(2), stop.as_fd()).is_ok());
        nix::unistd::write(&ask, b"x").unwrap();
        assert!(matches!(wait_for_word(&mut Slow(2), stop.as_fd()), Err(WatchError::Refused(_))));
    }

    #[test]
    fn the_lease_has_room_for_what_the_watchdog_grants() {
        let times = timings(3, SbdTimes { watchdog_s: 5, loop_s: 1 });
        assert_eq!(with_granted(times, 5000), times);
        assert_eq!(with_granted(times, 60_000).lease_ms, 3500 + 2 * reset_ms_of(60_000, LATENESS_MS, DRIFT_PPM));
    }
}
