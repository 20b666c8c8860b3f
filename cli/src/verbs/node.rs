//! What: `deadbolt start`, `stop` and `leave`.
//! Owns: the detached start of a supervisor, the wait for its effect.
//! Invariants: "started" means a daemon that answers; "member" means that it says so; "stopped" means that the supervisor is gone.
//! Does not: supervise.
//! Called by: the verbs, `init`, `join`.

use super::{EXIT_FAILED, EXIT_OK, NodeArguments};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::ask::{AskError, ask};
use deadbolt_cluster::{config::NodeDirectory, devices, look::newest_view_on, program::program, supervisor};
use deadbolt_disk::Access;
use serde_json::{Value, json};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

/// Shipped unit; used when systemd runs the machine.
const UNIT: &str = "deadbolt.service";

#[derive(Debug, Args)]
pub(super) struct StartArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// Do not wait until the node is a member
    #[arg(long)]
    no_wait: bool,
    /// Stay until the node ends, and end the node with this process
    #[arg(long, hide = true)]
    tied: bool,
}

#[derive(Debug, Args)]
pub(super) struct StopArguments {
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Debug, Args)]
pub(super) struct LeaveArguments {
    #[command(flatten)]
    node: NodeArguments,
}

/// Whose end is also the node's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tie {
    /// Nobody's.
    Detached,
    /// This process's.
    Tied,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArguments {
    /// Name of the node
    victim: String,
    #[command(flatten)]
    node: NodeArguments,
}

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// A daemon that answers.
    Daemon,
    /// A daemon that is in the view.
    Member,
}

pub(super) fn start(arguments: &StartArguments) -> Result<u8> {
    let directory = arguments.node.directory();
    let wanted = if arguments.no_wait { Wanted::Daemon } else { Wanted::Member };
    let tie = if arguments.tied { Tie::Tied } else { Tie::Detached };
    stay(start_and_wait(&directory, wanted, tie)?)
}

/// Waits for the end of a node that is tied to this process; answers with its exit code.
pub(super) fn stay(started: Option<Child>) -> Result<u8> {
    let Some(mut child) = started else { return Ok(EXIT_OK) };
    std::io::stdout().flush()?;
    let status = child.wait().context("waiting for the node")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_FAILED))
}

/// Starts the node under systemd where that is PID 1 and the unit is installed, else as a detached supervisor.
/// Answers with the process to stay for, if the node is tied to this one.
pub(super) fn start_and_wait(directory: &NodeDirectory, wanted: Wanted, tie: Tie) -> Result<Option<Child>> {
    let file = directory.read_node()?;
    if ask(directory, &json!({ "op": "status" }), Duration::from_secs(2)).is_ok() {
        say!("{} runs already", file.name);
        return Ok(None);
    }
    let is_default = directory.0 == Path::new(deadbolt_cluster::config::DEFAULT_DIRECTORY);
    let log_start = std::fs::metadata(directory.log_file()).map_or(0, |log| usize::try_from(log.len()).unwrap_or(usize::MAX));
    let has_unit =
        ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"].iter().any(|place| Path::new(place).join(UNIT).exists());
    if tie == Tie::Detached && is_default && has_unit && Path::new("/run/systemd/system").exists() {
        let status = std::process::Command::new("systemctl").args(["start", UNIT]).status().context("systemctl")?;
        if !status.success() {
            bail!("systemctl start {UNIT} failed; see `systemctl status {UNIT}`");
        }
        wait_for(directory, wanted, None, log_start)?;
        return Ok(None);
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(directory.log_file())
        .with_context(|| format!("opening {}", directory.log_file().display()))?;
    let mut command = program("deadboltd");
    command.arg("--supervise").arg("--dir").arg(&directory.0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    if tie == Tie::Tied {
        command.arg("--tied").arg(std::process::id().to_string());
    }
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let mut child = command.spawn().context("starting deadboltd")?;
    wait_for(directory, wanted, Some(&mut child), log_start)?;
    Ok((tie == Tie::Tied).then_some(child))
}

/// Time until a started node must be a member: what a starter waits at most for silent beats, and a few decisions.
fn patience(directory: &NodeDirectory) -> Duration {
    let timings = directory
        .read_node()
        .ok()
        .and_then(|file| devices::open(&file.devices, Access::Read).ok())
        .and_then(|devices| devices.first().map(|device| device.superblock.timings))
        .unwrap_or_default();
    Duration::from_millis(u64::from(timings.expiry_ms + timings.freeze_ms + timings.storage_delay_ms) + 30_000)
}

fn wait_for(directory: &NodeDirectory, wanted: Wanted, mut child: Option<&mut Child>, log_start: usize) -> Result<()> {
    let patience = patience(directory);
    let deadline = Instant::now() + patience;
    let mut said_waiting = false;
    while Instant::now() < deadline {
        if let Some(child) = child.as_deref_mut()
            && let Some(status) = child.try_wait()?
        {
            bail!("the node ended at once ({status}); its log says:\n{}", said_since(&directory.log_file(), log_start));
        }
        if let Ok(status) = ask(directory, &json!({ "op": "status" }), Duration::from_secs(2)) {
            let name = status.get("node").and_then(Value::as_str).unwrap_or_default().to_owned();
            let state = status.get("state").and_then(Value::as_str).unwrap_or_default();
            if wanted == Wanted::Daemon || state == "member" {
                say!("{name}: {state}, view {}", status.get("view").unwrap_or(&Value::Null));
                return Ok(());
            }
            if !said_waiting && deadline.duration_since(Instant::now()) < patience.saturating_sub(Duration::from_secs(3)) {
                said_waiting = true;
                say!("{name}: waits to be let in (silent members are waited for up to {} s)", patience.as_secs());
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!(
        "the node is not a member after {} s; `deadbolt status` and {} say why; it keeps trying",
        patience.as_secs(),
        directory.log_file().display()
    )
}

/// What the log says since the start that failed.
fn said_since(path: &Path, start: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned();
    text.lines().take(12).collect::<Vec<&str>>().join("\n")
}

pub(super) fn stop(arguments: &StopArguments) -> Result<u8> {
    end(&arguments.node.directory(), "stop")
}

pub(super) fn leave(arguments: &LeaveArguments) -> Result<u8> {
    let directory = arguments.node.directory();
    let file = directory.read_node()?;
    let status = ask(&directory, &json!({ "op": "status" }), Duration::from_secs(2))?;
    let members: Vec<&str> = status.get("members").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if !members.contains(&file.name.as_str()) {
        bail!(
            "{} is not in the view now; `deadbolt status` says why; on a member, `deadbolt remove {}` takes it out of the configuration",
            file.name,
            file.name
        );
    }
    if members.len() < 2 {
        bail!(
            "{} is the only member: nobody could record that it left the configuration; use `deadbolt stop`, or format the device anew",
            file.name
        );
    }
    let code = end(&directory, "leave")?;
    if code != EXIT_OK {
        return Ok(code);
    }
    let devices = devices::open(&file.devices, Access::Read)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let view = newest_view_on(&devices)?;
        if !view.configuration.nodes.iter().any(|node| node.name == file.name) {
            directory.remove()?;
            say!("{}: out of the configuration since view {}", file.name, view.view);
            return Ok(EXIT_OK);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!(
        "{} has stopped, but no view without it in the configuration was decided within 30 s; run `deadbolt start` and `deadbolt leave` again",
        file.name
    )
}

/// Asks a member, then waits for the view that names the node no more.
pub(super) fn remove(arguments: &RemoveArguments) -> Result<u8> {
    let directory = arguments.node.directory();
    let victim = &arguments.victim;
    ask(&directory, &json!({ "op": "remove", "node": victim }), Duration::from_secs(5))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let status = ask(&directory, &json!({ "op": "status" }), Duration::from_secs(2))?;
        let nodes = status.get("nodes").and_then(Value::as_array).cloned().unwrap_or_default();
        let is_there =
            nodes.iter().any(|node| node.get("name").and_then(Value::as_str).is_some_and(|name| name.eq_ignore_ascii_case(victim)));
        if !is_there {
            say!("{victim}: out of the configuration since view {}", status.get("view").unwrap_or(&Value::Null));
            return Ok(EXIT_OK);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("no view without {victim} was decided within 30 s; `deadbolt status` says whether this node is quorate")
}

/// Tells the daemon, then waits until the supervisor is gone.
fn end(directory: &NodeDirectory, op: &str) -> Result<u8> {
    let name = directory.read_node()?.name;
    match ask(directory, &json!({ "op": op }), Duration::from_secs(5)) {
        Ok(_) => {}
        Err(AskError::NoDaemon { .. }) if supervisor::client::info(&directory.0).is_err() => {
            say!("{name}: not running");
            return Ok(EXIT_OK);
        }
        Err(error) => eprintln!("deadbolt: {error}; the supervisor is told instead"),
    }
    let is_clean = supervisor::client::stop(&directory.0, Duration::from_secs(60))?;
    if is_clean {
        say!("{name}: stopped");
        Ok(EXIT_OK)
    } else {
        eprintln!("deadbolt: {name} had to be ended by force: the others will wait for evidence that it is gone");
        Ok(EXIT_FAILED)
    }
}
