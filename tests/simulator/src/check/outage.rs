//! What: S11: a whole cluster is reset because the disk went away for all of it, within F.
//! Owns: which members of the newest view were reset by the end of a lease that they could not renew.
//! Invariants: counts only members whose processes live and whose disk is away, who heard each other all the time in which they could agree on
//! a freeze, and whose leases were renewed last within L of each other. F ends where the watchdog is fed no more: 2 T before the end of every lease.
//! Does not: know how a freeze would be agreed on.
//! Called by: the world, when a node gives up for want of a lease.

use super::World;
use crate::machine::{Daemon, Stage};
use deadbolt_disk_format::Life;
use std::collections::BTreeMap;

/// Members of the newest view that were lost with the disk, and when each had renewed its lease last.
#[derive(Debug, Default)]
pub(super) struct Outage {
    renewed: BTreeMap<usize, u64>,
    lost: BTreeMap<Life, u64>,
}

impl World {
    /// A lease was renewed.
    pub(crate) fn lease_renewed(&mut self, machine: usize) {
        self.facts.outage.renewed.insert(machine, self.queue.now_us());
    }

    /// A freeze begins: with the consents of the others, or with its own alone where the view names nobody else.
    pub(crate) fn check_frozen(&mut self, machine: usize, frozen_until_ms: u64) {
        let is_new = self.machines[machine].page.frozen_until_ms < frozen_until_ms;
        if let Some(me) = self.machines[machine].daemon.as_ref().and_then(Daemon::life).filter(|_| is_new) {
            self.facts.consented(self.queue.now_us(), me, None);
        }
    }

    /// A machine is about to be reset because its lease ends.
    pub(crate) fn check_outage(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let place = &self.machines[machine];
        let members = self.facts.newest.members.clone();
        // A freeze needs living daemons, and its question names the view: who has not learned from the disk that it was let in cannot ask
        // (design, section 6), and is a silent peer to the others when it ends.
        let Some(Stage::Live(node)) = place.daemon.as_ref().map(|daemon| &daemon.stage) else { return };
        let me = node.me();
        if node.view().view != self.facts.newest.number || !members.contains(&me) {
            return;
        }
        let away = place.paths.iter().filter(|path| path.hangs > 0 || path.fails_reads || path.fails_writes).count();
        let is_whole = place.sbd.is_some() && place.feeder.is_some() && place.stopped.is_empty();
        // A clock beyond its bound ends a freeze as it ends every lease.
        let has_unfair_clocks = self.options.unfair_clock_rate + self.options.unfair_clock_jump > 0;
        if away * 2 <= place.paths.len() || !is_whole || has_unfair_clocks {
            return;
        }
        let renewed_us = self.facts.outage.renewed.get(&machine).copied().unwrap_or(0);
        self.facts.outage.lost.retain(|life, _| members.contains(life));
        self.facts.outage.lost.insert(me, renewed_us);
        let lost = &self.facts.outage.lost;
        let (first, last) = (lost.values().min().copied().unwrap_or(0), lost.values().max().copied().unwrap_or(0));
        let (lease_us, freeze_us) = (u64::from(self.timings.lease_ms) * 1000, u64::from(self.timings.freeze_ms) * 1000);
        let fed_us = freeze_us.saturating_sub(u64::from(self.timings.reset_ms) * 2000);
        let is_for_all = members.iter().all(|life| lost.contains_key(life)) && last - first <= lease_us;
        if is_for_all && self.heard_each_other(&members, first, last + lease_us) && now_us < first + fed_us {
            let seconds = (now_us - first) / 1_000_000;
            let text = format!("all {} members are reset, the disk went away for all of them {seconds} s ago", members.len());
            self.report(now_us, vec![("S11", text)]);
        }
    }

    /// All the time, and before it long enough to be heard.
    fn heard_each_other(&self, members: &[Life], since_us: u64, until_us: u64) -> bool {
        let since_us = since_us.saturating_sub(u64::from(2 * self.timings.detect_ms) * 1000);
        let machines: Vec<usize> = members.iter().filter_map(|life| self.facts.incarnations.get(&life.incarnation).copied()).collect();
        let mut ways = machines.iter().flat_map(|from| machines.iter().map(|to| (*from, *to)));
        ways.all(|(from, to)| self.network.was_open(from, to, since_us, until_us))
    }
}
