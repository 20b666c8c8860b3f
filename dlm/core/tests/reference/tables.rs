//! The published tables, as text: what may stand together, which way a value block goes, where QUECVT is allowed.

use deadbolt_dlm_core::Mode;

/// Facts 1.1. Rows and columns NL CR CW PR PW EX.
const COMPATIBLE: [&str; 6] = ["111111", "111110", "111000", "110100", "110000", "100000"];

/// Facts 1.6. Rows: a new lock, then a lock granted in NL to EX; columns: the mode asked for.
const VALUE_BLOCK: [&str; 7] = ["RRRRRR", "RRRRRR", "-RRRRR", "--RRRR", "---RRR", "WWWWWR", "WWWWWW"];

/// Facts 1.3, last lines. Rows: the mode granted; columns: the mode asked for.
const QUECVT: [&str; 6] = ["011111", "001111", "000111", "001011", "000001", "000000"];

fn cell(table: &[&str], row: usize, column: Mode) -> u8 {
    table[row].as_bytes()[usize::from(column.number())]
}

pub(crate) fn is_compatible(one: Mode, other: Mode) -> bool {
    cell(&COMPATIBLE, usize::from(one.number()), other) == b'1'
}

pub(crate) fn is_quecvt_legal(granted: Mode, wanted: Mode) -> bool {
    cell(&QUECVT, usize::from(granted.number()), wanted) == b'1'
}

/// Is the value block read when a lock that was granted in `before` gets `mode`?
pub(crate) fn is_read(before: Option<Mode>, mode: Mode) -> bool {
    cell(&VALUE_BLOCK, row(before), mode) == b'R'
}

/// Is it written?
pub(crate) fn is_write(before: Option<Mode>, mode: Mode) -> bool {
    cell(&VALUE_BLOCK, row(before), mode) == b'W'
}

fn row(before: Option<Mode>) -> usize {
    before.map_or(0, |mode| usize::from(mode.number()) + 1)
}
