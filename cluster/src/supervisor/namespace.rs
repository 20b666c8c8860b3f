//! What: a PID namespace for one life, with its own view of /proc.
//! Owns: the order of unshare, fork, setns and mount.
//! Invariants: inside, /proc/sysrq-trigger is covered: a reset of the tree must never become a reset of the machine; no mount
//!   made here is seen outside.
//! Does not: make network or user namespaces.
//! Called by: the keeper (fork) and the runner (mounts).

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Pid, fork};

use super::{Namespaces, SupervisorError};

fn failed(call: &'static str) -> impl Fn(Errno) -> SupervisorError {
    move |errno| SupervisorError::Namespace { call, source: errno.into() }
}

/// Can this process make PID namespaces? Tried, not guessed: in a child, which ends at once.
///
/// # Errors
/// With the call that was refused.
pub fn check_pid_namespace() -> Result<(), SupervisorError> {
    // SAFETY: the child calls nothing but unshare, mount and _exit, so that threads of the parent do not matter.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            let flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
            let none: Option<&str> = None;
            let tried = unshare(flags)
                .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none))
                .and_then(|()| mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID, none));
            let code = tried.err().map_or(0, |errno| errno as i32);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None) {
            Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => Err(failed("unshare(CLONE_NEWPID) or mount(/proc)")(Errno::from_raw(code))),
            Ok(_) => Err(failed("unshare(CLONE_NEWPID)")(Errno::ECHILD)),
            Err(errno) => Err(failed("waitpid")(errno)),
        },
    }
}

/// Forks the runner. `Ok(None)`: this is the child, PID 1 of a new namespace if one was wanted.
pub(crate) fn fork_runner(namespaces: Namespaces) -> Result<Option<Pid>, SupervisorError> {
    let own = match namespaces {
        Namespaces::None => None,
        Namespaces::PidNamespace => {
            let path = Path::new("/proc/self/ns/pid");
            let own = File::open(path).map_err(|source| SupervisorError::io("open", path, source))?;
            unshare(CloneFlags::CLONE_NEWPID).map_err(failed("unshare(CLONE_NEWPID)"))?;
            Some(own)
        }
    };
    // SAFETY: the caller has a single thread (checked at the start), so that the child may do anything.
    let forked = unsafe { fork() }.map_err(SupervisorError::system("fork"));
    if let Ok(ForkResult::Child) = forked {
        return Ok(None);
    }
    // Children are born in the own namespace again; without this the next unshare is refused.
    if let Some(own) = own {
        setns(own, CloneFlags::CLONE_NEWPID).map_err(failed("setns"))?;
    }
    match forked? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Inside the new namespace: an own mount table, an own /proc, no way to the machine's reset.
pub(crate) fn enter() -> Result<(), SupervisorError> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("unshare(CLONE_NEWNS)"))?;
    // Slave: what the machine mounts later is seen here, what is mounted here is not seen there.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("mount(/, MS_SLAVE)"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).map_err(failed("mount(/proc)"))?;
    match mount(Some("/dev/null"), "/proc/sysrq-trigger", none, MsFlags::MS_BIND, none) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(failed("mount(/proc/sysrq-trigger)")(errno)),
    }
    if std::fs::read_link("/proc/self")?.as_os_str() != "1" {
        return Err(failed("readlink(/proc/self)")(Errno::EINVAL));
    }
    Ok(())
}

impl From<io::Error> for SupervisorError {
    fn from(source: io::Error) -> Self {
        Self::System { call: "a call on /proc", source }
    }
}
