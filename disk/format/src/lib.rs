//! Every on-disk record of Deadbolt, as pure encoders and decoders.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
