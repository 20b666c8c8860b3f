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
                    run `deadbolt bench` with these words, optimised; `bench fence`: fences beside stock sbd's; `bench membership`: views,
                    partitions, deaths, corosync with the quorum disk (docs/benchmarks.md)
  torture [--seconds N] [--clients N] [--seed S] [ARGUMENT]...
                    real nodes and 64 clients under kill -9 for 300 seconds, optimised; needs root (`deadbolt torture run --help`)
  freezes [N]       a node's daemon or sbd stands still at 50 (or N) instants around a cut; needs root (tests/process/frozen.rs)
  stock [all]       what stock sbd does and what ours does in the same places, with the times measured; needs root and the package sbd
  stock qdevice     the quorum disk under real corosync: 200 cuts with a program stopped at any instant; needs root and the package corosync
  vm SCENARIO|all|list [--repeat N]
                    scenarios in virtual machines with the distribution's kernel; needs root and Debian (docs/vm.md)
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
        Some("freezes") => freezes(&rest),
        Some("stock") => stock(&rest),
        Some("vm") => vm(&rest),
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

/// Fences and membership are measured by programs of their own, which need the helpers of the tests.
fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let (program, packages, words): (_, &[&str], _) = match arguments.split_first() {
        Some((first, rest)) if first == "fence" => ("bench-fence", &["deadbolt-bench-fence", "deadbolt-sbd"], rest.to_vec()),
        Some((first, rest)) if first == "membership" => {
            ("bench-membership", &["deadbolt-bench-membership", "deadbolt-cluster", "deadbolt-sbd", "deadbolt-qdevice"], rest.to_vec())
        }
        _ => ("deadbolt", &["deadbolt", "deadbolt-cluster", "deadbolt-sbd"], [&["bench".to_owned()], arguments].concat()),
    };
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--bins"]);
    build.args(packages.iter().map(|package| format!("--package={package}")));
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
    let program = programs.join(program);
    let status = Command::new(&program).args(words).arg("--programs").arg(&programs).status();
    let status = status.with_context(|| format!("{} could not be started", program.display()))?;
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

fn freezes(arguments: &[String]) -> anyhow::Result<()> {
    let count = match arguments {
        [] => "50",
        [count] if count.parse::<u32>().is_ok_and(|count| count > 1) => count,
        other => bail!("freezes takes a number from 2 on, or nothing, not {other:?}"),
    };
    let mut command = cargo();
    command.args(["test", "--quiet", "--package", "deadbolt", "--test", "frozen", "--", "--nocapture"]);
    let status = command.env("DEADBOLT_FREEZES", count).status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("somebody acted beside the winner, or did not come back ({status})");
    }
    Ok(())
}

fn stock(arguments: &[String]) -> anyhow::Result<()> {
    let (variable, value, words): (_, _, &[&str]) = match arguments {
        [] => ("DEADBOLT_STOCK", "short", &STOCK),
        [all] if all == "all" => ("DEADBOLT_STOCK", "all", &STOCK),
        [device] if device == "qdevice" => ("DEADBOLT_QDEVICE", "200", &QDEVICE),
        other => bail!("stock takes \"all\", \"qdevice\" or nothing, not {other:?}"),
    };
    let mut command = cargo();
    command.args(["test", "--quiet"]).args(words).args(["--", "--nocapture"]);
    let status = command.env(variable, value).status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("stock and ours did not behave as they should ({status})");
    }
    Ok(())
}

const STOCK: [&str; 6] = ["--package", "deadbolt-sbd", "--test", "stock", "--test", "lab"];
const QDEVICE: [&str; 6] = ["--package", "deadbolt-qdevice", "--package", "deadbolt-qdevice-core", "--lib", "--tests"];

/// As the tests build it: a guest's clock is emulated, nothing here is measured for speed.
fn vm(arguments: &[String]) -> anyhow::Result<()> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "deadbolt", "--bin", "deadbolt", "--package", "deadbolt-vm", "--bin", "deadbolt-vm"]);
    let status = build.status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the programs could not be built ({status})");
    }
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "deadbolt-vm", "--bin", "deadbolt-vm", "--"]).args(arguments);
    let status = command.status().context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("not every scenario held ({status})");
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
