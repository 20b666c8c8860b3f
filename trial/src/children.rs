//! What: processes that end with their maker, whatever ends it.
//! Owns: how a child is tied, put into a network namespace and given its output file.
//! Invariants: a child of a killed maker is killed by the kernel; a signal of the terminal reaches the maker alone.
//! Does not: know what the children do.
//! Called by: demo and benchmarks, and the network. From the main thread only: the kernel ties to the thread.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// This very program, also when its file was replaced meanwhile.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// A command that runs this very program.
pub fn own_program() -> Command {
    Command::new(OWN_PROGRAM)
}

/// Ties the command to this process and moves it into a network namespace, if one is given.
pub fn tie(command: &mut Command, network: Option<Arc<OwnedFd>>) {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: only async-signal-safe calls between fork and exec; the descriptor lives as long as the closure.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            if let Some(network) = &network {
                // SAFETY: held open by the closure.
                setns(BorrowedFd::borrow_raw(network.as_raw_fd()), CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
}

/// Sends what the command says to a file.
///
/// # Errors
/// The file cannot be opened.
pub fn write_to(command: &mut Command, path: &Path) -> Result<()> {
    let file: File = OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(())
}

/// Runs a command to its end and answers with its exit code and what it wrote to both streams.
///
/// # Errors
/// It cannot be started.
pub fn run_to_end(mut command: Command, network: Option<Arc<OwnedFd>>) -> Result<(Option<i32>, String)> {
    tie(&mut command, network);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code(), said))
}

/// A child that is killed and reaped when this goes.
#[derive(Debug)]
pub struct Tied(Child);

impl Tied {
    /// Starts it, tied.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, network: Option<Arc<OwnedFd>>) -> Result<Self> {
        tie(command, network);
        Ok(Self(command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?))
    }

    /// The process, for its streams.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Its exit code, if it has ended; 255 when a signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().ok().flatten().map(|status| status.code().unwrap_or(255))
    }

    /// Waits for its end.
    pub fn wait(&mut self, at_most: Duration) -> Option<i32> {
        let end = Instant::now() + at_most;
        loop {
            match self.ended() {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                ended => return ended,
            }
        }
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
