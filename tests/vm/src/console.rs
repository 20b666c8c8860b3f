//! What: what a guest's kernel and programs write to its console, with the time at which each line came.
//! Owns: the lines.
//! Invariants: a line's time is never before the line was begun; no more is kept than a guest writes in hours.
//! Does not: write to the guest.
//! Called by: a machine.

use anyhow::Result;
use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines that are kept; a guest that writes more is broken, and its first lines say why.
const LINES_MAX: usize = 20_000;

/// One line of a console.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its end came.
    pub at: Instant,
    /// Without its end.
    pub text: String,
}

#[derive(Debug, Default)]
struct Kept {
    lines: Mutex<Vec<Line>>,
    changed: Condvar,
}

/// A console.
#[derive(Debug)]
pub(crate) struct Console {
    kept: Arc<Kept>,
}

impl Console {
    pub(crate) fn new(socket: UnixStream) -> Result<Self> {
        let kept = Arc::new(Kept::default());
        let shared = Arc::clone(&kept);
        std::thread::Builder::new().name("console".into()).spawn(move || {
            for bytes in BufReader::new(socket).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                let mut lines = shared.lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < LINES_MAX {
                    lines.push(Line { at: Instant::now(), text });
                }
                shared.changed.notify_all();
            }
        })?;
        Ok(Self { kept })
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.kept.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line with these words.
    pub(crate) fn wait(&self, words: &str, limit: Duration) -> Option<Line> {
        let find = |lines: &[Line]| lines.iter().find(|line| line.text.contains(words)).cloned();
        let lines = self.kept.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.kept.changed.wait_timeout_while(lines, limit, |lines| find(lines).is_none());
        let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        find(&lines)
    }
}
