//! What: a node's own file and the cluster key beside it.
//! Owns: the node directory's layout, its file modes, the refusal of keys that others may read.
//! Invariants: nothing that nodes must agree on stands here; that is on the disk.
//! Does not: hold nodes, votes or timings.
//! Called by: every verb that starts or asks a node. docs/node.toml.example lists every key.

use crate::seal::ClusterKey;
use deadbolt_cluster_core::{
    membership::{SCORE_FULL, check_name},
    timing::{Driver, driver},
};
use deadbolt_sbd::pill::KeyFileError;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    collections::BTreeSet,
    fmt,
    io::Write,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Where a node lives unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/deadbolt";

/// A node's own file, `node.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// Its name, as in the cluster's configuration.
    pub name: String,
    /// Names before a view gave it that one: its slot on the device may still carry one of them. Written at a renaming.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_names: Vec<String>,
    /// The cluster, so that a device of another one is refused; empty: not checked.
    #[serde(default)]
    pub cluster: String,
    /// Paths of the cluster's devices, in their order.
    pub devices: Vec<PathBuf>,
    /// Its addresses, `ip:port`; what it binds.
    pub addresses: Vec<String>,
    /// Path of a watchdog device, or `process`.
    #[serde(default = "default_watchdog")]
    pub watchdog: String,
    /// Name of the watchdog's driver, for its lateness; empty: read from the kernel.
    #[serde(default)]
    pub watchdog_driver: String,
    /// Other nodes of this cluster run on this machine and share its device.
    #[serde(default)]
    pub shared_device: bool,
    /// Run the node in a PID namespace of its own (needs root).
    #[serde(default)]
    pub pid_namespace: bool,
    /// Go on without locked memory and real-time priority.
    #[serde(default)]
    pub allow_unprotected: bool,
    /// What a reset does: start the node's tree again, or leave it down.
    #[serde(default = "default_restart")]
    pub restart_after_reset: bool,
    /// Group that may use `lock`, `locks`, `status`, `why`; empty: root (or the owner) only.
    #[serde(default)]
    pub group: String,
    /// Disks that nodes write besides the cluster's own, from all of which a node can be ejected by reservations; absent: no reservations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_devices: Option<Vec<PathBuf>>,
    /// The administrator's order among cliques that are equal otherwise: 1 is best; 0: none.
    #[serde(default)]
    pub preference: u8,
    /// A score below this counts as 0.
    #[serde(default)]
    pub minimum_score: u8,
    /// Fence agents by which other nodes can be put out of action, at most one for each.
    #[serde(default)]
    pub fence_agents: Vec<FenceAgent>,
    /// Checks by which this node knows how well it fares.
    #[serde(default)]
    pub heuristics: Vec<Heuristic>,
}

/// A check: a program that ends with 0, or an address that takes a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heuristic {
    /// Path of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// What it is called with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// Instead of a program: `ip:port` to which a TCP connection has to stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<SocketAddr>,
    /// How often it is made.
    #[serde(default = "default_interval_s")]
    pub interval_s: u32,
    /// How long it may take.
    #[serde(default = "default_check_s")]
    pub timeout_s: u32,
    /// Its part of the score.
    #[serde(default = "default_weight")]
    pub weight: u16,
}

/// Most checks of a node: each has a thread.
const HEURISTICS_MAX: usize = 16;
/// Longest interval of a check. Chosen: an hour; who checks less often knows nothing.
const CHECK_SECONDS_MAX: u32 = 3600;
/// Largest weight of a check. Chosen: three digits tell any two checks apart.
const WEIGHT_MAX: u16 = 1000;

impl Heuristic {
    fn check(&self) -> Result<(), String> {
        match (&self.program, &self.connect) {
            (Some(program), None) if !program.is_absolute() => return Err(format!("program {program:?} is no absolute path")),
            (Some(_), None) => {}
            (None, Some(_)) if !self.arguments.is_empty() => return Err("arguments are for a program; take them out".into()),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => return Err("it has a program and an address to connect to; make two of it".into()),
            (None, None) => return Err("it has neither a program nor an address to connect to".into()),
        }
        if !(1..=CHECK_SECONDS_MAX).contains(&self.interval_s) {
            return Err(format!("interval_s is {}; use 1 to {CHECK_SECONDS_MAX}", self.interval_s));
        }
        if !(1..=self.interval_s).contains(&self.timeout_s) {
            return Err(format!("timeout_s is {}; use 1 to its interval_s of {}", self.timeout_s, self.interval_s));
        }
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            return Err(format!("weight is {}; use 1 to {WEIGHT_MAX}", self.weight));
        }
        Ok(())
    }
}

/// For people: which check.
impl fmt::Display for Heuristic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.program, &self.connect) {
            (Some(program), _) => write!(f, "{}", program.display()),
            (None, Some(address)) => write!(f, "connect {address}"),
            (None, None) => f.write_str("nothing"),
        }
    }
}

const fn default_interval_s() -> u32 {
    10
}

const fn default_check_s() -> u32 {
    3
}

const fn default_weight() -> u16 {
    1
}

/// A fence agent: how to put one other node out of action by another device.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceAgent {
    /// The node's name, as in the cluster's configuration.
    pub node: String,
    /// Path of the agent.
    pub program: PathBuf,
    /// How long each of its actions may take.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u32,
    /// Power the node on again, once it was seen off.
    #[serde(default)]
    pub power_on: bool,
    /// What the agent is told besides the action.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

/// Values are passwords, too.
impl fmt::Debug for FenceAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceAgent").field("node", &self.node).field("program", &self.program).finish_non_exhaustive()
    }
}

/// Longest time that one action of an agent may take. Chosen: ten minutes; who waits longer is not being fenced.
const AGENT_SECONDS_MAX: u32 = 600;
/// Most bytes that an agent is told: less than a pipe holds.
const PARAMETER_BYTES_MAX: usize = 32 << 10;

impl FenceAgent {
    /// Refuses what could not be called, or would be called with something else than was meant.
    fn check(&self) -> Result<(), String> {
        let node = &self.node;
        check_name(node).map_err(|reason| format!("fence_agents: {reason}"))?;
        if !self.program.is_absolute() {
            return Err(format!("fence_agents, node {node}: program {:?} is no absolute path", self.program));
        }
        if self.program.file_name().is_some_and(|name| name == "fence_sbd") {
            return Err(format!(
                "fence_agents, node {node}: fence_sbd takes its status from the text of a mailbox, which proves nothing; the node gets a pill anyway"
            ));
        }
        if !(1..=AGENT_SECONDS_MAX).contains(&self.timeout_s) {
            return Err(format!("fence_agents, node {node}: timeout_s is {}; use 1 to {AGENT_SECONDS_MAX}", self.timeout_s));
        }
        let bytes: usize = self.parameters.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if bytes > PARAMETER_BYTES_MAX {
            return Err(format!("fence_agents, node {node}: the parameters have {bytes} bytes; at most {PARAMETER_BYTES_MAX} are passed"));
        }
        for (name, value) in &self.parameters {
            let is_word = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-'));
            if !is_word || value.chars().any(char::is_control) {
                return Err(format!("fence_agents, node {node}: the parameter {name:?} is no word, or its value is not one line"));
            }
            if matches!(name.as_str(), "action" | "nodename") {
                return Err(format!("fence_agents, node {node}: {name} is set by the daemon; take it out"));
            }
        }
        Ok(())
    }
}

fn default_watchdog() -> String {
    "/dev/watchdog".into()
}

const fn default_timeout_s() -> u32 {
    60
}

const fn default_restart() -> bool {
    true
}

/// Why a node directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no node here.
    #[error("{} holds no node (no node.toml); run `deadbolt init` or `deadbolt join`, or name the directory with --dir", directory.display())]
    NoNode {
        /// Where.
        directory: PathBuf,
    },
    /// There is a node here already.
    #[error("{} holds node {name} already; use another directory with --dir, or `deadbolt leave` first", directory.display())]
    NodeExists {
        /// Where.
        directory: PathBuf,
        /// Who.
        name: String,
    },
    /// The file is not valid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Why, with the line.
        reason: String,
    },
    /// The group does not exist.
    #[error("node.toml names the group {group}, which does not exist; create it, or clear `group`")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// The key is missing, exposed, or not one.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

impl NodeFile {
    /// Refuses values that no line of the file shows to be wrong by itself.
    fn check(&self) -> Result<(), String> {
        self.check_protected()?;
        self.check_heuristics()?;
        for (index, agent) in self.fence_agents.iter().enumerate() {
            agent.check()?;
            if self.fence_agents.iter().take(index).any(|other| other.node.eq_ignore_ascii_case(&agent.node)) {
                return Err(format!("fence_agents: node {} has two; one is called", agent.node));
            }
            if agent.node.eq_ignore_ascii_case(&self.name) {
                return Err(format!("fence_agents: {} is this node; an agent is for another one", agent.node));
            }
        }
        Ok(())
    }

    fn check_heuristics(&self) -> Result<(), String> {
        if self.heuristics.len() > HEURISTICS_MAX {
            return Err(format!("heuristics: there are {}; at most {HEURISTICS_MAX} are run", self.heuristics.len()));
        }
        for (index, heuristic) in self.heuristics.iter().enumerate() {
            heuristic.check().map_err(|reason| format!("heuristics, number {} ({heuristic}): {reason}", index + 1))?;
        }
        match self.minimum_score {
            score if score > SCORE_FULL => Err(format!("minimum_score is {score}; a score is 0 to {SCORE_FULL}")),
            score if score > 0 && self.heuristics.is_empty() => Err("minimum_score: there are no heuristics to make a score".into()),
            _ => Ok(()),
        }
    }

    fn check_protected(&self) -> Result<(), String> {
        let Some(devices) = &self.protected_devices else { return Ok(()) };
        if self.watchdog == "process" {
            return Err("protected_devices: a key is a machine's, and the process watchdog ends less than that: the next life would be ejected with this one; use a watchdog device".into());
        }
        if self.shared_device {
            return Err("protected_devices: nodes of one machine have one key between them at a device, and ejecting one would eject all; take shared_device out, or protected_devices".into());
        }
        for (index, device) in devices.iter().enumerate() {
            if !device.is_absolute() {
                return Err(format!("protected_devices: {} is no absolute path", device.display()));
            }
            if self.devices.contains(device) {
                return Err(format!(
                    "protected_devices: {} is among the cluster's own devices, which are protected anyway; take it out",
                    device.display()
                ));
            }
            if devices.iter().take(index).any(|other| other == device) {
                return Err(format!("protected_devices: {} is named twice", device.display()));
            }
        }
        Ok(())
    }

    /// Number of the group that may use the node; none: nobody but root and the owner.
    ///
    /// # Errors
    /// The group does not exist.
    pub fn group_number(&self) -> Result<Option<u32>, ConfigError> {
        if self.group.is_empty() {
            return Ok(None);
        }
        let found = nix::unistd::Group::from_name(&self.group).ok().flatten();
        found.map(|group| Some(group.gid.as_raw())).ok_or_else(|| ConfigError::UnknownGroup { group: self.group.clone() })
    }

    /// What is known of the watchdog's driver: as named here, else as the kernel names it; an unknown one counts as a second late.
    #[must_use]
    pub fn driver(&self) -> Driver {
        if self.watchdog == "process" {
            return driver("process");
        }
        let by_kernel = || {
            let device = Path::new(&self.watchdog).file_name().unwrap_or_default().to_string_lossy().replace("watchdog", "");
            let number = if device.is_empty() { "0".to_owned() } else { device };
            std::fs::read_to_string(format!("/sys/class/watchdog/watchdog{number}/identity")).unwrap_or_default()
        };
        let name = if self.watchdog_driver.is_empty() { by_kernel() } else { self.watchdog_driver.clone() };
        // The kernel says "Software Watchdog" where the module is softdog.
        driver(if name.trim() == "Software Watchdog" { "softdog" } else { name.trim() })
    }
}

/// A node's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDirectory(pub PathBuf);

impl NodeDirectory {
    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
    /// The lock service's socket.
    #[must_use]
    pub fn lock_socket(&self) -> PathBuf {
        self.0.join("lock.sock")
    }
    /// The supervisor's socket.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.0.join("supervisor.sock")
    }
    /// The log of supervisor, sbd and daemon.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.0.join("deadbolt.log")
    }
    /// The node's own file.
    #[must_use]
    pub fn node_file(&self) -> PathBuf {
        self.0.join("node.toml")
    }
    /// The cluster key.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.0.join("cluster.key")
    }

    /// Reads the node's own file.
    ///
    /// # Errors
    /// No node here, or a file that is not valid.
    pub fn read_node(&self) -> Result<NodeFile, ConfigError> {
        let path = self.node_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ConfigError::NoNode { directory: self.0.clone() }),
            Err(source) => return Err(ConfigError::File { path, source }),
        };
        let file: Result<NodeFile, _> = toml::from_str(&text).map_err(|error| error.to_string());
        file.and_then(|file| file.check().map(|()| file)).map_err(|reason| ConfigError::Invalid { path, reason })
    }

    /// Reads the key; refuses one that others may read.
    ///
    /// # Errors
    /// No key, an exposed one, or not a key.
    pub fn read_key(&self) -> Result<ClusterKey, ConfigError> {
        Ok(ClusterKey::read(&self.key_file())?)
    }

    /// Makes the directory (mode 700) with the node's file and key; refuses to replace a node.
    ///
    /// # Errors
    /// There is a node, or a file cannot be written.
    pub fn create(&self, node: &NodeFile, key: &ClusterKey) -> Result<(), ConfigError> {
        if let Ok(existing) = self.read_node() {
            return Err(ConfigError::NodeExists { directory: self.0.clone(), name: existing.name });
        }
        std::fs::create_dir_all(&self.0).map_err(|source| ConfigError::File { path: self.0.clone(), source })?;
        node.group_number()?;
        let set = std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o700));
        set.map_err(|source| ConfigError::File { path: self.0.clone(), source })?;
        write_private(&self.key_file(), &format!("{}\n", key.to_text()))?;
        let text = toml::to_string(node).map_err(|error| ConfigError::Invalid { path: self.node_file(), reason: error.to_string() })?;
        write_private(&self.node_file(), &text)?;
        self.open_to(node.group_number()?)
    }

    /// Lets a group into the directory and to the node's file; the key stays with its owner.
    fn open_to(&self, group: Option<u32>) -> Result<(), ConfigError> {
        let Some(group) = group else { return Ok(()) };
        for (path, mode) in [(self.0.clone(), 0o750), (self.node_file(), 0o640)] {
            let opened = std::os::unix::fs::chown(&path, None, Some(group))
                .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)));
            opened.map_err(|source| ConfigError::File { path, source })?;
        }
        Ok(())
    }

    /// Gives the node's file another name, and leaves every other line as it is.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn rename(&self, name: &str) -> Result<(), ConfigError> {
        let before = self.read_node()?;
        let names = before.former_names.iter().chain([&before.name]).filter(|former| *former != name);
        let former_names: BTreeSet<String> = names.cloned().collect();
        let file = NodeFile { name: name.to_owned(), former_names: former_names.into_iter().collect(), ..before };
        let path = self.node_file();
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::File { path: path.clone(), source })?;
        let renamed = renamed(&text, name, &file.former_names);
        let is_meant = toml::from_str::<NodeFile>(&renamed).is_ok_and(|read| read == file);
        let whole = || toml::to_string(&file).map_err(|error| ConfigError::Invalid { path: path.clone(), reason: error.to_string() });
        write_private(&path, &if is_meant { renamed } else { whole()? })?;
        self.open_to(file.group_number()?)
    }

    /// Takes the node's file and key away again.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self) -> Result<(), ConfigError> {
        for path in [self.node_file(), self.key_file()] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(ConfigError::File { path, source }),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// The text with another name, and behind it the former ones.
fn renamed(text: &str, name: &str, former: &[String]) -> String {
    let is = |line: &str, key: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    let line = |line: &str| if is(line, "name") { format!("name = {name:?}\nformer_names = {former:?}\n") } else { line.to_owned() };
    text.split_inclusive('\n').filter(|text| !is(text, "former_names")).map(line).collect()
}

/// Writes a file of mode 600, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), ConfigError> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|source| ConfigError::File { path: path.to_path_buf(), source })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn node() -> NodeFile {
        NodeFile {
            name: "a".into(),
            former_names: Vec::new(),
            cluster: String::new(),
            devices: vec!["/dev/x".into()],
            addresses: vec!["127.0.0.1:7001".into()],
            watchdog: "process".into(),
            watchdog_driver: String::new(),
            shared_device: true,
            pid_namespace: false,
            allow_unprotected: true,
            restart_after_reset: true,
            group: String::new(),
            protected_devices: None,
            preference: 0,
            minimum_score: 0,
            fence_agents: Vec::new(),
            heuristics: Vec::new(),
        }
    }

    fn agent() -> FenceAgent {
        FenceAgent {
            node: "b".into(),
            program: "/usr/sbin/fence_x".into(),
            timeout_s: 60,
            power_on: false,
            parameters: BTreeMap::from([("password".into(), "hush".into())]),
        }
    }

    #[test]
    fn agents_are_judged_when_the_file_is_read() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = NodeDirectory(temporary.path().join("n"));
        let with = |agents: &[FenceAgent]| {
            let _ = directory.remove();
            directory.create(&NodeFile { fence_agents: agents.to_vec(), ..node() }, &ClusterKey::draw().unwrap()).unwrap();
            directory.read_node()
        };
        let good = with(&[agent(), FenceAgent { node: "c".into(), ..agent() }]).unwrap();
        assert_eq!(good.fence_agents[0], agent());
        assert!(!format!("{good:?}").contains("hush"), "{good:?}");
        let parameter = |name: &str, value: &str| FenceAgent { parameters: BTreeMap::from([(name.into(), value.into())]), ..agent() };
        for (agents, word) in [
            (vec![agent(), FenceAgent { node: "B".into(), ..agent() }], "two"),
            (vec![FenceAgent { node: "A".into(), ..agent() }], "this node"),
            (vec![FenceAgent { node: String::new(), ..agent() }], "empty"),
            (vec![FenceAgent { program: "fence_x".into(), ..agent() }], "absolute"),
            (vec![FenceAgent { program: "/usr/sbin/fence_sbd".into(), ..agent() }], "mailbox"),
            (vec![FenceAgent { timeout_s: 0, ..agent() }], "timeout_s"),
            (vec![FenceAgent { timeout_s: 601, ..agent() }], "timeout_s"),
            (vec![parameter("action", "on")], "action"),
            (vec![parameter("nodename", "x")], "nodename"),
            (vec![parameter("plug", "a\naction=on")], "one line"),
            (vec![parameter("a=b", "c")], "no word"),
            (vec![parameter("plug", &"x".repeat(40_000))], "bytes"),
        ] {
            let error = with(&agents).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_node_is_renamed_and_its_file_is_else_as_it_was() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = NodeDirectory(temporary.path().join("n"));
        directory.create(&node(), &ClusterKey::draw().unwrap()).unwrap();
        let text = format!("# mine\n{}", std::fs::read_to_string(directory.node_file()).unwrap());
        std::fs::write(directory.node_file(), &text).unwrap();
        directory.rename("z").unwrap();
        let wanted = text.replace("name = \"a\"", "name = \"z\"\nformer_names = [\"a\"]");
        assert_eq!(std::fs::read_to_string(directory.node_file()).unwrap(), wanted);
        directory.rename("a").unwrap();
        assert_eq!(
            std::fs::read_to_string(directory.node_file()).unwrap(),
            text.replace("name = \"a\"", "name = \"a\"\nformer_names = [\"z\"]")
        );
        directory.rename("c").unwrap();
        assert_eq!(directory.read_node().unwrap().former_names, ["a", "z"], "its slot may carry either");
        // Where a line is not the value alone, the file is written anew.
        std::fs::write(directory.node_file(), text.replace("name = \"a\"", "name = \"\"\"\na\"\"\"")).unwrap();
        directory.rename("y").unwrap();
        assert_eq!(directory.read_node().unwrap(), NodeFile { name: "y".into(), former_names: vec!["a".into()], ..node() });
    }

    #[test]
    fn what_cannot_be_protected_is_refused() {
        let with = |devices: &[&str], watchdog: &str| {
            let protected_devices = Some(devices.iter().map(PathBuf::from).collect());
            NodeFile { protected_devices, watchdog: watchdog.into(), shared_device: false, ..node() }.check()
        };
        assert_eq!(with(&[], "/dev/watchdog"), Ok(()));
        assert_eq!(with(&["/dev/y", "/dev/z"], "/dev/watchdog"), Ok(()));
        for (devices, watchdog, words) in [
            (&[][..], "process", "process watchdog"),
            (&["y"], "/dev/watchdog", "no absolute path"),
            (&["/dev/x"], "/dev/watchdog", "cluster's own"),
            (&["/dev/y", "/dev/y"], "/dev/watchdog", "named twice"),
        ] {
            let refused = with(devices, watchdog).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
        let together = NodeFile { protected_devices: Some(Vec::new()), watchdog: "/dev/watchdog".into(), shared_device: true, ..node() };
        assert!(together.check().unwrap_err().contains("shared_device"));
    }

    #[test]
    fn checks_that_could_not_be_made_are_refused() {
        let good = Heuristic {
            program: Some("/usr/bin/true".into()),
            arguments: Vec::new(),
            connect: None,
            interval_s: 10,
            timeout_s: 3,
            weight: 1,
        };
        let connect = Heuristic { program: None, connect: Some("192.0.2.1:443".parse().unwrap()), ..good.clone() };
        let with = |heuristics: Vec<Heuristic>, minimum_score| NodeFile { heuristics, minimum_score, ..node() }.check();
        assert_eq!(with(vec![good.clone(), connect.clone()], 50), Ok(()));
        let both = Heuristic { program: good.program.clone(), ..connect.clone() };
        for (heuristic, words) in [
            (Heuristic { program: Some("true".into()), ..good.clone() }, "no absolute path"),
            (both, "make two of it"),
            (Heuristic { program: None, ..good.clone() }, "neither"),
            (Heuristic { arguments: vec!["x".into()], ..connect.clone() }, "take them out"),
            (Heuristic { interval_s: 0, ..good.clone() }, "interval_s is 0"),
            (Heuristic { interval_s: 3601, ..good.clone() }, "1 to 3600"),
            (Heuristic { timeout_s: 0, ..good.clone() }, "timeout_s is 0"),
            (Heuristic { timeout_s: 11, ..good.clone() }, "its interval_s of 10"),
            (Heuristic { weight: 0, ..good.clone() }, "weight is 0"),
            (Heuristic { weight: 1001, ..good.clone() }, "1 to 1000"),
        ] {
            let refused = with(vec![good.clone(), heuristic], 0).unwrap_err();
            assert!(refused.starts_with("heuristics, number 2") && refused.contains(words), "{refused}");
        }
        assert!(with(vec![good.clone(); 17], 0).unwrap_err().contains("at most 16"));
        assert!(with(vec![good], 101).unwrap_err().contains("0 to 100"));
        assert!(with(Vec::new(), 1).unwrap_err().contains("no heuristics"));
    }

    #[test]
    fn a_node_is_written_once_and_read_again() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = NodeDirectory(temporary.path().join("n"));
        assert!(matches!(directory.read_node(), Err(ConfigError::NoNode { .. })));
        let key = ClusterKey::draw().unwrap();
        directory.create(&node(), &key).unwrap();
        assert_eq!(directory.read_node().unwrap(), node());
        assert_eq!(directory.read_key().unwrap().bytes(), key.bytes());
        assert!(matches!(directory.create(&node(), &key), Err(ConfigError::NodeExists { .. })));
        std::fs::set_permissions(directory.key_file(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(directory.read_key(), Err(ConfigError::Key(KeyFileError::Exposed { mode: 0o644, .. }))));
    }
}
