//! What: what every process of a tree is given when it is started.
//! Owns: environment of the tree, the inherited lock, the tie to the parent, the signal mask.
//! Invariants: a child whose parent died before it was tied ends before it runs anything.
//! Does not: choose what is started.
//! Called by: runner and handler.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use super::process::own_pid;
use super::{SUPERVISOR_PID_VARIABLE, TREE_VARIABLE};

/// What marks a process as part of a life.
#[derive(Clone, Debug)]
pub(crate) struct TreeMarks {
    /// The boot, as text.
    pub(crate) boot: String,
    /// Process number of the runner, as the tree sees it.
    pub(crate) runner: i32,
    /// `tree.lock`; the same number in every process up to the first exec, then kept open across it.
    pub(crate) lock: RawFd,
}

/// The signals that keeper, runner and handlers read from a descriptor.
pub(crate) fn supervisor_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set
}

/// Ends this process when its parent ends. `parent`: who it must still be; another one has taken over an orphan.
pub(crate) fn tie_to_parent(parent: i32, signal: Signal) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal)?;
    if nix::unistd::getppid().as_raw() != parent {
        return Err(Errno::ESRCH.into());
    }
    Ok(())
}

/// Adds all of it to a command. Call it last: a change of user would undo the tie.
pub(crate) fn tie(command: &mut Command, marks: &TreeMarks) {
    command.env(TREE_VARIABLE, &marks.boot);
    command.env(SUPERVISOR_PID_VARIABLE, marks.runner.to_string());
    let (parent, lock) = (own_pid(), marks.lock);
    let hook = move || {
        tie_to_parent(parent, Signal::SIGKILL)?;
        // SAFETY: fcntl on a number that the fork copied.
        if unsafe { libc::fcntl(lock, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    };
    // SAFETY: the hook makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
}
