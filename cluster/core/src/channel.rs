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
    /// First on every connection: which streams are meant, and the last payload delivered here.
    Resume {
        /// Number of the sender's own stream.
        stream: u64,
        /// Number of the other's stream that `delivered` counts; 0: none known.
        of: u64,
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
        let of_bytes;
        let (kind, sequence, delivered, payload): (u8, u64, u64, &[u8]) = match self {
            Self::Resume { stream, of, delivered } => {
                of_bytes = of.to_le_bytes();
                (1, *stream, *delivered, &of_bytes)
            }
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
            1 => payload.try_into().ok().map(|of| Self::Resume { stream: sequence, of: u64::from_le_bytes(of), delivered }),
            2 => Some(Self::Data { sequence, delivered, payload: payload.to_vec() }),
            3 if payload.is_empty() && sequence == 0 => Some(Self::Confirm { delivered }),
            _ => None,
        }
    }
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChannelError {
    /// A gap in the peer's numbers; the connection is made anew.
    #[error("the peer sent payload {found} where {expected} is next; the connection is made anew")]
    OutOfOrder {
        /// What came.
        found: u64,
        /// What had to come.
        expected: u64,
    },
    /// The other end began its stream anew, or forgot this one: payloads are lost between these two lives, for good.
    #[error("the other end does not know this stream any more: messages between these two lives are lost")]
    StreamLost,
}

/// One end of the stream.
#[derive(Clone, Debug, Default)]
pub struct Channel {
    /// Number of the own stream, not 0.
    stream: u64,
    /// Number of the peer's stream; 0: none seen.
    peer: u64,
    is_resumed: bool,
    is_overrun: bool,
    sent: u64,
    waiting: VecDeque<(u64, Vec<u8>)>,
    waiting_bytes: usize,
    delivered: u64,
    confirmed: u64,
}

impl Channel {
    /// A stream on which nothing was sent; its number is one that these two lives never used before.
    #[must_use]
    pub fn new(stream: u64) -> Self {
        Self { stream: stream.max(1), ..Self::default() }
    }

    /// News about a peer that is so far behind that it must count as silent (`Some(true)`), or has caught up (`Some(false)`).
    pub fn poll_overrun(&mut self) -> Option<bool> {
        let is_overrun = if self.is_overrun { self.waiting_bytes > QUEUE_BYTES_MAX / 2 } else { self.waiting_bytes > QUEUE_BYTES_MAX };
        let is_news = is_overrun != self.is_overrun && (is_overrun || self.is_resumed);
        self.is_overrun = if is_news { is_overrun } else { self.is_overrun };
        is_news.then_some(is_overrun)
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
        Frame::Resume { stream: self.stream, of: self.peer, delivered: self.delivered }
    }

    /// The connection is gone. Nothing is lost.
    pub fn handle_disconnected(&mut self) {
        self.is_resumed = false;
    }

    /// Takes a frame; returns a payload to deliver, and pushes what is to be sent. Until a `Resume` of the present connection is accepted,
    /// and after a frame that is refused, nothing else that comes on it counts: it may be of another stream.
    ///
    /// # Errors
    /// A gap in the peer's numbers, or a stream that one end does not know any more.
    pub fn handle_frame(&mut self, frame: Frame, out: &mut Vec<Frame>) -> Result<Option<Vec<u8>>, ChannelError> {
        match frame {
            Frame::Confirm { .. } | Frame::Data { .. } if !self.is_resumed => Ok(None),
            Frame::Resume { stream, of, delivered } => {
                self.is_resumed = false;
                self.check_streams(stream, of)?;
                self.peer = stream;
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
                    self.is_resumed = false;
                    return Err(ChannelError::OutOfOrder { found: sequence, expected: self.delivered + 1 });
                }
                self.delivered = sequence;
                if self.delivered - self.confirmed >= CONFIRM_EVERY {
                    out.extend(self.poll_confirm());
                }
                Ok(Some(payload))
            }
        }
    }

    /// Both ends must mean the same two streams; one that is new to the other must not have lost anything yet.
    fn check_streams(&self, stream: u64, of: u64) -> Result<(), ChannelError> {
        let has_lost_theirs = self.peer != 0 && self.peer != stream;
        let first_waiting = self.waiting.front().map_or(self.sent + 1, |(sequence, _)| *sequence);
        let has_lost_ours = if of == 0 { first_waiting != 1 } else { of != self.stream };
        if stream == 0 || has_lost_theirs || has_lost_ours { Err(ChannelError::StreamLost) } else { Ok(()) }
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
        let (mut a, mut b) = (Channel::new(1), Channel::new(2));
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
                let _ = Channel::new(1).handle_frame(frame, &mut Vec::new());
            }
        }
    }

    #[test]
    fn a_gap_is_an_error_and_ends_what_counts_of_the_connection() {
        let (mut channel, mut peer) = (Channel::new(1), Channel::new(2));
        connect(&mut channel, &mut peer).0.unwrap();
        assert_eq!(channel.handle_frame(data(2), &mut Vec::new()), Err(ChannelError::OutOfOrder { found: 2, expected: 1 }));
        // What came in the same read as the gap.
        assert_eq!(channel.handle_frame(data(1), &mut Vec::new()), Ok(None));
        connect(&mut channel, &mut peer).0.unwrap();
        assert_eq!(channel.handle_frame(data(1), &mut Vec::new()), Ok(Some(Vec::new())));
    }

    #[test]
    fn nothing_of_a_stream_that_was_refused_is_delivered() {
        let (mut a, mut b, mut forgetful) = (Channel::new(1), Channel::new(2), Channel::new(3));
        assert_eq!(connect(&mut a, &mut b), (Ok(None), Ok(None)));
        assert_eq!(connect(&mut a, &mut forgetful).0, Err(ChannelError::StreamLost));
        assert_eq!(a.handle_frame(data(1), &mut Vec::new()), Ok(None), "the first of another stream");
    }

    fn data(sequence: u64) -> Frame {
        Frame::Data { sequence, delivered: 0, payload: Vec::new() }
    }

    #[test]
    fn an_end_that_forgot_the_stream_is_noticed() {
        let (mut a, mut b) = (Channel::new(1), Channel::new(2));
        assert_eq!(connect(&mut a, &mut b), (Ok(None), Ok(None)));
        let data = a.send(b"one".to_vec()).unwrap();
        b.handle_frame(data, &mut Vec::new()).unwrap();
        assert_eq!(connect(&mut a, &mut b), (Ok(None), Ok(None)), "again, with nothing forgotten");
        // One end made its stream anew while the other kept what it knew.
        let mut forgetful = Channel::new(3);
        let lost = Err(ChannelError::StreamLost);
        assert_eq!(connect(&mut a, &mut forgetful), (lost.clone(), lost));
    }

    type Taken = Result<Option<Vec<u8>>, ChannelError>;

    /// A new connection: what each end makes of the other's first frame.
    fn connect(a: &mut Channel, b: &mut Channel) -> (Taken, Taken) {
        let (from_a, from_b) = (a.handle_connected(), b.handle_connected());
        (a.handle_frame(from_b, &mut Vec::new()), b.handle_frame(from_a, &mut Vec::new()))
    }

    #[test]
    fn a_peer_that_is_far_behind_is_told_once_and_again_when_it_caught_up() {
        let mut a = Channel::new(1);
        a.handle_frame(Frame::Resume { stream: 2, of: 0, delivered: 0 }, &mut Vec::new()).unwrap();
        for _ in 0..3 {
            a.send(alloc::vec![0; QUEUE_BYTES_MAX / 2]);
        }
        assert_eq!((a.poll_overrun(), a.poll_overrun()), (Some(true), None));
        a.handle_frame(Frame::Confirm { delivered: 2 }, &mut Vec::new()).unwrap();
        assert_eq!((a.poll_overrun(), a.poll_overrun()), (Some(false), None));
    }
}
