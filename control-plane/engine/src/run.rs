//! The loop: what came in, one transaction, then effects and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use backends::Retiring;
use lifecycle::credential::{Effect, EffectKind, Event, Input, Rotate, RotateReason};
use lifecycle::{CredentialName, EffectId, TargetId, Version};
use protocol::{HostId, UnixMillis};
use resources::Backing;
use store::{Audit, Commit, CredentialRow, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{ENGINE, entry};
use crate::catalogue::Brings;
use crate::effects::{Job, carry_out};
use crate::handle::{HandleError, Message, Verb, View};
use crate::inside::Inside;
use crate::lane::Wanted;
use crate::timers::{AGAIN_MAX, pause};
use crate::value::Content;
use crate::world::{Host, Owned, World};

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
    answers: Vec<View>,
    events: u64,
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

    fn verb(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        name: &CredentialName,
        verb: Verb,
    ) -> Result<(), HandleError> {
        if matches!(verb, Verb::Delete { .. }) && self.resources.credentials.contains_key(name) {
            return Err(HandleError::Refused {
                code: "resource_exists".to_owned(),
                message: format!("the resource of {name} is still there, so the credential would come back"),
                action: "remove its resource, then delete it".to_owned(),
            });
        }
        let rotates = matches!(verb, Verb::Rotate { .. });
        if let Verb::Rotate { compromised, .. } = verb
            && let Some(refused) = self.rotated_elsewhere(name, compromised)
        {
            return Err(refused);
        }
        let (action, detail, event) = described(verb, actor);
        self.apply(turn, batch, name, event)?;
        if let (true, Some(owned)) = (rotates, self.owned.get_mut(name)) {
            owned.kept.rotated_at = UnixMillis::now();
        }
        batch.audit.push(entry(actor, action, &format!("credential/{name}"), &detail));
        Ok(())
    }

    /// What a source brings is rotated there, and nowhere else.
    pub(crate) fn rotated_elsewhere(&self, name: &CredentialName, compromised: bool) -> Option<HandleError> {
        let backing = &self.owned.get(name)?.kept.plan.credential.backing;
        let Backing::Source(source) = backing else { return None };
        let action = if compromised {
            format!(
                "revoke the old value where it was made, rotate it there, then `esoctl source refresh {name}`; whoever \
                 still holds the old one is listed by `esoctl holders list`"
            )
        } else {
            format!("rotate it there, then `esoctl source refresh {name}`")
        };
        Some(HandleError::Refused {
            code: "rotated_at_source".to_owned(),
            message: format!("the values of {name} come from the source {source}: we cannot mint one"),
            action,
        })
    }

    async fn import(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        name: &CredentialName,
        value: backends::SecretValue,
    ) -> Result<Version, HandleError> {
        let owned = self.owned.get(name).ok_or_else(|| HandleError::Missing(format!("credential {name}")))?;
        let invalid = |error: crate::value::ContentError| HandleError::Invalid(error.to_string());
        let content = Content::new(value, &owned.kept.plan.credential.files).map_err(invalid)?;
        content.render().map_err(invalid)?;
        let effect = crate::sources::random_effect()
            .ok_or_else(|| HandleError::Store(RunError::Random.to_string()))?;
        content.keep(&self.means.store, name, effect).await.map_err(invalid)?;
        if let Some(owned) = self.owned.get_mut(name) {
            owned.note_origin(effect);
        }
        if let Err(error) = self.apply(turn, batch, name, Event::Imported { value: effect }) {
            batch.forget.push((name.clone(), effect));
            return Err(error);
        }
        if let Some(owned) = self.owned.get_mut(name) {
            // Its first life begins here: the schedule counts from now.
            owned.kept.rotated_at = UnixMillis::now();
        }
        batch.audit.push(entry(actor, "import", &format!("credential/{name}"), ""));
        Ok(Version::new(self.epoch.counter, 0))
    }

    fn refresh(
        &self,
        batch: &mut Batch,
        actor: &str,
        name: Option<&CredentialName>,
    ) -> Result<u32, HandleError> {
        if let Some(name) = name.filter(|name| !self.owned.contains_key(name)) {
            return Err(HandleError::Missing(format!("credential {name}")));
        }
        let mut asked = 0;
        for (owner, owned) in &self.owned {
            let source = owned.equipment.as_ref().and_then(|equipment| equipment.source());
            if let Some(source) = source.filter(|_| name.is_none_or(|name| name == owner)) {
                source.refresh();
                batch.audit.push(entry(actor, "refresh", &format!("credential/{owner}"), ""));
                asked += 1;
            }
        }
        Ok(asked)
    }

    /// An effect ended, or got no answer.
    fn ended(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        effect: EffectId,
        event: Option<Event>,
    ) {
        let minted = matches!(event, Some(Event::Minted { .. }));
        let Some(owned) = self.owned.get_mut(name) else {
            if minted {
                batch.forget.push((name.clone(), effect));
            }
            return;
        };
        owned.running.remove(&effect);
        let Some(event) = event else {
            let tries = owned.again.get(&effect).map_or(0, |(_, tries)| *tries);
            owned.again.insert(effect, (Instant::now() + pause(tries), tries + 1));
            return;
        };
        owned.again.remove(&effect);
        owned.note_failure(effect, crate::world::failure(&event));
        let revoked = match &event {
            Event::Revoked { outcome: lifecycle::credential::Outcome::Done, .. } => {
                let kinds =
                    owned.kept.state.outbox().find(|known| known.id == effect).map(|known| &known.kind);
                match kinds {
                    Some(EffectKind::Revoke { minted_by, .. }) => Some(*minted_by),
                    _ => None,
                }
            }
            _ => None,
        };
        let dying = self.dying(name, effect);
        let notice = revoked.and_then(|minted_by| self.safe_to_delete(name, minted_by));
        self.apply_or_log(turn, batch, name, event);
        if let Some(dying) = dying {
            self.note_revoked(name, dying);
        }
        if let Some(detail) = notice {
            self.metrics.safe_to_delete();
            batch.audit.push(entry(ENGINE, "safe_to_delete", &format!("credential/{name}"), &detail));
        }
        if let (Some(minted_by), Some(owned)) = (revoked, self.owned.get_mut(name)) {
            owned.kept.revisions.remove(&minted_by);
        }
        if minted && self.is_unnamed(name, effect) {
            batch.forget.push((name.clone(), effect));
        }
    }

    /// What whoever rotates at the source is told of a version that nobody has any more, where the source says so.
    fn safe_to_delete(&mut self, name: &CredentialName, minted_by: EffectId) -> Option<String> {
        let makers = self.makers.clone();
        let owned = self.owned.get_mut(name)?;
        let version = owned.kept.state.versions().find(|view| view.minted_by == minted_by)?.version;
        let places = owned.places_of(minted_by, makers.as_ref()).ok()?;
        let notify =
            |place: &Brings| matches!(place, Brings::Source(source) if source.retiring() == Retiring::Notify);
        if !places.iter().any(notify) {
            return None;
        }
        let at_source = owned.kept.revisions.get(&minted_by);
        let at_source =
            at_source.map_or_else(String::new, |number| format!(", revision {number} at its source"));
        Some(format!("version {version}{at_source}: nobody holds it any more"))
    }

    // --- hosts ---

    /// Tells every credential of a host whether it answers, when that changed.
    pub(crate) fn connected(&mut self, turn: &mut Turn, batch: &mut Batch, id: HostId, reachable: bool) {
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.is_active()) else { return };
        if host.reachable == reachable {
            return;
        }
        host.reachable = reachable;
        let target = host.target.clone();
        if reachable {
            self.post.road.nudge(&id);
        }
        for name in self.credentials_on(&target) {
            let target = target.clone();
            let event = if reachable { Event::Connected { target } } else { Event::Disconnected { target } };
            self.apply_or_log(turn, batch, &name, event);
        }
    }

    fn credentials_on(&self, target: &TargetId) -> Vec<CredentialName> {
        let has = |owned: &Owned| owned.kept.state.targets().any(|view| &view.target == target);
        self.owned.iter().filter(|(_, owned)| has(owned)).map(|(name, _)| name.clone()).collect()
    }

    async fn host_changed(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        id: HostId,
    ) -> Result<Result<(), HandleError>, RunError> {
        let row = self.means.store.host(&id.to_string()).await?;
        let Some((_, fresh)) = row.and_then(Host::new) else {
            return Ok(Err(HandleError::Missing(format!("host {id}"))));
        };
        match self.hosts.get_mut(&id) {
            // What it reported may be newer here than in the row.
            Some(known) => {
                let progress = known.row.progress.clone();
                known.row = fresh.row;
                known.row.progress = progress;
                known.report_key = fresh.report_key;
            }
            None => drop(self.hosts.insert(id, fresh)),
        }
        if let Some(host) = self.hosts.get_mut(&id)
            && host.open_lane(&self.post)
        {
            let target = host.target.clone();
            batch.resent.extend(self.credentials_on(&target));
        }
        let names: Vec<CredentialName> = self.owned.keys().cloned().collect();
        for name in names {
            self.select(turn, batch, &name);
        }
        Ok(Ok(()))
    }

    async fn retire_host(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        id: HostId,
        reason: &str,
    ) -> Result<Result<(), HandleError>, RunError> {
        let Some(host) = self.hosts.get_mut(&id) else {
            return Ok(Err(HandleError::Missing(format!("host {id}"))));
        };
        let audit = entry(actor, "retire_host", &format!("host/{id}"), reason);
        self.means.store.retire_host(&id.to_string(), audit).await?;
        host.row.status = store::HostStatus::Retired;
        host.open_lane(&self.post);
        let target = host.target.clone();
        for name in self.credentials_on(&target) {
            self.apply_or_log(turn, batch, &name, Event::HostRetired { target: target.clone() });
            self.select(turn, batch, &name);
        }
        Ok(Ok(()))
    }

    fn retire_store(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        actor: &str,
        target: &TargetId,
        reason: &str,
    ) -> Result<(), HandleError> {
        let names = self.credentials_on(target);
        let named_by = names.iter().find(|name| {
            let owned = self.owned.get(*name);
            owned.is_some_and(|owned| {
                !owned.kept.state.is_orphaned() && owned.kept.plan.store_places().contains_key(target)
            })
        });
        if let Some(name) = named_by {
            return Err(HandleError::Refused {
                code: "resource_exists".to_owned(),
                message: format!("the resource of {name} still delivers to {target}"),
                action: "take it out of the resource, then retire it".to_owned(),
            });
        }
        batch.audit.push(entry(actor, "retire_store", &format!("target/{target}"), reason));
        for name in names {
            self.apply_or_log(turn, batch, &name, Event::HostRetired { target: target.clone() });
        }
        Ok(())
    }

    /// Tells a credential which targets are selected now, when that changed.
    pub(crate) fn select(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get(name) else { return };
        let selected = self.selection(&owned.kept.plan);
        if owned.selected.as_ref() == Some(&selected) {
            return;
        }
        let known: BTreeSet<TargetId> = owned.kept.state.targets().map(|view| view.target).collect();
        self.apply_or_log(turn, batch, name, Event::Selected(selected.clone()));
        let new = selected.keys().filter(|target| !known.contains(*target));
        let answering: Vec<TargetId> = new
            .filter(|target| match HostId::try_from(*target) {
                Ok(host) => self.hosts.get(&host).is_some_and(|host| host.reachable),
                Err(_) => true,
            })
            .cloned()
            .collect();
        for target in answering {
            self.apply_or_log(turn, batch, name, Event::Connected { target });
        }
        if let Some(owned) = self.owned.get_mut(name) {
            owned.selected = Some(selected);
        }
    }

    pub(crate) fn remove(&mut self, batch: &mut Batch, name: &CredentialName) {
        if let Some(owned) = self.owned.remove(name) {
            self.sets.remove(owned.set());
            batch.dirty.remove(name);
            batch.removed.insert(name.clone());
            // What was refused because of it may be taken now.
            self.reread.notify_one();
            batch.audit.push(entry(
                ENGINE,
                "removed",
                &format!("credential/{name}"),
                "everything of it is retired",
            ));
            for host in owned.lanes {
                if let Some(lane) = self.hosts.get(&host).and_then(|host| host.lane.as_ref()) {
                    lane.want(name, BTreeMap::new());
                }
            }
        }
    }

    // --- after the batch ---

    /// Commits, then carries effects out, then answers.
    pub(crate) async fn finish(
        &mut self,
        mut batch: Batch,
        changes: &watch::Sender<u64>,
    ) -> Result<(), RunError> {
        if let Some(counter) = batch.new_epoch.take() {
            self.begin_epoch(&mut batch, counter).await?;
        }
        for name in &batch.dirty {
            self.measure(name);
        }
        for (name, effect) in &batch.effects {
            self.note_revoking(name, &effect.kind);
            // Before the backend is asked: whatever comes of it, it is known where to look.
            if matches!(effect.kind, EffectKind::Mint { .. })
                && self.owned.get_mut(name).is_some_and(|owned| owned.note_origin(effect.id))
            {
                batch.dirty.insert(name.clone());
            }
        }
        for name in &batch.dirty {
            if let Some(owned) = self.owned.get_mut(name) {
                owned.forget_origins();
            }
        }
        self.note_unnamed(&mut batch).await?;
        let commit = self.commit_of(&mut batch)?;
        if !commit.is_empty() {
            self.means.store.commit(commit).await?;
            self.metrics.committed(batch.events);
            for name in &batch.dirty {
                if let Some(owned) = self.owned.get_mut(name) {
                    owned.revision += 1;
                }
            }
            changes.send_modify(|count| *count += 1);
        }
        for (name, effect) in std::mem::take(&mut batch.forget) {
            self.means.store.erase_value(&name, effect).await?;
        }
        for (name, effect) in std::mem::take(&mut batch.effects) {
            self.execute(&name, effect);
        }
        for name in batch.dirty.union(&batch.resent) {
            self.send(name);
        }
        self.send_stores();
        if !batch.dirty.is_empty() || !batch.hosts.is_empty() {
            self.figures();
        }
        for answer in batch.answers {
            answer(self);
        }
        Ok(())
    }

    /// A host proved that this store is older than what it once said: a new life begins, in which everything that
    /// is older starts held and every target is asked first.
    async fn begin_epoch(&mut self, batch: &mut Batch, counter: u32) -> Result<(), RunError> {
        let before = self.epoch;
        self.epoch = self.means.store.begin_epoch(counter).await?;
        tracing::error!(
            before = before.counter,
            now = self.epoch.counter,
            "the store was reverted: a new epoch begins"
        );
        let words = "a host carries our own signature on an acknowledgement that this store never gave: the store was reverted";
        batch.audit.push(entry(ENGINE, "new_epoch", "installation", words));
        let mut turn = Turn { now: self.clock.now() };
        let names: Vec<CredentialName> = self.owned.keys().cloned().collect();
        for name in names {
            if let Some(owned) = self.owned.get_mut(&name) {
                // The new question is worth an immediate try.
                owned.store_again.clear();
            }
            let event = Event::Started { epoch: self.epoch, restored: true };
            self.apply_or_log(&mut turn, batch, &name, event);
            self.tell_connected(&mut turn, batch, &name);
        }
        Ok(())
    }

    /// After a start of its life a credential knows nobody as connected.
    pub(crate) fn tell_connected(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get(name) else { return };
        let answering = owned.kept.state.targets().map(|view| view.target);
        let answering: Vec<TargetId> = answering
            .filter(|target| match HostId::try_from(target) {
                Ok(host) => self.hosts.get(&host).is_some_and(|host| host.reachable),
                Err(_) => true,
            })
            .collect();
        for target in answering {
            self.apply_or_log(turn, batch, name, Event::Connected { target });
        }
    }

    fn commit_of(&self, batch: &mut Batch) -> Result<Commit, RunError> {
        let mut credentials = Vec::with_capacity(batch.dirty.len());
        for name in &batch.dirty {
            let Some(owned) = self.owned.get(name) else { continue };
            let state = serde_json::to_string(&owned.kept).map_err(|_| RunError::State(name.clone()))?;
            credentials.push(CredentialRow { name: name.clone(), revision: owned.revision, state });
        }
        let hosts = batch.hosts.iter().filter_map(|id| {
            let host = self.hosts.get(id)?;
            Some((id.to_string(), host.row.progress.clone()))
        });
        Ok(Commit {
            credentials,
            removed: batch.removed.iter().cloned().collect(),
            hosts: hosts.collect(),
            audit: std::mem::take(&mut batch.audit),
            clock: Some(self.clock.now()),
        })
    }

    /// Carries an effect out, unless that is under way.
    fn execute(&mut self, name: &CredentialName, effect: Effect) {
        let (own, foreign) = if matches!(effect.kind, EffectKind::Sweep) {
            (self.owned.get(name).map(Owned::accounts_for).unwrap_or_default(), self.foreign(name))
        } else {
            (BTreeSet::new(), BTreeSet::new())
        };
        let adopts_unknown = self.adopts_unknown(name);
        let Some(owned) = self.owned.get_mut(name) else { return };
        // What came later in the same batch (a new epoch above all) may have called it off.
        if !owned.kept.state.outbox().any(|wanted| wanted.id == effect.id) {
            return;
        }
        // Without its backend nothing can be asked; it is tried again when the resource is right.
        let Some(equipment) = owned.equipment.clone() else {
            owned.again.insert(effect.id, (Instant::now() + AGAIN_MAX, 0));
            let why = "its backend cannot be used: see the resource faults in `esoctl status`";
            owned.note_failure(effect.id, Some(why.to_owned()));
            return;
        };
        let makers = self.makers.as_ref();
        let places = match &effect.kind {
            EffectKind::Verify { minted_by, .. }
            | EffectKind::Sample { minted_by, .. }
            | EffectKind::EndSessions { minted_by, .. }
            | EffectKind::Revoke { minted_by, .. } => owned.places_of(*minted_by, makers),
            EffectKind::Mint { replaces: Some(replaced), .. } => owned.earlier_places_of(*replaced, makers),
            EffectKind::Sweep => owned.earlier_places(makers),
            _ => Ok(Vec::new()),
        };
        let places = match places {
            Ok(places) => places,
            Err(error) => {
                tracing::warn!(credential = %name, %error, "the backend where a version was made cannot be used");
                owned.again.insert(effect.id, (Instant::now() + AGAIN_MAX, 0));
                owned.note_failure(effect.id, Some(error.to_string()));
                return;
            }
        };
        if !owned.running.insert(effect.id) {
            return;
        }
        let revision = match &effect.kind {
            EffectKind::Revoke { minted_by, .. } => owned.kept.revisions.get(minted_by).copied(),
            _ => None,
        };
        let job = Job {
            name: name.clone(),
            epoch: owned.kept.state.epoch(),
            places,
            files: owned.kept.plan.credential.files.clone(),
            equipment,
            revision,
            own,
            foreign,
            adopts_unknown,
            effect,
        };
        tokio::spawn(carry_out(self.means.clone(), job));
    }

    /// What other credentials account for at a backend that this one may share.
    fn foreign(&self, name: &CredentialName) -> BTreeSet<EffectId> {
        let mut foreign = BTreeSet::new();
        for (other, owned) in &self.owned {
            if other != name {
                foreign.extend(owned.accounts_for());
            }
            // What a preflight tries it on is thrown away by the preflight itself.
            let preflights = owned.kept.state.outbox().filter(|effect| effect.kind == EffectKind::Preflight);
            foreign.extend(preflights.map(|effect| effect.id));
        }
        foreign
    }

    /// What nobody accounts for is taken care of by one of the credentials that share the backend.
    fn adopts_unknown(&self, name: &CredentialName) -> bool {
        let Some(owned) = self.owned.get(name) else { return false };
        let backing = owned.kept.plan.credential.backing.reference();
        let sharing = self.owned.iter();
        let mut sharing =
            sharing.filter(|(_, owned)| owned.kept.plan.credential.backing.reference() == backing);
        sharing.next().is_some_and(|(first, _)| first == name)
    }

    /// Brings the lanes of all hosts up to what the outbox says.
    fn send(&mut self, name: &CredentialName) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        let set = owned.set().clone();
        let epoch = owned.kept.state.epoch();
        let mut wanted: BTreeMap<HostId, BTreeMap<EffectId, Wanted>> = BTreeMap::new();
        for effect in owned.kept.state.outbox() {
            let (target, item) = match &effect.kind {
                EffectKind::Send { target, order, value, at } => {
                    let (order, value, at) = (order.clone(), *value, *at);
                    (target, Wanted::Order { set: set.clone(), order, value, at })
                }
                EffectKind::Ask { target, question } => {
                    (target, Wanted::Ask { set: set.clone(), epoch, question: *question })
                }
                _ => continue,
            };
            if let Ok(host) = HostId::try_from(target) {
                wanted.entry(host).or_default().insert(effect.id, item);
            }
        }
        let before = std::mem::replace(&mut owned.lanes, wanted.keys().copied().collect());
        for host in before.into_iter().chain(wanted.keys().copied().collect::<Vec<_>>()) {
            if let Some(lane) = self.hosts.get(&host).and_then(|host| host.lane.as_ref()) {
                lane.want(name, wanted.get(&host).cloned().unwrap_or_default());
            }
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

impl Owned {
    /// Every version that it knows, also those that have ended: their creation may come late to the backend.
    fn accounts_for(&self) -> BTreeSet<EffectId> {
        let mut known = self.kept.state.values();
        known.extend(self.kept.state.versions().map(|view| view.minted_by));
        known
    }
}

/// The stable word, the detail and the event of a verb.
fn described(verb: Verb, actor: &str) -> (&'static str, String, Event) {
    match verb {
        Verb::Rotate { compromised, deadline } => {
            let (reason, detail) = if compromised {
                let span = deadline.map_or_else(|| "none".to_owned(), resources::duration::show);
                (RotateReason::Compromised { deadline_ms: deadline }, format!("compromised, deadline {span}"))
            } else {
                (RotateReason::Demand, String::new())
            };
            ("rotate", detail, Event::Rotate(Rotate { reason }))
        }
        Verb::Halt { reason } => ("halt", reason.clone(), Event::Halt { reason }),
        Verb::Resume => ("resume", String::new(), Event::Resume),
        Verb::Abort { reason } => ("abort", reason.clone(), Event::Abort { reason }),
        Verb::Hold { version, reason } => {
            let by = format!("{actor}: {reason}");
            ("hold", format!("version {version}: {reason}"), Event::Hold { version, by })
        }
        Verb::Unhold { version } => ("unhold", format!("version {version}"), Event::Unhold { version }),
        Verb::Excuse { target, version, reason } => {
            ("excuse", format!("{target} for version {version}: {reason}"), Event::Excuse { target, version })
        }
        Verb::ClearHolder { target, holder, reason } => {
            ("clear_holder", format!("{holder} on {target}: {reason}"), Event::ClearHolder { target, holder })
        }
        Verb::ClearGap { target, gap, reason } => {
            ("clear_gap", format!("{gap} on {target}: {reason}"), Event::ClearGap { target, gap })
        }
        Verb::Delete { reason } => ("delete", reason, Event::Deleted),
        Verb::Force { version, reason } => {
            ("force", format!("version {version}: {reason}"), Event::Forced { version, reason })
        }
    }
}
