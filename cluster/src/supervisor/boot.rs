//! What: the file `boot` of a node's directory: which life of the process tree is the present one.
//! Owns: the numbering of a trial node's boots.
//! Invariants: the number only grows; a number is on the disk, synced, before anything of that life is started; it is advanced
//!   only by a caller who has seen the life before end.
//! Does not: end anybody.
//! Called by: the keeper.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use deadbolt_disk_format::BootId;
use serde::{Deserialize, Serialize};

use super::SupervisorError;
use super::process::ProcessIdentity;

/// Name of the file in the node's directory.
pub(crate) const BOOT_FILE: &str = "boot";
const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Version of the file's fields.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootRecord {
    /// Version of these fields.
    pub(crate) version: u32,
    /// Drawn once per node directory: 16 hexadecimal digits, the first half of every boot id.
    pub(crate) node: String,
    /// The second half; 0 before the first life.
    pub(crate) counter: u64,
    /// The kernel's boot id when this was written: an earlier kernel's processes are gone.
    pub(crate) kernel_boot: String,
    /// Device and inode number of the directory: a copied directory is noticed.
    pub(crate) directory: (u64, u64),
    /// Who numbered this life.
    pub(crate) supervisor: ProcessIdentity,
    /// The process that started everything of this life.
    pub(crate) runner: Option<ProcessIdentity>,
    /// What ended the lives: `process` or `device`.
    pub(crate) watchdog: String,
    /// How the last life ended, for people and for `stop`; `None` while it runs or when nobody saw the end.
    pub(crate) last_end: Option<String>,
}

impl BootRecord {
    /// The boot id of the present life.
    pub(crate) fn boot(&self) -> Option<BootId> {
        let mut bytes = [0; 16];
        let (node, counter) = bytes.split_at_mut(8);
        node.copy_from_slice(&u64::from_str_radix(&self.node, 16).ok()?.to_be_bytes());
        counter.copy_from_slice(&self.counter.to_be_bytes());
        Some(BootId(bytes))
    }

    /// What the boot id of every life of this directory begins with, as text.
    pub(crate) fn text_prefix(&self) -> Option<String> {
        // The first eight bytes in the grouping of a UUID: 8, 4 and 4 digits, each with its dash.
        Some(self.boot()?.to_string().get(..19)?.to_owned())
    }
}

/// The boot id of the machine.
pub(crate) fn kernel_boot() -> Result<(String, BootId), SupervisorError> {
    let path = PathBuf::from(KERNEL_BOOT);
    let text = fs::read_to_string(&path).map_err(|source| SupervisorError::io("read", &path, source))?.trim().to_owned();
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(value) if digits.len() == 32 => Ok((text, BootId(value.to_be_bytes()))),
        _ => Err(SupervisorError::BootFile { path, found: format!("{text:?}, which is no boot id") }),
    }
}

/// Device and inode number of a directory.
pub(crate) fn directory_identity(directory: &Path) -> Result<(u64, u64), SupervisorError> {
    let found = fs::metadata(directory).map_err(|source| SupervisorError::io("look at", directory, source))?;
    Ok((found.dev(), found.ino()))
}

/// Reads the record; `None`: this directory never had a life.
pub(crate) fn read(directory: &Path) -> Result<Option<BootRecord>, SupervisorError> {
    let path = directory.join(BOOT_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SupervisorError::io("read", &path, source)),
    };
    decode(&bytes).map(Some).map_err(|found| SupervisorError::BootFile { path, found })
}

/// Judges the file's bytes; the error says what was found instead.
pub(crate) fn decode(bytes: &[u8]) -> Result<BootRecord, String> {
    let record: BootRecord = serde_json::from_slice(bytes).map_err(|error| format!("bytes that do not decode: {error}"))?;
    if record.version != VERSION {
        return Err(format!("version {}, this program knows {VERSION}", record.version));
    }
    if record.node.len() != 16 || !record.node.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(format!("node {:?}, not 16 hexadecimal digits", record.node));
    }
    Ok(record)
}

/// The record of a directory that never had a life.
pub(crate) fn fresh(supervisor: ProcessIdentity) -> Result<BootRecord, SupervisorError> {
    let random = getrandom::u64().map_err(|error| SupervisorError::Random { reason: error.to_string() })?;
    Ok(BootRecord {
        version: VERSION,
        node: format!("{random:016x}"),
        counter: 0,
        kernel_boot: String::new(),
        directory: (0, 0),
        supervisor,
        runner: None,
        watchdog: String::new(),
        last_end: None,
    })
}

/// Writes the record: a new file, synced, renamed over the old one, the directory synced.
pub(crate) fn write(directory: &Path, record: &BootRecord) -> Result<(), SupervisorError> {
    let path = directory.join(BOOT_FILE);
    let new = directory.join("boot.new");
    let fail = |source: io::Error| SupervisorError::io("write", &path, source);
    let text = serde_json::to_vec(record).map_err(|error| fail(error.into()))?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new).map_err(fail)?;
    file.write_all(&text).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&new, &path).map_err(fail)?;
    File::open(directory).and_then(|handle| handle.sync_all()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::process::own_identity;

    #[test]
    fn the_prefix_is_common_to_all_lives_of_a_directory_and_the_number_is_the_rest() {
        let mut record = fresh(own_identity().unwrap()).unwrap();
        record.counter = 0x0102;
        let boot = record.boot().unwrap();
        assert_eq!(boot.0[8..], [0, 0, 0, 0, 0, 0, 1, 2]);
        let prefix = record.text_prefix().unwrap();
        assert!(boot.to_string().starts_with(&prefix) && prefix.len() == 19);
        record.counter += 1;
        assert_ne!(record.boot().unwrap(), boot);
        assert!(record.boot().unwrap().to_string().starts_with(&prefix));
        assert_ne!(fresh(own_identity().unwrap()).unwrap().node, record.node);
    }

    #[test]
    fn what_is_written_is_read_and_garbage_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let record = fresh(own_identity().unwrap()).unwrap();
        write(dir.path(), &record).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap(), record);
        let text = String::from_utf8(fs::read(dir.path().join(BOOT_FILE)).unwrap()).unwrap();
        // Signs count as digits for the parser of numbers, and would be two texts of one boot.
        let signed = text.replace(&record.node, &format!("+{}", &record.node[1..]));
        for garbage in [&b""[..], b"\0\xff", b"{}", br#"{"version":9}"#, signed.as_bytes()] {
            fs::write(dir.path().join(BOOT_FILE), garbage).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("boot"), "{error}");
        }
    }

    #[test]
    fn the_kernel_boot_id_keeps_its_bytes() {
        let (text, boot) = kernel_boot().unwrap();
        assert_eq!(boot.to_string(), text);
    }
}
