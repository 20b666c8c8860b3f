//! What: the demo as a user runs it, and its end by signals.
//! Owns: nothing beyond the demo's own directory.
//! Invariants: after each test no process, mount or loop device of a demo of this test is left.
//! Does not: look into the demo.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{deadbolt, directory, is_root, left_of, run, tie, wait};
use nix::{
    sys::resource::{Resource, setrlimit},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Runs the demo in a directory of its own; answers with what it says of the machine.
fn holds(base: &Path, command: &mut Command, arguments: &[&str]) -> String {
    // A machine that builds and tests stalls its disk for longer than the second that the demo tolerates by itself.
    let output = run(command.args(["demo", "--json", "--stall", "2s"]).args(arguments).env("TMPDIR", base));
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let object: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{said}"));
    assert_eq!(object["verdict"], "held", "{text}\n{said}");
    assert_eq!(output.status.code(), Some(0), "{text}\n{said}");
    assert_eq!(object["lost_updates"], 0);
    assert!(object["acknowledged"].as_u64().unwrap() > 100, "{text}");
    let phases: Vec<&str> = object["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(phases, ["form", "work", "partition", "heal", "kill", "restart", "stop"]);
    for phase in object["phases"].as_array().unwrap() {
        eprintln!("{:<10} {:>6} of {:>6} ms: {}", phase["name"], phase["time_ms"], phase["budget_ms"], phase["detail"]);
        assert!(phase["time_ms"].as_u64().is_some() && phase["budget_ms"].as_u64().unwrap() > 0, "{phase}");
    }
    let detail = |index: usize| object["phases"][index]["detail"].as_str().unwrap().to_owned();
    assert!(["acknowledged", "rebooted", "expired"].iter().any(|word| detail(2).contains(word)), "{}", detail(2));
    assert!(detail(4).contains("expired"), "{}", detail(4));
    wait("everything goes", Duration::from_secs(5), || left_of(base).is_empty());
    let left = fs::read_dir(base).unwrap().flatten().filter(|entry| entry.file_name() != "deadbolt");
    assert_eq!(left.count(), 0, "the demo's directory is left");
    object["environment"].to_string()
}

/// No io_uring, as in a container with a strict filter; little locked memory; no real-time priority.
fn make_poor(command: &mut Command) {
    // The system call's number is the same on every architecture that Linux got after it.
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let step = |code: u32, jt: u8, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf: 0, k };
    let mut filter = vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap()),
    ];
    // SAFETY: system calls only; the filter lives in the closure, the program that points to it through the call.
    unsafe {
        command.pre_exec(move || {
            let set = |resource, limit| setrlimit(resource, limit, limit);
            set(Resource::RLIMIT_MEMLOCK, 8 << 20)?;
            set(Resource::RLIMIT_RTPRIO, 0)?;
            if nix::unistd::geteuid().is_root() {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(nix::unistd::Gid::from_raw(65534))?;
                nix::unistd::setuid(nix::unistd::Uid::from_raw(65534))?;
            }
            nix::sys::prctl::set_no_new_privs()?;
            let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
            let done = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
            nix::errno::Errno::result(done)?;
            Ok(())
        });
    }
}

#[test]
fn the_demo_holds_without_root_io_uring_memory_and_priority() {
    let base = directory();
    // Another user may not come to the place where it was built.
    let program = base.path().join("deadbolt");
    fs::copy(env!("CARGO_BIN_EXE_deadbolt"), &program).unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(&program);
    make_poor(&mut command);
    let environment = holds(base.path(), &mut command, &[]);
    for word in ["not root", "no io_uring", "8192 KiB of memory", "no real-time priority"] {
        assert!(environment.contains(word), "{word} is not named: {environment}");
    }
}

#[test]
fn the_demo_holds_with_namespaces() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let base = directory();
    let environment = holds(base.path(), &mut deadbolt(), &[]);
    eprintln!("{environment}");
}

/// The demo is ended after this long; nothing is left, and a directory only where it could not clean up.
fn ends_well(signal: Signal, after: Duration, arguments: &[&str]) {
    let base = directory();
    let mut command = deadbolt();
    command.arg("demo").args(arguments).env("TMPDIR", base.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = tie(&mut command).spawn().unwrap();
    std::thread::sleep(after);
    assert!(!left_of(base.path()).is_empty(), "the demo had not begun");
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success());
    wait(&format!("{signal} leaves nothing"), Duration::from_secs(5), || left_of(base.path()).is_empty());
    let directories = fs::read_dir(base.path()).unwrap().count();
    if signal == Signal::SIGKILL {
        assert_eq!(directories, 1);
        // The next run sweeps it.
        ends_well_after_sweep(base.path());
    } else {
        assert_eq!(directories, 0);
    }
}

fn ends_well_after_sweep(base: &Path) {
    let swept = deadbolt_cluster::supervisor::sweep(base, "deadbolt-demo-").unwrap();
    assert_eq!(swept.len(), 1);
    assert_eq!(fs::read_dir(base).unwrap().count(), 0);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let no_root: &[&str] = &["--no-root"];
    let modes: &[&[&str]] = if is_root() { &[no_root, &[]] } else { &[no_root] };
    for mode in modes {
        for (signal, seconds) in [(Signal::SIGINT, 1), (Signal::SIGTERM, 4), (Signal::SIGKILL, 2)] {
            ends_well(signal, Duration::from_secs(seconds), mode);
        }
    }
}
