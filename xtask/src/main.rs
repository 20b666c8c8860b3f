//! What: project chores: `cargo xtask <verb>`.
//! Owns: the list of verbs; each is one function.
//! Invariants: a chore that did not do its work ends with an error.
//! Does not: build what `cargo build` builds; it calls cargo.
//! Called by: people and the nightly checks.

#![allow(clippy::print_stdout)] // A program for a person's terminal.

use std::process::Command;

use anyhow::{Context, bail};

const USAGE: &str = "usage: cargo xtask <verb>

verbs:
  models [FILTER]   run every model (or those whose name contains FILTER) to its full horizon, in release";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match verb.as_deref() {
        Some("models") => models(&rest),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        Some(other) => bail!("unknown verb {other}\n{USAGE}"),
        None => bail!("no verb given\n{USAGE}"),
    }
}

fn models(filter: &[String]) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "deadbolt-models", "--bin", "models", "--", "--full"])
        .args(filter)
        .status()
        .context("cargo could not be started; is it in the path?")?;
    if !status.success() {
        bail!("the models did not give their expected verdicts ({status})");
    }
    Ok(())
}
