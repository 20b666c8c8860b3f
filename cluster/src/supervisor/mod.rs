//! What: the parent of a node's sbd, daemon and, under a process watchdog, clients; numbers the lives of a trial node.
//! Owns: the directory's locks, the file `boot`, the shared page of each life, the process watchdog, `supervisor.sock`.
//! Invariants: a boot number is advanced only after the kernel said that no process of the life before is left; nothing is
//!   started before its number is synced on the disk; nobody's command runs with more rights than its caller has.
//! Does not: speak to the device or to other nodes, judge leases, or know what a lock is.
//! Called by: `deadboltd --supervise`; `client` and `is_descendant` by the front door and the daemon.
//!
//! # The processes of a node
//!
//! ```text
//! keeper      numbers the boot, holds the locks, enforces the process watchdog, reaps. One thread, no disk access while a life runs.
//! `- runner   PID 1 of the namespace where there is one: starts and restarts, forks a handler per connection.
//!    |- sbd
//!    |- daemon
//!    `- handler - a client's command - its descendants
//! ```
//!
//! Keeper, runner and handlers are subreapers: an orphan moves up to the nearest of them and never out of the tree. A life ends
//! when the runner has ended and the keeper, which has no other child, got ECHILD: then, and only then, is every process of that
//! life gone. A process in an uninterruptible sleep delays this; that is the point.
//!
//! # What the process watchdog covers
//!
//! The deadline lies in the page. The keeper sleeps until then, and sbd rings it when the deadline comes nearer or a reset is
//! asked for; 250 to 500 ms later the runner enforces it, too: SIGSTOP of either one is covered by the other. Stopped both at
//! once, nothing enforces the deadline; sbd then sees that the keeper's sign of life is old and gives no lease, but a client is
//! not ended. The kill of the keeper ends the runner with its tree (PID namespace: the kernel does it; else the runner does,
//! and its direct children are tied to it). The kill of keeper and runner in the same instant leaves the next start to find
//! what is left: by the inherited lock `tree.lock`, then by DEADBOLT_TREE in the environment; without a PID namespace a process
//! that closed all files *and* cleared its environment *and* outlived both would not be seen. A command that changed to a user
//! whom this one may not signal is never counted gone.

mod boot;
mod caller;
mod child;
pub mod client;
mod handler;
mod keeper;
mod lock;
mod namespace;
mod process;
mod protocol;
mod run_directory;
mod runner;
mod socket;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use deadbolt_disk_format::{BootId, WatchdogKind};

pub(crate) use child::tie_to_parent;
pub use keeper::{supervise, try_supervise};
pub use namespace::check_pid_namespace;
pub use process::{Holder, ProcessIdentity, is_descendant};
pub use protocol::{TextKind, rewrite_text};
pub use run_directory::{RunDirectory, sweep};

/// Name of the socket in the node's directory.
pub const SOCKET_FILE: &str = "supervisor.sock";
/// Environment of every process of a tree: the boot, as text.
pub const TREE_VARIABLE: &str = "DEADBOLT_TREE";
/// Environment of sbd and daemon: the boot, as text.
pub const BOOT_VARIABLE: &str = "DEADBOLT_BOOT";
/// Environment of every process of a tree: the runner's process number as this process sees it, for [`is_descendant`].
pub const SUPERVISOR_PID_VARIABLE: &str = "DEADBOLT_SUPERVISOR_PID";
/// How often keeper and runner look at the page, at least, while nothing rings and no deadline ends sooner; the keeper says then that it is at
/// work, a quarter of the watchdog's time apart if that is shorter. Chosen: no load that is felt.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// A daemon that ends with this code must not be started again (EX_CONFIG of sysexits.h).
pub const EXIT_DO_NOT_RESTART: i32 = 78;

/// The supervisor stopped as told; the daemon had recorded *left*.
pub const EXIT_CLEAN: u8 = 0;
/// It refused to start, or the first life never came to life.
pub const EXIT_REFUSED: u8 = 1;
/// The life was ended by the watchdog or a crash, and the policy says stop.
pub const EXIT_RESET: u8 = 3;
/// It stopped as told, but children had to be killed: the others see a dead node, not one that left.
pub const EXIT_FORCED: u8 = 4;
/// A fencer said off.
pub const EXIT_OFF: u8 = 5;

/// Separation of a node's processes from the rest of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Namespaces {
    /// Subreaper only; needs no rights.
    #[default]
    None,
    /// A PID namespace (with its own view of /proc) per life; reboot(2) inside ends that life and nothing else. Needs root.
    PidNamespace,
}

/// What follows when a life was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RestartPolicy {
    /// Another life, under the next number.
    #[default]
    Restart,
    /// The supervisor ends.
    Stop,
}

/// What a starter knows of the life it starts something for.
#[derive(Clone, Debug)]
pub struct BootContext {
    /// The life.
    pub boot: BootId,
    /// The node's directory.
    pub directory: PathBuf,
    /// `memory,wake,published,ended` as `DEADBOLT_PAGE_FD` and `--page-fd` want it; the descriptors are inherited.
    pub page: String,
    /// What ends the node.
    pub watchdog: WatchdogKind,
    /// Separation.
    pub namespaces: Namespaces,
    /// How often the daemon was started in this life, from 1; for sbd 1.
    pub generation: u64,
}

/// Makes the command of a child. Environment for tree, boot and page, the tie to the parent and the inherited descriptors are
/// added to it; standard streams left alone are the supervisor's own.
pub type Starter = Box<dyn FnMut(&BootContext) -> Command>;

/// How to supervise.
pub struct SupervisorOptions {
    /// The node's directory; must exist.
    pub directory: PathBuf,
    /// Makes sbd's command.
    pub start_sbd: Starter,
    /// Makes the daemon's command.
    pub start_daemon: Starter,
    /// What ends the node.
    pub watchdog: WatchdogKind,
    /// Separation.
    pub namespaces: Namespaces,
    /// After a reset.
    pub restart: RestartPolicy,
    /// Where standard output and error of the supervisor and of everything that it starts go; `None`: as they are.
    pub log: Option<PathBuf>,
    /// A group whose members may also use the socket (not to stop).
    pub socket_group: Option<u32>,
    /// How long to wait for processes of an earlier life.
    pub lock_wait: Duration,
    /// How long a clean stop may take.
    pub stop_wait: Duration,
    /// Between SIGTERM and SIGKILL of a client's processes.
    pub client_grace: Duration,
    /// The process that started the supervisor, if the supervisor is to end with it, with the tree and at once. The kernel
    /// watches the parent's *thread*: start the supervisor from one that lives as long as the process.
    pub parent: Option<i32>,
}

impl SupervisorOptions {
    /// Options with defaults: process watchdog, no namespaces, restart.
    #[must_use]
    pub fn new(directory: PathBuf, start_sbd: Starter, start_daemon: Starter) -> Self {
        Self {
            directory,
            start_sbd,
            start_daemon,
            watchdog: WatchdogKind::Process,
            namespaces: Namespaces::None,
            restart: RestartPolicy::Restart,
            log: None,
            socket_group: None,
            // Chosen: longer than the runner of a killed keeper needs to end a stubborn tree, shorter than patience.
            lock_wait: Duration::from_secs(10),
            // Chosen: several cycles at the default stall, for *left* must reach the disk.
            stop_wait: Duration::from_secs(20),
            client_grace: Duration::from_secs(2),
            parent: None,
        }
    }
}

impl fmt::Debug for SupervisorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorOptions")
            .field("directory", &self.directory)
            .field("watchdog", &self.watchdog)
            .field("namespaces", &self.namespaces)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

/// How the supervisor's last life ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LifeEnd {
    /// As told, everything by itself.
    Clean,
    /// As told, but something had to be killed.
    Forced,
    /// A fencer said off.
    Off,
    /// By the watchdog, a fencer, a crash or reboot(2).
    Reset {
        /// Why, for people.
        reason: String,
    },
    /// sbd or daemon ended before the watchdog was ever armed, or could not be started.
    StartFailed {
        /// Why, for people.
        reason: String,
    },
}

impl LifeEnd {
    /// The supervisor's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Clean => EXIT_CLEAN,
            Self::Forced => EXIT_FORCED,
            Self::Off => EXIT_OFF,
            Self::Reset { .. } => EXIT_RESET,
            Self::StartFailed { .. } => EXIT_REFUSED,
        }
    }
}

impl fmt::Display for LifeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Forced => f.write_str("forced"),
            Self::Off => f.write_str("off"),
            Self::Reset { reason } => write!(f, "reset: {reason}"),
            Self::StartFailed { reason } => write!(f, "start failed: {reason}"),
        }
    }
}

/// Why the supervisor refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// Another supervisor runs this directory.
    #[error("{}: a supervisor already runs this node (process {}); use `deadbolt stop` first", .directory.display(), join(.holders))]
    AlreadyRuns {
        /// The node's directory.
        directory: PathBuf,
        /// Who holds the lock.
        holders: Vec<Holder>,
    },
    /// Processes of an earlier life are still there.
    #[error("{}: after {} s processes of an earlier life still hold it: {}; a new life would be taken for proof that they are gone: end them, or restart the machine", .path.display(), .waited.as_secs(), join(.holders))]
    TreeHeld {
        /// The lock.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Who holds it, as far as this user may see.
        holders: Vec<Holder>,
    },
    /// Processes of an earlier life do not end.
    #[error("{}: processes {pids:?} of an earlier life (DEADBOLT_TREE in their environment) do not end after {} s; a new life would be taken for proof that they are gone: look at them with ps, or restart the machine", .directory.display(), .waited.as_secs())]
    Survivors {
        /// The node's directory.
        directory: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Who.
        pids: Vec<i32>,
    },
    /// The supervisor was started from inside the tree that must be gone before it starts.
    #[error("process {pid}, from which this supervisor was started, belongs to the node's earlier life ({}); start it from outside", .directory.display())]
    InsideEarlierTree {
        /// The node's directory.
        directory: PathBuf,
        /// Which ancestor.
        pid: i32,
    },
    /// The boot file does not decode.
    #[error("{}: found {found}; without it a new life could be taken for an old one: restore it, or remove it if no process of this node runs anywhere", .path.display())]
    BootFile {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The directory is a copy of another.
    #[error("{}: this directory is a copy (its boot file was written for directory {recorded:?}, this one is {found:?} as device and inode): the original node may still run; if it is gone for good, remove the file `boot` here", .directory.display())]
    CopiedDirectory {
        /// The node's directory.
        directory: PathBuf,
        /// Device and inode number in the file.
        recorded: (u64, u64),
        /// Device and inode number of the directory.
        found: (u64, u64),
    },
    /// The process that this supervisor is tied to has ended already.
    #[error("process {parent}, to which this supervisor is tied, has ended")]
    ParentEnded {
        /// Its number.
        parent: i32,
    },
    /// The calling process has threads or children of its own.
    #[error("the supervisor needs a process of its own; this one has {threads} threads and {children}")]
    NotAlone {
        /// How many threads.
        threads: usize,
        /// Whether there are children.
        children: &'static str,
    },
    /// The machine's boot was this node's boot, and the machine still runs.
    #[error("{}: this node ran under a watchdog device since the machine's start; a trial boot number now would be taken for proof that the machine was reset: restart the machine, or go on with the watchdog device", .directory.display())]
    WatchdogChanged {
        /// The node's directory.
        directory: PathBuf,
    },
    /// No PID namespace can be made.
    #[error(
        "no PID namespace: {call} failed: {source}; it needs root (CAP_SYS_ADMIN) and a kernel and container that allow it; run without namespaces instead"
    )]
    Namespace {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gave no random number.
    #[error("no random number from the kernel: {reason}; getrandom(2) must be allowed")]
    Random {
        /// What it said.
        reason: String,
    },
    /// The shared page could not be made.
    #[error(transparent)]
    Page(#[from] deadbolt_sbd::page::PageError),
    /// A file or socket of the directory.
    #[error("cannot {action} {}: {source}; check that it exists and that this user may do so", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call.
    #[error("{call} failed: {source}; this is a fault of the machine or of its limits (open files, processes, seccomp)")]
    System {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SupervisorError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    fn system(call: &'static str) -> impl Fn(nix::Error) -> Self {
        move |errno| Self::System { call, source: errno.into() }
    }
}

fn join(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "not visible to this user".to_owned();
    }
    holders.iter().map(Holder::to_string).collect::<Vec<_>>().join(", ")
}
