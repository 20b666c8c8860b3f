//! What: `deadbolt demo-relay`: the network between trial nodes where namespaces are not to be had; it can be cut.
//! Owns: one public loopback address per node, which the cluster's configuration names, and the copying between it and the node's own.
//! Invariants: between two sides of a cut no byte passes, in either direction; a connection over the cut stands still and goes on after it.
//! Does not: read what it copies (it is sealed).
//! Called by: its maker, which tells it by its standard input: `cut I`, `heal`.

use anyhow::{Context, Result};
use clap::Args;
use deadbolt_cluster::links::DATAGRAM_BYTES_MAX;
use std::{
    io::{BufRead, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// How long a thread sleeps before it looks at a cut again.
const LOOK: Duration = Duration::from_millis(20);
/// No node is cut off.
const NOBODY: usize = usize::MAX;

/// Where the nodes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The nodes' addresses lie below 127.`prefix`.
    pub prefix: [u8; 2],
    /// One port for all.
    pub port: u16,
}

/// Public addresses begin here; node 0 has the first.
const PUBLIC: u8 = 101;
/// Own addresses begin here.
const OWN: u8 = 1;

impl Plan {
    fn address(self, base: u8, node: usize) -> SocketAddr {
        let last = base.saturating_add(u8::try_from(node).unwrap_or(u8::MAX));
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, self.prefix[0], self.prefix[1], last)), self.port)
    }

    /// What the configuration names; the relay listens there.
    #[must_use]
    pub fn public(self, node: usize) -> SocketAddr {
        self.address(PUBLIC, node)
    }

    /// What the node binds.
    #[must_use]
    pub fn own(self, node: usize) -> SocketAddr {
        self.address(OWN, node)
    }

    /// Which node has this own address.
    fn node_of(self, address: SocketAddr, nodes: usize) -> Option<usize> {
        (0..nodes).find(|node| self.own(*node).ip() == address.ip())
    }
}

/// Arguments of the relay.
#[derive(Debug, Args)]
pub struct RelayArguments {
    /// Second byte of the addresses
    #[arg(long)]
    second: u8,
    /// Third byte of the addresses
    #[arg(long)]
    third: u8,
    /// Port of all nodes
    #[arg(long)]
    port: u16,
    /// How many nodes
    #[arg(long)]
    nodes: usize,
}

#[derive(Debug)]
struct Net {
    plan: Plan,
    nodes: usize,
    cut_off: AtomicUsize,
}

impl Net {
    fn may_pass(&self, from: Option<usize>, to: usize) -> bool {
        match self.cut_off.load(Ordering::SeqCst) {
            NOBODY => true,
            node => (from == Some(node)) == (to == node),
        }
    }

    fn wait_until_open(&self, from: Option<usize>, to: usize) {
        while !self.may_pass(from, to) {
            thread::sleep(LOOK);
        }
    }
}

/// Runs the relay until its standard input ends.
///
/// # Errors
/// An address that is in use.
pub fn run(arguments: &RelayArguments) -> Result<()> {
    let plan = Plan { prefix: [arguments.second, arguments.third], port: arguments.port };
    let net = Arc::new(Net { plan, nodes: arguments.nodes, cut_off: AtomicUsize::new(NOBODY) });
    let mut datagrams = Vec::new();
    let mut streams = Vec::new();
    for node in 0..arguments.nodes {
        // The own addresses are tried, too: another run may have drawn the same numbers.
        drop(UdpSocket::bind(plan.own(node)).with_context(|| plan.own(node).to_string())?);
        datagrams.push(UdpSocket::bind(plan.public(node)).with_context(|| plan.public(node).to_string())?);
        streams.push(TcpListener::bind(plan.public(node)).with_context(|| plan.public(node).to_string())?);
    }
    let datagrams = Arc::new(datagrams);
    for (node, listener) in streams.into_iter().enumerate() {
        let (net_of_datagrams, sockets) = (net.clone(), datagrams.clone());
        thread::spawn(move || pass_datagrams(&net_of_datagrams, &sockets, node));
        let net = net.clone();
        thread::spawn(move || accept(&net, &listener, node));
    }
    say("ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let cut_off = line.strip_prefix("cut ").and_then(|node| node.parse().ok()).unwrap_or(NOBODY);
        net.cut_off.store(cut_off, Ordering::SeqCst);
        say(&line)?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Datagrams to one node; they leave from the public address of whoever sent them.
fn pass_datagrams(net: &Net, sockets: &[UdpSocket], to: usize) {
    let Some(socket) = sockets.get(to) else { return };
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
        let from = net.plan.node_of(sender, net.nodes);
        if net.may_pass(from, to) {
            let out = from.and_then(|from| sockets.get(from)).unwrap_or(socket);
            let _ = out.send_to(buffer.get(..length).unwrap_or_default(), net.plan.own(to));
        }
    }
}

fn accept(net: &Arc<Net>, listener: &TcpListener, to: usize) {
    loop {
        let Ok((stream, sender)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        let from = net.plan.node_of(sender, net.nodes);
        let net = net.clone();
        thread::spawn(move || {
            net.wait_until_open(from, to);
            let Ok(onward) = TcpStream::connect(net.plan.own(to)) else { return };
            let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
            let (Ok(stream_back), Ok(onward_back)) = (stream.try_clone(), onward.try_clone()) else { return };
            let back = net.clone();
            thread::spawn(move || copy(&back, onward_back, stream_back, from, to));
            copy(&net, stream, onward, from, to);
        });
    }
}

/// Copies one direction; during a cut what was read waits, as does the end of the stream.
fn copy(net: &Net, mut source: TcpStream, mut sink: TcpStream, from: Option<usize>, to: usize) {
    let mut buffer = [0; 16 << 10];
    loop {
        let read = source.read(&mut buffer).unwrap_or(0);
        net.wait_until_open(from, to);
        if read == 0 || sink.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _ = (source.shutdown(Shutdown::Both), sink.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_separates_one_node_from_the_others_and_from_nobody_else() {
        let net = Net { plan: Plan { prefix: [7, 7], port: 1 }, nodes: 3, cut_off: AtomicUsize::new(NOBODY) };
        assert!(net.may_pass(Some(0), 2));
        net.cut_off.store(2, Ordering::SeqCst);
        for (from, to, passes) in [(0, 1, true), (1, 0, true), (0, 2, false), (2, 0, false), (1, 2, false), (2, 1, false)] {
            assert_eq!(net.may_pass(Some(from), to), passes, "{from} to {to}");
        }
        assert_eq!(net.plan.node_of(net.plan.own(1), 3), Some(1));
        assert_eq!(net.plan.node_of(net.plan.public(1), 3), None);
    }
}
