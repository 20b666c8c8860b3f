//! What: a node's own devices: those that its file names, of the cluster that it was made for.
//! Owns: that check; everything else of devices is the quorum disk's.
//! Invariants: reads only.
//! Does not: open devices by itself.
//! Called by: the supervisor before it starts anything, the daemon, `join`, `why`, `status` without a daemon.

use crate::config::NodeFile;
use deadbolt_disk::Access;

pub use deadbolt_qdisk::devices::*;

/// Opens the devices of a node's own file; refuses those of another cluster than the one it was made for.
///
/// # Errors
/// The first check that fails.
pub fn open_for(file: &NodeFile, access: Access) -> Result<Vec<ClusterDevice>, DevicesError> {
    let devices = open(&file.devices, access)?;
    let is_other = |device: &&ClusterDevice| !file.cluster.is_empty() && device.superblock.cluster.to_string() != file.cluster;
    match devices.iter().find(is_other) {
        None => Ok(devices),
        Some(device) => Err(DevicesError::AnotherCluster {
            path: device.path.clone(),
            found: device.superblock.cluster,
            node: file.name.clone(),
            expected: file.cluster.clone(),
        }),
    }
}
