//! What: asks Pacemaker, by its command-line tools, whether this node is healthy.
//! Owns: what has to be remembered between two questions.
//! Invariants: a tool that hangs, or prints what cannot be judged, changes nothing; a shutdown is clean only if it was seen to be.
//! Does not: judge a picture; see `picture`.
//! Called by: `child`.

use std::ffi::OsStr;
use std::time::Duration;

use deadbolt_disk::now_ns;
use deadbolt_sbd_core::Opinion;

use super::child::{Answer, Asker, Options};
use super::picture::{Before, Picture};
use super::tool::{ToolEnd, run_tool};

/// What crm_mon ends with when Pacemaker does not run here: not connected.
const NOT_CONNECTED: i32 = 102;
/// How often a node that shuts down is looked at. Chosen: a few looks between the end of its work and that of its daemons (measured:
/// 0.3 s where there is next to nothing to stop).
const STOPPING: Duration = Duration::from_millis(100);
/// The name under which Pacemaker expects sbd's questions before it starts and ends its daemons (compatibility).
const IPC_NAME: &str = "sbd:pcmk";

/// Asks Pacemaker.
#[derive(Debug)]
pub(crate) struct PacemakerAsker {
    node: String,
    limit: Duration,
    watchdog: Duration,
    sync_startup: bool,
    before: Before,
    /// When pacemakerd last found its daemons well, by its own word, and since when that word has not changed.
    unchanged: Option<(String, Duration)>,
    /// The last picture was that of a node that shuts down.
    is_stopping: bool,
    /// The last picture was that of a node that shuts down and has nothing left to stop.
    is_stopped_cleanly: bool,
}

fn now() -> Duration {
    Duration::from_nanos(now_ns())
}

impl PacemakerAsker {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            node: options.node.clone(),
            // Chosen: an answer that takes longer would be nearly out of date when it comes.
            limit: 3 * options.interval(),
            watchdog: Duration::from_millis(u64::from(options.watchdog)),
            sync_startup: options.sync_startup,
            before: Before { has_devices: options.has_devices, had_quorum: false },
            unchanged: None,
            is_stopping: false,
            is_stopped_cleanly: false,
        }
    }

    /// Nothing is left of the cluster that was: what comes next is another one.
    fn forget(&mut self) {
        self.before.had_quorum = false;
        self.is_stopping = false;
        self.is_stopped_cleanly = false;
        self.unchanged = None;
    }

    fn handle_picture(&mut self, picture: &Picture, now: Duration) -> Answer {
        self.is_stopping = picture.is_stopping();
        self.is_stopped_cleanly = picture.is_stopped_cleanly();
        if let Some((state, updated)) = &picture.launcher {
            if state == "shutdown_complete" {
                self.forget();
                return Answer::new(Opinion::ShutDown, "pacemakerd has shut down");
            }
            let since = match &self.unchanged {
                Some((before, since)) if before == updated => *since,
                _ => now,
            };
            self.unchanged = Some((updated.clone(), since));
            if now.saturating_sub(since) >= self.watchdog {
                return Answer::new(Opinion::Unsure, "pacemakerd does not find its daemons well any more");
            }
        }
        let (opinion, reason) = picture.judge(self.before);
        self.before.had_quorum |= picture.has_quorum();
        Answer::new(opinion, reason)
    }

    fn handle_end(&mut self, end: ToolEnd, now: Duration) -> Answer {
        match end {
            ToolEnd::Done { code: Some(0), text } => match Picture::read(&text, &self.node) {
                Ok(picture) => self.handle_picture(&picture, now),
                Err(reason) => Answer::new(Opinion::Unsure, format!("crm_mon printed what cannot be judged: {reason}")),
            },
            // Without a handshake its absence is all that can be seen of an end.
            ToolEnd::Done { code: Some(NOT_CONNECTED), .. } if self.is_stopped_cleanly && !self.sync_startup => {
                self.forget();
                Answer::new(Opinion::ShutDown, "Pacemaker has gone, and had nothing left to stop on this node")
            }
            ToolEnd::Done { code: Some(NOT_CONNECTED), .. } => Answer::new(Opinion::Away, "Pacemaker does not run here"),
            ToolEnd::Done { code, .. } => Answer::new(Opinion::Unsure, format!("crm_mon failed, exit code {code:?}")),
            ToolEnd::Hung => Answer::new(Opinion::Unsure, "crm_mon did not answer in time"),
            ToolEnd::NotStarted { reason } => Answer::new(Opinion::Away, reason),
        }
    }
}

impl Asker for PacemakerAsker {
    fn ask(&mut self) -> Answer {
        if self.sync_startup {
            // pacemakerd waits for this question; it begins and ends its work when it has answered.
            let ping = run_tool("crmadmin", &["--pacemakerd", "--ipc-name", IPC_NAME, "--output-as=xml"].map(OsStr::new), self.limit);
            if let ToolEnd::Done { code: Some(0), text } = ping
                && Picture::read(&text, &self.node)
                    .is_ok_and(|picture| picture.launcher.is_some_and(|(state, _)| state == "shutdown_complete"))
            {
                self.forget();
                return Answer::new(Opinion::ShutDown, "pacemakerd has shut down");
            }
        }
        let end = run_tool("crm_mon", &["--output-as=xml", "--one-shot"].map(OsStr::new), self.limit);
        self.handle_end(end, now())
    }

    fn wait(&mut self, limit: Duration) {
        std::thread::sleep(if self.is_stopping { limit.min(STOPPING) } else { limit });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(100);

    fn asker(sync_startup: bool) -> PacemakerAsker {
        PacemakerAsker {
            node: "a".into(),
            limit: Duration::from_secs(3),
            watchdog: Duration::from_secs(5),
            sync_startup,
            before: Before { has_devices: false, had_quorum: false },
            unchanged: None,
            is_stopping: false,
            is_stopped_cleanly: false,
        }
    }

    fn picture(quorum: bool, shutdown: bool, state: &str, updated: &str) -> ToolEnd {
        let text = format!(
            r#"<r><pacemakerd state="{state}" last_updated="{updated}"/><current_dc present="true" with_quorum="{quorum}"/>
            <cluster_options no-quorum-policy="stop"/>
            <nodes><node name="a" online="true" unclean="false" pending="false" shutdown="{shutdown}" maintenance="false"/></nodes></r>"#
        );
        ToolEnd::Done { code: Some(0), text }
    }

    fn gone() -> ToolEnd {
        ToolEnd::Done { code: Some(NOT_CONNECTED), text: String::new() }
    }

    #[test]
    fn quorum_is_missed_only_once_it_was_there() {
        let mut asker = asker(false);
        let mut opinion = |quorum| asker.handle_end(picture(quorum, false, "running", ""), AT).opinion;
        assert_eq!([opinion(false), opinion(true), opinion(false)], [Opinion::Healthy, Opinion::Healthy, Opinion::Unsure]);
    }

    #[test]
    fn a_clean_shutdown_was_seen_before_pacemaker_went() {
        for (sync_startup, is_stopping, expected) in
            [(false, true, Opinion::ShutDown), (false, false, Opinion::Away), (true, true, Opinion::Away), (true, false, Opinion::Away)]
        {
            let mut asker = asker(sync_startup);
            asker.handle_end(picture(true, false, "running", "1"), AT);
            asker.handle_end(picture(true, is_stopping, "shutting_down", "2"), AT);
            assert_eq!(asker.handle_end(gone(), AT).opinion, expected);
            assert_eq!(asker.handle_end(gone(), AT).opinion, Opinion::Away, "said once");
        }
        let mut asker = asker(true);
        asker.handle_end(picture(true, false, "running", "1"), AT);
        assert_eq!(asker.handle_end(picture(true, true, "shutdown_complete", "2"), AT).opinion, Opinion::ShutDown);
        assert_eq!(asker.handle_end(picture(false, false, "running", "3"), AT).opinion, Opinion::Healthy, "it begins anew");
    }

    #[test]
    fn a_launcher_that_stands_still_is_no_good_sign() {
        let mut asker = asker(false);
        let mut opinion =
            |updated: &str, seconds| asker.handle_end(picture(true, false, "running", updated), Duration::from_secs(seconds)).opinion;
        assert_eq!(opinion("1", 100), Opinion::Healthy);
        assert_eq!(opinion("1", 104), Opinion::Healthy);
        assert_eq!(opinion("1", 105), Opinion::Unsure);
        assert_eq!(opinion("2", 106), Opinion::Healthy);
        assert_eq!(opinion("2", 110), Opinion::Healthy);
    }

    #[test]
    fn a_tool_that_fails_changes_nothing() {
        let text = String::from("nonsense");
        let table = [
            (ToolEnd::Hung, Opinion::Unsure),
            (ToolEnd::Done { code: Some(0), text: text.clone() }, Opinion::Unsure),
            (ToolEnd::Done { code: Some(1), text: text.clone() }, Opinion::Unsure),
            (ToolEnd::Done { code: None, text }, Opinion::Unsure),
            (ToolEnd::NotStarted { reason: String::new() }, Opinion::Away),
            (gone(), Opinion::Away),
        ];
        for (end, expected) in table {
            assert_eq!(asker(false).handle_end(end.clone(), AT).opinion, expected, "{end:?}");
        }
    }
}
