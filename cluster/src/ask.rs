//! What: the client of the daemon's control socket.
//! Owns: one question, one answer, within a time.
//! Invariants: a daemon that does not answer in time is reported as such, never as stopped.
//! Does not: know what the answers mean.
//! Called by: the verbs, trial nodes.

use crate::config::NodeDirectory;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nothing listens.
    #[error("no daemon answers in {directory} ({source}); `deadbolt start` starts the node, {log} says how it ended")]
    NoDaemon {
        /// The node's directory.
        directory: String,
        /// Its log.
        log: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It listens and does not answer.
    #[error("the daemon in {directory} did not answer within {waited_ms} ms ({source})")]
    Silent {
        /// The node's directory.
        directory: String,
        /// How long was waited.
        waited_ms: u128,
        /// What the system said.
        source: std::io::Error,
    },
    /// It refuses.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// Asks the daemon of a node.
///
/// # Errors
/// No daemon, no answer in time, or a refusal.
pub fn ask(directory: &NodeDirectory, request: &Value, patience: Duration) -> Result<Value, AskError> {
    let path = directory.control_socket();
    let place = || directory.0.display().to_string();
    let log = directory.log_file().display().to_string();
    let mut stream = UnixStream::connect(&path).map_err(|source| AskError::NoDaemon { directory: place(), log, source })?;
    let silent = |source| AskError::Silent { directory: place(), waited_ms: patience.as_millis(), source };
    stream.set_read_timeout(Some(patience)).map_err(silent)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(silent)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(silent)?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| silent(std::io::Error::other(error)))?;
    if answer.get("ok").and_then(Value::as_bool) == Some(true) {
        Ok(answer)
    } else {
        let reason = answer.get("error").and_then(Value::as_str).unwrap_or("refused without a reason").to_owned();
        Err(AskError::Refused { reason })
    }
}
