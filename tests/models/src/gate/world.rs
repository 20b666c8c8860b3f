//! What: what the gate models share: decided views, lives of nodes, the owed, evidence as a fact of the machine, messages under way.
//! Owns: the newest decided view, which view each node knows, who may take a message, what the adversary may still do.
//! Invariants: a removed life stays owed until a later view releases it, which only evidence allows; a node learns the newest view at any
//!   later time and may skip those between; views are decided by a member that knows the newest one.
//! Does not: model the register, pills, or the time that evidence takes (the removal, register and lifeline models do); a life that a
//!   view removed never learns of it and acts on in its old view until it is gone.
//! Called by: the models of `super`.

/// Most nodes of a model.
pub(super) const NODES_MAX: usize = 4;

/// One value per slot.
pub(super) type Slots<T> = [T; NODES_MAX];

/// A message under way. One without a receiver finds the master of its view, whoever that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message<B> {
    pub(super) view: u8,
    pub(super) from: usize,
    pub(super) to: Option<usize>,
    pub(super) body: B,
}

/// Messages stand in order, each at most once: what was sent twice is one state.
pub(super) fn post<M: Ord>(messages: &mut Vec<M>, message: M) {
    if let Err(index) = messages.binary_search(&message) {
        messages.insert(index, message);
    }
}

/// What a lock allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Mode {
    #[default]
    None,
    Shared,
    Exclusive,
}

impl Mode {
    pub(super) fn is_compatible(self, other: Self) -> bool {
        self == Self::None || other == Self::None || (self == Self::Shared && other == Self::Shared)
    }
}

/// A removed life that is not proved gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Owed {
    life: u8,
    pub(super) removed_in: u8,
}

/// A decided view, by slot. Lives count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct View {
    pub(super) number: u8,
    members: Slots<u8>,
    pub(super) owed: Slots<Option<Owed>>,
}

impl View {
    pub(super) fn is_member(&self, slot: usize) -> bool {
        self.members[slot] != 0
    }

    pub(super) fn members(&self) -> impl Iterator<Item = usize> + '_ {
        (0..NODES_MAX).filter(|slot| self.is_member(*slot))
    }

    pub(super) fn has_owed(&self) -> bool {
        self.owed.iter().any(Option::is_some)
    }

    /// The life of a slot that this view names, as member or owed; 0: none.
    pub(super) fn life(&self, slot: usize) -> u8 {
        self.owed[slot].map_or(self.members[slot], |owed| owed.life)
    }

    /// The same life is a member here as in `before`.
    pub(super) fn is_still_member(&self, before: &Self, slot: usize) -> bool {
        self.is_member(slot) && self.members[slot] == before.members[slot]
    }

    /// The first slot in the order of the resource among the members, or among members and owed.
    pub(super) fn home(&self, is_over_owed: bool) -> Option<usize> {
        (0..NODES_MAX).find(|slot| self.is_member(*slot) || (is_over_owed && self.owed[*slot].is_some()))
    }
}

/// One node's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Machine {
    pub(super) is_up: bool,
    life: u8,
    /// The view that let this life in; 0: none yet.
    named_in: u8,
    /// The newest view that it has learned.
    pub(super) known: View,
}

/// How far a search goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) nodes: usize,
    /// Slots that are outside at first, the lowest ones: each would be home.
    pub(crate) outsiders: usize,
    pub(crate) removals: u8,
    pub(crate) joins: u8,
    /// Views that change nothing but the configuration.
    pub(crate) renewals: u8,
    /// Ends of members that no view has removed before.
    pub(crate) crashes: u8,
    /// Lives of one node.
    pub(crate) lives: u8,
    /// All this may end at any time (for what must happen at last).
    pub(crate) may_settle: bool,
}

/// What happens to views and machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A view is decided without this member: it is owed, unless it is gone already.
    Remove(usize),
    /// A view is decided that names the evidence of this owed life.
    Release(usize),
    /// A view is decided with this outsider.
    Admit(usize),
    /// A removed life whose judges are all gone decides a view of itself.
    Return(usize),
    /// A view is decided with the same nodes.
    Renew,
    /// The machine is reset and nothing that it sent to a disk is under way any more.
    End(usize),
    /// Its next life begins.
    Begin(usize),
    /// Nothing fails and nobody joins any more.
    Settle,
}

/// Views, machines, and what may still happen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct World {
    pub(super) latest: View,
    pub(super) machines: Slots<Machine>,
    /// A removed life has decided a view of itself.
    pub(super) has_returned: bool,
    removals: u8,
    joins: u8,
    renewals: u8,
    crashes: u8,
}

impl World {
    /// All but the outsiders are members of view 1 and know it.
    pub(super) fn new(bounds: &Bounds) -> Self {
        let mut latest = View { number: 1, ..View::default() };
        latest.members[bounds.outsiders..bounds.nodes].fill(1);
        let mut machines = [Machine::default(); NODES_MAX];
        for (slot, machine) in machines.iter_mut().enumerate().take(bounds.nodes) {
            *machine = Machine { is_up: true, life: 1, ..Machine::default() };
            if latest.is_member(slot) {
                (machine.named_in, machine.known) = (1, latest);
            }
        }
        let Bounds { removals, joins, renewals, crashes, .. } = *bounds;
        Self { latest, machines, has_returned: false, removals, joins, renewals, crashes }
    }

    /// The view that the node knows.
    pub(super) fn known(&self, slot: usize) -> &View {
        &self.machines[slot].known
    }

    /// In the view that it knows, and alive: it acts in it, removed or not.
    pub(super) fn is_acting(&self, slot: usize) -> bool {
        let machine = &self.machines[slot];
        machine.is_up && machine.known.number != 0
    }

    /// Acts in the view with this number.
    pub(super) fn is_in(&self, slot: usize, number: u8) -> bool {
        self.is_acting(slot) && self.known(slot).number == number
    }

    /// Acts in the newest view, as its member.
    pub(super) fn is_current(&self, slot: usize) -> bool {
        self.is_in(slot, self.latest.number)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.removals + self.joins + self.renewals + self.crashes == 0
    }

    fn is_gone(&self, slot: usize, life: u8) -> bool {
        let machine = &self.machines[slot];
        !(machine.is_up && machine.life == life)
    }

    /// Evidence that the life of this slot that `view` owes is gone; true as well when it owes none.
    pub(super) fn is_owed_gone(&self, view: &View, slot: usize) -> bool {
        view.owed[slot].is_none_or(|owed| self.is_gone(slot, owed.life))
    }

    /// The truth: a life that `view` or an earlier one removed may still act.
    pub(super) fn may_removed_act(&self, view: &View) -> bool {
        self.machines
            .iter()
            .zip(view.members)
            .any(|(machine, member)| machine.is_up && (1..=view.number).contains(&machine.named_in) && machine.life != member)
    }

    pub(super) fn may_learn(&self, slot: usize) -> bool {
        let machine = &self.machines[slot];
        machine.is_up && machine.known.number < self.latest.number && self.latest.members[slot] == machine.life
    }

    /// Can the node still come to be in the view with this number?
    pub(super) fn may_reach(&self, slot: usize, number: u8) -> bool {
        self.is_in(slot, number) || (self.latest.number == number && self.may_learn(slot))
    }

    /// May the node take this message, being in its view, or where late ones are taken in a later one?
    pub(super) fn may_take<B>(&self, by: usize, message: &Message<B>, is_taken_late: impl Fn(&B) -> bool) -> bool {
        let view = self.known(by).number;
        let is_in_view = view == message.view || (view > message.view && is_taken_late(&message.body));
        self.is_acting(by) && is_in_view && message.to.is_none_or(|to| to == by)
    }

    /// Forgets messages that nobody can take any more.
    pub(super) fn forget<B>(&self, messages: &mut Vec<Message<B>>, is_taken_late: impl Fn(&B) -> bool) {
        messages.retain(|message| {
            let may_reach = |by: usize| self.may_reach(by, message.view) || self.may_take(by, message, &is_taken_late);
            match message.to {
                Some(to) => may_reach(to),
                None => (0..NODES_MAX).any(may_reach),
            }
        });
    }

    /// Learns the newest view; returns the one known before.
    pub(super) fn learn(&mut self, slot: usize) -> View {
        std::mem::replace(&mut self.machines[slot].known, self.latest)
    }

    fn is_removed(&self, slot: usize) -> bool {
        let machine = &self.machines[slot];
        machine.named_in != 0 && self.latest.members[slot] != machine.life
    }

    fn has_proposer(&self, but: usize) -> bool {
        (0..NODES_MAX).any(|slot| slot != but && self.is_current(slot))
    }

    /// Can the present life of this slot be let in? Not while an earlier one is in or owed, and no life twice.
    fn may_admit(&self, slot: usize) -> bool {
        let machine = &self.machines[slot];
        machine.is_up && machine.named_in == 0 && self.latest.life(slot) == 0
    }

    /// An earlier life of this node has been in a view.
    pub(super) fn is_second_life(&self, slot: usize) -> bool {
        self.machines[slot].life > 1
    }

    /// A removed life that acts on while no member of the newest view is alive.
    fn may_return(&self, slot: usize) -> bool {
        let is_alive = |other: usize| self.latest.is_member(other) && !self.is_gone(other, self.latest.members[other]);
        self.is_acting(slot) && self.is_removed(slot) && !(0..NODES_MAX).any(is_alive)
    }

    pub(super) fn changes(&self, bounds: &Bounds) -> Vec<Change> {
        let mut changes = Vec::new();
        for slot in 0..bounds.nodes {
            let machine = &self.machines[slot];
            let mut when = |is_possible: bool, change: Change| {
                if is_possible {
                    changes.push(change);
                }
            };
            let is_removable = self.latest.is_member(slot) && self.has_proposer(slot);
            when(is_removable && (self.removals > 0 || !machine.is_up), Change::Remove(slot));
            when(
                self.latest.owed[slot].is_some() && self.is_owed_gone(&self.latest, slot) && self.has_proposer(slot),
                Change::Release(slot),
            );
            when(self.joins > 0 && self.may_admit(slot) && self.has_proposer(slot), Change::Admit(slot));
            when(self.joins > 0 && self.may_return(slot), Change::Return(slot));
            let is_crash = !self.is_removed(slot);
            when(machine.is_up && machine.named_in != 0 && (!is_crash || self.crashes > 0), Change::End(slot));
            when(self.joins > 0 && !machine.is_up && machine.life < bounds.lives, Change::Begin(slot));
        }
        if self.renewals > 0 && (0..NODES_MAX).any(|slot| self.is_current(slot)) {
            changes.push(Change::Renew);
        }
        if bounds.may_settle && !self.is_settled() {
            changes.push(Change::Settle);
        }
        changes
    }

    /// `nodes`: what the model's nodes know; a machine that ends forgets it.
    pub(super) fn change<N: Default>(&mut self, change: Change, nodes: &mut Slots<N>) {
        match change {
            Change::Remove(slot) => {
                self.latest.number += 1;
                let life = std::mem::take(&mut self.latest.members[slot]);
                if !self.is_gone(slot, life) {
                    self.removals -= 1;
                    self.latest.owed[slot] = Some(Owed { life, removed_in: self.latest.number });
                }
            }
            Change::Release(slot) => {
                self.latest.number += 1;
                self.latest.owed[slot] = None;
            }
            Change::Admit(slot) => {
                self.joins -= 1;
                self.latest.number += 1;
                self.latest.members[slot] = self.machines[slot].life;
                self.machines[slot].named_in = self.latest.number;
            }
            Change::Renew => {
                self.renewals -= 1;
                self.latest.number += 1;
            }
            Change::Return(slot) => {
                self.has_returned = true;
                self.joins -= 1;
                self.latest.number += 1;
                self.latest.owed[slot] = None;
                self.latest.members = [0; NODES_MAX];
                self.latest.members[slot] = self.machines[slot].life;
            }
            Change::End(slot) => {
                self.crashes -= u8::from(!self.is_removed(slot));
                self.machines[slot] = Machine { life: self.machines[slot].life, ..Machine::default() };
                nodes[slot] = N::default();
            }
            Change::Begin(slot) => {
                self.machines[slot] = Machine { is_up: true, life: self.machines[slot].life + 1, ..Machine::default() };
            }
            Change::Settle => (self.removals, self.joins, self.renewals, self.crashes) = (0, 0, 0, 0),
        }
    }
}
