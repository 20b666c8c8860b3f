//! What: the watchdog that ends this node: a device of the kernel, or the supervisor through the shared page.
//! Owns: the watchdog's descriptor and the ioctls on it.
//! Invariants: the time granted is read back, never assumed; a watchdog is disarmed only by `disarm`, never by drop or exit.
//! Does not: decide when to feed.
//! Called by: the feeding thread.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::page::FeedSide;

mod ioctls {
    // linux/watchdog.h: WDIOC_SETOPTIONS, WDIOC_SETTIMEOUT, WDIOC_GETTIMEOUT.
    nix::ioctl_read!(set_options, b'W', 4, libc::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, libc::c_int);
}
/// WDIOS_DISABLECARD.
const DISABLE_CARD: libc::c_int = 1;
/// What closes a watchdog device for good; any other byte feeds it.
const MAGIC_CLOSE: &[u8] = b"V";
/// A feed.
const FEED: &[u8] = &[0];

/// Something that ends the node unless it is fed.
pub trait Watchdog: Send {
    /// Starts it and answers the time that it grants, ms, as read back.
    ///
    /// # Errors
    /// It does not run then, or it could not be told apart from one that does not.
    fn arm(&mut self, wanted_ms: u32, now_ns: u64) -> Result<u32, WatchdogError>;
    /// Gives it another full time. No allocation, no lock, no disk.
    fn feed(&mut self, now_ns: u64);
    /// Sets the shortest time that it grants, or the one that a crash dump gets, which is a feed, and answers it, ms. None: the time
    /// stays and it was not fed.
    fn shorten(&mut self, now_ns: u64, is_crash: bool) -> Option<u32>;
    /// Gives it another time, which is a feed, and answers what it grants, ms. None: the time stays and it was not fed.
    fn set_time(&mut self, wanted_ms: u32) -> Option<u32> {
        let _ = wanted_ms;
        None
    }
    /// Stops it.
    ///
    /// # Errors
    /// It may still run.
    fn disarm(&mut self) -> Result<(), WatchdogError>;
}

/// What is wrong with a watchdog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchdogError {
    /// It cannot be opened.
    #[error("watchdog {}: {source}; load a driver (modprobe softdog), stop the program that has it, or use `--watchdog process` on a trial node", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no watchdog, or does not take the time.
    #[error("watchdog {}: {call} failed: {source}; this is no watchdog that can be trusted, choose another", path.display())]
    Ioctl {
        /// Which.
        path: PathBuf,
        /// What was asked.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It grants more than the cluster's lease has room for.
    #[error(
        "the watchdog grants {granted_ms} ms, so it may take {reset_ms} ms to fire; the cluster's times allow {allowed_ms} ms: use another watchdog, or format with a longer watchdog time"
    )]
    TooSlow {
        /// Granted.
        granted_ms: u32,
        /// T.
        reset_ms: u32,
        /// T of the cluster.
        allowed_ms: u32,
    },
}

/// A watchdog device.
#[derive(Debug)]
pub struct DeviceWatchdog {
    path: PathBuf,
    /// Its time during a crash dump, s; 0: the shortest.
    crash_s: u32,
    // Never closed by drop: a close without the magic byte leaves most drivers running, and that must not depend on an exit path.
    file: ManuallyDrop<Option<File>>,
}

impl DeviceWatchdog {
    /// Does not open it yet: opening starts it.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), crash_s: 0, file: ManuallyDrop::new(None) }
    }

    /// Gives a crash dump this time, s, where the pill asks for one.
    #[must_use]
    pub fn crash_time(self, crash_s: u32) -> Self {
        Self { crash_s, ..self }
    }

    /// Starts it with the time that its driver has, and answers that, ms.
    ///
    /// # Errors
    /// As [`Watchdog::arm`].
    pub fn arm_as_it_is(&mut self) -> Result<u32, WatchdogError> {
        self.open()?;
        self.granted_ms().inspect_err(|_| drop(self.disarm()))
    }

    fn open(&mut self) -> Result<(), WatchdogError> {
        let fault = |source| WatchdogError::Open { path: self.path.clone(), source };
        // The C library's own open: test beds of distributions stand in for it.
        let file = open(&self.path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| fault(errno.into()))?;
        *self.file = Some(File::from(file));
        Ok(())
    }

    fn set_seconds(&self, seconds: u32) -> Result<u32, WatchdogError> {
        let fault =
            |call: &'static str| move |errno: nix::Error| WatchdogError::Ioctl { path: self.path.clone(), call, source: errno.into() };
        let closed = || WatchdogError::Ioctl { path: self.path.clone(), call: "open", source: io::ErrorKind::NotConnected.into() };
        let file = self.file.as_ref().ok_or_else(closed)?;
        let mut value = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open and value is an int that lives through the call, as WDIOC_SETTIMEOUT wants.
        unsafe { ioctls::set_timeout(file.as_raw_fd(), &raw mut value) }.map_err(fault("WDIOC_SETTIMEOUT"))?;
        self.granted_ms()
    }

    fn granted_ms(&self) -> Result<u32, WatchdogError> {
        let fault =
            |call: &'static str| move |errno: nix::Error| WatchdogError::Ioctl { path: self.path.clone(), call, source: errno.into() };
        let closed = || WatchdogError::Ioctl { path: self.path.clone(), call: "open", source: io::ErrorKind::NotConnected.into() };
        let file = self.file.as_ref().ok_or_else(closed)?;
        let mut granted = 0;
        // SAFETY: as for WDIOC_SETTIMEOUT.
        unsafe { ioctls::get_timeout(file.as_raw_fd(), &raw mut granted) }.map_err(fault("WDIOC_GETTIMEOUT"))?;
        let zero = || WatchdogError::Ioctl { path: self.path.clone(), call: "WDIOC_GETTIMEOUT", source: io::ErrorKind::InvalidData.into() };
        u32::try_from(granted).ok().filter(|granted| *granted > 0).map(|granted| granted.saturating_mul(1000)).ok_or_else(zero)
    }
}

impl Watchdog for DeviceWatchdog {
    fn arm(&mut self, wanted_ms: u32, _now_ns: u64) -> Result<u32, WatchdogError> {
        self.open()?;
        let granted = self.set_seconds(wanted_ms.div_ceil(1000).max(1));
        if granted.is_err() {
            let _ = self.disarm();
        }
        granted
    }

    fn feed(&mut self, _now_ns: u64) {
        if let Some(file) = self.file.as_mut() {
            // A feed that fails is a feed that did not happen: the watchdog fires, which is its job.
            let _ = file.write(FEED);
        }
    }

    fn shorten(&mut self, _now_ns: u64, is_crash: bool) -> Option<u32> {
        let seconds = if is_crash { self.crash_s.max(1) } else { 1 };
        self.set_seconds(seconds).ok()
    }

    fn set_time(&mut self, wanted_ms: u32) -> Option<u32> {
        self.set_seconds(wanted_ms.div_ceil(1000).max(1)).ok()
    }

    fn disarm(&mut self) -> Result<(), WatchdogError> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let mut option = DISABLE_CARD;
        // SAFETY: the descriptor is open and option is an int that lives through the call, as WDIOC_SETOPTIONS wants.
        // Not every driver knows it; the magic byte is what counts.
        let _ = unsafe { ioctls::set_options(file.as_raw_fd(), &raw mut option) };
        let written = file.write_all(MAGIC_CLOSE);
        written.map_err(|source| WatchdogError::Ioctl { path: self.path.clone(), call: "write of the closing byte", source })
    }
}

/// A watchdog that runs already; to arm it answers the time that it has.
pub struct ArmedWatchdog {
    inner: Box<dyn Watchdog>,
    granted_ms: u32,
}

impl std::fmt::Debug for ArmedWatchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArmedWatchdog").field("granted_ms", &self.granted_ms).finish_non_exhaustive()
    }
}

impl ArmedWatchdog {
    /// `granted_ms` was answered when it was armed.
    #[must_use]
    pub fn new(inner: Box<dyn Watchdog>, granted_ms: u32) -> Self {
        Self { inner, granted_ms }
    }
}

impl Watchdog for ArmedWatchdog {
    fn arm(&mut self, _wanted_ms: u32, _now_ns: u64) -> Result<u32, WatchdogError> {
        Ok(self.granted_ms)
    }
    fn feed(&mut self, now_ns: u64) {
        self.inner.feed(now_ns);
    }
    fn shorten(&mut self, now_ns: u64, is_crash: bool) -> Option<u32> {
        self.inner.shorten(now_ns, is_crash)
    }
    fn set_time(&mut self, wanted_ms: u32) -> Option<u32> {
        self.inner.set_time(wanted_ms)
    }
    fn disarm(&mut self) -> Result<(), WatchdogError> {
        self.inner.disarm()
    }
}

/// The supervisor's process watchdog: it ends the whole tree when the deadline on the page has passed.
#[derive(Debug)]
pub struct ProcessWatchdog {
    page: FeedSide,
    watchdog_ms: u32,
    shortest_ms: u32,
}

impl ProcessWatchdog {
    /// `shortest_ms` is the least time that the supervisor can keep.
    #[must_use]
    pub fn new(page: FeedSide, shortest_ms: u32) -> Self {
        Self { page, watchdog_ms: 0, shortest_ms }
    }

    fn until(now_ns: u64, span_ms: u32) -> u64 {
        now_ns + u64::from(span_ms) * 1_000_000
    }
}

impl Watchdog for ProcessWatchdog {
    fn arm(&mut self, wanted_ms: u32, now_ns: u64) -> Result<u32, WatchdogError> {
        self.watchdog_ms = wanted_ms;
        self.page.set_watchdog_ms(wanted_ms);
        self.page.set_until(Self::until(now_ns, wanted_ms));
        Ok(wanted_ms)
    }

    fn feed(&mut self, now_ns: u64) {
        self.page.feed_until(Self::until(now_ns, self.watchdog_ms));
    }

    fn shorten(&mut self, now_ns: u64, _is_crash: bool) -> Option<u32> {
        let shortest_ms = self.shortest_ms.min(self.watchdog_ms);
        self.page.set_watchdog_ms(shortest_ms);
        self.page.set_until(Self::until(now_ns, shortest_ms));
        Some(shortest_ms)
    }

    fn disarm(&mut self) -> Result<(), WatchdogError> {
        self.page.disarm();
        Ok(())
    }
}

/// No watchdog at all: only with `--allow-unprotected`, and every report says so.
#[derive(Debug)]
pub struct NoWatchdog;

impl Watchdog for NoWatchdog {
    fn arm(&mut self, wanted_ms: u32, _now_ns: u64) -> Result<u32, WatchdogError> {
        Ok(wanted_ms)
    }
    fn feed(&mut self, _now_ns: u64) {}
    fn shorten(&mut self, _now_ns: u64, _is_crash: bool) -> Option<u32> {
        None
    }
    fn disarm(&mut self) -> Result<(), WatchdogError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Page;

    #[test]
    fn a_file_is_no_watchdog() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut watchdog = DeviceWatchdog::new(file.path());
        assert!(matches!(watchdog.arm(2000, 0), Err(WatchdogError::Ioctl { call: "WDIOC_SETTIMEOUT", .. })));
        assert_eq!(std::fs::read(file.path()).unwrap(), MAGIC_CLOSE, "what was opened is closed for good");
        let mut missing = DeviceWatchdog::new(Path::new("/nonexistent/watchdog"));
        assert!(matches!(missing.arm(2000, 0), Err(WatchdogError::Open { .. })));
    }

    #[test]
    fn the_process_watchdog_is_a_deadline() {
        let (page, _descriptors) = Page::create().unwrap();
        let supervisor = page.supervisor();
        let mut watchdog = ProcessWatchdog::new(page.feed(), 200);
        assert_eq!(watchdog.arm(1000, 5_000_000).unwrap(), 1000);
        assert_eq!(supervisor.fed_until_ns(), Some(1_005_000_000));
        watchdog.feed(10_000_000);
        assert_eq!(supervisor.fed_until_ns(), Some(1_010_000_000));
        assert_eq!(watchdog.shorten(20_000_000, false), Some(200));
        assert_eq!((supervisor.fed_until_ns(), supervisor.watchdog_ms()), (Some(220_000_000), 200));
        watchdog.disarm().unwrap();
        assert_eq!(supervisor.fed_until_ns(), None);
    }
}
