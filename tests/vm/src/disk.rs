//! What: the shared disks: their files, a node's way to each, and the faults of that way.
//! Owns: the files, which have no names; the names of qemu's nodes of a disk.
//! Invariants: a fault is one node's: the file and the other nodes' ways stay good.
//! Does not: tear or reorder writes: what a guest was told is written is in the file.
//! Called by: the lab (files, faults), a machine (its part of qemu's command line).

use crate::qmp::Qmp;
use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::{Value, json};
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// A node's way to a shared disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As it should be; also takes a fault away, but for `Unplug`.
    Ok,
    /// Every request ends with an I/O error.
    Error,
    /// No request ends. Those that hang are carried out when the way changes, the machine ends, or its clocks are paused.
    Hang,
    /// So many requests a second.
    Slow(u32),
    /// The disk is pulled out, for the rest of the machine's life.
    Unplug,
}

/// A shared disk.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
}

impl Disk {
    /// Empty; its file has no name and goes with this process.
    pub(crate) fn new(folder: &Path, mib: u64) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).with_context(|| folder.display().to_string())?;
        file.set_len(mib << 20)?;
        Ok(Self { file })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// By which other programs open it as long as this process has it.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Arguments of qemu. The device sits on a root port of its own, so that it can be pulled out. Below it `sharedN` forwards to one of
    /// three over the file: `sharedN-open`, a throttle that is usually open; `sharedN-hung`, one that is closed; `sharedN-error`, which
    /// fails every request.
    pub(crate) fn arguments(&self, index: usize, sector_bytes: u32) -> Vec<String> {
        let (name, number) = (name(index), index + 1);
        let nodes = [
            json!({ "driver": "file", "node-name": format!("{name}-file"), "filename": self.path(), "locking": "off",
                "cache": { "direct": true }, "discard": "unmap" }),
            throttle(&name, "open"),
            throttle(&name, "hung"),
            json!({ "driver": "blkdebug", "node-name": format!("{name}-error"), "image": format!("{name}-file"),
                "inject-error": [{ "event": "none", "errno": Errno::EIO as i32, "once": false }] }),
            forward(&name, "open"),
        ];
        let groups = [group(&name, "open", &json!({})), group(&name, "hung", &json!({ "bps-total": 1 }))];
        let port = format!("pcie-root-port,id={name}-port,chassis={number},slot={number}");
        let device = format!(
            "virtio-blk-pci,bus={name}-port,id={name}-device,drive={name},serial={name},share-rw=on,\
             logical_block_size={sector_bytes},physical_block_size={sector_bytes},rerror=report,werror=report"
        );
        let mut arguments: Vec<String> = groups.iter().flat_map(|group| ["-object".to_owned(), group.to_string()]).collect();
        arguments.extend(nodes.iter().flat_map(|node| ["-blockdev".to_owned(), node.to_string()]));
        arguments.extend(["-device".to_owned(), port, "-device".to_owned(), device]);
        arguments
    }
}

/// Serial number, and name below /dev in a guest.
fn name(index: usize) -> String {
    format!("shared{index}")
}

fn forward(name: &str, to: &str) -> Value {
    json!({ "driver": "raw", "node-name": name, "file": format!("{name}-{to}") })
}

fn throttle(name: &str, which: &str) -> Value {
    let group = format!("{name}-{which}-group");
    json!({ "driver": "throttle", "node-name": format!("{name}-{which}"), "throttle-group": group, "file": format!("{name}-file") })
}

fn group(name: &str, which: &str, limits: &Value) -> Value {
    json!({ "qom-type": "throttle-group", "id": format!("{name}-{which}-group"), "limits": limits })
}

/// Closes a machine's hung way, once, before anything uses it: at one byte a second the first request is let through, and those behind
/// it wait for its bytes. The first one is this.
pub(crate) fn close_hung(qmp: &Qmp, index: usize) -> Result<()> {
    let first = format!("qemu-io {}-hung \"read 0 64k\"", name(index));
    qmp.command("human-monitor-command", json!({ "command-line": first })).map(|_| ())
}

/// Changes one machine's way to a disk.
pub(crate) fn set_way(qmp: &Qmp, index: usize, way: Way) -> Result<()> {
    let name = name(index);
    let forward_to = |to: &str| qmp.command("blockdev-reopen", json!({ "options": [forward(&name, to)] }));
    let limit = |limits: Value| {
        let path = format!("/objects/{name}-open-group");
        qmp.command("qom-set", json!({ "path": path, "property": "limits", "value": limits }))
    };
    match way {
        Way::Ok => limit(json!({})).and_then(|_| forward_to("open")),
        Way::Error => forward_to("error"),
        Way::Hang => forward_to("hung"),
        Way::Slow(requests) => limit(json!({ "iops-total": requests })).and_then(|_| forward_to("open")),
        Way::Unplug => qmp.command("device_del", json!({ "id": format!("{name}-device") })),
    }
    .with_context(|| format!("{name}: {way:?}"))?;
    Ok(())
}
