//! What a target says of one set: a whole snapshot, never a difference.
//!
//! A snapshot carries everything the control plane acts on, so a lost, repeated or late one does no harm: the
//! newest by [`SetReport::sequence`] counts and replaces all before it.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{ConsumerName, EffectId, Epoch, GapId, Generation, HolderId, Version};
use crate::versions::Versions;

/// How we know who uses a version, weakest first, so that `>=` reads "at least".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Nothing that could be relied on.
    #[default]
    Unknown,
    /// Policy names all consumers and their lives are watched.
    Declared,
    /// The application itself says "on N+1, N dropped", where policy trusts it.
    Reported,
    /// Opens and reads were seen by the kernel.
    Kernel,
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Declared => "declared",
            Self::Reported => "reported",
            Self::Kernel => "kernel",
        })
    }
}

/// The snapshot of one set on one target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetReport {
    /// The newest epoch that the target obeys.
    pub epoch: Option<Epoch>,
    /// Counts this target's reports; the newest wins. Survives restarts of the target's daemons.
    pub sequence: u64,
    /// The newest `ask` that the target had seen when it took this snapshot: proves that the snapshot is younger
    /// than that question. 0 before the first.
    pub answers: u64,
    /// The newest intent accepted for this set.
    pub generation: Option<Generation>,
    /// Versions whose files lie whole on the target, each with the effect that minted it.
    pub present: BTreeMap<Version, EffectId>,
    /// Every version that was ever staged there and is not gone, with the effect that minted it.
    #[serde(default)]
    pub known: BTreeMap<Version, EffectId>,
    /// The target's own policy admits the set.
    #[serde(default)]
    pub in_policy: bool,
    /// The version that will become current at an agreed instant.
    pub armed: Option<Version>,
    /// Versions to which the target may still flip by an order it has accepted (armed, or an `activate` under
    /// way). A version is missing here once its `disarm` is confirmed.
    pub may_flip: BTreeSet<Version>,
    /// The newest intent that can flip nothing any more: its `disarm` was accepted, or a newer intent superseded
    /// it, or the target left its version by itself. A late order of it, or of an older one, is refused.
    pub disarmed: Option<Generation>,
    /// The version that readers find now, durable.
    pub current: Option<Version>,
    /// The version that consumers are permitted to take up: its `adopt` was accepted and nothing newer superseded
    /// it. After a rollback the version returned to.
    pub permitted: Option<Version>,
    /// The version that every named consumer has taken up, healthy through its settle time.
    pub adopted: Option<Version>,
    /// Each consumer that policy names.
    pub consumers: BTreeMap<ConsumerName, Consumer>,
    /// Set when the target went back by itself, until an order of a newer generation is accepted.
    pub rolled_back: Option<RolledBack>,
    /// Versions to which the target might still return by itself: within a settle time, or while rolling back.
    pub may_return_to: BTreeSet<Version>,
    /// Versions of which the target says that they are gone for ever.
    pub gone: Versions,
    /// Versions whose `seal` is under way or refused for now, with the reason in words.
    pub not_gone: BTreeMap<Version, String>,
    /// The newest order that was refused, if nothing newer was accepted since.
    pub refused: Option<Refused>,
    /// The strongest evidence that this target has for this set.
    pub evidence: Evidence,
    /// Who may have which version.
    pub holders: Vec<Holder>,
    /// Stretches for which evidence is incomplete and that have not healed.
    pub gaps: Vec<Gap>,
    /// Places that could not be read back or written, with the versions that they may hold.
    pub places: Vec<PlaceFault>,
    /// When the current version became that, as the target says. For people: nothing is ever decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flipped: Option<Flipped>,
}

/// When a version became current on a target, by the target's own wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flipped {
    /// Which version.
    pub version: Version,
    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub unix_ms: u64,
    /// Of a flip at an agreed instant: by how many milliseconds the target's clock was ahead of the sender's when
    /// `arm` came, the way of the message included, so at the most. None of a flip that was ordered for at once.
    pub ahead_ms_max: Option<i64>,
}

/// One consumer of a set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// How far it has come with the current version.
    pub state: ConsumerState,
    /// The newest version that it took up and stayed healthy on.
    pub healthy_on: Option<Version>,
}

/// How far a consumer has come with the current version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// Waits for `adopt`, or is being restarted or told to reload.
    Waiting,
    /// Has the permit, and waits for its window, its next start or a person (`manual`). Fails no rollout, and
    /// keeps the old version alive.
    Postponed,
    /// Took it up; within its settle time.
    Settling,
    /// Healthy on it through the settle time.
    Settled,
    /// Has not run since the flip, so it could not take it up.
    Idle,
    /// Did not come up on it.
    Failed,
    /// Unhealthy before the flip too, or on the old version as well: not the credential's fault.
    NotTheCredential,
}

impl ConsumerState {
    /// For people, after "is".
    pub const fn words(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Postponed => "waiting for its window, its next start or a person",
            Self::Settling => "settling",
            Self::Settled => "settled",
            Self::Idle => "idle: it has not run since the flip",
            Self::Failed => "not up on it",
            Self::NotTheCredential => "unhealthy, and was so before: see the host's notices",
        }
    }
}

/// A target's own rollback.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolledBack {
    /// The generation that it left.
    pub generation: Generation,
    /// The version that it left and refuses until an order names this rollback.
    pub from: Version,
    /// The version that it returned to; none when no healthy one was left.
    pub to: Option<Version>,
    /// The consumer that did not come up.
    pub consumer: ConsumerName,
    /// Why, in words and without values.
    pub reason: String,
}

/// An order that the target did not take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Of which intent.
    pub generation: Generation,
    /// Of which version.
    pub version: Version,
    /// A stable word such as `clock_off`, `set_too_large`, `not_in_policy`.
    pub code: String,
    /// What to do about it, in words.
    pub message: String,
}

/// A consumer in one life of it that may still have a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Names this life of it.
    pub id: HolderId,
    /// The version that it may have.
    pub version: Version,
    /// The consumer, where policy names it.
    pub consumer: Option<ConsumerName>,
    /// How this is known.
    pub evidence: Evidence,
    /// For people: the process or unit and how it was seen, without control characters.
    pub description: String,
}

/// A stretch for which evidence is incomplete: an overflow, a time without marks, a reader that was gone before
/// we looked. Counts as an unknown holder of its versions until it heals or is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Named by the report that first showed it.
    pub id: GapId,
    /// The versions that somebody unseen may have read in it.
    pub versions: BTreeSet<Version>,
    /// For people: what happened, and which processes are still candidates.
    pub description: String,
}

/// A place that could not be read back or written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlaceFault {
    /// Named like a gap, so that an operator can clear it.
    pub id: GapId,
    /// The versions that it may hold.
    pub versions: BTreeSet<Version>,
    /// For people: the place and the error.
    pub description: String,
}
