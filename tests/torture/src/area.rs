//! What: the file that a resource protects: a counter, twice, each beside the token under which it was written.
//! Owns: its form, and the resources of the run.
//! Invariants: nothing protects a file but its lock.
//! Does not: know who may touch it.
//! Called by: clients, and the run at its end.

use crate::history::{Field, Number};
use anyhow::{Context, Result};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Resources with a value block.
pub(crate) const WITH_VALUE: u8 = 6;
/// Resources, the last ones without a value block: some clients keep their locks in a cache.
pub(crate) const RESOURCES: u8 = 8;
/// The second field lies in another page.
const BACK: u64 = 4096;

/// Name of a resource.
pub(crate) fn name(resource: u8) -> Vec<u8> {
    format!("torture resource {resource:02}").into_bytes()
}

fn path(run: &Path, resource: u8) -> PathBuf {
    run.join(format!("area-{resource:02}"))
}

/// One resource's file.
#[derive(Debug)]
pub(crate) struct Area(File);

impl Area {
    /// All of them, made where they are missing.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub(crate) fn open_all(run: &Path) -> Result<Vec<Self>> {
        let open = |resource| {
            let path = path(run, resource);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.with_context(|| path.display().to_string())?;
            if file.metadata()?.len() == 0 {
                file.set_len(2 * BACK)?;
            }
            Ok(Self(file))
        };
        (0..RESOURCES).map(open).collect()
    }

    fn read_at(&self, offset: u64) -> Result<Field> {
        let mut bytes = [[0; 8]; 3];
        self.0.read_exact_at(bytes.as_flattened_mut(), offset)?;
        let [value, view, counter] = bytes.map(u64::from_le_bytes);
        Ok(Field { value, token: (view, counter) })
    }

    /// The field that is written first.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn front(&self) -> Result<Field> {
        self.read_at(0)
    }

    /// The field that is written last.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn back(&self) -> Result<Field> {
        self.read_at(BACK)
    }

    /// Writes one field.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, is_back: bool, value: u64, (view, counter): Number) -> Result<()> {
        let bytes = [value, view, counter].map(u64::to_le_bytes);
        Ok(self.0.write_all_at(bytes.as_flattened(), if is_back { BACK } else { 0 })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let run = tempfile::tempdir().unwrap();
        let areas = Area::open_all(run.path()).unwrap();
        areas[3].write(false, 7, (2, 5)).unwrap();
        let again = Area::open_all(run.path()).unwrap();
        assert_eq!(again[3].front().unwrap(), Field { value: 7, token: (2, 5) });
        assert_eq!(again[3].back().unwrap(), Field::default());
    }
}
