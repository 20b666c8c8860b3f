//! Tells the program which commit it is built from, for the lines that replay a run. Without git it does not know.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEADBOLT_COMMIT");
    if std::env::var_os("DEADBOLT_COMMIT").is_some() {
        return;
    }
    if let Some(heads) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={heads}");
    }
    if let Some(commit) = git(&["describe", "--always", "--abbrev=12"]) {
        println!("cargo::rustc-env=DEADBOLT_COMMIT={commit}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
