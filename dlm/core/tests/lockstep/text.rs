//! Steps and what they bring as lines that people read: `2: s1 convert 1 EX QUECVT lvb=7`, `    s1 blocks PW with 1`.

use crate::reference::{Answer, Ask, Reference, Told};
use deadbolt_dlm_core::client::Lvb;
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
}

const FLAGS: [(&str, Flags); 19] = [
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
];

const RESULT_FLAGS: [(&str, ResultFlags); 3] =
    [("DEMOTED", ResultFlags::DEMOTED), ("VALNOTVALID", ResultFlags::VALNOTVALID), ("ALTMODE", ResultFlags::ALTMODE)];

/// Value blocks of these tests are one byte, repeated.
fn write_options(line: &mut String, flags: Flags, lvb: Option<Lvb>) {
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
}

pub(crate) fn write_step(step: &Step) -> String {
    let (session, serial, ask) = match step {
        Step::Die(session) => return format!("s{session} dies"),
        Step::Ask(session, serial, ask) => (session, serial, ask),
    };
    let mut line = format!("{serial}: s{session} ");
    match ask {
        Ask::Lock { resource, mode, flags, lvb } => {
            write!(line, "lock {} {mode}", char::from(*resource)).unwrap();
            write_options(&mut line, *flags, *lvb);
        }
        Ask::Convert { lock, mode, flags, lvb } => {
            write!(line, "convert {lock} {mode}").unwrap();
            write_options(&mut line, *flags, *lvb);
        }
        Ask::Unlock { lock, flags, lvb } => {
            write!(line, "unlock {lock}").unwrap();
            write_options(&mut line, *flags, *lvb);
        }
        Ask::Cancel { lock } => write!(line, "cancel {lock}").unwrap(),
        Ask::CancelRequest { request } => write!(line, "cancel-request {request}").unwrap(),
    }
    line
}

/// Reads what [`write_step`] writes.
pub(crate) fn read_step(line: &str) -> Option<Step> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let Some(serial) = first.strip_suffix(':') else {
        let session = first.strip_prefix('s')?.parse().ok()?;
        return (words.next() == Some("dies")).then_some(Step::Die(session));
    };
    let serial = serial.parse().ok()?;
    let session = words.next()?.strip_prefix('s')?.parse().ok()?;
    let (verb, object) = (words.next()?, words.next()?);
    let number = || object.parse().ok();
    let ask = match verb {
        "lock" => {
            let mode = read_mode(words.next()?)?;
            let (flags, lvb) = read_options(words)?;
            Ask::Lock { resource: *object.as_bytes().first()?, mode, flags, lvb }
        }
        "convert" => {
            let mode = read_mode(words.next()?)?;
            let (flags, lvb) = read_options(words)?;
            Ask::Convert { lock: number()?, mode, flags, lvb }
        }
        "unlock" => {
            let (flags, lvb) = read_options(words)?;
            Ask::Unlock { lock: number()?, flags, lvb }
        }
        "cancel" => Ask::Cancel { lock: number()? },
        "cancel-request" => Ask::CancelRequest { request: number()? },
        _ => return None,
    };
    Some(Step::Ask(session, serial, ask))
}

fn read_mode(word: &str) -> Option<Mode> {
    MODES.into_iter().find(|mode| mode.name() == word)
}

fn read_options<'a>(words: impl Iterator<Item = &'a str>) -> Option<(Flags, Option<Lvb>)> {
    let (mut flags, mut lvb) = (Flags::NONE, None);
    for word in words {
        if let Some(value) = word.strip_prefix("lvb=") {
            lvb = Some([value.parse().ok()?; 32]);
        } else if let Some(bits) = word.strip_prefix("0x") {
            flags = flags.with(Flags(u32::from_str_radix(bits, 16).ok()?));
        } else {
            flags = flags.with(FLAGS.into_iter().find(|(name, _)| *name == word)?.1);
        }
    }
    Some((flags, lvb))
}

pub(crate) fn write_told((session, answer): &Told) -> String {
    match answer {
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
                format!("{} {}", lock.id, modes.join(">"))
            })
            .collect();
        write!(line, " {queue} {};", locks.join(", ")).unwrap();
    }
    line.trim_end_matches(';').to_string()
}
