//! What only time brings: schedules, what is tried again, and how long the loop may sleep.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lifecycle::credential::{Effect, Event, Rotate, RotateReason};
use lifecycle::{CredentialName, EffectId};
use protocol::UnixMillis;
use resources::{Backing, First};

use crate::run::{Batch, Turn};
use crate::world::{Owned, World};

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
            if self.owned.get(&name).is_some_and(|owned| owned.kept.state.is_finished(turn.now)) {
                self.remove(batch, &name);
            }
        }
    }

    fn rotate_by_schedule(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let now = UnixMillis::now();
        let Some(owned) = self.owned.get_mut(name) else { return };
        if owned.was_ahead(now) {
            batch.dirty.insert(name.clone());
        }
        let state = &owned.kept.state;
        let generates =
            matches!(owned.kept.plan.credential.backing, Backing::Generator(_)) && owned.equipment.is_some();
        if !generates || state.is_orphaned() || state.is_deleted() || state.has_wish() {
            return;
        }
        if state.rollout().is_some() || state.stuck().is_some() {
            return;
        }
        if owned.is_due(now) {
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
        let retry = self.owned.values().filter_map(Owned::next_retry).min().map_or(SLEEP_MAX, |at| {
            at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
        });
        due.min(retry).min(SLEEP_MAX)
    }
}

impl Owned {
    /// A wall clock that was ahead when the last rotation began, and was put back since: the schedule counts from now,
    /// and does not wait until that time comes again.
    fn was_ahead(&mut self, now: UnixMillis) -> bool {
        let ahead = now < self.kept.rotated_at;
        if ahead {
            self.kept.rotated_at = now;
        }
        ahead
    }

    /// Whether its schedule wants a new version.
    fn is_due(&self, now: UnixMillis) -> bool {
        let credential = &self.kept.plan.credential;
        let empty = self.kept.state.versions().next().is_none();
        match (empty, credential.first, credential.every) {
            (true, First::Mint, _) => true,
            (true, First::Import, _) | (false, _, None) => false,
            (false, _, Some(every)) => now.ms_since(self.kept.rotated_at) >= every.0,
        }
    }

    /// When something is to be tried again. What is under way, or not wanted any more, is waited for by nobody: its
    /// time may have passed long ago, and the loop would never sleep.
    fn next_retry(&self) -> Option<Instant> {
        let effects = self.again.iter().filter(|(id, _)| {
            !self.running.contains(*id) && self.kept.state.outbox().any(|effect| effect.id == **id)
        });
        let stores = self.store_again.iter().filter(|(target, _)| self.is_wanted_at_store(target));
        effects.map(|(_, (at, _))| *at).chain(stores.map(|(_, (at, _))| *at)).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use lifecycle::credential::{Credential, Input, Selection, TargetKind};
    use lifecycle::{Epoch, Millis};
    use resources::Resources;

    use super::*;
    use crate::catalogue::{Backends, Plan};
    use crate::world::Kept;

    const RESOURCES: &str = "apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: {name: p}
spec: {}
---
apiVersion: target.external-secrets.io/v1alpha1
kind: VaultKv
metadata: {name: k}
spec: {server: \"http://127.0.0.1:1\", tls: disable, path: apps, auth: {tokenSecretRef: {file: token}}}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {name: orders-db}
spec:
  generator: {kind: Password, name: p}
  targets: {stores: [{kind: VaultKv, name: k}]}
  schedule: {every: 24h}
";

    fn owned() -> Owned {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("orders.yaml"), RESOURCES).unwrap();
        let resources = resources::load(directory.path(), &Resources::default());
        let credential = resources.credentials.values().next();
        let plan =
            Plan::of(credential.unwrap_or_else(|| panic!("{:?}", resources.faults)), &resources).unwrap();
        let makers = Backends::new(Arc::new(backends::SecretsDirectory::new("/nonexistent")));
        let equipment = plan.equip(&makers).ok().unwrap();
        let policy = equipment.policy(&plan.credential.policy);
        let kept = Kept {
            state: Credential::new(policy, Epoch { counter: 1, id: 7 }),
            plan,
            rotated_at: UnixMillis(0),
            revisions: BTreeMap::new(),
            brought: None,
            stores: BTreeMap::new(),
            measured: BTreeMap::new(),
            origins: None,
        };
        let mut owned = Owned::new(kept, 0);
        owned.equipment = Some(equipment);
        owned
    }

    fn apply(owned: &mut Owned, event: Event) -> Vec<Effect> {
        owned.kept.state.apply(Input { now: Millis(1), fresh: EffectId(100) }, event).unwrap()
    }

    #[test]
    fn a_clock_that_was_ahead_and_is_put_back_stops_no_schedule() {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        let mut owned = owned();
        let now = UnixMillis(100 * DAY_MS);
        assert!(owned.is_due(now), "it has no version");
        apply(&mut owned, Event::Imported { value: EffectId(1) });
        owned.kept.rotated_at = now.plus_ms(3650 * DAY_MS);
        assert!(owned.was_ahead(now) && !owned.was_ahead(now));
        assert!(!owned.is_due(now.plus_ms(DAY_MS - 1)));
        assert!(owned.is_due(now.plus_ms(DAY_MS)));
    }

    #[test]
    fn an_effect_that_is_under_way_or_not_wanted_keeps_nobody_awake() {
        let mut owned = owned();
        let effects = apply(&mut owned, Event::Rotate(Rotate { reason: RotateReason::Demand }));
        let wanted = effects.iter().find(|effect| owned.kept.state.outbox().any(|open| open == *effect));
        let (wanted, past) = (wanted.unwrap().id, Instant::now());
        owned.again.insert(wanted, (past, 1));
        assert_eq!(owned.next_retry(), Some(past));
        owned.running.insert(wanted);
        assert_eq!(owned.next_retry(), None, "it is under way");
        owned.again = [(EffectId(7), (past, 1))].into();
        assert_eq!(owned.next_retry(), None, "nobody wants it");
    }

    #[test]
    fn a_store_that_is_at_work_or_has_nothing_to_do_keeps_nobody_awake() {
        let mut owned = owned();
        let target = owned.kept.plan.store_places().into_keys().next().unwrap();
        let past = Instant::now();
        owned.store_again.insert(target.clone(), (past, 1));
        assert_eq!(owned.next_retry(), None, "nothing is wanted of it");
        let selection = Selection { canary: false, kind: TargetKind::Store };
        apply(&mut owned, Event::Selected([(target.clone(), selection)].into()));
        assert_eq!(owned.next_retry(), Some(past), "it is asked");
        owned.at_store.insert(target);
        assert_eq!(owned.next_retry(), None, "it is at work");
    }
}
