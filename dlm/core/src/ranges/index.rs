//! What: spans of many owners, found by the bytes that they have in common with another.
//! Owns: the order that makes this cheap.
//! Invariants: a span stands in the class of its length; a search looks at few that have nothing in common with what is asked for.
//! Does not: judge conflicts.
//! Called by: `ranges`.

use super::spans::{RangeMode, Span};
use alloc::collections::BTreeMap;

/// Lengths are sorted into classes by their powers of two, so that a search knows how far before its start a span of a class can begin.
const CLASSES: usize = 65;

/// Class of a span: 0 for one byte, else the number of bits of `end - start`.
fn class_of(span: &Span) -> u8 {
    u8::try_from(u64::BITS - (span.end - span.start).leading_zeros()).unwrap_or_default()
}

/// Spans of one kind, each with a tag that says whose it is.
#[derive(Clone, Debug)]
struct Index<T> {
    /// By class, start and tag (`None` stands before every tag); to the end.
    spans: BTreeMap<(u8, u64, Option<T>), u64>,
    counts: [usize; CLASSES],
}

impl<T: Copy + Ord> Index<T> {
    fn new() -> Self {
        Self { spans: BTreeMap::new(), counts: [0; CLASSES] }
    }

    fn insert(&mut self, span: &Span, tag: T) {
        let class = class_of(span);
        if self.spans.insert((class, span.start, Some(tag)), span.end).is_none()
            && let Some(count) = self.counts.get_mut(usize::from(class))
        {
            *count += 1;
        }
    }

    fn remove(&mut self, span: &Span, tag: T) -> bool {
        let class = class_of(span);
        let is_here = self.spans.remove(&(class, span.start, Some(tag))).is_some();
        if let Some(count) = self.counts.get_mut(usize::from(class)).filter(|_| is_here) {
            *count -= 1;
        }
        is_here
    }

    fn overlapping(&self, start: u64, end: u64, kind: RangeMode) -> impl Iterator<Item = (T, Span)> + '_ {
        let classes = self.counts.iter().zip(0_u8..).filter(|(count, _)| **count > 0).map(|(_, class)| class);
        let spans = classes.flat_map(move |class| {
            let longest = u64::MAX.checked_shr(u64::BITS - u32::from(class)).unwrap_or(0);
            let behind = end.checked_add(1).map_or((class + 1, 0, None), |next| (class, next, None));
            self.spans.range((class, start.saturating_sub(longest), None)..behind)
        });
        let here = spans.filter(move |(_, last)| **last >= start);
        here.filter_map(move |((_, start, tag), end)| tag.map(|tag| (tag, Span { start: *start, end: *end, kind })))
    }
}

/// Spans of both kinds.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    readers: Index<T>,
    writers: Index<T>,
}

impl<T: Copy + Ord> Default for Table<T> {
    fn default() -> Self {
        Self { readers: Index::new(), writers: Index::new() }
    }
}

impl<T: Copy + Ord> Table<T> {
    fn of(&mut self, kind: RangeMode) -> &mut Index<T> {
        match kind {
            RangeMode::Read => &mut self.readers,
            RangeMode::Write => &mut self.writers,
        }
    }

    pub(super) fn insert(&mut self, span: &Span, tag: T) {
        self.of(span.kind).insert(span, tag);
    }

    /// Was it here?
    pub(super) fn remove(&mut self, span: &Span, tag: T) -> bool {
        self.of(span.kind).remove(span, tag)
    }

    /// All that have a byte in `start..=end`.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (T, Span)> + '_ {
        self.readers.overlapping(start, end, RangeMode::Read).chain(self.writers.overlapping(start, end, RangeMode::Write))
    }

    /// All that exclude `span`, whosever it is.
    pub(super) fn excluders(&self, span: &Span) -> impl Iterator<Item = (T, Span)> + '_ {
        let (start, end) = (span.start, span.end);
        let readers = (span.kind == RangeMode::Write).then(|| self.readers.overlapping(start, end, RangeMode::Read));
        self.writers.overlapping(start, end, RangeMode::Write).chain(readers.into_iter().flatten())
    }
}
