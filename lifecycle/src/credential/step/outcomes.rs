//! How effects ended. Each names its effect, so one that comes twice changes nothing.

use std::collections::BTreeMap;

use super::Turn;
use crate::credential::Credential;
use crate::credential::effect::EffectKind;
use crate::credential::event::{Event, Outcome};
use crate::credential::outbox::Came;
use crate::credential::policy::Authority;
use crate::credential::state::{Kept, Phase, Sample, Stage, Stuck, Watch};
use crate::id::{EffectId, Epoch, Millis, Version};

impl Credential {
    pub(super) fn take_outcome(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::Preflighted { effect, outcome } => self.preflighted(effect, outcome, turn),
            Event::Minted { effect, outcome } => self.minted(effect, outcome, turn),
            Event::Verified { effect, outcome } => self.verified(effect, outcome, turn),
            Event::Sampled { effect, sessions } => self.sampled(effect, sessions, turn),
            Event::SessionsEnded { effect, outcome } => self.sessions_ended(effect, outcome, turn),
            Event::Revoked { effect, outcome } => self.revoked(effect, outcome, turn),
            Event::Swept { effect, found } => self.swept(effect, found, turn),
            _ => {}
        }
    }

    fn preflighted(&mut self, effect: EffectId, outcome: Outcome, turn: &mut Turn) {
        match self.come(effect, outcome, turn) {
            Came::Nothing => {}
            Came::Done(_) => {
                if let Some(rollout) = self.rollout.as_mut().filter(|r| r.stage == Stage::Preflight) {
                    rollout.stage = Stage::AwaitGate;
                    self.stuck = None;
                }
            }
            Came::Exhausted(_, why) => {
                turn.audit(format!("preflight failed again and again: {why}"));
                self.stuck = Some(Stuck {
                    reason: format!("whether we may mint and revoke cannot be found out: {why}"),
                    advice:
                        "it goes on by itself once the backend answers; resume tries at once, abort gives \
                             the rotation up"
                            .into(),
                });
            }
            Came::Refused(_, why) => {
                self.rollout = None;
                turn.audit(format!("preflight failed: {why}"));
                self.stuck = Some(Stuck {
                    reason: format!("the backend may not mint and revoke: {why}"),
                    advice: "put the backend's permissions right, then rotate".into(),
                });
            }
        }
    }

    fn minted(&mut self, effect: EffectId, outcome: Outcome, turn: &mut Turn) {
        let Some(version) = self.version_of(effect) else { return };
        match self.come(effect, outcome, turn) {
            Came::Nothing => {}
            Came::Done(kind) => self.note_mint(version, &kind, turn),
            Came::Refused(_, why) => {
                self.abort(&format!("the backend refused to mint it: {why}"), turn);
                self.stuck = Some(Stuck {
                    reason: format!("the backend refused to mint version {version}: {why}"),
                    advice: "put right what the backend says, then rotate".into(),
                });
            }
            Came::Exhausted(_, why) => self.get_stuck(
                version,
                format!("minting failed again and again: {why}"),
                "resume tries again; abort gives the version up",
                turn,
            ),
        }
    }

    fn note_mint(&mut self, version: Version, kind: &EffectKind, turn: &mut Turn) {
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.phase = Phase::Minted;
            kept.minted = true;
            kept.stuck = None;
        }
        if let Some(rollout) = self.rollout.as_mut().filter(|r| r.version == Some(version)) {
            rollout.stage = Stage::Verify;
        }
        turn.audit(format!("version {version} was minted"));
        if let EffectKind::Mint { replaces: Some(replaced), .. } = kind
            && let Some(old) = self.version_of(*replaced)
        {
            self.end(old, Phase::Retired, turn);
        }
    }

    fn verified(&mut self, effect: EffectId, outcome: Outcome, turn: &mut Turn) {
        match self.come(effect, outcome, turn) {
            Came::Done(EffectKind::Verify { version, .. }) => {
                if let Some(kept) = self.versions.get_mut(&version) {
                    kept.verified = true;
                    kept.checked = true;
                    kept.refused = false;
                    kept.stuck = None;
                }
            }
            Came::Refused(EffectKind::Verify { version, .. }, why) => {
                if let Some(kept) = self.versions.get_mut(&version) {
                    kept.refused = true;
                }
                self.get_stuck(
                    version,
                    format!("the backend refuses it: {why}"),
                    "it is sent nowhere; abort its rollout, or rotate",
                    turn,
                );
            }
            Came::Exhausted(EffectKind::Verify { version, .. }, why) => self.get_stuck(
                version,
                format!("it could not be verified: {why}"),
                "resume tries again once the backend answers",
                turn,
            ),
            _ => {}
        }
    }

    fn sampled(&mut self, effect: EffectId, sessions: Option<u32>, turn: &Turn) {
        if self.outbox.remove(&effect).is_none() {
            return;
        }
        let every = self.policy.sample_ms;
        for kept in self.versions.values_mut() {
            let watch = &mut kept.watch;
            let looked = watch.is_looked_at(turn.now, every);
            let in_round = watch.round.as_mut().filter(|round| round.sample == effect);
            let ours = in_round.is_some() || watch.sampling == Some(effect);
            if let Some(round) = in_round {
                round.sampled = true;
            }
            if watch.sampling == Some(effect) {
                watch.sampling = None;
            }
            if ours {
                if !looked && let Some(quiet) = &mut watch.quiet {
                    // What passed since anybody looked counts for nothing.
                    quiet.observed = turn.now;
                }
                watch.sample = Some(Sample { sessions, at: turn.now });
            }
        }
    }

    fn sessions_ended(&mut self, effect: EffectId, outcome: Outcome, turn: &mut Turn) {
        match self.come(effect, outcome, turn) {
            Came::Done(EffectKind::EndSessions { version, .. }) => {
                if let Some(kept) = self.versions.get_mut(&version) {
                    kept.stuck = None;
                }
                turn.audit(format!("the backend's sessions of version {version} were ended"));
            }
            Came::Refused(EffectKind::EndSessions { version, .. }, why)
            | Came::Exhausted(EffectKind::EndSessions { version, .. }, why) => self.get_stuck(
                version,
                format!("its sessions could not be ended: {why}"),
                "end them at the backend by hand",
                turn,
            ),
            _ => {}
        }
    }

    fn revoked(&mut self, effect: EffectId, outcome: Outcome, turn: &mut Turn) {
        match self.come(effect, outcome, turn) {
            Came::Done(EffectKind::Revoke { version, .. }) => {
                let phase = match self.policy.authority {
                    Authority::Revokes => Phase::Retired,
                    Authority::ValueOnly | Authority::External => Phase::Erased,
                };
                self.end(version, phase, turn);
            }
            Came::Refused(EffectKind::Revoke { version, .. }, why)
            | Came::Exhausted(EffectKind::Revoke { version, .. }, why) => self.get_stuck(
                version,
                format!("it could not be revoked: {why}"),
                "put right what the backend says, then resume",
                turn,
            ),
            _ => {}
        }
    }

    fn swept(&mut self, effect: EffectId, found: Option<BTreeMap<EffectId, Epoch>>, turn: &mut Turn) {
        if self.outbox.remove(&effect).is_none() {
            return;
        }
        let Some(found) = found else {
            let again = turn.now.plus(self.policy.retry_ms_max.max(Millis(1)));
            self.sweep_at = Some(self.sweep_at.map_or(again, |at| at.min(again)));
            return;
        };
        for (mark, epoch) in found {
            if let Some(version) = self.version_of(mark) {
                self.revive_leftover(version, turn);
                continue;
            }
            let version = self.next_version();
            turn.audit(format!("the backend has a version that no record names: kept as {version}"));
            let kept = Kept {
                first: self.is_first(),
                // Never known to be in use: any other version may replace it.
                aborted: Some("found at the backend; no record names it".into()),
                swept_of: Some(epoch),
                ..Kept::found(mark, turn.now)
            };
            self.versions.insert(version, kept);
        }
    }

    /// An aborted mint that reached the backend after its revocation had found nothing.
    fn revive_leftover(&mut self, version: Version, turn: &mut Turn) {
        let Some(kept) = self.versions.get_mut(&version) else { return };
        if kept.phase.is_ended() {
            kept.phase = Phase::Sealing;
            kept.minted = true;
            kept.since = turn.now;
            kept.watch = Watch { sealing_since: Some(turn.now), ..Watch::default() };
            turn.audit(format!(
                "version {version} is at the backend after its end: it is to be revoked again"
            ));
        }
    }

    pub(in crate::credential) fn end(&mut self, version: Version, phase: Phase, turn: &mut Turn) {
        let now = turn.now;
        if let Some(kept) = self.versions.get_mut(&version).filter(|kept| !kept.phase.is_ended()) {
            kept.phase = phase;
            kept.stuck = None;
            kept.since = now;
            kept.watch = Watch::default();
            kept.epoch_hold = None;
            kept.holds.clear();
            let word = if phase == Phase::Erased { "erased" } else { "revoked" };
            turn.audit(format!("version {version} was {word}"));
        }
    }

    fn get_stuck(&mut self, version: Version, reason: String, advice: &str, turn: &mut Turn) {
        turn.audit(format!("version {version}: {reason}"));
        if let Some(kept) = self.versions.get_mut(&version) {
            kept.stuck = Some(Stuck { reason, advice: advice.into() });
        }
    }

    pub(in crate::credential) fn version_of(&self, minted_by: EffectId) -> Option<Version> {
        self.versions.iter().find(|(_, kept)| kept.minted_by == minted_by).map(|(version, _)| *version)
    }
}
