//! What: the node's own addresses: the sockets bound to them, and what the kernel says of sending from them.
//! Owns: the sockets' options, the path's MTU as the kernel knows it, why an address cannot be used.
//! Invariants: a socket is bound to the configured address and to nothing else, also when that address goes away; datagrams are
//!   never fragmented, so that one that arrives has passed whole.
//! Does not: judge links.
//! Called by: the links.

use deadbolt_cluster_core::link::OwnFault;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, RawFd},
};

/// Largest packet that is tried: the usual jumbo frame.
const FULL_BYTES_MAX: u16 = 9000;
/// Bytes of the headers of IP and UDP.
const fn header_bytes(address: &SocketAddr) -> u16 {
    if address.is_ipv4() { 28 } else { 48 }
}

/// Bytes that a datagram may carry for its packet to have this size.
pub(super) fn datagram_bytes(address: &SocketAddr, packet_bytes: u16) -> u16 {
    packet_bytes.saturating_sub(header_bytes(address))
}

/// The sockets of an own address, not yet in the hands of a runtime.
pub(super) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, std::net::TcpListener)> {
    let udp = UdpSocket::bind(address)?;
    udp.set_nonblocking(true)?;
    forbid_fragments(&udp, &address)?;
    let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let tcp = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    tcp.set_reuse_address(true)?;
    tcp.set_nonblocking(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(128)?;
    Ok((udp, tcp.into()))
}

/// What a failed send says of the own end; none: nothing.
pub(super) fn fault(own: SocketAddr, error: &io::Error) -> Option<OwnFault> {
    let is_passing = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EMSGSIZE | libc::ECONNREFUSED | libc::EINTR));
    if is_passing || error.kind() == io::ErrorKind::WouldBlock {
        return None;
    }
    let is_gone = UdpSocket::bind(SocketAddr::new(own.ip(), 0)).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable);
    Some(if is_gone { OwnFault::AddressGone } else { OwnFault::NoRoute })
}

/// The largest packet that the kernel would send from one address to the other; it learns of smaller ones on the way where routers say
/// so, and a stream uses the same size. None: no way there.
pub(super) fn path_mtu(own: SocketAddr, to: SocketAddr) -> Option<u16> {
    let socket = UdpSocket::bind(SocketAddr::new(own.ip(), 0)).ok()?;
    socket.connect(to).ok()?;
    let (level, name) = if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mtu = read_option(socket.as_raw_fd(), level, name).ok()?;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX).min(FULL_BYTES_MAX))
}

fn forbid_fragments(socket: &UdpSocket, address: &SocketAddr) -> io::Result<()> {
    let (level, name, value) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the option's value is one int that lives during the call, and the length is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_option(socket: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the int that lives during the call.
    let result = unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
