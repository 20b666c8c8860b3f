//! What: the program `deadbolt-vm`: runs scenarios in virtual machines.
//! Owns: its command line.
//! Invariants: ends well only if every scenario that was asked for held.
//! Does not: build anything but the guests' image.
//! Called by: `cargo xtask vm`.

use anyhow::{Context, Result, bail};
use clap::Parser;
use deadbolt_vm::{
    say,
    scenarios::{ALL, Setup},
};
use std::{path::PathBuf, time::Instant};

/// Run scenarios in virtual machines with the distribution's own kernel.
#[derive(Debug, Parser)]
#[command(name = "deadbolt-vm", arg_required_else_help = true)]
struct Arguments {
    /// Names of scenarios, `all`, or `list`
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// How often what is random is tried
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Folder with the built program `deadbolt` [default: where this program lies]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.scenarios == ["list"] {
        for scenario in ALL {
            say(&format!("{:<12} {}", scenario.name, scenario.shows));
        }
        return Ok(());
    }
    let here = || std::env::current_exe().ok()?.parent().map(Into::into);
    let programs = arguments.programs.or_else(here).context("where the programs are; say --programs")?;
    let programs = programs.canonicalize().with_context(|| programs.display().to_string())?;
    if !programs.join("deadbolt").exists() {
        bail!("{} has no program deadbolt; build it (cargo xtask vm does), or say --programs", programs.display());
    }
    let setup = Setup { programs, repeat: arguments.repeat };
    let is_wanted = |name: &str| arguments.scenarios.iter().any(|wanted| wanted == name || wanted == "all");
    if let Some(unknown) = arguments.scenarios.iter().find(|name| *name != "all" && !ALL.iter().any(|known| known.name == *name)) {
        bail!("no scenario {unknown}; there are: {}", ALL.iter().map(|known| known.name).collect::<Vec<_>>().join(", "));
    }
    let mut failed = Vec::new();
    for scenario in ALL.iter().filter(|scenario| is_wanted(scenario.name)) {
        let begin = Instant::now();
        say(&format!("== {}: {}", scenario.name, scenario.shows));
        match (scenario.run)(&setup) {
            Ok(()) => say(&format!("== {}: held, {:.0} s", scenario.name, begin.elapsed().as_secs_f64())),
            Err(error) => {
                say(&format!("== {}: FAILED after {:.0} s: {error:#}", scenario.name, begin.elapsed().as_secs_f64()));
                failed.push(scenario.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
