//! What: the watched node: its own cycles and its three leases.
//! Owns: when it lives.
//! Invariants: it lives while a lease has a remainder, 0 included, for a clock reading may be one tick old; once all are over
//!   nothing brings it back.
//! Does not: know who extends its life; see `vouch` and `freeze`.
//! Called by: the model in `super`.
//!
//! A write completes as it lands and a read ends as it is sampled: an end that comes later renews the same lease later, so nothing
//! is lost. Landing and sampling themselves happen at any time.

use super::{Action, Drop, Extension, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cycle {
    Idle,
    Writing {
        age: u8,
    },
    Reading {
        age: u8,
    },
    /// It found an order: no cycle, no request, no grant any more; what runs runs out.
    Condemned,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// Remainder of the lease of its last own cycle.
    pub(super) own: Option<u8>,
    /// Of its last grant, where that is longer.
    pub(super) vouched: Option<u8>,
    /// Of a freeze, where that is longer than both.
    pub(super) frozen: Option<u8>,
    pub(super) cycle: Cycle,
    /// The beat on the disk differs from the one that the observer sampled last.
    pub(super) is_beat_new: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeStep {
    IssueBeat,
    LandBeat,
    ReadOrders,
}

impl Node {
    pub(super) fn new(lease: u8) -> Self {
        Self { own: Some(lease), vouched: None, frozen: None, cycle: Cycle::Idle, is_beat_new: true }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.own.is_some() || self.vouched.is_some() || self.frozen.is_some()
    }

    /// It lives and no order has reached it.
    pub(super) fn is_free(&self) -> bool {
        self.is_alive() && self.cycle != Cycle::Condemned
    }

    /// A remainder that ends no later than another one no longer matters.
    pub(super) fn settle(&mut self) {
        if self.vouched <= self.own {
            self.vouched = None;
        }
        if self.frozen <= self.own.max(self.vouched) {
            self.frozen = None;
        }
    }

    pub(super) fn tick(&mut self, lease: u8) {
        for left in [&mut self.own, &mut self.vouched, &mut self.frozen] {
            *left = left.and_then(|left| left.checked_sub(1));
        }
        let older = |age: u8| (age + 1).min(lease + 1);
        self.cycle = match self.cycle {
            Cycle::Writing { age } => Cycle::Writing { age: older(age) },
            Cycle::Reading { age } => Cycle::Reading { age: older(age) },
            Cycle::Idle | Cycle::Condemned => self.cycle,
        };
    }
}

impl Extension {
    pub(super) fn node_steps(&self, state: &State, actions: &mut Vec<Action>) {
        if self.is_prompt || !state.node.is_alive() {
            return;
        }
        match state.node.cycle {
            Cycle::Idle => actions.push(Action::Node(NodeStep::IssueBeat)),
            Cycle::Writing { .. } => actions.push(Action::Node(NodeStep::LandBeat)),
            Cycle::Reading { .. } => actions.push(Action::Node(NodeStep::ReadOrders)),
            Cycle::Condemned => {}
        }
    }

    pub(super) fn apply_node(&self, next: &mut State, step: NodeStep) {
        match (step, next.node.cycle) {
            (NodeStep::IssueBeat, _) => next.node.cycle = Cycle::Writing { age: 0 },
            (NodeStep::LandBeat, Cycle::Writing { age }) => {
                next.node.is_beat_new = true;
                next.node.cycle = Cycle::Reading { age };
                if !self.has_orders() {
                    self.end_cycle(next, age);
                }
                if self.drop != Drop::Never {
                    next.vouchers.iter_mut().take(self.vouchers).for_each(|voucher| voucher.has_node_beaten = true);
                }
            }
            (NodeStep::ReadOrders, Cycle::Reading { .. }) if next.order.is_some() => next.node.cycle = Cycle::Condemned,
            (NodeStep::ReadOrders, Cycle::Reading { age }) => self.end_cycle(next, age),
            _ => unreachable!("only offered steps are applied"),
        }
    }

    fn end_cycle(&self, next: &mut State, age: u8) {
        next.node.cycle = Cycle::Idle;
        let left = self.lease.checked_sub(age);
        if left.is_some() {
            next.node.own = next.node.own.max(left);
            next.freeze.is_stolen = false;
            next.node.settle();
        }
    }
}
