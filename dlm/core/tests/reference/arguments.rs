//! Which arguments are refused before anything happens (facts 1.3 and 1.4: EINVAL).

use super::tables::{is_quecvt_legal, is_write};
use deadbolt_dlm_core::{Flags, Mode};

/// Accepted everywhere, without effect.
const IGNORED: [Flags; 3] = [Flags::CONVERT, Flags::NODLCKBLK, Flags::TIMEOUT];

const LOCK: [Flags; 12] = [
    Flags::PERSISTENT,
    Flags::ORPHAN,
    Flags::SYNCSTS,
    Flags::NOQUEUE,
    Flags::VALBLK,
    Flags::NODLCKWT,
    Flags::EXPEDITE,
    Flags::NOQUEUEBAST,
    Flags::HEADQUE,
    Flags::NOORDER,
    Flags::ALTPR,
    Flags::ALTCW,
];

const MANY: [Flags; 6] = [Flags::PERSISTENT, Flags::NOQUEUE, Flags::NODLCKWT, Flags::NOQUEUEBAST, Flags::HEADQUE, Flags::NOORDER];

const CONVERT: [Flags; 13] = [
    Flags::PERSISTENT,
    Flags::SYNCSTS,
    Flags::NOQUEUE,
    Flags::VALBLK,
    Flags::QUECVT,
    Flags::IVVALBLK,
    Flags::CONVDEADLK,
    Flags::NODLCKWT,
    Flags::NOQUEUEBAST,
    Flags::HEADQUE,
    Flags::NOORDER,
    Flags::ALTPR,
    Flags::ALTCW,
];

const UNLOCK: [Flags; 3] = [Flags::VALBLK, Flags::IVVALBLK, Flags::FORCEUNLOCK];

fn is_known(flags: Flags, known: &[Flags]) -> bool {
    let all = known.iter().chain(&IGNORED).fold(Flags::NONE, |all, flag| all.with(*flag));
    flags.is_within(all)
}

/// NOQUEUEBAST is about a failed NOQUEUE; with two alternatives nobody could say which of them comes first.
fn is_consistent(flags: Flags) -> bool {
    (!flags.has(Flags::NOQUEUEBAST) || flags.has(Flags::NOQUEUE)) && !(flags.has(Flags::ALTPR) && flags.has(Flags::ALTCW))
}

pub(crate) fn is_lock_legal(mode: Mode, flags: Flags) -> bool {
    let is_expedite_legal = mode == Mode::Nl && !flags.has(Flags::NOQUEUE);
    is_known(flags, &LOCK) && is_consistent(flags) && (!flags.has(Flags::EXPEDITE) || is_expedite_legal)
}

pub(crate) fn is_many_legal(flags: Flags) -> bool {
    is_known(flags, &MANY) && is_consistent(flags)
}

/// A value block is needed where it would be written.
pub(crate) fn is_convert_legal(granted: Mode, mode: Mode, flags: Flags, has_lvb: bool) -> bool {
    let is_write = flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK) && is_write(Some(granted), mode);
    is_known(flags, &CONVERT)
        && is_consistent(flags)
        && (!flags.has(Flags::QUECVT) || is_quecvt_legal(granted, mode))
        && !(flags.has(Flags::CONVDEADLK) && flags.has(Flags::NOQUEUE))
        && (!is_write || has_lvb)
}

pub(crate) fn is_unlock_legal(granted: Option<Mode>, flags: Flags, has_lvb: bool) -> bool {
    let is_write = flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK) && granted.is_some_and(|mode| mode >= Mode::Pw);
    is_known(flags, &UNLOCK) && (!is_write || has_lvb)
}
