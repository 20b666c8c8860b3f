//! What: a node for tests: a PID namespace in which reboot(2) ends everything, with a watcher of sbd, stock or ours, at work in it.
//! Owns: the namespace's processes, a folder for their files, an imitated watchdog that really ends them.
//! Invariants: it ends with its [`Node`], and with the process that started it; sysrq of the machine is out of its reach; the
//! watcher is no child of the namespace's end: its first process is a shell.
//! Does not: restart what was reset.
//! Called by: tests that fence. For root.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use deadbolt_disk::{Access, AlignedBuf, ByteOffset, Device};
use deadbolt_disk_format::SlotIndex;
use deadbolt_disk_format::sbd::{Command as Word, Mailbox, SbdNode, Tail, mailbox_offset, node_offset};
use nix::sys::stat::Mode;

use crate::watchdog::{Seen, Watchdog};

/// Stock sbd, where its package puts it.
pub const STOCK: &str = "/usr/sbin/sbd";
/// How long a namespace may take to be there. Chosen: far above what a loaded machine needs.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// In so many slots a test's nodes are looked for.
const SLOTS: u16 = 32;
/// The FIFO in a node's folder for signals to its watcher.
const SIGNAL: &str = "signal";
/// How often a mailbox is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The machine's keys lie under /proc in every namespace: covered before anything else runs.
const COVER: &str = "for f in /proc/sysrq-trigger /proc/sys/kernel/sysrq; do [ ! -e $f ] || mount --bind /dev/null $f || exit 77; done";
/// The signal to stock's inquisitor that means nothing but wakes it: SIGRTMIN + 3.
const WAKE_SIGNAL: i32 = 37;

/// A node. Its drop ends it.
#[derive(Debug)]
pub struct Node {
    name: String,
    watchdog: Watchdog,
    namespace: Arc<Mutex<Child>>,
    folder: tempfile::TempDir,
    died: Arc<OnceLock<Instant>>,
    has_watchdog: bool,
}

impl Node {
    /// Runs `script` in a new node, in the background of the shell that is its first process. The script finds a folder of its
    /// own in `$NODE` and a watchdog device in `$WATCHDOG`.
    ///
    /// # Errors
    /// No namespaces here, or no root.
    pub fn start(parent: &Path, name: &str, script: &str) -> io::Result<Self> {
        Self::start_apart(parent, name, script, &[])
    }

    /// The same with further namespaces of its own, by their options of `unshare`.
    fn start_apart(parent: &Path, name: &str, script: &str, namespaces: &[&str]) -> io::Result<Self> {
        let folder = tempfile::tempdir_in(parent)?;
        let life = folder.path().join("life");
        for fifo in [&life, &folder.path().join(SIGNAL)] {
            nix::unistd::mkfifo(fifo, Mode::from_bits_truncate(0o600))?;
        }
        let mut watchdog = Watchdog::new(folder.path().join("watchdog"))?;
        // The node's work, of which the end is its death: it alone holds the FIFO. The shell's input is the life of who started it.
        let script = format!("{COVER}; sleep 1000000 >\"$NODE/life\" & {{ {script}\n}} >\"$NODE/log\" 2>&1 & read end");
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script]).stdin(Stdio::piped());
        for name in std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"SBD_")) {
            command.env_remove(name);
        }
        command.env("NODE", folder.path()).env("WATCHDOG", watchdog.path()).env("DEADBOLT_RUN_DIR", folder.path());
        let died = Arc::new(OnceLock::new());
        let began = attend(life, Arc::clone(&died))?;
        let namespace = Arc::new(Mutex::new(command.spawn()?));
        let victim = Arc::clone(&namespace);
        let watched = watchdog.run(move || end(&victim));
        let node = Self { name: name.to_owned(), watchdog, namespace, folder, died, has_watchdog: false };
        watched?;
        let limit = Instant::now() + START_PATIENCE;
        while began.recv_timeout(LOOK_EVERY).is_err() {
            let has_ended = node.namespace.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?.is_some();
            if has_ended || Instant::now() >= limit {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "no PID namespace could be had here"));
            }
        }
        Ok(node)
    }

    /// Its folder; its run directory, too.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends its watcher a signal, by name, once.
    ///
    /// # Errors
    /// Nobody there listens.
    pub fn tell(&self, signal: &str) -> io::Result<()> {
        let limit = Instant::now() + START_PATIENCE;
        loop {
            // Refused while nobody reads: its shell does once the watcher is there.
            match OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(self.folder.path().join(SIGNAL)) {
                Err(_) if Instant::now() < limit => std::thread::sleep(LOOK_EVERY),
                opened => return opened?.write_all(signal.as_bytes()),
            }
        }
    }

    /// When it died; none while it lives.
    #[must_use]
    pub fn died(&self) -> Option<Instant> {
        self.died.get().copied()
    }

    /// When it died, waited for.
    #[must_use]
    pub fn died_by(&self, limit: Instant) -> Option<Instant> {
        while self.died().is_none() && Instant::now() < limit {
            std::thread::sleep(LOOK_EVERY);
        }
        self.died()
    }

    /// The number, on this machine, of a process in its namespaces; of its PID namespace it is the parent.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.namespace.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// A command that will run in this node, and end with it.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let number = self.number();
        let mut command = Command::new("nsenter");
        command.args(["--target", &number.to_string(), "--mount", "--net", "--ipc", "--uts"]);
        command.arg(format!("--pid=/proc/{number}/ns/pid_for_children")).arg("--").arg(program);
        command.env("NODE", self.folder()).env("DEADBOLT_RUN_DIR", self.folder()).env_remove("SBD_DEVICE");
        command
    }

    /// The numbers, on this machine, of its processes that run this program.
    ///
    /// # Errors
    /// The node has ended.
    pub fn processes(&self, program: &Path) -> io::Result<Vec<i32>> {
        let program = std::fs::canonicalize(program)?;
        let own = std::fs::read_link(format!("/proc/{}/ns/pid_for_children", self.number()))?;
        let is_inside = |folder: &Path| {
            let link = |name: &str| std::fs::read_link(folder.join(name)).ok();
            link("ns/pid").as_ref() == Some(&own) && link("exe").as_ref() == Some(&program)
        };
        let folders = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).filter(|folder| is_inside(folder));
        Ok(folders.filter_map(|folder| folder.file_name()?.to_str()?.parse().ok()).collect())
    }

    /// What its watchdog saw.
    #[must_use]
    pub fn watchdog(&self) -> Seen {
        self.watchdog.seen()
    }

    /// What its programs said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until its watcher is at work on `device`: it has armed its watchdog and then answered a test, so that a cycle has just
    /// ended.
    ///
    /// # Errors
    /// It did not come to that, or the device failed.
    pub fn await_work(&self, device: &Path, limit: Duration) -> io::Result<()> {
        let area = Mailboxes::open(device)?;
        let end = Instant::now() + limit;
        let mut mailbox = None;
        // What was written before it was armed is no question: a watcher that starts empties its mailbox.
        let mut is_asked = false;
        loop {
            let is_armed = !self.has_watchdog || self.watchdog().until.is_some();
            match mailbox {
                None => mailbox = area.find(&self.name)?,
                Some(offset) if is_asked && area.is_clear(offset)? => return Ok(()),
                Some(offset) if is_armed && !is_asked => {
                    area.ask(offset)?;
                    is_asked = true;
                }
                Some(_) => {}
            }
            if Instant::now() >= end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} did not answer: {}", self.name, self.log())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The SBD area of a device, as far as a test of a watcher needs it.
struct Mailboxes {
    device: Device,
    sector_bytes: u32,
}

impl Mailboxes {
    fn open(device: &Path) -> io::Result<Self> {
        let device = Device::open(device, Access::ReadWrite).map_err(io::Error::other)?;
        let sector_bytes = device.geometry().logical_sector_bytes;
        Ok(Self { device, sector_bytes })
    }

    fn sector(&self, offset: u64) -> io::Result<AlignedBuf> {
        let mut buffer = AlignedBuf::zeroed(usize::try_from(self.sector_bytes).map_err(io::Error::other)?);
        self.device.read_at(ByteOffset(offset), &mut buffer).map_err(io::Error::other)?;
        Ok(buffer)
    }

    /// Where the mailbox of this name is.
    fn find(&self, name: &str) -> io::Result<Option<u64>> {
        for slot in (0..SLOTS).map(SlotIndex) {
            let node = self.sector(node_offset(slot, self.sector_bytes))?;
            if SbdNode::decode(&node).is_ok_and(|node| node.name == name) {
                return Ok(Some(mailbox_offset(slot, self.sector_bytes)));
            }
        }
        Ok(None)
    }

    fn is_clear(&self, offset: u64) -> io::Result<bool> {
        Ok(Mailbox::decode(&self.sector(offset)?).is_ok_and(|mailbox| mailbox.command == Word::Clear))
    }

    fn ask(&self, offset: u64) -> io::Result<()> {
        let test = Mailbox { command: Word::Test, sender: "test".into(), tail: Tail::Absent }.encode(self.sector_bytes);
        self.device.write_at(ByteOffset(offset), &AlignedBuf::copy_of(&test)).map_err(io::Error::other)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&self.namespace);
        // Whoever waits for the begin of a life that did not begin.
        let _ = OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(self.folder.path().join("life"));
    }
}

/// Ends the outer process: the kernel then ends the first of the namespace, and with it all. A process in an unbreakable wait for
/// a disk goes when that is over.
fn end(namespace: &Mutex<Child>) {
    let mut outer = namespace.lock().unwrap_or_else(PoisonError::into_inner);
    // Fails only when it has ended already.
    let _ = outer.kill();
    let _ = outer.wait();
}

/// Notes the end of whoever holds the FIFO; the answer tells that it is held.
fn attend(life: PathBuf, died: Arc<OnceLock<Instant>>) -> io::Result<Receiver<()>> {
    let (begin, began): (Sender<()>, _) = channel();
    let body = move || {
        let Ok(mut fifo) = File::open(life) else { return };
        // Nobody listens any more when the start was given up.
        let _ = begin.send(());
        let mut nothing = Vec::new();
        let _ = fifo.read_to_end(&mut nothing);
        let _ = died.set(Instant::now());
    };
    std::thread::Builder::new().name("life".into()).spawn(body)?;
    Ok(began)
}

/// A watcher to be started in a node of its own.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    program: &'a Path,
    name: &'a str,
    device: &'a Path,
    options: &'a str,
    cluster: Option<&'a str>,
    imitation: Option<&'a Path>,
    is_woken: bool,
    has_real_time: bool,
}

impl<'a> Watch<'a> {
    /// `program watch` for node `name` on `device`, without a watchdog.
    #[must_use]
    pub fn new(program: &'a Path, name: &'a str, device: &'a Path) -> Self {
        Self { program, name, device, options: "", cluster: None, imitation: None, is_woken: false, has_real_time: false }
    }

    /// With these options besides.
    #[must_use]
    pub fn options(self, options: &'a str) -> Self {
        Self { options, ..self }
    }

    /// In a network of its own, where this script is run before the watcher, and may leave a cluster manager behind.
    #[must_use]
    pub fn cluster(self, script: &'a str) -> Self {
        Self { cluster: Some(script), ..self }
    }

    /// With the node's watchdog, which [`crate::watchdog::library`] imitates.
    #[must_use]
    pub fn watchdog(self, library: &'a Path) -> Self {
        Self { imitation: Some(library), ..self }
    }

    /// Its main process gets a signal without a meaning ten times a second, as it does from its children in real clusters.
    #[must_use]
    pub fn woken(self) -> Self {
        Self { is_woken: true, ..self }
    }

    /// With real-time scheduling, as it runs in real clusters.
    #[must_use]
    pub fn real_time(self) -> Self {
        Self { has_real_time: true, ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Node::start`].
    pub fn start(&self, parent: &Path) -> io::Result<Node> {
        let (program, name, device, options) = (self.program.display(), self.name, self.device.display(), self.options);
        let (preload, watchdog) = match self.imitation {
            Some(library) => (format!("LD_PRELOAD={} WATCHDOG_NOTES=\"$WATCHDOG\"", library.display()), "\"$WATCHDOG\""),
            None => (String::new(), "/dev/null"),
        };
        let scheduling = if self.has_real_time { "" } else { "-R" };
        let mut script = format!(
            "{preload} SBD_PACEMAKER=no SBD_SYNC_RESOURCE_STARTUP=no {program} {scheduling} -d {device} -n {name} -w {watchdog} -p \"$NODE/pid\" {options} watch\n"
        );
        if self.is_woken {
            script = format!("{script} while sleep 0.1; do kill -{WAKE_SIGNAL} $(cat \"$NODE/pid\"); done");
        }
        // What `tell` leaves is a signal for the watcher.
        script = format!("{script}\nkill -$(cat \"$NODE/{SIGNAL}\") $(cat \"$NODE/pid\")");
        let mut node = match self.cluster {
            Some(cluster) => Node::start_apart(parent, name, &format!("{cluster}\n{script}"), &["--net", "--ipc", "--uts"])?,
            None => Node::start(parent, name, &script)?,
        };
        node.has_watchdog = self.imitation.is_some();
        Ok(node)
    }
}

/// A message that was sent, and what its sender said.
#[derive(Debug)]
pub struct Sent {
    /// When its sender was started.
    pub began: Instant,
    /// When its sender had ended.
    pub ended: Instant,
    /// Its code and words.
    pub output: Output,
}

impl Sent {
    /// How long the sender took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }

    /// The sender says that it is done.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.output.status.success()
    }

    /// How long the node lived on after the sender had said that it is done: time with two owners. None if it said no such thing.
    #[must_use]
    pub fn outlived(&self, died: Instant) -> Option<Duration> {
        self.is_success().then(|| died.saturating_duration_since(self.ended))
    }
}

/// `program -d device message name word`, with these options besides, waited for.
///
/// # Errors
/// It cannot be started.
pub fn message(program: &Path, device: &Path, options: &str, name: &str, word: &str) -> io::Result<Sent> {
    let mut command = Command::new(program);
    command.args(options.split_whitespace());
    send(command, device, name, word)
}

/// The same, from the machine whose watcher leaves what it sees in `run`.
///
/// # Errors
/// It cannot be started.
pub fn message_from(run: &Path, program: &Path, device: &Path, name: &str, word: &str) -> io::Result<Sent> {
    let mut command = Command::new(program);
    command.env("DEADBOLT_RUN_DIR", run);
    send(command, device, name, word)
}

fn send(mut command: Command, device: &Path, name: &str, word: &str) -> io::Result<Sent> {
    command.args(["-n", "sender", "-d"]).arg(device).args(["message", name, word]);
    let began = Instant::now();
    let output = command.env_remove("SBD_DEVICE").output()?;
    Ok(Sent { began, ended: Instant::now(), output })
}
