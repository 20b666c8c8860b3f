//! What: beat, mailbox, watchdog and fencer of a node; the drop-in `sbd`.
//! Owns: the process that writes the node's only beat and feeds its watchdog.
//! Invariants: the watchdog is fed only under a lease; nothing on the feeding thread allocates, locks or waits.
//! Does not: decide who is a member; that is the daemon's.
//! Called by: the program `sbd`, the front door, the daemon and its supervisor (page and pill helpers).

pub mod agent;
mod area;
mod check;
pub mod eject;
pub mod feeder;
pub mod fence;
mod flush;
pub mod life;
pub mod log;
mod memory;
mod options;
pub mod page;
pub mod pill;
pub mod placement;
pub mod protect;
pub mod reset;
mod retime;
pub mod run;
mod say;
pub mod servant;
mod slots;
mod stock;
mod views;
pub mod watch;
pub mod watchdog;

use std::ffi::OsString;

/// The program `sbd`: `arguments` begin with the program's name. `run` is the verb of a node of ours, `servant` is for `watch`; all
/// others are those of stock sbd. Answers the exit code; the caller ends the process with it at once.
#[must_use]
pub fn main_from(arguments: Vec<OsString>) -> u8 {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().map_or_else(|| "sbd".to_owned(), |name| name.to_string_lossy().into_owned());
    let rest: Vec<OsString> = arguments.collect();
    if rest.first().is_some_and(|verb| verb == "run") {
        return run::run(rest.into_iter().skip(1).collect());
    }
    if rest.first().is_some_and(|verb| verb == "servant") {
        return servant::main(rest.into_iter().skip(1).collect());
    }
    if rest.first().is_some_and(|verb| verb == flush::VERB) {
        return flush::main();
    }
    let rest: Vec<String> = rest.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    stock::stock(&program, &rest)
}
