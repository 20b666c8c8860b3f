//! What: a watchdog device that is none: a FIFO, and a library preloaded into the program that makes the FIFO answer a watchdog's ioctls.
//! Owns: the thread that reads the feeds and, when they stay away for the time that was set, ends the node.
//! Invariants: it starts with the time that is set or with the first feed; only the closing byte or the ioctl that disables it
//! stops it, never the end of its user.
//! Does not: refuse a second user, or round: it fires when the time is over, not before and not a second later.
//! Called by: [`crate::node`], and tests that need the library alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

/// What feeds a watchdog.
const FEED: u8 = 0;
/// What closes it for good.
const MAGIC_CLOSE: u8 = b'V';
/// Said by its owner when it is no longer wanted.
const QUIT: u8 = b'Q';
/// What a driver of its kind has before anybody sets a time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The library, built once by a process into this folder; it reads `WATCHDOG_LEAST` and `WATCHDOG_NOTES`, see its source.
///
/// # Errors
/// There is no compiler, or it refused.
pub fn library(folder: &Path) -> io::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build(folder).map_err(|error| error.to_string())).clone().map_err(io::Error::other)
}

fn build(folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join("libwatchdog.so");
    // Other test programs build it too, perhaps now.
    let own = folder.join(format!("libwatchdog-{}.so", std::process::id()));
    let compiler = option_env!("RUSTC").unwrap_or("rustc");
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "watchdog", "-o"]);
    let output = command.arg(&own).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/preload.rs.in")).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    std::fs::rename(&own, &path)?;
    Ok(path)
}

/// What was seen of the feeding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// How often it was fed; setting its time feeds it too.
    pub feeds: u64,
    /// When it fires; none while it is stopped.
    pub until: Option<Instant>,
    /// When it fired.
    pub fired: Option<Instant>,
    /// How often its user stopped it.
    pub stops: u64,
}

/// The device.
#[derive(Debug)]
pub struct Watchdog {
    path: PathBuf,
    seen: Arc<Mutex<Seen>>,
    reader: Option<File>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// The device at `path`, where nothing may be yet. It does not count before [`Watchdog::run`].
    ///
    /// # Errors
    /// The FIFO cannot be made.
    pub fn new(path: PathBuf) -> io::Result<Self> {
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
        // Opened for both: nobody who opens it has to wait, and its users' ends are no end of file.
        let reader = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Self { path, seen: Arc::default(), reader: Some(reader), thread: None })
    }

    /// The device's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counts from now on, and calls `fire` once if it is not fed in time.
    ///
    /// # Errors
    /// No thread.
    pub fn run(&mut self, fire: impl FnOnce() + Send + 'static) -> io::Result<()> {
        if let Some(reader) = self.reader.take() {
            let seen = Arc::clone(&self.seen);
            self.thread = Some(std::thread::Builder::new().name("watchdog".into()).spawn(move || count(reader, &seen, fire))?);
        }
        Ok(())
    }

    /// What was seen until now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *lock(&self.seen)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if OpenOptions::new().write(true).open(&self.path).and_then(|mut fifo| fifo.write_all(&[QUIT])).is_ok() {
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until it is told to quit.
fn count(mut reader: File, seen: &Mutex<Seen>, fire: impl FnOnce()) {
    let mut fire = Some(fire);
    let mut timeout = TIMEOUT;
    let mut line = Vec::new();
    loop {
        let until = lock(seen).until;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000));
        let patience = left.map_or(PollTimeout::NONE, |left| PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX)));
        let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, patience) {
            Ok(0) if until.is_some_and(|until| until <= Instant::now()) => {
                if let Some(fire) = fire.take() {
                    fire();
                }
                let mut seen = lock(seen);
                (seen.fired, seen.until) = (Some(Instant::now()), None);
            }
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => {
                let mut bytes = [0; 64];
                let Ok(got) = reader.read(&mut bytes) else { return };
                for byte in &bytes[..got] {
                    match *byte {
                        QUIT => return,
                        FEED => fed(seen, timeout),
                        MAGIC_CLOSE => stopped(seen),
                        b'\n' => note(&std::mem::take(&mut line), seen, &mut timeout),
                        other => line.push(other),
                    }
                }
            }
            Err(_) => return,
        }
    }
}

/// A line of the library: an ioctl that was asked for.
fn note(line: &[u8], seen: &Mutex<Seen>, timeout: &mut Duration) {
    let text = String::from_utf8_lossy(line);
    if let Some(seconds) = text.strip_prefix("set ").and_then(|number| number.parse().ok()) {
        *timeout = Duration::from_secs(seconds);
        fed(seen, *timeout);
    } else if text == "options" {
        stopped(seen);
    }
}

fn fed(seen: &Mutex<Seen>, timeout: Duration) {
    let mut seen = lock(seen);
    if seen.fired.is_none() {
        seen.feeds += 1;
        seen.until = Some(Instant::now() + timeout);
    }
}

fn stopped(seen: &Mutex<Seen>) {
    let mut seen = lock(seen);
    seen.stops += u64::from(seen.until.is_some());
    seen.until = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn device(name: &str) -> (tempfile::TempDir, Watchdog, std::sync::mpsc::Receiver<Instant>, File) {
        let folder = tempfile::tempdir().unwrap();
        let mut watchdog = Watchdog::new(folder.path().join(name)).unwrap();
        let (fire, fired) = channel();
        watchdog.run(move || fire.send(Instant::now()).unwrap()).unwrap();
        let user = OpenOptions::new().write(true).open(watchdog.path()).unwrap();
        (folder, watchdog, fired, user)
    }

    #[test]
    fn it_fires_when_the_feeds_stay_away_also_after_its_user() {
        let (_folder, watchdog, fired, mut user) = device("left");
        user.write_all(b"set 1\n").unwrap();
        std::thread::sleep(Duration::from_millis(700));
        let fed = Instant::now();
        user.write_all(&[FEED]).unwrap();
        drop(user);
        let fired = fired.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(fired - fed >= Duration::from_secs(1), "{:?}", fired - fed);
        assert_eq!((watchdog.seen().feeds, watchdog.seen().stops), (2, 0));
    }

    #[test]
    fn it_is_stopped_by_the_closing_byte() {
        let (_folder, watchdog, fired, mut user) = device("closed");
        user.write_all(b"set 1\n\0V").unwrap();
        assert!(fired.recv_timeout(Duration::from_millis(1500)).is_err());
        assert_eq!((watchdog.seen().until, watchdog.seen().stops), (None, 1));
    }
}
