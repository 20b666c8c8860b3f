//! What: the process that starts everything of one life: sbd, daemon, and a handler per connection.
//! Owns: the order of starts, restarts of the daemon, the clean stop.
//! Invariants: nothing is started before the keeper says that the life's number is on the disk; a daemon is started again only
//!   after the one before was reaped, held nothing, and sbd has written so; the end of the keeper is the end of the tree.
//! Does not: number lives; write files.
//! Called by: the keeper, after a fork.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use deadbolt_disk::now_ns;
use deadbolt_disk_format::{BootId, WatchdogKind};
use deadbolt_sbd::page::{PageDescriptors, SbdState, SupervisorSide};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid, fork};

use super::caller::CallerFacts;
use super::child::{self, TreeMarks};
use super::handler::{Handler, close_inherited};
use super::process;
use super::protocol::{Answer, Info, Order, encode_line};
use super::socket::{receive, send_all, send_with, timeout};
use super::{BOOT_VARIABLE, BootContext, EXIT_DO_NOT_RESTART, Namespaces, SupervisorOptions, WATCH_INTERVAL, namespace};

/// The runner's exit codes: its report to the keeper.
pub(crate) const RUNNER_CLEAN: i32 = 0;
/// The life must be ended; another may follow.
pub(crate) const RUNNER_RESET: i32 = 40;
/// The life never began.
pub(crate) const RUNNER_START_FAILED: i32 = 41;
/// It stopped as told, but not everything by itself.
pub(crate) const RUNNER_FORCED: i32 = 42;
/// The daemon refuses for good.
pub(crate) const RUNNER_REFUSED: i32 = 43;

/// What the runner tells the keeper when a clean stop begins: whatever happens from here on, no life follows.
pub(crate) const STOPPING: &[u8] = b"stopping";

/// The keeper enforces the deadline; a keeper that is this late is stopped, and the runner does it. In the description of the
/// process watchdog in this module's parent.
const SECOND_WATCH: Duration = Duration::from_millis(250);
/// Connections at once; each is a process (chosen: far above a node's lock commands, far below process limits).
const HANDLERS_MAX: usize = 256;
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A daemon that ran this long is not in a crash loop.
const RESTART_CALM: Duration = Duration::from_secs(30);
/// Longest order: a caller's facts are under 4 KiB.
const ORDER_BYTES_MAX: usize = 16 * 1024;

/// What the runner gets from the keeper.
pub(crate) struct Setup<'a> {
    pub(crate) options: &'a mut SupervisorOptions,
    pub(crate) boot: BootId,
    pub(crate) page: SupervisorSide,
    pub(crate) descriptors: &'a PageDescriptors,
    pub(crate) channel: OwnedFd,
    pub(crate) tree_lock: RawFd,
    /// The keeper, as itself sees it.
    pub(crate) keeper: i32,
}

/// How the runner's life ends.
#[derive(Debug)]
struct Verdict {
    code: i32,
    reason: String,
}

fn verdict(code: i32, reason: impl Into<String>) -> Verdict {
    Verdict { code, reason: reason.into() }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running,
    Stopping { until: Instant, is_forced: bool },
}

#[derive(Debug, Clone, Copy)]
struct Daemon {
    pid: i32,
    started: Instant,
}

/// A daemon that ended and may be started again.
#[derive(Debug, Clone, Copy)]
struct Pending {
    generation: u64,
    due: Instant,
}

struct Runner<'a> {
    setup: Setup<'a>,
    marks: TreeMarks,
    signals: SignalFd,
    sbd: Option<i32>,
    daemon: Option<Daemon>,
    generation: u64,
    pending: Option<Pending>,
    restart_pause: Duration,
    handlers: BTreeSet<i32>,
    phase: Phase,
    /// Since when the page asks for the end.
    overdue: Option<Instant>,
}

/// Runs a life; answers the exit code. Called in a process of its own with one thread.
pub(crate) fn run(setup: Setup<'_>) -> i32 {
    let channel = setup.channel.as_raw_fd();
    let end = match Runner::prepare(setup) {
        Ok(Some(mut runner)) => runner.live(),
        // The keeper ended before it said go: nothing was started.
        Ok(None) => return RUNNER_RESET,
        Err(reason) => verdict(RUNNER_REFUSED, reason),
    };
    if end.code != RUNNER_CLEAN {
        tracing::warn!(code = end.code, reason = %end.reason, "the life ends");
    }
    process::end_descendants(|left| tracing::error!(?left, "processes do not end"));
    // SAFETY: the descriptor belongs to this process until it ends, which is now.
    let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(channel) };
    // A keeper that is gone or stopped does not need it.
    let _ = send_with(channel, end.reason.as_bytes(), &[], MsgFlags::MSG_DONTWAIT);
    end.code
}

impl<'a> Runner<'a> {
    /// Everything up to the keeper's go.
    fn prepare(setup: Setup<'a>) -> Result<Option<Self>, String> {
        let text = |errno: Errno| errno.to_string();
        // A session of its own: signals of the terminal are the keeper's to judge.
        nix::unistd::setsid().map_err(text)?;
        nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
        if setup.options.namespaces == Namespaces::PidNamespace {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(text)?;
            namespace::enter().map_err(|error| error.to_string())?;
        }
        let signals = SignalFd::with_flags(&child::supervisor_signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(text)?;
        let marks = TreeMarks { boot: setup.boot.to_string(), runner: process::own_pid(), lock: setup.tree_lock };
        let mut runner = Self {
            setup,
            marks,
            signals,
            sbd: None,
            daemon: None,
            generation: 0,
            pending: None,
            restart_pause: RESTART_FIRST,
            handlers: BTreeSet::new(),
            phase: Phase::Running,
            overdue: None,
        };
        match runner.receive_order(MsgFlags::empty()) {
            Ok(Some((Order::Go, _))) => Ok(Some(runner)),
            _ => Ok(None),
        }
    }

    fn live(&mut self) -> Verdict {
        if let Err(end) = self.start_sbd().and_then(|()| self.start_daemon()) {
            return end;
        }
        loop {
            let step = self
                .handle_ended()
                .and_then(|()| self.check_page())
                .and_then(|()| self.check_stop())
                .and_then(|()| self.restart_daemon_if_due())
                .and_then(|()| self.wait())
                .and_then(|()| self.take_signals())
                .and_then(|()| self.take_orders());
            if let Err(end) = step {
                return end;
            }
        }
    }

    fn context(&self, generation: u64) -> BootContext {
        BootContext {
            boot: self.setup.boot,
            directory: self.setup.options.directory.clone(),
            page: self.setup.descriptors.to_text(),
            watchdog: self.setup.options.watchdog,
            namespaces: self.setup.options.namespaces,
            generation,
        }
    }

    fn spawn(&self, mut command: Command) -> std::io::Result<i32> {
        command.env(BOOT_VARIABLE, &self.marks.boot);
        self.setup.descriptors.pass_to(&mut command);
        child::tie(&mut command, &self.marks);
        let child = command.spawn()?;
        i32::try_from(child.id()).map_err(std::io::Error::other)
    }

    fn start_sbd(&mut self) -> Result<(), Verdict> {
        let context = self.context(1);
        let command = (self.setup.options.start_sbd)(&context);
        let name = command.get_program().to_owned();
        let pid = self
            .spawn(command)
            .map_err(|error| verdict(RUNNER_START_FAILED, format!("sbd ({}) cannot be started: {error}", name.display())))?;
        tracing::info!(pid, boot = %self.setup.boot, "sbd started");
        self.sbd = Some(pid);
        Ok(())
    }

    fn start_daemon(&mut self) -> Result<(), Verdict> {
        self.generation = self.setup.page.daemon_starts();
        let context = self.context(self.generation);
        let command = (self.setup.options.start_daemon)(&context);
        let name = command.get_program().to_owned();
        match self.spawn(command) {
            Ok(pid) => {
                tracing::info!(pid, generation = self.generation, "daemon started");
                self.daemon = Some(Daemon { pid, started: Instant::now() });
                Ok(())
            }
            Err(error) if self.generation > 1 => {
                tracing::error!(%error, "the daemon cannot be started again yet");
                self.setup.page.daemon_ended(self.generation);
                self.plan_restart(Duration::ZERO);
                Ok(())
            }
            Err(error) => Err(verdict(RUNNER_START_FAILED, format!("the daemon ({}) cannot be started: {error}", name.display()))),
        }
    }

    /// Reaps children and orphans, and judges the ends of sbd and daemon.
    fn handle_ended(&mut self) -> Result<(), Verdict> {
        for (pid, status) in process::reap().ended {
            self.handlers.remove(&pid);
            if self.sbd == Some(pid) {
                self.sbd = None;
                self.handle_sbd_ended(status)?;
            } else if let Some(daemon) = self.daemon.filter(|daemon| daemon.pid == pid) {
                self.daemon = None;
                self.handle_daemon_ended(daemon, status)?;
            }
        }
        Ok(())
    }

    fn handle_sbd_ended(&mut self, status: WaitStatus) -> Result<(), Verdict> {
        let page = &self.setup.page;
        let is_stopped = process::shell_code(status) == 0 && page.sbd_state() == SbdState::Stopped;
        let was_armed = page.watchdog_ms() != 0 || page.beat() != 0;
        match (&mut self.phase, self.setup.options.watchdog) {
            (Phase::Stopping { is_forced, .. }, _) => *is_forced |= process::shell_code(status) != 0,
            (Phase::Running, _) if is_stopped => self.begin_stop(),
            (Phase::Running, WatchdogKind::Process) if was_armed => {
                return Err(verdict(RUNNER_RESET, format!("sbd ended: {}", describe(status))));
            }
            (Phase::Running, _) if !was_armed => {
                return Err(verdict(RUNNER_START_FAILED, format!("sbd ended before it armed a watchdog: {}", describe(status))));
            }
            (Phase::Running, _) => {
                tracing::error!(status = describe(status), "sbd ended; it is not started again: the watchdog device ends this boot")
            }
        }
        Ok(())
    }

    fn handle_daemon_ended(&mut self, daemon: Daemon, status: WaitStatus) -> Result<(), Verdict> {
        self.setup.page.daemon_ended(self.generation);
        let code = process::shell_code(status);
        tracing::info!(generation = self.generation, status = describe(status), "daemon ended");
        let holds = self.setup.page.holds();
        match &mut self.phase {
            Phase::Stopping { is_forced, .. } => {
                if code != 0 {
                    *is_forced = true;
                    self.signal(self.sbd, Signal::SIGTERM);
                }
            }
            Phase::Running if code == 0 => self.begin_stop(),
            Phase::Running if code == EXIT_DO_NOT_RESTART && !holds => {
                return Err(verdict(RUNNER_REFUSED, "the daemon refuses to run; its log says why"));
            }
            Phase::Running if holds => match self.setup.options.watchdog {
                WatchdogKind::Process => {
                    return Err(verdict(RUNNER_RESET, format!("the daemon ended while clients may hold locks: {}", describe(status))));
                }
                WatchdogKind::Device | WatchdogKind::None => {
                    tracing::error!("the daemon ended while clients may hold locks: sbd resets the machine");
                }
            },
            Phase::Running => self.plan_restart(daemon.started.elapsed()),
        }
        Ok(())
    }

    fn plan_restart(&mut self, ran: Duration) {
        if ran >= RESTART_CALM {
            self.restart_pause = RESTART_FIRST;
        }
        self.pending = Some(Pending { generation: self.generation, due: Instant::now() + self.restart_pause });
        self.restart_pause = (self.restart_pause * 2).min(RESTART_MAX);
    }

    /// Due is: the pause is over and "held nothing" stands on the disk for the daemon before.
    fn restart_daemon_if_due(&mut self) -> Result<(), Verdict> {
        let is_due =
            self.pending.is_some_and(|pending| Instant::now() >= pending.due && self.setup.page.idle_generation() >= pending.generation);
        if is_due && matches!(self.phase, Phase::Running) {
            self.pending = None;
            return self.start_daemon();
        }
        Ok(())
    }

    /// The second watch of the process watchdog.
    fn check_page(&mut self) -> Result<(), Verdict> {
        let page = &self.setup.page;
        let is_overdue = self.setup.options.watchdog == WatchdogKind::Process
            && (page.reset_request().is_some() || page.fed_until_ns().is_some_and(|until| now_ns() > until));
        if !is_overdue {
            self.overdue = None;
            return Ok(());
        }
        let since = *self.overdue.get_or_insert_with(Instant::now);
        if since.elapsed() >= SECOND_WATCH {
            return Err(verdict(RUNNER_RESET, "the watchdog's time is over and the keeper did not act"));
        }
        Ok(())
    }

    fn begin_stop(&mut self) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        tracing::info!("stopping");
        self.pending = None;
        let until = Instant::now() + self.setup.options.stop_wait;
        self.phase = Phase::Stopping { until, is_forced: false };
        let _ = send_with(self.setup.channel.as_fd(), STOPPING, &[], MsgFlags::MSG_DONTWAIT);
        // Clients first: the daemon cannot record left while they hold something.
        for handler in &self.handlers {
            self.signal(Some(*handler), Signal::SIGTERM);
        }
        match self.daemon {
            Some(daemon) => self.signal(Some(daemon.pid), Signal::SIGTERM),
            // A daemon that ended by itself has told sbd; one that waits to be started again has not.
            None => self.signal(self.sbd, Signal::SIGTERM),
        }
    }

    /// To an unreaped child, whose number is therefore its own.
    fn signal(&self, pid: Option<i32>, signal: Signal) {
        if let Some(pid) = pid {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }

    fn check_stop(&self) -> Result<(), Verdict> {
        let Phase::Stopping { until, is_forced } = self.phase else {
            return Ok(());
        };
        let is_late = Instant::now() >= until;
        match (self.sbd.is_none() && self.daemon.is_none(), is_forced || is_late) {
            (true, false) if self.handlers.is_empty() => Err(verdict(RUNNER_CLEAN, "stopped as told")),
            (true, true) => Err(verdict(RUNNER_FORCED, "stopped as told, but sbd or daemon failed meanwhile")),
            (false, true) if is_late => Err(verdict(RUNNER_FORCED, "the clean stop took too long")),
            _ => Ok(()),
        }
    }

    fn wait(&self) -> Result<(), Verdict> {
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let orders = PollFd::new(self.setup.channel.as_fd(), PollFlags::POLLIN);
        let span = match (self.phase, self.pending, self.overdue) {
            (Phase::Running, None, None) => WATCH_INTERVAL,
            _ => Duration::from_millis(20),
        };
        match poll(&mut [signals, orders], timeout(span)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(verdict(RUNNER_RESET, format!("poll: {errno}"))),
        }
    }

    fn take_signals(&mut self) -> Result<(), Verdict> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            // From a handler that was asked to stop the node. The others are for the keeper, or say only that a child ended.
            if info.ssi_signo == Signal::SIGTERM as u32 {
                self.begin_stop();
            }
        }
        Ok(())
    }

    fn take_orders(&mut self) -> Result<(), Verdict> {
        loop {
            match self.receive_order(MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Order::Stop, _))) => self.begin_stop(),
                Ok(Some((Order::Go, _))) => {}
                Ok(Some((Order::Serve(facts), Some(socket)))) => self.serve(*facts, socket)?,
                Ok(Some((Order::Serve(_), None))) => {}
                Ok(None) => return Err(verdict(RUNNER_RESET, "the keeper ended")),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(errno) => return Err(verdict(RUNNER_RESET, format!("channel to the keeper: {errno}"))),
            }
        }
    }

    /// `Ok(None)`: the keeper is gone.
    fn receive_order(&mut self, flags: MsgFlags) -> nix::Result<Option<(Order, Option<OwnedFd>)>> {
        let mut buffer = [0; ORDER_BYTES_MAX];
        let mut received = receive(self.setup.channel.as_fd(), &mut buffer, flags)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let bytes = buffer.get(..received.bytes).unwrap_or_default();
        let order = serde_json::from_slice(bytes).map_err(|_| Errno::EBADMSG)?;
        Ok(Some((order, received.descriptors.pop())))
    }

    fn info(&self) -> Info {
        let name = |is_first, first: &str, second: &str| if is_first { first } else { second }.to_owned();
        let options = &self.setup.options;
        Info {
            boot: self.marks.boot.clone(),
            watchdog: name(options.watchdog == WatchdogKind::Process, "process", "device"),
            namespaces: name(options.namespaces == Namespaces::None, "none", "pid"),
            supervisor: self.setup.keeper,
            runner: self.marks.runner,
            sbd: self.sbd,
            daemon: self.daemon.map(|daemon| daemon.pid),
            generation: self.generation,
            clients: self.handlers.len(),
            is_stopping: matches!(self.phase, Phase::Stopping { .. }),
        }
    }

    fn no_run(&self) -> Option<&'static str> {
        match (self.setup.options.watchdog, self.phase) {
            (WatchdogKind::Device | WatchdogKind::None, _) => {
                Some("this node has a watchdog device, which ends the whole machine: run the command directly")
            }
            (WatchdogKind::Process, Phase::Stopping { .. }) => Some("the node is stopping"),
            (WatchdogKind::Process, Phase::Running) => None,
        }
    }

    /// Forks a handler; bytes from outside are read there only.
    fn serve(&mut self, facts: CallerFacts, socket: OwnedFd) -> Result<(), Verdict> {
        let socket = UnixStream::from(socket);
        if self.handlers.len() >= HANDLERS_MAX {
            let busy = Answer::refusal(format!("{HANDLERS_MAX} connections are open; try again later"));
            let _ = socket.set_nonblocking(true);
            let _ = send_all(&socket, &encode_line(&busy), &[]);
            return Ok(());
        }
        let handler = Handler {
            socket,
            facts,
            info: self.info(),
            marks: self.marks.clone(),
            grace: self.setup.options.client_grace,
            no_run: self.no_run(),
        };
        // SAFETY: this process has one thread, so that the child may do anything; it ends by _exit.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => {
                self.handlers.insert(child.as_raw());
                Ok(())
            }
            Ok(ForkResult::Child) => {
                close_inherited(&[&self.setup.channel, &self.signals]);
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler.serve()));
                // SAFETY: ends this process only; nothing of the runner's is run twice.
                unsafe { libc::_exit(0) }
            }
            Err(errno) => {
                tracing::error!(%errno, "no process for a connection");
                Ok(())
            }
        }
    }
}

/// How a process ended, for people.
pub(crate) fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("signal {signal}"),
        other => format!("{other:?}"),
    }
}
