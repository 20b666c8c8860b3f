//! What: one device on which this node registers its key, so that it may write.
//! Owns: when it may, and what must stand there afterwards.
//! Invariants: a boot whose key was taken away does not register again; done means that key and reservation were read back.
//! Does not: talk to a device.
//! Called by: the shell of an ejection, before this node takes part.

use deadbolt_disk_format::reservation::{Reservation, ReservationKey};

use crate::dialogue::{Answer, Dialogue, Objection, Step, check_reservation};

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    KeysBefore,
    ReservationBefore { is_own_there: bool, is_empty: bool },
    Registering { is_reserved: bool },
    Reserving,
    KeysAfter,
    ReservationAfter,
    Over(Result<(), Objection>),
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Registration {
    own: ReservationKey,
    /// This boot has registered here before.
    was_registered: bool,
    phase: Phase,
}

impl Registration {
    /// Registers `own`, the key of this boot.
    #[must_use]
    pub fn new(own: ReservationKey, was_registered: bool) -> Self {
        Self { own, was_registered, phase: Phase::KeysBefore }
    }

    fn after_reservation(&self, seen: Option<Reservation>, is_own_there: bool, is_empty: bool) -> Result<Phase, Objection> {
        // A target that forgot everything has ejected nobody.
        let has_forgotten = is_empty && seen.is_none();
        if self.was_registered && !is_own_there && !has_forgotten {
            return Err(Objection::Ejected { own: self.own });
        }
        if seen.is_some() {
            check_reservation(seen)?;
        }
        Ok(Phase::Registering { is_reserved: seen.is_some() })
    }

    fn after_keys(&self, keys: &[ReservationKey]) -> Result<Phase, Objection> {
        let is_own_there = keys.contains(&self.own);
        match self.phase {
            Phase::KeysBefore => Ok(Phase::ReservationBefore { is_own_there, is_empty: keys.is_empty() }),
            _ if is_own_there => Ok(Phase::ReservationAfter),
            _ => Err(Objection::NotKept { own: self.own }),
        }
    }

    fn next(&self, answer: Answer) -> Result<Phase, Objection> {
        match (self.phase, answer) {
            (Phase::KeysBefore | Phase::KeysAfter, Answer::Keys(keys)) => self.after_keys(&keys),
            (Phase::ReservationBefore { is_own_there, is_empty }, Answer::Reservation(seen)) => {
                self.after_reservation(seen, is_own_there, is_empty)
            }
            (Phase::Registering { is_reserved: true }, Answer::Done) => Ok(Phase::KeysAfter),
            (Phase::Registering { is_reserved: false }, Answer::Done) => Ok(Phase::Reserving),
            // In a conflict somebody else was first; what there is now is looked at in the end.
            (Phase::Reserving, Answer::Done | Answer::Conflict) => Ok(Phase::KeysAfter),
            (Phase::Registering { .. }, Answer::Refused | Answer::Conflict) | (Phase::Reserving, Answer::Refused) => {
                Err(Objection::Refused)
            }
            (Phase::ReservationAfter, Answer::Reservation(seen)) => check_reservation(seen).map(|_| Phase::Over(Ok(()))),
            (Phase::Over(end), _) => Ok(Phase::Over(end)),
            _ => Err(Objection::Confused),
        }
    }
}

impl Dialogue for Registration {
    fn step(&self) -> Step {
        match self.phase {
            Phase::KeysBefore | Phase::KeysAfter => Step::ReadKeys,
            Phase::ReservationBefore { .. } | Phase::ReservationAfter => Step::ReadReservation,
            Phase::Registering { .. } => Step::Register,
            Phase::Reserving => Step::Reserve,
            Phase::Over(end) => Step::Over(end),
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

    const OWN: ReservationKey = ReservationKey(1);
    const OTHER: ReservationKey = ReservationKey(2);

    fn disk(keys: &[ReservationKey], holder: Option<ReservationKey>) -> Disk {
        Disk::new(OWN, keys, holder)
    }

    #[test]
    fn who_may_register() {
        let gone = Err(Objection::Ejected { own: OWN });
        for (name, keys, holder, was_registered, expected) in [
            ("first of all", &[][..], None, false, Ok(())),
            ("beside others", &[OTHER], Some(OTHER), false, Ok(())),
            ("again", &[OTHER, OWN], Some(OTHER), true, Ok(())),
            ("again, after the reservation was released", &[OTHER, OWN], None, true, Ok(())),
            ("ejected", &[OTHER], Some(OTHER), true, gone),
            ("ejected, then released", &[OTHER], None, true, gone),
            ("a target that forgot", &[], None, true, Ok(())),
        ] {
            let mut disk = disk(keys, holder);
            let before = disk.keys.clone();
            assert_eq!(play(&mut Registration::new(OWN, was_registered), &mut disk), expected, "{name}");
            if expected.is_ok() {
                assert!(disk.keys.contains(&OWN) && disk.reservation.is_some(), "{name}");
            } else {
                assert_eq!(disk.keys, before, "{name}");
            }
        }
    }

    #[test]
    fn what_is_refused() {
        let register = |disk: &mut Disk| play(&mut Registration::new(OWN, false), disk);
        let mut foreign = disk(&[OTHER], Some(OTHER));
        foreign.reservation.as_mut().unwrap().kind = ReservationType::WriteExclusive;
        let found = Objection::OtherReservation { found: ReservationType::WriteExclusive, holder: OTHER };
        assert_eq!((register(&mut foreign), foreign.keys), (Err(found), alloc::vec![OTHER]));
        let cannot = |disk: Disk| register(&mut { disk });
        assert_eq!(cannot(Disk { refuses_register: true, ..disk(&[], None) }), Err(Objection::Refused));
        assert_eq!(cannot(Disk { refuses_reserve: true, ..disk(&[], None) }), Err(Objection::Refused));
        assert_eq!(cannot(Disk { throws_own_out: true, ..disk(&[], None) }), Err(Objection::NotKept { own: OWN }));
        assert_eq!(cannot(Disk { loses_reservation: true, ..disk(&[], None) }), Err(Objection::NoReservation));
    }
}
