//! What: one qemu's control line: commands, and its events with the time at which they came.
//! Owns: the line's socket, the list of events, whether the machine is there.
//! Invariants: an answer belongs to the command before it; an event's time is never before the event.
//! Does not: know what commands mean.
//! Called by: a machine.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

/// A command that takes longer is stuck: qemu answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(30);

/// What qemu told by itself.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: Instant,
    pub(crate) name: String,
    pub(crate) data: Value,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<Event>,
    ended: Option<Instant>,
}

#[derive(Debug, Default)]
struct Events {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Events {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Line {
    socket: UnixStream,
    answers: Receiver<Value>,
}

/// The control line.
#[derive(Debug)]
pub(crate) struct Qmp {
    line: Mutex<Line>,
    events: Arc<Events>,
}

impl Qmp {
    /// Speaks over the socket, whose other end qemu has or will have.
    pub(crate) fn new(socket: UnixStream) -> Result<Self> {
        let events = Arc::new(Events::default());
        let (sender, answers) = channel();
        let (reader, told) = (socket.try_clone()?, Arc::clone(&events));
        std::thread::Builder::new().name("qmp".into()).spawn(move || read(reader, &told, &sender))?;
        let qmp = Self { line: Mutex::new(Line { socket, answers }), events };
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub(crate) fn command(&self, name: &str, arguments: Value) -> Result<Value> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let request = json!({ "execute": name, "arguments": arguments }).to_string() + "\n";
        line.socket.write_all(request.as_bytes()).with_context(|| format!("{name}: the machine has ended"))?;
        let answer = line.answers.recv_timeout(ANSWER).with_context(|| format!("{name}: qemu does not answer"))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("{name}: {}", answer.pointer("/error/desc").and_then(Value::as_str).unwrap_or("refused without a word")),
        }
    }

    /// When the machine ended, if it has.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.events.told().ended
    }

    /// The newest event of this name.
    pub(crate) fn event(&self, name: &str) -> Option<Event> {
        self.events.told().events.iter().rev().find(|event| event.name == name).cloned()
    }

    /// Waits for the machine's end.
    pub(crate) fn wait_end(&self, limit: Duration) -> Option<Instant> {
        let is_there = |told: &mut Told| told.ended.is_none();
        let (told, _) = self.events.changed.wait_timeout_while(self.events.told(), limit, is_there).unwrap_or_else(PoisonError::into_inner);
        told.ended
    }
}

fn read(socket: UnixStream, events: &Events, answers: &Sender<Value>) {
    for line in BufReader::new(socket).lines().map_while(Result::ok) {
        let at = Instant::now();
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(name) = value.get("event").and_then(Value::as_str) {
            let data = value.get("data").cloned().unwrap_or_default();
            events.told().events.push(Event { at, name: name.to_owned(), data });
        } else if value.get("return").is_some() || value.get("error").is_some() {
            // Who asked may have given up.
            let _ = answers.send(value);
        }
    }
    events.told().ended = Some(Instant::now());
    events.changed.notify_all();
}
