//! What: the servant that asks Pacemaker, with real Pacemaker on real corosync.
//! Owns: nothing.
//! Invariants: nothing is left behind, no process and no namespace.
//! Does not: run without root, the packages corosync and pacemaker, and namespaces; it says so.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unreachable_pub)]

#[allow(dead_code)]
mod peers;

use std::process::{Child, Stdio};

use deadbolt_sbd_core::{Opinion, Report, Servant};
use deadbolt_tests::corosync::{Peer, await_true, configuration, is_possible};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peers::{Asked, TOKEN_MS};

const SBD: &str = env!("CARGO_BIN_EXE_sbd");
const PROGRAMS: [&str; 8] = ["corosync", "pacemakerd", "crm_mon", "crmadmin", "ip", "nsenter", "unshare", "mount"];

const MOUNTS: &str = "for place in /var/lib/pacemaker /var/log/pacemaker; do mount -t tmpfs tmpfs $place; done
for place in blackbox cib cores pengine; do install -d -m 750 -o hacluster -g haclient /var/lib/pacemaker/$place; done
install -m 600 -o hacluster -g haclient \"$1/cib.xml\" /var/lib/pacemaker/cib/cib.xml
chown hacluster:haclient /var/log/pacemaker
hostname alpha; sleep 2
[ $2 = no ] || mount --bind $2 /usr/sbin/sbd";

/// One node is elected at once; nothing has to be fenced.
const CIB: &str = r#"<cib validate-with="pacemaker-3.0" admin_epoch="1" epoch="0" num_updates="0"><configuration>
<crm_config><cluster_property_set id="options"><nvpair id="o1" name="dc-deadtime" value="1s"/>
<nvpair id="o2" name="stonith-enabled" value="false"/></cluster_property_set></crm_config>
<nodes/><resources><primitive id="thing" class="ocf" provider="pacemaker" type="Dummy"/></resources><constraints/>
</configuration><status/></cib>"#;

/// One node with corosync at work.
fn lone() -> Peer {
    let mut peer = Peer::new(&configuration(&["alpha"], TOKEN_MS, ""));
    assert!(peer.run("ip address add 10.99.7.1/24 dev lo"));
    peer.start();
    peer
}

/// Pacemaker in that node.
struct Pacemaker(Child);

impl Pacemaker {
    /// Waits for sbd's questions where there is one.
    fn start(peer: &Peer, sbd: Option<&str>) -> Self {
        std::fs::write(peer.folder().join("cib.xml"), CIB).unwrap();
        let mut command = peer.command("sh");
        let script = format!("{MOUNTS}; exec pacemakerd -f");
        command.args(["-c", &script, "sh"]).arg(peer.folder()).arg(sbd.unwrap_or("no"));
        command
            .env("PCMK_logfile", "none")
            .env("SBD_SYNC_RESOURCE_STARTUP", if sbd.is_some() { "yes" } else { "no" })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Asks it to shut down.
    fn stop(&self) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    fn is_gone(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Its daemons, which its launcher has started.
    fn daemons(&self) -> Vec<Pid> {
        let launcher = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    fn signal_daemon(&self, name: &str, signal: Signal) {
        let daemons = self.daemons();
        let is_it = |pid: &&Pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with(name));
        kill(*daemons.iter().find(is_it).unwrap_or_else(|| panic!("no {name} among {daemons:?}")), signal).unwrap();
    }
}

impl Drop for Pacemaker {
    fn drop(&mut self) {
        // Some of its daemons live on without their launcher and without corosync.
        let daemons = self.daemons();
        let _ = self.0.kill();
        let _ = self.0.wait();
        for daemon in daemons {
            let _ = kill(daemon, Signal::SIGKILL);
        }
    }
}

fn is(opinion: Opinion) -> impl Fn(&Report) -> bool {
    move |report| report.opinion == opinion
}

#[test]
fn a_node_is_healthy_while_pacemaker_works_and_calls_it_so() {
    if !is_possible(&PROGRAMS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let node = lone();
    let mut asked = Asked::start(&node, Servant::Pacemaker, SBD, folder.path());
    asked.until("nobody", is(Opinion::Away));
    let pacemaker = Pacemaker::start(&node, None);
    asked.until("health", is(Opinion::Healthy));

    // The tools hang with it, and are killed.
    pacemaker.signal_daemon("pacemaker-based", Signal::SIGSTOP);
    asked.until("no answer", is(Opinion::Unsure));
    pacemaker.signal_daemon("pacemaker-based", Signal::SIGCONT);
    asked.until("health again", is(Opinion::Healthy));
}

#[test]
fn pacemaker_begins_and_ends_when_sbd_has_asked() {
    if !is_possible(&PROGRAMS) || !is_possible(&["sbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let node = lone();
    let mut pacemaker = Pacemaker::start(&node, Some(SBD));
    // It waits, with no daemon of its own at work.
    await_true("pacemakerd", || node.run("crmadmin -P --output-as=xml | grep wait_for_ping"));
    assert!(!node.run("timeout 3 crm_mon -1 && cibadmin -Q"));
    let mut asked = Asked::start_with(&node, Servant::Pacemaker, "/usr/sbin/sbd", folder.path(), |setup| setup.sync_startup = true);
    asked.until("health", is(Opinion::Healthy));
    await_true("a resource", || node.run("crm_resource --locate -r thing | grep alpha"));
    pacemaker.stop();
    asked.until("a clean end", is(Opinion::ShutDown));
    asked.until("nobody", is(Opinion::Away));
    await_true("the end of pacemakerd", || pacemaker.is_gone());
}
