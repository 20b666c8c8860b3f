//! What: shared helpers of the test programs.
//! Owns: nothing by itself.
//! Invariants: every helper cleans up after itself when it is dropped, and when its process is killed.
//! Does not: contain tests; these lie with the packages they test.
//! Called by: the tests of every package.

pub mod corosync;
pub mod crash;
pub mod disks;
pub mod format;
pub mod hung_disk;
pub mod node;
pub mod qdevice;
pub mod watchdog;
