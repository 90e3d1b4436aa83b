//! What the engine's own tasks tell the loop.

use lifecycle::credential::Event;
use lifecycle::{CredentialName, EffectId, TargetId};
use protocol::HostId;
use store::ValueDigest;
use tokio::sync::oneshot;

use crate::origin::Origin;
use crate::stores::StoreProgress;

/// Something inside happened.
pub(crate) enum Inside {
    /// An effect ended, or is to be tried again when there is no event.
    Outcome { name: CredentialName, effect: EffectId, event: Option<Box<Event>> },
    /// A host can be reached, or cannot.
    Reachable { host: HostId, reachable: bool },
    /// A source brought a value, which is stored.
    Noticed {
        name: CredentialName,
        value: EffectId,
        digest: ValueDigest,
        revision: Option<u64>,
        origin: Origin,
        reply: oneshot::Sender<bool>,
    },
    /// A source does not answer, with its words, or answers again.
    SourceFault { name: CredentialName, fault: Option<String> },
    /// A store target did what it was ordered, or was asked.
    Store {
        name: CredentialName,
        target: TargetId,
        progress: Box<StoreProgress>,
        outcome: Result<(), String>,
    },
    /// The audit log was altered outside of us.
    AuditBroken(store::AuditBroken),
    /// The resources were read again.
    Resources(Box<resources::Resources>),
}
