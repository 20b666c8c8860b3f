//! What: every record that Deadbolt keeps on a shared device, as values and as bytes.
//! Owns: the layout of the device, the encoders and decoders, their compile-time proofs.
//! Invariants: a decoder accepts a record only with the expected type, cluster, offset, slot and checksum; it never panics.
//! Does not: open devices, keep state, or decide anything.
//! Called by: every other package.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod beat;
pub mod fresh;
pub mod head;
pub mod layout;
pub mod node_record;
pub mod records;
pub mod register;
pub mod reservation;
pub mod sbd;
pub mod signatures;
pub mod span;
pub mod superblock;
pub mod types;
pub mod view;

pub use head::{EncodeError, Place, RecordError, RecordType, Unit};
pub use layout::{Area, LayoutError};
pub use records::{Requests, Tool, ToolClaim};
pub use superblock::{Permission, SuperblockChoice, choose_superblock, read_superblocks};
pub use types::*;
pub use view::{decode_body_place, encode_body_place};
