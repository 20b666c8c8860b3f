//! What: asks the local deadboltd, by `deadbolt status`, whether this node is a member with quorum.
//! Owns: what the exit codes of that verb mean here.
//! Invariants: only the code for *quorate* is a yes.
//! Does not: read the daemon's status; its exit code says all of it.
//! Called by: `child`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use deadbolt_sbd_core::Opinion;

use super::child::{Answer, Asker, Options};
use super::tool::{ToolEnd, run_tool};

/// Asks deadboltd.
#[derive(Debug)]
pub(crate) struct DeadboltAsker {
    program: OsString,
    directory: PathBuf,
    limit: Duration,
}

impl DeadboltAsker {
    pub(crate) fn new(options: &Options) -> Self {
        // Programs of one installation stand side by side.
        let beside = std::env::current_exe().ok().map(|program| program.with_file_name("deadbolt")).filter(|program| program.is_file());
        Self {
            program: beside.map_or_else(|| "deadbolt".into(), PathBuf::into_os_string),
            directory: options.directory.clone().unwrap_or_default(),
            limit: 3 * options.interval(),
        }
    }
}

impl Asker for DeadboltAsker {
    fn ask(&mut self) -> Answer {
        let arguments = [OsStr::new("status"), OsStr::new("--dir"), self.directory.as_os_str()];
        judge(run_tool(&self.program, &arguments, self.limit))
    }
}

/// By docs/exit-codes.md.
fn judge(end: ToolEnd) -> Answer {
    match end {
        ToolEnd::Done { code: Some(0), .. } => Answer::new(Opinion::Healthy, "this node is a member with quorum"),
        ToolEnd::Done { code: Some(1), .. } => Answer::new(Opinion::Unhealthy, "deadboltd has no quorum"),
        ToolEnd::Done { code: Some(2), .. } => Answer::new(Opinion::Away, "no deadboltd answers"),
        ToolEnd::Done { code, .. } => Answer::new(Opinion::Unsure, format!("`deadbolt status` failed, exit code {code:?}")),
        ToolEnd::Hung => Answer::new(Opinion::Unsure, "`deadbolt status` did not answer in time"),
        ToolEnd::NotStarted { reason } => Answer::new(Opinion::Away, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quorate_is_healthy() {
        let done = |code| ToolEnd::Done { code, text: String::new() };
        let table = [
            (done(Some(0)), Opinion::Healthy),
            (done(Some(1)), Opinion::Unhealthy),
            (done(Some(2)), Opinion::Away),
            (done(Some(125)), Opinion::Unsure),
            (done(None), Opinion::Unsure),
            (ToolEnd::Hung, Opinion::Unsure),
            (ToolEnd::NotStarted { reason: String::new() }, Opinion::Away),
        ];
        for (end, expected) in table {
            assert_eq!(judge(end.clone()).opinion, expected, "{end:?}");
        }
    }
}
