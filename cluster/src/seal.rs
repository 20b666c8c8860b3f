//! What: the sealing of everything that nodes send each other.
//! Owns: the cluster key in memory, the derived keys, the envelopes of datagrams and streams, the replay check.
//! Invariants: a frame is accepted once, only from a holder of the key, only by the slot it was sealed for; no nonce is used twice.
//! Does not: know what is inside a frame, or open sockets.
//! Called by: the links. docs/formats/node-messages.md draws the envelopes.

use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use deadbolt_disk_format::{ClusterUuid, Incarnation, SlotIndex};
use deadbolt_sbd::pill::{KeyFileError, parse_key, read_key};
use hkdf::Hkdf;
use sha2::Sha256;
use std::{collections::BTreeMap, path::Path};

/// First bytes of every datagram and connection; the digit is the version.
pub const MAGIC: [u8; 4] = *b"DBL1";
/// Bytes before the sealed part of a datagram.
const HEAD_BYTES: usize = 32;
/// Incarnations remembered per slot for the replay check: the present one and a few that may still have frames on the way.
const REMEMBERED: usize = 4;
/// Longest sealed record of a stream, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// The cluster's secret: 32 random bytes.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

/// Why a key's text is refused.
#[derive(Debug, thiserror::Error)]
#[error("a cluster key is 64 hexadecimal digits, found {found} characters that are not; copy the whole line that `deadbolt init` printed")]
pub struct KeyError {
    found: usize,
}

impl ClusterKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn draw() -> std::io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self(key))
    }

    /// Reads a key from its text.
    ///
    /// # Errors
    /// Not 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_key(text).map(Self).ok_or_else(|| KeyError { found: text.trim().chars().count() })
    }

    /// Reads a key from a file that only its owner may read.
    ///
    /// # Errors
    /// No file, an exposed one, or no key in it.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        read_key(path).map(Self)
    }

    /// The key as text, to be kept as secret as the key.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes, for the codes on pills.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, cluster: ClusterUuid, info: &[&[u8]]) -> ChaCha20Poly1305 {
        let mut key = [0; 32];
        // 32 bytes are far below the limit of HKDF (255 blocks), so expanding cannot fail.
        let _ = Hkdf::<Sha256>::new(Some(&cluster.0), &self.0).expand_multi_info(info, &mut key);
        ChaCha20Poly1305::new(&Key::from(key))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::from(bytes)
}

/// Why something that came from the network is not believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not of this protocol, or of another version.
    #[error("it is no message of this protocol version")]
    Foreign,
    /// It does not open: another key or cluster, meant for another node, or changed on the way.
    #[error("it is not sealed for this node with the cluster key")]
    Forged,
    /// It came before, or is too old to tell.
    #[error("it came before")]
    Replayed,
    /// A holder of the key sent it, and it makes no sense.
    #[error("it is sealed with the cluster key, and makes no sense")]
    Malformed,
}

/// A datagram that is believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Slot of the sender.
    pub from: SlotIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What was sealed.
    pub payload: Vec<u8>,
    /// Nothing that this incarnation sent later has come before it.
    pub is_newest: bool,
}

/// Seals datagrams of one incarnation and opens those of its peers.
pub struct DatagramSealer {
    key: ClusterKey,
    cluster: ClusterUuid,
    me: SlotIndex,
    incarnation: Incarnation,
    /// By receiver, each with the number of datagrams sealed for it.
    senders: BTreeMap<SlotIndex, (ChaCha20Poly1305, u64)>,
    heard: BTreeMap<SlotIndex, Vec<Heard>>,
}

struct Heard {
    incarnation: Incarnation,
    highest: u64,
    /// Bit n: the one n below the highest was taken.
    taken: u128,
    cipher: ChaCha20Poly1305,
}

impl Heard {
    /// Takes a counter once; links differ in their delay, so that a later one may come first.
    fn take(&mut self, counter: u64) -> Result<bool, Refusal> {
        if counter > self.highest {
            let steps = u32::try_from(counter - self.highest).unwrap_or(u32::MAX);
            self.taken = self.taken.checked_shl(steps).unwrap_or(0) | 1;
            self.highest = counter;
            return Ok(true);
        }
        let bit = u32::try_from(self.highest - counter).ok().and_then(|back| 1u128.checked_shl(back));
        let bit = bit.filter(|bit| self.taken & bit == 0).ok_or(Refusal::Replayed)?;
        self.taken |= bit;
        Ok(false)
    }
}

impl std::fmt::Debug for DatagramSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramSealer").field("me", &self.me).finish_non_exhaustive()
    }
}

impl DatagramSealer {
    /// A sealer for this incarnation.
    #[must_use]
    pub fn new(key: ClusterKey, cluster: ClusterUuid, me: SlotIndex, incarnation: Incarnation) -> Self {
        Self { key, cluster, me, incarnation, senders: BTreeMap::new(), heard: BTreeMap::new() }
    }

    fn cipher(&self, from: Incarnation, to: SlotIndex) -> ChaCha20Poly1305 {
        self.key.derive(self.cluster, &[b"deadbolt datagram", &from.0, &to.0.to_le_bytes()])
    }

    /// Seals a payload for one slot.
    pub fn seal(&mut self, to: SlotIndex, payload: &[u8]) -> Vec<u8> {
        if !self.senders.contains_key(&to) {
            let cipher = self.cipher(self.incarnation, to);
            self.senders.insert(to, (cipher, 0));
        }
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = 1;
        head[6..8].copy_from_slice(&self.me.0.to_le_bytes());
        head[8..24].copy_from_slice(&self.incarnation.0);
        let sealed = self.senders.get_mut(&to).and_then(|(cipher, counter)| {
            *counter += 1;
            head[24..32].copy_from_slice(&counter.to_le_bytes());
            cipher.encrypt(&nonce(*counter), Payload { msg: payload, aad: &head }).ok()
        });
        let mut frame = head.to_vec();
        frame.extend(sealed.unwrap_or_default());
        frame
    }

    /// Opens a datagram.
    ///
    /// # Errors
    /// Anything but a fresh frame of a holder of the key, sealed for this slot.
    pub fn open(&mut self, frame: &[u8]) -> Result<Opened, Refusal> {
        let (head, sealed) = frame.split_first_chunk::<HEAD_BYTES>().ok_or(Refusal::Foreign)?;
        if head[..4] != MAGIC || head[4] != 1 || head[5] != 0 {
            return Err(Refusal::Foreign);
        }
        let from = SlotIndex(u16::from_le_bytes([head[6], head[7]]));
        let incarnation = Incarnation(head[8..24].try_into().map_err(|_| Refusal::Foreign)?);
        let counter = u64::from_le_bytes(head[24..32].try_into().map_err(|_| Refusal::Foreign)?);
        let payload = Payload { msg: sealed, aad: head };
        if let Some(heard) = self.heard.get_mut(&from).and_then(|heards| heards.iter_mut().find(|heard| heard.incarnation == incarnation)) {
            let payload = heard.cipher.decrypt(&nonce(counter), payload).map_err(|_| Refusal::Forged)?;
            let is_newest = heard.take(counter)?;
            return Ok(Opened { from, incarnation, payload, is_newest });
        }
        let cipher = self.cipher(incarnation, self.me);
        let payload = cipher.decrypt(&nonce(counter), payload).map_err(|_| Refusal::Forged)?;
        let heards = self.heard.entry(from).or_default();
        if heards.len() >= REMEMBERED {
            heards.remove(0);
        }
        heards.push(Heard { incarnation, highest: counter, taken: 1, cipher });
        Ok(Opened { from, incarnation, payload, is_newest: true })
    }
}

/// Which end of a connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It connected.
    Caller,
    /// It accepted.
    Callee,
}

/// One direction of a connection.
pub struct StreamHalf {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl std::fmt::Debug for StreamHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamHalf").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl StreamHalf {
    /// Seals a record: four bytes of length, then the sealed bytes.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let sealed = self.cipher.encrypt(&nonce(self.counter), payload).unwrap_or_default();
        let mut record = u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        record.extend(sealed);
        record
    }

    /// Opens the sealed bytes of a record; `None` means that the connection is not to be trusted any more.
    pub fn open(&mut self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.counter += 1;
        self.cipher.decrypt(&nonce(self.counter), sealed).ok()
    }
}

/// Derives both directions from what both ends drew; returns (to send with, to receive with).
#[must_use]
pub fn stream_halves(key: &ClusterKey, cluster: ClusterUuid, end: End, caller: &[u8; 16], callee: &[u8; 16]) -> (StreamHalf, StreamHalf) {
    let half = |direction: &[u8]| StreamHalf { cipher: key.derive(cluster, &[b"deadbolt stream", direction, caller, callee]), counter: 0 };
    let (out, back) = (half(b"caller to callee"), half(b"callee to caller"));
    match end {
        End::Caller => (out, back),
        End::Callee => (back, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterUuid = ClusterUuid([7; 16]);

    fn sealer(slot: u16, key: u8) -> DatagramSealer {
        DatagramSealer::new(ClusterKey([key; 32]), CLUSTER, SlotIndex(slot), Incarnation([u8::try_from(slot).unwrap(); 16]))
    }

    #[test]
    fn a_datagram_is_taken_once_by_its_receiver_only() {
        let (mut a, mut b, mut c) = (sealer(0, 1), sealer(1, 1), sealer(2, 1));
        let frame = a.seal(SlotIndex(1), b"hello");
        assert_eq!(b.open(&frame).map(|opened| (opened.from, opened.payload)), Ok((SlotIndex(0), b"hello".to_vec())));
        assert_eq!(b.open(&frame), Err(Refusal::Replayed));
        assert_eq!(c.open(&frame), Err(Refusal::Forged), "sealed for another slot");
        assert_eq!(sealer(1, 2).open(&frame), Err(Refusal::Forged), "another key");
        assert_eq!(b.open(b"GET / HTTP/1.1\r\nHost: a-web-server\r\n\r\n"), Err(Refusal::Foreign));
    }

    #[test]
    fn datagrams_that_overtake_each_other_are_taken_once_each_and_old_ones_never() {
        let (mut a, mut b) = (sealer(0, 1), sealer(1, 1));
        let frames: Vec<Vec<u8>> = (0..300).map(|_| a.seal(SlotIndex(1), b"hello")).collect();
        let newest = |opened: Result<Opened, Refusal>| opened.map(|opened| opened.is_newest);
        assert_eq!(newest(b.open(&frames[1])), Ok(true));
        assert_eq!(newest(b.open(&frames[0])), Ok(false));
        assert_eq!(newest(b.open(&frames[299])), Ok(true));
        assert_eq!(newest(b.open(&frames[299 - 127])), Ok(false));
        for old in [0, 1, 2, 299 - 128, 299 - 127, 299] {
            assert_eq!(b.open(&frames[old]), Err(Refusal::Replayed), "{old}");
        }
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let frame = sealer(0, 1).seal(SlotIndex(1), b"hello");
        for index in 0..frame.len() {
            let mut bad = frame.clone();
            bad[index] ^= 1;
            let refusal = if index < 6 { Refusal::Foreign } else { Refusal::Forged };
            assert_eq!(sealer(1, 1).open(&bad), Err(refusal), "byte {index}");
        }
        for length in 0..frame.len() {
            assert!(sealer(1, 1).open(&frame[..length]).is_err());
        }
    }

    #[test]
    fn a_stream_is_ordered_and_bound_to_both_ends() {
        let key = ClusterKey([1; 32]);
        let (mut send, _) = stream_halves(&key, CLUSTER, End::Caller, &[1; 16], &[2; 16]);
        let (_, mut receive) = stream_halves(&key, CLUSTER, End::Callee, &[1; 16], &[2; 16]);
        let (first, second) = (send.seal(b"one"), send.seal(b"two"));
        assert_eq!(receive.open(&first[4..]).as_deref(), Some(b"one".as_slice()));
        assert!(receive.open(&first[4..]).is_none(), "a replay breaks the stream");
        let (_, mut other) = stream_halves(&key, CLUSTER, End::Callee, &[1; 16], &[3; 16]);
        assert!(other.open(&second[4..]).is_none());
    }

    #[test]
    fn a_key_survives_its_text() {
        let key = ClusterKey::draw().unwrap();
        assert_eq!(ClusterKey::parse(&format!("{}\n", key.to_text())).unwrap().bytes(), key.bytes());
        assert!(ClusterKey::parse("12").is_err());
        assert!(ClusterKey::parse(&"g".repeat(64)).is_err());
    }
}
