//! What: frames come back as they were sent, refuse what is no frame, and are what the page says.
//! Owns: a strategy for each kind of frame.
//! Invariants: none of its own.
//! Does not: know sessions.
//! Called by: `cargo test`.

use super::*;
use crate::cycle::{CYCLE_STEPS_MAX, Claim, Cycle, CycleParty, CycleStep};
use crate::fields::LvbCopy;
use crate::mode::{Flags, LockStatus, MODES, Mode, ResultFlags, STATUSES, Token};
use crate::ranges::{RangeMode, Span};
use proptest::prelude::*;
use std::vec;

fn lvb() -> impl Strategy<Value = Option<Lvb>> {
    proptest::option::of(any::<[u8; 32]>())
}

fn mode() -> impl Strategy<Value = Mode> {
    (0..6usize).prop_map(|number| MODES[number])
}

fn kind() -> impl Strategy<Value = RangeKind> {
    (0..3u8).prop_map(|number| RangeKind::from_number(number).unwrap())
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..=64)
}

fn resource() -> impl Strategy<Value = ResourceName> {
    name().prop_map(|name| ResourceName::new(&name).unwrap())
}

fn token() -> impl Strategy<Value = Token> {
    any::<(u64, u64)>().prop_map(|(view, counter)| Token { view, counter })
}

fn status() -> impl Strategy<Value = LockStatus> {
    (0..STATUSES.len()).prop_map(|number| STATUSES[number])
}

fn operation() -> impl Strategy<Value = ClientRequest> {
    prop_oneof![
        (any::<(u64, u32)>(), resource(), mode(), any::<(u32, u64, u32)>(), lvb()).prop_map(
            |((serial, lockspace), resource, mode, (flags, owner, timeout_ms), lvb)| {
                ClientRequest::Lock { serial, lockspace, resource, mode, flags: Flags(flags), owner, timeout_ms, lvb }
            }
        ),
        (any::<(u64, u32)>(), mode(), any::<(u32, u64, u32)>(), lvb()).prop_map(
            |((serial, lock), mode, (flags, owner, timeout_ms), lvb)| {
                ClientRequest::Convert { serial, lock, mode, flags: Flags(flags), owner, timeout_ms, lvb }
            }
        ),
        (any::<(u64, u32, u32)>(), lvb()).prop_map(|((serial, lock, flags), lvb)| ClientRequest::Unlock {
            serial,
            lock,
            flags: Flags(flags),
            lvb
        }),
        (any::<(u64, u32)>(), proptest::collection::vec((resource(), mode()), 1..=MANY_LOCKS_MAX), any::<(u32, u64, u32)>()).prop_map(
            |((serial, lockspace), items, (flags, owner, timeout_ms))| {
                ClientRequest::LockMany { serial, lockspace, items, flags: Flags(flags), owner, timeout_ms }
            }
        ),
    ]
}

fn request() -> impl Strategy<Value = ClientRequest> {
    prop_oneof![
        operation(),
        any::<(u16, bool)>().prop_map(|(version, is_unprotected)| ClientRequest::Hello { version, is_unprotected }),
        (any::<u64>(), name()).prop_map(|(serial, name)| ClientRequest::JoinLockspace { serial, name }),
        any::<(u64, u32)>().prop_map(|(serial, lockspace)| ClientRequest::LeaveLockspace { serial, lockspace }),
        any::<(u64, u32)>().prop_map(|(serial, lock)| ClientRequest::Cancel { serial, lock }),
        any::<(u64, u64)>().prop_map(|(serial, request)| ClientRequest::CancelRequest { serial, request }),
        any::<(u64, u32)>().prop_map(|(serial, lock)| ClientRequest::Query { serial, lock }),
        (any::<(u64, u32)>(), resource()).prop_map(|((serial, lockspace), resource)| ClientRequest::QueryResource {
            serial,
            lockspace,
            resource
        }),
        any::<(u64, u32, u16, u32)>().prop_map(|(serial, lockspace, slot, pid)| ClientRequest::Purge { serial, lockspace, slot, pid }),
        (any::<(u64, u32, u64, u64, u64, u32, u32)>(), kind()).prop_map(|((serial, lock, owner, start, end, flags, timeout_ms), kind)| {
            ClientRequest::Range { serial, lock, owner, kind, start, end, flags: Flags(flags), timeout_ms }
        }),
        (any::<(u64, u32, u64, u64, u64)>(), kind()).prop_map(|((serial, lock, owner, start, end), kind)| ClientRequest::RangeQuery {
            serial,
            lock,
            owner,
            kind,
            start,
            end
        }),
    ]
}

fn queried() -> impl Strategy<Value = QueriedLock> {
    let modes = (proptest::option::of(mode()), proptest::option::of(mode()));
    (any::<(u16, u32, u32, u64, u64)>(), modes).prop_map(|((slot, pid, lock, owner, age_ms), (granted, wanted))| QueriedLock {
        slot,
        pid,
        lock,
        owner,
        granted,
        wanted,
        age_ms,
    })
}

fn claim() -> impl Strategy<Value = Claim> {
    let bytes = (any::<(u64, u64)>(), kind()).prop_map(|((one, other), kind)| {
        let kind = kind.mode().unwrap_or(RangeMode::Write);
        Claim::Range(Span { start: one.min(other), end: one.max(other), kind })
    });
    prop_oneof![mode().prop_map(Claim::Mode), bytes]
}

fn step() -> impl Strategy<Value = CycleStep> {
    let party = || any::<(u16, u32, u64)>().prop_map(|(slot, pid, owner)| CycleParty { slot, pid, owner });
    let names = (proptest::collection::vec(any::<u8>(), 1..=LOCKSPACE_BYTES_MAX), resource());
    ((party(), claim()), names, (party(), claim()), any::<bool>()).prop_map(
        |((waiter, wanted), (lockspace, resource), (blocker, claim), is_held)| CycleStep {
            waiter,
            wanted,
            lockspace,
            resource,
            blocker,
            claim,
            is_held,
        },
    )
}

fn reply() -> impl Strategy<Value = ClientReply> {
    let copy = (any::<(u64, bool)>(), lvb()).prop_map(|((sequence, is_invalid), value)| LvbCopy { sequence, is_invalid, value });
    let holder = (any::<(u64, u64, u64, u16, u32)>(), kind()).prop_map(|((owner, start, end, slot, pid), kind)| RangeHolder {
        owner,
        kind,
        start,
        end,
        slot,
        pid,
    });
    prop_oneof![
        any::<(u16, u16, u64)>().prop_map(|(version, slot, view)| ClientReply::Welcome { version, slot, view }),
        any::<(u64, u32)>().prop_map(|(serial, lockspace)| ClientReply::Joined { serial, lockspace }),
        any::<u64>().prop_map(|serial| ClientReply::LockspaceLeft { serial }),
        (any::<(u64, u32, u8)>(), status(), proptest::option::of(mode()), lvb(), token()).prop_map(
            |((serial, lock, flags), status, mode, lvb, token)| {
                ClientReply::Completed { serial, lock, status, mode, flags: ResultFlags(flags), lvb, token }
            }
        ),
        (any::<u32>(), mode()).prop_map(|(lock, mode)| ClientReply::Blocking { lock, mode }),
        "[a-z\u{e9} ]{0,80}".prop_map(|reason| ClientReply::Lost { reason }),
        (any::<u64>(), status(), "[a-z ]{0,80}").prop_map(|(serial, status, reason)| ClientReply::Refused { serial, status, reason }),
        (any::<(u64, u16)>(), status(), proptest::collection::vec((any::<u32>(), token()), 0..=MANY_LOCKS_MAX))
            .prop_map(|((serial, failed), status, locks)| ClientReply::ManyCompleted { serial, status, failed, locks }),
        (
            any::<(u64, u32)>(),
            status(),
            proptest::option::of(resource()),
            copy,
            proptest::collection::vec(queried(), 0..=QUERIED_LOCKS_MAX)
        )
            .prop_map(|((serial, left_out), status, resource, lvb, locks)| ClientReply::Queried {
                serial,
                status,
                resource,
                lvb,
                left_out,
                locks
            }),
        (any::<u64>(), status(), proptest::option::of(holder)).prop_map(|(serial, status, conflict)| ClientReply::RangeConflict {
            serial,
            status,
            conflict
        }),
        (any::<(u64, u32)>(), proptest::collection::vec(step(), 0..=CYCLE_STEPS_MAX))
            .prop_map(|((serial, left_out), steps)| ClientReply::DeadlockCycle { serial, cycle: Cycle { steps, left_out } }),
    ]
}

proptest! {
    #[test]
    fn requests_come_back(request in request()) {
        let bytes = request.encode();
        prop_assert!(bytes.len() <= FRAME_BYTES_MAX);
        prop_assert_eq!(ClientRequest::decode(&bytes), Ok(request.clone()));
        let mut longer = vec![9, 9];
        request.encode_into(&mut longer);
        prop_assert_eq!(&longer[2..], &bytes[..]);
        let framed = frame(&bytes);
        prop_assert_eq!(split_frame(&framed), Ok(Some((bytes.as_slice(), framed.len()))));
        prop_assert_eq!(split_frame(&framed[..framed.len() - 1]), Ok(None));
        prop_assert!(ClientRequest::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn replies_come_back(reply in reply()) {
        let bytes = reply.encode();
        prop_assert!(bytes.len() <= FRAME_BYTES_MAX);
        prop_assert_eq!(ClientReply::decode(&bytes), Ok(reply));
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(ClientReply::decode(&longer).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in any::<u8>(), mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = split_frame(&bytes);
        let _ = (ClientRequest::decode(&bytes), ClientReply::decode(&bytes));
        if let Some(first) = bytes.first_mut() {
            *first = kind % 16;
            let _ = ClientRequest::decode(&bytes);
            bytes[0] = 128 + kind % 16;
            let _ = ClientReply::decode(&bytes);
        }
    }
}

fn sample_requests() -> Vec<ClientRequest> {
    let (serial, lockspace, lock, mode, flags, lvb) = (1, 2, 3, Mode::Pw, Flags::VALBLK, Some([4; 32]));
    let (owner, timeout_ms, kind, start, end) = (5, 6, RangeKind::Write, 7, 8);
    let resource = ResourceName::new(b"names").unwrap();
    vec![
        ClientRequest::Hello { version: 1, is_unprotected: true },
        ClientRequest::JoinLockspace { serial, name: b"names".to_vec() },
        ClientRequest::LeaveLockspace { serial, lockspace },
        ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb },
        ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb },
        ClientRequest::Unlock { serial, lock, flags, lvb },
        ClientRequest::Cancel { serial, lock },
        ClientRequest::CancelRequest { serial, request: 1 },
        ClientRequest::LockMany { serial, lockspace, items: vec![(resource, mode); 3], flags, owner, timeout_ms },
        ClientRequest::Query { serial, lock },
        ClientRequest::QueryResource { serial, lockspace, resource },
        ClientRequest::Purge { serial, lockspace, slot: ALL_SLOTS, pid: 0 },
        ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms },
        ClientRequest::RangeQuery { serial, lock, owner, kind, start, end },
    ]
}

fn sample_replies() -> Vec<ClientReply> {
    let (serial, lockspace, lock, mode, lvb) = (1, 2, 3, Mode::Pw, Some([4; 32]));
    let (status, token, reason) = (LockStatus::Again, Token::default(), || String::from("words"));
    let queried = QueriedLock { slot: 1, pid: 2, lock, owner: 4, granted: Some(mode), wanted: None, age_ms: 5 };
    let copy = LvbCopy { sequence: 1, is_invalid: true, value: lvb };
    let conflict = Some(RangeHolder { owner: 1, kind: RangeKind::Read, start: 2, end: 3, slot: 4, pid: 5 });
    let resource = ResourceName::new(b"names");
    let claim = Claim::Range(Span { start: 1, end: 2, kind: RangeMode::Read });
    let party = CycleParty { slot: 1, pid: 2, owner: 3 };
    let (waiter, blocker, wanted, space) = (party, party, claim, b"space".to_vec());
    let step = CycleStep { waiter, wanted, lockspace: space, resource: resource.unwrap(), blocker, claim, is_held: true };
    vec![
        ClientReply::Welcome { version: 1, slot: 2, view: 3 },
        ClientReply::Joined { serial, lockspace },
        ClientReply::LockspaceLeft { serial },
        ClientReply::Completed { serial, lock, status, mode: None, flags: ResultFlags::DEMOTED, lvb, token },
        ClientReply::Blocking { lock, mode },
        ClientReply::Lost { reason: reason() },
        ClientReply::Refused { serial, status, reason: reason() },
        ClientReply::ManyCompleted { serial, status, failed: NONE_FAILED, locks: vec![(lock, token); 3] },
        ClientReply::Queried { serial, status, resource, lvb: copy, left_out: 0, locks: vec![queried; 3] },
        ClientReply::RangeConflict { serial, status, conflict },
        ClientReply::DeadlockCycle { serial, cycle: Cycle { steps: vec![step], left_out: 4 } },
    ]
}

#[test]
fn the_page_is_true() {
    let requests = sample_requests().into_iter().map(|request| (std::format!("{request:?}"), request.encode()));
    let replies = sample_replies().into_iter().map(|reply| (std::format!("{reply:?}"), reply.encode()));
    let page = include_str!("../../../../docs/formats/client-protocol.md");
    crate::documents::compare(page, &requests.chain(replies).collect::<Vec<_>>());
    for status in STATUSES {
        let row = std::format!("| {} | {status:?} | {} |", status.number(), status.errno());
        assert!(page.contains(&row), "{row}");
    }
    assert!(page.contains(&std::format!("the version is {CLIENT_VERSION}")));
}

#[test]
fn an_answer_names_its_request_and_a_posted_request_has_none() {
    for reply in sample_replies() {
        let is_news = matches!(
            reply,
            ClientReply::Welcome { .. } | ClientReply::Blocking { .. } | ClientReply::Lost { .. } | ClientReply::DeadlockCycle { .. }
        );
        assert_eq!(reply.answers(), (!is_news).then_some(1), "{reply:?}");
    }
    for request in sample_requests() {
        assert!(!request.is_posted(), "{request:?}");
        assert_eq!(request.serial(), u64::from(!matches!(request, ClientRequest::Hello { .. })), "{request:?}");
    }
    assert!(ClientRequest::Unlock { serial: 0, lock: 1, flags: Flags::NONE, lvb: None }.is_posted());
    assert!(!ClientRequest::Cancel { serial: 0, lock: 1 }.is_posted());
}

#[test]
fn counts_have_limits() {
    let many = |count: usize| {
        let items = vec![(ResourceName::new(b"n").unwrap(), Mode::Ex); count];
        let request = ClientRequest::LockMany { serial: 1, lockspace: 2, items, flags: Flags::NONE, owner: 0, timeout_ms: 0 };
        ClientRequest::decode(&request.encode()).map(|_| ())
    };
    let refused = |value| Err(DecodeError::BadField { field: "item count", value });
    assert_eq!([0, 1, 32, 33].map(many), [refused(0), Ok(()), Ok(()), refused(33)]);
    assert_eq!([0, 1, 64, 65].map(|length| ResourceName::new(&vec![7; length]).is_some()), [false, true, true, false]);
}

#[test]
fn a_frame_over_the_limit_ends_the_connection() {
    assert_eq!(split_frame(&[1, 16, 0, 0]), Err(DecodeError::TooLong { found: 4097, limit: 4096 }));
    assert_eq!(split_frame(&[0, 16, 0, 0]), Ok(None));
}

#[test]
fn long_text_is_cut_between_characters() {
    let reason: String = core::iter::repeat_n('\u{e9}', 1000).collect();
    let Ok(ClientReply::Lost { reason: back }) = ClientReply::decode(&ClientReply::Lost { reason: reason.clone() }.encode()) else {
        panic!("must decode")
    };
    assert_eq!(back.len(), TEXT_BYTES_MAX);
    assert!(reason.starts_with(&back));
    // One text has one encoding.
    assert_eq!(ClientReply::decode(&[134, 1, 0, 0xff]), Err(DecodeError::BadField { field: "text", value: 0 }));
}
