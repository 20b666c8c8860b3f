//! What: everything that a run can be told, with unit and range, and how a seed draws it.
//! Owns: the table of options.
//! Invariants: an option outside its range is refused; a drawn set printed and parsed again is the same set.
//! Does not: inject anything.
//! Called by: the program, the runner, the world.

use crate::random::Random;
use std::fmt;

/// How a seed chooses an option's value.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// Always this.
    Fixed(u64),
    /// Evenly from a range.
    Even(u64, u64),
    /// In so many of 1000 seeds from a range, else 0.
    Rarely(u64, u64, u64),
    /// One of these.
    One(&'static [u64]),
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Even(low, high) => write!(f, "{low}-{high}"),
            Self::Rarely(permille, low, high) => write!(f, "{low}-{high} in {permille} permille"),
            Self::One(values) => {
                let values: Vec<String> = values.iter().map(u64::to_string).collect();
                write!(f, "one of {}", values.join(" "))
            }
        }
    }
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Smallest value.
    pub low: u64,
    /// Largest value.
    pub high: u64,
    /// How it is drawn.
    pub draw: Draw,
    /// What it does.
    pub help: &'static str,
}

macro_rules! options {
    ($($name:ident: $unit:literal, $low:literal..=$high:literal, $draw:expr, $help:literal;)*) => {
        /// What a run does; see [`OPTIONS`] for units and ranges.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Options {
            $(#[doc = $help] pub $name: u64,)*
        }

        /// Every option, in the order in which seeds draw them. New ones go to the end, so that kept seeds stay what they were.
        pub const OPTIONS: &[OptionInfo] = &[
            $(OptionInfo { name: stringify!($name), unit: $unit, low: $low, high: $high, draw: $draw, help: $help },)*
        ];

        impl Options {
            fn from_values(mut value: impl FnMut(&OptionInfo) -> u64) -> Self {
                let mut infos = OPTIONS.iter();
                let mut next = || infos.next().map_or(0, &mut value);
                Self { $($name: next(),)* }
            }

            fn slot(&mut self, name: &str) -> Option<&mut u64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }

            /// The value of an option by its name.
            #[must_use]
            pub fn get(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

use Draw::{Even, Fixed, One, Rarely};

options! {
    nodes: "nodes", 1..=8, Even(2, 5), "How many nodes are configured and started.";
    devices: "devices", 1..=3, One(&[1, 1, 3]), "Devices that vote: 1 or 3.";
    process_watchdog: "yes or no", 0..=1, Even(0, 1), "The watchdog ends a process tree instead of a machine.";
    stall_ms: "ms", 500..=60_000, One(&[1000, 2000, 5000]), "The stall tolerance that all times are derived from.";
    safety_s: "s", 1..=1_000_000, Even(20, 60), "Length of the phase with faults.";
    clients: "clients per node", 0..=16, Even(1, 3), "Processes that take locks.";
    resources: "resources", 1..=64, Even(1, 4), "Resources that they share.";
    think_ms: "ms", 0..=60_000, One(&[0, 1, 20, 200]), "Longest pause of a client between two locks.";
    hold_ms: "ms", 0..=60_000, One(&[0, 2, 50, 1000]), "Longest time for which a client sits on a lock.";
    disk_us: "us", 1..=1_000_000, One(&[100, 1000, 10_000]), "Longest time of a disk operation without a fault.";
    net_us: "us", 1..=1_000_000, One(&[50, 500, 5000]), "Longest way of a message without a fault.";
    drift_ppm: "ppm", 0..=10_000, One(&[0, 100, 9000]), "Largest rate error of a machine's clock.";
    fault_gap_ms: "ms", 0..=1_000_000, One(&[0, 500, 2000, 8000]), "Mean time between two faults; 0: none.";
    fault_ms: "ms", 1..=1_000_000, One(&[200, 2000, 15_000]), "Longest duration of a fault that ends by itself.";
    net_loss: "permille", 0..=1000, Rarely(300, 1, 300), "Datagrams lost.";
    net_repeat: "permille", 0..=1000, Rarely(300, 1, 300), "Datagrams that come twice, the second time later.";
    net_delay_us: "us", 0..=10_000_000, Rarely(300, 1000, 400_000), "Longest extra delay of a datagram, so that they overtake each other.";
    cut: "weight", 0..=100, Even(0, 10), "Faults: both directions between two sets of nodes are cut.";
    cut_one_way: "weight", 0..=100, Even(0, 10), "Faults: one direction between two nodes is cut.";
    flap: "weight", 0..=100, Even(0, 5), "Faults: a cut that comes and goes.";
    clog: "weight", 0..=100, Even(0, 5), "Faults: every way is clogged in some order and opened again in another (swizzle-clogging).";
    disk_slow: "weight", 0..=100, Even(0, 10), "Faults: a node's path to a device is slow.";
    disk_hang: "weight", 0..=100, Even(0, 10), "Faults: a node's path to a device hangs, and is released with what was on its way.";
    disk_hang_all: "weight", 0..=100, Rarely(100, 1, 5), "Faults: a device hangs for all nodes.";
    disk_error: "weight", 0..=100, Even(0, 10), "Faults: a node's path to a device answers with errors, with or without effect.";
    crash: "weight", 0..=100, Even(0, 10), "Faults: a machine loses power.";
    kill_daemon: "weight", 0..=100, Even(0, 10), "Faults: the daemon dies.";
    kill_sbd: "weight", 0..=100, Even(0, 5), "Faults: sbd dies.";
    kill_client: "weight", 0..=100, Even(0, 10), "Faults: a client dies.";
    pause_node: "weight", 0..=100, Even(0, 10), "Faults: all processes of a node are stopped and continued.";
    pause_daemon: "weight", 0..=100, Even(0, 10), "Faults: the daemon is stopped and continued.";
    pause_sbd: "weight", 0..=100, Even(0, 5), "Faults: sbd's disk thread is stopped and continued.";
    pause_feeder: "weight", 0..=100, Even(0, 5), "Faults: the feeder is stopped between its check and its feed.";
    stop_node: "weight", 0..=100, Even(0, 10), "Faults: a node is stopped cleanly, and started again.";
    power_all: "weight", 0..=100, Rarely(200, 1, 3), "Faults: all machines lose power at once.";
    reset_fails: "permille", 0..=1000, Rarely(200, 1, 1000), "Resets that do nothing, so that the watchdog has to fire.";
    reboot_ms: "ms", 0..=1_000_000, One(&[100, 3000, 30_000]), "Longest time that a machine is off before it starts again.";
    disk_votes: "votes", 0..=8, One(&[0, 0, 0, 1]), "Votes of the disk; 0: nodes - 1.";
    mistake: "number", 0..=99, Fixed(0), "Planted mistake (docs/simulator.md); only in builds with the feature planted.";
    net_replay: "permille", 0..=1000, Rarely(300, 1, 300), "Datagrams after which an old one comes again, of any age, at times to another node.";
    cut_pair: "weight", 0..=100, Even(0, 5), "Faults: both directions between two nodes are cut.";
    disk_read_error: "weight", 0..=100, Even(0, 5), "Faults: a node's path to a device fails to read.";
    disk_write_error: "weight", 0..=100, Even(0, 5), "Faults: a node's path to a device fails to write, with effect, without, or with a part of it.";
    disk_hang_for_ever: "weight", 0..=100, Rarely(300, 1, 2), "Faults: a node's path to a device hangs until the end of all faults, across boots.";
    path_loss: "weight", 0..=100, Even(0, 5), "Faults: a node loses every path at once.";
    disk_lost_for_all: "weight", 0..=100, Rarely(100, 1, 3), "Faults: all nodes lose all devices, for less or for more than a freeze may last.";
    disk_late: "weight", 0..=100, Even(0, 5), "Faults: some operations land at once and answer late; others overtake them.";
    disk_stray: "weight", 0..=100, Even(0, 5), "Faults: some operations land late; others overtake them.";
    crash_at_step: "weight", 0..=100, Even(0, 10), "Faults: a machine loses power when something has just landed, come back or arrived.";
    wall_jump: "weight", 0..=100, Even(0, 5), "Faults: a wall clock is set to any time.";
    clock_rate: "weight", 0..=100, Even(0, 5), "Faults: a clock goes on at another rate within drift_ppm.";
    watchdog_driver: "driver", 0..=4, Even(0, 4), "Watchdog device: 0 as late as the process watchdog, 1 softdog, 2 i6300esb, 3 iTCO_wdt, 4 unknown.";
    lost_write: "weight", 0..=100, Rarely(250, 1, 5), "Faults: a write is acknowledged and lost: a name, a pill, a request, a journal entry.";
    lost_ballot: "weight", 0..=100, Rarely(250, 1, 5), "Faults: a ballot is acknowledged and lost before the scan that follows it.";
    stray_write: "weight", 0..=100, Rarely(250, 1, 5), "Faults: a write is acknowledged and lands elsewhere, where somebody writes again.";
    stray_read: "weight", 0..=100, Rarely(250, 1, 5), "Faults: a read shows what stands elsewhere.";
    rotten_read: "weight", 0..=100, Rarely(250, 1, 5), "Faults: bits of a read are turned on the way.";
    disk_stale: "weight", 0..=100, Rarely(250, 1, 5), "Faults: for a while a path shows all but the votes as it was when that began.";
    rot: "weight", 0..=100, Rarely(250, 1, 5), "Faults: bits turn in a unit that its owner writes again, or that others have too.";
    lockspaces: "lockspaces", 1..=8, Even(1, 2), "Lockspaces that every client joins, each with its own resources.";
    locks: "locks", 1..=16, One(&[1, 2, 4]), "Most locks that a client has at once.";
    disobey: "permille", 0..=1000, One(&[0, 500]), "Clients that do not give back what others want.";
    session_ends: "permille", 0..=1000, Rarely(300, 1, 500), "How readily a client leaves a lockspace, or exits, when it comes to its mind.";
    core: "yes or no", 0..=1, Even(0, 1), "After the faults only a core is healed at first; all others stay broken.";
    wall: "seed", 0..=1_000_000, Fixed(0), "Draws the wall clocks of the machines, on which nothing may depend.";
    clone: "weight", 0..=100, Rarely(250, 1, 5), "Faults: a copy of a node that lives and beats is switched on.";
    liar: "device", 0..=3, Rarely(400, 1, 3), "With three devices: this one lies, and every path to the two others is well; 0: none.";
    lie: "weight", 0..=100, Even(0, 10), "Faults: the device that lies loses, rots, is another one, or goes back to what it was.";
    unfair_lost_beats: "weight", 0..=100, Fixed(0), "Unfair faults: beats are acknowledged and lost.";
    unfair_lost_record: "weight", 0..=100, Fixed(0), "Unfair faults: a views record is acknowledged and lost.";
    unfair_lost_body: "weight", 0..=100, Fixed(0), "Unfair faults: a body is acknowledged and lost.";
    unfair_forgotten_ballot: "weight", 0..=100, Fixed(0), "Unfair faults: a ballot is lost after its own scan saw it.";
    unfair_stale_votes: "weight", 0..=100, Fixed(0), "Unfair faults: for a while a path shows all as it was, votes too.";
    unfair_rot_both_votes: "weight", 0..=100, Fixed(0), "Unfair faults: both vote units of a living node rot.";
    unfair_rot_dead_vote: "weight", 0..=100, Fixed(0), "Unfair faults: a vote unit rots whose owner does not live.";
    unfair_rot_only_copy: "weight", 0..=100, Fixed(0), "Unfair faults: a record or a body rots that nobody else has.";
    unfair_rot_superblocks: "weight", 0..=100, Fixed(0), "Unfair faults: three of four superblock copies rot.";
    unfair_swap: "weight", 0..=100, Fixed(0), "Unfair faults: a running node's path leads to another device for a while.";
    unfair_old_image: "weight", 0..=100, Fixed(0), "Unfair faults: all are off, and the devices go back to what they were.";
    unfair_clock_rate: "weight", 0..=100, Fixed(0), "Unfair faults: a clock goes on at a rate beyond the bound.";
    unfair_clock_jump: "weight", 0..=100, Fixed(0), "Unfair faults: a clock jumps forward.";
    unfair_guest_pause: "weight", 0..=100, Fixed(0), "Unfair faults: a guest is stopped together with its clock and its watchdog.";
    unfair_clone: "weight", 0..=100, Fixed(0), "Unfair faults: a copy of a node is switched on, whatever the node is at.";
    unfair_late_landing: "permille", 0..=1000, Fixed(0), "Unfair: writes that land later than D after their machine's reset.";
    unfair_watchdog: "permille", 0..=1000, Fixed(0), "Unfair: watchdogs that fire later than their driver's table says.";
    rest_ms: "ms", 0..=60_000, One(&[200, 1000, 3000]), "Rest of all clients between two spells of work.";
    ranges: "weight", 0..=100, Rarely(200, 1, 30), "How readily clients take, change and give back byte ranges of what they have locks on.";
    persistent: "permille", 0..=1000, Rarely(200, 50, 500), "Locks that outlive their clients; then clients adopt and purge orphans, too.";
    transactions: "permille", 0..=1000, Rarely(200, 100, 1000), "Clients that give nothing back while they wait, so that they come into deadlocks.";
    timeouts: "permille", 0..=1000, Rarely(200, 50, 500), "Requests that wait no longer than a while.";
    many: "weight", 0..=100, Rarely(200, 1, 30), "How readily clients ask for several locks at once.";
    move_turns: "requests", 0..=100, One(&[1, 2, 16]), "Requests of one node in a row, of all that are looked at, after which a resource moves to it; 0: never.";
    disk_lost_apart: "weight", 0..=100, Rarely(150, 1, 4), "Faults: all nodes lose all devices within a lease, and get them back one after the other.";
    freeze_s: "s", 0..=3600, One(&[60, 60, 10, 0]), "F: how long all may live on without the disk; 0: not at all.";
}

impl Options {
    /// What a seed draws.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self::from_values(|info| match info.draw {
            Fixed(value) => value,
            Even(low, high) => random.range(low, high),
            Rarely(permille, low, high) => {
                if random.chance(permille) {
                    random.range(low, high)
                } else {
                    0
                }
            }
            One(values) => values.get(random.index(values.len())).copied().unwrap_or(info.low),
        })
    }

    /// Three nodes, one device, no faults, no clients.
    #[must_use]
    pub fn calm() -> Self {
        let mut calm = Self::from_values(|info| info.low);
        calm.nodes = 3;
        calm.stall_ms = 5000;
        calm.safety_s = 60;
        calm.disk_us = 1000;
        calm.net_us = 500;
        calm.fault_ms = 1;
        calm.freeze_s = 60;
        calm
    }

    /// Sets one option from `name=value`.
    ///
    /// # Errors
    /// No such option, no number, outside its range.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form name=value"))?;
        let info = OPTIONS.iter().find(|info| info.name == name);
        let info = info.ok_or_else(|| format!("there is no option {name:?}; --list-options prints them all"))?;
        let number: u64 = value.parse().map_err(|_| format!("{name}: {value:?} is not a whole number of {}", info.unit))?;
        if number < info.low || number > info.high {
            return Err(format!("{name} is {number}; it must be from {} to {} {}", info.low, info.high, info.unit));
        }
        self.put(name, number);
        Ok(())
    }

    /// Sets one option to a value within its range.
    pub(crate) fn put(&mut self, name: &str, number: u64) {
        if let Some(slot) = self.slot(name) {
            *slot = number;
        }
    }

    /// The options in which this set differs from another, as `name=value`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let differs = |info: &&OptionInfo| self.get(info.name) != other.get(info.name);
        OPTIONS.iter().filter(differs).map(|info| format!("{}={}", info.name, self.get(info.name).unwrap_or(0))).collect()
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for info in OPTIONS {
            writeln!(f, "  {:<18} {:>8} {:<16} {}", info.name, self.get(info.name).unwrap_or(0), info.unit, info.help)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_values_are_within_their_ranges_and_can_be_set_again() {
        for seed in 0..500 {
            let drawn = Options::drawn(seed);
            assert_eq!(drawn, Options::drawn(seed));
            let mut again = Options::calm();
            for text in drawn.difference(&Options::calm()) {
                again.set(&text).unwrap();
            }
            assert_eq!(drawn, again);
        }
    }

    #[test]
    fn wrong_options_are_refused_with_their_range() {
        let mut options = Options::calm();
        assert!(options.set("nodes").unwrap_err().contains("name=value"));
        assert!(options.set("nodez=3").unwrap_err().contains("no option"));
        assert!(options.set("nodes=x").unwrap_err().contains("whole number of nodes"));
        assert!(options.set("nodes=9").unwrap_err().contains("from 1 to 8 nodes"));
    }
}
