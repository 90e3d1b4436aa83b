//! What is known about one credential, as it is stored.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::effect::Effect;
use super::event::{RotateReason, TargetKind};
use super::gate::Clause;
use crate::id::{EffectId, Epoch, GapId, Generation, HolderId, Millis, TargetId, Version};
use crate::report::{RolledBack, SetReport};
use crate::versions::Versions;

/// How far a version has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The backend has been asked for it.
    Minting,
    /// The backend accepted it; no target has it.
    Minted,
    /// On its way to the targets.
    Rolling,
    /// The one that every target should have.
    Active,
    /// A later one is active, or it was aborted. It lives until its gate opens.
    Superseded,
    /// Dead: no target returns to it. Each is asked to say that it is gone.
    Sealing,
    /// Gone from every target that counts; being revoked or erased.
    Retiring,
    /// Revoked at the backend, and proved to be.
    Retired,
    /// Its value is forgotten and said to be safe to delete.
    Erased,
}

impl Phase {
    /// Whether no target may ever return to a version in this phase.
    pub const fn is_dead(self) -> bool {
        matches!(self, Self::Sealing | Self::Retiring | Self::Retired | Self::Erased)
    }

    /// Whether nothing is left to do for a version in this phase.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Retired | Self::Erased)
    }
}

/// Why something does not go on by itself, and what the operator does about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Stuck {
    /// What happened.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// One version of the credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) phase: Phase,
    /// Names the value and the backend's record of it.
    pub(crate) minted_by: EffectId,
    /// The backend said once that it exists. Until then its creation could still be on the way.
    pub(crate) minted: bool,
    /// A request to create it that nobody waits for any more could arrive at the backend until then.
    #[serde(default)]
    pub(crate) stray_until: Option<Millis>,
    /// A login with it worked.
    pub(crate) verified: bool,
    /// A login with it worked since the last start.
    pub(crate) checked: bool,
    /// The backend refuses it.
    pub(crate) refused: bool,
    /// Why it was given up.
    pub(crate) aborted: Option<String>,
    /// No other version was ever active when it was minted: there is nothing to return to.
    pub(crate) first: bool,
    /// It stood in no record of ours: a target or the backend named it.
    pub(crate) found: bool,
    /// The sweep found it, under a mark of this epoch, and no target names it.
    #[serde(default)]
    pub(crate) swept_of: Option<Epoch>,
    /// Every target counts for it, also one that was never sent it: the record may be older than the truth.
    pub(crate) everywhere: bool,
    /// A target of an older epoch says that it is gone: it is sent nowhere any more.
    pub(crate) sealed_before: bool,
    pub(crate) holds: BTreeSet<String>,
    /// A hold that a restore or an import made, as against an operator's.
    pub(crate) epoch_hold: Option<String>,
    pub(crate) compromise: Option<Compromise>,
    pub(crate) forced: Option<String>,
    pub(crate) stuck: Option<Stuck>,
    pub(crate) watch: Watch,
    pub(crate) since: Millis,
}

impl Kept {
    /// Whether a request to create it could still arrive at the backend, though nobody waits for it.
    pub(crate) fn could_arrive(&self, now: Millis) -> bool {
        self.stray_until.is_some_and(|until| now < until)
    }

    /// Given up before the backend ever said that it exists.
    pub(crate) const fn never_was(&self) -> bool {
        self.aborted.is_some() && !self.minted
    }
}

/// What an operator said about a version in foreign hands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Compromise {
    pub(crate) deadline: Option<Millis>,
    /// The deadline came: holders count as cleared, and these targets as excused, until the version ends.
    pub(crate) expired: Option<BTreeSet<TargetId>>,
    /// Its sessions are being ended, or were.
    pub(crate) sessions_ended: bool,
}

/// What the gate remembers of a version between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// Since when each clause has failed without a break.
    pub(crate) failing: BTreeMap<Clause, Millis>,
    /// Since when the clause that nobody holds it has held without a break. For people.
    #[serde(default)]
    pub(crate) free: Option<Millis>,
    /// For how long nobody has had it.
    pub(crate) quiet: Option<Quiet>,
    pub(crate) sample: Option<Sample>,
    pub(crate) sampling: Option<EffectId>,
    /// The backend's sessions are the last sign of a holder.
    pub(crate) only_sessions: bool,
    /// They are counted again at once.
    pub(crate) recount: bool,
    /// The last look before a step that cannot be taken back.
    pub(crate) round: Option<Round>,
    /// When its `seal` first went out.
    pub(crate) sealing_since: Option<Millis>,
}

/// Time in which nobody had a version, counted only while we looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Quiet {
    pub(crate) accrued: Millis,
    pub(crate) observed: Millis,
}

/// The backend's sessions at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) sessions: Option<u32>,
    pub(crate) at: Millis,
}

/// Fresh reports of every target, and a fresh sample of the backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) question: u64,
    pub(crate) sample: EffectId,
    pub(crate) sampled: bool,
    pub(crate) since: Millis,
}

/// One target of the credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: TargetKind,
    pub(crate) canary: bool,
    pub(crate) selected: bool,
    pub(crate) connected: bool,
    /// Since when it is connected, or not.
    pub(crate) since: Millis,
    /// Of a store only: a host that was retired is forgotten.
    pub(crate) retired: bool,
    pub(crate) incomplete: bool,
    pub(crate) report: Option<SetReport>,
    /// The newest question of this epoch that it answered.
    pub(crate) answered: u64,
    /// Generations issued in this epoch.
    pub(crate) issued: u32,
    pub(crate) intent: Option<Intent>,
    /// Versions of which it was ever sent a value or an order.
    pub(crate) sent: BTreeSet<Version>,
    /// Versions that it was asked to flip to, with the newest such intent, until a report shows that it no longer
    /// may.
    pub(crate) flips: BTreeMap<Version, Generation>,
    pub(crate) gone: Versions,
    pub(crate) excused: BTreeSet<Version>,
    pub(crate) cleared: BTreeSet<(Version, HolderId)>,
    pub(crate) cleared_gaps: BTreeSet<(Version, GapId)>,
    /// Versions that it was healthy on, the last one last.
    pub(crate) healthy: Vec<Version>,
    /// Numbers by which it calls another version than we do: its own, and ours of what it means.
    #[serde(default)]
    pub(crate) numbers: BTreeMap<Version, Version>,
    /// Its own policy does not admit the set: it takes part in no rollout until the next one or `resume` tries
    /// again, and what it has is withdrawn.
    pub(crate) barred: bool,
    /// Versions that it cannot have, by its own word, until `resume` or the version lies there after all.
    #[serde(default)]
    pub(crate) unfit: BTreeSet<Version>,
    /// Versions that it left by itself, each with the newest intent that it left.
    pub(crate) left_in: BTreeMap<Version, Generation>,
    /// Its own rollbacks up to this one are answered by `resume`.
    pub(crate) forgiven: Option<Generation>,
}

/// What we want of a target now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) generation: Generation,
    pub(crate) version: Version,
    pub(crate) course: Course,
    pub(crate) answers: Option<Generation>,
    pub(crate) since: Millis,
}

/// How far a target is to go with a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Course {
    /// Have it, invisible.
    Stage,
    /// Make it current at this instant.
    Arm(Millis),
    /// Make it current now.
    Activate,
    /// And let the consumers take it up.
    Adopt,
    /// Never flip to it in this generation.
    Disarm,
    /// Return to it.
    Back,
}

impl Course {
    pub(crate) const fn is_flip(self) -> bool {
        matches!(self, Self::Arm(_) | Self::Activate | Self::Adopt | Self::Back)
    }

    pub(crate) const fn is_forward(self) -> bool {
        matches!(self, Self::Stage | Self::Arm(_) | Self::Activate | Self::Adopt)
    }
}

/// One version on its way to all targets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Rollout {
    pub(crate) wish: Wish,
    /// None until it is minted, or a value is there.
    pub(crate) version: Option<Version>,
    pub(crate) stage: Stage,
    pub(crate) since: Millis,
    pub(crate) canaries: BTreeSet<TargetId>,
    pub(crate) halted: Option<String>,
    /// Waits for no barrier: an older version is in foreign hands.
    pub(crate) urgent: bool,
}

/// How far a rollout has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// May we mint and revoke?
    Preflight,
    /// The backend holds a pair: the older of them must pass its gate before the mint ends it.
    AwaitGate,
    /// The backend was asked.
    Mint,
    /// Does a login with it work?
    Verify,
    /// Every target gets it, invisible.
    Staging,
    /// The canaries activate and adopt it.
    Canary,
    /// All others flip at this instant, and adopt in waves.
    Flip {
        /// On the caller's clock.
        at: Millis,
    },
}

impl Stage {
    pub(crate) const fn delivers(self) -> bool {
        matches!(self, Self::Staging | Self::Canary | Self::Flip { .. })
    }
}

/// A wish for a new version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    Rotate(RotateReason),
    /// A value that lies under this effect id.
    Value(EffectId),
}

impl Wish {
    pub(crate) const fn is_compromise(&self) -> bool {
        matches!(self, Self::Rotate(RotateReason::Compromised { .. }))
    }
}

/// An effect whose outcome is not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) effect: Effect,
    /// Handed to the caller since the last start.
    pub(crate) handed_out: bool,
    pub(crate) attempts: u32,
    /// Tried again not before.
    pub(crate) again: Option<Millis>,
}

/// Whether the targets have answered since the last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Life {
    Starting { since: Millis },
    Running,
}

impl Target {
    pub(crate) fn current(&self) -> Option<Version> {
        self.report.as_ref().and_then(|r| r.current)
    }

    pub(crate) fn has(&self, version: Version) -> bool {
        self.report.as_ref().is_some_and(|r| r.present.contains_key(&version))
    }

    pub(crate) fn rolled_back(&self) -> Option<&RolledBack> {
        self.report.as_ref().and_then(|r| r.rolled_back.as_ref())
    }

    /// Left this version by itself, and nothing answered that yet.
    pub(crate) fn left(&self, version: Version) -> bool {
        self.left_in.get(&version).is_some_and(|left| self.forgiven < Some(*left))
    }

    /// Whether the newest report shows anything of the version.
    pub(crate) fn shows(&self, version: Version, minted_by: EffectId) -> bool {
        self.report.as_ref().is_some_and(|r| {
            shows_live(r, version)
                || r.present.values().any(|effect| *effect == minted_by)
                || r.may_return_to.contains(&version)
                || r.not_gone.contains_key(&version)
                || r.holders.iter().any(|h| h.version == version)
                || r.gaps.iter().any(|g| g.versions.contains(&version))
                || r.places.iter().any(|p| p.versions.contains(&version))
        })
    }

    /// Whether there is anything of this credential on the target, as far as we know.
    pub(crate) fn is_untouched(&self) -> bool {
        let empty = self.report.as_ref().is_none_or(|r| {
            r.present.is_empty() && r.current.is_none() && r.holders.is_empty() && r.gaps.is_empty()
        });
        self.sent.is_empty() && empty
    }

    /// The version is adopted and settled by every consumer that can run; what is idle or postponed fails no
    /// rollout, and keeps the old version alive all the same.
    pub(crate) fn done_with(&self, version: Version) -> bool {
        use crate::report::ConsumerState::{Idle, NotTheCredential, Postponed, Settled};
        self.report.as_ref().is_some_and(|r| {
            let through = |state| matches!(state, Settled | Idle | Postponed | NotTheCredential);
            r.current == Some(version)
                && (r.adopted == Some(version)
                    || (r.permitted == Some(version)
                        && !r.consumers.is_empty()
                        && r.consumers.values().all(|c| through(c.state))))
        })
    }
}

impl Target {
    /// Whether a consumer has come up on the version here.
    pub(crate) fn proves(&self, version: Version) -> bool {
        self.done_with(version) && (self.is_store() || self.runs_something())
    }

    /// Whether a consumer is healthy on the current version.
    pub(crate) fn runs_something(&self) -> bool {
        use crate::report::ConsumerState::Settled;
        self.report.as_ref().is_some_and(|r| r.consumers.values().any(|c| c.state == Settled))
    }
}

/// Versions that a report shows as ones that readers can get, or could get by a flip.
pub(crate) fn live_in(report: &SetReport) -> impl Iterator<Item = Version> {
    let may_flip = report.current.iter().chain(&report.armed).chain(&report.may_flip);
    may_flip.chain(report.present.keys()).copied()
}

/// Whether a report shows a version as one of them.
pub(crate) fn shows_live(report: &SetReport, version: Version) -> bool {
    report.current == Some(version)
        || report.armed == Some(version)
        || report.may_flip.contains(&version)
        || report.present.contains_key(&version)
}
