//! Orders: every frame is verified here, and answered with a receipt.

use lifecycle::host::{Answer, Digest, HostEvent};
use lifecycle::{Epoch, Millis, OrderKind, SetName};
use protocol::order::{Ask, Body, OrderError, OrderIdentity, Rekey, SetOrder, Stage, VerifiedOrder};
use protocol::report::{Outcome, Receipt};
use protocol::{Frame, UnixMillis, order};

use crate::applier::Applier;
use crate::clock;
use crate::keep;
use crate::set::Set;

/// How many accepted orders are remembered, to tell a replay from an order that was never taken.
const REMEMBERED_MAX: usize = 256;

impl Applier {
    /// Takes the orders of one push, in their order.
    pub(crate) fn take_orders(&mut self, frames: &[Frame]) -> Vec<Receipt> {
        let receipts = frames.iter().map(|frame| self.take_order(frame)).collect();
        // One look serves all of a push: the seals in it, and that it is written down who runs after a flip.
        self.look_again();
        receipts
    }

    fn take_order(&mut self, frame: &Frame) -> Receipt {
        let now = UnixMillis::now();
        let order = match order::verify(frame, &self.anchor, self.tools.host, now) {
            Ok(order) => order,
            Err(error) => return refused_frame(frame, &error),
        };
        let identity = order.identity();
        let (sent_at, boot) = (order.payload().sent_at, clock::boot());
        let age = self.sender_clock.age(sent_at, now, boot);
        self.sender_clock.heard(sent_at, boot);
        let outcome = match &order.payload().body {
            Body::Rekey(rekey) => self.rekey(rekey),
            Body::Ask(ask) => self.ask(order.payload().epoch, ask),
            Body::Set(set_order) => {
                if matches!(set_order.order.kind, OrderKind::Arm { .. })
                    && let Some(set) = self.sets.get_mut(&set_order.set)
                {
                    set.note_arm(set_order.order.kind.version(), now.ms_ahead_of(sent_at));
                }
                self.set_order(&order, set_order, age)
            }
        };
        let outcome = self.tell_replay(&identity, outcome);
        match &outcome {
            Outcome::Accepted { again } => tracing::info!(order = ?identity, again, "order accepted"),
            Outcome::Refused { code, message } => {
                tracing::warn!(order = ?identity, code, message, "order refused");
            }
        }
        Receipt { frame: order.frame(), order: Some(identity), outcome }
    }

    /// An order that was accepted once and comes again after a later one is a replay.
    fn tell_replay(&mut self, identity: &OrderIdentity, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Refused { code, message }
                if code == "older_generation" && self.accepted.contains(identity) =>
            {
                Outcome::Refused { code: "replay".to_owned(), message: format!("accepted before; {message}") }
            }
            Outcome::Accepted { again: false } => {
                if self.accepted.len() == REMEMBERED_MAX {
                    self.accepted.pop_front();
                }
                self.accepted.push_back(identity.clone());
                outcome
            }
            other => other,
        }
    }

    fn rekey(&mut self, rekey: &Rekey) -> Outcome {
        let anchor = self.anchor.rekeyed(rekey);
        match keep::store_anchor(&self.tools.daemon.applier_state(), &anchor) {
            Ok(()) => {
                self.anchor = anchor;
                self.tools.changed = true;
                Outcome::Accepted { again: false }
            }
            Err(error) => refused("not_kept", error.to_string()),
        }
    }

    fn ask(&mut self, epoch: Epoch, ask: &Ask) -> Outcome {
        if let Err(outcome) = self.obey(epoch) {
            return outcome;
        }
        for name in ask.questions.keys() {
            if let Err(outcome) = self.know(name) {
                return outcome;
            }
        }
        let names: Vec<SetName> = self.sets.keys().cloned().collect();
        let mut failed = None;
        for name in names {
            let question = ask.questions.get(&name).copied().unwrap_or(0);
            // A set that cannot answer keeps no other from it: the report says what each has answered.
            failed = self.give(&name, HostEvent::Asked { epoch, question }).err().or(failed);
        }
        self.observe();
        match failed {
            None => Outcome::Accepted { again: false },
            Some(error) => refused("not_kept", error.to_string()),
        }
    }

    /// Obeys a newer epoch for all sets; refuses an older one and a stranger.
    fn obey(&mut self, epoch: Epoch) -> Result<(), Outcome> {
        match self.host.epoch {
            Some(mine) if mine == epoch => Ok(()),
            Some(mine) if mine.counter > epoch.counter => {
                Err(refused("old_epoch", format!("epoch {} has ended", epoch.counter)))
            }
            Some(mine) if mine.counter == epoch.counter => {
                Err(refused("stranger_epoch", "this epoch belongs to another life of the store"))
            }
            _ => {
                let before = self.host.epoch.replace(epoch);
                self.keep_host().map_err(|error| {
                    self.host.epoch = before;
                    refused("not_kept", error.to_string())
                })
            }
        }
    }

    /// Makes room for a set that may be new here.
    fn know(&mut self, name: &SetName) -> Result<(), Outcome> {
        if !self.sets.contains_key(name) {
            if self.sets.len() >= protocol::limit::SETS_PER_HOST_MAX {
                return Err(refused("over_limit", "this host knows too many sets"));
            }
            let set = Set::fresh(name.clone(), &self.tools);
            self.sets.insert(name.clone(), set);
        }
        Ok(())
    }

    fn set_order(&mut self, verified: &VerifiedOrder, set_order: &SetOrder, age: Option<Millis>) -> Outcome {
        let SetOrder { set: name, order, stage } = set_order;
        let in_policy = self.policy.set(name).is_some();
        if !in_policy && !self.sets.contains_key(name) && !matches!(order.kind, OrderKind::Seal { .. }) {
            return refused("not_in_policy", "this host's policy has no such set");
        }
        if let Err(outcome) = self.obey(order.epoch).and_then(|()| self.know(name)) {
            return outcome;
        }
        let files = match stage.as_ref().map(|_| verified.open_stage(&self.identity.values)) {
            None => None,
            Some(Ok(files)) => Some(files),
            Some(Err(error)) => return refused(error.code(), error.to_string()),
        };
        let version = order.kind.version();
        let digest = stage.as_ref().map(digest_of);
        let event = HostEvent::Order { order: order.clone(), digest, age };
        let outcome = self.with_set(name, |set, tools| {
            let before = set.machine().clone();
            set.incoming = files.map(|files| (version, files));
            let given = set.give(tools, event);
            set.incoming = None;
            // What an order of these kinds leads to may fail, also when it comes again.
            let may_fail = matches!(
                order.kind,
                OrderKind::Stage { .. } | OrderKind::Activate { .. } | OrderKind::RollBack { .. }
            );
            let failed = set.machine().report().refused.filter(|refused| {
                may_fail && (refused.version, refused.generation) == (version, order.generation)
            });
            match given {
                Ok(Some(Answer::Refused { code, message })) => refused(code.word(), message),
                Ok(_) => match failed {
                    Some(failed) => refused(&failed.code, failed.message),
                    None => Outcome::Accepted { again: *set.machine() == before },
                },
                Err(error) => refused("not_kept", error.to_string()),
            }
        });
        outcome.unwrap_or_else(|| refused("not_in_policy", "no such set"))
    }
}

fn refused(code: &str, message: impl Into<String>) -> Outcome {
    let message = protocol::report::sentence(&message.into());
    Outcome::Refused { code: code.to_owned(), message }
}

fn refused_frame(frame: &Frame, error: &OrderError) -> Receipt {
    tracing::warn!(code = error.code(), %error, "order refused");
    Receipt { frame: frame.digest(), order: None, outcome: refused(error.code(), error.to_string()) }
}

/// One digest of all keyed digests of a version's files.
fn digest_of(stage: &Stage) -> Digest {
    let mut all = String::new();
    for (name, digest) in &stage.digests {
        all.push_str(name.as_str());
        all.push('=');
        all.push_str(&digest.to_string());
        all.push('\n');
    }
    Digest(protocol::FrameDigest::of(all.as_bytes()).to_string())
}
