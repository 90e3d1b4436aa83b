//! What people, schedules and resources say.

use std::collections::{BTreeMap, BTreeSet};

use super::{IllegalEvent, Turn};
use crate::credential::Credential;
use crate::credential::event::{RotateReason, Selection, TargetKind};
use crate::credential::policy::Overlap;
use crate::credential::state::{Compromise, Kept, Life, Phase, Target, Watch, Wish};
use crate::id::{EffectId, GapId, HolderId, Millis, TargetId, Version};

impl Credential {
    pub(super) fn select(&mut self, selected: &BTreeMap<TargetId, Selection>, turn: &Turn) {
        for (id, selection) in selected {
            let baseline_since = turn.now;
            let target = self
                .targets
                .entry(id.clone())
                .or_insert_with(|| Target { since: baseline_since, ..Target::default() });
            target.selected = true;
            target.canary = selection.canary;
            target.kind = selection.kind;
        }
        for (id, target) in &mut self.targets {
            target.selected = selected.contains_key(id);
        }
        // One that was never sent anything and shows nothing has nothing that could be forgotten with it, unless a
        // version is alive of which nobody knows where it was sent.
        let anywhere = self.versions.values().any(|kept| kept.everywhere && !kept.phase.is_ended());
        self.targets.retain(|_, target| target.selected || anywhere || !target.is_untouched());
        if self.versions.is_empty() && !self.targets.is_empty() {
            // A set of that name may lie on them from an earlier life: they answer before the first mint.
            self.life = Life::Starting { since: turn.now };
        }
    }

    pub(super) fn wish_rotation(
        &mut self,
        reason: RotateReason,
        turn: &mut Turn,
    ) -> Result<(), IllegalEvent> {
        self.may_wish()?;
        if self.orphaned {
            // It would wait without a word until the resource is back, and somebody would rely on it.
            return Err(IllegalEvent::Orphaned);
        }
        match &reason {
            RotateReason::Schedule => {}
            RotateReason::Demand => {
                let live = self.live();
                let max = self.policy.live_versions_max;
                if self.policy.overlap == Overlap::Versions && live >= max as usize {
                    return Err(IllegalEvent::TooManyLive { live, max });
                }
            }
            RotateReason::Compromised { deadline_ms } => {
                self.compromise(*deadline_ms, turn)?;
                self.hurry = true;
            }
        }
        // A value that waits is a new version too; nothing is gained by a mint on top of it.
        let stronger = match &self.wish {
            None => true,
            Some(Wish::Value(_)) => false,
            Some(wish) => !wish.is_compromise(),
        };
        if stronger {
            self.wish = Some(Wish::Rotate(reason));
        }
        Ok(())
    }

    pub(super) fn wish_value(&mut self, value: EffectId) -> Result<(), IllegalEvent> {
        self.may_wish()?;
        if !self.versions.values().any(|kept| kept.minted_by == value) {
            self.wish = Some(Wish::Value(value));
        }
        Ok(())
    }

    fn may_wish(&self) -> Result<(), IllegalEvent> {
        if self.deleted {
            return Err(IllegalEvent::Deleted);
        }
        if self.policy.overlap == Overlap::None && !self.policy.interruption_allowed {
            return Err(IllegalEvent::Interrupts);
        }
        Ok(())
    }

    fn compromise(&mut self, deadline: Option<Millis>, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let Some(active) = self.active else { return Ok(()) };
        let Some(kept) = self.versions.get_mut(&active) else { return Ok(()) };
        if let Some(by) = kept.holds.first() {
            return Err(IllegalEvent::Held { version: active, by: by.clone() });
        }
        kept.epoch_hold = None;
        let deadline = deadline.map(|span| turn.now.plus(span));
        match &mut kept.compromise {
            Some(known) => known.deadline = [known.deadline, deadline].into_iter().flatten().min(),
            none => *none = Some(Compromise { deadline, expired: None, sessions_ended: false }),
        }
        if let Some(rollout) = &mut self.rollout {
            rollout.urgent = true;
        }
        turn.audit(format!("version {active} was said to be in foreign hands"));
        Ok(())
    }

    pub(super) fn import(&mut self, value: EffectId, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let version = Version::new(self.epoch.counter, 0);
        if self.versions.get(&version).is_some_and(|kept| kept.minted_by == value) {
            return Ok(());
        }
        if self.deleted {
            return Err(IllegalEvent::Deleted);
        }
        if !self.versions.is_empty() {
            return Err(IllegalEvent::NotEmpty);
        }
        let kept = Kept {
            minted: true,
            everywhere: true,
            epoch_hold: Some("import: unhold it once the list of targets is complete".into()),
            ..Kept::new(Phase::Active, value, turn.now)
        };
        self.versions.insert(version, kept);
        self.active = Some(version);
        turn.audit(format!("version {version} was imported"));
        Ok(())
    }

    pub(super) fn halt_by_word(&mut self, reason: String, turn: &mut Turn) -> Result<(), IllegalEvent> {
        if self.is_starting() {
            return Err(IllegalEvent::Starting);
        }
        if self.rollout.is_none() {
            return Err(IllegalEvent::NoRollout);
        }
        self.halt(reason, turn);
        Ok(())
    }

    pub(super) fn abort_by_word(&mut self, reason: &str, turn: &mut Turn) -> Result<(), IllegalEvent> {
        if self.is_starting() {
            return Err(IllegalEvent::Starting);
        }
        if self.deleted {
            return Err(IllegalEvent::Deleted);
        }
        if self.rollout.is_some() {
            self.abort(reason, turn);
            return Ok(());
        }
        self.abort_active(reason, turn)
    }

    pub(super) fn hold(&mut self, version: Version, by: String, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let kept = self.alive(version)?;
        if kept.phase == Phase::Retiring {
            return Err(IllegalEvent::Ended(version));
        }
        turn.audit.push(format!("version {version} is held by {by}"));
        kept.holds.insert(by);
        Ok(())
    }

    pub(super) fn unhold(&mut self, version: Version, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let kept = self.versions.get_mut(&version).ok_or(IllegalEvent::UnknownVersion(version))?;
        if !kept.holds.is_empty() || kept.epoch_hold.is_some() {
            turn.audit(format!("version {version} is no longer held"));
        }
        kept.holds.clear();
        kept.epoch_hold = None;
        Ok(())
    }

    pub(super) fn excuse(
        &mut self,
        target: &TargetId,
        version: Version,
        turn: &mut Turn,
    ) -> Result<(), IllegalEvent> {
        self.alive(version)?;
        self.target(target)?.excused.insert(version);
        turn.audit(format!("{target} is excused for version {version}"));
        Ok(())
    }

    pub(super) fn clear_holder(
        &mut self,
        id: &TargetId,
        holder: HolderId,
        turn: &mut Turn,
    ) -> Result<(), IllegalEvent> {
        let withdrawn: BTreeSet<Version> =
            self.versions.keys().copied().filter(|version| self.is_withdrawn(*version)).collect();
        let target = self.target(id)?;
        let report = target.report.iter();
        let mut shown: BTreeSet<Version> =
            report.flat_map(|r| &r.holders).filter(|h| h.id == holder).map(|h| h.version).collect();
        if let Some(current) = target.current().filter(|current| !withdrawn.contains(current))
            && shown.remove(&current)
            && shown.is_empty()
        {
            // Whoever has what is current goes on with it, whatever is said of an older one.
            return Err(IllegalEvent::HoldsCurrent { target: id.clone(), holder, version: current });
        }
        if shown.is_empty() {
            if target.cleared.iter().any(|(_, cleared)| *cleared == holder) {
                return Ok(());
            }
            return Err(IllegalEvent::UnknownHolder { target: id.clone(), holder });
        }
        turn.audit(format!("holder {holder} on {id} was cleared"));
        target.cleared.extend(shown.into_iter().map(|version| (version, holder.clone())));
        Ok(())
    }

    pub(super) fn clear_gap(
        &mut self,
        id: &TargetId,
        gap: GapId,
        turn: &mut Turn,
    ) -> Result<(), IllegalEvent> {
        let target = self.target(id)?;
        let mut shown = BTreeSet::new();
        if let Some(report) = &target.report {
            shown.extend(report.gaps.iter().filter(|g| g.id == gap).flat_map(|g| &g.versions).copied());
            shown.extend(report.places.iter().filter(|p| p.id == gap).flat_map(|p| &p.versions).copied());
        }
        if shown.is_empty() {
            if target.cleared_gaps.iter().any(|(_, cleared)| *cleared == gap) {
                return Ok(());
            }
            return Err(IllegalEvent::UnknownGap { target: id.clone(), gap });
        }
        turn.audit(format!("gap {gap} on {id} was cleared"));
        target.cleared_gaps.extend(shown.into_iter().map(|version| (version, gap.clone())));
        Ok(())
    }

    pub(super) fn retire_host(&mut self, id: &TargetId, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let target = self.target(id)?;
        if target.kind == TargetKind::Vm {
            // It never speaks again, and counts for nothing: where hosts come and go all day, nothing of them is kept.
            self.targets.remove(id);
        } else {
            // A resource may name the same path again, and is told so.
            target.retired = true;
            target.intent = None;
        }
        turn.audit(format!("{id} is retired for all versions"));
        Ok(())
    }

    pub(super) fn delete(&mut self, turn: &mut Turn) -> Result<(), IllegalEvent> {
        if self.is_starting() {
            return Err(IllegalEvent::Starting);
        }
        if !self.deleted {
            self.abort("the credential was deleted", turn);
            self.deleted = true;
            self.wish = None;
            turn.audit("the credential was deleted: it is withdrawn and retired");
        }
        Ok(())
    }

    pub(super) fn force(
        &mut self,
        version: Version,
        reason: String,
        turn: &mut Turn,
    ) -> Result<(), IllegalEvent> {
        let deleted = self.deleted;
        let kept = self.alive(version)?;
        if !deleted && !matches!(kept.phase, Phase::Superseded | Phase::Sealing | Phase::Retiring) {
            return Err(IllegalEvent::InUse(version));
        }
        if let Some(by) = kept.holds.first().or(kept.epoch_hold.as_ref()) {
            return Err(IllegalEvent::Held { version, by: by.clone() });
        }
        turn.audit(format!("version {version} is retired by force: {reason}"));
        kept.forced = Some(reason);
        Ok(())
    }

    fn alive(&mut self, version: Version) -> Result<&mut Kept, IllegalEvent> {
        let kept = self.versions.get_mut(&version).ok_or(IllegalEvent::UnknownVersion(version))?;
        if kept.phase.is_ended() { Err(IllegalEvent::Ended(version)) } else { Ok(kept) }
    }

    fn target(&mut self, id: &TargetId) -> Result<&mut Target, IllegalEvent> {
        self.targets.get_mut(id).ok_or_else(|| IllegalEvent::UnknownTarget(id.clone()))
    }

    /// Versions of ours that have not ended. What was only found does not count: no host can stop a rotation by naming
    /// what nobody minted.
    pub(in crate::credential) fn live(&self) -> usize {
        self.versions.values().filter(|kept| !kept.phase.is_ended() && !kept.found).count()
    }
}

impl Kept {
    pub(in crate::credential) fn new(phase: Phase, minted_by: EffectId, now: Millis) -> Self {
        Self {
            phase,
            minted_by,
            minted: false,
            stray_until: None,
            verified: false,
            checked: false,
            refused: false,
            aborted: None,
            first: false,
            found: false,
            swept_of: None,
            everywhere: false,
            sealed_before: false,
            holds: BTreeSet::new(),
            epoch_hold: None,
            compromise: None,
            forced: None,
            stuck: None,
            watch: Watch::default(),
            since: now,
        }
    }
}
