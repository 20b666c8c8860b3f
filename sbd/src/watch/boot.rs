//! What: which life of the machine this is.
//! Owns: the boot of a node that lives in a PID namespace: there the namespace is the machine, reboot(2) ends it.
//! Invariants: two lives never have the same boot; all processes of one life read the same.
//! Does not: number lives; kernel and namespace do.
//! Called by: the watcher; the key of this node's reservations.

use std::io;
use std::os::unix::fs::MetadataExt;

use deadbolt_disk_format::BootId;
use sha2::{Digest, Sha256};

/// Inode of the first PID namespace (PROC_PID_INIT_INO).
const FIRST_PID_NAMESPACE: u64 = 4_026_531_836;

/// The boot of the kernel.
pub(crate) fn kernel_boot() -> io::Result<BootId> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = kernel.trim().chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).map_err(|error| io::Error::other(format!("{kernel:?}: {error}")))?;
    Ok(BootId(number.to_be_bytes()))
}

/// The boot of this machine, or of the PID namespace that stands for one.
pub(crate) fn machine_boot() -> io::Result<BootId> {
    let kernel = kernel_boot()?;
    let namespace = std::fs::metadata("/proc/self/ns/pid")?.ino();
    if namespace == FIRST_PID_NAMESPACE {
        return Ok(kernel);
    }
    let mut hash = Sha256::new();
    hash.update(kernel.0);
    hash.update(namespace.to_be_bytes());
    // The inode of a namespace that has ended may be given out again: its first process began at another time.
    hash.update(begin_of(1)?.as_bytes());
    let mut boot = [0; 16];
    boot.copy_from_slice(&hash.finalize()[..16]);
    Ok(BootId(boot))
}

/// When a process began, in ticks since the kernel's boot: field 22 of its stat, behind a name that may hold anything.
fn begin_of(process: u32) -> io::Result<String> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path)?;
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field.map(str::to_owned).ok_or_else(|| io::Error::other(format!("{path} has no start time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_one_boot() {
        let boot = machine_boot().unwrap();
        assert_eq!(machine_boot().unwrap(), boot);
        assert_ne!(boot, BootId([0; 16]));
        assert!(begin_of(std::process::id()).unwrap().bytes().all(|digit| digit.is_ascii_digit()));
    }
}
