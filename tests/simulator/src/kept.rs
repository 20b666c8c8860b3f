//! What: kept seeds: files that say why a seed is kept, and how it is replayed.
//! Owns: their form: a head of lines that begin with `#`, then one replay line.
//! Invariants: a file without a reason, or with more than one run, is refused.
//! Does not: open files.
//! Called by: the test that replays them.

use crate::Plan;

/// A kept seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// What it broke, and what was mended.
    pub why: String,
    /// What is run.
    pub plan: Plan,
}

impl Kept {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let why: Vec<&str> = lines().filter_map(|line| line.strip_prefix('#')).map(str::trim).collect();
        let why = why.join(" ");
        if why.is_empty() {
            return Err("it does not say why the seed is kept".into());
        }
        let runs: Vec<&str> = lines().filter(|line| !line.starts_with('#')).collect();
        match runs[..] {
            [line] => Ok(Self { why, plan: Plan::parse(line)? }),
            _ => Err(format!("it has {} replay lines instead of one", runs.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_seed_has_a_reason_and_one_run() {
        let kept = Kept::parse("# S12: a value\n# fell back\n\ndeadbolt-sim --seed 3 --calm # commit abc\n").unwrap();
        assert_eq!(kept, Kept { why: "S12: a value fell back".into(), plan: Plan::new(3, true) });
        for (text, why) in [
            ("deadbolt-sim --seed 3", "why"),
            ("# a", "0 replay lines"),
            ("# a\ndeadbolt-sim --seed 3\ndeadbolt-sim --seed 4", "2 replay lines"),
            ("# a\ndeadbolt-sim --seed", "no value"),
        ] {
            assert!(Kept::parse(text).unwrap_err().contains(why), "{text}");
        }
    }
}
