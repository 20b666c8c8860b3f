//! What: what the tests of the engine share.
//! Owns: the receiving end of an engine's completions.
//! Invariants: a test that waits in vain fails after `PATIENCE`, it does not hang.
//! Does not: open anything by itself.
//! Called by: the tests in this folder.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(unreachable_pub, reason = "a module shared by several test programs")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use deadbolt_disk::{Backend, BackendChoice, ByteOffset, Completion, Engine, IoError, Operation, RawDevice, now_ns};

/// Longest wait for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where and under what names the tests keep their files; what killed runs left is swept first.
fn scratch() -> (&'static Path, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix("disk-test-")?.split('-').next());
        if maker.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another test may be faster; one of the two calls is the wrong one.
            let _ = std::fs::remove_file(entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    (folder, format!("disk-test-{}-", std::process::id()))
}

/// A sparse file of [`SIZE`] bytes that goes with its guard.
pub fn image() -> tempfile::NamedTempFile {
    let (folder, prefix) = scratch();
    let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(folder).unwrap();
    file.as_file().set_len(SIZE as u64).unwrap();
    file
}

/// A folder that goes with its guard.
pub fn folder() -> tempfile::TempDir {
    let (folder, prefix) = scratch();
    tempfile::Builder::new().prefix(&prefix).tempdir_in(folder).unwrap()
}

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
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Size of every device here.
pub const SIZE: usize = 1 << 20;

/// A write of one byte over and over.
pub fn write(offset: u64, byte: u8, bytes: usize) -> Operation {
    Operation::Write { offset: ByteOffset(offset), data: vec![byte; bytes] }
}

/// A read.
pub fn read(offset: u64, bytes: usize) -> Operation {
    Operation::Read { offset: ByteOffset(offset), bytes }
}

/// A write of a unit, then a read of two.
pub fn chain(write_offset: u64, byte: u8, read_offset: u64) -> Operation {
    Operation::WriteThenRead {
        write_offset: ByteOffset(write_offset),
        data: vec![byte; 4096],
        read_offset: ByteOffset(read_offset),
        read_bytes: 8192,
    }
}

/// What every back end must do on every good device.
pub fn exercise(device: Arc<dyn RawDevice>, choice: BackendChoice) -> Backend {
    let (engine, completions) = engine(device, choice);
    let before = now_ns();
    engine.submit(1, write(4096, 0xa1, 4096));
    let written = next(&completions);
    assert_eq!((written.tag, written.result), (1, Ok(Arc::from([]))));
    let done = written.write_done_ns.unwrap();
    assert!(before <= written.issued_ns && written.issued_ns <= done && done <= written.ended_ns);

    // The chain's read covers the chain's own write: it must show it.
    for turn in 0..50_u8 {
        engine.submit(100 + u64::from(turn), chain(8192, turn, 4096));
        let answer = next(&completions);
        assert_eq!(answer.tag, 100 + u64::from(turn));
        assert!(answer.write_done_ns.unwrap() <= answer.ended_ns);
        let bytes = answer.result.unwrap();
        assert_eq!((bytes.len(), bytes[0], bytes[4095]), (8192, 0xa1, 0xa1));
        assert!(bytes[4096..].iter().all(|byte| *byte == turn));
    }

    // Many at once: each answered once, with its own bytes.
    for slot in 0..64_u64 {
        engine.submit(1000 + slot, write(65536 + slot * 4096, u8::try_from(slot).unwrap(), 4096));
    }
    for _ in 0..64 {
        assert_eq!(next(&completions).result, Ok(Arc::from([])));
    }
    for slot in 0..64_u64 {
        engine.submit(2000 + slot, read(65536 + slot * 4096, 4096));
    }
    let mut answers: Vec<_> = (0..64).map(|_| next(&completions)).collect();
    answers.sort_by_key(|answer| answer.tag);
    for (slot, answer) in (0..64_u64).zip(answers) {
        assert_eq!(answer.tag, 2000 + slot);
        assert_eq!(answer.write_done_ns, None);
        assert_eq!(*answer.result.unwrap(), vec![u8::try_from(slot).unwrap(); 4096]);
    }
    assert!(engine.outstanding().is_empty());

    engine.submit(3, write(SIZE as u64, 1, 4096));
    assert!(matches!(next(&completions).result, Err(IoError::OutOfRange { .. })));
    engine.submit(4, write(100, 1, 4096));
    assert!(matches!(next(&completions).result, Err(IoError::Misaligned { .. })));
    engine.submit(5, read(u64::MAX - 4095, 4096));
    assert!(matches!(next(&completions).result, Err(IoError::OutOfRange { .. })));
    engine.submit(6, read(0, 0));
    assert!(matches!(next(&completions).result, Err(IoError::Misaligned { .. })));
    engine.backend()
}
