//! Steps and what they bring as lines that people read: `2: s1 convert 1 EX QUECVT lvb=7`, `    s1 blocks PW with 1`.

use crate::reference::{Answer, Ask, Options, Reference, Told};
use deadbolt_dlm_core::client::NONE_FAILED;
use deadbolt_dlm_core::mode::MODES;
use deadbolt_dlm_core::{Flags, Mode, ResultFlags};
use std::fmt::Write;

/// One thing that happens to the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A session's request with its serial.
    Ask(u64, u64, Ask),
    /// A session's process dies.
    Die(u64),
    /// Time passes. (Each step takes a millisecond, too.)
    Pass(u64),
}

const FLAGS: [(&str, Flags); 20] = [
    ("NOQUEUE", Flags::NOQUEUE),
    ("CANCEL", Flags::CANCEL),
    ("CONVERT", Flags::CONVERT),
    ("VALBLK", Flags::VALBLK),
    ("QUECVT", Flags::QUECVT),
    ("IVVALBLK", Flags::IVVALBLK),
    ("CONVDEADLK", Flags::CONVDEADLK),
    ("PERSISTENT", Flags::PERSISTENT),
    ("NODLCKWT", Flags::NODLCKWT),
    ("NODLCKBLK", Flags::NODLCKBLK),
    ("EXPEDITE", Flags::EXPEDITE),
    ("NOQUEUEBAST", Flags::NOQUEUEBAST),
    ("HEADQUE", Flags::HEADQUE),
    ("NOORDER", Flags::NOORDER),
    ("ORPHAN", Flags::ORPHAN),
    ("ALTPR", Flags::ALTPR),
    ("ALTCW", Flags::ALTCW),
    ("FORCEUNLOCK", Flags::FORCEUNLOCK),
    ("TIMEOUT", Flags::TIMEOUT),
    ("SYNCSTS", Flags::SYNCSTS),
];

const RESULT_FLAGS: [(&str, ResultFlags); 4] = [
    ("DEMOTED", ResultFlags::DEMOTED),
    ("VALNOTVALID", ResultFlags::VALNOTVALID),
    ("ALTMODE", ResultFlags::ALTMODE),
    ("SYNCH", ResultFlags::SYNCH),
];

/// Value blocks of these tests are one byte, repeated.
fn write_options(line: &mut String, options: &Options) {
    let Options { flags, lvb, timeout } = *options;
    let mut rest = flags.0;
    for (name, flag) in FLAGS.iter().filter(|(_, flag)| flags.has(*flag)) {
        write!(line, " {name}").unwrap();
        rest &= !flag.0;
    }
    if rest != 0 {
        write!(line, " {rest:#x}").unwrap();
    }
    if let Some(lvb) = lvb {
        write!(line, " lvb={}", lvb[0]).unwrap();
    }
    if timeout != 0 {
        write!(line, " timeout={timeout}").unwrap();
    }
}

pub(crate) fn write_step(step: &Step) -> String {
    let (session, serial, ask) = match step {
        Step::Die(session) => return format!("s{session} dies"),
        Step::Pass(time) => return format!("{time} ms pass"),
        Step::Ask(session, serial, ask) => (session, serial, ask),
    };
    let mut line = if *serial == 0 { format!("posted: s{session} ") } else { format!("{serial}: s{session} ") };
    match ask {
        Ask::Lock { resource, mode, options } => {
            write!(line, "lock {} {mode}", char::from(*resource)).unwrap();
            write_options(&mut line, options);
        }
        Ask::Many { items, options } => {
            let items: Vec<String> = items.iter().map(|(resource, mode)| format!("{}={mode}", char::from(*resource))).collect();
            write!(line, "many {}", items.join(",")).unwrap();
            write_options(&mut line, options);
        }
        Ask::Convert { lock, mode, options } => {
            write!(line, "convert {lock} {mode}").unwrap();
            write_options(&mut line, options);
        }
        Ask::Unlock { lock, options } => {
            write!(line, "unlock {lock}").unwrap();
            write_options(&mut line, options);
        }
        Ask::Cancel { lock } => write!(line, "cancel {lock}").unwrap(),
        Ask::CancelRequest { request } => write!(line, "cancel-request {request}").unwrap(),
        Ask::Purge { of: Some(of) } => write!(line, "purge s{of}").unwrap(),
        Ask::Purge { of: None } => line += "purge all",
    }
    line
}

/// Reads what [`write_step`] writes.
pub(crate) fn read_step(line: &str) -> Option<Step> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let Some(serial) = first.strip_suffix(':') else {
        let rest: Vec<&str> = words.collect();
        return match (first.strip_prefix('s'), rest.as_slice()) {
            (Some(session), ["dies"]) => Some(Step::Die(session.parse().ok()?)),
            (None, ["ms", "pass"]) => Some(Step::Pass(first.parse().ok()?)),
            _ => None,
        };
    };
    let serial = if serial == "posted" { 0 } else { serial.parse().ok()? };
    let session = words.next()?.strip_prefix('s')?.parse().ok()?;
    let (verb, object) = (words.next()?, words.next()?);
    let number = || object.parse().ok();
    let ask = match verb {
        "lock" => {
            let mode = read_mode(words.next()?)?;
            let options = read_options(words)?;
            Ask::Lock { resource: *object.as_bytes().first()?, mode, options }
        }
        "many" => {
            let item = |item: &str| Some((*item.as_bytes().first()?, read_mode(item.get(2..)?)?));
            let items = object.split(',').map(item).collect::<Option<Vec<_>>>()?;
            Ask::Many { items, options: read_options(words)? }
        }
        "convert" => {
            let mode = read_mode(words.next()?)?;
            let options = read_options(words)?;
            Ask::Convert { lock: number()?, mode, options }
        }
        "unlock" => {
            let options = read_options(words)?;
            Ask::Unlock { lock: number()?, options }
        }
        "cancel" => Ask::Cancel { lock: number()? },
        "purge" => Ask::Purge { of: if object == "all" { None } else { Some(object.strip_prefix('s')?.parse().ok()?) } },
        "cancel-request" => Ask::CancelRequest { request: number()? },
        _ => return None,
    };
    Some(Step::Ask(session, serial, ask))
}

fn read_mode(word: &str) -> Option<Mode> {
    MODES.into_iter().find(|mode| mode.name() == word)
}

fn read_options<'a>(words: impl Iterator<Item = &'a str>) -> Option<Options> {
    let mut options = Options::default();
    for word in words {
        if let Some(value) = word.strip_prefix("lvb=") {
            options.lvb = Some([value.parse().ok()?; 32]);
        } else if let Some(value) = word.strip_prefix("timeout=") {
            options.timeout = value.parse().ok()?;
        } else if let Some(bits) = word.strip_prefix("0x") {
            options.flags = options.flags.with(Flags(u32::from_str_radix(bits, 16).ok()?));
        } else {
            options.flags = options.flags.with(FLAGS.into_iter().find(|(name, _)| *name == word)?.1);
        }
    }
    Some(options)
}

pub(crate) fn write_told((session, answer): &Told) -> String {
    match answer {
        Answer::Many { serial, status, failed, locks } => match failed {
            &NONE_FAILED => format!("s{session} {serial}: {status:?}, locks {locks:?}"),
            failed => format!("s{session} {serial}: {status:?}, number {failed}"),
        },
        Answer::Blocking { lock, mode } => format!("s{session} blocks {mode} with {lock}"),
        Answer::Done { serial, lock, status, mode, flags, lvb } => {
            let mut line = format!("s{session} {serial}: {status:?}");
            if let (Some(lock), Some(mode)) = (lock, mode) {
                write!(line, ", lock {lock} has {mode}").unwrap();
            }
            for (name, _) in RESULT_FLAGS.iter().filter(|(_, flag)| flags.has(*flag)) {
                write!(line, " {name}").unwrap();
            }
            if let Some(lvb) = lvb {
                write!(line, " lvb={}", lvb[0]).unwrap();
            }
            line
        }
    }
}

/// A resource's queues: granted, converting, waiting.
pub(crate) fn write_queues(reference: &Reference, name: u8) -> String {
    let mut line = format!("{}:", char::from(name));
    let Some(resource) = reference.resources.get(&name) else { return line + " nothing" };
    for (queue, locks) in [("granted", &resource.granted), ("converting", &resource.converting), ("waiting", &resource.waiting)] {
        if locks.is_empty() {
            continue;
        }
        let locks: Vec<String> = locks
            .iter()
            .map(|lock| {
                let modes = [lock.granted, lock.wanted.as_ref().map(|wanted| wanted.mode)];
                let modes: Vec<&str> = modes.into_iter().flatten().map(Mode::name).collect();
                let orphan = if lock.session == 0 { " orphan" } else { "" };
                format!("{} {}{orphan}", lock.id, modes.join(">"))
            })
            .collect();
        write!(line, " {queue} {};", locks.join(", ")).unwrap();
    }
    line.trim_end_matches(';').to_string()
}
