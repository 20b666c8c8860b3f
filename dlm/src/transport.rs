//! What: the frames with which a client asks for a ring, and the way of its descriptors through the socket.
//! Owns: their kinds; frames that wait for room in a ring or a socket.
//! Invariants: descriptors come close-on-exec; whoever sends others than asked for gets none.
//! Does not: read what other frames say.
//! Called by: the server and both client libraries. docs/formats/client-protocol.md draws them.

use crate::{
    memory::create_bell,
    ring::{Producer, Ring, TransportError},
};
use deadbolt_dlm_core::client::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, split_frame};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// A client asks for a ring: the frame is this byte alone.
pub(crate) const ASK_RING: u8 = 64;
/// The ring comes with this byte: memory, the daemon's bell, the client's bell.
pub(crate) const RING_GIVEN: u8 = 192;
/// There is none; the session goes on over the socket.
pub(crate) const RING_REFUSED: u8 = 193;

/// What both sides need of one ring.
#[derive(Debug)]
pub(crate) struct Descriptors {
    pub(crate) memory: OwnedFd,
    pub(crate) daemon_bell: OwnedFd,
    pub(crate) client_bell: OwnedFd,
}

impl Descriptors {
    /// A new ring with its descriptors.
    pub(crate) fn create() -> Result<(Ring, Self), TransportError> {
        let (ring, memory) = Ring::create()?;
        Ok((ring, Self { memory, daemon_bell: create_bell()?, client_bell: create_bell()? }))
    }

    /// Sends `RING_GIVEN` with the descriptors; the socket has to take it at once.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let frame = deadbolt_dlm_core::client::frame(&[RING_GIVEN]);
        let numbers = [self.memory.as_raw_fd(), self.daemon_bell.as_raw_fd(), self.client_bell.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&numbers)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&frame)], &message, flags, None)?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Receives the answer to `ASK_RING`: its frame, and the descriptors if there are three. Waits for it.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<Self>)> {
        let mut space = cmsg_space!([RawFd; 3]);
        let mut chunk = [0; FRAME_HEAD_BYTES + FRAME_BYTES_MAX];
        let mut bytes = Vec::new();
        let mut descriptors = Vec::new();
        loop {
            let mut slices = [IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    // SAFETY: the kernel just made these descriptors for this process, and nobody else has seen their numbers.
                    descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
                }
            }
            let length = received.bytes;
            bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
            let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some((frame, _)) = split_frame(&bytes).map_err(bad)? {
                let three: Option<[OwnedFd; 3]> = descriptors.try_into().ok();
                let three = three.map(|[memory, daemon_bell, client_bell]| Self { memory, daemon_bell, client_bell });
                return Ok((frame.to_vec(), three));
            }
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Frames, with their length fields, that wait for room.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    /// What of `bytes` has gone already.
    gone: usize,
}

impl Backlog {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.gone
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a frame.
    pub(crate) fn push(&mut self, body: &[u8]) {
        // A body is at most FRAME_BYTES_MAX long.
        self.bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.bytes.extend_from_slice(body);
    }

    /// The bytes that wait.
    pub(crate) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    /// So many have gone.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.gone += bytes;
        if self.is_empty() {
            // A burst's memory is not kept.
            if self.bytes.capacity() > 4 * FRAME_BYTES_MAX {
                self.bytes = Vec::new();
            }
            self.bytes.clear();
            self.gone = 0;
        } else if self.gone > self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }

    /// The body of the first frame that waits.
    fn first(&self) -> Option<&[u8]> {
        split_frame(self.waiting()).ok().flatten().map(|(body, _)| body)
    }

    /// Is there something that the ring would take now?
    pub(crate) fn could_move(&self, producer: &mut Producer) -> Result<bool, TransportError> {
        self.first().map_or(Ok(false), |body| producer.has_room(body.len()))
    }

    /// Moves frames into a ring while there is room; says whether any moved.
    pub(crate) fn move_to(&mut self, producer: &mut Producer) -> Result<bool, TransportError> {
        let mut has_moved = false;
        while let Some(body) = self.first() {
            let used = FRAME_HEAD_BYTES + body.len();
            if !producer.push(body)? {
                break;
            }
            has_moved = true;
            self.advance(used);
        }
        Ok(has_moved)
    }
}
