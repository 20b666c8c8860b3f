//! What: the program `deadboltd`: the supervisor of a node, or its daemon.
//! Owns: the command line, the wiring of supervisor, sbd and daemon, the choice of the program files.
//! Invariants: the supervisor runs in a process of its own and starts sbd before the daemon.
//! Does not: decide.
//! Called by: the bin `deadboltd`, and `deadbolt` under that name.

use crate::{
    config::{NodeDirectory, NodeFile},
    daemon::{self, DaemonOptions},
    devices,
    protection::Protection,
    supervisor::{self, BootContext, Namespaces, RestartPolicy, SupervisorOptions},
};
use anyhow::{Context, Result, bail};
use clap::Parser;
use deadbolt_disk::{Access, Severity};
use deadbolt_disk_format::{SlotIndex, WatchdogKind};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The node's daemon and its supervisor. `deadbolt start` runs it for you.
#[derive(Debug, Parser)]
#[command(name = "deadboltd", version)]
struct Arguments {
    /// Directory of the node
    #[arg(long, default_value = crate::config::DEFAULT_DIRECTORY)]
    dir: PathBuf,
    /// Run the supervisor, which starts sbd and the daemon
    #[arg(long, conflicts_with = "daemon")]
    supervise: bool,
    /// Run the daemon itself; only the supervisor does that
    #[arg(long, hide = true)]
    daemon: bool,
    /// End with this process, which started this one (its number from itself: who asks for its parent may have lost it already)
    #[arg(long, hide = true, value_name = "PID")]
    tied: Option<i32>,
    /// What stands for the protected devices that the supervisor has registered on
    #[arg(long, hide = true, value_name = "MARK")]
    protected: Option<u32>,
    /// Write to the standard streams instead of the log file
    #[arg(long)]
    foreground: bool,
}

/// Runs the program with these arguments (the first is its name); returns its exit code.
#[must_use]
pub fn main_from(arguments: Vec<OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    start_log();
    let result = if arguments.daemon { run_daemon(&arguments) } else { run_supervisor(&arguments) };
    result.unwrap_or_else(|error| {
        tracing::error!("{}", explain(&error));
        1
    })
}

/// An error with its causes in one line; a cause whose words the error says already is not said again.
#[must_use]
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DEADBOLT_LOG").unwrap_or_else(|_| "info".into());
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    // A second start in one process keeps the first one's settings.
    drop(started);
}

fn run_daemon(arguments: &Arguments) -> Result<u8> {
    daemon::run(&DaemonOptions { directory: NodeDirectory(arguments.dir.clone()), protected: arguments.protected })
}

fn run_supervisor(arguments: &Arguments) -> Result<u8> {
    let directory = NodeDirectory(std::path::absolute(&arguments.dir)?);
    let mut file = directory.read_node()?;
    directory.read_key()?;
    check_sbd(program("sbd"))?;
    check_devices(&file)?;
    let devices = devices::open_for(&file, Access::ReadWrite)?;
    if let Some(name) = daemon::find_new_name(&file, &devices)? {
        tracing::info!(old = %file.name, new = %name, "this node was renamed while it was away; its node.toml follows");
        directory.rename(&name)?;
        file = directory.read_node()?;
    }
    let (slot, _) = daemon::find_slot(&directory, &file, &devices)?;
    let protected = protect(&file, &devices, slot)?;
    drop(devices);
    let daemon_directory = directory.clone();
    let (sbd_file, sbd_directory) = (file.clone(), directory.clone());
    let start_sbd = Box::new(move |context: &BootContext| sbd_command(&sbd_file, &sbd_directory, slot, context));
    let start_daemon = Box::new(move |_: &BootContext| {
        let mut command = program("deadboltd");
        command.arg("--daemon").arg("--dir").arg(&daemon_directory.0);
        command.args(protected.map(|mark| format!("--protected={mark}")));
        command
    });
    let mut options = SupervisorOptions::new(directory.0.clone(), start_sbd, start_daemon);
    options.watchdog = if file.watchdog == "process" { WatchdogKind::Process } else { WatchdogKind::Device };
    options.namespaces = if file.pid_namespace { Namespaces::PidNamespace } else { Namespaces::None };
    options.restart = if file.restart_after_reset { RestartPolicy::Restart } else { RestartPolicy::Stop };
    options.log = (!arguments.foreground).then(|| directory.log_file());
    options.socket_group = file.group_number()?;
    options.parent = arguments.tied;
    Ok(supervisor::supervise(options))
}

/// Refuses a program that is not the sbd of this very version, e.g. the stock one beside an installed `deadboltd`: found here, it
/// is an error in plain words; found later, a life that ends at once.
fn check_sbd(mut sbd: Command) -> Result<()> {
    let file = PathBuf::from(sbd.get_program());
    let asked = sbd
        .args(["run", "--version"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started as sbd", file.display()))?;
    let said = [asked.stdout, asked.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().next().unwrap_or_default();
    if asked.status.success() && said == deadbolt_sbd::run::NAME_AND_VERSION {
        return Ok(());
    }
    bail!(
        "{} is not the sbd that belongs to this program: asked for its version it said {said:?} ({}), not {:?}; put Deadbolt's own sbd of \
         the same version beside deadboltd, or start the node by `deadbolt start`: `deadbolt` is its own sbd",
        file.display(),
        asked.status,
        deadbolt_sbd::run::NAME_AND_VERSION
    )
}

/// Where reservations are asked for, this boot's key has to stand on every protected device before anything writes there. Answers which
/// ones they were.
fn protect(file: &NodeFile, devices: &[devices::ClusterDevice], slot: SlotIndex) -> Result<Option<u32>> {
    let Some(first) = devices.first() else { return Ok(None) };
    let Some(protection) = Protection::of(file, first.superblock.cluster, slot)? else { return Ok(None) };
    protection.register()?;
    tracing::info!(devices = protection.count(), "reservation key registered");
    Ok(Some(protection.mark()))
}

/// Refuses devices that speak against themselves before anything is started on them.
fn check_devices(file: &NodeFile) -> Result<()> {
    for path in &file.devices {
        for finding in deadbolt_disk::preflight(path) {
            match finding.severity() {
                Severity::Refuse => bail!("{finding}"),
                Severity::Note => tracing::info!("{finding}"),
            }
        }
    }
    Ok(())
}

fn sbd_command(file: &NodeFile, directory: &NodeDirectory, slot: SlotIndex, context: &BootContext) -> Command {
    let mut command = program("sbd");
    command.arg("run");
    for device in &file.devices {
        command.arg("--device").arg(device);
    }
    let is_process = context.watchdog == WatchdogKind::Process;
    let is_apart = context.namespaces == Namespaces::PidNamespace;
    command
        .args(["--slot", &slot.0.to_string()])
        .args(["--boot", &context.boot.to_string()])
        .args(["--name", &file.name])
        .args(["--watchdog", &file.watchdog])
        .args(["--reset", if is_process && !is_apart { "tree" } else { "reboot" }])
        .args(["--lateness", &file.driver().lateness_ms.to_string()])
        .args(["--page-fd", &context.page])
        .arg("--key-file")
        .arg(directory.key_file());
    // Under a process watchdog a new life begins once every process is reaped: then no write may be left in a ring.
    if file.shared_device || is_process {
        command.arg("--shared-device");
    }
    for former in &file.former_names {
        command.args(["--former-name", former]);
    }
    if file.allow_unprotected {
        command.arg("--allow-unprotected");
    }
    command
}

/// A command for one of our programs: `deadbolt` runs itself under the wanted name; an installed program looks beside itself.
#[must_use]
pub fn program(name: &str) -> Command {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    // Linux marks a file that was replaced or removed while it runs.
    let file = own.file_name().unwrap_or_default().to_string_lossy().replace(" (deleted)", "");
    let beside = own.parent().unwrap_or_else(|| Path::new("/")).join(name);
    if file != "deadbolt" && beside.exists() {
        return Command::new(beside);
    }
    // What runs is then also what to start: the programs of one node are of one version.
    let own = if own.exists() { own } else { PathBuf::from("/proc/self/exe") };
    let mut command = Command::new(own);
    command.arg0(name);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_sbd_is_taken() {
        let mut own = Command::new("/bin/sh");
        own.args(["-c", "[ \"$*\" = 'run --version' ] && echo \"$OWN\"", "sbd"]).env("OWN", deadbolt_sbd::run::NAME_AND_VERSION);
        check_sbd(own).unwrap();
        // A stranger that answers, one that fails, and, where it is installed, the stock one.
        for (program, words) in [
            ("/bin/echo", "\"run --version\""),
            ("/bin/false", "exit status: 1"),
            ("/nothing/sbd", "cannot be started"),
            ("/usr/sbin/sbd", "sbd"),
        ] {
            let said = explain(&check_sbd(Command::new(program)).unwrap_err());
            assert!(said.contains(program) && said.contains(words), "{said}");
        }
    }
}
