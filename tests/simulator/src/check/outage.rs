//! What: S11: a whole cluster is reset because the disk went away for all of it, within F.
//! Owns: which members of the newest view were reset by the end of a lease that they could not renew.
//! Invariants: counts only members whose disk is away, who hear each other, and whose leases were renewed last within L of each other.
//! Does not: know how a freeze would be agreed on.
//! Called by: the world, when a node gives up for want of a lease.

use super::World;
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

    /// A machine is about to be reset because its lease ends.
    pub(crate) fn check_outage(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let place = &self.machines[machine];
        let boot = place.boot(machine);
        let members = self.facts.newest.members.clone();
        let is_mine = |life: &&Life| life.boot == boot && self.facts.incarnations.get(&life.incarnation) == Some(&machine);
        let Some(me) = members.iter().find(is_mine).copied() else { return };
        let away = place.paths.iter().filter(|path| path.hangs > 0 || path.fails_reads || path.fails_writes).count();
        let others = members.iter().filter_map(|life| self.facts.incarnations.get(&life.incarnation));
        let mut ways = others.flat_map(|other| [(machine, *other), (*other, machine)]);
        if away * 2 <= place.paths.len() || !place.stopped.is_empty() || !ways.all(|(from, to)| self.network.is_open(from, to)) {
            return;
        }
        let renewed_us = self.facts.outage.renewed.get(&machine).copied().unwrap_or(0);
        self.facts.outage.lost.retain(|life, _| members.contains(life));
        self.facts.outage.lost.insert(me, renewed_us);
        let lost = &self.facts.outage.lost;
        let (first, last) = (lost.values().min().copied().unwrap_or(0), lost.values().max().copied().unwrap_or(0));
        let (lease_us, freeze_us) = (u64::from(self.timings.lease_ms) * 1000, u64::from(self.timings.freeze_ms) * 1000);
        if members.iter().all(|life| lost.contains_key(life)) && last - first <= lease_us && now_us < first + freeze_us {
            let seconds = (now_us - first) / 1_000_000;
            let text = format!("all {} members are reset, the disk went away for all of them {seconds} s ago", members.len());
            self.report(now_us, vec![("S11", text)]);
        }
    }
}
