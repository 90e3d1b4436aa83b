//! What can happen to a credential.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use crate::id::{EffectId, Epoch, GapId, HolderId, Millis, TargetId, Version};
use crate::report::SetReport;

/// What comes with every event. `step` draws nothing itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The caller's clock; never earlier than at the step before.
    pub now: Millis,
    /// Drawn at random for this step; effects made in it take their ids from it.
    pub fresh: EffectId,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "reports are the common case; boxing them would buy nothing")]
pub enum Event {
    /// Time passed. Sent at least at [`super::Credential::next_due`].
    Tick,

    // The life of the control plane.
    /// The process started, became leader, or got a new database session: nothing goes out before the reachable
    /// targets have answered since.
    Started {
        /// The epoch in force.
        epoch: Epoch,
        /// Whether the epoch is new: a restore, or a store reverted behind our back. Every version of an older
        /// epoch then starts held and every target counts for it.
        restored: bool,
    },

    // What people and resources say.
    /// The resource changed.
    PolicyChanged(Policy),
    /// The targets that labels, selectors and host policies select now. Being absent here never frees a target
    /// that was ever sent something.
    Selected(BTreeMap<TargetId, Selection>),
    /// The resource's file or object vanished (`orphaned`: still served, never retired), or is back.
    Orphaned(bool),
    /// Mint a new version and roll it out.
    Rotate(Rotate),
    /// A source or generator brought a value, stored under this effect id, to be rolled out as a new version.
    Noticed {
        /// Where the value is stored.
        value: EffectId,
    },
    /// Take a value, stored under this effect id, as version 0, current where it already lies; starts held.
    Imported {
        /// Where the value is stored.
        value: EffectId,
    },
    /// Stop the rollout and flip back who has not adopted.
    Halt {
        /// Why, for people.
        reason: String,
    },
    /// Go on; answers the targets' own rollbacks.
    Resume,
    /// Give the new version up: everybody flips back, also who had adopted.
    Abort {
        /// Why, for people.
        reason: String,
    },
    /// A version must stay alive.
    Hold {
        /// Which.
        version: Version,
        /// Who says so and why.
        by: String,
    },
    /// The end of a hold, also of one that a restore or an import made.
    Unhold {
        /// Which.
        version: Version,
    },
    /// One target does not count for one version, until it reports again.
    Excuse {
        /// Which target.
        target: TargetId,
        /// For which version.
        version: Version,
    },
    /// One holder is gone, on an operator's word.
    ClearHolder {
        /// On which target.
        target: TargetId,
        /// Which holder.
        holder: HolderId,
    },
    /// One named gap or lost place is gone, on an operator's word.
    ClearGap {
        /// On which target.
        target: TargetId,
        /// Which gap or place.
        gap: GapId,
    },
    /// The host is gone for good: covers all versions.
    HostRetired {
        /// Which target.
        target: TargetId,
    },
    /// The credential is to be withdrawn everywhere and retired.
    Deleted,
    /// Retire a version without waiting for the gate, on an operator's word.
    Forced {
        /// Which version.
        version: Version,
        /// Why; audited.
        reason: String,
    },

    // Outcomes of effects. Each names its effect, so that one that comes twice changes nothing.
    /// Whether we may mint *and* revoke.
    Preflighted {
        /// The effect.
        effect: EffectId,
        /// What came of it.
        outcome: Outcome,
    },
    /// The backend accepted the new version; its value is stored under the effect's id.
    Minted {
        /// The effect.
        effect: EffectId,
        /// What came of it.
        outcome: Outcome,
    },
    /// Whether a login with the version works.
    Verified {
        /// The effect.
        effect: EffectId,
        /// What came of it.
        outcome: Outcome,
    },
    /// What the backend's own list of sessions shows.
    Sampled {
        /// The effect.
        effect: EffectId,
        /// The sessions of the version; none where the backend cannot tell.
        sessions: Option<u32>,
    },
    /// The sessions of a compromised version were ended.
    SessionsEnded {
        /// The effect.
        effect: EffectId,
        /// What came of it.
        outcome: Outcome,
    },
    /// The version was revoked and the revocation proved, or its value erased.
    Revoked {
        /// The effect.
        effect: EffectId,
        /// What came of it.
        outcome: Outcome,
    },

    /// What carries our mark at the backend, for this credential.
    Swept {
        /// The effect.
        effect: EffectId,
        /// The effects that the marks name, and the life of the store that made each; none when the backend could not
        /// be asked.
        found: Option<BTreeMap<EffectId, Epoch>>,
    },

    // What targets say.
    /// A verified, newer snapshot from a target.
    Reported {
        /// Which target.
        target: TargetId,
        /// The snapshot.
        report: SetReport,
    },
    /// The target answers again, or for the first time.
    Connected {
        /// Which target.
        target: TargetId,
    },
    /// The target does not answer.
    Disconnected {
        /// Which target.
        target: TargetId,
    },
    /// Two live hosts have this identity, or its chain of reports is broken: what it says is incomplete until it
    /// reports whole again.
    Incomplete {
        /// Which target.
        target: TargetId,
    },
}

/// A wish for a new version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rotate {
    /// Why.
    pub reason: RotateReason,
}

/// Why a new version is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotateReason {
    /// Its time had come.
    Schedule,
    /// An operator asked.
    Demand,
    /// The current one is in foreign hands.
    Compromised {
        /// After this span the holders that are left are cleared and silent targets excused.
        deadline_ms: Option<Millis>,
    },
}

/// How an effect ended. Words only, never a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and known to be done.
    Done,
    /// Not done, may work later; it is tried again.
    Failed(String),
    /// Will not work without an operator.
    Refused(String),
}

/// How a target is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selection {
    /// Goes first.
    pub canary: bool,
    /// What it is, where that changes the rules.
    pub kind: TargetKind,
}

/// The kinds of target, by what `adopted` and `gone` mean there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// A host with our daemon: stage, arm, activate, adopt, seal.
    #[default]
    Vm,
    /// A path of a secret store: written and read back at activation, nothing is armed or adopted by permit.
    Store,
}
