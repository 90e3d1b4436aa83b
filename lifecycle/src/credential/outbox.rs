//! Effects whose outcome is not known yet. They lie in the state itself, so that one commit holds both.

use super::Credential;
use super::effect::{Effect, EffectKind};
use super::event::Outcome;
use super::state::{Kept, Pending, Phase};
use super::step::Turn;
use crate::id::{EffectId, Millis};

/// What an outcome means for the effect that it names.
pub(crate) enum Came {
    /// It names none that is open, or one that is tried again.
    Nothing,
    Done(EffectKind),
    /// It will not work without an operator, and left the outbox.
    Refused(EffectKind, String),
    /// It has failed so often that an operator is told. It stays in the outbox and is tried on.
    Exhausted(EffectKind, String),
}

impl Credential {
    pub(crate) fn emit(&mut self, kind: EffectKind, turn: &mut Turn) -> EffectId {
        let id = turn.id();
        let effect = Effect { id, kind };
        self.outbox.insert(id, Pending { effect, handed_out: false, attempts: 0, again: None });
        id
    }

    /// The same state, but for the ids of orders and questions on their way, which are renamed by what they say: so
    /// a search does not take two ways to one state for two states. No outcome names them.
    #[doc(hidden)]
    #[must_use]
    pub fn with_plain_ids(mut self) -> Self {
        let outbox = std::mem::take(&mut self.outbox);
        let is_message = |kind: &EffectKind| matches!(kind, EffectKind::Send { .. } | EffectKind::Ask { .. });
        let (mut messages, rest): (Vec<_>, Vec<_>) =
            outbox.into_iter().partition(|(_, pending)| is_message(&pending.effect.kind));
        messages.sort_by(|(_, a), (_, b)| a.effect.kind.cmp(&b.effect.kind));
        self.outbox.extend(rest);
        for (number, (_, mut pending)) in (0..).zip(messages) {
            pending.effect.id = EffectId(number);
            self.outbox.insert(EffectId(number), pending);
        }
        self
    }

    pub(crate) fn has_open(&self, is: impl Fn(&EffectKind) -> bool) -> bool {
        self.outbox.values().any(|p| is(&p.effect.kind))
    }

    pub(crate) fn drop_open(&mut self, is: impl Fn(&EffectKind) -> bool) {
        self.outbox.retain(|_, p| !is(&p.effect.kind));
    }

    pub(crate) fn may_go(&self, effect: &Effect) -> bool {
        if !self.is_starting() {
            return self.may_replace(effect);
        }
        // What only asks may go at once; all else waits for the targets.
        matches!(
            effect.kind,
            EffectKind::Ask { .. }
                | EffectKind::Verify { .. }
                | EffectKind::Sample { .. }
                | EffectKind::Preflight
        )
    }

    /// A mint that ends a version goes only while that version has passed its gate since the last start.
    fn may_replace(&self, effect: &Effect) -> bool {
        let EffectKind::Mint { replaces: Some(replaced), .. } = &effect.kind else { return true };
        let waits = |kept: &Kept| !kept.phase.is_ended() && kept.phase != Phase::Retiring;
        !self.versions.values().any(|kept| kept.minted_by == *replaced && waits(kept))
    }

    /// Everything that may go and was not handed out since the last start.
    pub(crate) fn hand_out(&mut self, mut turn: Turn) -> Vec<Effect> {
        let mut effects = turn.audit_effects();
        let mut outbox = std::mem::take(&mut self.outbox);
        for pending in outbox.values_mut() {
            if pending.handed_out || pending.again.is_some() {
                continue;
            }
            if !self.may_go(&pending.effect) {
                continue;
            }
            pending.handed_out = true;
            effects.push(pending.effect.clone());
        }
        self.outbox = outbox;
        effects
    }

    pub(crate) fn come(&mut self, id: EffectId, outcome: Outcome, turn: &Turn) -> Came {
        let Some(pending) = self.outbox.get_mut(&id) else { return Came::Nothing };
        match outcome {
            Outcome::Done => match self.outbox.remove(&id) {
                Some(pending) => Came::Done(pending.effect.kind),
                None => Came::Nothing,
            },
            Outcome::Refused(why) => match self.outbox.remove(&id) {
                Some(pending) => Came::Refused(pending.effect.kind, why),
                None => Came::Nothing,
            },
            Outcome::Failed(why) => {
                if pending.again.is_some() {
                    return Came::Nothing;
                }
                pending.attempts = pending.attempts.saturating_add(1);
                let pause =
                    Millis::seconds(1 << (pending.attempts - 1).min(16)).min(self.policy.retry_ms_max);
                pending.again = Some(turn.now.plus(pause));
                let (kind, attempts) = (pending.effect.kind.clone(), pending.attempts);
                if let EffectKind::Mint { version, .. } = kind
                    && let Some(kept) = self.versions.get_mut(&version)
                {
                    // It failed here; there it may still succeed.
                    kept.stray_until = Some(turn.now.plus(self.policy.intent_ms));
                }
                if attempts == self.policy.attempts_max.max(1) {
                    return Came::Exhausted(kind, why);
                }
                Came::Nothing
            }
        }
    }

    pub(crate) fn advance_retries(&mut self, turn: &mut Turn) {
        for pending in self.outbox.values_mut() {
            if pending.again.is_some_and(|at| turn.reached(at)) {
                pending.again = None;
                pending.handed_out = false;
            }
        }
    }

    /// Tries again at once whatever waits.
    pub(crate) fn retry_all(&mut self) {
        for pending in self.outbox.values_mut().filter(|p| p.again.is_some()) {
            *pending =
                Pending { effect: pending.effect.clone(), handed_out: false, attempts: 0, again: None };
        }
    }
}
