//! What: disks over iSCSI, by the distribution's own initiator (open-iscsi).
//! Owns: the address of a disk (`iscsi://HOST[:PORT]/TARGET[/LUN]`), the calls of iscsiadm, the way from a session to its device.
//! Invariants: every call has a time limit; a path is answered only for a device of that very session, and after direct I/O was verified.
//! Does not: speak iSCSI, or change the settings of other sessions.
//! Called by: `deadbolt attach`, `deadbolt detach`.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::device::{Access, Device};
use crate::error::OpenError;

/// The initiator's tool.
const TOOL: &str = "iscsiadm";
/// Port of iSCSI (RFC 7143).
const PORT: u16 = 3260;
/// iscsiadm's code for "there is such a session already".
const EXISTS: i32 = 15;
/// How long one call may take. Chosen: open-iscsi gives a login up to itself after 15 s by default.
const CALL: Duration = Duration::from_secs(30);
/// How long the kernel may take to show the disk of a new session.
const SHOWN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SESSIONS: &str = "/sys/class/iscsi_session";

/// Address of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IscsiAddress {
    host: String,
    port: u16,
    target: String,
    lun: u64,
}

/// Why a disk is not attached or detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IscsiError {
    /// Not an address.
    #[error(
        "{text:?} is no address of a disk: {why}; write iscsi://HOST[:PORT]/TARGET[/LUN], as iscsi://storage1/iqn.2024-01.org.example:disk1/0"
    )]
    Address {
        /// What was given.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The initiator is not here.
    #[error("{TOOL} cannot be run: {source}; install the package open-iscsi and start iscsid")]
    Tool {
        /// What the kernel said.
        source: io::Error,
    },
    /// The initiator refused.
    #[error("{TOOL} {what} ended with {code}: {text}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its exit code, or how it ended.
        code: String,
        /// What it said.
        text: String,
    },
    /// It did not answer.
    #[error("{TOOL} {what} did not end within {limit_s} s; is the address right, and does iscsid run?")]
    NoAnswer {
        /// What was asked.
        what: String,
        /// The limit.
        limit_s: u64,
    },
    /// The session has no such disk.
    #[error("the session with {target} shows no disk {lun}; it has {found}")]
    NoDisk {
        /// The target.
        target: String,
        /// The disk asked for.
        lun: u64,
        /// The disks that there are.
        found: String,
    },
    /// Not a disk of a session.
    #[error("{} is no disk of an iSCSI session of this machine", path.display())]
    NotIscsi {
        /// Which.
        path: PathBuf,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl FromStr for IscsiAddress {
    type Err = IscsiError;

    fn from_str(text: &str) -> Result<Self, IscsiError> {
        let refuse = |why| IscsiError::Address { text: text.to_owned(), why };
        let rest = text.strip_prefix("iscsi://").ok_or_else(|| refuse("it does not begin with iscsi://"))?;
        let (portal, rest) = rest.split_once('/').ok_or_else(|| refuse("it names no target"))?;
        // An address of IPv6 stands in brackets.
        let (host, port) = match portal.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (format!("[{host}]"), port.strip_prefix(':')),
            None => portal.split_once(':').map_or((portal.to_owned(), None), |(host, port)| (host.to_owned(), Some(port))),
        };
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| refuse("the port is no number"))?;
        let (target, lun) = rest.split_once('/').unwrap_or((rest, "0"));
        let lun = lun.parse().map_err(|_| refuse("the number of the disk is none"))?;
        let is_plain = |text: &str| !text.is_empty() && !text.starts_with('-') && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain(&host) || host == "[]" {
            return Err(refuse("it names no host"));
        }
        if !is_plain(target) || !["iqn.", "eui.", "naa."].iter().any(|kind| target.starts_with(kind)) {
            return Err(refuse("the target's name begins with none of iqn., eui. and naa."));
        }
        Ok(Self { host, port, target: target.to_owned(), lun })
    }
}

impl fmt::Display for IscsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iscsi://{}:{}/{}/{}", self.host, self.port, self.target, self.lun)
    }
}

/// Logs in to the target, if there is no session with it yet, and answers the path of the disk.
///
/// # Errors
/// [`IscsiError`]; a session that was begun stays.
pub fn attach_iscsi(address: &IscsiAddress) -> Result<PathBuf, IscsiError> {
    let portal = format!("{}:{}", address.host, address.port);
    call(&["--mode", "discovery", "--type", "sendtargets", "--portal", &portal], &[0])?;
    call(&["--mode", "node", "--targetname", &address.target, "--portal", &portal, "--login"], &[0, EXISTS])?;
    let end = Instant::now() + SHOWN;
    loop {
        let disks = disks_of(Path::new(SESSIONS), &address.target);
        if let Some((_, name)) = disks.iter().find(|(lun, _)| *lun == address.lun) {
            let path = Path::new("/dev").join(name);
            match Device::open(&path, Access::Read) {
                Ok(_) => return Ok(path),
                // The kernel shows a disk a moment before its node in /dev, and its size, are there.
                Err(error) if Instant::now() >= end => return Err(error.into()),
                Err(_) => {}
            }
        } else if Instant::now() >= end {
            let found = disks.iter().map(|(lun, _)| lun.to_string()).collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "none".to_owned() } else { found };
            return Err(IscsiError::NoDisk { target: address.target.clone(), lun: address.lun, found });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ends the session of a disk; all disks of that session go with it. Answers the target.
///
/// # Errors
/// [`IscsiError::NotIscsi`], or the initiator's.
pub fn detach_iscsi(device: &Path) -> Result<String, IscsiError> {
    let target = target_of(Path::new(SESSIONS), device).ok_or_else(|| IscsiError::NotIscsi { path: device.to_path_buf() })?;
    call(&["--mode", "node", "--targetname", &target, "--logout"], &[0])?;
    Ok(target)
}

/// Is this a disk of an iSCSI session?
#[must_use]
pub fn is_iscsi(device: &Path) -> bool {
    target_of(Path::new(SESSIONS), device).is_some()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The sessions, with the names of their targets.
fn sessions(folder: &Path) -> Vec<(PathBuf, String)> {
    let target = |session: &PathBuf| std::fs::read_to_string(session.join("targetname")).ok().map(|name| name.trim().to_owned());
    entries(folder).into_iter().filter_map(|session| target(&session).map(|name| (session, name))).collect()
}

/// The disks of a session: number and name. Below the session's device: `targetH:B:T/H:B:T:LUN/block/NAME`.
fn disks(session: &Path) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for target in entries(&session.join("device")).into_iter().filter(|path| name_of(path).starts_with("target")) {
        for unit in entries(&target) {
            let Some(lun) = name_of(&unit).rsplit(':').next().and_then(|lun| lun.parse().ok()) else { continue };
            found.extend(entries(&unit.join("block")).iter().map(|block| (lun, name_of(block))));
        }
    }
    found
}

fn disks_of(folder: &Path, target: &str) -> Vec<(u64, String)> {
    sessions(folder).into_iter().filter(|(_, name)| name == target).flat_map(|(session, _)| disks(&session)).collect()
}

fn target_of(folder: &Path, device: &Path) -> Option<String> {
    let name = name_of(&std::fs::canonicalize(device).ok()?);
    sessions(folder).into_iter().find(|(session, _)| disks(session).iter().any(|(_, disk)| *disk == name)).map(|(_, target)| target)
}

/// Runs the tool; `good` are the codes that mean success.
fn call(arguments: &[&str], good: &[i32]) -> Result<(), IscsiError> {
    let what = || arguments.join(" ");
    let mut command = Command::new(TOOL);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| IscsiError::Tool { source })?;
    let end = Instant::now() + CALL;
    let status = loop {
        match child.try_wait().map_err(|source| IscsiError::Tool { source })? {
            Some(status) => break status,
            None if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(IscsiError::NoAnswer { what: what(), limit_s: CALL.as_secs() });
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let mut text = String::new();
    // It says little, far less than a pipe holds.
    let _ = child.stderr.take().map(|mut errors| errors.read_to_string(&mut text));
    Err(IscsiError::Refused { what: what(), code: status.to_string(), text: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let of = |host: &str, port, target: &str, lun| IscsiAddress { host: host.into(), port, target: target.into(), lun };
        let table = [
            ("iscsi://storage1/iqn.2024-01.org.example:disk1", Some(of("storage1", 3260, "iqn.2024-01.org.example:disk1", 0))),
            ("iscsi://10.0.0.3:3261/iqn.x:y/7", Some(of("10.0.0.3", 3261, "iqn.x:y", 7))),
            ("iscsi://[fe80::1]:3261/eui.02004567a425678d/1", Some(of("[fe80::1]", 3261, "eui.02004567a425678d", 1))),
            ("iscsi://storage1", None),
            ("iscsi:///iqn.x", None),
            ("iscsi://storage1/disk1", None),
            ("iscsi://storage1:x/iqn.x", None),
            ("iscsi://storage1/iqn.x/first", None),
            ("iscsi://--portal/iqn.x", None),
            ("iscsi://a b/iqn.x", None),
            ("http://storage1/iqn.x", None),
        ];
        for (text, expected) in table {
            let found = text.parse::<IscsiAddress>();
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{text}");
            if let Some(address) = expected {
                assert_eq!(address.to_string().parse::<IscsiAddress>().unwrap(), address);
            }
        }
    }

    #[test]
    fn the_disk_of_a_session_is_found_in_its_own_tree() {
        let root = tempfile::tempdir().unwrap();
        for (session, target, unit, disk) in
            [("session1", "iqn.a", "2:0:0:0", "sda"), ("session2", "iqn.b", "3:0:0:0", "sdb"), ("session2", "iqn.b", "3:0:0:5", "sdc")]
        {
            let folder = root.path().join(session);
            std::fs::create_dir_all(folder.join(format!("device/target3:0:0/{unit}/block/{disk}"))).unwrap();
            std::fs::write(folder.join("targetname"), format!("{target}\n")).unwrap();
            std::fs::write(root.path().join(disk), "").unwrap();
        }
        assert_eq!(disks_of(root.path(), "iqn.b"), [(0, "sdb".to_owned()), (5, "sdc".to_owned())]);
        assert_eq!(disks_of(root.path(), "iqn.c"), []);
        assert_eq!(target_of(root.path(), &root.path().join("sda")).as_deref(), Some("iqn.a"));
        std::fs::write(root.path().join("sdz"), "").unwrap();
        assert_eq!(target_of(root.path(), &root.path().join("sdz")), None);
        assert!(!is_iscsi(Path::new("/dev/null")));
    }
}
