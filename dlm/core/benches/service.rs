//! What: the service alone under criterion: lock and unlock, conversions, a value handed from holder to waiter.
//! Owns: nothing beyond its measurements.
//! Invariants: one node, one thread; every measurement leaves the service as it found it.
//! Does not: compare with floors (`deadbolt bench locks` does).
//! Called by: `cargo bench -p deadbolt-dlm-core`.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark; the macros write functions without documentation")]

use criterion::{Criterion, criterion_group, criterion_main};
use deadbolt_disk_format::types::{BootId, Incarnation, Life, SlotIndex, ViewNumber};
use deadbolt_dlm_core::{ClientReply, ClientRequest, Flags, Input, LockService, Mode, Output, SessionInfo, client::ResourceName};
use std::hint::black_box;

struct Node {
    service: LockService,
    lockspace: u32,
    serial: u64,
}

impl Node {
    /// A node alone in its view, with two sessions and `live` locks.
    fn new(live: u64) -> Self {
        let me = Life { slot: SlotIndex(0), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
        let mut node = Self { service: LockService::new(me), lockspace: 0, serial: 0 };
        node.input(Input::View { number: ViewNumber(1), members: vec![me], owed: vec![], is_member: true });
        node.input(Input::Permit { may_grant: true });
        for session in 1..=2 {
            node.input(Input::SessionOpened { session, info: SessionInfo { pid: 1 } });
            let joined = node.ask(session, |serial| ClientRequest::JoinLockspace { serial, name: b"bench".to_vec() });
            let Some(ClientReply::Joined { lockspace, .. }) = joined else { panic!("joined at once") };
            node.lockspace = lockspace;
        }
        for number in 0..live {
            node.lock(1, number, Mode::Ex);
        }
        node
    }

    /// The last reply that answers.
    fn input(&mut self, input: Input) -> Option<ClientReply> {
        self.service.handle(1, input);
        let mut last = None;
        while let Some(output) = self.service.poll_output() {
            match output {
                Output::Reply { reply, .. } if reply.is_answer() => last = Some(reply),
                Output::Holds(is_held) => self.service.handle(1, Input::HoldsPublished(is_held)),
                _ => {}
            }
        }
        last
    }

    fn ask(&mut self, session: u64, make: impl FnOnce(u64) -> ClientRequest) -> Option<ClientReply> {
        self.serial += 1;
        self.input(Input::Request { session, request: make(self.serial) })
    }

    /// The lock's number when it is granted at once.
    fn lock(&mut self, session: u64, number: u64, mode: Mode) -> Option<u32> {
        let (lockspace, resource) = (self.lockspace, ResourceName::new(format!("{:>8x}{number:>16x}", 2).as_bytes()).unwrap());
        let reply = self.ask(session, |serial| ClientRequest::Lock {
            serial,
            lockspace,
            resource,
            mode,
            flags: Flags::NONE,
            owner: 0,
            timeout_ms: 0,
            lvb: None,
        });
        granted(reply)
    }

    fn convert(&mut self, session: u64, lock: u32, mode: Mode) -> Option<u32> {
        let reply = self.ask(session, |serial| ClientRequest::Convert {
            serial,
            lock,
            mode,
            flags: Flags::NONE,
            owner: 0,
            timeout_ms: 0,
            lvb: None,
        });
        granted(reply)
    }

    /// The lock that was granted by it, if one was.
    fn unlock(&mut self, session: u64, lock: u32) -> Option<u32> {
        granted(self.input(Input::Request { session, request: ClientRequest::Unlock { serial: 0, lock, flags: Flags::NONE, lvb: None } }))
    }
}

fn granted(reply: Option<ClientReply>) -> Option<u32> {
    match reply {
        Some(ClientReply::Completed { lock, .. }) => Some(lock),
        _ => None,
    }
}

fn service(criterion: &mut Criterion) {
    for live in [1_000, 100_000] {
        let mut node = Node::new(live);
        let mut number = live;
        criterion.bench_function(&format!("lock and unlock a fresh name among {live}"), |bencher| {
            bencher.iter(|| {
                number += 1;
                let lock = node.lock(1, black_box(number), Mode::Ex).unwrap();
                node.unlock(1, lock)
            });
        });
    }
    let mut node = Node::new(1);
    let first = node.lock(1, 7, Mode::Nl).unwrap();
    criterion.bench_function("convert NL to EX and back", |bencher| {
        bencher.iter(|| {
            node.convert(1, black_box(first), Mode::Ex).unwrap();
            node.convert(1, first, Mode::Nl).unwrap()
        });
    });
    let mut holder = node.lock(1, 8, Mode::Ex).unwrap();
    let mut session = 1;
    criterion.bench_function("hand EX to a waiter", |bencher| {
        bencher.iter(|| {
            assert_eq!(node.lock(3 - session, 8, Mode::Ex), None, "it waits");
            holder = node.unlock(session, black_box(holder)).unwrap();
            session = 3 - session;
        });
    });
}

criterion_group!(benches, service);
criterion_main!(benches);
