//! What: docs/services.md, executed as it stands: two nodes in network namespaces, a client of the services' addresses in a third.
//! Owns: a directory of programs per node in place of /usr, a runner that does with a unit what systemd would.
//! Invariants: every block of the page is used; who has an address is written down by each node itself, before and after.
//! Does not: start systemd.
//! Called by: `cargo test`; the nodes with addresses are skipped where there is no root, `ip`, `arping` or `curl`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, both, expect, is_root, run, wait};
use deadbolt_trial::{Network, Tied, network};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const PATIENCE: Duration = Duration::from_secs(60);
const WEB: &str = "192.0.2.80";
const DATABASE: &str = "192.0.2.81";
const NODES: [&str; 2] = ["a", "b"];

/// The page's blocks by the markers before them.
fn blocks() -> BTreeMap<String, String> {
    let page = include_str!("../../docs/services.md");
    let mut found = BTreeMap::new();
    let mut lines = page.lines();
    let mut marker = None;
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("<!-- ") {
            marker = Some(text.strip_suffix(" -->").unwrap().to_owned());
        } else if line.starts_with("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let name = marker.take().unwrap_or_else(|| panic!("a block without a marker: {body:?}"));
            assert_eq!(found.insert(name, body.join("\n") + "\n"), None);
        }
    }
    found
}

/// The service: answers with its node, or with an error while a file says that it is ill. Runs in a copy of this program, under this name.
#[test]
fn stand_in() {
    let Ok(address) = std::env::var("STAND_IN_ADDRESS") else { return };
    let (node, ill) = (std::env::var("STAND_IN_NODE").unwrap(), std::env::var("STAND_IN_ILL").unwrap());
    // As databases do, this one takes its time.
    if address == DATABASE {
        std::thread::sleep(Duration::from_secs(2));
    }
    let listener = TcpListener::bind((address.as_str(), 80)).unwrap();
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let mut request = [0; 1024];
        let _ = connection.read(&mut request);
        let status = if Path::new(&ill).exists() { "503 Ill" } else { "200 OK" };
        let body = format!("{node} {}", std::env::var("DEADBOLT_TOKEN").unwrap());
        let _ = write!(connection, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
}

/// Makes a program of a node.
fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Two nodes with their programs.
struct Site {
    runners: Vec<Tied>,
    cluster: Cluster,
    client: Arc<OwnedFd>,
}

/// What systemd does with a unit: its commands in their order, again and again. Paths give way to the node's directory of programs.
fn runner_of(units: &[String]) -> String {
    let text = units.concat().replace("\\\n", " ");
    let lines: Vec<&str> = text.lines().collect();
    let commands = |name: &str| -> String {
        let mine = lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        mine.map(|line| {
            let line = line.trim_start_matches('-');
            ["/usr/local/sbin/", "/usr/sbin/", "/usr/bin/"].iter().fold(line.to_owned(), |line, path| line.replace(path, "")) + "\n"
        })
        .collect()
    };
    let pause = text.lines().find_map(|line| line.strip_prefix("RestartSec=")).unwrap();
    assert!(text.contains("Restart=always") && text.contains("StartLimitIntervalSec=0"));
    let (before, main, after) = (commands("ExecStartPre"), commands("ExecStart"), commands("ExecStopPost"));
    assert!(!main.is_empty() && !after.is_empty());
    format!("while :; do\n{before}{main}echo \"exit $?\"\n{after}sleep {pause}\ndone\n")
}

impl Site {
    fn new(blocks: &BTreeMap<String, String>) -> Self {
        let network = Network::namespaces(3).unwrap();
        for (index, last) in [11, 12, 99].into_iter().enumerate() {
            network::ip(&network.namespace(index).unwrap(), &format!("address add 192.0.2.{last}/24 dev eth0")).unwrap();
        }
        let client = network.namespace(2).unwrap();
        let mut cluster = Cluster::new();
        cluster.namespaces = Some(network);
        let cluster = cluster.with(&NODES, &[]);
        cluster.wait_members(&NODES);
        let site = Self { cluster, runners: Vec::new(), client };
        for node in NODES {
            site.install(node, blocks);
        }
        site
    }

    fn programs(&self, node: &str) -> PathBuf {
        self.cluster.path().join(format!("programs-of-{node}"))
    }

    fn ill(&self, node: &str) -> PathBuf {
        self.cluster.path().join(format!("ill-{node}"))
    }

    fn addresses(&self) -> PathBuf {
        self.cluster.path().join("addresses")
    }

    fn install(&self, node: &str, blocks: &BTreeMap<String, String>) {
        let programs = self.programs(node);
        fs::create_dir(&programs).unwrap();
        for name in ["web-active", "web.service", "wait-for", "order.conf"] {
            program(&programs.join(name), &blocks[&format!("file: {name}")]);
        }
        expect(Command::new("sh").arg("-ec").arg(&blocks["run: database"]).current_dir(&programs), 0);
        let front = env!("CARGO_BIN_EXE_deadbolt");
        let directory = self.cluster.node(node).display().to_string();
        program(&programs.join("deadbolt"), &format!("#!/bin/sh\nverb=$1; shift\nexec {front} \"$verb\" --dir {directory} \"$@\"\n"));
        // The stamp of a begin is older than the address, that of an end younger: what is written never overlaps by chance.
        let stamp = |word, address| format!("echo \"$(date +%s%N) {node} {word} {address}\" >> {}", self.addresses().display());
        let (begin, end, flushed) = (stamp("begin", "$3"), stamp("end", "$3"), stamp("end", "$6/24"));
        program(
            &programs.join("ip"),
            &format!(
                "#!/bin/sh\nip=$(PATH=/usr/sbin:/sbin:/usr/bin:/bin command -v ip)\n[ $2 = replace ] && {begin}\n\"$ip\" \"$@\" || exit\ncase $2 in del) {end};; flush) {flushed};; esac\nexit 0\n"
            ),
        );
        let own = std::env::current_exe().unwrap();
        for (name, address) in [("web", WEB), ("database", DATABASE)] {
            let (own, ill) = (own.display(), self.ill(node).display().to_string());
            program(
                &programs.join(format!("{name}-server")),
                &format!(
                    "#!/bin/sh\nexport STAND_IN_ADDRESS={address} STAND_IN_NODE={node} STAND_IN_ILL={ill}\nexec {own} --exact stand_in --nocapture\n"
                ),
            );
        }
    }

    /// Runs these units of a node, one beside the other.
    fn run_units(&mut self, node: &str, units: &[&[&str]]) {
        let programs = self.programs(node);
        let index = NODES.iter().position(|name| *name == node).unwrap();
        for files in units {
            let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(programs.join(file)).unwrap()).collect();
            let mut command = Command::new("sh");
            command.arg("-c").arg(runner_of(&texts));
            command.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
            deadbolt_trial::children::write_to(&mut command, &self.said_file(node)).unwrap();
            let namespace = self.cluster.namespaces.as_ref().unwrap().namespace(index);
            self.runners.push(Tied::spawn(&mut command, namespace).unwrap());
        }
    }

    /// All that the units run, as far as it is not in a node's tree.
    fn end_units(&mut self) {
        for mut runner in self.runners.drain(..) {
            let group = Pid::from_raw(runner.child().id().try_into().unwrap());
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// Machines without power have no addresses; these namespaces would keep them.
    fn lose_addresses(&self) {
        let mut log = fs::File::options().append(true).open(self.addresses()).unwrap();
        for (index, node) in NODES.into_iter().enumerate() {
            let namespace = self.cluster.namespaces.as_ref().unwrap().namespace(index).unwrap();
            for address in [WEB, DATABASE] {
                // It has at most one of them.
                let _ = network::ip(&namespace, &format!("address del {address}/24 dev eth0"));
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
                writeln!(log, "{now} {node} end {address}/24").unwrap();
            }
        }
    }

    fn said_file(&self, node: &str) -> PathBuf {
        self.cluster.path().join(format!("units-of-{node}"))
    }

    fn said(&self, node: &str) -> String {
        fs::read_to_string(self.said_file(node)).unwrap_or_default()
    }

    /// What the client gets from an address: the node that answers.
    fn ask(&self, address: &str) -> Option<String> {
        let address: SocketAddr = format!("{address}:80").parse().unwrap();
        let client = self.client.clone();
        let asked = std::thread::spawn(move || -> std::io::Result<String> {
            setns(&client, CloneFlags::CLONE_NEWNET)?;
            let mut connection = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
            connection.set_read_timeout(Some(Duration::from_millis(500)))?;
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.join().unwrap().ok()?;
        let body = answer.strip_prefix("HTTP/1.0 200 OK")?.rsplit("\r\n").next()?;
        Some(body.split(' ').next()?.to_owned())
    }

    /// Waits until this one answers.
    fn wait_served(&self, what: &str, address: &str, by: Option<&str>) -> (String, Duration) {
        let begin = Instant::now();
        loop {
            if let Some(node) = self.ask(address)
                && by.is_none_or(|by| by == node)
            {
                let took = begin.elapsed();
                eprintln!("{what}: {address} answers from {node} after {took:?}");
                return (node, took);
            }
            let said = || NODES.map(|node| self.said(node)).join("\n--\n");
            assert!(begin.elapsed() < PATIENCE, "{what}: {address} does not answer; {}\n{}", said(), self.log_of_addresses());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until one node has the lock and the other waits for it; the one that is its master knows.
    fn wait_queued(&self) {
        wait("somebody waits for the lock", PATIENCE, || {
            NODES.iter().any(|node| both(&run(self.cluster.verb("locks", node).args(["web", "--waiting"]))).contains(" waits "))
        });
    }

    fn log_of_addresses(&self) -> String {
        fs::read_to_string(self.addresses()).unwrap_or_default()
    }

    /// Nobody had an address that another one had. Answers with the begins of each address.
    fn check_addresses(&self) -> BTreeMap<String, Vec<u128>> {
        let log = self.log_of_addresses();
        let mut lines: Vec<(u128, &str, &str, &str)> = log
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                (words[0].parse().unwrap(), words[1], words[2], words[3])
            })
            .collect();
        lines.sort_unstable();
        let mut has: BTreeMap<&str, &str> = BTreeMap::new();
        let mut begins: BTreeMap<String, Vec<u128>> = BTreeMap::new();
        for (at, node, word, address) in lines {
            if word == "begin" {
                assert!(has.get(address).is_none_or(|other| *other == node), "{node} took {address} while {} had it:\n{log}", has[address]);
                has.insert(address, node);
                begins.entry(address.to_owned()).or_default().push(at);
            } else if has.get(address) == Some(&node) {
                has.remove(address);
            }
        }
        begins
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end_units();
    }
}

fn other(node: &str) -> &'static str {
    if node == "a" { "b" } else { "a" }
}

fn has_programs() -> bool {
    let missing: Vec<&str> = ["ip", "arping", "curl"]
        .into_iter()
        .filter(|name| !run(Command::new("sh").args(["-c", "command -v $0", name])).status.success())
        .collect();
    if !is_root() || !missing.is_empty() {
        eprintln!("skipped: needs root and ip, arping, curl (packages iproute2, iputils-arping, curl); missing: {missing:?}");
    }
    is_root() && missing.is_empty()
}

#[test]
fn nothing_of_a_command_outlives_its_lock() {
    let cluster = Cluster::of(&["a"]);
    let path = |name: &str| cluster.path().join(name).display().to_string();
    let (proof, cleaned) = (path("proof"), path("cleaned"));
    // What the command left in the background is gone, and the clean-up done, before another one has the lock.
    let left = format!("(while :; do echo . >> {proof}; sleep 0.01; done) & sleep 0.3; exit 122");
    let finally = format!("echo $DEADBOLT_RESOURCE > {cleaned}; size=$(wc -c < {proof}); sleep 0.3; [ $size = $(wc -c < {proof}) ]");
    let said = expect(&mut cluster.lock("a", "r", &["--finally", &finally], &["sh", "-c", &left]), 122);
    assert_eq!(said, "", "a command's own 122 is no lost lock, and its leftover does not write on");
    assert_eq!(fs::read_to_string(&cleaned).unwrap(), "r\n");
    let check = ["--health", "exit 3", "--health-interval", "200ms", "--health-failures", "2", "--finally", &format!("rm {cleaned}")];
    let begin = Instant::now();
    let said = expect(&mut cluster.lock("a", "r", &check, &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]), 124);
    assert!(said.contains("(2 of 2)") && said.contains("not well") && !Path::new(&cleaned).exists(), "{said}");
    assert!(begin.elapsed() > Duration::from_millis(2400), "the command had no time to end");
    let well = ["--health", "true", "--health-interval", "50ms", "--health-failures", "1"];
    expect(&mut cluster.lock("a", "r", &well, &["sleep", "0.5"]), 0);
    assert!(expect(&mut cluster.lock("a", "r", &["--health-interval", "0s"], &["true"]), 125).contains("pause"));
    assert!(expect(&mut cluster.lock("a", "r", &["--health-failures", "0"], &["true"]), 125).contains("--health-failures"));
    // What the clean-up leaves in the background does not hold the lock up.
    expect(&mut cluster.lock("a", "r", &["--finally", "sleep 100 &", "--wait", "0"], &["true"]), 0);
    // One that fails does, until it succeeds.
    let (tried, mended) = (path("tried"), path("mended"));
    let finally = format!("touch {tried}; [ -e {mended} ]");
    let mut kept = cluster.lock("a", "r", &["--finally", &finally], &["true"]).stderr(Stdio::piped()).spawn().unwrap();
    wait("the clean-up", PATIENCE, || Path::new(&tried).exists());
    expect(&mut cluster.lock("a", "r", &["--wait", "200ms"], &["true"]), 121);
    fs::write(&mended, b"").unwrap();
    assert_eq!(kept.wait().unwrap().code(), Some(0));
}

#[test]
fn the_page_holds() {
    let blocks = blocks();
    let names: Vec<&str> = blocks.keys().map(String::as_str).collect();
    assert_eq!(names, ["file: order.conf", "file: wait-for", "file: web-active", "file: web.service", "run: database"]);
    if !has_programs() {
        return;
    }
    let mut site = Site::new(&blocks);
    for node in NODES {
        site.run_units(node, &[&["web.service"]]);
    }
    let (first, _) = site.wait_served("start", WEB, None);
    let second = other(&first);
    site.wait_queued();

    let begin = Instant::now();
    site.cluster.stop(&first);
    site.wait_served("after `deadbolt stop`", WEB, Some(second));
    eprintln!("from `deadbolt stop` to the answer: {:?}", begin.elapsed());
    // Without the announcement the client sends to the old node for longer.
    assert!(begin.elapsed() < Duration::from_secs(8));
    site.cluster.start(&first);
    site.cluster.wait_members(&NODES);
    site.wait_queued();

    fs::write(site.ill(second), b"").unwrap();
    let (_, unwell) = site.wait_served("after a failing health check", WEB, Some(first.as_str()));
    assert!(unwell > Duration::from_secs(2), "one failure was enough: {unwell:?}");
    wait("exit code 124", PATIENCE, || site.said(second).contains("exit 124"));
    fs::remove_file(site.ill(second)).unwrap();
    site.wait_queued();

    site.cluster.kill_outright(&first);
    site.wait_served("after the node was killed", WEB, Some(second));
    site.cluster.start(&first);
    site.cluster.wait_members(&NODES);
    eprintln!("{:?}", site.check_addresses());

    // The site fails: every process of every node and unit.
    for node in NODES {
        site.cluster.kill_outright(node);
    }
    site.end_units();
    site.lose_addresses();
    let begin = Instant::now();
    for node in NODES {
        site.run_units(node, &[&["web.service", "order.conf"], &["database.service"]]);
    }
    site.cluster.start_together(&NODES);
    site.wait_served("after the failure of the site", DATABASE, None);
    site.wait_served("then, in order", WEB, None);
    eprintln!("site: {:?}", begin.elapsed());
    let begins = site.check_addresses();
    let last = |address: &str| *begins[&format!("{address}/24")].last().unwrap();
    // The database takes 2 s until it answers; nobody asked for the lock of the web service before.
    assert!(last(WEB) > last(DATABASE) + 1_900_000_000, "{}", site.log_of_addresses());
}
