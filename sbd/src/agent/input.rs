//! What: what the agent is asked: options, or `key=value` lines on standard input when there are no arguments.
//! Owns: the rules by which they become settings.
//! Invariants: settings have one to three different absolute device paths; a victim where the action needs one.
//! Does not: open a device.
//! Called by: the agent's main.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use super::parameters::{IO_TIMEOUT_S, Key, Kind, PARAMETERS, POWER_TIMEOUT_S, Parameter};
use super::{Action, surroundings};
use crate::options::DEVICES_MAX;

/// Most bytes taken from standard input; a fencer sends a few hundred.
const INPUT_BYTES_MAX: u64 = 64 << 10;
/// Most seconds that an option may say: a day; more is a mistake.
const SECONDS_MAX: u32 = 86_400;
/// What a power timeout of 0 stands for: chosen.
const NO_TIMEOUT: Duration = Duration::from_secs(3600);

/// How to reboot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    Cycle,
    OnOff,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub(super) action: Action,
    pub(super) devices: Vec<PathBuf>,
    /// From which nodes are ejected; none where reservations are not used.
    pub(super) protected: Vec<PathBuf>,
    /// Empty where the action needs none.
    pub(super) victim: String,
    pub(super) method: Method,
    pub(super) is_crashdump: bool,
    pub(super) power_timeout: Duration,
    pub(super) io_timeout: Duration,
    pub(super) delay: Duration,
    pub(super) is_verbose: bool,
}

/// What follows from the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    Help,
    Version,
    Metadata,
    Work(Settings),
}

/// Why input is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("option {found:?} is not known; -h lists the options")]
    UnknownOption { found: String },
    #[error("{found:?} is no option; -h lists the options")]
    NotAnOption { found: String },
    #[error("{option} needs a value")]
    NoValue { option: String },
    #[error("{option} takes no value")]
    Value { option: String },
    #[error("action {found:?} is not known; use one of: {}", Action::words())]
    Action { found: String },
    #[error("{name}={found:?} is no number of seconds from 0 to {SECONDS_MAX}")]
    Seconds { name: &'static str, found: String },
    #[error("{name}={found:?} is neither 1 nor 0")]
    Flag { name: &'static str, found: String },
    #[error("{name}={found:?} is not known; use one of: {}", choices.join(", "))]
    Choice { name: &'static str, found: String, choices: &'static [&'static str] },
    #[error("plug={plug:?} and port={port:?} name two victims; give one")]
    TwoVictims { plug: String, port: String },
    #[error("{} needs a victim; give plug=NAME, the name of its slot", action.word())]
    NoVictim { action: Action },
    #[error("no devices; give devices=/dev/..., or set SBD_DEVICE in {}", surroundings::FILES.join(" or "))]
    NoDevices,
    #[error("{found} devices; one to {DEVICES_MAX} can be used")]
    TooManyDevices { found: usize },
    #[error("device {found:?} is no absolute path")]
    Relative { found: String },
    #[error("device {found:?} is named twice; name each one once")]
    Twice { found: String },
    #[error("standard input cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("more than {INPUT_BYTES_MAX} bytes on standard input")]
    TooLong,
}

/// Values as they were given; the last one of a key counts.
#[derive(Default)]
struct Given {
    values: Vec<(&'static Parameter, String)>,
    nodename: String,
    warnings: Vec<String>,
}

/// Reads arguments, or `input` when there are none. Answers what is asked, and what to warn about.
pub(super) fn read(
    arguments: &[String],
    input: impl Read,
    devices_of_surroundings: impl FnOnce() -> Option<String>,
) -> Result<(Asked, Vec<String>), InputError> {
    let mut given = if arguments.is_empty() { of_lines(input)? } else { of_arguments(arguments)? };
    let warnings = std::mem::take(&mut given.warnings);
    Ok((given.asked(devices_of_surroundings)?, warnings))
}

fn of_lines(input: impl Read) -> Result<Given, InputError> {
    let mut bytes = Vec::new();
    input.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(InputError::TooLong);
    }
    let mut given = Given::default();
    for line in String::from_utf8_lossy(&bytes).lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value).to_owned();
        let name = name.replace('-', "_");
        // Pacemaker's word for the victim beside plug: the cluster's name of the node.
        if name == "nodename" {
            given.nodename = value;
        } else if let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == name) {
            given.values.push((parameter, value));
        } else {
            given.warnings.push(format!("{name:?} is not known here and is ignored"));
        }
    }
    Ok(given)
}

fn of_arguments(arguments: &[String]) -> Result<Given, InputError> {
    let mut given = Given::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let unknown = || InputError::UnknownOption { found: argument.clone() };
        if let Some(long) = argument.strip_prefix("--").filter(|long| !long.is_empty()) {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value.to_owned())));
            let name = name.replace('-', "_");
            let parameter = PARAMETERS.iter().find(|parameter| parameter.name == name).ok_or_else(unknown)?;
            given.take(parameter, value, &mut rest)?;
            continue;
        }
        let letters = argument.strip_prefix('-').filter(|letters| !letters.is_empty() && *letters != "-");
        let mut letters = letters.ok_or_else(|| InputError::NotAnOption { found: argument.clone() })?.chars();
        while let Some(letter) = letters.next() {
            let parameter = PARAMETERS.iter().find(|parameter| parameter.letter == Some(letter)).ok_or_else(unknown)?;
            if parameter.kind == Kind::Flag {
                given.take(parameter, None, &mut rest)?;
                continue;
            }
            let attached = letters.as_str();
            given.take(parameter, (!attached.is_empty()).then(|| attached.to_owned()), &mut rest)?;
            break;
        }
    }
    Ok(given)
}

fn seconds_of(name: &'static str, value: &str) -> Result<Duration, InputError> {
    let seconds = value.parse::<u32>().ok().filter(|seconds| *seconds <= SECONDS_MAX);
    seconds.map(|seconds| Duration::from_secs(u64::from(seconds))).ok_or_else(|| InputError::Seconds { name, found: value.to_owned() })
}

fn flag_of(name: &'static str, value: &str) -> Result<bool, InputError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "on" | "true" => Ok(true),
        "0" | "no" | "off" | "false" => Ok(false),
        _ => Err(InputError::Flag { name, found: value.to_owned() }),
    }
}

fn devices_of(list: &str) -> Result<Vec<PathBuf>, InputError> {
    let mut devices = Vec::new();
    for device in list.split([',', ';']).map(str::trim).filter(|device| !device.is_empty()) {
        let path = PathBuf::from(device);
        if !path.is_absolute() {
            return Err(InputError::Relative { found: device.to_owned() });
        }
        if devices.contains(&path) {
            return Err(InputError::Twice { found: device.to_owned() });
        }
        devices.push(path);
    }
    Ok(devices)
}

fn sbd_devices_of(list: &str) -> Result<Vec<PathBuf>, InputError> {
    let devices = devices_of(list)?;
    match devices.len() {
        0 => Err(InputError::NoDevices),
        1..=DEVICES_MAX => Ok(devices),
        found => Err(InputError::TooManyDevices { found }),
    }
}

impl Given {
    fn take<'a>(
        &mut self,
        parameter: &'static Parameter,
        attached: Option<String>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), InputError> {
        let option = || parameter.option();
        let value = match (parameter.kind, attached) {
            (Kind::Flag, None) => "1".to_owned(),
            (Kind::Flag, Some(_)) => return Err(InputError::Value { option: option() }),
            (_, Some(value)) => value,
            (_, None) => rest.next().cloned().ok_or_else(|| InputError::NoValue { option: option() })?,
        };
        self.values.push((parameter, value));
        Ok(())
    }

    /// The value of a parameter; one that is empty counts as not given.
    fn value(&self, key: Key) -> Option<&str> {
        let found = self.values.iter().rev().find(|(parameter, _)| parameter.key == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn asked(&self, devices_of_surroundings: impl FnOnce() -> Option<String>) -> Result<Asked, InputError> {
        let flag = |key, name| self.value(key).map_or(Ok(false), |value| flag_of(name, value));
        if flag(Key::Help, "help")? {
            return Ok(Asked::Help);
        }
        if flag(Key::Version, "version")? {
            return Ok(Asked::Version);
        }
        let word = self.value(Key::Action).unwrap_or(Action::Reboot.word());
        let action = Action::of(&word.to_ascii_lowercase()).ok_or_else(|| InputError::Action { found: word.to_owned() })?;
        if action == Action::Metadata {
            return Ok(Asked::Metadata);
        }
        let devices = match self.value(Key::Devices) {
            Some(list) => sbd_devices_of(list)?,
            None => sbd_devices_of(&devices_of_surroundings().ok_or(InputError::NoDevices)?)?,
        };
        let power_timeout = seconds_of("power_timeout", self.value(Key::PowerTimeout).unwrap_or(POWER_TIMEOUT_S))?;
        Ok(Asked::Work(Settings {
            action,
            devices,
            protected: devices_of(self.value(Key::ProtectedDevices).unwrap_or_default())?,
            victim: self.victim(action)?,
            method: self.method()?,
            is_crashdump: flag(Key::Crashdump, "crashdump")?,
            power_timeout: if power_timeout.is_zero() { NO_TIMEOUT } else { power_timeout },
            io_timeout: seconds_of("io_timeout", self.value(Key::IoTimeout).unwrap_or(IO_TIMEOUT_S))?,
            delay: seconds_of("delay", self.value(Key::Delay).unwrap_or("0"))?,
            is_verbose: flag(Key::Verbose, "verbose")?,
        }))
    }

    fn victim(&self, action: Action) -> Result<String, InputError> {
        let (plug, port) = (self.value(Key::Plug), self.value(Key::Port));
        if let (Some(plug), Some(port)) = (plug, port)
            && plug != port
        {
            return Err(InputError::TwoVictims { plug: plug.to_owned(), port: port.to_owned() });
        }
        let victim = plug.or(port).unwrap_or(&self.nodename);
        if victim.is_empty() && action.needs_victim() {
            return Err(InputError::NoVictim { action });
        }
        Ok(victim.to_owned())
    }

    fn method(&self) -> Result<Method, InputError> {
        match self.value(Key::Method) {
            None | Some("cycle") => Ok(Method::Cycle),
            Some("onoff") => Ok(Method::OnOff),
            Some(found) => Err(InputError::Choice { name: "method", found: found.to_owned(), choices: &["cycle", "onoff"] }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_stdin(text: &str) -> Result<(Asked, Vec<String>), InputError> {
        read(&[], text.as_bytes(), || None)
    }

    fn of_line(line: &str) -> Result<(Asked, Vec<String>), InputError> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        read(&words, &b"action=metadata"[..], || Some("/dev/x; /dev/y".to_owned()))
    }

    fn work(asked: Result<(Asked, Vec<String>), InputError>) -> Settings {
        match asked.unwrap().0 {
            Asked::Work(settings) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_and_options_say_the_same() {
        let lines = "# a remark\n\n action=off \nplug=a\ndevices=\"/dev/a, /dev/b\"\nprotected_devices=/dev/c,/dev/d,/dev/e,/dev/f\npower-timeout=7\nio_timeout=9\ndelay=2\ncrashdump=yes\nverbose=1\nmethod=onoff\n";
        let settings = work(of_stdin(lines));
        let expected = Settings {
            action: Action::Off,
            devices: vec!["/dev/a".into(), "/dev/b".into()],
            protected: vec!["/dev/c".into(), "/dev/d".into(), "/dev/e".into(), "/dev/f".into()],
            victim: "a".into(),
            method: Method::OnOff,
            is_crashdump: true,
            power_timeout: Duration::from_secs(7),
            io_timeout: Duration::from_secs(9),
            delay: Duration::from_secs(2),
            is_verbose: true,
        };
        assert_eq!(settings, expected);
        for line in [
            "-o off -n a --devices=/dev/a,/dev/b --protected-devices=/dev/c,/dev/d,/dev/e,/dev/f --power-timeout 7 --io-timeout=9 --delay=2 --crashdump -v -m onoff",
            "-vooff -na --devices /dev/a,/dev/b --protected_devices /dev/c,/dev/d,/dev/e,/dev/f --power_timeout=7 --io_timeout 9 --delay 2 --crashdump --method=onoff",
        ] {
            assert_eq!(work(of_line(line)), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let settings = work(of_line("-n a"));
        assert_eq!((settings.action, settings.method, settings.is_crashdump), (Action::Reboot, Method::Cycle, false));
        assert_eq!((settings.power_timeout, settings.delay), (Duration::from_secs(300), Duration::ZERO));
        assert_eq!(settings.io_timeout, Duration::from_secs(3));
        assert_eq!(settings.devices, [PathBuf::from("/dev/x"), PathBuf::from("/dev/y")]);
        assert_eq!(work(of_line("-n a --power-timeout 0")).power_timeout, NO_TIMEOUT);
        assert!(work(of_line("-o monitor")).victim.is_empty() && settings.protected.is_empty());
    }

    #[test]
    fn a_victim_has_one_of_three_names() {
        let victim = |lines: &str| work(of_stdin(&format!("devices=/dev/a\n{lines}"))).victim;
        for lines in ["plug=a", "port=a", "nodename=a", "nodename=b\nport=a", "plug=a\nport=a\nnodename=b", "plug=\nport=a"] {
            assert_eq!(victim(lines), "a", "{lines}");
        }
        assert!(matches!(of_stdin("devices=/dev/a\nplug=a\nport=b"), Err(InputError::TwoVictims { .. })));
    }

    #[test]
    fn unknown_lines_are_warned_about_and_unknown_options_refused() {
        let (asked, warnings) = of_stdin("devices=/dev/a\nplug=a\nlogin_timeout=3\nnonsense").unwrap();
        assert!(matches!(asked, Asked::Work(_)));
        assert_eq!(warnings, ["\"login_timeout\" is not known here and is ignored", "\"nonsense\" is not known here and is ignored"]);
        for line in ["--nonsense", "-x", "-vx", "word", "-n", "--devices", "--crashdump=1", "-", "--", "--=x"] {
            assert!(of_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for (lines, word) in [
            ("plug=a", "no devices"),
            ("plug=a\ndevices=,", "no devices"),
            ("plug=a\ndevices=rel", "absolute"),
            ("plug=a\ndevices=/dev/a,/dev/a", "twice"),
            ("plug=a\ndevices=/a,/b,/c,/d", "4 devices"),
            ("plug=a\ndevices=/a\nprotected_devices=b", "absolute"),
            ("plug=a\ndevices=/a\nprotected_devices=/b,/b", "twice"),
            ("devices=/a", "needs a victim"),
            ("devices=/a\naction=status", "needs a victim"),
            ("devices=/a\naction=explode", "explode"),
            ("devices=/a\nplug=a\ndelay=-1", "delay"),
            ("devices=/a\nplug=a\npower_timeout=86401", "power_timeout"),
            ("devices=/a\nplug=a\ncrashdump=perhaps", "crashdump"),
            ("devices=/a\nplug=a\nmethod=hammer", "cycle, onoff"),
        ] {
            let error = of_stdin(lines).unwrap_err().to_string();
            assert!(error.contains(word), "{lines}: {error}");
        }
        assert!(matches!(of_stdin(&"#".repeat(64 << 10)), Ok(_) | Err(InputError::NoDevices)));
        assert!(matches!(of_stdin(&"#".repeat((64 << 10) + 1)), Err(InputError::TooLong)));
    }

    #[test]
    fn some_questions_need_nothing_else() {
        assert_eq!(of_stdin("action=metadata").unwrap().0, Asked::Metadata);
        assert_eq!(of_stdin("action=meta-data").unwrap().0, Asked::Metadata);
        assert_eq!(of_line("-h").unwrap().0, Asked::Help);
        assert_eq!(of_line("--version").unwrap().0, Asked::Version);
    }
}
