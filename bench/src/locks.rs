//! What: the benchmark of the lock manager: floors, the core alone, nodes and their clients.
//! Owns: the order of the cases, how large they are.
//! Invariants: a floor is measured before what is compared with it, in every round.
//! Does not: print.
//! Called by: `deadbolt bench locks`.

use crate::{
    cluster, floors, service,
    sheet::{self, Sheet, Wishes},
};
use anyhow::Result;
use std::{path::PathBuf, time::Duration};

/// Rounds of a measurement that counts.
const ROUNDS: usize = 5;
/// Rounds of a quick look.
const QUICK_ROUNDS: usize = 2;
/// Beginning of the directories' names; the sweep looks for it.
pub(crate) const PREFIX: &str = "deadbolt-bench-";

/// How large everything is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scale {
    /// Names in a table, live resources, locks: what the rows call 1 M.
    pub(crate) entries: u64,
    /// How long a row runs in which processes wait for each other.
    pub(crate) window: Duration,
    /// How long something at rest is watched.
    pub(crate) rest: Duration,
    /// Where the nodes' programs are, as packages install them; none: nodes are this very program.
    pub(crate) programs: Option<PathBuf>,
}

impl Scale {
    fn new(is_quick: bool, programs: Option<PathBuf>) -> Self {
        if is_quick {
            Self { entries: 100_000, window: Duration::from_millis(60), rest: Duration::from_secs(3), programs }
        } else {
            Self { entries: 1_000_000, window: Duration::from_millis(300), rest: Duration::from_secs(20), programs }
        }
    }
}

/// What to measure.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// A tenth of the size in two rounds, to see that everything runs; not for figures.
    pub is_quick: bool,
    /// Rows whose names contain this.
    pub only: Option<String>,
    /// The folder of the separate programs that nodes run; none: nodes are this very program.
    pub programs: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// No row's name contains `only`. What fails stands in the sheet.
pub fn locks(choice: Choice, tell: impl FnMut(usize, &str)) -> Result<Sheet> {
    let Choice { is_quick, only, programs } = choice;
    let scale = Scale::new(is_quick, programs);
    let mut cases = floors::cases(&scale);
    cases.extend(service::cases(&scale));
    cases.extend(cluster::cases(&scale));
    let rounds = if is_quick { QUICK_ROUNDS } else { ROUNDS };
    sheet::measure(cases, &Wishes { rounds, only }, tell)
}
