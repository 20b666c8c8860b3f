//! What: the phases of the demo, one function each.
//! Owns: what is done to the cluster, when a phase is over, the budget that stands beside its time.
//! Invariants: a failover is over when a survivor has incremented the counter, which the lost node had locked: nothing else counts.
//! Does not: take silence for an end.
//! Called by: the demo.

use super::{Demo, nodes::Node, report::Phase, worker::STOP_FILE};
use anyhow::{Context, Result, bail};
use deadbolt_cluster_core::timing::{Budget, budget_crash, budget_partition};
use deadbolt_trial::{
    children::{own_program, run_to_end},
    node::Shape,
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Time for a node's processes to start, and their first cycle. Chosen: a loaded machine with two cores needs less.
const START_MS: u64 = 2000;
/// Time to count undisturbed.
const WORK_MS: u64 = 5000;
/// How often each node must have had the lock then.
const TURNS: u64 = 20;

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A phase that takes longer than this has failed. Being later than the budget on a loaded machine is said, not punished.
fn limit(budget_ms: u64) -> Duration {
    Duration::from_millis(3 * budget_ms + 20_000)
}

impl Demo {
    /// All phases in order.
    pub(super) fn phases(&mut self) -> Result<()> {
        let last = self.nodes.len() - 1;
        let budgets = [budget_partition(&self.timings), budget_crash(&self.timings)];
        self.form()?;
        self.work()?;
        self.partition(last, &budgets[0])?;
        self.heal(last)?;
        self.kill_one(1, &budgets[1])?;
        self.restart(1)?;
        self.stop_all()
    }

    /// Two polls to settle and a decision, as the budget counts it; a node that comes needs one to be let in.
    fn let_in_ms(&self) -> u64 {
        u64::from(self.timings.detect_ms) + 2 * (2 * u64::from(self.timings.poll_ms) + 100) + u64::from(self.timings.storage_delay_ms)
    }

    fn name(&self, index: usize) -> String {
        self.nodes.get(index).map_or_else(String::new, |node| node.name().to_owned())
    }

    fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).context("no such node")
    }

    fn end_phase(&mut self, name: &'static str, time: Duration, budget_ms: u64, detail: String) {
        self.report.end(Phase { name, time_ms: ms(time), budget_ms, detail });
    }

    fn counts(&self) -> String {
        let each: Vec<String> = self.nodes.iter().map(|node| format!("{} {}", node.name(), node.done())).collect();
        format!("counter {} ({})", self.counter().unwrap_or(0), each.join(", "))
    }

    fn form(&mut self) -> Result<()> {
        let count = self.nodes.len();
        let shape = Shape { nodes: count, stall_ms: self.timings.stall_ms, has_pid_namespaces: self.place.has_pid_namespaces };
        let budget_ms = u64::try_from(count).unwrap_or(1) * (START_MS + self.let_in_ms());
        self.report.begin("form", "a formats the device and begins the cluster; the others join it with the key");
        let begin = Instant::now();
        for index in 0..count {
            let key = self.nodes.first().context("no node")?.directory().key_file();
            let Self { nodes, place, network, .. } = self;
            let node = nodes.get_mut(index).context("no such node")?;
            if index == 0 {
                node.init("demo", place, network, shape)?;
            } else {
                node.join(place, network, shape, &key)?;
            }
            let name = node.name().to_owned();
            self.wait(&format!("{name} becomes a member"), limit(budget_ms), |demo| demo.node(index)?.is_member())?;
        }
        let votes = self.nodes.first().and_then(|node| node.status()).map_or_else(String::new, |status| {
            let number = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
            format!(", {} votes with the disk's, quorum {}", number("expected_votes"), number("quorum"))
        });
        self.end_phase("form", begin.elapsed(), budget_ms, format!("{count} members{votes}"));
        Ok(())
    }

    fn work(&mut self) -> Result<()> {
        self.report.begin("work", "a worker on each node increments one counter file under an EX lock; nothing else protects it");
        self.nodes.iter_mut().for_each(Node::want_worker);
        let least = Instant::now() + Duration::from_millis(WORK_MS);
        let budget_ms = WORK_MS + START_MS;
        let time = self.wait("every node gets the lock", limit(budget_ms), |demo| {
            Ok(Instant::now() >= least && demo.nodes.iter().all(|node| node.done() >= TURNS))
        })?;
        let detail = self.counts();
        self.end_phase("work", time, budget_ms, detail);
        Ok(())
    }

    /// Waits until the node's worker says that it keeps the lock.
    fn take_lock(&mut self, index: usize) -> Result<()> {
        let before = self.node(index)?.tally().last_hold;
        self.node(index)?.hold()?;
        self.wait("the worker takes the lock", limit(START_MS), |demo| Ok(demo.node(index)?.tally().last_hold != before))?;
        Ok(())
    }

    /// Waits until somebody else has incremented the counter, whose lock the node had.
    fn survivors_go_on(&mut self, lost: usize, budget_ms: u64) -> Result<()> {
        let before: Vec<u64> = self.nodes.iter().map(Node::done).collect();
        self.wait("the survivors get the lock", limit(budget_ms), |demo| {
            Ok(demo.nodes.iter().zip(&before).any(|(node, before)| node.index() != lost && node.done() > *before))
        })?;
        Ok(())
    }

    fn partition(&mut self, loser: usize, budget: &Budget) -> Result<()> {
        let name = self.name(loser);
        self.report.begin("partition", &format!("{name} takes the lock and keeps it; its worker ignores signals and keeps the file open"));
        self.take_lock(loser)?;
        let boot = self.node(loser)?.boot();
        let whole = self.view;
        let begin = Instant::now();
        self.network.cut(loser)?;
        self.report.say(&format!("          the network is cut between {name} and the others; {name} holds the lock and goes on counting"));
        self.survivors_go_on(loser, budget.total_ms())?;
        let time = begin.elapsed();
        self.report.say(&format!("          the survivors have the lock: {}", self.counts()));
        self.node(loser)?.release();
        let evidence = self.evidence(loser, begin, whole)?;
        self.wait(&format!("{name} lives again, apart"), limit(START_MS), |demo| {
            let now = demo.node(loser)?.boot();
            Ok(now.is_some() && now != boot)
        })?;
        self.end_phase(
            "partition",
            time,
            budget.total_ms(),
            format!("{name} lost the vote and was fenced, {evidence}; its lock was recovered"),
        );
        Ok(())
    }

    fn heal(&mut self, index: usize) -> Result<()> {
        let name = self.name(index);
        let budget_ms = START_MS + self.let_in_ms();
        self.report.begin("heal", &format!("the network is whole again; {name} comes back as a new boot"));
        self.network.heal()?;
        let time = self.comes_back(index, budget_ms)?;
        let detail = format!("{name} is a member again and counts; {}", self.counts());
        self.end_phase("heal", time, budget_ms, detail);
        Ok(())
    }

    /// Until the node is a member and its worker has had the lock.
    fn comes_back(&mut self, index: usize, budget_ms: u64) -> Result<Duration> {
        let before = self.node(index)?.done();
        let name = self.name(index);
        let mut is_in = false;
        self.wait(&format!("{name} becomes a member again"), limit(budget_ms), |demo| {
            is_in = is_in || demo.node(index)?.is_member()?;
            Ok(is_in && demo.node(index)?.done() > before)
        })
    }

    fn kill_one(&mut self, victim: usize, budget: &Budget) -> Result<()> {
        let name = self.name(victim);
        self.report.begin("kill", &format!("{name} takes the lock and keeps it"));
        self.take_lock(victim)?;
        let whole = self.view;
        let begin = Instant::now();
        let processes = self.node(victim)?.kill_all()?;
        self.report.say(&format!("          all {processes} processes of {name} are killed at once"));
        self.survivors_go_on(victim, budget.total_ms())?;
        let time = begin.elapsed();
        self.report.say(&format!("          the survivors have the lock: {}", self.counts()));
        self.node(victim)?.release();
        let evidence = self.evidence(victim, begin, whole)?;
        self.end_phase("kill", time, budget.total_ms(), format!("{name} was found dead, {evidence}; its lock was recovered"));
        Ok(())
    }

    fn restart(&mut self, index: usize) -> Result<()> {
        let name = self.name(index);
        let budget_ms = START_MS + self.let_in_ms();
        self.report.begin("restart", &format!("{name} is started again"));
        let Self { nodes, network, .. } = self;
        let node = nodes.get_mut(index).context("no such node")?;
        node.start(network)?;
        node.want_worker();
        let time = self.comes_back(index, budget_ms)?;
        let detail = format!("{name} is a member again and counts; {}", self.counts());
        self.end_phase("restart", time, budget_ms, detail);
        Ok(())
    }

    fn stop_all(&mut self) -> Result<()> {
        self.report.begin("stop", "the workers end, every node leaves, the device is checked");
        let begin = Instant::now();
        std::fs::write(self.place.path().join(STOP_FILE), b"")?;
        for node in &mut self.nodes {
            node.end_worker(Duration::from_secs(10))?;
        }
        let counts = self.counts();
        let Self { nodes, network, .. } = self;
        for node in nodes.iter_mut().rev() {
            node.stop(network)?;
        }
        let mut check = own_program();
        check.arg("fsck").arg(&self.place.device);
        let (code, said) = run_to_end(check, None)?;
        if code != Some(0) {
            bail!("fsck of the device ended with {code:?}: {}", said.trim_end());
        }
        let per_node = u64::from(self.timings.poll_ms) * 2 + 100;
        let budget_ms = START_MS + u64::try_from(self.nodes.len()).unwrap_or(1) * (START_MS / 2 + per_node);
        self.end_phase("stop", begin.elapsed(), budget_ms, format!("all left, the device is clean; {counts}"));
        Ok(())
    }

    /// What the decided views say about the node's end, read from the device by `deadbolt why`.
    fn evidence(&mut self, index: usize, since: Instant, last_whole_view: u64) -> Result<String> {
        let name = self.name(index);
        let mut found = None;
        self.wait(&format!("a decided view says how {name} ended"), limit(START_MS), |demo| {
            let mut why = own_program();
            why.args(["why", "--json", "--device"]).arg(&demo.place.device);
            let (_, said) = run_to_end(why, None)?;
            found = serde_json::from_str::<Value>(said.trim()).ok().and_then(|object| released(&object, &name, last_whole_view));
            Ok(found.is_some())
        })?;
        let said = found.context("no evidence")?;
        self.tell_news();
        self.report.say(&format!("          {said} ({} ms after the fault)", ms(since.elapsed())));
        Ok(said)
    }
}

fn released(why: &Value, name: &str, last_whole_view: u64) -> Option<String> {
    let views = why.get("views")?.as_array()?;
    let number = |view: &Value| view.get("view").and_then(Value::as_u64).unwrap_or(0);
    let recent = views.iter().filter(|view| number(view) > last_whole_view);
    let mut entries = recent.filter_map(|view| {
        let list = view.get("released")?.as_array()?;
        let entry = list.iter().find(|entry| entry.get("node").and_then(Value::as_str) == Some(name))?;
        let word = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
        let waited_ms = entry.get("waited_ms").and_then(Value::as_u64).unwrap_or(0);
        Some(format!("evidence \"{}\" in view {}, seen by {} after {waited_ms} ms", word("evidence"), number(view), word("witness")))
    });
    entries.next_back()
}
