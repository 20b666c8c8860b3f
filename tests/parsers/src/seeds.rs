//! What: a few good inputs for every check: one of each kind of record, message and text.
//! Owns: them; the kept corpus begins with them.
//! Invariants: every kind of a message is among them.
//! Does not: check them.
//! Called by: the table of targets.

use crate::samples::{self, CLUSTER, life};
use deadbolt_cluster_core::channel::Frame;
use deadbolt_cluster_core::hello::{Beyond, Hello, LinkHello, LinkWord, NodeMessage};
use deadbolt_cluster_core::membership::Addition;
use deadbolt_disk_format::fresh::sbd_header_of;
use deadbolt_disk_format::sbd::{Command, Mailbox, MailboxTail, SbdNode, Tail};
use deadbolt_disk_format::{Ballot, NodeState, RecordType, SlotIndex, SlotSet, ViewNumber, ViewRecord};
use deadbolt_dlm_core::{
    Claim, ClientReply, ClientRequest, Cycle, CycleParty, CycleStep, Flags, LockStatus, LvbCopy, Mode, RangeMode, ResourceName,
    ResultFlags, Span, Token,
    client::{CLIENT_VERSION, NONE_FAILED, QueriedLock, RangeHolder, RangeKind},
};

/// A record's bytes without the zero bytes at its end, which the check puts back.
fn trimmed(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..length].to_vec()
}

/// The sample of a record, short and as a whole unit.
fn sample(record: RecordType) -> Vec<Vec<u8>> {
    let found = samples::samples().into_iter().find(|sample| sample.record == record).unwrap();
    vec![trimmed(&found.bytes)]
}

pub(crate) fn superblock() -> Vec<Vec<u8>> {
    sample(RecordType::Superblock)
}
pub(crate) fn beat() -> Vec<Vec<u8>> {
    sample(RecordType::Beat)
}
pub(crate) fn daemon_part() -> Vec<Vec<u8>> {
    vec![samples::beat().daemon.encode().to_vec(), vec![0; 320]]
}
pub(crate) fn vote() -> Vec<Vec<u8>> {
    let place = samples::samples().into_iter().find(|sample| sample.record == RecordType::Vote).unwrap().place;
    let mut seeds = sample(RecordType::Vote);
    seeds.push(trimmed(&*Ballot::empty(place.slot, 1).encode(&place)));
    seeds
}
pub(crate) fn view_record() -> Vec<Vec<u8>> {
    let place = samples::samples().into_iter().find(|sample| sample.record == RecordType::ViewRecord).unwrap().place;
    let mut seeds = sample(RecordType::ViewRecord);
    seeds.push(trimmed(&*ViewRecord::empty(place.slot, 0).encode(&place)));
    seeds
}
pub(crate) fn view_body() -> Vec<Vec<u8>> {
    sample(RecordType::ViewBody)
}
pub(crate) fn view_value() -> Vec<Vec<u8>> {
    vec![samples::view_body().encode_value(), deadbolt_disk_format::ViewBody::default().encode_value()]
}
pub(crate) fn requests() -> Vec<Vec<u8>> {
    sample(RecordType::Requests)
}
pub(crate) fn journal() -> Vec<Vec<u8>> {
    sample(RecordType::Journal)
}
pub(crate) fn tool_claim() -> Vec<Vec<u8>> {
    sample(RecordType::ToolClaim)
}
pub(crate) fn sbd_header() -> Vec<Vec<u8>> {
    let header = sbd_header_of(&samples::superblock());
    vec![header.encode()[..52].to_vec()]
}
pub(crate) fn sbd_node() -> Vec<Vec<u8>> {
    vec![SbdNode { is_in_use: true, name: "alpha".into() }.encode(512)[..65].to_vec()]
}
pub(crate) fn sbd_mailbox() -> Vec<Vec<u8>> {
    let tail = MailboxTail { victim_boot: life(3).boot, serial: 7, mac: *b"authentication!!" };
    let ours = Mailbox { command: Command::Reset, sender: "alpha".into(), tail: Tail::Present(tail) };
    let stock = Mailbox { command: Command::Off, sender: "beta".into(), tail: Tail::Absent };
    vec![ours.encode(512), stock.encode(512)]
}
pub(crate) fn signatures() -> Vec<Vec<u8>> {
    let at = |offset: usize, magic: &[u8]| [vec![0; offset], magic.to_vec()].concat();
    vec![at(0, b"XFSB"), at(1080, &[0x53, 0xef]), at(510, &[0x55, 0xaa]), at(512, b"EFI PART")]
}

/// Damages: see the check.
pub(crate) fn device() -> Vec<Vec<u8>> {
    let damage = |unit: u8, flags: u8, at: u8, data: &[u8]| [&[unit, flags, at, u8::try_from(data.len()).unwrap()], data].concat();
    let record = vote().swap_remove(0);
    let body = view_body().swap_remove(0);
    vec![
        Vec::new(),
        damage(0, 0, 100, &[1]),
        [damage(0, 0, 0, &[0; 8]), damage(1, 0, 0, &[0; 8]), damage(17, 1, 100, &[9])].concat(),
        [damage(4, 1, 88, &record[88..153]), damage(8, 1, 88, &record[88..153])].concat(),
        [damage(12, 1, 0, &body[..128]), damage(12, 3, 0, &body[512..760])].concat(),
    ]
}
pub(crate) fn hello() -> Vec<Vec<u8>> {
    let hears: SlotSet = [SlotIndex(1), SlotIndex(200)].into_iter().collect();
    let view = ViewNumber(9);
    let recovered = ViewNumber(8);
    let hello = Hello { life: life(3), state: NodeState::Member, view, recovered, hears, is_leaving: true, freeze_left_ms: 7 };
    vec![hello.encode().to_vec()]
}
pub(crate) fn link_hello() -> Vec<Vec<u8>> {
    let hello = Hello::decode(&hello().swap_remove(0)).unwrap();
    let word =
        LinkWord { link: 1, hears: true, lost: 1, expected: 64, mtu: 1500, sequence: 9, full_sent: 8, sent_us: 7, ..LinkWord::default() };
    let full = LinkWord { is_full: true, misses_full: true, held_us: 6, echo_us: 5, ..word };
    [(word, 0), (full, 40)].map(|(word, padding)| LinkHello { hello, word, padding }.encode()).to_vec()
}
pub(crate) fn node_message() -> Vec<Vec<u8>> {
    let occupied = [SlotIndex(2)].into_iter().collect();
    let addresses = vec!["192.0.2.1:7700".into(), "[2001:db8::1]:7700".into()];
    let messages = [
        NodeMessage::Locks(lock_message().swap_remove(0)),
        NodeMessage::AddNode(Addition { name: "beta".into(), addresses, votes: 1, occupied }),
        NodeMessage::RemoveNode { slot: SlotIndex(3) },
        NodeMessage::Answer(Ok(())),
        NodeMessage::Answer(Err("the slots are full".into())),
        NodeMessage::Decided(ViewNumber(4)),
        NodeMessage::Beyond(Beyond::AskFreeze { view: ViewNumber(4), serial: 5 }),
        NodeMessage::Beyond(Beyond::Consent { serial: 5 }),
        NodeMessage::Beyond(Beyond::AskVouch { serial: 6 }),
        NodeMessage::Beyond(Beyond::Grant { serial: 6 }),
    ];
    messages.iter().map(NodeMessage::encode).collect()
}
fn frames() -> Vec<Frame> {
    vec![
        Frame::Resume { stream: 7, of: 0, delivered: 0 },
        Frame::Data { sequence: 1, delivered: 0, payload: b"one".to_vec() },
        Frame::Data { sequence: 2, delivered: 1, payload: Vec::new() },
        Frame::Confirm { delivered: 1 },
    ]
}
pub(crate) fn frame() -> Vec<Vec<u8>> {
    frames().iter().map(Frame::encode).collect()
}
pub(crate) fn identification() -> Vec<Vec<u8>> {
    vec![deadbolt_cluster::links::encode_identification(Some(&life(3))), Vec::new()]
}
pub(crate) fn datagram() -> Vec<Vec<u8>> {
    let mut sealer =
        deadbolt_cluster::seal::DatagramSealer::new(crate::wire::key(), CLUSTER, SlotIndex(0), deadbolt_disk_format::Incarnation([9; 16]));
    // Sealed for another slot than the one that opens.
    vec![sealer.seal(SlotIndex(2), &hello().swap_remove(0)), vec![0, 0, 0, 0, 1]]
}
pub(crate) fn stream() -> Vec<Vec<u8>> {
    vec![b"\x01a record".to_vec(), vec![0, 0, 0, 1]]
}

fn wire_key(lockspace: u32) -> Vec<u8> {
    [&lockspace.to_le_bytes()[..], b"\x04name"].concat()
}
fn wire_life(slot: u16) -> Vec<u8> {
    deadbolt_cluster::links::encode_identification(Some(&life(slot)))
}
/// One record of each kind, as docs/formats/lock-messages.md draws them.
fn wire_records(lockspace: u32) -> Vec<Vec<u8>> {
    let key = wire_key(lockspace);
    let op = [7u32.to_le_bytes().as_slice(), &3u64.to_le_bytes()].concat();
    let copy = [&6u64.to_le_bytes()[..], &[0, 1], &[5; 32]].concat();
    let token = [2u64.to_le_bytes(), 5u64.to_le_bytes()].concat();
    let party = [0, 1, 0, 0, 0, 0, 0, 0, 0];
    let report =
        [&key[..], &[1, 0, 0, 0, 2, 0, 0, 0], &party, &3u64.to_le_bytes(), &[5], &token, &copy, &[2, 3, 8, 0, 0, 0, 0, 0]].concat();
    let with = |kind: u8, parts: &[&[u8]]| [&[kind], parts.concat().as_slice()].concat();
    vec![
        with(1, &[&key, &[1, 0, 0, 0, 2, 0, 0, 0], &party, &3u64.to_le_bytes(), &[5, 8, 0, 0, 0, 1]]),
        with(2, &[&op, &[5, 8, 0, 0, 0, 1], &[4; 32]]),
        with(3, &[&op, &[0, 0, 0, 0, 0]]),
        with(4, &[&op]),
        with(5, &[&[1, 0, 0, 0], &3u64.to_le_bytes(), &[0, 5, 0], &token, &copy]),
        with(6, &[&[1, 0, 0, 0, 5]]),
        with(7, &[&key, &wire_life(0), &9u64.to_le_bytes(), &[1]]),
        with(8, &[&key, &9u64.to_le_bytes()]),
        with(9, &[&op]),
        with(10, &[&8u64.to_le_bytes(), b"\x07default"]),
        with(11, &[&lockspace.to_le_bytes(), &8u64.to_le_bytes(), &[0]]),
        with(12, &[&lockspace.to_le_bytes()]),
        with(13, &[&wire_life(2), &[1, 0, 0, 0], &lockspace.to_le_bytes()]),
        with(14, &[&key, &1u64.to_le_bytes()]),
        with(15, &[&report]),
        with(16, &[]),
        with(17, &[&key]),
        with(18, &[&wire_life(2), &report]),
        with(19, &[]),
        with(20, &[&[1, 0, 0, 0, 2, 0, 0, 0], &party]),
        with(21, &[&key, &9u64.to_le_bytes(), &wire_life(2)]),
        with(22, &[&9u64.to_le_bytes(), &copy, &[0; 4], &[1, 0], &[0; 18], &[5, 255], &8u64.to_le_bytes()]),
        with(23, &[&9u64.to_le_bytes(), &lockspace.to_le_bytes(), &[0; 4]]),
        with(24, &[&9u64.to_le_bytes()]),
    ]
}
pub(crate) fn lock_message() -> Vec<Vec<u8>> {
    let begin = [&[2][..], &77u64.to_le_bytes()].concat();
    let all = [begin.clone(), wire_records(LOCKSPACE).concat()].concat();
    // Each alone, too, so that a mutation does not only ever meet the first.
    let each = wire_records(LOCKSPACE).into_iter().map(|record| [begin.clone(), record].concat());
    std::iter::once(all).chain(each).collect()
}

/// Number of the lockspace `default`.
const LOCKSPACE: u32 = 0x5378_88af;

fn requests_of_clients() -> Vec<ClientRequest> {
    let (serial, lockspace, flags, lvb) = (1, LOCKSPACE, Flags::VALBLK, Some([4; 32]));
    let Some(resource) = ResourceName::new(b"name") else { return Vec::new() };
    let kind = RangeKind::Write;
    vec![
        ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: true },
        ClientRequest::JoinLockspace { serial, name: b"default".to_vec() },
        ClientRequest::Lock { serial: 2, lockspace, resource, mode: Mode::Ex, flags, owner: 0, timeout_ms: 0, lvb },
        ClientRequest::Lock { serial: 3, lockspace, resource, mode: Mode::Pr, flags: Flags(0), owner: 0, timeout_ms: 0, lvb: None },
        ClientRequest::Convert { serial: 4, lock: 1, mode: Mode::Pw, flags, owner: 0, timeout_ms: 0, lvb },
        ClientRequest::Cancel { serial: 5, lock: 1 },
        ClientRequest::CancelRequest { serial: 6, request: 3 },
        ClientRequest::Unlock { serial: 7, lock: 1, flags, lvb },
        ClientRequest::Unlock { serial: 0, lock: 1, flags, lvb: None },
        ClientRequest::LockMany {
            serial: 9,
            lockspace,
            items: vec![(resource, Mode::Pr)],
            flags: Flags::NOQUEUE,
            owner: 3,
            timeout_ms: 20,
        },
        ClientRequest::Query { serial: 10, lock: 1 },
        ClientRequest::QueryResource { serial: 11, lockspace, resource },
        ClientRequest::Purge { serial: 12, lockspace, slot: 0, pid: 0 },
        ClientRequest::Range { serial: 13, lock: 1, owner: 3, kind, start: 0, end: 9, flags: Flags::NOQUEUE, timeout_ms: 20 },
        ClientRequest::RangeQuery { serial: 14, lock: 1, owner: 3, kind, start: 0, end: 9 },
        ClientRequest::LeaveLockspace { serial: 8, lockspace },
    ]
}
pub(crate) fn client_request() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = requests_of_clients().iter().map(ClientRequest::encode).collect();
    seeds.push(seeds.iter().flat_map(|body| deadbolt_dlm_core::client::frame(body)).collect());
    seeds
}
pub(crate) fn client_reply() -> Vec<Vec<u8>> {
    let (serial, status, token, reason) = (1, LockStatus::Again, Token { view: 2, counter: 3 }, || String::from("words"));
    let lock = QueriedLock { slot: 1, pid: 2, lock: 3, owner: 4, granted: Some(Mode::Pr), wanted: None, age_ms: 5 };
    let holder = RangeHolder { owner: 1, kind: RangeKind::Read, start: 2, end: 3, slot: 4, pid: 5 };
    let replies = [
        ClientReply::Welcome { version: 1, slot: 2, view: 3 },
        ClientReply::Joined { serial, lockspace: LOCKSPACE },
        ClientReply::LockspaceLeft { serial },
        ClientReply::Completed { serial, lock: 1, status, mode: None, flags: ResultFlags::DEMOTED, lvb: Some([4; 32]), token },
        ClientReply::Completed { serial, lock: 1, status, mode: Some(Mode::Cw), flags: ResultFlags(0), lvb: None, token },
        ClientReply::Blocking { lock: 1, mode: Mode::Ex },
        ClientReply::Lost { reason: reason() },
        ClientReply::ManyCompleted { serial, status, failed: NONE_FAILED, locks: vec![(1, token)] },
        ClientReply::Queried {
            serial,
            status,
            resource: ResourceName::new(b"name"),
            lvb: LvbCopy::default(),
            left_out: 1,
            locks: vec![lock],
        },
        ClientReply::RangeConflict { serial, status, conflict: Some(holder) },
        ClientReply::DeadlockCycle { serial, cycle: cycle() },
        ClientReply::Refused { serial, status, reason: reason() },
    ];
    replies.iter().map(ClientReply::encode).collect()
}

fn cycle() -> Cycle {
    let (party, resource) = (CycleParty { slot: 1, pid: 2, owner: 3 }, ResourceName::new(b"name").expect("short"));
    let (wanted, claim) = (Claim::Mode(Mode::Ex), Claim::Range(Span { start: 0, end: 9, kind: RangeMode::Read }));
    let step = CycleStep { waiter: party, wanted, lockspace: b"space".to_vec(), resource, blocker: party, claim, is_held: true };
    Cycle { steps: vec![step], left_out: 1 }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
pub(crate) fn control_line() -> Vec<Vec<u8>> {
    texts(&[r#"{"op":"status"}"#, r#"{"op":"fence","node":"b","operator":true}"#, r#"{"op":"remove","node":"b"}"#, "[]"])
}
pub(crate) fn supervisor_text() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"op":"run","argv":["sh",[255,1]],"env":[["A","b"]],"cwd":"/"}"#,
        r#"{"op":"stop"}"#,
        r#"{"op":"info"}"#,
        r#"{"signal":15}"#,
        r#"{"started":3}"#,
        r#"{"exit":137,"signal":9}"#,
        r#"{"ok":true,"boot":"b","watchdog":"process","namespaces":"none","supervisor":1,"runner":2,"sbd":null,"daemon":4,"generation":1,"clients":0,"is_stopping":false}"#,
        r#""Go""#,
        r#"{"Serve":{"pid":1,"uid":0,"gid":0,"limits":[[7,1024,4096]],"umask":18,"has_no_new_privileges":false,"no_run":null}}"#,
        r#"{"version":1,"node":"0123456789abcdef","counter":2,"kernel_boot":"k","directory":[1,2],"supervisor":{"pid":3,"start_ticks":4},"runner":null,"watchdog":"process","last_end":"reset"}"#,
    ])
}
pub(crate) fn node_file() -> Vec<Vec<u8>> {
    texts(&[
        include_str!("../../../docs/node.toml.example"),
        "name = \"a\"\ndevices = [\"/dev/x\", '/dev/y']\naddresses = [\"127.0.0.1:7001\"]\nwatchdog = \"process\"\nshared_device = true\n",
    ])
}
pub(crate) fn initial_file() -> Vec<Vec<u8>> {
    texts(&["votes = 2\ndisk_votes = 1\nannounced = [\"192.0.2.1:7700\"]\n", ""])
}
pub(crate) fn key_text() -> Vec<Vec<u8>> {
    texts(&["0123456789abcdef0123456789abcdef0123456789ABCDEF0123456789abcdef\n", "12"])
}

/// Operations: see the check.
pub(crate) fn channel() -> Vec<Vec<u8>> {
    let take = |frame: &Frame| {
        let bytes = frame.encode();
        [&[9, u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat()
    };
    let all: Vec<u8> = frames().iter().flat_map(take).collect();
    vec![[&[0, 2, b'a', b'b', 1], all.as_slice(), &[3, 2, 1], &all].concat()]
}

/// Operations: see the check.
pub(crate) fn lock_service() -> Vec<Vec<u8>> {
    let piece = |head: &[u8], bytes: &[u8]| [head, &[u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let ask = |at: u8, session: u8| -> Vec<u8> {
        requests_of_clients().iter().flat_map(|request| piece(&[at, session], &request.encode())).collect()
    };
    let alone = [&[4, 1, 0, 5, 2, 1, 2, 2][..], &ask(0, 1), &ask(0, 2), &[3, 1, 6]].concat();
    let two = [&[4, 3, 0, 5, 0x85, 2, 1, 0x82, 1][..], &ask(0, 1)[..220], &ask(0x80, 1), &[4, 3, 0, 3, 1, 4, 1, 2, 4, 1, 0, 0x46]].concat();
    let third: Vec<u8> = wire_records(LOCKSPACE).iter().flat_map(|record| [piece(&[1], record), piece(&[0xc1], record)].concat()).collect();
    let all = [&[4, 7, 0, 5, 0x85, 2, 1][..], &ask(0, 1), &third, &[4, 3, 4], &third].concat();
    vec![alone, two, all]
}
