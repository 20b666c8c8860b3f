//! What: a session with stock sbd, kept word by word and byte by byte, and the same session with ours.
//! Owns: the command lines of every command and option; where they lead is in `tests/golden/stock-1.5.2`.
//! Invariants: exit codes, standard output, the lines on standard error that other tools look for, and the area's bytes are equal.
//! Does not: compare usage texts, or words that only people read. What differs on purpose stands in docs/compat.md.
//! Called by: `cargo test`; as root with Debian's package sbd the kept sessions are compared with the stock program, too
//! (`DEADBOLT_GOLDEN=write` writes them anew).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Image, STOCK, attach, has_stock, ours, read};
use deadbolt_disk::ByteOffset;

/// A name of 70 bytes: 63 are kept.
const LONG: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";

/// One line a command: variables, then options and words in any order. `DISK` is the device, `LONG` the long name.
const LINES: &str = "
    dump|list|create|-h|allocate a|message a exit|message a test|bogus|
    -d DISK|-d DISK dump|-d DISK list|-d DISK allocate a|-d DISK message a exit|-d DISK bogus|-d DISK LIST|-d DISK -x list|-d DISK -d|-d|
    -d DISK -h|-d DISK list -h
    -d DISK -1 7 -2 0 -4 14 create|-d DISK dump|-d DISK -v dump|-d DISK -vv dump|-d DISK list
    -d DISK -1 258 -2 0 -3 2 -4 516 create|-d DISK dump
    -4 4 -d DISK -1 1 create -2 0|-d DISK dump more words
    -d DISK allocate|-d DISK allocate NodeA|-d DISK allocate nodea|-d DISK allocate b c|-d DISK allocate LONG|-d DISK allocate LONG-other
    -d DISK list|-d DISK list foo bar
    -d DISK message|-d DISK message nodea|-d DISK message nodea bogus|-d DISK message nodea TEST|-d DISK message nodeb exit
    -d DISK -n me message nodea test|-d DISK list|-d DISK -I 1 -n me message nodea reset|-d DISK list|-d DISK -I 1 -n me message nodea off|-d DISK list
    -d DISK -I 1 -n me message nodea crashdump|-d DISK list|-d DISK -n me message nodea exit|-d DISK list|-d DISK -n me message nodea clear
    -d DISK list
    -d DISK -n nodea message LOCAL exit|-d DISK -n nobody message LOCAL exit|-d DISK -n me message LONG exit|-d DISK list
    -n me message b exit -d DISK|-nyou -dDISK message b exit|-d DISK -n me message b exit more|-d DISK list
    -d DISK -R -n o1 message b exit|-d DISK -W -n o2 message b exit|-d DISK -WW -n o3 message b exit
    -d DISK -P -c -z -Z -D -T -n o4 message b exit|-d DISK -S 0 -n o5 message b exit|-d DISK -S 1 -n o6 message b exit
    -d DISK -s 5 -t 6 -F 7 -C 8 -5 9 -I 10 -n o7 message b exit|-d DISK -p /nonexistent/p -w /dev/null -n o8 message b exit
    -d DISK -r flush,reboot -n o9 message b exit|-d DISK list
    -d DISK -S x list|-d DISK -s x list|-d DISK -t x list|-d DISK -F x list|-d DISK -C x list|-d DISK -C -1 list|-d DISK -5 x list
    -d DISK -I x list|-d DISK -1 x list|-d DISK -2 x list|-d DISK -3 x list|-d DISK -4 x list|-d DISK -1 -5 list|-d DISK -1 1x list
    -d DISK -r noflush,off list|-d DISK -r crashdump list|-d DISK -w relative list
    -d /nonexistent list|-d /nonexistent dump|-d /nonexistent create|-d /nonexistent allocate a|-d /nonexistent message a exit
    -d /dev/null list|-d /dev/null dump|-d /dev/null create|-d /dev/null message a exit
    -d DISK -d /nonexistent list|-d /nonexistent -d DISK list|-d DISK -d /nonexistent dump|-d DISK -d /nonexistent allocate q
    -d /nonexistent -d DISK allocate r|-d DISK list|-n me -d DISK -d /nonexistent message b exit
    -d relative list|-d /a -d /b -d /c -d /d list
    SBD_DEVICE=DISK list|SBD_DEVICE=DISK; list|SBD_DEVICE=;DISK list|SBD_DEVICE=DISK;/nonexistent list|SBD_DEVICE=relative list
    SBD_DEVICE=/a;/b;/c;/d list|SBD_DEVICE=/nonexistent -d DISK list|SBD_STARTMODE=bogus -d DISK list|SBD_PACEMAKER=bogus -d DISK list
    SBD_DELAY_START=bogus -d DISK list|SBD_SYNC_RESOURCE_STARTUP=bogus -d DISK list|SBD_OPTS=-x -d DISK list
    -d DISK -d DISK list|-d DISK -d DISK -n me message b exit|-d DISK -d DISK -d /nonexistent message b exit|-d DISK list
    -d /a -d /a -d /b -d /c -d /a list
    -d DISK -n LONG message b exit|-d DISK -n LONG list|-n LONG list|-d DISK -r bogus list|-d DISK -r flush,reboot,off list
    SBD_TIMEOUT_ACTION=bogus -d DISK list|SBD_TIMEOUT_ACTION=bogus -d DISK -r off list
    SBD_DEVICE=DISK -2 0 -1 010 create|-d DISK dump|-d DISK list
    SBD_WATCHDOG_TIMEOUT=9 -d DISK -2 0 -4 20 create|-d DISK dump|SBD_WATCHDOG_TIMEOUT=2min -d DISK -1 7 -2 0 -4 20 create|-d DISK dump
";

/// Plays the session on `path` and writes down what came of it.
fn play(program: &Path, path: &str, sector_bytes: u32) -> String {
    let area_bytes = 511 * usize::try_from(sector_bytes).unwrap();
    // What `create` leaves of this it did not wipe.
    common::write(path, ByteOffset(0), &vec![0xff; area_bytes + 4096]);
    let mut text = String::new();
    let mut before = read(path, ByteOffset(0), area_bytes);
    for line in LINES.split(['|', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
        let filled = line.replace("LONG", LONG);
        let mut words = filled.split_whitespace().map(|word| word.replace("DISK", path)).peekable();
        let mut command = Command::new(program);
        for name in std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"SBD_")) {
            command.env_remove(name);
        }
        while let Some(variable) = words.next_if(|word| word.starts_with("SBD_")) {
            let (name, value) = variable.split_once('=').unwrap();
            command.env(name, value);
        }
        let output = command.args(words).stdin(Stdio::null()).output().unwrap();
        writeln!(text, "$ {line}").unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        for said in out.lines() {
            writeln!(text, "> {}", masked(said, path)).unwrap();
        }
        for said in error.lines().filter(|said| said.starts_with("==")) {
            writeln!(text, "! {}", masked(said, path)).unwrap();
        }
        let mut after = read(path, ByteOffset(0), area_bytes);
        if after.starts_with(b"SBD_SBD_") {
            assert_ne!(after[33..49], [0; 16], "a uuid");
            after[33..49].fill(0);
        }
        if after != before {
            write_rows(&mut text, &after);
        }
        before = after;
        writeln!(text, "= {}", output.status.code().unwrap()).unwrap();
    }
    assert_eq!(read(path, ByteOffset(u64::try_from(area_bytes).unwrap()), 4096), [0xff; 4096], "behind the area");
    text
}

/// A line without what is different every time.
fn masked(line: &str, path: &str) -> String {
    let line = line.replace(path, "DISK");
    let is_uuid = |text: &str| text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let start = (0..line.len()).find(|start| line.get(*start..start + 36).is_some_and(is_uuid));
    start.map_or(line.clone(), |start| format!("{}UUID{}", &line[..start], &line[start + 36..]))
}

/// The rows of 16 bytes that are not all zero.
fn write_rows(text: &mut String, bytes: &[u8]) {
    for (row, chunk) in bytes.chunks(16).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        write!(text, "@ {:08x}:", row * 16).unwrap();
        for byte in chunk {
            write!(text, " {byte:02x}").unwrap();
        }
        text.push('\n');
    }
}

fn kept(sector_bytes: u32) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/stock-1.5.2/sectors-of-{sector_bytes}.txt"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (path, text)
}

/// The first command after which two sessions differ, with all of it.
fn assert_same(kept: &str, played: &str, whose: &str) {
    for (kept, played) in kept.split("$ ").zip(played.split("$ ")) {
        assert!(kept == played, "stock, as kept:\n$ {kept}\n{whose}:\n$ {played}");
    }
    assert!(kept == played, "{whose}: the sessions have not the same length");
}

#[test]
fn ours_plays_the_session() {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let image = Image::new();
            assert_same(&kept(512).1, &play(&ours(), image.path(), 512), "ours, on a file");
        });
        scope.spawn(|| {
            let image = Image::new();
            let Some(device) = attach(&image, 4096) else { return };
            assert_same(&kept(4096).1, &play(&ours(), device.path().to_str().unwrap(), 4096), "ours, on sectors of 4096");
        });
    });
}

#[test]
fn the_kept_sessions_are_stocks() {
    if !has_stock() {
        return;
    }
    std::thread::scope(|scope| {
        for sector_bytes in [512, 4096] {
            scope.spawn(move || {
                let image = Image::new();
                let Some(device) = attach(&image, sector_bytes) else { return };
                let played = play(Path::new(STOCK), device.path().to_str().unwrap(), sector_bytes);
                let (path, text) = kept(sector_bytes);
                if std::env::var("DEADBOLT_GOLDEN").is_ok_and(|value| value == "write") {
                    std::fs::write(path, played).unwrap();
                } else {
                    assert_same(&text, &played, "stock, as installed");
                }
            });
        }
    });
}

/// Rows of the table in docs/compat.md: a command line, and the exit codes of stock and of ours.
fn on_purpose() -> Vec<(String, i32, i32)> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compat.md")).unwrap();
    let (_, table) = page.split_once("<!-- lines -->").unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let command = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((command.to_owned(), cells.get(2)?.parse().ok()?, cells.get(3)?.parse().ok()?))
    };
    table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).filter_map(row).collect()
}

#[test]
fn what_differs_on_purpose_is_what_the_page_says() {
    let rows = on_purpose();
    assert!(rows.len() > 3, "{rows:?}");
    for (whose, program) in [("stock", PathBuf::from(STOCK)), ("ours", ours())] {
        let is_stock = whose == "stock";
        if is_stock && !has_stock() {
            continue;
        }
        let (image, file) = (Image::new(), Image::new());
        let Some(device) = attach(&image, 512) else { return };
        let path = device.path().to_str().unwrap();
        for line in [&format!("-d {path} -1 1 -2 0 -4 3 create"), &format!("-d {path} allocate a"), &format!("-d {path} allocate b")] {
            assert!(common::sbd(&program, line).status.success());
        }
        for (line, stock, ours) in &rows {
            let output = common::sbd(&program, &line.replace("DISK", path).replace("FILE", file.path()));
            assert_eq!(output.status.code(), Some(if is_stock { *stock } else { *ours }), "{whose}: {line}: {output:?}");
        }
    }
}
