//! What: where the bytes come from: a block device, an image file, or memory.
//! Owns: reading in large pieces, reading a suspicious unit again, and the count of bytes.
//! Invariants: never writes; a piece that fails is read unit by unit, so that one bad sector hides no neighbour.
//! Does not: judge what it reads.
//! Called by: the checks.

use crate::LOOKS;
use deadbolt_disk::{Access, AlignedBuf, Device, DeviceKind, OpenError, RawDevice};
use deadbolt_disk_format::{ByteOffset, RecordError, UNIT_BYTES};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest piece that is read at once: chosen.
const PIECE_BYTES: u64 = 1 << 20;

/// Why a source cannot be read at all.
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// As a device.
    Open(OpenError),
    /// As a plain file.
    File(std::io::Error),
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => write!(f, "{error}"),
            Self::File(error) => write!(f, "{error}"),
        }
    }
}
impl std::error::Error for SourceError {}

enum Bytes {
    Device(Arc<dyn RawDevice>),
    /// A file system without direct I/O: an image is only read, so the page cache does no harm.
    File(File),
}

/// A device or an image of one.
pub struct Source {
    name: String,
    size_bytes: u64,
    /// Nothing for files: an image does not know the sectors of the device it came from.
    sector_bytes: Option<u32>,
    bytes: Bytes,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.name)
    }
}

impl Source {
    /// Opens a path for reading.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        match Device::open(path, Access::Read) {
            Ok(device) => Ok(Self::of_device(&path.display().to_string(), Arc::new(device))),
            Err(OpenError::NoDirectIo { .. }) => {
                let file = File::open(path).map_err(SourceError::File)?;
                let size_bytes = file.metadata().map_err(SourceError::File)?.len();
                Ok(Self { name: path.display().to_string(), size_bytes, sector_bytes: None, bytes: Bytes::File(file) })
            }
            Err(error) => Err(SourceError::Open(error)),
        }
    }
    /// A device that is open already.
    #[must_use]
    pub fn of_device(name: &str, device: Arc<dyn RawDevice>) -> Self {
        let geometry = device.geometry();
        let sector_bytes = match geometry.kind {
            DeviceKind::File => None,
            DeviceKind::Block { .. } | DeviceKind::Memory => Some(geometry.logical_sector_bytes),
        };
        Self { name: name.into(), size_bytes: geometry.size_bytes, sector_bytes, bytes: Bytes::Device(device) }
    }
    /// How it is called in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    /// Its logical sector, where it knows it.
    #[must_use]
    pub fn sector_bytes(&self) -> Option<u32> {
        self.sector_bytes
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, String> {
        match &self.bytes {
            Bytes::Device(device) => {
                let mut buffer = AlignedBuf::zeroed(bytes);
                device.read_at(ByteOffset(offset), &mut buffer).map_err(|error| error.to_string())?;
                Ok(buffer.get(..bytes).unwrap_or_default().to_vec())
            }
            Bytes::File(file) => {
                let mut buffer = vec![0; bytes];
                file.read_exact_at(&mut buffer, offset).map_err(|error| error.to_string())?;
                Ok(buffer)
            }
        }
    }
}

/// Reads in order, in large pieces.
pub(crate) struct Reader<'a> {
    source: &'a Source,
    pause: Duration,
    /// The last large piece: start and bytes.
    piece: (u64, Vec<u8>),
    bytes_read: u64,
}

/// What a unit says after it was read as often as needed.
pub(crate) type Settled<T> = Result<Result<T, RecordError>, String>;

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source, pause: Duration) -> Self {
        Self { source, pause, piece: (0, Vec::new()), bytes_read: 0 }
    }
    pub(crate) fn source(&self) -> &'a Source {
        self.source
    }
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Reads from the device itself, now.
    pub(crate) fn read_now(&mut self, offset: ByteOffset, bytes: usize) -> Result<Vec<u8>, String> {
        self.bytes_read += bytes as u64;
        self.source.read(offset.0, bytes)
    }

    /// Reads a unit out of a large piece that ends at `area_end` at the latest.
    pub(crate) fn read_within(&mut self, offset: ByteOffset, bytes: usize, area_end: u64) -> Result<Vec<u8>, String> {
        if let Some(found) = self.cached(offset, bytes) {
            return Ok(found);
        }
        let length = area_end.min(self.source.size_bytes()).saturating_sub(offset.0).min(PIECE_BYTES);
        let length = usize::try_from(length).unwrap_or(bytes).max(bytes);
        match self.read_now(offset, length) {
            Ok(piece) => self.piece = (offset.0, piece),
            Err(_) => return self.read_now(offset, bytes),
        }
        self.cached(offset, bytes).ok_or_else(|| String::from("the piece read is too short"))
    }
    fn cached(&self, offset: ByteOffset, bytes: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset.0.checked_sub(self.piece.0)?).ok()?;
        self.piece.1.get(start..start.checked_add(bytes)?).map(<[u8]>::to_vec)
    }

    /// Judges a unit; while the judgement is bad it is read again, for its owner may be writing it.
    pub(crate) fn settle<T>(
        &mut self,
        offset: ByteOffset,
        bytes: usize,
        area_end: u64,
        decode: impl Fn(&[u8]) -> Result<T, RecordError>,
    ) -> Settled<T> {
        let mut found = self.read_within(offset, bytes, area_end).map(|bytes| decode(&bytes));
        for _ in 1..LOOKS {
            match &found {
                Ok(Ok(_) | Err(RecordError::NotARecord { is_all_zero: true, .. })) => break,
                Ok(Err(_)) | Err(_) => {
                    self.wait();
                    found = self.read_now(offset, bytes).map(|bytes| decode(&bytes));
                }
            }
        }
        found
    }
    pub(crate) fn wait(&self) {
        std::thread::sleep(self.pause);
    }
    /// Forgets the piece, so that the next read is a new one.
    pub(crate) fn forget(&mut self) {
        self.piece = (0, Vec::new());
    }
}

const _: () = assert!(PIECE_BYTES >= UNIT_BYTES as u64);
