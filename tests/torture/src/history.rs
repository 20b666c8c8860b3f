//! What: what a client writes down about its locks, and what the run writes down about its faults.
//! Owns: the files' form: one JSON line per event, behind its time.
//! Invariants: times are CLOCK_MONOTONIC in ns, the same clock for every process of the machine; a line is one write, so that a process
//!   that is killed leaves whole lines; what ends a certainty stands in the file before it is done, what begins one after it was done.
//! Does not: judge.
//! Called by: the clients and the crew, which write; the checker, which reads.

use anyhow::{Context, Result};
use deadbolt_dlm::{Mode, Token};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// Number of a grant as it stands in the files: view, counter.
pub(crate) type Number = (u64, u64);

/// The number of a token.
pub(crate) fn number(token: Token) -> Number {
    (token.view, token.counter)
}

/// Nanoseconds since the machine started.
///
/// # Errors
/// No such clock.
pub(crate) fn now_ns() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?);
    u64::try_from(now.as_nanos()).context("the clock is beyond its range")
}

/// What a grant says of the value block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Value {
    /// Nothing was asked for or nothing was there.
    None,
    /// It may not be the last one written.
    Doubtful,
    /// The counter that the last writer put there.
    Counter(u64),
    /// Bytes that no client wrote.
    Foreign,
}

/// How a request ended without a grant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) enum Why {
    /// It was a try, and the resource was taken.
    Busy,
    /// It would have waited for ever.
    Deadlock,
    /// Its time was over.
    TimedOut,
    /// The client gave up and never looked for the answer.
    GivenUp,
}

/// One of the two fields of a resource's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Field {
    /// The counter.
    pub(crate) value: u64,
    /// The grant under which it was written.
    pub(crate) token: Number,
}

/// One event. `op` numbers a lock within its client's life, from the request to the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A lock is about to be asked for.
    Ask { op: u32, resource: u8, mode: u8 },
    /// It was granted. `is_kept`: from the client's cache, under an earlier grant.
    Got { op: u32, token: Number, value: Value, is_kept: bool },
    /// It was not.
    Not { op: u32, why: Why },
    /// Another mode is about to be asked for.
    Convert { op: u32, mode: u8 },
    /// It was granted.
    Converted { op: u32, token: Number, value: Value },
    /// It was not; the lock is as before.
    Kept { op: u32, why: Why },
    /// The file was read.
    Read { op: u32, front: Field, back: Field },
    /// This value is about to be written into both fields.
    Write { op: u32, value: u64 },
    /// Both are written.
    Done { op: u32 },
    /// The lock is about to be given back.
    Free { op: u32 },
    /// The node has taken it.
    Freed { op: u32 },
    /// The session is over: every lock is void.
    Lost,
    /// The client was told to end, and holds nothing.
    End,
    /// The node answered what it never should.
    Odd { said: String },
}

/// An event and its time.
pub(crate) type Line = (u64, Event);

/// One life of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct LifeName {
    /// Its node, by index.
    pub(crate) node: usize,
    /// Which crew of that node started it.
    pub(crate) crew: u32,
    /// Its place in the crew.
    pub(crate) slot: u32,
    /// How often that place was filled before.
    pub(crate) life: u32,
}

impl std::fmt::Display for LifeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}-{}", self.node, self.crew, self.slot, self.life)
    }
}

/// Beginning of the names of history files.
const HISTORY: &str = "history-";

impl LifeName {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split('-');
        let name = Self {
            node: words.next()?.parse().ok()?,
            crew: words.next()?.parse().ok()?,
            slot: words.next()?.parse().ok()?,
            life: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(name)
    }

    pub(crate) fn history_file(self, run: &Path) -> PathBuf {
        run.join(format!("{HISTORY}{self}"))
    }
}

/// What was done to processes of the run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Deed {
    /// A client was killed: it lived at the time of the line.
    Killed { life: LifeName },
    /// Something was done to a node, or was found done.
    Fault { node: usize, kind: String },
    /// A crew was killed whole: those of its clients that nobody had killed or replaced lived at the time of the line.
    CrewKilled { node: usize, crew: u32 },
}

/// Beginning of the names of files with deeds.
const DEEDS: &str = "deeds-";

/// A file with deeds, named by who does them.
pub(crate) fn deeds_file(run: &Path, who: &str) -> PathBuf {
    run.join(format!("{DEEDS}{who}"))
}

/// A file that grows by lines.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    /// Opens or makes it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?))
    }

    /// Writes a line with this time.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&mut self, at: u64, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(&(at, what))?;
        line.push('\n');
        Ok(self.0.write_all(line.as_bytes())?)
    }

    /// Writes a line with the present time.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn say(&mut self, what: &impl Serialize) -> Result<()> {
        self.write(now_ns()?, what)
    }
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<(u64, T)>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().enumerate();
    lines.map(|(number, line)| serde_json::from_str(line).with_context(|| format!("{}: line {}", path.display(), number + 1))).collect()
}

/// All that a run wrote down.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) histories: BTreeMap<LifeName, Vec<Line>>,
    pub(crate) deeds: Vec<(u64, Deed)>,
}

impl Written {
    /// Reads the files of a run.
    ///
    /// # Errors
    /// A file that cannot be read or does not decode.
    pub(crate) fn read(run: &Path) -> Result<Self> {
        let mut written = Self::default();
        for entry in std::fs::read_dir(run).with_context(|| run.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(life) = name.strip_prefix(HISTORY).and_then(LifeName::parse) {
                written.histories.insert(life, read_lines(&entry.path())?);
            } else if name.starts_with(DEEDS) {
                written.deeds.extend(read_lines(&entry.path())?);
            }
        }
        written.deeds.sort_by_key(|(at, _)| *at);
        Ok(written)
    }
}

/// A mode by the number in a line.
///
/// # Errors
/// No such mode.
pub(crate) fn mode(number: u8) -> Result<Mode> {
    Mode::from_number(number).with_context(|| format!("mode {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let life = LifeName { node: 2, crew: 1, slot: 7, life: 3 };
        let events = [Event::Ask { op: 1, resource: 2, mode: 5 }, Event::Not { op: 1, why: Why::Busy }, Event::End];
        let mut log = Log::open(&life.history_file(directory.path())).unwrap();
        events.iter().for_each(|event| log.say(event).unwrap());
        Log::open(&deeds_file(directory.path(), "x")).unwrap().write(5, &Deed::Killed { life }).unwrap();
        let written = Written::read(directory.path()).unwrap();
        let read: Vec<Event> = written.histories[&life].iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(read, events);
        assert_eq!(written.deeds, [(5, Deed::Killed { life })]);
        assert!(written.histories[&life].is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn a_line_that_does_not_decode_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("history-0-1-2-3"), "[1,\"End\"]\n[2,\"Ended\"]\n").unwrap();
        let error = format!("{:#}", Written::read(directory.path()).unwrap_err());
        assert!(error.contains("history-0-1-2-3: line 2"), "{error}");
    }
}
