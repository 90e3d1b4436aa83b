//! The loop: what came in, one transaction, then effects and answers.

use std::collections::BTreeSet;

use lifecycle::credential::{Effect, EffectKind, Event, Input};
use lifecycle::{CredentialName, EffectId};
use protocol::HostId;
use store::{Audit, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{ENGINE, entry};
use crate::handle::{HandleError, Message, View};
use crate::inside::Inside;
use crate::world::World;

/// How many messages share one transaction at most.
const BATCH_MAX: usize = 256;

/// What one batch leaves behind.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) dirty: BTreeSet<CredentialName>,
    pub(crate) hosts: BTreeSet<HostId>,
    pub(crate) audit: Vec<Audit>,
    pub(crate) removed: BTreeSet<CredentialName>,
    /// Credentials whose orders go to a lane that was made anew.
    pub(crate) resent: BTreeSet<CredentialName>,
    pub(crate) effects: Vec<(CredentialName, Effect)>,
    /// Values that are no longer needed once this is committed.
    pub(crate) forget: Vec<(CredentialName, EffectId)>,
    /// A host proved that the store was reverted; the counter that it showed.
    pub(crate) new_epoch: Option<u32>,
    pub(crate) answers: Vec<View>,
    pub(crate) events: u64,
}

/// What one batch shares: the time, and the right to draw effect ids.
pub(crate) struct Turn {
    pub(crate) now: lifecycle::Millis,
}

/// Why the engine ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database refused, or was replaced behind our back.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A state could not be written.
    #[error("failed to write the state of {0}")]
    State(CredentialName),
    /// No randomness.
    #[error("failed to get random bytes from the operating system")]
    Random,
}

pub(crate) async fn run(
    mut world: World,
    mut inbox: mpsc::Receiver<Message>,
    changes: watch::Sender<u64>,
    mut first: Batch,
) -> Result<(), RunError> {
    loop {
        let batch = std::mem::take(&mut first);
        world.finish(batch, &changes).await?;
        let sleep = world.sleep();
        let message = tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => Some(message),
                None => return Ok(()),
            },
            () = tokio::time::sleep(sleep) => None,
        };
        let mut turn = Turn { now: world.clock.now() };
        let mut batch = Batch::default();
        let mut next = message;
        for _ in 0..BATCH_MAX {
            let Some(message) = next else { break };
            world.take(&mut turn, &mut batch, message).await?;
            next = inbox.try_recv().ok();
        }
        if let Some(message) = next {
            world.take(&mut turn, &mut batch, message).await?;
        }
        world.tick(&mut turn, &mut batch);
        first = batch;
    }
}

impl World {
    async fn take(&mut self, turn: &mut Turn, batch: &mut Batch, message: Message) -> Result<(), RunError> {
        match message {
            Message::View(look) => batch.answers.push(look),
            Message::Verb { actor, name, verb, reply } => {
                let result = self.verb(turn, batch, &actor, &name, verb);
                batch.answer(reply, result);
            }
            Message::Import { actor, name, value, reply } => {
                let result = self.import(turn, batch, &actor, &name, value).await;
                batch.answer(reply, result);
            }
            Message::Refresh { actor, name, reply } => {
                let result = self.refresh(batch, &actor, name.as_ref());
                batch.answer(reply, result);
            }
            Message::Report { frame, peer, reply } => {
                let result = self.take_report(turn, batch, &frame, peer);
                if let Err(HandleError::Report { code, message }) = &result {
                    self.metrics.report(code);
                    tracing::warn!(code, message, "refused a report");
                    self.note_refused_report(batch, peer, code, message);
                }
                batch.answer(reply, result);
            }
            Message::HostChanged { host, reply } => {
                let result = self.host_changed(turn, batch, host).await?;
                batch.answer(reply, result);
            }
            Message::RetireHost { actor, host, reason, reply } => {
                let result = self.retire_host(turn, batch, &actor, host, &reason).await?;
                batch.answer(reply, result);
            }
            Message::RetireStore { actor, target, reason, reply } => {
                let result = self.retire_store(turn, batch, &actor, &target, &reason);
                batch.answer(reply, result);
            }
            Message::Inside(inside) => self.take_inside(turn, batch, *inside),
        }
        Ok(())
    }

    fn take_inside(&mut self, turn: &mut Turn, batch: &mut Batch, inside: Inside) {
        match inside {
            Inside::Outcome { name, effect, event } => {
                self.ended(turn, batch, &name, effect, event.map(|event| *event));
            }
            Inside::Reachable { host, reachable } => {
                self.connected(turn, batch, host, reachable);
                if let (true, Some(lane)) =
                    (reachable, self.hosts.get(&host).and_then(|host| host.lane.as_ref()))
                {
                    lane.returned();
                }
            }
            Inside::Noticed { name, value, digest, revision, origin, reply } => {
                if let Some(owned) = self.owned.get_mut(&name) {
                    owned.kept.origins.get_or_insert_default().note(value, &origin);
                }
                let taken = self.apply(turn, batch, &name, Event::Noticed { value });
                if let (Ok(()), Some(owned)) = (&taken, self.owned.get_mut(&name)) {
                    owned.kept.revisions.extend(revision.map(|revision| (value, revision)));
                    owned.kept.brought = Some(digest);
                }
                let taken = taken.is_ok();
                batch.answers.push(Box::new(move |_| {
                    // When nobody waits for the answer any more, it is not needed.
                    let _ = reply.send(taken);
                }));
            }
            Inside::SourceFault { name, fault } => {
                if let Some(owned) = self.owned.get_mut(&name) {
                    owned.source_fault = fault;
                }
            }
            Inside::Store { name, target, progress, outcome } => {
                self.store_ended(turn, batch, &name, &target, *progress, outcome);
            }
            Inside::AuditBroken(broken) => self.audit_is_broken(batch, &broken),
            Inside::Resources(resources) => self.take_resources(turn, batch, *resources),
        }
    }

    /// Whoever altered it may have had a reason to: everybody is told, and everything goes on.
    fn audit_is_broken(&mut self, batch: &mut Batch, broken: &store::AuditBroken) {
        tracing::error!(%broken, "the audit log cannot be relied on: compare it with a backup");
        self.metrics.audit_broken();
        batch.audit.push(entry(ENGINE, "audit_broken", "installation", &broken.to_string()));
        self.audit_broken = Some(broken.to_string());
    }

    // --- events ---

    /// Gives the core one event. What follows from it is committed and carried out with the batch.
    pub(crate) fn apply(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        event: Event,
    ) -> Result<(), HandleError> {
        let owned =
            self.owned.get_mut(name).ok_or_else(|| HandleError::Missing(format!("credential {name}")))?;
        let fresh = crate::sources::random_effect()
            .ok_or_else(|| HandleError::Store(RunError::Random.to_string()))?;
        batch.events += 1;
        let effects = owned
            .kept
            .state
            .apply(Input { now: turn.now, fresh }, event)
            .map_err(|illegal| crate::views::refusal(&illegal))?;
        batch.dirty.insert(name.clone());
        for effect in effects {
            match &effect.kind {
                EffectKind::Audit { entry: words } => {
                    // What the core decides it says in words; one stable word stands for all of them.
                    batch.audit.push(entry(ENGINE, "decided", &format!("credential/{name}"), words));
                }
                // These two are always read from the outbox: the newest wish counts.
                EffectKind::Send { .. } | EffectKind::Ask { .. } => {}
                _ => batch.effects.push((name.clone(), effect)),
            }
        }
        Ok(())
    }

    /// As [`World::apply`], for what nobody waits for.
    pub(crate) fn apply_or_log(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        event: Event,
    ) {
        if let Err(error) = self.apply(turn, batch, name, event) {
            tracing::info!(credential = %name, %error, "the core did not take an event");
        }
    }
}

impl Batch {
    fn answer<T: Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<T, HandleError>>,
        result: Result<T, HandleError>,
    ) {
        // When nobody waits for the answer any more, it is not needed.
        self.answers.push(Box::new(move |_| drop(reply.send(result))));
    }
}

impl Turn {
    pub(crate) const fn at(now: lifecycle::Millis) -> Self {
        Self { now }
    }
}
