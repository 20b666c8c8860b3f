//! What: a node's lock service: sessions on one side, the other nodes' services on the other.
//! Owns: the node's locks, the resources it is master of, its share of the directory, what it knows of joined lockspaces.
//! Invariants: nothing new is granted outside membership or without a permit; a resource has one master, which lives or is rebuilt when
//! everybody has answered and nobody is owed; a grant reaches a client only while the permit holds and "holds" is published; messages of older views are dropped.
//! Does not: open, sleep, read a clock; decide membership or evidence.
//! Called by: the daemon's loop, the simulator.

mod asks;
mod authority;
mod deadlines;
mod deadlock;
mod holder;
mod home;
mod kept;
mod listing;
mod locks;
mod lone;
mod many;
mod master;
mod moves;
mod orphans;
mod places;
mod ranges;
mod recovery;
mod report;
mod session;
#[cfg(test)]
mod tests;

use crate::client::{ClientReply, ClientRequest};
use crate::mode::Mode;
use crate::name::Key;
use crate::peers::{PeerId, Peers};
use crate::queue::{Gate, Owner, Resource};
use crate::slab::Slab;
use crate::wire::{self, Record, Report};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use asks::Asks;
use authority::Authority;
use deadbolt_disk_format::types::{Life, Owed, ViewNumber};
use deadlines::Deadlines;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use many::Manies;
use orphans::Orphans;
use places::Places;

pub(crate) use authority::{Condition, Part};
pub use listing::{
    Filter, InTheWay, LockSnapshot, LockState, LockspacePage, LockspaceSnapshot, Page, RangeSnapshot, ResourceSnapshot, WaitsFor, Who,
};
pub use moves::MoveRule;
pub use ranges::SESSION_RANGES_MAX;
pub use report::{GatedLockspace, ServiceStatus};

/// A message to a peer is closed when it is longer than this, in bytes (chosen: far below any link's frame limit, large enough to batch).
const MESSAGE_BYTES: usize = 32 * 1024;
/// "Holds" stays said so long after the last lock, in milliseconds: who takes locks again and again waits for the disk once (chosen: a node
/// whose daemon dies in that time is reset for nothing, so not long).
const IDLE_MS: u64 = 1000;
/// Most locks of one session (bounds memory; chosen, no strong reason).
pub const SESSION_LOCKS_MAX: usize = 1 << 20;
/// Most requests of one session that are not answered yet (bounds memory; chosen, no strong reason).
pub const SESSION_REQUESTS_MAX: usize = 1 << 16;
/// Most lockspaces of one session, joined or asked for (bounds memory; chosen, no strong reason).
pub const SESSION_LOCKSPACES_MAX: usize = 64;
/// Most lockspaces of a node (bounds memory and what every view change sends; chosen, no strong reason).
pub const NODE_LOCKSPACES_MAX: usize = 4096;
/// Most cancel requests that wait for the end of one operation (chosen: one is enough for any client).
pub const OPERATION_CANCELS_MAX: usize = 16;

/// Who a session is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionInfo {
    /// Process at the other end of the socket.
    pub pid: u32,
}

/// What happens to the service.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Input {
    /// A decided view was learned. Numbers only grow; others are ignored.
    View {
        /// Its number.
        number: ViewNumber,
        /// Who is in.
        members: Vec<Life>,
        /// Removed and not yet proved gone.
        owed: Vec<Owed>,
        /// This life is in.
        is_member: bool,
    },
    /// Lease alive, member, published: grants may leave - or not any more.
    Permit {
        /// Now.
        may_grant: bool,
    },
    /// A message of another life's service. The link keeps order and loses nothing while both are in the view.
    Peer {
        /// Who sent it (authenticated by the link).
        from: Life,
        /// As it left [`Output::Send`].
        message: Vec<u8>,
    },
    /// A client connected.
    SessionOpened {
        /// Number of the session, never used again; below `u64::MAX`.
        session: u64,
        /// Who it is.
        info: SessionInfo,
    },
    /// A client's frame.
    Request {
        /// Whose.
        session: u64,
        /// What.
        request: ClientRequest,
    },
    /// A client is gone: its locks are given back and what it may have been writing is marked.
    SessionClosed {
        /// Which.
        session: u64,
    },
    /// Exactly one answer to each [`Output::Holds`]: the word now stands on disk.
    HoldsPublished(bool),
    /// Refuse new locks and lockspaces from now on.
    Stop,
    /// Membership is lost for good: every session is told, everything is void, nothing more is done by this service.
    Lose {
        /// For people.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// What the daemon must do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send to another life's service, in order.
    Send {
        /// To whom.
        to: Life,
        /// The message.
        message: Vec<u8>,
    },
    /// Send to a client, in order.
    Reply {
        /// To whom.
        session: u64,
        /// The frame.
        reply: ClientReply,
    },
    /// Publish that clients (may) hold something, or hold nothing; answer with [`Input::HoldsPublished`].
    Holds(bool),
    /// Recovery in this view is finished here.
    Recovered(ViewNumber),
    /// A line for the log.
    Log(String),
}

#[derive(Debug, Default)]
struct View {
    number: u64,
    members: Vec<Life>,
    owed: Vec<Owed>,
    is_member: bool,
}

#[derive(Debug, Default)]
struct Session {
    info: SessionInfo,
    lockspaces: BTreeSet<u32>,
    /// Lockspaces that it waits for.
    joining: BTreeSet<u32>,
    locks: locks::LockList,
    /// Requests that wait for their answer.
    unanswered: usize,
}

/// A lockspace that this node uses.
#[derive(Debug)]
struct Lockspace {
    name: Vec<u8>,
    is_joined: bool,
    /// The view in which every member was sent the announcement.
    announced_in: Option<u64>,
    /// The number that answers to the last announcement carry.
    announcement: u64,
    confirmed: BTreeSet<Life>,
    sessions: BTreeSet<u64>,
    /// Locks of this node's sessions, and resources of which this node is master.
    uses: usize,
    asked: Vec<(u64, u64)>,
}

/// "Holds" as the daemon was told and as it stands on disk.
#[derive(Debug, Default)]
struct Holds {
    is_said: bool,
    is_published: bool,
    /// Nothing is held, and "holds" stays said until then.
    idle_until_ms: Option<u64>,
}

/// A planted mistake, so that the tests can prove that they would see it.
#[cfg(any(test, feature = "planted"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// Rebuilds before the owed are gone.
    GrantBeforeGone,
    /// Takes messages of an older view.
    AcceptOldView,
    /// Reports no waiting requests to a new master.
    ForgetWaiter,
    /// Counts tokens from the start again.
    TokenReset,
    /// Keeps a value block valid that a dead writer may have written.
    KeepDeadLvb,
    /// Rebuilds before every member has answered.
    GrantWithoutRebuild,
    /// Calls every rebuilt value block valid.
    TrustRebuiltLvb,
    /// Takes a resource whose master is lost for a free one.
    LostIsFree,
    /// Lets the home answer with the asker instead of the master.
    TwoMasters,
    /// Lets the home judge requests that another node masters.
    HomeJudgesAll,
    /// A home keeps the authority that it has handed over.
    KeepAuthority,
    /// Reports no orphans to a new master.
    ForgetOrphan,
    /// Keeps the end of a wait when the operation has ended.
    KeepDeadline,
    /// Ends what is to be taken back without its master.
    CancelHere,
    /// Purges on its own node only.
    PurgeHere,
    /// A master that has moved a resource goes on as its master.
    KeepMoved,
    /// A master gives a resource up before its holders have said all.
    MoveEarly,
}

/// A node's lock service.
#[derive(Debug)]
pub struct LockService {
    me: Life,
    now_ms: u64,
    view: View,
    may_grant: bool,
    is_stopped: bool,
    is_lost: bool,
    holds: Holds,
    history: recovery::History,
    answers: recovery::Answers,
    /// The view in which every member's answers were gathered here last; 0: what was gathered is forgotten.
    gathered_in: u64,
    /// As home: members that have answered in this view.
    ended: BTreeSet<Life>,
    /// As home: everybody has answered in this view and nobody is owed: all is known.
    is_complete: bool,
    authority: Authority,
    /// As home: locks of this view's lost resources, by place.
    reports: BTreeMap<u32, Vec<(PeerId, Report)>>,
    /// The same of earlier views, to be dropped when there is time.
    litter: Vec<BTreeMap<u32, Vec<(PeerId, Report)>>>,
    /// As home: rebuilt resources whose new master has not said that it has them.
    unconfirmed: BTreeSet<u32>,
    /// As home: lookups that wait until somebody may be made master.
    parked: BTreeMap<u32, Vec<home::Lookup>>,
    /// As home: appointments that somebody doubts, until the master has said.
    verifying: BTreeSet<u32>,
    /// Places of which a former home alone has said who is master.
    hearsay: BTreeSet<u32>,
    /// As home: number of the last appointment.
    last_stamp: u32,
    /// As home: counters that came early: mastery given back by a master of which the former home has not told yet.
    returned: BTreeMap<Key, (PeerId, u32)>,
    /// As former master: what was given back and may not have arrived.
    releases: BTreeMap<Life, VecDeque<(Key, u64, u32)>>,
    /// As home: returns of mastery in the present message.
    released_seen: u32,
    /// Ranges of locks that are reported in this view.
    range_reports: ranges::Reports,
    /// As new master: resources whose locks are still coming.
    taking: BTreeMap<Key, home::Taking>,
    /// As holder: locks with an operation under way at another node.
    underway: BTreeSet<u32>,
    /// As holder: locks of which the master was told that they have changed hands.
    renamed: BTreeSet<u32>,
    /// As holder: locks with an operation that nobody was told of for want of membership.
    stalled: Vec<u32>,
    /// As master: resources on which somebody waits.
    contended: BTreeSet<u32>,
    /// Messages of views not learned yet.
    future: VecDeque<(Life, u64, Vec<u8>)>,
    sessions: BTreeMap<u64, Session>,
    lockspaces: BTreeMap<u32, Lockspace>,
    /// What each member has joined, for people.
    joins: BTreeMap<Life, BTreeSet<u32>>,
    names: BTreeMap<u32, Vec<u8>>,
    last_announcement: u64,
    peers: Peers,
    places: Places,
    locks: locks::Locks,
    orphans: Orphans,
    deadlines: Deadlines,
    asks: Asks,
    manies: Manies,
    /// Locks of a place that wait to hear who is master.
    lookups: BTreeMap<u32, holder::Lookups>,
    /// Queues of the resources of which this node is master.
    mastered: Slab<Resource>,
    /// Places of the locks of other nodes at this master.
    owners: HashMap<Owner, u32, FixedState>,
    /// Highest token counter that this node has given as master in this view.
    counter: u64,
    /// Highest token counter that came back to this home in this view.
    share_counter: u64,
    /// Grants that wait for permit and publication.
    held: VecDeque<(u64, u32, ClientReply)>,
    /// Of locks with such a grant of a conversion: the mode that their client knows.
    held_before: BTreeMap<u32, Mode>,
    /// Byte ranges of this node's locks.
    ranges: ranges::RangeBook,
    deadlocks: deadlock::Deadlocks,
    moves: moves::Moves,
    kept: kept::Kept,
    loopback: VecDeque<Record>,
    /// Places of which mastery may be given back when the loopback is empty.
    release_later: Vec<u32>,
    /// Homes that asked whether this node is master, to be answered then.
    answer_later: Vec<(Key, Life, u32)>,
    outbox: BTreeMap<Life, Vec<u8>>,
    outputs: VecDeque<Output>,
    #[cfg(any(test, feature = "planted"))]
    pub(crate) mistake: Option<Mistake>,
}

impl LockService {
    /// The service of a life that is in no view yet.
    #[must_use]
    pub fn new(me: Life) -> Self {
        // Random, and the same when a run is repeated.
        let seed = me.incarnation.0.iter().fold(0_u64, |seed, byte| seed.rotate_left(5) ^ u64::from(*byte));
        Self {
            me,
            now_ms: 0,
            view: View::default(),
            may_grant: false,
            is_stopped: false,
            is_lost: false,
            holds: Holds::default(),
            history: recovery::History::default(),
            answers: recovery::Answers::default(),
            gathered_in: 0,
            ended: BTreeSet::new(),
            is_complete: false,
            authority: Authority::default(),
            reports: BTreeMap::new(),
            litter: Vec::new(),
            unconfirmed: BTreeSet::new(),
            parked: BTreeMap::new(),
            verifying: BTreeSet::new(),
            hearsay: BTreeSet::new(),
            last_stamp: 0,
            returned: BTreeMap::new(),
            releases: BTreeMap::new(),
            released_seen: 0,
            range_reports: ranges::Reports::default(),
            taking: BTreeMap::new(),
            underway: BTreeSet::new(),
            renamed: BTreeSet::new(),
            stalled: Vec::new(),
            contended: BTreeSet::new(),
            future: VecDeque::new(),
            sessions: BTreeMap::new(),
            lockspaces: BTreeMap::new(),
            joins: BTreeMap::from([(me, BTreeSet::new())]),
            names: BTreeMap::new(),
            last_announcement: 0,
            peers: Peers::new(me),
            places: Places::new(seed),
            locks: locks::Locks::default(),
            orphans: Orphans::default(),
            deadlines: Deadlines::default(),
            asks: Asks::default(),
            manies: Manies::default(),
            lookups: BTreeMap::new(),
            mastered: Slab::default(),
            owners: HashMap::with_hasher(FixedState::with_seed(seed)),
            counter: 0,
            share_counter: 0,
            held: VecDeque::new(),
            held_before: BTreeMap::new(),
            ranges: ranges::RangeBook::default(),
            deadlocks: deadlock::Deadlocks::default(),
            moves: moves::Moves::default(),
            kept: kept::Kept::default(),
            loopback: VecDeque::new(),
            release_later: Vec::new(),
            answer_later: Vec::new(),
            outbox: BTreeMap::new(),
            outputs: VecDeque::new(),
            #[cfg(any(test, feature = "planted"))]
            mistake: None,
        }
    }

    /// Plants a mistake.
    #[cfg(any(test, feature = "planted"))]
    pub fn plant(&mut self, mistake: Mistake) {
        self.mistake = Some(mistake);
    }

    /// Takes an input; the outputs are polled afterwards.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.now_ms = now_ms;
        if self.is_lost {
            return;
        }
        self.end_waits();
        // What that said to this node itself belongs to the view in which it was said.
        self.pump();
        match input {
            Input::View { number, members, owed, is_member } => self.handle_view(View { number: number.0, members, owed, is_member }),
            Input::Permit { may_grant } => self.handle_permit(may_grant),
            Input::Peer { from, message } => self.handle_peer(from, &message),
            Input::SessionOpened { session, info } => {
                self.sessions.insert(session, Session { info, ..Session::default() });
            }
            Input::Request { session, request } => self.handle_request(session, request),
            Input::SessionClosed { session } => self.close_session(session),
            Input::HoldsPublished(is_held) => self.holds.is_published = is_held && self.holds.is_said,
            Input::Stop if self.is_stopped => {}
            Input::Stop => {
                self.is_stopped = true;
                self.give_kept_back(None);
                self.begin_hand_over();
            }
            Input::Lose { reason } => self.lose(&reason),
            Input::Tick => {}
        }
        if self.has_work() {
            self.work();
        }
        self.pump();
        self.expire_ranges();
        self.sweep_kept(recovery::SLICE as usize);
        self.look_for_deadlocks();
        self.pump();
        self.update_holds();
        self.deliver_held();
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        // Batched per peer until the turn's end: many records, one message.
        self.outbox.pop_first().map(|(to, message)| Output::Send { to, message })
    }

    /// When a [`Input::Tick`] is wanted: at the end of the first wait that has one, for a look for deadlocks, to say that nothing is held any
    /// more, or at once while there is work
    /// that was put off so that others need not wait.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let work = self.has_work().then_some(self.now_ms);
        let kept = self.kept.next_deadline();
        [work, kept, self.holds.idle_until_ms, self.deadlines.first(), self.ranges.next_timeout(), self.deadlocks.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn log(&mut self, text: String) {
        self.outputs.push_back(Output::Log(text));
    }

    fn pump(&mut self) {
        loop {
            if let Some(record) = self.loopback.pop_front() {
                self.handle_record(self.me, record);
            } else if let Some(place) = self.release_later.pop() {
                self.release_if_empty(place);
            } else if let Some((key, home, stamp)) = self.answer_later.pop() {
                self.answer_home(key, home, stamp);
            } else {
                return;
            }
        }
    }

    fn send(&mut self, to: Life, record: Record) {
        if to == self.me {
            self.loopback.push_back(record);
            return;
        }
        let message = self.outbox.remove(&to).unwrap_or_else(|| wire::begin_message(self.view.number));
        let message = record.append(message);
        if message.len() > MESSAGE_BYTES {
            self.outputs.push_back(Output::Send { to, message });
        } else {
            self.outbox.insert(to, message);
        }
    }

    fn send_others(&mut self, record: &Record) {
        for to in self.others() {
            self.send(to, record.clone());
        }
    }

    fn others(&self) -> Vec<Life> {
        self.view.members.iter().copied().filter(|life| *life != self.me).collect()
    }

    fn is_member(&self, life: &Life) -> bool {
        self.view.members.contains(life)
    }

    fn is_running(&self) -> bool {
        self.view.is_member
    }

    /// The first in the rendezvous order among the members.
    fn home(&self, key: &Key) -> Life {
        authority::home_among(&self.view.members, key).unwrap_or(self.me)
    }

    fn gate(&self) -> Gate {
        Gate { now_ms: self.now_ms, view: self.view.number, may_grant: self.view.is_member && self.may_grant }
    }

    fn handle_permit(&mut self, may_grant: bool) {
        let is_new = may_grant && !self.may_grant;
        self.may_grant = may_grant;
        if is_new && self.is_running() {
            for place in self.contended.clone() {
                self.settle(place);
            }
        }
    }

    fn handle_peer(&mut self, from: Life, message: &[u8]) {
        let (view, bytes) = match wire::open_message(message) {
            Ok(opened) => opened,
            Err(error) => return self.log(format!("message of slot {} refused: {error}", from.slot)),
        };
        if view > self.view.number {
            return self.future.push_back((from, view, message.to_vec()));
        }
        let is_old = view < self.view.number;
        #[cfg(any(test, feature = "planted"))]
        let is_old = is_old && self.mistake != Some(Mistake::AcceptOldView);
        if is_old || !self.view.is_member || !self.is_member(&from) {
            return;
        }
        match Record::read_all(bytes) {
            Ok(records) => {
                for record in records {
                    self.handle_record(from, record);
                    self.pump();
                }
            }
            Err(error) => self.log(format!("message of slot {} refused: {error}", from.slot)),
        }
        let count = core::mem::take(&mut self.released_seen);
        if count > 0 {
            self.send(from, Record::ReleasesSeen { count });
        }
    }

    fn handle_record(&mut self, from: Life, record: Record) {
        if self.stash(from, &record) {
            return;
        }
        let peer = self.peers.id(from);
        let owner = |lock| Owner { peer, lock };
        match record {
            Record::Request { key, lock, pid, party, op, mode, flags, is_lookup, is_retry } => {
                self.handle_lock_request(owner(lock), key, (pid, party), (op, mode, flags), is_lookup.then_some(is_retry));
            }
            Record::Convert { lock, op, mode, flags, lvb } => {
                self.operate(owner(lock), |resource, owner, gate, out| {
                    resource.convert(owner, op, mode, (flags, lvb), gate, out);
                });
            }
            Record::Unlock { lock, op, flags, lvb } => self.handle_unlock(owner(lock), op, (flags, lvb)),
            Record::Cancel { lock, op } => {
                self.handle_cancel(owner(lock), op);
            }
            Record::Completed { lock, result } => self.handle_answered(peer, lock, &result),
            Record::Whose { lock, pid, party } => {
                self.operate(owner(lock), |resource, owner, gate, out| resource.rename(owner, (pid, party), gate, out));
            }
            Record::Blocking { lock, mode } => self.handle_blocking(lock, mode),
            Record::MasterIs { key, master, counter, stamp, is_taken, is_asked } => {
                self.handle_master_is(key, master, (counter, stamp), is_taken);
                if is_asked {
                    self.answer_later.push((key, from, stamp));
                }
            }
            Record::Released { key, counter, stamp } => {
                self.released_seen += 1;
                self.handle_returned(peer, &key, counter, stamp);
            }
            Record::ReleasesSeen { count } => self.forget_releases(from, count),
            Record::NotMaster { lock, op } => self.handle_not_master(lock, op),
            Record::Join { announcement, name } => self.handle_join(from, announcement, name),
            Record::JoinAnswer { lockspace, announcement, is_refused } => {
                self.handle_join_answer(from, lockspace, announcement, is_refused);
            }
            Record::Leave { lockspace } => {
                if let Some(joined) = self.joins.get_mut(&from) {
                    joined.remove(&lockspace);
                }
                self.forget_name(lockspace);
            }
            Record::Query { key, request, asker } => self.handle_query(key, request, asker),
            Record::Queried { request, lvb, left_out, locks } => self.handle_queried(request, (lvb, left_out, locks)),
            Record::Purge { request, lockspace, pid } => self.handle_purge(from, request, lockspace, pid),
            Record::Purged { request } => self.handle_purged(from, request),
            Record::Range(record) => self.handle_range(peer, record),
            Record::Waits(record) => self.handle_waits(from, record),
            Record::Move(record) => self.handle_move(from, record),
            recovery => self.handle_recovery(from, recovery),
        }
    }

    fn update_holds(&mut self) {
        if !self.locks.is_empty() {
            self.holds.idle_until_ms = None;
            if !self.holds.is_said {
                self.holds = Holds { is_said: true, ..Holds::default() };
                self.outputs.push_back(Output::Holds(true));
            }
            return;
        }
        // Only after the answer to "true", so that this answer can never be taken for a later one.
        if !self.holds.is_said || !self.holds.is_published || self.is_lost {
            return;
        }
        // A node that is to leave says so at once.
        let is_leaving = self.is_stopped || !self.view.is_member;
        let until_ms = *self.holds.idle_until_ms.get_or_insert(self.now_ms.saturating_add(IDLE_MS));
        if is_leaving || self.now_ms >= until_ms {
            self.holds = Holds::default();
            self.outputs.push_back(Output::Holds(false));
        }
    }

    /// May a grant reach a client?
    fn may_deliver(&self) -> bool {
        self.view.is_member && self.may_grant && self.holds.is_published
    }

    fn deliver_held(&mut self) {
        while self.may_deliver()
            && let Some((session, _, reply)) = self.held.pop_front()
        {
            self.reply(session, reply);
        }
        if self.held.is_empty() {
            self.held_before.clear();
        }
        self.deliver_manies();
    }

    fn reply(&mut self, session: u64, reply: ClientReply) {
        if let Some(asker) = self.sessions.get_mut(&session) {
            if reply.is_answer() {
                asker.unanswered = asker.unanswered.saturating_sub(1);
            }
            self.outputs.push_back(Output::Reply { session, reply });
        }
    }

    /// A reply about a lock: a grant, and what follows it, waits until grants may leave.
    fn reply_about(&mut self, session: u64, lock: u32, is_grant: bool, reply: ClientReply) {
        let is_behind = self.held.iter().any(|(_, held, _)| *held == lock);
        if is_behind || (is_grant && !self.may_deliver()) {
            self.held.push_back((session, lock, reply));
        } else {
            self.reply(session, reply);
        }
    }

    /// What holders here have is not given back by this: "holds" stays said.
    fn lose(&mut self, reason: &str) {
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.reply(session, ClientReply::Lost { reason: reason.into() });
        }
        let (holds, outputs) = (core::mem::take(&mut self.holds), core::mem::take(&mut self.outputs));
        let is_lost = true;
        let view = View { number: self.view.number, ..View::default() };
        *self = Self { holds, outputs, is_lost, view, now_ms: self.now_ms, ..Self::new(self.me) };
    }
}
