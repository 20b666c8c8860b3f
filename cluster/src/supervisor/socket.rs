//! What: unix sockets: binding and connecting whatever the length of the path, lines, descriptors beside bytes.
//! Owns: the few unsafe calls that sockets need.
//! Invariants: a received descriptor is closed on exec and owned from the moment it arrives; a bound path is never left half open
//!   to others.
//! Does not: know what is said.
//! Called by: keeper, runner, handler, client.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::protocol::LINE_BYTES_MAX;

/// The kernel passes at most this many at once (SCM_MAX_FD is 253); more than we take are closed.
const DESCRIPTORS_MAX: usize = 16;

/// A path to a file of a directory that fits into a socket address (107 bytes) however deep the directory lies. Valid while the
/// handle is open.
fn short_path(directory: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()));
    Ok((handle, path))
}

/// Binds, replacing what an earlier run left; for the owner, and a group if one is named.
pub(crate) fn bind(directory: &Path, name: &str, group: Option<u32>) -> io::Result<UnixListener> {
    let (_handle, path) = short_path(directory, name)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(&path);
    nix::sys::stat::umask(mask);
    let listener = bound?;
    if let Some(group) = group {
        chown(&path, None, Some(group))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects.
pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let (_handle, path) = short_path(directory, name)?;
    UnixStream::connect(path)
}

/// Sends bytes, with descriptors beside the first of them. Answers how many bytes went.
pub(crate) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd], flags: MsgFlags) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
}

/// Sends all bytes, descriptors beside the first, waiting as needed.
pub(crate) fn send_all(socket: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        let with = if sent == 0 { descriptors } else { &[] };
        match send_with(socket.as_fd(), rest, with, MsgFlags::empty()) {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(socket.as_fd(), PollFlags::POLLOUT, Duration::from_secs(1))?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What arrived in one piece.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Receives bytes and descriptors.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<Received> {
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut received = Received { bytes: message.bytes, descriptors: Vec::new() };
    if let Ok(control) = message.cmsgs() {
        for item in control {
            if let ControlMessageOwned::ScmRights(numbers) = item {
                // SAFETY: the kernel has just put these descriptors into this process; nobody else owns them.
                let owned = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) });
                received.descriptors.extend(owned);
            }
        }
    }
    Ok(received)
}

/// Waits until the socket is ready.
fn wait_for(socket: BorrowedFd<'_>, flags: PollFlags, at_most: Duration) -> io::Result<()> {
    match poll(&mut [PollFd::new(socket, flags)], timeout(at_most)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A time to wait as poll(2) wants it, rounded up.
pub(crate) fn timeout(span: Duration) -> PollTimeout {
    let ms = span.as_millis() + u128::from(!span.subsec_nanos().is_multiple_of(1_000_000));
    PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
}

/// Lines out of a stream, with the descriptors that came along.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    bytes: Vec<u8>,
    /// Where the search for the line's end goes on.
    searched: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line, without its end.
    Whole(Vec<u8>),
    /// Not yet.
    None,
    /// The other side has closed.
    Closed,
}

impl LineReader {
    /// The next line that is already here.
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        let found = self.bytes.get(self.searched..)?.iter().position(|byte| *byte == b'\n');
        let Some(found) = found else {
            self.searched = self.bytes.len();
            return None;
        };
        let rest = self.bytes.split_off(self.searched + found + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.searched = 0;
        Some(line)
    }

    /// Takes what is there, without waiting, and answers a line if one is whole.
    pub(crate) fn read_ready(&mut self, socket: BorrowedFd<'_>) -> io::Result<Line> {
        if let Some(line) = self.next_line() {
            return Ok(Line::Whole(line));
        }
        let mut buffer = [0; 16 * 1024];
        match receive(socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(received) => {
                self.descriptors.extend(received.descriptors);
                if received.bytes == 0 {
                    return Ok(Line::Closed);
                }
                self.bytes.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Line::None),
            Err(errno) => return Err(errno.into()),
        }
        if self.bytes.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line over 4 MiB"));
        }
        Ok(self.next_line().map_or(Line::None, Line::Whole))
    }

    /// Waits for a line, at most so long.
    pub(crate) fn read_line(&mut self, socket: BorrowedFd<'_>, at_most: Duration) -> io::Result<Line> {
        let start = Instant::now();
        loop {
            match self.read_ready(socket)? {
                Line::None => {}
                line => return Ok(line),
            }
            let left = at_most.checked_sub(start.elapsed()).ok_or(io::ErrorKind::TimedOut)?;
            wait_for(socket, PollFlags::POLLIN, left)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn lines_and_descriptors_come_through_whole() {
        let (one, two) = UnixStream::pair().unwrap();
        let zero = File::open("/dev/zero").unwrap();
        send_all(&one, b"first\nsec", &[zero.as_raw_fd(), zero.as_raw_fd()]).unwrap();
        let mut reader = LineReader::default();
        let wait = Duration::from_secs(5);
        assert_eq!(reader.read_line(two.as_fd(), wait).unwrap(), Line::Whole(b"first".to_vec()));
        assert_eq!(reader.descriptors.len(), 2);
        assert_eq!(reader.read_ready(two.as_fd()).unwrap(), Line::None);
        (&one).write_all(b"ond\n\n").unwrap();
        assert_eq!(reader.read_line(two.as_fd(), wait).unwrap(), Line::Whole(b"second".to_vec()));
        assert_eq!(reader.read_line(two.as_fd(), wait).unwrap(), Line::Whole(Vec::new()));
        drop(one);
        assert_eq!(reader.read_line(two.as_fd(), wait).unwrap(), Line::Closed);
    }

    #[test]
    fn a_path_longer_than_a_socket_address_works() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let listener = bind(&deep, "s.sock", None).unwrap();
        let _client = connect(&deep, "s.sock").unwrap();
        listener.accept().unwrap();
        let mode = fs::metadata(deep.join("s.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        bind(&deep, "s.sock", None).unwrap();
    }
}
