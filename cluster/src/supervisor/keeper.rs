//! What: the outermost process of a node: numbers its lives, watches over them, sees them end.
//! Owns: both locks, the file `boot`, the page's deadline, the listening socket.
//! Invariants: while a life runs this process touches no disk and waits for nobody; between lives its only child has been reaped
//!   and the kernel has said that there is no other.
//! Does not: start anything but the runner; read a byte that a client sent.
//! Called by: `deadboltd --supervise`.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use deadbolt_disk::now_ns;
use deadbolt_disk_format::{BootId, WatchdogKind};
use deadbolt_sbd::page::{Page, PageDescriptors, ResetRequest, SupervisorSide};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::boot::{self, BootRecord};
use super::handler::close_inherited;
use super::lock::{self, Claim, Earlier};
use super::protocol::{Answer, Order, encode_line};
use super::runner::{self, RUNNER_CLEAN, RUNNER_FORCED, RUNNER_REFUSED, RUNNER_RESET, RUNNER_START_FAILED};
use super::socket::{bind, receive, send_with, timeout};
use super::{
    EXIT_REFUSED, LifeEnd, Namespaces, RestartPolicy, SOCKET_FILE, SupervisorError, SupervisorOptions, WATCH_INTERVAL, caller, child,
    namespace, process,
};

/// The names of the watchdog kinds in the boot file.
const PROCESS: &str = "process";
const DEVICE: &str = "device";
/// Beyond the runner's own bound for a clean stop.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// Between a reset and the next life: short, for the others wait for the new boot number; longer when lives are short.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(10);
/// A life of this length was none that failed at once.
const LIFE_CALM: Duration = Duration::from_secs(10);
/// Connections taken in one turn, so that the deadline is looked at in between.
const ACCEPTS_PER_TURN: usize = 16;
/// Real-time priority: enough to run before everything that has none (chosen; sbd's feeder may be above).
const PRIORITY: i32 = 10;

/// Supervises a node until it is told to stop. Answers the exit code; refusals go to the log.
#[must_use]
pub fn supervise(options: SupervisorOptions) -> u8 {
    match try_supervise(options) {
        Ok(end) => end.exit_code(),
        Err(error) => {
            tracing::error!("{error}");
            EXIT_REFUSED
        }
    }
}

/// As [`supervise`], with the reason as a value. Call it in a process of its own, which has neither threads nor children.
///
/// # Errors
/// When the node cannot be supervised: another supervisor, processes of an earlier life, a bad boot file, missing rights.
pub fn try_supervise(mut options: SupervisorOptions) -> Result<LifeEnd, SupervisorError> {
    options.directory = fs::canonicalize(&options.directory).map_err(|source| SupervisorError::io("find", &options.directory, source))?;
    let signals = prepare_process(&options)?;
    let mut keeper = Keeper::claim(options, signals)?;
    harden();
    let end = keeper.run();
    if end.is_err() {
        process::end_descendants(report_stuck);
    }
    // The next start replaces it anyway.
    let _ = fs::remove_file(keeper.options.directory.join(SOCKET_FILE));
    end
}

fn report_stuck(left: &[i32]) {
    tracing::error!(?left, "processes of the ended life are still there; the boot is not advanced before they are gone");
}

/// Threads of this process. One that has ended and was joined can stand in /proc for a moment longer: counted again until it is gone.
fn count_threads() -> Result<usize, SupervisorError> {
    let count = || fs::read_dir("/proc/self/task").map(Iterator::count);
    let mut threads = 0;
    for _ in 0..100 {
        threads = count().map_err(|source| SupervisorError::io("read", Path::new("/proc/self/task"), source))?;
        if threads <= 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(threads)
}

/// Log, signals, subreaper, and the check that this process is alone.
fn prepare_process(options: &SupervisorOptions) -> Result<SignalFd, SupervisorError> {
    let call = SupervisorError::system;
    let threads = count_threads()?;
    let has_children = !process::reap().is_childless;
    if has_children || threads > 1 {
        let children = if has_children { "children" } else { "no children" };
        return Err(SupervisorError::NotAlone { threads, children });
    }
    if let Some(log) = &options.log {
        redirect(log)?;
    }
    if let Some(parent) = options.parent {
        child::tie_to_parent(parent, Signal::SIGQUIT).map_err(|_| SupervisorError::ParentEnded { parent })?;
    }
    // An ignored SIGCHLD, which is inherited, would make the kernel reap without telling.
    // SAFETY: the default action, no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }.map_err(call("signal(SIGCHLD)"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
    let set: SigSet = child::supervisor_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).map_err(call("sigprocmask"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(call("signalfd"))
}

fn redirect(log: &Path) -> Result<(), SupervisorError> {
    let fail = |source| SupervisorError::io("open", log, source);
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(log).map_err(fail)?;
    let null = fs::File::open("/dev/null").map_err(fail)?;
    nix::unistd::dup2_stdout(&file).map_err(SupervisorError::system("dup2"))?;
    nix::unistd::dup2_stderr(&file).map_err(SupervisorError::system("dup2"))?;
    nix::unistd::dup2_stdin(&null).map_err(SupervisorError::system("dup2"))?;
    Ok(())
}

/// Memory that stays, and a priority that is not starved. Neither is inherited. What is refused is said in one line.
fn harden() {
    let flags = if nix::unistd::geteuid().is_root() {
        MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE
    } else {
        // Without root a limit is usual; locking what comes later could make a later allocation fail.
        MlockAllFlags::MCL_CURRENT
    };
    if let Err(errno) = mlockall(flags) {
        tracing::info!("the process watchdog is not locked in memory ({errno}; memlock limit): it may be late while memory is short");
    }
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: this process, a policy, a valid parameter.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
    if done != 0 {
        let errno = Errno::last();
        tracing::info!("the process watchdog has no real-time priority ({errno}): it may be late while the machine is busy");
    }
}

/// Why the keeper stopped watching.
#[derive(Debug)]
enum Seen {
    RunnerEnded(WaitStatus),
    NotFed { late_ns: u64 },
    Requested(ResetRequest),
    StopTooLong,
    Quit,
}

struct Keeper {
    options: SupervisorOptions,
    claim: Claim,
    record: BootRecord,
    machine_boot: BootId,
    listener: UnixListener,
    signals: SignalFd,
    /// A clean stop was asked for; when patience ends.
    stop_until: Option<Instant>,
}

impl Keeper {
    /// Takes the directory over: locks, boot file, socket.
    fn claim(options: SupervisorOptions, signals: SignalFd) -> Result<Self, SupervisorError> {
        let directory = &options.directory;
        let supervisor = lock::lock_supervisor(directory)?;
        let own = process::own_identity()?;
        let (kernel, machine_boot) = boot::kernel_boot()?;
        let found = boot::directory_identity(directory)?;
        let earlier = boot::read(directory)?;
        let is_same_kernel = earlier.as_ref().is_some_and(|record| record.kernel_boot == kernel);
        if let Some(record) = earlier.as_ref().filter(|record| is_same_kernel && record.directory != found) {
            return Err(SupervisorError::CopiedDirectory { directory: directory.clone(), recorded: record.directory, found });
        }
        let is_process = options.watchdog == WatchdogKind::Process;
        if is_process && earlier.as_ref().is_some_and(|record| is_same_kernel && record.watchdog == DEVICE) {
            return Err(SupervisorError::WatchdogChanged { directory: directory.clone() });
        }
        let tree = lock::lock_tree(directory, &Earlier::new(earlier.as_ref(), is_same_kernel), options.lock_wait)?;
        let mut record = match earlier {
            Some(record) => record,
            None => boot::fresh(own)?,
        };
        record.supervisor = own;
        record.kernel_boot = kernel;
        record.directory = found;
        record.watchdog = if is_process { PROCESS } else { DEVICE }.to_owned();
        let listener = bind(directory, SOCKET_FILE, options.socket_group)
            .map_err(|source| SupervisorError::io("bind", &directory.join(SOCKET_FILE), source))?;
        Ok(Self { options, claim: Claim { supervisor, tree }, record, machine_boot, listener, signals, stop_until: None })
    }

    /// Life after life.
    fn run(&mut self) -> Result<LifeEnd, SupervisorError> {
        let mut pause = RESTART_FIRST;
        let mut is_first = true;
        loop {
            let start = Instant::now();
            let (end, is_final) = self.live()?;
            tracing::info!(boot = ?self.record.boot(), %end, "every process of this life is gone");
            self.record.runner = None;
            self.record.last_end = Some(end.to_string());
            boot::write(&self.options.directory, &self.record)?;
            let may_follow = match end {
                LifeEnd::Clean | LifeEnd::Forced | LifeEnd::Off => false,
                LifeEnd::StartFailed { .. } => !is_first && !is_final,
                LifeEnd::Reset { .. } => true,
            };
            if !may_follow || self.options.restart == RestartPolicy::Stop {
                if let LifeEnd::StartFailed { reason } = &end {
                    tracing::error!("{reason}");
                }
                return Ok(end);
            }
            is_first = false;
            if start.elapsed() >= LIFE_CALM {
                pause = RESTART_FIRST;
            }
            tracing::info!(pause_ms = pause.as_millis(), "the next life begins after a pause");
            if self.is_told_to_stop_within(pause) {
                return Ok(end);
            }
            pause = (pause * 2).min(RESTART_MAX);
        }
    }

    /// Waits between lives, with an ear for signals.
    fn is_told_to_stop_within(&self, pause: Duration) -> bool {
        let start = Instant::now();
        loop {
            while let Ok(Some(info)) = self.signals.read_signal() {
                if info.ssi_signo != Signal::SIGCHLD as u32 {
                    return true;
                }
            }
            let Some(left) = pause.checked_sub(start.elapsed()) else {
                return false;
            };
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout(left));
        }
    }

    /// Numbers a life. The caller has seen the one before end.
    fn number(&mut self) -> Result<BootId, SupervisorError> {
        self.record.last_end = None;
        match self.options.watchdog {
            WatchdogKind::Device | WatchdogKind::None => Ok(self.machine_boot),
            WatchdogKind::Process => {
                let bad =
                    |found: &str| SupervisorError::BootFile { path: self.options.directory.join(boot::BOOT_FILE), found: found.to_owned() };
                self.record.counter = self.record.counter.checked_add(1).ok_or_else(|| bad("the largest counter there is"))?;
                self.record.boot().ok_or_else(|| bad("no node"))
            }
        }
    }

    /// One life from its number to the last of its processes. The flag: do not try again.
    fn live(&mut self) -> Result<(LifeEnd, bool), SupervisorError> {
        let boot = self.number()?;
        let (page, descriptors) = Page::create()?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (own, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(SupervisorError::system("socketpair"))?;
        let keeper = process::own_pid();
        let Some(runner) = namespace::fork_runner(self.options.namespaces)? else {
            self.become_runner(boot, &page, &descriptors, &own, theirs, keeper);
        };
        drop(theirs);
        self.record.runner = process::identity_of(runner.as_raw());
        boot::write(&self.options.directory, &self.record)?;
        send_order(&own, &Order::Go, None);
        let seen = self.watch(runner, &own, &page.supervisor());
        let status = end_life(runner, &seen);
        let (is_stopping, reason) = read_words(&own);
        if is_stopping && self.stop_until.is_none() {
            self.stop_until = Some(Instant::now());
        }
        Ok(self.judge(&seen, status, reason))
    }

    /// In the forked process.
    fn become_runner(
        &mut self,
        boot: BootId,
        page: &Page,
        descriptors: &PageDescriptors,
        own: &OwnedFd,
        channel: OwnedFd,
        keeper: i32,
    ) -> ! {
        // The keeper's lock must end with the keeper, and its end of the channel too: that is how the runner learns of it.
        close_inherited(&[own, &self.claim.supervisor, &self.listener, &self.signals]);
        let setup = runner::Setup {
            options: &mut self.options,
            boot,
            page: page.supervisor(),
            descriptors,
            channel,
            tree_lock: self.claim.tree.as_raw_fd(),
            keeper,
        };
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runner::run(setup)));
        // SAFETY: ends this process only; nothing of the keeper's is run twice.
        unsafe { libc::_exit(code.unwrap_or(RUNNER_RESET)) }
    }

    /// The process watchdog. Everything in here returns at once, save poll.
    fn watch(&mut self, runner: Pid, channel: &OwnedFd, page: &SupervisorSide) -> Seen {
        let mut may_accept = true;
        loop {
            if let Some(seen) = self.check_page(page) {
                return seen;
            }
            page.advance_alive(now_ns());
            let reaped = process::reap();
            if let Some((_, status)) = reaped.ended.iter().find(|(pid, _)| *pid == runner.as_raw()) {
                return Seen::RunnerEnded(*status);
            }
            if self.stop_until.is_some_and(|until| Instant::now() >= until) {
                return Seen::StopTooLong;
            }
            self.wait(page, may_accept);
            if self.take_signals(channel) {
                return Seen::Quit;
            }
            // Out of descriptors: leave the callers in the queue for a turn instead of spinning.
            may_accept = self.take_connections(channel);
        }
    }

    fn check_page(&self, page: &SupervisorSide) -> Option<Seen> {
        if self.options.watchdog != WatchdogKind::Process {
            return None;
        }
        if let Some(request) = page.reset_request() {
            return Some(Seen::Requested(request));
        }
        let until = page.fed_until_ns()?;
        let late_ns = now_ns().checked_sub(until).filter(|late| *late > 0)?;
        Some(Seen::NotFed { late_ns })
    }

    fn wait(&self, page: &SupervisorSide, may_accept: bool) {
        let mut span = match self.options.watchdog {
            WatchdogKind::Process => WATCH_INTERVAL.min(sign_of_life(page.watchdog_ms())),
            WatchdogKind::Device | WatchdogKind::None => WATCH_INTERVAL,
        };
        if let Some(until) = page.fed_until_ns() {
            span = span.min(Duration::from_nanos(until.saturating_sub(now_ns())));
        }
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut polled = [readable(page.ended_event()), readable(self.signals.as_fd()), readable(self.listener.as_fd())];
        let count = if may_accept { polled.len() } else { polled.len() - 1 };
        let _ = poll(&mut polled[..count], timeout(span));
        page.clear_ended();
    }

    /// Answers whether everything must end at once.
    fn take_signals(&mut self, channel: &OwnedFd) -> bool {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP) if self.stop_until.is_none() => {
                    self.stop_until = Some(Instant::now() + self.options.stop_wait + STOP_MARGIN);
                    send_order(channel, &Order::Stop, None);
                }
                Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) => return true,
                _ => {}
            }
        }
        false
    }

    /// Hands callers on, with what only this process can see of them. Answers whether to go on accepting at once.
    fn take_connections(&self, channel: &OwnedFd) -> bool {
        for _ in 0..ACCEPTS_PER_TURN {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            };
            let order = caller::inspect(socket.as_fd()).map(|facts| Order::Serve(Box::new(facts)));
            let answer = match order {
                Ok(order) if send_order(channel, &order, Some(&socket)) => continue,
                Ok(_) => Answer::refusal("the node is busy or ending; try again later".to_owned()),
                Err(reason) => Answer::refusal(reason),
            };
            let line = encode_line(&answer);
            let _ = send_with(socket.as_fd(), &line, &[], MsgFlags::MSG_DONTWAIT);
        }
        true
    }

    fn judge(&self, seen: &Seen, status: Option<WaitStatus>, reason: String) -> (LifeEnd, bool) {
        let is_told = self.stop_until.is_some();
        let reset = |reason: String| {
            if is_told { LifeEnd::Forced } else { LifeEnd::Reset { reason } }
        };
        match (seen, status) {
            (Seen::Requested(ResetRequest::Off), _) => (LifeEnd::Off, true),
            (Seen::Requested(request), _) => (reset(format!("sbd asked for it ({request:?})")), false),
            (Seen::NotFed { late_ns }, _) => {
                (reset(format!("the process watchdog was not fed; acted {} us after its time", late_ns / 1000)), false)
            }
            (Seen::StopTooLong | Seen::Quit, _) => (LifeEnd::Forced, true),
            (Seen::RunnerEnded(_), Some(WaitStatus::Exited(_, code))) => match code {
                RUNNER_CLEAN => (LifeEnd::Clean, true),
                RUNNER_FORCED => (LifeEnd::Forced, true),
                RUNNER_START_FAILED => (LifeEnd::StartFailed { reason }, false),
                RUNNER_REFUSED => (LifeEnd::StartFailed { reason }, true),
                _ => (reset(reason), false),
            },
            (Seen::RunnerEnded(_), Some(WaitStatus::Signaled(_, signal, _)))
                if self.options.namespaces == Namespaces::PidNamespace && matches!(signal, Signal::SIGHUP | Signal::SIGINT) =>
            {
                // reboot(2) ends the namespace by SIGHUP for a restart and by SIGINT for power off and halt (pid_namespaces(7)).
                if signal == Signal::SIGINT { (LifeEnd::Off, true) } else { (reset("reboot(2) inside the namespace".to_owned()), false) }
            }
            (Seen::RunnerEnded(_), Some(status)) => (reset(format!("the runner ended: {}", runner::describe(status))), false),
            (Seen::RunnerEnded(_), None) => (reset("the runner ended".to_owned()), false),
        }
    }
}

/// Ends what is left of a life and returns when nothing is: runner first, so that nothing new is started.
fn end_life(runner: Pid, seen: &Seen) -> Option<WaitStatus> {
    let status = match seen {
        Seen::RunnerEnded(status) => Some(*status),
        Seen::NotFed { .. } | Seen::Requested(_) | Seen::StopTooLong | Seen::Quit => {
            // An unreaped child: the number is its own.
            let _ = nix::sys::signal::kill(runner, Signal::SIGKILL);
            None
        }
    };
    process::end_descendants(report_stuck);
    status
}

/// How often sbd wants to hear of this process, by the time of the process watchdog; 0: not armed.
fn sign_of_life(watchdog_ms: u32) -> Duration {
    if watchdog_ms == 0 { WATCH_INTERVAL } else { Duration::from_millis(u64::from(watchdog_ms / 4).max(1)) }
}

/// Never waits. Answers whether it was taken.
fn send_order(channel: &OwnedFd, order: &Order, socket: Option<&dyn AsRawFd>) -> bool {
    let bytes = encode_line(order);
    let descriptors: Vec<_> = socket.iter().map(|socket| socket.as_raw_fd()).collect();
    send_with(channel.as_fd(), &bytes, &descriptors, MsgFlags::MSG_DONTWAIT) == Ok(bytes.len())
}

/// What the runner said: whether it began a clean stop, and its last words.
fn read_words(channel: &OwnedFd) -> (bool, String) {
    let mut is_stopping = false;
    let mut last = "the runner ended without a word".to_owned();
    let mut buffer = [0; 4096];
    while let Ok(received) = receive(channel.as_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        match buffer.get(..received.bytes) {
            Some(runner::STOPPING) => is_stopping = true,
            Some(words) if !words.is_empty() => last = String::from_utf8_lossy(words).into_owned(),
            _ => break,
        }
    }
    (is_stopping, last)
}
