//! What: how callers wait: the one that reads, those that follow it, and the thread that listens when none does.
//! Owns: who reads; when to watch the ring and when to sleep.
//! Invariants: whoever stops reading has told the bell and looked once more, and wakes a follower; the listener takes replies only while no
//!   caller reads.
//! Does not: know what is asked.
//! Called by: `session`, `blocking`.

use super::{Sending, Session, State, Style, lock};
use crate::{
    memory::{futex_wait, ring_bell},
    ring::{Sleeper, WANTS_FRAMES, WANTS_ROOM},
    routing::Reply,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    os::fd::AsFd,
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::{Duration, Instant},
};

/// Longest time for which a caller watches the ring while the daemon runs on another processor. Chosen: above the daemon's work for a full
/// turn of small requests.
pub(super) const WATCH_MAX_NS: u32 = 50_000;
/// Shortest such time: what is tried again after many vain ones.
const WATCH_MIN_NS: u32 = 1_000;
/// A caller that slept this long alone leaves the watch over the socket to a thread.
const ALONE: Duration = Duration::from_millis(100);
/// Pause of a sender that waits for room while another thread reads.
const PAUSE: Duration = Duration::from_millis(1);

impl Session {
    /// Waits for an answer. `was_asleep`: the daemon slept when the request came, so watching is in vain.
    pub(crate) fn wait(self: &Arc<Self>, serial: u64, was_asleep: bool) -> Reply {
        self.check_process()?;
        let mut may_watch = !was_asleep;
        let mut state = self.state();
        loop {
            if !state.has_reader {
                self.drain(&mut state);
            }
            if let Some(answer) = state.routing.take(serial) {
                Self::pass_on(&state);
                self.give_back(state);
                return answer;
            }
            if state.routing.has_leftovers() {
                // This caller may wait for the very lock.
                self.give_back(state);
                state = self.state();
                continue;
            }
            if state.has_reader {
                state.followers.insert(serial, std::thread::current());
                drop(state);
                std::thread::park();
                state = self.state();
                state.followers.remove(&serial);
            } else {
                state = self.read(state, WANTS_FRAMES, may_watch, &mut || false);
                may_watch = false;
            }
        }
    }

    /// Whoever leaves while others wait and nobody reads wakes one of them, which then reads.
    fn pass_on(state: &State) {
        if !state.has_reader
            && let Some((_, follower)) = state.followers.first_key_value()
        {
            follower.unpark();
        }
    }

    /// Reads the ring: sleeps until the daemon wakes this thread, and takes what has come.
    fn read<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        wants: u32,
        may_watch: bool,
        has_room: &mut dyn FnMut() -> bool,
    ) -> MutexGuard<'s, State> {
        let Some(side) = &self.ring else { return state };
        state.has_reader = true;
        let has_listener = state.has_listener;
        if has_listener {
            side.ring.disarm(Sleeper::Bell);
        }
        drop(state);
        if !(may_watch && self.watch()) {
            side.ring.arm(Sleeper::Reader, wants);
            let mut is_idle = || side.ring.has_no_replies() && !self.is_over() && !has_room();
            if is_idle() {
                futex_wait(side.ring.word(Sleeper::Reader), wants, (!has_listener).then_some(ALONE));
                if !has_listener && is_idle() {
                    self.start_listener();
                }
            }
            side.ring.disarm(Sleeper::Reader);
        }
        let mut state = self.state();
        state.has_reader = false;
        if state.has_listener {
            side.ring.arm(Sleeper::Bell, WANTS_FRAMES);
        }
        self.drain(&mut state);
        state
    }

    /// Watches the ring for a short while, if the daemon runs on another processor and is awake; says whether a reply came.
    fn watch(&self) -> bool {
        let Some(side) = &self.ring else { return false };
        if side.ring.word(Sleeper::Daemon).load(Ordering::Relaxed) != 0 || !side.ring.is_daemon_elsewhere() {
            return false;
        }
        let patience = self.watch_ns.load(Ordering::Relaxed);
        let began = Instant::now();
        while began.elapsed() < Duration::from_nanos(patience.into()) {
            for _ in 0..32 {
                if !side.ring.has_no_replies() {
                    self.watch_ns.store((patience * 2).min(WATCH_MAX_NS), Ordering::Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        self.watch_ns.store((patience / 2).max(WATCH_MIN_NS), Ordering::Relaxed);
        false
    }

    /// Waits until everything has gone into the ring or the socket. Replies are taken meanwhile: the daemon reads on only when they are.
    pub(super) fn wait_for_room(self: &Arc<Self>, sending: &mut Sending) {
        loop {
            self.move_backlog(sending);
            if sending.backlog.is_empty() {
                return;
            }
            let Some(side) = &self.ring else {
                let mut socket = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut socket, PollTimeout::try_from(ALONE).unwrap_or(PollTimeout::MAX));
                continue;
            };
            let state = self.state();
            if state.has_reader {
                drop(state);
                std::thread::sleep(PAUSE);
                continue;
            }
            let Sending { producer, backlog, .. } = &mut *sending;
            let mut has_room = || producer.as_mut().is_none_or(|producer| backlog.could_move(producer).unwrap_or(true));
            let state = self.read(state, WANTS_FRAMES | WANTS_ROOM, false, &mut has_room);
            if state.routing.has_leftovers() {
                // Given back by the thread that listens: nothing more can be sent from here.
                ring_bell(&side.client_bell);
            }
            Self::pass_on(&state);
        }
    }

    /// A thread takes hints and sees the session's end from here on, also while no caller waits.
    pub(crate) fn start_listener(self: &Arc<Self>) {
        if !matches!(self.style, Style::Callers) || self.check_process().is_err() {
            return;
        }
        let mut state = self.state();
        if std::mem::replace(&mut state.has_listener, true) {
            return;
        }
        // On a socket the thread alone reads, and callers follow.
        state.has_reader |= self.ring.is_none();
        drop(state);
        let session = self.clone();
        let started = std::thread::Builder::new().name("deadbolt-client".into()).spawn(move || session.run_listener());
        if let Err(error) = started {
            self.end(&format!("no thread can be started to listen to the node: {error}"));
            self.close();
        }
    }

    fn run_listener(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            match &self.ring {
                None => self.read_socket(&mut state),
                Some(side) => {
                    if !state.has_reader {
                        side.ring.arm(Sleeper::Bell, WANTS_FRAMES);
                        self.drain(&mut state);
                    }
                    // Beside a ring the socket says only that the session ends.
                    self.read_socket(&mut state);
                }
            }
            if state.routing.lost().is_some() {
                return;
            }
            self.give_back(state);
            let socket = PollFd::new(self.stream.as_fd(), PollFlags::POLLIN);
            let Some(side) = &self.ring else {
                let _ = poll(&mut [socket], PollTimeout::NONE);
                continue;
            };
            let _ = poll(&mut [socket, PollFd::new(side.client_bell.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            let _ = nix::unistd::read(&side.client_bell, &mut [0; 8]);
        }
    }

    /// For an async task: takes what has come (from the socket only if that had something) and sends what waits. True: the socket has to be written when it takes more.
    pub(crate) fn turn(self: &Arc<Self>, has_heard: bool) -> bool {
        let mut sending = lock(&self.sending);
        self.move_backlog(&mut sending);
        let wants_room = !sending.backlog.is_empty();
        if let Some(side) = &self.ring {
            side.ring.arm(Sleeper::Bell, WANTS_FRAMES | if wants_room { WANTS_ROOM } else { 0 });
            // Room that was made before the bell was told.
            self.move_backlog(&mut sending);
        }
        drop(sending);
        let mut state = self.state();
        self.drain(&mut state);
        if has_heard {
            self.read_socket(&mut state);
        }
        self.give_back(state);
        wants_room && self.ring.is_none()
    }

    /// For an async task: waits until a caller left something to send.
    pub(crate) async fn has_backlog(&self) {
        if let Style::Task(notify) = &self.style {
            notify.notified().await;
        }
    }

    /// For an async task: descriptors to wait on: socket, and bell of a ring.
    pub(crate) fn descriptors(&self) -> std::io::Result<(std::os::fd::OwnedFd, Option<std::os::fd::OwnedFd>)> {
        let bell = self.ring.as_ref().map(|side| side.client_bell.try_clone()).transpose()?;
        Ok((self.stream.as_fd().try_clone_to_owned()?, bell))
    }
}
