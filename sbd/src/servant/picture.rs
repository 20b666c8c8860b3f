//! What: Pacemaker's picture of the cluster, as `crm_mon` prints it in XML, and what it says of this node.
//! Owns: the judgement by stock sbd's rules: a DC, the own node online and clean, quorum.
//! Invariants: a picture without a word that a judgement needs is no picture; nothing missing is taken for a yes.
//! Does not: run a tool or read a clock.
//! Called by: `pacemaker`.

use deadbolt_sbd_core::Opinion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// Deepest nesting that is followed. Chosen: several times that of bundles in groups.
const DEPTH_MAX: usize = 64;

/// The own node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NodePicture {
    is_online: bool,
    is_unclean: bool,
    is_pending: bool,
    /// It was told to shut down.
    is_stopping: bool,
    is_in_maintenance: bool,
}

/// What matters here of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Picture {
    /// State of pacemakerd, and when it last found its daemons well; older versions do not say.
    pub(crate) launcher: Option<(String, String)>,
    has_dc: bool,
    has_quorum: bool,
    policy: String,
    node: Option<NodePicture>,
    /// Something that Pacemaker manages runs on the own node, or may: while a stop is under way no node is named.
    has_work: bool,
}

/// What follows from what was found before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Before {
    /// The node has SBD devices.
    pub(crate) has_devices: bool,
    /// There was quorum at some time.
    pub(crate) had_quorum: bool,
}

fn word(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let attribute = element.try_get_attribute(name).map_err(|error| format!("{name}: {error}"))?;
    let value = attribute.map(|attribute| attribute.normalized_value(XmlVersion::Implicit1_0).map(std::borrow::Cow::into_owned));
    value.transpose().map_err(|error| format!("{name}: {error}"))
}

fn flag(element: &BytesStart<'_>, name: &str) -> Result<bool, String> {
    match word(element, name)?.as_deref() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        found => Err(format!("{name} is {found:?}, not true or false")),
    }
}

/// Where in the document: the elements around, and of each whether it is a managed resource.
type Around = Vec<(String, bool)>;

impl Picture {
    /// Reads a picture; `node` is this node's name.
    pub(crate) fn read(text: &str, node: &str) -> Result<Self, String> {
        let mut picture = Self::default();
        let mut reader = Reader::from_str(text);
        let mut around = Around::new();
        let mut is_whole = false;
        loop {
            match reader.read_event().map_err(|error| format!("no XML: {error}"))? {
                Event::Start(element) => {
                    let is_managed = picture.take(&element, &around, node)?;
                    if around.len() >= DEPTH_MAX {
                        return Err(format!("nested deeper than {DEPTH_MAX}"));
                    }
                    around.push((element.name().as_ref().to_owned(), is_managed));
                }
                Event::Empty(element) => {
                    picture.take(&element, &around, node)?;
                }
                Event::End(_) => {
                    is_whole |= around.len() == 1;
                    around.pop();
                }
                Event::Eof if is_whole && around.is_empty() => return Ok(picture),
                Event::Eof => return Err("it is cut off".into()),
                _ => {}
            }
        }
    }

    /// Takes in one element; true: a managed resource.
    fn take(&mut self, element: &BytesStart<'_>, around: &Around, node: &str) -> Result<bool, String> {
        let parent = around.last();
        let is_in = |name: &str| parent.is_some_and(|(parent, _)| parent == name);
        match element.name().as_ref() {
            "pacemakerd" => self.launcher = word(element, "state")?.zip(word(element, "last_updated")?),
            "current_dc" => {
                self.has_dc = flag(element, "present")?;
                self.has_quorum = self.has_dc && flag(element, "with_quorum")?;
            }
            "cluster_options" => self.policy = word(element, "no-quorum-policy")?.unwrap_or_default(),
            "resource" => {
                let is_managed = flag(element, "managed")?;
                self.has_work |= is_managed && !flag(element, "active")? && word(element, "role")?.as_deref() != Some("Stopped");
                return Ok(is_managed);
            }
            "node" if is_in("nodes") && is_same(element, node)? => {
                self.node = Some(NodePicture {
                    is_online: flag(element, "online")?,
                    is_unclean: flag(element, "unclean")?,
                    is_pending: flag(element, "pending")?,
                    is_stopping: flag(element, "shutdown")?,
                    is_in_maintenance: flag(element, "maintenance")?,
                });
            }
            "node" if is_in("resource") && parent.is_some_and(|(_, is_managed)| *is_managed) => {
                self.has_work |= is_same(element, node)?;
            }
            _ => {}
        }
        Ok(false)
    }

    /// Is the node healthy?
    pub(crate) fn judge(&self, before: Before) -> (Opinion, String) {
        let (opinion, reason) = if !self.has_dc {
            (Opinion::Unsure, "the cluster has no DC now")
        } else if let Some(node) = &self.node {
            if !node.is_online {
                (Opinion::Unhealthy, "this node is offline")
            } else if node.is_unclean {
                (Opinion::Unhealthy, "this node is unclean")
            } else if node.is_pending {
                (Opinion::Unsure, "this node is pending")
            } else if self.has_quorum {
                (Opinion::Healthy, "this node is online")
            } else if before.has_devices {
                (Opinion::Unhealthy, "quorum is lost")
            } else if !before.had_quorum {
                (Opinion::Healthy, "this node is online, there is no quorum yet")
            } else if ["freeze", "demote", "stop", "ignore"].contains(&self.policy.as_str()) {
                return (Opinion::Unsure, format!("quorum is lost, no-quorum-policy is {}", self.policy));
            } else {
                // suicide, fence, and whatever else there will be.
                return (Opinion::Unhealthy, format!("quorum is lost, no-quorum-policy is {:?}", self.policy));
            }
        } else {
            (Opinion::Unhealthy, "the cluster does not know a node of this name")
        };
        (opinion, reason.into())
    }

    /// There is quorum, and the node takes part in it.
    pub(crate) fn has_quorum(&self) -> bool {
        self.has_quorum
    }

    /// The node shuts down.
    pub(crate) fn is_stopping(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.is_stopping)
    }

    /// The node shuts down, and nothing is left on it that Pacemaker would have to stop.
    pub(crate) fn is_stopped_cleanly(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.is_stopping && (node.is_in_maintenance || !self.has_work))
    }
}

/// Is this element about the own node? Names are compared without regard to case, as Pacemaker does.
fn is_same(element: &BytesStart<'_>, node: &str) -> Result<bool, String> {
    Ok(word(element, "name")?.is_some_and(|name| name.eq_ignore_ascii_case(node)))
}

#[cfg(test)]
mod tests;
