//! What: one resource at its master: the granted, converting and waiting locks and the value block.
//! Owns: the grant rules, conversion deadlock, blocking callbacks, value block traffic, the token counter.
//! Invariants: granted modes (of granted and converting locks) are pairwise compatible; nothing is granted under a closed gate but what only
//! gives up (unlock, down-conversion); every operation number is answered exactly once, and again when its holder asks in recovery.
//! Does not: know nodes' membership, sessions or messages.
//! Called by: `service`.

mod edges;
mod fairness;
mod line;
mod ranges;

use crate::client::Lvb;
use crate::mode::{Flags, LockStatus, LvbTransfer, MODES, Mode, ResultFlags, Token};
use crate::peers::PeerId;
use crate::ranges::Ranges;
use crate::wire::{LvbCopy, OpKind, OpResult, Party, Report, ReportOp};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
pub(crate) use edges::{ResourceBlocker, ResourceWait};
use fairness::Passes;
use line::Line;

/// New requests that may wait for one resource.
const WAITERS_MAX: usize = 16_384;

/// A lock as its master knows it: whose, and the number that the owner gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Owner {
    pub(crate) peer: PeerId,
    pub(crate) lock: u32,
}

/// May new locks be granted, and with which numbers?
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub(crate) now_ms: u64,
    pub(crate) view: u64,
    pub(crate) may_grant: bool,
}

/// What a holder must be told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    Completed(OpResult),
    Blocking(Mode),
    /// A range operation ended.
    Range {
        op: u64,
        status: LockStatus,
    },
}

pub(crate) type Notices = Vec<(Owner, Notice)>;

/// One lock on one of the queues.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) owner: Owner,
    pub(crate) pid: u32,
    /// Session or transaction: the number beside the flag takes half of what `Party` takes.
    party: u64,
    is_transaction: bool,
    pub(crate) granted: Option<Mode>,
    pub(crate) wanted: Option<Mode>,
    /// How the last operation ended, to say it again after a view in which the answer was lost.
    status: LockStatus,
    result: ResultFlags,
    is_read: bool,
    /// Strongest mode that the holder was told about since its grant.
    told: Option<Mode>,
    adopted: Adopted,
    pub(crate) op: u64,
    pub(crate) flags: Flags,
    pub(crate) token: Token,
    pub(crate) since_ms: u64,
    value: Option<Box<Value>>,
}

/// There are as many as locks.
const _: () = assert!(size_of::<Entry>() == 72);

/// What an operation has to do with the value block, where it has.
#[derive(Clone, Debug)]
enum Value {
    /// Content that is to be written with the grant.
    Offered(Lvb),
    /// Number that the value block had by this lock's own last write; 0: it has none that its copy may go by.
    Written(u64),
}

/// Is a conversion one that was under way at a lost master, which may have granted it?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Adopted {
    No,
    Yes,
    /// To be taken back once it is certain that the lost master had not granted it.
    Cancelled,
}

impl Entry {
    pub(crate) fn new(owner: Owner, whose: (u32, Party), op: u64, mode: Mode, flags: Flags, now_ms: u64) -> Self {
        let mut entry = Self {
            owner,
            pid: 0,
            party: 0,
            is_transaction: false,
            granted: None,
            wanted: Some(mode),
            status: LockStatus::Success,
            result: ResultFlags::default(),
            is_read: false,
            told: None,
            adopted: Adopted::No,
            op,
            flags,
            token: Token::default(),
            since_ms: now_ms,
            value: None,
        };
        entry.rename(whose);
        entry
    }

    pub(crate) fn party(&self) -> Party {
        if self.is_transaction { Party::Transaction(self.party) } else { Party::Session(self.party) }
    }

    fn rename(&mut self, (pid, party): (u32, Party)) {
        self.pid = pid;
        (self.is_transaction, self.party) = match party {
            Party::Session(session) => (false, session),
            Party::Transaction(transaction) => (true, transaction),
        };
    }

    fn offer(&mut self, lvb: Option<Lvb>) {
        self.value = lvb.map(|lvb| Box::new(Value::Offered(lvb)));
    }

    fn offered(&self) -> Option<Lvb> {
        match self.value.as_deref() {
            Some(Value::Offered(lvb)) => Some(*lvb),
            _ => None,
        }
    }

    fn written(&self) -> Option<u64> {
        match self.value.as_deref() {
            Some(Value::Written(sequence)) => Some(*sequence),
            _ => None,
        }
    }

    /// The mode to be content with.
    fn alternative(&self) -> Option<Mode> {
        match self.flags {
            flags if flags.has(Flags::ALTPR) => Some(Mode::Pr),
            flags if flags.has(Flags::ALTCW) => Some(Mode::Cw),
            _ => None,
        }
    }

    /// The mode that the lost master may have granted and that lets others in which the mode known here keeps out. (At most one: of the
    /// wanted mode and the alternative one is stronger than the granted mode, or the alternative is the granted mode.)
    fn lost_mode(&self) -> Option<Mode> {
        let granted = self.granted.filter(|_| self.adopted != Adopted::No)?;
        let lets_in = |mode: &Mode| MODES.into_iter().any(|other| other.is_compatible(*mode) && !other.is_compatible(granted));
        self.wanted.into_iter().chain(self.alternative()).find(lets_in)
    }
}

/// Operations that came while the gate was closed, or just now: judged in order.
#[derive(Clone, Debug)]
enum Arrival {
    New(Entry),
    Convert(Owner),
}

/// Where a request stands when it is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Now,
    First,
    Behind,
}

/// A resource at its master.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    granted: Line,
    converting: Line,
    waiting: Line,
    arrivals: VecDeque<Arrival>,
    passes: Passes,
    /// Some conversions were adopted from a lost master and not judged yet.
    has_adopted: bool,
    /// Granted locks may stand in the way of others without having heard of it.
    is_untold: bool,
    /// Which modes were waited for when holders were last told.
    told: [bool; 6],
    ranges: Option<Box<Ranges>>,
    /// None: never written.
    lvb: Option<Box<LvbCopy>>,
    /// Last token counter given in the present view.
    pub(crate) counter: u64,
}

fn blocks(entry: &Entry, mode: Mode) -> bool {
    entry.granted.is_some_and(|granted| !granted.is_compatible(mode))
}

/// A holder hears of a mode that it blocks once, and not of weaker ones after it.
fn tell(holder: &mut Entry, mode: Mode, out: &mut Notices) {
    if blocks(holder, mode) && holder.told < Some(mode) {
        holder.told = Some(mode);
        out.push((holder.owner, Notice::Blocking(mode)));
    }
}

impl Resource {
    /// A resource without locks, whose tokens go on after `counter`.
    pub(crate) fn with_counter(counter: u64) -> Self {
        Self { counter, ..Self::default() }
    }

    /// A resource with one lock, granted.
    pub(crate) fn with_holder(entry: Entry, counter: u64) -> Self {
        let mut resource = Self { counter, ..Self::default() };
        resource.put_granted(entry);
        resource
    }

    /// No lock is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.converting.is_empty() && self.waiting.is_empty() && self.arrivals.is_empty()
    }

    /// All entries, with their queue: granted, converting, waiting (arrivals count as waiting).
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let arrived = self.arrivals.iter().filter_map(|arrival| match arrival {
            Arrival::New(entry) => Some(entry),
            Arrival::Convert(_) => None,
        });
        self.granted.iter().chain(self.converting.iter()).chain(self.waiting.iter()).chain(arrived)
    }

    fn queues(&mut self) -> [&mut Line; 3] {
        [&mut self.granted, &mut self.converting, &mut self.waiting]
    }

    pub(crate) fn has(&self, owner: Owner) -> bool {
        let is_queued = self.granted.contains(owner) || self.converting.contains(owner) || self.waiting.contains(owner);
        is_queued || self.arrivals.iter().any(|arrival| matches!(arrival, Arrival::New(entry) if entry.owner == owner))
    }

    pub(crate) fn find_mut(&mut self, owner: Owner) -> Option<&mut Entry> {
        if self.arrivals.is_empty() || self.granted.contains(owner) {
            return self.queues().into_iter().find_map(|queue| queue.get_mut(owner));
        }
        let arrived = self.arrivals.iter_mut().filter_map(|arrival| match arrival {
            Arrival::New(entry) => Some(entry),
            Arrival::Convert(_) => None,
        });
        let queued = [&mut self.granted, &mut self.converting, &mut self.waiting].into_iter().find_map(|queue| queue.get_mut(owner));
        queued.or_else(|| arrived.into_iter().find(|entry| entry.owner == owner))
    }

    fn take(&mut self, owner: Owner) -> Option<Entry> {
        let arrived = self.arrivals.iter().position(|arrival| match arrival {
            Arrival::New(entry) => entry.owner == owner,
            Arrival::Convert(converting) => *converting == owner,
        });
        if let Some(index) = arrived
            && let Some(Arrival::New(entry)) = self.arrivals.remove(index)
        {
            return Some(entry);
        }
        self.queues().into_iter().find_map(|queue| queue.take(owner))
    }

    /// The grant rules, in their order (design facts 1.2); rule 4 is not needed because order is kept or judged anew. Among those who are
    /// compatible, who was passed too often goes first.
    fn is_grantable(&self, entry: &Entry, mode: Mode, place: Place) -> bool {
        if entry.flags.has(Flags::EXPEDITE) && mode == Mode::Nl && entry.granted.is_none() {
            return true;
        }
        let own = usize::from(place != Place::Now && blocks(entry, mode));
        if self.granted.excluders(mode) + self.converting.excluders(mode) > own {
            return false;
        }
        if self.yields_to(entry, place).is_some() {
            return false;
        }
        match (entry.granted.is_some(), place) {
            (true, Place::Now) => !entry.flags.has(Flags::QUECVT) || self.converting.is_empty(),
            (_, _) if entry.flags.has(Flags::NOORDER) => true,
            (true, place) => place == Place::First,
            (false, Place::Now) => self.converting.is_empty() && self.waiting.is_empty(),
            (false, place) => place == Place::First && (self.converting.is_empty() || self.is_waiting_owed()),
        }
    }

    /// The mode in which it can be granted here, if any: the wanted one or its alternative.
    fn grantable_mode(&self, entry: &Entry, place: Place) -> Option<(Mode, bool)> {
        let wanted = entry.wanted?;
        if self.is_grantable(entry, wanted, place) {
            return Some((wanted, false));
        }
        let alternative = entry.alternative()?;
        (alternative != wanted && self.is_grantable(entry, alternative, place)).then_some((alternative, true))
    }

    fn write_lvb(&mut self, flags: Flags, lvb: Option<Lvb>) {
        if flags.has(Flags::IVVALBLK) {
            self.mark_lvb(true);
        } else if let (true, Some(value)) = (flags.has(Flags::VALBLK), lvb) {
            let copy = self.lvb.get_or_insert_default();
            **copy = LvbCopy { sequence: copy.sequence.saturating_add(1), is_invalid: false, value: Some(value) };
        }
    }

    pub(crate) fn lvb(&self) -> LvbCopy {
        self.lvb.as_deref().copied().unwrap_or_default()
    }

    /// May its value block not be the last one written?
    pub(crate) fn mark_lvb(&mut self, is_invalid: bool) {
        if self.lvb().is_invalid != is_invalid {
            self.lvb.get_or_insert_default().is_invalid = is_invalid;
        }
    }

    fn next_token(&mut self, gate: Gate) -> Token {
        // Saturates: the number comes from another node, and a parser must not panic.
        self.counter = self.counter.saturating_add(1);
        Token { view: gate.view, counter: self.counter }
    }

    /// Grants `entry` in `mode` and tells its holder. The caller has taken it off its queue.
    fn grant(&mut self, mut entry: Entry, mode: Mode, is_alternative: bool, gate: Gate, out: &mut Notices) {
        let transfer = mode.lvb_transfer(entry.granted);
        let before = self.lvb().sequence;
        if transfer == LvbTransfer::Write {
            self.write_lvb(entry.flags, entry.offered());
        }
        entry.value = (self.lvb().sequence != before).then(|| Box::new(Value::Written(self.lvb().sequence)));
        let is_given_up = entry.granted.is_some_and(|granted| mode < granted && !granted.is_middle(mode));
        if !is_given_up {
            entry.token = self.next_token(gate);
        }
        if is_alternative {
            entry.result = entry.result.with(ResultFlags::ALTMODE);
        }
        entry.is_read = transfer == LvbTransfer::Read && entry.flags.has(Flags::VALBLK);
        entry.status = LockStatus::Success;
        entry.granted = Some(mode);
        entry.wanted = None;
        entry.told = None;
        entry.since_ms = gate.now_ms;
        out.push((entry.owner, Notice::Completed(self.result_of(&entry))));
        self.put_granted(entry);
    }

    /// As `grant`, for an operation that has not had a turn on a queue.
    fn grant_at_once(&mut self, mut entry: Entry, mode: Mode, is_alternative: bool, gate: Gate, out: &mut Notices) {
        if entry.flags.has(Flags::SYNCSTS) {
            entry.result = entry.result.with(ResultFlags::SYNCH);
        }
        self.grant(entry, mode, is_alternative, gate, out);
    }

    fn put_granted(&mut self, entry: Entry) {
        self.is_untold = true;
        self.granted.push_by_mode(entry);
    }

    /// What the holder is told of its last operation.
    fn result_of(&self, entry: &Entry) -> OpResult {
        let mut flags = entry.result;
        let is_success = entry.status == LockStatus::Success;
        if is_success && entry.flags.has(Flags::VALBLK) && self.lvb().is_invalid {
            flags = flags.with(ResultFlags::VALNOTVALID);
        }
        let value = if is_success && entry.is_read { self.lvb().value } else { None };
        let token = if is_success { entry.token } else { Token::default() };
        let lvb = match entry.written().filter(|_| is_success) {
            // Said again, others may have written since: what this holder wrote must not go by their number.
            Some(sequence) => LvbCopy { sequence, is_invalid: self.lvb().is_invalid || self.lvb().sequence != sequence, value: None },
            None => LvbCopy { value, ..self.lvb() },
        };
        OpResult { op: entry.op, status: entry.status, mode: entry.granted, flags, token, lvb }
    }

    /// An operation that failed: a lock that was granted keeps what it has; a new one is gone.
    fn fail(&mut self, mut entry: Entry, status: LockStatus, out: &mut Notices) {
        entry.status = status;
        entry.wanted = None;
        // They were about this operation; the lock's next one is another matter.
        entry.adopted = Adopted::No;
        out.push((entry.owner, Notice::Completed(self.result_of(&entry))));
        if entry.granted.is_some() {
            self.put_granted(entry);
        }
    }

    /// A new lock is asked for.
    pub(crate) fn request(&mut self, entry: Entry, gate: Gate, out: &mut Notices) {
        if !gate.may_grant && self.waiting.len() + self.arrivals.len() >= WAITERS_MAX {
            self.fail(entry, LockStatus::NoMemory, out);
            return;
        }
        self.arrivals.push_back(Arrival::New(entry));
        self.settle(gate, out);
    }

    /// A granted lock is to change its mode. A holder has one operation at a time, so the lock is on the granted queue.
    pub(crate) fn convert(&mut self, owner: Owner, op: u64, mode: Mode, (flags, lvb): (Flags, Option<Lvb>), gate: Gate, out: &mut Notices) {
        let Some(mut entry) = self.granted.take(owner) else { return };
        entry.op = op;
        entry.wanted = Some(mode);
        entry.flags = flags;
        entry.offer(lvb);
        entry.result = ResultFlags::default();
        entry.since_ms = gate.now_ms;
        if entry.granted.is_some_and(|granted| mode < granted && granted.is_down(mode)) {
            self.grant_at_once(entry, mode, false, gate, out);
        } else {
            self.put_granted(entry);
            self.arrivals.push_back(Arrival::Convert(owner));
        }
        self.settle(gate, out);
    }

    /// A lock is given back, whatever queue it is on; unknown locks count as given back.
    pub(crate) fn unlock(&mut self, owner: Owner, op: u64, (flags, lvb): (Flags, Option<Lvb>), gate: Gate, out: &mut Notices) {
        if let Some(entry) = self.take(owner)
            && entry.granted.is_some_and(Mode::is_writer)
        {
            self.write_lvb(flags, lvb);
        }
        self.drop_ranges(owner);
        out.push((owner, Notice::Completed(self.unlocked(op))));
        self.settle(gate, out);
    }

    fn unlocked(&self, op: u64) -> OpResult {
        let lvb = LvbCopy { value: None, ..self.lvb() };
        OpResult { op, status: LockStatus::Unlocked, mode: None, flags: ResultFlags::default(), token: Token::default(), lvb }
    }

    /// A request or conversion is taken back, unless it was granted already.
    pub(crate) fn cancel(&mut self, owner: Owner, op: u64, gate: Gate, out: &mut Notices) {
        if self.find_mut(owner).is_none_or(|entry| entry.op != op || entry.wanted.is_none()) {
            return;
        }
        if !gate.may_grant
            && let Some(entry) = self.find_mut(owner)
            && entry.lost_mode().is_some()
        {
            // A node that is owed may have been let in by a grant of which nobody else knows.
            entry.adopted = Adopted::Cancelled;
            return;
        }
        if let Some(entry) = self.take(owner) {
            self.fail(entry, LockStatus::Cancelled, out);
        }
        self.settle(gate, out);
    }

    /// Grants whatever can be granted, judges arrivals, tells who stands in the way.
    pub(crate) fn settle(&mut self, gate: Gate, out: &mut Notices) {
        if !gate.may_grant {
            return;
        }
        self.finish_lost_grants(true, gate, out);
        self.grant_pending(gate, out);
        while let Some(arrival) = self.arrivals.pop_front() {
            match arrival {
                Arrival::New(entry) => self.judge_new(entry, gate, out),
                Arrival::Convert(owner) => self.judge_convert(owner, gate, out),
            }
        }
        // Empty as long as the gate is open: no memory is kept for it.
        self.arrivals = VecDeque::new();
        self.has_adopted = false;
        self.settle_ranges(gate, out);
        self.tell_blockers(out);
    }

    fn judge_new(&mut self, entry: Entry, gate: Gate, out: &mut Notices) {
        if let Some((mode, is_alternative)) = self.grantable_mode(&entry, Place::Now) {
            if !entry.flags.has(Flags::EXPEDITE) {
                self.count_passed();
            }
            self.grant_at_once(entry, mode, is_alternative, gate, out);
        } else if entry.flags.has(Flags::NOQUEUE) {
            self.tell_refused(&entry, out);
            self.fail(entry, LockStatus::Again, out);
        } else if self.waiting.len() >= WAITERS_MAX {
            self.fail(entry, LockStatus::NoMemory, out);
        } else if self.may_lead(false, entry.flags) {
            self.stand(false, entry, true);
            // The first one need not be what those behind it waited for.
            self.grant_pending(gate, out);
        } else {
            self.stand(false, entry, false);
        }
    }

    fn judge_convert(&mut self, owner: Owner, gate: Gate, out: &mut Notices) {
        let Some(mut entry) = self.granted.take(owner) else { return };
        if core::mem::replace(&mut entry.adopted, Adopted::No) == Adopted::Cancelled {
            self.fail(entry, LockStatus::Cancelled, out);
            return;
        }
        if let Some((mode, is_alternative)) = self.grantable_mode(&entry, Place::Now) {
            if !entry.granted.is_some_and(|granted| granted.is_down(mode)) {
                self.count_passed();
            }
            self.grant_at_once(entry, mode, is_alternative, gate, out);
            self.grant_pending(gate, out);
            return;
        }
        if entry.flags.has(Flags::NOQUEUE) {
            self.tell_refused(&entry, out);
            self.fail(entry, LockStatus::Again, out);
            return;
        }
        let flags = entry.flags;
        let may_lead = self.may_lead(true, flags);
        let is_deadlock = self.is_deadlock(&entry, may_lead);
        let is_demoted = is_deadlock && flags.has(Flags::CONVDEADLK);
        if is_demoted {
            entry.granted = Some(Mode::Nl);
            entry.result = entry.result.with(ResultFlags::DEMOTED);
        } else if is_deadlock && flags.has(Flags::NODLCKWT) {
            // Instead of the refusal the one behind hears what the one ahead wants. At the end this one has heard it as a holder.
            let wanted = entry.wanted.filter(|_| may_lead);
            wanted.into_iter().for_each(|wanted| self.converting.iter_mut().for_each(|behind| tell(behind, wanted, out)));
        } else if is_deadlock {
            self.fail(entry, LockStatus::Deadlock, out);
            return;
        }
        // At the front it would still stand in the way of those that it was demoted for.
        self.stand(true, entry, may_lead && !is_demoted);
        // QUECVT kept it from passing others; at the front, or without order, it need not wait for them.
        if is_demoted || may_lead || flags.has(Flags::NOORDER) {
            self.grant_pending(gate, out);
        }
    }

    /// Would this conversion and one already queued wait for each other?
    fn is_deadlock(&self, entry: &Entry, is_leading: bool) -> bool {
        if is_leading {
            entry.wanted.is_some_and(|wanted| self.converting.excluders(wanted) > 0)
        } else {
            self.converting.wants_beside(entry.granted)
        }
    }

    /// A lock has changed hands; who has it now hears anew whom it keeps out.
    pub(crate) fn rename(&mut self, owner: Owner, whose: (u32, Party), gate: Gate, out: &mut Notices) {
        let Some(entry) = self.find_mut(owner) else { return };
        if (entry.pid, entry.party()) != whose {
            entry.rename(whose);
            entry.told = None;
            self.is_untold = true;
        }
        self.settle(gate, out);
    }

    fn grant_pending(&mut self, gate: Gate, out: &mut Notices) {
        loop {
            // A grant can enable an earlier one.
            while self.grant_in_turn(true, gate, out) {}
            let was_owed = self.is_waiting_owed();
            if !self.grant_in_turn(false, gate, out) || !was_owed {
                return;
            }
            // Conversions that let the first one go before them have their turn.
        }
    }

    /// One pass over the converting or the waiting locks; was anything granted?
    fn grant_in_turn(&mut self, is_converting: bool, gate: Gate, out: &mut Notices) -> bool {
        let (mut last_refused, mut has_granted) = (None, false);
        loop {
            let queue = if is_converting { &self.converting } else { &self.waiting };
            // Behind one that must wait only those that ignore the order can be granted.
            if last_refused.is_some() && !queue.has_disorder() {
                return has_granted;
            }
            let Some((turn, entry)) = queue.after(last_refused) else { return has_granted };
            let place = if last_refused.is_none() { Place::First } else { Place::Behind };
            let Some((mode, is_alternative)) = self.grantable_mode(entry, place) else {
                last_refused = Some(turn);
                continue;
            };
            let (owner, flags) = (entry.owner, entry.flags);
            if place == Place::First {
                self.count_turn(is_converting, flags);
            } else {
                self.count_passed();
            }
            let queue = if is_converting { &mut self.converting } else { &mut self.waiting };
            if let Some(entry) = queue.take(owner) {
                self.grant(entry, mode, is_alternative, gate, out);
            }
            has_granted = true;
        }
    }

    /// Each granted lock hears of the strongest queued mode that it blocks, once per strength.
    fn tell_blockers(&mut self, out: &mut Notices) {
        let wanted = MODES.map(|mode| self.converting.wants(mode) || self.waiting.wants(mode));
        let is_new = wanted.iter().zip(&self.told).any(|(now, before)| *now && !before);
        let is_untold = core::mem::take(&mut self.is_untold);
        self.told = wanted;
        if !wanted.contains(&true) || (!is_new && !is_untold) {
            return;
        }
        for entry in self.granted.iter_mut() {
            let is_blocked = |mode: &Mode| wanted.get(usize::from(mode.number())) == Some(&true) && blocks(entry, *mode);
            if let Some(mode) = MODES.into_iter().rev().find(is_blocked) {
                tell(entry, mode, out);
            }
        }
    }

    /// A failed try with NOQUEUEBAST tells granted and converting holders.
    fn tell_refused(&mut self, entry: &Entry, out: &mut Notices) {
        let Some(wanted) = entry.wanted.filter(|_| entry.flags.has(Flags::NOQUEUEBAST)) else { return };
        self.granted.iter_mut().chain(self.converting.iter_mut()).for_each(|holder| tell(holder, wanted, out));
    }

    /// Somebody waits, or was not judged yet.
    pub(crate) fn has_waiters(&self) -> bool {
        self.has_waits() || !self.arrivals.is_empty()
    }

    fn retain(&mut self, is_kept: impl Fn(&Entry) -> bool) -> Vec<Owner> {
        let gone: Vec<Owner> = self.entries().filter(|entry| !is_kept(entry)).map(|entry| entry.owner).collect();
        for owner in &gone {
            self.take(*owner);
        }
        self.arrivals.retain(|arrival| !matches!(arrival, Arrival::Convert(owner) if gone.contains(owner)));
        self.drop_stray_ranges();
        gone
    }

    /// Drops the locks of lives that are no more, and says which; a writer among them may have been about to write the value block.
    pub(crate) fn retain_peers(&mut self, is_kept: impl Fn(PeerId) -> bool) -> Vec<Owner> {
        let is_writer_gone = self.entries().any(|entry| !is_kept(entry.owner.peer) && entry.granted.is_some_and(Mode::is_writer));
        self.mark_lvb(self.lvb().is_invalid || is_writer_gone);
        self.is_untold = true;
        self.retain(|entry| is_kept(entry.owner.peer))
    }

    /// A view is learned: new requests of those who are not in it are dropped (what they hold stays), and says which; who stands in the way
    /// may not have heard of it.
    pub(crate) fn begin_view(&mut self, is_member: impl Fn(PeerId) -> bool) -> Vec<Owner> {
        self.is_untold = true;
        self.freeze_ranges();
        for entry in self.granted.iter_mut().chain(self.converting.iter_mut()) {
            entry.told = None;
        }
        self.retain(|entry| entry.granted.is_some() || is_member(entry.owner.peer))
    }

    /// A holder's report meets what this (continuing) master knows.
    pub(crate) fn reconcile(&mut self, origin: PeerId, report: &Report, gate: Gate, out: &mut Notices) {
        let owner = Owner { peer: origin, lock: report.lock };
        let Some(entry) = self.find_mut(owner) else {
            self.adopt(owner, report, gate, out);
            return self.settle(gate, out);
        };
        entry.rename((report.pid, report.party));
        let is_down = |(from, to): (Mode, Mode)| to < from && from.is_down(to);
        let lowered = entry.granted.zip(report.granted).filter(|modes| entry.op < report.op && is_down(*modes));
        if let Some((_, mode)) = lowered {
            // It was content with less while its master was not known.
            let op = report.op.saturating_sub(u64::from(report.pending.is_some()));
            self.convert(owner, op, mode, (Flags::NONE, None), gate, out);
        }
        let (Some(entry), Some(pending)) = (self.find_mut(owner), report.pending) else { return };
        let data = (pending.flags, pending.lvb);
        if pending.kind == OpKind::Unlock {
            self.unlock(owner, report.op, data, gate, out);
        } else if entry.op >= report.op {
            if entry.wanted.is_none() {
                self.say_again(owner, gate, out);
            } else if pending.is_cancelled {
                self.cancel(owner, report.op, gate, out);
            }
        } else if pending.is_cancelled {
            entry.op = report.op;
            entry.status = LockStatus::Cancelled;
            self.say_again(owner, gate, out);
        } else {
            self.convert(owner, report.op, pending.mode, data, gate, out);
        }
    }

    /// The answer to an operation that ended here was lost with its view. A grant gets a token of this view.
    fn say_again(&mut self, owner: Owner, gate: Gate, out: &mut Notices) {
        let token = self.next_token(gate);
        let Some(entry) = self.find_mut(owner) else { return };
        if entry.status == LockStatus::Success {
            entry.token = token;
        }
        let entry = entry.clone();
        out.push((owner, Notice::Completed(self.result_of(&entry))));
    }

    /// A lock that this master has never seen, or whose master is lost.
    pub(crate) fn adopt(&mut self, owner: Owner, report: &Report, gate: Gate, out: &mut Notices) {
        let mut entry = Entry::new(owner, (report.pid, report.party), report.op, Mode::Nl, Flags::NONE, gate.now_ms);
        entry.wanted = None;
        entry.granted = report.granted;
        entry.token = report.token;
        let Some(pending) = report.pending else {
            if entry.granted.is_some() {
                self.put_granted(entry);
            }
            return;
        };
        entry.flags = pending.flags;
        match (pending.kind, report.granted) {
            (OpKind::Unlock, _) => out.push((owner, Notice::Completed(self.unlocked(report.op)))),
            (OpKind::New, None) if pending.is_cancelled => self.fail(entry, LockStatus::Cancelled, out),
            (OpKind::New, None) => {
                entry.wanted = Some(pending.mode);
                self.arrivals.push_back(Arrival::New(entry));
            }
            (OpKind::Convert, Some(granted)) if pending.mode < granted && granted.is_down(pending.mode) => {
                entry.granted = Some(pending.mode);
                if is_write(granted, &pending) {
                    let sequence = if self.lvb().value == pending.lvb { self.lvb().sequence } else { 0 };
                    entry.value = Some(Box::new(Value::Written(sequence)));
                }
                out.push((owner, Notice::Completed(self.result_of(&entry))));
                self.put_granted(entry);
            }
            (OpKind::Convert, Some(_)) => {
                // The lost master may have demoted it already and granted others on the strength of that.
                if pending.flags.has(Flags::CONVDEADLK) {
                    entry.granted = Some(Mode::Nl);
                    entry.result = ResultFlags::DEMOTED;
                }
                entry.wanted = Some(pending.mode);
                entry.adopted = if pending.is_cancelled { Adopted::Cancelled } else { Adopted::Yes };
                self.has_adopted = true;
                if pending.is_cancelled && entry.lost_mode().is_none() {
                    self.fail(entry, LockStatus::Cancelled, out);
                } else {
                    entry.offer(pending.lvb);
                    self.put_granted(entry);
                    self.arrivals.push_back(Arrival::Convert(owner));
                }
            }
            (OpKind::New, Some(_)) | (OpKind::Convert, None) => {}
        }
    }

    /// A resource whose master is lost, from the reports of all its surviving holders.
    pub(crate) fn rebuild(reports: &[(PeerId, Report)], counter: u64, gate: Gate, out: &mut Notices) -> Self {
        let mut resource = Self { lvb: Some(Box::new(rebuild_lvb(reports))), counter, ..Self::default() };
        for (origin, report) in reports {
            resource.adopt(Owner { peer: *origin, lock: report.lock }, report, gate, out);
        }
        resource.order_arrivals();
        resource.finish_lost_grants(false, gate, out);
        resource
    }

    /// A resource whose last master lives and has changed nothing since: its locks in the order of its queues, as their holders have them, and
    /// then what these have under way.
    pub(crate) fn take_over(reports: &[(PeerId, Report)], lvb: LvbCopy, counter: u64, gate: Gate, out: &mut Notices) -> Self {
        let mut resource = Self { lvb: Some(Box::new(lvb)), counter, ..Self::default() };
        for (origin, report) in reports.iter().filter(|(_, report)| report.granted.is_some()) {
            let op = report.op.saturating_sub(u64::from(report.pending.is_some()));
            let held = Report { op, pending: None, ..*report };
            resource.adopt(Owner { peer: *origin, lock: report.lock }, &held, gate, out);
        }
        for (origin, report) in reports.iter().filter(|(_, report)| report.pending.is_some()) {
            resource.reconcile(*origin, report, gate, out);
        }
        resource.wait_as_they_stand();
        resource
    }

    /// Those who have waited already were judged: whatever their flags say of the end of the line, they stand where they stood.
    fn wait_as_they_stand(&mut self) {
        for arrival in core::mem::take(&mut self.arrivals) {
            match arrival {
                Arrival::New(entry) => self.stand(false, entry, false),
                convert @ Arrival::Convert(_) => self.arrivals.push_back(convert),
            }
        }
    }

    /// Can it go to another master: nobody converts, no byte range is locked, there are locks, but not more than this, of these holders alone?
    pub(crate) fn is_movable(&self, locks_max: usize, is_known: impl Fn(Owner) -> bool) -> bool {
        let is_quiet =
            !self.is_empty() && self.converting.is_empty() && self.arrivals.is_empty() && !self.has_adopted && self.ranges.is_none();
        is_quiet && self.granted.len() + self.waiting.len() <= locks_max && self.entries().all(|entry| is_known(entry.owner))
    }

    /// Two holders have what excludes each other: the lost master had granted a conversion of one of them before it let the other in, and
    /// the answer is lost. That grant is given again, gate or not. Two conversions may cross so that either can have been granted:
    /// one is chosen (`may_choose`) only when nobody unheard can rely on the other.
    fn finish_lost_grants(&mut self, may_choose: bool, gate: Gate, out: &mut Notices) {
        loop {
            let mut lost = self.lost_grants(true);
            if lost.is_empty() && may_choose {
                lost = self.lost_grants(false);
                lost.truncate(1);
            }
            if lost.is_empty() {
                return;
            }
            for (owner, mode) in lost {
                let Some(mut entry) = self.take(owner) else { continue };
                entry.adopted = Adopted::No;
                let is_alternative = entry.wanted != Some(mode);
                self.grant(entry, mode, is_alternative, gate, out);
            }
        }
    }

    /// Adopted conversions whose granted mode conflicts with what another holder has: in any case (`is_certain`), or as far as is known here.
    fn lost_grants(&self, is_certain: bool) -> Vec<(Owner, Mode)> {
        if !self.has_adopted || self.granted.iter().all(|entry| entry.lost_mode().is_none()) {
            return Vec::new();
        }
        let mut kinds: BTreeMap<(Option<Mode>, Option<Mode>), usize> = BTreeMap::new();
        for entry in self.granted.iter().chain(self.converting.iter()) {
            *kinds.entry((entry.granted, entry.lost_mode())).or_default() += 1;
        }
        let excludes = |one: Option<Mode>, other: Mode| one.is_some_and(|one| !one.is_compatible(other));
        let is_lost = |entry: &Entry| {
            let mine = (entry.granted, entry.lost_mode());
            let (Some(granted), Some(lost)) = mine else { return None };
            let is_refuted = kinds.iter().any(|(kind, count)| {
                let is_other = *kind != mine || *count > 1;
                is_other && excludes(kind.0, granted) && (!is_certain || kind.1.is_none() || excludes(kind.1, granted))
            });
            is_refuted.then_some((entry.owner, lost))
        };
        self.granted.iter().filter_map(is_lost).collect()
    }

    /// Conversions before new requests, and none behind one that it blocks: the lost master had them in such an order.
    fn order_arrivals(&mut self) {
        type Kind = (Option<Mode>, Option<Mode>);
        let mut converts: BTreeMap<Kind, VecDeque<(usize, Owner)>> = BTreeMap::new();
        let mut news = VecDeque::new();
        for (index, arrival) in core::mem::take(&mut self.arrivals).into_iter().enumerate() {
            match arrival {
                Arrival::New(entry) => news.push_back(Arrival::New(entry)),
                Arrival::Convert(owner) => {
                    let kind = self.granted.get(owner).map(|entry| (entry.granted, entry.wanted)).unwrap_or_default();
                    converts.entry(kind).or_default().push_back((index, owner));
                }
            }
        }
        while !converts.is_empty() {
            let is_free = |kind: &Kind| {
                converts.iter().all(|(other, owners)| {
                    let is_alone = other == kind && owners.len() == 1;
                    is_alone || other.0.zip(kind.1).is_none_or(|(granted, wanted)| granted.is_compatible(wanted))
                })
            };
            let turn = |(kind, owners): (&Kind, &VecDeque<(usize, Owner)>)| (!is_free(kind), owners.front().map(|front| front.0), *kind);
            let Some((_, _, next)) = converts.iter().map(turn).min() else { break };
            if let Some((_, owner)) = converts.get_mut(&next).and_then(VecDeque::pop_front) {
                self.arrivals.push_back(Arrival::Convert(owner));
            }
            converts.retain(|_, owners| !owners.is_empty());
        }
        self.arrivals.extend(news);
    }
}

/// Does this operation of a lock that has `granted` write the value block?
fn is_write(granted: Mode, pending: &ReportOp) -> bool {
    let is_writer = match pending.kind {
        OpKind::Unlock => granted.is_writer(),
        OpKind::Convert => pending.mode.lvb_transfer(Some(granted)) == LvbTransfer::Write,
        OpKind::New => false,
    };
    is_writer && pending.flags.has(Flags::VALBLK) && !pending.flags.has(Flags::IVVALBLK) && pending.lvb.is_some()
}

/// The value block of a resource whose master is lost: the newest copy that is known; valid only if a survivor's lock proves that nobody
/// can have written since (it has excluded writers ever since it saw that copy).
fn rebuild_lvb(reports: &[(PeerId, Report)]) -> LvbCopy {
    let mut best = LvbCopy { is_invalid: true, ..LvbCopy::default() };
    let mut proved: Option<LvbCopy> = None;
    let mut newest = 0;
    for (_, report) in reports {
        let written = report.pending.filter(|pending| report.granted.is_some_and(|granted| is_write(granted, pending)));
        let copy = match written {
            Some(pending) => LvbCopy { sequence: report.lvb.sequence.saturating_add(1), is_invalid: true, value: pending.lvb },
            None => report.lvb,
        };
        newest = copy.sequence.max(newest);
        if copy.sequence > best.sequence && copy.value.is_some() {
            best = LvbCopy { is_invalid: true, ..copy };
        }
        if report.granted >= Some(Mode::Cw) && report.pending.is_none() && proved.is_none_or(|proved| proved.sequence < report.lvb.sequence)
        {
            proved = Some(report.lvb);
        }
    }
    if let Some(proved) = proved {
        best.is_invalid = proved.is_invalid || best.sequence != proved.sequence;
    }
    if best.is_invalid {
        // No copy that anybody holds may ever be taken for this content.
        best.sequence = newest.saturating_add(1);
    }
    best
}

#[cfg(test)]
mod tests;
