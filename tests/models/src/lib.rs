//! What: explicit-state models of the safety rules, and the small runner that all of them share.
//! Owns: the notion of a case: a model, and whether its rules hold or a planted mistake must be found.
//! Invariants: a search that hit its bound is never a pass; every `sometimes` property must be reached, so no rule holds
//!   because nothing happened.
//! Does not: know what any model says; does not touch a clock except to print how long a search took.
//! Called by: tests/*.rs (quick horizons) and the `models` program (`cargo xtask models`, full horizons).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

pub mod devices;
pub mod extension;
pub mod gate;
pub mod lifeline;
pub mod register;
pub mod removal;
pub mod slots;
pub mod start;

/// States a quick search may visit; a model above it belongs into the full horizons.
pub const QUICK_STATES_MAX: usize = 2_000_000;
/// States a full search may visit; beyond it the memory of a common machine does not suffice.
pub const FULL_STATES_MAX: usize = 60_000_000;
/// A model generates a state several times before it is known; chosen, no strong reason.
const GENERATED_PER_STATE: usize = 12;

/// How far a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// For `cargo test`.
    Quick,
    /// For `cargo xtask models`.
    Full,
}

impl Scale {
    /// The value for this scale.
    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }

    fn states_max(self) -> usize {
        self.pick(QUICK_STATES_MAX, FULL_STATES_MAX)
    }
}

/// What a search must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Every `always` holds in every state, every `sometimes` is reached, nothing is left unvisited.
    Holds,
    /// The named `always` property is violated: a planted mistake.
    Found(&'static str),
}

/// What a search showed.
#[derive(Debug)]
pub struct Outcome {
    /// Distinct states visited.
    pub states: usize,
    /// Steps of the longest path visited.
    pub depth: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether every reachable state within the horizon was visited.
    pub is_complete: bool,
    /// Violated properties with their traces.
    pub violated: BTreeMap<&'static str, Vec<String>>,
    /// `sometimes` properties that no state reached.
    pub unreached: Vec<&'static str>,
    /// States from which the goal cannot be reached any more; counted by [`search_dead_ends`] only.
    pub dead_ends: Option<usize>,
}

/// Searches `model` breadth first, by one thread, so that the first counterexample is a shortest one.
pub fn search<M>(model: M, scale: Scale) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
    M::Action: Clone + fmt::Debug + PartialEq,
{
    let started = Instant::now();
    let generated_max = scale.states_max().saturating_mul(GENERATED_PER_STATE);
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(generated_max).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let mut violated = BTreeMap::new();
    let mut unreached = Vec::new();
    for property in checker.model().properties() {
        match (&property.expectation, discoveries.get(property.name)) {
            (Expectation::Sometimes, None) => unreached.push(property.name),
            (Expectation::Always | Expectation::Eventually, Some(path)) => {
                let steps = path.clone().into_actions();
                let steps = steps.iter().map(|action| format!("{action:?}")).collect();
                violated.insert(property.name, steps);
            }
            (Expectation::Sometimes, Some(_)) | (Expectation::Always | Expectation::Eventually, None) => {}
        }
    }
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        elapsed: started.elapsed(),
        is_complete: violated.is_empty() && checker.state_count() < generated_max,
        violated,
        unreached,
        dead_ends: None,
    }
}

/// Visits every state of `model` and counts those from which no state with `is_goal` can be reached: whatever happens
/// next, they are stuck. `property` names the verdict; the model's own properties are not judged.
pub fn search_dead_ends<M>(model: &M, property: &'static str, scale: Scale, is_goal: impl Fn(&M::State) -> bool) -> Outcome
where
    M: Model,
    M::State: Clone + Eq + std::hash::Hash,
    M::Action: Clone + fmt::Debug,
{
    let started = Instant::now();
    let mut states: Vec<M::State> = Vec::new();
    let mut known: HashMap<M::State, usize> = HashMap::new();
    // How each state was first reached: predecessor, action, steps.
    let mut reached: Vec<(usize, String, usize)> = Vec::new();
    let mut predecessors: Vec<Vec<usize>> = Vec::new();
    for state in model.init_states() {
        known.insert(state.clone(), states.len());
        states.push(state);
        reached.push((usize::MAX, String::new(), 0));
        predecessors.push(Vec::new());
    }
    let mut next_index = 0;
    while next_index < states.len() && states.len() <= scale.states_max() {
        let state = states[next_index].clone();
        if !is_goal(&state) {
            for (action, next) in model.next_steps(&state) {
                let index = *known.entry(next.clone()).or_insert_with(|| {
                    states.push(next);
                    reached.push((next_index, format!("{action:?}"), reached[next_index].2 + 1));
                    predecessors.push(Vec::new());
                    states.len() - 1
                });
                predecessors[index].push(next_index);
            }
        }
        next_index += 1;
    }
    let is_complete = next_index == states.len();
    let mut is_live: Vec<bool> = states.iter().map(is_goal).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|index| is_live[*index]).collect();
    while let Some(index) = open.pop() {
        for before in &predecessors[index] {
            if !is_live[*before] {
                is_live[*before] = true;
                open.push(*before);
            }
        }
    }
    let dead_ends = is_live.iter().filter(|is_live| !**is_live).count();
    let mut violated = BTreeMap::new();
    if is_complete && let Some(first) = is_live.iter().position(|is_live| !is_live) {
        violated.insert(property, trace(&reached, first));
    }
    Outcome {
        states: states.len(),
        depth: reached.last().map_or(0, |last| last.2),
        elapsed: started.elapsed(),
        is_complete,
        violated,
        unreached: Vec::new(),
        dead_ends: Some(dead_ends),
    }
}

fn trace(reached: &[(usize, String, usize)], last: usize) -> Vec<String> {
    let mut steps = Vec::new();
    let mut index = last;
    while let Some((before, action, _)) = reached.get(index).filter(|entry| entry.2 > 0) {
        steps.push(action.clone());
        index = *before;
    }
    steps.reverse();
    steps
}

/// One search with its expected verdict.
pub struct Case {
    /// Model and variant, for people.
    pub name: &'static str,
    /// The verdict that must come out.
    pub expect: Expect,
    /// Runs the search; usually `|scale| search(Model { .. }, scale)`.
    pub run: Box<dyn Fn(Scale) -> Outcome + Send + Sync>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("expect", &self.expect).finish_non_exhaustive()
    }
}

impl Case {
    /// A case whose rules must hold.
    pub fn holds(name: &'static str, run: impl Fn(Scale) -> Outcome + Send + Sync + 'static) -> Self {
        Self { name, expect: Expect::Holds, run: Box::new(run) }
    }

    /// A case with a planted mistake that must violate `property`.
    pub fn found(name: &'static str, property: &'static str, run: impl Fn(Scale) -> Outcome + Send + Sync + 'static) -> Self {
        Self { name, expect: Expect::Found(property), run: Box::new(run) }
    }

    /// Runs the case: one line for people, or why the verdict is not the expected one.
    pub fn judge(&self, scale: Scale) -> Result<String, String> {
        let outcome = (self.run)(scale);
        let mut figures =
            format!("{}: {} states, depth {}, {:.1} s", self.name, outcome.states, outcome.depth, outcome.elapsed.as_secs_f64());
        if let Some(count) = outcome.dead_ends {
            figures.push_str(&format!(", {count} dead ends"));
        }
        if outcome.states > scale.states_max() {
            return Err(format!("{figures}: more states than the bound of {}", scale.states_max()));
        }
        match self.expect {
            Expect::Holds => judge_holds(&figures, &outcome),
            Expect::Found(property) => match outcome.violated.get(property) {
                Some(trace) => Ok(format!("{figures}: {property} violated in {} steps, as planted", trace.len())),
                None => Err(format!("{figures}: the planted mistake was not found ({property}); violated: {:?}", outcome.violated)),
            },
        }
    }
}

fn judge_holds(figures: &str, outcome: &Outcome) -> Result<String, String> {
    if let Some((property, trace)) = outcome.violated.iter().next() {
        return Err(format!("{figures}: {property} violated in {} steps:\n  {}", trace.len(), trace.join("\n  ")));
    }
    if !outcome.is_complete {
        return Err(format!("{figures}: the search hit its bound before the end"));
    }
    if !outcome.unreached.is_empty() {
        return Err(format!("{figures}: proves nothing, never reached: {:?}", outcome.unreached));
    }
    Ok(format!("{figures}: holds"))
}

/// Every case of every model, in the order of the report.
pub fn all_cases() -> Vec<Case> {
    // Each model's module adds its line here.
    [
        lifeline::cases(),
        extension::cases(),
        register::cases(),
        removal::cases(),
        devices::cases(),
        slots::cases(),
        start::cases(),
        gate::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs every case and panics with all wrong verdicts together.
///
/// # Panics
/// When a rule does not hold, a planted mistake is not found, or a search did not end.
#[expect(clippy::print_stdout, reason = "only tests call this")]
pub fn assert_cases(cases: &[Case]) {
    assert!(!cases.is_empty(), "no cases");
    let mut wrong = Vec::new();
    for case in cases {
        match case.judge(Scale::Quick) {
            Ok(line) => println!("{line}"),
            Err(why) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use stateright::Property;

    /// Counts from 0 to `end`, where it stays; 3 is forbidden.
    struct Counter {
        end: u8,
    }

    impl Model for Counter {
        type State = u8;
        type Action = u8;

        fn init_states(&self) -> Vec<u8> {
            vec![0]
        }

        fn actions(&self, state: &u8, actions: &mut Vec<u8>) {
            if *state < self.end {
                actions.push(1);
            }
        }

        fn next_state(&self, state: &u8, step: u8) -> Option<u8> {
            Some(state + step)
        }

        fn properties(&self) -> Vec<Property<Self>> {
            vec![Property::always("never 3", |_, state| *state != 3), Property::sometimes("2 is reached", |_, state| *state == 2)]
        }
    }

    fn verdict(expect: Expect, end: u8) -> Result<String, String> {
        Case { name: "counter", expect, run: Box::new(move |scale| search(Counter { end }, scale)) }.judge(Scale::Quick)
    }

    #[test]
    fn a_verdict_is_judged_both_ways() {
        assert!(verdict(Expect::Holds, 2).is_ok());
        assert!(verdict(Expect::Holds, 3).unwrap_err().contains("never 3 violated in 3 steps"));
        assert!(verdict(Expect::Holds, 1).unwrap_err().contains("never reached"));
        assert!(verdict(Expect::Found("never 3"), 3).is_ok());
        assert!(verdict(Expect::Found("never 3"), 2).unwrap_err().contains("was not found"));
    }

    #[test]
    fn a_search_that_was_cut_short_is_no_pass() {
        let cut = || {
            let mut outcome = search(Counter { end: 2 }, Scale::Quick);
            outcome.is_complete = false;
            outcome
        };
        let case = Case::holds("counter", move |_| cut());
        assert!(case.judge(Scale::Quick).unwrap_err().contains("hit its bound"));
    }

    #[test]
    fn dead_ends_are_counted() {
        let to_goal = search_dead_ends(&Counter { end: 2 }, "stuck", Scale::Quick, |state| *state == 2);
        assert_eq!((to_goal.dead_ends, to_goal.violated.len()), (Some(0), 0));
        let past_goal = search_dead_ends(&Counter { end: 2 }, "stuck", Scale::Quick, |state| *state == 5);
        assert_eq!(past_goal.dead_ends, Some(3));
    }
}
