//! What: a single-member node for the tests: one real lock service behind a real server.
//! Owns: its directory and its thread.
//! Invariants: nothing is left behind when it ends.
//! Does not: speak with other nodes.
//! Called by: the tests of this package.
#![allow(dead_code, clippy::unwrap_used, reason = "a test; not every test uses all of it")]

pub(crate) mod raw;

use deadbolt_disk_format::{BootId, Incarnation, Life, SlotIndex, ViewNumber};
use deadbolt_dlm::{
    Transport,
    blocking::{Client, Protection},
    server::{AcceptHook, Server, ServerEvent},
};
use deadbolt_dlm_core::service::{Input, LockService, Output, SessionInfo};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

/// A single-member node on a thread of its own; ends with the value.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Why it ended sessions.
    pub(crate) faults: Arc<Mutex<Vec<String>>>,
}

impl Node {
    pub(crate) fn start(hook: AcceptHook) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let faults = Arc::<Mutex<Vec<String>>>::default();
        let heard = faults.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(&path, hook, stopped, ready, &heard));
        });
        is_ready.recv().unwrap();
        Self { directory, stop: Some(stop), thread: Some(thread), faults }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("lock.sock")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.path(), Protection::default()).unwrap()
    }

    pub(crate) fn connect_by_socket(&self) -> Client {
        Client::connect_over(self.path(), Protection::default(), Transport::Socket).unwrap()
    }

    pub(crate) fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(
    path: &Path,
    hook: AcceptHook,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
    ready: mpsc::Sender<()>,
    faults: &Mutex<Vec<String>>,
) {
    let me = Life { slot: SlotIndex(0), boot: BootId([1; 16]), incarnation: Incarnation([2; 16]) };
    let mut service = LockService::new(me);
    service.handle(0, Input::View { number: ViewNumber(1), members: vec![me], owed: Vec::new(), is_member: true });
    service.handle(0, Input::Permit { may_grant: true });
    let mut server = Server::bind(path, None, hook).unwrap();
    ready.send(()).unwrap();
    let begin = Instant::now();
    let now_ms = || u64::try_from(begin.elapsed().as_millis()).unwrap();
    loop {
        while let Some(output) = service.poll_output() {
            match output {
                Output::Reply { session, reply } => server.reply(session, &reply),
                Output::Holds(holds) => service.handle(now_ms(), Input::HoldsPublished(holds)),
                _ => {}
            }
        }
        server.flush();
        if !server.has_more() {
            let deadline = begin + Duration::from_millis(service.next_deadline().unwrap_or(1 << 40));
            tokio::select! {
                _ = &mut stopped => return,
                () = server.ready() => {}
                () = tokio::time::sleep_until(deadline.into()) => service.handle(now_ms(), Input::Tick),
            }
        }
        while let Some(event) = server.next_event() {
            service.handle(
                now_ms(),
                match event {
                    ServerEvent::Opened { session, pid, .. } => {
                        Input::SessionOpened { session, info: SessionInfo { pid: u32::try_from(pid).unwrap() } }
                    }
                    ServerEvent::Request { session, request } => Input::Request { session, request },
                    ServerEvent::Closed { session, fault, .. } => {
                        faults.lock().unwrap().extend(fault);
                        Input::SessionClosed { session }
                    }
                },
            );
        }
    }
}

pub(crate) fn anybody() -> AcceptHook {
    Box::new(|_, _| Ok(()))
}
