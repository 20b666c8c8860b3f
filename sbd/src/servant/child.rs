//! What: the body of a servant: asks again and again, and reports each answer to its parent.
//! Owns: the child's options, its rhythm, its way out.
//! Invariants: a report is dated from before its question; ordinary scheduling, no locked memory, no descriptor but the standard ones.
//! Does not: know how one asks.
//! Called by: `main_from`, in a process that `ServantHandle` started.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use deadbolt_disk::now_ns;
use deadbolt_sbd_core::{Opinion, Report};
use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::cluster::ClusterAsker;
use super::deadbolt::DeadboltAsker;
use super::pacemaker::PacemakerAsker;
use crate::log::Log;
use crate::protect::{end_with_parent, use_ordinary_time};

/// Ask a cluster manager whether this node is healthy, and report to the parent process. Started by `sbd watch`.
#[derive(Parser, Debug)]
#[command(name = "sbd servant", no_binary_name = true)]
pub(crate) struct Options {
    /// Who is asked.
    servant: Kind,
    /// This node's name in its cluster.
    #[arg(long)]
    pub(crate) node: String,
    /// How often, ms.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    interval: u32,
    /// Watchdog time, ms.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub(crate) watchdog: u32,
    /// The node has SBD devices.
    #[arg(long)]
    pub(crate) has_devices: bool,
    /// Pacemaker waits for sbd when it starts and stops.
    #[arg(long)]
    pub(crate) sync_startup: bool,
    /// The cluster was whole at some time, in the life of an earlier child.
    #[arg(long)]
    pub(crate) formed: bool,
    /// The node's directory, in which deadboltd has its sockets.
    #[arg(long, value_name = "DIRECTORY", required_if_eq("servant", "deadbolt"))]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    Pacemaker,
    Cluster,
    Deadbolt,
}

impl Options {
    /// How often.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.interval))
    }

    fn asker(&self) -> Box<dyn Asker> {
        match self.servant {
            Kind::Pacemaker => Box::new(PacemakerAsker::new(self)),
            Kind::Cluster => Box::new(ClusterAsker::new(self)),
            Kind::Deadbolt => Box::new(DeadboltAsker::new(self)),
        }
    }
}

/// What was answered, and why, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) opinion: Opinion,
    /// As in a report.
    pub(crate) notice_ms: u32,
    pub(crate) reason: String,
}

impl Answer {
    pub(crate) fn new(opinion: Opinion, reason: impl Into<String>) -> Self {
        Self { opinion, notice_ms: 0, reason: reason.into() }
    }
}

/// Somebody who knows how to ask.
pub(crate) trait Asker {
    /// Asks. May hang: the parent draws its own conclusion from silence.
    fn ask(&mut self) -> Answer;

    /// Waits until there may be another answer, no longer than `limit`.
    fn wait(&mut self, limit: Duration) {
        std::thread::sleep(limit);
    }
}

/// The program of a child; answers its exit code.
pub(crate) fn main(arguments: Vec<OsString>) -> u8 {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return u8::from(error.use_stderr());
        }
    };
    close_others();
    // The parent's real-time priority and blocked signals came along.
    use_ordinary_time();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    if !end_with_parent() {
        return 1;
    }
    // Executed as /proc/self/exe it would bear the name `exe`; Pacemaker looks for a process of this name.
    let _ = set_name(c"sbd");
    let log = Log::to_standard_error(&format!("sbd servant {:?}: ", options.servant));
    let mut asker = options.asker();
    serve(asker.as_mut(), options.interval(), &log);
    1
}

/// Closes what came along beside the standard descriptors: no watchdog or device is held open here, however its opener marked it.
fn close_others() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let descriptors: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in descriptors.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: nothing in this process has opened anything yet but the directory above, which is closed again.
        unsafe { libc::close(descriptor) };
    }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Until nobody reads the reports any more.
fn serve(asker: &mut dyn Asker, interval: Duration, log: &Log) {
    let mut said = None;
    loop {
        let as_of_ms = now_ms();
        let answer = asker.ask();
        if said.as_ref() != Some(&answer) {
            log.say(&format!("{:?}: {}", answer.opinion, answer.reason));
        }
        let report = Report { opinion: answer.opinion, as_of_ms, notice_ms: answer.notice_ms };
        // Not through the buffer of standard output, which may cut at any byte: a report is one message.
        if nix::unistd::write(std::io::stdout(), &report.encode()).is_err() {
            return;
        }
        said = Some(answer);
        let asked = Duration::from_millis(now_ms().saturating_sub(as_of_ms));
        asker.wait(interval.saturating_sub(asked));
    }
}
