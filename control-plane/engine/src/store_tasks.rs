//! Which task each store target has next, and what came of the last one.

use std::collections::BTreeMap;
use std::time::Instant;

use lifecycle::credential::{Effect, EffectKind, Event};
use lifecycle::{CredentialName, TargetId};

use crate::handle::Message;
use crate::inside::Inside;
use crate::run::{Batch, Turn};
use crate::stores::{Desk, StorePlace, StoreProgress, Task};
use crate::timers::{AGAIN_MAX, pause};
use crate::world::{Owned, World};

impl World {
    /// Gives each store target that is free its next task.
    pub(crate) fn send_stores(&mut self) {
        let makers = self.makers.clone();
        let names: Vec<CredentialName> = self.owned.keys().cloned().collect();
        for name in names {
            let Some(owned) = self.owned.get_mut(&name) else { continue };
            for (target, place) in owned.store_places() {
                let Some((progress, task)) = owned.next_at_store(&target, &place) else { continue };
                let places = progress.places();
                let made: Result<BTreeMap<_, _>, backends::SpecError> = places
                    .map(|(number, place)| Ok((number, makers.store_target(&place.kind, &place.spec)?)))
                    .collect();
                let places = match made {
                    Ok(places) => places,
                    Err(error) => {
                        tracing::warn!(credential = %name, %target, %error, "a store target cannot be used");
                        owned.store_again.insert(target, (Instant::now() + AGAIN_MAX, 0));
                        continue;
                    }
                };
                owned.at_store.insert(target.clone());
                let desk = Desk {
                    installation: self.means.installation.clone(),
                    store: self.means.store.clone(),
                    name: name.clone(),
                    places,
                    versions: owned
                        .kept
                        .state
                        .versions()
                        .map(|view| (view.minted_by, view.version))
                        .collect(),
                };
                let (loop_, steps) = (self.means.loop_.clone(), self.means.store.steps().clone());
                let name = name.clone();
                tokio::spawn(async move {
                    let (progress, outcome) = progress.carry_out(&desk, &task).await;
                    if steps.reached("store target") {
                        let told = Inside::Store { name, target, progress: Box::new(progress), outcome };
                        drop(loop_.send(Message::inside(told)).await);
                    }
                });
            }
        }
    }

    pub(crate) fn store_ended(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        target: &TargetId,
        progress: StoreProgress,
        outcome: Result<(), String>,
    ) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        owned.at_store.remove(target);
        let report = progress.report();
        owned.kept.stores.insert(target.clone(), progress);
        // Also after a failure: what was written and found on the way is kept.
        batch.dirty.insert(name.clone());
        match outcome {
            Ok(()) => {
                owned.store_again.remove(target);
                self.apply_or_log(turn, batch, name, Event::Connected { target: target.clone() });
                self.reported(turn, batch, name, target, report);
                self.pause_store(name, target);
            }
            Err(words) => {
                tracing::warn!(credential = %name, %target, %words, "a store does not answer");
                let tries = owned.store_again.get(target).map_or(0, |(_, tries)| *tries);
                owned.store_again.insert(target.clone(), (Instant::now() + pause(tries), tries + 1));
                // Each time: a new epoch takes it for connected until somebody says otherwise.
                self.apply_or_log(turn, batch, name, Event::Disconnected { target: target.clone() });
            }
        }
    }

    /// What is still wanted after it was done (a refusal, a seal that has to wait) is not done again at once.
    fn pause_store(&mut self, name: &CredentialName, target: &TargetId) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        let refused = owned.kept.stores.get(target).map(StoreProgress::report);
        let waits = refused.is_some_and(|report| report.refused.is_some() || !report.not_gone.is_empty());
        if waits {
            owned.store_again.insert(target.clone(), (Instant::now() + AGAIN_MAX / 6, 0));
        }
    }
}

impl Owned {
    /// The store targets, each with the path that the resource names, or named before it was edited.
    fn store_places(&self) -> BTreeMap<TargetId, StorePlace> {
        let none = self.kept.stores.is_empty() && self.kept.plan.credential.stores.is_empty();
        if self.equipment.is_none() || none {
            return BTreeMap::new();
        }
        let dropped = self.kept.stores.iter();
        let dropped =
            dropped.filter_map(|(target, progress)| Some((target.clone(), progress.place()?.clone())));
        let mut places: BTreeMap<TargetId, StorePlace> = dropped.collect();
        places.extend(self.kept.plan.store_places());
        places
    }

    /// What is to be done at a store target now, if it is free.
    fn next_at_store(&self, target: &TargetId, place: &StorePlace) -> Option<(StoreProgress, Task)> {
        if self.store_again.get(target).is_some_and(|(at, _)| *at > Instant::now()) {
            return None;
        }
        let task = self.task_at_store(target, place)?;
        let mut progress = self.kept.stores.get(target).cloned().unwrap_or_default();
        progress.settle_at(place);
        Some((progress, task))
    }

    /// The same, whether or not it waits for another try.
    fn task_at_store(&self, target: &TargetId, place: &StorePlace) -> Option<Task> {
        if self.at_store.contains(target) {
            return None;
        }
        let moved = self.kept.stores.get(target).is_some_and(|progress| progress.is_news(place));
        let task = next_task(self.kept.state.outbox(), self.kept.state.epoch(), target);
        task.or_else(|| moved.then_some(Task::Look))
    }

    /// Whether a store target that is not at work is to do something, now or after its pause.
    pub(crate) fn is_wanted_at_store(&self, target: &TargetId) -> bool {
        self.store_places().get(target).is_some_and(|place| self.task_at_store(target, place).is_some())
    }
}

/// Orders first: what they change is what the question is about.
fn next_task<'a>(
    outbox: impl Iterator<Item = &'a Effect>,
    epoch: lifecycle::Epoch,
    target: &TargetId,
) -> Option<Task> {
    let mut question = None;
    for effect in outbox {
        match &effect.kind {
            EffectKind::Send { target: to, order, value, .. } if to == target => {
                return Some(Task::Order { order: order.clone(), value: *value });
            }
            EffectKind::Ask { target: to, question: asked } if to == target => question = Some(*asked),
            _ => {}
        }
    }
    question.map(|question| Task::Ask { epoch, question })
}
