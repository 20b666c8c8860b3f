//! What: the wishes of `init` for the first view, kept in the node directory until that view is decided.
//! Owns: the file `initial.toml`.
//! Invariants: used only on a device where nobody was ever in.
//! Does not: change a running cluster's configuration (views do).
//! Called by: `init` and the daemon.

use crate::config::{NodeFile, write_private};
use anyhow::{Context, Result};
use deadbolt_disk_format::{Configuration, NodeEntry, SlotIndex, Superblock};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `init` was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialWishes {
    /// Votes of the first node.
    #[serde(default = "one")]
    pub votes: u16,
    /// Votes of the disk; none: they follow the number of nodes.
    #[serde(default)]
    pub disk_votes: Option<u16>,
    /// Addresses under which the others reach the first node; empty: those that it binds.
    #[serde(default)]
    pub announced: Vec<String>,
}

const fn one() -> u16 {
    1
}

/// Writes the wishes.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, wishes: &InitialWishes) -> Result<()> {
    // Whole or not at all: half a file would be other wishes.
    Ok(write_private(path, &toml::to_string(wishes)?)?)
}

/// Reads the wishes and makes the first configuration of them.
///
/// # Errors
/// The file is not valid.
pub fn read(path: &Path, superblock: &Superblock, file: &NodeFile) -> Result<Configuration> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let wishes: InitialWishes = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let addresses = if wishes.announced.is_empty() { file.addresses.clone() } else { wishes.announced };
    Ok(Configuration {
        version: 1,
        disk_votes: wishes.disk_votes.unwrap_or(0),
        disk_votes_pinned: wishes.disk_votes.is_some(),
        format_level: 1,
        timings: superblock.timings,
        nodes: vec![NodeEntry { slot: SlotIndex(0), votes: wishes.votes, name: file.name.clone(), addresses }],
    })
}
