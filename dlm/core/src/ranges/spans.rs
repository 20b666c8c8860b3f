//! What: the byte ranges of one owner: what it has, raised and lowered piece by piece.
//! Owns: splitting and merging.
//! Invariants: pieces do not overlap; two pieces that touch are of different kinds; every change is one of raising or lowering.
//! Does not: know other owners.
//! Called by: `ranges` (the master's side), `service::holder` (the holder's side).

use crate::client::RangeKind;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt::{Display, Formatter};

/// How a byte range is had: what it keeps out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RangeMode {
    /// Writers.
    Read,
    /// Everybody else.
    Write,
}

impl RangeMode {
    /// May ranges of these kinds of two owners overlap?
    pub(crate) fn is_compatible(self, other: Self) -> bool {
        self == Self::Read && other == Self::Read
    }
}

impl From<Option<RangeMode>> for RangeKind {
    fn from(mode: Option<RangeMode>) -> Self {
        match mode {
            None => Self::Unlock,
            Some(RangeMode::Read) => Self::Read,
            Some(RangeMode::Write) => Self::Write,
        }
    }
}

impl RangeKind {
    /// What is had afterwards; none: nothing.
    pub(crate) fn mode(self) -> Option<RangeMode> {
        match self {
            Self::Unlock => None,
            Self::Read => Some(RangeMode::Read),
            Self::Write => Some(RangeMode::Write),
        }
    }
}

/// Bytes of one kind, both ends included; `end` is `u64::MAX` for "to the end".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// How they are had.
    pub kind: RangeMode,
}

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        let kind = if self.kind == RangeMode::Read { "read" } else { "write" };
        match self.end {
            u64::MAX => write!(f, "bytes {}.. for {kind}", self.start),
            end => write!(f, "bytes {}..={end} for {kind}", self.start),
        }
    }
}

impl Span {
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Has it every byte of `other`, at least as strong?
    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && self.end >= other.end && self.kind >= other.kind
    }

    /// Do two owners' spans exclude each other?
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        self.overlaps(other) && !self.kind.is_compatible(other.kind)
    }
}

/// What a change did: the pieces that are no more and those in their place.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) before: Vec<Span>,
    pub(crate) after: Vec<Span>,
}

/// One owner's ranges, by start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Spans(BTreeMap<u64, (u64, RangeMode)>);

impl Spans {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.0.iter().map(|(start, (end, kind))| Span { start: *start, end: *end, kind: *kind })
    }

    /// Those that have a byte in `start..=end`, in order.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Span> + '_ {
        let before = self.0.range(..start).next_back().filter(|(_, (last, _))| *last >= start);
        let pieces = before.into_iter().chain(self.0.range(start..=end));
        pieces.map(|(start, (end, kind))| Span { start: *start, end: *end, kind: *kind })
    }

    /// Is every byte of `wanted` here, at least as strong?
    pub(crate) fn covers(&self, wanted: &Span) -> bool {
        let mut next = Some(wanted.start);
        for piece in self.overlapping(wanted.start, wanted.end) {
            if piece.kind < wanted.kind || next.is_none_or(|next| piece.start > next) {
                return false;
            }
            next = piece.end.checked_add(1);
        }
        next.is_none_or(|next| next > wanted.end)
    }

    /// Has it anything in `start..=end` that is stronger than `kind`?
    pub(crate) fn exceeds(&self, start: u64, end: u64, kind: Option<RangeMode>) -> bool {
        self.overlapping(start, end).any(|piece| Some(piece.kind) > kind)
    }

    /// Would lowering `start..=end` leave a part of a piece standing?
    pub(crate) fn is_cut(&self, start: u64, end: u64, kind: Option<RangeMode>) -> bool {
        self.overlapping(start, end).any(|piece| Some(piece.kind) > kind && (piece.start < start || piece.end > end))
    }

    /// Would `other`'s owner have to wait for this one?
    pub(crate) fn conflicts(&self, other: &Span) -> bool {
        self.overlapping(other.start, other.end).any(|piece| piece.conflicts(other))
    }

    /// Every byte of `wanted` becomes at least that strong.
    pub(crate) fn raise(&mut self, wanted: &Span) -> Change {
        self.change(wanted.start, wanted.end, |kind| kind.max(Some(wanted.kind)))
    }

    /// No byte of `start..=end` stays stronger than `kind`; `None`: they are given back.
    pub(crate) fn lower(&mut self, start: u64, end: u64, kind: Option<RangeMode>) -> Change {
        self.change(start, end, |had| had.min(kind))
    }

    fn change(&mut self, start: u64, end: u64, becomes: impl Fn(Option<RangeMode>) -> Option<RangeMode>) -> Change {
        // With the neighbours, which may merge with what comes.
        let before: Vec<Span> = self.overlapping(start.saturating_sub(1), end.saturating_add(1)).collect();
        let mut after = Vec::new();
        let mut gap = Some(start);
        for piece in &before {
            self.0.remove(&piece.start);
            if piece.start < start {
                push(&mut after, piece.start, piece.end.min(start - 1), Some(piece.kind));
            }
            if piece.start <= end && piece.end >= start {
                let (first, last) = (piece.start.max(start), piece.end.min(end));
                if let Some(gap) = gap.filter(|gap| *gap < first) {
                    push(&mut after, gap, first - 1, becomes(None));
                }
                push(&mut after, first, last, becomes(Some(piece.kind)));
                gap = last.checked_add(1).filter(|next| *next <= end);
            }
            if piece.end > end {
                if let Some(gap) = gap.take() {
                    push(&mut after, gap, end, becomes(None));
                }
                push(&mut after, piece.start.max(end + 1), piece.end, Some(piece.kind));
            }
        }
        if let Some(gap) = gap {
            push(&mut after, gap, end, becomes(None));
        }
        self.0.extend(after.iter().map(|piece| (piece.start, (piece.end, piece.kind))));
        Change { before, after }
    }
}

/// Appends a piece to pieces in order.
fn push(pieces: &mut Vec<Span>, start: u64, end: u64, kind: Option<RangeMode>) {
    let Some(kind) = kind else { return };
    match pieces.last_mut() {
        Some(last) if last.kind == kind && last.end.checked_add(1) == Some(start) => last.end = end,
        _ => pieces.push(Span { start, end, kind }),
    }
}
