//! What: what came from the network and was not believed, counted by its reason.
//! Owns: the counters, the one line in the log for the first of each kind.
//! Invariants: counting never waits; a flood is one line.
//! Does not: judge (the seal does).
//! Called by: the links; the daemon's status shows it.

use crate::seal::Refusal;
use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

/// How it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// As a datagram.
    Datagram,
    /// On a connection.
    Connection,
}

/// Counters of one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// See [`Refusal`].
    pub foreign: u64,
    /// See [`Refusal`].
    pub forged: u64,
    /// See [`Refusal`].
    pub replayed: u64,
    /// See [`Refusal`].
    pub malformed: u64,
}

const KINDS: usize = 4;

/// What was refused in one incarnation.
#[derive(Debug, Default)]
pub struct Refused {
    datagrams: [AtomicU64; KINDS],
    connections: [AtomicU64; KINDS],
    /// Datagrams that the loop was too busy to take.
    overrun: AtomicU64,
}

/// Why a connection failed, where that is a refusal; a peer that only went away is none.
pub(super) fn reason(error: &io::Error) -> Option<Refusal> {
    error.get_ref()?.downcast_ref().copied()
}

const fn index(refusal: Refusal) -> usize {
    match refusal {
        Refusal::Foreign => 0,
        Refusal::Forged => 1,
        Refusal::Replayed => 2,
        Refusal::Malformed => 3,
    }
}

impl Refused {
    fn of(&self, channel: Channel) -> &[AtomicU64; KINDS] {
        match channel {
            Channel::Datagram => &self.datagrams,
            Channel::Connection => &self.connections,
        }
    }

    /// Counts a refusal; the first of its kind is said.
    pub(super) fn note(&self, channel: Channel, refusal: Option<Refusal>, from: SocketAddr) {
        let Some((refusal, counter)) = refusal.and_then(|refusal| Some((refusal, self.of(channel).get(index(refusal))?))) else { return };
        if counter.fetch_add(1, Ordering::Relaxed) == 0 {
            let what = match channel {
                Channel::Datagram => "datagram",
                Channel::Connection => "connection",
            };
            tracing::warn!("a {what} from {from} is refused: {refusal}; further ones are only counted, see `deadbolt status`");
        }
    }

    /// Counts a datagram that could not be taken in time.
    pub(super) fn note_overrun(&self) {
        self.overrun.fetch_add(1, Ordering::Relaxed);
    }

    /// Datagrams that the loop was too busy to take.
    #[must_use]
    pub fn overrun(&self) -> u64 {
        self.overrun.load(Ordering::Relaxed)
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self, channel: Channel) -> Counts {
        let [foreign, forged, replayed, malformed] = self.of(channel).each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Counts { foreign, forged, replayed, malformed }
    }
}
