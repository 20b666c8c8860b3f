//! What: whole clusters in one thread: the production machines of every node, and a simulated world around them.
//! Owns: the world, its faults, the checkers of what must never happen.
//! Invariants: a run is a function of seed, options and program; no clock, no file, no socket.
//! Does not: contain a decision of the product: shells are imitated, machines are the real ones.
//! Called by: `deadbolt-sim`, `deadbolt sim`, tests.

pub mod bench;
pub mod check;
pub mod client;
pub mod clock;
pub mod daemon;
pub mod disk;
pub mod expected;
pub mod fault;
pub mod fencing;
pub mod io;
pub mod kept;
pub mod log;
pub mod machine;
pub mod net;
pub mod options;
pub mod panics;
pub mod plan;
#[cfg(feature = "planted")]
pub mod planted;
pub mod program;
pub mod queue;
pub mod random;
pub mod report;
pub mod run;
pub mod runner;
pub mod sbd;
pub mod script;
pub mod shrink;
pub mod world;

pub use options::Options;
pub use plan::Plan;
pub use run::{Outcome, run};
