//! What: the checks of everything that is text: lines of sockets, files of a node's directory.
//! Owns: that a text that is taken, written again, is taken again as the same.
//! Invariants: no files.
//! Does not: ask for one form of a text: people write some of them.
//! Called by: the table of targets.

use deadbolt_cluster::config::NodeFile;
use deadbolt_cluster::daemon::control::decode_line;
use deadbolt_cluster::initial::InitialWishes;
use deadbolt_cluster::seal::ClusterKey;
use deadbolt_cluster::supervisor::{TextKind, rewrite_text};

/// A line of the control socket. Whatever it is, there is an answer on one line.
pub fn check_control_line(bytes: &[u8]) {
    match decode_line(bytes) {
        // Not the same: a number with a fraction, which no request has, may lose its last digit.
        Ok(request) => assert!(decode_line(request.to_string().as_bytes()).is_ok()),
        Err(refusal) => assert!(refusal["ok"] == false && !refusal.to_string().contains('\n')),
    }
}

/// A line of the supervisor's socket, an order to the runner, or the file `boot`.
pub fn check_supervisor_text(bytes: &[u8]) {
    for kind in [TextKind::Request, TextKind::Signal, TextKind::Answer, TextKind::Order, TextKind::BootFile] {
        if let Ok(line) = rewrite_text(kind, bytes) {
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
            assert_eq!(rewrite_text(kind, &line), Ok(line), "{kind:?}");
        }
    }
}

/// `node.toml`.
pub fn check_node_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = toml::from_str::<NodeFile>(text) {
        assert_eq!(toml::from_str(&toml::to_string(&file).unwrap()), Ok(file));
    }
}

/// `initial.toml`.
pub fn check_initial_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(wishes) = toml::from_str::<InitialWishes>(text) {
        assert_eq!(toml::from_str(&toml::to_string(&wishes).unwrap()), Ok(wishes));
    }
}

/// The cluster key.
pub fn check_key_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match ClusterKey::parse(text) {
        Ok(key) => assert_eq!(key.to_text(), text.trim().to_ascii_lowercase()),
        Err(error) => {
            // What may be half a secret is not shown: the refusal depends on nothing but its length.
            let other = "?".repeat(text.trim().chars().count());
            assert_eq!(ClusterKey::parse(&other).unwrap_err().to_string(), error.to_string());
        }
    }
}
