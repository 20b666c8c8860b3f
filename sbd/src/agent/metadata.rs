//! What: what the agent says about itself: metadata for fencers, a help text for people.
//! Owns: their form, as fence-agents' metadata schema and other agents have it.
//! Invariants: every parameter and every action is named, from the tables that the input is read by.
//! Does not: print.
//! Called by: the agent's main.

use std::fmt::Write as _;

use super::parameters::{Kind, PARAMETERS, Parameter};
use super::{Action, NAME};

const SHORT: &str = "Fence agent for SBD devices that believes evidence only";
const LONG: &str = "fence_deadbolt fences a node through the mailbox of its slot on shared SBD devices. Off and reboot succeed only when something proves that the node is gone, and print what; a failed write, an old message or a damaged header is a failure. The status is taken from the node's own signs of life, never from the text of its mailbox.";

/// The XML that fencers ask for.
pub(super) fn metadata() -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" ?>\n<resource-agent name=\"{NAME}\" shortdesc=\"{SHORT}\">\n<longdesc>{LONG}</longdesc>\n<vendor-url></vendor-url>\n<parameters>\n"
    );
    for parameter in &PARAMETERS {
        text.push_str(&parameter_text(parameter));
    }
    text.push_str("</parameters>\n<actions>\n");
    for action in Action::ALL {
        // A node registers itself; without protected devices there is nothing to be done before it may start resources.
        let where_and_when = if action == Action::On { " on_target=\"1\" automatic=\"0\"" } else { "" };
        let _ = writeln!(text, "\t<action name=\"{}\"{where_and_when}/>", action.word());
    }
    text.push_str("</actions>\n</resource-agent>\n");
    text
}

fn parameter_text(parameter: &Parameter) -> String {
    let obsoletes = parameter.obsoletes.map(|name| format!(" obsoletes=\"{name}\"")).unwrap_or_default();
    let deprecated = if parameter.is_deprecated { " deprecated=\"1\"" } else { "" };
    let default = parameter.default.map(|value| format!(" default=\"{value}\"")).unwrap_or_default();
    let content = match parameter.kind {
        Kind::Flag => format!("<content type=\"boolean\"{default}/>"),
        Kind::Text => format!("<content type=\"string\"{default}/>"),
        Kind::Seconds => format!("<content type=\"second\"{default}/>"),
        Kind::Choice(choices) => {
            let options: String = choices.iter().map(|choice| format!("<option value=\"{choice}\"/>")).collect();
            format!("<content type=\"select\"{default}>{options}</content>")
        }
    };
    format!(
        "\t<parameter name=\"{}\" unique=\"0\" required=\"0\"{deprecated}{obsoletes}>\n\t\t<getopt mixed=\"{}\"/>\n\t\t{content}\n\t\t<shortdesc lang=\"en\">{}</shortdesc>\n\t</parameter>\n",
        parameter.name,
        parameter.forms(),
        parameter.about
    )
}

/// The help text.
pub(super) fn help() -> String {
    let mut text = format!(
        "{SHORT}.\nUsage: {NAME} [options]\nWithout options, key=value lines are read from standard input: the names below, without the dashes.\nActions: {}\nOptions:\n",
        Action::words()
    );
    for parameter in &PARAMETERS {
        let default = parameter.default.map(|value| format!(" (default: {value})")).unwrap_or_default();
        let _ = writeln!(text, "  {:<32}{}{default}", parameter.forms(), parameter.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the page, made from the same table.
    fn rows() -> String {
        let mut text = String::new();
        for parameter in &PARAMETERS {
            let default = parameter.default.unwrap_or("");
            let _ = writeln!(text, "| `{}` | `{}` | {default} | {} |", parameter.name, parameter.forms(), parameter.about);
        }
        text
    }

    #[test]
    fn the_page_has_every_parameter_and_action() {
        let page = include_str!("../../../docs/agent.md");
        assert!(page.contains(&rows()), "the table of docs/agent.md shall be:\n{}", rows());
        use crate::fence::Evidence::{Acknowledged, ClusterLost, Ejected, Expired, Left, Msgwait, Rebooted};
        for evidence in [Left, Ejected, Rebooted, Acknowledged, Expired, ClusterLost, Msgwait] {
            assert!(page.contains(&format!("\n| `{evidence}` |")), "{evidence}");
        }
        for action in Action::ALL {
            assert!(page.contains(&format!("| `{}` |", action.word())), "{}", action.word());
        }
    }

    #[test]
    fn nothing_needs_to_be_escaped() {
        for text in [SHORT, LONG].into_iter().chain(PARAMETERS.iter().map(|parameter| parameter.about)) {
            assert!(!text.contains(['<', '>', '&', '"']), "{text}");
        }
        let text = metadata();
        assert_eq!(text.matches("<parameter ").count(), PARAMETERS.len());
        assert!(text.contains("name=\"plug\" unique=\"0\" required=\"0\" obsoletes=\"port\""));
        assert!(help().contains("  -n, --plug=[name]"));
    }
}
