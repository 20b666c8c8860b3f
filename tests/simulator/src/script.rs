//! What: transcripts: commands to a small cluster, and everything that it says, readable as a specification.
//! Owns: the commands, the form of a transcript, its rewriting.
//! Invariants: the output of a transcript is a function of the transcript and the program.
//! Does not: judge; a transcript that changed is judged by who reads the difference.
//! Called by: tests/transcripts.rs; the transcripts stand in tests/scenarios.

use crate::{
    Plan,
    machine::{Machine, PROCESSES, Process, SbdState, Stage},
    world::{World, slot_of},
};
use deadbolt_cluster::node::NodeInput;
use deadbolt_cluster_core::membership::OwnStanding;
use deadbolt_disk_format::{
    ByteOffset, Life,
    sbd::{Command, Mailbox, Tail, mailbox_offset},
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, ResourceName,
    client::CLIENT_VERSION,
    mode::MODES,
    service::{Input, SessionInfo},
};
use std::{collections::BTreeMap, fmt::Write as _};

/// Sessions from here on belong to transcripts.
pub const SESSIONS: u64 = 1 << 40;
const SECOND_US: u64 = 1_000_000;
const LOCKSPACE: &[u8] = b"scenario";

/// A lock that a transcript asked for.
#[derive(Debug, Default)]
struct Held {
    session: u64,
    lock: u32,
    lockspace: u32,
    answer: Option<String>,
}

/// A cluster under commands.
#[derive(Debug, Default)]
pub struct Script {
    world: Option<World>,
    held: BTreeMap<(usize, String), Held>,
    next_session: u64,
    printed: usize,
    ways: Vec<(usize, usize)>,
}

type Done = Result<String, String>;

/// Runs a transcript and gives it back with its outputs as they are now. Lines before the first command are its head.
#[must_use]
pub fn replay(text: &str) -> String {
    let mut script = Script::default();
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The old output goes: all up to the next empty line.
        lines.by_ref().find(|line| line.is_empty());
        let answer = script.execute(line).unwrap_or_else(|error| format!("error: {error}\n"));
        let _ = writeln!(out, "---\n{answer}");
    }
    out
}

impl Script {
    /// Executes one command.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn execute(&mut self, line: &str) -> Done {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, rest) = words.split_first().ok_or("an empty command")?;
        if *command == "cluster" {
            return self.begin(rest);
        }
        self.world()?;
        match *command {
            "wait" => self.wait(rest),
            "until" => self.until(rest),
            "flap" => self.flap(rest),
            "status" => self.status(),
            "lock" => self.lock(rest),
            "unlock" => self.unlock(rest),
            _ => {
                self.act(command, rest)?;
                Ok(self.news())
            }
        }
    }

    fn world(&mut self) -> Result<&mut World, String> {
        self.world.as_mut().ok_or_else(|| "there is no cluster yet".to_owned())
    }

    /// `cluster name=value ...`: a calm cluster in which everybody is a member.
    fn begin(&mut self, settings: &[&str]) -> Done {
        let mut plan = Plan::new(1, true);
        settings.iter().try_for_each(|setting| plan.options.set(setting))?;
        let mut world = World::new(&plan, true);
        world.is_scripted = true;
        world.power_on();
        self.world = Some(world);
        let count = self.world()?.machines.len();
        let names: Vec<String> = (1..=count).map(|number| format!("n{number}")).collect();
        self.run(30 * SECOND_US, |world| has_members(world, &names))?;
        self.printed = self.world()?.log.line_count();
        self.status()
    }

    fn machine(&mut self, name: Option<&&str>) -> Result<usize, String> {
        let name = name.ok_or("a node is missing")?;
        let world = self.world()?;
        world.machines.iter().position(|machine| machine.name == **name).ok_or_else(|| format!("there is no node {name:?}"))
    }

    /// Lets time pass until something holds; gives the seconds that took.
    fn run(&mut self, most_us: u64, is_done: impl Fn(&World) -> bool) -> Result<f64, String> {
        let world = self.world()?;
        let start_us = world.queue.now_us();
        while !is_done(world) {
            let now_us = world.queue.now_us();
            if now_us >= start_us + most_us {
                return Err(format!("that did not come about in {} s", most_us / SECOND_US));
            }
            world.run_until(now_us + 10_000);
            if let Some(violation) = world.violations().first() {
                return Err(format!("{} is broken: {}", violation.promise, violation.what));
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        Ok((world.queue.now_us() - start_us) as f64 / 1e6)
    }

    /// What was said since the last command, without what every node repeats.
    fn news(&mut self) -> String {
        let Some(world) = self.world.as_ref() else { return String::new() };
        let lines = world.log.lines_from(self.printed);
        self.printed = world.log.line_count();
        let is_news = |line: &&String| !line.contains(" learns view ") && !line.contains(": fault") && !line.contains("fault: ");
        let mut text = String::new();
        for line in lines.iter().filter(is_news) {
            let (time, what) = line.trim_start().split_once(' ').unwrap_or(("", line));
            let _ = writeln!(text, "{:>9}  {}", time.get(..time.len().saturating_sub(4)).unwrap_or(time), shortened(what));
        }
        text
    }

    /// `wait SECONDS`
    fn wait(&mut self, words: &[&str]) -> Done {
        let seconds: f64 = words.first().and_then(|word| word.parse().ok()).ok_or("how many seconds?")?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a span that a person wrote")]
        let span_us = (seconds.clamp(0.0, 1e6) * 1e6) as u64;
        let end_us = self.world()?.queue.now_us() + span_us;
        self.run(span_us + 1, |world| world.queue.now_us() >= end_us)?;
        Ok(self.news())
    }

    /// `flap n1 n3 TIMES DOWN UP`: a link that fails and comes back, seconds each.
    fn flap(&mut self, words: &[&str]) -> Done {
        let [a, b, times, down, up] = words else { return Err("flap NODE NODE TIMES DOWN_S UP_S".into()) };
        let times: usize = times.parse().map_err(|_| "how many times?")?;
        let mut text = String::new();
        for _ in 0..times {
            self.cut(&[a, b], true)?;
            text.push_str(&self.wait(&[down])?);
            self.act("heal", &[])?;
            text.push_str(&self.wait(&[up])?);
        }
        Ok(text)
    }

    /// `until members n1 n2 [within S]`, `until gone n3 [within S]`, `until off n1 [within S]`
    fn until(&mut self, words: &[&str]) -> Done {
        let (words, most_s) = match words.iter().position(|word| *word == "within") {
            Some(index) => (&words[..index], words.get(index + 1).and_then(|word| word.parse().ok()).ok_or("within how many seconds?")?),
            None => (words, 100),
        };
        let (what, names) = words.split_first().ok_or("until what?")?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let result = match *what {
            "members" => self.run(most_s * SECOND_US, |world| has_members(world, &names)),
            "gone" => self.run(most_s * SECOND_US, |world| names.iter().all(|name| is_gone(world, name))),
            "off" => self.run(most_s * SECOND_US, |world| names.iter().all(|name| is_off(world, name))),
            _ => return Err(format!("until {what:?} is not known: members, gone, off")),
        };
        let news = self.news();
        let _ = self.world()?;
        match result {
            Ok(seconds) => Ok(format!("{news}{} {} after {seconds:.1} s\n", what, names.join(" "))),
            Err(error) => Ok(format!("{news}{error}\n{}", self.status()?)),
        }
    }

    /// `status`: where every node stands.
    fn status(&mut self) -> Done {
        let held = &self.held;
        let world = self.world.as_ref().ok_or("there is no cluster yet")?;
        let mut text = String::new();
        for (index, machine) in world.machines.iter().enumerate() {
            let _ = write!(text, "{}: ", machine.name);
            let state = match (machine.is_on, machine.daemon.as_ref().map(|daemon| &daemon.stage)) {
                (false, _) => "off".to_owned(),
                (true, Some(Stage::Live(node))) => {
                    let view = node.view();
                    let names = |slots: Vec<u16>| slots.iter().map(|slot| format!("n{}", slot + 1)).collect::<Vec<_>>().join(" ");
                    let members = names(view.members.iter().map(|life| life.slot.0).collect());
                    let owed = names(view.owed.iter().map(|owed| owed.life.slot.0).collect());
                    let role = if view.members.contains(&node.me()) { "member" } else { "outside" };
                    let owed = if owed.is_empty() { String::new() } else { format!(", owed {owed}") };
                    format!("{role}, view {}: {members}{owed}", view.view)
                }
                (true, Some(stage)) => format!("the daemon {}", stage.name()),
                (true, None) => "no daemon".to_owned(),
            };
            let sbd = match (machine.sbd.is_some(), machine.page.state) {
                (true, SbdState::Alive) => "",
                (true, _) => "; sbd has no lease",
                (false, _) if machine.is_on => "; no sbd",
                (false, _) => "",
            };
            let locks: Vec<String> = held
                .iter()
                .filter(|((of, _), held)| *of == index && machine.is_on && held.answer.is_some())
                .map(|((_, resource), held)| format!("{resource} {}", held.answer.clone().unwrap_or_default()))
                .collect();
            let locks = if locks.is_empty() { String::new() } else { format!("; {}", locks.join(", ")) };
            let _ = writeln!(text, "{state}{sbd}{locks}");
        }
        Ok(text)
    }

    // Locks.

    /// `lock NODE RESOURCE MODE`: waits up to a second for the answer.
    fn lock(&mut self, words: &[&str]) -> Done {
        let machine = self.machine(words.first())?;
        let resource = (*words.get(1).ok_or("which resource?")?).to_owned();
        let wanted = words.get(2).copied().unwrap_or("EX");
        let mode: Mode = MODES.into_iter().find(|mode| mode.name() == wanted).ok_or_else(|| format!("{wanted:?} is no mode"))?;
        self.next_session += 1;
        let session = SESSIONS + self.next_session;
        let world = self.world()?;
        world.node_give(machine, NodeInput::Locks(Input::SessionOpened { session, info: SessionInfo { pid: 1 } }));
        for request in [
            ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false },
            ClientRequest::JoinLockspace { serial: 1, name: LOCKSPACE.to_vec() },
        ] {
            world.node_give(machine, NodeInput::Locks(Input::Request { session, request }));
        }
        self.held.insert((machine, resource.clone()), Held { session, ..Held::default() });
        self.settle(SECOND_US);
        let lockspace = self.held.get(&(machine, resource.clone())).map_or(0, |held| held.lockspace);
        let name = ResourceName::new(resource.as_bytes()).ok_or("a resource name has 1 to 64 bytes")?;
        let request =
            ClientRequest::Lock { serial: 2, lockspace, resource: name, mode, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb: None };
        self.world()?.node_give(machine, NodeInput::Locks(Input::Request { session, request }));
        self.settle(SECOND_US);
        let answer = self.held.get(&(machine, resource.clone())).and_then(|held| held.answer.clone());
        let text = answer.map_or_else(|| format!("{resource}: waits\n"), |answer| format!("{resource}: {answer}\n"));
        Ok(format!("{}{text}", self.news()))
    }

    fn unlock(&mut self, words: &[&str]) -> Done {
        let machine = self.machine(words.first())?;
        let resource = (*words.get(1).ok_or("which resource?")?).to_owned();
        let held = self.held.remove(&(machine, resource)).ok_or("that is not held")?;
        let (session, lock) = (held.session, held.lock);
        let request = ClientRequest::Unlock { serial: 3, lock, flags: Flags::NONE, lvb: None };
        self.world()?.node_give(machine, NodeInput::Locks(Input::Request { session, request }));
        self.settle(SECOND_US / 10);
        Ok(self.news())
    }

    /// Lets time pass and takes the answers that come.
    fn settle(&mut self, span_us: u64) {
        let Some(world) = self.world.as_mut() else { return };
        let end_us = world.queue.now_us() + span_us;
        world.run_until(end_us);
        self.take_replies();
    }

    fn take_replies(&mut self) {
        let Some(world) = self.world.as_mut() else { return };
        for (session, reply) in std::mem::take(&mut world.scripted_replies) {
            let Some(held) = self.held.values_mut().find(|held| held.session == session) else { continue };
            match reply {
                ClientReply::Joined { lockspace, .. } => held.lockspace = lockspace,
                ClientReply::Completed { lock, status: LockStatus::Success, mode: Some(mode), .. } => {
                    held.lock = lock;
                    held.answer = Some(format!("held in {}", mode.name()));
                }
                ClientReply::Completed { status, .. } => held.answer = Some(format!("{status:?}")),
                ClientReply::Refused { reason, .. } | ClientReply::Lost { reason } => held.answer = Some(reason),
                // Nothing else is asked for.
                _ => {}
            }
        }
    }

    // What is done to the cluster.

    fn act(&mut self, command: &str, words: &[&str]) -> Result<(), String> {
        match command {
            "cut" | "cut-one-way" => return self.cut(words, command == "cut"),
            "heal" => {
                let ways = std::mem::take(&mut self.ways);
                let world = self.world()?;
                ways.into_iter().for_each(|(from, to)| world.heal(from, to));
                return Ok(());
            }
            "power" => return self.power(words),
            _ => {}
        }
        let machine = self.machine(words.first())?;
        let world = self.world()?;
        let device = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0).min(world.disks.len() - 1);
        match command {
            "crash" => world.lose_power(machine),
            "start" => world.start_machine(machine),
            "stop" => world.stop_cleanly(machine),
            "kill" => match words.get(1).copied() {
                Some("daemon") => world.exit_daemon(machine, crate::daemon::EXIT_KILLED),
                Some("sbd") => world.kill_sbd(machine),
                _ => return Err("kill what: daemon, sbd?".into()),
            },
            "pause" => for_processes(words.get(1), |process| world.pause_process(machine, process))?,
            "continue" => for_processes(words.get(1), |process| world.continue_process(machine, process))?,
            "hang" => world.machines[machine].paths[device].hangs += 1,
            "release" => world.release(machine, device),
            "slow" => {
                let extra_ms: u64 = words.get(2).and_then(|word| word.parse().ok()).ok_or("slow NODE DEVICE MS")?;
                world.machines[machine].paths[device].extra_us = extra_ms * 1000;
            }
            "says" => {
                let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).ok_or("says NODE SCORE PREFERENCE");
                let standing = OwnStanding { score: number(1)?, preference: number(2)? };
                world.node_give(machine, NodeInput::Standing(standing));
            }
            "message" => write_stock_message(world, machine, words.get(1).copied().unwrap_or("reset"))?,
            "damage" => damage(world, machine, words.get(1).copied().unwrap_or_default())?,
            "fence" => world.node_give(machine, NodeInput::Fence(slot_of(target(world, words.get(1))?))),
            "confirm" => world.node_give(machine, NodeInput::OperatorConfirms(slot_of(target(world, words.get(1))?))),
            _ => return Err(format!("there is no command {command:?}")),
        }
        Ok(())
    }

    /// `cut n1 n2 | n3`: every way between the two sides; `cut-one-way n1 n2`: from the first to the second.
    fn cut(&mut self, words: &[&str], is_both: bool) -> Result<(), String> {
        let bar = words.iter().position(|word| *word == "|");
        let (left, right) = match bar {
            Some(bar) => (&words[..bar], &words[bar + 1..]),
            None => words.split_at(1.min(words.len())),
        };
        for from in left {
            for to in right {
                let (from, to) = (self.machine(Some(from))?, self.machine(Some(to))?);
                self.ways.push((from, to));
                self.world()?.cut(from, to);
                if is_both {
                    self.ways.push((to, from));
                    self.world()?.cut(to, from);
                }
            }
        }
        Ok(())
    }

    fn power(&mut self, words: &[&str]) -> Result<(), String> {
        let world = self.world()?;
        let count = world.machines.len();
        match words.first().copied() {
            Some("off") => (0..count).for_each(|machine| world.lose_power(machine)),
            Some("on") => (0..count).for_each(|machine| world.start_machine(machine)),
            _ => return Err("power off, or power on?".into()),
        }
        Ok(())
    }
}

fn target(world: &World, name: Option<&&str>) -> Result<usize, String> {
    let name = name.ok_or("a second node is missing")?;
    world.machines.iter().position(|machine| machine.name == **name).ok_or_else(|| format!("there is no node {name:?}"))
}

fn for_processes(word: Option<&&str>, mut act: impl FnMut(Process)) -> Result<(), String> {
    match word.copied() {
        Some("all") => PROCESSES.into_iter().for_each(&mut act),
        Some("daemon") => act(Process::Daemon),
        Some("sbd") => act(Process::Sbd),
        Some("feeder") => act(Process::Feeder),
        Some("clients") => act(Process::Clients),
        _ => return Err("which: all, daemon, sbd, feeder, clients?".into()),
    }
    Ok(())
}

/// As stock `sbd message` does: a command without a boot.
fn write_stock_message(world: &mut World, machine: usize, command: &str) -> Result<(), String> {
    let command = match command {
        "reset" => Command::Reset,
        "off" => Command::Off,
        "test" => Command::Test,
        _ => return Err("which message: reset, off, test?".into()),
    };
    let mailbox = Mailbox { command, sender: "admin".to_owned(), tail: Tail::Absent };
    let offset = ByteOffset(mailbox_offset(slot_of(machine), 512));
    for disk in &mut world.disks {
        disk.write(offset, &mailbox.encode(512));
    }
    Ok(())
}

/// Spoils the first sector of a node's unit on every device.
fn damage(world: &mut World, machine: usize, what: &str) -> Result<(), String> {
    for disk in &mut world.disks {
        let (layout, slot) = (*disk.layout(), slot_of(machine));
        let offsets = match what {
            "votes" => vec![layout.vote(slot, 0), layout.vote(slot, 1)],
            "beat" => vec![layout.beat(slot)],
            "records" => vec![layout.record(slot, 0), layout.record(slot, 1)],
            _ => return Err("damage what: votes, beat, records?".into()),
        };
        for offset in offsets {
            let mut bytes = disk.read(offset, 512);
            bytes[100] ^= 0x40;
            disk.write(offset, &bytes);
        }
    }
    Ok(())
}

fn has_members(world: &World, names: &[String]) -> bool {
    names.iter().all(|name| {
        let machine = world.machines.iter().find(|machine| machine.name == *name);
        let members = machine.and_then(members_of).unwrap_or_default();
        let present: Vec<String> = members.iter().map(|life| format!("n{}", life.slot.0 + 1)).collect();
        present == names
            && machine.and_then(|machine| machine.daemon.as_ref()).and_then(|daemon| daemon.life()).is_some_and(|me| members.contains(&me))
    })
}

/// The members of the view that a machine's node has learned, if it lives.
fn members_of(machine: &Machine) -> Option<Vec<Life>> {
    match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
        Some(Stage::Live(node)) => Some(node.view().members.clone()),
        _ => None,
    }
}

/// Somebody's view has nobody of this node among members or owed.
fn is_gone(world: &World, name: &str) -> bool {
    let number = name.strip_prefix('n').and_then(|number| number.parse::<u16>().ok()).unwrap_or(0);
    world.machines.iter().any(|machine| match machine.daemon.as_ref().map(|daemon| &daemon.stage) {
        Some(Stage::Live(node)) => {
            let view = node.view();
            let is_in = view.members.contains(&node.me());
            let lives = view.members.iter().chain(view.owed.iter().map(|owed| &owed.life));
            is_in && lives.into_iter().all(|life| life.slot.0 + 1 != number)
        }
        _ => false,
    })
}

fn is_off(world: &World, name: &str) -> bool {
    world.machines.iter().any(|machine| machine.name == name && !machine.is_on)
}

/// Takes out what only machines read: who exactly began, and the letters of an incarnation.
fn shortened(text: &str) -> &str {
    match text.find(": an incarnation begins").and_then(|_| text.rfind(": slot")) {
        Some(end) => text.get(..end).unwrap_or(text),
        None => text,
    }
}
