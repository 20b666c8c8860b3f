//! What: a few nodes with shared disks and a network, and what can be done to them.
//! Owns: the machines, the disks, the switch.
//! Invariants: all of it ends with this value; it stays in the thread that made it, because the kernel ties the machines to that thread.
//! Does not: know what runs in the guests.
//! Called by: scenarios and tests.

use crate::{
    agent::{Said, encode},
    console::Line,
    disk::{Disk, Way, set_way},
    image::Image,
    machine::Machine,
    switch::Switch,
};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs::File,
    marker::PhantomData,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::MutexGuard,
    time::{Duration, Instant},
};

/// Nodes of the largest lab: more of them starve on a machine of two processors.
pub const NODES_MAX: usize = 3;
/// How long a guest may take to boot; it takes 4 to 12 s on a machine with something else to do.
const BOOT: Duration = Duration::from_secs(120);
/// Bytes of a file in one command.
const PIECE: usize = 1 << 18;
/// How long a command that only stores something may take.
const SHORT: Duration = Duration::from_secs(60);

/// How the machines of a lab are built.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory of each.
    pub memory_mib: u32,
    /// Shared disks: `/dev/shared0`, `/dev/shared1` and so on in the guests.
    pub disks: usize,
    /// Size of each.
    pub disk_mib: u64,
    /// Their sectors, 512 or 4096.
    pub sector_bytes: u32,
    /// Is there a hardware watchdog? (`modprobe i6300esb`; without it there is `modprobe softdog`.)
    pub has_i6300esb: bool,
    /// Folders of this machine, read-only at `/share/NAME`.
    pub shares: Vec<(String, PathBuf)>,
    /// More words for the kernel.
    pub kernel_line: String,
}

impl Default for Options {
    fn default() -> Self {
        let shares = Vec::new();
        Self { memory_mib: 384, disks: 1, disk_mib: 64, sector_bytes: 512, has_i6300esb: false, shares, kernel_line: String::new() }
    }
}

/// How a machine stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// Its clocks stand still with it, as when a hypervisor pauses or moves a guest.
    Clocks,
    /// Only it stands still: its clocks jump when it goes on.
    Process,
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub struct End {
    /// When this machine was told.
    pub at: Instant,
    /// `guest-reset` (by a watchdog, sysrq or reboot: the console tells which), `guest-shutdown`, `guest-panic`, or `killed`.
    pub reason: String,
    /// A watchdog device of the machine has fired.
    pub is_by_device: bool,
}

/// A running lab. Nodes count from 1, disks from 0.
#[derive(Debug)]
pub struct Lab {
    image: Image,
    options: Options,
    machines: Vec<Option<Machine>>,
    /// Before the ends that it would else hear closing.
    switch: Switch,
    networks: Vec<OwnedFd>,
    disks: Vec<Disk>,
    stays_in_its_thread: PhantomData<MutexGuard<'static, ()>>,
}

impl Lab {
    /// Starts `nodes` machines and waits until each takes commands.
    ///
    /// # Errors
    /// [`crate::Missing`]; or a machine does not come up, with its last words.
    pub fn up(nodes: usize, options: &Options) -> Result<Self> {
        if !(1..=NODES_MAX).contains(&nodes) {
            bail!("a lab has 1 to {NODES_MAX} nodes, not {nodes}");
        }
        let image = Image::prepare()?;
        let disks = (0..options.disks).map(|_| Disk::new(image.directory(), options.disk_mib)).collect::<Result<_>>()?;
        let (switch, networks) = Switch::start(nodes)?;
        let machines = (0..nodes).map(|_| None).collect();
        let mut lab = Self { image, options: options.clone(), machines, switch, networks, disks, stays_in_its_thread: PhantomData };
        let all: Vec<usize> = (1..=nodes).collect();
        lab.start(&all)?;
        Ok(lab)
    }

    /// Starts machines that have ended: fresh memory and root, the same disks.
    ///
    /// # Errors
    /// One is up, or does not come up.
    pub fn start(&mut self, nodes: &[usize]) -> Result<()> {
        for &node in nodes {
            if self.machine(node).is_ok_and(|machine| machine.qmp.ended().is_none()) {
                bail!("node{node} is up");
            }
            let network = self.networks.get(node - 1).context("no such node")?;
            let machine = Machine::start(&self.image, &self.options, u8::try_from(node)?, self.machines.len(), &self.disks, network)?;
            *self.machines.get_mut(node - 1).context("no such node")? = Some(machine);
        }
        for &node in nodes {
            let machine = self.machine(node)?;
            let up = machine.ports.run("true", BOOT).and_then(Said::good);
            up.with_context(|| format!("node{node} did not come up:\n{}", machine.last_words()))?;
        }
        Ok(())
    }

    /// Runs a script by bash in a node. `limit`: after which it is ended, with code 124.
    ///
    /// # Errors
    /// The machine ended meanwhile, or does not answer.
    pub fn exec(&self, node: usize, script: &str, limit: Duration) -> Result<Said> {
        self.machine(node)?.ports.run(script, limit).with_context(|| format!("node{node}"))
    }

    /// As `exec`, and a code other than 0 is an error, with what was said.
    ///
    /// # Errors
    /// As `exec`; or the script failed.
    pub fn good(&self, node: usize, script: &str, limit: Duration) -> Result<String> {
        self.exec(node, script, limit)?.good().with_context(|| format!("node{node}"))
    }

    /// As `good`, in several nodes at the same time.
    ///
    /// # Errors
    /// The first one's.
    pub fn good_on(&self, nodes: &[usize], script: &str, limit: Duration) -> Result<Vec<String>> {
        std::thread::scope(|scope| {
            let started: Vec<_> = nodes.iter().map(|&node| scope.spawn(move || self.good(node, script, limit))).collect();
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        })
    }

    /// Copies a file into a node. For small files; programs come over a share.
    ///
    /// # Errors
    /// It cannot be read here or written there.
    pub fn put(&self, node: usize, from: &Path, to: &str) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
        self.good(node, &format!(": >'{to}'"), SHORT)?;
        for piece in bytes.chunks(PIECE) {
            self.good(node, &format!("base64 -d >>'{to}' <<<{}", encode(piece)), SHORT)?;
        }
        Ok(())
    }

    /// Ends a machine at once, as a power failure does.
    ///
    /// # Errors
    /// It has ended.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        self.machine_mut(node)?.signal(Signal::SIGKILL)
    }

    /// Lets a machine stand still.
    ///
    /// # Errors
    /// It has ended.
    pub fn freeze(&mut self, node: usize, pause: Pause) -> Result<()> {
        match pause {
            Pause::Clocks => self.machine(node)?.qmp.command("stop", json!({})).map(|_| ()),
            Pause::Process => self.machine_mut(node)?.signal(Signal::SIGSTOP),
        }
    }

    /// Lets a machine go on.
    ///
    /// # Errors
    /// It has ended; also when its own watchdog ends it at once.
    pub fn thaw(&mut self, node: usize) -> Result<()> {
        self.machine_mut(node)?.signal(Signal::SIGCONT)?;
        let qmp = &self.machine(node)?.qmp;
        let status = qmp.command("query-status", json!({}))?;
        if status.get("status").and_then(Value::as_str) == Some("paused") {
            qmp.command("cont", json!({}))?;
        }
        Ok(())
    }

    /// Changes one node's way to a disk.
    ///
    /// # Errors
    /// Qemu refuses.
    pub fn disk(&self, node: usize, disk: usize, way: Way) -> Result<()> {
        set_way(&self.machine(node)?.qmp, disk, way).with_context(|| format!("node{node}"))
    }

    /// The file behind a disk, to look at from here.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn disk_file(&self, disk: usize) -> Result<&File> {
        Ok(self.disks.get(disk).with_context(|| format!("no disk {disk}"))?.file())
    }

    /// Pulls a node's network cable, or puts it back.
    ///
    /// # Errors
    /// Qemu refuses.
    pub fn link(&self, node: usize, is_up: bool) -> Result<()> {
        self.machine(node)?.qmp.command("set_link", json!({ "name": "net", "up": is_up })).map(|_| ())
    }

    /// From now on no frame goes from one node to another; the other way stays as it is.
    pub fn cut_way(&self, from: usize, to: usize) {
        self.switch.set_cut(from - 1, to - 1, true);
    }

    /// No frame goes between two nodes.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut_way(one, other);
        self.cut_way(other, one);
    }

    /// Mends every cut.
    pub fn heal(&self) {
        for (from, to) in (0..self.machines.len()).flat_map(|from| (0..self.machines.len()).map(move |to| (from, to))) {
            self.switch.set_cut(from, to, false);
        }
    }

    /// Waits until a machine ends. None: it is still up.
    ///
    /// # Errors
    /// It was never started.
    pub fn wait_end(&self, node: usize, limit: Duration) -> Result<Option<End>> {
        let qmp = &self.machine(node)?.qmp;
        let Some(ended) = qmp.wait_end(limit) else { return Ok(None) };
        let is_by_device = qmp.event("WATCHDOG").is_some();
        Ok(Some(match qmp.event("SHUTDOWN") {
            Some(event) => {
                let reason = event.data.get("reason").and_then(Value::as_str).unwrap_or("unknown").to_owned();
                End { at: event.at, reason, is_by_device }
            }
            None => End { at: ended, reason: "killed".into(), is_by_device },
        }))
    }

    /// What a node has written to its console in this life.
    ///
    /// # Errors
    /// It was never started.
    pub fn console(&self, node: usize) -> Result<Vec<Line>> {
        Ok(self.machine(node)?.console.lines())
    }

    /// Waits for words on a node's console.
    ///
    /// # Errors
    /// They did not come.
    pub fn wait_console(&self, node: usize, words: &str, limit: Duration) -> Result<Line> {
        let machine = self.machine(node)?;
        let line = machine.console.wait(words, limit);
        line.with_context(|| format!("node{node} did not say {words:?}; it said:\n{}", machine.last_words()))
    }

    /// The last lines of a node's console, for a report of what went wrong.
    #[must_use]
    pub fn last_words(&self, node: usize) -> String {
        self.machine(node).map(Machine::last_words).unwrap_or_default()
    }

    fn machine(&self, node: usize) -> Result<&Machine> {
        let machine = node.checked_sub(1).and_then(|index| self.machines.get(index)).and_then(Option::as_ref);
        machine.with_context(|| format!("there is no node{node}"))
    }

    fn machine_mut(&mut self, node: usize) -> Result<&mut Machine> {
        let machine = node.checked_sub(1).and_then(|index| self.machines.get_mut(index)).and_then(Option::as_mut);
        machine.with_context(|| format!("there is no node{node}"))
    }
}
