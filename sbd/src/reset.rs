//! What: the one place that ends this node.
//! Owns: sysrq, reboot(2), and the request to the supervisor.
//! Invariants: never syncs, never disarms, never returns success: whoever called goes on as if the node were already gone.
//! Does not: decide that the node must end.
//! Called by: the shell of the lifeline.

use std::ffi::CStr;
use std::io;

use deadbolt_sbd_core::ResetCommand;
use nix::sys::reboot::{RebootMode, reboot};

use crate::page::{FeedSide, ResetRequest};

/// Inode of the first PID namespace (PROC_PID_INIT_INO): only there does sysrq mean this machine.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Ends the node.
pub trait ResetAction: Send {
    /// Tries once.
    ///
    /// # Errors
    /// It did not work, or not at once: call again. `Ok` never comes from a real one, for nobody is left to see it.
    fn reset(&mut self, command: ResetCommand) -> io::Result<()>;
}

/// Resets the machine; in a PID namespace, ends the namespace.
#[derive(Debug)]
pub struct MachineReset;

impl ResetAction for MachineReset {
    fn reset(&mut self, command: ResetCommand) -> io::Result<()> {
        let (key, mode) = match command {
            ResetCommand::Reset => (c"b", RebootMode::RB_AUTOBOOT),
            ResetCommand::Off => (c"o", RebootMode::RB_POWER_OFF),
            // Without a crash kernel the key does nothing useful; then the machine is reset like any other.
            ResetCommand::Crash => (c"c", RebootMode::RB_AUTOBOOT),
        };
        if std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == FIRST_PID_NAMESPACE) {
            press(key);
        }
        match reboot(mode) {
            Ok(never) => match never {},
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Presses a key of the system request trigger, by the C library's own streams: test beds of distributions stand in for them.
fn press(key: &CStr) {
    // SAFETY: both arguments are strings that end with a zero byte; the stream is checked before it is used.
    let stream = unsafe { libc::fopen(c"/proc/sysrq-trigger".as_ptr(), c"w".as_ptr()) };
    if !stream.is_null() {
        // SAFETY: the stream is open; the format takes one string, which ends with a zero byte.
        unsafe { libc::fprintf(stream, c"%s\n".as_ptr(), key.as_ptr()) };
        // SAFETY: the stream is open and used no more.
        unsafe { libc::fclose(stream) };
    }
}

/// Asks the supervisor to end the process tree.
#[derive(Debug)]
pub struct TreeReset {
    page: FeedSide,
}

impl TreeReset {
    /// Through this page.
    #[must_use]
    pub fn new(page: FeedSide) -> Self {
        Self { page }
    }
}

impl ResetAction for TreeReset {
    fn reset(&mut self, command: ResetCommand) -> io::Result<()> {
        self.page.request_reset(match command {
            ResetCommand::Reset => ResetRequest::Reset,
            ResetCommand::Off => ResetRequest::Off,
            ResetCommand::Crash => ResetRequest::Crash,
        });
        Err(io::ErrorKind::WouldBlock.into())
    }
}
