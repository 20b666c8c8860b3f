//! What: what the workers wrote down about the counter, and the judgement of it.
//! Owns: the lines of a tally file, the search for lost updates and for tokens that fell.
//! Invariants: an increment is counted as acknowledged only after its write returned; one that was under way when its worker was ended may
//!   count or not, and is bounded exactly.
//! Does not: touch the counter.
//! Called by: the worker, which writes the lines, and the demo, which judges them.

use std::{collections::BTreeSet, fmt};

/// Number of a grant, as in `DEADBOLT_TOKEN`: view, then counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct GrantToken {
    pub(super) view: u64,
    pub(super) counter: u64,
}

impl fmt::Display for GrantToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.view, self.counter)
    }
}

/// What a worker says about one increment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// It is about to write the value.
    Intent,
    /// The write returned.
    Done,
    /// It keeps the lock from now on.
    Hold,
}

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) step: Step,
    pub(super) token: GrantToken,
    /// What the counter is after the increment.
    pub(super) value: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.step {
            Step::Intent => "intent",
            Step::Done => "done",
            Step::Hold => "hold",
        };
        writeln!(f, "{word} {} {}", self.token, self.value)
    }
}

fn parse_line(text: &str) -> Option<Line> {
    let mut words = text.split(' ');
    let step = match words.next()? {
        "intent" => Step::Intent,
        "done" => Step::Done,
        "hold" => Step::Hold,
        _ => return None,
    };
    let (view, counter) = words.next()?.split_once('.')?;
    let token = GrantToken { view: view.parse().ok()?, counter: counter.parse().ok()? };
    let value = words.next()?.parse().ok()?;
    words.next().is_none().then_some(Line { step, token, value })
}

/// All that one worker wrote so far, over all its lives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    pub(super) intents: u64,
    pub(super) done: Vec<(u64, GrantToken)>,
    pub(super) last_hold: Option<GrantToken>,
    /// A line's beginning whose rest is not there yet.
    partial: String,
}

impl Tally {
    /// Takes what was added to the file.
    pub(super) fn add(&mut self, text: &str) {
        self.partial.push_str(text);
        while let Some((line, rest)) = self.partial.split_once('\n') {
            match parse_line(line) {
                Some(Line { step: Step::Intent, .. }) => self.intents += 1,
                Some(Line { step: Step::Done, value, token }) => self.done.push((value, token)),
                Some(Line { step: Step::Hold, token, .. }) => self.last_hold = Some(token),
                None => {}
            }
            self.partial = rest.to_owned();
        }
    }

    /// Increments whose end is not known.
    pub(super) fn in_flight(&self) -> u64 {
        self.intents.saturating_sub(u64::try_from(self.done.len()).unwrap_or(u64::MAX))
    }
}

/// What came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Judgement {
    /// Acknowledged increments.
    pub(super) done: u64,
    /// Increments that may count or not.
    pub(super) in_flight: u64,
    /// What the counter file says.
    pub(super) counter: u64,
    /// Acknowledged increments that another one overwrote.
    pub(super) lost_updates: u64,
    /// The counter is larger than anybody can have made it.
    pub(super) is_too_large: bool,
    /// A later value carries a smaller token: the larger one, then the smaller one.
    pub(super) fallen_token: Option<(GrantToken, GrantToken)>,
}

impl Judgement {
    pub(super) fn is_held(&self) -> bool {
        self.lost_updates == 0 && !self.is_too_large && self.fallen_token.is_none()
    }
}

/// Judges the counter by all tallies.
pub(super) fn judge<'a>(tallies: impl Iterator<Item = &'a Tally>, counter: u64) -> Judgement {
    let mut done: Vec<(u64, GrantToken)> = Vec::new();
    let mut in_flight = 0;
    for tally in tallies {
        done.extend_from_slice(&tally.done);
        in_flight += tally.in_flight();
    }
    done.sort_unstable();
    let count = u64::try_from(done.len()).unwrap_or(u64::MAX);
    let values: BTreeSet<u64> = done.iter().map(|(value, _)| *value).collect();
    // Two that made the same value: one of them was overwritten. A value above the counter: it was set back afterwards.
    let repeated = count - u64::try_from(values.len()).unwrap_or(0);
    let set_back = u64::try_from(values.range(counter.saturating_add(1)..).count()).unwrap_or(u64::MAX);
    let fallen = done.windows(2).find(|pair| matches!(pair, [(_, before), (_, after)] if after < before));
    Judgement {
        done: count,
        in_flight,
        counter,
        lost_updates: count.saturating_sub(counter).max(repeated).max(set_back),
        is_too_large: counter > count.saturating_add(in_flight),
        fallen_token: fallen.and_then(|pair| Some((pair.first()?.1, pair.get(1)?.1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        // In two pieces that split a line, as a reader beside a writer sees it.
        let (first, second) = text.split_at(text.len() / 2);
        tally.add(first);
        tally.add(second);
        tally
    }

    fn judged(a: &str, b: &str, counter: u64) -> Judgement {
        judge([tally(a), tally(b)].iter(), counter)
    }

    #[test]
    fn lines_come_back() {
        let line = Line { step: Step::Done, token: GrantToken { view: 3, counter: 9 }, value: 12 };
        assert_eq!(parse_line(line.to_string().trim_end()), Some(line));
        for bad in ["", "done", "done 1 2", "done 1.2", "done 1.2 x", "done 1.2 3 4", "gone 1.2 3"] {
            assert_eq!(parse_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_whole_count_holds() {
        let judgement = judged("intent 1.1 1\ndone 1.1 1\nintent 1.3 3\ndone 1.3 3\n", "intent 1.2 2\ndone 1.2 2\n", 3);
        assert!(judgement.is_held(), "{judgement:?}");
        assert_eq!((judgement.done, judgement.in_flight), (3, 0));
    }

    #[test]
    fn an_increment_under_way_may_count_or_not() {
        for counter in [1, 2] {
            assert!(judged("intent 1.1 1\ndone 1.1 1\n", "intent 1.2 2\n", counter).is_held());
        }
        assert!(judged("intent 1.1 1\ndone 1.1 1\n", "intent 1.2 2\n", 3).is_too_large);
    }

    #[test]
    fn a_lost_update_is_found() {
        assert_eq!(judged("intent 1.1 1\ndone 1.1 1\n", "intent 1.2 1\ndone 1.2 1\n", 1).lost_updates, 1);
        // Hidden by one that was under way and landed.
        assert_eq!(judged("intent 1.1 1\ndone 1.1 1\nintent 1.3 2\n", "intent 1.2 1\ndone 1.2 1\n", 2).lost_updates, 1);
        // A late write set the counter back.
        assert_eq!(judged("intent 1.1 1\n", "intent 1.2 1\ndone 1.2 1\nintent 1.2 2\ndone 1.2 2\n", 1).lost_updates, 1);
    }

    #[test]
    fn a_falling_token_is_found() {
        let judgement = judged("intent 2.1 1\ndone 2.1 1\n", "intent 1.9 2\ndone 1.9 2\n", 2);
        assert_eq!(judgement.fallen_token, Some((GrantToken { view: 2, counter: 1 }, GrantToken { view: 1, counter: 9 })));
        assert!(judged("intent 1.9 1\ndone 1.9 1\n", "intent 2.1 2\ndone 2.1 2\n", 2).is_held());
    }
}
