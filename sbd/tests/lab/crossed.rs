//! What: messages of stock and of ours to watchers of stock and of ours, on sectors of both sizes.
//! Owns: a disk for each sector size, a node for each combination, all at once.
//! Invariants: a success is said of a dead node only.
//! Does not: make a fault, but for a path that hangs.
//! Called by: the test program beside it.

use deadbolt_disk::ByteOffset;
use deadbolt_tests::hung_disk::Hold;
use deadbolt_tests::node::{Watch, message_from};

use super::*;
use crate::common::{Image, attach, folder, read, two_paths, wait_for};

fn run(sector_bytes: u32, creator: Whose) {
    let Some(library) = library() else { return };
    let image = Image::new();
    let Some(device) = attach(&image, sector_bytes) else { return };
    let here = || [Whose::Stock, Whose::Ours].into_iter().filter(|whose| whose.is_here());
    let rows: Vec<(Whose, Whose, &str, String)> = here()
        .flat_map(|watcher| here().map(move |sender| (watcher, sender)))
        .flat_map(|(watcher, sender)| ["reset", "off"].map(|word| (watcher, sender, word, format!("{sender:?}-{word}-{watcher:?}"))))
        .collect();
    let names: Vec<&str> = rows.iter().map(|(_, _, _, name)| name.as_str()).collect();
    create(&creator.program(), device.path(), "-1 2 -4 7", &names);
    std::thread::scope(|scope| {
        for (watcher, sender, word, name) in &rows {
            let (library, device) = (&library, &device);
            scope.spawn(move || {
                let program = watcher.program();
                let Some(node) = made(Watch::new(&program, name, device.path()).watchdog(library).start(folder())) else { return };
                node.await_work(device.path(), START).unwrap();
                assert_eq!(node.died(), None, "{}", node.log());
                let sent = send(*sender, device.path(), name, word);
                let died = node.died_by(Instant::now() + START);
                report(&format!("{sector_bytes}: {word} by {sender:?} to {watcher:?}"), &sent, &node);
                assert!(sent.is_success(), "{name}: {sent:?}");
                assert!(died.is_some_and(|died| died <= sent.ended), "{name}: {}", node.log());
            });
        }
    });
}

#[test]
fn sectors_of_512() {
    if has_stock() {
        run(512, Whose::Stock);
    }
}

#[test]
fn sectors_of_4096() {
    run(4096, Whose::Ours);
}

/// Our record stays in the slot of a node that goes back to stock, and shows a life that ended long ago.
#[test]
fn a_node_that_went_back_to_stock_is_not_taken_for_long_dead() {
    if !has_stock() {
        return;
    }
    let (Some(library), Some(mut disk)) = (library(), two_paths(512)) else { return };
    let (device, program, stock) = (disk.sender.path().to_path_buf(), ours(), PathBuf::from(STOCK));
    create(&program, &device, "-1 2 -4 7", &["sender", "victim"]);
    let start = |program, name, device| made(Watch::new(program, name, device).watchdog(&library).start(folder()));
    let Some(sender) = start(&program, "sender", &device) else { return };
    let Some(before) = start(&program, "victim", disk.victim.path()) else { return };
    sender.await_work(&device, START).unwrap();
    before.await_work(&device, START).unwrap();
    // An end without a last word; long enough after it that the sender's watcher has seen its silence.
    drop(before);
    std::thread::sleep(Duration::from_secs(12));
    let Some(victim) = start(&stock, "victim", disk.victim.path()) else { return };
    let mailbox = || read(device.to_str().unwrap(), ByteOffset(2048), 512);
    wait_for("the start of stock", START, || victim.watchdog().until.is_some() && mailbox() == [0; 512]);
    disk.hung.hold(Hold::Reads).unwrap();
    let sent = message_from(sender.folder(), &program, &device, "victim", "reset").unwrap();
    let died = victim.died_by(Instant::now() + START).unwrap();
    report("back to stock", &sent, &victim);
    assert!(sent.is_success() && sent.outlived(died) == Some(Duration::ZERO), "{sent:?}");
}
