//! What: where io_uring is refused the engine falls back to threads and says why.
//! Owns: a child process under a seccomp filter.
//! Invariants: needs no root; the filter dies with the child.
//! Does not: test the back ends themselves.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{engine, exercise, image};
use deadbolt_disk::{Access, Backend, BackendChoice, Device, Engine, EngineError};

const REFUSED_CALL: &str = "DEADBOLT_TEST_REFUSED_CALL";

/// Every later use of system call `number` by this thread and its children fails with EPERM.
fn refuse(number: i64) {
    let number = u32::try_from(number).unwrap();
    let statement =
        |code: u32, jump_true, jump_false, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: jump_true, jf: jump_false, k };
    let mut program = [
        // The number of the call is the first word of the data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: prctl reads plain integers and a program of the stated length that lives through the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

/// The child: does nothing unless it was asked for.
#[test]
fn under_a_filter() {
    let Ok(call) = std::env::var(REFUSED_CALL) else {
        return;
    };
    let (number, named) = match call.as_str() {
        "setup" => (libc::SYS_io_uring_setup, "io_uring_setup"),
        "register" => (libc::SYS_io_uring_register, "io_uring_register"),
        _ => (libc::SYS_io_uring_enter, "io_uring_enter"),
    };
    refuse(number);
    let file = image();
    let device = Arc::new(Device::open(file.path(), Access::ReadWrite).unwrap());
    let demanded = Engine::start(device.clone(), BackendChoice::IoUring, Box::new(drop));
    let Err(EngineError::IoUringRefused { reason }) = demanded else {
        panic!("{demanded:?}");
    };
    assert!(reason.contains(named), "{reason}");
    let (fallen_back, _completions) = engine(device.clone(), BackendChoice::Auto);
    assert_eq!(fallen_back.backend(), Backend::Threads);
    assert_eq!(fallen_back.fallback_reason(), Some(reason.as_str()));
    assert_eq!(exercise(device, BackendChoice::Auto), Backend::Threads);
    println!("fell back");
}

#[test]
fn a_filter_without_io_uring_gives_threads_and_the_reason() {
    for call in ["setup", "register", "enter"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["under_a_filter", "--exact", "--nocapture", "--test-threads=1"])
            .env(REFUSED_CALL, call)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success() && said.contains("fell back"), "{call}: {said} {child:?}");
    }
}
