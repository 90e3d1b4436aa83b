//! One credential: its versions, its targets, its rollout and the gate before every revocation.
//!
//! [`Credential`] is the whole state, its outbox of effects included, so that one stored value commits both
//! together. [`step`] is the only way in which it changes:
//!
//! - load it, send [`Event::Started`], and carry out what `step` returns: after `Started` that is the outbox again;
//! - store the new state before carrying out any effect, and answer each effect with its outcome event;
//! - send [`Event::Tick`] at [`Credential::next_due`].
//!
//! A `Send` or `Ask` has no outcome event: it leaves the outbox when a report shows its outcome, or when something
//! newer supersedes it. Whoever sends repeats it until then.

pub mod effect;
pub mod event;
mod gate;
mod numbers;
mod orders;
mod outbox;
pub mod policy;
mod rollout;
mod sealing;
mod starting;
mod state;
mod step;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use effect::{Effect, EffectKind};
pub use event::{Event, Input, Outcome, Rotate, RotateReason, Selection, TargetKind};
pub use gate::{Blocker, Clause, Word};
pub use policy::{Authority, Overlap, Policy};
pub use state::{Phase, Stage, Stuck};
pub use step::{IllegalEvent, step};

use crate::id::{EffectId, Epoch, Millis, TargetId, Version};
use state::{Kept, Life, Pending, Rollout, Target, Wish};

/// Everything that is known about one credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Credential {
    policy: Policy,
    epoch: Epoch,
    life: Life,
    /// Since the last start every target must answer this one before anything is sent to it.
    baseline: u64,
    /// The newest question asked.
    question: u64,
    versions: BTreeMap<Version, Kept>,
    active: Option<Version>,
    targets: BTreeMap<TargetId, Target>,
    rollout: Option<Rollout>,
    wish: Option<Wish>,
    /// Somebody said that the active version is in foreign hands, and no rollout has begun since.
    #[serde(default)]
    hurry: bool,
    outbox: BTreeMap<EffectId, Pending>,
    orphaned: bool,
    deleted: bool,
    stuck: Option<Stuck>,
    /// When the backend is searched next for what carries our mark.
    sweep_at: Option<Millis>,
    due: Option<Millis>,
    /// For checking the checks: this clause is left out.
    #[serde(skip)]
    without: BTreeSet<Clause>,
    /// For checking the checks: nobody is asked whether a version is gone.
    #[serde(skip)]
    unsealed: bool,
}

impl Credential {
    /// A credential without versions. Tell it its targets (`Selected`) and that it started (`Started`) before it
    /// is asked to rotate.
    pub fn new(policy: Policy, epoch: Epoch) -> Self {
        let question = u64::from(epoch.counter) << 32;
        Self {
            policy,
            epoch,
            life: Life::Running,
            baseline: question,
            question,
            versions: BTreeMap::new(),
            active: None,
            targets: BTreeMap::new(),
            rollout: None,
            wish: None,
            hurry: false,
            outbox: BTreeMap::new(),
            orphaned: false,
            deleted: false,
            stuck: None,
            sweep_at: None,
            due: None,
            without: BTreeSet::new(),
            unsealed: false,
        }
    }

    /// Leaves a clause out of the gate. Only for showing that a check of the world then fails.
    #[doc(hidden)]
    #[must_use]
    pub fn without(mut self, clause: Clause) -> Self {
        self.without.insert(clause);
        self
    }

    /// Waits for no target's word that a version is gone. Only for showing what the gate itself holds back.
    #[doc(hidden)]
    #[must_use]
    pub const fn unsealed(mut self) -> Self {
        self.unsealed = true;
        self
    }

    /// Effects whose outcome is not known yet, and that may be carried out now: while the credential is starting
    /// that is only what asks and changes nothing.
    pub fn outbox(&self) -> impl Iterator<Item = &Effect> {
        self.outbox.values().map(|p| &p.effect).filter(|e| self.may_go(e))
    }

    /// When to send the next [`Event::Tick`].
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        self.due.map(|due| due.max(now))
    }

    /// Which clauses of the gate keep the version alive: for whom, since when. Empty when nothing does, or when it
    /// has ended.
    pub fn why_not(&self, version: Version, now: Millis) -> Vec<Blocker> {
        gate::blockers(self, version, now)
    }

    /// The epoch in which it gives orders.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What people decided about it.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether it still waits for its targets to answer after a start.
    pub const fn is_starting(&self) -> bool {
        matches!(self.life, Life::Starting { .. })
    }

    /// The version that every target should have.
    pub const fn active(&self) -> Option<Version> {
        self.active
    }

    /// Whether it was deleted, nothing of it is left and nothing more of it can come to the backend.
    pub fn is_finished(&self, now: Millis) -> bool {
        self.deleted
            && self.versions.values().all(|v| v.phase.is_ended() && !v.could_arrive(now))
            && !self.is_to_be_swept()
    }

    /// The effects under which values must still be kept.
    pub fn values(&self) -> BTreeSet<EffectId> {
        let alive = self.versions.values().filter(|v| !v.phase.is_ended()).map(|v| v.minted_by);
        let wished = [self.wish.as_ref(), self.rollout.as_ref().map(|r| &r.wish)];
        let wished = wished.into_iter().flatten().filter_map(|wish| match wish {
            Wish::Value(value) => Some(*value),
            Wish::Rotate(_) => None,
        });
        alive.chain(wished).collect()
    }
}
