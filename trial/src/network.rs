//! What: the network between trial nodes, in one of two forms, and the way to cut it.
//! Owns: unnamed network namespaces joined by a bridge, or the relay process.
//! Invariants: namespaces go with the last process or descriptor that uses them; nothing of the machine's own network is touched.
//! Does not: know what the nodes say to each other.
//! Called by: demo and benchmarks.

use super::{
    children::{Tied, own_program, run_to_end},
    relay::Plan,
};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
};

/// Port of every node. The namespaces are the trial's own, and so are the loopback addresses that it draws.
const PORT: u16 = 7410;
/// How often the relay's addresses are drawn anew when they are in use.
const TRIES: usize = 5;

/// How the nodes reach each other.
#[derive(Debug)]
pub enum Network {
    /// Each node in a namespace of its own, all on one bridge; a cut takes the node's port of the bridge down.
    Namespaces {
        /// Where the bridge is.
        bridge: Arc<OwnedFd>,
        /// One per node.
        nodes: Vec<Arc<OwnedFd>>,
    },
    /// All on loopback addresses; everything passes a process that can stop passing.
    Relay {
        /// The process.
        _relay: Tied,
        /// Its orders.
        orders: ChildStdin,
        /// Its answers.
        answers: BufReader<ChildStdout>,
        /// The addresses.
        plan: Plan,
    },
}

impl Network {
    /// Namespaces for this many nodes. Needs root.
    ///
    /// # Errors
    /// Not root, no namespaces in this kernel, or no program `ip`.
    pub fn namespaces(nodes: usize) -> Result<Self> {
        let bridge = new_namespace()?;
        let nodes: Vec<Arc<OwnedFd>> = (0..nodes).map(|_| new_namespace()).collect::<Result<_>>()?;
        ip(&bridge, "link set lo up")?;
        ip(&bridge, "link add bridge0 type bridge")?;
        ip(&bridge, "link set bridge0 up")?;
        for (index, node) in nodes.iter().enumerate() {
            ip(&bridge, &format!("link add port{index} type veth peer name eth0 netns {}", path(node)))?;
            ip(&bridge, &format!("link set port{index} master bridge0 up"))?;
            ip(node, "link set lo up")?;
            ip(node, &format!("address add 10.99.0.{}/24 dev eth0", index + 1))?;
            ip(node, "link set eth0 up")?;
        }
        Ok(Self::Namespaces { bridge, nodes })
    }

    /// A relay for this many nodes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn relay(nodes: usize) -> Result<Self> {
        let mut failure = String::new();
        for _ in 0..TRIES {
            let random = getrandom::u32().map_err(|error| anyhow::anyhow!("no random number: {error}"))?.to_le_bytes();
            // 127.1.x.y to 127.250.x.y: away from 127.0.0.1 and its likes.
            let plan = Plan { prefix: [1 + random[0] % 250, random[1]], port: PORT };
            let mut command = own_program();
            command.arg("demo-relay").args(["--second", &plan.prefix[0].to_string(), "--third", &plan.prefix[1].to_string()]);
            command.args(["--port", &plan.port.to_string(), "--nodes", &nodes.to_string()]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut relay = Tied::spawn(&mut command, None)?;
            let orders = relay.child().stdin.take().context("the relay has no standard input")?;
            let mut answers = BufReader::new(relay.child().stdout.take().context("the relay has no standard output")?);
            let mut line = String::new();
            answers.read_line(&mut line)?;
            if line.trim_end() == "ready" {
                return Ok(Self::Relay { _relay: relay, orders, answers, plan });
            }
            failure = format!("the addresses 127.{}.{}.x are in use", plan.prefix[0], plan.prefix[1]);
        }
        bail!("no relay could be started: {failure}")
    }

    /// What the people read.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Namespaces { .. } => "a network namespace per node on a bridge",
            Self::Relay { .. } => "loopback addresses through a relay process",
        }
    }

    /// What a node binds.
    #[must_use]
    pub fn own_address(&self, node: usize) -> String {
        match self {
            Self::Namespaces { .. } => format!("10.99.0.{}:{PORT}", node + 1),
            Self::Relay { plan, .. } => plan.own(node).to_string(),
        }
    }

    /// What the configuration names, where that is something else.
    #[must_use]
    pub fn announced_address(&self, node: usize) -> Option<String> {
        match self {
            Self::Namespaces { .. } => None,
            Self::Relay { plan, .. } => Some(plan.public(node).to_string()),
        }
    }

    /// Where the node's processes run.
    #[must_use]
    pub fn namespace(&self, node: usize) -> Option<Arc<OwnedFd>> {
        match self {
            Self::Namespaces { nodes, .. } => nodes.get(node).cloned(),
            Self::Relay { .. } => None,
        }
    }

    /// Cuts one node off from all others.
    ///
    /// # Errors
    /// The relay has ended, or `ip` refused.
    pub fn cut(&mut self, node: usize) -> Result<()> {
        match self {
            Self::Namespaces { bridge, .. } => ip(bridge, &format!("link set port{node} down")),
            Self::Relay { orders, answers, .. } => order(orders, answers, &format!("cut {node}")),
        }
    }

    /// Everybody reaches everybody again.
    ///
    /// # Errors
    /// As for the cut.
    pub fn heal(&mut self) -> Result<()> {
        match self {
            Self::Namespaces { bridge, nodes } => (0..nodes.len()).try_for_each(|node| ip(bridge, &format!("link set port{node} up"))),
            Self::Relay { orders, answers, .. } => order(orders, answers, "heal"),
        }
    }
}

fn order(orders: &mut ChildStdin, answers: &mut BufReader<ChildStdout>, text: &str) -> Result<()> {
    writeln!(orders, "{text}").context("the relay has ended")?;
    let mut line = String::new();
    answers.read_line(&mut line)?;
    if line.trim_end() == text { Ok(()) } else { bail!("the relay did not do {text:?}") }
}

/// A namespace that lives as long as its descriptor and its processes. A thread makes it, so that this one stays where it is.
///
/// # Errors
/// Not root, or no namespaces in this kernel.
pub fn new_namespace() -> Result<Arc<OwnedFd>> {
    let made = std::thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    let file = made.join().map_err(|_| anyhow::anyhow!("the thread that makes a network namespace panicked"))??;
    Ok(Arc::new(file.into()))
}

/// Where another program finds the namespace, which has no name: by this process's descriptor.
#[must_use]
pub fn path(namespace: &Arc<OwnedFd>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// Runs `ip` in a namespace; the arguments are parted by blanks.
///
/// # Errors
/// There is no such program, or what it said.
pub fn ip(namespace: &Arc<OwnedFd>, arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    match run_to_end(command, Some(namespace.clone()))? {
        (Some(0), _) => Ok(()),
        (_, said) => bail!("ip {arguments}: {}", said.trim_end()),
    }
}
