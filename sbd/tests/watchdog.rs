//! What: `sbd run` with a watchdog device, imitated by a preloaded library over a plain file.
//! Owns: the library, built from `tests/src/preload.rs.in`; the file in which every feed is a byte.
//! Invariants: the program under test is the one that is shipped.
//! Does not: need a driver or root.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Held, Image, beat, ours, wait_for, write};
use deadbolt_disk::ByteOffset;
use deadbolt_disk_format::sbd::{Command as PillCommand, Mailbox, Tail, mailbox_offset};
use deadbolt_disk_format::{Layout, SlotIndex};

const SLOT: SlotIndex = SlotIndex(2);
const LIMIT: Duration = Duration::from_secs(10);

struct Node {
    sbd: Held,
    image: Image,
    layout: Layout,
    folder: tempfile::TempDir,
}

impl Node {
    /// None where the library cannot be built.
    fn start(least_s: u32) -> Option<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let library = common::made(deadbolt_tests::watchdog::library(common::folder()))?;
        let image = Image::new();
        let layout = common::format(image.path(), 512);
        std::fs::write(folder.path().join("watchdog"), b"").unwrap();
        let mut command = Command::new(ours());
        command.args(["run", "--device", image.path(), "--slot", "2", "--name", "node2", "--reset", "tree", "--allow-unprotected"]);
        command.args(["--boot", &"11".repeat(16), "--shared-device", "--watchdog"]).arg(folder.path().join("watchdog"));
        command.env("LD_PRELOAD", &library).env("WATCHDOG_LEAST", least_s.to_string());
        command.env("WATCHDOG_NOTES", folder.path().join("notes")).stderr(Stdio::inherit());
        let sbd = Held(command.spawn().unwrap());
        Some(Self { sbd, image, layout, folder })
    }

    fn fed(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("watchdog")).unwrap()
    }

    fn notes(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("notes")).unwrap_or_default()
    }
}

#[test]
fn it_is_read_back_fed_and_closed_on_a_clean_stop() {
    let Some(mut node) = Node::start(1) else { return };
    wait_for("feeds", LIMIT, || node.fed().len() > 5);
    assert_eq!(node.notes(), "set 1\nget\n");
    assert_eq!(beat(node.image.path(), &node.layout, SLOT).unwrap().reset_ms, 1210);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.sbd.0.id().try_into().unwrap()), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(node.sbd.wait(LIMIT).unwrap().success(), "nobody ever held anything");
    let fed = node.fed();
    let (last, feeds) = fed.split_last().unwrap();
    assert!(*last == b'V' && feeds.iter().all(|byte| *byte == 0));
    assert!(beat(node.image.path(), &node.layout, SLOT).unwrap().is_stopped);
}

#[test]
fn one_that_grants_more_than_the_lease_has_room_for_is_refused_and_closed() {
    let Some(mut node) = Node::start(2) else { return };
    assert_eq!(node.sbd.wait(LIMIT).unwrap().code(), Some(2));
    assert_eq!((node.notes(), node.fed()), ("set 1\nget\noptions\n".to_owned(), b"V".to_vec()));
}

#[test]
fn after_a_pill_it_is_set_to_the_shortest_time_and_never_fed_or_closed() {
    let Some(node) = Node::start(1) else { return };
    wait_for("feeds", LIMIT, || node.fed().len() > 5);
    let pill = Mailbox { command: PillCommand::Reset, sender: "stock".into(), tail: Tail::Absent };
    write(node.image.path(), ByteOffset(mailbox_offset(SLOT, 512)), &pill.encode(512));
    wait_for("the answer", LIMIT, || beat(node.image.path(), &node.layout, SLOT).is_some_and(|beat| beat.acknowledged.is_some()));
    let fed = node.fed();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.fed(), fed);
    assert!(!fed.contains(&b'V'));
    assert_eq!(node.notes(), "set 1\nget\nset 1\nget\n");
    assert_eq!(beat(node.image.path(), &node.layout, SLOT).unwrap().acknowledged.unwrap().reset_ms, 1210);
}

#[test]
fn a_killed_sbd_leaves_it_running() {
    let Some(mut node) = Node::start(1) else { return };
    wait_for("feeds", LIMIT, || node.fed().len() > 5);
    node.sbd.0.kill().unwrap();
    let _ = node.sbd.wait(LIMIT);
    assert!(!node.fed().contains(&b'V'));
}
