//! What: the verbs of stock sbd: create, list, dump, allocate, message, ping, query-watchdog, test-watchdog, with its output.
//! Owns: the words that other tools parse, on standard output; reasons of our own go to standard error.
//! Invariants: success of a message that ends a node means that it is gone, by evidence; of any other: written and read back on more
//! than half of the devices.
//! Does not: watch (`watch`), or judge evidence (`fence`).
//! Called by: `main_from`; `fence` sends by it.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use deadbolt_disk::Access;
use deadbolt_disk_format::DeviceUuid;
use deadbolt_disk_format::sbd::{Command, SBD_VERSION, SbdHeader, Tail};

use crate::area::{Area, AreaError, is_same_name};
use crate::check;
use crate::fence::{FenceReport, FenceRequest, fence, lives_of};
use crate::options::{Parsed, StockOptions, parse};
use crate::retime;
use crate::slots::{self, SlotError};
use crate::watch::watch;
use crate::watchdog::{DeviceWatchdog, Watchdog};

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;

/// Where output goes.
pub(crate) struct Say;

impl Say {
    /// A broken pipe ends nothing: the work counts, not its report.
    pub(crate) fn out(text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
    pub(crate) fn err(text: &str) {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// Runs one command line.
pub(crate) fn stock(program: &str, arguments: &[String]) -> u8 {
    let variable = |name: &str| std::env::var(name).ok();
    let options = match parse(program, arguments, &variable) {
        Parsed::Run(options) => *options,
        Parsed::Help => {
            Say::err(&usage());
            return SUCCESS;
        }
        Parsed::Usage(text) => {
            Say::err(&format!("{text}{}", usage()));
            return FAILURE;
        }
        Parsed::Fail(text) => return failed(&text),
    };
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    let is_done = match words.as_slice() {
        [] => {
            Say::err(&format!("Not enough arguments.\n{}", usage()));
            return FAILURE;
        }
        ["create", ..] => create(&options),
        ["dump", ..] => dump(&options),
        ["list", ..] => list(&options),
        ["allocate", rest @ ..] => allocate(&options, rest.first().copied()),
        ["message", rest @ ..] => message(&options, rest.first().copied(), rest.get(1).copied()),
        ["ping", rest @ ..] => ping(&options, rest.first().copied()),
        ["release", rest @ ..] => release(&options, rest.first().copied()),
        ["check", ..] => check::check(&options),
        ["retime", ..] => retime::retime(&options),
        ["query-watchdog", ..] => query_watchdog(),
        ["test-watchdog", ..] => test_watchdog(&options),
        ["watch", ..] => match watch(&options, &own_name(&options)) {
            Ok(()) => true,
            Err(error) => {
                Say::err(&format!("{error}\n"));
                false
            }
        },
        _ => {
            Say::err(&usage());
            return FAILURE;
        }
    };
    if is_done { SUCCESS } else { failed("") }
}

fn failed(text: &str) -> u8 {
    Say::err(&format!("{text}sbd failed; please check the logs.\n"));
    FAILURE
}

fn usage() -> String {
    let text = "Fencing by a shared disk.
Usage:
\tsbd [options] COMMAND [arguments]
Options:
  -d DEVICE   shared device; again for a second and third
  -n NAME     name of this node (default: its host name)
  -w DEVICE   watchdog device (default: /dev/watchdog; /dev/null: none)
  -W          use a watchdog; twice: do not
  -T          leave the watchdog's time as it is
  -P, -c      ask Pacemaker, ask the cluster; twice: do not (default: SBD_PACEMAKER)
  -z          the cluster has to be well beside the disk
  -p FILE     file for the number of the process
  -S 0|1      start mode: always, or only with an empty mailbox
  -s SECONDS  how long `watch` waits for its devices (default: 120)
  -r ACTION   when no cycle is complete in time: flush or noflush, reboot or off or crashdump
  -C SECONDS  the watchdog's time during a crash dump (default: the shortest)
  -R          no real-time scheduling
  -1 SECONDS  watchdog time, for create (default: 5)
  -2 SECONDS  allocate time, for create (default: 2)
  -3 SECONDS  loop time, for create (default: 1)
  -4 SECONDS  msgwait time, for create (default: 10)
  -I SECONDS  how long an operation on a device may take (default: 3)
  --json      message and check: one JSON object
  --i-vouch-that-it-is-gone
              release: a person says so, where nothing else shows it
  -h          this text
  Other options of ClusterLabs sbd are taken and have no effect here.
Commands:
  create              make the area on the devices; what stood there is lost
  list                slots in use, and their messages
  dump                the header of each device
  check               can the times of the devices, and those that the nodes live by, prove a death?
  allocate NODE       give a node a slot
  retime              give the area the times named by -1 to -4, while its nodes live
  release NODE        free the slot of a node that does not live any more
  message NODE COMMAND
                      COMMAND: test, reset, off, crashdump, exit, clear; NODE may be LOCAL
  ping NODE           send a test and wait until it is answered
  watch               keep this node alive, or end it
  query-watchdog      the watchdog devices of this machine
  test-watchdog       let the watchdog reset this machine
";
    text.to_owned()
}

fn own_name(options: &StockOptions) -> String {
    let host = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    options.node.clone().unwrap_or_else(host)
}

pub(crate) fn open(options: &StockOptions, device: &str, access: Access) -> Result<Area, AreaError> {
    Area::open(Path::new(device), access, Duration::from_secs(u64::from(options.io_s.max(1))))
}

fn create(options: &StockOptions) -> bool {
    if options.msgwait_s < options.watchdog_s.saturating_mul(2) {
        let (msgwait, watchdog) = (options.msgwait_s, options.watchdog_s);
        Say::err(&format!(
            "warning: msgwait {msgwait} s is less than twice the watchdog's {watchdog} s: a fence may be reported before its victim is down (-4)\n"
        ));
    }
    for device in &options.devices {
        Say::out(&format!("Initializing device {device}\n"));
        let mut uuid = DeviceUuid::NONE;
        if let Err(error) = getrandom::fill(&mut uuid.0) {
            Say::err(&format!("no random bytes: {error}\n"));
            return false;
        }
        // RFC 9562: version 4, variant 1.
        uuid.0[6] = (uuid.0[6] & 0x0f) | 0x40;
        uuid.0[8] = (uuid.0[8] & 0x3f) | 0x80;
        let area = match open(options, device, Access::ReadWrite) {
            Ok(area) => area,
            Err(error) => {
                Say::err(&format!("{error}\n"));
                return false;
            }
        };
        let times = [options.watchdog_s, options.allocate_s, options.loop_s, options.msgwait_s];
        // The number is stock's descriptor of the device; it is printed for those who compare the lines.
        let said = || Say::out(&format!("Creating version 2.1 header on device 3 (uuid: {uuid})\nInitializing 255 slots on device 3\n"));
        if let Err(error) = area.create(times, uuid.0, said) {
            Say::err(&format!("{error}\nFailed to init device {device}\n"));
            return false;
        }
        Say::out(&format!("Device {device} is initialized.\n"));
    }
    Say::out("Did you check sbd service down on all nodes before? If not do so now and restart afterwards.\n");
    true
}

fn dump(options: &StockOptions) -> bool {
    let mut is_done = true;
    for device in &options.devices {
        Say::out(&format!("==Dumping header on disk {device}\n"));
        let header = match open(options, device, Access::Read) {
            Ok(area) => area.header(),
            Err(error) => {
                Say::err(&format!("== disk {device} unreadable!\n"));
                Err(error)
            }
        };
        match header {
            Ok(header) => Say::out(&format!("{}==Header on disk {device} is dumped\n", header_text(&header))),
            Err(error) => {
                Say::err(&format!("==Header on disk {device} NOT dumped\n{device}: {error}\n"));
                is_done = false;
            }
        }
    }
    is_done
}

fn header_text(header: &SbdHeader) -> String {
    let mut text = format!("Header version     : {SBD_VERSION}.{}\n", header.minor);
    if header.minor > 0 {
        let _ = writeln!(text, "UUID               : {}", DeviceUuid(header.uuid));
    }
    let _ = writeln!(text, "Number of slots    : {}", header.slots);
    let _ = writeln!(text, "Sector size        : {}", header.sector_bytes);
    for (name, seconds) in
        [("watchdog", header.watchdog_s), ("allocate", header.allocate_s), ("loop", header.loop_s), ("msgwait", header.msgwait_s)]
    {
        let _ = writeln!(text, "{:<19}: {seconds}", format!("Timeout ({name})"));
    }
    text
}

fn list(options: &StockOptions) -> bool {
    let mut is_done = true;
    for device in &options.devices {
        let slots = match open(options, device, Access::Read) {
            Ok(area) => area.slots().inspect_err(|_| Say::err(&format!("== Slots on disk {device} NOT dumped\n"))),
            Err(error) => {
                Say::err(&format!("== disk {device} unreadable!\n"));
                Err(error)
            }
        };
        match slots {
            Ok(slots) => {
                for slot in slots {
                    let (command, sender) = (slot.mailbox.command.word(), &slot.mailbox.sender);
                    Say::out(&format!("{}\t{}\t{command}\t{sender}\n", slot.index, slot.name));
                }
            }
            Err(error) => {
                Say::err(&format!("{device}: {error}\n"));
                is_done = false;
            }
        }
    }
    is_done
}

fn allocate(options: &StockOptions, name: Option<&str>) -> bool {
    for device in &options.devices {
        Say::out(&format!("Trying to allocate slot for {} on device {device}.\n", name.unwrap_or("(null)")));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            Say::err("allocate: no name was given\n");
            return false;
        };
        if let Err(error) = allocate_on(options, device, name) {
            Say::err(&format!("{device}: {error}\n"));
            return false;
        }
        Say::out(&format!("Slot for {name} has been allocated on {device}.\n"));
    }
    true
}

fn allocate_on(options: &StockOptions, device: &str, name: &str) -> Result<(), SlotError> {
    let area = open(options, device, Access::ReadWrite)?;
    slots::allocate_slot(&area, name, |slot| Say::out(&format!("slot {slot} is unused - trying to own\n"))).map(drop)
}

/// Gives a node's slot back on all devices. A verb of ours.
fn release(options: &StockOptions, node: Option<&str>) -> bool {
    let Some(node) = node else {
        Say::err("release: give a node\n");
        return false;
    };
    let devices: Vec<PathBuf> = options.devices.iter().map(PathBuf::from).collect();
    let areas: Result<Vec<Area>, AreaError> = options.devices.iter().map(|device| open(options, device, Access::ReadWrite)).collect();
    match areas.map_err(SlotError::from).and_then(|areas| slots::release(&devices, &areas, node, options.is_vouched)) {
        Ok(()) => {
            Say::out(&format!("Slot of {node} has been released.\n"));
            true
        }
        Err(error) => {
            Say::err(&format!("release: {error}\n"));
            false
        }
    }
}

fn command_of(word: &str) -> Option<Command> {
    [Command::Test, Command::Reset, Command::Off, Command::Exit, Command::Clear, Command::Crashdump]
        .into_iter()
        .find(|command| command.word() == word)
}

fn message(options: &StockOptions, name: Option<&str>, word: Option<&str>) -> bool {
    let (Some(name), Some(word)) = (name, word) else {
        Say::err("message: give a node and a command\n");
        return false;
    };
    let Some(command) = command_of(word) else {
        Say::err(&format!("message: {word:?} is no command; use test, reset, off, crashdump, exit or clear\n"));
        return false;
    };
    let own = own_name(options);
    let name = if name == "LOCAL" { &own } else { name };
    if command.is_deadly() {
        return fence_by_message(options, name, command, &own);
    }
    if command == Command::Clear
        && let Some(reason) = why_not_clear(options, name, &own)
    {
        Say::err(&format!("message: {reason}\n"));
        return false;
    }
    let Some(headers) = send_to_all(options, name, command, &own) else { return false };
    let msgwait_s = headers.iter().map(|header| header.msgwait_s).max().unwrap_or(0);
    // Compatibility: a sender waits for everything but an exit.
    if command != Command::Exit {
        std::thread::sleep(Duration::from_secs(u64::from(msgwait_s)));
    }
    true
}

/// Ends a node and says what proves it: to people, to scripts, and to the system log.
fn fence_by_message(options: &StockOptions, victim: &str, command: Command, sender: &str) -> bool {
    let devices: Vec<PathBuf> = options.devices.iter().map(PathBuf::from).collect();
    let io = Duration::from_secs(u64::from(options.io_s));
    let report = fence(&FenceRequest { devices: &devices, victim, command, sender, io, limit: Duration::MAX, protected: None });
    let (is_gone, text, fields) = match &report {
        Ok(FenceReport::Gone { evidence, waited, detail }) => {
            let seconds = waited.as_secs_f64();
            let text = format!("{victim:?} is gone after {seconds:.2} s; evidence: {evidence} ({detail})");
            let waited_ms = waited.as_millis();
            (true, text, format!("\"evidence\":\"{evidence}\",\"waited_ms\":{waited_ms},\"detail\":{}", json_text(detail)))
        }
        Ok(FenceReport::NotProved { reason }) => {
            let text = format!("written, but nothing proves that {victim:?} is gone: {reason}");
            (false, text, format!("\"evidence\":null,\"error\":{}", json_text(reason)))
        }
        Err(error) => (false, error.to_string(), format!("\"evidence\":null,\"error\":{}", json_text(&error.to_string()))),
    };
    let (node, word) = (json_text(victim), command.word());
    if options.is_json {
        Say::out(&format!("{{\"ok\":{is_gone},\"node\":{node},\"command\":\"{word}\",{fields}}}\n"));
    } else {
        Say::err(&format!("message: {text}\n"));
    }
    crate::log::to_system_log(&format!("{word} of {victim:?} asked by {sender:?}: {text}"));
    is_gone
}

/// A text as a JSON string.
pub(crate) fn json_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// A pill of somebody else stays while the boot that it names neither was reset nor is gone.
fn why_not_clear(options: &StockOptions, name: &str, own: &str) -> Option<String> {
    let look = |device: &String| {
        let area = open(options, device, Access::Read).ok()?;
        let slot = area.slots().ok()?.into_iter().find(|slot| is_same_name(&slot.name, name))?;
        let Tail::Present(tail) = slot.mailbox.tail else { return None };
        let is_others = slot.mailbox.command.is_deadly() && !is_same_name(&slot.mailbox.sender, own);
        is_others.then_some((slot.mailbox.sender, tail.victim_boot))
    };
    let (sender, boot) = options.devices.iter().find_map(look)?;
    let devices: Vec<PathBuf> = options.devices.iter().map(PathBuf::from).collect();
    let seen = lives_of(&devices, name);
    let is_pending = seen.iter().any(|life| life.boot == boot && !life.is_gone);
    is_pending.then(|| {
        format!("{sender:?} has asked for the end of boot {boot} of {name:?}, and nothing shows that it ended: clear it once it has, or as {sender:?} (-n)")
    })
}

/// Sends to all devices side by side; the headers of more than half of them, or none.
pub(crate) fn send_to_all(options: &StockOptions, name: &str, command: Command, sender: &str) -> Option<Vec<SbdHeader>> {
    let (answer, answers) = channel();
    for device in &options.devices {
        let (options, device, answer) = (options.clone(), device.clone(), answer.clone());
        let (name, sender) = (name.to_owned(), sender.to_owned());
        let body = move || {
            let sent = open(&options, &device, Access::ReadWrite).and_then(|area| area.send(&name, command, &sender));
            // The receiver ends once it has a majority; what comes later is no longer needed.
            let _ = answer.send((device, sent));
        };
        if let Err(error) = std::thread::Builder::new().name("sbd-message".into()).spawn(body) {
            Say::err(&format!("no thread: {error}\n"));
        }
    }
    drop(answer);
    let needed = options.devices.len() / 2 + 1;
    let limit = Duration::from_secs(u64::from(options.io_s.max(1)) * 3);
    let end = Instant::now() + limit;
    let mut headers = Vec::new();
    while headers.len() < needed {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((_, Ok(header))) => headers.push(header),
            Ok((device, Err(error))) => Say::err(&format!("{device}: {error}\n")),
            Err(RecvTimeoutError::Timeout) => {
                Say::err(&format!("message: {}\n", AreaError::NoAnswer { waited_s: limit.as_secs() }));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if headers.len() >= needed {
        return Some(headers);
    }
    let (reached, count) = (headers.len(), options.devices.len());
    Say::err(&format!("message: written and read back on {reached} of {count} devices, {needed} are needed\n"));
    None
}

fn ping(options: &StockOptions, name: Option<&str>) -> bool {
    let Some(name) = name else {
        Say::err("ping: give a node\n");
        return false;
    };
    let own = own_name(options);
    let name = if name == "LOCAL" { own.as_str() } else { name };
    for device in &options.devices {
        let sent = open(options, device, Access::ReadWrite).and_then(|area| Ok((area.send(name, Command::Test, &own)?, area)));
        let (header, area) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                Say::err(&format!("{device}: {error}\n"));
                return false;
            }
        };
        let end = Instant::now() + Duration::from_secs(u64::from(header.msgwait_s.max(1)));
        while area.command_of(name).is_ok_and(|command| command != Command::Clear) {
            if Instant::now() >= end {
                Say::err(&format!("{device}: {name:?} did not answer within {} s\n", header.msgwait_s));
                return false;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    true
}

/// The watchdog devices that the kernel lists. Nothing is opened: opening arms.
fn query_watchdog() -> bool {
    let mut found: Vec<(String, String, String)> = Vec::new();
    for entry in std::fs::read_dir("/sys/class/watchdog").into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).map(|text| text.trim().to_owned()).unwrap_or_default();
        let link = std::fs::read_link(entry.path().join("device/driver")).ok();
        let driver = link.and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
        let identity = read("identity");
        let driver = driver.unwrap_or_else(|| if identity == "Software Watchdog" { "softdog".to_owned() } else { "<unknown>".to_owned() });
        found.push((format!("/dev/{}", entry.file_name().to_string_lossy()), identity, driver));
    }
    found.sort();
    let mut text = format!("\nDiscovered {} watchdog devices:\n", found.len());
    for (index, (path, identity, driver)) in found.iter().enumerate() {
        let _ = write!(text, "\n[{}] {path}\nIdentity: {identity}\nDriver: {driver}\n", index + 1);
        if driver == "softdog" {
            let _ = writeln!(text, "CAUTION: Not recommended for use with sbd.");
        }
    }
    Say::out(&text);
    true
}

fn test_watchdog(options: &StockOptions) -> bool {
    let path = &options.watchdog_device;
    Say::out(&format!("{path} will be armed with {} s and not fed: if it works, this machine is reset.\n", options.watchdog_s));
    if std::io::stdin().is_terminal() {
        Say::out("Type PROCEED to go on: ");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_err() || line.trim() != "PROCEED" {
            Say::err("not armed\n");
            return false;
        }
    }
    let mut watchdog = DeviceWatchdog::new(Path::new(path));
    match watchdog.arm(options.watchdog_s.saturating_mul(1000), deadbolt_disk::now_ns()) {
        Ok(granted_ms) => {
            Say::out(&format!("armed, {granted_ms} ms were granted\n"));
            // Twice the time and a second: the latest that any driver known fires.
            std::thread::sleep(Duration::from_millis(u64::from(granted_ms) * 2 + 1000));
            Say::err(&format!("{path} has not reset this machine: it cannot be trusted\n"));
            let _ = watchdog.disarm();
            false
        }
        Err(error) => {
            Say::err(&format!("{error}\n"));
            false
        }
    }
}
