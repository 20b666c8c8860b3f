//! What: a panic inside a run is a broken promise like any other.
//! Owns: the process's panic hook, from the first run on.
//! Invariants: a panic outside runs goes to the hook that was there before.
//! Does not: catch anything in a build that aborts; there it prints the line that replays the run.
//! Called by: `run.rs`.

use std::{
    cell::RefCell,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

thread_local! {
    /// What this thread runs, and where it panicked.
    static RUNNING: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Does something for a run that a replay line names; returns where and why it panicked.
pub(crate) fn caught(replay_line: &str, work: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(install);
    RUNNING.set(Some((replay_line.to_owned(), String::new())));
    let result = catch_unwind(AssertUnwindSafe(work));
    let running = RUNNING.take();
    result.is_err().then(|| running.map_or_else(String::new, |(_, found)| found))
}

fn install() {
    let before = take_hook();
    set_hook(Box::new(move |panic| {
        let is_run = RUNNING.with_borrow_mut(|running| {
            let Some((replay_line, found)) = running else { return false };
            *found = panic.to_string().replace('\n', " ");
            if cfg!(panic = "abort") {
                // Nowhere to complain when even this cannot be printed.
                let _ = writeln!(std::io::stderr(), "{found}\nreplay: {replay_line}");
            }
            true
        });
        if !is_run {
            before(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_with_its_place() {
        let found = caught("line", || panic!("no {}", "way")).unwrap();
        assert!(found.contains("panics.rs") && found.contains("no way"), "{found}");
        assert_eq!(caught("line", || ()), None);
    }
}
