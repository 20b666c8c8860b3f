//! Pure machines of the lifeline: lease, mailbox, feeding verdict, evidence.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
