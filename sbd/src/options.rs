//! What: the command line of stock sbd: single letters, in any order with the command.
//! Owns: which letter takes a value, the numeric ranges, the environment that stands in for letters.
//! Invariants: what stock accepts is accepted; options that have no meaning here are taken and have no effect.
//! Does not: run a command.
//! Called by: `stock`.

use deadbolt_disk_format::NAME_BYTES_MAX;
use deadbolt_sbd_core::{ResetCommand, Servant, StartMode};

/// Most devices (compatibility).
pub(crate) const DEVICES_MAX: usize = deadbolt_disk_format::DEVICES_MAX;

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StockOptions {
    pub(crate) devices: Vec<String>,
    pub(crate) node: Option<String>,
    pub(crate) watchdog_device: String,
    /// False: no watchdog at all.
    pub(crate) has_watchdog: bool,
    /// The driver's time is left as it is.
    pub(crate) keeps_watchdog_time: bool,
    pub(crate) watchdog_s: u32,
    pub(crate) allocate_s: u32,
    pub(crate) loop_s: u32,
    pub(crate) msgwait_s: u32,
    pub(crate) io_s: u32,
    /// The watchdog's time during a crash dump; 0: as short as it can be.
    pub(crate) crash_s: u32,
    /// How long `watch` waits for its devices.
    pub(crate) startup_s: u32,
    pub(crate) start: StartMode,
    pub(crate) delay: DelayStart,
    pub(crate) pid_file: Option<String>,
    pub(crate) has_real_time: bool,
    pub(crate) asks_pacemaker: bool,
    pub(crate) asks_cluster: bool,
    /// The directory of the deadboltd that is asked instead of both. An option of ours.
    pub(crate) deadbolt: Option<String>,
    /// The cluster has to be well beside the disk.
    pub(crate) cluster_first: bool,
    pub(crate) syncs_startup: bool,
    pub(crate) timeout_action: TimeoutAction,
    pub(crate) move_to_root_cgroup: bool,
    /// The four times of an area, where they were given.
    pub(crate) given_times: [Option<u32>; 4],
    /// For scripts: one JSON object instead of lines. An option of ours.
    pub(crate) is_json: bool,
    /// A person says that the node whose slot is released is gone. An option of ours.
    pub(crate) is_vouched: bool,
    /// The command and its arguments.
    pub(crate) words: Vec<String>,
}

/// Does `watch` wait before it does anything?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DelayStart {
    No,
    /// As long as a sender waits.
    Msgwait,
    Seconds(u64),
}

/// What happens when the lease runs out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimeoutAction {
    pub(crate) flushes: bool,
    pub(crate) command: ResetCommand,
}

impl Default for StockOptions {
    fn default() -> Self {
        // Compatibility: the defaults of stock sbd as Debian builds it.
        Self {
            devices: Vec::new(),
            node: None,
            watchdog_device: "/dev/watchdog".to_owned(),
            has_watchdog: true,
            keeps_watchdog_time: false,
            watchdog_s: 5,
            allocate_s: 2,
            loop_s: 1,
            msgwait_s: 10,
            io_s: 3,
            crash_s: 0,
            startup_s: 120,
            start: StartMode::Always,
            delay: DelayStart::No,
            pid_file: None,
            has_real_time: true,
            asks_pacemaker: true,
            asks_cluster: true,
            deadbolt: None,
            cluster_first: false,
            syncs_startup: true,
            timeout_action: TimeoutAction { flushes: true, command: ResetCommand::Reset },
            move_to_root_cgroup: true,
            given_times: [None; 4],
            is_json: false,
            is_vouched: false,
            words: Vec::new(),
        }
    }
}

impl StockOptions {
    /// Who is asked whether this node is well.
    pub(crate) fn servants(&self) -> Vec<Servant> {
        let wanted = [
            (Servant::Pacemaker, self.asks_pacemaker),
            (Servant::Cluster, self.asks_cluster),
            (Servant::Deadbolt, self.deadbolt.is_some()),
        ];
        wanted.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(servant, _)| servant).collect()
    }
}

/// What follows from a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Parsed {
    /// Go on.
    Run(Box<StockOptions>),
    /// Print the usage, with success.
    Help,
    /// Print this and the usage, with failure.
    Usage(String),
    /// Print this and end with failure.
    Fail(String),
}

/// As `deadbolt fence` calls it.
pub(crate) const VOUCH: &str = "--i-vouch-that-it-is-gone";
const WITH_VALUE: &str = "dpnwSs12345CItFr";
const WITHOUT_VALUE: &str = "WPczZvhRTD";
/// Those that are counted: an odd number of them is yes, an even one no.
#[derive(Default)]
struct Counts {
    watchdog: u32,
    pacemaker: u32,
    cluster: u32,
}

/// Reads the environment and the arguments behind the program's name.
pub(crate) fn parse(program: &str, arguments: &[String], variable: &dyn Fn(&str) -> Option<String>) -> Parsed {
    match try_parse(program, arguments, variable) {
        Ok(options) => Parsed::Run(Box::new(options)),
        Err(stop) => stop,
    }
}

fn try_parse(program: &str, arguments: &[String], variable: &dyn Fn(&str) -> Option<String>) -> Result<StockOptions, Parsed> {
    // Compatibility: stock skips white space before a value, and an empty one is none.
    let variable = |name: &str| variable(name).map(|value| value.trim_start().to_owned()).filter(|value| !value.is_empty());
    let mut options = StockOptions::default();
    let mut action = take_environment(&mut options, &variable);
    let mut counts = Counts::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            options.words.extend(rest.by_ref().cloned());
            break;
        }
        let ours = match argument.as_str() {
            "--json" => Some(&mut options.is_json),
            VOUCH => Some(&mut options.is_vouched),
            _ => None,
        };
        if let Some(flag) = ours {
            *flag = true;
            continue;
        }
        let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            options.words.push(argument.clone());
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if WITHOUT_VALUE.contains(letter) {
                apply_flag(&mut options, &mut counts, letter)?;
                continue;
            }
            if !WITH_VALUE.contains(letter) {
                return Err(Parsed::Usage(format!("{program}: invalid option -- '{letter}'\n")));
            }
            let attached = letters.as_str();
            let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
            let Some(value) = value else {
                return Err(Parsed::Usage(format!("{program}: option requires an argument -- '{letter}'\n")));
            };
            match letter {
                'r' => action = Some(value),
                _ => apply(&mut options, letter, value)?,
            }
            break;
        }
    }
    finish(&mut options, &counts, &variable)?;
    if let Some(action) = action {
        options.timeout_action = parse_action(&action)?;
    }
    Ok(options)
}

fn finish(options: &mut StockOptions, counts: &Counts, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), Parsed> {
    if options.devices.is_empty()
        && let Some(devices) = variable("SBD_DEVICE")
    {
        for device in devices.split(';').map(str::trim).filter(|device| !device.is_empty()) {
            add_device(options, device.to_owned())?;
        }
    }
    let is_odd = |count: u32, before: bool| if count > 0 { count % 2 == 1 } else { before };
    options.has_watchdog = options.watchdog_device != "/dev/null" && is_odd(counts.watchdog, options.has_watchdog);
    options.asks_pacemaker = is_odd(counts.pacemaker, options.asks_pacemaker);
    options.asks_cluster = is_odd(counts.cluster, options.asks_cluster);
    if options.deadbolt.is_some() {
        (options.asks_pacemaker, options.asks_cluster, options.syncs_startup) = (false, false, false);
    }
    let too_long = options.node.as_ref().is_some_and(|node| node.len() > NAME_BYTES_MAX);
    if too_long && !options.devices.is_empty() {
        return Err(Parsed::Fail(format!("A node name has at most {NAME_BYTES_MAX} bytes: choose a shorter one with -n.\n")));
    }
    Ok(())
}

/// Takes in what the environment says; answers the timeout action, which a letter may still replace.
fn take_environment(options: &mut StockOptions, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let flag = |name: &str, before: bool| variable(name).map_or(before, |value| is_true(&value));
    options.asks_pacemaker = flag("SBD_PACEMAKER", true);
    options.asks_cluster = options.asks_pacemaker;
    options.syncs_startup = flag("SBD_SYNC_RESOURCE_STARTUP", true);
    options.deadbolt = variable("SBD_DEADBOLT_DIR");
    options.has_watchdog = flag("SBD_WATCHDOG", true);
    options.move_to_root_cgroup = variable("SBD_MOVE_TO_ROOT_CGROUP").is_none_or(|value| value == "auto" || is_true(&value));
    if variable("SBD_STARTMODE").is_some_and(|value| value == "clean") {
        options.start = StartMode::Clean;
    }
    if let Some(device) = variable("SBD_WATCHDOG_DEV") {
        options.watchdog_device = device;
    }
    if let Some(seconds) = variable("SBD_WATCHDOG_TIMEOUT").and_then(|value| seconds(&value)) {
        options.watchdog_s = u32::try_from(seconds).unwrap_or(options.watchdog_s);
    }
    options.pid_file = variable("SBD_PIDFILE");
    options.delay = match variable("SBD_DELAY_START") {
        Some(value) if is_true(&value) => DelayStart::Msgwait,
        Some(value) => seconds(&value).filter(|seconds| *seconds > 0).map_or(DelayStart::No, DelayStart::Seconds),
        None => DelayStart::No,
    };
    variable("SBD_TIMEOUT_ACTION")
}

/// The words that Pacemaker takes for yes (compatibility).
fn is_true(value: &str) -> bool {
    ["true", "on", "yes", "y", "1"].iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// A time as Pacemaker writes it: a number and a unit, seconds without one. None: not a time.
fn seconds(value: &str) -> Option<u64> {
    let value = value.trim();
    let digits = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value.get(..digits)?.parse().ok()?;
    match value.get(digits..)?.trim() {
        "" | "s" | "sec" => Some(number),
        "ms" | "msec" => Some(number / 1000),
        "us" | "usec" => Some(number / 1_000_000),
        "m" | "min" => number.checked_mul(60),
        "h" | "hr" => number.checked_mul(3600),
        _ => None,
    }
}

fn parse_action(text: &str) -> Result<TimeoutAction, Parsed> {
    let mut action = StockOptions::default().timeout_action;
    let words: Vec<&str> = text.split(',').collect();
    let is_known = words.len() <= 2
        && words.iter().all(|word| {
            match *word {
                "reboot" => action.command = ResetCommand::Reset,
                "off" => action.command = ResetCommand::Off,
                "crashdump" => action.command = ResetCommand::Crash,
                "flush" => action.flushes = true,
                "noflush" => action.flushes = false,
                _ => return false,
            }
            true
        });
    if is_known {
        Ok(action)
    } else {
        Err(Parsed::Fail(format!("Timeout action {text:?}: give flush or noflush, and reboot, off or crashdump, with a comma between.\n")))
    }
}

fn add_device(options: &mut StockOptions, device: String) -> Result<(), Parsed> {
    if !device.starts_with('/') {
        return Err(Parsed::Fail(format!("Invalid device: {device}\n")));
    }
    // Compatibility, and safety: one device is not a majority by being named twice.
    if options.devices.contains(&device) {
        return Ok(());
    }
    if options.devices.len() >= DEVICES_MAX {
        return Err(Parsed::Fail(format!("You can specify up to {DEVICES_MAX} devices via the -d option.\n")));
    }
    options.devices.push(device);
    Ok(())
}

fn apply_flag(options: &mut StockOptions, counts: &mut Counts, letter: char) -> Result<(), Parsed> {
    match letter {
        'h' => return Err(Parsed::Help),
        'W' => counts.watchdog += 1,
        'P' => counts.pacemaker += 1,
        'c' => counts.cluster += 1,
        'z' => options.cluster_first = true,
        'R' => options.has_real_time = false,
        'T' => options.keeps_watchdog_time = true,
        // How much is logged and how stock debugs itself: nothing here depends on it.
        _ => {}
    }
    Ok(())
}

fn apply(options: &mut StockOptions, letter: char, value: String) -> Result<(), Parsed> {
    // Stock reads numbers as C ints that must not be negative.
    let number = |value: &str| {
        let trimmed = value.trim_start();
        let digits = trimmed.strip_prefix('+').unwrap_or(trimmed);
        let number = digits.parse::<u32>().ok().filter(|number| i32::try_from(*number).is_ok());
        number.ok_or_else(|| Parsed::Usage(format!("Invalid value \"{value}\" for option -{letter}\n")))
    };
    match letter {
        'd' => add_device(options, value)?,
        'n' => options.node = Some(value),
        'w' => options.watchdog_device = value,
        'p' => options.pid_file = Some(value),
        '1' => options.watchdog_s = *options.given_times[0].insert(number(&value)?),
        '2' => options.allocate_s = *options.given_times[1].insert(number(&value)?),
        '3' => options.loop_s = *options.given_times[2].insert(number(&value)?),
        '4' => options.msgwait_s = *options.given_times[3].insert(number(&value)?),
        'I' => options.io_s = number(&value)?,
        'C' => options.crash_s = number(&value)?,
        's' => options.startup_s = number(&value)?,
        'S' => options.start = if number(&value)? > 0 { StartMode::Clean } else { StartMode::Always },
        '5' | 't' | 'F' => drop(number(&value)?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse_with(line, &[])
    }

    fn parse_with(line: &str, environment: &[(&str, &str)]) -> Parsed {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let variable = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        parse("sbd", &arguments, &variable)
    }

    fn run_with(line: &str, environment: &[(&str, &str)]) -> StockOptions {
        match parse_with(line, environment) {
            Parsed::Run(options) => *options,
            stop => panic!("{line} {environment:?}: {stop:?}"),
        }
    }

    fn run(line: &str) -> StockOptions {
        run_with(line, &[])
    }

    #[test]
    fn letters_and_words_come_in_any_order() {
        let options = run("message -d /dev/a node1 -n me reset -d/dev/b -vvW -1 7 -44 -I 9");
        assert_eq!(options.words, ["message", "node1", "reset"]);
        assert_eq!(options.devices, ["/dev/a", "/dev/b"]);
        assert_eq!((options.node.as_deref(), options.watchdog_s, options.msgwait_s, options.io_s), (Some("me"), 7, 4, 9));
        assert_eq!(run("-- -d").words, ["-d"]);
        assert_eq!(run("-d /a -d /a -d /b -d /c -d /a list").devices, ["/a", "/b", "/c"]);
    }

    #[test]
    fn refusals_are_those_of_stock() {
        let usage = |text: &str| Parsed::Usage(format!("{text}\n"));
        let table = [
            ("-h list", Parsed::Help),
            ("-x list", usage("sbd: invalid option -- 'x'")),
            ("-d", usage("sbd: option requires an argument -- 'd'")),
            ("-1 abc create", usage("Invalid value \"abc\" for option -1")),
            ("-4 2147483648 create", usage("Invalid value \"2147483648\" for option -4")),
            ("-4 -5 create", usage("Invalid value \"-5\" for option -4")),
            ("-d relative list", Parsed::Fail("Invalid device: relative\n".into())),
            ("-d /a -d /b -d /c -d /d list", Parsed::Fail("You can specify up to 3 devices via the -d option.\n".into())),
        ];
        for (line, expected) in table {
            assert_eq!(parsed(line), expected, "{line}");
        }
    }

    #[test]
    fn the_environment_names_devices_only_without_d() {
        let of = |line: &str| run_with(line, &[("SBD_DEVICE", " /dev/x; /dev/y ;")]).devices;
        assert_eq!((of("list"), of("-d /dev/a list")), (vec!["/dev/x".to_owned(), "/dev/y".to_owned()], vec!["/dev/a".to_owned()]));
    }

    #[test]
    fn the_environment_stands_in_for_letters() {
        let options = run("watch");
        assert_eq!(options, StockOptions { words: vec!["watch".into()], ..StockOptions::default() });
        let environment = [
            ("SBD_PACEMAKER", "no"),
            ("SBD_STARTMODE", "clean"),
            ("SBD_DELAY_START", "2min"),
            ("SBD_WATCHDOG_DEV", "/dev/watchdog1"),
            ("SBD_WATCHDOG_TIMEOUT", "7s"),
            ("SBD_TIMEOUT_ACTION", "noflush,off"),
            ("SBD_PIDFILE", "/run/x"),
            ("SBD_SYNC_RESOURCE_STARTUP", "no"),
        ];
        let options = run_with("watch", &environment);
        assert_eq!((options.asks_pacemaker, options.asks_cluster, options.syncs_startup), (false, false, false));
        assert_eq!((options.start, options.delay, options.watchdog_s), (StartMode::Clean, DelayStart::Seconds(120), 7));
        assert_eq!(options.timeout_action, TimeoutAction { flushes: false, command: ResetCommand::Off });
        assert_eq!((options.watchdog_device.as_str(), options.pid_file.as_deref()), ("/dev/watchdog1", Some("/run/x")));
        // A letter wins.
        let options = run_with("-P -S 0 -w /dev/null -1 9 -p /y -r crashdump watch", &environment);
        assert_eq!((options.asks_pacemaker, options.asks_cluster, options.has_watchdog), (true, false, false));
        assert_eq!((options.start, options.watchdog_s, options.pid_file.as_deref()), (StartMode::Always, 9, Some("/y")));
        assert_eq!(options.timeout_action, TimeoutAction { flushes: true, command: ResetCommand::Crash });
        for (text, delay) in
            [("yes", DelayStart::Msgwait), ("1", DelayStart::Msgwait), ("no", DelayStart::No), ("90", DelayStart::Seconds(90))]
        {
            assert_eq!(run_with("watch", &[("SBD_DELAY_START", text)]).delay, delay, "{text}");
        }
    }

    #[test]
    fn letters_that_are_counted() {
        for (line, pacemaker, watchdog) in
            [("watch", true, true), ("-P -W watch", true, true), ("-PP -WW watch", false, false), ("-PPP watch", true, true)]
        {
            let options = run(line);
            assert_eq!((options.asks_pacemaker, options.has_watchdog), (pacemaker, watchdog), "{line}");
        }
        assert_eq!(run("watch").servants(), [Servant::Pacemaker, Servant::Cluster]);
        let options = run_with("watch", &[("SBD_DEADBOLT_DIR", "/var/lib/deadbolt")]);
        assert_eq!((options.servants(), options.syncs_startup), (vec![Servant::Deadbolt], false), "in the place of both");
        for text in ["flush,bogus", "flush,reboot,off", ""] {
            assert!(parse_action(text).is_err(), "{text}");
        }
    }
}
