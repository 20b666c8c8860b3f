//! What: the parameters of the fence agent, in one table.
//! Owns: their names, letters, defaults and descriptions.
//! Invariants: input, metadata, help and docs/agent.md are made from this table or compared with it.
//! Does not: read a value.
//! Called by: the agent's other parts.

/// Which parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Action,
    Devices,
    ProtectedDevices,
    Plug,
    Port,
    Method,
    Crashdump,
    PowerTimeout,
    IoTimeout,
    Delay,
    Verbose,
    Version,
    Help,
}

/// What a value may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// 1 or 0; on the command line its presence.
    Flag,
    Text,
    Seconds,
    Choice(&'static [&'static str]),
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) key: Key,
    /// On standard input; the long option has `-` for `_`.
    pub(super) name: &'static str,
    pub(super) letter: Option<char>,
    /// What stands for the value in the help text.
    pub(super) value: &'static str,
    pub(super) kind: Kind,
    pub(super) default: Option<&'static str>,
    /// The older name of the same parameter.
    pub(super) obsoletes: Option<&'static str>,
    pub(super) is_deprecated: bool,
    pub(super) about: &'static str,
}

const fn text(key: Key, name: &'static str, value: &'static str, about: &'static str) -> Parameter {
    Parameter { key, name, letter: None, value, kind: Kind::Text, default: None, obsoletes: None, is_deprecated: false, about }
}

const fn flag(key: Key, name: &'static str, letter: Option<char>, about: &'static str) -> Parameter {
    Parameter { letter, kind: Kind::Flag, ..text(key, name, "", about) }
}

const fn seconds(key: Key, name: &'static str, default: &'static str, about: &'static str) -> Parameter {
    Parameter { kind: Kind::Seconds, default: Some(default), ..text(key, name, "seconds", about) }
}

/// Seconds that `power_timeout` is by default: chosen, beyond any msgwait in use; the caller's own limit is shorter.
pub(super) const POWER_TIMEOUT_S: &str = "300";

/// Stock's default for its I/O (compatibility).
pub(super) const IO_TIMEOUT_S: &str = "3";

/// All of them, in the order in which they are shown.
pub(super) const PARAMETERS: [Parameter; 13] = [
    Parameter { letter: Some('o'), default: Some("reboot"), ..text(Key::Action, "action", "action", "What to do") },
    text(
        Key::Devices,
        "devices",
        "devices",
        "The SBD devices of the cluster, all of them, separated by commas (default: SBD_DEVICE of the environment, of /etc/sysconfig/sbd or of /etc/default/sbd)",
    ),
    text(
        Key::ProtectedDevices,
        "protected_devices",
        "devices",
        "Whole disks, separated by commas, that keep out by persistent reservations who is not registered: all shared disks that nodes write. Off and reboot also eject the victim from them; on registers the node that it runs on",
    ),
    Parameter { letter: Some('n'), obsoletes: Some("port"), ..text(Key::Plug, "plug", "name", "The victim: the name of its slot") },
    Parameter { is_deprecated: true, ..text(Key::Port, "port", "name", "The victim: older name of plug") },
    Parameter {
        letter: Some('m'),
        kind: Kind::Choice(&["cycle", "onoff"]),
        default: Some("cycle"),
        ..text(Key::Method, "method", "method", "How to reboot: cycle resets the victim, onoff powers it off and leaves it off")
    },
    flag(Key::Crashdump, "crashdump", None, "Reboot and off make the victim's kernel write a crash dump first"),
    seconds(
        Key::PowerTimeout,
        "power_timeout",
        POWER_TIMEOUT_S,
        "How long to wait for evidence that the victim is gone (0: an hour); without it by then, off and reboot fail",
    ),
    seconds(
        Key::IoTimeout,
        "io_timeout",
        IO_TIMEOUT_S,
        "How long a node under stock sbd tolerates an I/O: its option -I, which stands on no device; without a record of ours its end is proved by msgwait only where that is not shorter than loop, watchdog and this together",
    ),
    seconds(Key::Delay, "delay", "0", "How long to wait before off or reboot begins"),
    flag(Key::Verbose, "verbose", Some('v'), "Say more on standard error"),
    flag(Key::Version, "version", Some('V'), "Print the version and end"),
    flag(Key::Help, "help", Some('h'), "Print a help text and end"),
];

impl Parameter {
    /// As an option of the command line.
    pub(super) fn option(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Letter, long option and what stands for the value, as metadata and help show them.
    pub(super) fn forms(&self) -> String {
        let letter = self.letter.map(|letter| format!("-{letter}, ")).unwrap_or_default();
        let value = if self.value.is_empty() { String::new() } else { format!("=[{}]", self.value) };
        format!("{letter}{}{value}", self.option())
    }
}
