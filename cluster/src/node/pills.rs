//! What: the writing of fencing requests and pills.
//! Owns: the own requests unit, the steps of each pill on each device.
//! Invariants: the request is durable on a majority before the pill is written; a pill counts as written only when a read issued after
//!   the write returned the very bytes, on a majority of devices.
//! Does not: decide whom to fence, or judge what follows.
//! Called by: the node.

use super::{DiskWork, Part};
use deadbolt_disk_format::{ClusterUuid, FenceRequest, Layout, Life, Place, Requests, ViewNumber, records::REQUESTS_MAX, sbd};
use deadbolt_qdisk_core::register::DiskOpKind;
use std::collections::VecDeque;

#[derive(Debug)]
struct Pill {
    victim: Life,
    view: ViewNumber,
    serial: u64,
    /// The mailbox sector per device.
    sectors: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    Request,
    Mailbox,
}

/// One pill at a time; the others wait.
#[derive(Debug)]
pub(super) struct Pills {
    me: Life,
    cluster: ClusterUuid,
    waiting: VecDeque<Pill>,
    current: Option<Pill>,
    step: Step,
    pending: usize,
    good: usize,
    asked: usize,
    sequence: u64,
    requests: VecDeque<FenceRequest>,
    serial: u64,
}

impl Pills {
    pub(super) fn new(me: Life, cluster: ClusterUuid) -> Self {
        Self {
            me,
            cluster,
            waiting: VecDeque::new(),
            current: None,
            step: Step::Idle,
            pending: 0,
            good: 0,
            asked: 0,
            sequence: 0,
            requests: VecDeque::new(),
            serial: 0,
        }
    }

    pub(super) fn begin(&mut self, victim: Life, view: ViewNumber, serial: u64, sectors: Vec<Vec<u8>>) {
        self.waiting.push_back(Pill { victim, view, serial, sectors });
    }

    /// Work for the present step, once.
    pub(super) fn poll_work(&mut self, layouts: &[Layout]) -> Vec<DiskWork> {
        if self.step == Step::Idle
            && let Some(pill) = self.waiting.pop_front()
        {
            self.serial = self.serial.wrapping_add(1) & 0xffff_ffff;
            self.remember(&pill);
            self.current = Some(pill);
            self.step = Step::Request;
            return self.ask(layouts);
        }
        if self.step == Step::Mailbox && self.asked == 0 { self.ask(layouts) } else { Vec::new() }
    }

    fn remember(&mut self, pill: &Pill) {
        self.requests.retain(|request| request.victim != pill.victim);
        self.requests.push_back(FenceRequest { victim: pill.victim, view: pill.view, serial: pill.serial });
        while self.requests.len() > REQUESTS_MAX {
            self.requests.pop_front();
        }
    }

    fn ask(&mut self, layouts: &[Layout]) -> Vec<DiskWork> {
        let Some(pill) = &self.current else { return Vec::new() };
        self.sequence += u64::from(self.step == Step::Request);
        let mut work = Vec::new();
        for (device, layout) in layouts.iter().enumerate() {
            let kind = match self.step {
                Step::Request => self.request_write(layout),
                Step::Mailbox => pill.sectors.get(device).map(|sector| mailbox_write(layout, &pill.victim, sector)),
                Step::Idle => None,
            };
            work.extend(kind.map(|kind| DiskWork { tag: Part::Pill.tag(self.tag(device)), device, kind }));
        }
        self.asked = layouts.len();
        self.pending = work.len();
        self.good = 0;
        work
    }

    /// Serial of the pill and the step, so that a late answer of an earlier step is not taken for this one; the device in the low byte.
    fn tag(&self, device: usize) -> u64 {
        let step: u64 = if self.step == Step::Mailbox { 1 } else { 0 };
        (self.serial << 16) | (step << 8) | u64::try_from(device).unwrap_or(0xff)
    }

    fn request_write(&self, layout: &Layout) -> Option<DiskOpKind> {
        let place = Place { cluster: self.cluster, offset: layout.request(self.me.slot), slot: self.me.slot };
        let unit =
            Requests { life: self.me, sequence: self.sequence, requests: self.requests.iter().copied().collect() }.encode(&place).ok()?;
        Some(DiskOpKind::Write { offset: place.offset, data: unit.to_vec() })
    }

    /// Takes an answer; says how the pill ended once it did.
    pub(super) fn handle_done(&mut self, tag: u64, result: Result<&[u8], &()>) -> Option<(Life, bool)> {
        let device = usize::try_from(tag & 0xff).unwrap_or(usize::MAX);
        if self.step == Step::Idle || self.tag(device) != tag {
            return None;
        }
        let expected: &[u8] = match (self.step, &self.current) {
            (Step::Mailbox, Some(pill)) => pill.sectors.get(device).map_or(&[], Vec::as_slice),
            _ => &[],
        };
        self.pending = self.pending.saturating_sub(1);
        self.good += usize::from(result.is_ok_and(|bytes| bytes == expected));
        let is_majority = self.good * 2 > self.asked;
        if !is_majority && self.pending > 0 {
            return None;
        }
        self.asked = 0;
        match (is_majority, self.step) {
            (true, Step::Request) => {
                self.step = Step::Mailbox;
                None
            }
            (is_written, _) => {
                self.step = Step::Idle;
                self.current.take().map(|pill| (pill.victim, is_written))
            }
        }
    }
}

fn mailbox_write(layout: &Layout, victim: &Life, sector: &[u8]) -> DiskOpKind {
    let offset = deadbolt_disk_format::ByteOffset(sbd::mailbox_offset(victim.slot, layout.sector_bytes));
    DiskOpKind::WriteThenRead { write_offset: offset, data: sector.to_vec(), read_offset: offset, read_bytes: sector.len() }
}
