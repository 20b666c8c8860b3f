//! What: one connection to `supervisor.sock`, served by a process of its own.
//! Owns: the command that it runs, and every descendant of that command.
//! Invariants: the exit code is answered when the command and all its descendants are gone; a caller that went away takes them
//!   along; the command has its caller's rights.
//! Does not: survive the runner.
//! Called by: the runner, after a fork.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::caller::{CallerFacts, Identity};
use super::child::{self, TreeMarks};
use super::process;
use super::protocol::{Answer, Forwarded, Info, Request, STREAMS, Text, encode_line};
use super::socket::{Line, LineReader, send_all, timeout};

/// A caller has this long to say what it wants; then the connection is closed.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// As env(1): the command was found but cannot be run; was not found.
const EXIT_NOT_EXECUTABLE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;

/// What a handler starts with.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) socket: UnixStream,
    pub(crate) facts: CallerFacts,
    pub(crate) info: Info,
    pub(crate) marks: TreeMarks,
    pub(crate) grace: Duration,
    /// Why no command may be run now.
    pub(crate) no_run: Option<&'static str>,
}

impl Handler {
    /// Serves the connection to its end.
    pub(crate) fn serve(self) {
        let ready = child::tie_to_parent(self.info.runner, Signal::SIGKILL).and_then(|()| Ok(nix::sys::prctl::set_child_subreaper(true)?));
        if ready.is_err() {
            return;
        }
        let mut reader = LineReader::default();
        let line = match reader.read_line(self.socket.as_fd(), REQUEST_WAIT) {
            Ok(Line::Whole(line)) => line,
            Ok(_) => return,
            Err(error) => return self.refuse(format!("no request: {error}")),
        };
        match serde_json::from_slice(&line) {
            Ok(Request::Info {}) => {
                let info = Some(self.info.clone());
                self.answer(&Answer { ok: Some(true), info, ..Answer::default() });
            }
            Ok(Request::Stop {}) => self.stop(),
            Ok(Request::Run { argv, env, cwd }) => self.run(argv, env, cwd, reader),
            Err(error) => {
                self.refuse(format!("not a request: {error}; expected one JSON object on a line with \"op\" one of run, stop, info"))
            }
        }
    }

    /// Errors are left alone: the caller is gone, which the next read shows.
    fn answer(&self, answer: &Answer) {
        let _ = send_all(&self.socket, &encode_line(answer), &[]);
    }

    fn refuse(&self, error: String) {
        self.answer(&Answer::refusal(error));
    }

    /// Tells the runner and keeps the connection until the life is over.
    fn stop(&self) {
        let own = nix::unistd::geteuid().as_raw();
        if self.facts.uid != 0 && self.facts.uid != own {
            return self.refuse(format!("user {} may not stop the node; root or user {own} may", self.facts.uid));
        }
        let runner = Pid::from_raw(self.info.runner);
        if nix::unistd::getppid() != runner || nix::sys::signal::kill(runner, Signal::SIGTERM).is_err() {
            return self.refuse("the runner has ended".to_owned());
        }
        self.answer(&Answer { ok: Some(true), ..Answer::default() });
        // The runner ends this process by SIGTERM, or by ending itself.
        let Ok(signals) = SignalFd::with_flags(&child::supervisor_signals(), SfdFlags::SFD_CLOEXEC) else {
            return;
        };
        while !matches!(signals.read_signal(), Ok(Some(info)) if info.ssi_signo == Signal::SIGTERM as u32) {}
    }

    fn run(self, argv: Vec<Text>, env: Vec<(Text, Text)>, cwd: Text, mut reader: LineReader) {
        if let Some(reason) = self.no_run {
            return self.refuse(reason.to_owned());
        }
        let streams = match <[OwnedFd; STREAMS]>::try_from(std::mem::take(&mut reader.descriptors)) {
            Ok(streams) => streams,
            Err(found) => {
                return self.refuse(format!("{} descriptors came with the request, {STREAMS} are needed", found.len()));
            }
        };
        let identity = match Identity::new(self.facts.clone(), &self.socket) {
            Ok(identity) => identity,
            Err(reason) => return self.refuse(reason),
        };
        let started = SignalFd::with_flags(&child::supervisor_signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| Failure::Other(io::Error::from(errno)))
            .and_then(|signals| Ok((signals, spawn(argv, env, cwd, streams, identity, &self.marks)?)));
        match started {
            Ok((signals, leader)) => {
                self.answer(&Answer { started: Some(leader), ..Answer::default() });
                Watch { handler: &self, reader, signals, leader, ended: None, ending: None }.run();
            }
            Err(failure) => {
                let (exit, error) = failure.explain();
                self.answer(&Answer { exit: Some(exit), error: Some(error), ..Answer::default() });
            }
        }
    }
}

/// Why a command did not start.
#[derive(Debug)]
enum Failure {
    Exec(OsString, io::Error),
    Directory(OsString, io::Error),
    Identity(io::Error),
    Empty,
    Other(io::Error),
}

impl Failure {
    fn explain(self) -> (i32, String) {
        match self {
            Self::Exec(program, error) if error.kind() == io::ErrorKind::NotFound => {
                (EXIT_NOT_FOUND, format!("{}: not found", program.display()))
            }
            Self::Exec(program, error) => (EXIT_NOT_EXECUTABLE, format!("{}: {error}", program.display())),
            Self::Directory(path, error) => (EXIT_NOT_EXECUTABLE, format!("cannot change to {}: {error}", path.display())),
            Self::Identity(error) => (EXIT_NOT_EXECUTABLE, format!("cannot become the caller: {error}")),
            Self::Empty => (EXIT_NOT_FOUND, "no command, or a zero byte in it".to_owned()),
            Self::Other(error) => (EXIT_NOT_EXECUTABLE, format!("cannot start a process: {error}")),
        }
    }
}

/// Which step of the child failed; the number goes through a pipe, for an errno alone does not say.
const STEP_IDENTITY: u8 = 1;
const STEP_DIRECTORY: u8 = 2;
const STEP_TIE: u8 = 3;

fn spawn(
    argv: Vec<Text>,
    env: Vec<(Text, Text)>,
    cwd: Text,
    streams: [OwnedFd; STREAMS],
    identity: Identity,
    marks: &TreeMarks,
) -> Result<i32, Failure> {
    let mut argv = argv.into_iter().map(OsString::from);
    let program = argv.next().filter(|program| !program.is_empty()).ok_or(Failure::Empty)?;
    let cwd = OsString::from(cwd);
    let directory = CString::new(cwd.clone().into_vec()).map_err(|_| Failure::Empty)?;
    let (step_read, step_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| Failure::Other(errno.into()))?;
    let [input, output, error] = streams;
    let mut command = Command::new(&program);
    command.args(argv).env_clear();
    command.envs(env.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(error));
    let say = move |step: u8, result: io::Result<()>| {
        if result.is_err() {
            let _ = nix::unistd::write(&step_write, &[step]);
        }
        result
    };
    let hook = move || {
        close_on_exec_from(3);
        say(STEP_IDENTITY, identity.apply())?;
        // SAFETY: a string that ends with zero, made before the fork.
        let moved = unsafe { libc::chdir(directory.as_ptr()) };
        say(STEP_DIRECTORY, if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) })?;
        // A process group of its own: a signal that the caller forwards reaches what a terminal's would.
        say(STEP_TIE, nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(io::Error::from))
    };
    // SAFETY: the hook makes system calls only; what it reads was made before the fork.
    unsafe { command.pre_exec(hook) };
    child::tie(&mut command, marks);
    let spawned = command.spawn();
    // With the command goes this process's copy of the pipe's writing end.
    drop(command);
    match spawned {
        Ok(child) => i32::try_from(child.id()).map_err(|error| Failure::Other(io::Error::other(error))),
        Err(source) => {
            let mut step = [0];
            match (nix::unistd::read(&step_read, &mut step), step) {
                (Ok(1), [STEP_IDENTITY]) => Err(Failure::Identity(source)),
                (Ok(1), [STEP_DIRECTORY]) => Err(Failure::Directory(cwd, source)),
                (Ok(1), _) => Err(Failure::Other(source)),
                _ => Err(Failure::Exec(program, source)),
            }
        }
    }
}

/// What this process inherited is not for another user's command. A kernel older than 5.11 leaves it to each descriptor's own
/// flag, which everything that is opened here has.
fn close_on_exec_from(first: libc::c_uint) {
    // SAFETY: sets a flag on numbers; closes nothing in this process.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// A command that runs.
struct Watch<'a> {
    handler: &'a Handler,
    reader: LineReader,
    signals: SignalFd,
    leader: i32,
    ended: Option<WaitStatus>,
    /// Since when everything is being ended.
    ending: Option<Instant>,
}

impl Watch<'_> {
    fn run(mut self) {
        let mut is_caller_there = true;
        loop {
            let reaped = process::reap();
            let leader = self.leader;
            if let Some((_, status)) = reaped.ended.iter().find(|(pid, _)| *pid == leader) {
                self.ended = Some(*status);
                self.begin_end();
            }
            if reaped.is_childless {
                break;
            }
            if self.ending.is_some_and(|since| since.elapsed() >= self.handler.grace) {
                process::signal_descendants(Signal::SIGKILL);
            }
            self.wait(is_caller_there);
            if is_caller_there {
                is_caller_there = self.take_lines();
            }
            while let Ok(Some(info)) = self.signals.read_signal() {
                if info.ssi_signo == Signal::SIGTERM as u32 {
                    self.begin_end();
                }
            }
        }
        if let Some(status) = self.ended {
            let signal = match status {
                WaitStatus::Signaled(_, signal, _) => Some(signal as i32),
                _ => None,
            };
            let exit = Some(process::shell_code(status));
            self.handler.answer(&Answer { exit, signal, ..Answer::default() });
        }
    }

    fn begin_end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now());
            process::signal_descendants(Signal::SIGTERM);
            // A stopped process takes no SIGTERM before it goes on.
            process::signal_descendants(Signal::SIGCONT);
        }
    }

    fn wait(&self, is_caller_there: bool) {
        let span = match self.ending {
            None => Duration::from_secs(1),
            Some(since) => self.handler.grace.saturating_sub(since.elapsed()).clamp(Duration::from_millis(10), Duration::from_secs(1)),
        };
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let caller = PollFd::new(self.handler.socket.as_fd(), PollFlags::POLLIN);
        let _ = if is_caller_there { poll(&mut [signals, caller], timeout(span)) } else { poll(&mut [signals], timeout(span)) };
    }

    /// Forwards signals. Answers whether the caller is still there; whatever else it says ends the command.
    fn take_lines(&mut self) -> bool {
        loop {
            match self.reader.read_ready(self.handler.socket.as_fd()) {
                Ok(Line::None) => return true,
                Ok(Line::Whole(line)) => {
                    let signal =
                        serde_json::from_slice::<Forwarded>(&line).ok().and_then(|forwarded| Signal::try_from(forwarded.signal).ok());
                    let Some(signal) = signal else {
                        self.handler.refuse("not a signal; the command is ended".to_owned());
                        self.begin_end();
                        return false;
                    };
                    self.forward(signal);
                }
                Ok(Line::Closed) | Err(_) => {
                    self.begin_end();
                    return false;
                }
            }
        }
    }

    /// To the command's group, while its leader is unreaped and the number therefore its own.
    fn forward(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = nix::sys::signal::killpg(Pid::from_raw(self.leader), signal);
        }
    }
}

/// Closes what only the runner may hold; the first thing that a forked handler does.
pub(crate) fn close_inherited(descriptors: &[&dyn AsRawFd]) {
    for descriptor in descriptors {
        // SAFETY: this process never returns to the code that owns the number; it ends by _exit.
        unsafe { libc::close(descriptor.as_raw_fd()) };
    }
}
