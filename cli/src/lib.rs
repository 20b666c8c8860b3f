//! The front door: one command, all verbs.
