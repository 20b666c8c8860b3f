//! What: one ordered, lossless stream of messages between two lives, over connections that come and go.
//! Owns: sequence numbers, the queue of what was not confirmed, the place to resume from.
//! Invariants: a payload is delivered once and in order as long as both lives last; a lost connection proves nothing and loses nothing.
//! Does not: seal, connect, or decide that a peer is dead.
//! Called by: the daemon's links.

use alloc::{collections::VecDeque, vec::Vec};

/// Most bytes that may wait for a peer; a peer that is behind by more is not heard any more (its edge goes).
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A delivery is confirmed at the latest after this many payloads.
const CONFIRM_EVERY: u64 = 64;

/// What travels on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// First on every connection: the sequence of the last payload delivered here.
    Resume {
        /// Last payload delivered.
        delivered: u64,
    },
    /// A payload.
    Data {
        /// Its number, from 1.
        sequence: u64,
        /// Last payload delivered in the other direction.
        delivered: u64,
        /// The message.
        payload: Vec<u8>,
    },
    /// Confirms without a payload.
    Confirm {
        /// Last payload delivered.
        delivered: u64,
    },
}

impl Frame {
    /// Bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, sequence, delivered, payload): (u8, u64, u64, &[u8]) = match self {
            Self::Resume { delivered } => (1, 0, *delivered, &[]),
            Self::Data { sequence, delivered, payload } => (2, *sequence, *delivered, payload),
            Self::Confirm { delivered } => (3, 0, *delivered, &[]),
        };
        let mut bytes = Vec::with_capacity(17 + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&delivered.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Reads a frame; `None` when the bytes are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (delivered, payload) = rest.split_first_chunk::<8>()?;
        let (sequence, delivered) = (u64::from_le_bytes(*sequence), u64::from_le_bytes(*delivered));
        match kind {
            1 if payload.is_empty() && sequence == 0 => Some(Self::Resume { delivered }),
            2 => Some(Self::Data { sequence, delivered, payload: payload.to_vec() }),
            3 if payload.is_empty() && sequence == 0 => Some(Self::Confirm { delivered }),
            _ => None,
        }
    }
}

/// The peer broke the rules of the stream; the connection is to be closed and made anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the peer sent payload {found} where {expected} is next; the connection is made anew")]
pub struct OutOfOrder {
    /// What came.
    pub found: u64,
    /// What had to come.
    pub expected: u64,
}

/// One end of the stream.
#[derive(Clone, Debug, Default)]
pub struct Channel {
    is_resumed: bool,
    sent: u64,
    waiting: VecDeque<(u64, Vec<u8>)>,
    waiting_bytes: usize,
    delivered: u64,
    confirmed: u64,
}

impl Channel {
    /// A stream on which nothing was sent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Is the peer so far behind that it must count as silent?
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        self.waiting_bytes > QUEUE_BYTES_MAX
    }

    /// Takes a payload; returns the frame to send if a connection stands.
    pub fn send(&mut self, payload: Vec<u8>) -> Option<Frame> {
        self.sent += 1;
        self.waiting_bytes += payload.len();
        self.waiting.push_back((self.sent, payload.clone()));
        self.is_resumed.then(|| self.data(self.sent, payload))
    }

    fn data(&mut self, sequence: u64, payload: Vec<u8>) -> Frame {
        self.confirmed = self.delivered;
        Frame::Data { sequence, delivered: self.delivered, payload }
    }

    /// A connection stands; returns what to say first.
    pub fn handle_connected(&mut self) -> Frame {
        self.is_resumed = false;
        self.confirmed = self.delivered;
        Frame::Resume { delivered: self.delivered }
    }

    /// The connection is gone. Nothing is lost.
    pub fn handle_disconnected(&mut self) {
        self.is_resumed = false;
    }

    /// Takes a frame; returns a payload to deliver, and pushes what is to be sent.
    ///
    /// # Errors
    /// A gap in the peer's numbers.
    pub fn handle_frame(&mut self, frame: Frame, out: &mut Vec<Frame>) -> Result<Option<Vec<u8>>, OutOfOrder> {
        match frame {
            Frame::Resume { delivered } => {
                self.confirm(delivered);
                self.is_resumed = true;
                let waiting: Vec<(u64, Vec<u8>)> = self.waiting.iter().cloned().collect();
                for (sequence, payload) in waiting {
                    let frame = self.data(sequence, payload);
                    out.push(frame);
                }
                Ok(None)
            }
            Frame::Confirm { delivered } => {
                self.confirm(delivered);
                Ok(None)
            }
            Frame::Data { sequence, delivered, payload } => {
                self.confirm(delivered);
                if sequence <= self.delivered {
                    return Ok(None);
                }
                if sequence != self.delivered + 1 {
                    return Err(OutOfOrder { found: sequence, expected: self.delivered + 1 });
                }
                self.delivered = sequence;
                if self.delivered - self.confirmed >= CONFIRM_EVERY {
                    out.extend(self.poll_confirm());
                }
                Ok(Some(payload))
            }
        }
    }

    /// Confirms what was delivered and not confirmed yet; to be called once per poll.
    pub fn poll_confirm(&mut self) -> Option<Frame> {
        (self.is_resumed && self.delivered > self.confirmed).then(|| {
            self.confirmed = self.delivered;
            Frame::Confirm { delivered: self.delivered }
        })
    }

    fn confirm(&mut self, delivered: u64) {
        while self.waiting.front().is_some_and(|(sequence, _)| *sequence <= delivered) {
            if let Some((_, payload)) = self.waiting.pop_front() {
                self.waiting_bytes -= payload.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two ends over connections that are cut after some frames: everything arrives once and in order.
    fn run(cuts: &[usize], payloads: u64) -> Vec<u64> {
        let (mut a, mut b) = (Channel::new(), Channel::new());
        let mut got = Vec::new();
        let mut cuts = cuts.iter().copied();
        for number in 0..payloads {
            a.send(number.to_le_bytes().to_vec());
        }
        while (got.len() as u64) < payloads {
            let mut budget = cuts.next().unwrap_or(usize::MAX);
            let mut to_b: VecDeque<Frame> = [a.handle_connected()].into();
            let mut to_a: VecDeque<Frame> = [b.handle_connected()].into();
            while budget > 0 && (!to_a.is_empty() || !to_b.is_empty()) {
                budget -= 1;
                let mut out = Vec::new();
                if let Some(frame) = to_a.pop_front() {
                    a.handle_frame(Frame::decode(&frame.encode()).unwrap(), &mut out).unwrap();
                    to_b.extend(out.drain(..));
                }
                if let Some(frame) = to_b.pop_front() {
                    let payload = b.handle_frame(Frame::decode(&frame.encode()).unwrap(), &mut out).unwrap();
                    got.extend(payload.map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())));
                    to_a.extend(out);
                }
            }
            a.handle_disconnected();
            b.handle_disconnected();
        }
        got
    }

    proptest! {
        #[test]
        fn everything_arrives_once_and_in_order(cuts in proptest::collection::vec(1usize..40, 0..20)) {
            prop_assert_eq!(run(&cuts, 200), (0..200).collect::<Vec<u64>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(frame) = Frame::decode(&bytes) {
                let _ = Channel::new().handle_frame(frame, &mut Vec::new());
            }
        }
    }

    #[test]
    fn a_gap_is_an_error() {
        let mut channel = Channel::new();
        let gap = channel.handle_frame(Frame::Data { sequence: 2, delivered: 0, payload: Vec::new() }, &mut Vec::new());
        assert_eq!(gap, Err(OutOfOrder { found: 2, expected: 1 }));
    }
}
