//! What: lines for people, written by a thread of their own.
//! Owns: standard error.
//! Invariants: who says something never waits for the reader of standard error; what does not fit is dropped and counted.
//! Does not: filter or format beyond one line.
//! Called by: `run`.

use std::ffi::{CStr, CString};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait. Chosen: far more than one fence produces.
const LINES_MAX: usize = 256;

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Log {
    lines: Option<SyncSender<String>>,
    prefix: String,
    /// Lines that were given to the writing thread and are not written yet.
    waiting: Option<Arc<AtomicUsize>>,
}

impl Log {
    /// To standard error; `prefix` begins each line.
    #[must_use]
    pub fn to_standard_error(prefix: &str) -> Self {
        // Standard error closed or full: nothing can be done about it here.
        Self::written_by(prefix, |line| drop(writeln!(std::io::stderr(), "{line}")))
    }

    fn written_by(prefix: &str, write: impl Fn(&str) + Send + 'static) -> Self {
        let (lines, given) = sync_channel::<String>(LINES_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let unwritten = Arc::clone(&waiting);
        let body = move || {
            for line in given {
                write(&line);
                unwritten.fetch_sub(1, Ordering::SeqCst);
            }
        };
        let thread = std::thread::Builder::new().name("deadbolt-log".into()).stack_size(64 * 1024).spawn(body);
        Self { lines: thread.is_ok().then_some(lines), prefix: prefix.to_owned(), waiting: Some(waiting) }
    }

    /// To the system log, as the daemon `name`.
    #[must_use]
    pub fn to_syslog(name: &'static CStr) -> Self {
        open_system_log(name);
        Self::written_by("", write_syslog)
    }

    /// Into a channel; what does not fit is dropped.
    #[must_use]
    pub fn to_channel(lines: SyncSender<String>) -> Self {
        Self { lines: Some(lines), prefix: String::new(), waiting: None }
    }

    /// Nowhere.
    #[must_use]
    pub fn silent() -> Self {
        Self { lines: None, prefix: String::new(), waiting: None }
    }

    /// One line. Never waits.
    pub fn say(&self, text: &str) {
        if let Some(lines) = &self.lines {
            // Counted first: the writer may be done before this thread goes on.
            let count = self.waiting.as_deref();
            if let Some(count) = count {
                count.fetch_add(1, Ordering::SeqCst);
            }
            let is_dropped = lines.try_send(format!("{}{text}", self.prefix)).is_err();
            if let Some(count) = count.filter(|_| is_dropped) {
                count.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits until all lines are written, no longer than `limit`: for whoever is about to end the process and has nothing else to do.
    pub fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.waiting.as_ref().is_some_and(|count| count.load(Ordering::SeqCst) > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn open_system_log(name: &'static CStr) {
    // SAFETY: the C library keeps the address of the name, which stays for ever.
    unsafe { libc::openlog(name.as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
}

/// One line to the system log, for a tool that has one to say and then ends: a system log that hangs keeps it for a second at most.
pub(crate) fn to_system_log(line: &str) {
    let log = Log::to_syslog(c"sbd");
    log.say(line);
    log.finish(Duration::from_secs(1));
}

/// One line to the system log.
fn write_syslog(line: &str) {
    let Ok(line) = CString::new(line.replace('\0', " ")) else { return };
    // SAFETY: the format takes one string, which ends with a zero byte and lives through the call.
    unsafe { libc::syslog(libc::LOG_NOTICE, c"%s".as_ptr(), line.as_ptr()) };
}
