//! What: fence agents of other devices (power, hypervisor, fabric), called when a pill alone has proved nothing.
//! Owns: what counts as an agent's word.
//! Invariants: the word is taken only when `off` ended with 0 and `status`, asked afterwards, ended with 2 (off).
//! Does not: decide whom to fence and when (membership); hold up the daemon's loop.
//! Called by: the daemon.

use crate::{
    commands::{self, Ended, RunError},
    config::FenceAgent,
};
use deadbolt_disk_format::Life;
use nix::sys::wait::WaitStatus;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// What `status` of a fence agent ends with when the machine is off (compatibility: the fence library's number).
const STATUS_OFF: i32 = 2;

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AgentDone {
    /// For whom.
    pub(crate) victim: Life,
    /// When the machine had been seen off, ms; none: nothing is proved.
    pub(crate) off_at_ms: Option<u64>,
}

/// Why an agent's word is not taken.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("`{action}`: {error}")]
    Run { action: &'static str, error: RunError },
    #[error("`{action}` ended with {status}, {expected} was needed{said}")]
    Refused { action: &'static str, status: String, expected: i32, said: String },
}

/// Calls the agent of a node, in a thread of its own; the answer comes by the channel in any case.
pub(crate) fn call(agents: &[FenceAgent], name: &str, victim: Life, now_ms: fn() -> u64, done: &UnboundedSender<AgentDone>) {
    let agent = agents.iter().find(|agent| agent.node.eq_ignore_ascii_case(name)).cloned();
    let done = done.clone();
    // The daemon may have ended meanwhile.
    let answer = move |off_at_ms| done.send(AgentDone { victim, off_at_ms }).unwrap_or_default();
    let Some(agent) = agent else {
        if !agents.is_empty() {
            tracing::error!(node = name, "no fence agent under this name in node.toml: after a renaming it has to follow there");
        }
        return answer(None);
    };
    let fail = answer.clone();
    let body = move || {
        tracing::warn!(node = %agent.node, program = %agent.program.display(), "the fence agent is called");
        let off = put_off(&agent);
        answer(off.is_ok().then(now_ms));
        match off {
            Err(error) => tracing::error!(node = %agent.node, %error, "the fence agent proves nothing"),
            Ok(()) if agent.power_on => power_on(&agent),
            Ok(()) => {}
        }
    };
    if let Err(error) = std::thread::Builder::new().name("fence-agent".into()).spawn(body) {
        tracing::error!(%error, "no thread for the fence agent");
        fail(None);
    }
}

/// Puts the machine out of action, and asks whether it is.
fn put_off(agent: &FenceAgent) -> Result<(), AgentError> {
    for (action, expected) in [("off", 0), ("status", STATUS_OFF)] {
        let ended = run(agent, action)?;
        if !matches!(ended.status, WaitStatus::Exited(_, code) if code == expected) {
            let status = match ended.status {
                WaitStatus::Exited(_, code) => format!("code {code}"),
                other => format!("{other:?}"),
            };
            return Err(AgentError::Refused { action, status, expected, said: ended.said });
        }
    }
    Ok(())
}

/// Nothing depends on it but the machine's return.
fn power_on(agent: &FenceAgent) {
    match run(agent, "on") {
        Ok(Ended { status: WaitStatus::Exited(_, 0), .. }) => tracing::info!(node = %agent.node, "the fence agent has powered it on"),
        Ok(ended) => tracing::warn!(node = %agent.node, status = ?ended.status, said = ended.said, "it was not powered on"),
        Err(error) => tracing::warn!(node = %agent.node, %error, "it was not powered on"),
    }
}

fn run(agent: &FenceAgent, action: &'static str) -> Result<Ended, AgentError> {
    let mut input = format!("action={action}\nnodename={}\n", agent.node);
    for (name, value) in &agent.parameters {
        input.push_str(&format!("{name}={value}\n"));
    }
    let limit = Duration::from_secs(u64::from(agent.timeout_s));
    commands::run(&agent.program, &[], &input, limit).map_err(|error| AgentError::Run { action, error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Incarnation, SlotIndex};
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    const LOOK: Duration = Duration::from_millis(20);

    const VICTIM: Life = Life { slot: SlotIndex(1), boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) };

    /// An agent that is a shell script; `$action` and `$plug` are set.
    fn agent(folder: &Path, script: &str) -> FenceAgent {
        let program = folder.join("fence_test");
        let head =
            "#!/bin/sh\nwhile IFS== read -r name value; do case $name in action|plug|nodename) eval \"$name=\\$value\";; esac; done\n";
        std::fs::write(&program, format!("{head}cd {}\necho \"$action\" >> called\n{script}\n", folder.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let parameters = BTreeMap::from([("plug".to_owned(), "outlet 2".to_owned())]);
        FenceAgent { node: "beta".into(), program, parameters, timeout_s: 5, power_on: false }
    }

    fn called(agents: &[FenceAgent], name: &str) -> (AgentDone, Duration) {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let began = Instant::now();
        call(agents, name, VICTIM, || 77, &sender);
        (receiver.blocking_recv().unwrap(), began.elapsed())
    }

    fn word(agent: &FenceAgent) -> Option<u64> {
        let done = called(std::slice::from_ref(agent), "BETA").0;
        assert_eq!(done.victim, VICTIM);
        done.off_at_ms
    }

    fn calls(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("called")).unwrap_or_default()
    }

    #[test]
    fn off_and_a_status_of_off_are_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let good = agent(
            folder.path(),
            "case $action in off) [ \"$plug/$nodename\" = 'outlet 2/beta' ] && touch off;; status) [ ! -e off ] || exit 2;; on) rm off;; esac",
        );
        assert_eq!(word(&good), Some(77));
        assert_eq!(calls(folder.path()), "off\nstatus\n");
        // Powered on again only after its word was given.
        assert_eq!(word(&FenceAgent { power_on: true, ..good }), Some(77));
        let end = Instant::now() + Duration::from_secs(5);
        while folder.path().join("off").exists() {
            assert!(Instant::now() < end, "it stays off");
            std::thread::sleep(LOOK);
        }
        assert_eq!(calls(folder.path()), "off\nstatus\noff\nstatus\non\n");
    }

    #[test]
    fn anything_else_is_none() {
        for (script, expected) in [
            // Success claimed, the machine is on.
            ("exit 0", "off\nstatus\n"),
            ("[ $action = off ] || exit 1", "off\nstatus\n"),
            ("[ $action = off ] || kill -9 $$", "off\nstatus\n"),
            // Refused: what the status says does not count.
            ("[ $action = status ] || exit 1; exit 2", "off\n"),
            ("exit 2", "off\n"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(word(&agent(folder.path(), script)), None, "{script}");
            assert_eq!(calls(folder.path()), expected, "{script}");
        }
        let folder = tempfile::tempdir().unwrap();
        let missing = FenceAgent { program: PathBuf::from("/nonexistent"), ..agent(folder.path(), "") };
        assert_eq!(word(&missing), None);
        assert_eq!(called(&[], "beta").0.off_at_ms, None);
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let slow = FenceAgent { timeout_s: 1, ..agent(folder.path(), "sleep 300 & echo $! > child; wait") };
        let (done, took) = called(&[slow], "beta");
        assert_eq!(done.off_at_ms, None);
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        // It was sent the kill before the word came; the kernel carries it out when the process runs next.
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z") {
                break;
            }
            assert!(Instant::now() < end, "the grandchild lives: {stat}");
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn what_it_says_is_told_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let talker = agent(folder.path(), "echo wrong password >&2; head -c 1000000 /dev/zero >&2; exit 1");
        let error = put_off(&talker).unwrap_err().to_string();
        assert!(error.starts_with("`off` ended with code 1, 0 was needed; it said: wrong password"), "{}", &error[..80]);
        assert!(error.len() < 2000);
    }
}
