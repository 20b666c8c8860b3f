//! What: the format function on devices in memory and on image files.
//! Owns: one log for the writes of several devices.
//! Invariants: no test needs root, and none leaves a file.
//! Does not: test the plan's cuts in every sector; disk/format does.
//! Called by: cargo test.

use super::*;
use deadbolt_disk::{AlignedBuf, Geometry, MemoryDevice};
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_disk_format::{
    Beat, BootId, DaemonPart, Incarnation, Place, Rule, SuperblockChoice, WatchdogKind, choose_superblock, read_superblocks,
};
use deadbolt_tests::crash::{Recorder, Write, land};
use std::sync::{Arc, Mutex};

const SIZE: usize = 16 << 20;

/// Writes in order.
type Log = Arc<Mutex<Vec<Write>>>;

fn timings() -> Timings {
    Timings { stall_ms: 1000, poll_ms: 20, watchdog_ms: 1000, lease_ms: 80, expiry_ms: 100, storage_delay_ms: 500, ..Timings::default() }
}
fn options() -> FormatOptions {
    FormatOptions::new("/dev/a", "trial", 3, timings())
}
fn target(name: &str, device: MemoryDevice) -> (Target, Log) {
    let recorder = Recorder::new(device);
    let log = recorder.writes();
    (Target { path: name.into(), device: Box::new(recorder), _claim: None }, log)
}
fn choice(image: &[u8]) -> SuperblockChoice {
    let copies = read_superblocks(image.len() as u64, |offset| {
        let start = usize::try_from(offset.0).ok()?;
        image.get(start..start + 4096).map(<[u8]>::to_vec)
    });
    choose_superblock(&copies)
}
fn beat_of(slot: u16, superblock: &Superblock, beat: u64, is_stopped: bool) -> Vec<u8> {
    let slot = SlotIndex(slot);
    let place = Place { cluster: superblock.cluster, offset: superblock.layout.beat(slot), slot };
    let beat = Beat {
        slot,
        boot: BootId([1; 16]),
        writer: Incarnation([2; 16]),
        beat,
        lease_ms: 80,
        reset_ms: 10,
        rule: Rule::Disk,
        watchdog: WatchdogKind::Process,
        is_stopped,
        is_idle: false,
        acknowledged: None,
        wall_ms: 0,
        boottime_ms: 0,
        outlive_ms: 0,
        daemon: DaemonPart::default(),
    };
    beat.encode(&place).to_vec()
}

#[test]
fn an_empty_device_becomes_an_empty_cluster() {
    for sector in [512, 4096] {
        let device = MemoryDevice::new(SIZE, sector);
        let (target, log) = target("/dev/a", device.second_path());
        let report = format_targets(&options(), &[target]).unwrap();
        let SuperblockChoice::Agreed { superblock, copies: [true, true, true, true], .. } = choice(&device.contents()) else { panic!() };
        assert_eq!((superblock.cluster, superblock.slots, superblock.sector_bytes), (report.cluster, 32, sector));
        assert_eq!((superblock.device, superblock.device_number, superblock.device_count), (report.devices[0].device, 0, 1));
        assert_eq!((superblock.cluster.0[6] >> 4, superblock.cluster.0[8] >> 6), (4, 2));
        let last = log.lock().unwrap().last().cloned().unwrap();
        assert_eq!((last.offset.0, last.data.len()), (2 << 20, 4096));
        let header = SbdHeader::decode(&device.contents()[..512], sector).unwrap();
        assert_eq!((header.watchdog_s, header.msgwait_s, header.uuid), (1, 2, superblock.device.0));
    }
}

#[test]
fn three_devices_cut_after_every_write_are_never_a_whole_cluster() {
    let devices: Vec<_> = (0..3).map(|_| MemoryDevice::new(SIZE, 512)).collect();
    // One log for all three: the order across devices matters.
    let shared: Arc<Mutex<Vec<(usize, Write)>>> = Arc::default();
    struct Numbered(MemoryDevice, usize, Arc<Mutex<Vec<(usize, Write)>>>);
    impl RawDevice for Numbered {
        fn geometry(&self) -> &Geometry {
            self.0.geometry()
        }
        fn is_writable(&self) -> bool {
            true
        }
        fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
            self.0.read_at(offset, buffer)
        }
        fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError> {
            self.2.lock().unwrap().push((self.1, Write { offset, data: buffer.to_vec() }));
            self.0.write_at(offset, buffer)
        }
    }
    let target = |(number, device): (usize, &MemoryDevice)| {
        let device = Box::new(Numbered(device.second_path(), number, Arc::clone(&shared)));
        Target { path: format!("/dev/{number}").into(), device, _claim: None }
    };
    let targets: Vec<_> = devices.iter().enumerate().map(target).collect();
    let report = format_targets(&options(), &targets).unwrap();
    let log = shared.lock().unwrap();
    let mut images = vec![vec![0; SIZE]; 3];
    for (number, (device, write)) in log.iter().enumerate() {
        let good = images.iter().filter(|image| matches!(choice(image), SuperblockChoice::Agreed { .. })).count();
        // Only the last three writes, one per device, make devices good.
        assert_eq!(good, (number + 3).saturating_sub(log.len()), "after {number} of {} writes", log.len());
        land(&mut images[*device], write, None);
    }
    for (number, image) in images.iter().enumerate() {
        let SuperblockChoice::Agreed { superblock, .. } = choice(image) else { panic!() };
        assert_eq!(superblock.device, report.devices[number].device);
        assert_eq!((usize::from(superblock.device_number), superblock.device_count), (number, 3));
        assert_eq!(*image, devices[number].contents());
    }
}

#[test]
fn a_dry_run_and_a_refusal_write_nothing() {
    let device = MemoryDevice::new(SIZE, 512);
    device.overwrite(ByteOffset(1080), &[0x53, 0xef]);
    device.overwrite(ByteOffset(1 << 20), &[0x10, 0x20, 0x15, 0x06]);
    let (target, log) = target("/dev/a", device.second_path());
    let targets = [target];
    let error = format_targets(&options(), &targets).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ext2 file system") && text.contains("sanlock resource lease") && text.contains("--force"), "{text}");
    let report = format_targets(&FormatOptions { is_dry_run: true, is_forced: true, ..options() }, &targets).unwrap();
    assert!(report.to_string().contains("would be lost: an ext2 file system"), "{report}");
    assert!(report.to_string().contains("nothing was written"), "{report}");
    assert_eq!(log.lock().unwrap().len(), 0);
    let report = format_targets(&FormatOptions { is_forced: true, ..options() }, &targets).unwrap();
    assert_eq!(report.devices[0].lost.len(), 2);
    assert!(matches!(choice(&device.contents()), SuperblockChoice::Agreed { .. }));
}

#[test]
fn leftovers_of_what_was_overwritten_are_not_recognised_later() {
    let device = MemoryDevice::new(SIZE, 512);
    // A second partition table and RAID metadata at the end, where no area of ours lies.
    device.overwrite(ByteOffset(SIZE as u64 - 512), b"EFI PART");
    device.overwrite(ByteOffset(SIZE as u64 - 8192), &[0xfc, 0x4e, 0x2b, 0xa9]);
    let (target, _) = target("/dev/a", device.second_path());
    let targets = [target];
    format_targets(&FormatOptions { is_forced: true, ..options() }, &targets).unwrap();
    let again = format_targets(&FormatOptions { is_forced: true, is_dry_run: true, ..options() }, &targets).unwrap();
    let names: Vec<_> = again.devices[0].lost.iter().map(|signature| signature.name).collect();
    assert_eq!(names, ["sbd", "deadbolt"]);
}

#[test]
fn too_small_devices_and_impossible_options_are_named() {
    let (small, _) = target("/dev/a", MemoryDevice::new(8 << 20, 512));
    let error = format_targets(&options(), &[small]).unwrap_err();
    assert!(error.to_string().contains("8388608 bytes, 11337728 are needed"), "{error}");
    for (wrong, word) in [
        (FormatOptions { devices: Vec::new(), ..options() }, "0 devices"),
        (FormatOptions { devices: vec!["/a".into(); 4], ..options() }, "4 devices"),
        (FormatOptions { cluster: String::new(), ..options() }, "cluster name"),
        (FormatOptions { cluster: "x".repeat(64), ..options() }, "cluster name"),
        (FormatOptions { nodes: 33, ..options() }, "33 nodes"),
        (FormatOptions { timings: Timings::default(), ..options() }, "stall_ms"),
    ] {
        let error = format(&wrong).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn two_paths_of_one_device_are_found_and_left_as_they_were() {
    let device = MemoryDevice::new(SIZE, 512);
    device.overwrite(ByteOffset((2 << 20) + 5), b"precious");
    let before = device.contents();
    let targets = [target("/dev/a", device.second_path()).0, target("/dev/b", device.second_path()).0];
    let error = format_targets(&options(), &targets).unwrap_err();
    assert!(matches!(error, FormatError::SameDevice { .. }), "{error}");
    assert!(device.contents() == before, "the device was changed");
}

#[test]
fn a_device_with_live_beats_needs_its_uuid_typed() {
    let device = MemoryDevice::new(SIZE, 512);
    let targets = [target("/dev/a", device.second_path()).0];
    format_targets(&options(), &targets).unwrap();
    let SuperblockChoice::Agreed { superblock, .. } = choice(&device.contents()) else { panic!() };
    let place = superblock.layout.beat(SlotIndex(4));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (path, superblock, stop) = (device.second_path(), superblock.clone(), Arc::clone(&stop));
        move || {
            for beat in 1.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                path.overwrite(place, &beat_of(4, &superblock, beat, false));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    });
    while device.contents()[usize::try_from(place.0).unwrap()] == 0 {
        std::thread::yield_now();
    }
    let forced = FormatOptions { is_forced: true, ..options() };
    let error = format_targets(&forced, &targets).unwrap_err();
    assert!(matches!(&error, FormatError::Live { slots, .. } if *slots == [SlotIndex(4)]), "{error}");
    let wrong = FormatOptions { force_live: Some("1234".into()), ..forced.clone() };
    assert!(matches!(format_targets(&wrong, &targets).unwrap_err(), FormatError::ForceLive { .. }));
    let typed = FormatOptions { force_live: Some(superblock.cluster.to_string().to_uppercase()), is_dry_run: true, ..forced };
    assert_eq!(format_targets(&typed, &targets).unwrap().devices[0].live, [SlotIndex(4)]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    // Silent since, but never stopped: watched for as long as an observer would, then an ordinary occupied device.
    let start = std::time::Instant::now();
    assert!(matches!(format_targets(&options(), &targets).unwrap_err(), FormatError::Occupied { .. }));
    assert!(start.elapsed().as_millis() >= 100);
    device.overwrite(place, &beat_of(4, &superblock, u64::MAX, true));
    format_targets(&FormatOptions { is_forced: true, ..options() }, &targets).unwrap();
}

#[test]
fn an_interrupted_format_is_simply_run_again() {
    let device = MemoryDevice::new(SIZE, 512);
    let (first, log) = target("/dev/a", device.second_path());
    format_targets(&options(), &[first]).unwrap();
    let log = log.lock().unwrap();
    for complete in [1, log.len() / 2, log.len() - 1] {
        let cut = MemoryDevice::new(SIZE, 512);
        for write in &log[..complete] {
            cut.overwrite(write.offset, &write.data);
        }
        assert!(matches!(choice(&cut.contents()), SuperblockChoice::Unfinished { .. }), "after {complete} writes");
        format_targets(&options(), &[target("/dev/a", cut.second_path()).0]).unwrap();
        assert!(matches!(choice(&cut.contents()), SuperblockChoice::Agreed { .. }), "after {complete} writes");
    }
}

#[test]
fn a_device_that_loses_a_write_is_found_out() {
    use deadbolt_disk::{Fault, FaultKind, Touches};
    let bytes = Layout::new(SIZE as u64, 512, 32).unwrap();
    for place in [ByteOffset(0), bytes.votes, bytes.superblocks[2], bytes.superblocks[0]] {
        let device = MemoryDevice::new(SIZE, 512);
        let path = device.second_path();
        path.inject(Fault::new(Touches::Writes, FaultKind::Lost).within(place, 512));
        let error = format_targets(&options(), &[target("/dev/a", path).0]).unwrap_err();
        assert!(matches!(error, FormatError::NotReadBack { .. }), "{place:?}: {error}");
        assert!(!matches!(choice(&device.contents()), SuperblockChoice::Agreed { .. }));
    }
}

#[test]
fn an_image_file_is_formatted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
    let options = FormatOptions { devices: vec![path.clone()], ..options() };
    match format(&options) {
        Ok(report) => {
            let SuperblockChoice::Agreed { superblock, .. } = choice(&std::fs::read(&path).unwrap()) else { panic!() };
            assert_eq!(superblock.cluster, report.cluster);
            let twice = FormatOptions { devices: vec![path.clone(), path], ..options };
            assert!(matches!(format(&twice).unwrap_err(), FormatError::Unusable(_)));
        }
        // A temporary folder without direct I/O: refused with the reason.
        Err(error) => assert!(error.to_string().contains("direct I/O"), "{error}"),
    }
}

/// Runs a stock tool on a device; its output if it went well.
fn stock(arguments: &[&str], device: &Path) -> Result<String, String> {
    let output = std::process::Command::new("/usr/sbin/sbd").arg("-d").arg(device).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn block_devices_of_both_sector_sizes_and_stock_sbd_agree() {
    use deadbolt_disk::{LoopOptions, attach_loop};
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for sector_bytes in [512, 4096] {
        let file = folder.path().join(format!("disk-{sector_bytes}"));
        File::create(&file).unwrap().set_len(SIZE as u64).unwrap();
        let attached = match attach_loop(&file, LoopOptions { read_only: false, sector_bytes, autoclear: true }) {
            Ok(attached) => attached,
            Err(error) => {
                println!("skipped: no loop device ({error})");
                return;
            }
        };
        let path = attached.path().to_path_buf();
        let options = FormatOptions { devices: vec![path.clone()], ..options() };
        let claim = File::options().read(true).custom_flags(libc::O_EXCL).open(&path).unwrap();
        assert!(matches!(format(&options).unwrap_err(), FormatError::Unusable(_) | FormatError::Busy { .. }));
        drop(claim);
        let report = format(&options).unwrap();
        assert_eq!(report.devices[0].sector_bytes, sector_bytes);
        let both = FormatOptions { devices: vec![path.clone(), file.clone()], is_forced: true, ..options.clone() };
        assert!(matches!(format(&both).unwrap_err(), FormatError::Unusable(_)), "a file and the loop device over it");
        assert!(matches!(format(&options).unwrap_err(), FormatError::Occupied { .. }));
        let fsck = deadbolt_fsck::check(&deadbolt_fsck::Source::open(&path).unwrap(), deadbolt_fsck::CheckOptions::default());
        assert_eq!(fsck.findings.len(), 0, "{fsck}");
        if !Path::new("/usr/sbin/sbd").exists() {
            println!("skipped: no stock sbd");
            continue;
        }
        let dump = stock(&["dump"], &path).unwrap();
        let uuid = report.devices[0].device.to_string();
        for wanted in
            ["Header version     : 2.1", &uuid, ": 255", &format!("Sector size        : {sector_bytes}"), "Timeout (msgwait)  : 2"]
        {
            assert!(dump.contains(wanted), "{wanted:?} is not in {dump}");
        }
        assert_eq!(stock(&["list"], &path).unwrap(), "");
    }
}
