//! What: what must hold for every parser whatever bytes it is given: one function per parser, and a few good inputs for each.
//! Owns: the checks, the table of them, the seeds, a small mutator.
//! Invariants: a check panics when its property does not hold, and for no other reason; the same bytes give the same verdict.
//! Does not: choose inputs; fuzzers and tests do.
//! Called by: the tests beside it, the fuzz targets in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a check fails by panicking")]

pub mod disk;
pub mod machines;
pub mod mutate;
#[path = "../../../disk/format/tests/samples/mod.rs"]
pub(crate) mod samples;
pub mod seeds;
pub mod texts;
pub mod wire;

pub use disk::*;
pub use machines::*;
pub use texts::*;
pub use wire::*;

/// A parser and what must hold for it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the fuzz target and of its corpus.
    pub name: &'static str,
    /// Panics when the property does not hold.
    pub check: fn(&[u8]),
    /// Good inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that a test run makes: by what a check costs, so that all together take seconds.
    pub rounds: u32,
}

const fn target(name: &'static str, check: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>, rounds: u32) -> Target {
    Target { name, check, seeds, rounds }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("superblock", check_superblock, seeds::superblock, 4_000),
    target("beat", check_beat, seeds::beat, 4_000),
    target("daemon_part", check_daemon_part, seeds::daemon_part, 20_000),
    target("vote", check_vote, seeds::vote, 4_000),
    target("view_record", check_view_record, seeds::view_record, 4_000),
    target("view_body", check_view_body, seeds::view_body, 4_000),
    target("view_value", check_view_value, seeds::view_value, 20_000),
    target("requests", check_requests, seeds::requests, 4_000),
    target("journal", check_journal, seeds::journal, 4_000),
    target("tool_claim", check_tool_claim, seeds::tool_claim, 4_000),
    target("sbd_header", check_sbd_header, seeds::sbd_header, 20_000),
    target("sbd_node", check_sbd_node, seeds::sbd_node, 20_000),
    target("sbd_mailbox", check_sbd_mailbox, seeds::sbd_mailbox, 4_000),
    target("signatures", check_signatures, seeds::signatures, 2_000),
    target("device", check_device, seeds::device, 60),
    target("hello", check_hello, seeds::hello, 20_000),
    target("link_hello", check_link_hello, seeds::link_hello, 20_000),
    target("node_message", check_node_message, seeds::node_message, 20_000),
    target("frame", check_frame, seeds::frame, 20_000),
    target("identification", check_identification, seeds::identification, 20_000),
    target("datagram", check_datagram, seeds::datagram, 300),
    target("stream", check_stream, seeds::stream, 300),
    target("lock_message", check_lock_message, seeds::lock_message, 20_000),
    target("client_request", check_client_request, seeds::client_request, 20_000),
    target("client_reply", check_client_reply, seeds::client_reply, 20_000),
    target("control_line", check_control_line, seeds::control_line, 4_000),
    target("supervisor_text", check_supervisor_text, seeds::supervisor_text, 4_000),
    target("node_file", check_node_file, seeds::node_file, 1_000),
    target("initial_file", check_initial_file, seeds::initial_file, 4_000),
    target("key_text", check_key_text, seeds::key_text, 20_000),
    target("channel", check_channel, seeds::channel, 20_000),
    target("lock_service", check_lock_service, seeds::lock_service, 2_000),
];
