//! Pure machines of membership, timing and fencing.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
