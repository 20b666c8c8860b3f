//! What: memory of processes, and what the machine has left.
//! Owns: reading /proc.
//! Invariants: bytes.
//! Does not: measure by counting allocations: what counts is what the machine has less of.
//! Called by: floors and measurements of memory.

use anyhow::{Context, Result};

fn field(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path} has no line {name}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{path}: {name}{line}"))?;
    Ok(kib * 1024)
}

/// Resident bytes of a process.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Bytes of a process, each shared one divided by its users.
///
/// # Errors
/// No such process, or it is another user's.
pub fn proportional(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Resident bytes of this process.
pub(crate) fn own_resident() -> Result<u64> {
    resident(std::process::id())
}

/// Bytes that programs can still have without pushing others out.
pub(crate) fn available() -> Result<u64> {
    field("/proc/meminfo", "MemAvailable:")
}
