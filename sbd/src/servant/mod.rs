//! What: servants: children that ask Pacemaker, corosync or deadboltd whether this node is healthy, and the parent's handle of one.
//! Owns: how a child is started, and the socket on which its reports come.
//! Invariants: reading a report never waits; a child that says nothing, or nonsense, is no news; a child ends with its parent.
//! Does not: judge what the reports mean for the node; that is sbd core's `HealthWatch`.
//! Called by: `watch`, and `main_from` for the children.

mod child;
mod cluster;
mod deadbolt;
mod pacemaker;
mod picture;
mod remote;
pub(crate) mod tool;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use deadbolt_sbd_core::{REPORT_BYTES, Report, Servant};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

pub(crate) use child::main;

/// This program itself, even when its file was replaced.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// A servant to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServantSetup {
    /// Who is asked.
    pub servant: Servant,
    /// The program `sbd`.
    pub program: PathBuf,
    /// This node's name in its cluster.
    pub node: String,
    /// How often it is asked, ms.
    pub interval_ms: u32,
    /// Watchdog time, ms: a quorum device that may keep quorum for longer makes quorum worth nothing.
    pub watchdog_ms: u32,
    /// The node has SBD devices: without quorum it is unhealthy, whatever Pacemaker's policy is.
    pub has_devices: bool,
    /// SBD_SYNC_RESOURCE_STARTUP: Pacemaker waits for sbd when it starts and stops.
    pub sync_startup: bool,
    /// deadboltd's directory, for that servant.
    pub directory: Option<PathBuf>,
}

impl ServantSetup {
    /// The child's arguments behind the program's name.
    fn arguments(&self, has_formed: bool) -> Vec<OsString> {
        let servant = match self.servant {
            Servant::Pacemaker => "pacemaker",
            Servant::Cluster => "cluster",
            Servant::Deadbolt => "deadbolt",
        };
        let mut arguments: Vec<OsString> = vec!["servant".into(), servant.into(), "--node".into(), (&self.node).into()];
        arguments.extend(["--interval".into(), self.interval_ms.to_string().into()]);
        arguments.extend(["--watchdog".into(), self.watchdog_ms.to_string().into()]);
        for (name, is_set) in [("--has-devices", self.has_devices), ("--sync-startup", self.sync_startup), ("--formed", has_formed)] {
            arguments.extend(is_set.then(|| name.into()));
        }
        if let Some(directory) = &self.directory {
            arguments.extend(["--directory".into(), directory.into()]);
        }
        arguments
    }
}

/// What a look at a servant found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A report. There may be more.
    Report(Report),
    /// Nothing more now.
    Nothing,
    /// The child has ended, or is about to; so it stays until `start` is called again.
    Ended,
}

/// A running servant, seen from its parent. Dropped, it is killed.
#[derive(Debug)]
pub struct ServantHandle {
    setup: ServantSetup,
    child: Child,
    reports: OwnedFd,
    /// A child has said that the cluster was whole: the next one has to know.
    has_formed: bool,
    has_ended: bool,
}

impl ServantHandle {
    /// Starts a child. It is killed by the kernel when the **thread** that called this ends.
    ///
    /// # Errors
    /// No socket or no process can be made.
    pub fn start(setup: ServantSetup) -> io::Result<Self> {
        let (child, reports) = spawn(&setup, false)?;
        Ok(Self { setup, child, reports, has_formed: false, has_ended: false })
    }

    /// Starts another child in the place of one that has ended; the old one's end is answered. False: it has not quite ended yet.
    ///
    /// # Errors
    /// No socket or no process can be made.
    pub fn start_again(&mut self) -> io::Result<bool> {
        if self.poll_exit()?.is_none() {
            return Ok(false);
        }
        (self.child, self.reports) = spawn(&self.setup, self.has_formed)?;
        self.has_ended = false;
        Ok(true)
    }

    /// Who is asked.
    #[must_use]
    pub fn servant(&self) -> Servant {
        self.setup.servant
    }

    /// How the child ended, once it has. Never waits.
    ///
    /// # Errors
    /// It is no child of this process.
    pub fn poll_exit(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The next report. Never waits.
    pub fn read(&mut self) -> Received {
        // One byte more than a report: a longer message is seen to be none.
        let mut bytes = [0; REPORT_BYTES + 1];
        while !self.has_ended {
            match recv(self.reports.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(length @ 1..) => {
                    if let Some(report) = Report::decode(&bytes[..length]) {
                        self.has_formed |= report.notice_ms > 0;
                        return Received::Report(report);
                    }
                }
                Err(Errno::EAGAIN) => return Received::Nothing,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    // A child that has closed its end, or sent an empty message, can report no more.
                    self.end();
                    self.has_ended = true;
                }
            }
        }
        Received::Ended
    }

    /// Kills the child; its end is seen like any other.
    pub fn end(&mut self) {
        let _ = self.child.kill();
    }
}

/// Readable when there is a report, or the child has ended.
impl AsFd for ServantHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }
}

impl Drop for ServantHandle {
    fn drop(&mut self) {
        self.end();
        // Only what has ended at once is collected: nothing here may wait.
        let _ = self.poll_exit();
    }
}

fn spawn(setup: &ServantSetup, has_formed: bool) -> io::Result<(Child, OwnedFd)> {
    // Messages keep their bounds here, so that a byte that a library prints is never taken for a part of a report.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut command = Command::new(&setup.program);
    command.arg0("sbd").args(setup.arguments(has_formed)).stdin(Stdio::null()).stdout(Stdio::from(theirs));
    Ok((command.spawn()?, ours))
}
