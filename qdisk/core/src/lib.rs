//! Pure machine of the view register, candidates and ranking.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
