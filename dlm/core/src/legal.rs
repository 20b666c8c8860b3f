//! What: which flags may stand on which request.
//! Owns: the sets of legal flags, and the words that say what is wrong.
//! Invariants: as the published tables of the Linux lock manager.
//! Does not: know locks.
//! Called by: `service`; the client library, to say why a request was refused.

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
const FOR_UNLOCK: Flags = Flags::VALBLK.with(Flags::IVVALBLK).with(Flags::FORCEUNLOCK).with(IGNORED);

/// `Err`: why not, for people.
type Judgement = Result<(), &'static str>;

const ALONE_BAST: &str = "NOQUEUEBAST goes with NOQUEUE only";
const NO_VALUE: &str = "with VALBLK this would write a value block, and none was given; give one, or leave VALBLK out";

fn check(flags: Flags, allowed: Flags, why: &'static str) -> Judgement {
    if flags.is_within(allowed) { Ok(()) } else { Err(why) }
}

fn forbid(is_forbidden: bool, why: &'static str) -> Judgement {
    if is_forbidden { Err(why) } else { Ok(()) }
}

fn check_common(flags: Flags) -> Judgement {
    forbid(flags.has(Flags::NOQUEUEBAST) && !flags.has(Flags::NOQUEUE), ALONE_BAST)?;
    forbid(flags.has(Flags::ALTPR.with(Flags::ALTCW)), "ALTPR and ALTCW exclude each other; choose one")
}

/// May many locks at once be asked for so? What an answer could not tell of (alternatives, value blocks) is not legal for them.
///
/// # Errors
/// Why not.
pub fn check_many(flags: Flags) -> Judgement {
    check(flags, FOR_MANY, "a flag that does not go with many locks at once")?;
    check_common(flags)
}

/// May a new lock be asked for so?
///
/// # Errors
/// Why not.
pub fn check_lock(mode: Mode, flags: Flags) -> Judgement {
    check(flags, FOR_LOCK, "a flag that does not go with a new lock")?;
    check_common(flags)?;
    let is_expedite_legal = !flags.has(Flags::EXPEDITE) || (mode == Mode::Nl && !flags.has(Flags::NOQUEUE));
    forbid(!is_expedite_legal, "EXPEDITE goes with a new lock in NL, without NOQUEUE")
}

/// May a lock that has `granted` be converted so?
///
/// # Errors
/// Why not.
pub fn check_convert(granted: Mode, mode: Mode, flags: Flags, lvb: Option<&Lvb>) -> Judgement {
    check(flags, FOR_CONVERT, "a flag that does not go with a conversion")?;
    check_common(flags)?;
    let is_quecvt_legal = !flags.has(Flags::QUECVT) || (mode > granted || granted.is_middle(mode));
    forbid(!is_quecvt_legal, "QUECVT goes with a conversion upwards, or between PR and CW")?;
    forbid(flags.has(Flags::CONVDEADLK.with(Flags::NOQUEUE)), "CONVDEADLK and NOQUEUE exclude each other")?;
    let is_write = writes(flags) && mode.lvb_transfer(Some(granted)) == LvbTransfer::Write;
    forbid(is_write && lvb.is_none(), NO_VALUE)
}

/// May a lock that has `granted` be given back so?
///
/// # Errors
/// Why not.
pub fn check_unlock(granted: Option<Mode>, flags: Flags, lvb: Option<&Lvb>) -> Judgement {
    check(flags, FOR_UNLOCK, "a flag that does not go with an unlock")?;
    let is_write = writes(flags) && matches!(granted, Some(Mode::Pw | Mode::Ex));
    forbid(is_write && lvb.is_none(), NO_VALUE)
}

fn writes(flags: Flags) -> bool {
    flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK)
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
                assert_eq!(check_convert(*granted, *wanted, Flags::QUECVT, None).is_ok(), cell == 'Q', "{granted} {wanted}");
            }
        }
    }

    #[test]
    fn flags_are_refused_where_they_make_no_sense() {
        assert!(check_lock(Mode::Nl, Flags::EXPEDITE.with(Flags::VALBLK)).is_ok());
        assert!(check_lock(Mode::Cr, Flags::EXPEDITE).is_err());
        assert!(check_lock(Mode::Nl, Flags::EXPEDITE.with(Flags::NOQUEUE)).is_err());
        assert!(check_lock(Mode::Ex, Flags::QUECVT).is_err());
        assert!(check_lock(Mode::Ex, Flags::PERSISTENT.with(Flags::ORPHAN).with(Flags::SYNCSTS)).is_ok());
        assert!(check_convert(Mode::Nl, Mode::Ex, Flags::ORPHAN, None).is_err());
        assert!(check_lock(Mode::Ex, Flags::NOQUEUEBAST).is_err());
        assert!(check_lock(Mode::Ex, Flags(0x8000_0000)).is_err());
        assert!(check_convert(Mode::Pr, Mode::Ex, Flags::CONVDEADLK.with(Flags::NOQUEUE), None).is_err());
        assert!(check_convert(Mode::Ex, Mode::Nl, Flags::VALBLK, None).is_err());
        assert!(check_convert(Mode::Ex, Mode::Nl, Flags::VALBLK, Some(&[0; 32])).is_ok());
        assert_eq!(check_unlock(Some(Mode::Pw), Flags::VALBLK, None), Err(NO_VALUE));
        assert!(check_unlock(Some(Mode::Pw), Flags::VALBLK, Some(&[0; 32])).is_ok());
        for (granted, flags) in
            [(Some(Mode::Pr), Flags::VALBLK), (None, Flags::VALBLK), (Some(Mode::Ex), Flags::VALBLK.with(Flags::IVVALBLK))]
        {
            assert!(check_unlock(granted, flags, None).is_ok(), "nothing would be written");
        }
        assert!(check_unlock(Some(Mode::Ex), Flags::NOQUEUE, None).is_err());
    }
}
