//! What: the shell of the lock service: the server half of the lock socket and the client libraries.
//! Owns: the unix socket, sessions as connections, the clients' API.
//! Invariants: a session ends with its connection, and with it every lock; a client can harm only itself.
//! Does not: decide about locks (deadbolt-dlm-core does).
//! Called by: the daemon (server), the front door and programs of users (clients).
#![doc = include_str!("../../docs/client.md")]

mod answers;
pub mod blocking;
pub mod cache;
pub mod client;
mod memory;
mod numbers;
mod ring;
mod routing;
pub mod server;
mod session;
mod transport;

pub use answers::Queried;
pub use deadbolt_dlm_core::client::{ALL_SLOTS, QueriedLock, RangeHolder, RangeKind};
pub use deadbolt_dlm_core::mode::MODES;
pub use deadbolt_dlm_core::pattern;
pub use deadbolt_dlm_core::{
    Claim, ClientReply, ClientRequest, Cycle, CycleParty, CycleStep, Flags, LockStatus, Mode, RangeMode, ResultFlags, Span, Token,
};
pub use session::Transport;
