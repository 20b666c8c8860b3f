//! What: what the lifeline says, as lines for people.
//! Owns: their wording.
//! Invariants: each line says what was found and what follows.
//! Does not: write them.
//! Called by: `life`, `run`.

use deadbolt_sbd_core::{DeviceTrouble, DeviceWork, MailboxVerdict, NameSeen, Note, RefuseReason, ResetCommand, ResetReason};

fn command_word(byte: u8) -> &'static str {
    deadbolt_disk_format::sbd::Command::from_byte(byte).word()
}

/// A note.
pub(crate) fn say_note<'a>(note: &Note, name: impl Fn(usize) -> &'a String) -> String {
    match note {
        Note::Mailbox { device, seen, verdict } => {
            let follows = match verdict {
                MailboxVerdict::Obey(_) => "obeyed",
                MailboxVerdict::Empty | MailboxVerdict::Unsigned | MailboxVerdict::Answer => "answered by erasing it",
                MailboxVerdict::Stop => "obeyed: the watcher ends",
                MailboxVerdict::Stale => "stale: it was meant for another boot of this node; not obeyed, left alone",
                MailboxVerdict::Outdated => "stale: it stood here before this boot; erased, not obeyed",
                MailboxVerdict::Refused => {
                    "refused: not permitted by configuration, not authentic, or not a command for a node that may hold something; read again, then erased"
                }
                MailboxVerdict::Unknown => "unknown: read again, then erased",
                MailboxVerdict::Ignored => "ignored and left alone",
            };
            let command = command_word(seen.command);
            format!("mailbox on {}: {command} ({}) from {:?}: {follows}", name(*device), seen.command, seen.sender)
        }
        Note::NameLost { device, found } => say_name(name(*device), found),
        Note::StopRefused => "asked to stop, and refused: this node is a member or may hold something; use `deadbolt stop`".into(),
        Note::DeviceAway { device, found, completed } => {
            format!(
                "{} shows beat {found} although {completed} was completed there: it went back in time and does not count until sbd is started anew",
                name(*device)
            )
        }
        Note::SupervisorSilent => "the supervisor does not say that the process watchdog is at work: no lease until it does".into(),
        Note::DaemonAbsent => "the daemon is dead and held nothing: this is being recorded, beats go on for a while".into(),
        Note::CyclesStalled { for_ms, stall_ms, devices, left_ms } => {
            let devices: Vec<String> = devices.iter().map(|(device, trouble)| say_trouble(name(*device), trouble)).collect();
            let at = if devices.is_empty() { "every device answers".into() } else { devices.join("; ") };
            let left = left_ms.map_or("there is no lease yet".into(), |(feed_ms, lease_ms)| {
                format!("the watchdog is fed for {feed_ms} ms more, the lease ends in {lease_ms} ms")
            });
            format!("no cycle was completed for {for_ms} ms (the tolerated stall is {stall_ms} ms): {at}; {left}")
        }
        Note::FeedingStopped { lease_left_ms, reset_ms, beat, ago_ms } => format!(
            "the watchdog is not fed any more: the lease ends in {lease_left_ms} ms, twice the watchdog's {reset_ms} ms; the last completed cycle is beat {beat}, {ago_ms} ms ago; this node is reset unless a cycle is completed at once"
        ),
        Note::CyclesAgain { beat, after_ms, lease_left_ms, is_fed } => {
            let lease = lease_left_ms.map_or("there is no lease".into(), |left_ms| format!("the lease ends in {left_ms} ms"));
            let fed = if *is_fed { "the watchdog is fed" } else { "the watchdog is not fed" };
            format!("beat {beat} was completed, {after_ms} ms after the one before: {lease}, {fed}")
        }
        Note::CycleTooLate { beat } => format!("beat {beat} was completed after its own lease would have ended: it changes nothing"),
    }
}

fn say_trouble(device: &str, trouble: &DeviceTrouble) -> String {
    match trouble {
        DeviceTrouble::Busy { work, for_ms } => {
            let work = match work {
                DeviceWork::ReadOwn => "the read of the own beat".into(),
                DeviceWork::ReadMailbox => "the read of the own mailbox".into(),
                DeviceWork::Cycle { beat } => format!("the write of beat {beat} or the mailbox read behind it"),
                DeviceWork::Clear => "the write that clears the own mailbox".into(),
                DeviceWork::Rename => "the write of the own name".into(),
            };
            format!("{device}: {work} has not come back for {for_ms} ms")
        }
        DeviceTrouble::Failed => format!("{device}: the last try failed, see above"),
        DeviceTrouble::Away => format!("{device}: does not count, it went back in time"),
    }
}

fn say_name(device: &str, found: &NameSeen) -> String {
    let (what, follows) = match found {
        NameSeen::Other { name } => (
            format!("carries the name {name:?} (somebody gave this slot away, as `sbd allocate` does)"),
            format!(
                "it is left alone, this node lives on, and a message to {name:?} reaches this node; stop the other node or give it another slot, then start this one anew"
            ),
        ),
        NameSeen::Damaged => ("holds bytes that are no node sector".into(), "it is being rewritten".into()),
        NameSeen::Empty | NameSeen::Own | NameSeen::NotRead => {
            ("is not in use any more (somebody made the SBD area anew, as `sbd create` does)".into(), "it is being rewritten".into())
        }
    };
    format!(
        "{device}: this node's sector in the SBD area {what}: stock tools cannot find this node until it is mended; {follows}; look at the area with `sbd -d {device} dump` and `fsck-deadbolt {device}`"
    )
}

/// A reset and its reason.
pub(crate) fn say_reset<'a>(command: ResetCommand, reason: &ResetReason, name: impl Fn(usize) -> &'a String) -> String {
    let why = match reason {
        ResetReason::Pill { device, sender } => format!("pill on {} from {sender:?}", name(*device)),
        ResetReason::LeaseEnded { lease_end_ms, now_ms } => {
            format!("no cycle was completed in time: the lease ended {} ms ago", now_ms.saturating_sub(*lease_end_ms))
        }
        ResetReason::TimeJump { elapsed_ms } => {
            format!("{elapsed_ms} ms passed between two turns: this node was stopped, others may count it gone")
        }
        ResetReason::ForeignBeat { device, boot, writer } => {
            format!(
                "{} carries a beat of boot {boot} writer {writer} in this node's place: a clone or a reverted snapshot lives here",
                name(*device)
            )
        }
        ResetReason::OwnPlaceReverted { device, found, completed } => {
            format!("{} shows beat {found} although {completed} was completed there: it went back in time", name(*device))
        }
        ResetReason::AnsweredBefore { writer } => {
            format!("an earlier sbd ({writer}) of this boot has answered a pill: this machine was promised to end, others count on it")
        }
        ResetReason::DaemonHung => "the daemon makes no turns and may hold something".into(),
        ResetReason::DaemonDiedHolding => "the daemon died while something may be held".into(),
        ResetReason::DaemonRestartedUnrecorded { generation } => {
            format!("a daemon was started before \"held nothing\" of generation {generation} was on the disk")
        }
    };
    let what = match command {
        ResetCommand::Reset => "reset",
        ResetCommand::Off => "power off",
        ResetCommand::Crash => "crash dump",
    };
    format!("{what} of this node: {why}")
}

/// A refusal.
pub(crate) fn say_refusal(reason: &RefuseReason) -> String {
    match reason {
        RefuseReason::LifeBeforeNotEnded { writer } => {
            format!(
                "an earlier sbd ({writer}) of this boot has neither stopped nor recorded that nothing was held: only a reset of this machine ends that life; reboot it"
            )
        }
        RefuseReason::SlotInUse { boot, first, second } => {
            format!(
                "the beat in this node's place advances ({first}, then {second}, boot {boot}): another machine lives in this slot; give this one another name, or stop the other"
            )
        }
        RefuseReason::NotClean { device, seen } => {
            let command = command_word(seen.command);
            format!(
                "the message {command} from {:?} stands in this node's mailbox on device {}, and the start mode is clean: look why it was sent, then clear it with `sbd message LOCAL clear`",
                seen.sender,
                device + 1
            )
        }
        RefuseReason::NotArmed => "the watchdog could not be armed".into(),
        RefuseReason::Stopped => "asked to stop before the first lease".into(),
    }
}
