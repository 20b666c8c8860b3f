//! What: the floor of two nodes that talk: a TCP round trip over a veth pair between two network namespaces.
//! Owns: the namespaces; they have no names and go with this process.
//! Invariants: nothing of the machine's own network is touched.
//! Does not: seal or batch.
//! Called by: the floors.

use super::{TCP, TCP_APART, processor::nanoseconds_each};
use crate::{
    locks::Scale,
    pair::{Partner, Pinned, Places},
    sheet::{Case, Measured, Row},
};
use anyhow::{Context, Result, anyhow};
use deadbolt_trial::network::{ip, new_namespace, path};
use nix::sched::{CloneFlags, setns};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

/// The far end. The namespaces are this floor's own, and so are the addresses.
const FAR: &str = "10.99.1.2:7411";
/// Bytes of a message: about what a lock request takes with its seal.
const MESSAGE_BYTES: usize = 96;
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end here, one there.
struct Ends {
    near: TcpStream,
    far: TcpStream,
    // The devices go with the namespaces.
    _namespaces: [Arc<OwnedFd>; 2],
}

/// Runs in a thread that has moved to the namespace: what it opens there stays there.
fn within<T: Send + 'static>(namespace: &Arc<OwnedFd>, work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T> {
    let namespace = namespace.clone();
    let done = std::thread::spawn(move || -> Result<T> {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work()?)
    });
    done.join().map_err(|_| anyhow!("a thread in a network namespace panicked"))?
}

fn make() -> Result<Ends> {
    let (near, far) = (new_namespace()?, new_namespace()?);
    ip(&near, &format!("link add eth0 type veth peer name eth0 netns {}", path(&far)))?;
    for (namespace, address) in [(&near, "10.99.1.1/24"), (&far, "10.99.1.2/24")] {
        ip(namespace, &format!("address add {address} dev eth0"))?;
        ip(namespace, "link set eth0 up")?;
    }
    let listener = within(&far, || TcpListener::bind(FAR))?;
    let near_end = within(&near, || TcpStream::connect_timeout(&FAR.parse().map_err(std::io::Error::other)?, PATIENCE))?;
    let (far_end, _) = listener.accept()?;
    for end in [&near_end, &far_end] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
    }
    Ok(Ends { near: near_end, far: far_end, _namespaces: [near, far] })
}

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let window = scale.window;
    let ends = Rc::new(std::cell::OnceCell::new());
    [(TCP, true), (TCP_APART, false)]
        .map(|(name, is_one_core)| {
            let ends = ends.clone();
            Case::new(vec![Row::new(name, "ns")], move || {
                // What forbids it today will forbid it in the next round.
                let made = ends.get_or_init(|| make().map_err(|error| format!("{error:#}")));
                let places = if is_one_core { Some(Places::one_core()?) } else { Places::two_cores()? };
                match (made, places) {
                    (Err(why), _) => Ok(Measured::Skipped(why.clone())),
                    (_, None) => Ok(Measured::Skipped("this process may use one core only".into())),
                    (Ok(ends), Some(places)) => Ok(Measured::Values(vec![ping_pong(ends, places, window)?])),
                }
            })
        })
        .into()
}

/// First byte of a message: another will follow, or none.
const MORE: u8 = 0;
const LAST: u8 = 1;

fn ping_pong(ends: &Ends, places: Places, window: Duration) -> Result<f64> {
    let _pinned = Pinned::to(places.near)?;
    let work = || {
        let mut message = [MORE; MESSAGE_BYTES];
        while message[0] == MORE {
            if (&ends.far).read_exact(&mut message).and_then(|()| (&ends.far).write_all(&message)).is_err() {
                return;
            }
        }
    };
    // SAFETY: reading and writing a socket are system calls; the message lies on the stack.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let mut message = [MORE; MESSAGE_BYTES];
    let mut round_trip = || (&ends.near).write_all(&message).and_then(|()| (&ends.near).read_exact(&mut message)).context("the far end");
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < window {
        round_trip()?;
        count += 1;
    }
    let each = nanoseconds_each(begin, count);
    (&ends.near).write_all(&[LAST; MESSAGE_BYTES]).and_then(|()| (&ends.near).read_exact(&mut [0; MESSAGE_BYTES]))?;
    partner.finish()?;
    Ok(each)
}
