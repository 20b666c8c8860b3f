//! What: the server half of the lock socket and of the clients' rings.
//! Owns: the listening socket, every connection, the numbering of sessions, who is looked at next.
//! Invariants: a connection's first frame is a Hello that the accept hook let pass; garbage, an unread backlog or a second Hello ends that
//!   session and no other; one turn hands out a bounded number of requests; the loop sleeps only after every ring that was awake has been
//!   told so and looked at once more.
//! Does not: answer anything but refused connections and the wish for a ring; run tasks or threads.
//! Called by: the daemon's loop, which puts requests to the lock service and hands its replies back.

mod ready;
mod session;

use crate::{memory::processor, numbers::Numbered};
use deadbolt_dlm_core::client::{ClientReply, ClientRequest};
use ready::{ReadyList, Source, Watch};
use session::{End, Session};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    net::UnixListener,
    time::{Sleep, sleep_until},
};

/// Sessions at once; more are refused with a word.
pub const SESSIONS_MAX: usize = 4096;
/// Rings at once; a session beyond them goes on over its socket (chosen: with full rings 70 MiB).
pub const RINGS_MAX: usize = 1024;
/// Connections that have not said Hello; more wait to be accepted (chosen: far more than honest clients that start at one moment).
const STRANGERS_MAX: usize = 256;
/// Time for the first frame.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before connections are accepted again when the system could not.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests after which a turn looks at no further session (chosen: about a millisecond of work).
const TURN_REQUESTS: usize = 2048;
/// Requests after which the loop's other tasks get their turn in any case.
const YIELD_REQUESTS: usize = 256;
/// How often rings that were used lately are looked at without being rung: the longest delay of what is posted while nobody is known to
/// wait for it (the shortest that the runtime's clock knows).
const TICK: Duration = Duration::from_millis(1);
/// Longest time for which rings are watched before the loop sleeps; more than a wake-up across processors takes (measured: 36-43 us).
const WATCH_MAX: Duration = Duration::from_micros(60);
/// Shortest such time: what is tried again after many vain ones.
const WATCH_MIN: Duration = Duration::from_micros(2);
/// Rings watched at a time.
const WATCHED_MAX: usize = 16;

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Process number in this process's namespace; 0: not visible from here.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Lets a client in or says why not; told whether the client says that it is unprotected.
pub type AcceptHook = Box<dyn Fn(&Peer, bool) -> Result<(), String> + Send + Sync>;

/// What the clients tell the loop.
#[derive(Debug)]
pub enum ServerEvent {
    /// A client is in.
    Opened {
        /// Number of its session; never used again.
        session: u64,
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// It asks; the first request is its Hello.
    Request {
        /// Whose.
        session: u64,
        /// What.
        request: ClientRequest,
    },
    /// It is gone, and with it everything it held.
    Closed {
        /// Whose.
        session: u64,
        /// Its process.
        pid: i32,
        /// What it did wrong, where the server ended it.
        fault: Option<String>,
    },
}

/// What all sessions share.
struct Common {
    /// Given before the others: what sessions gave back first in this turn. Whoever asks for it in the same turn, having heard of that, is to
    /// find it free.
    releases: VecDeque<ServerEvent>,
    events: VecDeque<ServerEvent>,
    /// Nothing was left from the turn before.
    is_fresh: bool,
    list: Arc<ReadyList>,
    hook: AcceptHook,
    /// Sessions that are in.
    open: usize,
    rings: usize,
    /// Where sockets are read into.
    chunk: Box<[u8]>,
    /// Where one frame is put together or copied to.
    frame: Vec<u8>,
}

impl Common {
    fn waiting(&self) -> usize {
        self.releases.len() + self.events.len()
    }
}

/// Lock socket, sessions and rings; dropping it closes every session.
pub struct Server {
    listener: UnixListener,
    listening: Watch,
    common: Common,
    sessions: Numbered<u64, Session>,
    last: u64,
    /// Connections without a Hello and until when they may be so.
    strangers: BTreeMap<u64, Instant>,
    accept_again: Option<Instant>,
    alarm: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Sessions whose rings are looked at on every turn: those that were used since the last tick but one.
    awake: VecDeque<u64>,
    tick: Pin<Box<Sleep>>,
    is_ticking: bool,
    /// Rings gave something since they were watched last.
    has_served: bool,
    /// Sessions with something to hand on.
    touched: Vec<u64>,
    /// Kept for its memory.
    looking: Vec<Source>,
    since_yield: usize,
    watch: Duration,
    watches: u32,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("sessions", &self.common.open).field("rings", &self.common.rings).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at `path`, for the owner and one group. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path, group: Option<u32>, hook: AcceptHook) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        let list = Arc::<ReadyList>::default();
        let listening = Watch::new(Source::Listener, &list);
        listening.again();
        let chunk = vec![0; 64 << 10].into_boxed_slice();
        let common = Common {
            releases: VecDeque::new(),
            events: VecDeque::new(),
            is_fresh: true,
            list,
            hook,
            open: 0,
            rings: 0,
            chunk,
            frame: Vec::new(),
        };
        Ok(Self {
            listener,
            listening,
            common,
            sessions: Numbered::default(),
            last: 0,
            strangers: BTreeMap::new(),
            accept_again: None,
            alarm: None,
            awake: VecDeque::new(),
            tick: Box::pin(tokio::time::sleep(TICK)),
            is_ticking: false,
            has_served: false,
            touched: Vec::new(),
            looking: Vec::new(),
            since_yield: 0,
            watch: WATCH_MAX,
            watches: 0,
        })
    }

    /// Waits until clients have something to say. Dropping the future loses nothing.
    pub async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_ready(context)).await;
    }

    /// Do they say more already, or in the short time that it pays to watch their rings? For a loop that has just answered them: cheaper than
    /// waiting. True a bounded number of times on end: then everything else is to have its turn.
    pub fn has_more(&mut self) -> bool {
        if self.since_yield >= YIELD_REQUESTS {
            return false;
        }
        self.look_around();
        if self.common.waiting() == 0 && self.watch_rings() {
            self.look_around();
        }
        self.since_yield += self.common.waiting();
        self.common.waiting() > 0
    }

    fn look_around(&mut self) {
        self.common.is_fresh = self.common.waiting() == 0;
        self.look_at_sources();
        self.look_at_rings();
    }

    /// What they said; take all of it before waiting again, so that one turn answers all.
    pub fn next_event(&mut self) -> Option<ServerEvent> {
        self.common.releases.pop_front().or_else(|| self.common.events.pop_front())
    }

    /// Hands a reply to its session; it leaves with [`Server::flush`]. A session that leaves too much unread is closed.
    pub fn reply(&mut self, session: u64, reply: &ClientReply) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        let is_touched = found.is_touched();
        let frame = &mut self.common.frame;
        frame.clear();
        reply.encode_into(frame);
        match found.reply(frame, matches!(reply, ClientReply::Blocking { .. })) {
            Ok(()) if is_touched => {}
            Ok(()) => self.touched.push(session),
            Err(end) => self.end(session, end),
        }
    }

    /// Sends what has been replied: each client is woken once.
    pub fn flush(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.flush();
            }
        }
        self.touched = touched;
    }

    /// Sessions open now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.common.open
    }

    /// Rings in use now.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.common.rings
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.since_yield >= YIELD_REQUESTS {
            // The rest of the process, and the sockets themselves, are looked at only when the loop says that it waits.
            self.since_yield = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            self.common.list.wakes(context.waker());
            self.poll_alarm(context);
            self.look_around();
            if self.common.waiting() > 0 {
                self.since_yield += self.common.waiting();
                return Poll::Ready(());
            }
            // What was only read on (room given back, a backlog moved) must not wait for the next reply.
            self.flush();
            if !self.watch_rings() && self.sleep_rings() && self.poll_tick(context).is_pending() {
                self.since_yield = 0;
                return Poll::Pending;
            }
        }
    }

    fn look_at_sources(&mut self) {
        let mut looking = std::mem::take(&mut self.looking);
        self.common.list.exchange(&mut looking);
        let mut sources = looking.drain(..);
        while self.common.waiting() < TURN_REQUESTS
            && let Some(source) = sources.next()
        {
            match source {
                Source::Listener => self.accept(),
                Source::Socket(id) => _ = self.look(id, Session::look_at_socket),
                Source::Bell(id) => {
                    if self.sessions.get_mut(&id).is_some_and(Session::hear_bell) {
                        self.awake.push_back(id);
                    }
                }
            }
        }
        if sources.len() > 0 {
            self.common.list.put_back(sources);
        } else {
            drop(sources);
        }
        self.looking = looking;
    }

    fn look_at_rings(&mut self) {
        let before = self.common.waiting();
        for _ in 0..self.awake.len() {
            if self.common.waiting() >= TURN_REQUESTS {
                break;
            }
            let Some(id) = self.awake.pop_front() else { break };
            if self.look(id, Session::look_at_ring) {
                self.awake.push_back(id);
            }
        }
        self.has_served |= self.common.waiting() > before;
    }

    /// False: the session has ended.
    fn look(&mut self, id: u64, look: fn(&mut Session, &mut Common) -> Result<(), End>) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let is_touched = session.is_touched();
        if let Err(end) = look(session, &mut self.common) {
            self.end(id, end);
            return false;
        }
        if session.is_touched() && !is_touched {
            self.touched.push(id);
        }
        if session.is_in() {
            self.forget_stranger(id);
        }
        true
    }

    /// Ends a session; its client is told why as far as it listens.
    fn end(&mut self, id: u64, end: End) {
        let Some(session) = self.sessions.remove(&id) else { return };
        session.close(end, &mut self.common);
        self.forget_stranger(id);
        self.common.list.wake();
    }

    /// The last one too many makes room for others.
    fn forget_stranger(&mut self, id: u64) {
        if self.strangers.remove(&id).is_some() && self.strangers.len() + 1 == STRANGERS_MAX {
            self.listening.again();
        }
    }

    fn accept(&mut self) {
        self.listening.begin();
        while self.strangers.len() < STRANGERS_MAX {
            match self.listener.poll_accept(&mut self.listening.context()) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, _))) => {
                    self.last += 1;
                    let Ok(session) = Session::new(self.last, stream, &self.common.list) else { continue };
                    self.sessions.insert(self.last, session);
                    self.strangers.insert(self.last, Instant::now() + HELLO_PATIENCE);
                    self.look(self.last, Session::look_at_socket);
                }
                Poll::Ready(Err(_)) => {
                    // No descriptors left, mostly: they come back when sessions end.
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Ends strangers whose time is over and accepts again after a pause.
    fn poll_alarm(&mut self, context: &mut Context<'_>) {
        loop {
            let first = self.strangers.first_key_value().map(|(_, until)| *until);
            let Some(wanted) = first.into_iter().chain(self.accept_again).min() else {
                self.alarm = None;
                return;
            };
            let alarm = match &mut self.alarm {
                Some((until, alarm)) if *until == wanted => alarm,
                _ => &mut self.alarm.insert((wanted, Box::pin(sleep_until(wanted.into())))).1,
            };
            if alarm.as_mut().poll(context).is_pending() {
                return;
            }
            self.alarm = None;
            let now = Instant::now();
            if self.accept_again.is_some_and(|again| again <= now) {
                self.accept_again = None;
                self.listening.again();
            }
            while let Some((id, until)) = self.strangers.first_key_value()
                && *until <= now
            {
                let id = *id;
                self.end(id, End::Quiet);
            }
        }
    }

    /// Watches the rings for a short while if their clients run on other processors; says whether something came. Watching in vain makes
    /// the next time shorter.
    fn watch_rings(&mut self) -> bool {
        let own = processor();
        if own == 0 || !std::mem::take(&mut self.has_served) {
            return false;
        }
        let watched: Vec<&Session> = self.awake.iter().take(WATCHED_MAX).filter_map(|id| self.sessions.get(id)).collect();
        if !watched.iter().any(|session| session.is_client_elsewhere()) {
            return false;
        }
        self.watches = self.watches.wrapping_add(1);
        let patience = if self.watches.is_multiple_of(16) { WATCH_MAX } else { self.watch };
        let began = Instant::now();
        while began.elapsed() < patience {
            for _ in 0..16 {
                if watched.iter().any(|session| session.has_requests()) {
                    self.watch = (self.watch * 2).min(WATCH_MAX);
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        self.watch = (self.watch / 2).max(WATCH_MIN);
        false
    }

    /// Tells every awake ring that the loop sleeps; false: one of them has something.
    fn sleep_rings(&mut self) -> bool {
        let mut is_quiet = true;
        for _ in 0..self.awake.len() {
            let Some(id) = self.awake.pop_front() else { break };
            match self.sessions.get_mut(&id).map(|session| session.sleep(true)) {
                None => {}
                Some(Ok(sleeps)) => {
                    is_quiet &= sleeps;
                    self.awake.push_back(id);
                }
                Some(Err(end)) => self.end(id, end),
            }
        }
        is_quiet && self.common.waiting() == 0 && self.common.list.is_empty()
    }

    /// At each tick the rings that were idle since the last one are left alone until they ring. Ready: one of them has something after all.
    fn poll_tick(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.awake.is_empty() {
                self.is_ticking = false;
                return Poll::Pending;
            }
            if !std::mem::replace(&mut self.is_ticking, true) {
                self.tick.as_mut().reset((Instant::now() + TICK).into());
            }
            std::task::ready!(self.tick.as_mut().poll(context));
            self.is_ticking = false;
            let mut is_quiet = true;
            for _ in 0..self.awake.len() {
                let Some(id) = self.awake.pop_front() else { break };
                let Some(session) = self.sessions.get_mut(&id) else { continue };
                let is_idle = session.is_idle_at_tick();
                let sleeps = is_idle && matches!(session.sleep(false), Ok(true));
                if !sleeps {
                    self.awake.push_back(id);
                }
                // What is wrong with it shows when it is looked at.
                is_quiet &= sleeps || !is_idle;
            }
            if !is_quiet {
                return Poll::Ready(());
            }
        }
    }
}
