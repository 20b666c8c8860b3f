//! What: which flags may stand on which request.
//! Owns: the sets of legal flags.
//! Invariants: as the published tables of the Linux lock manager.
//! Does not: know locks.
//! Called by: `session`.

use crate::client::Lvb;
use crate::mode::{Flags, LvbTransfer, Mode};

/// Accepted without effect.
const IGNORED: Flags = Flags::NODLCKBLK.with(Flags::TIMEOUT).with(Flags::CONVERT);
/// Legal on requests and conversions.
const COMMON: Flags = Flags::NOQUEUE
    .with(Flags::VALBLK)
    .with(Flags::NOQUEUEBAST)
    .with(Flags::HEADQUE)
    .with(Flags::NOORDER)
    .with(Flags::ALTPR)
    .with(Flags::ALTCW)
    .with(Flags::NODLCKWT)
    .with(Flags::PERSISTENT)
    .with(Flags::SYNCSTS)
    .with(IGNORED);
const FOR_LOCK: Flags = COMMON.with(Flags::EXPEDITE).with(Flags::ORPHAN);
const FOR_MANY: Flags = Flags::NOQUEUE
    .with(Flags::NOQUEUEBAST)
    .with(Flags::HEADQUE)
    .with(Flags::NOORDER)
    .with(Flags::NODLCKWT)
    .with(Flags::PERSISTENT)
    .with(IGNORED);
const FOR_CONVERT: Flags = COMMON.with(Flags::QUECVT).with(Flags::IVVALBLK).with(Flags::CONVDEADLK);
pub(super) const FOR_UNLOCK: Flags = Flags::VALBLK.with(Flags::IVVALBLK).with(Flags::FORCEUNLOCK).with(IGNORED);

fn are_common_flags_legal(flags: Flags) -> bool {
    let is_bast_alone = flags.has(Flags::NOQUEUEBAST) && !flags.has(Flags::NOQUEUE);
    !is_bast_alone && !flags.has(Flags::ALTPR.with(Flags::ALTCW))
}

/// What an answer could not tell of (alternatives, value blocks) is not legal for many at once.
pub(super) fn is_many_legal(flags: Flags) -> bool {
    flags.is_within(FOR_MANY) && are_common_flags_legal(flags)
}

pub(super) fn is_lock_legal(mode: Mode, flags: Flags) -> bool {
    let is_expedite_legal = !flags.has(Flags::EXPEDITE) || (mode == Mode::Nl && !flags.has(Flags::NOQUEUE));
    flags.is_within(FOR_LOCK) && are_common_flags_legal(flags) && is_expedite_legal
}

/// QUECVT is legal only upwards (and between PR and CW).
pub(super) fn is_convert_legal(granted: Mode, mode: Mode, flags: Flags, lvb: Option<&Lvb>) -> bool {
    let is_quecvt_legal = !flags.has(Flags::QUECVT) || (mode > granted || granted.is_middle(mode));
    let is_deadlock_legal = !(flags.has(Flags::CONVDEADLK) && flags.has(Flags::NOQUEUE));
    let is_write = flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK) && mode.lvb_transfer(Some(granted)) == LvbTransfer::Write;
    flags.is_within(FOR_CONVERT) && are_common_flags_legal(flags) && is_quecvt_legal && is_deadlock_legal && !(is_write && lvb.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::MODES;

    #[test]
    fn quecvt_is_legal_where_the_published_table_says() {
        // Rows: granted NL, CR, CW, PR, PW, EX; columns: wanted.
        let rows = [".QQQQQ", "..QQQQ", "...QQQ", "..Q.QQ", ".....Q", "......"];
        for (granted, line) in MODES.iter().zip(rows) {
            for (wanted, cell) in MODES.iter().zip(line.chars()) {
                assert_eq!(is_convert_legal(*granted, *wanted, Flags::QUECVT, None), cell == 'Q', "{granted} {wanted}");
            }
        }
    }

    #[test]
    fn flags_are_refused_where_they_make_no_sense() {
        assert!(is_lock_legal(Mode::Nl, Flags::EXPEDITE.with(Flags::VALBLK)));
        assert!(!is_lock_legal(Mode::Cr, Flags::EXPEDITE));
        assert!(!is_lock_legal(Mode::Nl, Flags::EXPEDITE.with(Flags::NOQUEUE)));
        assert!(!is_lock_legal(Mode::Ex, Flags::QUECVT));
        assert!(is_lock_legal(Mode::Ex, Flags::PERSISTENT.with(Flags::ORPHAN).with(Flags::SYNCSTS)));
        assert!(!is_convert_legal(Mode::Nl, Mode::Ex, Flags::ORPHAN, None));
        assert!(!is_lock_legal(Mode::Ex, Flags::NOQUEUEBAST));
        assert!(!is_lock_legal(Mode::Ex, Flags(0x8000_0000)));
        assert!(!is_convert_legal(Mode::Pr, Mode::Ex, Flags::CONVDEADLK.with(Flags::NOQUEUE), None));
        assert!(!is_convert_legal(Mode::Ex, Mode::Nl, Flags::VALBLK, None));
        assert!(is_convert_legal(Mode::Ex, Mode::Nl, Flags::VALBLK, Some(&[0; 32])));
    }
}
