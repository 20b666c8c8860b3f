//! What: the engine on a device in memory (faults) and on a file (both back ends).
//! Owns: its temporary files.
//! Invariants: needs no root.
//! Does not: need a special kernel: where io_uring is refused, the engine's own fallback is what is tested.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod common;

use std::sync::Arc;

use common::{PATIENCE, SIZE, chain, engine, exercise, image, next, read, wait_until, write};
use deadbolt_disk::{
    Access, AlignedBuf, Backend, BackendChoice, ByteOffset, Device, Direction, Engine, EngineError, Fault, FaultKind, IoError,
    MemoryDevice, OUTSTANDING_MAX, RawDevice, Touches, now_ns,
};

fn file_device() -> (tempfile::NamedTempFile, Arc<Device>) {
    let file = image();
    let device = Arc::new(Device::open(file.path(), Access::ReadWrite).unwrap());
    (file, device)
}

#[test]
fn threads_on_memory() {
    for sector in [512, 4096] {
        let device = Arc::new(MemoryDevice::new(SIZE, sector));
        assert_eq!(exercise(device, BackendChoice::Threads), Backend::Threads);
    }
}

#[test]
fn threads_on_a_file() {
    let (_file, device) = file_device();
    assert_eq!(exercise(device, BackendChoice::Threads), Backend::Threads);
}

#[test]
fn io_uring_on_a_file() {
    let (_file, device) = file_device();
    let (probe, _completions) = engine(device.clone(), BackendChoice::Auto);
    if let Some(reason) = probe.fallback_reason() {
        println!("skipped: io_uring is refused here: {reason}");
        return;
    }
    assert_eq!(exercise(device, BackendChoice::IoUring), Backend::IoUring);
}

#[test]
fn memory_has_no_ring() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, _completions) = engine(device.clone(), BackendChoice::Auto);
    assert_eq!(engine.backend(), Backend::Threads);
    assert!(engine.fallback_reason().unwrap().contains("no descriptor"));
    let refused = Engine::start(device, BackendChoice::IoUring, Box::new(drop));
    assert!(matches!(refused, Err(EngineError::IoUringRefused { .. })));
}

#[test]
fn a_ring_without_work_ends_with_its_engine() {
    let (_file, device) = file_device();
    let (engine, completions) = engine(device.clone(), BackendChoice::Auto);
    engine.submit(1, read(0, 4096));
    assert!(next(&completions).result.is_ok());
    drop(engine);
    assert!(completions.recv_timeout(PATIENCE).is_err());
    wait_until("the ring's thread lets the device go", || Arc::strong_count(&device) == 1);
}

#[test]
fn a_device_that_shrinks_gives_an_error() {
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let (file, device) = file_device();
        let (engine, completions) = engine(device, choice);
        file.as_file().set_len(4096).unwrap();
        engine.submit(1, read(0, 8192));
        let expected = IoError::Short { direction: Direction::Read, offset: 0, bytes: 8192, moved: 4096 };
        assert_eq!(next(&completions).result, Err(expected));
        engine.submit(2, chain(0, 1, 8192));
        let answer = next(&completions);
        assert!(answer.write_done_ns.is_some());
        assert!(matches!(answer.result, Err(IoError::Short { moved: 0, .. })), "{:?}", answer.result);
    }
}

#[test]
fn a_device_opened_for_reading_takes_no_write() {
    let (file, _device) = file_device();
    let device = Arc::new(Device::open(file.path(), Access::Read).unwrap());
    let (engine, completions) = engine(device, BackendChoice::Auto);
    engine.submit(1, chain(0, 1, 0));
    assert_eq!(next(&completions).result, Err(IoError::ReadOnly { offset: 0 }));
}

#[test]
fn a_hung_write_stops_no_read_and_comes_back_late_with_its_own_tag() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, completions) = engine(device.clone(), BackendChoice::Threads);
    device.inject(Fault::new(Touches::Writes, FaultKind::Hang).within(ByteOffset(4096), 4096));
    engine.submit(7, write(4096, 9, 4096));
    engine.submit(8, write(8192, 9, 512));
    wait_until("the write hangs", || device.hung() == 1);
    engine.submit(9, read(0, 4096));
    assert_eq!(next(&completions).tag, 9);
    let tags: Vec<u64> = engine.outstanding().iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, [7, 8]);
    assert_eq!(device.contents()[4096], 0);
    device.release_hung();
    assert_eq!((next(&completions).tag, next(&completions).tag), (7, 8));
    assert_eq!((device.contents()[4096], device.contents()[8192]), (9, 9));
    assert!(engine.outstanding().is_empty());
}

#[test]
fn a_hung_read_stops_no_write() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, completions) = engine(device.clone(), BackendChoice::Threads);
    device.inject(Fault::new(Touches::Reads, FaultKind::Hang));
    engine.submit(1, chain(0, 1, 0));
    wait_until("the chain's read hangs", || device.hung() == 1);
    engine.submit(2, write(8192, 2, 512));
    assert_eq!(next(&completions).tag, 2);
    device.release_hung();
    let late = next(&completions);
    assert_eq!(late.tag, 1);
    assert!(late.write_done_ns.is_some_and(|done| done < late.ended_ns));
}

#[test]
fn dropping_an_engine_with_a_hung_request_does_not_wait_and_nothing_new_is_issued() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, completions) = engine(device.clone(), BackendChoice::Threads);
    device.inject(Fault::new(Touches::Writes, FaultKind::Hang));
    engine.submit(1, chain(0, 5, 0));
    engine.submit(2, write(8192, 6, 512));
    wait_until("the write hangs", || device.hung() == 1);
    let begun = now_ns();
    drop(engine);
    assert!(now_ns() - begun < 1_000_000_000);
    device.release_hung();
    // The threads end, and with them the sink and its sender: nothing was ever said.
    assert!(completions.recv_timeout(PATIENCE).is_err());
    assert_eq!((device.contents()[0], device.contents()[8192]), (5, 0), "the first lands late, the second never began");
}

#[test]
fn a_full_engine_refuses_and_recovers() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, completions) = engine(device.clone(), BackendChoice::Threads);
    device.inject(Fault::new(Touches::All, FaultKind::Hang));
    for tag in 0..OUTSTANDING_MAX as u64 {
        engine.submit(tag, read(0, 512));
    }
    engine.submit(9999, read(0, 512));
    let refused = next(&completions);
    assert_eq!(refused.tag, 9999);
    assert_eq!(refused.result, Err(IoError::TooMany { outstanding: OUTSTANDING_MAX }));
    device.release_hung();
    for _ in 0..OUTSTANDING_MAX {
        assert!(next(&completions).result.is_ok());
    }
    engine.submit(1, read(0, 512));
    assert!(next(&completions).result.is_ok());
}

#[test]
fn a_failed_write_reads_nothing() {
    let device = Arc::new(MemoryDevice::new(SIZE, 512));
    let (engine, completions) = engine(device.clone(), BackendChoice::Threads);
    device.inject(Fault::new(Touches::Writes, FaultKind::Error(libc::EIO)));
    device.inject(Fault::new(Touches::Reads, FaultKind::Error(libc::ENODEV)));
    engine.submit(1, chain(0, 1, 0));
    let answer = next(&completions);
    assert_eq!(answer.write_done_ns, None);
    let expected = IoError::Os { direction: Direction::Write, offset: 0, bytes: 4096, errno: libc::EIO };
    assert_eq!(answer.result, Err(expected));
    device.clear_faults();
    engine.submit(2, chain(0, 1, 0));
    assert!(next(&completions).result.is_ok());
}

/// Three bytes of the second unit, as this path shows them.
fn first_middle_last(path: &MemoryDevice) -> Result<(u8, u8, u8), IoError> {
    let mut buffer = AlignedBuf::zeroed(4096);
    path.read_at(ByteOffset(4096), &mut buffer).map(|()| (buffer[0], buffer[512], buffer[4095]))
}

#[test]
fn every_fault_of_the_device_in_memory() {
    let device = MemoryDevice::new(SIZE, 512);
    let other = device.second_path();
    let put = |byte: u8| device.write_at(ByteOffset(4096), &AlignedBuf::copy_of(&[byte; 4096]));
    let get = first_middle_last;
    put(1).unwrap();
    assert_eq!(get(&other), Ok((1, 1, 1)));

    device.inject(Fault::new(Touches::Writes, FaultKind::Torn { new_bytes: 1000, acknowledged: true }).times(1));
    put(2).unwrap();
    assert_eq!(get(&other), Ok((2, 1, 1)), "torn at 512, told success");
    device.inject(Fault::new(Touches::Writes, FaultKind::Torn { new_bytes: 0, acknowledged: false }).times(1));
    assert!(put(3).is_err());
    device.inject(Fault::new(Touches::Writes, FaultKind::Lost).times(1));
    put(3).unwrap();
    assert_eq!(get(&device), Ok((2, 1, 1)), "lost");
    device.inject(Fault::new(Touches::Writes, FaultKind::Misdirected { to: ByteOffset(0) }).times(1));
    put(4).unwrap();
    assert_eq!((get(&device), device.contents()[0]), (Ok((2, 1, 1)), 4), "misdirected");
    device.inject(Fault::new(Touches::Reads, FaultKind::Misdirected { to: ByteOffset(0) }).times(1));
    assert_eq!(get(&device), Ok((4, 4, 4)));
}

#[test]
fn faults_of_one_path_and_rot_of_all() {
    let device = MemoryDevice::new(SIZE, 512);
    let other = device.second_path();
    let put = |byte: u8| device.write_at(ByteOffset(4096), &AlignedBuf::copy_of(&[byte; 4096]));
    let get = first_middle_last;
    put(1).unwrap();
    other.inject(Fault::new(Touches::Reads, FaultKind::Stale));
    put(5).unwrap();
    assert_eq!((get(&device), get(&other)), (Ok((5, 5, 5)), Ok((1, 1, 1))), "only one path is stale");
    other.clear_faults();
    assert_eq!(get(&other), Ok((5, 5, 5)));

    device.flip_bit(ByteOffset(4096), 7);
    assert_eq!(get(&other), Ok((0x85, 5, 5)), "rot");
    other.inject(Fault::new(Touches::Writes, FaultKind::ReadOnly));
    let refused = other.write_at(ByteOffset(0), &AlignedBuf::zeroed(512));
    assert_eq!(refused, Err(IoError::ReadOnly { offset: 0 }));
    device.inject(Fault::new(Touches::All, FaultKind::Error(libc::EIO)).within(ByteOffset(8192), 512));
    assert!(get(&device).is_ok());
    assert!(device.read_at(ByteOffset(8192), &mut AlignedBuf::zeroed(512)).is_err());
}
