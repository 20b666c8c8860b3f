//! What: a file that stops answering when told: a loop device over it is a real hung disk. For root.
//! Owns: a server process with a mount namespace of its own, in which the FUSE file system lives and with which it goes.
//! Invariants: the server ends with its guard, its standard input or its parent process, whichever is first; with it
//! ends the FUSE connection, and everybody who waits for the file gets an error: nobody stays in an unbreakable wait.
//! Does not: stop its own process to hang (a stopped process could not see that its parent has died).
//! Called by: tests that need a hung device. Such a test program must call [`serve_if_asked`], see there.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The test that re-executed programs run: it must exist under this name at the top of the test program.
const SERVER_TEST: &str = "hung_disk_server";
/// Names the image in the server's environment.
const IMAGE_VARIABLE: &str = "DEADBOLT_TEST_HUNG_DISK_IMAGE";
/// Begins each line that the server says, so that the test harness's own lines are not taken for it.
const PREFIX: &str = "hung-disk ";
/// Name and inode of the file that hangs.
const FILE: (&str, INodeNo) = ("disk", INodeNo(2));
/// Name and inode of the file that is the same disk and never hangs: the path of another machine.
const OTHER: (&str, INodeNo) = ("other", INodeNo(3));
/// How long the kernel may believe attributes: the size never changes.
const ATTRIBUTES_LAST: Duration = Duration::from_secs(3600);
/// How often the server looks for its parent. Chosen: soon, and cheap.
const PARENT_EVERY: Duration = Duration::from_millis(100);

/// What is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing: all is answered, first what was held, in order.
    Nothing,
    /// Reads.
    Reads,
    /// Writes. Flushes pass: the loop driver does them itself, and would hang with all else behind them.
    Writes,
    /// Reads, writes and flushes.
    All,
    /// Nothing is held: all fails with an I/O error; what was held too.
    Fail,
    /// Nothing is held: writes fail for want of space, as on a thin volume whose pool is full; all else is answered.
    Full,
}

impl Hold {
    const NAMES: [(Self, &'static str); 6] = [
        (Self::Nothing, "nothing"),
        (Self::Reads, "reads"),
        (Self::Writes, "writes"),
        (Self::All, "all"),
        (Self::Fail, "fail"),
        (Self::Full, "full"),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(hold, _)| *hold == self).map_or("nothing", |(_, name)| name)
    }
}

/// A file that hangs on command. Its drop ends it, and everybody's waiting for it.
#[derive(Debug)]
pub struct HungDisk {
    server: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    path: PathBuf,
    other: PathBuf,
}

impl HungDisk {
    /// Serves `image` in a process of its own. Needs root and /dev/fuse.
    ///
    /// # Errors
    /// When there is no FUSE or no root, or the test program does not call [`serve_if_asked`].
    pub fn start(image: &Path) -> io::Result<Self> {
        let mut server = Command::new(std::env::current_exe()?)
            .args([SERVER_TEST, "--exact", "--nocapture", "--test-threads=1"])
            .env(IMAGE_VARIABLE, std::fs::canonicalize(image)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(commands), Some(answers)) = (server.stdin.take(), server.stdout.take()) else {
            return Err(io::Error::other("no pipes to the server"));
        };
        let mut disk = Self { server, commands, answers: BufReader::new(answers), path: PathBuf::new(), other: PathBuf::new() };
        let ready = disk.answer()?;
        let place = ready.strip_prefix("ready ").ok_or_else(|| io::Error::other(ready.clone()))?;
        (disk.path, disk.other) = (Path::new(place).join(FILE.0), Path::new(place).join(OTHER.0));
        Ok(disk)
    }

    /// The file, reached through the server's mount namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same bytes, by a path that never hangs. Nobody may use the image itself meanwhile.
    #[must_use]
    pub fn other_path(&self) -> &Path {
        &self.other
    }

    /// From now on, until the next call, this is not answered. In force when the call returns.
    ///
    /// # Errors
    /// When the server has died.
    pub fn hold(&mut self, hold: Hold) -> io::Result<()> {
        writeln!(self.commands, "{}", hold.name())?;
        match self.answer()? {
            answer if answer == hold.name() => Ok(()),
            answer => Err(io::Error::other(answer)),
        }
    }

    /// How many requests wait for an answer.
    ///
    /// # Errors
    /// When the server has died.
    pub fn held(&mut self) -> io::Result<usize> {
        writeln!(self.commands, "count")?;
        self.answer()?.parse().map_err(io::Error::other)
    }

    /// Ends the server: the device is gone for good, and every waiting request fails.
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // The harness writes its "test ..." without a line's end before ours.
            if let Some((_, said)) = line.split_once(PREFIX) {
                return Ok(said.trim_end().to_string());
            }
            line.clear();
        }
        Err(io::Error::other("the server has ended; does the test program call serve_if_asked?"))
    }
}

impl Drop for HungDisk {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Becomes the server, and never returns, if [`HungDisk::start`] asked for it; else does nothing.
///
/// A program of the test harness has it in a test of this name, at its top:
///
/// ```ignore
/// #[test]
/// fn hung_disk_server() {
///     deadbolt_tests::hung_disk::serve_if_asked();
/// }
/// ```
///
/// Any other program calls it at the head of `main`.
pub fn serve_if_asked() {
    let Some(image) = std::env::var_os(IMAGE_VARIABLE) else {
        return;
    };
    if let Err(error) = serve(Path::new(&image)) {
        say(&format!("failed: {error}"));
    }
    leave();
}

#[allow(clippy::exit, reason = "the server is a whole process, and the test harness around it has nothing left to do")]
fn leave() -> ! {
    std::process::exit(0)
}

/// Says one line; without a listener the server has no reason to go on.
fn say(text: &str) {
    let mut output = io::stdout().lock();
    if writeln!(output, "{PREFIX}{text}").and_then(|()| output.flush()).is_err() {
        leave();
    }
}

fn serve(image: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let size = file.metadata()?.len();
    end_with_parent()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    // Any folder will do: only this namespace sees what is mounted there.
    let folder = image.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let gate = Arc::new(Gate { file, state: Mutex::default() });
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("deadbolt-test".into()), MountOption::NoDev, MountOption::NoSuid];
    let _session = fuser::spawn_mount(OneDisk { gate: Arc::clone(&gate), size }, folder, &config)?;
    let relative = folder.strip_prefix("/").map_err(io::Error::other)?;
    let thread = nix::unistd::gettid();
    let root = PathBuf::from(format!("/proc/{}/task/{thread}/root", std::process::id()));
    say(&format!("ready {}", root.join(relative).display()));
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "count" {
            say(&gate.state().held.len().to_string());
        } else if let Some((hold, name)) = Hold::NAMES.iter().find(|(_, name)| *name == line) {
            gate.change(*hold);
            say(name);
        } else {
            say("unknown command");
        }
    }
    // Without unmounting: the process's end aborts the connection, whoever waits for it.
    leave()
}

/// The parent is gone when its process number has changed or its first thread is a zombie: other threads of it may
/// be in an unbreakable wait for us, and then the process itself never ends before we do.
fn end_with_parent() -> io::Result<()> {
    let parent = nix::unistd::getppid();
    let status = PathBuf::from(format!("/proc/{parent}/stat"));
    let is_alive = move || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        nix::unistd::getppid() == parent && !matches!(state, None | Some('Z' | 'X'))
    };
    let watch = move || {
        while is_alive() {
            std::thread::sleep(PARENT_EVERY);
        }
        leave()
    };
    std::thread::Builder::new().spawn(watch).map(drop)
}

/// A request that was not answered yet.
enum Held {
    Read { offset: u64, bytes: u32, reply: ReplyData },
    Write { offset: u64, data: Vec<u8>, reply: ReplyWrite },
    Flush { reply: ReplyEmpty },
}

impl Held {
    fn answer(self, file: &File) {
        match self {
            Self::Read { offset, bytes, reply } => {
                let mut data = vec![0; usize::try_from(bytes).unwrap_or(0)];
                match read_full(file, &mut data, offset) {
                    Ok(moved) => reply.data(&data[..moved]),
                    Err(_) => reply.error(Errno::EIO),
                }
            }
            Self::Write { offset, data, reply } => match file.write_all_at(&data, offset) {
                Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
                Err(_) => reply.error(Errno::EIO),
            },
            Self::Flush { reply } => reply.ok(),
        }
    }

    fn fail(self, error: Errno) {
        match self {
            Self::Read { reply, .. } => reply.error(error),
            Self::Write { reply, .. } => reply.error(error),
            Self::Flush { reply } => reply.error(error),
        }
    }

    /// What it fails with, if it is to fail.
    fn failure(&self, hold: Hold) -> Option<Errno> {
        match (hold, self) {
            (Hold::Fail, _) => Some(Errno::EIO),
            (Hold::Full, Self::Write { .. }) => Some(Errno::ENOSPC),
            _ => None,
        }
    }

    fn is_held_by(&self, hold: Hold) -> bool {
        match self {
            Self::Read { .. } => matches!(hold, Hold::Reads | Hold::All),
            Self::Write { .. } => matches!(hold, Hold::Writes | Hold::All),
            Self::Flush { .. } => hold == Hold::All,
        }
    }
}

fn read_full(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut moved = 0;
    while moved < data.len() {
        let place = offset + u64::try_from(moved).unwrap_or(0);
        match file.read_at(&mut data[moved..], place)? {
            0 => break,
            more => moved += more,
        }
    }
    Ok(moved)
}

#[derive(Default)]
struct GateState {
    hold: Option<Hold>,
    held: Vec<Held>,
}

struct Gate {
    file: File,
    state: Mutex<GateState>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, inode: INodeNo, request: Held) {
        if inode == OTHER.1 {
            return request.answer(&self.file);
        }
        let mut state = self.state();
        let hold = state.hold.unwrap_or(Hold::Nothing);
        self.settle(&mut state, hold, request);
    }

    fn change(&self, hold: Hold) {
        let mut state = self.state();
        state.hold = Some(hold);
        for request in std::mem::take(&mut state.held) {
            self.settle(&mut state, hold, request);
        }
    }

    fn settle(&self, state: &mut GateState, hold: Hold, request: Held) {
        if let Some(error) = request.failure(hold) {
            request.fail(error);
        } else if request.is_held_by(hold) {
            state.held.push(request);
        } else {
            request.answer(&self.file);
        }
    }
}

/// A folder with one disk in it, by two names.
struct OneDisk {
    gate: Arc<Gate>,
    size: u64,
}

impl OneDisk {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if is_folder { 0 } else { self.size },
            blocks: self.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_folder { FileType::Directory } else { FileType::RegularFile },
            perm: if is_folder { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneDisk {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Else the loop driver waits for each request, and a held write holds up reads too.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match [FILE, OTHER].into_iter().find(|(known, _)| name == *known) {
            Some((_, inode)) => reply.entry(&ATTRIBUTES_LAST, &self.attributes(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_LAST, &self.attributes(inode));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        bytes: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.gate.pass(inode, Held::Read { offset, bytes, reply });
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.gate.pass(inode, Held::Write { offset, data: data.to_vec(), reply });
    }

    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.gate.pass(inode, Held::Flush { reply });
    }
}
