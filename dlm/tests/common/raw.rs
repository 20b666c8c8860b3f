//! What: a client of the protocol without the library.
//! Owns: its socket and its ring.
//! Invariants: none; that is what it is for.
//! Does not: judge answers.
//! Called by: the tests of this package.

use deadbolt_dlm_core::client::{CLIENT_VERSION, ClientReply, ClientRequest, frame, split_frame};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use std::{
    fs::File,
    io::{IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::Path,
    time::Duration,
};

/// With a ring: its socket, the ring's memory, the daemon's bell.
pub(crate) struct Raw {
    pub(crate) socket: UnixStream,
    pub(crate) memory: File,
    bell: File,
}

pub(crate) const REQUEST_TAIL: u64 = 64;
pub(crate) const REQUEST_WORDS: u64 = 4096;

impl Raw {
    pub(crate) fn new(path: &Path) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.write_all(&frame(&ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false }.encode())).unwrap();
        let mut welcome = [0; 17];
        socket.read_exact(&mut welcome).unwrap();
        socket.write_all(&frame(&[64])).unwrap();
        let (mut space, mut chunk) = (cmsg_space!([RawFd; 3]), [0; 5]);
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let Some(ControlMessageOwned::ScmRights(numbers)) = received.cmsgs().unwrap().next() else { panic!("no ring") };
        // SAFETY: the kernel just made these descriptors for this process.
        let mut files = numbers.into_iter().map(|number| File::from(unsafe { OwnedFd::from_raw_fd(number) }));
        let (memory, bell) = (files.next().unwrap(), files.next().unwrap());
        assert_eq!(chunk[4], 192);
        Self { socket, memory, bell }
    }

    pub(crate) fn word(&self, at: u64, value: u64) {
        self.memory.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    pub(crate) fn ring(&mut self) {
        self.bell.write_all(&1_u64.to_le_bytes()).unwrap();
    }

    /// Why the node ended the session.
    pub(crate) fn reason(&mut self) -> String {
        let mut bytes = Vec::new();
        self.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        self.socket.read_to_end(&mut bytes).unwrap();
        let (body, _) = split_frame(&bytes).unwrap().expect("a last word");
        match ClientReply::decode(body).unwrap() {
            ClientReply::Lost { reason } => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// The same on the socket alone, let in.
pub(crate) struct RawSocket {
    pub(crate) stream: UnixStream,
    incoming: Vec<u8>,
}

impl RawSocket {
    pub(crate) fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut raw = Self { stream, incoming: Vec::new() };
        let hello = ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false };
        assert!(matches!(raw.ask(&hello), Some(ClientReply::Welcome { .. })));
        raw
    }

    /// Sends a frame, and gives the next reply; none: the connection has ended.
    pub(crate) fn send(&mut self, body: &[u8]) -> Option<ClientReply> {
        let _ = self.stream.write_all(&frame(body));
        self.next()
    }

    pub(crate) fn ask(&mut self, request: &ClientRequest) -> Option<ClientReply> {
        self.send(&request.encode())
    }

    pub(crate) fn next(&mut self) -> Option<ClientReply> {
        loop {
            if let Some((body, used)) = split_frame(&self.incoming).unwrap() {
                let reply = ClientReply::decode(body).unwrap();
                self.incoming.drain(..used);
                return Some(reply);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                length => self.incoming.extend_from_slice(&chunk[..length.unwrap()]),
            }
        }
    }

    /// Number of a lockspace.
    pub(crate) fn join(&mut self, name: &[u8]) -> u32 {
        match self.ask(&ClientRequest::JoinLockspace { serial: 1, name: name.to_vec() }) {
            Some(ClientReply::Joined { lockspace, .. }) => lockspace,
            other => panic!("{other:?}"),
        }
    }
}
