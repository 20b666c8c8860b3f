//! What: faults of the network that last for a while: cuts of every kind.
//! Owns: which ways are cut, and when each is cut and healed.
//! Invariants: what a fault cuts it heals again, as often; every time is drawn when the fault comes.
//! Does not: lose, delay or replay single messages (`net.rs` does, by the options).
//! Called by: the table of faults.

use super::Ending;
use crate::world::World;

type Way = (usize, usize);

impl World {
    pub(super) fn cut_all(&mut self, ways: &[Way]) {
        ways.iter().for_each(|(from, to)| self.cut(*from, *to));
    }

    fn cut_for_a_while(&mut self, ways: Vec<Way>) {
        self.cut_all(&ways);
        self.ends(Ending::Heal(ways));
    }

    pub(super) fn inject_cut(&mut self) {
        let count = self.machines.len();
        let side: Vec<bool> = (0..count).map(|_| self.faults.own.chance(500)).collect();
        let ways: Vec<Way> = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| side[*a] != side[*b]).collect();
        let names: Vec<&str> = (0..count).filter(|index| side[*index]).map(|index| self.machines[index].name.as_str()).collect();
        self.note_fault(&format!("{{{}}} cut off from the others", names.join(" ")));
        self.cut_for_a_while(ways);
    }

    pub(super) fn inject_cut_one_way(&mut self) {
        let Some(way) = self.some_pair() else { return };
        self.note_fault(&format!("one way is cut: {way:?}"));
        self.cut_for_a_while(vec![way]);
    }

    pub(super) fn inject_cut_pair(&mut self) {
        let Some((one, two)) = self.some_pair() else { return };
        self.note_fault(&format!("both ways are cut: {:?}", (one, two)));
        self.cut_for_a_while(vec![(one, two), (two, one)]);
    }

    /// A cut that comes and goes, quickly against the longest fault.
    pub(super) fn inject_flap(&mut self) {
        let Some((one, two)) = self.some_pair() else { return };
        let ways = if self.faults.own.chance(500) { vec![(one, two)] } else { vec![(one, two), (two, one)] };
        let times = self.faults.own.range(2, 10);
        self.note_fault(&format!("flaps {times} times: {ways:?}"));
        let mut at_us = 0;
        for _ in 0..times {
            self.ends_after(at_us, Ending::Cut(ways.clone()));
            at_us += self.span_us().div_ceil(8);
            self.ends_after(at_us, Ending::Heal(ways.clone()));
            at_us += self.span_us().div_ceil(8);
        }
    }

    /// Swizzle-clogging: way after way is clogged, and opened again in another order.
    pub(super) fn inject_clog(&mut self) {
        let count = self.machines.len();
        self.note_fault("every way is clogged and opened again");
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let at_us = self.span_us() / 2;
                self.ends_after(at_us, Ending::Cut(vec![(from, to)]));
                let until_us = at_us + self.span_us();
                self.ends_after(until_us, Ending::Heal(vec![(from, to)]));
            }
        }
    }

    pub(super) fn heal_ways_between(&mut self, machines: &[usize]) {
        let ways: Vec<Way> = self.network.cuts().copied().collect();
        for (from, to) in ways.into_iter().filter(|(from, to)| machines.contains(from) && machines.contains(to)) {
            while !self.network.is_open(from, to) {
                self.heal(from, to);
            }
        }
    }
}
