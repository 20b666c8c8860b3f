//! What: the scenarios, each of which brings up a lab, does something to it, and judges what came of it.
//! Owns: the table of their names.
//! Invariants: a scenario that returns has seen all that it promises; what it measured was said.
//! Does not: share guests between scenarios.
//! Called by: the program, tests.

pub mod ejection;
pub mod faults;
pub mod iscsi;
pub mod reservations;
pub mod stock;
pub mod watchdog;

use anyhow::Result;
use std::{path::PathBuf, time::Duration};

/// What a scenario is given.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The folder with our built programs, of which `deadbolt` is every one.
    pub programs: PathBuf,
    /// How often what is random is tried.
    pub repeat: u32,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// By which it is asked for.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Runs it; an error says what did not hold.
    pub run: fn(&Setup) -> Result<()>,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario { name: "faults", shows: "the laboratory's own faults do what they say, and go away", run: faults::run },
    Scenario { name: "softdog", shows: "a node whose disk hangs is reset by softdog before its lease ends", run: watchdog::softdog },
    Scenario { name: "i6300esb", shows: "the same with a watchdog device", run: watchdog::i6300esb },
    Scenario { name: "sbd-stock", shows: "stock sbd resets a node at a message, and its sender waits all the same", run: stock::alone },
    Scenario { name: "sbd-mixed", shows: "stock sbd and ours end each other, and ours itself without its disk", run: stock::mixed },
    Scenario { name: "iscsi-lio", shows: "persistent reservations and a cut path with the kernel's iSCSI target", run: iscsi::lio },
    Scenario { name: "iscsi-attach", shows: "`deadbolt attach iscsi://` finds a disk, formats on it, and lets it go", run: iscsi::attach },
    Scenario { name: "iscsi-tgt", shows: "the same with the target in a program", run: iscsi::tgt },
    Scenario {
        name: "reservations",
        shows: "a node ejected from a disk by the fence agent, and back after a boot",
        run: reservations::run,
    },
    Scenario {
        name: "ejection",
        shows: "a whole node that is cut off with a lock is ejected by the other, and back after a boot",
        run: ejection::run,
    },
];

/// How long a command that does not wait for a fault may take in a guest.
const SHORT: Duration = Duration::from_secs(60);
/// What a guest's console says when softdog fires.
const SOFTDOG_FIRES: &str = "softdog: Initiating system reboot";

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
