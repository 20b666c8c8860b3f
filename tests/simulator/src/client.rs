//! What: the programs of the simulated world that take locks, and change the protected data under them.
//! Owns: what each client asks for, believes to hold, and does meanwhile.
//! Invariants: a client touches protected data only while it believes to hold a lock that allows it; a killed one is gone only when its last
//!   disk operation is.
//! Does not: judge; what it believes is told to the checkers.
//! Called by: the world.

use crate::{
    check::locks::Holder,
    io::{Answer, Operation, Owner, Work},
    machine::{Pid, Process},
    world::{Event, World},
};
use deadbolt_cluster::node::NodeInput;
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, ResultFlags, Token,
    client::{CLIENT_VERSION, LVB_BYTES, Lvb},
    service::{Input, SessionInfo},
};

const LOCKSPACE: &[u8] = b"simulated";
/// Pause after a refusal.
const RETRY_US: u64 = 100_000;

/// What a client is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// Waits for the lockspace.
    Joining,
    /// Pauses.
    Thinking,
    /// Waits for a lock.
    Asking {
        /// Which resource.
        resource: usize,
        /// Mode asked for.
        mode: Mode,
    },
    /// Holds one.
    Holding {
        /// Which resource.
        resource: usize,
        /// The lock's number.
        lock: u32,
        /// The mode.
        mode: Mode,
        /// What was read under it.
        seen: Option<u64>,
        /// It has written.
        has_written: bool,
    },
    /// Waits for the end of an unlock.
    Releasing,
}

/// A client process.
#[derive(Debug)]
pub struct Client {
    pub(crate) pid: Pid,
    pub(crate) doing: Doing,
    serial: u64,
    lockspace: u32,
    /// Disk operations on their way.
    outstanding: usize,
    /// The socket to the daemon is closed.
    is_cut_off: bool,
    is_killed: bool,
    /// When it asked last, us.
    pub(crate) asked_us: u64,
}

fn name_of(resource: usize) -> Vec<u8> {
    format!("r{resource}").into_bytes()
}

fn block(value: u64) -> Lvb {
    let mut lvb = [0; LVB_BYTES];
    lvb[..8].copy_from_slice(&value.to_le_bytes());
    lvb
}

impl World {
    /// Starts as many clients as there should be.
    pub(crate) fn start_clients(&mut self, machine: usize) {
        let wanted = usize::try_from(self.options.clients).unwrap_or(0);
        let present = self.machines[machine].clients.values().filter(|client| !client.is_cut_off && !client.is_killed).count();
        for _ in present..wanted {
            let pid = self.new_pid();
            let client = Client {
                pid,
                doing: Doing::Joining,
                serial: 0,
                lockspace: 0,
                outstanding: 0,
                is_cut_off: false,
                is_killed: false,
                asked_us: self.queue.now_us(),
            };
            self.machines[machine].clients.insert(pid, client);
            self.node_give(machine, NodeInput::Locks(Input::SessionOpened { session: pid, info: SessionInfo { pid: 1 } }));
            self.request(machine, pid, ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false });
            self.client_join(machine, pid);
        }
    }

    fn client(&mut self, machine: usize, pid: Pid) -> Option<&mut Client> {
        self.machines[machine].clients.get_mut(&pid)
    }

    /// Sends a request to the daemon.
    fn request(&mut self, machine: usize, pid: Pid, request: ClientRequest) {
        let is_able = self.client(machine, pid).is_some_and(|client| !client.is_cut_off && !client.is_killed);
        if is_able {
            let span = self.random.range(5, 60);
            self.queue.after(span, Event::Request { machine, session: pid, request: Box::new(request) });
        }
    }

    fn next_serial(&mut self, machine: usize, pid: Pid) -> u64 {
        let now_us = self.queue.now_us();
        self.client(machine, pid).map_or(0, |client| {
            client.serial += 1;
            client.asked_us = now_us;
            client.serial
        })
    }

    fn client_join(&mut self, machine: usize, pid: Pid) {
        let serial = self.next_serial(machine, pid);
        if let Some(client) = self.client(machine, pid) {
            client.doing = Doing::Joining;
        }
        self.request(machine, pid, ClientRequest::JoinLockspace { serial, name: LOCKSPACE.to_vec() });
    }

    /// A request reaches the daemon.
    pub(crate) fn client_request(&mut self, machine: usize, session: u64, request: ClientRequest) {
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::Request { machine, session, request: Box::new(request) });
        }
        if self.client(machine, session).is_some_and(|client| !client.is_cut_off && !client.is_killed) {
            self.node_give(machine, NodeInput::Locks(Input::Request { session, request }));
        }
    }

    fn think(&mut self, machine: usize, pid: Pid) {
        let span = self.random.below(self.options.think_ms * 1000 + 1) + 1;
        self.wait(machine, pid, span);
    }

    fn wait(&mut self, machine: usize, pid: Pid, span_us: u64) {
        self.queue.after(span_us, Event::ClientTurn { machine, pid });
    }

    /// A pause of a client is over.
    pub(crate) fn client_turn(&mut self, machine: usize, pid: Pid) {
        if self.machines[machine].is_stopped(Process::Clients) {
            return self.defer(machine, Process::Clients, Event::ClientTurn { machine, pid });
        }
        let Some(client) = self.client(machine, pid).filter(|client| !client.is_killed) else { return };
        match client.doing {
            Doing::Joining if client.lockspace == 0 => self.client_join(machine, pid),
            Doing::Thinking => self.client_asks(machine, pid),
            Doing::Holding { .. } => self.client_goes_on(machine, pid),
            Doing::Joining | Doing::Asking { .. } | Doing::Releasing => {}
        }
    }

    fn client_asks(&mut self, machine: usize, pid: Pid) {
        if self.is_quiet {
            return self.wait(machine, pid, RETRY_US);
        }
        let resource = self.random.index(usize::try_from(self.options.resources).unwrap_or(1));
        let mode = match self.random.below(10) {
            0 => Mode::Nl,
            1 => Mode::Cr,
            2 => Mode::Cw,
            3 | 4 => Mode::Pr,
            5 => Mode::Pw,
            _ => Mode::Ex,
        };
        let serial = self.next_serial(machine, pid);
        let Some(client) = self.client(machine, pid) else { return };
        client.doing = Doing::Asking { resource, mode };
        let lockspace = client.lockspace;
        let flags = Flags::VALBLK;
        let lvb = Some(block(0));
        self.facts.locks.asked(resource, pid);
        self.request(machine, pid, ClientRequest::Lock { serial, lockspace, resource: name_of(resource), mode, flags, lvb });
    }

    /// A reply reaches the client.
    pub(crate) fn client_reply(&mut self, machine: usize, pid: Pid, reply: ClientReply) {
        if self.machines[machine].is_stopped(Process::Clients) {
            return self.defer(machine, Process::Clients, Event::Reply { machine, session: pid, reply: Box::new(reply) });
        }
        let Some(client) = self.client(machine, pid).filter(|client| !client.is_killed) else { return };
        let doing = client.doing;
        match reply {
            ClientReply::Joined { lockspace, .. } => {
                client.lockspace = lockspace;
                client.doing = Doing::Thinking;
                self.think(machine, pid);
            }
            ClientReply::Completed { status: LockStatus::Success, lock, mode: Some(mode), flags, lvb, token, .. } => {
                if let Doing::Asking { resource, .. } = doing {
                    self.client_granted(machine, pid, (resource, lock, mode), token, lvb.filter(|_| !flags.has(ResultFlags::VALNOTVALID)));
                }
            }
            ClientReply::Completed { .. } => {
                if let Doing::Asking { resource, .. } = doing {
                    self.facts.locks.refused(resource, pid);
                }
                client_of(self, machine, pid).doing = Doing::Thinking;
                self.think(machine, pid);
            }
            ClientReply::Refused { .. } => {
                if let Doing::Asking { resource, .. } = doing {
                    self.facts.locks.refused(resource, pid);
                    client_of(self, machine, pid).doing = Doing::Thinking;
                }
                self.wait(machine, pid, RETRY_US);
            }
            ClientReply::Lost { .. } => self.cut_off(machine, pid),
            ClientReply::Welcome { .. } | ClientReply::LockspaceLeft { .. } | ClientReply::Blocking { .. } => {}
        }
    }

    fn client_granted(&mut self, machine: usize, pid: Pid, grant: (usize, u32, Mode), token: Token, lvb: Option<Lvb>) {
        let (resource, lock, mode) = grant;
        let now_us = self.queue.now_us();
        self.facts.granted += 1;
        let holder = Holder { machine, boot: self.machines[machine].boot_number, client: pid, mode, token };
        let value = lvb.map(|lvb| u64::from_le_bytes(lvb[..8].try_into().unwrap_or_default()));
        let found = self.facts.locks.granted(resource, holder, value);
        self.report(now_us, found);
        self.check_lease(machine, "a lock is granted to a client");
        client_of(self, machine, pid).doing = Doing::Holding { resource, lock, mode, seen: None, has_written: false };
        if mode.is_writer() || mode == Mode::Pr {
            self.client_submits(machine, pid, Work::ReadCell(resource));
        } else {
            let span = self.random.below(self.options.hold_ms * 1000 + 1);
            self.wait(machine, pid, span);
        }
    }

    fn client_submits(&mut self, machine: usize, pid: Pid, work: Work) {
        self.check_lease(machine, "a client touches protected data");
        client_of(self, machine, pid).outstanding += 1;
        self.submit(machine, Owner::Client(pid), 0, 0, work);
    }

    /// A disk operation of a client came back.
    pub(crate) fn client_completion(&mut self, machine: usize, pid: Pid, operation: &Operation) {
        let Some(client) = self.client(machine, pid) else { return };
        client.outstanding = client.outstanding.saturating_sub(1);
        if client.is_killed {
            return self.client_gone(machine, pid);
        }
        let is_writing = matches!(operation.work, Work::WriteCell(..));
        if let Doing::Holding { seen, has_written, .. } = &mut client.doing {
            match &operation.result {
                Ok(Answer::Cell(value)) => *seen = Some(*value),
                Ok(Answer::Bytes(_)) => *has_written |= is_writing,
                // A program that cannot use its data gives the lock back, and has written or not.
                Err(()) => *has_written = true,
            }
        }
        let span = self.random.below(self.options.hold_ms * 1000 + 1);
        self.wait(machine, pid, span);
    }

    /// The client has held its lock for a while.
    fn client_goes_on(&mut self, machine: usize, pid: Pid) {
        let Some(client) = self.client(machine, pid) else { return };
        let Doing::Holding { resource, lock, mode, seen, has_written } = client.doing else { return };
        if client.outstanding > 0 {
            return;
        }
        // Only EX excludes readers, so only EX changes the value that a reader may look at twice.
        if let (Mode::Ex, Some(before), false) = (mode, seen, has_written) {
            return self.client_submits(machine, pid, Work::WriteCell(resource, before, before + 1));
        }
        if client.is_cut_off {
            return;
        }
        let serial = self.next_serial(machine, pid);
        let value = self.next_operation;
        client_of(self, machine, pid).doing = Doing::Releasing;
        self.facts.locks.releasing(resource, pid, mode.is_writer().then_some(value));
        let lvb = mode.is_writer().then(|| block(value));
        let flags = if lvb.is_some() { Flags::VALBLK } else { Flags::NONE };
        self.request(machine, pid, ClientRequest::Unlock { serial, lock, flags, lvb });
    }

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
        let pids: Vec<Pid> = self.machines[machine].clients.keys().copied().collect();
        for pid in pids {
            self.cut_off(machine, pid);
        }
    }

    /// A client is killed. It is gone once its disk operations are.
    pub(crate) fn kill_client(&mut self, machine: usize, pid: Pid) {
        let Some(client) = self.client(machine, pid) else { return };
        client.is_killed = true;
        if client.outstanding == 0 {
            self.client_gone(machine, pid);
        }
    }

    fn client_gone(&mut self, machine: usize, pid: Pid) {
        let Some(client) = self.machines[machine].clients.remove(&pid) else { return };
        self.facts.locks.ended(pid);
        if !client.is_cut_off {
            self.queue.after(10, Event::SessionEnds { machine, session: pid });
        }
        let boot = self.machines[machine].boot_number;
        self.queue.after(RETRY_US, Event::StartClients { machine, boot });
    }

    /// The daemon sees a session's end.
    pub(crate) fn session_ends(&mut self, machine: usize, session: u64) {
        if self.machines[machine].is_stopped(Process::Daemon) {
            return self.defer(machine, Process::Daemon, Event::SessionEnds { machine, session });
        }
        self.node_give(machine, NodeInput::Locks(Input::SessionClosed { session }));
    }
}

fn client_of(world: &mut World, machine: usize, pid: Pid) -> &mut Client {
    world.machines[machine].clients.get_mut(&pid).expect("the caller has just found it")
}

impl Doing {
    /// For fingerprints.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Joining => 0,
            Self::Thinking => 1,
            Self::Asking { .. } => 2,
            Self::Holding { .. } => 3,
            Self::Releasing => 4,
        }
    }
}
