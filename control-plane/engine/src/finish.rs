//! After a batch: one transaction, then what it decided is carried out, and what came of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use backends::Retiring;
use lifecycle::credential::{Effect, EffectKind, Event};
use lifecycle::{CredentialName, EffectId};
use protocol::HostId;
use store::{Commit, CredentialRow};
use tokio::sync::watch;

use crate::audit::{ENGINE, entry};
use crate::catalogue::Brings;
use crate::effects::{Job, carry_out};
use crate::lane::Wanted;
use crate::run::{Batch, RunError, Turn};
use crate::timers::{AGAIN_MAX, pause};
use crate::world::{Owned, World};

impl World {
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
    pub(crate) fn execute(&mut self, name: &CredentialName, effect: Effect) {
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
    pub(crate) fn send(&mut self, name: &CredentialName) {
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

    /// An effect ended, or got no answer.
    pub(crate) fn ended(
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
        let failed = crate::world::failure(&event);
        if let Some(why) = failed.as_ref().filter(|why| owned.failing.get(&effect) != Some(*why)) {
            tracing::warn!(credential = %name, %why, "a rollout waits for its backend, which is asked again");
        }
        owned.note_failure(effect, failed);
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
}

impl Owned {
    /// Every version that it knows, also those that have ended: their creation may come late to the backend.
    fn accounts_for(&self) -> BTreeSet<EffectId> {
        let mut known = self.kept.state.values();
        known.extend(self.kept.state.versions().map(|view| view.minted_by));
        known
    }
}
