#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing, reason = "slots and links of a test world are small")]
//! Two tables that talk over links with faults, poll by poll.

use super::*;
use crate::hello::LinkWord;
use alloc::vec;
use deadbolt_disk_format::{BootId, Incarnation};
use proptest::prelude::*;
use std::collections::BTreeSet;

const POLL_US: u64 = 250_000;
const DETECT_MS: u32 = 1500;
/// How long a hello travels.
const WAY_US: u64 = 2000;

fn life(slot: u16, incarnation: u8) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([incarnation; 16]) }
}

/// Two nodes with some links between them.
struct Pair {
    now_us: u64,
    ends: [(LinkTable, Life); 2],
    /// From which end, on which link, and whether only full-sized ones.
    lost: BTreeSet<(usize, u8, bool)>,
    news: [Vec<LinkNews>; 2],
}

impl Pair {
    fn new(links: u8) -> Self {
        let end = |me: u16, other: u16, now_us| {
            let mut table = LinkTable::new(LinkTiming::new(250, DETECT_MS), now_us);
            table.follow(now_us, &[(SlotIndex(other), links)].into());
            (table, life(me, 1))
        };
        // Their clocks have nothing in common.
        Self {
            now_us: 10_000_000,
            ends: [end(0, 1, 10_000_000), end(1, 0, 1_010_000_000)],
            lost: BTreeSet::new(),
            news: Default::default(),
        }
    }

    fn clock(&self, end: usize) -> u64 {
        if end == 0 { self.now_us } else { self.now_us + 1_000_000_000 }
    }

    /// One poll: both speak on every link, and judge.
    fn poll(&mut self) {
        self.poll_losing(|_, _, _| false);
    }

    fn poll_losing(&mut self, mut is_lost: impl FnMut(usize, u8, bool) -> bool) {
        self.now_us += POLL_US - WAY_US;
        let mut words: Vec<(usize, LinkWord)> = Vec::new();
        for end in 0..2 {
            let now_us = self.clock(end);
            let news = self.ends[end].0.poll(now_us);
            self.news[end].extend(news);
            for link in 0..LINKS_MAX as u8 {
                for is_full in [true, false] {
                    let word = self.ends[end].0.say(now_us, SlotIndex(1 - end as u16), link, is_full);
                    let is_lost = is_lost(end, link, is_full) || self.is_lost(end, link, is_full);
                    words.extend(word.filter(|_| !is_lost).map(|word| (end, word)));
                }
            }
        }
        self.now_us += WAY_US;
        for (from, word) in words {
            let (now_us, life) = (self.clock(1 - from), self.ends[from].1);
            self.ends[1 - from].0.hear(now_us, life, &word);
        }
    }

    fn is_lost(&self, end: usize, link: u8, is_full: bool) -> bool {
        self.lost.contains(&(end, link, false)) || (is_full && self.lost.contains(&(end, link, true)))
    }

    fn polls(&mut self, count: usize) {
        (0..count).for_each(|_| self.poll());
    }

    fn cut(&mut self, link: u8) {
        self.lost.extend([(0, link, false), (1, link, false)]);
    }

    fn heal(&mut self) {
        self.lost.clear();
    }

    fn status(&self, end: usize, link: u8) -> LinkStatus {
        self.ends[end].0.status().find(|status| status.link == link).unwrap()
    }

    fn states(&self, end: usize) -> Vec<LinkState> {
        self.ends[end].0.status().map(|status| status.state).collect()
    }

    fn forget(&mut self) {
        self.news = Default::default();
    }

    /// The links that the stream was told to use since the last question.
    fn moves(&mut self, end: usize) -> Vec<u8> {
        let news = core::mem::take(&mut self.news[end]);
        news.into_iter().filter_map(|news| if let LinkNews::Use { link, .. } = news { Some(link) } else { None }).collect()
    }
}

#[test]
fn links_come_up_and_are_measured() {
    let mut pair = Pair::new(2);
    assert_eq!(pair.states(0), [LinkState::New; 2]);
    pair.polls(4);
    for end in 0..2 {
        assert_eq!(pair.states(end), [LinkState::Up; 2]);
        assert_eq!(pair.moves(end), [0], "the first one, once");
        let status = pair.status(end, 1);
        assert_eq!((status.lost_in.0, status.lost_out.0), (0, 0));
        // The way there and back; what the other end kept the stamp for does not count.
        assert_eq!(status.round_trip_us, Some(2 * WAY_US));
    }
    pair.polls(100);
    assert!((0..2).all(|end| pair.moves(end).is_empty()));
}

#[test]
fn a_stream_leaves_a_cut_link_before_its_edge_goes_and_stays_where_it_went() {
    let mut pair = Pair::new(2);
    pair.polls(20);
    pair.forget();
    pair.cut(0);
    let cut_us = pair.now_us;
    while pair.moves(0) != [1] {
        pair.poll();
        assert!(pair.now_us - cut_us < u64::from(DETECT_MS) * 1000, "not within the detection time");
    }
    assert!(pair.now_us - cut_us <= 1_000_000, "{}", pair.now_us - cut_us);
    assert_eq!(pair.states(0), [LinkState::Silent, LinkState::Up]);
    pair.heal();
    pair.polls(50);
    assert_eq!(pair.states(0), [LinkState::Up; 2]);
    assert_eq!(pair.moves(0), [] as [u8; 0], "both work: it stays");
}

#[test]
fn one_direction_that_is_cut_is_seen_by_both_ends() {
    let mut pair = Pair::new(2);
    pair.polls(10);
    pair.forget();
    pair.lost.insert((0, 0, false));
    pair.polls(6);
    assert_eq!(pair.states(0), [LinkState::Unheard, LinkState::Up]);
    assert_eq!(pair.states(1), [LinkState::Silent, LinkState::Up]);
    assert_eq!((pair.moves(0), pair.moves(1)), (vec![1], vec![1]));
}

#[test]
fn where_no_link_works_the_stream_stays() {
    let mut pair = Pair::new(2);
    pair.polls(10);
    pair.forget();
    pair.cut(0);
    pair.cut(1);
    pair.polls(20);
    assert_eq!(pair.states(0), [LinkState::Silent; 2]);
    assert!(pair.moves(0).is_empty());
}

#[test]
fn a_link_that_comes_and_goes_is_left_once() {
    let mut pair = Pair::new(2);
    pair.polls(20);
    pair.forget();
    for _ in 0..20 {
        pair.cut(0);
        pair.polls(5);
        pair.heal();
        pair.polls(5);
    }
    assert_eq!(pair.moves(0), [1]);
}

#[test]
fn loss_is_counted_at_both_ends_and_moves_nothing() {
    let mut pair = Pair::new(2);
    pair.polls(4);
    pair.forget();
    // Every fourth hello from end 0 on link 0, of either size.
    for count in 1..=80u32 {
        pair.poll_losing(|end, link, _| end == 0 && link == 0 && count.is_multiple_of(4));
    }
    assert_eq!(pair.status(1, 0).lost_in, (16, 64));
    let (lost, expected) = pair.status(0, 0).lost_out;
    assert!((15..=16).contains(&lost) && expected == 64, "as the other end said last: {lost} of {expected}");
    assert_eq!(pair.status(0, 1).lost_in.0, 0);
    assert!(pair.moves(0).is_empty() && pair.moves(1).is_empty());
    assert!(!pair.status(1, 0).loses_full_in);
}

#[test]
fn a_black_hole_for_full_sized_packets_is_found_and_left() {
    let mut pair = Pair::new(2);
    pair.polls(10);
    pair.forget();
    pair.lost.insert((0, 0, true));
    let begin_us = pair.now_us;
    while pair.moves(0) != [1] {
        pair.poll();
        assert!(pair.now_us - begin_us < u64::from(DETECT_MS) * 1000, "not within the detection time");
    }
    assert_eq!(pair.states(0), [LinkState::Up; 2], "small ones pass");
    assert!(pair.status(0, 0).loses_full_out && !pair.status(0, 0).loses_full_in);
    assert!(pair.status(1, 0).loses_full_in && !pair.status(1, 0).loses_full_out);
    pair.polls(50);
    pair.forget();
    pair.heal();
    pair.polls(3);
    let told = |news: &[LinkNews]| news.iter().filter(|news| matches!(news, LinkNews::FullSize { .. })).count();
    assert_eq!((told(&pair.news[0]), told(&pair.news[1])), (1, 1), "said once, also when it is over");
    assert!(!pair.status(0, 0).loses_full_out);
}

#[test]
fn with_a_black_hole_on_every_link_the_stream_stays() {
    let mut pair = Pair::new(2);
    pair.polls(10);
    pair.forget();
    pair.lost.extend([(0, 0, true), (0, 1, true)]);
    pair.polls(20);
    assert!(pair.status(0, 0).loses_full_out && pair.status(0, 1).loses_full_out);
    assert!(pair.moves(0).is_empty());
}

#[test]
fn full_size_is_the_smaller_of_both_ends() {
    let mut pair = Pair::new(1);
    pair.ends[0].0.handle_mtu(SlotIndex(1), 0, 9000);
    assert_eq!(pair.ends[0].0.full_bytes(SlotIndex(1), 0), 9000);
    pair.ends[1].0.handle_mtu(SlotIndex(0), 0, 1500);
    pair.polls(3);
    assert_eq!(pair.ends[0].0.full_bytes(SlotIndex(1), 0), 1500);
    assert_eq!(pair.status(0, 0).mtu, (9000, 1500));
}

#[test]
fn an_end_that_cannot_send_is_down_until_it_can() {
    let mut pair = Pair::new(2);
    pair.polls(10);
    pair.forget();
    pair.ends[0].0.handle_sent(SlotIndex(1), 0, Some(OwnFault::AddressGone));
    pair.poll();
    assert_eq!(pair.states(0), [LinkState::Faulty(OwnFault::AddressGone), LinkState::Up]);
    assert_eq!(pair.moves(0), [1], "at once");
    pair.ends[0].0.handle_sent(SlotIndex(1), 0, None);
    pair.poll();
    assert_eq!(pair.states(0), [LinkState::Up; 2]);
}

#[test]
fn another_life_begins_anew_and_an_own_pause_is_nobodys_silence() {
    let mut pair = Pair::new(1);
    pair.polls(10);
    pair.ends[1] = {
        let mut table = LinkTable::new(LinkTiming::new(250, DETECT_MS), pair.clock(1));
        table.follow(pair.clock(1), &[(SlotIndex(0), 1)].into());
        (table, life(1, 2))
    };
    // A word of the earlier life comes late; the new one counts once the earlier one is silent.
    pair.polls(8);
    let late = LinkWord { sequence: 1000, ..LinkWord::default() };
    let now_us = pair.clock(0);
    pair.ends[0].0.hear(now_us, life(1, 1), &late);
    pair.polls(1);
    assert_eq!((pair.states(0), pair.status(0, 0).lost_in.0), (vec![LinkState::Up], 0));
    // End 0 sleeps for 5 s; its first turn comes before the datagrams that wait.
    pair.now_us += 5_000_000;
    pair.forget();
    pair.polls(10);
    assert_eq!(pair.news[0], [], "nothing happened");
}

#[test]
fn a_link_that_never_works_is_said_after_a_while() {
    let mut pair = Pair::new(2);
    pair.cut(1);
    pair.polls(8);
    assert_eq!(pair.states(0), [LinkState::Up, LinkState::Silent]);
    assert!(pair.ends[0].0.has_other(SlotIndex(1), 1) && !pair.ends[0].0.has_other(SlotIndex(1), 0));
}

#[test]
fn the_silence_that_is_waited_for_ends_well_before_the_edge() {
    for (poll_ms, detect_ms, silent_ms) in [(250, 1500, 750), (100, 1500, 300), (20, 1500, 300), (1000, 6000, 3000)] {
        assert_eq!(LinkTiming::new(poll_ms, detect_ms).silent_us, silent_ms * 1000);
    }
}

proptest! {
    /// Whatever is lost: nothing panics, and once nothing is lost both links work, both ends agree, and the stream stands still.
    #[test]
    fn after_any_loss_the_links_recover(losses in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut pair = Pair::new(2);
        for loss in losses {
            pair.poll_losing(|end, link, is_full| loss >> ((end * 4 + usize::from(link) * 2 + usize::from(is_full)) & 7) & 1 == 1);
        }
        pair.polls(20);
        pair.forget();
        for end in 0..2 {
            prop_assert_eq!(pair.states(end), [LinkState::Up; 2]);
            prop_assert!(!pair.status(end, 0).loses_full_in && !pair.status(end, 0).loses_full_out);
        }
        pair.polls(80);
        prop_assert!(pair.moves(0).is_empty());
        prop_assert_eq!(pair.status(0, 0).lost_in.0, 0);
    }

    #[test]
    fn arbitrary_words_never_panic(words in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u8>()), 0..50)) {
        let mut table = LinkTable::new(LinkTiming::new(250, DETECT_MS), 0);
        table.follow(0, &[(SlotIndex(1), 2)].into());
        for (sequence, full_sent, sent_us, echo_us, bits) in words {
            let word = LinkWord {
                link: bits % 3, is_full: bits & 1 != 0, hears: bits & 2 != 0, sequence, full_sent, sent_us, echo_us,
                held_us: full_sent, ..LinkWord::default()
            };
            table.hear(sent_us, life(1, bits & 4), &word);
            table.poll(echo_us);
            table.say(echo_us, SlotIndex(1), 0, true);
            let _ = table.status().count();
        }
    }
}
