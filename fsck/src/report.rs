//! What: the findings of one check, for people and as JSON.
//! Owns: their order, the exit code.
//! Invariants: the exit code follows from the findings alone.
//! Does not: print.
//! Called by: the checks (adding), the program (showing).

use crate::codes::{Code, Severity, code};
use crate::source::Source;
use deadbolt_disk_format::{ByteOffset, SlotIndex};
use serde_json::{Value, json};
use std::fmt;

/// Exit code of a clean device.
pub(crate) const EXIT_CLEAN: u8 = 0;
/// Exit code when errors are left.
pub(crate) const EXIT_ERRORS_LEFT: u8 = 4;

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What kind.
    pub code: &'static Code,
    /// Where, if it has a place.
    pub offset: Option<ByteOffset>,
    /// Whose, if it is somebody's.
    pub slot: Option<SlotIndex>,
    /// What exactly.
    pub detail: String,
}

/// Everything that one check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// Cluster: uuid and name.
    pub cluster: Option<(String, String)>,
    /// Uuid of the device.
    pub device_uuid: Option<String>,
    /// Generation of the superblock.
    pub generation: u64,
    /// Slots of the device.
    pub slots: u16,
    /// Number and members (slots) of the newest view.
    pub newest_view: Option<(u64, Vec<u16>)>,
    /// Slots that wrote beats while the check ran.
    pub live: Vec<SlotIndex>,
    /// Units judged.
    pub units: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// What was found, errors first.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn new(source: &Source) -> Self {
        Self {
            device: source.name().into(),
            cluster: None,
            device_uuid: None,
            generation: 0,
            slots: 0,
            newest_view: None,
            live: Vec::new(),
            units: 0,
            bytes_read: 0,
            findings: Vec::new(),
        }
    }
    pub(crate) fn add(&mut self, number: &'static str, offset: Option<ByteOffset>, slot: Option<SlotIndex>, detail: impl fmt::Display) {
        debug_assert!(code(number).is_some(), "{number} is not in the table");
        if let Some(code) = code(number) {
            self.findings.push(Finding { code, offset, slot, detail: detail.to_string() });
        }
    }
    /// Errors first, then by code and place.
    pub(crate) fn finish(&mut self) {
        let key = |finding: &Finding| (finding.code.severity != Severity::Error, finding.code.code, finding.offset, finding.slot);
        self.findings.sort_by_key(key);
    }
    /// How many findings are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.code.severity == Severity::Error).count()
    }
    /// By fsck(8): 0 clean, 4 errors left.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.errors() == 0 { EXIT_CLEAN } else { EXIT_ERRORS_LEFT }
    }
    /// The report as one object.
    #[must_use]
    pub fn json(&self) -> Value {
        let finding = |finding: &Finding| {
            json!({
                "code": finding.code.code,
                "severity": severity_word(finding.code.severity),
                "title": finding.code.title,
                "detail": finding.detail,
                "advice": finding.code.advice,
                "offset": finding.offset.map(|offset| offset.0),
                "slot": finding.slot.map(|slot| slot.0),
            })
        };
        json!({
            "device": self.device,
            "device_uuid": self.device_uuid,
            "cluster": self.cluster.as_ref().map(|(uuid, _)| uuid),
            "name": self.cluster.as_ref().map(|(_, name)| name),
            "generation": self.generation,
            "slots": self.slots,
            "newest_view": self.newest_view.as_ref().map(|(number, members)| json!({ "view": number, "members": members })),
            "live": self.live.iter().map(|slot| slot.0).collect::<Vec<_>>(),
            "units": self.units,
            "bytes_read": self.bytes_read,
            "verdict": self.verdict(),
            "exit": self.exit_code(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
    fn verdict(&self) -> &'static str {
        if self.errors() == 0 { "clean" } else { "errors" }
    }
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Error => "error",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((uuid, name)) = &self.cluster {
            writeln!(f, "{}: cluster {name} ({uuid}), superblock {}, {} slots", self.device, self.generation, self.slots)?;
        }
        if let Some((view, members)) = &self.newest_view {
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            let members = if members.is_empty() { String::from("none") } else { members.join(", ") };
            writeln!(f, "{}: newest view {view}, members in slots: {members}", self.device)?;
        }
        if !self.live.is_empty() {
            let slots: Vec<String> = self.live.iter().map(ToString::to_string).collect();
            writeln!(f, "{}: nodes beat while it was read (slots {})", self.device, slots.join(", "))?;
        }
        for finding in &self.findings {
            write!(f, "{}: {} {}: {}", self.device, finding.code.code, severity_word(finding.code.severity), finding.code.title)?;
            if let Some(slot) = finding.slot {
                write!(f, ", slot {slot}")?;
            }
            if let Some(offset) = finding.offset {
                write!(f, ", at byte {}", offset.0)?;
            }
            writeln!(f, ": {}. To do: {}", finding.detail, finding.code.advice)?;
        }
        let (errors, notes) = (self.errors(), self.findings.len() - self.errors());
        let kib = self.bytes_read / 1024;
        write!(f, "{}: {}, {} units, {kib} KiB read, {errors} errors, {notes} notes", self.device, self.verdict(), self.units)
    }
}
