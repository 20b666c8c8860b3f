//! What: lock modes, flags, results and the two tables that say what may stand together and which way a value block goes.
//! Owns: the numbers that programs written for the VMS and Linux lock managers know.
//! Invariants: the compatibility table is symmetric (proved at compile time); numbers are no strength order for CW and PR.
//! Does not: know queues.
//! Called by: everything in this package and its clients.

use crate::bytes::DecodeError;

/// How strongly a resource is locked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mode {
    /// Null: keeps the resource known, excludes nothing.
    Nl = 0,
    /// Concurrent read.
    Cr = 1,
    /// Concurrent write.
    Cw = 2,
    /// Protected read: others may read.
    Pr = 3,
    /// Protected write: others may read unprotected.
    Pw = 4,
    /// Exclusive.
    Ex = 5,
}

/// All modes, by number.
pub const MODES: [Mode; 6] = [Mode::Nl, Mode::Cr, Mode::Cw, Mode::Pr, Mode::Pw, Mode::Ex];

const COMPATIBLE: [[bool; 6]; 6] = {
    const Y: bool = true;
    const N: bool = false;
    [
        [Y, Y, Y, Y, Y, Y], // NL
        [Y, Y, Y, Y, Y, N], // CR
        [Y, Y, Y, N, N, N], // CW
        [Y, Y, N, Y, N, N], // PR
        [Y, Y, N, N, N, N], // PW
        [Y, N, N, N, N, N], // EX
    ]
};

const _: () = {
    let mut row = 0;
    while row < 6 {
        let mut column = 0;
        while column < 6 {
            assert!(COMPATIBLE[row][column] == COMPATIBLE[column][row], "compatibility must be symmetric");
            column += 1;
        }
        assert!(COMPATIBLE[0][row], "NL stands beside everything");
        row += 1;
    }
};

/// Which way the value block goes when a lock is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LvbTransfer {
    /// From the resource to the caller.
    Read,
    /// From the caller to the resource.
    Write,
    /// Nowhere.
    Neither,
}

impl Mode {
    /// The mode of a number.
    ///
    /// # Errors
    /// A number above 5.
    pub fn from_number(number: u8) -> Result<Self, DecodeError> {
        MODES.get(usize::from(number)).copied().ok_or(DecodeError::BadField { field: "mode", value: number.into() })
    }

    /// Its number, 0..=5.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Nl => 0,
            Self::Cr => 1,
            Self::Cw => 2,
            Self::Pr => 3,
            Self::Pw => 4,
            Self::Ex => 5,
        }
    }

    /// May both stand on one resource?
    #[must_use]
    pub fn is_compatible(self, other: Self) -> bool {
        COMPATIBLE[usize::from(self.number())][usize::from(other.number())]
    }

    /// A change between PR and CW: neither covers the other.
    #[must_use]
    pub fn is_middle(self, wanted: Self) -> bool {
        matches!((self, wanted), (Self::Pr, Self::Cw) | (Self::Cw, Self::Pr))
    }

    /// Is a conversion from here to `wanted` one that can never conflict with anything that `self` did not?
    #[must_use]
    pub fn is_down(self, wanted: Self) -> bool {
        wanted <= self && !self.is_middle(wanted)
    }

    /// May this lock's holder have changed what the lock protects (and its value block)?
    #[must_use]
    pub fn is_writer(self) -> bool {
        matches!(self, Self::Pw | Self::Ex)
    }

    /// Way of the value block for a conversion from `granted` (none: a new lock) to `self`.
    #[must_use]
    pub fn lvb_transfer(self, granted: Option<Self>) -> LvbTransfer {
        let Some(granted) = granted else { return LvbTransfer::Read };
        match granted {
            Self::Nl => LvbTransfer::Read,
            Self::Ex => LvbTransfer::Write,
            Self::Pw if self == Self::Ex => LvbTransfer::Read,
            Self::Pw => LvbTransfer::Write,
            Self::Cr | Self::Cw | Self::Pr if self >= granted => LvbTransfer::Read,
            Self::Cr | Self::Cw | Self::Pr => LvbTransfer::Neither,
        }
    }

    /// The usual two letters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nl => "NL",
            Self::Cr => "CR",
            Self::Cw => "CW",
            Self::Pr => "PR",
            Self::Pw => "PW",
            Self::Ex => "EX",
        }
    }
}

impl core::fmt::Display for Mode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Flags of a request; the values are those of the Linux interface, but for what it does not have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Fail with `Again` instead of waiting.
    pub const NOQUEUE: Self = Self(0x1);
    /// Cancel (of the C interface; here a request of its own).
    pub const CANCEL: Self = Self(0x2);
    /// Convert (of the C interface; here a request of its own, ignored).
    pub const CONVERT: Self = Self(0x4);
    /// Take part in value block traffic.
    pub const VALBLK: Self = Self(0x8);
    /// A conversion does not overtake waiting conversions.
    pub const QUECVT: Self = Self(0x10);
    /// Mark the value block invalid instead of writing it.
    pub const IVVALBLK: Self = Self(0x20);
    /// On a conversion deadlock drop the granted mode to NL and stay queued.
    pub const CONVDEADLK: Self = Self(0x40);
    /// Outlive the process.
    pub const PERSISTENT: Self = Self(0x80);
    /// Do not report conversion deadlocks.
    pub const NODLCKWT: Self = Self(0x100);
    /// Accepted, without effect.
    pub const NODLCKBLK: Self = Self(0x200);
    /// Grant a new NL lock at once.
    pub const EXPEDITE: Self = Self(0x400);
    /// A failed try tells the holders.
    pub const NOQUEUEBAST: Self = Self(0x800);
    /// To the front of the queue.
    pub const HEADQUE: Self = Self(0x1000);
    /// Ignore the order of the queues.
    pub const NOORDER: Self = Self(0x2000);
    /// Adopt an orphan.
    pub const ORPHAN: Self = Self(0x4000);
    /// If not grantable, try PR.
    pub const ALTPR: Self = Self(0x8000);
    /// If not grantable, try CW.
    pub const ALTCW: Self = Self(0x10000);
    /// Unlock from any queue.
    pub const FORCEUNLOCK: Self = Self(0x20000);
    /// Accepted, without effect.
    pub const TIMEOUT: Self = Self(0x40000);
    /// Say in the result when it was granted at once, so that no callback is needed (VMS; the value is ours and free in Linux).
    pub const SYNCSTS: Self = Self(0x10_0000);

    /// Are all flags of `other` set?
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is nothing set outside `allowed`?
    #[must_use]
    pub const fn is_within(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}

/// Flags of a result; the values are those of the Linux status block, but for what it does not have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ResultFlags(pub u8);

impl ResultFlags {
    /// The granted mode was dropped to NL to end a conversion deadlock.
    pub const DEMOTED: Self = Self(0x1);
    /// The value block may not be the last one written.
    pub const VALNOTVALID: Self = Self(0x2);
    /// Granted in the alternative mode.
    pub const ALTMODE: Self = Self(0x4);
    /// Asked with SYNCSTS, and granted without a turn on a queue.
    pub const SYNCH: Self = Self(0x8);

    /// Are all flags of `other` set?
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How an operation ended. Numbers on the wire are ours; `errno` gives the C interface's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LockStatus {
    /// Granted, or done.
    Success,
    /// Not grantable now, and the request was not to wait (EAGAIN).
    Again,
    /// The conversion would deadlock; the lock keeps its granted mode (EDEADLK).
    Deadlock,
    /// The request or conversion was cancelled (ECANCEL).
    Cancelled,
    /// The lock is gone, as asked (EUNLOCK).
    Unlocked,
    /// The arguments are refused (EINVAL).
    Invalid,
    /// No such lock, lockspace or request (ENOENT).
    NotFound,
    /// An operation on this lock is under way (EBUSY).
    Busy,
    /// Too many locks (ENOMEM).
    NoMemory,
    /// The node stops or is no member: no new work (ESHUTDOWN).
    Stopped,
    /// Not granted in the time that the request gave (ETIMEDOUT).
    TimedOut,
}

/// All results, by number on the wire.
pub const STATUSES: [LockStatus; 11] = [
    LockStatus::Success,
    LockStatus::Again,
    LockStatus::Deadlock,
    LockStatus::Cancelled,
    LockStatus::Unlocked,
    LockStatus::Invalid,
    LockStatus::NotFound,
    LockStatus::Busy,
    LockStatus::NoMemory,
    LockStatus::Stopped,
    LockStatus::TimedOut,
];

impl LockStatus {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Again => 1,
            Self::Deadlock => 2,
            Self::Cancelled => 3,
            Self::Unlocked => 4,
            Self::Invalid => 5,
            Self::NotFound => 6,
            Self::Busy => 7,
            Self::NoMemory => 8,
            Self::Stopped => 9,
            Self::TimedOut => 10,
        }
    }

    /// The result of a number on the wire.
    ///
    /// # Errors
    /// An unknown number.
    pub fn from_number(number: u8) -> Result<Self, DecodeError> {
        STATUSES.get(usize::from(number)).copied().ok_or(DecodeError::BadField { field: "status", value: number.into() })
    }

    /// What the C interface calls it: an errno, or ECANCEL 0x10001, EUNLOCK 0x10002; positive, 0 for success.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Again => 11,
            Self::Deadlock => 35,
            Self::Cancelled => 0x10001,
            Self::Unlocked => 0x10002,
            Self::Invalid => 22,
            Self::NotFound => 2,
            Self::Busy => 16,
            Self::NoMemory => 12,
            Self::Stopped => 108,
            Self::TimedOut => 110,
        }
    }
}

/// The number of a grant. Only grows, for one resource, over everything that ever happens to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Token {
    /// The view in which it was given.
    pub view: u64,
    /// Counter within the view.
    pub counter: u64,
}

impl core::fmt::Display for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.view, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compatibility_is_the_published_table() {
        let rows = ["111111", "111110", "111000", "110100", "110000", "100000"];
        for (row, line) in MODES.iter().zip(rows) {
            for (column, cell) in MODES.iter().zip(line.chars()) {
                assert_eq!(row.is_compatible(*column), cell == '1', "{row} {column}");
            }
        }
    }

    #[test]
    fn value_block_goes_as_the_published_table_says() {
        let rows = ["RRRRRR", "RRRRRR", "-RRRRR", "--RRRR", "---RRR", "WWWWWR", "WWWWWW"];
        let granted = [None].into_iter().chain(MODES.map(Some));
        for (row, line) in granted.zip(rows) {
            for (column, cell) in MODES.iter().zip(line.chars()) {
                let wanted = match cell {
                    'R' => LvbTransfer::Read,
                    'W' => LvbTransfer::Write,
                    _ => LvbTransfer::Neither,
                };
                assert_eq!(column.lvb_transfer(row), wanted, "{row:?} {column}");
            }
        }
    }

    #[test]
    fn a_down_conversion_conflicts_with_nothing_new() {
        for from in MODES {
            for to in MODES.into_iter().filter(|to| from.is_down(*to)) {
                for other in MODES {
                    assert!(!from.is_compatible(other) || to.is_compatible(other), "{from} {to} {other}");
                }
            }
        }
        assert!(!Mode::Pr.is_down(Mode::Cw));
    }

    #[test]
    fn numbers_go_both_ways() {
        for mode in MODES {
            assert_eq!(Mode::from_number(mode.number()), Ok(mode));
        }
        for status in STATUSES {
            assert_eq!(LockStatus::from_number(status.number()), Ok(status));
        }
        assert!(Mode::from_number(6).is_err());
        assert!(LockStatus::from_number(11).is_err());
    }
}
