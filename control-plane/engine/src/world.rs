//! Everything that the loop owns, as it is committed or about to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use backends::SpecError;
use lifecycle::credential::{Credential, EffectKind, Event, Outcome};
use lifecycle::{CredentialName, EffectId, Epoch, SetName, TargetId, Version};
use protocol::report::{self, Notice};
use protocol::{HostId, InstallationId, UnixMillis, VerifyingKey};
use resources::Resources;
use serde::{Deserialize, Serialize};
use store::{HostProgress, HostRow, HostStatus, ValueDigest};
use tokio::sync::Notify;

use crate::audit::Told;
use crate::catalogue::{Brings, Equipment, Makers, Plan};
use crate::clock::Clock;
use crate::effects::Means;
use crate::figures::{ClockBound, Flip, MeasuredVersions};
use crate::lane::{Lane, Post, address_of};
use crate::metrics::Metrics;
use crate::origin::{Origin, Origins};
use crate::sources::Watch;
use crate::stores::StoreProgress;

/// The loop's own.
pub(crate) struct World {
    pub(crate) installation: InstallationId,
    pub(crate) epoch: Epoch,
    pub(crate) clock: Clock,
    pub(crate) owned: BTreeMap<CredentialName, Owned>,
    pub(crate) sets: BTreeMap<SetName, CredentialName>,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) resources: Resources,
    /// Asks for the resources once more, also where they did not change.
    pub(crate) reread: Arc<Notify>,
    pub(crate) makers: Arc<dyn Makers>,
    pub(crate) means: Arc<Means>,
    pub(crate) post: Arc<Post>,
    pub(crate) metrics: Metrics,
    /// Where the audit log does not fit together.
    pub(crate) audit_broken: Option<String>,
    /// Every key that ever signed for this installation.
    pub(crate) own_keys: Vec<VerifyingKey>,
}

/// What is kept of one credential, in one row.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) state: Credential,
    pub(crate) plan: Plan,
    /// When a rotation was last begun by the schedule, an operator or the first mint.
    pub(crate) rotated_at: UnixMillis,
    /// Of values that a source brought: the store's number.
    #[serde(default)]
    pub(crate) revisions: BTreeMap<EffectId, u64>,
    /// The value that a source brought last, whatever became of it.
    #[serde(default)]
    pub(crate) brought: Option<ValueDigest>,
    #[serde(default)]
    pub(crate) stores: BTreeMap<TargetId, StoreProgress>,
    #[serde(default)]
    pub(crate) measured: MeasuredVersions,
    /// Where each version was made. None in what was kept before this was noted.
    #[serde(default)]
    pub(crate) origins: Option<Origins>,
}

/// One credential at work.
pub(crate) struct Owned {
    pub(crate) kept: Kept,
    pub(crate) revision: u64,
    /// The values that the committed state names.
    pub(crate) named: BTreeSet<EffectId>,
    /// None when its backend cannot be made: nothing is minted or revoked then, and it is still served.
    pub(crate) equipment: Option<Equipment>,
    /// Made when something of an earlier place is asked for first.
    places: Vec<(Origin, Brings)>,
    /// Effects that are being carried out.
    pub(crate) running: BTreeSet<EffectId>,
    /// Effects that are carried out again later, without the core's word: silence is no outcome of theirs.
    pub(crate) again: BTreeMap<EffectId, (Instant, u32)>,
    /// Of effects that failed and are tried on: what was said last.
    pub(crate) failing: BTreeMap<EffectId, String>,
    /// Hosts whose lane has something of it.
    pub(crate) lanes: BTreeSet<HostId>,
    /// Store targets at work.
    pub(crate) at_store: BTreeSet<TargetId>,
    /// When a store target that failed is tried again.
    pub(crate) store_again: BTreeMap<TargetId, (Instant, u32)>,
    pub(crate) selected: Option<BTreeMap<TargetId, lifecycle::credential::Selection>>,
    pub(crate) watch: Option<Watch>,
    pub(crate) source_fault: Option<String>,
    /// Adoptions that the audit log has since the start.
    pub(crate) told_adopted: BTreeSet<(TargetId, Version)>,
    /// The flip that is looked at.
    pub(crate) flip: Option<Flip>,
}

/// One host at work.
pub(crate) struct Host {
    pub(crate) row: HostRow,
    pub(crate) report_key: VerifyingKey,
    pub(crate) target: TargetId,
    pub(crate) lane: Option<Lane>,
    pub(crate) reachable: bool,
    /// What its reports told of its clock.
    pub(crate) clock: Option<ClockBound>,
    /// By subject, the refusal that the audit log has last: the same one again is no news.
    pub(crate) refused: BTreeMap<String, String>,
    /// By which means it works, and what an operator should know of it, as its newest report says.
    pub(crate) means: Vec<report::Means>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) notices_told: Told,
    pub(crate) contradictions_told: Told,
    pub(crate) refusals_told: Told,
}

impl Owned {
    pub(crate) fn new(mut kept: Kept, revision: u64) -> Self {
        if kept.origins.is_none() {
            let mut origins = Origins::default();
            let here = Origin::of(&kept.plan);
            for effect in kept.state.values() {
                origins.note(effect, &here);
            }
            kept.origins = Some(origins);
        }
        let places = kept.plan.store_places();
        for (target, progress) in kept.stores.iter_mut().filter(|(_, progress)| progress.is_nowhere()) {
            if let Some(place) = places.get(target) {
                progress.settle_at(place);
            }
        }
        Self {
            named: kept.state.values(),
            kept,
            revision,
            equipment: None,
            places: Vec::new(),
            running: BTreeSet::new(),
            again: BTreeMap::new(),
            failing: BTreeMap::new(),
            lanes: BTreeSet::new(),
            at_store: BTreeSet::new(),
            store_again: BTreeMap::new(),
            selected: None,
            watch: None,
            source_fault: None,
            told_adopted: BTreeSet::new(),
            flip: None,
        }
    }

    pub(crate) fn set(&self) -> &SetName {
        &self.kept.plan.credential.set
    }

    /// Notes what an effect that is tried on failed with; nothing when it did not fail. Who looks wants to know why
    /// nothing moves, long before it counts as stuck.
    pub(crate) fn note_failure(&mut self, effect: EffectId, why: Option<String>) {
        let wanted: BTreeSet<EffectId> = self.kept.state.outbox().map(|effect| effect.id).collect();
        self.failing.retain(|id, _| wanted.contains(id) && *id != effect);
        self.failing.extend(why.map(|why| (effect, why)));
    }

    /// What the rollout waits for at the backend.
    pub(crate) fn waits_for_backend(&self) -> Option<String> {
        self.kept.state.outbox().find_map(|effect| {
            let what = match effect.kind {
                EffectKind::Preflight => "preflight",
                EffectKind::Mint { .. } => "mint",
                EffectKind::Verify { .. } => "verify",
                _ => return None,
            };
            let why = self.failing.get(&effect.id)?;
            Some(format!("{what} failed and is tried again: {why}"))
        })
    }

    /// A version is about to be made where the present resource says. True when that is news.
    pub(crate) fn note_origin(&mut self, effect: EffectId) -> bool {
        let here = Origin::of(&self.kept.plan);
        self.kept.origins.get_or_insert_default().note(effect, &here)
    }

    /// Forgets where versions were made of which nothing is left. What was given up may still arrive there.
    pub(crate) fn forget_origins(&mut self) {
        let state = &self.kept.state;
        let mut wanted = state.values();
        wanted.extend(state.outbox().map(|effect| effect.id));
        wanted.extend(state.versions().filter(|view| view.aborted.is_some()).map(|view| view.minted_by));
        let origins = self.kept.origins.get_or_insert_default();
        origins.keep_only(&wanted);
        let here = Origin::of(&self.kept.plan);
        let elsewhere = origins.beside(&here);
        self.places.retain(|(known, _)| elsewhere.contains(known));
    }

    /// The backends where a version may be, the newest last. Where that was never noted it may be anywhere.
    pub(crate) fn places_of(
        &mut self,
        effect: EffectId,
        makers: &dyn Makers,
    ) -> Result<Vec<Brings>, SpecError> {
        let origins = self.kept.origins.get_or_insert_default();
        let here = Origin::of(&self.kept.plan);
        let mut places = origins.of(effect).to_vec();
        if places.is_empty() {
            places = origins.beside(&here);
            places.push(here);
        }
        self.equip_places(places, makers)
    }

    /// The backends beside the present one where this version may be.
    pub(crate) fn earlier_places_of(
        &mut self,
        effect: EffectId,
        makers: &dyn Makers,
    ) -> Result<Vec<Brings>, SpecError> {
        let here = Origin::of(&self.kept.plan);
        let places = self.kept.origins.get_or_insert_default().of(effect);
        let places = places.iter().filter(|place| !place.is_same_place(&here)).cloned().collect();
        self.equip_places(places, makers)
    }

    /// The backends beside the present one where something of it may be.
    pub(crate) fn earlier_places(&mut self, makers: &dyn Makers) -> Result<Vec<Brings>, SpecError> {
        let here = Origin::of(&self.kept.plan);
        let places = self.kept.origins.get_or_insert_default().beside(&here);
        self.equip_places(places, makers)
    }

    fn equip_places(&mut self, places: Vec<Origin>, makers: &dyn Makers) -> Result<Vec<Brings>, SpecError> {
        let here = Origin::of(&self.kept.plan);
        let mut equipped = Vec::with_capacity(places.len());
        for place in places {
            if let Some(equipment) = self.equipment.as_ref().filter(|_| place.is_same_place(&here)) {
                equipped.push(equipment.brings.clone());
                continue;
            }
            let known = self.places.iter().find(|(known, _)| *known == place).map(|(_, made)| made.clone());
            let made = if let Some(made) = known {
                made
            } else {
                let made = place.equip(makers)?;
                self.places.push((place, made.clone()));
                made
            };
            equipped.push(made);
        }
        Ok(equipped)
    }

    /// A store target that a plan names although it was retired.
    pub(crate) fn retired_store(&self, plan: &Plan) -> Option<TargetId> {
        let places = plan.store_places();
        let retired = self.kept.state.targets().filter(|view| view.retired);
        retired.map(|view| view.target).find(|target| places.contains_key(target))
    }

    /// Where the newest value that is known lies, for what was kept before it was noted what a source brought.
    pub(crate) fn newest_value(&self) -> Option<EffectId> {
        self.kept.state.versions().last().map(|view| view.minted_by)
    }

    /// The dead versions that a target is to be told of.
    pub(crate) fn dead(&self, target: &TargetId) -> BTreeSet<Version> {
        protocol::order::newest_dead(&self.kept.state.dead_on(target))
    }
}

/// What an effect failed with, when it is tried on.
pub(crate) fn failure(event: &Event) -> Option<String> {
    match event {
        Event::Preflighted { outcome: Outcome::Failed(why), .. }
        | Event::Minted { outcome: Outcome::Failed(why), .. }
        | Event::Verified { outcome: Outcome::Failed(why), .. } => Some(why.clone()),
        _ => None,
    }
}

impl Host {
    /// None when the row is damaged.
    pub(crate) fn new(row: HostRow) -> Option<(HostId, Self)> {
        let (id, ..) = address_of(&row)?;
        let report_key = VerifyingKey(row.host.verify_key.as_slice().try_into().ok()?);
        let target = id.target();
        let host = Self {
            row,
            report_key,
            target,
            lane: None,
            reachable: false,
            clock: None,
            refused: BTreeMap::new(),
            means: Vec::new(),
            notices: Vec::new(),
            notices_told: Told::default(),
            contradictions_told: Told::default(),
            refusals_told: Told::default(),
        };
        Some((id, host))
    }

    pub(crate) fn is_active(&self) -> bool {
        self.row.status == HostStatus::Active
    }

    pub(crate) const fn progress(&self) -> &HostProgress {
        &self.row.progress
    }

    /// Starts the lane, or starts it anew when address or keys changed; ends it when the host was retired. True when
    /// there is a new one, which is empty.
    pub(crate) fn open_lane(&mut self, post: &Arc<Post>) -> bool {
        let Some((id, address, seal_key)) = address_of(&self.row) else { return false };
        if !self.is_active() {
            self.lane = None;
            self.reachable = false;
            post.road.forget(&id);
            return false;
        }
        post.road.keep(&address);
        let new = self.lane.as_ref().is_none_or(|lane| lane.address() != &address);
        if new {
            self.lane = Some(Lane::start(address, seal_key, post.clone()));
        }
        new
    }
}

impl World {
    /// What people call a target.
    pub(crate) fn target_name(&self, target: &TargetId) -> String {
        let host: Option<HostId> = HostId::try_from(target).ok();
        match host.and_then(|host| self.hosts.get(&host)) {
            Some(host) => host.row.host.name.clone(),
            None => target.to_string(),
        }
    }
}
