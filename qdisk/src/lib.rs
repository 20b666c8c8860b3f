//! The voting device: drives the view register over real devices.
