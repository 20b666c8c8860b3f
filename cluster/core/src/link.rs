//! What: the links of a node: every pair of addresses that stand at the same place in its list and in a peer's, as hellos show them.
//! Owns: which link works, its loss and round trip, whether full-sized packets pass, which link the ordered stream should use.
//! Invariants: a link that works in one direction only does not work; the stream stays where it is while that link is good; a gap in
//!   this node's own turns is no silence of others.
//! Does not: judge lives (the membership machine does), send, open or read a clock: time is a parameter, in microseconds.
//! Called by: the daemon's links. docs/formats/node-messages.md draws the link's part of a hello.

use crate::hello::LinkWord;
use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::{Life, SlotIndex};

/// Most addresses of a node.
pub const LINKS_MAX: usize = 4;
/// Hellos over which loss is counted: as many as a word has bits.
const WINDOW: u8 = 64;
/// Hellos in a row after a silence before a link works again: one alone may be a straggler.
const RETURN_HELLOS: u32 = 2;
/// Full-sized hellos that must be missing one after the other. Chosen: three polls are half of the detection time at the defaults.
const FULL_MISSED: u32 = 3;
/// The last plain hellos that all must have come meanwhile: where those are lost, too, it is not the size.
const PLAIN_CAME: u64 = 0b1111;
/// Parts of which the newest round trip makes one in the average.
const ROUND_TRIP_PARTS: u64 = 8;

/// The times that links are judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkTiming {
    /// Silence after which a link does not work.
    pub silent_us: u64,
}

impl LinkTiming {
    /// Three polls, at least 300 ms, and never more than half of the detection time: a stream must have moved before its edge goes.
    #[must_use]
    pub fn new(poll_ms: u32, detect_ms: u32) -> Self {
        let silent_ms = (3 * u64::from(poll_ms)).max(300).min(u64::from(detect_ms) / 2);
        Self { silent_us: silent_ms * 1000 }
    }
}

/// Why this node cannot send from the address of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnFault {
    /// The address is not on this machine.
    AddressGone,
    /// There is no way from it to the peer's address.
    NoRoute,
}

/// Does a link work?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Nothing was heard yet, and it is too early to miss it.
    New,
    /// Both ends hear each other.
    Up,
    /// Nothing is heard.
    Silent,
    /// The peer is heard, and says that it does not hear this node here.
    Unheard,
    /// This node cannot send on it.
    Faulty(OwnFault),
}

/// One link as people see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    /// The peer.
    pub slot: SlotIndex,
    /// Place of both addresses in their lists.
    pub link: u8,
    /// Does it work?
    pub state: LinkState,
    /// Of the last hellos from the peer so many did not come: lost, expected.
    pub lost_in: (u8, u8),
    /// The same of hellos to the peer, as it says.
    pub lost_out: (u8, u8),
    /// Average round trip.
    pub round_trip_us: Option<u64>,
    /// Size of full-sized packets, headers included; 0: none is known yet.
    pub full_bytes: u16,
    /// Full-sized packets from the peer do not come, while small ones do.
    pub loses_full_in: bool,
    /// Full-sized packets to the peer do not arrive, while small ones do.
    pub loses_full_out: bool,
    /// Largest packets of this end and of the peer's; 0: not known.
    pub mtu: (u16, u16),
}

/// What changed, worth a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkNews {
    /// A link works now, or does not any more.
    State {
        /// The link.
        link: LinkStatus,
        /// Before.
        was: LinkState,
    },
    /// Full-sized packets are lost, or pass again.
    FullSize {
        /// The link.
        link: LinkStatus,
    },
    /// The stream with this peer should use this link.
    Use {
        /// The peer.
        slot: SlotIndex,
        /// Which.
        link: u8,
    },
}

/// Numbers of one kind of hello as they come.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u32,
    /// Bit n: the one n before the highest came.
    came: u64,
    expected: u8,
}

impl Window {
    fn note(&mut self, sequence: u32) {
        if self.expected == 0 {
            *self = Self { highest: sequence, came: 1, expected: 1 };
        } else if sequence > self.highest {
            let steps = sequence - self.highest;
            self.came = self.came.checked_shl(steps).unwrap_or(0) | 1;
            self.expected = u8::try_from(u32::from(self.expected).saturating_add(steps)).unwrap_or(WINDOW).min(WINDOW);
            self.highest = sequence;
        } else {
            self.came |= 1u64.checked_shl(self.highest - sequence).unwrap_or(0);
        }
    }

    fn lost(&self) -> u8 {
        let all = u64::MAX.checked_shr(u32::from(WINDOW - self.expected)).unwrap_or(0);
        u8::try_from((!self.came & all).count_ones()).unwrap_or(WINDOW)
    }
}

/// What was heard on a link from one life.
#[derive(Clone, Copy, Debug)]
struct Heard {
    life: Life,
    plain: Window,
    full: u32,
    last_us: u64,
    /// Hellos without a silence between them.
    in_row: u32,
    /// The peer's newest stamp, and when it came.
    echo: (u64, u64),
    /// Its newest plain hello.
    word: LinkWord,
    loses_full: bool,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    since_us: u64,
    state: LinkState,
    up_since_us: u64,
    sequence: u32,
    full_sent: u32,
    mtu: u16,
    fault: Option<OwnFault>,
    heard: Option<Heard>,
    round_trip_us: Option<u64>,
    /// The verdicts over full-sized packets that were told.
    told_full: (bool, bool),
}

impl Link {
    fn new(now_us: u64) -> Self {
        Self {
            since_us: now_us,
            state: LinkState::New,
            up_since_us: now_us,
            sequence: 0,
            full_sent: 0,
            mtu: 0,
            fault: None,
            heard: None,
            round_trip_us: None,
            told_full: (false, false),
        }
    }

    fn hears(&self, now_us: u64, timing: LinkTiming) -> bool {
        let is_fresh = |heard: &Heard| heard.in_row >= RETURN_HELLOS && now_us.saturating_sub(heard.last_us) <= timing.silent_us;
        self.heard.as_ref().is_some_and(is_fresh)
    }

    fn loses_full(&self) -> (bool, bool) {
        self.heard.as_ref().map_or((false, false), |heard| (heard.loses_full, heard.word.misses_full))
    }

    fn is_good(&self) -> bool {
        self.state == LinkState::Up && self.loses_full() == (false, false)
    }

    /// The size that packets of both ends can have.
    fn full_bytes(&self) -> u16 {
        match self.heard.map_or(0, |heard| heard.word.mtu) {
            0 => self.mtu,
            theirs => self.mtu.min(theirs),
        }
    }

    fn say(&mut self, now_us: u64, timing: LinkTiming, link: u8, is_full: bool) -> LinkWord {
        let hears = self.hears(now_us, timing);
        let heard = self.heard.as_ref();
        let sequence = if is_full { &mut self.full_sent } else { &mut self.sequence };
        *sequence = sequence.saturating_add(1);
        // A stamp that was kept for over an hour is of no use to anybody.
        let held = heard.and_then(|heard| Some((heard.echo.0, u32::try_from(now_us.saturating_sub(heard.echo.1)).ok()?)));
        let (echo_us, held_us) = held.unwrap_or_default();
        LinkWord {
            link,
            is_full,
            hears,
            misses_full: heard.is_some_and(|heard| heard.loses_full),
            lost: heard.map_or(0, |heard| heard.plain.lost()),
            expected: heard.map_or(0, |heard| heard.plain.expected),
            mtu: self.mtu,
            sequence: *sequence,
            full_sent: self.full_sent,
            held_us,
            sent_us: now_us,
            echo_us,
        }
    }

    fn hear(&mut self, now_us: u64, timing: LinkTiming, life: Life, word: &LinkWord) {
        let fresh = Heard {
            life,
            plain: Window::default(),
            // What was sent before this end listened is not missed.
            full: word.full_sent,
            last_us: now_us,
            in_row: 0,
            echo: (0, now_us),
            word: *word,
            loses_full: false,
        };
        let heard = self.heard.get_or_insert(fresh);
        if heard.life != life {
            // A straggler of an earlier life, or one that the membership will not believe either, while the present one speaks.
            if now_us.saturating_sub(heard.last_us) <= timing.silent_us {
                return;
            }
            *heard = fresh;
        }
        if word.is_full {
            heard.full = heard.full.max(word.sequence);
            heard.loses_full = false;
            return;
        }
        let is_newest = heard.plain.expected == 0 || word.sequence > heard.plain.highest;
        heard.plain.note(word.sequence);
        if now_us.saturating_sub(heard.last_us) > timing.silent_us {
            heard.in_row = 0;
        }
        heard.in_row = heard.in_row.saturating_add(1);
        heard.last_us = now_us;
        if !is_newest {
            return;
        }
        heard.word = *word;
        heard.echo = (word.sent_us, now_us);
        let is_size = heard.plain.expected >= 4 && heard.plain.came & PLAIN_CAME == PLAIN_CAME;
        heard.loses_full |= is_size && word.full_sent.saturating_sub(heard.full) >= FULL_MISSED;
        let sent_us = word.echo_us.saturating_add(u64::from(word.held_us));
        // An echo of an earlier life of this node is none.
        if word.echo_us >= self.since_us && sent_us <= now_us {
            let sample = now_us - sent_us;
            self.round_trip_us = Some(self.round_trip_us.map_or(sample, |past| past - past / ROUND_TRIP_PARTS + sample / ROUND_TRIP_PARTS));
        }
    }

    fn judge(&self, now_us: u64, timing: LinkTiming) -> LinkState {
        if let Some(fault) = self.fault {
            return LinkState::Faulty(fault);
        }
        if self.hears(now_us, timing) {
            let is_heard = self.heard.is_some_and(|heard| heard.word.hears);
            // At the start the peer has not heard enough yet.
            let is_early = self.state == LinkState::New && now_us.saturating_sub(self.since_us) <= 2 * timing.silent_us;
            return match (is_heard, is_early) {
                (true, _) => LinkState::Up,
                (false, true) => LinkState::New,
                (false, false) => LinkState::Unheard,
            };
        }
        let is_early = self.state == LinkState::New && now_us.saturating_sub(self.since_us) <= 2 * timing.silent_us;
        if is_early { LinkState::New } else { LinkState::Silent }
    }

    fn status(&self, slot: SlotIndex, link: u8) -> LinkStatus {
        let (loses_full_in, loses_full_out) = self.loses_full();
        let (plain, word) = self.heard.map_or_else(Default::default, |heard| (heard.plain, heard.word));
        LinkStatus {
            slot,
            link,
            state: self.state,
            lost_in: (plain.lost(), plain.expected),
            lost_out: (word.lost, word.expected),
            round_trip_us: self.round_trip_us,
            full_bytes: self.full_bytes(),
            loses_full_in,
            loses_full_out,
            mtu: (self.mtu, word.mtu),
        }
    }
}

/// All links of a node. See the module's head.
#[derive(Clone, Debug)]
pub struct LinkTable {
    timing: LinkTiming,
    links: BTreeMap<(SlotIndex, u8), Link>,
    /// The link that each peer's stream uses, or should.
    streams: BTreeMap<SlotIndex, u8>,
    last_poll_us: u64,
}

impl LinkTable {
    /// No links yet.
    #[must_use]
    pub fn new(timing: LinkTiming, now_us: u64) -> Self {
        Self { timing, links: BTreeMap::new(), streams: BTreeMap::new(), last_poll_us: now_us }
    }

    /// There is a link for every index below a peer's number; others are forgotten.
    pub fn follow(&mut self, now_us: u64, peers: &BTreeMap<SlotIndex, u8>) {
        self.links.retain(|(slot, link), _| peers.get(slot).is_some_and(|count| link < count));
        self.streams.retain(|slot, link| peers.get(slot).is_some_and(|count| *link < *count));
        for (slot, count) in peers {
            for link in 0..*count {
                self.links.entry((*slot, link)).or_insert_with(|| Link::new(now_us));
            }
        }
    }

    /// The link's part of the next hello to a peer; none if there is no such link.
    pub fn say(&mut self, now_us: u64, slot: SlotIndex, link: u8, is_full: bool) -> Option<LinkWord> {
        let timing = self.timing;
        Some(self.links.get_mut(&(slot, link))?.say(now_us, timing, link, is_full))
    }

    /// A hello of this life came on a link.
    pub fn hear(&mut self, now_us: u64, life: Life, word: &LinkWord) {
        if let Some(link) = self.links.get_mut(&(life.slot, word.link)) {
            link.hear(now_us, self.timing, life, word);
        }
    }

    /// What came of sending on a link.
    pub fn handle_sent(&mut self, slot: SlotIndex, link: u8, fault: Option<OwnFault>) {
        if let Some(link) = self.links.get_mut(&(slot, link)) {
            link.fault = fault;
        }
    }

    /// The largest packet that this end can send on a link, headers included.
    pub fn handle_mtu(&mut self, slot: SlotIndex, link: u8, mtu: u16) {
        if let Some(link) = self.links.get_mut(&(slot, link)) {
            link.mtu = mtu;
        }
    }

    /// Size of a full-sized packet on a link, headers included.
    #[must_use]
    pub fn full_bytes(&self, slot: SlotIndex, link: u8) -> u16 {
        self.links.get(&(slot, link)).map_or(0, Link::full_bytes)
    }

    /// The stream with a peer stands on this link.
    pub fn handle_stream(&mut self, slot: SlotIndex, link: u8) {
        if self.links.contains_key(&(slot, link)) {
            self.streams.insert(slot, link);
        }
    }

    /// Judges every link; to be called once per poll.
    pub fn poll(&mut self, now_us: u64) -> Vec<LinkNews> {
        let gap_us = now_us.saturating_sub(self.last_poll_us);
        self.last_poll_us = now_us;
        // What came meanwhile waits in the sockets: nobody was silent while this node did not look.
        if gap_us > self.timing.silent_us {
            for heard in self.links.values_mut().filter_map(|link| link.heard.as_mut()) {
                heard.last_us = heard.last_us.saturating_add(gap_us).min(now_us);
            }
            return Vec::new();
        }
        let mut news = Vec::new();
        for ((slot, index), link) in &mut self.links {
            let was = link.state;
            link.state = link.judge(now_us, self.timing);
            if link.state == LinkState::Up && was != LinkState::Up {
                link.up_since_us = now_us;
            }
            if link.state != was {
                news.push(LinkNews::State { link: link.status(*slot, *index), was });
            }
            if link.loses_full() != link.told_full {
                link.told_full = link.loses_full();
                news.push(LinkNews::FullSize { link: link.status(*slot, *index) });
            }
        }
        self.choose(now_us, &mut news);
        news
    }

    /// The stream leaves its link only if that is not good any more, and only for a better one.
    fn choose(&mut self, now_us: u64, news: &mut Vec<LinkNews>) {
        let mut best: BTreeMap<SlotIndex, ((bool, bool, bool), u8)> = BTreeMap::new();
        for ((slot, index), link) in self.links.iter().filter(|(_, link)| link.state == LinkState::Up) {
            let is_current = self.streams.get(slot) == Some(index);
            let is_settled = now_us.saturating_sub(link.up_since_us) > 2 * self.timing.silent_us;
            let rank = (link.is_good(), is_current, is_settled);
            if best.get(slot).is_none_or(|(other, _)| rank > *other) {
                best.insert(*slot, (rank, *index));
            }
        }
        for (slot, (_, link)) in best {
            if self.streams.insert(slot, link) != Some(link) {
                news.push(LinkNews::Use { slot, link });
            }
        }
    }

    /// Does another link of this peer work?
    #[must_use]
    pub fn has_other(&self, slot: SlotIndex, link: u8) -> bool {
        self.links.iter().any(|((other, index), state)| *other == slot && *index != link && state.state == LinkState::Up)
    }

    /// All links as people see them.
    pub fn status(&self) -> impl Iterator<Item = LinkStatus> {
        self.links.iter().map(|((slot, index), link)| link.status(*slot, *index))
    }
}

#[cfg(test)]
mod tests;
