//! What: the times and switches of a corosync cluster with this quorum device, and what is refused among them.
//! Owns: the formulas of docs/qdevice.md.
//! Invariants: rules that were made satisfy every inequality; what is refused is named with its key and the value that would do.
//! Does not: read cmap or a device.
//! Called by: the program at its start, its verb `check`.

use alloc::{string::String, vec::Vec};
use deadbolt_disk_format::Timings;

/// Beats by default; polls are as often. Chosen: some writes of 4 KiB a second, and a clean cut is settled within two of them.
pub const INTERVAL_MS: u32 = 50;
/// The fewest beats that fit into a lease: one may be late, one may be lost.
const BEATS_IN_LEASE: u32 = 4;
/// Beats after which a silent bridge is not reckoned with as a proposer.
const BEATS_FRESH: u32 = 3;
/// What stock corosync takes where nothing is set, ms (compatibility).
pub const TIMEOUT_MS: u32 = 10_000;
/// The same while a membership changes.
pub const SYNC_TIMEOUT_MS: u32 = 30_000;

/// What was found in cmap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// quorum.device.model.
    pub model: Option<String>,
    /// quorum.device.disk.interval.
    pub interval_ms: Option<u32>,
    /// quorum.device.disk.lease.
    pub lease_ms: Option<u32>,
    /// quorum.device.timeout.
    pub timeout_ms: Option<u32>,
    /// quorum.device.sync_timeout.
    pub sync_timeout_ms: Option<u32>,
    /// runtime.config.totem.token.
    pub token_ms: u32,
    /// runtime.config.totem.consensus.
    pub consensus_ms: u32,
    /// Names of the switches that are on and do not go with a quorum device.
    pub switches: Vec<&'static str>,
}

/// Times that hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Between beats, and between polls.
    pub interval_ms: u64,
    /// How long after the issue of a complete beat this bridge may give a vote.
    pub lease_ms: u64,
    /// How long corosync may count a vote after it was given: timeout + sync_timeout.
    pub outlive_ms: u64,
    /// A ring may form on another node this much later than here: one token.
    pub skew_ms: u64,
    /// How long the worse side, or who is not the first of its side, waits before it proposes.
    pub patience_ms: u64,
    /// A beat that changed within this is fresh.
    pub fresh_ms: u64,
    /// Drift of clocks.
    pub drift_ppm: u32,
}

/// What does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Another device, or none.
    #[error("quorum.device.model is {found:?}; this program is the device of model: disk")]
    Model {
        /// As found.
        found: String,
    },
    /// corosync takes no device beside it.
    #[error("quorum.{switch} is on: corosync takes no quorum device beside it; remove it (docs/qdevice.md shows how, without a restart)")]
    Switch {
        /// Which.
        switch: &'static str,
    },
    /// Too short for this program to poll in time.
    #[error("{name} is {found_ms} ms; it must be at least {least_ms} ms ({why})")]
    TooShort {
        /// Which.
        name: &'static str,
        /// As found.
        found_ms: u32,
        /// The least that does.
        least_ms: u32,
        /// Why.
        why: &'static str,
    },
    /// A vote would outlive what others wait for.
    #[error(
        "lease {lease_ms} ms + quorum.device.timeout {timeout_ms} ms + quorum.device.sync_timeout {sync_timeout_ms} ms is longer than the \
         lease of the device, {device_ms} ms: lower the timeouts, or format with a longer --stall"
    )]
    Outlives {
        /// Of the bridge.
        lease_ms: u32,
        /// Of corosync.
        timeout_ms: u32,
        /// Of corosync.
        sync_timeout_ms: u32,
        /// L of the device.
        device_ms: u32,
    },
}

impl Found {
    /// Between beats.
    #[must_use]
    pub fn interval(&self) -> u32 {
        self.interval_ms.unwrap_or(INTERVAL_MS)
    }

    /// The bridge's own lease: six beats where nothing is set.
    #[must_use]
    pub fn lease(&self) -> u32 {
        self.lease_ms.unwrap_or(self.interval().saturating_mul(6))
    }

    /// As corosync counts it.
    #[must_use]
    pub fn timeout(&self) -> u32 {
        self.timeout_ms.unwrap_or(TIMEOUT_MS)
    }

    /// As corosync counts it.
    #[must_use]
    pub fn sync_timeout(&self) -> u32 {
        self.sync_timeout_ms.unwrap_or(SYNC_TIMEOUT_MS)
    }

    /// Everything that does not hold on a device of these timings.
    #[must_use]
    pub fn refusals(&self, device: &Timings) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let model = self.model.clone().unwrap_or_default();
        if model != "disk" {
            refusals.push(Refusal::Model { found: model });
        }
        refusals.extend(self.switches.iter().map(|&switch| Refusal::Switch { switch }));
        let (interval, beats) = (self.interval(), self.interval().saturating_mul(BEATS_IN_LEASE));
        let table = [
            ("quorum.device.disk.interval", interval, 10, "a beat is a write to the device"),
            ("quorum.device.disk.lease", self.lease(), beats, "four beats have to fit"),
            ("quorum.device.timeout", self.timeout(), beats, "four polls have to fit"),
            ("quorum.device.sync_timeout", self.sync_timeout(), beats, "the decision has to fit"),
        ];
        let short = table.into_iter().filter(|(_, found, least, _)| found < least);
        refusals.extend(short.map(|(name, found_ms, least_ms, why)| Refusal::TooShort { name, found_ms, least_ms, why }));
        if u64::from(self.lease()) + u64::from(self.timeout()) + u64::from(self.sync_timeout()) > u64::from(device.lease_ms) {
            refusals.push(Refusal::Outlives {
                lease_ms: self.lease(),
                timeout_ms: self.timeout(),
                sync_timeout_ms: self.sync_timeout(),
                device_ms: device.lease_ms,
            });
        }
        refusals
    }

    /// What is legal and costs something, in words.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let ring_ms = u64::from(self.token_ms) + u64::from(self.consensus_ms);
        let waits_ms = u64::from(self.lease()) + u64::from(self.timeout());
        if waits_ms > ring_ms {
            remarks.push(alloc::format!(
                "lease + timeout is {waits_ms} ms, token + consensus {ring_ms} ms: after the crash of a node the survivor loses quorum for up to {} ms",
                waits_ms - ring_ms
            ));
        }
        remarks
    }

    /// The rules of these settings.
    ///
    /// # Errors
    /// Everything that does not hold.
    pub fn rules(&self, device: &Timings) -> Result<Rules, Vec<Refusal>> {
        let refusals = self.refusals(device);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let interval_ms = u64::from(self.interval());
        Ok(Rules {
            interval_ms,
            lease_ms: u64::from(self.lease()),
            outlive_ms: u64::from(self.timeout()) + u64::from(self.sync_timeout()),
            skew_ms: u64::from(self.token_ms),
            patience_ms: 4 * interval_ms,
            fresh_ms: interval_ms * u64::from(BEATS_FRESH),
            drift_ppm: device.drift_ppm,
        })
    }
}
