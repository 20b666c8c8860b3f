//! What: `fence_deadbolt`, an agent for Pacemaker's fencer and whoever else calls fence agents.
//! Owns: the actions and their exit codes.
//! Invariants: off and reboot end with 0 only on evidence, which is printed; on writes no mailbox; a mailbox is never read for a status.
//! Does not: judge whether a node is gone (`fence`).
//! Called by: the program `fence_deadbolt`; the front door under that name.

mod input;
mod metadata;
mod parameters;
mod surroundings;
mod survey;

use std::ffi::OsString;

use deadbolt_disk_format::reservation::ReservationKey;
use deadbolt_disk_format::sbd::Command;

use crate::area::is_same_name;
use crate::eject;
use crate::fence::{FenceReport, FenceRequest, PowerState, Protected, fence, power_state};
use crate::stock::Say;
use input::{Asked, Method, Settings};
use survey::Survey;

const NAME: &str = "fence_deadbolt";

/// Done, or the node is alive.
const EXIT_OK: u8 = 0;
/// It did not work, or wrong input.
const EXIT_FAILED: u8 = 1;
/// `status`: the node is gone (compatibility: the fence library's code for off).
const EXIT_OFF: u8 = 2;
/// `status`: neither is shown (compatibility: the fence library's number for it).
const EXIT_UNKNOWN: u8 = 8;

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    On,
    Off,
    Reboot,
    Status,
    List,
    ListStatus,
    Monitor,
    Metadata,
    ValidateAll,
}

impl Action {
    const ALL: [Self; 9] =
        [Self::On, Self::Off, Self::Reboot, Self::Status, Self::List, Self::ListStatus, Self::Monitor, Self::Metadata, Self::ValidateAll];

    fn word(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Reboot => "reboot",
            Self::Status => "status",
            Self::List => "list",
            Self::ListStatus => "list-status",
            Self::Monitor => "monitor",
            Self::Metadata => "metadata",
            Self::ValidateAll => "validate-all",
        }
    }

    fn of(word: &str) -> Option<Self> {
        // Resource agents spell it so.
        let word = if word == "meta-data" { "metadata" } else { word };
        Self::ALL.into_iter().find(|action| action.word() == word)
    }

    fn words() -> String {
        Self::ALL.map(Self::word).join(", ")
    }

    fn needs_victim(self) -> bool {
        matches!(self, Self::On | Self::Off | Self::Reboot | Self::Status)
    }
}

fn complain(text: &str) {
    Say::err(&format!("{NAME}: {text}\n"));
}

/// The program `fence_deadbolt`: `arguments` begin with the program's name. Answers the exit code; the caller ends the process with it
/// at once.
#[must_use]
pub fn main_from(arguments: Vec<OsString>) -> u8 {
    let arguments: Vec<String> = arguments.iter().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let asked = match input::read(&arguments, std::io::stdin().lock(), || surroundings::value_of("SBD_DEVICE")) {
        Ok((asked, warnings)) => {
            warnings.iter().for_each(|warning| complain(warning));
            asked
        }
        Err(error) => {
            complain(&error.to_string());
            return EXIT_FAILED;
        }
    };
    match asked {
        Asked::Help => Say::out(&metadata::help()),
        Asked::Version => Say::out(&format!("{NAME} {}\n", env!("CARGO_PKG_VERSION"))),
        Asked::Metadata => Say::out(&metadata::metadata()),
        Asked::Work(settings) => return work(&settings),
    }
    EXIT_OK
}

fn work(settings: &Settings) -> u8 {
    if settings.is_verbose {
        let devices: Vec<String> = settings.devices.iter().map(|device| device.display().to_string()).collect();
        complain(&format!("{} {:?} on {}", settings.action.word(), settings.victim, devices.join(", ")));
    }
    let done = match settings.action {
        Action::On => unfence(settings),
        Action::Off | Action::Reboot => end(settings),
        Action::Status => status(settings),
        Action::List => names(settings).map(|names| {
            names.iter().for_each(|name| Say::out(&format!("{name},{name}\n")));
            EXIT_OK
        }),
        Action::ListStatus => list_status(settings),
        Action::Monitor => monitor(settings),
        Action::ValidateAll => validate(settings),
        // Answered before any work.
        Action::Metadata => Ok(EXIT_OK),
    };
    done.unwrap_or_else(|reason| {
        complain(&format!("{} failed: {reason}", settings.action.word()));
        EXIT_FAILED
    })
}

fn own_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn own_key() -> Result<ReservationKey, String> {
    eject::key_here(eject::owner(&own_name())).map_err(|error| format!("this machine's boot is not known: {error}"))
}

/// Lets a node write again: only the node itself can, for a key is registered for the way that it came by.
fn unfence(settings: &Settings) -> Result<u8, String> {
    let (node, own) = (&settings.victim, own_name());
    if settings.protected.is_empty() {
        Say::out(&format!("Success: {node:?} needs no unfencing on SBD devices; nothing was written\n"));
        return Ok(EXIT_OK);
    }
    if !is_same_name(node, &own) {
        return Err(format!("{node:?} can be registered on protected devices only by itself, and this is {own:?}; run it there"));
    }
    let key = own_key()?;
    eject::register(&settings.protected, key, eject::DEVICE_LIMIT).map_err(|errors| errors.to_string())?;
    Say::out(&format!("Success: {node:?} is registered with {key} on all {} protected devices\n", settings.protected.len()));
    Ok(EXIT_OK)
}

fn validate(settings: &Settings) -> Result<u8, String> {
    survey(settings)?;
    eject::inspect(&settings.protected, eject::DEVICE_LIMIT).map_err(|errors| errors.to_string())?;
    Ok(EXIT_OK)
}

fn end(settings: &Settings) -> Result<u8, String> {
    std::thread::sleep(settings.delay);
    let command = match (settings.action, settings.method) {
        _ if settings.is_crashdump => Command::Crashdump,
        (Action::Reboot, Method::Cycle) => Command::Reset,
        _ => Command::Off,
    };
    let (devices, sender) = (&settings.devices, own_name());
    let protected = if settings.protected.is_empty() {
        None
    } else {
        Some(Protected { devices: &settings.protected, own: own_key()?, victim: eject::owner(&settings.victim) })
    };
    let request = FenceRequest {
        protected,
        devices,
        victim: &settings.victim,
        command,
        sender: &sender,
        io: settings.io_timeout,
        limit: settings.power_timeout,
    };
    match fence(&request).map_err(|error| error.to_string())? {
        FenceReport::Gone { evidence, waited, detail } => {
            let (victim, seconds) = (&settings.victim, waited.as_secs_f64());
            Say::out(&format!("Success: {victim:?} is gone after {seconds:.2} s; evidence: {evidence} ({detail})\n"));
            Ok(EXIT_OK)
        }
        FenceReport::NotProved { reason } => Err(format!("nothing proves that {:?} is gone: {reason}", settings.victim)),
    }
}

fn state_of(settings: &Settings, name: &str) -> Result<PowerState, String> {
    power_state(&settings.devices, name).map_err(|error| error.to_string())
}

fn state_word(state: &PowerState) -> &'static str {
    match state {
        PowerState::Alive { .. } => "ON",
        PowerState::Gone { .. } => "OFF",
        PowerState::Unknown { .. } => "UNKNOWN",
    }
}

fn status(settings: &Settings) -> Result<u8, String> {
    let state = state_of(settings, &settings.victim)?;
    let (detail, code) = match &state {
        PowerState::Alive { detail } => (detail.clone(), EXIT_OK),
        PowerState::Gone { evidence, detail } => (format!("evidence: {evidence} ({detail})"), EXIT_OFF),
        PowerState::Unknown { reason } => (reason.clone(), EXIT_UNKNOWN),
    };
    Say::out(&format!("Status: {}\n{detail}\n", state_word(&state)));
    Ok(code)
}

/// The devices, of which a majority answers.
fn survey(settings: &Settings) -> Result<Survey, String> {
    let survey = Survey::of(&settings.devices);
    survey.troubles.iter().for_each(|trouble| complain(trouble));
    survey.check_majority().map(|()| survey)
}

/// The names that can be listed.
fn names(settings: &Settings) -> Result<Vec<String>, String> {
    let mut names = survey(settings)?.names();
    names.retain(|name| {
        // A name that a reader of these lines would take for another one is no name of a node.
        let is_good = !name.is_empty() && !name.contains(|letter: char| letter == ',' || letter.is_whitespace() || letter.is_control());
        if !is_good {
            complain(&format!("the name {name:?} of a slot cannot be listed"));
        }
        is_good
    });
    Ok(names)
}

/// All nodes are looked at side by side: each takes a while.
fn list_status(settings: &Settings) -> Result<u8, String> {
    let names = names(settings)?;
    let states: Vec<Result<PowerState, String>> = std::thread::scope(|scope| {
        let looks: Vec<_> = names.iter().map(|name| scope.spawn(move || state_of(settings, name))).collect();
        looks.into_iter().filter_map(|look| look.join().ok()).collect()
    });
    for (name, state) in names.iter().zip(states) {
        Say::out(&format!("{name},{name},{}\n", state_word(&state?)));
    }
    Ok(EXIT_OK)
}

/// Can a fence be sent from here; and if this machine has a slot, does its sbd live?
fn monitor(settings: &Settings) -> Result<u8, String> {
    let (survey, own) = (survey(settings)?, own_name());
    if !survey.has(&own) {
        return Ok(EXIT_OK);
    }
    match state_of(settings, &own)? {
        PowerState::Alive { .. } => {}
        PowerState::Gone { detail, .. } => return Err(format!("the sbd of this machine ({own:?}) gives no sign of life: {detail}")),
        // A stock sbd leaves no signs on the devices.
        PowerState::Unknown { .. } => {
            surroundings::check_sbd_runs()
                .map_err(|reason| format!("this machine has a slot ({own:?}), and its sbd does not run: {reason}"))?;
        }
    }
    Ok(EXIT_OK)
}
