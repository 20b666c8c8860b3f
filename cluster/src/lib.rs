//! What: the membership daemon and the supervisor of a node: everything that opens something around the pure machines.
//! Owns: links, node directory, control socket, wiring, the process tree of a node.
//! Invariants: decisions are made in the cores; nothing here waits for a disk on the daemon's loop.
//! Does not: decide membership, grant locks, or write the node's beat.
//! Called by: the programs `deadboltd` and `deadbolt`.

mod agents;
pub mod ask;
mod commands;
pub mod config;
pub mod daemon;
pub mod devices;
mod heuristics;
pub mod initial;
pub mod links;
pub mod lock_documents;
pub mod look;
pub mod node;
pub mod program;
mod protection;
pub mod seal;
pub mod supervisor;
