//! What: the command line of stock sbd: single letters, in any order with the command.
//! Owns: which letter takes a value, the numeric ranges, the environment that stands in for `-d`.
//! Invariants: what stock accepts is accepted; options that have no meaning here are taken and have no effect.
//! Does not: run a command.
//! Called by: `stock`.

/// Most devices (compatibility).
pub(crate) const DEVICES_MAX: usize = deadbolt_disk_format::DEVICES_MAX;

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StockOptions {
    pub(crate) devices: Vec<String>,
    pub(crate) node: Option<String>,
    pub(crate) watchdog_device: String,
    pub(crate) watchdog_s: u32,
    pub(crate) allocate_s: u32,
    pub(crate) loop_s: u32,
    pub(crate) msgwait_s: u32,
    pub(crate) io_s: u32,
    /// The command and its arguments.
    pub(crate) words: Vec<String>,
}

impl Default for StockOptions {
    fn default() -> Self {
        // Compatibility: the defaults of stock sbd.
        Self {
            devices: Vec::new(),
            node: None,
            watchdog_device: "/dev/watchdog".to_owned(),
            watchdog_s: 5,
            allocate_s: 2,
            loop_s: 1,
            msgwait_s: 10,
            io_s: 3,
            words: Vec::new(),
        }
    }
}

/// What follows from a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Parsed {
    /// Go on.
    Run(StockOptions),
    /// Print the usage, with success.
    Help,
    /// Print this and the usage, with failure.
    Usage(String),
    /// Print this and end with failure.
    Fail(String),
}

const WITH_VALUE: &str = "dpnwSs12345CItFr";
const WITHOUT_VALUE: &str = "WPczZvhRTD";

/// Reads the arguments behind the program's name.
pub(crate) fn parse(program: &str, arguments: &[String], devices_of_environment: Option<&str>) -> Parsed {
    let mut options = StockOptions::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            options.words.extend(rest.by_ref().cloned());
            break;
        }
        let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            options.words.push(argument.clone());
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if letter == 'h' {
                return Parsed::Help;
            }
            if WITHOUT_VALUE.contains(letter) {
                continue;
            }
            if !WITH_VALUE.contains(letter) {
                return Parsed::Usage(format!("{program}: invalid option -- '{letter}'\n"));
            }
            let attached = letters.as_str();
            let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
            let Some(value) = value else {
                return Parsed::Usage(format!("{program}: option requires an argument -- '{letter}'\n"));
            };
            if let Err(stop) = apply(&mut options, letter, value) {
                return stop;
            }
            break;
        }
    }
    if options.devices.is_empty()
        && let Some(devices) = devices_of_environment
    {
        for device in devices.split(';').map(str::trim).filter(|device| !device.is_empty()) {
            if let Err(stop) = add_device(&mut options, device.to_owned()) {
                return stop;
            }
        }
    }
    Parsed::Run(options)
}

fn add_device(options: &mut StockOptions, device: String) -> Result<(), Parsed> {
    if !device.starts_with('/') {
        return Err(Parsed::Fail(format!("Invalid device: {device}\n")));
    }
    if options.devices.len() >= DEVICES_MAX {
        return Err(Parsed::Fail(format!("You can specify up to {DEVICES_MAX} devices via the -d option.\n")));
    }
    options.devices.push(device);
    Ok(())
}

fn apply(options: &mut StockOptions, letter: char, value: String) -> Result<(), Parsed> {
    // Stock reads numbers as C ints that must not be negative.
    let number = |value: &str| {
        let digits = value.strip_prefix('+').unwrap_or(value);
        let number = digits.parse::<u32>().ok().filter(|number| i32::try_from(*number).is_ok());
        number.ok_or_else(|| Parsed::Usage(format!("Invalid value \"{value}\" for option -{letter}\n")))
    };
    match letter {
        'd' => add_device(options, value)?,
        'n' => options.node = Some(value),
        'w' => options.watchdog_device = value,
        '1' => options.watchdog_s = number(&value)?,
        '2' => options.allocate_s = number(&value)?,
        '3' => options.loop_s = number(&value)?,
        '4' => options.msgwait_s = number(&value)?,
        'I' => options.io_s = number(&value)?,
        '5' | 'C' | 't' | 'F' | 's' | 'S' => drop(number(&value)?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse("sbd", &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), None)
    }

    fn run(line: &str) -> StockOptions {
        if let Parsed::Run(options) = parsed(line) { options } else { panic!("{line}: {:?}", parsed(line)) }
    }

    #[test]
    fn letters_and_words_come_in_any_order() {
        let options = run("message -d /dev/a node1 -n me reset -d/dev/b -vvW -1 7 -44 -I 9");
        assert_eq!(options.words, ["message", "node1", "reset"]);
        assert_eq!(options.devices, ["/dev/a", "/dev/b"]);
        assert_eq!((options.node.as_deref(), options.watchdog_s, options.msgwait_s, options.io_s), (Some("me"), 7, 4, 9));
        assert_eq!(run("-- -d").words, ["-d"]);
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
        let of = |line: &str| match parse("sbd", &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), Some("/dev/x;/dev/y;")) {
            Parsed::Run(options) => options.devices,
            other => panic!("{other:?}"),
        };
        assert_eq!((of("list"), of("-d /dev/a list")), (vec!["/dev/x".to_owned(), "/dev/y".to_owned()], vec!["/dev/a".to_owned()]));
    }
}
