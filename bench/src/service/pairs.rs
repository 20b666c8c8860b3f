//! What: lock and unlock of fresh names while a million resources live.
//! Owns: nothing beyond its measurement.
//! Invariants: names and their order are those of the bare table that it is compared with.
//! Does not: take in or send bytes.
//! Called by: the measurements of the service.

use super::solo::Solo;
use crate::{
    clock::time_each,
    floors::TABLE,
    locks::Scale,
    names::{name, names},
    sheet::{Case, Reach, Row},
};
use anyhow::{Result, bail};
use deadbolt_dlm_core::Mode;

const PAIR: &str = "core: EX lock+unlock of fresh names among 1 M, one thread";

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let entries = scale.entries;
    let mut filled = None;
    let row = Row::new(PAIR, "ns").over(&[TABLE]).reach(Reach::Ratio(1.5));
    vec![Case::one(row, move || {
        let solo = match &mut filled {
            Some(solo) => solo,
            place => place.insert(fill(entries)?),
        };
        let fresh = names(entries, entries);
        let each = time_each(entries, || {
            for name in &fresh {
                let lock = solo.lock(name, Mode::Ex)?;
                solo.unlock(lock)?;
            }
            Ok(())
        })?;
        match solo.locks() as u64 {
            held if held == entries => Ok(each),
            held => bail!("{held} locks are held where {entries} should be"),
        }
    })]
}

/// A service with the first `entries` names locked.
fn fill(entries: u64) -> Result<Solo> {
    let mut solo = Solo::new()?;
    for number in 0..entries {
        solo.keep(&name(number), Mode::Ex)?;
    }
    // The million is another session's: what is measured is not how a session keeps many locks.
    solo.open()?;
    Ok(solo)
}
