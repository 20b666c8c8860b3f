//! What: L1 to L4: what must happen once faults stop for a core that has a quorum with the disk, and nothing else is as it should be.
//! Owns: the bounds, computed from the timings.
//! Invariants: a bound is never shorter than what the design promises for the worst order of events.
//! Does not: choose the core or heal it.
//! Called by: the run.

use super::World;
use crate::{
    client::Asked,
    daemon::short,
    machine::{Daemon, SbdState, Stage},
};
use deadbolt_cluster_core::membership::Ground;
use deadbolt_cluster_core::timing::{budget_crash, budget_partition};
use deadbolt_disk_format::span::observed_ms;
use deadbolt_disk_format::{Life, ViewNumber};
use deadbolt_dlm_core::service::ResourceSnapshot;
use std::collections::BTreeSet;

/// How often the core is looked at.
const STEP_US: u64 = 250_000;

/// A disk operation that takes longer was delayed by a fault.
const LATE_MS: u64 = 1000;

/// A wait that has an end ends at the latest so long after it, where nothing goes wrong.
const OVERTIME_US: u64 = 3_000_000;

/// How a core did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// All that must happen has happened, or a violation is filed.
    Judged,
    /// Somebody outside the core could rightly go on without it, or a vote unit of a dead node is rotten: a person has to act.
    NoCore,
}

/// L2: from the removal of a life until a view names its evidence, with a member that was in a view with it.
fn fence_ms(world: &World) -> u64 {
    let timings = &world.timings;
    let printed_ms = budget_crash(timings).total_ms().max(budget_partition(timings).total_ms());
    observed_ms(printed_ms + turns_ms(world), timings.drift_ppm)
}

/// How long a member that has just gone silent may still be the one that goes on, in the eyes of the others.
fn preferred_ms(world: &World) -> u64 {
    observed_ms(u64::from(world.timings.lease_ms) + turns_ms(world), world.timings.drift_ppm)
}

/// Beside any time: every node before this one in the order of proposers may be one that may not judge yet, and a disk that is slow.
fn turns_ms(world: &World) -> u64 {
    2 * u64::from(world.timings.poll_ms) * world.options.nodes + 20 * world.options.disk_us / 1000
}

/// L3: a last reset of whoever has to be, its start, and what an outsider waits for those who are gone; twice, for the first proposer may be
/// reset itself.
fn converge_ms(world: &World) -> u64 {
    let timings = &world.timings;
    let wait_ms = u64::from(timings.lease_ms + timings.expiry_ms + timings.freeze_ms + timings.storage_delay_ms);
    2 * observed_ms(wait_ms, timings.drift_ppm) + world.options.reboot_ms + 30_000
}

/// A node that has given its last lock back says so on the disk after this time (`service::IDLE_MS`).
const IDLE_MS: u64 = 1000;

/// L1: everybody holds what it has to the end, one after the other.
fn answer_ms(world: &World) -> u64 {
    let options = &world.options;
    let locks = options.nodes * options.clients * options.locks;
    // Deadlocks are found in a second, one after the other at the worst.
    let deadlocks_ms = if options.transactions > 0 { 1000 * locks } else { 0 };
    10_000 + IDLE_MS + deadlocks_ms + 2 * options.hold_ms + locks * (20 * options.net_us + 8 * options.disk_us) / 1000
}

impl World {
    /// What must happen once nothing goes wrong any more in a core.
    pub(crate) fn check_core(&mut self, core: &[usize]) -> Verdict {
        let start_us = self.queue.now_us();
        let resets = self.resets_of(core);
        let bound_ms = converge_ms(self);
        // Whoever has just been cut off, or has lost its disk, may be let in or kept by what was heard or read of it before.
        let last_beat_ms = if core.len() < self.node_count() { self.timings.lease_ms } else { 0 };
        let unheard_us = u64::from(2 * self.timings.detect_ms + last_beat_ms) * 1000;
        let mut is_converged = false;
        let (mut healthy_us, mut quorate_us) = (start_us, u64::MAX);
        while !is_converged && self.violations().is_empty() && self.queue.now_us() < healthy_us + bound_ms * 1000 {
            self.run_until(self.queue.now_us() + STEP_US);
            let is_late = self.has_late_work(core);
            if is_late {
                (healthy_us, quorate_us) = (self.queue.now_us(), u64::MAX);
            }
            quorate_us = if self.is_quorate(core) { quorate_us.min(self.queue.now_us()) } else { u64::MAX };
            self.check_fences(quorate_us, core);
            self.check_loops(core, &resets, 1);
            is_converged = !is_late && self.queue.now_us() >= start_us + unheard_us && self.is_converged(core);
        }
        if !self.violations().is_empty() {
            return Verdict::Judged;
        }
        if !is_converged {
            // Only the first node can make the first view.
            let is_unborn = self.facts.views.is_empty() && !core.contains(&0);
            if is_unborn || self.is_led_from_outside(core) || self.is_at_dead_end() {
                return Verdict::NoCore;
            }
            let text = self.describe();
            self.add_violation("L3", format!("no common view of {core:?} within {bound_ms} ms, 2 (L + W + F + D) + reboot + 30 s: {text}"));
            return Verdict::Judged;
        }
        let took_ms = (self.queue.now_us() - start_us) / 1000;
        self.note(&format!("--- the core {core:?} has converged after {took_ms} ms"));
        self.check_service(core);
        Verdict::Judged
    }

    /// Members of the newest view are alive, and none of them is of the core.
    fn is_led_from_outside(&self, core: &[usize]) -> bool {
        let machines =
            self.facts.newest.members.iter().filter_map(|life| self.facts.incarnations.get(&life.incarnation).map(|at| (life, *at)));
        let mut living = machines.filter(|(life, at)| self.machines[*at].is_on && self.machines[*at].boot(*at) == life.boot).peekable();
        living.peek().is_some() && living.all(|(_, at)| !core.contains(&at))
    }

    /// How many members of the newest view live in the core.
    pub(crate) fn members_in(&self, core: &[usize]) -> usize {
        let lives = core.iter().filter_map(|machine| self.machines[*machine].daemon.as_ref().and_then(Daemon::life));
        lives.filter(|life| self.facts.newest.members.contains(life)).count()
    }

    fn resets_of(&self, core: &[usize]) -> Vec<u64> {
        core.iter().map(|machine| self.facts.resets.get(machine).copied().unwrap_or(0)).collect()
    }

    /// The lives of the core, if all of them live.
    fn lives_of(&self, core: &[usize]) -> Option<Vec<Life>> {
        core.iter().map(|machine| self.machines[*machine].daemon.as_ref().and_then(Daemon::life)).collect()
    }

    /// A node without a path that lives on the vouch of a member stays a member (design, section 6: lives beyond the own beat), if it
    /// knows the view: who cannot learn it is given up.
    fn lives_on_vouch(&self, life: &Life) -> bool {
        let machine = self.facts.incarnations.get(&life.incarnation).map(|machine| (*machine, &self.machines[*machine]));
        let Some((at, place)) = machine.filter(|(at, place)| place.is_on && place.boot(*at) == life.boot) else { return false };
        match place.daemon.as_ref().map(|daemon| &daemon.stage) {
            Some(Stage::Live(node)) => {
                let is_vouched = node.status(self.local_ms(at)).membership.ground == Ground::Vouch;
                node.me() == *life && is_vouched && node.view().view == self.facts.newest.number
            }
            _ => false,
        }
    }

    /// What cannot come free before a node that lives on a vouch has its path back: a client there may hang in a write under its locks; or its
    /// node held nothing before, and a grant waits until "holds" is on the disk (design, section 6).
    fn stuck_without_disk(&self) -> BTreeSet<usize> {
        let vouched = self.facts.newest.members.iter().filter(|life| self.lives_on_vouch(life));
        let machines: Vec<usize> = vouched.filter_map(|life| self.facts.incarnations.get(&life.incarnation).copied()).collect();
        self.stuck(&machines)
    }

    /// L3: everybody in the core lives and has learned one view, with nobody but them and those they vouch for, and nobody is owed.
    fn is_converged(&self, core: &[usize]) -> bool {
        let is_whole = |machine: &usize| {
            let place = &self.machines[*machine];
            place.sbd.is_some() && place.feeder.is_some() && place.page.state == SbdState::Alive && !place.is_stopping
        };
        let Some(mut lives) = self.lives_of(core).filter(|_| core.iter().all(is_whole)) else { return false };
        lives.sort();
        let has_it = |machine: &usize| match self.machines[*machine].daemon.as_ref().map(|daemon| &daemon.stage) {
            Some(Stage::Live(node)) => {
                let mut members = node.view().members.clone();
                members.retain(|life| lives.contains(life) || !self.lives_on_vouch(life));
                members.sort();
                node.view().view == self.facts.newest.number && members == lives && node.view().owed.is_empty()
            }
            _ => false,
        };
        core.iter().all(has_it)
    }

    /// Is a disk operation of the core still on its way that a fault has delayed?
    fn has_late_work(&self, core: &[usize]) -> bool {
        core.iter().any(|machine| self.waits_for_disk(*machine, LATE_MS))
    }

    /// Have the members of the newest view that live in the core a quorum with the disk?
    fn is_quorate(&self, core: &[usize]) -> bool {
        let total = self.node_count() + usize::from(self.configuration.disk_votes);
        self.members_in(core) > 0 && self.members_in(core) + usize::from(self.configuration.disk_votes) > total / 2
    }

    /// L2: whom a view has removed is proved gone within the budget, where there is a quorum and somebody may judge by W.
    fn check_fences(&mut self, quorate_us: u64, core: &[usize]) {
        let bound_ms = fence_ms(self);
        let preferred_ms = preferred_ms(self);
        let now_us = self.queue.now_us();
        let lives: Vec<Life> = core.iter().filter_map(|machine| self.machines[*machine].daemon.as_ref().and_then(Daemon::life)).collect();
        let newest = &self.facts.newest;
        let beat_us = |life: &Life| self.facts.beats.get(&life.slot).copied().unwrap_or(0);
        // Within F after a consent to its freeze, + F: whoever consented, or heard of it when it was let in, cannot judge by W before.
        let freeze_us = observed_ms(u64::from(self.timings.freeze_ms), self.timings.drift_ppm) * 1000;
        let bound_us = |life: &Life| self.facts.consents.get(life).map_or(0, |(_, at_us)| at_us + freeze_us);
        // While a member outside the core seems to live, it may be the one that goes on: the core waits for it.
        let outside_us = newest.members.iter().filter(|life| !lives.contains(life)).map(beat_us).max().unwrap_or(0);
        let is_there = |life: &Life| newest.members.contains(life) && lives.contains(life);
        let is_judged =
            |removed: &Life, companions: &[Life]| companions.iter().any(|life| is_there(life) && newest.may_judge(life, removed));
        let is_late = |life: &Life, since_us: u64| {
            // What a dead node had sent may land until D after its end.
            let begun_us = since_us.max(quorate_us).max(beat_us(life)).max(bound_us(life));
            now_us > begun_us.saturating_add(bound_ms * 1000).max(outside_us + preferred_ms * 1000)
        };
        let late = newest.removed.iter().find(|(life, (since_us, companions))| is_late(life, *since_us) && is_judged(life, companions));
        if let Some((life, _)) = late.map(|(life, entry)| (*life, entry)) {
            let text = self.describe();
            self.add_violation("L2", format!("{} is owed for more than {bound_ms} ms, the budget and the turns: {text}", short(life)));
        }
    }

    /// L4: nobody of the core is reset more often than this.
    fn check_loops(&mut self, core: &[usize], before: &[u64], most: u64) {
        let after = self.resets_of(core);
        let loops = core.iter().zip(before.iter().zip(after)).find(|(_, (before, after))| *after > *before + most);
        if let Some((machine, (before, after))) = loops {
            let text = format!("{} is reset {} times after the faults stopped", self.machines[*machine].name, after - before);
            self.add_violation("L4", text);
        }
    }

    /// L1: whatever is asked is answered, also the last of it; meanwhile no view, no reset and no pill.
    fn check_service(&mut self, core: &[usize]) {
        let (view, resets, pills) = (self.facts.newest.number, self.resets_of(core), self.facts.pills);
        let granted = self.facts.granted;
        let (bound_ms, start_us) = (answer_ms(self), self.queue.now_us());
        let busy_end_us = self.queue.now_us() + 5_000_000 + 4 * (self.options.hold_ms + self.options.rest_ms) * 1000;
        while self.violations().is_empty() && self.queue.now_us() < busy_end_us {
            self.run_until(self.queue.now_us() + STEP_US);
            self.check_rest(core, view, &resets, pills);
            self.check_timeouts(core, start_us);
        }
        let is_refused = self.options.clients > 0 && self.facts.granted == granted && !self.is_all_stuck(core, &self.stuck_without_disk());
        if self.violations().is_empty() && is_refused {
            let text = self.describe();
            self.add_violation("L1", format!("no lock was granted in a healthy core: {text}"));
        }
        self.is_quiet = true;
        let quiet_end_us = self.queue.now_us() + bound_ms * 1000;
        while self.violations().is_empty() && self.queue.now_us() < quiet_end_us {
            if self.left_over(core).is_none() {
                break;
            }
            self.run_until(self.queue.now_us() + STEP_US);
            self.check_rest(core, view, &resets, pills);
        }
        if let (true, Some(text)) = (self.violations().is_empty(), self.left_over(core)) {
            self.add_violation("L1", format!("{bound_ms} ms after the last client began to give back what it has, {text}"));
        }
        self.is_quiet = false;
    }

    /// L3, L4: once is enough.
    fn check_rest(&mut self, core: &[usize], view: ViewNumber, resets: &[u64], pills: u64) {
        self.check_loops(core, resets, 0);
        if self.facts.newest.number != view {
            self.add_violation("L3", format!("view {} follows view {view}, in which the core had converged", self.facts.newest.number));
        }
        if self.facts.pills != pills {
            self.add_violation("L4", "a pill is written after the core has converged".into());
        }
    }

    /// L1: whoever waits no longer than a while has its answer then.
    fn check_timeouts(&mut self, core: &[usize], start_us: u64) {
        let now_us = self.queue.now_us();
        let clients = core.iter().flat_map(|machine| self.machines[*machine].clients.values());
        let mut asked = clients.filter(|client| !client.is_over()).flat_map(|client| client.asked.values());
        let end_us = |asked: &Asked| asked.since_us.max(start_us) + u64::from(asked.timeout_ms) * 1020 + OVERTIME_US;
        if let Some(late) = asked.find(|asked| asked.timeout_ms > 0 && now_us > end_us(asked)) {
            let text = format!("{late:?} has no answer at {} ms", now_us / 1000);
            self.add_violation("L1", text);
        }
    }

    /// What is not done in a core whose clients want nothing more.
    fn left_over(&self, core: &[usize]) -> Option<String> {
        let stuck = self.stuck_without_disk();
        core.iter().find_map(|machine| self.left_over_on(*machine, &stuck))
    }

    fn left_over_on(&self, machine: usize, stuck: &BTreeSet<usize>) -> Option<String> {
        let place = &self.machines[machine];
        if let Some((client, asked)) = self.oldest_request(machine, stuck) {
            return Some(format!("client {client} on {} waits since {} ms: {asked:?}", place.name, asked.since_us / 1000));
        }
        let Some(Stage::Live(node)) = place.daemon.as_ref().map(|daemon| &daemon.stage) else { return None };
        let locks = node.status(self.local_ms(machine)).locks;
        let is_stuck = |found: &ResourceSnapshot| {
            self.resource_named(&found.lockspace, &found.resource).is_some_and(|resource| stuck.contains(&resource))
        };
        let has_nothing = (locks.locks, locks.mastered, locks.holds) == (0, 0, false);
        let is_clean = self.is_idle(machine, stuck) && (has_nothing || (!stuck.is_empty() && node.locks().snapshot().iter().all(is_stuck)));
        (!is_clean).then(|| format!("{} has left over: {locks:?} {:?}", place.name, node.locks().snapshot()))
    }
}
