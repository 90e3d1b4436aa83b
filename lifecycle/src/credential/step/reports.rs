//! What targets say.

use super::Turn;
use crate::credential::Credential;
use crate::credential::event::TargetKind;
use crate::credential::state::{Kept, Phase, Target, shows_live};
use crate::id::{EffectId, Generation, Millis, TargetId, Version};
use crate::report::{ConsumerState, SetReport};

impl Credential {
    pub(super) fn connect(&mut self, id: TargetId, connected: bool, turn: &Turn) {
        let target = self.target_entry(id, turn);
        if target.connected != connected {
            target.connected = connected;
            target.since = turn.now;
        }
    }

    /// Its word is not to be relied on until it reports whole again.
    pub(super) fn doubt(&mut self, id: TargetId, turn: &mut Turn) {
        turn.audit(format!("what {id} reports is incomplete"));
        let target = self.target_entry(id, turn);
        target.incomplete = true;
        target.answered = 0;
    }

    fn target_entry(&mut self, id: TargetId, turn: &Turn) -> &mut Target {
        self.targets.entry(id).or_insert_with(|| Target { since: turn.now, ..Target::default() })
    }

    pub(super) fn take_report(&mut self, id: TargetId, report: SetReport, turn: &mut Turn) {
        let (epoch, question) = (self.epoch, self.question);
        let target = self.target_entry(id.clone(), turn);
        let stale = target.report.as_ref().is_some_and(|known| report.sequence <= known.sequence);
        if target.retired || (stale && !target.incomplete) {
            return;
        }
        target.incomplete = false;
        if !std::mem::take(&mut target.excused).is_empty() {
            turn.audit(format!("{id} reports again: it is excused no more"));
        }
        if report.epoch == Some(epoch) {
            // No answer to a question that was not asked yet.
            target.answered = target.answered.max(report.answers.min(question));
        }
        target.take(report);
        self.absorb(&id, turn);
    }

    /// Learns what the store does not know: a version that lies on a target, and one that is sealed there.
    fn absorb(&mut self, id: &TargetId, turn: &mut Turn) {
        let Some(report) = self.targets.get(id).and_then(|t| t.report.as_ref()) else { return };
        let (gone, present) = (report.gone.clone(), report.present.clone());
        for version in &gone {
            // In our own epoch we know ourselves what we sealed; a target's word alone kills nothing.
            let old = version.epoch < self.epoch.counter;
            if let Some(kept) = self.versions.get_mut(version).filter(|kept| old && !kept.phase.is_dead()) {
                kept.sealed_before = true;
            }
        }
        for (version, effect) in present {
            match self.version_of(effect) {
                Some(known) if known != version => self.rename_found(known, version),
                Some(_) => self.note_presence(version),
                None => {
                    let taken = self.versions.contains_key(&version);
                    let version = if taken { self.next_version() } else { version };
                    turn.audit(format!("{id} has a version that no record names: kept as {version}"));
                    self.versions.insert(version, Kept::found(effect, turn.now));
                }
            }
        }
    }

    /// What the sweep found has a number after all, and is in use.
    fn rename_found(&mut self, known: Version, named: Version) {
        let ours = self.versions.get(&known).is_some_and(|kept| kept.found);
        if ours
            && !self.versions.contains_key(&named)
            && let Some(mut kept) = self.versions.remove(&known)
        {
            kept.aborted = None;
            self.versions.insert(named, kept);
        }
    }

    /// A target that has it proves that the backend made it.
    fn note_presence(&mut self, version: Version) {
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.minted = true;
        }
    }

    /// Above every number that we or a target ever named in this epoch.
    pub(in crate::credential) fn next_version(&self) -> Version {
        let epoch = self.epoch.counter;
        let reports = self.targets.values().filter_map(|t| t.report.as_ref());
        let named = reports.flat_map(|r| r.present.keys().chain(&r.gone)).copied();
        let newest = named
            .filter(|v| v.number < u32::MAX / 2)
            .chain(self.versions.keys().copied())
            .chain(self.active)
            .filter(|v| v.epoch == epoch)
            .map(|v| v.number)
            .max();
        Version::new(epoch, newest.map_or(1, |number| number.saturating_add(1).max(1)))
    }
}

impl Kept {
    /// One that stood in no record: it starts held, and every target counts for it.
    pub(in crate::credential) fn found(minted_by: EffectId, now: Millis) -> Self {
        Self {
            minted: true,
            found: true,
            everywhere: true,
            epoch_hold: Some("found: no record names it".into()),
            ..Self::new(Phase::Superseded, minted_by, now)
        }
    }
}

impl Target {
    fn take(&mut self, report: SetReport) {
        self.flips.retain(|version, generation| !flip_is_over(&report, *version, *generation));
        self.gone.extend(&report.gone);
        self.gone.retain(|version| !shows_live(&report, *version));
        let settled = report.consumers.values().all(|consumer| consumer.state == ConsumerState::Settled);
        if let Some(adopted) = report.adopted.filter(|_| settled) {
            self.healthy.retain(|version| *version != adopted);
            self.healthy.push(adopted);
        }
        if report.refused.as_ref().is_some_and(|r| r.code == crate::credential::rollout::NOT_IN_POLICY) {
            self.barred = true;
        }
        if let Some(rolled_back) = &report.rolled_back {
            let left = self.left_in.entry(rolled_back.from).or_insert(rolled_back.generation);
            *left = rolled_back.generation.max(*left);
        }
        self.report = Some(report);
    }

    pub(in crate::credential) fn forget(&mut self, version: Version) {
        self.sent.remove(&version);
        self.flips.remove(&version);
        self.gone.remove(&version);
        self.excused.remove(&version);
        self.cleared.retain(|(v, _)| *v != version);
        self.cleared_gaps.retain(|(v, _)| *v != version);
        self.healthy.retain(|v| *v != version);
        self.left_in.remove(&version);
    }

    pub(in crate::credential) fn is_store(&self) -> bool {
        self.kind == TargetKind::Store
    }
}

/// Whether an order of this generation to flip to the version can flip nothing any more.
fn flip_is_over(report: &SetReport, version: Version, generation: Generation) -> bool {
    if report.may_flip.contains(&version) || report.armed == Some(version) {
        return false;
    }
    let newer_epoch = report.epoch.is_some_and(|epoch| epoch.counter > generation.epoch);
    let newer_intent = report.generation.is_some_and(|g| g > generation);
    let disarmed = report.disarmed.is_some_and(|g| g >= generation);
    let flipped = report.current == Some(version) && report.generation == Some(generation);
    report.gone.contains(&version) || newer_epoch || newer_intent || disarmed || flipped
}
