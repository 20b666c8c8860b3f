//! What: project chores: `cargo xtask <verb>`.
//! Owns: the list of verbs; each is one function.
//! Invariants: a chore that did not do its work ends with an error.
//! Does not: build what `cargo build` builds; it calls cargo.
//! Called by: people and the nightly checks.

#![allow(clippy::print_stdout)] // A program for a person's terminal.

mod fuzz;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

const USAGE: &str = "usage: cargo xtask <verb>

verbs:
  models [FILTER]   run every model (or those whose name contains FILTER) to its full horizon, in release
  sim [ARGUMENT]... run 20000 seeds of the simulator, or what these arguments of deadbolt-sim say, optimised
  bench BENCHMARK [ARGUMENT]...
                    run `deadbolt bench` with these words, optimised
  torture [--seconds N] [--clients N] [--seed S] [ARGUMENT]...
                    real nodes and 64 clients under kill -9 for 300 seconds, optimised; needs root (`deadbolt torture run --help`)
  fuzz [TARGET] [SECONDS]
                    run every fuzz target (or that one), each for 60 seconds (or that many); needs cargo-fuzz
  tidy              check that sources are ASCII, begin with their heads, are small, and carry no marks of unfinished work";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match verb.as_deref() {
        Some("models") => models(&rest),
        Some("sim") => sim(&rest),
        Some("bench") => bench(&rest),
        Some("torture") => torture(&rest),
        Some("fuzz") => fuzz::fuzz(&root()?, &rest),
        Some("tidy") => tidy(),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        Some(other) => bail!("unknown verb {other}\n{USAGE}"),
        None => bail!("no verb given\n{USAGE}"),
    }
}

fn models(filter: &[String]) -> anyhow::Result<()> {
    let status = cargo()
        .args(["run", "--quiet", "--release", "--package", "deadbolt-models", "--bin", "models", "--", "--full"])
        .args(filter)
        .status()
        .context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the models did not give their expected verdicts ({status})");
    }
    Ok(())
}

/// What a simulation runs if nothing is said.
const SEEDS: [&str; 2] = ["--seeds", "20000"];

fn sim(arguments: &[String]) -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--profile", "sim", "--package", "deadbolt-simulator", "--bin", "deadbolt-sim", "--"]);
    if arguments.is_empty() {
        command.args(SEEDS)
    } else {
        command.args(arguments)
    };
    let status = command.status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the simulator did not end with \"every promise held\" ({status})");
    }
    Ok(())
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--bins"]);
    build.args(["deadbolt", "deadbolt-cluster", "deadbolt-sbd"].map(|package| format!("--package={package}")));
    let status = build.status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the programs could not be built ({status})");
    }
    // As cargo finds it: by the variable, seen from here, else at the root, wherever this was called.
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => std::path::absolute(target)?,
        None => root()?.join("target"),
    };
    let programs = target.join("release");
    let mut command = std::process::Command::new(programs.join("deadbolt"));
    command.arg("bench").args(arguments).arg("--programs").arg(&programs);
    let status = command.status().with_context(|| format!("{} could not be started", programs.join("deadbolt").display()))?;
    if !status.success() {
        bail!("not everything could be measured ({status})");
    }
    Ok(())
}

fn torture(arguments: &[String]) -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "deadbolt", "--bin", "deadbolt", "--", "torture", "run"]).args(arguments);
    let status = command.status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the run did not end with the verdict \"held\" ({status})");
    }
    Ok(())
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn root() -> anyhow::Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().context("the root of the workspace")
}

fn tidy() -> anyhow::Result<()> {
    let (files, findings) = tidy::check_tree(&root()?)?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings in {files} files", findings.len());
    }
    println!("tidy: {files} files, nothing to say");
    Ok(())
}
