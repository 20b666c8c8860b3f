//! What: the messages that nodes send each other about themselves, as values and as bytes.
//! Owns: the plaintext of hellos, of their links' parts, and of the messages that ask for a change of configuration.
//! Invariants: little-endian, fixed sizes first; a decoder takes arbitrary bytes and never panics.
//! Does not: seal, send, or remember anything.
//! Called by: the daemon's links and wiring; docs/formats/node-messages.md draws them.

use crate::membership::Addition;
use alloc::{string::String, vec::Vec};
use deadbolt_disk_format::{BootId, Incarnation, Life, NodeState, SlotIndex, SlotSet, ViewNumber};

/// A node's periodic word on the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Who speaks.
    pub life: Life,
    /// What it says of itself.
    pub state: NodeState,
    /// Newest view it knows.
    pub view: ViewNumber,
    /// Newest view in which its lock service has finished recovery.
    pub recovered: ViewNumber,
    /// Whom it hears.
    pub hears: SlotSet,
    /// It has asked to leave: nobody is to be surprised by its silence.
    pub is_leaving: bool,
    /// How long a freeze that it has asked for so far may still last, ms; 0: none.
    pub freeze_left_ms: u32,
}

/// Length of an encoded hello, in bytes.
pub const HELLO_BYTES: usize = 92;

impl Hello {
    /// Bytes of the hello.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        put_life(&mut bytes, &self.life);
        bytes.push(state_number(self.state));
        bytes.push(u8::from(self.is_leaving));
        bytes.extend_from_slice(&self.view.0.to_le_bytes());
        bytes.extend_from_slice(&self.recovered.0.to_le_bytes());
        for word in self.hears.0 {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.freeze_left_ms.to_le_bytes());
        bytes.resize(HELLO_BYTES, 0);
        let mut out = [0; HELLO_BYTES];
        out.copy_from_slice(&bytes);
        out
    }

    /// Reads a hello; `None` when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != HELLO_BYTES {
            return None;
        }
        let mut reader = Reader::new(bytes);
        let life = reader.life()?;
        let state = state_of(reader.u8()?)?;
        let is_leaving = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let view = ViewNumber(reader.u64()?);
        let recovered = ViewNumber(reader.u64()?);
        let mut hears = SlotSet::default();
        for word in &mut hears.0 {
            *word = reader.u64()?;
        }
        let freeze_left_ms = reader.u32()?;
        Some(Self { life, state, view, recovered, hears, is_leaving, freeze_left_ms })
    }
}

/// The link's part of a hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkWord {
    /// Place of the addresses in both lists.
    pub link: u8,
    /// Padded to the largest packet of the link.
    pub is_full: bool,
    /// The receiver is heard on this link.
    pub hears: bool,
    /// The receiver's full-sized hellos do not come, while its plain ones do.
    pub misses_full: bool,
    /// So many of the receiver's last plain hellos did not come.
    pub lost: u8,
    /// Of so many.
    pub expected: u8,
    /// Largest packet that the sender can send on this link, headers included; 0: it does not know.
    pub mtu: u16,
    /// Number of this hello among those of its size, to this receiver on this link.
    pub sequence: u32,
    /// Number of the last full-sized one.
    pub full_sent: u32,
    /// How long the echoed stamp has been here.
    pub held_us: u32,
    /// The sender's clock.
    pub sent_us: u64,
    /// The receiver's newest stamp that came; 0: none.
    pub echo_us: u64,
}

/// Length of an encoded link word, in bytes.
const LINK_WORD_BYTES: usize = 36;
/// Length of a hello on a link without padding, in bytes.
pub const LINK_HELLO_BYTES: usize = HELLO_BYTES + LINK_WORD_BYTES;

impl LinkWord {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.link);
        bytes.push(u8::from(self.is_full) | u8::from(self.hears) << 1 | u8::from(self.misses_full) << 2);
        bytes.push(self.lost);
        bytes.push(self.expected);
        bytes.extend_from_slice(&self.mtu.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        for number in [self.sequence, self.full_sent, self.held_us] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.sent_us.to_le_bytes());
        bytes.extend_from_slice(&self.echo_us.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let link = reader.u8()?;
        let flags = reader.u8().filter(|flags| *flags < 8)?;
        let (lost, expected, mtu) = (reader.u8()?, reader.u8()?, reader.u16()?);
        if reader.u16()? != 0 || lost > expected {
            return None;
        }
        Some(Self {
            link,
            is_full: flags & 1 != 0,
            hears: flags & 2 != 0,
            misses_full: flags & 4 != 0,
            lost,
            expected,
            mtu,
            sequence: reader.u32()?,
            full_sent: reader.u32()?,
            held_us: reader.u32()?,
            sent_us: reader.u64()?,
            echo_us: reader.u64()?,
        })
    }
}

/// What a datagram carries: a hello, and its link's part; where that is full-sized, zeros up to the size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkHello {
    /// What the node says.
    pub hello: Hello,
    /// What it says of this link.
    pub word: LinkWord,
    /// Zeros behind it; none unless it is full-sized.
    pub padding: u16,
}

impl LinkHello {
    /// Bytes of the payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.hello.encode().to_vec();
        self.word.encode(&mut bytes);
        bytes.resize(LINK_HELLO_BYTES + usize::from(self.padding), 0);
        bytes
    }

    /// Reads a payload; `None` when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (hello, rest) = bytes.split_at_checked(HELLO_BYTES)?;
        let mut reader = Reader::new(rest);
        let word = LinkWord::decode(&mut reader)?;
        let padding = reader.rest();
        if padding.iter().any(|byte| *byte != 0) || (!word.is_full && !padding.is_empty()) {
            return None;
        }
        Some(Self { hello: Hello::decode(hello)?, word, padding: u16::try_from(padding.len()).ok()? })
    }
}

/// What one node asks of another, or answers, over a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeMessage {
    /// The lock service's own bytes.
    Locks(Vec<u8>),
    /// A node that is not configured asks to be added.
    AddNode(Addition),
    /// A configured node asks to be taken out of the configuration once it is gone.
    RemoveNode {
        /// Its place.
        slot: SlotIndex,
    },
    /// The request was taken (its effect is a later view) or refused with a reason.
    Answer(Result<(), String>),
    /// A view was decided; read the disk now.
    Decided(ViewNumber),
    /// About lives beyond the own beat.
    Beyond(Beyond),
}

/// What members tell each other when they lose the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beyond {
    /// The disk is lost here: do you consent to a freeze of this view?
    AskFreeze {
        /// The view.
        view: ViewNumber,
        /// Of the question.
        serial: u32,
    },
    /// The disk is lost here, too: consent to that question.
    Consent {
        /// Of the question.
        serial: u32,
    },
    /// No path to the disk here: vouch for this life.
    AskVouch {
        /// Of the request.
        serial: u32,
    },
    /// The vouch for that request stands on the disk, and nothing speaks against it.
    Grant {
        /// Of the request.
        serial: u32,
    },
}

impl NodeMessage {
    /// Bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Locks(payload) => {
                bytes.push(1);
                bytes.extend_from_slice(payload);
            }
            Self::AddNode(Addition { name, addresses, votes, occupied }) => {
                bytes.push(2);
                for word in occupied.0 {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
                bytes.extend_from_slice(&votes.to_le_bytes());
                put_text(&mut bytes, name);
                bytes.push(u8::try_from(addresses.len()).unwrap_or(u8::MAX));
                for address in addresses {
                    put_text(&mut bytes, address);
                }
            }
            Self::RemoveNode { slot } => {
                bytes.push(3);
                bytes.extend_from_slice(&slot.0.to_le_bytes());
            }
            Self::Answer(answer) => {
                bytes.push(4);
                bytes.push(u8::from(answer.is_ok()));
                if let Err(reason) = answer {
                    put_text(&mut bytes, reason);
                }
            }
            Self::Decided(view) => {
                bytes.push(5);
                bytes.extend_from_slice(&view.0.to_le_bytes());
            }
            Self::Beyond(Beyond::AskFreeze { view, serial }) => {
                bytes.push(6);
                bytes.extend_from_slice(&view.0.to_le_bytes());
                bytes.extend_from_slice(&serial.to_le_bytes());
            }
            Self::Beyond(Beyond::Consent { serial }) => put_serial(&mut bytes, 7, *serial),
            Self::Beyond(Beyond::AskVouch { serial }) => put_serial(&mut bytes, 8, *serial),
            Self::Beyond(Beyond::Grant { serial }) => put_serial(&mut bytes, 9, *serial),
        }
        bytes
    }

    /// Reads a message; `None` when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            1 => return Some(Self::Locks(reader.rest().to_vec())),
            2 => {
                let mut occupied = SlotSet::default();
                for word in &mut occupied.0 {
                    *word = reader.u64()?;
                }
                let votes = reader.u16()?;
                let name = reader.text()?;
                let count = reader.u8()?;
                let mut addresses = Vec::new();
                for _ in 0..count {
                    addresses.push(reader.text()?);
                }
                Self::AddNode(Addition { name, addresses, votes, occupied })
            }
            3 => Self::RemoveNode { slot: SlotIndex(reader.u16()?) },
            4 => match reader.u8()? {
                1 => Self::Answer(Ok(())),
                0 => Self::Answer(Err(reader.text()?)),
                _ => return None,
            },
            5 => Self::Decided(ViewNumber(reader.u64()?)),
            6 => Self::Beyond(Beyond::AskFreeze { view: ViewNumber(reader.u64()?), serial: reader.u32()? }),
            7 => Self::Beyond(Beyond::Consent { serial: reader.u32()? }),
            8 => Self::Beyond(Beyond::AskVouch { serial: reader.u32()? }),
            9 => Self::Beyond(Beyond::Grant { serial: reader.u32()? }),
            _ => return None,
        };
        reader.rest().is_empty().then_some(message)
    }
}

fn put_life(bytes: &mut Vec<u8>, life: &Life) {
    bytes.extend_from_slice(&life.slot.0.to_le_bytes());
    bytes.extend_from_slice(&life.boot.0);
    bytes.extend_from_slice(&life.incarnation.0);
}

fn put_serial(bytes: &mut Vec<u8>, kind: u8, serial: u32) {
    bytes.push(kind);
    bytes.extend_from_slice(&serial.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let mut length = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    bytes.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes().get(..length).unwrap_or_default());
}

const fn state_number(state: NodeState) -> u8 {
    match state {
        NodeState::None => 0,
        NodeState::Joining => 1,
        NodeState::Member => 2,
        NodeState::Left => 3,
        NodeState::Condemned => 4,
    }
}

const fn state_of(number: u8) -> Option<NodeState> {
    Some(match number {
        0 => NodeState::None,
        1 => NodeState::Joining,
        2 => NodeState::Member,
        3 => NodeState::Left,
        4 => NodeState::Condemned,
        _ => return None,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.u16()?);
        core::str::from_utf8(self.take(length)?).ok().map(String::from)
    }
    fn life(&mut self) -> Option<Life> {
        Some(Life { slot: SlotIndex(self.u16()?), boot: BootId(self.array()?), incarnation: Incarnation(self.array()?) })
    }
    fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            life: Life { slot: SlotIndex(7), boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) },
            state: NodeState::Member,
            view: ViewNumber(9),
            recovered: ViewNumber(8),
            hears: [SlotIndex(1), SlotIndex(200)].into_iter().collect(),
            is_leaving: true,
            freeze_left_ms: 0x0102_0304,
        }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let hello = hello();
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        let mut neither = hello.encode();
        neither[35] = 2;
        assert_eq!(Hello::decode(&neither), None, "leaving is yes or no");
    }

    #[test]
    fn a_hello_on_a_link_is_taken_in_its_own_form_only() {
        let word = LinkWord {
            link: 1,
            hears: true,
            lost: 3,
            expected: 64,
            mtu: 1500,
            sequence: 7,
            full_sent: 6,
            held_us: 5,
            sent_us: 4,
            echo_us: 3,
            ..LinkWord::default()
        };
        let plain = LinkHello { hello: hello(), word, padding: 0 };
        let full = LinkHello { word: LinkWord { is_full: true, misses_full: true, ..word }, padding: 1300, ..plain };
        for good in [plain, full] {
            assert_eq!(LinkHello::decode(&good.encode()), Some(good));
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = full.encode();
            bytes[at] = byte;
            LinkHello::decode(&bytes)
        };
        assert_eq!(plain.encode().len(), LINK_HELLO_BYTES);
        assert_eq!(LinkHello::decode(&[plain.encode(), vec![0]].concat()), None, "a plain one has no padding");
        assert_eq!(LinkHello::decode(&plain.encode()[..LINK_HELLO_BYTES - 1]), None);
        assert_eq!(changed(LINK_HELLO_BYTES + 9, 1), None, "padding is zeros");
        assert_eq!(changed(HELLO_BYTES + 1, 8), None, "unknown flags");
        assert_eq!(changed(HELLO_BYTES + 2, 65), None, "more is lost than was expected");
        assert_eq!(changed(HELLO_BYTES + 6, 1), None, "a reserved byte");
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            NodeMessage::Locks(alloc::vec![1, 2, 3]),
            NodeMessage::AddNode(Addition {
                name: "b".into(),
                addresses: alloc::vec!["127.0.0.1:1".into()],
                votes: 1,
                occupied: [SlotIndex(2)].into_iter().collect(),
            }),
            NodeMessage::RemoveNode { slot: SlotIndex(3) },
            NodeMessage::Answer(Ok(())),
            NodeMessage::Answer(Err("full".into())),
            NodeMessage::Decided(ViewNumber(4)),
            NodeMessage::Beyond(Beyond::AskFreeze { view: ViewNumber(4), serial: 9 }),
            NodeMessage::Beyond(Beyond::Consent { serial: 9 }),
            NodeMessage::Beyond(Beyond::AskVouch { serial: u32::MAX }),
            NodeMessage::Beyond(Beyond::Grant { serial: 0 }),
        ] {
            assert_eq!(NodeMessage::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_text_too_long_for_its_length_is_cut_between_characters() {
        let long: String = core::iter::repeat_n('\u{e9}', 40_000).collect();
        let Some(NodeMessage::Answer(Err(cut))) = NodeMessage::decode(&NodeMessage::Answer(Err(long.clone())).encode()) else {
            panic!("must decode")
        };
        assert_eq!(cut.len(), 65_534);
        assert!(long.starts_with(&cut));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Hello::decode(&bytes);
            let _ = LinkHello::decode(&bytes);
            let _ = NodeMessage::decode(&bytes);
        }
    }
}
