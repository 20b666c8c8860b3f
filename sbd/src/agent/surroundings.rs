//! What: what this machine says about its own sbd: its configuration file and its process.
//! Owns: how SBD_* values are found: the environment, then the files that the unit of sbd reads.
//! Invariants: reads only; a process counts as sbd only when its command line says so.
//! Does not: judge a device.
//! Called by: the agent's input and its monitor.

use std::path::Path;

/// Files that hold the environment of sbd, by distribution; the first one that sets a value counts.
pub(super) const FILES: [&str; 2] = ["/etc/sysconfig/sbd", "/etc/default/sbd"];
/// Where sbd leaves the number of its process (compatibility).
const PIDFILE: &str = "/run/sbd.pid";

/// A value of the environment, or of one of the files.
pub(super) fn value_of(key: &str) -> Option<String> {
    let from_files = || FILES.iter().find_map(|file| assigned(&std::fs::read_to_string(file).ok()?, key));
    std::env::var(key).ok().filter(|value| !value.is_empty()).or_else(from_files)
}

/// The last value that a file of shell assignments gives to a key; none when it is empty.
fn assigned(text: &str, key: &str) -> Option<String> {
    let of_line = |line: &str| {
        let line = line.trim();
        let value = line.strip_prefix("export ").unwrap_or(line).trim_start().strip_prefix(key)?.strip_prefix('=')?;
        let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.split(quote).next());
        Some(quoted.unwrap_or_else(|| value.split([' ', '\t', '#']).next().unwrap_or_default()).to_owned())
    };
    text.lines().filter_map(of_line).next_back().filter(|value| !value.is_empty())
}

/// Does the sbd of this machine run? The reason when not.
pub(super) fn check_sbd_runs() -> Result<(), String> {
    let pidfile = value_of("SBD_PIDFILE").unwrap_or_else(|| PIDFILE.to_owned());
    check_process(Path::new(&pidfile), Path::new("/proc"))
}

fn check_process(pidfile: &Path, proc: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(pidfile).map_err(|error| format!("{}: {error}", pidfile.display()))?;
    let pid: u32 = text.trim().parse().map_err(|_| format!("{} holds no number of a process", pidfile.display()))?;
    let line = std::fs::read(proc.join(pid.to_string()).join("cmdline"));
    let line = line.map_err(|_| format!("process {pid} of {} is gone", pidfile.display()))?;
    // Stock writes "sbd: inquisitor" over its first word; ours is started under the name sbd.
    let program = String::from_utf8_lossy(line.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let is_sbd = program.starts_with("sbd:") || program.rsplit('/').next() == Some("sbd");
    if is_sbd { Ok(()) } else { Err(format!("process {pid} of {} is {program:?}, not sbd", pidfile.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_as_a_shell_would() {
        let text = "# SBD_DEVICE=/dev/no\nSBD_DEVICE=/dev/first\n export SBD_DEVICE=\"/dev/a;/dev/b\" # remark\nSBD_OPTS=\nSBD_PIDFILE='/run/x y'\nA=1 # b\n";
        let value = |key| assigned(text, key);
        assert_eq!(value("SBD_DEVICE").as_deref(), Some("/dev/a;/dev/b"));
        assert_eq!(value("SBD_PIDFILE").as_deref(), Some("/run/x y"));
        assert_eq!(value("A").as_deref(), Some("1"));
        assert_eq!((value("SBD_OPTS"), value("SBD"), value("SBD_DEV")), (None, None, None));
    }

    #[test]
    fn a_process_is_sbd_only_by_its_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let pidfile = folder.path().join("sbd.pid");
        let check = |number: &str, line: Option<&[u8]>| {
            std::fs::write(&pidfile, number).unwrap();
            let place = folder.path().join("77");
            let _ = std::fs::remove_dir_all(&place);
            if let Some(line) = line {
                std::fs::create_dir(&place).unwrap();
                std::fs::write(place.join("cmdline"), line).unwrap();
            }
            check_process(&pidfile, folder.path())
        };
        assert!(check("        77\n", Some(b"sbd: inquisitor\0")).is_ok());
        assert!(check("77", Some(b"/usr/sbin/sbd\0watch\0")).is_ok());
        for (number, line) in [("77", None), ("77", Some(&b"sbdx\0"[..])), ("77", Some(b"")), ("x", Some(b"sbd\0")), ("", None)] {
            assert!(check(number, line).is_err(), "{number:?} {line:?}");
        }
        assert!(check_process(Path::new("/nonexistent"), folder.path()).is_err());
    }
}
