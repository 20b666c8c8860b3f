//! What: the checks of everything that nodes and clients send each other.
//! Owns: the canonical form of messages; that a sealed frame is taken only as it was sealed.
//! Invariants: no sockets, no randomness.
//! Does not: check what a machine makes of a message; `machines` does.
//! Called by: the table of targets.

use crate::samples::CLUSTER;
use deadbolt_cluster::links::{decode_identification, encode_identification};
use deadbolt_cluster::seal::{ClusterKey, DatagramSealer, End, Opened, Refusal, stream_halves};
use deadbolt_cluster_core::channel::Frame;
use deadbolt_cluster_core::hello::{HELLO_BYTES, Hello, LINK_HELLO_BYTES, LinkHello, NodeMessage};
use deadbolt_disk_format::{Incarnation, SlotIndex};
use deadbolt_dlm_core::client::{FRAME_BYTES_MAX, frame, split_frame};
use deadbolt_dlm_core::{ClientReply, ClientRequest, rewrite_message};

/// Bytes of a hello that say something; the rest is left for later versions and not looked at.
const HELLO_SAID_BYTES: usize = 84;

/// A hello.
pub fn check_hello(bytes: &[u8]) {
    if let Some(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode()[..HELLO_SAID_BYTES], bytes[..HELLO_SAID_BYTES], "a second encoding of a hello");
    }
}

/// A hello on a link.
pub fn check_link_hello(bytes: &[u8]) {
    if let Some(hello) = LinkHello::decode(bytes) {
        let again = hello.encode();
        assert_eq!(again[..HELLO_SAID_BYTES], bytes[..HELLO_SAID_BYTES]);
        assert_eq!(again[HELLO_BYTES..], bytes[HELLO_BYTES..], "a second encoding of a link's part");
        assert!(hello.word.is_full || bytes.len() == LINK_HELLO_BYTES);
    }
}

/// A message between nodes.
pub fn check_node_message(bytes: &[u8]) {
    if let Some(message) = NodeMessage::decode(bytes) {
        assert_eq!(message.encode(), bytes, "a second encoding of {message:?}");
    }
}

/// A frame of the ordered stream.
pub fn check_frame(bytes: &[u8]) {
    if let Some(frame) = Frame::decode(bytes) {
        assert_eq!(frame.encode(), bytes, "a second encoding of {frame:?}");
    }
}

/// Who connects.
pub fn check_identification(bytes: &[u8]) {
    if let Some(life) = decode_identification(bytes) {
        assert_eq!(encode_identification(life.as_ref()), bytes);
    }
}

/// The key of the frames that are checked.
pub(crate) fn key() -> ClusterKey {
    ClusterKey::parse(&"07".repeat(32)).unwrap()
}

fn sealer(slot: u16) -> DatagramSealer {
    DatagramSealer::new(key(), CLUSTER, SlotIndex(slot), Incarnation([u8::try_from(slot).unwrap(); 16]))
}

/// The bytes of a frame with a mask laid over them; where the mask is shorter they stay.
fn masked(frame: &[u8], mask: &[u8]) -> Vec<u8> {
    frame.iter().zip(mask.iter().chain(std::iter::repeat(&0))).map(|(byte, mask)| byte ^ mask).collect()
}

/// A sealed datagram: the input as it came, as a payload that is sealed, and as a mask over a good one.
pub fn check_datagram(bytes: &[u8]) {
    assert!(sealer(1).open(bytes).is_err(), "a datagram was made without the key");
    let mut receiver = sealer(1);
    let frame = sealer(0).seal(SlotIndex(1), bytes);
    let opened = Opened { from: SlotIndex(0), incarnation: Incarnation([0; 16]), payload: bytes.to_vec(), is_newest: true };
    assert_eq!(receiver.open(&frame), Ok(opened));
    assert_eq!(receiver.open(&frame), Err(Refusal::Replayed), "a datagram was taken twice");
    let good = sealer(0).seal(SlotIndex(1), b"a payload of some length, so that masks meet its bytes and not only its head");
    let changed = masked(&good, bytes);
    assert_eq!(sealer(1).open(&changed).is_ok(), changed == good, "a datagram is taken as it was sealed");
}

/// A sealed record of a connection, as for datagrams.
pub fn check_stream(bytes: &[u8]) {
    let halves = |end| stream_halves(&key(), CLUSTER, end, &[1; 16], &[2; 16]);
    let (mut send, _) = halves(End::Caller);
    let (_, mut receive) = halves(End::Callee);
    assert!(halves(End::Callee).1.open(bytes).is_none(), "a record was made without the key");
    let record = send.seal(bytes);
    let (length, sealed) = record.split_first_chunk::<4>().unwrap();
    assert_eq!(usize::try_from(u32::from_le_bytes(*length)).unwrap(), sealed.len());
    assert_eq!(receive.open(sealed).as_deref(), Some(bytes));
    let second = send.seal(b"the second record of this connection");
    let changed = masked(&second[4..], bytes);
    assert_eq!(receive.open(&changed).is_some(), changed == second[4..], "a record is taken as it was sealed");
}

/// A message of a lock service.
pub fn check_lock_message(bytes: &[u8]) {
    if let Ok(again) = rewrite_message(bytes) {
        assert_eq!(again, bytes, "a second encoding of a lock message");
    }
}

/// What a client sends: as a frame, and as a stream of frames.
pub fn check_client_request(bytes: &[u8]) {
    if let Ok(request) = ClientRequest::decode(bytes) {
        assert_eq!(request.encode(), bytes, "a second encoding of {request:?}");
        let framed = frame(bytes);
        assert_eq!(split_frame(&framed), Ok(Some((bytes, framed.len()))));
    }
    let mut rest = bytes;
    while let Ok(Some((body, consumed))) = split_frame(rest) {
        assert!(body.len() <= FRAME_BYTES_MAX && consumed > body.len());
        let _ = ClientRequest::decode(body);
        rest = &rest[consumed..];
    }
}

/// What a client is told.
pub fn check_client_reply(bytes: &[u8]) {
    if let Ok(reply) = ClientReply::decode(bytes) {
        assert_eq!(reply.encode(), bytes, "a second encoding of {reply:?}");
    }
}
