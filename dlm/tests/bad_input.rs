//! What: requests that make no sense, bytes that are none, and clients that do not behave: a clear error for them, nothing for the others.
//! Owns: nothing.
//! Invariants: after every row an honest client is served as before.
//! Does not: use a cluster.
//! Called by: `cargo test`. More of it: `rings.rs` (rings, forks, crowds), `clients.rs` (strangers).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{
    Node, anybody,
    raw::{Raw, RawSocket},
};
use deadbolt_dlm::{
    Flags, LockStatus, Mode, RangeKind,
    blocking::{ClientError, Lockspace, Wishes},
};
use deadbolt_dlm_core::client::{ClientReply, ClientRequest, RESOURCE_BYTES_MAX, ResourceName, frame};
use std::{
    fmt::Debug,
    io::Write,
    os::unix::{fs::FileExt, net::UnixStream},
    time::{Duration, Instant},
};

/// An honest client, with a lock that must stay.
struct Honest {
    space: Lockspace,
    lock: u32,
}

impl Honest {
    fn new(node: &Node) -> Self {
        let space = node.connect().join(b"test").unwrap();
        let guard = space.lock(b"held", Mode::Ex, &Wishes::default()).unwrap();
        let lock = guard.completion().lock;
        guard.leave();
        Self { space, lock }
    }

    #[track_caller]
    fn is_well(&self) {
        let begin = Instant::now();
        drop(self.space.lock(b"other", Mode::Ex, &Wishes::default()).unwrap());
        assert!(begin.elapsed() < Duration::from_secs(2), "it waited {:?}", begin.elapsed());
        let holders = self.space.query(b"held").unwrap().locks;
        assert_eq!(holders.iter().map(|holder| (holder.lock, holder.granted)).collect::<Vec<_>>(), [(self.lock, Some(Mode::Ex))]);
    }
}

#[track_caller]
fn refused<T: Debug>(result: Result<T, ClientError>, words: &str) {
    match result {
        Err(error @ ClientError::Refused { status: LockStatus::Invalid, .. }) => {
            assert!(error.to_string().contains(words), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn with(flags: Flags) -> Wishes {
    Wishes { flags, ..Wishes::default() }
}

#[test]
fn the_library_says_what_is_wrong_and_the_session_goes_on() {
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    for client in [node.connect(), node.connect_by_socket()] {
        for length in [0, 65, 300] {
            refused(client.join(&vec![7; length]), &format!("1 to 64 bytes, this one has {length}"));
        }
        let space = client.join(b"test").unwrap();
        for length in [0, 65, 300] {
            let name = vec![7; length];
            let words = format!("1 to 64 bytes, this one has {length}");
            refused(space.lock(&name, Mode::Ex, &Wishes::default()), &words);
            refused(space.query(&name), &words);
            refused(space.lock_many(&[(b"a", Mode::Ex), (&name, Mode::Ex)], &Wishes::default()), &words);
        }
        let names: Vec<[u8; 1]> = (0..33).map(|number| [number]).collect();
        let items: Vec<(&[u8], Mode)> = names.iter().map(|name| (name.as_slice(), Mode::Ex)).collect();
        refused(space.lock_many(&items, &Wishes::default()), "1 to 32 locks");
        refused(space.lock_many(&[], &Wishes::default()), "1 to 32 locks");
        let rows = [
            (Flags::ALTPR.with(Flags::ALTCW), "exclude each other"),
            (Flags::NOQUEUEBAST, "NOQUEUE"),
            (Flags::EXPEDITE, "NL"),
            (Flags::QUECVT, "new lock"),
            (Flags(0x8000_0000), "new lock"),
        ];
        for (flags, words) in rows {
            refused(space.lock(b"r", Mode::Ex, &with(flags)), words);
        }
        let mut guard = space.lock(b"r", Mode::Pr, &Wishes::default()).unwrap();
        refused(guard.convert(Mode::Ex, Flags::CONVDEADLK.with(Flags::NOQUEUE), None).copied(), "exclude each other");
        refused(guard.convert(Mode::Ex, Flags::EXPEDITE, None).copied(), "conversion");
        guard.convert(Mode::Ex, Flags::NONE, None).unwrap();
        refused(guard.convert(Mode::Nl, Flags::VALBLK, None).copied(), "none was given");
        // What is refused is given back all the same, without a value.
        refused(guard.unlock(Flags::VALBLK, None), "none was given");
        let guard = space.lock(b"r", Mode::Ex, &with(Flags::NOQUEUE)).unwrap();
        refused(guard.post_unlock(Flags::HEADQUE, None), "unlock");
        drop(space.lock(b"r", Mode::Ex, &with(Flags::NOQUEUE)).unwrap());
        assert!(client.lost().is_none());
        honest.is_well();
    }
    assert!(node.faults.lock().unwrap().is_empty());
}

/// Requests about what this session does not have, by its number where another has it.
fn foreign(lockspace: u32, lock: u32) -> Vec<ClientRequest> {
    let (serial, resource, mode, flags, owner, timeout_ms, lvb) =
        (9, ResourceName::new(b"held").unwrap(), Mode::Nl, Flags::NONE, 0, 0, None);
    let (kind, start, end) = (RangeKind::Write, 0, 9);
    vec![
        ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb },
        ClientRequest::LockMany { serial, lockspace, items: vec![(resource, mode)], flags, owner, timeout_ms },
        ClientRequest::QueryResource { serial, lockspace, resource },
        ClientRequest::Purge { serial, lockspace, slot: 0, pid: 0 },
        ClientRequest::LeaveLockspace { serial, lockspace },
        ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb },
        ClientRequest::Unlock { serial, lock, flags: Flags::FORCEUNLOCK, lvb },
        ClientRequest::Cancel { serial, lock },
        ClientRequest::Query { serial, lock },
        ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms },
        ClientRequest::RangeQuery { serial, lock, owner, kind, start, end },
        ClientRequest::CancelRequest { serial, request: 77 },
    ]
}

#[test]
fn what_belongs_to_another_session_is_not_found() {
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let lockspace = RawSocket::new(&node.path()).join(b"test");
    let mut raw = RawSocket::new(&node.path());
    raw.join(b"mine");
    for (lockspace, lock) in [(lockspace, honest.lock), (lockspace ^ 1, honest.lock ^ 1), (0, 0), (u32::MAX, u32::MAX)] {
        // A posted request has no answer, whatever it says.
        let posted = ClientRequest::Unlock { serial: 0, lock, flags: Flags::FORCEUNLOCK, lvb: None };
        raw.stream.write_all(&frame(&posted.encode())).unwrap();
        for request in foreign(lockspace, lock) {
            let status = match raw.ask(&request).unwrap() {
                ClientReply::Completed { serial: 9, status, mode: None, .. }
                | ClientReply::ManyCompleted { serial: 9, status, .. }
                | ClientReply::Queried { serial: 9, status, .. }
                | ClientReply::RangeConflict { serial: 9, status, conflict: None }
                | ClientReply::Refused { serial: 9, status, .. } => status,
                other => panic!("{request:?}: {other:?}"),
            };
            assert_eq!(status, LockStatus::NotFound, "{request:?}");
        }
        honest.is_well();
    }
}

#[test]
fn a_frame_that_is_no_request_ends_its_session_with_the_reason() {
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let resource = ResourceName::new(&[7; RESOURCE_BYTES_MAX]).unwrap();
    let (flags, owner, timeout_ms, lvb) = (Flags::NONE, 0, 0, None);
    let lock = ClientRequest::Lock { serial: 1, lockspace: 2, resource, mode: Mode::Ex, flags, owner, timeout_ms, lvb }.encode();
    let join = ClientRequest::JoinLockspace { serial: 1, name: vec![7; 64] }.encode();
    let changed = |frame: &[u8], at: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    };
    // A name's length is at 9 or 13, the mode behind a name of 64 bytes.
    let rows = [
        (changed(&lock, 13, 65), "resource name length has the value 65"),
        (changed(&lock, 13, 0), "resource name length has the value 0"),
        (changed(&lock, 13 + 65, 6), "mode"),
        (changed(&lock, lock.len() - 1, 2), "value 2"),
        (changed(&lock, 0, 99), "unknown message kind 99"),
        (changed(&join, 9, 65), "lockspace name length has the value 65"),
        (changed(&join, 9, 0), "lockspace name length has the value 0"),
        (lock[..40].to_vec(), "ends inside a field"),
        ([lock.as_slice(), &[0]].concat(), "follow the last field"),
        (Vec::new(), "ends inside a field"),
        (vec![7; 4096], "follow the last field"),
    ];
    for (number, (body, words)) in rows.iter().enumerate() {
        let mut raw = RawSocket::new(&node.path());
        let said = raw.send(body);
        let Some(ClientReply::Refused { serial: 0, status: LockStatus::Invalid, reason }) = said else { panic!("{number}: {said:?}") };
        assert!(reason.contains(words), "{number}: {reason}");
        assert_eq!(raw.next(), None, "the connection ends");
        honest.is_well();
        assert!(node.faults.lock().unwrap().contains(&reason), "the node says so to its operator");
    }
    // A length that lies.
    let mut raw = RawSocket::new(&node.path());
    raw.stream.write_all(&5000_u32.to_le_bytes()).unwrap();
    assert!(matches!(raw.next(), Some(ClientReply::Refused { reason, .. }) if reason.contains("5000 bytes, at most 4096")));
    honest.is_well();
    assert_eq!(node.faults.lock().unwrap().len(), rows.len() + 1);
}

#[test]
fn half_a_message_and_silence_hold_nobody_up() {
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let join = frame(&ClientRequest::JoinLockspace { serial: 1, name: b"test".to_vec() }.encode());
    let mut halves = Vec::new();
    for cut in 0..join.len() {
        let mut raw = RawSocket::new(&node.path());
        raw.stream.write_all(&join[..cut]).unwrap();
        halves.push((raw, cut));
    }
    let silent: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(node.path()).unwrap()).collect();
    honest.is_well();
    // The other half may come as late as it likes.
    for (raw, cut) in &mut halves {
        raw.stream.write_all(&join[*cut..]).unwrap();
        assert!(matches!(raw.next(), Some(ClientReply::Joined { .. })));
    }
    drop((halves, silent));
    honest.is_well();
    assert!(node.faults.lock().unwrap().is_empty(), "whoever goes has done nothing wrong");
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Each answer is two hundred times as long as its question, and nobody reads one.
#[test]
fn who_never_reads_his_answers_is_ended_and_costs_little() {
    const CLIENTS: usize = 8;
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let crowd: Vec<_> = (0..140).map(|_| honest.space.lock(b"crowd", Mode::Nl, &Wishes::default()).unwrap()).collect();
    let mut raws: Vec<RawSocket> = (0..CLIENTS).map(|_| RawSocket::new(&node.path())).collect();
    let before = resident_kib();
    for raw in &mut raws {
        let lockspace = raw.join(b"test");
        let resource = ResourceName::new(b"crowd").unwrap();
        let question = frame(&ClientRequest::QueryResource { serial: 2, lockspace, resource }.encode());
        let flood = question.repeat(4000);
        raw.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // Refused in the middle: the node has closed the connection.
        let _ = raw.stream.write_all(&flood);
        honest.is_well();
    }
    let begin = Instant::now();
    while node.faults.lock().unwrap().len() < CLIENTS && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let faults = node.faults.lock().unwrap().clone();
    assert_eq!(faults, vec!["the client does not read its replies"; CLIENTS]);
    let grown = resident_kib().saturating_sub(before);
    println!("{grown} KiB for {CLIENTS} floods of 4000 questions");
    assert!(grown < 32 << 10, "{grown} KiB");
    honest.is_well();
    drop(crowd);
}

/// Numbers without a pattern; the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn rings_full_of_noise_harm_only_their_clients() {
    const RINGS: usize = 150;
    const WORDS: u64 = 69_632 / 8;
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut kept = Vec::new();
    for round in 0..RINGS {
        let mut raw = Raw::new(&node.path());
        let bytes: Vec<u8> = (0..WORDS).flat_map(|_| noise.next().to_le_bytes()).collect();
        match round % 3 {
            // All of it, its lengths and ends included.
            0 => raw.memory.write_all_at(&bytes, 0).unwrap(),
            // Frames of noise with lengths that could be.
            1 => {
                raw.memory.write_all_at(&bytes[4096..], 4096).unwrap();
                raw.word(4096, noise.below(200));
                raw.word(64, 2 + noise.below(4096));
            }
            // A few words anywhere, while the node looks.
            _ => {
                for _ in 0..200 {
                    raw.word(noise.below(WORDS) * 8, noise.next() >> noise.below(64));
                    raw.ring();
                }
            }
        }
        raw.ring();
        if round % 10 == 0 {
            honest.is_well();
        }
        kept.push(raw);
    }
    honest.is_well();
    let faults = node.faults.lock().unwrap().len();
    println!("{faults} of {RINGS} sessions were ended for what was in their rings");
    assert!(faults >= RINGS / 3, "{faults}");
    drop(kept);
    // What was done in their name before is given back.
    honest.is_well();
    assert!(node.connect().has_ring());
}

#[test]
fn streams_of_noise_harm_only_their_clients() {
    let node = Node::start(anybody());
    let honest = Honest::new(&node);
    let mut noise = Noise(77);
    for round in 0..200 {
        let mut raw = RawSocket::new(&node.path());
        let length = usize::try_from(noise.below(3000)).unwrap();
        let body: Vec<u8> = (0..length).map(|_| noise.next().to_le_bytes()[0]).collect();
        // Bare, and as the body of a frame of a kind that there is.
        if round % 2 == 0 {
            let _ = raw.stream.write_all(&body);
        } else {
            let kind = u8::try_from(1 + noise.below(14)).unwrap();
            let _ = raw.stream.write_all(&frame(&[&[kind], body.as_slice()].concat()));
        }
        let _ = raw.stream.shutdown(std::net::Shutdown::Write);
        while raw.next().is_some() {}
    }
    honest.is_well();
}
