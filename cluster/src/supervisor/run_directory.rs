//! What: temporary directories that the next run removes if this one could not.
//! Owns: the directories with a given beginning of their name under one base, as far as they are this user's.
//! Invariants: a directory whose lock is held is never removed; the lock ends with the last process that inherited it.
//! Does not: follow symbolic links, or touch what another user owns.
//! Called by: the demo, benchmarks and tests.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A temporary directory, locked; removed on drop.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    lock: File,
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

impl RunDirectory {
    /// Makes `base/prefixXXXXXXXX`, readable by this user only, and locks it.
    ///
    /// # Errors
    /// When it cannot be made or locked.
    pub fn create(base: &Path, prefix: &str) -> io::Result<Self> {
        for _ in 0..100 {
            let random = getrandom::u64().map_err(io::Error::other)?;
            let path = base.join(format!("{prefix}{random:016x}"));
            DirBuilder::new().mode(0o700).create(&path)?;
            // A sweep may have come between: then the lock is taken, or the directory is gone.
            let Ok(lock) = open_directory(&path) else { continue };
            if lock.try_lock().is_err() {
                continue;
            }
            match fs::symlink_metadata(&path) {
                Ok(found) if found.ino() == lock.metadata()?.ino() => return Ok(Self { path, lock }),
                _ => {}
            }
        }
        Err(io::Error::other("a hundred new directories vanished while they were made"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock's descriptor: a child that inherits it keeps the directory from being swept for as long as it lives.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories of dead runs: those named `prefix...` under `base` that are this user's and that nobody has locked.
/// Answers which were removed.
///
/// # Errors
/// When `base` cannot be read. What cannot be removed is left for the next run.
pub fn sweep(base: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let own = nix::unistd::geteuid().as_raw();
    let mut removed = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let Ok(lock) = open_directory(&path) else { continue };
        if lock.metadata()?.uid() == own && lock.try_lock().is_ok() && fs::remove_dir_all(&path).is_ok() {
            removed.push(path);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_run_stays_and_a_dead_one_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let alive = RunDirectory::create(base.path(), "run-").unwrap();
        fs::write(alive.path().join("image"), b"x").unwrap();
        let dead = base.path().join("run-dead");
        fs::create_dir_all(dead.join("below")).unwrap();
        fs::create_dir(base.path().join("other")).unwrap();
        std::os::unix::fs::symlink(base.path().join("other"), base.path().join("run-link")).unwrap();
        assert_eq!(sweep(base.path(), "run-").unwrap(), [dead]);
        assert!(alive.path().join("image").exists() && base.path().join("other").exists());
        let inherited = alive.lock().try_clone_to_owned().unwrap();
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        drop(inherited);
        assert_eq!(sweep(base.path(), "run-").unwrap(), [path]);
    }
}
