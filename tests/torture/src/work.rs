//! What: the kinds of work of a client.
//! Owns: which kind comes how often, with which modes and flags.
//! Invariants: whoever waits for ever may be told of a deadlock and then gives everything back; what a pause is for is named.
//! Does not: write histories by itself; the client's steps do.
//! Called by: the client.

use crate::{
    area::{RESOURCES, WITH_VALUE, name},
    client::{Held, Step, Worker, any_resource},
    history::{Event, Why},
    locks::Denied,
};
use deadbolt_dlm::{Flags, Mode, blocking::Wishes};
use deadbolt_simulator::random::Random;
use std::{rc::Rc, time::Duration};

/// One task of a client.
struct Task {
    worker: Rc<Worker>,
    random: Random,
    owner: u64,
}

/// Works until the client is told to end; the last thing is a lock in EX for which it waits as long as it takes.
pub(crate) async fn work(worker: Rc<Worker>, random: Random, number: u64) -> Step<()> {
    let owner = worker.owner(number);
    let mut task = Task { worker, random, owner };
    while !task.worker.is_told_to_end() {
        task.round().await?;
        let pause = task.random.range(5, 60);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    task.increment(Mode::Ex, None, Flags::NONE).await
}

impl Task {
    /// Time for which something is kept or half done, so that others come in between.
    fn pause(&mut self) -> Duration {
        Duration::from_micros(self.random.range(0, 3000))
    }

    fn wishes(&self, resource: u8, flags: Flags) -> Wishes {
        let base = if resource < WITH_VALUE { Wishes::with_value() } else { Wishes::default() };
        Wishes { flags: base.flags.with(flags), owner: self.owner, ..base }
    }

    async fn round(&mut self) -> Step<()> {
        match self.random.below(100) {
            0..=31 => self.increment(Mode::Ex, None, Flags::NONE).await,
            32..=50 => self.look().await,
            51..=60 => self.convert_up().await,
            61..=65 => self.step_back().await,
            66..=72 => self.increment(Mode::Ex, None, Flags::NOQUEUE).await,
            73..=79 => {
                let time = Duration::from_millis(self.random.range(1, 100));
                self.increment(Mode::Ex, Some(time), Flags::NONE).await
            }
            80..=86 => self.give_up().await,
            87..=88 => self.pair().await,
            89..=92 => self.many().await,
            93..=94 => self.increment(Mode::Pw, None, Flags::NONE).await,
            95..=97 => self.stand_beside().await,
            _ => self.ask_who().await,
        }
    }

    /// Read, modify, write.
    async fn increment(&mut self, mode: Mode, timeout: Option<Duration>, flags: Flags) -> Step<()> {
        let (resource, pause) = (any_resource(&mut self.random), self.pause());
        if self.uses_cache(resource) {
            return self.use_cache(resource, true).await;
        }
        let wishes = Wishes { timeout, ..self.wishes(resource, flags) };
        let Some(mut held) = self.worker.lock(resource, mode, &wishes).await? else { return Ok(()) };
        self.worker.count(&mut held, pause).await?;
        self.worker.free(held, &mut self.random).await
    }

    fn uses_cache(&self, resource: u8) -> bool {
        resource >= WITH_VALUE && self.worker.cache.is_some()
    }

    async fn use_cache(&mut self, resource: u8, is_writing: bool) -> Step<()> {
        let pause = self.pause();
        let worker = self.worker.clone();
        match &worker.cache {
            Some(cache) => worker.use_cache(cache, resource, is_writing, pause).await,
            None => Ok(()),
        }
    }

    /// Reads twice: nobody may write in between.
    async fn look(&mut self) -> Step<()> {
        let (resource, pause) = (any_resource(&mut self.random), self.pause());
        if self.uses_cache(resource) {
            return self.use_cache(resource, false).await;
        }
        let wishes = self.wishes(resource, Flags::NONE);
        let Some(held) = self.worker.lock(resource, Mode::Pr, &wishes).await? else { return Ok(()) };
        self.look_under(&held, pause).await?;
        self.worker.free(held, &mut self.random).await
    }

    async fn look_under(&mut self, held: &Held, pause: Duration) -> Step<()> {
        self.worker.read(held.op, held.resource)?;
        tokio::time::sleep(pause).await;
        self.worker.read(held.op, held.resource)?;
        Ok(())
    }

    /// From PR to EX, where two may meet; then down again, with the value block.
    async fn convert_up(&mut self) -> Step<()> {
        let (resource, pause) = (any_resource(&mut self.random), self.pause());
        let wishes = self.wishes(resource, Flags::NONE);
        let Some(mut held) = self.worker.lock(resource, Mode::Pr, &wishes).await? else { return Ok(()) };
        self.look_under(&held, pause).await?;
        let is_bounded = self.random.chance(200);
        let wishes = Wishes {
            flags: if self.random.chance(300) { Flags::NOQUEUE } else { Flags::NONE },
            timeout: is_bounded.then_some(Duration::from_millis(20)),
            owner: self.owner,
            ..Wishes::default()
        };
        if self.worker.convert(&mut held, Mode::Ex, wishes).await? {
            self.worker.count(&mut held, pause).await?;
            if self.random.chance(700) {
                self.convert_down(&mut held, Mode::Pr).await?;
                self.look_under(&held, pause).await?;
            }
        }
        self.worker.free(held, &mut self.random).await
    }

    async fn convert_down(&mut self, held: &mut Held, mode: Mode) -> Step<()> {
        if self.worker.convert(held, mode, Wishes { owner: self.owner, ..Wishes::default() }).await? {
            return Ok(());
        }
        self.worker.end(&Denied::Odd("a conversion to a weaker mode was not granted".into()))
    }

    /// From EX to NL and back: others may have been there.
    async fn step_back(&mut self) -> Step<()> {
        let (resource, pause) = (any_resource(&mut self.random), self.pause());
        let wishes = self.wishes(resource, Flags::NONE);
        let Some(mut held) = self.worker.lock(resource, Mode::Ex, &wishes).await? else { return Ok(()) };
        self.worker.count(&mut held, pause).await?;
        self.convert_down(&mut held, Mode::Nl).await?;
        tokio::time::sleep(pause).await;
        let wishes = Wishes { owner: self.owner, ..Wishes::default() };
        if self.worker.convert(&mut held, Mode::Ex, wishes).await? {
            self.worker.count(&mut held, pause).await?;
        }
        self.worker.free(held, &mut self.random).await
    }

    async fn give_up(&mut self) -> Step<()> {
        let resource = any_resource(&mut self.random);
        let after = Duration::from_micros(self.random.range(0, 20_000));
        let mode = if self.random.chance(500) { Mode::Ex } else { Mode::Pr };
        self.worker.give_up(resource, mode, &self.wishes(resource, Flags::NONE), after).await
    }

    /// Two locks in any order: some of those who meet are told of a deadlock.
    async fn pair(&mut self) -> Step<()> {
        let (first, pause) = (any_resource(&mut self.random), self.pause());
        let second = (first + 1 + u8::try_from(self.random.below(u64::from(RESOURCES - 1))).unwrap_or(0)) % RESOURCES;
        let Some(mut held) = self.worker.lock(first, Mode::Ex, &self.wishes(first, Flags::NONE)).await? else { return Ok(()) };
        self.worker.count(&mut held, pause).await?;
        if let Some(mut other) = self.worker.lock(second, Mode::Ex, &self.wishes(second, Flags::NONE)).await? {
            self.worker.count(&mut other, pause).await?;
            self.worker.free(other, &mut self.random).await?;
        }
        self.worker.free(held, &mut self.random).await
    }

    /// Two or three at once, all or none.
    async fn many(&mut self) -> Step<()> {
        let count = u8::try_from(self.random.range(2, 3)).unwrap_or(2);
        let (first, pause) = (any_resource(&mut self.random), self.pause());
        let resources: Vec<u8> = (0..count).map(|index| (first + 2 * index) % RESOURCES).collect();
        let worker = self.worker.clone();
        let mut ops = Vec::new();
        for resource in &resources {
            let op = worker.new_op();
            worker.say(&Event::Ask { op, resource: *resource, mode: Mode::Ex.number() })?;
            ops.push(op);
        }
        let names: Vec<Vec<u8>> = resources.iter().map(|resource| name(*resource)).collect();
        let wishes = Wishes { owner: self.owner, ..Wishes::default() };
        let granted = match worker.space.lock_many(&names, &wishes).await {
            Ok(granted) => granted,
            Err(Denied::Not(why)) => return self.none(&ops, why),
            Err(denied) => return worker.end(&denied),
        };
        let mut all = Vec::new();
        for ((op, resource), (guard, said)) in ops.into_iter().zip(resources).zip(granted) {
            all.push(worker.got(op, resource, guard, said)?);
        }
        for held in &mut all {
            worker.count(held, pause).await?;
        }
        for held in all {
            worker.free(held, &mut self.random).await?;
        }
        Ok(())
    }

    fn none(&self, ops: &[u32], why: Why) -> Step<()> {
        for op in ops {
            self.worker.say(&Event::Not { op: *op, why })?;
        }
        Ok(())
    }

    /// The modes that stand beside some others; nothing is read or written.
    async fn stand_beside(&mut self) -> Step<()> {
        let (resource, pause) = (any_resource(&mut self.random), self.pause());
        let modes = [Mode::Cr, Mode::Cw, Mode::Pr, Mode::Nl];
        let mode = modes[self.random.index(modes.len())];
        let Some(mut held) = self.worker.lock(resource, mode, &self.wishes(resource, Flags::NONE)).await? else { return Ok(()) };
        tokio::time::sleep(pause).await;
        let next = modes[self.random.index(modes.len())];
        // Also between PR and CW, where neither covers the other.
        let wishes = Wishes { owner: self.owner, timeout: Some(Duration::from_millis(50)), ..Wishes::default() };
        self.worker.convert(&mut held, next, wishes).await?;
        tokio::time::sleep(pause).await;
        self.worker.free(held, &mut self.random).await
    }

    async fn ask_who(&mut self) -> Step<()> {
        let resource = any_resource(&mut self.random);
        match self.worker.space.query(&name(resource)).await {
            Ok(()) | Err(Denied::Not(_)) => Ok(()),
            Err(denied) => self.worker.end(&denied),
        }
    }
}
