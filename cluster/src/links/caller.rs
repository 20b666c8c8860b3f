//! What: the calls to one node with a higher slot: a connection on the link that is wanted, or on any other.
//! Owns: when to call again, and on which link; the move of a stream to another link.
//! Invariants: a connection is left only when another one stands; a call that fails is followed by one on another link.
//! Does not: judge links (the link machine does), nor what travels.
//! Called by: the links, one task per node.

use super::{
    HANDSHAKE, Identity, RECONNECT,
    refused::{Channel, reason},
    stream::{Session, call},
};
use deadbolt_disk_format::SlotIndex;
use std::{net::SocketAddr, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Who is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Called {
    pub(super) slot: SlotIndex,
    /// Own and other address of each link.
    pub(super) links: Vec<(SocketAddr, SocketAddr)>,
}

impl Called {
    async fn open(&self, link: u8, identity: &Identity) -> Option<Session> {
        let (own, to) = *self.links.get(usize::from(link))?;
        // Where there is another link, a call is given up before the edge goes.
        let patience = if self.links.len() > 1 { (identity.user_timeout / 2).min(HANDSHAKE) } else { HANDSHAKE };
        match timeout(patience, call(Some(own), to, identity, Some(identity.me))).await.ok()? {
            Ok(session) => Some(session).filter(|session| session.peer.is_some_and(|peer| peer.slot == self.slot)),
            Err(error) => {
                identity.refused.note(Channel::Connection, reason(&error), to);
                None
            }
        }
    }

    /// The link to try after this one: the wanted one, or the next.
    fn after(&self, link: u8, wanted: Option<u8>) -> u8 {
        let count = u8::try_from(self.links.len()).unwrap_or(u8::MAX).max(1);
        wanted.filter(|wanted| *wanted != link && *wanted < count).unwrap_or((link + 1) % count)
    }

    /// Waits until another link is wanted, and for a connection on it.
    async fn elsewhere(&self, here: u8, wanted: &mut watch::Receiver<Option<u8>>, identity: &Identity) -> (u8, Session) {
        loop {
            changed(wanted).await;
            while let Some(link) = wish(wanted).filter(|link| *link != here) {
                tokio::select! {
                    session = self.open(link, identity) => match session {
                        Some(session) => return (link, session),
                        None => tokio::time::sleep(RECONNECT).await,
                    },
                    () = changed(wanted) => {}
                }
            }
        }
    }
}

/// The present wish, taken note of.
fn wish(wanted: &mut watch::Receiver<Option<u8>>) -> Option<u8> {
    *wanted.borrow_and_update()
}

/// Waits for another wish; without anybody who could have one, for ever.
async fn changed(wanted: &mut watch::Receiver<Option<u8>>) {
    if wanted.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until another link than this one is wanted.
async fn another(wanted: &mut watch::Receiver<Option<u8>>, here: u8) {
    loop {
        changed(wanted).await;
        if wish(wanted).is_some_and(|link| link != here) {
            return;
        }
    }
}

/// Keeps one connection with a node.
pub(super) async fn keep_connected(called: Called, mut wanted: watch::Receiver<Option<u8>>, identity: Identity) {
    let mut link = wish(&mut wanted).unwrap_or(0);
    let mut standing = None;
    loop {
        let session = match standing.take() {
            Some(session) => Some(session),
            None => tokio::select! {
                session = called.open(link, &identity) => session,
                () = another(&mut wanted, link) => None,
            },
        };
        if let Some(session) = session {
            tokio::select! {
                () = session.serve(&identity, link) => {}
                (other, session) = called.elsewhere(link, &mut wanted, &identity) => {
                    link = other;
                    standing = Some(session);
                    continue;
                }
            }
        }
        link = called.after(link, wish(&mut wanted));
        tokio::time::sleep(pause(&called)).await;
    }
}

/// Between two tries on the same link the usual pause; another one is tried sooner.
fn pause(called: &Called) -> Duration {
    let links = u32::try_from(called.links.len()).unwrap_or(1).max(1);
    RECONNECT / links
}
