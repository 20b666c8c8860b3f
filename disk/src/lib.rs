//! The shared block device: open, geometry, I/O engine, attach.
