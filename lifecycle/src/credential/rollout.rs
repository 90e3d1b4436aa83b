//! One version on its way: preflight, mint, verify, stage everywhere, canaries, one instant for all others, waves.

use std::collections::BTreeSet;

use super::Credential;
use super::effect::EffectKind;
use super::policy::Overlap;
use super::state::{Course, Kept, Phase, Rollout, Stage, Stuck, Target, Wish};
use super::step::{IllegalEvent, Turn};
use crate::id::{EffectId, Millis, TargetId, Version};
use crate::report::{Refused, SetReport};

/// A target's own policy does not admit the set. Stops no rollout: what the target has is withdrawn.
pub(crate) const NOT_IN_POLICY: &str = "not_in_policy";

/// Refusals that say nothing about the version: the order is sent again in its turn, or the target flips when told.
const PASSING: [&str; 13] = [
    "clock_off",
    "disarmed",
    "expired",
    "flip_failed",
    "horizon",
    "in_use",
    "late",
    "not_current",
    "not_staged",
    "old_epoch",
    "older_generation",
    "stranger_epoch",
    NOT_IN_POLICY,
];

impl Credential {
    /// Starts a rollout for the wish that waits, when one may start.
    pub(crate) fn advance_wish(&mut self, turn: &mut Turn) -> bool {
        if self.is_starting() || self.deleted || self.orphaned {
            return false;
        }
        let Some(wish) = self.wish.clone() else { return false };
        if self.hurry && self.rollout.as_ref().is_some_and(|r| r.halted.is_some()) {
            self.abort("a compromised version must be replaced", turn);
        }
        if self.rollout.is_some() || !self.has_room() {
            return false;
        }
        self.wish = None;
        self.hurry = false;
        self.stuck = None;
        for target in self.targets.values_mut() {
            target.barred = false;
        }
        let urgent = self.versions.values().any(|kept| kept.compromise.is_some() && !kept.phase.is_ended());
        let (version, stage) = match wish {
            Wish::Rotate(_) => {
                self.emit(EffectKind::Preflight, turn);
                (None, Stage::Preflight)
            }
            Wish::Value(value) => {
                let version = self.next_version();
                self.versions.insert(version, self.minted_version(Phase::Minted, value, turn));
                (Some(version), Stage::Verify)
            }
        };
        turn.audit("a rollout begins");
        self.rollout = Some(Rollout {
            wish,
            version,
            stage,
            since: turn.now,
            canaries: BTreeSet::new(),
            halted: None,
            urgent,
        });
        true
    }

    fn has_room(&self) -> bool {
        match self.policy.overlap {
            Overlap::Versions => self.hurry || self.live() < self.policy.live_versions_max as usize,
            // The older of the pair passes its gate before the mint.
            Overlap::Pair | Overlap::None => true,
        }
    }

    /// Whether a version that comes now finds no other to return to.
    pub(crate) fn is_first(&self) -> bool {
        self.active.is_none() && self.versions.values().all(|kept| kept.aborted.is_some())
    }

    fn minted_version(&self, phase: Phase, value: EffectId, turn: &Turn) -> Kept {
        Kept { first: self.is_first(), minted: phase != Phase::Minting, ..Kept::new(phase, value, turn.now) }
    }

    pub(crate) fn begin_mint(&mut self, replaces: Option<EffectId>, turn: &mut Turn) {
        let version = self.next_version();
        let id = self.emit(EffectKind::Mint { version, replaces }, turn);
        let kept = self.minted_version(Phase::Minting, id, turn);
        self.versions.insert(version, kept);
        if let Some(rollout) = &mut self.rollout {
            rollout.version = Some(version);
            rollout.stage = Stage::Mint;
        }
    }

    /// The version whose end a pair's next mint waits for: alive and not the active one.
    pub(crate) fn pair_waits_for(&self) -> Option<Version> {
        if self.policy.overlap != Overlap::Pair {
            return None;
        }
        let mut alive = self.versions.iter().filter(|(_, kept)| !kept.phase.is_ended() && !kept.never_was());
        if self.rollout.as_ref().is_some_and(|r| r.stage == Stage::AwaitGate) {
            return alive.map(|(version, _)| *version).find(|version| Some(*version) != self.active);
        }
        // A start came between the gate and the mint: the gate is passed once more.
        let version = alive.find(|(_, kept)| self.is_replaced_by_open_mint(kept.minted_by));
        version.filter(|(_, kept)| kept.phase != Phase::Retiring).map(|(version, _)| *version)
    }

    pub(crate) fn is_replaced_by_open_mint(&self, minted_by: EffectId) -> bool {
        self.has_open(|kind| matches!(kind, EffectKind::Mint { replaces: Some(by), .. } if *by == minted_by))
    }

    pub(crate) fn advance_rollout(&mut self, turn: &mut Turn) -> bool {
        let Some(rollout) = &self.rollout else { return false };
        if self.is_starting() || rollout.halted.is_some() {
            return false;
        }
        match rollout.stage {
            Stage::Preflight | Stage::Mint => false,
            Stage::AwaitGate if self.pair_waits_for().is_some() => false,
            Stage::AwaitGate => {
                self.begin_mint(None, turn);
                true
            }
            Stage::Verify => self.leave_verify(turn),
            Stage::Staging | Stage::Canary | Stage::Flip { .. } => self.advance_delivery(turn),
        }
    }

    fn leave_verify(&mut self, turn: &mut Turn) -> bool {
        let Some(version) = self.rolling() else { return false };
        let Some(kept) = self.versions.get_mut(&version) else { return false };
        if kept.refused {
            self.halt(format!("the backend refuses a login with version {version}"), turn);
            return true;
        }
        if !kept.checked {
            return false;
        }
        kept.phase = Phase::Rolling;
        self.enter(Stage::Staging, turn);
        true
    }

    fn enter(&mut self, stage: Stage, turn: &Turn) {
        if let Some(rollout) = &mut self.rollout {
            rollout.stage = stage;
            rollout.since = turn.now;
        }
    }

    fn advance_delivery(&mut self, turn: &mut Turn) -> bool {
        let Some(version) = self.rolling() else { return false };
        if let Some(why) = self.why_halt(version, turn) {
            self.halt(why, turn);
            return true;
        }
        match self.rollout.as_ref().map(|r| r.stage) {
            Some(Stage::Staging) => self.leave_staging(version, turn),
            Some(Stage::Canary) => self.leave_canary(version, turn),
            Some(Stage::Flip { at }) => turn.reached(at) && self.leave_flip(version, turn),
            _ => false,
        }
    }

    /// Targets that take part: selected, or with something of the credential that is still served; and that can have
    /// the version at all.
    pub(crate) fn participants(&self) -> impl Iterator<Item = (&TargetId, &Target)> {
        let rolling = self.rolling();
        let can_have = move |t: &Target| rolling.is_none_or(|version| !t.means_another_by(version));
        self.targets.iter().filter(move |(_, t)| takes_part(t) && can_have(t))
    }

    /// Whether nobody waits for the target any more; it catches up when it returns.
    fn is_missing(&self, target: &Target, turn: &mut Turn) -> bool {
        let urgent = self.rollout.as_ref().is_some_and(|r| r.urgent);
        let patience = if urgent { Millis(0) } else { self.policy.barrier_ms };
        !target.connected && turn.reached(target.since.plus(patience))
    }

    fn leave_staging(&mut self, version: Version, turn: &mut Turn) -> bool {
        let Some(rollout) = &self.rollout else { return false };
        // Who has fallen silent can try nothing.
        let staged = self.participants().filter(|(_, t)| is_staged(t, version) && !self.is_missing(t, turn));
        let staged: BTreeSet<TargetId> = staged.map(|(id, _)| id.clone()).collect();
        let nobody = self.participants().next().is_none();
        let barrier = if rollout.urgent { Millis(0) } else { self.policy.barrier_ms };
        let over = turn.reached(rollout.since.plus(barrier));
        let waits = self.participants().any(|(_, t)| !is_staged(t, version) && !self.is_missing(t, turn));
        if !nobody && (staged.is_empty() || (waits && !over)) {
            return false;
        }
        let canaries = self.choose_canaries(&staged);
        let stage = if canaries.is_empty() { self.flip_stage(turn) } else { Stage::Canary };
        if let Some(rollout) = &mut self.rollout {
            rollout.canaries = canaries;
        }
        self.enter(stage, turn);
        true
    }

    fn flip_stage(&self, turn: &Turn) -> Stage {
        Stage::Flip { at: turn.now.plus(self.policy.arm_ms) }
    }

    /// The staged targets that are marked; where none of those is there, the first ones.
    fn choose_canaries(&self, staged: &BTreeSet<TargetId>) -> BTreeSet<TargetId> {
        let is_marked = |id: &&TargetId| self.targets.get(*id).is_some_and(|t| t.canary);
        let marked: BTreeSet<TargetId> = staged.iter().filter(is_marked).cloned().collect();
        if marked.is_empty() {
            staged.iter().take(self.policy.canaries as usize).cloned().collect()
        } else {
            marked
        }
    }

    fn leave_canary(&mut self, version: Version, turn: &mut Turn) -> bool {
        let Some(rollout) = &self.rollout else { return false };
        let (mut lost, mut waits) = (Vec::new(), false);
        for id in &rollout.canaries {
            let Some(target) = self.targets.get(id).filter(|t| takes_part(t)) else {
                lost.push(id.clone());
                continue;
            };
            if target.done_with(version) {
                continue;
            }
            if self.is_missing(target, turn) {
                lost.push(id.clone());
            } else {
                waits = true;
            }
        }
        if waits || rollout.canaries.is_empty() {
            return false;
        }
        if rollout.canaries.len() == lost.len() {
            // Every canary fell silent: others must try it first.
            self.enter(Stage::Staging, turn);
            return false;
        }
        let proved =
            rollout.canaries.iter().any(|id| self.targets.get(id).is_some_and(|t| t.proves(version)));
        let more = if proved { BTreeSet::new() } else { self.more_canaries(version, turn) };
        if !more.is_empty() {
            turn.audit("nothing ran on the canaries: others try it first");
            if let Some(rollout) = &mut self.rollout {
                rollout.canaries.extend(more);
            }
            return true;
        }
        self.enter(self.flip_stage(turn), turn);
        true
    }

    /// Targets on which something runs that can show whether the version is of use: as many again as tried it in vain.
    fn more_canaries(&self, version: Version, turn: &mut Turn) -> BTreeSet<TargetId> {
        let Some(rollout) = &self.rollout else { return BTreeSet::new() };
        let could_show = self.participants().filter(|(id, target)| {
            !rollout.canaries.contains(*id)
                && is_staged(target, version)
                && target.runs_something()
                && !self.is_missing(target, turn)
        });
        could_show.take(rollout.canaries.len()).map(|(id, _)| id.clone()).collect()
    }

    fn leave_flip(&mut self, version: Version, turn: &mut Turn) -> bool {
        let mut done = 0_usize;
        let mut waits = false;
        for (_, target) in self.participants() {
            if target.done_with(version) {
                done += 1;
            } else if !self.is_missing(target, turn) {
                waits = true;
            }
        }
        if waits || (done == 0 && self.participants().next().is_some()) {
            return false;
        }
        self.become_active(version, turn);
        true
    }

    fn become_active(&mut self, version: Version, turn: &mut Turn) {
        let old = self.active.replace(version);
        for (version, phase) in
            old.map(|old| (old, Phase::Superseded)).into_iter().chain([(version, Phase::Active)])
        {
            if let Some(kept) = self.versions.get_mut(&version) {
                kept.phase = phase;
                kept.since = turn.now;
            }
        }
        self.rollout = None;
        turn.audit(format!("version {version} is active"));
    }

    fn why_halt(&self, version: Version, turn: &mut Turn) -> Option<String> {
        if self.versions.get(&version).is_some_and(|kept| kept.refused) {
            return Some(format!("the backend refuses a login with version {version}"));
        }
        self.participants().find_map(|(id, target)| self.why_halt_for(id, target, version, turn))
    }

    fn why_halt_for(
        &self,
        id: &TargetId,
        target: &Target,
        version: Version,
        turn: &mut Turn,
    ) -> Option<String> {
        if target.left(version) {
            return Some(match target.rolled_back() {
                Some(why) => format!("{id} rolled back: {}: {}", why.consumer, why.reason),
                None => format!("{id} rolled back"),
            });
        }
        let intent = target.intent.as_ref().filter(|intent| intent.version == version)?;
        let ours = |refused: &&Refused| (refused.version, refused.generation) == (version, intent.generation);
        if let Some(refused) = target.report.as_ref().and_then(refused).filter(ours) {
            return Some(format!("{id} refused: {}: {}", refused.code, refused.message));
        }
        let adopting = intent.course == Course::Adopt && target.connected && !target.done_with(version);
        (adopting && turn.reached(intent.since.plus(self.policy.adopt_ms_max)))
            .then(|| format!("{id} has not adopted it in time"))
    }

    pub(crate) fn halt(&mut self, reason: String, turn: &mut Turn) {
        let Some(rollout) = &mut self.rollout else { return };
        if rollout.halted.is_none() {
            turn.audit(format!("the rollout is halted: {reason}"));
            rollout.halted = Some(reason);
            self.note_no_way_back();
        }
    }

    /// With no version to return to, only a new one helps.
    fn note_no_way_back(&mut self) {
        if !self.active.is_some_and(|active| self.is_sendable(active)) {
            self.stuck = Some(Stuck {
                reason: "no version is left to return to".into(),
                advice: "put right why the new one failed, then abort and rotate".into(),
            });
        }
    }

    pub(crate) fn abort(&mut self, reason: &str, turn: &mut Turn) {
        let Some(rollout) = self.rollout.take() else { return };
        turn.audit(format!("the rollout is aborted: {reason}"));
        if rollout.stage == Stage::Preflight {
            self.stuck = None;
        }
        self.drop_open(|kind| matches!(kind, EffectKind::Preflight));
        if let Some(version) = rollout.version {
            self.give_up(version, reason, turn);
        }
        self.note_no_way_back();
    }

    fn give_up(&mut self, version: Version, reason: &str, turn: &Turn) {
        self.drop_open(|kind| match kind {
            EffectKind::Mint { version: v, .. } | EffectKind::Verify { version: v, .. } => *v == version,
            _ => false,
        });
        let intent = self.policy.intent_ms;
        if let Some(kept) = self.versions.get_mut(&version) {
            if !kept.minted {
                kept.stray_until = Some(turn.now.plus(intent));
            }
            kept.phase = Phase::Superseded;
            kept.aborted = Some(reason.to_owned());
            kept.stuck = None;
            kept.since = turn.now;
        }
    }

    /// Gives up the active version, in favour of the newest one before it that is still alive.
    pub(crate) fn abort_active(&mut self, reason: &str, turn: &mut Turn) -> Result<(), IllegalEvent> {
        let active = self.active.ok_or(IllegalEvent::NothingToReturnTo)?;
        let before = self.versions.range(..active).rev().find(|(_, kept)| {
            kept.phase == Phase::Superseded
                && kept.verified
                && !kept.refused
                && kept.aborted.is_none()
                && !kept.sealed_before
                && kept.forced.is_none()
                && kept.compromise.is_none()
        });
        let (before, _) = before.ok_or(IllegalEvent::NothingToReturnTo)?;
        let before = *before;
        turn.audit(format!("version {active} is aborted in favour of {before}: {reason}"));
        self.give_up(active, reason, turn);
        let between = (std::ops::Bound::Excluded(before), std::ops::Bound::Excluded(active));
        for (_, kept) in self.versions.range_mut(between) {
            // Passed over, so that nothing later would ever replace it.
            if kept.phase == Phase::Superseded && kept.aborted.is_none() && !kept.found {
                kept.aborted = Some(reason.to_owned());
            }
        }
        if let Some(kept) = self.versions.get_mut(&before) {
            kept.phase = Phase::Active;
            kept.since = turn.now;
            kept.watch = super::state::Watch::default();
        }
        self.active = Some(before);
        Ok(())
    }

    pub(crate) fn resume(&mut self, turn: &mut Turn) -> Result<(), IllegalEvent> {
        if self.is_starting() {
            return Err(IllegalEvent::Starting);
        }
        let halted = self.rollout.as_ref().is_some_and(|r| r.halted.is_some());
        let waits_for_backend = self.stuck.is_some() && self.has_open(|kind| *kind == EffectKind::Preflight);
        let stuck = waits_for_backend || self.versions.values().any(|kept| kept.stuck.is_some());
        let returned =
            self.targets.values().any(|t| t.barred || t.left_in.keys().any(|version| t.left(*version)));
        if !halted && !stuck && !returned {
            return Err(IllegalEvent::NothingToResume);
        }
        turn.audit("resumed");
        if waits_for_backend {
            self.stuck = None;
        }
        if let Some(rollout) = self.rollout.as_mut().filter(|r| r.halted.is_some()) {
            rollout.halted = None;
            rollout.since = turn.now;
            if rollout.stage.delivers() {
                rollout.stage = Stage::Staging;
                rollout.canaries.clear();
            }
            self.stuck = None;
        }
        for kept in self.versions.values_mut() {
            kept.stuck = None;
            kept.refused = false;
        }
        for target in self.targets.values_mut() {
            target.unfit.clear();
            target.forgiven = target.left_in.values().copied().max().max(target.forgiven);
            target.barred = false;
            if target.report.as_ref().is_some_and(|r| r.refused.is_some()) {
                // A new intent, so that the old refusal is not read as its answer.
                target.intent = None;
            }
            if let Some(intent) = &mut target.intent {
                intent.since = turn.now;
            }
        }
        self.retry_all();
        Ok(())
    }

    /// The version of the rollout, once it is minted.
    pub(crate) fn rolling(&self) -> Option<Version> {
        self.rollout.as_ref().and_then(|r| r.version)
    }
}

/// Whether a rollout reaches the target.
pub(crate) fn takes_part(target: &Target) -> bool {
    !target.retired && !target.barred && (target.selected || !target.is_untouched())
}

/// The order that the target refused and that it would refuse again, if its report says so.
pub(crate) fn refused(report: &SetReport) -> Option<&Refused> {
    report.refused.as_ref().filter(|refused| !PASSING.contains(&refused.code.as_str()))
}

/// Whether a flip needs nothing more. A store has no invisible place: there the flip is the writing.
pub(crate) fn is_staged(target: &Target, version: Version) -> bool {
    target.has(version) || (target.is_store() && target.report.is_some())
}
