//! What: vouches: request, write in the voucher's beat, look for an order, grant.
//! Owns: the rules of a vouch and the mistakes planted in them.
//! Invariants: a message is lost, delayed or overtaken at will; a newer request replaces one that no voucher has taken yet.
//! Does not: give a voucher a lease: what it writes and reads is all that counts.
//! Called by: the model in `super`.

use super::{Action, BARE, Case, Extension, L2, Mistake, OrderKind, Reads, S5, SAID, State, grown, orders, planted, silence};

/// When a voucher may take a vouch out of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    /// A newer serial replaces it, and nothing else does while the node may live.
    Never,
    /// The node's own beat has advanced since the voucher looked last.
    BeatSinceLook,
    /// The node's own beat has advanced since the vouch was complete.
    BeatSinceVouch,
}

/// When a voucher reads mailbox and vote table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrdersRead {
    /// In a read issued when the vouch is complete.
    AfterVouch,
    /// In a read issued after the request came, at any time before the grant.
    AfterRequest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Work {
    #[default]
    Idle,
    /// The request was issued, is on its way, and is being written; `found` is what an early read found.
    Writing { age: u8, found: Option<bool> },
    /// It is complete; the read for orders is in the air.
    Reading { age: u8 },
}

/// A write of an earlier life that may still land.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Orphan {
    #[default]
    None,
    Vouch,
    /// A beat without it.
    Plain,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Voucher {
    work: Work,
    /// A grant on its way, with the age of its request.
    grant: Option<u8>,
    /// The serial on the disk differs from the one that the observer sampled last.
    pub(super) is_new: bool,
    orphan: Orphan,
    /// Only where a rule lets it drop the vouch.
    pub(super) has_node_beaten: bool,
    /// What it read before the request came, only where a mistake goes by it.
    has_found_before: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VouchStep {
    /// It replaces one whose vouch has not landed.
    Request,
    /// With its grant still in the air.
    GrantEarly,
    ReadEarly,
    LandVouch,
    ReadOrders,
    TakeGrant,
    Restart,
    LandOrphan,
    LoseOrphan,
    /// A beat without the vouch stands in its unit.
    DropVouch,
    /// It reads mailbox and vote table on its own account.
    LookBefore,
}

impl Voucher {
    pub(super) fn tick(&mut self, lease: u8) {
        match &mut self.work {
            Work::Writing { age, .. } | Work::Reading { age } => *age = (*age + 1).min(lease + 1),
            Work::Idle => {}
        }
        // A grant for a request older than L gives nothing.
        self.grant = self.grant.map(|age| age + 1).filter(|age| *age <= lease);
    }

    /// The node is dead.
    pub(super) fn at_rest(self) -> Self {
        Self { is_new: self.is_new, ..Self::default() }
    }

    /// Something of it is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.work != Work::Idle || self.grant.is_some()
    }
}

impl Extension {
    fn does_voucher_find(&self, state: &State) -> bool {
        let is_blind = match self.order {
            OrderKind::Pill => self.mistake == Mistake::MailboxNotRead,
            OrderKind::Removal => self.mistake == Mistake::VoteTableNotRead,
        };
        !is_blind && state.order.is_some()
    }

    pub(super) fn vouch_steps(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let voucher = state.vouchers[index];
        let mut offer = |step| actions.push(Action::Vouch(index, step));
        match voucher.work {
            Work::Idle => {}
            Work::Writing { found, .. } => {
                if voucher.orphan == Orphan::None || self.mistake == Mistake::OldWritesLand {
                    offer(VouchStep::LandVouch);
                }
                if self.mistake == Mistake::GrantBeforeComplete && voucher.grant.is_none() {
                    offer(VouchStep::GrantEarly);
                }
                if self.orders_read == OrdersRead::AfterRequest && found.is_none() {
                    offer(VouchStep::ReadEarly);
                }
            }
            Work::Reading { .. } => offer(VouchStep::ReadOrders),
        }
        if !matches!(voucher.work, Work::Reading { .. }) && state.node.is_free() {
            offer(VouchStep::Request);
        }
        if voucher.work == Work::Idle {
            if self.mistake == Mistake::OrdersReadBeforeRequest && voucher.has_found_before != state.order.is_some() {
                offer(VouchStep::LookBefore);
            }
        } else if self.may_restart && self.mistake != Mistake::OldWritesLand {
            offer(VouchStep::Restart);
        }
        if voucher.grant.is_some() && state.node.is_free() {
            offer(VouchStep::TakeGrant);
        }
        self.unit_steps(voucher, &mut offer);
    }

    /// What may become of the voucher's unit besides a new vouch.
    fn unit_steps(&self, voucher: Voucher, offer: &mut impl FnMut(VouchStep)) {
        let is_at_rest = voucher.work == Work::Idle;
        match self.mistake {
            Mistake::ErasedByNextLife if is_at_rest && voucher.is_new => offer(VouchStep::Restart),
            // The plain beat in the air shows what the observer has seen.
            Mistake::OldWritesLand if is_at_rest && !voucher.is_new && voucher.orphan == Orphan::None => offer(VouchStep::Restart),
            Mistake::DroppedAtNextBeat if is_at_rest && voucher.is_new => offer(VouchStep::DropVouch),
            _ => {}
        }
        if voucher.has_node_beaten && is_at_rest {
            offer(VouchStep::DropVouch);
        }
        if voucher.orphan != Orphan::None {
            offer(VouchStep::LandOrphan);
            offer(VouchStep::LoseOrphan);
        }
    }

    pub(super) fn apply_vouch(&self, next: &mut State, index: usize, step: VouchStep) {
        let finds = self.does_voucher_find(next);
        let voucher = &mut next.vouchers[index];
        match (step, voucher.work) {
            (VouchStep::Request, _) => voucher.work = Work::Writing { age: 0, found: None },
            (VouchStep::GrantEarly, Work::Writing { age, .. }) => voucher.grant = Some(age).filter(|age| *age <= self.lease),
            (VouchStep::ReadEarly, Work::Writing { age, .. }) => voucher.work = Work::Writing { age, found: Some(finds) },
            (VouchStep::LandVouch, Work::Writing { age, found }) => self.land_vouch(voucher, age, found),
            (VouchStep::ReadOrders, Work::Reading { age }) => {
                let finds = if self.mistake == Mistake::OrdersReadBeforeRequest { voucher.has_found_before } else { finds };
                self.grant(voucher, age, finds);
            }
            (VouchStep::TakeGrant, work) => {
                let granted = voucher.grant.take();
                let newest = match work {
                    Work::Writing { age, .. } | Work::Reading { age } => Some(age),
                    Work::Idle => None,
                };
                let age = match self.mistake {
                    Mistake::LeaseFromReceipt => Some(0),
                    Mistake::GrantForNewest => newest.or(granted),
                    _ => granted,
                };
                let left = age.and_then(|age| self.lease.checked_sub(age));
                next.node.vouched = next.node.vouched.max(left);
                next.node.settle();
            }
            (VouchStep::Restart, work) => self.restart(voucher, work),
            (VouchStep::LandOrphan, _) => {
                voucher.is_new = voucher.orphan == Orphan::Vouch;
                voucher.orphan = Orphan::None;
            }
            (VouchStep::LoseOrphan, _) => voucher.orphan = Orphan::None,
            (VouchStep::DropVouch, _) => {
                voucher.is_new = false;
                voucher.has_node_beaten = false;
            }
            (VouchStep::LookBefore, _) => voucher.has_found_before = finds,
            _ => unreachable!("only offered steps are applied"),
        }
    }

    fn land_vouch(&self, voucher: &mut Voucher, age: u8, found: Option<bool>) {
        // The same text may have stood there since an earlier request.
        voucher.is_new |= self.mistake != Mistake::StaticText;
        if self.drop == Drop::BeatSinceVouch {
            voucher.has_node_beaten = false;
        }
        match found {
            Some(finds) => self.grant(voucher, age, finds),
            None if !self.has_orders() => self.grant(voucher, age, false),
            None => voucher.work = Work::Reading { age },
        }
    }

    fn grant(&self, voucher: &mut Voucher, age: u8, finds: bool) {
        voucher.work = Work::Idle;
        if !finds && age <= self.lease {
            voucher.grant = Some(age);
        }
    }

    fn restart(&self, voucher: &mut Voucher, work: Work) {
        voucher.work = Work::Idle;
        if matches!(work, Work::Writing { .. }) {
            voucher.orphan = Orphan::Vouch;
        } else if self.mistake == Mistake::OldWritesLand {
            voucher.orphan = Orphan::Plain;
        }
        if self.mistake == Mistake::ErasedByNextLife {
            voucher.is_new = false;
        }
    }
}

const RULE: Extension = Extension { vouchers: 1, ..BARE };
/// Everything answers within the tick, and nobody starts again.
const PROMPT: Extension = Extension { is_prompt: true, may_restart: false, ..RULE };

/// The rules that must hold.
pub(super) fn rules() -> Vec<Case> {
    let two = Extension { vouchers: 2, lease: 1, ..RULE };
    let early = Extension { orders_read: OrdersRead::AfterRequest, lease: 1, ..RULE };
    let at_once = Extension { drop: Drop::BeatSinceVouch, reads: Reads::AtOnce, ..silence(&RULE) };
    vec![
        grown("extension: vouch, silence", silence(&RULE), (6, 0)),
        grown("extension: vouch, orders", orders(&RULE), (8, 0)),
        grown("extension: vouch, silence and orders", Extension { lease: 2, ..RULE }, (4, 0)),
        grown("extension: vouch, two vouchers, silence", Extension { may_restart: false, ..silence(&two) }, (2, 0)),
        grown("extension: vouch, two vouchers, orders", orders(&two), (3, 0)),
        grown("extension: vouch, orders read at any time after the request", early, (3, 0)),
        grown("extension: vouch, dropped when the node has beaten since it was complete, units read at once", at_once, (5, 0)),
        grown("extension: vouch, gone is said in bounded time", PROMPT, (8, 0)),
        grown("extension: vouch, gone is said in bounded time, two vouchers", Extension { vouchers: 2, lease: 2, ..PROMPT }, (3, 0)),
    ]
}

/// The planted mistakes that must be found.
pub(super) fn mistakes() -> Vec<Case> {
    let plain = |mistake| Extension { lease: 2, mistake, ..silence(&RULE) };
    let order = |mistake| Extension { mistake, ..orders(&RULE) };
    let removal = |mistake| Extension { order: OrderKind::Removal, ..order(mistake) };
    let prompt = |mistake| Extension { mistake, ..PROMPT };
    vec![
        planted("extension: vouch, static text instead of a serial", S5, plain(Mistake::StaticText)),
        planted("extension: vouch, dropped at the next beat", S5, plain(Mistake::DroppedAtNextBeat)),
        planted("extension: vouch, erased by the voucher's next life", S5, plain(Mistake::ErasedByNextLife)),
        planted("extension: vouch, a write of the voucher's earlier life lands later", S5, plain(Mistake::OldWritesLand)),
        planted("extension: vouch, granted before it is complete", S5, plain(Mistake::GrantBeforeComplete)),
        planted("extension: vouch, lease from the receipt of the grant", S5, plain(Mistake::LeaseFromReceipt)),
        planted("extension: vouch, a grant is taken for the newest request", S5, plain(Mistake::GrantForNewest)),
        planted("extension: vouch, mailbox read before the request came", L2, order(Mistake::OrdersReadBeforeRequest)),
        planted("extension: vouch, mailbox not read", L2, order(Mistake::MailboxNotRead)),
        planted("extension: vouch, vote table not read", L2, removal(Mistake::VoteTableNotRead)),
        planted(
            "extension: vouch, the second voucher is not counted",
            S5,
            Extension { vouchers: 2, lease: 1, ..plain(Mistake::SecondNotCounted) },
        ),
        planted(
            "extension: vouch, dropped when the node has beaten since the voucher's last look",
            S5,
            Extension { drop: Drop::BeatSinceLook, reads: Reads::AtOnce, ..plain(Mistake::None) },
        ),
        planted(
            "extension: vouch, dropped when the node has beaten since it was complete, units read apart",
            S5,
            Extension { drop: Drop::BeatSinceVouch, ..plain(Mistake::None) },
        ),
        planted("extension: vouch, every beat of a voucher is taken for a vouch", SAID, prompt(Mistake::BeatTakenForVouch)),
        planted("extension: vouch, mailbox not read, gone is never said", SAID, prompt(Mistake::MailboxNotRead)),
    ]
}
