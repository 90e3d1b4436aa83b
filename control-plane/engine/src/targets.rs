//! Hosts and stores that come, answer, move and go, and which credential selects whom.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::credential::Event;
use lifecycle::{CredentialName, TargetId};
use protocol::HostId;

use crate::audit::{ENGINE, entry};
use crate::handle::HandleError;
use crate::run::{Batch, RunError, Turn};
use crate::world::{Host, Owned, World};

impl World {
    /// Tells every credential of a host whether it answers, when that changed.
    pub(crate) fn connected(&mut self, turn: &mut Turn, batch: &mut Batch, id: HostId, reachable: bool) {
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.is_active()) else { return };
        if host.reachable == reachable {
            return;
        }
        host.reachable = reachable;
        let (name, address) = (&host.row.host.name, &host.row.host.address);
        if reachable {
            tracing::info!(%name, address, "a host answers");
        } else {
            tracing::warn!(%name, address, "a host does not answer, and is tried on");
        }
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

    pub(crate) async fn host_changed(
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

    pub(crate) async fn retire_host(
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

    pub(crate) fn retire_store(
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
}
