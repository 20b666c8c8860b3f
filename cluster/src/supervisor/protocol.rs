//! What: the lines of `supervisor.sock`, and what the keeper tells the runner.
//! Owns: their JSON form. One object per line; a request is one line, answers may be several.
//! Invariants: a line is at most [`LINE_BYTES_MAX`] long; unknown fields and requests are refused, not ignored.
//! Does not: touch a socket.
//! Called by: handler, client, keeper, runner.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

use super::caller::CallerFacts;

/// Longest request: the kernel's default for arguments and environment is 2 MiB, JSON may double it.
pub(crate) const LINE_BYTES_MAX: usize = 4 << 20;
/// Standard input, output and error.
pub(crate) const STREAMS: usize = 3;

/// Any bytes; text where they are text, so that people can read a trace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Plain(String),
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(value: &OsStr) -> Self {
        match value.to_str() {
            Some(text) => Self::Plain(text.to_owned()),
            None => Self::Bytes(value.as_bytes().to_vec()),
        }
    }
}

impl From<Text> for OsString {
    fn from(value: Text) -> Self {
        match value {
            Text::Plain(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Run a command inside the tree; the three standard streams come along as descriptors.
    Run { argv: Vec<Text>, env: Vec<(Text, Text)>, cwd: Text },
    /// Stop the node.
    Stop {},
    /// Say who runs.
    Info {},
}

/// A further line of the client after `run`: a signal for the command's process group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forwarded {
    pub(crate) signal: i32,
}

/// An answer; only what applies is there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// For `stop`, `info` and refusals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ok: Option<bool>,
    /// Process number of the command, in the tree's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<i32>,
    /// Its exit code (128 and the signal); it and all its descendants are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<i32>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// For `info`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) info: Option<Info>,
}

impl Answer {
    pub(crate) fn refusal(error: String) -> Self {
        Self { ok: Some(false), error: Some(error), ..Self::default() }
    }
}

/// Who runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The present life.
    pub boot: String,
    /// `process` or `device`.
    pub watchdog: String,
    /// `none` or `pid`.
    pub namespaces: String,
    /// The keeper, outside of any namespace.
    pub supervisor: i32,
    /// The runner, as the tree sees it.
    pub runner: i32,
    /// sbd, as the tree sees it.
    pub sbd: Option<i32>,
    /// The daemon, as the tree sees it.
    pub daemon: Option<i32>,
    /// How often the daemon was started in this life.
    pub generation: u64,
    /// Connections, each with at most one command.
    pub clients: usize,
    /// Is a clean stop under way?
    pub is_stopping: bool,
}

/// What the keeper tells the runner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The number of this life is on the disk: start.
    Go,
    /// Stop cleanly.
    Stop,
    /// A connection, with what is known of who made it; its descriptor comes along.
    Serve(Box<CallerFacts>),
}

/// One line.
pub(crate) fn encode_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        // Plain structures of numbers and text always encode; if not, the reader learns it as text.
        format!("{{\"ok\":false,\"error\":{:?}}}", error.to_string()).into_bytes()
    });
    line.push(b'\n');
    line
}

/// What a text of the supervisor may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextKind {
    /// The first line of a client.
    Request,
    /// A later line of a client.
    Signal,
    /// A line to a client.
    Answer,
    /// What the keeper tells the runner.
    Order,
    /// The file `boot`.
    BootFile,
}

/// Reads a text and writes it again. The supervisor never needs this; checks from outside do, which cannot see the values.
///
/// # Errors
/// The bytes are no such text.
pub fn rewrite_text(kind: TextKind, bytes: &[u8]) -> Result<Vec<u8>, String> {
    fn rewrite<T: Serialize + for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<Vec<u8>, String> {
        serde_json::from_slice::<T>(bytes).map(|value| encode_line(&value)).map_err(|error| error.to_string())
    }
    match kind {
        TextKind::Request => rewrite::<Request>(bytes),
        TextKind::Signal => rewrite::<Forwarded>(bytes),
        TextKind::Answer => rewrite::<Answer>(bytes),
        TextKind::Order => rewrite::<Order>(bytes),
        TextKind::BootFile => super::boot::decode(bytes).map(|record| encode_line(&record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_lines_decode() {
        let run: Request = serde_json::from_str(r#"{"op":"run","argv":["sh",[255,1]],"env":[["A","b"]],"cwd":"/"}"#).unwrap();
        let Request::Run { argv, .. } = run else { panic!("not a run") };
        assert_eq!(OsString::from(argv[1].clone()).as_bytes(), [255, 1]);
        assert_eq!(serde_json::from_str::<Request>(r#"{"op":"stop"}"#).unwrap(), Request::Stop {});
        assert_eq!(serde_json::from_str::<Request>(r#"{"op":"info"}"#).unwrap(), Request::Info {});
        for bad in ["", "{}", r#"{"op":"eat"}"#, r#"{"op":"stop","now":1}"#, "[[[[", "\u{0}"] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
        assert_eq!(encode_line(&Answer { exit: Some(7), ..Answer::default() }), b"{\"exit\":7}\n");
    }

    #[test]
    fn info_comes_back_flat() {
        let line = br#"{"ok":true,"boot":"b","watchdog":"process","namespaces":"none","supervisor":1,"runner":2,"sbd":null,"daemon":4,"generation":1,"clients":0,"is_stopping":false}"#;
        let answer: Answer = serde_json::from_slice(line).unwrap();
        assert_eq!(answer.info.unwrap().daemon, Some(4));
        let plain: Answer = serde_json::from_slice(b"{\"started\":3}").unwrap();
        assert!(plain.info.is_none());
    }
}
