//! What: asks corosync whether this node is in its cluster; where there is no corosync, looks for pacemaker-remote.
//! Owns: the judgement of corosync's answers, and what has to be remembered between two questions.
//! Invariants: a loss of quorum, or of the other of two nodes, is a no once it was there; a bound is published only from then on.
//! Does not: wait for a corosync that hangs any better than its library does: then nothing is reported, and health ages.
//! Called by: `child`.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use deadbolt_corosync::{CallFailed, Connection, Corosync};
use deadbolt_disk::now_ns;
use deadbolt_sbd_core::Opinion;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::child::{Answer, Asker, Options};
use super::remote::RemoteWatch;

/// The group of stock sbd (compatibility): its members count each other.
const GROUP: &CStr = c"sbd:cluster";
/// What corosync waits for its quorum device by default, ms (compatibility).
const SYNC_TIMEOUT_MS: u32 = 30_000;

/// What corosync answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// Programs in the group, one per node.
    members: usize,
    is_quorate: bool,
    is_two_node: bool,
    /// How long a quorum device may hold on to the quorum of before, ms.
    device_ms: Option<u32>,
    token_ms: u32,
    consensus_ms: u32,
}

/// What was there at some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Formed {
    quorum: bool,
    both: bool,
}

/// Judges by stock sbd's rules, and one more: quorum that was there must stay.
fn judge(seen: &Seen, formed: &mut Formed, watchdog_ms: u32) -> Answer {
    let was = *formed;
    formed.quorum |= seen.is_quorate;
    formed.both |= seen.members > 1;
    if seen.members == 0 {
        return Answer::new(Opinion::Unhealthy, "nobody is in sbd's group, not even this node");
    }
    if seen.is_two_node && was.both && seen.members == 1 {
        return Answer::new(Opinion::Unhealthy, "the other of two nodes is lost, whose quorum is both together");
    }
    if let Some(device_ms) = seen.device_ms.filter(|device_ms| *device_ms > watchdog_ms) {
        let reason = format!("the quorum device may hold quorum for {device_ms} ms, longer than the watchdog's {watchdog_ms} ms");
        return Answer::new(Opinion::Unhealthy, reason);
    }
    if was.quorum && !seen.is_quorate {
        return Answer::new(Opinion::Unhealthy, "quorum is lost");
    }
    let is_bounded = formed.quorum && (formed.both || !seen.is_two_node);
    let notice_ms = if is_bounded { notice_ms(seen, watchdog_ms) } else { 0 };
    let quorum = if seen.is_quorate { "with quorum" } else { "quorum is not there yet" };
    Answer { opinion: Opinion::Healthy, notice_ms, reason: format!("{quorum}, {} in the group", seen.members) }
}

/// How long corosync may be stopped before its first answers afterwards are not believed: nobody has lost a node that was silent for
/// no longer than the token, and what lasts longer than the watchdog has its own end.
fn stall_ms(seen: &Seen, watchdog_ms: u32) -> u32 {
    seen.token_ms.max(watchdog_ms)
}

/// How long after the others have lost this node its corosync may still call it a member: it has missed the token after that long,
/// then waits for a consensus, then for the quorum device; and for so long it may have been stopped unnoticed.
fn notice_ms(seen: &Seen, watchdog_ms: u32) -> u32 {
    let parts = [seen.token_ms, seen.consensus_ms, seen.device_ms.unwrap_or(0), stall_ms(seen, watchdog_ms)];
    parts.into_iter().fold(0, u32::saturating_add)
}

/// Whether corosync has run all the time: one that was stopped knows nothing of what happened meanwhile.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    answered_ms: Option<u64>,
    settled_ms: u64,
}

impl Running {
    /// It answered at `now_ms`; true: what it says may be believed.
    fn handle_answer(&mut self, now_ms: u64, stall_ms: u32, notice_ms: u32) -> bool {
        if self.answered_ms.is_some_and(|answered_ms| now_ms.saturating_sub(answered_ms) > u64::from(stall_ms)) {
            self.settled_ms = now_ms + u64::from(notice_ms);
        }
        self.answered_ms = Some(now_ms);
        now_ms >= self.settled_ms
    }
}

/// Asks corosync, or looks for pacemaker-remote.
#[derive(Debug)]
pub(crate) struct ClusterAsker {
    watchdog_ms: u32,
    calls: Option<Corosync>,
    connection: Option<Connection>,
    formed: Formed,
    running: Running,
    remote: RemoteWatch,
}

impl ClusterAsker {
    pub(crate) fn new(options: &Options) -> Self {
        let formed = Formed { quorum: options.formed, both: options.formed };
        Self {
            watchdog_ms: options.watchdog,
            calls: None,
            connection: None,
            formed,
            running: Running::default(),
            remote: RemoteWatch::default(),
        }
    }

    fn connect(&mut self) -> Result<(), String> {
        if self.connection.is_none() {
            let calls = match self.calls {
                Some(calls) => calls,
                None => Corosync::load()?,
            };
            self.calls = Some(calls);
            self.connection = Some(Connection::open(calls, GROUP).map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    /// Nothing when there is no connection.
    fn look(&self) -> Option<Result<Seen, CallFailed>> {
        self.connection.as_ref().map(see)
    }
}

fn see(connection: &Connection) -> Result<Seen, CallFailed> {
    connection.dispatch()?;
    let has_device = connection.map().has_text(c"quorum.device.model")?;
    let device_ms = connection.map().number(c"quorum.device.sync_timeout")?.unwrap_or(SYNC_TIMEOUT_MS);
    Ok(Seen {
        members: connection.members()?,
        is_quorate: connection.is_quorate()?,
        is_two_node: connection.map().flag(c"quorum.two_node")?,
        device_ms: has_device.then_some(device_ms),
        token_ms: connection.map().number(c"runtime.config.totem.token")?.unwrap_or(0),
        consensus_ms: connection.map().number(c"runtime.config.totem.consensus")?.unwrap_or(0),
    })
}

impl Asker for ClusterAsker {
    fn ask(&mut self) -> Answer {
        let connected = self.connect();
        let away = match self.look() {
            Some(Ok(seen)) => {
                let notice_ms = notice_ms(&seen, self.watchdog_ms);
                let is_believed = self.running.handle_answer(now_ns() / 1_000_000, stall_ms(&seen, self.watchdog_ms), notice_ms);
                let answer = judge(&seen, &mut self.formed, self.watchdog_ms);
                if answer.opinion == Opinion::Healthy && !is_believed {
                    return Answer::new(Opinion::Unsure, "corosync did not answer for a while, and may not know yet what it has missed");
                }
                return answer;
            }
            Some(Err(error)) => {
                self.connection = None;
                error.to_string()
            }
            None => connected.err().unwrap_or_default(),
        };
        self.remote.look().unwrap_or_else(|| Answer::new(Opinion::Away, format!("corosync cannot be asked: {away}")))
    }

    fn wait(&mut self, limit: Duration) {
        let Some(connection) = &self.connection else { return std::thread::sleep(limit) };
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut waited = connection.descriptors().map(|descriptor: BorrowedFd<'_>| PollFd::new(descriptor, PollFlags::POLLIN));
        let _ = poll(&mut waited, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Seen = Seen { members: 3, is_quorate: true, is_two_node: false, device_ms: None, token_ms: 3000, consensus_ms: 3600 };
    const NEW: Formed = Formed { quorum: false, both: false };
    const OLD: Formed = Formed { quorum: true, both: true };

    #[test]
    fn judgement_table() {
        use Opinion::{Healthy, Unhealthy};
        let pair = Seen { members: 2, is_two_node: true, ..ALL };
        let lone = Seen { members: 1, ..ALL };
        let table = [
            ("quorate", ALL, OLD, Healthy, 11_600),
            ("quorate for the first time", ALL, NEW, Healthy, 11_600),
            ("not yet quorate", Seen { is_quorate: false, ..lone }, NEW, Healthy, 0),
            ("quorum lost", Seen { is_quorate: false, ..ALL }, OLD, Unhealthy, 0),
            ("quorum lost, alone", Seen { is_quorate: false, ..lone }, OLD, Unhealthy, 0),
            ("nobody", Seen { members: 0, ..ALL }, OLD, Unhealthy, 0),
            ("alone in the group, with quorum", lone, OLD, Healthy, 11_600),
            ("both of two", pair, OLD, Healthy, 11_600),
            ("one of two, the other never seen", Seen { members: 1, ..pair }, Formed { quorum: true, both: false }, Healthy, 0),
            ("one of two", Seen { members: 1, ..pair }, OLD, Unhealthy, 0),
            ("device in time", Seen { device_ms: Some(5000), ..ALL }, OLD, Healthy, 16_600),
            ("device too slow", Seen { device_ms: Some(5001), ..ALL }, OLD, Unhealthy, 0),
            ("long token", Seen { token_ms: 30_000, consensus_ms: 36_000, ..ALL }, OLD, Healthy, 96_000),
        ];
        for (name, seen, mut formed, opinion, notice_ms) in table {
            let answer = judge(&seen, &mut formed, 5000);
            assert_eq!((answer.opinion, answer.notice_ms), (opinion, notice_ms), "{name}: {answer:?}");
        }
    }

    #[test]
    fn what_was_there_is_remembered() {
        let mut formed = NEW;
        let pair = Seen { members: 2, is_two_node: true, ..ALL };
        assert_eq!(judge(&Seen { members: 1, is_quorate: false, ..pair }, &mut formed, 5000).opinion, Opinion::Healthy);
        assert_eq!(formed, NEW);
        assert_eq!(judge(&pair, &mut formed, 5000).opinion, Opinion::Healthy);
        assert_eq!(formed, OLD);
        assert_eq!(judge(&Seen { members: 1, ..pair }, &mut formed, 5000).opinion, Opinion::Unhealthy);
        assert_eq!(judge(&pair, &mut formed, 5000).opinion, Opinion::Healthy);
    }

    #[test]
    fn one_that_was_stopped_is_not_believed_at_once() {
        let mut running = Running::default();
        // answered at -> believed; it may be stopped for 5000, then knows after 10,000
        for (now_ms, is_believed) in
            [(99, true), (5099, true), (10_100, false), (11_000, false), (16_000, false), (20_099, false), (20_100, true)]
        {
            assert_eq!(running.handle_answer(now_ms, 5000, 10_000), is_believed, "at {now_ms}");
        }
    }
}
