//! What: loop devices of both sector sizes, preflight, and a device that hangs. For root.
//! Owns: its files, loop devices (autoclear), mount namespaces of single threads, and the FUSE server.
//! Invariants: whatever fails, the FUSE server ends, so nobody is left in an unbreakable wait, and loop devices go.
//! Does not: run without root: then it says so.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use common::{PATIENCE, SIZE, chain, engine, exercise, folder, image, next, read, wait_until, write};
use deadbolt_disk::{
    Access, AlignedBuf, Backend, BackendChoice, ByteOffset, Detached, Device, DeviceKind, Finding, IoError, LoopDevice, LoopError,
    LoopOptions, OpenError, Severity, attach_loop, detach_loop, now_ns, preflight, preflight_within, same_storage,
};
use deadbolt_tests::hung_disk::{Hold, HungDisk, serve_if_asked};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The FUSE server runs in a copy of this program, under this name.
#[test]
fn hung_disk_server() {
    serve_if_asked();
}

/// Loop devices need root and their control node.
fn may_attach() -> bool {
    let may = nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !may {
        println!("skipped: needs root and /dev/loop-control");
    }
    may
}

fn may_hang() -> bool {
    let may = may_attach() && Path::new("/dev/fuse").exists();
    if !may {
        println!("skipped: needs root and /dev/fuse");
    }
    may
}

fn attached(path: &Path, sector_bytes: u32) -> LoopDevice {
    attach_loop(path, LoopOptions { read_only: false, sector_bytes, autoclear: true }).unwrap()
}

fn backing_of(path: &Path) -> PathBuf {
    Path::new("/sys/block").join(path.file_name().unwrap()).join("loop/backing_file")
}

#[test]
fn both_back_ends_on_both_sector_sizes() {
    if !may_attach() {
        return;
    }
    for sector in [512, 4096] {
        let file = image();
        let disk = attached(file.path(), sector);
        let device = Arc::new(Device::open(disk.path(), Access::ReadWrite).unwrap());
        let geometry = device.geometry();
        assert_eq!((geometry.logical_sector_bytes, geometry.size_bytes), (sector, SIZE as u64));
        let expected = DeviceKind::Block { is_loop: true, loop_direct_io: true, read_only: false };
        assert_eq!(geometry.kind, expected);
        assert_eq!(exercise(device.clone(), BackendChoice::Threads), Backend::Threads);
        exercise(device.clone(), BackendChoice::Auto);
        // What was written is in the file: nothing was kept back.
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!((content[4096], content[8192], content[65536 + 63 * 4096]), (0xa1, 49, 63));
        let half = device.read_at(ByteOffset(512), &mut AlignedBuf::zeroed(512));
        assert_eq!(half.is_ok(), sector == 512, "{half:?}");
        let findings = preflight(disk.path());
        assert!(findings.is_empty(), "{findings:?}");
    }
}

#[test]
fn attaching_and_detaching() {
    if !may_attach() {
        return;
    }
    let file = image();
    let disk = attached(file.path(), 512);
    let backing = backing_of(disk.path());
    assert!(backing.exists());
    drop(disk);
    wait_until("autoclear", || {
        std::fs::read_to_string(&backing).is_ok_and(|text| text.trim() != file.path().to_str().unwrap()) || !backing.exists()
    });

    let kept = attach_loop(file.path(), LoopOptions::default()).unwrap();
    assert_eq!(kept.detach().unwrap(), Detached::Now);

    let open = attach_loop(file.path(), LoopOptions::default()).unwrap();
    assert_eq!(detach_loop(open.path()).unwrap(), Detached::WhenClosed);
    let path = open.path().to_path_buf();
    drop(open);
    wait_until("the last user closes it", || {
        !std::fs::read_to_string(backing_of(&path)).is_ok_and(|text| text.trim() == file.path().to_str().unwrap())
    });
    assert!(matches!(detach_loop(file.path()), Err(LoopError::NotALoop { .. })));
    assert!(matches!(detach_loop("/dev/null"), Err(LoopError::NotALoop { .. })));
    file.as_file().set_len(SIZE as u64 + 512).unwrap();
    let odd = attach_loop(file.path(), LoopOptions { sector_bytes: 4096, ..LoopOptions::default() });
    assert!(matches!(odd, Err(LoopError::Size { .. })), "{odd:?}");
    let thousand = attach_loop(file.path(), LoopOptions { sector_bytes: 1000, ..LoopOptions::default() });
    assert!(matches!(thousand, Err(LoopError::SectorSize { found: 1000 })));
    assert!(matches!(attach_loop("/no/such/file", LoopOptions::default()), Err(LoopError::Backing { .. })));
}

#[test]
fn a_read_only_device_is_refused() {
    if !may_attach() {
        return;
    }
    let file = image();
    let options = LoopOptions { read_only: true, sector_bytes: 512, autoclear: true };
    let disk = attach_loop(file.path(), options).unwrap();
    let opened = Device::open(disk.path(), Access::ReadWrite);
    assert!(matches!(opened, Err(OpenError::ReadOnly { .. })), "{opened:?}");
    let device = Device::open(disk.path(), Access::Read).unwrap();
    let refused = device.write_at(ByteOffset(0), &AlignedBuf::zeroed(4096));
    assert_eq!(refused, Err(IoError::ReadOnly { offset: 0 }));
    let findings = preflight(disk.path());
    assert!(matches!(findings[..], [Finding::ReadOnly { .. }]), "{findings:?}");
}

#[test]
fn what_is_no_device_is_refused() {
    let folder = folder();
    let opened = |path: &Path| Device::open(path, Access::Read).unwrap_err();
    assert!(matches!(opened(folder.path()), OpenError::NotADevice { found: "directory", .. }));
    assert!(matches!(opened(Path::new("/dev/null")), OpenError::NotADevice { found: "character device", .. }));
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(opened(&fifo), OpenError::NotADevice { found: "fifo", .. }));
    assert!(matches!(opened(&folder.path().join("none")), OpenError::Open { .. }));
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    assert!(matches!(opened(&empty), OpenError::Empty { .. }));
    let findings = preflight(&empty);
    assert!(matches!(findings[..], [Finding::CannotOpen(OpenError::Empty { .. })]), "{findings:?}");
}

/// Mounts made here are seen by this thread alone and go with it.
fn in_own_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    if !may_attach() {
        return;
    }
    let folder = folder();
    in_own_namespace();
    mount(Some("none"), folder.path(), Some("ramfs"), MsFlags::empty(), None::<&str>).unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
    let opened = Device::open(&path, Access::ReadWrite).unwrap_err();
    assert!(matches!(&opened, OpenError::NoDirectIo { file_system, .. } if file_system == "ramfs"), "{opened}");
    let loops = attach_loop(&path, LoopOptions { autoclear: true, ..LoopOptions::default() });
    assert!(matches!(loops, Err(LoopError::NotAsAsked { what: "direct I/O", .. })), "{loops:?}");
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_loop_device_through_the_page_cache_is_found() {
    if !may_attach() {
        return;
    }
    let file = image();
    let disk = attached(file.path(), 512);
    // LOOP_SET_DIRECT_IO off, as losetup without its option would have left it.
    let open = OpenOptions::new().read(true).write(true).open(disk.path()).unwrap();
    // SAFETY: the request takes a plain integer.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&open), 0x4c08, 0) };
    assert_eq!(result, 0);
    drop(open);
    let findings = preflight(disk.path());
    assert!(matches!(findings[..], [Finding::LoopWithoutDirectIo { .. }]), "{findings:?}");
    assert_eq!(findings[0].severity(), Severity::Refuse);
}

#[test]
fn a_device_in_use_is_found() {
    if !may_attach() {
        return;
    }
    let file = image();
    let disk = attached(file.path(), 512);
    let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(disk.path()).unwrap();
    let findings = preflight(disk.path());
    assert!(matches!(findings[..], [Finding::Busy { .. }]), "{findings:?}");
    drop(claim);
    let findings = preflight(file.path());
    assert!(matches!(&findings[..], [Finding::Attached { loops, .. }] if loops.contains("/dev/loop")), "{findings:?}");
    assert_eq!(findings[0].severity(), Severity::Note);

    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(disk.path()).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped in part: no mkfs.ext4");
        return;
    }
    let folder = folder();
    in_own_namespace();
    mount(Some(disk.path()), folder.path(), Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let on_device = preflight(disk.path());
    let on_file = preflight(file.path());
    nix::mount::umount(folder.path()).unwrap();
    assert!(matches!(on_device[..], [Finding::Mounted { .. }]), "{on_device:?}");
    assert!(matches!(on_file[..], [Finding::Mounted { .. }, Finding::Attached { .. }]), "{on_file:?}");
    assert!(on_device[0].to_string().contains(folder.path().to_str().unwrap()));
}

#[test]
fn paths_of_one_storage_are_not_three_devices() {
    let (one, two) = (image(), image());
    let folder = folder();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(one.path(), &link).unwrap();
    assert!(same_storage(&[one.path(), two.path()]).is_empty());
    assert_eq!(same_storage(&[one.path(), two.path(), &link]).len(), 1);
    if !may_attach() {
        return;
    }
    let (first, second) = (attached(one.path(), 512), attached(one.path(), 4096));
    let other = attached(two.path(), 512);
    assert_eq!(same_storage(&[first.path(), second.path(), other.path()]).len(), 1);
    assert_eq!(same_storage(&[one.path(), second.path()]).len(), 1);
    assert!(same_storage(&[first.path(), other.path()]).is_empty());
}

/// A loop device over a file that can hang. Fields drop in this order: the server last, so that it is always there.
struct Hanging {
    disk: LoopDevice,
    server: HungDisk,
    file: tempfile::NamedTempFile,
}

fn hanging() -> Hanging {
    let file = image();
    let server = HungDisk::start(file.path()).unwrap();
    let disk = attached(server.path(), 512);
    Hanging { disk, server, file }
}

/// Waits until the device has swallowed so many requests.
fn wait_until_held(server: &mut HungDisk, count: usize) {
    wait_until("requests hang in the device", || server.held().unwrap() >= count);
}

#[test]
fn a_hung_device_holds_up_nothing_but_its_own_operations() {
    if !may_hang() {
        return;
    }
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let mut hung = hanging();
        let device = Arc::new(Device::open(hung.disk.path(), Access::ReadWrite).unwrap());
        let (engine, completions) = engine(device, choice);
        engine.submit(1, chain(0, 1, 0));
        assert!(next(&completions).result.is_ok());
        hung.server.hold(Hold::Writes).unwrap();
        let begun = now_ns();
        engine.submit(2, chain(4096, 2, 4096));
        assert!(now_ns() - begun < 500_000_000, "submitting does not wait");
        // The caller's deadline passes; the operation stays with its tag.
        assert_eq!(completions.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
        assert_eq!(engine.outstanding().iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [2]);
        assert!(hung.server.held().unwrap() > 0, "it hangs in the device and nowhere else");
        // Reads go on meanwhile, and memory is used and freed around the buffer that the kernel has.
        for tag in 100..200 {
            engine.submit(tag, read(0, 65536));
            let answer = next(&completions);
            assert_eq!((answer.tag, answer.result.unwrap()[0]), (tag, 1));
        }
        hung.server.hold(Hold::Nothing).unwrap();
        let late = next(&completions);
        assert_eq!(late.tag, 2);
        assert!(late.ended_ns - late.issued_ns > 200_000_000);
        assert_eq!(late.result.unwrap()[..4096], [2; 4096]);
        assert_eq!(std::fs::read(hung.file.path()).unwrap()[4096..8192], [2; 4096], "the late write is whole");
        assert!(engine.outstanding().is_empty());
    }
}

#[test]
fn an_engine_dropped_over_a_hung_device_keeps_its_buffers() {
    if !may_hang() {
        return;
    }
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let mut hung = hanging();
        let device = Arc::new(Device::open(hung.disk.path(), Access::ReadWrite).unwrap());
        let (engine, completions) = engine(device.clone(), choice);
        hung.server.hold(Hold::All).unwrap();
        engine.submit(1, write(8192, 7, 4096));
        wait_until_held(&mut hung.server, 1);
        engine.submit(2, read(0, 4096));
        // Time for the read to reach the kernel; were it too short, the test would only see less.
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        drop(engine);
        assert!(begun.elapsed() < Duration::from_secs(1));
        // Its threads stay, and the buffers with them, for as long as the device has the operations.
        assert_eq!(completions.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout));
        hung.server.hold(Hold::Nothing).unwrap();
        // The sink's sender goes with the last thread: all came back, and nobody was told.
        assert_eq!(completions.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
        wait_until("the device is let go", || Arc::strong_count(&device) == 1);
        assert_eq!(std::fs::read(hung.file.path()).unwrap()[8192..12288], [7; 4096]);
    }
}

#[test]
fn a_device_that_goes_away_gives_errors() {
    if !may_hang() {
        return;
    }
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let mut hung = hanging();
        let device = Arc::new(Device::open(hung.disk.path(), Access::ReadWrite).unwrap());
        let (engine, completions) = engine(device, choice);
        hung.server.hold(Hold::Fail).unwrap();
        engine.submit(1, chain(0, 1, 0));
        assert!(matches!(next(&completions).result, Err(IoError::Os { errno: libc::EIO, .. })));
        hung.server.hold(Hold::Nothing).unwrap();
        engine.submit(2, chain(0, 1, 0));
        assert!(next(&completions).result.is_ok(), "it recovers");
        hung.server.hold(Hold::All).unwrap();
        engine.submit(3, write(0, 1, 4096));
        engine.submit(4, read(0, 4096));
        wait_until_held(&mut hung.server, 1);
        hung.server.kill();
        let mut tags = Vec::new();
        for _ in 0..2 {
            let answer = next(&completions);
            assert!(matches!(answer.result, Err(IoError::Os { .. })), "{answer:?}");
            tags.push(answer.tag);
        }
        tags.sort_unstable();
        assert_eq!(tags, [3, 4], "what hung comes back with an error when the device is gone");
        engine.submit(5, read(4096, 4096));
        assert!(matches!(next(&completions).result, Err(IoError::Os { .. })));
    }
}

const CHILD_DEVICE: &str = "DEADBOLT_TEST_CHILD_DEVICE";
const CHILD_CHOICE: &str = "DEADBOLT_TEST_CHILD_CHOICE";

/// The child: submits a write that hangs, drops the engine and ends. Does nothing unless it was asked for.
#[test]
fn a_child_that_ends_with_a_hung_write() {
    let Some(path) = std::env::var_os(CHILD_DEVICE) else {
        return;
    };
    let choice = match std::env::var(CHILD_CHOICE).unwrap().as_str() {
        "threads" => BackendChoice::Threads,
        _ => BackendChoice::Auto,
    };
    let device = Arc::new(Device::open(path, Access::ReadWrite).unwrap());
    let (engine, completions) = engine(device, choice);
    engine.submit(1, write(0, 9, 4096));
    assert_eq!(completions.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
    drop(engine);
}

fn child(disk: &LoopDevice, choice: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["a_child_that_ends_with_a_hung_write", "--exact", "--test-threads=1", "-q"])
        .env(CHILD_DEVICE, disk.path())
        .env(CHILD_CHOICE, choice)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_process_ends_over_a_hung_device_by_ring_at_once_and_by_threads_after_its_write() {
    if !may_hang() {
        return;
    }
    let mut hung = hanging();
    let device = Arc::new(Device::open(hung.disk.path(), Access::ReadWrite).unwrap());
    let by_ring = engine(device, BackendChoice::Auto).0.backend() == Backend::IoUring;
    hung.server.hold(Hold::Writes).unwrap();
    if by_ring {
        let mut ring = child(&hung.disk, "ring");
        wait_until("the child with a ring ends while its write hangs", || ring.try_wait().unwrap().is_some());
        assert!(ring.wait().unwrap().success());
        assert!(hung.server.held().unwrap() > 0, "its write is still on its way");
    }
    let held = hung.server.held().unwrap();
    let mut threads = child(&hung.disk, "threads");
    wait_until_held(&mut hung.server, held + 1);
    std::thread::sleep(Duration::from_millis(600));
    assert!(threads.try_wait().unwrap().is_none(), "a process is not reaped before its synchronous write has ended");
    hung.server.hold(Hold::Nothing).unwrap();
    assert!(threads.wait().unwrap().success());
    assert_eq!(std::fs::read(hung.file.path()).unwrap()[..4096], [9; 4096]);
}

#[test]
fn opening_a_hung_device_is_given_up_in_time() {
    if !may_hang() {
        return;
    }
    let file = image();
    let mut server = HungDisk::start(file.path()).unwrap();
    let findings = preflight(server.path());
    assert!(matches!(findings[..], [Finding::WritesOutlive { file_system: "FUSE", .. }]), "{findings:?}");
    server.hold(Hold::All).unwrap();
    let begun = Instant::now();
    let opened = Device::open_within(server.path(), Access::Read, Duration::from_millis(200));
    assert!(matches!(opened, Err(OpenError::NoAnswer { waited_ms: 200, .. })), "{opened:?}");
    let findings = preflight_within(server.path(), Duration::from_millis(200));
    assert!(matches!(findings[..], [Finding::CannotOpen(OpenError::NoAnswer { .. })]), "{findings:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}
