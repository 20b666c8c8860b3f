//! What: judgement of the own mailbox: is it a pill, for whom, and must it be obeyed.
//! Owns: the meaning of the SBD commands for a node of ours, and when a mailbox may be erased.
//! Invariants: what is not understood is never erased before it was read three times the same; a pill for this boot is obeyed by every life of sbd.
//! Does not: decode bytes or compute a MAC; that was done by the reader.
//! Called by: the lifeline machine.

use alloc::string::String;

use deadbolt_disk_format::BootId;

use crate::lifeline::ResetCommand;

/// SBD mailbox commands (compatibility).
const CLEAR: u8 = 0;
const TEST: u8 = 1;
const RESET: u8 = 2;
const OFF: u8 = 3;
pub(crate) const EXIT: u8 = 4;
const CRASH: u8 = 5;
/// Values from here on are negative for stock sbd, whose watcher ignores them.
const NEGATIVE: u8 = 128;
/// How often a mailbox that is not obeyed is read the same before it is erased. Chosen: one more than the two that show it is no torn write.
const READS_BEFORE_CLEAR: u8 = 3;

/// May a pill be obeyed that does not say for which boot it is (stock sbd writes these)?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LegacyPills {
    /// Yes: a stock tool can fence this node.
    #[default]
    Accept,
    /// No: only pills of our own tools count.
    Refuse,
}

/// What is known of a pill's MAC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authenticity {
    /// It was made with the cluster's key.
    Verified,
    /// This sbd was given no key.
    Unchecked,
    /// It was not made with the cluster's key, or was damaged.
    Forged,
}

/// Our own tail of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailSeen {
    /// Which life of the machine shall end.
    pub boot: BootId,
    /// Serial of the request.
    pub serial: u64,
    /// Was it made with the cluster's key?
    pub authenticity: Authenticity,
}

/// A mailbox as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailboxSeen {
    /// The command byte.
    pub command: u8,
    /// Who says that it wrote it; for people only.
    pub sender: String,
    /// Present when one of our own tools wrote it.
    pub tail: Option<TailSeen>,
}

impl MailboxSeen {
    /// An empty mailbox.
    #[must_use]
    pub fn clear() -> Self {
        Self { command: CLEAR, sender: String::new(), tail: None }
    }

    /// Does it name this boot, and was it so since that boot's own watcher wrote it? A serial of zero says that it was not.
    #[must_use]
    pub fn is_signed(&self, boot: BootId) -> bool {
        self.tail.is_some_and(|tail| tail.boot == boot && tail.serial != 0)
    }
}

/// What a mailbox asks of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailboxVerdict {
    /// Nothing.
    Empty,
    /// Nothing, not even what a watcher leaves: that it lives there, and no program of stock since.
    Unsigned,
    /// A test: answered by erasing it.
    Answer,
    /// A pill for this life: end it.
    Obey(ResetCommand),
    /// A pill that names another boot of this machine: not obeyed, and left alone. Erasing it could cover a newer pill for this boot
    /// that was written in between (found by search).
    Stale,
    /// A pill that names no boot and stood there before this boot wrote anything: erased, not obeyed. Left alone it would be obeyed
    /// from the first beat on.
    Outdated,
    /// The watcher shall end. Obeyed by a drop-in watcher only.
    Stop,
    /// Not obeyed, by configuration or because it is not authentic; erased after it was read again.
    Refused,
    /// Not a command that we know; erased after it was read again.
    Unknown,
    /// Ignored and left alone, as stock sbd does.
    Ignored,
}

/// Was this machine's boot the same when its place was last written?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PillAge {
    /// The pill may have been written at any time in this life.
    ThisLife,
    /// It was found before the first beat of a new boot: one that names no boot was meant for the boot before.
    BeforeThisBoot,
}

/// Judges a mailbox.
#[must_use]
pub fn judge_mailbox(seen: &MailboxSeen, boot: BootId, legacy: LegacyPills, age: PillAge) -> MailboxVerdict {
    let command = match seen.command {
        CLEAR => return MailboxVerdict::Empty,
        TEST => return MailboxVerdict::Answer,
        RESET => ResetCommand::Reset,
        OFF => ResetCommand::Off,
        CRASH => ResetCommand::Crash,
        // A node that holds something may not be disarmed from outside; `deadbolt stop` is the way.
        EXIT => return MailboxVerdict::Refused,
        NEGATIVE.. => return MailboxVerdict::Ignored,
        _ => return MailboxVerdict::Unknown,
    };
    match (seen.tail, legacy) {
        (Some(TailSeen { authenticity: Authenticity::Forged, .. }), _) => MailboxVerdict::Refused,
        (Some(tail), _) if tail.boot == boot => MailboxVerdict::Obey(command),
        (Some(_), _) => MailboxVerdict::Stale,
        (None, _) if age == PillAge::BeforeThisBoot => MailboxVerdict::Outdated,
        (None, LegacyPills::Accept) => MailboxVerdict::Obey(command),
        (None, LegacyPills::Refuse) => MailboxVerdict::Refused,
    }
}

/// Remembers what the last reads of one device's mailbox showed.
#[derive(Clone, Debug, Default)]
pub struct MailboxWatch {
    last: Option<MailboxSeen>,
    count: u8,
}

/// What follows from one more read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MailboxStep {
    /// The judgement.
    pub verdict: MailboxVerdict,
    /// No pill, and that is certain: the read counts for its cycle.
    pub counts: bool,
    /// Erase it now.
    pub clear: bool,
    /// It is new to us: tell people.
    pub is_new: bool,
}

impl MailboxWatch {
    /// Takes in one more read.
    pub fn handle_read(&mut self, seen: MailboxSeen, verdict: MailboxVerdict) -> MailboxStep {
        let is_new = self.last.as_ref() != Some(&seen);
        self.count = if is_new { 1 } else { self.count.saturating_add(1) };
        self.last = Some(seen);
        let is_judged = self.count >= READS_BEFORE_CLEAR;
        let (counts, clear) = match verdict {
            MailboxVerdict::Empty | MailboxVerdict::Ignored | MailboxVerdict::Stale | MailboxVerdict::Stop => (true, false),
            MailboxVerdict::Answer | MailboxVerdict::Outdated | MailboxVerdict::Unsigned => (true, true),
            MailboxVerdict::Obey(_) => (false, false),
            MailboxVerdict::Refused | MailboxVerdict::Unknown => (is_judged, is_judged),
        };
        let is_empty = matches!(verdict, MailboxVerdict::Empty | MailboxVerdict::Unsigned);
        MailboxStep { verdict, counts, clear, is_new: is_new && !is_empty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const BOOT: BootId = BootId([1; 16]);
    const OTHER: BootId = BootId([2; 16]);

    fn seen(command: u8, tail: Option<(BootId, Authenticity)>) -> MailboxSeen {
        MailboxSeen { command, sender: "n".to_string(), tail: tail.map(|(boot, authenticity)| TailSeen { boot, serial: 1, authenticity }) }
    }

    #[test]
    fn judgement_table() {
        use Authenticity::{Forged, Unchecked, Verified};
        use LegacyPills::{Accept, Refuse};
        use MailboxVerdict as V;
        use PillAge::{BeforeThisBoot as Before, ThisLife as Now};
        let reset = V::Obey(ResetCommand::Reset);
        let table = [
            (0, None, Accept, Now, V::Empty),
            (1, None, Accept, Now, V::Answer),
            (1, None, Refuse, Before, V::Answer),
            (2, None, Accept, Now, reset),
            (3, None, Accept, Now, V::Obey(ResetCommand::Off)),
            (4, None, Accept, Now, V::Refused),
            (5, None, Accept, Now, V::Obey(ResetCommand::Crash)),
            (2, None, Refuse, Now, V::Refused),
            (2, None, Accept, Before, V::Outdated),
            (2, None, Refuse, Before, V::Outdated),
            (2, Some((BOOT, Verified)), Refuse, Now, reset),
            (2, Some((BOOT, Unchecked)), Accept, Now, reset),
            (2, Some((BOOT, Verified)), Accept, Before, reset), // a restart of sbd makes no pill stale
            (2, Some((BOOT, Forged)), Accept, Now, V::Refused),
            (2, Some((OTHER, Verified)), Accept, Now, V::Stale),
            (2, Some((OTHER, Forged)), Accept, Now, V::Refused),
            (0, Some((BOOT, Verified)), Accept, Now, V::Empty),
            (6, None, Accept, Now, V::Unknown),
            (127, Some((BOOT, Verified)), Accept, Now, V::Unknown),
            (128, None, Accept, Now, V::Ignored),
            (255, None, Accept, Now, V::Ignored),
        ];
        for (command, tail, legacy, age, expected) in table {
            assert_eq!(judge_mailbox(&seen(command, tail), BOOT, legacy, age), expected, "{command} {tail:?} {legacy:?} {age:?}");
        }
    }

    #[test]
    fn a_pill_for_another_boot_is_left_where_it_is() {
        let stale = seen(2, Some((OTHER, Authenticity::Verified)));
        let mut watch = MailboxWatch::default();
        for _ in 0..5 {
            let step = watch.handle_read(stale.clone(), MailboxVerdict::Stale);
            assert!(step.counts && !step.clear);
        }
        assert!(watch.handle_read(seen(2, None), MailboxVerdict::Outdated).clear);
    }

    #[test]
    fn unknown_is_erased_only_after_three_equal_reads() {
        let mut watch = MailboxWatch::default();
        let step = |watch: &mut MailboxWatch, command| {
            watch.handle_read(seen(command, None), judge_mailbox(&seen(command, None), BOOT, LegacyPills::Accept, PillAge::ThisLife))
        };
        for (command, counts, clear, is_new) in [
            (9, false, false, true),
            (9, false, false, false),
            (8, false, false, true),
            (8, false, false, false),
            (8, true, true, false),
            (8, true, true, false),
            (0, true, false, false),
        ] {
            let got = step(&mut watch, command);
            assert_eq!((got.counts, got.clear, got.is_new), (counts, clear, is_new), "{command}");
        }
        let pill = step(&mut watch, 2);
        assert!(!pill.counts && !pill.clear && pill.verdict == MailboxVerdict::Obey(ResetCommand::Reset));
    }
}
