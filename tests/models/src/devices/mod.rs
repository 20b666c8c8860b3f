//! What: three devices: majorities per phase, one device that fails, one that is rebuilt or replaced, as models.
//! Owns: the list of their cases with their verdicts.
//! Invariants: every rule of the design on three devices has a case that holds and mistakes that are found.
//! Does not: hold any protocol code of the daemons.
//! Called by: tests/devices.rs, `crate::all_cases`.

mod acting;
mod beats;
pub(crate) mod register;

use crate::register::{LEARNS, S1};
use crate::{Case, search};
use acting::{Acting, On, Order};
use beats::Beats;
use register::{DropAfter, Dropped, Fault, Mistake, Needed, RecordOn, Register};

/// Who acts is not given up.
const DISOWNED: &str = "nobody acts in a view that is given up";
/// Gone is said of the living.
const S5: &str = "S5: nobody acts after it was said gone";

/// The devices of view 0, as bits: a, b and c.
const OLD: u8 = 0b0111;
/// The devices that a view names when it replaces c by d.
const NEW: u8 = 0b1011;

fn bit(index: usize) -> u8 {
    1 << index
}

fn is_majority(devices: u8, of: u8) -> bool {
    (devices & of).count_ones() * 2 > of.count_ones()
}

fn holds(name: &'static str, quick: Register, full: Register) -> Case {
    Case::holds(name, move |scale| search(scale.pick(quick.clone(), full.clone()), scale))
}

fn planted(name: &'static str, property: &'static str, model: Register) -> Case {
    let model = Register { only: Some(property), ..model };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The departure breaks another property; S1 holds all the same.
fn s1_holds(name: &'static str, model: Register) -> Case {
    let model = Register { only: Some(S1), ..model };
    Case::holds(name, move |scale| search(model.clone(), scale))
}

fn beats_found(name: &'static str, wait: u8, mistake: beats::Mistake) -> Case {
    Case::found(name, S5, move |scale| search(Beats { lease: 2, wait, beats: 3, mistake }, scale))
}

fn acting_holds(name: &'static str, model: Acting) -> Case {
    Case::holds(name, move |scale| search(model.clone(), scale))
}

fn acting_found(name: &'static str, model: Acting) -> Case {
    Case::found(name, DISOWNED, move |scale| search(model.clone(), scale))
}

/// The rules, and devices that do what they should; one ballot per node and view, a device read as the own write there lands.
fn base() -> Register {
    Register::default()
}

/// Decisions by majorities of devices.
fn phases() -> Vec<Case> {
    let two = || Register { views: [2; 3], ..base() };
    vec![
        holds(
            "devices: two proposers",
            Register { rounds: 2, are_reads_apart: true, ..base() },
            Register { rounds: 3, are_reads_apart: true, ..base() },
        ),
        holds("devices: three proposers", Register { nodes: 3, ..base() }, Register { nodes: 3, are_reads_apart: true, ..base() }),
        holds("devices: two views in sequence", two(), Register { are_reads_apart: true, ..two() }),
        holds(
            "devices: one is silent",
            Register { fault: Fault::Silent, rounds: 2, are_reads_apart: true, ..base() },
            Register { fault: Fault::Silent, rounds: 2, are_reads_apart: true, ..two() },
        ),
        planted("devices: one device carries a phase", S1, Register { mistake: Mistake::OneDevice, ..base() }),
        planted("devices: written here, read there", S1, Register { mistake: Mistake::ReadsElsewhere, are_reads_apart: true, ..base() }),
        planted("devices: a late answer counts for the next phase", S1, Register { mistake: Mistake::LatePhaseCounts, ..base() }),
        planted("devices: accepted value ignored", S1, Register { mistake: Mistake::AcceptedIgnored, ..base() }),
        planted("devices: ballot when the record is on one device", LEARNS, Register { mistake: Mistake::RecordOnOneDevice, ..two() }),
        planted("devices: who must learn reads one device", LEARNS, Register { mistake: Mistake::LearnsFromOne, ..two() }),
    ]
}

/// One device that loses what it has acknowledged.
fn lost() -> Vec<Case> {
    let one_write = || Register { fault: Fault::LosesVote, rounds: 2, ..base() };
    let everything = || Register { fault: Fault::LosesAll, rounds: 2, ..base() };
    let all = [Needed::All; 3];
    let both = [Needed::OthersInBoth, Needed::Majority, Needed::Majority];
    let accept = [Needed::OthersInAccept, Needed::Majority, Needed::Majority];
    let apart = |model: Register| Register { are_reads_apart: true, ..model };
    vec![
        planted("devices: one write lost, two of three took part", S1, one_write()),
        planted("devices: everything lost, back without a new number", S1, everything()),
        holds(
            "devices: one write lost, three of three took part",
            Register { needed: all, ..one_write() },
            apart(Register { needed: all, ..one_write() }),
        ),
        s1_holds(
            "devices: one write lost, three of three took part, own units not looked at",
            Register { needed: all, rounds: 1, mistake: Mistake::OwnUnitNotLookedAt, ..apart(one_write()) },
        ),
        holds(
            "devices: everything lost, three of three took part",
            Register { needed: all, ..everything() },
            apart(Register { needed: all, ..everything() }),
        ),
        holds(
            "devices: one write lost, the two others took part in both phases",
            Register { needed: both, ..one_write() },
            apart(Register { needed: both, ..one_write() }),
        ),
        holds(
            "devices: everything lost, the two others took part in both phases",
            Register { needed: both, ..everything() },
            apart(Register { needed: both, ..everything() }),
        ),
        planted("devices: one write lost, the two others took part in the second phase", S1, Register { needed: accept, ..one_write() }),
    ]
}

/// A device that comes back empty, and one that takes another's place.
fn replaced() -> Vec<Case> {
    let rebuilt = || Register { nodes: 3, has_dead: true, fault: Fault::Rebuilt, ..base() };
    let new = || Register { is_replacing: true, views: [2, 1, 1], ..base() };
    let old = || Register { record_on: RecordOn::Old, ..new() };
    let far = |model: Register| Register { views: [2; 3], ..model };
    let dropped = |dropped: Dropped, drop_after: DropAfter| Register { dropped, drop_after, ..new() };
    let outsider = |model: Register| Register { members: 1, ..model };
    let with_dead = || Register { nodes: 3, has_dead: true, is_replacing: true, views: [0, 2, 1], ..base() };
    vec![
        holds("devices: rebuilt, counted in the same instance", rebuilt(), Register { are_reads_apart: true, ..rebuilt() }),
        planted("devices: rebuilt, a living node has not rewritten", S1, Register { mistake: Mistake::NotRewritten, ..rebuilt() }),
        planted("devices: rebuilt, units of the dead not copied", S1, Register { mistake: Mistake::NotCopied, ..rebuilt() }),
        planted("devices: rebuilt, units of the dead copied from one", S1, Register { mistake: Mistake::CopiedFromOne, ..rebuilt() }),
        holds("devices: replaced", new(), far(new())),
        holds("devices: replaced, nothing copied", Register { nodes: 2, ..with_dead() }, with_dead()),
        planted("devices: replaced, used at once", S1, Register { mistake: Mistake::UsedAtOnce, ..new() }),
        planted("devices: replaced, used in the view that names it", S1, Register { mistake: Mistake::UsedInNamingView, ..new() }),
        planted("devices: replaced, record on the devices that the view names", LEARNS, Register { record_on: RecordOn::New, ..new() }),
        s1_holds("devices: replaced, record on the devices that the view names, S1 alone", Register { record_on: RecordOn::New, ..new() }),
        holds("devices: replaced, record on the devices of the view before", old(), far(old())),
        holds(
            "devices: the old one dropped when every record names the view",
            dropped(Dropped::Blank, DropAfter::EveryRecord),
            far(dropped(Dropped::Blank, DropAfter::EveryRecord)),
        ),
        planted("devices: the old one dropped after one record", S1, dropped(Dropped::Blank, DropAfter::OneRecord)),
        planted(
            "devices: the old one answers an outsider after it was dropped",
            S1,
            outsider(dropped(Dropped::Blank, DropAfter::EveryRecord)),
        ),
        holds(
            "devices: the old one dropped after one record, and answers nobody",
            dropped(Dropped::Silent, DropAfter::OneRecord),
            outsider(far(dropped(Dropped::Silent, DropAfter::OneRecord))),
        ),
    ]
}

/// Who acts, and who gives a number up.
fn acting() -> Vec<Case> {
    let rule = || Acting { actor: Order::AfterMajority, giver: Order::AfterMajority, record: On::Old, scan: On::Old };
    let by_device = Order::DeviceByDevice;
    vec![
        acting_holds("devices: acting, each step on a majority", rule()),
        acting_holds("devices: acting, both device by device", Acting { actor: by_device, giver: by_device, ..rule() }),
        acting_found("devices: acting, the actor alone device by device", Acting { actor: by_device, ..rule() }),
        acting_found("devices: acting, the giver alone device by device", Acting { giver: by_device, ..rule() }),
        acting_holds("devices: acting in a view that replaces one", Acting { record: On::Both, scan: On::Both, ..rule() }),
        acting_found("devices: acting, record on the new devices only", Acting { record: On::New, scan: On::Both, ..rule() }),
        acting_found("devices: acting, scan of the new devices only", Acting { record: On::Both, scan: On::New, ..rule() }),
    ]
}

/// Beats and silence.
fn silence() -> Vec<Case> {
    use beats::Mistake;
    vec![
        Case::holds("devices: silence by a majority", |scale| {
            let (lease, beats) = (scale.pick(2, 3), scale.pick(2, 3));
            search(Beats { lease, wait: lease + 1, beats, mistake: Mistake::None }, scale)
        }),
        beats_found("devices: silence, W equal to L", 2, Mistake::None),
        beats_found("devices: a lease by one device", 3, Mistake::LeaseByOneDevice),
        beats_found("devices: silence on one device", 3, Mistake::SilenceOnOneDevice),
        beats_found("devices: silence, news on one device forgotten", 3, Mistake::NewsForgotten),
        beats_found("devices: silence, a device loses a beat", 3, Mistake::BeatLost),
    ]
}

/// The rules that hold and the mistakes that are found.
#[must_use]
pub fn cases() -> Vec<Case> {
    [phases(), lost(), replaced(), acting(), silence()].into_iter().flatten().collect()
}
