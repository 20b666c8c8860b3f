//! What: the benchmarks of the project: what was measured stands beside the floor that the machine itself sets, measured in the same round.
//! Owns: rows, rounds and medians (`sheet`); the floors; the measurements, one module per benchmark.
//! Invariants: a row that cannot be measured here says why and is no figure; whatever ends a run, nothing of it is left.
//! Does not: judge by absolute times: a figure counts beside its floor.
//! Called by: `deadbolt bench`, the benchmark of fences.

mod clock;
mod cluster;
mod floors;
mod locks;
mod memory;
mod names;
mod pair;
mod ring;
mod service;
pub mod sheet;
mod usage;
mod worker;

pub use cluster::trial::{DEFAULT_STALL_MS, Trial};
pub use floors::poll::{WATCHER, poll};
pub use locks::{Choice, locks};
pub use memory::proportional;
pub use usage::Use;
pub use worker::work;
