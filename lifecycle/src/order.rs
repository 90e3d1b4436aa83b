//! What the control plane asks of one set on one host.
//!
//! `stage`, `arm`, `activate`, `adopt` and `disarm` of one intent share its [`Generation`], in that order. A
//! rollback that we order is a new generation that names an old version. `seal` and `discard` name a version and
//! supersede no intent; they carry the newest generation only so that a reply can be told apart.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{EffectId, Epoch, GapId, Generation, HolderId, Millis, Version};

/// One order for one set on one host.
///
/// Identified by (epoch, host, set, generation, kind): one that was accepted before with the same version and that
/// nothing newer superseded is answered with its recorded outcome and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The life of the store that ordered it.
    pub epoch: Epoch,
    /// The intent that it belongs to.
    pub generation: Generation,
    /// What to do.
    pub kind: OrderKind,
    /// Versions that are dead (sealing, sealed or retired): the host never returns to one of them, whatever comes.
    pub dead: BTreeSet<Version>,
}

/// What to do with a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OrderKind {
    /// Put the set of this version on the host, invisible. The files travel beside the order, sealed.
    Stage {
        /// The version.
        version: Version,
        /// The effect that minted it; the host journals it and names it in reports.
        effect: EffectId,
    },
    /// Agree to make it current at an instant.
    Arm {
        /// The version, staged before.
        version: Version,
        /// From the sender's own clock at sending to the instant; at most 60 s. The host adds it to its boot clock
        /// after correcting for the age of the message.
        in_ms: Millis,
        /// Names the host's own rollback from this version that this order answers (`resume`).
        answers: Option<Generation>,
    },
    /// Make it current now. Also for catch-up and canaries, without `arm` before.
    Activate {
        /// The version, staged before.
        version: Version,
        /// Names the host's own rollback from this version that this order answers (`resume`).
        answers: Option<Generation>,
    },
    /// The permit to restart or reload consumers onto the current version.
    Adopt {
        /// The version, current.
        version: Version,
    },
    /// Never flip to it in this generation, armed or not.
    Disarm {
        /// The version.
        version: Version,
    },
    /// Return to an older version and let the consumers adopt it.
    RollBack {
        /// The version to return to. Must be staged or kept on the host.
        to: Version,
    },
    /// For ever: no rollback to it, files and sealed copy unlinked, a last sweep; answered by `gone`.
    Seal {
        /// The version.
        version: Version,
        /// Holders that an operator cleared, or whose target is past a compromise's deadline.
        cleared: BTreeSet<HolderId>,
        /// Gaps that an operator cleared.
        cleared_gaps: BTreeSet<GapId>,
        /// Also withdraw the current link if this version is current (an aborted first version, a deleted
        /// credential).
        withdraw: bool,
    },
    /// Drop a staged set that was never armed.
    Discard {
        /// The version.
        version: Version,
    },
}

impl OrderKind {
    /// The version that the order names.
    pub const fn version(&self) -> Version {
        match self {
            Self::Stage { version, .. }
            | Self::Arm { version, .. }
            | Self::Activate { version, .. }
            | Self::Adopt { version }
            | Self::Disarm { version }
            | Self::Seal { version, .. }
            | Self::Discard { version } => *version,
            Self::RollBack { to } => *to,
        }
    }

    /// The word for it in logs, metrics and reports.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Stage { .. } => "stage",
            Self::Arm { .. } => "arm",
            Self::Activate { .. } => "activate",
            Self::Adopt { .. } => "adopt",
            Self::Disarm { .. } => "disarm",
            Self::RollBack { .. } => "roll_back",
            Self::Seal { .. } => "seal",
            Self::Discard { .. } => "discard",
        }
    }
}
