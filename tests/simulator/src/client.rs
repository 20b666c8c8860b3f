//! What: the programs of the simulated world that take locks, and change the protected data under them.
//! Owns: each client's process and socket; what it has asked for and what it believes to hold.
//! Invariants: a client touches protected data only while it believes to hold a lock that allows it; its socket keeps order; a killed one is
//!   gone only when its last disk operation is.
//! Does not: choose what it does next (`choice`), judge; what it believes is told to the checkers.
//! Called by: the world.

mod answer;
mod choice;
pub(crate) use choice::Spell;
mod more;
mod stuck;

use crate::{
    check::{
        locks::{Unanswered, Written},
        ranges::Pieces,
    },
    io::{Answer, Operation, Owner, Work},
    machine::{Pid, Process},
    world::{Event, World},
};
use deadbolt_cluster::node::NodeInput;
use deadbolt_disk_format::Life;
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, Mode, ResourceName,
    client::{CLIENT_VERSION, LVB_BYTES, Lvb, RangeKind},
    service::{Input, SessionInfo},
};
use std::collections::{BTreeMap, BTreeSet};

/// Pause after a refusal, and before a client that ended is started again.
const RETRY_US: u64 = 100_000;

/// Numbers of transactions begin behind this one; owners of ranges are below.
const TRANSACTIONS: u64 = 1 << 32;
/// Transactions that clients of several nodes have in common.
const SHARED_TRANSACTIONS: u64 = 3;

/// What was asked and is not answered yet.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Join { space: usize },
    Leave { space: usize },
    Lock { resource: usize, mode: Mode, flags: Flags },
    Convert { lock: u32, resource: usize, before: Mode, mode: Mode, flags: Flags, written: Option<Written> },
    Unlock { resource: usize, written: Option<Written> },
    Cancel,
    Range { lock: u32, resource: usize, owner: u64, kind: RangeKind, pieces: Pieces, flags: Flags },
    Many { items: Vec<(usize, Mode)>, flags: Flags },
    Adopt { resource: usize, mode: Mode },
    Purge { space: usize },
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) since_us: u64,
    pub(crate) what: What,
    /// Newest value block that was reported written before this was asked.
    floor: u64,
    /// It may end as cancelled.
    is_cancelled: bool,
    /// Longest wait; 0: for ever.
    pub(crate) timeout_ms: u32,
    /// It was told of the deadlock that it is the victim of.
    has_cycle: bool,
}

/// A lock that the client believes to hold.
#[derive(Clone, Debug)]
struct Lock {
    resource: usize,
    mode: Mode,
    /// A conversion or an unlock is under way.
    is_busy: bool,
    /// Somebody waits for it, and this client cares.
    is_wanted: bool,
    /// Given back after that.
    until_us: u64,
    /// A disk operation is on its way under it.
    has_io: bool,
    /// Value that was read under it, and nobody else can have changed since.
    seen: Option<u64>,
    /// Disk operations that it is still good for.
    uses: u64,
    /// Owners of ranges for whom a request is under way.
    ranging: BTreeSet<u64>,
}

/// A client process.
#[derive(Debug)]
pub struct Client {
    pub(crate) pid: Pid,
    /// Of the daemon that its socket leads to.
    pub(crate) life: Life,
    /// Numbers of the lockspaces that it has joined.
    pub(crate) spaces: BTreeMap<usize, u32>,
    pub(crate) asked: BTreeMap<u64, Asked>,
    locks: BTreeMap<u32, Lock>,
    serial: u64,
    /// Disk operations on their way.
    outstanding: usize,
    /// It gives back what others want.
    is_obedient: bool,
    /// Number of the transaction that all its locks are for, which gives nothing back while it waits; 0: none.
    transaction: u64,
    /// When it has sent a purge last.
    purged_us: u64,
    /// The socket to the daemon is closed.
    is_cut_off: bool,
    is_killed: bool,
    /// The turn that is planned; others that come are stale.
    turn_at_us: u64,
    /// When the last frame on the socket arrives, each way.
    sent_us: u64,
    read_us: u64,
}

impl Client {
    /// Nobody will answer it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_cut_off || self.is_killed
    }

    /// For fingerprints.
    pub(crate) fn number(&self) -> u64 {
        let held = self.locks.values().map(|lock| u64::from(lock.mode.number()) << 1 | u64::from(lock.is_busy));
        let waiting = self.asked.values().map(|asked| match asked.what {
            What::Join { .. } | What::Leave { .. } => 16,
            What::Lock { mode, .. } | What::Convert { mode, .. } => 17 + u64::from(mode.number()),
            What::Unlock { .. } | What::Cancel => 24,
            What::Range { kind, .. } => 25 + u64::from(kind.number()),
            What::Many { .. } | What::Adopt { .. } | What::Purge { .. } => 28,
        });
        held.chain(waiting).fold(u64::from(self.is_killed), |sum, part| sum.wrapping_mul(29).wrapping_add(part))
    }
}

/// A resource's name; its lockspace is another matter.
fn name_of(resource: usize, resources: usize) -> ResourceName {
    let text = format!("r{}", resource % resources);
    ResourceName::new(text.as_bytes()).unwrap_or_else(|| panic!("{text} is a name"))
}

/// A value block: whose and which.
fn block(resource: usize, number: u64) -> Lvb {
    let mut lvb = [0; LVB_BYTES];
    lvb[..8].copy_from_slice(&number.to_le_bytes());
    lvb[8..16].copy_from_slice(&(resource as u64).to_le_bytes());
    lvb
}

/// The number in a value block; 0, which nobody writes, for one that is not of this resource.
fn number_in(resource: usize, lvb: &Lvb) -> u64 {
    let word = |at: usize| lvb[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if word(8) == resource as u64 && lvb[16..].iter().all(|byte| *byte == 0) { word(0) } else { 0 }
}

impl World {
    /// Starts as many clients as there should be.
    pub(crate) fn start_clients(&mut self, machine: usize) {
        let wanted = usize::try_from(self.options.clients).unwrap_or(0);
        let present = self.machines[machine].clients.values().filter(|client| !client.is_cut_off && !client.is_killed).count();
        let Some(life) = self.machines[machine].daemon.as_ref().and_then(crate::machine::Daemon::life) else { return };
        for _ in present..wanted {
            let pid = self.new_pid();
            let client = Client {
                pid,
                life,
                spaces: BTreeMap::new(),
                asked: BTreeMap::new(),
                locks: BTreeMap::new(),
                serial: 0,
                outstanding: 0,
                is_obedient: !self.random.chance(self.options.disobey),
                transaction: self.some_transaction(pid),
                purged_us: 0,
                is_cut_off: false,
                is_killed: false,
                turn_at_us: 0,
                sent_us: 0,
                read_us: 0,
            };
            self.machines[machine].clients.insert(pid, client);
            self.node_give(
                machine,
                NodeInput::Locks(Input::SessionOpened { session: pid, info: SessionInfo { pid: u32::try_from(pid).unwrap_or(0) } }),
            );
            self.send_request(machine, pid, ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false });
            self.plan_client(machine, pid, 1);
        }
    }

    fn client(&mut self, machine: usize, pid: Pid) -> Option<&mut Client> {
        self.machines[machine].clients.get_mut(&pid)
    }

    // The socket.

    fn send_request(&mut self, machine: usize, pid: Pid, request: ClientRequest) {
        let at_us = self.queue.now_us() + self.random.range(5, 60);
        let Some(client) = self.client(machine, pid).filter(|client| !client.is_cut_off && !client.is_killed) else { return };
        client.sent_us = client.sent_us.max(at_us);
        let at_us = client.sent_us;
        self.queue.at(at_us, Event::Request { machine, session: pid, request: Box::new(request) });
    }

    /// Sends a request that will be answered.
    fn ask(&mut self, machine: usize, pid: Pid, what: What, request: impl FnOnce(u64) -> ClientRequest) {
        self.ask_timed(machine, pid, what, 0, request);
    }

    /// The same, for what waits no longer than this; 0: for ever.
    fn ask_timed(&mut self, machine: usize, pid: Pid, what: What, timeout_ms: u32, request: impl FnOnce(u64) -> ClientRequest) {
        let since_us = self.queue.now_us();
        let floor = match what {
            What::Lock { resource, .. } | What::Convert { resource, .. } => self.facts.locks.floor(resource),
            _ => 0,
        };
        let Some(client) = self.client(machine, pid) else { return };
        client.serial += 1;
        let (serial, waits) = (client.serial, what.waits());
        client.asked.insert(serial, Asked { since_us, what, floor, is_cancelled: false, timeout_ms, has_cycle: false });
        self.facts.waits.begun(since_us, pid, serial, waits);
        self.send_request(machine, pid, request(serial));
    }

    /// A request reaches the daemon; one that a client sent before its end, too.
    pub(crate) fn client_request(&mut self, machine: usize, session: u64, request: ClientRequest) {
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Request { machine, session, request: Box::new(request) });
        }
        self.node_give(machine, NodeInput::Locks(Input::Request { session, request }));
    }

    /// The daemon writes to a client's socket.
    pub(crate) fn send_reply(&mut self, machine: usize, session: u64, reply: ClientReply) {
        let mut at_us = self.queue.now_us() + self.random.range(5, 60);
        if let Some(client) = self.client(machine, session) {
            client.read_us = client.read_us.max(at_us);
            at_us = client.read_us;
        }
        self.queue.at(at_us, Event::Reply { machine, session, reply: Box::new(reply) });
    }

    // Turns.

    fn plan_client(&mut self, machine: usize, pid: Pid, span_us: u64) {
        let now_us = self.queue.now_us();
        let at_us = now_us + span_us;
        let Some(client) = self.client(machine, pid) else { return };
        if client.turn_at_us <= now_us || at_us < client.turn_at_us {
            client.turn_at_us = at_us;
            self.queue.at(at_us, Event::ClientTurn { machine, pid });
        }
    }

    fn think(&mut self, machine: usize, pid: Pid) {
        let span = self.random.below(self.options.think_ms * 1000 + 1) + 1;
        self.plan_client(machine, pid, span);
    }

    /// A pause of a client is over.
    pub(crate) fn client_turn(&mut self, machine: usize, pid: Pid) {
        if self.machines[machine].is_stopped(Process::Clients) {
            return self.defer(machine, Process::Clients, Event::ClientTurn { machine, pid });
        }
        let now_us = self.queue.now_us();
        let Some(client) = self.client(machine, pid).filter(|client| !client.is_killed) else { return };
        if now_us >= client.turn_at_us && client.turn_at_us > 0 {
            client.turn_at_us = 0;
            self.client_acts(machine, pid);
        }
    }

    // Protected data.

    /// Reads or writes what a lock protects.
    fn use_lock(&mut self, machine: usize, pid: Pid, id: u32, is_write: bool) {
        self.check_lease(machine, "a client touches protected data");
        let Some(client) = self.client(machine, pid) else { return };
        let Some(lock) = client.locks.get_mut(&id) else { return };
        let work = match (lock.seen, is_write) {
            (Some(before), true) => Work::WriteCell(lock.resource, before, before + 1),
            _ => Work::ReadCell(lock.resource),
        };
        lock.has_io = true;
        lock.uses = lock.uses.saturating_sub(1);
        client.outstanding += 1;
        self.submit(machine, Owner::Client(pid), 0, u64::from(id), work);
    }

    /// A disk operation of a client came back.
    pub(crate) fn client_completion(&mut self, machine: usize, pid: Pid, operation: &Operation) {
        let now_us = self.queue.now_us();
        let Some(client) = self.client(machine, pid) else { return };
        client.outstanding = client.outstanding.saturating_sub(1);
        if client.is_killed {
            return self.client_gone(machine, pid);
        }
        let id = u32::try_from(operation.tag).unwrap_or(0);
        let Some(lock) = client.locks.get_mut(&id) else { return };
        lock.has_io = false;
        let mut found = None;
        match (&operation.result, &operation.work) {
            (Ok(Answer::Cell(value)), _) => {
                if let Some(before) = lock.seen.filter(|before| before != value) {
                    found = Some(("S2", format!("client {pid} holds {lock:?} and reads {value} where it has seen {before}")));
                }
                lock.seen = Some(*value);
            }
            (Ok(Answer::Bytes(_)), Work::WriteCell(_, _, value)) => lock.seen = Some(*value),
            // It has happened or not: a program that cannot use its data gives the lock back.
            _ => (lock.seen, lock.uses, lock.until_us) = (None, 0, now_us),
        }
        self.report(now_us, found.into_iter().collect());
        self.think(machine, pid);
    }

    // The end.

    /// The daemon's socket is closed for this client: it is cut off, goes on for a moment with what it is at, and ends.
    fn cut_off(&mut self, machine: usize, pid: Pid) {
        if let Some(client) = self.client(machine, pid)
            && !client.is_cut_off
        {
            client.is_cut_off = true;
            let span = self.random.range(10, self.options.hold_ms * 1000 + 1000);
            self.queue.after(span, Event::KillClient { machine, pid });
        }
    }

    /// The daemon is gone, or its incarnation: so are all sessions.
    pub(crate) fn close_sessions(&mut self, machine: usize) {
        self.facts.locks.daemon_ended(machine);
        let pids: Vec<Pid> = self.machines[machine].clients.keys().copied().collect();
        for pid in pids {
            self.cut_off(machine, pid);
        }
    }

    /// A client ends. It is gone once its disk operations are.
    pub(crate) fn kill_client(&mut self, machine: usize, pid: Pid) {
        let Some(client) = self.client(machine, pid) else { return };
        client.is_killed = true;
        if client.outstanding == 0 {
            self.client_gone(machine, pid);
        }
    }

    fn client_gone(&mut self, machine: usize, pid: Pid) {
        if self.client(machine, pid).is_none_or(|client| client.outstanding > 0) {
            return;
        }
        let now_us = self.queue.now_us();
        let Some(client) = self.machines[machine].clients.remove(&pid) else { return };
        self.facts.waits.client_gone(now_us, pid);
        let asked: Vec<Unanswered> = client.asked.values().flat_map(|asked| asked.what.unanswered()).collect();
        if client.is_cut_off {
            self.facts.locks.ended(now_us, pid, asked.iter().map(|asked| asked.resource));
        } else {
            self.facts.locks.left_behind(now_us, pid, machine, &asked);
        }
        if !client.is_cut_off {
            self.queue.at(client.sent_us.max(now_us + 10), Event::SessionEnds { machine, session: pid });
        }
        let boot = self.machines[machine].boot_number;
        self.queue.after(RETRY_US, Event::StartClients { machine, boot });
    }

    /// The daemon sees a session's end.
    pub(crate) fn session_ends(&mut self, machine: usize, session: u64) {
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::SessionEnds { machine, session });
        }
        self.facts.locks.end_seen(self.queue.now_us(), session);
        self.node_give(machine, NodeInput::Locks(Input::SessionClosed { session }));
    }
}
