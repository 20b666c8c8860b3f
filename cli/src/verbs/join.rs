//! What: `deadbolt join`: a node is added to a cluster and started.
//! Owns: its arguments, the question to the members.
//! Invariants: the node counts as added only once the decided configuration on the disk names it.
//! Does not: choose the slot (a decided view does).
//! Called by: the verbs.

use super::{EXIT_OK, init::OwnArguments, node};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::{
    devices::{self, ClusterDevice},
    links,
    look::{newest_view_on, sbd_names_on},
    seal::ClusterKey,
};
use deadbolt_cluster_core::{hello::NodeMessage, membership::Addition};
use deadbolt_disk::Access;
use deadbolt_disk_format::{SlotSet, ViewBody, ViewNumber};
use std::{
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long members may take to add the node; several decisions fit.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct JoinArguments {
    /// The cluster's device or devices, as this node sees them
    #[arg(required = true, num_args = 1..=3)]
    devices: Vec<PathBuf>,
    #[command(flatten)]
    own: OwnArguments,
    /// File with the cluster key (mode 600), or - for standard input
    #[arg(long)]
    key_file: PathBuf,
}

pub(super) fn run(arguments: &JoinArguments) -> Result<u8> {
    let directory = arguments.own.node.directory();
    let mut file = arguments.own.file(&arguments.devices)?;
    if let Ok(existing) = directory.read_node() {
        bail!("{} holds node {} already; use another directory with --dir, or `deadbolt start`", directory.0.display(), existing.name);
    }
    let key = read_key(&arguments.key_file)?;
    let devices = devices::open(&arguments.devices, Access::ReadWrite)?;
    let Some(first) = devices.first() else { bail!("no device given") };
    let view = newest_view_on(&devices)?;
    if view.view == ViewNumber(0) {
        bail!("{}: cluster {} has no member yet; run `deadbolt init` on the first node", first.path.display(), first.superblock.name);
    }
    check_free(&view, arguments)?;
    arguments.own.check_here(&file)?;
    file.cluster = first.superblock.cluster.to_string();
    directory.create(&file, &key)?;
    if let Err(error) = ask_members(&devices, &view, &key, arguments) {
        directory.remove()?;
        return Err(error);
    }
    drop(devices);
    say!("{}: added to the configuration", arguments.own.name);
    if arguments.own.no_start {
        return Ok(EXIT_OK);
    }
    node::stay(node::start_and_wait(&directory, node::Wanted::Member, arguments.own.tie())?)
}

fn read_key(path: &Path) -> Result<ClusterKey> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().take(4096).read_to_string(&mut text)?;
        return Ok(ClusterKey::parse(&text)?);
    }
    Ok(ClusterKey::read(path)?)
}

/// What can be told from the disk, before anybody is asked.
fn check_free(view: &ViewBody, arguments: &JoinArguments) -> Result<()> {
    let nodes = &view.configuration.nodes;
    let name = &arguments.own.name;
    if let Some(other) = nodes.iter().find(|node| node.name.eq_ignore_ascii_case(name)) {
        bail!(
            "the name {name} is taken by node {} in slot {}; choose another name, or take that node out first (`deadbolt leave` there, or `deadbolt remove` on another node if it is gone for good)",
            other.name,
            other.slot
        );
    }
    for address in arguments.own.announced() {
        if let Some(other) = nodes.iter().find(|node| node.addresses.contains(address)) {
            bail!("the address {address} is that of node {}; every node needs its own", other.name);
        }
    }
    Ok(())
}

/// Asks one member after the other until the decided configuration names this node.
fn ask_members(devices: &[ClusterDevice], view: &ViewBody, key: &ClusterKey, arguments: &JoinArguments) -> Result<()> {
    let Some(first) = devices.first() else { bail!("no device given") };
    let names = sbd_names_on(devices)?;
    let is_known = |name: &str| view.configuration.nodes.iter().any(|node| node.name.eq_ignore_ascii_case(name));
    let occupied: SlotSet = names
        .iter()
        .filter(|(_, name)| !is_known(name) && !name.eq_ignore_ascii_case(&arguments.own.name))
        .map(|(slot, _)| *slot)
        .collect();
    let message = NodeMessage::AddNode(Addition {
        name: arguments.own.name.clone(),
        addresses: arguments.own.announced().to_vec(),
        votes: arguments.own.votes,
        occupied,
    });
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::from("no member could be reached");
    let mut rounds_refused = 0;
    // What all members refuse twice, they will go on refusing.
    while Instant::now() < deadline && rounds_refused < 2 {
        let mut is_refused = true;
        for life in &view.members {
            let Some(node) = view.configuration.nodes.iter().find(|node| node.slot == life.slot) else { continue };
            for address in &node.addresses {
                let answer = links::request_blocking(address, key, first.superblock.cluster, &message);
                is_refused &= match &answer {
                    Ok(NodeMessage::Answer(answer)) => answer.is_err(),
                    Ok(_) => false,
                    // Another key; a silent member fails otherwise.
                    Err(error) => error.kind() == ErrorKind::Other,
                };
                last = match answer {
                    Ok(NodeMessage::Answer(Ok(()))) => format!("{} took the request, and no view followed", node.name),
                    Ok(NodeMessage::Answer(Err(reason))) => format!("{} refuses: {reason}", node.name),
                    Ok(_) => format!("{} gave an answer that is not one", node.name),
                    Err(error) => format!("{} at {address}: {error} (a wrong key looks like this, too)", node.name),
                };
            }
        }
        if is_configured(devices, &arguments.own.name)? {
            return Ok(());
        }
        rounds_refused = if is_refused { rounds_refused + 1 } else { 0 };
        // The disk is the witness; it is asked again after a pause that several polls fit in.
        std::thread::sleep(Duration::from_millis(300));
        if is_configured(devices, &arguments.own.name)? {
            return Ok(());
        }
    }
    bail!("{} was not added: {last}", arguments.own.name)
}

fn is_configured(devices: &[ClusterDevice], name: &str) -> Result<bool> {
    let view = newest_view_on(devices).context("reading the newest view")?;
    Ok(view.configuration.nodes.iter().any(|node| node.name.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{FormatOptions, format};
    use deadbolt_cluster_core::timing::{Wishes, derive};
    use deadbolt_disk_format::{BootId, Configuration, Incarnation, Life, NodeEntry, Place, SlotIndex, ViewRecord, encode_body_place};
    use std::{fs::File, os::unix::fs::FileExt};

    const IMAGE_BYTES: u64 = 16 << 20;

    /// As a life in slot 0 writes a view that has this node in its configuration.
    fn write_view(device: &ClusterDevice, name: &str) {
        let slot = SlotIndex(0);
        let life = Life { slot, boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) };
        let node = NodeEntry { slot: SlotIndex(1), votes: 1, name: name.into(), addresses: vec!["127.0.0.1:1".into()] };
        let configuration = Configuration { nodes: vec![node], ..Configuration::default() };
        let body = ViewBody { view: ViewNumber(1), configuration, ..ViewBody::default() };
        let layout = device.superblock.layout;
        let place = |offset| Place { cluster: device.superblock.cluster, offset, slot };
        let record = ViewRecord { life, sequence: 2, view: body.view, digest: body.digest(), place: 0, wall_ms: 0 };
        let file = File::options().write(true).open(&device.path).unwrap();
        let offset = layout.body(slot, record.place);
        file.write_all_at(&encode_body_place(&body.encode_value(), &place(offset), &life, 1, layout.place_bytes).unwrap(), offset.0)
            .unwrap();
        let offset = layout.record(slot, 0);
        file.write_all_at(record.encode(&place(offset)).as_slice(), offset.0).unwrap();
    }

    #[test]
    fn a_majority_of_the_devices_says_whether_the_node_was_added() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|number| directory.path().join(number.to_string())).collect();
        paths.iter().for_each(|path| File::create(path).unwrap().set_len(IMAGE_BYTES).unwrap());
        let mut options = FormatOptions::new("", "trial", 3, derive(&Wishes::stall(1000)).unwrap());
        options.devices.clone_from(&paths);
        match format(&options) {
            Err(error) if error.to_string().contains("direct I/O") => return eprintln!("skipped: {error}"),
            formatted => drop(formatted.unwrap()),
        }
        let devices = devices::open(&paths, Access::ReadWrite).unwrap();
        let shorten = |device: &ClusterDevice| File::options().write(true).open(&device.path).unwrap().set_len(4096).unwrap();
        assert!(!is_configured(&devices, "b").unwrap());
        devices[1..].iter().for_each(|device| write_view(device, "B"));
        assert!(is_configured(&devices, "b").unwrap(), "the first device lags");
        shorten(&devices[0]);
        assert!(is_configured(&devices, "b").unwrap(), "the first device fails");
        assert!(sbd_names_on(&devices).is_ok());
        shorten(&devices[1]);
        assert!(is_configured(&devices, "b").is_err(), "one of three is no majority");
    }
}
