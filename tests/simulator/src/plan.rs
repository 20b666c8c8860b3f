//! What: everything that decides how a run goes: seed, options, which of its faults happen.
//! Owns: the line that replays a run, written and read.
//! Invariants: a plan written and read again is the same plan.
//! Does not: run.
//! Called by: the program, the runner, shrinking, kept seeds.

use crate::{Options, random::Random};
use std::{collections::BTreeSet, fmt};

/// The program's name, as it stands in replay lines.
pub const PROGRAM: &str = "deadbolt-sim";
/// The commit that the program was built from, if that was known.
pub const COMMIT: Option<&str> = option_env!("DEADBOLT_COMMIT");

/// What is to be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The options.
    pub options: Options,
    /// A world of drop-in fencing, which knows of the options the planted mistake only.
    pub is_fencing: bool,
    /// The numbers of the faults that happen; `None`: all.
    pub faults: Option<BTreeSet<u64>>,
}

impl Plan {
    /// What a seed draws, or calm options.
    #[must_use]
    pub fn new(seed: u64, is_calm: bool) -> Self {
        let options = if is_calm { Options::calm() } else { Options::drawn(seed) };
        Self { seed, options, is_fencing: false, faults: None }
    }

    /// What a seed draws in the world of drop-in fencing.
    #[must_use]
    pub fn fencing(seed: u64) -> Self {
        Self { is_fencing: true, ..Self::new(seed, false) }
    }

    /// The generator of one part of the run, so that one part's draws do not move another's.
    #[must_use]
    pub fn random(&self, part: u64) -> Random {
        Random::new(self.seed ^ part)
    }

    /// Reads a replay line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let command = line.split('#').next().unwrap_or_default();
        let mut words = command.split_whitespace();
        if words.next() != Some(PROGRAM) {
            return Err(format!("{line:?} does not begin with {PROGRAM}"));
        }
        let (mut seed, mut is_calm, mut is_fencing, mut settings, mut faults) = (None, false, false, Vec::new(), None);
        while let Some(name) = words.next() {
            if name == "--calm" {
                is_calm = true;
                continue;
            }
            if name == "--fencing" {
                is_fencing = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{name} has no value"))?;
            match name {
                "--seed" => seed = Some(value.parse().map_err(|_| format!("{value:?} is no seed"))?),
                "--set" => settings.push(value),
                "--faults" => faults = Some(parse_faults(value)?),
                _ => return Err(format!("{name} has no place in a replay line")),
            }
        }
        let mut plan = Self::new(seed.ok_or("there is no --seed")?, is_calm);
        plan.is_fencing = is_fencing;
        plan.faults = faults;
        settings.into_iter().try_for_each(|setting| plan.options.set(setting))?;
        Ok(plan)
    }
}

/// Reads numbers of faults: `3,17`, or `none`.
///
/// # Errors
/// One is no number.
pub fn parse_faults(text: &str) -> Result<BTreeSet<u64>, String> {
    if text == "none" {
        return Ok(BTreeSet::new());
    }
    text.split(',').map(|number| number.parse().map_err(|_| format!("{number:?} is no number of a fault"))).collect()
}

/// The replay line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROGRAM}{} --seed {}", if self.is_fencing { " --fencing" } else { "" }, self.seed)?;
        let from_drawn = self.options.difference(&Options::drawn(self.seed));
        let from_calm = self.options.difference(&Options::calm());
        let is_calm = from_calm.len() < from_drawn.len();
        if is_calm {
            write!(f, " --calm")?;
        }
        for setting in if is_calm { from_calm } else { from_drawn } {
            write!(f, " --set {setting}")?;
        }
        if let Some(faults) = &self.faults {
            let numbers: Vec<String> = faults.iter().map(u64::to_string).collect();
            write!(f, " --faults {}", if numbers.is_empty() { "none".into() } else { numbers.join(",") })?;
        }
        write!(f, " # commit {}", COMMIT.unwrap_or("unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_written_and_read_again_is_the_same_plan() {
        let mut plan = Plan::new(7, false);
        assert_eq!(Plan::parse(&plan.to_string()), Ok(plan.clone()));
        plan = Plan::new(7, true);
        plan.faults = Some(BTreeSet::new());
        assert!(plan.to_string().starts_with("deadbolt-sim --seed 7 --calm --faults none # commit "), "{plan}");
        assert_eq!(Plan::parse(&plan.to_string()), Ok(plan.clone()));
        assert_eq!(Plan::parse(&Plan::fencing(7).to_string()), Ok(Plan::fencing(7)));
        plan.faults = Some(BTreeSet::from([3, 17]));
        assert!(plan.to_string().contains(" --faults 3,17 # commit "));
        assert_eq!(Plan::parse(&plan.to_string()), Ok(plan));
    }

    #[test]
    fn other_lines_are_refused() {
        for (line, why) in [
            ("", "does not begin"),
            ("deadbolt-sim", "no --seed"),
            ("deadbolt-sim --seed", "no value"),
            ("deadbolt-sim --seed x", "no seed"),
            ("deadbolt-sim --seed 1 --seeds 4", "no place"),
            ("deadbolt-sim --seed 1 --set nodes=99", "from 1 to 8"),
            ("deadbolt-sim --seed 1 --faults 1,,2", "no number of a fault"),
        ] {
            let error = Plan::parse(line).unwrap_err();
            assert!(error.contains(why), "{line:?}: {error}");
        }
    }
}
