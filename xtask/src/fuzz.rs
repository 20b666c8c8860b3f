//! What: `cargo xtask fuzz`: runs the fuzz targets, one after the other.
//! Owns: how cargo-fuzz is called, where new inputs and findings go: below `target/fuzz`, never into the kept corpus.
//! Invariants: a target that found something, or could not run, makes the whole run fail; the others still run.
//! Does not: install cargo-fuzz, or keep inputs (docs/testing.md says how a person does).
//! Called by: people and the nightly checks.

use std::{path::Path, process::Command};

use anyhow::{Context, bail};

/// Long enough to leave the beginning, short enough for all targets in an hour.
const SECONDS_DEFAULT: u32 = 60;

/// Runs one target, or all of them; each for so many seconds.
pub(crate) fn fuzz(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let all = targets(root)?;
    let (names, seconds) = chosen(&all, arguments)?;
    let is_installed = cargo().args(["fuzz", "--version"]).output().is_ok_and(|output| output.status.success());
    if !is_installed {
        bail!("cargo-fuzz is not installed; run `cargo install cargo-fuzz --locked` once");
    }
    let mut failed = Vec::new();
    for name in names {
        println!("== {name}, {seconds} s");
        if let Err(error) = run(root, &name, seconds) {
            println!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; the inputs lie in target/fuzz/findings", failed.join(", "));
    }
    Ok(())
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The instrumentation is an unstable flag of the compiler; the tree stays on the stable one.
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Names of all targets: one program each.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// `[TARGET] [SECONDS]`, each left out or not.
fn chosen(all: &[String], arguments: &[String]) -> anyhow::Result<(Vec<String>, u32)> {
    let (mut names, mut seconds) = (all.to_vec(), SECONDS_DEFAULT);
    for argument in arguments {
        if let Ok(number) = argument.parse() {
            seconds = number;
        } else if all.contains(argument) {
            names = vec![argument.clone()];
        } else {
            bail!("no fuzz target {argument}; there are: {}", all.join(", "));
        }
    }
    Ok((names, seconds))
}

fn run(root: &Path, name: &str, seconds: u32) -> anyhow::Result<()> {
    let folder = |kind: &str| root.join("target/fuzz").join(kind).join(name);
    let (grown, findings) = (folder("corpus"), folder("findings"));
    for folder in [&grown, &findings] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    // Safe code needs no address sanitizer; without it a target runs several times as often.
    let status = cargo()
        .current_dir(root)
        .args(["fuzz", "run", "--sanitizer", "none", "--target-dir", "target/fuzz", name])
        .args([&grown, &root.join("fuzz/corpus").join(name)])
        .args(["--", &format!("-max_total_time={seconds}"), "-max_len=6000", "-timeout=10", "-malloc_limit_mb=64"])
        .args(["-verbosity=0", "-print_final_stats=1", &format!("-artifact_prefix={}/", findings.display())])
        .status()
        .context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn a_target_and_a_time_are_chosen_or_left_out() {
        let all = ["beat".to_owned(), "vote".to_owned()];
        let chosen = |arguments: &[&str]| chosen(&all, &arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(chosen(&[]).unwrap(), (all.to_vec(), 60));
        assert_eq!(chosen(&["vote"]).unwrap(), (vec!["vote".to_owned()], 60));
        assert_eq!(chosen(&["5"]).unwrap(), (all.to_vec(), 5));
        assert_eq!(chosen(&["beat", "7"]).unwrap(), (vec!["beat".to_owned()], 7));
        assert!(chosen(&["bet"]).unwrap_err().to_string().contains("beat, vote"));
    }
}
