//! The HTTP API: what operators ask and what they are told. Shared by the control plane and `esoctl`.
//!
//! No type here can carry a value out; only [`change::Import`] carries one in. Points in time are milliseconds
//! since 1970 by the control plane's clock, spans end in `_ms`.

pub mod change;
pub mod problem;
pub mod view;

pub use change::{
    Clear, ClearWhat, Delete, EnrolToken, Excuse, Force, Halt, Hold, Import, Labels, NewOperator,
    OperatorProof, Reason, Rotate, Unhold,
};
pub use problem::Problem;
pub use view::{
    AuditEntry, AuditPage, BackedUp, Blocker, Changes, Clause, CredentialDetail, CredentialPhase,
    CredentialSummary, DeliveryPhase, DeliveryView, Done, DryRun, EnrolTokenIssued, Figures, FlipView,
    HeldBy, HolderView, HostDetail, HostPhase, HostSummary, Imported, OperatorIssued, OperatorView,
    PendingVersion, Refusal, ResourceFault, Role, RolloutPhase, RolloutView, Rotated, Status, Stuck,
    VersionDetail, VersionPhase, Whoami, Why,
};

/// The content type of the API's answers.
pub const JSON_CONTENT_TYPE: &str = "application/json";
/// The content type of errors (RFC 9457).
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";
