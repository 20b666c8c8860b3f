//! What: one run of a command-line tool, bounded in time and in what it may print.
//! Owns: the tool's process until its end.
//! Invariants: a tool that does not end in time is killed by its process id; it ends with this process; it gets no descriptor of ours.
//! Does not: understand what the tool prints.
//! Called by: the askers that have no other way to ask.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Longest output that is taken in. Chosen: many times what a cluster of thousands of resources prints.
const OUTPUT_MAX: usize = 16 << 20;
/// How often a tool that has closed its output is looked at until it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ToolEnd {
    /// It ended.
    Done {
        /// Its exit code; none when a signal ended it.
        code: Option<i32>,
        /// What it printed.
        text: String,
    },
    /// It did not end in time, or printed without end, and was killed.
    Hung,
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
}

/// Runs a tool, for no longer than `limit`.
pub(crate) fn run_tool(program: impl AsRef<OsStr>, arguments: &[&OsStr], limit: Duration) -> ToolEnd {
    let program = program.as_ref();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A daemon may have been started with a path for users only.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin"));
    // SAFETY: between fork and exec only one system call is made, which needs no memory.
    unsafe {
        command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return ToolEnd::NotStarted { reason: format!("{}: {error}", program.to_string_lossy()) },
    };
    let end = follow(&mut child, Instant::now() + limit);
    if end.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    end.unwrap_or(ToolEnd::Hung)
}

/// Reads until the tool has ended; nothing when that takes too long.
fn follow(child: &mut Child, end: Instant) -> Option<ToolEnd> {
    let mut output = child.stdout.take()?;
    let mut bytes = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left).ok()? == 0 {
            return None;
        }
        match output.read(&mut piece).ok()? {
            0 => break,
            length => bytes.extend_from_slice(&piece[..length]),
        }
        if bytes.len() > OUTPUT_MAX {
            return None;
        }
    }
    loop {
        if let Some(status) = child.try_wait().ok()? {
            return Some(ToolEnd::Done { code: status.code(), text: String::from_utf8_lossy(&bytes).into_owned() });
        }
        end.checked_duration_since(Instant::now())?;
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str, limit: Duration) -> ToolEnd {
        run_tool("sh", &[OsStr::new("-c"), OsStr::new(line)], limit)
    }

    #[test]
    fn output_and_code_are_those_of_the_tool() {
        let long = Duration::from_secs(20);
        let done = |code, text: &str| ToolEnd::Done { code, text: text.into() };
        assert_eq!(shell("echo a; echo b >&2; exit 3", long), done(Some(3), "a\n"));
        assert_eq!(shell("kill -9 $$", long), done(None, ""));
        assert_eq!(shell("exec >&-; exit 0", long), done(Some(0), ""));
        assert!(matches!(run_tool("/nonexistent/tool", &[], long), ToolEnd::NotStarted { .. }));
    }

    #[test]
    fn a_hung_tool_is_killed_in_time() {
        let began = Instant::now();
        for line in ["echo a; exec sleep 1000", "exec >&-; exec sleep 1000", "exec cat /dev/zero"] {
            assert_eq!(shell(line, Duration::from_millis(200)), ToolEnd::Hung, "{line}");
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
