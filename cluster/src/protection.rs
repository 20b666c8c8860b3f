//! What: the devices from which this node can eject others, and they it: persistent reservations.
//! Owns: which devices those are (the cluster's own and those of `protected_devices`), what tells two nodes that theirs are the same, the
//!   key of a life, the thread of an ejection.
//! Invariants: nothing of a node is started before its key is registered on all of them; *ejected* is answered only by who took the keys
//!   away on all of them; an ejection takes away the keys of one boot, so that a late one does no harm to the next.
//! Does not: decide whom to eject and when (membership), judge what a device answers (sbd core).
//! Called by: the supervisor before it starts anything; the daemon.

use crate::config::NodeFile;
use deadbolt_disk::shared_identity;
use deadbolt_disk_format::reservation::{KeyOwner, ReservationKey};
use deadbolt_disk_format::{BootId, ClusterUuid, Life, SlotIndex};
use deadbolt_sbd::eject::{self, DEVICE_LIMIT, DeviceErrors, Ejected};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::mpsc::UnboundedSender;

/// Why this node cannot protect its devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtectionError {
    /// Nothing by which other nodes would know it.
    #[error(
        "protected_devices: {} has no identity that other nodes know it by (wwid in sysfs); reservations need whole disks of SCSI or NVMe, the cluster's own devices among them, or take protected_devices out of node.toml",
        path.display()
    )]
    NoIdentity {
        /// Which.
        path: PathBuf,
    },
    /// One disk by two paths.
    #[error("protected_devices: {} and {} are the same disk ({identity}); name it once, or the multipath device over both", first.display(), second.display())]
    SameDisk {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// By which it shows.
        identity: String,
    },
    /// The kernel does not say which boot it is.
    #[error("the kernel does not say which boot it is: {0}")]
    NoBoot(std::io::Error),
    /// What was found there.
    #[error("this node's reservation key could not be registered, so nothing is started: {0}")]
    NotRegistered(DeviceErrors),
}

/// How an ejection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EjectDone {
    /// Whose keys.
    pub(crate) victim: Life,
    /// Taken away on every device, by this node?
    pub(crate) is_ejected: bool,
}

/// The protected devices of one node.
#[derive(Clone, Debug)]
pub(crate) struct Protection {
    devices: Vec<PathBuf>,
    cluster: ClusterUuid,
    own: ReservationKey,
    mark: u32,
    /// Held by every thread of the last attempt against a boot.
    attempts: Arc<Mutex<BTreeMap<BootId, Weak<()>>>>,
}

impl Protection {
    /// As the node's file asks for it; none where it does not.
    pub(crate) fn of(file: &NodeFile, cluster: ClusterUuid, slot: SlotIndex) -> Result<Option<Self>, ProtectionError> {
        let Some(more) = &file.protected_devices else { return Ok(None) };
        let devices: Vec<PathBuf> = file.devices.iter().chain(more).cloned().collect();
        let identities = devices.iter().map(|path| shared_identity(path).ok_or_else(|| ProtectionError::NoIdentity { path: path.clone() }));
        let identities: Vec<String> = identities.collect::<Result<_, _>>()?;
        for (index, identity) in identities.iter().enumerate() {
            if let Some(first) = identities.iter().take(index).position(|other| other == identity) {
                let (first, second) = (devices[first].clone(), devices[index].clone());
                return Err(ProtectionError::SameDisk { first, second, identity: identity.clone() });
            }
        }
        let own = eject::key_here(owner(cluster, slot)).map_err(ProtectionError::NoBoot)?;
        Ok(Some(Self { devices, cluster, own, mark: mark(identities), attempts: Arc::default() }))
    }

    /// What goes into the beat, so that other nodes can compare: equal lists have equal marks. Never 0.
    pub(crate) const fn mark(&self) -> u32 {
        self.mark
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.devices.len()
    }

    /// Registers this boot on all of them.
    pub(crate) fn register(&self) -> Result<(), ProtectionError> {
        eject::register(&self.devices, self.own, DEVICE_LIMIT).map_err(ProtectionError::NotRegistered)
    }

    /// Ejects a life's boot, in a thread of its own; the answer comes by the channel in any case.
    pub(crate) fn eject(&self, name: &str, victim: Life, done: &UnboundedSender<EjectDone>) {
        let done = done.clone();
        // The daemon may have ended meanwhile.
        let answer = move |is_ejected| done.send(EjectDone { victim, is_ejected }).unwrap_or_default();
        let fail = answer.clone();
        let Some(held) = begin_attempt(&self.attempts, victim.boot) else {
            tracing::warn!(node = name, "not ejected: a device still hangs in the attempt before");
            return fail(false);
        };
        let (devices, own, node) = (self.devices.clone(), self.own, name.to_owned());
        let key = owner(self.cluster, victim.slot).key(victim.boot);
        let body = move || match eject::eject(&devices, Ejected::Boot(key), own, DEVICE_LIMIT, &held) {
            Ok(()) => answer(true),
            Err(errors) => {
                tracing::warn!(%node, %errors, "not ejected");
                answer(false);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("eject".into()).spawn(body) {
            tracing::error!(%error, "no thread for an ejection");
            fail(false);
        }
    }
}

/// What the threads of a new attempt hold; none while one of the attempt before is left.
fn begin_attempt(attempts: &Mutex<BTreeMap<BootId, Weak<()>>>, boot: BootId) -> Option<Arc<()>> {
    let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    attempts.retain(|_, attempt| attempt.strong_count() > 0);
    if attempts.contains_key(&boot) {
        return None;
    }
    let held = Arc::new(());
    attempts.insert(boot, Arc::downgrade(&held));
    Some(held)
}

/// By the slot: a name may change while the node lives.
fn owner(cluster: ClusterUuid, slot: SlotIndex) -> KeyOwner {
    KeyOwner::new(cluster, &format!("slot {slot}"))
}

/// The order of a list says nothing.
fn mark(mut identities: Vec<String>) -> u32 {
    identities.sort_unstable();
    let mut digest = Sha256::new();
    for identity in identities {
        digest.update(identity.as_bytes());
        digest.update([0]);
    }
    u32::from_le_bytes(digest.finalize()[..4].try_into().unwrap_or_default()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_lists_apart_and_not_their_order() {
        let of = |names: &[&str]| mark(names.iter().map(ToString::to_string).collect());
        assert_eq!(of(&["naa.1", "naa.2"]), of(&["naa.2", "naa.1"]));
        assert_ne!(of(&["naa.1", "naa.2"]), of(&["naa.1"]));
        assert_ne!(of(&["naa.1naa.2"]), of(&["naa.1", "naa.2"]));
        assert_ne!(of(&["naa.1"]), 0);
    }

    #[test]
    fn a_device_that_hangs_keeps_one_thread_for_each_boot() {
        let (attempts, boot) = (Mutex::default(), BootId([1; 16]));
        let held = begin_attempt(&attempts, boot).unwrap();
        let hung = held.clone();
        drop(held);
        assert!(begin_attempt(&attempts, boot).is_none(), "its thread is still there");
        assert!(begin_attempt(&attempts, BootId([2; 16])).is_some());
        drop(hung);
        assert!(begin_attempt(&attempts, boot).is_some());
    }

    #[test]
    fn what_no_other_node_would_know_is_refused() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let text = format!("name = \"a\"\ndevices = [{:?}]\naddresses = []\nprotected_devices = []\n", image.path());
        let mut file: NodeFile = toml::from_str(&text).unwrap();
        let refused = Protection::of(&file, ClusterUuid([1; 16]), SlotIndex(0)).unwrap_err().to_string();
        assert!(refused.contains("no identity") && refused.contains(image.path().to_str().unwrap()), "{refused}");
        file.protected_devices = None;
        assert!(Protection::of(&file, ClusterUuid([1; 16]), SlotIndex(0)).unwrap().is_none());
    }
}
