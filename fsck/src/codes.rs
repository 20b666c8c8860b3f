//! What: every finding that a check can report, with a number for ever.
//! Owns: the table of codes, their weight, what each means and what to do.
//! Invariants: a code is never given another meaning; a retired one is never used again.
//! Does not: find anything.
//! Called by: the checks, `--explain`, the page `docs/formats/findings.md` (compared by a test).

/// How much a finding weighs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing; the device is good.
    Note,
    /// Something on the device is wrong.
    Error,
}

/// A kind of finding.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Its number.
    pub code: &'static str,
    /// Its weight.
    pub severity: Severity,
    /// What was found.
    pub title: &'static str,
    /// What to do.
    pub advice: &'static str,
}

const fn error(code: &'static str, title: &'static str, advice: &'static str) -> Code {
    Code { code, severity: Severity::Error, title, advice }
}
const fn note(code: &'static str, title: &'static str, advice: &'static str) -> Code {
    Code { code, severity: Severity::Note, title, advice }
}

const OWNER: &str = "a living owner rewrites it with its next change; else keep the device as it is until a repair";
const KEEP: &str = "stop all nodes, keep an image of the device, and find out which of the two was acted on";

/// All of them, by number.
pub const CODES: &[Code] = &[
    error("BT-001", "a beat is damaged", OWNER),
    error(
        "BT-002",
        "a beat names a later view than any view record of its node",
        "the node's record was lost or went back in time: restart the node",
    ),
    note("BT-003", "a slot beats that the newest view does not configure", "a node that is joining or was taken out; nothing to do"),
    error("IO-001", "a unit cannot be read", "check the path to the device, then the device"),
    error("JR-001", "a journal entry is damaged", "one event of that node is lost; nothing to do"),
    note("JR-002", "a journal entry stands in another unit than its sequence says", "nothing to do"),
    error("RQ-001", "a requests unit is damaged", OWNER),
    note(
        "RQ-002",
        "a fencing request stands",
        "deadbolt why tells whether its victim is gone; the requester takes it back with its next change",
    ),
    error("SB-001", "no superblock", "this is no Deadbolt device, or its superblocks are lost"),
    error("SB-002", "a format was interrupted", "run deadbolt format again"),
    error("SB-003", "a superblock copy is damaged", "the other copies serve; the next change of the superblock rewrites it"),
    error(
        "SB-004",
        "a superblock copy differs from the ones that agree",
        "the agreeing copies serve; the next change of the superblock rewrites it",
    ),
    error("SB-005", "only one superblock copy is good", "nodes refuse to start; restore a second copy from an image"),
    error("SB-006", "superblock copies contradict each other", KEEP),
    error("SB-007", "the device is smaller than its superblock says", "give the device its old size back"),
    note("SB-008", "the device is larger than its superblock says", "the rest is not used"),
    error("SB-009", "the device uses features that this program does not know", "use a newer program"),
    error("SB-010", "the device has another sector size than its superblock says", "attach it with the sector size it was formatted with"),
    error("SD-001", "the SBD header is damaged or gone", "stock SBD tools cannot use the device; Deadbolt goes on"),
    error(
        "SD-002",
        "the message wait of the SBD header is too short",
        "stock senders would report a fence too early; format or sbd create with a longer wait",
    ),
    error("SD-003", "an SBD node sector is damaged", "stock SBD tools cannot find that node"),
    error("SD-004", "one name stands in two SBD slots", "a pill may go to the wrong slot: clear the slot that is not the node's"),
    error("SD-005", "an SBD slot has another name than the configured node", "a pill may go to the wrong node: write the configured name"),
    note("SD-006", "a message waits in a mailbox", "its node takes it, or is gone"),
    error("SD-007", "a mailbox holds bytes that are no message", "its node judges it; clear it if the node is gone"),
    note("SD-008", "the SBD header has another uuid than the device", "the SBD area was made again by another tool"),
    note("SD-009", "a configured node has no SBD slot", "stock SBD tools cannot fence it by name"),
    note("TL-001", "a tool has claimed the device", "wait for it; if its host is gone the claim is stale"),
    error("TL-002", "the tool slot is damaged", "the next tool rewrites it"),
    error("VB-001", "a view body that is needed is damaged or gone", OWNER),
    error("VB-002", "a view body has a good checksum and is no view", "a program wrote nonsense: keep an image and report it"),
    note("VB-003", "a place that nothing names holds a torn body", "left by a node that died while writing; it is used again"),
    error("VB-004", "a decided view does not follow the one before it", KEEP),
    error("VB-005", "a life is member while a life of its slot is owed", KEEP),
    error("VB-006", "the disk's votes are out of range", "set them from 1 to nodes - 1"),
    error("VB-007", "a view names a slot that the device does not have", KEEP),
    error("VB-008", "a configuration's version went back", KEEP),
    error("VB-009", "a removed or owed life vanished without evidence", KEEP),
    error(
        "VB-010",
        "a node's own copy of a view body is damaged or gone",
        "another node's copy serves; a living owner rewrites its own with its next change",
    ),
    error("VR-001", "a view record is damaged", OWNER),
    error("VR-002", "a view record was wiped", OWNER),
    error("VR-003", "both view records of a node have one sequence", "the node's last life went back in time: restart the node"),
    error("VR-004", "one view number was decided with two values", KEEP),
    error("VT-001", "a vote unit is damaged: an unknown promise", OWNER),
    error("VT-002", "a vote unit was wiped: an unknown promise", OWNER),
    error("VT-003", "both vote units of a node have one sequence", "the node's last life went back in time: restart the node"),
    error(
        "VT-004",
        "a ballot is for a view that its node could not propose",
        "the node's view record was lost or went back in time: restart the node",
    ),
    error("VT-005", "a ballot has another node's number", "a program wrote nonsense: keep an image and report it"),
];

/// The code of a number.
#[must_use]
pub fn code(number: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.code.eq_ignore_ascii_case(number))
}
