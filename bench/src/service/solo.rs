//! What: one service that is the whole cluster, and its clients.
//! Owns: sessions, serials, the answer to "holds".
//! Invariants: every request is answered as expected, or the measurement ends.
//! Does not: take time.
//! Called by: the measurements of the service alone.

use crate::names::Name;
use anyhow::{Context, Result, bail};
use deadbolt_disk_format::types::{BootId, Incarnation, Life, SlotIndex, ViewNumber};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, Input, LockService, LockStatus, Mode, Output, SessionInfo, client::ResourceName,
    service::SESSION_LOCKS_MAX,
};

/// Most requests of one session that are left waiting here: below what the service allows, and the same for every session.
const WAITERS_PER_SESSION: u64 = 50_000;

/// A life for tests and measurements.
pub(super) fn life(slot: u16) -> Life {
    let byte = u8::try_from(slot + 1).unwrap_or(u8::MAX);
    Life { slot: SlotIndex(slot), boot: BootId([byte; 16]), incarnation: Incarnation([byte; 16]) }
}

pub(super) fn resource(name: &Name) -> Result<ResourceName> {
    ResourceName::new(name).context("a name")
}

/// A plain request for a lock.
pub(super) fn lock_request(serial: u64, lockspace: u32, resource: ResourceName, mode: Mode) -> ClientRequest {
    ClientRequest::Lock { serial, lockspace, resource, mode, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb: None }
}

/// An unlock that is not answered.
pub(super) fn posted_unlock(lock: u32) -> ClientRequest {
    ClientRequest::Unlock { serial: 0, lock, flags: Flags::NONE, lvb: None }
}

/// One node, alone in its view.
pub(super) struct Solo {
    service: LockService,
    lockspace: u32,
    session: u64,
    /// Locks and waiting requests of the present session.
    used: u64,
    serial: u64,
}

impl Solo {
    pub(super) fn new() -> Result<Self> {
        let mut solo = Self { service: LockService::new(life(0)), lockspace: 0, session: 0, used: 0, serial: 0 };
        solo.input(Input::View { number: ViewNumber(1), members: vec![life(0)], owed: vec![], is_member: true })?;
        solo.input(Input::Permit { may_grant: true })?;
        solo.open()?;
        Ok(solo)
    }

    /// A further session.
    pub(super) fn open(&mut self) -> Result<()> {
        self.session += 1;
        self.used = 0;
        self.input(Input::SessionOpened { session: self.session, info: SessionInfo { pid: 1 } })?;
        match self.ask(|serial| ClientRequest::JoinLockspace { serial, name: b"bench".to_vec() })? {
            Some(ClientReply::Joined { lockspace, .. }) => {
                self.lockspace = lockspace;
                Ok(())
            }
            other => bail!("not joined: {other:?}"),
        }
    }

    /// The last reply, if there was one.
    fn input(&mut self, input: Input) -> Result<Option<ClientReply>> {
        self.service.handle(1, input);
        let mut last = None;
        while let Some(output) = self.service.poll_output() {
            match output {
                // A hint to a holder, who here gives nothing back.
                Output::Reply { reply: ClientReply::Blocking { .. }, .. } => {}
                Output::Reply { reply, .. } => last = Some(reply),
                Output::Holds(is_held) => {
                    self.service.handle(1, Input::HoldsPublished(is_held));
                }
                Output::Send { .. } => bail!("a node alone sends to somebody"),
                _ => {}
            }
        }
        Ok(last)
    }

    fn ask(&mut self, make: impl FnOnce(u64) -> ClientRequest) -> Result<Option<ClientReply>> {
        self.serial += 1;
        self.input(Input::Request { session: self.session, request: make(self.serial) })
    }

    /// Asks for a lock; its number when it is granted at once, none when it waits.
    fn request(&mut self, name: &Name, mode: Mode) -> Result<Option<u32>> {
        let (lockspace, resource) = (self.lockspace, resource(name)?);
        let reply = self.ask(|serial| lock_request(serial, lockspace, resource, mode))?;
        match reply {
            Some(ClientReply::Completed { lock, status: LockStatus::Success, .. }) => Ok(Some(lock)),
            None => Ok(None),
            other => bail!("the request ended with {other:?}"),
        }
    }

    /// Takes a lock that nobody else has.
    pub(super) fn lock(&mut self, name: &Name, mode: Mode) -> Result<u32> {
        self.request(name, mode)?.context("the lock was not granted at once")
    }

    /// Takes a lock and keeps it, in as many sessions as that needs.
    pub(super) fn keep(&mut self, name: &Name, mode: Mode) -> Result<()> {
        if self.used == SESSION_LOCKS_MAX as u64 {
            self.open()?;
        }
        self.used += 1;
        self.lock(name, mode).map(drop)
    }

    /// Asks for a lock that somebody else has, and goes on waiting.
    pub(super) fn wait(&mut self, name: &Name, mode: Mode) -> Result<()> {
        if self.used == WAITERS_PER_SESSION {
            self.open()?;
        }
        self.used += 1;
        if self.request(name, mode)?.is_some() {
            bail!("a lock that another holds was granted");
        }
        Ok(())
    }

    /// Gives a lock back, as clients do: nobody waits for an answer.
    pub(super) fn unlock(&mut self, lock: u32) -> Result<()> {
        match self.input(Input::Request { session: self.session, request: posted_unlock(lock) })? {
            None => Ok(()),
            Some(reply) => bail!("the unlock was answered: {reply:?}"),
        }
    }

    /// Locks held.
    pub(super) fn locks(&self) -> usize {
        self.service.status().locks
    }
}
