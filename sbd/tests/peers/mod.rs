//! What: servants that ask in a node of real corosync.
//! Owns: the servants that it starts; a dropped value leaves nothing behind.
//! Invariants: only processes started here are ended.
//! Does not: test anything.
//! Called by: the tests of servants.

use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deadbolt_sbd::servant::{Received, ServantHandle, ServantSetup};
use deadbolt_sbd_core::{Report, Servant};
use deadbolt_tests::corosync::{LONG, Peer, await_true};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// For tests that wait for a loss.
pub const TOKEN_MS: u32 = 500;

fn setup(servant: Servant, program: PathBuf) -> ServantSetup {
    ServantSetup {
        servant,
        program,
        node: "alpha".into(),
        interval_ms: 250,
        watchdog_ms: 5000,
        has_devices: true,
        sync_startup: false,
        directory: Some("/nonexistent".into()),
    }
}

/// A servant and what it says.
pub struct Asked {
    pub handle: ServantHandle,
}

/// Not even a zombie is left behind.
impl Drop for Asked {
    fn drop(&mut self) {
        self.handle.end();
        await_true("a servant's end", || self.handle.poll_exit().is_ok_and(|status| status.is_some()));
    }
}

impl Asked {
    /// A servant that asks in this node.
    pub fn start(peer: &Peer, servant: Servant, program: &str, directory: &Path) -> Self {
        Self::start_with(peer, servant, program, directory, |_| {})
    }

    pub fn start_with(peer: &Peer, servant: Servant, program: &str, directory: &Path, change: impl FnOnce(&mut ServantSetup)) -> Self {
        let wrapper = directory.join(format!("sbd-{}", peer.number()));
        let line = format!("#!/bin/sh\nexec nsenter -t {} -n -m -u -i -- {program} \"$@\"\n", peer.number());
        std::fs::write(&wrapper, line).unwrap();
        std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
        let mut setup = setup(servant, wrapper);
        change(&mut setup);
        Self { handle: ServantHandle::start(setup).unwrap() }
    }

    /// The next report within the limit; none: silence, or its end.
    pub fn next(&mut self, limit: Duration) -> Option<Report> {
        let end = Instant::now() + limit;
        loop {
            match self.handle.read() {
                Received::Report(report) => return Some(report),
                Received::Ended => return None,
                Received::Nothing => {}
            }
            let left = end.checked_duration_since(Instant::now())?;
            poll(&mut [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(left).unwrap()).unwrap();
        }
    }

    /// The first report that is wanted; others are passed over.
    pub fn until(&mut self, what: &str, mut is_wanted: impl FnMut(&Report) -> bool) -> Report {
        let end = Instant::now() + LONG;
        let mut last = None;
        while Instant::now() < end {
            last = self.next(LONG);
            match last {
                Some(report) if is_wanted(&report) => return report,
                Some(_) => {}
                None => break,
            }
        }
        panic!("waited for {what}; the last report is {last:?}");
    }
}
