//! The front door: one command, all verbs.

pub mod format;
