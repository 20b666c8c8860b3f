//! What: whole lives of sbd in this process: real engines on a device of memory, an imagined watchdog and reset, the real page.
//! Owns: the devices, the watchdog that fires in earnest (by its own clock), the daemon's side of the page.
//! Invariants: nothing outside this process is touched.
//! Does not: use a real watchdog or reset anything.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use deadbolt_disk::{BackendChoice, ByteOffset, Fault, FaultKind, MemoryDevice, Touches, now_ns};
use deadbolt_disk_format::sbd::{Command, Mailbox, SbdNode, Tail, mailbox_offset, node_offset};
use deadbolt_disk_format::{
    Beat, BootId, ClusterUuid, DaemonPart, Incarnation, Layout, NodeState, Place, SlotIndex, Timings, WatchdogKind,
};
use deadbolt_sbd::feeder::FeederConfig;
use deadbolt_sbd::life::{LifeDevice, LifeEnd, LifeSetup, live};
use deadbolt_sbd::log::Log;
use deadbolt_sbd::page::{DaemonSide, Page, SbdState, SupervisorSide};
use deadbolt_sbd::pill::{Pill, PillKey, encode_pill};
use deadbolt_sbd::placement::Placement;
use deadbolt_sbd::protect::Protection;
use deadbolt_sbd::reset::ResetAction;
use deadbolt_sbd::watchdog::{Watchdog, WatchdogError};
use deadbolt_sbd_core::{LegacyPills, LifelineConfig, Regime, ResetCommand, ResetReason};

const CLUSTER: ClusterUuid = ClusterUuid([3; 16]);
const BOOT: BootId = BootId([1; 16]);
const SLOT: SlotIndex = SlotIndex(1);
const DEVICE_BYTES: usize = 16 << 20;

fn timings() -> Timings {
    Timings {
        stall_ms: 500,
        poll_ms: 50,
        feed_ms: 20,
        watchdog_ms: 200,
        lateness_ms: 100,
        cycle_ms: 50,
        reset_ms: 302,
        lease_ms: 1500,
        expiry_ms: 1600,
        drift_ppm: 10_000,
        ..Timings::default()
    }
}

/// Fires by its own clock: `fired_ns` is set once a feed came too late or none came.
#[derive(Clone, Default)]
struct Imagined {
    fed_ns: Arc<AtomicU64>,
    is_armed: Arc<AtomicBool>,
    is_shortened: Arc<AtomicBool>,
}

impl Watchdog for Imagined {
    fn arm(&mut self, wanted_ms: u32, now_ns: u64) -> Result<u32, WatchdogError> {
        self.is_armed.store(true, Ordering::SeqCst);
        self.feed(now_ns);
        Ok(wanted_ms)
    }
    fn feed(&mut self, _now_ns: u64) {
        self.fed_ns.store(now_ns(), Ordering::SeqCst);
    }
    fn shorten(&mut self, now_ns: u64, _is_crash: bool) -> Option<u32> {
        self.is_shortened.store(true, Ordering::SeqCst);
        self.feed(now_ns);
        Some(100)
    }
    fn disarm(&mut self) -> Result<(), WatchdogError> {
        self.is_armed.store(false, Ordering::SeqCst);
        Ok(())
    }
}

struct ImaginedReset(Arc<Mutex<Option<(u64, ResetCommand)>>>);
impl ResetAction for ImaginedReset {
    fn reset(&mut self, command: ResetCommand) -> io::Result<()> {
        *self.0.lock().unwrap() = Some((now_ns(), command));
        Ok(())
    }
}

struct Node {
    devices: Vec<Arc<MemoryDevice>>,
    layout: Layout,
    daemon: DaemonSide,
    supervisor: SupervisorSide,
    watchdog: Imagined,
    reset: Arc<Mutex<Option<(u64, ResetCommand)>>>,
    life: JoinHandle<LifeEnd>,
    stop: OwnedFd,
    turning: Arc<AtomicBool>,
    said: Receiver<String>,
}

impl Node {
    fn start(count: usize, sector_bytes: u32, backend: BackendChoice) -> Self {
        let layout = Layout::new(DEVICE_BYTES as u64, sector_bytes, 8).unwrap();
        let devices: Vec<Arc<MemoryDevice>> = (0..count).map(|_| Arc::new(MemoryDevice::new(DEVICE_BYTES, sector_bytes))).collect();
        let (page, _descriptors) = Page::create().unwrap();
        let (daemon, supervisor) = (page.daemon(), page.supervisor());
        let (watchdog, reset) = (Imagined::default(), Arc::default());
        let (lines, said) = sync_channel(256);
        let (stop_read, stop) = nix::unistd::pipe().unwrap();
        let config = LifelineConfig {
            slot: SLOT,
            boot: BOOT,
            writer: Incarnation([5; 16]),
            devices: count,
            timings: timings(),
            watchdog: WatchdogKind::Device,
            legacy: LegacyPills::Accept,
            regime: Regime::Node { absence_ms: 60_000 },
        };
        let feeder = FeederConfig {
            watchdog_ms: 200,
            lateness_ms: 100,
            drift_ppm: 10_000,
            reset_ms_max: 302,
            feed_ms: 20,
            protection: Protection::None,
        };
        let one = |(index, device): (usize, &Arc<MemoryDevice>)| LifeDevice {
            device: Arc::<MemoryDevice>::clone(device),
            placement: Placement::ours(CLUSTER, layout, SLOT),
            name: format!("memory {index}"),
        };
        let setup = LifeSetup {
            node: "node1".into(),
            devices: devices.iter().enumerate().map(one).collect(),
            backend,
            config,
            key: Some(PillKey::new(&[9; 32])),
            watchdog: Box::new(watchdog.clone()),
            feeder,
            reset: Box::new(ImaginedReset(Arc::clone(&reset))),
            page: page.clone(),
            log: Log::to_channel(lines),
            stop: stop_read,
            watch: None,
        };
        supervisor.daemon_starts();
        let turning = Arc::new(AtomicBool::new(true));
        let (turner, is_turning) = (page.daemon(), Arc::downgrade(&turning));
        std::thread::spawn(move || {
            while let Some(is_turning) = is_turning.upgrade() {
                if is_turning.load(Ordering::SeqCst) {
                    turner.advance_turn();
                }
                drop(is_turning);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let life = std::thread::spawn(move || live(setup).unwrap());
        let node = Self { devices, layout, daemon, supervisor, watchdog, reset, life, stop, turning, said };
        node.wait("alive", |node| node.daemon.sbd_state() == SbdState::Alive);
        node
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let end_ns = now_ns() + 10_000_000_000;
        while !is_so(self) {
            assert!(now_ns() < end_ns, "{what} did not come about");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn beat(&self, device: usize) -> Beat {
        let offset = self.layout.beat(SLOT);
        let start = usize::try_from(offset.0).unwrap();
        Beat::decode(&self.devices[device].contents()[start..start + 4096], &Place { cluster: CLUSTER, offset, slot: SLOT }).unwrap()
    }

    fn write_mailbox(&self, device: usize, sector: &[u8]) {
        self.devices[device].overwrite(ByteOffset(mailbox_offset(SLOT, self.layout.sector_bytes)), sector);
    }

    fn end(self) -> LifeEnd {
        self.life.join().unwrap()
    }
}

fn part(number: u64, state: NodeState) -> DaemonPart {
    DaemonPart { number, incarnation: Incarnation([6; 16]), state, ..DaemonPart::default() }
}

#[test]
fn a_life_from_first_beat_to_clean_stop() {
    for (count, sector_bytes, backend) in [(1, 512, BackendChoice::Threads), (3, 4096, BackendChoice::Auto)] {
        let mut node = Node::start(count, sector_bytes, backend);
        node.daemon.publish(&part(1, NodeState::Member));
        node.daemon.wake();
        node.wait("publication", |node| node.daemon.published_number() == 1);
        let lease_end_ns = node.daemon.lease_end_ns();
        assert!(lease_end_ns > now_ns() && lease_end_ns <= now_ns() + 1_500_000_000);
        assert_eq!((node.daemon.boot(), node.daemon.reset_ms()), (BOOT, 302));
        node.wait("a later lease", |node| node.daemon.lease_end_ns() > lease_end_ns);
        let fed_ns = node.watchdog.fed_ns.load(Ordering::SeqCst);
        node.wait("a later feed", |node| node.watchdog.fed_ns.load(Ordering::SeqCst) > fed_ns);
        node.wait("the part on every device", |node| (0..count).all(|device| node.beat(device).daemon == part(1, NodeState::Member)));
        // Somebody asks for a stop: refused for a member, done once *left* is on the disk.
        nix::unistd::write(&node.stop, b"x").unwrap();
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(node.daemon.sbd_state(), SbdState::Alive);
        node.daemon.publish(&part(2, NodeState::Left));
        node.daemon.wake();
        node.wait("stop", |node| node.daemon.sbd_state() == SbdState::Stopped);
        let stopped = (0..count).filter(|device| node.beat(*device).is_stopped).count();
        assert!(stopped > count / 2 && !node.watchdog.is_armed.load(Ordering::SeqCst));
        assert_eq!((node.daemon.lease_end_ns(), node.end()), (0, LifeEnd::Stopped { is_recorded: true }));
    }
}

#[test]
fn pills_end_the_life_with_an_acknowledgement() {
    let key = PillKey::new(&[9; 32]);
    let pill = Pill { command: Command::Reset, sender: "b", victim: BOOT, serial: 1 };
    let legacy = Mailbox { command: Command::Reset, sender: "stock".into(), tail: Tail::Absent };
    for sector in [encode_pill(&pill, &key, 512), legacy.encode(512)] {
        let node = Node::start(3, 512, BackendChoice::Threads);
        for device in [1, 2] {
            node.write_mailbox(device, &sector);
        }
        let written_ns = now_ns();
        node.wait("reset", |node| node.reset.lock().unwrap().is_some());
        let (reset_ns, command) = node.reset.lock().unwrap().unwrap();
        assert_eq!(command, ResetCommand::Reset);
        assert!(reset_ns - written_ns < 400_000_000, "{} ms", (reset_ns - written_ns) / 1_000_000);
        assert_eq!(node.daemon.lease_end_ns(), 0);
        assert_eq!(node.supervisor.sbd_state(), SbdState::Condemned);
        assert!(node.watchdog.is_shortened.load(Ordering::SeqCst));
        assert_eq!(node.supervisor.acknowledged_reset_ms(), Some(201));
        let answers =
            (0..3).filter(|device| node.beat(*device).acknowledged.is_some_and(|answer| answer.reset_ms == 201 && answer.command == 2));
        assert!(answers.count() >= 2);
        let fed_ns = node.watchdog.fed_ns.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(node.watchdog.fed_ns.load(Ordering::SeqCst), fed_ns, "never fed again");
        assert!(matches!(node.end(), LifeEnd::Reset(ResetReason::Pill { .. })));
    }
}

#[test]
fn forged_and_foreign_pills_are_not_obeyed() {
    let node = Node::start(1, 512, BackendChoice::Threads);
    let pill = Pill { command: Command::Reset, sender: "b", victim: BOOT, serial: 1 };
    let other = Pill { victim: BootId([2; 16]), ..pill };
    let start = usize::try_from(mailbox_offset(SLOT, 512)).unwrap();
    node.write_mailbox(0, &encode_pill(&pill, &PillKey::new(&[8; 32]), 512));
    node.wait("erasing", |node| node.devices[0].contents()[start] == 0);
    let foreign = encode_pill(&other, &PillKey::new(&[9; 32]), 512);
    node.write_mailbox(0, &foreign);
    let seen_from = node.daemon.beat() + 1;
    node.wait("five more cycles", |node| node.daemon.beat() >= seen_from + 5);
    assert_eq!(node.devices[0].contents()[start..start + 512], foreign, "a pill for another boot is left where it is");
    assert_eq!((node.daemon.sbd_state(), *node.reset.lock().unwrap()), (SbdState::Alive, None));
}

#[test]
fn a_hung_disk_ends_the_feeding_two_resets_before_the_lease() {
    let node = Node::start(1, 512, BackendChoice::Threads);
    node.devices[0].inject(Fault::new(Touches::All, FaultKind::Hang));
    let mut lease_end_ns = 0;
    node.wait("reset", |node| {
        lease_end_ns = lease_end_ns.max(node.daemon.lease_end_ns());
        node.reset.lock().unwrap().is_some()
    });
    let fed_ns = node.watchdog.fed_ns.load(Ordering::SeqCst);
    assert!(fed_ns + 2 * 302_000_000 < lease_end_ns + 20_000_000, "last feed {} ms before the end", (lease_end_ns - fed_ns) / 1_000_000);
    let (reset_ns, _) = node.reset.lock().unwrap().unwrap();
    assert!(reset_ns >= lease_end_ns && node.daemon.lease_end_ns() == 0);
    let said: Vec<String> = node.said.try_iter().collect();
    // The last of each: a busy machine may stall before the device does.
    let place = |what: &str| said.iter().rposition(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {said:#?}"));
    let stalled = place("no cycle was completed for");
    assert!(said[stalled].contains("memory 0: the ") && said[stalled].contains("has not come back for"), "{}", said[stalled]);
    let unfed = place("the watchdog is not fed any more: the lease ends in");
    assert!(stalled < unfed && unfed < place("reset of this node: no cycle was completed in time"));
    node.devices[0].release_hung();
    assert!(matches!(node.end(), LifeEnd::Reset(ResetReason::LeaseEnded { .. })));
}

#[test]
fn a_stall_that_passes_is_told_and_so_is_its_end() {
    let node = Node::start(1, 512, BackendChoice::Auto);
    node.devices[0].inject(Fault::new(Touches::All, FaultKind::Hang));
    let mut said: Vec<String> = Vec::new();
    node.wait("the line", |node| {
        said.extend(node.said.try_iter());
        said.iter().any(|line| line.contains("no cycle was completed for"))
    });
    node.devices[0].clear_faults();
    node.devices[0].release_hung();
    node.wait("the end", |node| {
        said.extend(node.said.try_iter());
        said.iter().any(|line| line.contains("ms after the one before"))
    });
    let lease_end_ns = node.daemon.lease_end_ns();
    node.wait("a later lease", |node| node.daemon.lease_end_ns() > lease_end_ns);
    assert_eq!((node.daemon.sbd_state(), *node.reset.lock().unwrap()), (SbdState::Alive, None));
}

#[test]
fn a_hung_daemon_ends_the_life() {
    let node = Node::start(1, 512, BackendChoice::Threads);
    node.daemon.set_holds(true);
    node.turning.store(false, Ordering::SeqCst);
    let stopped_ns = now_ns();
    node.wait("reset", |node| node.reset.lock().unwrap().is_some());
    assert!(now_ns() - stopped_ns >= 350_000_000);
    assert!(matches!(node.end(), LifeEnd::Reset(ResetReason::DaemonHung)));
}

#[test]
fn a_dead_daemon_that_held_nothing_is_recorded() {
    let mut node = Node::start(1, 512, BackendChoice::Threads);
    node.daemon.publish(&part(1, NodeState::Member));
    node.wait("publication", |node| node.daemon.published_number() == 1);
    node.turning.store(false, Ordering::SeqCst);
    node.supervisor.daemon_ended(1);
    node.wait("record", |node| node.supervisor.idle_generation() == 1);
    assert!(node.beat(0).is_idle && node.beat(0).daemon.incarnation == Incarnation([6; 16]));
}

#[test]
fn a_wiped_area_is_mended_without_touching_the_mailbox() {
    let node = Node::start(3, 4096, BackendChoice::Auto);
    let (name_at, mailbox_at) = (node_offset(SLOT, 4096), mailbox_offset(SLOT, 4096));
    let sector = |node: &Node, device: usize, at: u64| {
        let at = usize::try_from(at).unwrap();
        node.devices[device].contents()[at..at + 4096].to_vec()
    };
    let named = SbdNode { is_in_use: true, name: "node1".into() }.encode(4096);
    // The devices began without any name.
    node.wait("names", |node| (0..3).all(|device| sector(node, device, name_at) == named));
    // A command that is left alone shows that nobody writes beside the name.
    let ignored = Mailbox { command: Command::Unknown(200), sender: "b".into(), tail: Tail::Absent }.encode(4096);
    for device in 0..3 {
        node.write_mailbox(device, &ignored);
        node.devices[device].overwrite(ByteOffset(name_at), &[0; 4096]);
    }
    node.wait("names again", |node| (0..3).all(|device| sector(node, device, name_at) == named));
    let other = SbdNode { is_in_use: true, name: "thief".into() }.encode(4096);
    node.devices[0].overwrite(ByteOffset(name_at), &other);
    let seen_from = node.daemon.beat() + 1;
    node.wait("ten more cycles", |node| node.daemon.beat() >= seen_from + 10);
    assert!(sector(&node, 0, name_at) == other, "a slot that was given away is not taken back");
    assert!((0..3).all(|device| sector(&node, device, mailbox_at) == ignored));
    assert_eq!((node.daemon.sbd_state(), *node.reset.lock().unwrap()), (SbdState::Alive, None));
}

#[test]
fn a_bad_sector_beside_the_mailbox_costs_one_cycle_and_hides_no_pill() {
    let node = Node::start(1, 512, BackendChoice::Threads);
    let name_at = ByteOffset(node_offset(SLOT, 512));
    node.devices[0].inject(Fault::new(Touches::Reads, FaultKind::Error(5)).within(name_at, 512));
    let seen_from = node.daemon.beat() + 1;
    // As long as a lease lasts, and more.
    node.wait("forty more cycles", |node| node.daemon.beat() >= seen_from + 40);
    assert_eq!((node.daemon.sbd_state(), *node.reset.lock().unwrap()), (SbdState::Alive, None));
    node.write_mailbox(0, &Mailbox { command: Command::Reset, sender: "stock".into(), tail: Tail::Absent }.encode(512));
    node.wait("reset", |node| node.reset.lock().unwrap().is_some());
    assert!(matches!(node.end(), LifeEnd::Reset(ResetReason::Pill { .. })));
}
