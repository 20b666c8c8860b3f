//! What: the shared block device: open, geometry, I/O engine, loop devices, iSCSI, preflight.
//! Owns: every system call on a shared device, and the memory that the kernel may still write to.
//! Invariants: a buffer belongs to its operation until the kernel returns it; a hung device holds up nothing but its own engine.
//! Does not: know any record (see disk/format), set deadlines, or decide what an error means.
//! Called by: qdisk, sbd, fsck, cluster and cli.

mod buffer;
mod clock;
mod device;
mod engine;
mod error;
mod iscsi;
mod loops;
mod memory;
mod preflight;
mod reservations;
mod ring;
mod threads;

pub use buffer::AlignedBuf;
pub use clock::now_ns;
pub use deadbolt_disk_format::ByteOffset;
pub use device::{Access, Device, DeviceKind, Geometry, Identity, RawDevice};
pub use engine::{Backend, BackendChoice, Completion, Engine, OUTSTANDING_MAX, Operation, Sink};
pub use error::{Direction, EngineError, IoError, OpenError};
pub use iscsi::{IscsiAddress, IscsiError, attach_iscsi, detach_iscsi, is_iscsi};
pub use loops::{Detached, LoopDevice, LoopError, LoopOptions, attach_loop, detach_loop};
pub use memory::{Fault, FaultKind, MemoryDevice, Touches};
pub use preflight::{Finding, Severity, preflight, preflight_within, same_storage, shared_identity};
pub use reservations::{ReservationCall, ReservationError, Reservations};
