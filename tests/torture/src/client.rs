//! What: a client of the run: random work under locks until it is told to end, or is killed.
//! Owns: the kinds of work, and that each step stands in the history.
//! Invariants: every counter is read, told, written, told; a value block tells the counter whenever the writer gave it back as good.
//! Does not: judge what it sees.
//! Called by: the crew, as a process of its own inside a node.

use crate::{
    area::{Area, RESOURCES, WITH_VALUE, name},
    history::{Event, LifeName, Log, Number, Why},
    locks::{Denied, Guard, Said, Space, value_block},
    work,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use deadbolt_cluster::config::NodeDirectory;
use deadbolt_dlm::{
    Flags, Mode, Transport,
    blocking::{self, Wishes},
    cache::CachedLockspace,
};
use deadbolt_simulator::random::Random;
use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

/// How long a client tries to reach its node.
const CONNECT: Duration = Duration::from_secs(10);
/// Tasks of an async client, each a party of its own.
const TASKS: u64 = 3;
/// Longest time for which a lock is kept because the run wants a fault to meet its holder.
const STUBBORN: Duration = Duration::from_secs(20);
/// Locks that a client keeps in its cache.
const CACHED: usize = 16;

/// Present when clients are to end.
pub(crate) fn stop_file(run: &Path) -> PathBuf {
    run.join("stop")
}

/// Present while the clients of a node keep what they have in EX and go on counting.
pub(crate) fn hold_file(run: &Path, node: usize) -> PathBuf {
    run.join(format!("hold-{node}"))
}

/// Arguments of a client.
#[derive(Debug, Args)]
pub(crate) struct ClientArguments {
    /// Directory of its node
    #[arg(long)]
    dir: PathBuf,
    /// Directory of the run
    #[arg(long)]
    run: PathBuf,
    /// Who it is
    #[arg(long, value_parser = |text: &str| LifeName::parse(text).ok_or("NODE-CREW-SLOT-LIFE"))]
    life: LifeName,
    /// Of its draws
    #[arg(long)]
    seed: u64,
}

/// How a step of the work ended otherwise than well.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The session is over, or the node said something odd; the history says which.
    Session,
    /// The machine does not do its part.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

pub(crate) type Step<T> = Result<T, Ended>;

/// A lock held, and what is to be said when it is given back.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) op: u32,
    pub(crate) resource: u8,
    pub(crate) token: Number,
    pub(crate) guard: Guard,
    /// The counter that its value block has to tell.
    pub(crate) wrote: Option<u64>,
}

/// What the tasks of a client share.
pub(crate) struct Worker {
    pub(crate) space: Space,
    /// Where the client keeps locks.
    pub(crate) cache: Option<CachedLockspace>,
    areas: Vec<Area>,
    history: RefCell<Log>,
    next_op: Cell<u32>,
    stop: PathBuf,
    hold: PathBuf,
    life: LifeName,
}

/// Runs a client until it is told to end.
///
/// # Errors
/// The session was lost, or the machine does not do its part.
pub(crate) fn run(arguments: &ClientArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("an async runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, work_until_told(arguments))
}

async fn work_until_told(arguments: &ClientArguments) -> Result<()> {
    let ClientArguments { dir, run, life, seed } = arguments;
    let is_async = life.slot % 4 == 3;
    let socket = NodeDirectory(dir.clone()).lock_socket();
    let transport = if life.slot % 8 >= 6 { Transport::Socket } else { Transport::Ring };
    let space = connect(&socket, is_async, transport).await?;
    let cache = if life.slot % 4 == 2 { Some(open_cache(&socket)?) } else { None };
    let history = RefCell::new(Log::open(&life.history_file(run))?);
    let (stop, hold) = (stop_file(run), hold_file(run, life.node));
    let areas = Area::open_all(run)?;
    let worker = Rc::new(Worker { space, cache, areas, history, next_op: Cell::new(1), stop, hold, life: *life });
    let mut random = Random::new(*seed);
    let tasks = if is_async { TASKS } else { 1 };
    let tasks: Vec<_> = (0..tasks).map(|task| tokio::task::spawn_local(work::work(worker.clone(), random.fork(), task))).collect();
    for task in tasks {
        match task.await.context("a task of the client")? {
            Ok(()) => {}
            Err(Ended::Session) => bail!("client {life}: the session is over"),
            Err(Ended::Broken(error)) => {
                worker.say(&Event::Odd { said: format!("{error:#}") })?;
                worker.say(&Event::Lost)?;
                return Err(error);
            }
        }
    }
    worker.say(&Event::End)?;
    Ok(())
}

async fn connect(socket: &Path, is_async: bool, transport: Transport) -> Result<Space> {
    let begin = Instant::now();
    loop {
        match Space::join(socket, is_async, transport).await {
            Ok(space) => return Ok(space),
            Err(error) if begin.elapsed() > CONNECT => bail!("no session with the node: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn open_cache(socket: &Path) -> Result<CachedLockspace> {
    let space = blocking::Client::connect(socket, blocking::Protection::default())?.join(b"torture")?;
    Ok(CachedLockspace::new(space, CACHED)?)
}

impl Worker {
    pub(crate) fn say(&self, event: &Event) -> Result<()> {
        self.history.borrow_mut().say(event)
    }

    pub(crate) fn is_told_to_end(&self) -> bool {
        self.stop.exists()
    }

    pub(crate) fn new_op(&self) -> u32 {
        let op = self.next_op.get();
        self.next_op.set(op + 1);
        op
    }

    /// A party for the search for deadlocks that no other task, client or life is.
    pub(crate) fn owner(&self, task: u64) -> u64 {
        let LifeName { node, crew, slot, life } = self.life;
        let node = u64::try_from(node).unwrap_or(u64::MAX);
        [u64::from(crew), u64::from(slot), u64::from(life), task].iter().fold(node + 1, |all, part| (all << 12) ^ part)
    }

    /// Says that the session is over, once, and ends the step.
    pub(crate) fn end<T>(&self, denied: &Denied) -> Step<T> {
        if let Denied::Odd(said) = denied {
            self.say(&Event::Odd { said: said.clone() })?;
        }
        self.say(&Event::Lost)?;
        Err(Ended::Session)
    }

    /// Takes a lock; none: not granted.
    pub(crate) async fn lock(&self, resource: u8, mode: Mode, wishes: &Wishes) -> Step<Option<Held>> {
        let op = self.new_op();
        self.say(&Event::Ask { op, resource, mode: mode.number() })?;
        match self.space.lock(&name(resource), mode, wishes).await {
            Ok((guard, said)) => Ok(Some(self.got(op, resource, guard, said)?)),
            Err(Denied::Not(why)) => {
                self.say(&Event::Not { op, why })?;
                Ok(None)
            }
            Err(denied) => self.end(&denied),
        }
    }

    pub(crate) fn got(&self, op: u32, resource: u8, guard: Guard, said: Said) -> Step<Held> {
        let Said { token, value } = said;
        self.say(&Event::Got { op, token, value, is_kept: false })?;
        Ok(Held { op, resource, token, guard, wrote: None })
    }

    /// Changes the mode; false: not granted, the lock is as before.
    pub(crate) async fn convert(&self, held: &mut Held, mode: Mode, mut wishes: Wishes) -> Step<bool> {
        let Held { op, resource, .. } = *held;
        if resource < WITH_VALUE {
            // A writer that gives way says what it wrote; one that wrote nothing says nothing.
            wishes.lvb = Some(held.wrote.map_or([0; 32], |value| value_block(value, held.token)));
            wishes.flags = wishes.flags.with(Flags::VALBLK);
        }
        self.say(&Event::Convert { op, mode: mode.number() })?;
        match held.guard.convert(mode, &wishes).await {
            Ok(Said { token, value }) => {
                held.token = token;
                held.wrote = None;
                self.say(&Event::Converted { op, token, value })?;
                Ok(true)
            }
            Err(Denied::Not(why)) => {
                self.say(&Event::Kept { op, why })?;
                Ok(false)
            }
            Err(denied) => self.end(&denied),
        }
    }

    /// Gives a lock back.
    pub(crate) async fn free(&self, held: Held, random: &mut Random) -> Step<()> {
        let Held { op, resource, token, guard, wrote } = held;
        let (flags, lvb) = match wrote.filter(|_| resource < WITH_VALUE) {
            None => (Flags::NONE, None),
            Some(_) if random.chance(50) => (Flags::IVVALBLK, None),
            Some(value) => (Flags::VALBLK, Some(value_block(value, token))),
        };
        self.say(&Event::Free { op })?;
        let given = if random.chance(300) { guard.post_unlock(flags, lvb) } else { guard.unlock(flags, lvb).await };
        match given {
            Ok(()) => Ok(self.say(&Event::Freed { op })?),
            Err(Denied::Not(why)) => self.end(&Denied::Odd(format!("an unlock ended as {why:?}"))),
            Err(denied) => self.end(&denied),
        }
    }

    /// Reads the resource's file.
    pub(crate) fn read(&self, op: u32, resource: u8) -> Result<u64> {
        let area = self.area(resource)?;
        let (front, back) = (area.front()?, area.back()?);
        self.say(&Event::Read { op, front, back })?;
        Ok(front.value)
    }

    fn area(&self, resource: u8) -> Result<&Area> {
        self.areas.get(usize::from(resource)).context("no such resource")
    }

    /// One increment of the counter, with a pause between its two fields.
    pub(crate) async fn increment(&self, op: u32, resource: u8, token: Number, pause: Duration) -> Result<u64> {
        let value = self.read(op, resource)? + 1;
        let area = self.area(resource)?;
        self.say(&Event::Write { op, value })?;
        area.write(false, value, token)?;
        tokio::time::sleep(pause).await;
        area.write(true, value, token)?;
        self.say(&Event::Done { op })?;
        Ok(value)
    }

    /// Increments, and goes on as long as the run wants holders: what ends them is a fault, and nothing asks whether it has come.
    pub(crate) async fn count(&self, held: &mut Held, pause: Duration) -> Step<()> {
        let Held { op, resource, token, .. } = *held;
        held.wrote = Some(self.increment(op, resource, token, pause).await?);
        let begin = Instant::now();
        while self.hold.exists() && begin.elapsed() < STUBBORN {
            held.wrote = Some(self.increment(op, resource, token, pause).await?);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// A use of a lock in the cache.
    pub(crate) async fn use_cache(&self, cache: &CachedLockspace, resource: u8, is_writing: bool, pause: Duration) -> Step<()> {
        let op = self.new_op();
        let mode = if is_writing { Mode::Ex } else { Mode::Pr };
        self.say(&Event::Ask { op, resource, mode: mode.number() })?;
        let entry = match cache.resource(&name(resource)) {
            Ok(entry) => entry,
            Err(error) => return self.end(&error.into()),
        };
        let guard = match if is_writing { entry.exclusive() } else { entry.shared() } {
            Ok(guard) => guard,
            Err(error) => {
                return match error.into() {
                    Denied::Not(why) => Ok(self.say(&Event::Not { op, why })?),
                    denied => self.end(&denied),
                };
            }
        };
        let token = crate::history::number(guard.token());
        self.say(&Event::Got { op, token, value: crate::history::Value::None, is_kept: true })?;
        if is_writing {
            self.increment(op, resource, token, pause).await?;
        } else {
            self.read(op, resource)?;
            tokio::time::sleep(pause).await;
            self.read(op, resource)?;
        }
        self.say(&Event::Free { op })?;
        drop(guard);
        Ok(self.say(&Event::Freed { op })?)
    }

    /// A request that is taken back.
    pub(crate) async fn give_up(&self, resource: u8, mode: Mode, wishes: &Wishes, after: Duration) -> Step<()> {
        let op = self.new_op();
        self.say(&Event::Ask { op, resource, mode: mode.number() })?;
        match self.space.give_up(&name(resource), mode, wishes, after).await {
            Ok(()) => Ok(self.say(&Event::Not { op, why: Why::GivenUp })?),
            Err(Denied::Not(why)) => Ok(self.say(&Event::Not { op, why })?),
            Err(denied) => self.end(&denied),
        }
    }
}

/// Any resource.
pub(crate) fn any_resource(random: &mut Random) -> u8 {
    u8::try_from(random.below(u64::from(RESOURCES))).unwrap_or(0)
}
