//! What: one scenario in a virtual machine: our sbd, a real watchdog, a disk that hangs. All of them: `cargo xtask vm all`.

use deadbolt_vm::{Missing, Setup, scenarios::watchdog};
use std::path::Path;

#[test]
fn a_node_whose_disk_hangs_is_reset_by_its_watchdog_within_its_lease() {
    let programs = Path::new(env!("CARGO_BIN_EXE_deadbolt")).parent().unwrap().to_path_buf();
    match watchdog::softdog(&Setup { programs, repeat: 1 }) {
        Err(error) if error.is::<Missing>() => eprintln!("skipped: {error:#}"),
        end => end.unwrap(),
    }
}
