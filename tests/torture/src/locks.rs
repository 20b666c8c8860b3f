//! What: locks as the clients of the run take them, through the blocking library or the async one.
//! Owns: the choice of the library, the form of the value block, what an error means.
//! Invariants: both libraries are asked the same; what ends a session is told apart from a request that is not granted.
//! Does not: write histories.
//! Called by: the client.

use crate::history::{Number, Value, Why, number};
use deadbolt_dlm::{Flags, LockStatus, Mode, ResultFlags, Transport, blocking, blocking::Wishes, client as tokio_client};
use std::{path::Path, time::Duration};

type Lvb = [u8; 32];
/// Marks a value block of ours.
const MAGIC: [u8; 8] = *b"torture!";

/// The value block that tells the counter.
pub(crate) fn value_block(counter: u64, (view, count): Number) -> Lvb {
    let mut block = [0; 32];
    let words = [counter.to_le_bytes(), view.to_le_bytes(), count.to_le_bytes(), MAGIC];
    block.copy_from_slice(words.as_flattened());
    block
}

fn value_of(done: &blocking::Completion) -> Value {
    let is_doubtful = done.flags.0 & ResultFlags::VALNOTVALID.0 != 0;
    match (is_doubtful, done.lvb.as_ref().map(|block| block.as_chunks::<8>().0)) {
        (true, _) => Value::Doubtful,
        (false, None) => Value::None,
        (false, Some([counter, _, _, MAGIC])) => Value::Counter(u64::from_le_bytes(*counter)),
        (false, Some(_)) => Value::Foreign,
    }
}

/// What a grant says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Said {
    pub(crate) token: Number,
    pub(crate) value: Value,
}

impl Said {
    fn of(done: &blocking::Completion) -> Self {
        Self { token: number(done.token), value: value_of(done) }
    }
}

/// Why there is no grant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Denied {
    /// The request ended so; the client goes on.
    Not(Why),
    /// The session is over.
    Lost,
    /// No client should ever see this.
    Odd(String),
}

impl From<blocking::ClientError> for Denied {
    fn from(error: blocking::ClientError) -> Self {
        use blocking::ClientError as E;
        let status = match &error {
            E::Deadlock { .. } => return Self::Not(Why::Deadlock),
            E::Lost { .. } | E::Connect { .. } => return Self::Lost,
            E::NotGranted(status) | E::NoneGranted { status, .. } | E::Refused { status, .. } => *status,
            _ => return Self::Odd(error.to_string()),
        };
        match status {
            LockStatus::Again => Self::Not(Why::Busy),
            LockStatus::Deadlock => Self::Not(Why::Deadlock),
            LockStatus::Cancelled | LockStatus::TimedOut => Self::Not(Why::TimedOut),
            LockStatus::Stopped => Self::Lost,
            _ => Self::Odd(error.to_string()),
        }
    }
}

/// A lockspace of a session.
#[derive(Debug)]
pub(crate) enum Space {
    Blocking(blocking::Lockspace),
    Async(tokio_client::Lockspace),
}

/// A lock held.
#[derive(Debug)]
pub(crate) enum Guard {
    Blocking(blocking::Guard),
    Async(tokio_client::Guard),
}

impl Space {
    /// Connects and uses the run's lockspace.
    pub(crate) async fn join(socket: &Path, is_async: bool, transport: Transport) -> Result<Self, Denied> {
        const NAME: &[u8] = b"torture";
        let protection = blocking::Protection::default();
        Ok(if is_async {
            let client = tokio_client::Client::connect_over(socket, protection, transport).await?;
            Self::Async(client.join(NAME).await?)
        } else {
            Self::Blocking(blocking::Client::connect_over(socket, protection, transport)?.join(NAME)?)
        })
    }

    /// Takes a lock.
    pub(crate) async fn lock(&self, resource: &[u8], mode: Mode, wishes: &Wishes) -> Result<(Guard, Said), Denied> {
        Ok(match self {
            Self::Blocking(space) => {
                let guard = space.lock(resource, mode, wishes)?;
                let said = Said::of(guard.completion());
                (Guard::Blocking(guard), said)
            }
            Self::Async(space) => {
                let guard = space.lock(resource, mode, wishes).await?;
                let said = Said::of(guard.completion());
                (Guard::Async(guard), said)
            }
        })
    }

    /// Takes several locks in EX, all or none.
    pub(crate) async fn lock_many(&self, resources: &[Vec<u8>], wishes: &Wishes) -> Result<Vec<(Guard, Said)>, Denied> {
        let items: Vec<(&[u8], Mode)> = resources.iter().map(|name| (name.as_slice(), Mode::Ex)).collect();
        let blocking = |guard: blocking::Guard| (Said::of(guard.completion()), Guard::Blocking(guard));
        let tokio = |guard: tokio_client::Guard| (Said::of(guard.completion()), Guard::Async(guard));
        let granted: Vec<(Said, Guard)> = match self {
            Self::Blocking(space) => space.lock_many(&items, wishes)?.into_iter().map(blocking).collect(),
            Self::Async(space) => space.lock_many(&items, wishes).await?.into_iter().map(tokio).collect(),
        };
        Ok(granted.into_iter().map(|(said, guard)| (guard, said)).collect())
    }

    /// Asks for a lock and takes that back after a while, whatever has become of it.
    pub(crate) async fn give_up(&self, resource: &[u8], mode: Mode, wishes: &Wishes, after: Duration) -> Result<(), Denied> {
        match self {
            Self::Blocking(space) => {
                let pending = space.begin(resource, mode, wishes)?;
                tokio::time::sleep(after).await;
                drop(pending);
            }
            Self::Async(space) => {
                if let Ok(Err(error)) = tokio::time::timeout(after, space.lock(resource, mode, wishes)).await {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Who has and who wants it?
    pub(crate) async fn query(&self, resource: &[u8]) -> Result<(), Denied> {
        match self {
            Self::Blocking(space) => space.query(resource).map(|_| ())?,
            Self::Async(space) => space.query(resource).await.map(|_| ())?,
        }
        Ok(())
    }
}

impl Guard {
    /// Changes the mode.
    pub(crate) async fn convert(&mut self, mode: Mode, wishes: &Wishes) -> Result<Said, Denied> {
        Ok(match self {
            Self::Blocking(guard) => Said::of(guard.convert_within(mode, wishes)?),
            Self::Async(guard) => Said::of(guard.convert_within(mode, wishes).await?),
        })
    }

    /// Gives it back and waits for that.
    pub(crate) async fn unlock(self, flags: Flags, lvb: Option<Lvb>) -> Result<(), Denied> {
        match self {
            Self::Blocking(guard) => guard.unlock(flags, lvb)?,
            Self::Async(guard) => guard.unlock(flags, lvb).await?,
        }
        Ok(())
    }

    /// Gives it back without waiting.
    pub(crate) fn post_unlock(self, flags: Flags, lvb: Option<Lvb>) -> Result<(), Denied> {
        match self {
            Self::Blocking(guard) => guard.post_unlock(flags, lvb)?,
            Self::Async(guard) => guard.post_unlock(flags, lvb)?,
        }
        Ok(())
    }
}
