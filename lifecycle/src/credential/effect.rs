//! What the caller is to do. Effects stay in the state's outbox until their outcome comes back, and are sent again
//! after a crash: carrying one out twice does no harm.

use serde::{Deserialize, Serialize};

use crate::id::{EffectId, Millis, TargetId, Version};
use crate::order::Order;

/// One thing to do, with the id that its outcome names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Effect {
    /// Names it for ever. Of a `Mint` it is also what names at the backend are made from, and where the value is
    /// stored.
    pub id: EffectId,
    /// What to do.
    pub kind: EffectKind,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// Find out whether we may mint and revoke.
    Preflight,
    /// Mint. The value is stored, encrypted, under the effect's id before the backend is asked.
    Mint {
        /// As which version.
        version: Version,
        /// At a backend that holds a pair: the effect that minted the version which dies by this mint. It has
        /// passed its gate.
        replaces: Option<EffectId>,
    },
    /// Prove that the version works at the backend.
    Verify {
        /// Which version.
        version: Version,
        /// The effect that minted it.
        minted_by: EffectId,
    },
    /// Count the backend's sessions of the version.
    Sample {
        /// Which version.
        version: Version,
        /// The effect that minted it.
        minted_by: EffectId,
    },
    /// End the sessions of a compromised version.
    EndSessions {
        /// Which version.
        version: Version,
        /// The effect that minted it.
        minted_by: EffectId,
    },
    /// Revoke the version at the backend and prove it; or erase its value, as the policy's authority says.
    Revoke {
        /// Which version.
        version: Version,
        /// The effect that minted it.
        minted_by: EffectId,
    },
    /// Send an order to a target. Ends when a report shows its outcome, or a newer order supersedes it.
    Send {
        /// To whom.
        target: TargetId,
        /// What.
        order: Order,
        /// For `stage`, and for `activate` at a store: where the value is stored.
        value: Option<EffectId>,
        /// For `arm`: the instant on the caller's clock. The sender puts the order's `in_ms` right at each sending
        /// and does not send it any more once the instant has passed.
        at: Option<Millis>,
    },
    /// Ask a target for a snapshot that answers this question; one message a host, whatever asks.
    Ask {
        /// Whom.
        target: TargetId,
        /// The number that the answer must carry or exceed.
        question: u64,
    },
    /// List what carries our mark at the backend; answered by `Swept`.
    Sweep,
    /// Write to the audit log; ends by being written with the state.
    Audit {
        /// What happened, without values.
        entry: String,
    },
}
