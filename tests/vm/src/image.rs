//! What: what every guest boots from: a kernel, a first memory file system, and a root disk made of the distribution's packages.
//! Owns: the lists of packages, the folder in which the products are kept.
//! Invariants: a product is used only if it was made whole and from the present lists; two builders do not meet.
//! Does not: install anything on this machine.
//! Called by: whoever wants a `Lab`.

use crate::{kernel, say};
use anyhow::{Context, Result, bail};
use deadbolt_trial::children::{Tied, tie};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Names the folder of the products, if not `vm` below cargo's target directory.
pub const DIRECTORY_VARIABLE: &str = "DEADBOLT_VM_DIR";
/// The marker that cargo leaves in its target directory.
const TARGET_MARKER: &str = "CACHEDIR.TAG";
/// Programs that this machine must have, and the packages that have them.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.erofs", "erofs-utils"),
    ("unshare", "util-linux"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];
/// What guests are made of, beside the essential packages.
const PACKAGES: [&str; 14] = [
    "busybox-static",
    "dmsetup",
    "gfs2-utils",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "nvme-cli",
    "open-iscsi",
    "procps",
    "sbd",
    "sg3-utils",
    "strace",
    "tgt",
];
/// Documentation and translations, which nobody reads in a guest.
const UNWANTED: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/// Where a Debian machine names its package archives; the first that is there.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
const KERNEL_HOOK: &str = include_str!("../guest/kernel");
/// The scripts of a guest and where they lie in its first memory file system.
const SCRIPTS: [(&str, &str); 3] = [
    ("init", include_str!("../guest/early")),
    ("guest/init", include_str!("../guest/init")),
    ("guest/agent", include_str!("../guest/agent")),
];
/// A download and an unpacking that take longer are stuck.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// Something that this machine does not have: no failure of what was to be tested.
#[derive(Debug, thiserror::Error)]
#[error("needs {0}")]
pub struct Missing(String);

/// The products, ready to boot from.
#[derive(Clone, Debug)]
pub struct Image {
    directory: PathBuf,
}

impl Image {
    /// Makes what is not there yet, or not from the present lists.
    ///
    /// # Errors
    /// [`Missing`], with all that is missing; or the build failed.
    pub fn prepare() -> Result<Self> {
        let suite = check_machine()?;
        let directory = directory()?;
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let lock = File::create(directory.join("lock"))?;
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("locking the folder of the guest image")?;
        let image = Self { directory };
        let sources = sources()?;
        let recipe = format!("{suite}\n{}\n{PACKAGES:?}\n{UNWANTED:?}\n{KERNEL_HOOK}", sources.display());
        if fs::read_to_string(image.file("recipe")).ok().as_ref() != Some(&recipe) {
            let _ = fs::remove_file(image.file("recipe"));
            image.build_root(&suite, &sources)?;
            fs::write(image.file("recipe"), recipe)?;
        }
        image.build_first()?;
        Ok(image)
    }

    /// The kernel, unpacked.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.file("vmlinux")
    }

    /// The first memory file system.
    pub(crate) fn first(&self) -> PathBuf {
        self.file("first.cpio")
    }

    /// The root disk.
    pub(crate) fn root(&self) -> PathBuf {
        self.file("root.erofs")
    }

    /// Where files without a name may lie.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Root disk, kernel, and what the first memory file system needs of them.
    fn build_root(&self, suite: &str, sources: &Path) -> Result<()> {
        let begin = Instant::now();
        say(&format!("building the guest image of {suite} in {} (once, a minute or two)", self.directory.display()));
        let (root, early) = (self.file("root"), self.file("early"));
        for folder in [&root, &early] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
        }
        // In namespaces of its own: whatever ends this process ends all of it, and its mounts go with it.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap"]);
        command.args(["--quiet", "--variant=minbase", "--mode=root", "--skip=check/qemu", "--format=directory"]);
        command.arg(format!("--include={}", PACKAGES.join(","))).arg(format!("--customize-hook={KERNEL_HOOK}"));
        command.args(UNWANTED.map(|path| format!("--dpkgopt=path-exclude={path}")));
        command.arg("--aptopt=Acquire::Languages \"none\"").arg(suite).arg(&root).arg(sources);
        self.run(command, BUILD_LIMIT).map_err(|error| Missing(format!("a package archive that can be reached: {error:#}")))?;
        fs::rename(root.join("early"), &early)?;
        kernel::unpack(&early.join("vmlinuz"), &self.kernel())?;
        let mut command = Command::new("mkfs.erofs");
        let _ = fs::remove_file(self.root());
        command.args(["--quiet", "-T0", "-x-1"]).arg(self.root()).arg(&root);
        self.run(command, BUILD_LIMIT)?;
        fs::remove_dir_all(&root)?;
        say(&format!("the guest image is there after {:.0} s", begin.elapsed().as_secs_f64()));
        Ok(())
    }

    /// The first memory file system: its modules, the scripts, and busybox.
    fn build_first(&self) -> Result<()> {
        let early = self.file("early");
        let tree = tempfile::tempdir_in(&self.directory)?;
        let copy = |from: &Path, to: &str| fs::copy(from, tree.path().join(to)).with_context(|| from.display().to_string());
        for folder in ["above", "below", "bin", "dev", "early", "guest", "proc", "root", "sys"] {
            fs::create_dir(tree.path().join(folder))?;
        }
        let order = early.join("order");
        copy(&order, "early/order")?;
        for module in fs::read_to_string(&order)?.lines() {
            copy(&early.join(module), &format!("early/{module}"))?;
        }
        copy(&early.join("busybox"), "bin/busybox")?;
        for (name, text) in SCRIPTS {
            let path = tree.path().join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let mut names = Vec::new();
        list(tree.path(), Path::new(""), &mut names)?;
        // A machine of another lab may be reading the present one.
        let whole = self.file("first.cpio.new");
        let mut command = Command::new(early.join("busybox"));
        command.args(["cpio", "-o", "-H", "newc"]).current_dir(tree.path());
        command.stdin(Stdio::piped()).stdout(File::create(&whole)?).stderr(Stdio::null());
        tie(&mut command, None);
        let mut child = command.spawn().context("starting busybox")?;
        child.stdin.take().context("its input")?.write_all(names.join("\n").as_bytes())?;
        let status = child.wait()?;
        if !status.success() {
            bail!("busybox cpio ended with {status}");
        }
        fs::rename(&whole, self.first())?;
        Ok(())
    }

    /// Runs it to its end; what it says is kept in the file `build.log`.
    fn run(&self, mut command: Command, limit: Duration) -> Result<()> {
        let name = command.get_program().display().to_string();
        let log = self.file("build.log");
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let code = Tied::spawn(&mut command, None)?.wait(limit);
        if code != Some(0) {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(8).collect();
            let how = code.map_or("did not end in its time".into(), |code| format!("ended with {code}"));
            bail!("{name} {how}:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }
}

/// All names below `folder`, folders before what they contain.
fn list(root: &Path, folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        names.push(name.display().to_string());
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

/// Can guests be built and run here? Answers the distribution's suite.
fn check_machine() -> Result<String, Missing> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Missing("root".into()));
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(|value| value.trim_matches('"'));
    // The guests' C library must be the one that our programs were built with.
    let suite = value("VERSION_CODENAME").filter(|_| value("ID") == Some("debian") && cfg!(target_arch = "x86_64"));
    let suite = suite.ok_or_else(|| Missing("Debian on x86_64".into()))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let is_there = |program: &str| folders.iter().any(|folder| folder.join(program).exists());
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(suite.to_owned()) } else { Err(Missing(format!("{} (apt-get install)", missing.join(" ")))) }
}

fn sources() -> Result<PathBuf, Missing> {
    let found = SOURCES.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| Missing(format!("package archives named in {}", SOURCES.join(" or "))))
}

fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
        return Ok(std::path::absolute(directory)?);
    }
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|folder| folder.join(TARGET_MARKER).exists());
    Ok(target.with_context(|| format!("{} lies in no target directory of cargo; set {DIRECTORY_VARIABLE}", program.display()))?.join("vm"))
}
