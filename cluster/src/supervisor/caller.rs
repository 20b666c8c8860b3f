//! What: who is at the other end of a connection, and how a command is made to run as that one and nothing more.
//! Owns: the comparison of the socket's credentials with /proc/PID of the caller.
//! Invariants: user, group and groups come from the socket (the kernel's word); limits, umask and the rest from /proc, and only
//!   while /proc shows the same user; whoever cannot be imitated exactly is refused.
//! Does not: read a byte of the request.
//! Called by: the keeper (which alone sees the caller's /proc entry) and handlers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::{Deserialize, Serialize};

use super::process;

/// Names in /proc/PID/limits and the resources they are.
const RESOURCES: [(&str, libc::__rlimit_resource_t); 16] = [
    ("Max cpu time", libc::RLIMIT_CPU),
    ("Max file size", libc::RLIMIT_FSIZE),
    ("Max data size", libc::RLIMIT_DATA),
    ("Max stack size", libc::RLIMIT_STACK),
    ("Max core file size", libc::RLIMIT_CORE),
    ("Max resident set", libc::RLIMIT_RSS),
    ("Max processes", libc::RLIMIT_NPROC),
    ("Max open files", libc::RLIMIT_NOFILE),
    ("Max locked memory", libc::RLIMIT_MEMLOCK),
    ("Max address space", libc::RLIMIT_AS),
    ("Max file locks", libc::RLIMIT_LOCKS),
    ("Max pending signals", libc::RLIMIT_SIGPENDING),
    ("Max msgqueue size", libc::RLIMIT_MSGQUEUE),
    ("Max nice priority", libc::RLIMIT_NICE),
    ("Max realtime priority", libc::RLIMIT_RTPRIO),
    ("Max realtime timeout", libc::RLIMIT_RTTIME),
];

/// What the keeper found out about a caller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CallerFacts {
    /// The caller's process number outside of namespaces.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Resource number, soft, hard.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) umask: u32,
    pub(crate) has_no_new_privileges: bool,
    /// Why no command may be run for it; everything else may be asked.
    pub(crate) no_run: Option<String>,
}

/// The lines `Name: value` of /proc/PID/status.
fn read_status(pid: &str) -> io::Result<BTreeMap<String, String>> {
    let text = fs::read(format!("/proc/{pid}/status"))?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// All four of a Uid or Gid line are the same and equal to `expected`.
fn are_all(line: Option<&String>, expected: u32) -> bool {
    let numbers: Vec<&str> = line.map(|line| line.split_ascii_whitespace().collect()).unwrap_or_default();
    numbers.len() == 4 && numbers.iter().all(|number| number.parse() == Ok(expected))
}

/// Decodes /proc/PID/limits; `None` if a known resource is missing or malformed.
fn decode_limits(text: &str) -> Option<Vec<(u32, u64, u64)>> {
    RESOURCES
        .iter()
        .map(|(name, resource)| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let mut values = line.split_ascii_whitespace().map(|value| match value {
                "unlimited" => Some(libc::RLIM_INFINITY),
                number => number.parse().ok(),
            });
            Some((*resource, values.next()??, values.next()??))
        })
        .collect()
}

/// Looks at the caller. Reads only what the kernel answers without waiting for anybody's memory or disk.
pub(crate) fn inspect(socket: BorrowedFd<'_>) -> Result<CallerFacts, String> {
    let peer = getsockopt(&socket, PeerCredentials).map_err(|errno| format!("the kernel does not say who is calling: {errno}"))?;
    let mut facts = CallerFacts {
        pid: peer.pid(),
        uid: peer.uid(),
        gid: peer.gid(),
        limits: Vec::new(),
        umask: 0o077,
        has_no_new_privileges: false,
        no_run: None,
    };
    facts.no_run = look_closer(&mut facts).err();
    Ok(facts)
}

fn look_closer(facts: &mut CallerFacts) -> Result<(), String> {
    let pid = facts.pid;
    let gone = |error: io::Error| format!("process {pid}, which called, cannot be looked at: {error}");
    let before = process::identity_of(pid)
        .ok_or_else(|| format!("process {pid}, which called, is not visible (ended, or in another PID namespace)"))?;
    let status = read_status(&pid.to_string()).map_err(gone)?;
    let own = read_status("self").map_err(gone)?;
    if !are_all(status.get("Uid"), facts.uid) || !are_all(status.get("Gid"), facts.gid) {
        return Err(format!(
            "process {pid} called as user {} group {}, /proc shows {:?} and {:?}: a command would run with other rights; call without changing user",
            facts.uid,
            facts.gid,
            status.get("Uid"),
            status.get("Gid")
        ));
    }
    check_not_confined(pid, facts.uid, &status, &own)?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).map_err(gone)?;
    facts.limits = decode_limits(&limits).ok_or_else(|| format!("the limits of process {pid} do not decode"))?;
    facts.umask = status.get("Umask").and_then(|text| u32::from_str_radix(text, 8).ok()).unwrap_or(0o077);
    facts.has_no_new_privileges = status.get("NoNewPrivs").is_some_and(|text| text != "0");
    if process::identity_of(pid) != Some(before) {
        return Err(format!("process {pid}, which called, ended meanwhile"));
    }
    Ok(())
}

/// Refuses a caller that is confined in a way that the command would not be.
fn check_not_confined(pid: i32, uid: u32, status: &BTreeMap<String, String>, own: &BTreeMap<String, String>) -> Result<(), String> {
    let bits = |map: &BTreeMap<String, String>, name: &str| map.get(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let sets: &[&str] = if uid == 0 { &["CapBnd", "CapEff"] } else { &["CapBnd"] };
    for set in sets {
        let missing = bits(own, set) & !bits(status, set);
        if missing != 0 {
            return Err(format!(
                "process {pid} lacks capabilities that the command would have ({set} {missing:#x}); call from outside of what confines it"
            ));
        }
    }
    let filters = |map: &BTreeMap<String, String>| map.get("Seccomp_filters").and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    if status.get("Seccomp") != own.get("Seccomp") || filters(status) > filters(own) {
        return Err(format!("process {pid} is confined by a seccomp filter that the command would not have"));
    }
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let theirs = namespace(&pid.to_string());
    if theirs.is_none() || theirs != namespace("self") {
        return Err(format!("process {pid} is in another user namespace"));
    }
    Ok(())
}

/// The caller's supplementary groups, from the socket.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the buffer is as long as the length says; the kernel writes at most that and says how much.
        let done = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
        };
        let count = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if done == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Everything a command needs to run as its caller; made before the fork, applied after it without allocating.
#[derive(Debug)]
pub(crate) struct Identity {
    facts: CallerFacts,
    groups: Vec<libc::gid_t>,
    is_privileged: bool,
}

impl Identity {
    /// Checks that this process can become the caller.
    pub(crate) fn new(facts: CallerFacts, socket: &impl AsFd) -> Result<Self, String> {
        if let Some(reason) = &facts.no_run {
            return Err(reason.clone());
        }
        let groups = peer_groups(socket.as_fd()).map_err(|error| format!("the kernel does not say the caller's groups: {error}"))?;
        let is_privileged = nix::unistd::geteuid().is_root();
        if !is_privileged {
            check_same_user(&facts, &groups)?;
        }
        Ok(Self { facts, groups, is_privileged })
    }

    /// Becomes the caller. Between fork and exec: only system calls.
    pub(crate) fn apply(&self) -> io::Result<()> {
        for (resource, soft, hard) in &self.facts.limits {
            self.apply_limit(*resource, *soft, *hard)?;
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(self.facts.umask));
        if self.is_privileged {
            // SAFETY: pointer and length are those of the vector.
            check(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
            let (uid, gid) = (self.facts.uid, self.facts.gid);
            // SAFETY: plain system calls on numbers.
            check(unsafe { libc::setresgid(gid, gid, gid) })?;
            // SAFETY: as above.
            check(unsafe { libc::setresuid(uid, uid, uid) })?;
        }
        if self.facts.has_no_new_privileges {
            nix::sys::prctl::set_no_new_privs()?;
        }
        Ok(())
    }

    /// The caller's limit; without privileges never above what this process itself may have.
    fn apply_limit(&self, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid resource and a valid place for the answer.
        check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
        let hard = if self.is_privileged { hard } else { hard.min(limit.rlim_max) };
        let wanted = libc::rlimit { rlim_cur: soft.min(hard), rlim_max: hard };
        // SAFETY: as above, read only.
        check(unsafe { libc::setrlimit(resource, &raw const wanted) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Without root a command can only run as the supervisor's own user.
fn check_same_user(facts: &CallerFacts, groups: &[libc::gid_t]) -> Result<(), String> {
    let own_uid = nix::unistd::geteuid().as_raw();
    let own_gid = nix::unistd::getegid().as_raw();
    let mut own_groups: Vec<u32> = nix::unistd::getgroups().unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect();
    let mut groups = groups.to_vec();
    own_groups.sort_unstable();
    groups.sort_unstable();
    if (facts.uid, facts.gid) != (own_uid, own_gid) || groups != own_groups {
        return Err(format!(
            "the caller is user {} group {} groups {groups:?}, the supervisor runs without root as user {own_uid} group {own_gid} groups {own_groups:?} and cannot become another",
            facts.uid, facts.gid
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_own_process_is_described_as_the_kernel_does() {
        let (one, _two) = UnixStream::pair().unwrap();
        let facts = inspect(one.as_fd()).unwrap();
        assert_eq!(facts.pid, process::own_pid());
        assert_eq!(facts.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(facts.no_run, None);
        let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert!(facts.limits.contains(&(libc::RLIMIT_NOFILE, soft, hard)));
        assert_eq!(facts.limits.len(), RESOURCES.len());
        let mut groups = peer_groups(one.as_fd()).unwrap();
        groups.sort_unstable();
        let mut own: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        own.sort_unstable();
        assert_eq!(groups, own);
    }

    #[test]
    fn a_caller_whose_four_ids_differ_is_not_taken() {
        let line = |text: &str| Some(text.to_owned());
        assert!(are_all(line("5\t5\t5\t5").as_ref(), 5));
        for text in ["5 0 5 5", "0 5 5 5", "5 5 5", "", "5 5 5 x", "5 5 5 5 5"] {
            assert!(!are_all(line(text).as_ref(), 5), "{text}");
        }
        assert!(!are_all(None, 5));
    }

    #[test]
    fn limits_with_a_missing_line_are_refused() {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(decode_limits(&text).is_some());
        assert!(decode_limits(&text.replace("Max stack size", "Max other size")).is_none());
        assert!(decode_limits("").is_none());
    }
}
