//! What: who waited for what and how long, as clients know it; and whether a deadlock that one of them is told of may have been.
//! Owns: requests that may have waited, from the moment they were sent until their answer was read.
//! Invariants: a request waits at its master only within its time here; one whose client died may wait until its node is gone.
//! Does not: know what is held, or say that a deadlock must have been.
//! Called by: the clients of the world.

use crate::machine::Pid;
use deadbolt_dlm_core::{Claim, Cycle, CycleStep, Mode};
use std::collections::BTreeMap;

/// Waits that are kept in mind before those are forgotten that no later deadlock can be about.
const KEPT: usize = 4096;
/// After so long no master has a wait of a client that is gone, us: longer than any node is owed.
const GONE_US: u64 = 300_000_000;

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// A lock that is new.
    New(Mode),
    /// Another mode of a lock.
    Conversion(Mode),
    /// Bytes, from this one on.
    Range(u64),
}

/// A request that may wait.
#[derive(Clone, Debug)]
struct Wait {
    resource: usize,
    wanted: Wanted,
    since_us: u64,
    end_us: u64,
}

/// Which request of which client; one that asks for several things waits for one after the other.
type WaitKey = (Pid, u64, usize);

/// All of them.
#[derive(Debug, Default)]
pub struct WaitHistory {
    waits: BTreeMap<WaitKey, Wait>,
    /// Look for what can be forgotten when there are so many.
    limit: usize,
}

impl WaitHistory {
    /// A request was sent.
    pub fn begun(&mut self, now_us: u64, client: Pid, serial: u64, wanted: impl IntoIterator<Item = (usize, Wanted)>) {
        if self.waits.len() >= self.limit.max(KEPT) {
            let open_us = self.waits.values().filter(|wait| wait.end_us == u64::MAX).map(|wait| wait.since_us).min();
            self.waits.retain(|_, wait| wait.end_us >= open_us.unwrap_or(now_us));
            self.limit = 2 * self.waits.len();
        }
        for (number, (resource, wanted)) in wanted.into_iter().enumerate() {
            self.waits.insert((client, serial, number), Wait { resource, wanted, since_us: now_us, end_us: u64::MAX });
        }
    }

    /// Its answer was read.
    pub fn ended(&mut self, now_us: u64, client: Pid, serial: u64) {
        self.waits.range_mut((client, serial, 0)..=(client, serial, usize::MAX)).for_each(|(_, wait)| wait.end_us = now_us);
    }

    /// A client is gone, and has read no answer.
    pub fn client_gone(&mut self, now_us: u64, client: Pid) {
        let mine = self.waits.range_mut((client, 0, 0)..=(client, u64::MAX, usize::MAX));
        mine.for_each(|(_, wait)| wait.end_us = wait.end_us.min(now_us + GONE_US));
    }

    /// Is there a conversion of this resource that another one, which ends now, may have waited for?
    #[must_use]
    pub fn has_other_conversion(&self, client: Pid, serial: u64) -> bool {
        let Some(mine) = self.waits.get(&(client, serial, 0)) else { return false };
        let is_other = |key: &WaitKey, wait: &Wait| {
            *key != (client, serial, 0) && wait.resource == mine.resource && matches!(wait.wanted, Wanted::Conversion(_))
        };
        self.waits.iter().any(|(key, wait)| is_other(key, wait) && wait.end_us >= mine.since_us)
    }

    /// What speaks against a deadlock that this request is told to be the victim of, if anything: those who wait must close a circle, and all
    /// have waited at one instant. `number_of` knows a resource by its names.
    #[must_use]
    pub fn flaw(&self, client: Pid, serial: u64, cycle: &Cycle, number_of: impl Fn(&CycleStep) -> Option<usize>) -> Option<String> {
        let (first, last) = (cycle.steps.first()?, cycle.steps.last()?);
        let follows = |one: &CycleStep, next: &CycleStep| {
            one.blocker == next.waiter || (one.blocker.owner != 0 && one.blocker.owner == next.waiter.owner)
        };
        let is_closed = cycle.left_out > 0 || follows(last, first);
        if !is_closed || !cycle.steps.windows(2).all(|pair| follows(&pair[0], &pair[1])) {
            return Some("it is no circle".into());
        }
        let is_mine = u64::from(first.waiter.pid) == client;
        let Some(mut common) = self.find(client, Some(serial), first, &number_of).filter(|_| is_mine) else {
            return Some("its first step is another request".into());
        };
        for step in &cycle.steps {
            let Some((since_us, end_us)) = self.find(step.waiter.pid.into(), None, step, &number_of) else {
                return Some(format!("nobody asked for this: {step}"));
            };
            common = (common.0.max(since_us), common.1.min(end_us));
        }
        (common.0 > common.1).then(|| "they did not all wait at one instant".into())
    }

    /// The time in which a step's wait may have stood: of all requests that it can mean, from the first to the last.
    fn find(
        &self,
        client: Pid,
        serial: Option<u64>,
        step: &CycleStep,
        number_of: &impl Fn(&CycleStep) -> Option<usize>,
    ) -> Option<(u64, u64)> {
        let resource = number_of(step)?;
        let range = (client, serial.unwrap_or(0), 0)..=(client, serial.unwrap_or(u64::MAX), usize::MAX);
        let is_it = |wait: &&Wait| {
            let is_wanted = match (step.wanted, wait.wanted) {
                (Claim::Mode(mode), Wanted::New(wanted) | Wanted::Conversion(wanted)) => mode == wanted,
                (Claim::Range(span), Wanted::Range(start)) => span.start == start,
                _ => false,
            };
            wait.resource == resource && is_wanted
        };
        let found = self.waits.range(range).map(|(_, wait)| wait).filter(is_it);
        found.map(|wait| (wait.since_us, wait.end_us)).reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_dlm_core::{CycleParty, ResourceName};

    fn party(pid: u32) -> CycleParty {
        CycleParty { slot: 0, pid, owner: 0 }
    }

    fn step(waiter: u32, resource: &str, blocker: u32) -> CycleStep {
        CycleStep {
            waiter: party(waiter),
            wanted: Claim::Mode(Mode::Ex),
            lockspace: Vec::new(),
            resource: ResourceName::new(resource.as_bytes()).unwrap(),
            blocker: party(blocker),
            claim: Claim::Mode(Mode::Pr),
            is_held: true,
        }
    }

    fn number_of(step: &CycleStep) -> Option<usize> {
        std::str::from_utf8(step.resource.as_bytes()).ok()?.parse().ok()
    }

    #[test]
    fn a_deadlock_is_believed_when_all_of_it_may_have_waited_at_one_instant() {
        let mut history = WaitHistory::default();
        history.begun(10, 1, 1, [(7, Wanted::New(Mode::Ex))]);
        history.begun(20, 2, 1, [(8, Wanted::New(Mode::Ex))]);
        let flaw =
            |history: &WaitHistory, steps: &[CycleStep]| history.flaw(1, 1, &Cycle { steps: steps.to_vec(), left_out: 0 }, number_of);
        let cycle = [step(1, "7", 2), step(2, "8", 1)];
        assert_eq!(flaw(&history, &cycle), None);
        assert!(flaw(&history, &cycle[..1]).unwrap().contains("no circle"));
        assert!(flaw(&history, &[step(1, "7", 2), step(3, "8", 1)]).unwrap().contains("no circle"));
        assert!(flaw(&history, &[step(2, "8", 1), step(1, "7", 2)]).unwrap().contains("another request"));
        assert!(flaw(&history, &[step(1, "8", 2), step(2, "8", 1)]).unwrap().contains("another request"));
        assert!(flaw(&history, &[step(1, "7", 2), step(2, "9", 1)]).unwrap().contains("nobody asked"));
        history.ended(30, 2, 1);
        assert_eq!(flaw(&history, &cycle), None, "both waited at 20");
        history.begun(40, 1, 2, [(7, Wanted::New(Mode::Ex))]);
        history.ended(35, 1, 1);
        let late = history.flaw(1, 2, &Cycle { steps: cycle.to_vec(), left_out: 0 }, number_of);
        assert!(late.unwrap().contains("one instant"), "the other one had its answer before");
    }

    #[test]
    fn two_conversions_of_a_resource_may_wait_for_each_other() {
        let mut history = WaitHistory::default();
        history.begun(10, 1, 1, [(7, Wanted::Conversion(Mode::Ex))]);
        history.begun(10, 2, 1, [(7, Wanted::New(Mode::Ex))]);
        history.begun(10, 2, 2, [(8, Wanted::Conversion(Mode::Ex))]);
        assert!(!history.has_other_conversion(1, 1));
        history.begun(5, 3, 1, [(7, Wanted::Conversion(Mode::Ex))]);
        assert!(history.has_other_conversion(1, 1));
        history.ended(9, 3, 1);
        assert!(!history.has_other_conversion(1, 1), "it was over before");
    }
}
