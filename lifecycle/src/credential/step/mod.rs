//! The one way in which a credential changes: an event is taken in, then everything that follows from it is done.
//!
//! Taking an event in only records what it says. What to do about it is worked out anew from the whole state each
//! time, so an event that is lost, late or repeated is made good by the next one.

mod outcomes;
mod reports;
mod words;

use super::effect::{Effect, EffectKind};
use super::event::{Event, Input};
use super::{Credential, starting};
use crate::id::{EffectId, Epoch, GapId, HolderId, Millis, TargetId, Version};

/// Why an event was not taken. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalEvent {
    /// Nothing is minted, sent or given up before the targets have answered since the start.
    #[error("the credential is starting: its targets have not all answered yet; try again in a moment")]
    Starting,
    /// As many versions are alive as may be.
    #[error("{live} versions are alive, and at most {max} may be")]
    TooManyLive {
        /// How many are alive.
        live: usize,
        /// How many may be.
        max: u32,
    },
    /// No such version.
    #[error("there is no version {0}; see `esoctl credential show`")]
    UnknownVersion(Version),
    /// No such target.
    #[error("{0} is no target of this credential")]
    UnknownTarget(TargetId),
    /// No such holder in the newest report.
    #[error("{target} does not report a holder {holder}; see `esoctl holders list`")]
    UnknownHolder {
        /// The target.
        target: TargetId,
        /// The holder.
        holder: HolderId,
    },
    /// It holds what is current there and nothing older.
    #[error(
        "{holder} on {target} holds version {version}, which is current there: only older ones are cleared"
    )]
    HoldsCurrent {
        /// The target.
        target: TargetId,
        /// The holder.
        holder: HolderId,
        /// What it holds.
        version: Version,
    },
    /// No such gap or place in the newest report.
    #[error("{target} does not report a gap or place {gap}; see `esoctl holders list`")]
    UnknownGap {
        /// The target.
        target: TargetId,
        /// The gap.
        gap: GapId,
    },
    /// There is no rollout to stop.
    #[error("no rollout is under way")]
    NoRollout,
    /// Nothing was stopped.
    #[error("nothing is halted or stuck, so there is nothing to resume")]
    NothingToResume,
    /// No earlier version is left.
    #[error("no earlier version is left to return to; rotate instead")]
    NothingToReturnTo,
    /// An operator holds the version.
    #[error("version {version} is held by {by}; unhold it first")]
    Held {
        /// The version.
        version: Version,
        /// Who holds it.
        by: String,
    },
    /// The version is in use by intent.
    #[error("version {0} is the one that targets should have; rotate first")]
    InUse(Version),
    /// The version has ended.
    #[error("version {0} has ended")]
    Ended(Version),
    /// Nothing can be rotated any more.
    #[error("the credential was deleted")]
    Deleted,
    /// Its resource vanished or was refused: it is served as before, and nothing of it is rotated or retired.
    #[error("the credential's resource is not there, so nothing is rotated")]
    Orphaned,
    /// The backend holds one version only.
    #[error("the backend can hold one version only, so a rotation interrupts")]
    Interrupts,
    /// An import comes first or not at all.
    #[error("the credential has versions already; only an empty one can import")]
    NotEmpty,
    /// The store is older than the state.
    #[error("epoch {given} is not the state's own epoch {known} nor a later one", given = .given.counter, known = .known.counter)]
    OldEpoch {
        /// What was said.
        given: Epoch,
        /// What the state knows.
        known: Epoch,
    },
}

/// One event: a value in, a value out, and what is to be done about it.
///
/// The effects are those that stand in the outbox and were not handed out since the last start, those whose time
/// to be tried again has come, and audit entries, which stand in no outbox.
pub fn step(
    mut state: Credential,
    input: Input,
    event: Event,
) -> Result<(Credential, Vec<Effect>), IllegalEvent> {
    let effects = state.apply(input, event)?;
    Ok((state, effects))
}

impl Credential {
    /// [`step`] in place. After an error the state is as it was.
    pub fn apply(&mut self, input: Input, event: Event) -> Result<Vec<Effect>, IllegalEvent> {
        let mut turn = Turn { now: input.now, fresh: input.fresh, made: 0, audit: Vec::new(), due: None };
        self.take(event, &mut turn)?;
        self.advance(&mut turn);
        self.due = turn.due;
        Ok(self.hand_out(turn))
    }

    fn take(&mut self, event: Event, turn: &mut Turn) -> Result<(), IllegalEvent> {
        match event {
            Event::Tick => Ok(()),
            Event::Started { epoch, restored } => starting::begin(self, epoch, restored, turn),
            Event::PolicyChanged(policy) => {
                self.policy = policy;
                Ok(())
            }
            Event::Selected(targets) => {
                self.select(&targets, turn);
                Ok(())
            }
            Event::Orphaned(orphaned) => {
                self.orphaned = orphaned;
                Ok(())
            }
            Event::Rotate(rotate) => self.wish_rotation(rotate.reason, turn),
            Event::Noticed { value } => self.wish_value(value),
            Event::Imported { value } => self.import(value, turn),
            Event::Halt { reason } => self.halt_by_word(reason, turn),
            Event::Resume => self.resume(turn),
            Event::Abort { reason } => self.abort_by_word(&reason, turn),
            Event::Hold { version, by } => self.hold(version, by, turn),
            Event::Unhold { version } => self.unhold(version, turn),
            Event::Excuse { target, version } => self.excuse(&target, version, turn),
            Event::ClearHolder { target, holder } => self.clear_holder(&target, holder, turn),
            Event::ClearGap { target, gap } => self.clear_gap(&target, gap, turn),
            Event::HostRetired { target } => self.retire_host(&target, turn),
            Event::Deleted => self.delete(turn),
            Event::Forced { version, reason } => self.force(version, reason, turn),
            Event::Reported { target, report } => {
                self.take_report(target, report, turn);
                Ok(())
            }
            Event::Connected { target } => {
                self.connect(target, true, turn);
                Ok(())
            }
            Event::Disconnected { target } => {
                self.connect(target, false, turn);
                Ok(())
            }
            Event::Incomplete { target } => {
                self.doubt(target, turn);
                Ok(())
            }
            outcome => {
                self.take_outcome(outcome, turn);
                Ok(())
            }
        }
    }

    /// Does what follows from the state, until nothing more follows.
    fn advance(&mut self, turn: &mut Turn) {
        // Each pass moves something forward for good, so the bound is never met; it is there so that a mistake
        // here cannot hang the caller.
        for _ in 0..64 {
            turn.due = None;
            let moved = starting::advance(self, turn)
                | self.advance_wish(turn)
                | self.advance_rollout(turn)
                | self.advance_gates(turn);
            if !moved {
                break;
            }
        }
        self.advance_checks(turn);
        self.advance_sweep(turn);
        self.advance_orders(turn);
        self.advance_retries(turn);
        self.forget_ended(turn.now);
    }
}

/// What comes with one step, and what it leaves behind.
pub(crate) struct Turn {
    pub(crate) now: Millis,
    fresh: EffectId,
    made: u128,
    pub(crate) audit: Vec<String>,
    pub(crate) due: Option<Millis>,
}

impl Turn {
    pub(crate) fn id(&mut self) -> EffectId {
        let id = EffectId(self.fresh.0.wrapping_add(self.made));
        self.made += 1;
        id
    }

    /// Whether the time has come; else it is remembered as due.
    pub(crate) fn reached(&mut self, at: Millis) -> bool {
        let reached = at <= self.now;
        if !reached {
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
        reached
    }

    pub(crate) fn audit(&mut self, entry: impl Into<String>) {
        self.audit.push(entry.into());
    }

    pub(crate) fn audit_effects(&mut self) -> Vec<Effect> {
        let entries = std::mem::take(&mut self.audit);
        entries.into_iter().map(|entry| Effect { id: self.id(), kind: EffectKind::Audit { entry } }).collect()
    }
}
