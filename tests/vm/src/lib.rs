//! What: a laboratory of virtual machines: nodes with the distribution's own kernel, shared disks, a network, and faults of all of them.
//! Owns: nothing by itself.
//! Invariants: whatever ends the process that made a lab, none of its machines outlives it, and nothing of it is left in a folder.
//! Does not: need hardware help for virtual machines, modules of this machine's kernel, or a network of this machine.
//! Called by: the program `deadbolt-vm` (`cargo xtask vm`) and tests.

mod agent;
mod console;
mod disk;
mod image;
mod kernel;
mod lab;
mod machine;
mod qmp;
pub mod scenarios;
mod switch;

pub use agent::Said;
pub use console::Line;
pub use disk::Way;
pub use image::{DIRECTORY_VARIABLE, Image, Missing};
pub use lab::{End, Lab, NODES_MAX, Options, Pause};
pub use scenarios::Setup;

/// A line for whoever waits.
#[allow(clippy::print_stderr, reason = "a laboratory is used from terminals and in tests")]
pub fn say(line: &str) {
    eprintln!("{line}");
}
