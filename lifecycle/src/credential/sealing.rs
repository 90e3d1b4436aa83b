//! From superseded to retired: the gate, the seals, the gate again on fresh words, the revocation.

use std::collections::BTreeSet;

use super::Credential;
use super::effect::EffectKind;
use super::gate::{self, Clause, Look};
use super::policy::{Authority, Overlap};
use super::state::{Kept, Phase, Quiet, Round, Target, Watch};
use super::step::Turn;
use crate::id::{GapId, HolderId, Millis, TargetId, Version};

/// A count of sessions is good for two intervals, and for this long at the least.
const LOOKED_MS: Millis = Millis(10_000);

impl Watch {
    /// Whether the newest count of sessions still says something.
    pub(crate) fn is_looked_at(&self, now: Millis, every: Millis) -> bool {
        self.sample.is_some_and(|sample| now.since(sample.at) <= every.plus(every).max(LOOKED_MS))
    }
}

impl Credential {
    pub(crate) fn grace(&self) -> Millis {
        self.policy.grace_ms.plus(self.policy.tail_ms)
    }

    pub(crate) fn advance_gates(&mut self, turn: &mut Turn) -> bool {
        if self.is_starting() {
            return false;
        }
        let alive = self.versions.iter().filter(|(_, kept)| !kept.phase.is_ended());
        let alive: Vec<Version> = alive.map(|(version, _)| *version).collect();
        alive.into_iter().fold(false, |moved, version| self.advance_gate(version, turn) | moved)
    }

    fn advance_gate(&mut self, version: Version, turn: &mut Turn) -> bool {
        let Some(phase) = self.versions.get(&version).map(|kept| kept.phase) else { return false };
        match phase {
            Phase::Superseded | Phase::Sealing => {}
            Phase::Active if self.deleted => {}
            Phase::Retiring if self.lost_its_mint(version) => {
                self.back_to_sealing(version, turn);
                return true;
            }
            Phase::Retiring => return self.ensure_revoke(version, turn),
            _ => return false,
        }
        self.expire(version, turn);
        self.end_sessions(version, turn);
        let failing = self.watch_clauses(version, turn);
        self.look(version, turn);
        if phase == Phase::Sealing && !self.is_gone(version, turn) {
            self.drop_round(version);
            return false;
        }
        let only_fresh = failing.iter().all(|clause| *clause == Clause::Fresh);
        if !only_fresh {
            self.drop_round(version);
            return false;
        }
        if phase == Phase::Sealing && self.is_kept_for_mint(version) {
            self.drop_round(version);
            return false;
        }
        if !failing.is_empty() {
            return self.begin_round(version, turn);
        }
        self.pass(version, phase, turn)
    }

    /// Notes since when each clause fails, and for how long nobody has had the version.
    fn watch_clauses(&mut self, version: Version, turn: &mut Turn) -> BTreeSet<Clause> {
        let mut failing = gate::failing(self, version, turn.now);
        let needed = self.grace();
        let every = self.policy.sample_ms;
        let quiet = gate::QUIET.iter().all(|clause| !failing.contains(clause));
        let Some(kept) = self.versions.get_mut(&version) else { return failing };
        let watch = &mut kept.watch;
        if quiet {
            let known = watch.quiet.unwrap_or(Quiet { accrued: Millis(0), observed: turn.now });
            // Time in which nobody looked at the backend is no time in which it was quiet.
            let looked = watch.is_looked_at(turn.now, every);
            let passed = if looked { turn.now.since(known.observed) } else { Millis(0) };
            let accrued = known.accrued.plus(passed);
            watch.quiet = Some(Quiet { accrued: accrued.min(needed), observed: turn.now });
            if accrued < needed {
                turn.reached(turn.now.plus(needed.since(accrued)));
            } else {
                failing.remove(&Clause::Grace);
            }
        } else {
            watch.quiet = None;
        }
        let only_sessions =
            gate::QUIET.iter().all(|clause| failing.contains(clause) == (*clause == Clause::BackendQuiet));
        if only_sessions && !watch.only_sessions && watch.sampling.is_none() {
            // The count at hand is of a time when others had it too.
            watch.recount = true;
        }
        watch.only_sessions = only_sessions;
        watch.free = watch.free.or(Some(turn.now)).filter(|_| !failing.contains(&Clause::NoHolder));
        watch.failing.retain(|clause, _| failing.contains(clause));
        for clause in &failing {
            watch.failing.entry(*clause).or_insert(turn.now);
        }
        failing
    }

    /// Counts the backend's sessions now and then, and at once when they alone are in the way.
    fn look(&mut self, version: Version, turn: &mut Turn) {
        let every = self.policy.sample_ms;
        let Some(kept) = self.versions.get(&version) else { return };
        if kept.watch.sampling.is_some() || kept.forced.is_some() {
            return;
        }
        let due = kept.watch.sample.is_none_or(|sample| turn.reached(sample.at.plus(every.max(Millis(1)))));
        if !due && !kept.watch.recount {
            return;
        }
        let minted_by = kept.minted_by;
        let id = self.emit(EffectKind::Sample { version, minted_by }, turn);
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.watch.sampling = Some(id);
            kept.watch.recount = false;
        }
    }

    fn begin_round(&mut self, version: Version, turn: &mut Turn) -> bool {
        let Some(kept) = self.versions.get(&version).filter(|kept| kept.watch.round.is_none()) else {
            if self.versions.get(&version).is_some_and(|kept| kept.compromise.is_some()) {
                self.wait_for_silence(version, turn);
            }
            return false;
        };
        let minted_by = kept.minted_by;
        let sample = self.emit(EffectKind::Sample { version, minted_by }, turn);
        self.question += 1;
        let round = Round { question: self.question, sample, sampled: false, since: turn.now };
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.watch.round = Some(round);
        }
        true
    }

    /// After a deadline a target that does not answer within the barrier is silent.
    fn wait_for_silence(&self, version: Version, turn: &mut Turn) {
        let round = self.versions.get(&version).and_then(|kept| kept.watch.round.as_ref());
        if let Some(round) = round {
            turn.reached(round.since.plus(self.policy.barrier_ms));
        }
    }

    fn drop_round(&mut self, version: Version) {
        let round = self.versions.get_mut(&version).and_then(|kept| kept.watch.round.take());
        if let Some(round) = round {
            self.outbox.remove(&round.sample);
        }
    }

    /// The gate is open: the next step towards the end.
    fn pass(&mut self, version: Version, phase: Phase, turn: &mut Turn) -> bool {
        self.drop_round(version);
        let next = if phase == Phase::Sealing { Phase::Retiring } else { Phase::Sealing };
        let interrupted = self.policy.overlap == Overlap::None;
        let by_mint = self.ends_by_mint(version);
        if self.active == Some(version) {
            self.active = None;
        }
        let Some(kept) = self.versions.get_mut(&version) else { return false };
        kept.phase = next;
        kept.since = turn.now;
        let minted_by = kept.minted_by;
        if next == Phase::Sealing {
            kept.watch.sealing_since = Some(turn.now);
            turn.audit(format!("version {version} is being sealed"));
        } else {
            // Whatever went wrong with it before, nobody has it any more: only a failed revocation counts from here on.
            kept.stuck = None;
            turn.audit(format!("version {version} is gone everywhere and is being retired"));
            if by_mint && !self.is_replaced_by_open_mint(minted_by) {
                self.begin_mint(Some(minted_by), turn);
            } else if interrupted && !self.deleted {
                // The mint of its successor was its revocation.
                self.end(version, Phase::Retired, turn);
            }
        }
        true
    }

    /// Of a pair: only the next mint can end it.
    fn ends_by_mint(&self, version: Version) -> bool {
        let never_was = self.versions.get(&version).is_some_and(Kept::never_was);
        self.policy.overlap == Overlap::Pair && !self.deleted && !never_was
    }

    /// Of a pair: the next mint ends it, and there is none yet.
    fn is_kept_for_mint(&self, version: Version) -> bool {
        self.ends_by_mint(version) && self.pair_waits_for() != Some(version)
    }

    /// The mint that was to end it was given up.
    fn lost_its_mint(&self, version: Version) -> bool {
        let minted_by = self.versions.get(&version).map(|kept| kept.minted_by);
        self.ends_by_mint(version) && minted_by.is_some_and(|by| !self.is_replaced_by_open_mint(by))
    }

    /// It passes its gate once more, for the next mint.
    fn back_to_sealing(&mut self, version: Version, turn: &mut Turn) {
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.phase = Phase::Sealing;
            kept.since = turn.now;
            turn.audit(format!("version {version} stays: what was to replace it was given up"));
        }
    }

    fn ensure_revoke(&mut self, version: Version, turn: &mut Turn) -> bool {
        let Some(kept) = self.versions.get(&version).filter(|kept| kept.stuck.is_none()) else {
            return false;
        };
        let minted_by = kept.minted_by;
        let under_way = self.has_open(|kind| match kind {
            EffectKind::Revoke { version: v, .. } => *v == version,
            EffectKind::Mint { replaces, .. } => *replaces == Some(minted_by),
            _ => false,
        });
        if under_way || self.ends_by_mint(version) {
            return false;
        }
        self.emit(EffectKind::Revoke { version, minted_by }, turn);
        true
    }

    /// Whether every target that counts says that the version is gone there.
    fn is_gone(&self, version: Version, turn: &mut Turn) -> bool {
        let Some(kept) = self.versions.get(&version) else { return false };
        if kept.forced.is_some() || self.unsealed {
            return true;
        }
        let look = Look::new(self, version, kept, turn.now);
        if look.left().next().is_none() {
            return true;
        }
        let expired = kept.compromise.as_ref().is_some_and(|c| c.expired.is_some());
        let since = kept.watch.sealing_since.unwrap_or(turn.now);
        // What holds out past a deadline is not waited for without end.
        expired && turn.reached(since.plus(self.policy.barrier_ms))
    }

    /// The deadline of a compromised version: holders count as cleared and silent targets as excused, but never
    /// while no other version is current on the targets that answer, and not while the rollout is halted.
    fn expire(&mut self, version: Version, turn: &mut Turn) {
        let halted = self.rollout.as_ref().is_some_and(|r| r.halted.is_some());
        let Some(kept) = self.versions.get(&version) else { return };
        let Some(compromise) = kept.compromise.as_ref().filter(|c| c.expired.is_none()) else { return };
        let Some(deadline) = compromise.deadline else { return };
        if halted || !turn.reached(deadline) {
            return;
        }
        let answers = |t: &&Target| !t.retired && !t.barred && t.connected && t.answered >= self.baseline;
        let stands_in = |t: &Target| {
            t.current().and_then(|v| Some((v, self.versions.get(&v)?))).is_some_and(|(v, other)| {
                v != version && other.verified && other.aborted.is_none() && !other.phase.is_dead()
            })
        };
        let answering: Vec<&Target> = self
            .targets
            .values()
            .filter(answers)
            .filter(|t| !t.gone.contains(version) || t.current().is_some())
            .collect();
        let replaced = answering.iter().all(|t| stands_in(t)) && !answering.is_empty();
        if !replaced && !self.targets.values().all(|t| t.retired) {
            return;
        }
        let silent: BTreeSet<TargetId> = self
            .targets
            .iter()
            .filter(|(_, t)| !t.retired && !t.barred && !answers(t))
            .map(|(id, _)| id.clone())
            .collect();
        turn.audit(format!(
            "the deadline of version {version} has come: its holders are cleared, {} silent targets excused",
            silent.len()
        ));
        if let Some(compromise) = self.versions.get_mut(&version).and_then(|kept| kept.compromise.as_mut()) {
            compromise.expired = Some(silent);
        }
    }

    /// Ends the sessions of a version in foreign hands, once they no longer count.
    fn end_sessions(&mut self, version: Version, turn: &mut Turn) {
        let Some(kept) = self.versions.get(&version) else { return };
        let ended = kept.compromise.as_ref().is_none_or(|c| c.sessions_ended);
        if ended || self.policy.authority != Authority::Revokes {
            return;
        }
        if !Look::new(self, version, kept, turn.now).is_waived() {
            return;
        }
        let minted_by = kept.minted_by;
        self.emit(EffectKind::EndSessions { version, minted_by }, turn);
        turn.audit(format!("version {version} is in foreign hands: its sessions are ended"));
        if let Some(compromise) = self.versions.get_mut(&version).and_then(|kept| kept.compromise.as_mut()) {
            compromise.sessions_ended = true;
        }
    }

    /// What a `seal` names as cleared on a target.
    pub(crate) fn cleared(&self, target: &Target, version: Version) -> (BTreeSet<HolderId>, BTreeSet<GapId>) {
        let mut holders: BTreeSet<HolderId> =
            target.cleared.iter().filter(|(v, _)| *v == version).map(|(_, id)| id.clone()).collect();
        let mut gaps: BTreeSet<GapId> =
            target.cleared_gaps.iter().filter(|(v, _)| *v == version).map(|(_, id)| id.clone()).collect();
        let kept = self.versions.get(&version);
        let all = kept.is_some_and(|kept| {
            kept.forced.is_some() || kept.compromise.as_ref().is_some_and(|c| c.expired.is_some())
        });
        if all && let Some(report) = &target.report {
            holders.extend(report.holders.iter().filter(|h| h.version == version).map(|h| h.id.clone()));
            gaps.extend(report.gaps.iter().filter(|g| g.versions.contains(&version)).map(|g| g.id.clone()));
            gaps.extend(report.places.iter().filter(|p| p.versions.contains(&version)).map(|p| p.id.clone()));
        }
        (holders, gaps)
    }
}
