//! What: `deadbolt init`: a cluster begins.
//! Owns: its arguments, the order format - node directory - start.
//! Invariants: an existing cluster is never taken over; the key is printed once the node has formed the first view.
//! Does not: put the key on a command line.
//! Called by: the verbs.

use super::{EXIT_OK, NodeArguments, TimingWishes, format::print_report, node};
use crate::format::{FormatOptions, format};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::{
    config::{NodeDirectory, NodeFile},
    daemon::initial_file,
    devices::{self, DevicesError},
    initial::{self, InitialWishes},
    look::newest_view_on,
    seal::ClusterKey,
};
use deadbolt_cluster_core::{
    membership::{check_name, refuse_disk_votes},
    timing::derive,
};
use deadbolt_disk::Access;
use deadbolt_disk_format::{Superblock, ViewNumber};
use std::path::PathBuf;

/// What a node's own file is made of.
#[derive(Clone, Debug, Args)]
pub(super) struct OwnArguments {
    /// Name of this node
    #[arg(long)]
    pub(super) name: String,
    /// Address of this node, ip:port (UDP and TCP); may be given several times
    #[arg(long = "address", required = true)]
    pub(super) addresses: Vec<String>,
    /// Address under which the others reach this node, where it is not one that this node binds (a forwarder between them)
    #[arg(long = "announce", hide = true)]
    pub(super) announced: Vec<String>,
    /// Votes of this node
    #[arg(long, default_value_t = 1)]
    pub(super) votes: u16,
    #[command(flatten)]
    pub(super) node: NodeArguments,
    /// Path of the watchdog device, or `process` where there is none: the supervisor then ends the node's process tree
    #[arg(long, default_value = "/dev/watchdog")]
    pub(super) watchdog: String,
    /// Name of the watchdog's driver [default: as the kernel says]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) watchdog_driver: String,
    /// Other nodes of this cluster run on this machine
    #[arg(long)]
    pub(super) shared_device: bool,
    /// Run the node in a PID namespace of its own (needs root)
    #[arg(long)]
    pub(super) pid_namespace: bool,
    /// Go on without locked memory, real-time priority, or with a process watchdog on a block device
    #[arg(long)]
    pub(super) allow_unprotected: bool,
    /// Register with the cluster's devices, so that a node can be ejected from them (SCSI-3 or NVMe reservations; the same on every node)
    #[arg(long)]
    pub(super) reservations: bool,
    /// And with this shared disk besides; may be repeated
    #[arg(long = "protected-device", value_name = "PATH")]
    pub(super) protected_devices: Vec<PathBuf>,
    /// Leave the node down after a reset
    #[arg(long)]
    pub(super) no_restart: bool,
    /// Group that may use lock, locks, status and why [default: none]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) group: String,
    /// Only prepare; `deadbolt start` starts the node
    #[arg(long)]
    pub(super) no_start: bool,
    /// Stay until the node ends, and end the node with this process
    #[arg(long, hide = true)]
    pub(super) tied: bool,
}

fn check_addresses(addresses: &[String]) -> Result<()> {
    for (index, address) in addresses.iter().enumerate() {
        let parsed: std::net::SocketAddr = address.parse().with_context(|| format!("{address:?} is not an address; write ip:port"))?;
        if parsed.ip().is_unspecified() || parsed.port() == 0 {
            bail!("the address {address} is not one that others can reach; name this node's own ip and port");
        }
        if addresses.iter().skip(index + 1).any(|other| other == address) {
            bail!("the address {address} is given twice");
        }
    }
    Ok(())
}

impl OwnArguments {
    /// Whether the node ends with this process.
    pub(super) fn tie(&self) -> node::Tie {
        if self.tied { node::Tie::Tied } else { node::Tie::Detached }
    }

    /// What the configuration names.
    pub(super) fn announced(&self) -> &[String] {
        if self.announced.is_empty() { &self.addresses } else { &self.announced }
    }

    /// What can fail on this machine, before anything is changed on the device or in the cluster.
    pub(super) fn check_here(&self, file: &NodeFile) -> Result<()> {
        file.group_number()?;
        for address in &file.addresses {
            let bound = std::net::TcpListener::bind(address).and_then(|_| std::net::UdpSocket::bind(address));
            bound.with_context(|| format!("the address {address} cannot be used; it must be one of this machine, free for UDP and TCP"))?;
        }
        if file.watchdog != "process" && !std::path::Path::new(&file.watchdog).exists() {
            bail!(
                "{} does not exist; load a watchdog driver (modprobe softdog where there is no hardware), name another with --watchdog, or use --watchdog process for a trial",
                file.watchdog
            );
        }
        Ok(())
    }

    pub(super) fn file(&self, devices: &[PathBuf]) -> Result<NodeFile> {
        check_name(&self.name).map_err(anyhow::Error::msg)?;
        check_addresses(&self.addresses)?;
        check_addresses(&self.announced)?;
        let devices = devices.iter().map(std::path::absolute).collect::<std::io::Result<Vec<PathBuf>>>()?;
        Ok(NodeFile {
            name: self.name.clone(),
            former_names: Vec::new(),
            cluster: String::new(),
            devices,
            addresses: self.addresses.clone(),
            watchdog: self.watchdog.clone(),
            watchdog_driver: self.watchdog_driver.clone(),
            shared_device: self.shared_device,
            pid_namespace: self.pid_namespace,
            allow_unprotected: self.allow_unprotected,
            restart_after_reset: !self.no_restart,
            group: self.group.clone(),
            protected_devices: (self.reservations || !self.protected_devices.is_empty()).then(|| self.protected_devices.clone()),
            preference: 0,
            minimum_score: 0,
            fence_agents: Vec::new(),
            heuristics: Vec::new(),
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct InitArguments {
    /// One device, or three that vote by majority
    #[arg(required = true, num_args = 1..=3)]
    devices: Vec<PathBuf>,
    /// Name of the cluster [default: deadbolt]
    #[arg(long)]
    cluster: Option<String>,
    /// How many nodes the cluster will have
    #[arg(long, default_value_t = 2)]
    nodes: u16,
    /// Places for nodes reserved on the device [default: 32]
    #[arg(long)]
    slots: Option<u16>,
    #[command(flatten)]
    times: TimingWishes,
    #[command(flatten)]
    own: OwnArguments,
    /// Votes of the disk [default: nodes - 1, so that one survivor with the disk carries on]
    #[arg(long)]
    disk_votes: Option<u16>,
    /// Overwrite what the device carries (never a living cluster)
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &InitArguments) -> Result<u8> {
    let directory = arguments.own.node.directory();
    let mut file = arguments.own.file(&arguments.devices)?;
    if let Some(reason) = arguments.disk_votes.and_then(|votes| refuse_disk_votes(usize::from(arguments.nodes), votes)) {
        bail!(reason);
    }
    if let Ok(existing) = directory.read_node() {
        bail!("{} holds node {} already; use another directory with --dir", directory.0.display(), existing.name);
    }
    arguments.own.check_here(&file)?;
    prepare_device(arguments)?;
    file.cluster =
        devices::open(&arguments.devices, Access::Read)?.first().map(|first| first.superblock.cluster.to_string()).unwrap_or_default();
    let key = ClusterKey::draw()?;
    directory.create(&file, &key)?;
    let wishes = InitialWishes { votes: arguments.own.votes, disk_votes: arguments.disk_votes, announced: arguments.own.announced.clone() };
    initial::write(&initial_file(&directory), &wishes)?;
    if arguments.own.no_start {
        print_key(&directory, &key);
        return Ok(EXIT_OK);
    }
    let started = node::start_and_wait(&directory, node::Wanted::Member, arguments.own.tie())?;
    let _ = std::fs::remove_file(initial_file(&directory));
    print_key(&directory, &key);
    node::stay(started)
}

/// Formats the devices unless they carry an empty cluster already.
fn prepare_device(arguments: &InitArguments) -> Result<()> {
    match devices::open(&arguments.devices, Access::ReadWrite) {
        Ok(found) if !arguments.force => {
            let Some(first) = found.first() else { bail!("no device given") };
            let view = newest_view_on(&found)?;
            if view.view > ViewNumber(0) {
                let names: Vec<&str> = view.configuration.nodes.iter().map(|node| node.name.as_str()).collect();
                bail!(
                    "{} carries cluster {} with nodes {} already; use `deadbolt join`, or `deadbolt format --force` if it is not needed any more",
                    first.path.display(),
                    first.superblock.name,
                    names.join(", ")
                );
            }
            check_same(arguments, &first.superblock)?;
            say!("{}: formatted for cluster {} already, nobody was in", first.path.display(), first.superblock.name);
            Ok(())
        }
        Ok(_) | Err(DevicesError::NotOurs { .. }) => {
            let report = format(&FormatOptions {
                devices: arguments.devices.clone(),
                cluster: arguments.cluster.clone().unwrap_or_else(|| "deadbolt".into()),
                nodes: arguments.nodes,
                slots: arguments.slots.unwrap_or(32),
                timings: derive(&arguments.times.wishes())?,
                is_dry_run: false,
                is_forced: arguments.force,
                force_live: None,
            })?;
            print_report(&report);
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// A formatted device keeps its name, slots and times: wishes that differ are refused, not ignored.
fn check_same(arguments: &InitArguments, superblock: &Superblock) -> Result<()> {
    let name = arguments.cluster.as_ref().filter(|name| **name != superblock.name);
    let slots = arguments.slots.filter(|slots| *slots != superblock.slots);
    let has_other_times = !arguments.times.is_empty() && derive(&arguments.times.wishes())? != superblock.timings;
    if name.is_some() || slots.is_some() || has_other_times {
        bail!(
            "the device is formatted already, for cluster {} with {} slots and a stall of {} ms (`deadbolt timing --device` shows all times); leave --cluster, --slots and the times out, or use --force to format it anew",
            superblock.name,
            superblock.slots,
            superblock.timings.stall_ms
        );
    }
    Ok(())
}

fn print_key(directory: &NodeDirectory, key: &ClusterKey) {
    say!(
        "The cluster key, for `deadbolt join --key-file` on the other nodes (also in {}; keep it secret):",
        directory.key_file().display()
    );
    say!("{}", key.to_text());
}
