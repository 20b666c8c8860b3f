//! What: servants as real children, as their parent sees them.
//! Owns: nothing.
//! Invariants: no child outlives its test.
//! Does not: need root or packages.
//! Called by: cargo test.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use deadbolt_disk::now_ns;
use deadbolt_sbd::servant::{Received, ServantHandle, ServantSetup};
use deadbolt_sbd_core::{Opinion, Report, Servant};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far more than a child needs to start on a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn setup(servant: Servant, program: &str) -> ServantSetup {
    ServantSetup {
        servant,
        program: PathBuf::from(program),
        node: "nobody".into(),
        interval_ms: 50,
        watchdog_ms: 5000,
        has_devices: true,
        sync_startup: false,
        directory: Some("/nonexistent".into()),
    }
}

/// The next report; `None` when the child has ended.
fn next(handle: &mut ServantHandle) -> Option<Report> {
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        match handle.read() {
            Received::Report(report) => return Some(report),
            Received::Ended => return None,
            Received::Nothing => {
                poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16)).expect("poll");
            }
        }
    }
    panic!("the servant said nothing for {LONG:?}");
}

fn await_true(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn reports_come_as_long_as_the_child_lives_and_again_with_the_next() {
    let before_ms = now_ns() / 1_000_000;
    let mut handle = ServantHandle::start(setup(Servant::Deadbolt, env!("CARGO_BIN_EXE_sbd"))).unwrap();
    for _ in 0..2 {
        let reports: Vec<Report> = (0..3).map(|_| next(&mut handle).unwrap()).collect();
        assert!(reports.iter().all(|report| report.opinion == Opinion::Away), "{reports:?}");
        assert!(reports.is_sorted_by(|a, b| a.as_of_ms < b.as_of_ms), "{reports:?}");
        assert!(reports[0].as_of_ms >= before_ms && reports[2].as_of_ms <= now_ns() / 1_000_000);
        assert!(!handle.start_again().unwrap(), "it lives");
        handle.end();
        while next(&mut handle).is_some() {}
        assert_eq!(handle.read(), Received::Ended);
        await_true(|| handle.start_again().unwrap());
    }
}

#[test]
fn a_child_holds_nothing_of_its_parent_s_open() {
    let (mut ours, theirs) = std::io::pipe().unwrap();
    // As a C library's `open` leaves a descriptor.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut handle = ServantHandle::start(setup(Servant::Deadbolt, env!("CARGO_BIN_EXE_sbd"))).unwrap();
    drop(theirs);
    next(&mut handle).unwrap();
    let mut polled = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, PollTimeout::from(10_000u16)).unwrap(), 1, "somebody still has the other end");
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    next(&mut handle).unwrap();
}

#[test]
fn a_child_ends_with_its_parent() {
    let line = "\"$0\" servant deadbolt --node a --directory /nonexistent 2>&1 >/dev/null & echo $!; exec sleep 1000 >&-";
    let mut parent = Command::new("sh").args(["-c", line, env!("CARGO_BIN_EXE_sbd")]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Its process id, and what it says once it is at work.
    let said = [lines.next().unwrap(), lines.next().unwrap()];
    let number = said.iter().find(|line| line.parse::<u32>().is_ok()).unwrap();
    let stat = format!("/proc/{number}/stat");
    // Behind the name, in parentheses: the state.
    let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(is_alive());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let end = Instant::now() + LONG;
    while is_alive() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let has_ended = !is_alive();
    if !has_ended {
        kill(Pid::from_raw(number.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    assert!(has_ended, "it lives on");
}

#[test]
fn noise_is_no_news_and_an_end_is_seen() {
    // It prints its arguments, which are no report, and ends.
    let mut handle = ServantHandle::start(setup(Servant::Cluster, "/bin/echo")).unwrap();
    assert_eq!(next(&mut handle), None);
    assert!(ServantHandle::start(setup(Servant::Cluster, "/nonexistent/sbd")).is_err());
}

#[test]
fn a_child_that_closes_its_reports_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("sbd");
    std::fs::write(&program, "#!/bin/sh\nexec >&-\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut handle = ServantHandle::start(setup(Servant::Cluster, program.to_str().unwrap())).unwrap();
    assert_eq!(next(&mut handle), None);
    await_true(|| handle.poll_exit().unwrap().is_some());
}
