//! What: how a session begins: connection, Hello, ring.
//! Owns: the order of the first frames.
//! Invariants: when it is open the node has let this process in; a ring that cannot be had is no reason to fail.
//! Does not: read after that.
//! Called by: `blocking`, `client`.

use super::{RingSide, Sending, Session, State, Style, Transport};
use crate::{
    blocking::Protection,
    memory::Process,
    ring::Ring,
    routing::ClientError,
    transport::{ASK_RING, Descriptors, RING_GIVEN, RING_REFUSED},
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest,
    client::{CLIENT_VERSION, FRAME_HEAD_BYTES, frame, split_frame},
};
use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32},
    },
};
use tokio::sync::Notify;

fn refuse(reply: &ClientReply, to: &'static str) -> ClientError {
    match reply.clone() {
        ClientReply::Refused { status, reason, .. } => ClientError::Refused { status, reason },
        ClientReply::Lost { reason } => ClientError::Lost { reason },
        _ => ClientError::Unexpected { to },
    }
}

fn say_hello(mut stream: &UnixStream, protection: Protection) -> io::Result<ClientReply> {
    let hello = ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: protection.is_unprotected };
    stream.write_all(&frame(&hello.encode()))?;
    let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut bytes = vec![0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut bytes)?;
    // Exactly this frame is read: the next one may carry descriptors.
    let length = u32::from_le_bytes(bytes.as_slice().try_into().unwrap_or_default());
    split_frame(&bytes).map_err(bad)?;
    bytes.resize(FRAME_HEAD_BYTES + usize::try_from(length).unwrap_or_default(), 0);
    stream.read_exact(bytes.get_mut(FRAME_HEAD_BYTES..).unwrap_or_default())?;
    ClientReply::decode(bytes.get(FRAME_HEAD_BYTES..).unwrap_or_default()).map_err(bad)
}

impl Session {
    /// Connects and says Hello; waits for the node's answers.
    pub(crate) fn open(path: &Path, protection: Protection, transport: Transport, is_async: bool) -> Result<Self, ClientError> {
        let failed = |reason: String| ClientError::Connect { path: path.display().to_string(), reason };
        let process = Process::this().map_err(|error| failed(error.to_string()))?;
        let stream = UnixStream::connect(path).map_err(|error| failed(error.to_string()))?;
        match say_hello(&stream, protection).map_err(|error| failed(error.to_string()))? {
            ClientReply::Welcome { .. } => {}
            other => return Err(refuse(&other, "Hello")),
        }
        let ring = match transport {
            Transport::Ring => ask_ring(&stream).map_err(|error| failed(error.to_string()))??,
            Transport::Socket => None,
        };
        let (mut sending, mut state) = (Sending::default(), State::default());
        if let Some(side) = &ring {
            let (producer, consumer) = side.ring.client_ends();
            (sending.producer, state.consumer) = (Some(producer), Some(consumer));
        }
        Ok(Self {
            process,
            pid: std::process::id(),
            stream,
            ring,
            style: if is_async { Style::Task(Notify::new()) } else { Style::Callers },
            sending: Mutex::new(sending),
            state: Mutex::new(state),
            is_over: AtomicBool::new(false),
            watch_ns: AtomicU32::new(super::wait::WATCH_MAX_NS),
        })
    }
}

/// None: the node gives no ring, and the session goes on over its socket.
fn ask_ring(mut stream: &UnixStream) -> io::Result<Result<Option<RingSide>, ClientError>> {
    stream.write_all(&frame(&[ASK_RING]))?;
    let (body, descriptors) = Descriptors::receive(stream.as_fd())?;
    Ok(match (body.as_slice(), descriptors) {
        ([RING_GIVEN], Some(descriptors)) => match Ring::open(descriptors.memory.as_fd()) {
            Ok(ring) => {
                let Descriptors { daemon_bell, client_bell, .. } = descriptors;
                Ok(Some(RingSide { ring, daemon_bell, client_bell }))
            }
            Err(error) => Err(ClientError::Lost { reason: error.to_string() }),
        },
        ([RING_REFUSED], _) => Ok(None),
        (body, _) => Err(ClientReply::decode(body)
            .map_or(ClientError::Unexpected { to: "the wish for a ring" }, |reply| refuse(&reply, "the wish for a ring"))),
    })
}
