//! What: fence agents of other devices (power, hypervisor, fabric), called when a pill alone has proved nothing.
//! Owns: an agent's process group while it runs, its time limit, what counts as its word.
//! Invariants: the word is taken only when `off` ended with 0 and `status`, asked afterwards, ended with 2 (off); an agent that is out of
//!   time is killed with its whole process group before anything else.
//! Does not: decide whom to fence and when (membership); hold up the daemon's loop.
//! Called by: the daemon.

use crate::config::FenceAgent;
use crate::supervisor::tie_to_parent;
use deadbolt_disk_format::Life;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit},
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;

/// What `status` of a fence agent ends with when the machine is off (compatibility: the fence library's number).
const STATUS_OFF: i32 = 2;
/// How often a running agent is looked at. Chosen.
const LOOK: Duration = Duration::from_millis(20);
/// How much of what an agent says is kept.
const SAID_BYTES_MAX: usize = 1000;
/// Soft limit of descriptors that an agent starts with, the usual one: the daemon's own is larger.
const DESCRIPTORS: u64 = 1024;

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
    #[error("it cannot be started: {0}")]
    Start(std::io::Error),
    #[error("`{action}` did not end within {limit_s} s; it was killed")]
    Late { action: &'static str, limit_s: u32 },
    #[error("`{action}` ended with {status}, {expected} was needed{said}")]
    Refused { action: &'static str, status: String, expected: i32, said: String },
    #[error("waiting for it failed: {0}")]
    Wait(Errno),
}

/// How one action of an agent ended.
struct Ended {
    status: WaitStatus,
    said: String,
}

/// Calls the agent of a node, in a thread of its own; the answer comes by the channel in any case.
pub(crate) fn call(agents: &[FenceAgent], name: &str, victim: Life, now_ms: fn() -> u64, done: &UnboundedSender<AgentDone>) {
    let agent = agents.iter().find(|agent| agent.node.eq_ignore_ascii_case(name)).cloned();
    let done = done.clone();
    // The daemon may have ended meanwhile.
    let answer = move |off_at_ms| done.send(AgentDone { victim, off_at_ms }).unwrap_or_default();
    let Some(agent) = agent else { return answer(None) };
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
    let mut child = start(agent).map_err(AgentError::Start)?;
    let mut input = format!("action={action}\nnodename={}\n", agent.node);
    for (name, value) in &agent.parameters {
        input.push_str(&format!("{name}={value}\n"));
    }
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds (see the limit of the file); an agent that reads nothing may refuse it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stderr = child.stderr.take();
    let ended = watch(&child, stderr, Instant::now() + Duration::from_secs(u64::from(agent.timeout_s)));
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // Its first process is not reaped yet: the number is still that of this group.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    ended?.ok_or(AgentError::Late { action, limit_s: agent.timeout_s })
}

fn start(agent: &FenceAgent) -> std::io::Result<Child> {
    let mut command = Command::new(&agent.program);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let parent = nix::unistd::getpid().as_raw();
    let (soft, hard) = getrlimit(RLIMIT_NOFILE)?;
    let hook = move || {
        tie_to_parent(parent, Signal::SIGKILL)?;
        Ok(setrlimit(RLIMIT_NOFILE, soft.min(DESCRIPTORS), hard)?)
    };
    // SAFETY: the hook makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
    command.spawn()
}

/// Waits for the end without reaping; none when the time is over.
fn watch(child: &Child, mut stderr: Option<ChildStderr>, end: Instant) -> Result<Option<Ended>, AgentError> {
    if let Some(stderr) = &stderr {
        fcntl(stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(AgentError::Wait)?;
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let mut said = Vec::new();
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let status = waitid(Id::Pid(pid), flags).map_err(AgentError::Wait)?;
        if let Some(stderr) = &mut stderr {
            listen(stderr, &mut said);
        }
        if status != WaitStatus::StillAlive {
            let said = String::from_utf8_lossy(&said);
            let said = if said.trim().is_empty() { String::new() } else { format!("; it said: {}", said.trim()) };
            return Ok(Some(Ended { status, said }));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes what is there, so that the pipe never fills; keeps the beginning.
fn listen(stderr: &mut ChildStderr, said: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    // Bounded: an agent that never stops talking must not keep the clock from being looked at.
    for _ in 0..64 {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let room = SAID_BYTES_MAX.saturating_sub(said.len()).min(count);
                said.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Incarnation, SlotIndex};
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

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
