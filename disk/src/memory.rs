//! What: a device in memory, with faults.
//! Owns: its content, shared by any number of paths; the faults are each path's own.
//! Invariants: the same sequence of calls gives the same bytes; only a hang blocks, until it is released.
//! Does not: tear a single 512 byte sector, or lose a write unasked: a device may do the first never, the second only as a fault.
//! Called by: tests and simulations.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use deadbolt_disk_format::ByteOffset;

use crate::buffer::AlignedBuf;
use crate::device::{DeviceKind, Geometry, Identity, RawDevice};
use crate::error::{Direction, IoError};

/// Which operations a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touches {
    /// Reads only.
    Reads,
    /// Writes only.
    Writes,
    /// Both.
    All,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Fails with this error number, nothing done.
    Error(i32),
    /// Blocks until [`MemoryDevice::release_hung`]; then the operation is done (a late write lands).
    Hang,
    /// A write of which only the first `new_bytes` (rounded down to 512) are stored.
    Torn {
        /// Bytes stored.
        new_bytes: usize,
        /// The writer is told success; else an I/O error.
        acknowledged: bool,
    },
    /// A write that is acknowledged and not stored.
    Lost,
    /// The operation meets another place.
    Misdirected {
        /// That place.
        to: ByteOffset,
    },
    /// Reads show what stood there when the fault was injected.
    Stale,
    /// Writes are refused as on a read-only device.
    ReadOnly,
}

/// A fault: what happens, to which operations, how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    touches: Touches,
    from: u64,
    end: u64,
    times: Option<u32>,
    kind: FaultKind,
}

impl Fault {
    /// A fault of the whole device that lasts until it is cleared.
    #[must_use]
    pub fn new(touches: Touches, kind: FaultKind) -> Self {
        Self { touches, from: 0, end: u64::MAX, times: None, kind }
    }

    /// Only operations that touch this range.
    #[must_use]
    pub fn within(mut self, from: ByteOffset, bytes: u64) -> Self {
        self.from = from.0;
        self.end = from.0.saturating_add(bytes);
        self
    }

    /// Only the next `times` operations.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    fn meets(&self, direction: Direction, offset: u64, bytes: usize) -> bool {
        let kind_meets = match self.touches {
            Touches::Reads => direction == Direction::Read,
            Touches::Writes => direction == Direction::Write,
            Touches::All => true,
        };
        let end = offset.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        kind_meets && self.times != Some(0) && offset < self.end && end > self.from
    }
}

#[derive(Debug, Default)]
struct PathState {
    faults: Vec<(Fault, Option<Arc<Vec<u8>>>)>,
    hung: usize,
    released: u64,
}

/// A device in memory. [`MemoryDevice::second_path`] gives another way to the same content.
#[derive(Debug)]
pub struct MemoryDevice {
    content: Arc<Mutex<Vec<u8>>>,
    geometry: Geometry,
    state: Mutex<PathState>,
    changed: Condvar,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDevice {
    /// A device of `size_bytes` zero bytes with sectors of `sector_bytes`.
    #[must_use]
    pub fn new(size_bytes: usize, sector_bytes: u32) -> Self {
        let content = Arc::new(Mutex::new(vec![0; size_bytes]));
        let inode = u64::try_from(Arc::as_ptr(&content).addr()).unwrap_or(0);
        let geometry = Geometry {
            logical_sector_bytes: sector_bytes,
            physical_sector_bytes: sector_bytes,
            size_bytes: u64::try_from(size_bytes).unwrap_or(u64::MAX),
            kind: DeviceKind::Memory,
            identity: Identity { file_system: 0, block: 0, inode },
        };
        Self::over(content, geometry)
    }

    fn over(content: Arc<Mutex<Vec<u8>>>, geometry: Geometry) -> Self {
        Self { content, geometry, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Another path to the same content, without faults of its own: what another node sees.
    #[must_use]
    pub fn second_path(&self) -> Self {
        Self::over(Arc::clone(&self.content), self.geometry.clone())
    }

    /// Adds a fault to this path; of several that meet an operation the oldest acts.
    pub fn inject(&self, fault: Fault) {
        let frozen = matches!(fault.kind, FaultKind::Stale).then(|| Arc::new(locked(&self.content).clone()));
        locked(&self.state).faults.push((fault, frozen));
    }

    /// Removes all faults of this path, and lets what hangs go on.
    pub fn clear_faults(&self) {
        locked(&self.state).faults.clear();
        self.release_hung();
    }

    /// Removes hangs from this path; what hung is done now, in no particular order.
    pub fn release_hung(&self) {
        let mut state = locked(&self.state);
        state.faults.retain(|(fault, _)| fault.kind != FaultKind::Hang);
        state.released += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// How many operations hang on this path.
    #[must_use]
    pub fn hung(&self) -> usize {
        locked(&self.state).hung
    }

    /// A copy of the whole content.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        locked(&self.content).clone()
    }

    /// Changes the content behind everybody's back; what lies beyond the end is ignored.
    pub fn overwrite(&self, offset: ByteOffset, data: &[u8]) {
        store(&mut locked(&self.content), offset.0, data);
    }

    /// Rot: flips one bit of the content.
    pub fn flip_bit(&self, offset: ByteOffset, bit: u8) {
        let mut content = locked(&self.content);
        if let Some(byte) = usize::try_from(offset.0).ok().and_then(|index| content.get_mut(index)) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// The fault that acts on an operation, if any; waits while it is a hang.
    fn meet(&self, direction: Direction, offset: u64, bytes: usize) -> Option<(FaultKind, Option<Arc<Vec<u8>>>)> {
        let mut state = locked(&self.state);
        let (fault, frozen) = state.faults.iter_mut().find(|(fault, _)| fault.meets(direction, offset, bytes))?;
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        let found = (fault.kind, frozen.clone());
        if found.0 != FaultKind::Hang {
            return Some(found);
        }
        state.hung += 1;
        let seen = state.released;
        let mut state = self.changed.wait_while(state, |state| state.released == seen).unwrap_or_else(PoisonError::into_inner);
        state.hung -= 1;
        None
    }
}

fn store(content: &mut [u8], offset: u64, data: &[u8]) {
    let Ok(start) = usize::try_from(offset) else {
        return;
    };
    let Some(room) = content.get_mut(start..) else {
        return;
    };
    let bytes = data.len().min(room.len());
    room[..bytes].copy_from_slice(&data[..bytes]);
}

fn load(content: &[u8], offset: u64, buffer: &mut [u8]) {
    let room = usize::try_from(offset).ok().and_then(|start| content.get(start..)).unwrap_or(&[]);
    let bytes = buffer.len().min(room.len());
    buffer[..bytes].copy_from_slice(&room[..bytes]);
}

impl RawDevice for MemoryDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
        let (direction, bytes) = (Direction::Read, buffer.len());
        self.check(direction, offset, bytes)?;
        let ByteOffset(mut place) = offset;
        match self.meet(direction, place, bytes) {
            Some((FaultKind::Error(errno), _)) => {
                return Err(IoError::Os { direction, offset: place, bytes, errno });
            }
            Some((FaultKind::Stale, Some(frozen))) => {
                load(&frozen, place, buffer);
                return Ok(());
            }
            Some((FaultKind::Misdirected { to }, _)) => place = to.0,
            _ => {}
        }
        load(&locked(&self.content), place, buffer);
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError> {
        let (direction, bytes) = (Direction::Write, buffer.len());
        self.check(direction, offset, bytes)?;
        let ByteOffset(mut place) = offset;
        let mut kept = bytes;
        let mut failure = None;
        match self.meet(direction, place, bytes).map(|(kind, _)| kind) {
            Some(FaultKind::Error(errno)) => {
                return Err(IoError::Os { direction, offset: place, bytes, errno });
            }
            Some(FaultKind::ReadOnly) => return Err(IoError::ReadOnly { offset: place }),
            Some(FaultKind::Lost) => return Ok(()),
            Some(FaultKind::Misdirected { to }) => place = to.0,
            Some(FaultKind::Torn { new_bytes, acknowledged }) => {
                kept = (new_bytes - new_bytes % 512).min(bytes);
                failure = (!acknowledged).then_some(libc::EIO);
            }
            Some(FaultKind::Hang | FaultKind::Stale) | None => {}
        }
        store(&mut locked(&self.content), place, &buffer[..kept]);
        match failure {
            Some(errno) => Err(IoError::Os { direction, offset: place, bytes, errno }),
            None => Ok(()),
        }
    }
}
