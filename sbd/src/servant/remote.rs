//! What: looks for pacemaker-remote, which stands for a whole cluster on a node that has no corosync.
//! Owns: which process it is.
//! Invariants: a process is that program by its executable, not by a name that anybody may take.
//! Does not: talk to it.
//! Called by: `cluster`.

use std::path::{Path, PathBuf};

use deadbolt_sbd_core::Opinion;

use super::child::Answer;

/// Names of the program, of Pacemaker 2 and 1.
const PROGRAMS: [&str; 2] = ["pacemaker-remoted", "pacemaker_remoted"];

/// The process that was found.
#[derive(Debug, Default)]
pub(crate) struct RemoteWatch {
    process: Option<PathBuf>,
}

impl RemoteWatch {
    /// What its presence says; nothing where it never was.
    pub(crate) fn look(&mut self) -> Option<Answer> {
        if let Some(process) = self.process.take_if(|process| !is_remote(process)) {
            return Some(Answer::new(Opinion::Unhealthy, format!("pacemaker-remote, {}, has ended", process.display())));
        }
        if self.process.is_none() {
            self.process = find(Path::new("/proc"));
        }
        let process = self.process.as_ref()?;
        Some(Answer::new(Opinion::Healthy, format!("pacemaker-remote runs, {}", process.display())))
    }
}

/// Executed from a file of that name, in whatever directory a distribution has it; or from one that was replaced since.
fn is_remote(process: &Path) -> bool {
    let Ok(program) = std::fs::read_link(process.join("exe")) else { return false };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    PROGRAMS.contains(&name.strip_suffix(" (deleted)").unwrap_or(&name))
}

fn find(processes: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(processes).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_number = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    entries.filter(is_number).find(|process| is_remote(process))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn it_is_seen_while_it_runs_and_missed_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("pacemaker-remoted");
        std::fs::copy("/bin/cat", &program).unwrap();
        let mut child = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(is_remote(&process) && !is_remote(Path::new("/proc/self")));
        let mut watch = RemoteWatch { process: Some(process) };
        assert_eq!(watch.look().unwrap().opinion, Opinion::Healthy);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(watch.look().unwrap().opinion, Opinion::Unhealthy);
    }
}
