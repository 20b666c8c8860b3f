//! What: what the tests of the engine share.
//! Owns: the receiving end of an engine's completions.
//! Invariants: a test that waits in vain fails after `PATIENCE`, it does not hang.
//! Does not: open anything by itself.
//! Called by: the tests in this folder.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(unreachable_pub, reason = "a module shared by several test programs")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use deadbolt_disk::{BackendChoice, Completion, Engine, RawDevice};

/// Longest wait for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An engine whose completions arrive in a channel.
pub fn engine(device: Arc<dyn RawDevice>, choice: BackendChoice) -> (Engine, Receiver<Completion>) {
    let (sender, receiver) = channel();
    let sink = Box::new(move |completion| drop(sender.send(completion)));
    (Engine::start(device, choice, sink).unwrap(), receiver)
}

/// The next completion.
pub fn next(receiver: &Receiver<Completion>) -> Completion {
    receiver.recv_timeout(PATIENCE).expect("a completion should have come")
}

/// Waits for a condition that another thread brings about.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
