//! The time after a start: nothing goes out before the reachable targets have answered since then.

use super::Credential;
use super::effect::EffectKind;
use super::policy::Authority;
use super::state::{Life, Phase};
use super::step::{IllegalEvent, Turn};
use crate::id::{Epoch, Millis};

pub(crate) fn begin(
    credential: &mut Credential,
    epoch: Epoch,
    restored: bool,
    turn: &mut Turn,
) -> Result<(), IllegalEvent> {
    let known = credential.epoch;
    if epoch.counter < known.counter || (epoch.counter == known.counter && epoch.id != known.id) {
        return Err(IllegalEvent::OldEpoch { given: epoch, known });
    }
    if restored || epoch != known {
        credential.begin_epoch(epoch, turn);
    }
    credential.drop_open(|kind| {
        matches!(
            kind,
            EffectKind::Send { .. }
                | EffectKind::Ask { .. }
                | EffectKind::Sample { .. }
                | EffectKind::Sweep
                | EffectKind::Revoke { .. }
        )
    });
    // What was asked for before the start is asked for again, and may arrive twice.
    let intent = credential.policy.intent_ms;
    for pending in credential.outbox.values().filter(|pending| pending.handed_out) {
        if let EffectKind::Mint { version, .. } = pending.effect.kind
            && let Some(kept) = credential.versions.get_mut(&version)
        {
            kept.stray_until = Some(turn.now.plus(intent));
        }
    }
    for pending in credential.outbox.values_mut() {
        pending.handed_out = false;
        pending.again = None;
    }
    credential.life = Life::Starting { since: turn.now };
    credential.question += 1;
    credential.baseline = credential.question;
    for target in credential.targets.values_mut() {
        target.connected = false;
        target.since = turn.now;
    }
    for kept in credential.versions.values_mut() {
        kept.checked = false;
        kept.refused = false;
        kept.watch.sampling = None;
        kept.watch.round = None;
        if let Some(quiet) = &mut kept.watch.quiet {
            // Nobody looked while we were away, so that time does not count.
            quiet.observed = turn.now;
        }
        // The store may be older than the truth: the gate is looked at once more before anything is revoked.
        if kept.phase == Phase::Retiring {
            kept.phase = Phase::Sealing;
        }
    }
    Ok(())
}

pub(crate) fn advance(credential: &mut Credential, turn: &mut Turn) -> bool {
    let Life::Starting { since } = credential.life else { return false };
    let waiting = |connected_only: bool| {
        credential
            .targets
            .values()
            .filter(|t| !t.retired && (t.connected || !connected_only))
            .any(|t| t.answered < credential.baseline)
    };
    if waiting(false) && (waiting(true) || !turn.reached(since.plus(credential.policy.start_wait_ms))) {
        // The deadline is due even while a reachable target keeps us waiting.
        turn.reached(since.plus(credential.policy.start_wait_ms));
        return false;
    }
    credential.life = Life::Running;
    // A first life begins with nothing; a later one may have forgotten all that there is.
    let earlier = !credential.versions.is_empty() || credential.epoch.counter > 1;
    if credential.policy.authority == Authority::Revokes && earlier {
        credential.sweep_at = Some(turn.now);
    }
    true
}

impl Credential {
    fn begin_epoch(&mut self, epoch: Epoch, turn: &mut Turn) {
        let counter = epoch.counter;
        turn.audit(format!("epoch {counter} begins: the store may be older than the truth"));
        for (version, kept) in &mut self.versions {
            if version.epoch < counter && !kept.phase.is_ended() {
                kept.everywhere = true;
                kept.epoch_hold = Some(format!("epoch {counter}: the store was restored"));
            }
        }
        for target in self.targets.values_mut() {
            target.issued = 0;
            target.intent = None;
            target.answered = 0;
        }
        self.epoch = epoch;
        // Above every question of the life before, so that an old answer proves nothing.
        self.question = self.question.max(u64::from(counter) << 32);
    }

    /// Whether the backend is to be searched, or has not answered yet.
    pub(crate) fn is_to_be_swept(&self) -> bool {
        let waits = self.sweep_at.is_some() || self.has_open(|kind| matches!(kind, EffectKind::Sweep));
        self.policy.authority == Authority::Revokes && (waits || self.is_starting())
    }

    /// Searches the backend for our marks after a start, and as long as a request to mint could still arrive there.
    pub(crate) fn advance_sweep(&mut self, turn: &mut Turn) {
        if self.is_starting() || self.policy.authority != Authority::Revokes {
            return;
        }
        let open = self.versions.values().any(|kept| kept.could_arrive(turn.now));
        let at = match self.sweep_at {
            Some(at) => at,
            None if open => turn.now.plus(self.policy.sweep_ms),
            None => return,
        };
        self.sweep_at = Some(at);
        if self.has_open(|kind| matches!(kind, EffectKind::Sweep)) || !turn.reached(at) {
            return;
        }
        self.emit(EffectKind::Sweep, turn);
        self.sweep_at = open.then(|| turn.now.plus(self.policy.sweep_ms).max(Millis(turn.now.0 + 1)));
    }

    /// Forgets versions that have ended everywhere, but for the newest few, which people may still ask about.
    pub(crate) fn forget_ended(&mut self, now: Millis) {
        const KEPT_FOR_PEOPLE: usize = 8;
        let ended: Vec<_> = self
            .versions
            .iter()
            .filter(|(_, kept)| kept.phase.is_ended())
            .map(|(version, kept)| (*version, kept.minted_by, kept.could_arrive(now)))
            .collect();
        let surplus = ended.len().saturating_sub(KEPT_FOR_PEOPLE);
        for (version, minted_by, could_arrive) in ended.into_iter().take(surplus) {
            let gone_there = |t: &super::state::Target| {
                t.retired
                    || t.gone.contains(version)
                    || (!t.sent.contains(&version) && !t.shows(version, minted_by))
            };
            if !could_arrive && self.targets.values().all(gone_there) {
                self.versions.remove(&version);
                for target in self.targets.values_mut() {
                    target.forget(version);
                }
            }
        }
    }
}
