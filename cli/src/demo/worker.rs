//! What: `deadbolt demo-worker`: increments the demo's counter under an EX lock, for as long as its node lives.
//! Owns: the way of one increment: read, tell, write, tell.
//! Invariants: nothing protects the counter but the lock; what was acknowledged stands in the tally before the lock is given back.
//! Does not: retry a lost session; the demo starts it again.
//! Called by: the demo, which starts it; by itself, inside the node's tree.

use super::tally::{GrantToken, Line, Step};
use crate::verbs::NodeArguments;
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::supervisor::{self, client::RunRequest};
use deadbolt_dlm::{
    Flags, Mode,
    blocking::{Client, Guard, Protection, Wishes},
};
use deadbolt_trial::children::OWN_PROGRAM;
use nix::sys::signal::{SigHandler, Signal, signal};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Pause between two increments, so that three workers leave some of the machine to others. Chosen.
const PAUSE: Duration = Duration::from_millis(4);
/// Present while all workers are to end after their present increment.
pub(super) const STOP_FILE: &str = "stop-work";
/// The file that is incremented: eight bytes, little endian.
pub(super) const COUNTER_FILE: &str = "counter";
/// Exit code of a worker that was told to stop.
pub(super) const EXIT_TOLD: u8 = 0;

/// While this file is there the node's worker keeps the lock and goes on incrementing under it.
pub(super) fn hold_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("hold-{name}"))
}

/// What the node's worker writes down.
pub(super) fn tally_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("tally-{name}"))
}

/// Arguments of the worker.
#[derive(Debug, Args)]
pub struct WorkerArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// The demo's directory
    #[arg(long)]
    run: PathBuf,
    /// Name of the node
    #[arg(long)]
    name: String,
    /// Ignore the signals that ask a process to end
    #[arg(long)]
    stubborn: bool,
    /// Set when this runs inside the node's tree already
    #[arg(long)]
    inside: bool,
}

/// Runs a worker.
///
/// # Errors
/// No node, a lost session, or a file that cannot be used.
pub fn run(arguments: &WorkerArguments) -> Result<u8> {
    if arguments.inside { work(arguments) } else { run_inside(arguments) }
}

fn run_inside(arguments: &WorkerArguments) -> Result<u8> {
    let mut argv: Vec<OsString> = vec![OWN_PROGRAM.into(), "demo-worker".into(), "--inside".into()];
    argv.extend(["--dir".into(), arguments.node.directory().0.into(), "--run".into(), arguments.run.clone().into()]);
    argv.extend(["--name".into(), arguments.name.clone().into()]);
    if arguments.stubborn {
        argv.push("--stubborn".into());
    }
    let ended = supervisor::client::run(&arguments.node.directory().0, &RunRequest::here(argv)?)?;
    if let Some(error) = ended.error {
        bail!("{error}");
    }
    Ok(u8::try_from(ended.exit).unwrap_or(crate::verbs::EXIT_FAILED))
}

struct Worker {
    counter: File,
    tally: File,
}

impl Worker {
    fn open(arguments: &WorkerArguments) -> Result<Self> {
        let counter = OpenOptions::new().read(true).write(true).open(arguments.run.join(COUNTER_FILE)).context(COUNTER_FILE)?;
        let path = tally_file(&arguments.run, &arguments.name);
        let tally = OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
        Ok(Self { counter, tally })
    }

    fn tell(&mut self, step: Step, token: GrantToken, value: u64) -> Result<()> {
        // One write per line: a worker that is ended leaves whole lines.
        Ok(self.tally.write_all(Line { step, token, value }.to_string().as_bytes())?)
    }

    fn increment(&mut self, token: GrantToken) -> Result<()> {
        let mut bytes = [0; 8];
        self.counter.read_exact_at(&mut bytes, 0)?;
        let value = u64::from_le_bytes(bytes) + 1;
        self.tell(Step::Intent, token, value)?;
        self.counter.write_all_at(&value.to_le_bytes(), 0)?;
        self.tell(Step::Done, token, value)
    }
}

fn token_of(guard: &Guard) -> GrantToken {
    let token = guard.token();
    GrantToken { view: token.view, counter: token.counter }
}

fn work(arguments: &WorkerArguments) -> Result<u8> {
    if arguments.stubborn {
        for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { signal(ignored, SigHandler::SigIgn) }?;
        }
    }
    let mut worker = Worker::open(arguments)?;
    let client = Client::connect(arguments.node.directory().lock_socket(), Protection::default())?;
    let space = client.join(b"demo")?;
    let (hold, stop) = (hold_file(&arguments.run, &arguments.name), arguments.run.join(STOP_FILE));
    while !stop.exists() {
        let guard = space.lock(b"counter", Mode::Ex, &Wishes::default())?;
        let token = token_of(&guard);
        worker.increment(token)?;
        if hold.exists() {
            worker.tell(Step::Hold, token, 0)?;
            // It asks nobody whether it still has the lock: what ends it is the node's fencing, or nothing.
            while hold.exists() {
                worker.increment(token)?;
                std::thread::sleep(PAUSE);
            }
        }
        guard.unlock(Flags::NONE, None)?;
        std::thread::sleep(PAUSE);
    }
    Ok(EXIT_TOLD)
}
