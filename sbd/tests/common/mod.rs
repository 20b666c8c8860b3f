//! What: images, loop devices, a formatted device and children for the tests that run programs.
//! Owns: everything that it makes; a dropped value leaves nothing behind.
//! Invariants: only processes started here are ever ended, by their number.
//! Does not: test anything.
//! Called by: the tests beside it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    unreachable_pub,
    reason = "shared by test programs, each of which uses a part"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use deadbolt_disk::{Access, AlignedBuf, ByteOffset, Device, LoopDevice};
use deadbolt_disk_format::{Beat, ClusterUuid, DeviceUuid, Layout, Place, SlotIndex, Superblock, Timings};
pub use deadbolt_tests::disks::TwoPaths;
use deadbolt_tests::disks::{self, DISK_BYTES};
pub use deadbolt_tests::node::STOCK;

pub const CLUSTER: ClusterUuid = ClusterUuid([3; 16]);

pub fn timings() -> Timings {
    Timings {
        stall_ms: 1000,
        poll_ms: 100,
        feed_ms: 50,
        watchdog_ms: 1000,
        lateness_ms: 200,
        cycle_ms: 100,
        reset_ms: 1210,
        lease_ms: 3500,
        expiry_ms: 3600,
        drift_ppm: 10_000,
        ..Timings::default()
    }
}

/// An image file on a file system with direct I/O; removed on drop.
pub struct Image(pub tempfile::TempPath);

impl Image {
    pub fn new() -> Self {
        Self(disks::image(folder()).unwrap())
    }
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

/// A loop device over an image; none without root or loop driver, which is said.
pub fn attach(image: &Image, sector_bytes: u32) -> Option<LoopDevice> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    made(disks::attach(&image.0, sector_bytes))
}

/// One disk by two paths, of which the victims' can be made to hang; none where that cannot be had, which is said.
pub fn two_paths(sector_bytes: u32) -> Option<TwoPaths> {
    made(TwoPaths::new_in(folder(), sector_bytes))
}

pub fn has_stock() -> bool {
    let found = Path::new(STOCK).exists();
    if !found {
        eprintln!("skipped: needs the sbd package");
    }
    found
}

pub fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_sbd").into()
}

/// A command line of sbd, ours or stock, without an environment of its own.
pub fn sbd(program: impl AsRef<Path>, line: &str) -> Output {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    Command::new(program.as_ref()).args(arguments).env_remove("SBD_DEVICE").output().unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Makes the SBD area and the superblocks of a cluster of 8 slots.
pub fn format(path: &str, sector_bytes: u32) -> Layout {
    let made = sbd(ours(), &format!("-d {path} -1 1 -2 0 -4 2 create"));
    assert!(made.status.success(), "{made:?}");
    let layout = Layout::new(DISK_BYTES, sector_bytes, 8).unwrap();
    let superblock = Superblock {
        cluster: CLUSTER,
        device: DeviceUuid([4; 16]),
        device_number: 0,
        device_count: 1,
        name: "test".into(),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes,
        slots: 8,
        device_bytes: DISK_BYTES,
        timings: timings(),
        layout,
        formatted_wall_ms: 0,
    };
    let device = Device::open(path, Access::ReadWrite).unwrap();
    for (copy, offset) in layout.superblocks.iter().enumerate() {
        device.write_at(*offset, &AlignedBuf::copy_of(&superblock.encode(copy).unwrap()[..])).unwrap();
    }
    layout
}

pub fn read(path: &str, offset: ByteOffset, bytes: usize) -> Vec<u8> {
    let mut buffer = AlignedBuf::zeroed(bytes);
    Device::open(path, Access::Read).unwrap().read_at(offset, &mut buffer).unwrap();
    buffer.to_vec()
}

pub fn write(path: &str, offset: ByteOffset, bytes: &[u8]) {
    Device::open(path, Access::ReadWrite).unwrap().write_at(offset, &AlignedBuf::copy_of(bytes)).unwrap();
}

pub fn beat(path: &str, layout: &Layout, slot: SlotIndex) -> Option<Beat> {
    let offset = layout.beat(slot);
    Beat::decode(&read(path, offset, 4096), &Place { cluster: CLUSTER, offset, slot }).ok()
}

/// A child that is ended, by its number, at the latest on drop.
pub struct Held(pub Child);

impl Held {
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= end => return None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What could be made here; what could not is said.
pub fn made<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result.inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

/// The folder for what tests make: it allows direct I/O.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

pub fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}
