//! What: the pure machine of a node's lifeline: cycle, lease, mailbox judgement, feeding verdict, acknowledgement.
//! Owns: every decision of the `sbd` process; no byte layout and no device.
//! Invariants: time is a parameter and never goes back; the same inputs give the same outputs.
//! Does not: read a clock, a file or a device; know how a pill is authenticated.
//! Called by: the package `sbd`, the simulator.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod cycle;
mod daemon;
mod dialogue;
mod ejection;
mod fencer;
mod health;
mod lifeline;
mod mailbox;
mod name;
mod opening;
#[cfg(feature = "planted")]
pub mod planted;
mod progress;
mod regime;
mod registration;
mod verdict;
mod words;

pub use daemon::{DaemonSeen, DaemonVerdict, DaemonWatch};
pub use dialogue::{Answer, Dialogue, FENCING, Objection, Step};
pub use ejection::{Ejected, Ejection};
pub use fencer::{BeatVersion, FenceVerdict, Fencer, FencerConfig, Proof, VictimRead};
pub use health::{HealthWatch, Opinion, REPORT_BYTES, Report, Servant, Standing};
pub use lifeline::{
    CycleSeen, DeviceTrouble, DeviceWork, Input, Lifeline, LifelineConfig, LifelineStatus, Note, Output, OwnPlace, PhaseName, RefuseReason,
    ResetCommand, ResetReason,
};
pub use mailbox::{Authenticity, LegacyPills, MailboxSeen, MailboxStep, MailboxVerdict, MailboxWatch, PillAge, TailSeen, judge_mailbox};
pub use name::NameSeen;
pub use regime::{ClusterSay, ClusterSeen, Regime, StartMode, WatchRules, watch_quorum};
pub use registration::Registration;
pub use verdict::{FeedVerdict, feed_verdict, majority, reset_ms_of};

/// A disk operation failed; the shell keeps the details for its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskFailed;
