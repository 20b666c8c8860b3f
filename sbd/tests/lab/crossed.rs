//! What: messages of stock and of ours to watchers of stock and of ours, on sectors of both sizes.
//! Owns: a disk for each sector size, a node for each combination, all at once.
//! Invariants: a success is said of a dead node only.
//! Does not: make a fault.
//! Called by: the test program beside it.

use std::time::Instant;

use deadbolt_tests::node::Watch;

use super::*;
use crate::common::{Image, attach, folder};

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
