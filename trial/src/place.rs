//! What: where a trial runs: its directory, its device, and what this machine does not offer.
//! Owns: the image file, the loop device, one line for each thing that is missing.
//! Invariants: the device goes with the trial (autoclear), the directory too; what a killed one left is swept by the next one.
//! Does not: change limits or settings of the machine.
//! Called by: demo and benchmarks.

use anyhow::{Context, Result, bail};
use deadbolt_cluster::supervisor::{RunDirectory, check_pid_namespace, sweep};
use deadbolt_disk::{Access, BackendChoice, Device, Engine, LoopDevice, LoopOptions, Severity, attach_loop, preflight};
use nix::sys::resource::{Resource, getrlimit};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Size of the image: the areas of 32 slots and some.
const IMAGE_BYTES: u64 = 16 << 20;
/// Locked memory that three nodes want at most; a machine's usual small limit is 8 MiB.
const MEMLOCK_BYTES: u64 = 64 << 20;

/// The directory and the device.
#[derive(Debug)]
pub struct Place {
    /// What the nodes use.
    pub device: PathBuf,
    /// Nodes get PID namespaces.
    pub has_pid_namespaces: bool,
    /// Network namespaces are tried.
    pub may_use_namespaces: bool,
    /// What is missing.
    pub notes: Vec<String>,
    // In this order: the device is let go before its file is removed.
    _loop: Option<LoopDevice>,
    directory: RunDirectory,
}

impl Place {
    /// Makes directory and device. The directory's name begins with `prefix`, by which the next run finds what was left. `as_user`: root's
    /// possibilities are not used.
    ///
    /// # Errors
    /// No place for temporary files takes direct I/O.
    pub fn prepare(prefix: &str, as_user: bool) -> Result<Self> {
        let (directory, image) = find_directory(prefix)?;
        let is_root = nix::unistd::geteuid().is_root() && !as_user;
        let mut notes = Vec::new();
        if !is_root {
            let why = if as_user { "not wanted (--no-root)" } else { "not root" };
            notes.push(format!("{why}: an image file instead of a loop device, processes and a relay instead of namespaces"));
        }
        let attached = if is_root { attach(&image, &mut notes) } else { None };
        let device = attached.as_ref().map_or(image, |attached| attached.path().to_path_buf());
        let has_pid_namespaces = is_root
            && match check_pid_namespace() {
                Ok(()) => true,
                Err(error) => {
                    notes.push(format!("no PID namespaces, a node's process tree is ended by its supervisor: {error}"));
                    false
                }
            };
        note_limits(&device, &mut notes);
        Ok(Self { device, has_pid_namespaces, may_use_namespaces: is_root, notes, _loop: attached, directory })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The first place for temporary files whose files take direct I/O.
fn find_directory(prefix: &str) -> Result<(RunDirectory, PathBuf)> {
    let mut refusals = Vec::new();
    let mut bases = vec![std::env::temp_dir(), PathBuf::from("/var/tmp")];
    bases.extend(std::env::current_dir());
    for base in bases {
        let _ = sweep(&base, prefix);
        let directory = match RunDirectory::create(&base, prefix) {
            Ok(directory) => directory,
            Err(error) => {
                refusals.push(format!("{}: {error}", base.display()));
                continue;
            }
        };
        let image = directory.path().join("device");
        let made = File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES));
        let findings = preflight(&image);
        match (made, findings.iter().find(|finding| finding.severity() == Severity::Refuse)) {
            (Ok(()), None) => return Ok((directory, image)),
            (Err(error), _) => refusals.push(format!("{}: {error}", base.display())),
            (_, Some(finding)) => refusals.push(finding.to_string()),
        }
    }
    bail!("no place for the image file: {}; name a directory on a disk with TMPDIR", refusals.join("; "))
}

fn attach(image: &Path, notes: &mut Vec<String>) -> Option<LoopDevice> {
    match attach_loop(image, LoopOptions { autoclear: true, ..LoopOptions::default() }) {
        Ok(attached) => Some(attached),
        Err(error) => {
            notes.push(format!("no loop device, the image file is used: {error}"));
            None
        }
    }
}

/// What a real node would refuse, and the demo goes on without.
fn note_limits(device: &Path, notes: &mut Vec<String>) {
    if let Some(reason) = io_uring_refusal(device).unwrap_or_else(|error| Some(format!("{error:#}"))) {
        notes.push(format!("no io_uring, threads do the disk's work: {reason}"));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft < MEMLOCK_BYTES
        && !nix::unistd::geteuid().is_root()
    {
        notes.push(format!("only {} KiB of memory may be locked: sbd may have to wait for memory", soft / 1024));
    }
    if let Err(errno) = try_real_time() {
        notes.push(format!("no real-time priority ({errno}): a loaded machine may fence a healthy node"));
    }
}

fn io_uring_refusal(device: &Path) -> Result<Option<String>> {
    let opened = Device::open(device, Access::Read)?;
    let engine = Engine::start(Arc::new(opened), BackendChoice::Auto, Box::new(|_| {})).context("starting an I/O engine")?;
    Ok(engine.fallback_reason().map(str::to_owned))
}

/// Asks for a real-time priority in a thread of its own, which then ends.
fn try_real_time() -> nix::Result<()> {
    let tried = std::thread::spawn(|| {
        let parameter = libc::sched_param { sched_priority: 1 };
        // SAFETY: reads the structure, which lives through the call; 0 is the calling thread.
        nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) }).map(drop)
    });
    tried.join().unwrap_or(Err(nix::errno::Errno::EAGAIN))
}
