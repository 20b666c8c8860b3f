//! What: which of four superblock copies counts: one line per situation.
//! Owns: the table of decisions.
//! Invariants: an interrupted format is never a good device.
//! Does not: read anything.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

mod samples;

use deadbolt_disk_format::*;
use samples::*;

/// `1`, `2`: a good copy of that generation; `x`: generation 2 with other contents; `o`: another device's, generation 2;
/// `.`: never written; `!`: damaged; `F`: the mark of a format.
fn copy(symbol: char) -> Result<Superblock, RecordError> {
    let base = superblock();
    match symbol {
        '1' => Ok(base),
        '2' => Ok(Superblock { generation: 2, ..base }),
        'x' => Ok(Superblock { generation: 2, formatted_wall_ms: 5, ..base }),
        'o' => Ok(Superblock { generation: 2, device: DeviceUuid([9; 16]), ..base }),
        '.' => Err(RecordError::NotARecord { found: [0; 8], is_all_zero: true }),
        '!' => Err(RecordError::Checksum { found: 1, computed: 2 }),
        'F' => Err(RecordError::FormatUnfinished { cluster: CLUSTER }),
        other => panic!("no symbol {other}"),
    }
}

fn answer(symbols: &str) -> String {
    let copies: Vec<_> = symbols.chars().map(copy).collect();
    match choose_superblock(&copies.try_into().unwrap()) {
        SuperblockChoice::Agreed { superblock, copies, newer_alone } => {
            let marks: String = copies.iter().map(|is_equal| if *is_equal { '+' } else { '-' }).collect();
            let newer = newer_alone.map_or(String::new(), |index| format!(" newer {index}"));
            format!("agreed {} {marks}{newer}", superblock.generation)
        }
        SuperblockChoice::Alone { superblock, copy } => format!("alone {} in {copy}", superblock.generation),
        SuperblockChoice::Unfinished { .. } => "unfinished".into(),
        SuperblockChoice::Forked { one, two } => format!("forked {one} {two}"),
        SuperblockChoice::Damaged => "damaged".into(),
        SuperblockChoice::Absent => "absent".into(),
    }
}

#[test]
fn every_situation_has_its_answer() {
    let table = [
        ("1111", "agreed 1 ++++"),
        ("2222", "agreed 2 ++++"),
        // A rewrite, cut after each copy.
        ("2111", "agreed 1 -+++ newer 0"),
        ("2211", "agreed 2 ++--"),
        ("2221", "agreed 2 +++-"),
        // A rewrite, torn inside a copy.
        ("!111", "agreed 1 -+++"),
        ("2!11", "agreed 1 --++ newer 0"),
        ("22!1", "agreed 2 ++--"),
        // A wiped head, a wiped tail.
        ("..11", "agreed 1 --++"),
        ("11..", "agreed 1 ++--"),
        ("!!11", "agreed 1 --++"),
        // One copy only: for reading.
        ("1...", "alone 1 in 0"),
        (".!.2", "alone 2 in 3"),
        ("12..", "alone 2 in 1"),
        // A format, cut anywhere before its last write.
        ("F111", "unfinished"),
        ("F...", "unfinished"),
        ("F..2", "unfinished"),
        ("F.22", "unfinished"),
        ("F222", "unfinished"),
        ("2F22", "unfinished"),
        // Contradictions.
        ("22xx", "forked 0 2"),
        ("22oo", "forked 0 2"),
        ("11oo", "forked 2 0"),
        ("2x..", "forked 0 1"),
        ("2o..", "forked 0 1"),
        // A leftover of another format does not outvote two equal ones.
        ("o222", "agreed 2 -+++"),
        ("222x", "agreed 2 +++-"),
        // Nothing.
        ("....", "absent"),
        ("!...", "damaged"),
        ("!!!!", "damaged"),
    ];
    for (symbols, expected) in table {
        assert_eq!(answer(symbols), expected, "{symbols}");
    }
}

#[test]
fn copies_are_found_without_the_head_and_on_a_device_that_was_grown() {
    let superblock = superblock();
    let read = |grown: u64, lost: &[usize]| {
        read_superblocks(DEVICE_BYTES + grown, |offset| {
            let copy = superblock.layout.superblocks.iter().position(|place| *place == offset);
            Some(match copy {
                Some(copy) if !lost.contains(&copy) => superblock.encode(copy).unwrap().to_vec(),
                _ => vec![0; 4096],
            })
        })
        .map(|copy| copy.is_ok())
    };
    assert_eq!(read(0, &[]), [true; 4]);
    assert_eq!(read(0, &[0, 1]), [false, false, true, true]);
    assert_eq!(read(0, &[0, 3]), [false, true, true, false]);
    assert_eq!(read(1 << 20, &[]), [true; 4]);
    assert_eq!(read(1 << 20, &[0]), [false, true, true, true]);
    let unreadable = read_superblocks(DEVICE_BYTES, |_| None);
    assert_eq!(choose_superblock(&unreadable), SuperblockChoice::Damaged);
}
