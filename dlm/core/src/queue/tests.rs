//! What: one resource alone: what a rebuild may tell holders whose answers were lost with the master.
//! Owns: reports made by hand.
//! Invariants: none of its own.
//! Does not: know messages; `service` does.
//! Called by: `cargo test`.

use super::*;
use crate::name::Key;

fn peer(slot: u16) -> PeerId {
    PeerId::of(slot + 1)
}

fn owner(slot: u16) -> Owner {
    Owner { peer: peer(slot), lock: 1 }
}

const CLOSED: Gate = Gate { now_ms: 1, view: 2, may_grant: false };
const OPEN: Gate = Gate { now_ms: 1, view: 2, may_grant: true };

fn report(slot: u16, granted: Mode, pending: Option<ReportOp>) -> (PeerId, Report) {
    let key = Key::new(1, b"r").unwrap();
    let (token, lvb) = (Token { view: 1, counter: 5 }, LvbCopy::default());
    (peer(slot), Report { key, lock: 1, pid: 1, party: Party::Session(1), op: 2, granted: Some(granted), token, lvb, pending })
}

fn converting(mode: Mode, flags: Flags, is_cancelled: bool) -> Option<ReportOp> {
    Some(ReportOp { kind: OpKind::Convert, mode, flags, lvb: None, is_cancelled })
}

/// Status and mode of what a holder was told last.
fn told(out: &Notices, owner: Owner) -> Option<(LockStatus, Option<Mode>)> {
    out.iter().rev().find_map(|(to, notice)| match notice {
        Notice::Completed(result) if *to == owner => Some((result.status, result.mode)),
        _ => None,
    })
}

fn are_compatible(resource: &Resource) -> bool {
    let modes: Vec<Mode> = resource.entries().filter_map(|entry| entry.granted).collect();
    modes.iter().enumerate().all(|(index, one)| modes.iter().skip(index + 1).all(|other| one.is_compatible(*other)))
}

#[test]
fn what_only_the_lost_master_can_have_granted_is_granted_even_when_cancelled() {
    let cases = [
        (Mode::Pr, Mode::Cw, Flags::NONE, Mode::Cw),
        (Mode::Cw, Mode::Pr, Flags::NONE, Mode::Pr),
        (Mode::Pr, Mode::Ex, Flags::ALTCW, Mode::Cw),
        (Mode::Cw, Mode::Ex, Flags::ALTPR, Mode::Pr),
        (Mode::Pw, Mode::Ex, Flags::ALTCW, Mode::Cw),
    ];
    for (from, wanted, flags, granted) in cases {
        for is_cancelled in [true, false] {
            let reports = [report(0, from, converting(wanted, flags, is_cancelled)), report(1, granted, None)];
            let mut out = Vec::new();
            let mut resource = Resource::rebuild(&reports, 0, CLOSED, &mut out);
            resource.cancel(owner(0), 2, CLOSED, &mut out);
            assert_eq!(told(&out, owner(0)), Some((LockStatus::Success, Some(granted))), "{from} {wanted} {is_cancelled}");
            assert!(are_compatible(&resource));
            let entry = resource.find_mut(owner(0)).unwrap();
            assert!(entry.token.view == 2 || granted < from, "a grant of this view has a token of this view");
        }
    }
}

#[test]
fn a_conversion_that_an_owed_node_may_rely_on_is_not_taken_back_before_the_gate_opens() {
    for is_reported in [true, false] {
        // The owed node may have CW since the lost master granted CW here.
        let mut out = Vec::new();
        let mut resource = Resource::rebuild(&[report(0, Mode::Pr, converting(Mode::Cw, Flags::NONE, is_reported))], 0, CLOSED, &mut out);
        if !is_reported {
            resource.cancel(owner(0), 2, CLOSED, &mut out);
        }
        assert_eq!(told(&out, owner(0)), None);
        resource.settle(OPEN, &mut out);
        assert_eq!(told(&out, owner(0)), Some((LockStatus::Cancelled, Some(Mode::Pr))));
        assert!(resource.entries().all(|entry| entry.wanted.is_none()));
        resource.convert(owner(0), 3, Mode::Ex, (Flags::NONE, None), OPEN, &mut out);
        assert_eq!(told(&out, owner(0)), Some((LockStatus::Success, Some(Mode::Ex))), "the next conversion is cancelled by nobody");
    }
}

#[test]
fn two_conversions_that_cross_are_decided_one_way() {
    for (first, second) in [(true, true), (true, false), (false, false)] {
        let reports =
            [report(0, Mode::Pr, converting(Mode::Cw, Flags::NONE, first)), report(1, Mode::Cw, converting(Mode::Pr, Flags::NONE, second))];
        let mut out = Vec::new();
        let mut resource = Resource::rebuild(&reports, 0, CLOSED, &mut out);
        assert!(told(&out, owner(0)).is_none() && told(&out, owner(1)).is_none(), "either may be so: an owed node may know");
        resource.settle(OPEN, &mut out);
        assert!(are_compatible(&resource), "{:?}", resource.entries().map(|entry| entry.granted).collect::<Vec<_>>());
        // A third holder decides it at once.
        let reports = [reports[0], reports[1], report(2, Mode::Pr, None)];
        let mut out = Vec::new();
        let resource = Resource::rebuild(&reports, 0, CLOSED, &mut out);
        assert_eq!((told(&out, owner(0)), told(&out, owner(1))), (None, Some((LockStatus::Success, Some(Mode::Pr)))));
        assert!(are_compatible(&resource));
    }
}

/// Sequence, validity and content of the value block as a holder was told it last.
fn told_lvb(out: &Notices, owner: Owner) -> Option<LvbCopy> {
    out.iter().rev().find_map(|(to, notice)| match notice {
        Notice::Completed(result) if *to == owner => Some(result.lvb),
        _ => None,
    })
}

fn granted(slot: u16, mode: Mode) -> Entry {
    Entry::new(owner(slot), (1, Party::Session(1)), 1, mode, Flags::VALBLK, 1)
}

#[test]
fn a_write_that_is_said_again_goes_by_its_own_number() {
    let (mut resource, mut out) = (Resource::default(), Vec::new());
    for slot in [0, 1] {
        resource.request(granted(slot, Mode::Ex), OPEN, &mut out);
    }
    resource.convert(owner(0), 2, Mode::Nl, (Flags::VALBLK, Some([1; 32])), OPEN, &mut out);
    assert_eq!(told_lvb(&out, owner(0)).map(|lvb| (lvb.sequence, lvb.is_invalid)), Some((1, false)));
    resource.unlock(owner(1), 2, (Flags::VALBLK, Some([2; 32])), OPEN, &mut out);
    let pending = ReportOp { kind: OpKind::Convert, mode: Mode::Nl, flags: Flags::VALBLK, lvb: Some([1; 32]), is_cancelled: false };
    let (origin, report) = report(0, Mode::Ex, Some(pending));
    resource.begin_view(|_| true);
    resource.reconcile(origin, &report, CLOSED, &mut out);
    assert_eq!(told_lvb(&out, owner(0)), Some(LvbCopy { sequence: 1, is_invalid: true, value: None }));
}

#[test]
fn a_write_that_a_lost_master_took_gets_no_number_of_another_value() {
    for (other, wanted) in [([2; 32], 0), ([1; 32], 2)] {
        let pending = ReportOp { kind: OpKind::Convert, mode: Mode::Nl, flags: Flags::VALBLK, lvb: Some([1; 32]), is_cancelled: false };
        let mut reader = report(1, Mode::Pr, None);
        reader.1.lvb = LvbCopy { sequence: 2, is_invalid: false, value: Some(other) };
        let mut out = Vec::new();
        let resource = Resource::rebuild(&[report(0, Mode::Ex, Some(pending)), reader], 0, CLOSED, &mut out);
        assert_eq!(resource.lvb(), reader.1.lvb);
        assert_eq!(told_lvb(&out, owner(0)).map(|lvb| (lvb.sequence, lvb.value)), Some((wanted, None)));
    }
}

fn held(resource: &Resource, slot: u16) -> Option<Mode> {
    resource.entries().find(|entry| entry.owner == owner(slot)).and_then(|entry| entry.granted)
}

#[test]
fn a_conversion_that_keeps_its_turn_passes_nobody_unless_it_ignores_the_order() {
    for (flags, wanted) in [(Flags::NOORDER, Mode::Cr), (Flags::QUECVT, Mode::Nl), (Flags::NOORDER.with(Flags::QUECVT), Mode::Cr)] {
        let (mut resource, mut out) = (Resource::default(), Vec::new());
        for (slot, mode) in [(0, Mode::Pr), (1, Mode::Cr), (2, Mode::Nl)] {
            resource.request(granted(slot, mode), OPEN, &mut out);
        }
        resource.convert(owner(1), 2, Mode::Ex, (Flags::NONE, None), OPEN, &mut out);
        resource.convert(owner(2), 2, Mode::Cr, (flags, None), OPEN, &mut out);
        assert_eq!((held(&resource, 1), held(&resource, 2)), (Some(Mode::Cr), Some(wanted)));
    }
}

#[test]
fn only_a_new_lock_that_excludes_nobody_is_granted_past_everybody() {
    let (mut resource, mut out) = (Resource::default(), Vec::new());
    for (slot, mode) in [(0, Mode::Nl), (1, Mode::Ex), (2, Mode::Ex)] {
        resource.request(granted(slot, mode), OPEN, &mut out);
    }
    for (slot, mode) in [(3, Mode::Nl), (4, Mode::Pr)] {
        resource.request(Entry { flags: Flags::EXPEDITE, ..granted(slot, mode) }, OPEN, &mut out);
    }
    resource.convert(owner(0), 2, Mode::Pr, (Flags::EXPEDITE, None), OPEN, &mut out);
    assert_eq!([0, 1, 2, 3, 4].map(|slot| held(&resource, slot)), [Some(Mode::Nl), Some(Mode::Ex), None, Some(Mode::Nl), None]);
}

#[test]
fn a_resource_takes_no_more_waiters_than_it_can_serve() {
    for gate in [OPEN, CLOSED] {
        let (mut resource, mut out) = (Resource::default(), Vec::new());
        resource.request(granted(0, Mode::Ex), OPEN, &mut out);
        for lock in 0..=u32::try_from(WAITERS_MAX).unwrap() {
            let entry = Entry { owner: Owner { peer: peer(1), lock }, ..granted(1, Mode::Pr) };
            out.clear();
            resource.request(entry, gate, &mut out);
        }
        assert_eq!(out.len(), 1);
        assert!(matches!(out[0].1, Notice::Completed(OpResult { status: LockStatus::NoMemory, mode: None, .. })));
        assert_eq!(resource.entries().count(), WAITERS_MAX + 1);
        out.clear();
        resource.unlock(owner(0), 2, (Flags::NONE, None), OPEN, &mut out);
        assert_eq!(resource.entries().filter(|entry| entry.granted.is_some()).count(), WAITERS_MAX);
    }
}

#[test]
fn who_ignores_the_order_is_granted_from_behind_one_that_must_wait() {
    let (mut resource, mut out) = (Resource::default(), Vec::new());
    for (slot, mode, flags) in [
        (0, Mode::Pr, Flags::NONE),
        (1, Mode::Pw, Flags::NONE),
        (2, Mode::Ex, Flags::NONE),
        (3, Mode::Cw, Flags::NOORDER),
        (4, Mode::Cr, Flags::NONE),
    ] {
        resource.request(Entry { flags, ..granted(slot, mode) }, OPEN, &mut out);
    }
    assert_eq!([1, 2, 3, 4].map(|slot| held(&resource, slot)), [None; 4]);
    resource.convert(owner(0), 2, Mode::Cr, (Flags::NONE, None), OPEN, &mut out);
    assert_eq!([1, 2, 3, 4].map(|slot| held(&resource, slot)), [Some(Mode::Pw), None, None, None]);
    resource.convert(owner(1), 2, Mode::Cr, (Flags::NONE, None), OPEN, &mut out);
    assert_eq!([1, 2, 3, 4].map(|slot| held(&resource, slot)), [Some(Mode::Cr), None, Some(Mode::Cw), None]);
}

/// One resource with a holder and somebody who waits; counts how many others go before the latter.
fn passes_until_served(waiter: (u16, Mode), mut turn: impl FnMut(&mut Resource, u64, &mut Notices), resource: &mut Resource) -> u64 {
    let mut out = Vec::new();
    for op in 10..500 {
        if held(resource, waiter.0) == Some(waiter.1) {
            return op - 10;
        }
        turn(resource, op, &mut out);
        assert!(are_compatible(resource));
    }
    panic!("passed for ever");
}

fn with(entries: &[(u16, Mode)]) -> Resource {
    let (mut resource, mut out) = (Resource::default(), Vec::new());
    for (slot, mode) in entries {
        resource.request(granted(*slot, *mode), OPEN, &mut out);
    }
    resource
}

#[test]
fn conversions_that_take_turns_pass_a_new_request_only_so_often() {
    // Two holders hand EX to each other by conversions; a third one wants it.
    let mut resource = with(&[(0, Mode::Nl), (1, Mode::Nl)]);
    let mut out = Vec::new();
    resource.convert(owner(0), 2, Mode::Ex, (Flags::NONE, None), OPEN, &mut out);
    resource.request(granted(2, Mode::Ex), OPEN, &mut out);
    let turn = |resource: &mut Resource, op: u64, out: &mut Notices| {
        let (has, wants) = if held(resource, 0) == Some(Mode::Ex) { (0, 1) } else { (1, 0) };
        resource.convert(owner(wants), op, Mode::Ex, (Flags::NONE, None), OPEN, out);
        resource.convert(owner(has), op, Mode::Nl, (Flags::NONE, None), OPEN, out);
    };
    let passes = passes_until_served((2, Mode::Ex), turn, &mut resource);
    assert_eq!(passes, u64::from(fairness::PASSES_MAX) + 1);
    // Then the conversion that let it go first has its turn.
    resource.unlock(owner(2), 2, (Flags::NONE, None), OPEN, &mut out);
    assert!([0, 1].into_iter().any(|slot| held(&resource, slot) == Some(Mode::Ex)));
}

#[test]
fn conversions_that_barge_pass_a_queued_conversion_only_so_often() {
    // Readers come and go by conversions that need not queue; one lock converts to EX.
    let mut out = Vec::new();
    let mut resource = with(&[(0, Mode::Nl), (1, Mode::Pr), (2, Mode::Nl)]);
    resource.convert(owner(0), 2, Mode::Ex, (Flags::NONE, None), OPEN, &mut out);
    let turn = |resource: &mut Resource, op: u64, out: &mut Notices| {
        let (has, other) = if held(resource, 1) == Some(Mode::Pr) { (1, 2) } else { (2, 1) };
        resource.convert(owner(other), op, Mode::Pr, (Flags::NONE, None), OPEN, out);
        resource.convert(owner(has), op, Mode::Nl, (Flags::NONE, None), OPEN, out);
    };
    assert_eq!(passes_until_served((0, Mode::Ex), turn, &mut resource), u64::from(fairness::PASSES_MAX) + 1);
}

#[test]
fn requests_without_order_or_at_the_front_pass_only_so_often() {
    for (flags, mode) in [(Flags::NOORDER, Mode::Pr), (Flags::HEADQUE, Mode::Ex)] {
        let mut resource = with(&[(0, mode), (1, Mode::Ex)]);
        let turn = |resource: &mut Resource, op: u64, out: &mut Notices| {
            // Two others by turns: one always waits.
            let lock = u32::try_from(op).unwrap();
            let other = |lock| Owner { peer: PeerId::of(9), lock };
            resource.request(Entry { owner: other(lock), flags, ..granted(9, mode) }, OPEN, out);
            let holder = resource.granted.iter().next().unwrap().owner;
            resource.unlock(holder, op, (Flags::NONE, None), OPEN, out);
        };
        let passes = passes_until_served((1, Mode::Ex), turn, &mut resource);
        assert!(passes <= u64::from(fairness::PASSES_MAX) + 2, "{flags:?}: {passes}");
    }
}

#[test]
fn who_is_in_the_way_of_the_one_with_precedence_is_not_held_up_nor_is_what_gives_up() {
    let mut resource = with(&[(0, Mode::Pr), (1, Mode::Nl), (3, Mode::Cr), (2, Mode::Ex)]);
    let mut out = Vec::new();
    for op in 10..200 {
        resource.convert(owner(1), op, Mode::Pr, (Flags::NONE, None), OPEN, &mut out);
        resource.convert(owner(1), op, Mode::Nl, (Flags::NOQUEUE, None), OPEN, &mut out);
        if held(&resource, 1).is_none_or(|mode| mode != Mode::Nl) {
            break;
        }
    }
    // The newcomer has to wait by now, and fails where it does not want to.
    resource.cancel(owner(1), 199, OPEN, &mut out);
    let waits = resource.converting.iter().map(|entry| entry.owner).collect::<Vec<_>>();
    assert_eq!(waits, [owner(1)]);
    // The holder that the first one waits for may still convert.
    resource.convert(owner(0), 2, Mode::Cw, (Flags::NONE, None), OPEN, &mut out);
    assert_eq!(told(&out, owner(0)), Some((LockStatus::Success, Some(Mode::Cw))));
    let expedited = Entry { owner: owner(5), flags: Flags::EXPEDITE, ..granted(5, Mode::Nl) };
    resource.request(expedited, OPEN, &mut out);
    assert_eq!(held(&resource, 5), Some(Mode::Nl));
    resource.convert(owner(0), 3, Mode::Cr, (Flags::NONE, None), OPEN, &mut out);
    assert_eq!(held(&resource, 0), Some(Mode::Cr));
}
