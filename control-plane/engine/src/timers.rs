//! What only time brings: schedules, what is tried again, and how long the loop may sleep.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lifecycle::credential::{Effect, Event, Rotate, RotateReason};
use lifecycle::{CredentialName, EffectId};
use protocol::UnixMillis;
use resources::{Backing, First};

use crate::run::{Batch, Turn};
use crate::world::World;

/// The longest sleep of the loop, and with it the latest that a schedule is looked at.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// The pause before an effect that got no answer is tried again; it doubles.
pub(crate) const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
pub(crate) const AGAIN_MAX: Duration = Duration::from_secs(30);

/// The pause after this many tries in vain.
pub(crate) fn pause(tries: u32) -> Duration {
    AGAIN_FIRST.saturating_mul(1 << tries.min(10)).min(AGAIN_MAX)
}

impl World {
    pub(crate) fn tick(&mut self, turn: &mut Turn, batch: &mut Batch) {
        let names: Vec<CredentialName> = self.owned.keys().cloned().collect();
        for name in names {
            self.rotate_by_schedule(turn, batch, &name);
            let due = self.owned.get(&name).and_then(|owned| owned.kept.state.next_due(turn.now));
            if due.is_some_and(|due| due <= turn.now) {
                self.apply_or_log(turn, batch, &name, Event::Tick);
            }
            self.retry(batch, &name);
            if self.owned.get(&name).is_some_and(|owned| owned.kept.state.is_finished()) {
                self.remove(batch, &name);
            }
        }
    }

    fn rotate_by_schedule(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get(name) else { return };
        let (state, credential) = (&owned.kept.state, &owned.kept.plan.credential);
        let generates = matches!(credential.backing, Backing::Generator(_)) && owned.equipment.is_some();
        if !generates || state.is_orphaned() || state.is_deleted() || state.has_wish() {
            return;
        }
        if state.rollout().is_some() || state.stuck().is_some() {
            return;
        }
        let empty = state.versions().next().is_none();
        let now = UnixMillis::now();
        let due = match (empty, credential.first, credential.every) {
            (true, First::Mint, _) => true,
            (true, First::Import, _) | (false, _, None) => false,
            (false, _, Some(every)) => now.ms_since(owned.kept.rotated_at) >= every.0,
        };
        if due {
            let reason = RotateReason::Schedule;
            self.apply_or_log(turn, batch, name, Event::Rotate(Rotate { reason }));
            if let Some(owned) = self.owned.get_mut(name) {
                owned.kept.rotated_at = now;
            }
        }
    }

    /// Effects that got no answer, whose pause is over and that are still wanted.
    fn retry(&mut self, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        if owned.again.is_empty() {
            return;
        }
        let now = Instant::now();
        let wanted: BTreeMap<EffectId, Effect> =
            owned.kept.state.outbox().map(|effect| (effect.id, effect.clone())).collect();
        owned.again.retain(|id, _| wanted.contains_key(id));
        for (id, (at, _)) in &owned.again {
            if let Some(effect) = wanted.get(id).filter(|_| *at <= now && !owned.running.contains(id)) {
                batch.effects.push((name.clone(), effect.clone()));
            }
        }
    }

    /// How long nothing is to be done unless something comes in.
    pub(crate) fn sleep(&self) -> Duration {
        let now = self.clock.now();
        let due = self.owned.values().filter_map(|owned| owned.kept.state.next_due(now)).min();
        let due = due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.since(now).0.max(1)));
        let retries = self
            .owned
            .values()
            .flat_map(|owned| owned.again.values().chain(owned.store_again.values()).map(|(at, _)| *at));
        let retry = retries.min().map_or(SLEEP_MAX, |at| {
            at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
        });
        due.min(retry).min(SLEEP_MAX)
    }
}
