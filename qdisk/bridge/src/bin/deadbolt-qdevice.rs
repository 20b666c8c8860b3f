//! What: the program `deadbolt-qdevice`.
//! Owns: nothing.
//! Invariants: it ends with the code that the library answers, whatever threads still hang on a device.
//! Does not: anything else.
//! Called by: the service manager, people.

#[allow(clippy::exit, reason = "threads that hang on a device must not hold up the end")]
fn main() {
    std::process::exit(i32::from(deadbolt_qdevice::main_from(std::env::args_os().collect())));
}
