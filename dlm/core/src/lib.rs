//! Pure lock manager: modes, queues, mastery, recovery.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
