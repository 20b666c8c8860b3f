//! What: the other half of `supervisor.sock`: runs a command inside a node's tree as if it ran here.
//! Owns: the three streams it passes, the signals it forwards.
//! Invariants: an exit code is what the command ended with; a connection that ends without one is an error, never a code.
//! Does not: start a supervisor.
//! Called by: the front door.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::protocol::{Answer, Forwarded, Request, STREAMS, Text, encode_line};
use super::socket::{Line, LineReader, connect, send_all, timeout};
use super::{SOCKET_FILE, boot, lock};

pub use super::protocol::Info;

/// `info` and the answer to `stop` come at once from a forked process; a node under load gets some patience.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Why the supervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: no supervisor answers: {source}; start the node with `deadbolt start`", .path.display())]
    NoSupervisor {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended before the command did: the node was reset or the supervisor ended.
    #[error("the supervisor ended the connection: the node's tree was ended, the command with it")]
    Lost,
    /// It said no.
    #[error("the supervisor refused: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// What came is no answer.
    #[error("the supervisor's answer does not decode ({found}); both must be of one version")]
    BadAnswer {
        /// What was found.
        found: String,
    },
    /// The connection failed.
    #[error("connection to the supervisor: {source}")]
    Io {
        /// What the kernel said.
        #[from]
        source: io::Error,
    },
    /// A stop did not end in time.
    #[error("the supervisor was told to stop and still runs after {} s; look at its log", .waited.as_secs())]
    StillRuns {
        /// How long was waited.
        waited: Duration,
    },
}

/// What to run.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The command; the program is searched by the PATH of `env`.
    pub argv: Vec<OsString>,
    /// All of its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// Its standard input, output and error.
    pub streams: [RawFd; STREAMS],
}

impl RunRequest {
    /// This command with this process's environment, directory and streams.
    ///
    /// # Errors
    /// When the present directory is gone.
    pub fn here(argv: Vec<OsString>) -> io::Result<Self> {
        Ok(Self { argv, env: std::env::vars_os().collect(), cwd: std::env::current_dir()?, streams: [0, 1, 2] })
    }

    fn to_request(&self) -> Request {
        let text = |value: &OsString| Text::from(value.as_os_str());
        Request::Run {
            argv: self.argv.iter().map(text).collect(),
            env: self.env.iter().map(|(name, value)| (text(name), text(value))).collect(),
            cwd: Text::from(self.cwd.as_os_str()),
        }
    }
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Its exit code; 128 and the signal when one ended it; 126 and 127 as env(1).
    pub exit: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it did not even start.
    pub error: Option<String>,
}

fn dial(directory: &Path) -> Result<UnixStream, ClientError> {
    connect(directory, SOCKET_FILE).map_err(|source| ClientError::NoSupervisor { path: directory.join(SOCKET_FILE), source })
}

fn decode(line: &[u8]) -> Result<Answer, ClientError> {
    let answer: Answer = serde_json::from_slice(line).map_err(|error| ClientError::BadAnswer { found: error.to_string() })?;
    match answer {
        Answer { ok: Some(false), error, .. } => {
            Err(ClientError::Refused { reason: error.unwrap_or_else(|| "no reason given".to_owned()) })
        }
        answer => Ok(answer),
    }
}

/// Signals that are blocked in this thread and read from a descriptor, until dropped.
struct Forwarding {
    before: SigSet,
    signals: SignalFd,
}

impl Forwarding {
    fn start() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { before, signals })
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Runs a command inside the tree of the node of `directory` and waits for its end; SIGINT, SIGTERM and SIGHUP go to it instead
/// of to this process. Call it from a process with one thread: another thread would take the signals. When this process ends,
/// the command and all its descendants are ended.
///
/// # Errors
/// When there is no supervisor, it refuses, or the tree ends before the command (`Lost`).
pub fn run(directory: &Path, request: &RunRequest) -> Result<Ended, ClientError> {
    let socket = dial(directory)?;
    let forwarding = Forwarding::start()?;
    // A refusal may come before all was sent: what came is read first, whatever became of the sending.
    let sent = send_all(&socket, &encode_line(&request.to_request()), &request.streams);
    let mut reader = LineReader::default();
    loop {
        match reader.read_ready(socket.as_fd()) {
            Ok(Line::Whole(line)) => {
                let answer = decode(&line)?;
                if let Some(exit) = answer.exit {
                    return Ok(Ended { exit, signal: answer.signal, error: answer.error });
                }
            }
            Ok(Line::None) => {
                let mut ready =
                    [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(forwarding.signals.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut ready, timeout(Duration::from_secs(10)));
            }
            Ok(Line::Closed) => return Err(ClientError::Lost),
            Err(error) if is_reset(&error) => return Err(ClientError::Lost),
            Err(error) => return Err(sent.err().unwrap_or(error).into()),
        }
        while let Ok(Some(info)) = forwarding.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM);
            // A failure shows as the end of the connection.
            let _ = send_all(&socket, &encode_line(&Forwarded { signal }), &[]);
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn ask(socket: &UnixStream, request: &Request) -> Result<Answer, ClientError> {
    send_all(socket, &encode_line(request), &[])?;
    match LineReader::default().read_line(socket.as_fd(), ANSWER_WAIT)? {
        Line::Whole(line) => decode(&line),
        Line::None | Line::Closed => Err(ClientError::Lost),
    }
}

/// Who runs.
///
/// # Errors
/// When there is no supervisor or it does not answer.
pub fn info(directory: &Path) -> Result<Info, ClientError> {
    let socket = dial(directory)?;
    ask(&socket, &Request::Info {})?.info.ok_or_else(|| ClientError::BadAnswer { found: "an answer without info".to_owned() })
}

/// Stops the node and waits until its supervisor has ended. Answers whether the stop was clean (the daemon had recorded *left*).
///
/// # Errors
/// When there is no supervisor, it refuses, or it still runs after `at_most`.
pub fn stop(directory: &Path, at_most: Duration) -> Result<bool, ClientError> {
    let start = Instant::now();
    let socket = dial(directory)?;
    ask(&socket, &Request::Stop {})?;
    let mut bell = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut bell, timeout(at_most.min(Duration::from_secs(60))));
    while lock::is_supervised(directory) {
        if start.elapsed() > at_most {
            return Err(ClientError::StillRuns { waited: at_most });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let end = boot::read(directory).ok().flatten().and_then(|record| record.last_end);
    Ok(end.as_deref() == Some("clean"))
}
