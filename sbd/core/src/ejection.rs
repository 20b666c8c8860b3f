//! What: one device on which a node, or one boot of it, is ejected: its keys are taken away with what it has under way, and that is read back.
//! Owns: when that counts.
//! Invariants: it counts only when this node itself took a key of the victim away with abort, and afterwards found none of them, its own
//!   key, and a reservation that keeps the unregistered from writing.
//! Does not: talk to a device, or say that a node is gone: that takes every protected device.
//! Called by: the shell of an ejection.

use alloc::vec::Vec;

use deadbolt_disk_format::reservation::{KeyOwner, ReservationKey};

use crate::dialogue::{Answer, Dialogue, Objection, Step, check_reservation};

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    KeysBefore,
    ReservationBefore,
    Reserving,
    Taking,
    KeysAfter,
    ReservationAfter,
    Over(Result<(), Objection>),
}

/// Whose keys are taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ejected {
    /// A node's, of all of its boots.
    Node(KeyOwner),
    /// One boot's: the node's next one keeps its own.
    Boot(ReservationKey),
}

impl Ejected {
    fn owns(self, key: ReservationKey) -> bool {
        match self {
            Self::Node(owner) => owner.owns(key),
            Self::Boot(own) => own == key,
        }
    }
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Ejection {
    own: ReservationKey,
    victim: Ejected,
    phase: Phase,
    /// Keys of the victim that are to be taken away.
    left: Vec<ReservationKey>,
}

impl Ejection {
    /// Ejects a victim, by the node whose key is `own`.
    #[must_use]
    pub fn new(own: ReservationKey, victim: Ejected) -> Self {
        let phase = if victim.owns(own) { Phase::Over(Err(Objection::OwnKey { own })) } else { Phase::KeysBefore };
        Self { own, victim, phase, left: Vec::new() }
    }

    fn after_keys(&mut self, mut keys: Vec<ReservationKey>) -> Result<Phase, Objection> {
        if !keys.contains(&self.own) {
            return Err(Objection::OwnKeyMissing { own: self.own });
        }
        keys.retain(|key| self.victim.owns(*key));
        keys.sort_unstable();
        keys.dedup();
        let is_before = self.phase == Phase::KeysBefore;
        match keys.first() {
            None if is_before => Err(Objection::NothingRegistered),
            None => Ok(Phase::ReservationAfter),
            Some(key) if !is_before => Err(Objection::StillRegistered { key: *key }),
            Some(_) => {
                self.left = keys;
                Ok(Phase::ReservationBefore)
            }
        }
    }

    fn after_taking(&mut self, answer: &Answer) -> Result<Phase, Objection> {
        let key = self.left.pop().ok_or(Objection::Confused)?;
        match answer {
            Answer::Done if self.left.is_empty() => Ok(Phase::KeysAfter),
            Answer::Done => Ok(Phase::Taking),
            Answer::Conflict => Err(Objection::TakenByOther { key }),
            Answer::Refused => Err(Objection::AbortRefused),
            Answer::Keys(_) | Answer::Reservation(_) => Err(Objection::Confused),
        }
    }

    fn next(&mut self, answer: Answer) -> Result<Phase, Objection> {
        match (self.phase, answer) {
            (Phase::KeysBefore | Phase::KeysAfter, Answer::Keys(keys)) => self.after_keys(keys),
            (Phase::ReservationBefore, Answer::Reservation(None)) => Ok(Phase::Reserving),
            (Phase::ReservationBefore, Answer::Reservation(seen)) => check_reservation(seen).map(|_| Phase::Taking),
            // In a conflict somebody else was first; what there is now is looked at in the end.
            (Phase::Reserving, Answer::Done | Answer::Conflict) => Ok(Phase::Taking),
            (Phase::Reserving, Answer::Refused) => Err(Objection::Refused),
            (Phase::Taking, answer) => self.after_taking(&answer),
            (Phase::ReservationAfter, Answer::Reservation(seen)) => match check_reservation(seen)? {
                reservation if self.victim.owns(reservation.holder) => Err(Objection::StillRegistered { key: reservation.holder }),
                _ => Ok(Phase::Over(Ok(()))),
            },
            (Phase::Over(end), _) => Ok(Phase::Over(end)),
            _ => Err(Objection::Confused),
        }
    }
}

impl Dialogue for Ejection {
    fn step(&self) -> Step {
        match (self.phase, self.left.last()) {
            (Phase::KeysBefore | Phase::KeysAfter, _) => Step::ReadKeys,
            (Phase::ReservationBefore | Phase::ReservationAfter, _) => Step::ReadReservation,
            (Phase::Reserving, _) => Step::Reserve,
            (Phase::Taking, Some(key)) => Step::PreemptAbort(*key),
            (Phase::Taking, None) => Step::Over(Err(Objection::Confused)),
            (Phase::Over(end), _) => Step::Over(end),
        }
    }

    fn handle(&mut self, answer: Answer) {
        self.phase = self.next(answer).unwrap_or_else(|objection| Phase::Over(Err(objection)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialogue::tests::{Disk, play};
    use deadbolt_disk_format::reservation::ReservationType;
    use deadbolt_disk_format::{BootId, ClusterUuid};

    fn owner(name: &str) -> KeyOwner {
        KeyOwner::new(ClusterUuid([0; 16]), name)
    }

    fn key(name: &str, boot: u8) -> ReservationKey {
        owner(name).key(BootId([boot; 16]))
    }

    /// Two nodes and a third, the victim with two paths, reserved by `holder`.
    fn disk(holder: &str) -> Disk {
        let keys = [key("a", 1), key("victim", 1), key("victim", 1), key("c", 1)];
        Disk::new(key("a", 1), &keys, Some(key(holder, 1)))
    }

    fn eject(disk: &mut Disk) -> Result<(), Objection> {
        play(&mut Ejection::new(key("a", 1), Ejected::Node(owner("VICTIM"))), disk)
    }

    #[test]
    fn the_victims_keys_are_taken_and_nobody_elses() {
        for holder in ["a", "victim", "c"] {
            let mut disk = disk(holder);
            disk.keys.push(key("victim", 2));
            assert_eq!(eject(&mut disk), Ok(()), "reserved by {holder}");
            assert_eq!(disk.keys, [key("a", 1), key("c", 1)]);
            assert_eq!(disk.aborted, [key("victim", 1), key("victim", 2)].into_iter().collect());
            assert_eq!(disk.reservation.unwrap().holder, key(if holder == "victim" { "a" } else { holder }, 1));
        }
    }

    #[test]
    fn of_one_boot_the_next_keeps_its_key() {
        let mut disk = disk("victim");
        disk.keys.push(key("victim", 2));
        assert_eq!(play(&mut Ejection::new(key("a", 1), Ejected::Boot(key("victim", 1))), &mut disk), Ok(()));
        assert_eq!(disk.keys, [key("a", 1), key("c", 1), key("victim", 2)]);
        let own = Ejection::new(key("a", 1), Ejected::Boot(key("a", 1)));
        assert_eq!(own.step(), Step::Over(Err(Objection::OwnKey { own: key("a", 1) })));
        // A late one, of a boot that is over: nothing of the next one is touched.
        assert_eq!(play(&mut Ejection::new(key("a", 1), Ejected::Boot(key("victim", 1))), &mut disk), Err(Objection::NothingRegistered));
        assert_eq!(disk.keys.len(), 3);
    }

    #[test]
    fn a_device_without_a_reservation_gets_one_first() {
        let mut disk = disk("a");
        disk.reservation = None;
        assert_eq!(eject(&mut disk), Ok(()));
        assert_eq!(disk.reservation.unwrap().holder, key("a", 1));
    }

    #[test]
    fn what_does_not_count() {
        type Spoil = fn(&mut Disk);
        let table: [(&str, Spoil, Objection); 10] = [
            ("abort is not known", |disk| disk.refuses_abort = true, Objection::AbortRefused),
            ("not registered", |disk| disk.keys.retain(|other| *other != key("a", 1)), Objection::OwnKeyMissing { own: key("a", 1) }),
            ("registered under another boot", |disk| disk.keys[0] = key("a", 2), Objection::OwnKeyMissing { own: key("a", 1) }),
            ("the victim is not there", |disk| disk.keys.retain(|other| *other != key("victim", 1)), Objection::NothingRegistered),
            ("another was faster", |disk| disk.other_takes = true, Objection::TakenByOther { key: key("victim", 1) }),
            ("it comes back", |disk| disk.comes_back = true, Objection::StillRegistered { key: key("victim", 1) }),
            (
                "another type",
                |disk| disk.reservation.as_mut().unwrap().kind = ReservationType::ExclusiveAccess,
                Objection::OtherReservation { found: ReservationType::ExclusiveAccess, holder: key("c", 1) },
            ),
            ("the reservation goes away", |disk| disk.loses_reservation = true, Objection::NoReservation),
            ("this node is thrown out meanwhile", |disk| disk.throws_own_out = true, Objection::OwnKeyMissing { own: key("a", 1) }),
            (
                "cannot be reserved",
                |disk| {
                    disk.reservation = None;
                    disk.refuses_reserve = true;
                },
                Objection::Refused,
            ),
        ];
        for (name, spoil, expected) in table {
            let mut disk = disk("c");
            spoil(&mut disk);
            assert_eq!(eject(&mut disk), Err(expected), "{name}");
        }
    }

    #[test]
    fn nobody_ejects_itself() {
        let mut disk = disk("a");
        let mut machine = Ejection::new(key("a", 1), Ejected::Node(owner("A")));
        assert_eq!(play(&mut machine, &mut disk), Err(Objection::OwnKey { own: key("a", 1) }));
        assert!(disk.aborted.is_empty());
    }

    #[test]
    fn an_answer_that_was_not_asked_for_ends_it() {
        for answer in [Answer::Done, Answer::Conflict, Answer::Refused, Answer::Reservation(None)] {
            let mut machine = Ejection::new(key("a", 1), Ejected::Node(owner("victim")));
            machine.handle(answer);
            assert_eq!(machine.step(), Step::Over(Err(Objection::Confused)));
            machine.handle(Answer::Keys(Vec::new()));
            assert_eq!(machine.step(), Step::Over(Err(Objection::Confused)));
        }
    }
}
