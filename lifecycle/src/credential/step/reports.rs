//! What targets say.

use super::Turn;
use crate::credential::Credential;
use crate::credential::event::TargetKind;
use crate::credential::numbers::NUMBER_MAX;
use crate::credential::state::{Kept, Phase, Stuck, Target, live_in};
use crate::id::{ConsumerName, EffectId, Generation, Millis, TargetId, Version};
use crate::report::{ConsumerState, Refused, SetReport};
use crate::versions::Versions;

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
        for name in target.dropped_consumers(&report) {
            turn.audit(format!("{name} on {id} was taken out of its host's policy: nothing waits for it"));
        }
        let report = self.in_our_numbers(&id, report, turn);
        self.note_sealed(&report.gone);
        if let Some(target) = self.targets.get_mut(&id) {
            target.issue_above(report.generation.filter(|newest| newest.epoch == epoch.counter));
            target.take(report);
        }
        self.note_nowhere_to_go(&id);
    }

    /// A target left a version by itself and has nothing to return to.
    fn note_nowhere_to_go(&mut self, id: &TargetId) {
        let Some(target) = self.targets.get(id) else { return };
        let Some(left) = target.rolled_back().filter(|left| left.to.is_none() && target.left(left.from))
        else {
            return;
        };
        if self.stuck.is_none() {
            self.stuck = Some(Stuck {
                reason: format!("{id} cannot use version {} and has none to return to", left.from),
                advice: "put right why it fails there, then rotate".into(),
            });
        }
    }

    /// Learns what the store does not know: a version that is sealed on a target.
    fn note_sealed(&mut self, gone: &Versions) {
        let epoch = self.epoch.counter;
        for (version, kept) in &mut self.versions {
            // In our own epoch we know ourselves what we sealed; a target's word alone kills nothing.
            if version.epoch < epoch && gone.contains(*version) && !kept.phase.is_dead() {
                kept.sealed_before = true;
            }
        }
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
    /// Its newest intent was issued by a store that fell back since: ours must be newer.
    fn issue_above(&mut self, newest: Option<Generation>) {
        let Some(newest) = newest.map(|generation| generation.number) else { return };
        if (self.issued + 1..=NUMBER_MAX).contains(&newest) {
            self.issued = newest;
            self.intent = None;
        }
    }

    fn take(&mut self, report: SetReport) {
        self.flips.retain(|version, generation| !flip_is_over(&report, *version, *generation));
        self.gone.add_all(&report.gone);
        for version in live_in(&report) {
            self.gone.remove(version);
        }
        let settled = report.consumers.values().all(|consumer| consumer.state == ConsumerState::Settled);
        if let Some(adopted) = report.adopted.filter(|_| settled) {
            self.healthy.retain(|version| *version != adopted);
            self.healthy.push(adopted);
        }
        let refuses = |r: &Refused| r.code == crate::credential::rollout::NOT_IN_POLICY;
        if report.in_policy {
            self.barred = false;
        } else if report.refused.as_ref().is_some_and(refuses) {
            self.barred = true;
        }
        self.unfit.retain(|version| !report.present.contains_key(version) && !report.gone.contains(*version));
        let lasting = crate::credential::rollout::refused(&report);
        self.unfit.extend(lasting.map(|refused| refused.version));
        if let Some(rolled_back) = &report.rolled_back {
            let left = self.left_in.entry(rolled_back.from).or_insert(rolled_back.generation);
            *left = rolled_back.generation.max(*left);
        }
        self.report = Some(report);
    }

    /// Consumers that the target's policy named and does not any more.
    fn dropped_consumers(&self, report: &SetReport) -> Vec<ConsumerName> {
        let before = self.report.iter().flat_map(|known| known.consumers.keys());
        before.filter(|name| !report.consumers.contains_key(*name)).cloned().collect()
    }

    pub(in crate::credential) fn forget(&mut self, version: Version) {
        self.sent.remove(&version);
        self.flips.remove(&version);
        self.gone.remove(version);
        self.excused.remove(&version);
        self.cleared.retain(|(v, _)| *v != version);
        self.cleared_gaps.retain(|(v, _)| *v != version);
        self.healthy.retain(|v| *v != version);
        self.left_in.remove(&version);
        self.unfit.remove(&version);
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
    report.gone.contains(version) || newer_epoch || newer_intent || disarmed || flipped
}
