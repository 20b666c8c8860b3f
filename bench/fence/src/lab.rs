//! What: where fences are measured: disks with an SBD area, nodes with a watcher of ours or of stock, senders.
//! Owns: the folders of the run, the programs, the times of every area: those that stock has by default.
//! Invariants: a watcher runs as in a real cluster, with real-time scheduling, a watchdog, and a run directory in memory.
//! Does not: measure.
//! Called by: the cases.

use anyhow::{Context, Result, bail};
use deadbolt_bench::sheet::{Case, Measured, Row};
use deadbolt_cluster::supervisor::{RunDirectory, sweep};
use deadbolt_disk::LoopDevice;
use deadbolt_tests::{
    disks::{TwoPaths, attach, image},
    node::{Node, STOCK, Sent, Watch, message_from},
    watchdog,
};
use deadbolt_trial::Place;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tempfile::TempPath;

/// Begin of the directories' names; the next run sweeps what was left.
const PREFIX: &str = "deadbolt-bench-fence-";
/// A file system in memory, as run directories are on.
const MEMORY: &str = "/dev/shm";
/// Of all disks here.
pub(crate) const SECTOR_BYTES: u32 = 512;
/// How long a watcher may take to be at work, and a node to die at the latest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whose program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    Stock,
    Ours,
}

impl Whose {
    /// Of two things: that of stock, that of ours.
    pub(crate) fn of<T>(self, [stock, ours]: [T; 2]) -> T {
        match self {
            Self::Stock => stock,
            Self::Ours => ours,
        }
    }
}

/// Everything that a case needs, or why nothing can be measured here.
pub(crate) struct Bench(Result<Arc<Lab>, String>);

/// A measurement of one program.
pub(crate) type Measure = fn(&Lab, Whose) -> Result<Vec<f64>>;

impl Bench {
    pub(crate) fn prepare(programs: &Path) -> Self {
        Self(Lab::new(programs).map(Arc::new).map_err(|error| format!("{error:#}")))
    }

    /// What a case does: nothing where something is missing.
    pub(crate) fn guard<F>(&self, whose: Whose, mut measure: F) -> impl FnMut() -> Result<Measured> + use<F>
    where
        F: FnMut(&Lab) -> Result<Vec<f64>>,
    {
        let lab = self.0.clone();
        move || match &lab {
            Err(why) => Ok(Measured::Skipped(why.clone())),
            Ok(_) if whose == Whose::Stock && !Path::new(STOCK).exists() => {
                Ok(Measured::Skipped(format!("{STOCK} is not here; install the package sbd")))
            }
            Ok(lab) => measure(lab).map(Measured::Values),
        }
    }

    /// A case that sleeps beside others.
    pub(crate) fn beside(&self, whose: Whose, rows: Vec<Row>, measure: Measure) -> Case {
        Case::beside(rows, self.guard(whose, move |lab| measure(lab, whose)))
    }
}

/// Folders, programs, the library that imitates a watchdog.
pub(crate) struct Lab {
    place: Place,
    nodes: RunDirectory,
    imitated_watchdog: PathBuf,
    ours: PathBuf,
}

impl Lab {
    fn new(programs: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("not root: no namespaces, no loop devices");
        }
        let ours = std::fs::canonicalize(programs.join("sbd")).with_context(|| format!("{} has no sbd; build it", programs.display()))?;
        let place = Place::prepare(PREFIX, false)?;
        let _ = sweep(Path::new(MEMORY), PREFIX);
        let nodes = RunDirectory::create(Path::new(MEMORY), PREFIX).with_context(|| format!("a folder in {MEMORY}"))?;
        let imitated_watchdog = watchdog::library(place.path()).context("building the imitated watchdog")?;
        Ok(Self { place, nodes, imitated_watchdog, ours })
    }

    pub(crate) fn program(&self, whose: Whose) -> &Path {
        whose.of([Path::new(STOCK), &self.ours])
    }

    /// A disk with an area in which these names have the first slots, in their order.
    pub(crate) fn disk(&self, whose: Whose, names: &[&str]) -> Result<Disk> {
        let image = image(self.place.path())?;
        let device = attach(&image, SECTOR_BYTES)?;
        self.create(whose, device.path(), names)?;
        Ok(Disk { device, _image: image })
    }

    /// The same, by two paths.
    pub(crate) fn two_paths(&self, whose: Whose, names: &[&str]) -> Result<TwoPaths> {
        let disk = TwoPaths::new_in(self.place.path(), SECTOR_BYTES).context("a disk that can hang")?;
        self.create(whose, disk.sender.path(), names)?;
        Ok(disk)
    }

    fn create(&self, whose: Whose, device: &Path, names: &[&str]) -> Result<()> {
        self.sbd(whose, device, "-2 0 create")?;
        names.iter().try_for_each(|name| self.sbd(whose, device, &format!("allocate {name}")))
    }

    /// A command line of sbd that has to succeed.
    pub(crate) fn sbd(&self, whose: Whose, device: &Path, words: &str) -> Result<()> {
        let mut command = Command::new(self.program(whose));
        command.arg("-d").arg(device).args(words.split(' ')).env_remove("SBD_DEVICE");
        let output = command.output().with_context(|| format!("running {}", self.program(whose).display()))?;
        if !output.status.success() {
            bail!("{words}: {output:?}");
        }
        Ok(())
    }

    /// A node whose watcher is at work: a cycle of it has just ended. `reach` is a path to its disk that never hangs.
    pub(crate) fn node(&self, whose: Whose, name: &str, device: &Path, reach: &Path) -> Result<Node> {
        let watch = Watch::new(self.program(whose), name, device).watchdog(&self.imitated_watchdog).real_time();
        let node = watch.start(self.nodes.path())?;
        node.await_work(reach, PATIENCE)?;
        Ok(node)
    }

    /// A reset of a node, which has to succeed; `run` is where the sender's machine keeps what its watcher saw.
    pub(crate) fn reset(&self, whose: Whose, run: &Path, device: &Path, name: &str) -> Result<Sent> {
        let sent = message_from(run, self.program(whose), device, name, "reset")?;
        if !sent.is_success() {
            bail!("a message to {name:?}: {:?}", sent.output);
        }
        Ok(sent)
    }

    /// Where a machine without a watcher would keep what it saw.
    pub(crate) fn nowhere(&self) -> PathBuf {
        self.nodes.path().join("nowhere")
    }
}

/// A disk by one path.
pub(crate) struct Disk {
    device: LoopDevice,
    _image: TempPath,
}

impl Disk {
    pub(crate) fn path(&self) -> &Path {
        self.device.path()
    }
}

/// The median; the lower of the two in the middle of an even number.
pub(crate) fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().context("nothing was measured")
}
