//! What: lines for people, written by a thread of their own.
//! Owns: standard error.
//! Invariants: who says something never waits for the reader of standard error; what does not fit is dropped and counted.
//! Does not: filter or format beyond one line.
//! Called by: `run`.

use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Lines that may wait. Chosen: far more than one fence produces.
const LINES_MAX: usize = 256;

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Log {
    lines: Option<SyncSender<String>>,
    prefix: String,
}

impl Log {
    /// To standard error; `prefix` begins each line.
    #[must_use]
    pub fn to_standard_error(prefix: &str) -> Self {
        let (lines, waiting) = sync_channel::<String>(LINES_MAX);
        let body = move || {
            for line in waiting {
                // Standard error closed or full: nothing can be done about it here.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        };
        let thread = std::thread::Builder::new().name("deadbolt-log".into()).stack_size(64 * 1024).spawn(body);
        Self { lines: thread.is_ok().then_some(lines), prefix: prefix.to_owned() }
    }

    /// Into a channel; what does not fit is dropped.
    #[must_use]
    pub fn to_channel(lines: SyncSender<String>) -> Self {
        Self { lines: Some(lines), prefix: String::new() }
    }

    /// Nowhere.
    #[must_use]
    pub fn silent() -> Self {
        Self { lines: None, prefix: String::new() }
    }

    /// One line. Never waits.
    pub fn say(&self, text: &str) {
        if let Some(lines) = &self.lines {
            let _ = lines.try_send(format!("{}{text}", self.prefix));
        }
    }
}
