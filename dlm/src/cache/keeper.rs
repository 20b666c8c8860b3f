//! What: the thread that gives kept locks up when their time is over.
//! Owns: the times.
//! Invariants: ends with the cache; never waits for a user of a lock.
//! Does not: decide how long a time is.
//! Called by: `cache`.

use super::entry::Entry;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Weak,
        atomic::AtomicUsize,
        mpsc::{self, RecvTimeoutError},
    },
    time::Instant,
};

/// Somebody else wants a kept lock.
pub(super) struct Hint {
    pub(super) entry: Weak<Entry>,
    /// The grant that it is about.
    pub(super) grant: u32,
}

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(kept: Arc<AtomicUsize>) -> io::Result<mpsc::Sender<Hint>> {
    let (sender, hints) = mpsc::channel();
    std::thread::Builder::new().name("deadbolt-cache".into()).spawn(move || run(&hints, &kept))?;
    Ok(sender)
}

fn run(hints: &mpsc::Receiver<Hint>, kept: &AtomicUsize) {
    let mut due: BTreeMap<(Instant, u64), Hint> = BTreeMap::new();
    let mut count = 0;
    loop {
        let now = Instant::now();
        while let Some(first) = due.first_entry()
            && first.key().0 <= now
        {
            let hint = first.remove();
            if let Some(entry) = hint.entry.upgrade() {
                entry.want(hint.grant, kept);
            }
        }
        let next = match due.first_key_value() {
            None => hints.recv().map_err(RecvTimeoutError::from),
            Some(((until, _), _)) => hints.recv_timeout(until.saturating_duration_since(now)),
        };
        match next {
            Ok(hint) => {
                if let Some(entry) = hint.entry.upgrade() {
                    count += 1;
                    due.insert((entry.keep_until(), count), hint);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
