//! What: the words between a machine and the shell that asks one device about reservations for it.
//! Owns: what can be asked, what can be answered, and why the end may be an objection.
//! Invariants: values only.
//! Does not: decide anything.
//! Called by: ejection, registration, their shell.

use alloc::vec::Vec;

use deadbolt_disk_format::reservation::{Reservation, ReservationKey, ReservationType};

/// The type of every reservation of ours: who is not registered cannot write.
pub const FENCING: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;

/// What the shell is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read all keys; answer [`Answer::Keys`].
    ReadKeys,
    /// Read the reservation; answer [`Answer::Reservation`].
    ReadReservation,
    /// Register this node's key, whatever is registered for its path.
    Register,
    /// Reserve as [`FENCING`] under this node's key.
    Reserve,
    /// Take this key away, and abort what its paths have under way.
    PreemptAbort(ReservationKey),
    /// Nothing more.
    Over(Result<(), Objection>),
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All keys, one for each path.
    Keys(Vec<ReservationKey>),
    /// The reservation, if there is one.
    Reservation(Option<Reservation>),
    /// Done.
    Done,
    /// The device said: reservation conflict.
    Conflict,
    /// The device does not know the command, or not so.
    Refused,
}

/// Drives one device towards an end, one question at a time.
pub trait Dialogue {
    /// What is to be done now; the same until it was answered.
    fn step(&self) -> Step;
    /// Takes the answer to the present step.
    fn handle(&mut self, answer: Answer);
}

/// Why something is not so on one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Objection {
    /// This node may not eject.
    #[error("this node's key {own} is not registered: it was ejected itself, or never registered; `fence_deadbolt -o on` registers it")]
    OwnKeyMissing {
        /// The key.
        own: ReservationKey,
    },
    /// The victim's name gives this node's key.
    #[error("{own} would be the victim's key and is this node's own: a node does not eject itself, and no two nodes may have one name")]
    OwnKey {
        /// The key.
        own: ReservationKey,
    },
    /// There was nothing to take away.
    #[error(
        "no key of the victim is registered: it never registered, or somebody else has ejected it; what it had under way was not aborted by this node"
    )]
    NothingRegistered,
    /// The key went away before it could be taken.
    #[error(
        "the key {key} was gone when it was to be taken away: somebody else ejects the same node; what it had under way was not aborted by this node"
    )]
    TakenByOther {
        /// The key.
        key: ReservationKey,
    },
    /// No preempt-and-abort.
    #[error(
        "not available: the device refuses preempt-and-abort, so that nothing ends what the victim has under way (tgt is such a target)"
    )]
    AbortRefused,
    /// A key is still there.
    #[error(
        "the victim's key {key} is registered after it was taken away: something registers it again by itself (multipathd's reservation_key?)"
    )]
    StillRegistered {
        /// The key.
        key: ReservationKey,
    },
    /// Nothing keeps anybody from writing.
    #[error("the device has no reservation although one was made: somebody releases or clears it")]
    NoReservation,
    /// A reservation of another type.
    #[error(
        "the device has a reservation of another type ({found}) held by {holder}: somebody else uses it; remove that first (sg_persist --out --clear)"
    )]
    OtherReservation {
        /// Its type.
        found: ReservationType,
        /// Whose it is.
        holder: ReservationKey,
    },
    /// This boot was thrown out.
    #[error(
        "this boot's key {own} was registered here and is gone: the node was ejected, and what its kernel still holds must not be written any more; reboot it"
    )]
    Ejected {
        /// The key.
        own: ReservationKey,
    },
    /// No registration or no reservation of our type.
    #[error(
        "not available: the device refuses to register keys that outlive its power loss, or to reserve as {FENCING}; it cannot be protected by reservations"
    )]
    Refused,
    /// Registered, and not found there.
    #[error("this node's key {own} is not there right after it was registered: somebody takes it away")]
    NotKept {
        /// The key.
        own: ReservationKey,
    },
    /// The shell answered something else than it was asked.
    #[error("an answer came that was not asked for; this is a bug")]
    Confused,
}

/// Is this what keeps the unregistered from writing?
pub(crate) fn check_reservation(seen: Option<Reservation>) -> Result<Reservation, Objection> {
    match seen {
        None => Err(Objection::NoReservation),
        Some(found) if found.kind != FENCING => Err(Objection::OtherReservation { found: found.kind, holder: found.holder }),
        Some(found) => Ok(found),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    /// A device as SCSI has it, and what may go wrong with it.
    #[derive(Debug)]
    pub(crate) struct Disk {
        pub(crate) own: ReservationKey,
        pub(crate) keys: Vec<ReservationKey>,
        pub(crate) reservation: Option<Reservation>,
        pub(crate) aborted: BTreeSet<ReservationKey>,
        pub(crate) refuses_abort: bool,
        pub(crate) refuses_reserve: bool,
        pub(crate) refuses_register: bool,
        /// Somebody else is faster.
        pub(crate) other_takes: bool,
        /// What is taken away is there again.
        pub(crate) comes_back: bool,
        /// After a change somebody releases.
        pub(crate) loses_reservation: bool,
        /// After a change somebody takes this node's key away.
        pub(crate) throws_own_out: bool,
    }

    impl Disk {
        pub(crate) fn new(own: ReservationKey, keys: &[ReservationKey], holder: Option<ReservationKey>) -> Self {
            Self {
                own,
                keys: keys.to_vec(),
                reservation: holder.map(|holder| Reservation { holder, kind: FENCING }),
                aborted: BTreeSet::new(),
                refuses_abort: false,
                refuses_reserve: false,
                refuses_register: false,
                other_takes: false,
                comes_back: false,
                loses_reservation: false,
                throws_own_out: false,
            }
        }

        fn register(&mut self) -> Answer {
            if self.refuses_register {
                return Answer::Refused;
            }
            if !self.keys.contains(&self.own) {
                self.keys.push(self.own);
            }
            Answer::Done
        }

        fn reserve(&mut self) -> Answer {
            match self.reservation {
                _ if self.refuses_reserve => return Answer::Refused,
                Some(found) if found.holder != self.own => return Answer::Conflict,
                _ => self.reservation = Some(Reservation { holder: self.own, kind: FENCING }),
            }
            Answer::Done
        }

        fn preempt_abort(&mut self, key: ReservationKey) -> Answer {
            if self.refuses_abort {
                return Answer::Refused;
            }
            if self.other_takes || !self.keys.contains(&key) || !self.keys.contains(&self.own) {
                return Answer::Conflict;
            }
            assert!(self.reservation.is_some(), "what is aborted could be sent again");
            self.aborted.insert(key);
            if !self.comes_back {
                self.keys.retain(|other| *other != key);
            }
            if let Some(found) = self.reservation.as_mut().filter(|found| found.holder == key) {
                found.holder = self.own;
            }
            Answer::Done
        }

        fn answer(&mut self, step: Step) -> Answer {
            let answer = match step {
                Step::ReadKeys => return Answer::Keys(self.keys.clone()),
                Step::ReadReservation => return Answer::Reservation(self.reservation),
                Step::Register => self.register(),
                Step::Reserve => self.reserve(),
                Step::PreemptAbort(key) => self.preempt_abort(key),
                Step::Over(_) => unreachable!("nothing is asked any more"),
            };
            if self.throws_own_out {
                self.keys.retain(|key| *key != self.own);
            }
            if self.loses_reservation && !matches!(step, Step::Register) {
                self.reservation = None;
            }
            answer
        }
    }

    /// Plays a machine to its end.
    pub(crate) fn play(machine: &mut impl Dialogue, disk: &mut Disk) -> Result<(), Objection> {
        for _ in 0..20 {
            match machine.step() {
                Step::Over(end) => return end,
                step => machine.handle(disk.answer(step)),
            }
        }
        panic!("it does not end: {disk:?}");
    }
}
