//! What: `sbd check`: can the times of the devices, and those that the nodes publish, prove a death?
//! Owns: the two sums, and what is printed.
//! Invariants: reads only; a record that cannot be read is said, and is no trouble of its own.
//! Does not: change anything.
//! Called by: `stock`.

use std::fmt::Write as _;
use std::time::Duration;

use deadbolt_disk::Access;
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_disk_format::{Beat, Rule, WatchdogKind};
use deadbolt_sbd_core::OwnPlace;

use crate::area::AreaError;
use crate::fence::safe_msgwait;
use crate::options::StockOptions;
use crate::stock::{Say, json_text, open};

/// One line of the answer.
struct Line {
    device: String,
    node: Option<String>,
    text: String,
    is_trouble: bool,
}

/// True: a message to any node is proved by what it waits for.
pub(crate) fn check(options: &StockOptions) -> bool {
    let mut lines = Vec::new();
    for device in &options.devices {
        let line = |node: Option<String>, text: String, is_trouble| Line { device: device.clone(), node, text, is_trouble };
        match check_device(options, device, &mut |node, text, is_trouble| lines.push(line(node, text, is_trouble))) {
            Ok(()) => {}
            Err(error) => lines.push(Line { device: device.clone(), node: None, text: error.to_string(), is_trouble: true }),
        }
    }
    let is_fine = !options.devices.is_empty() && lines.iter().all(|line| !line.is_trouble);
    if options.devices.is_empty() {
        Say::err("check: name the devices with -d or SBD_DEVICE\n");
    }
    say(options.is_json, is_fine, &lines);
    is_fine
}

fn check_device(options: &StockOptions, device: &str, say: &mut dyn FnMut(Option<String>, String, bool)) -> Result<(), AreaError> {
    let area = open(options, device, Access::Read)?;
    let header = area.plausible_header()?;
    let io = Duration::from_secs(u64::from(options.io_s));
    match safe_msgwait(std::slice::from_ref(&header), io) {
        Ok(_) => say(None, times_of(&header), false),
        Err(reason) => say(None, reason, true),
    }
    for slot in area.slots()? {
        let (text, is_trouble) = match area.read_place(&area.placement(slot.index, &header))?.0 {
            OwnPlace::Beat(beat) if beat.is_stopped => ("its sbd has stopped, and said so".to_owned(), false),
            OwnPlace::Beat(beat) => check_node(&beat, &header),
            OwnPlace::NeverWritten => ("leaves no record of ours: its death is proved by msgwait alone".to_owned(), false),
            OwnPlace::Unreadable => ("its record cannot be read".to_owned(), false),
        };
        say(Some(slot.name), text, is_trouble);
    }
    Ok(())
}

fn times_of(header: &SbdHeader) -> String {
    let (watchdog, wait, msgwait) = (header.watchdog_s, header.loop_s, header.msgwait_s);
    format!("watchdog {watchdog} s, loop {wait} s, msgwait {msgwait} s")
}

/// A node that stops reading lives until its last feed, and then its watchdog has to fire; a sender of stock waits for msgwait and no more.
fn check_node(beat: &Beat, header: &SbdHeader) -> (String, bool) {
    let rule = match beat.rule {
        Rule::Disk => "disk",
        Rule::Cluster => "cluster",
    };
    let lives = format!("rule {rule}, lease {} ms, T {} ms", beat.lease_ms, beat.reset_ms);
    if beat.watchdog == WatchdogKind::None {
        return (format!("{lives}: it has no watchdog, nothing but itself ends it"), true);
    }
    let dead_ms = u64::from(beat.lease_ms.saturating_sub(beat.reset_ms));
    let msgwait_ms = u64::from(header.msgwait_s) * 1000;
    if dead_ms > msgwait_ms {
        let text = format!(
            "{lives}: without its disk it may live for {dead_ms} ms, and msgwait is {msgwait_ms} ms: a sender of stock would report its death too early; create the area with a longer msgwait, or start it with a shorter -I"
        );
        return (text, true);
    }
    (lives, false)
}

fn say(is_json: bool, is_fine: bool, lines: &[Line]) {
    if !is_json {
        for line in lines {
            let node = line.node.as_ref().map_or(String::new(), |node| format!(" {node}:"));
            let text = format!("{}:{node} {}{}\n", line.device, if line.is_trouble { "UNSAFE: " } else { "" }, line.text);
            if line.is_trouble { Say::err(&text) } else { Say::out(&text) }
        }
        return;
    }
    let mut text = format!("{{\"ok\":{is_fine},\"lines\":[");
    for (index, line) in lines.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let node = line.node.as_deref().map_or("null".to_owned(), json_text);
        let (device, is_safe, what) = (json_text(&line.device), !line.is_trouble, json_text(&line.text));
        let _ = write!(text, "{comma}{{\"device\":{device},\"node\":{node},\"safe\":{is_safe},\"text\":{what}}}");
    }
    Say::out(&format!("{text}]}}\n"));
}
