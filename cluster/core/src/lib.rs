//! What: the pure machines of membership: timing, observation, evidence, fencing, hellos, reliable channels.
//! Owns: who may propose what, when a node counts as gone, how a node ends.
//! Invariants: time is a parameter and never goes back; nothing here opens, sleeps or reads a clock.
//! Does not: talk to devices or sockets, nor decide a view (that is the view register).
//! Called by: the daemon's wiring and the simulator.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod channel;
pub mod evidence;
pub mod hello;
pub mod link;
pub mod membership;
pub mod observer;
pub mod timing;
