//! One credential: its versions, its targets, its rollout and the gate before every revocation.

pub mod effect;
pub mod event;
pub mod policy;

pub use effect::{Effect, EffectKind};
pub use event::{Event, Input, Outcome, Rotate, RotateReason, Selection, TargetKind};
pub use policy::{Authority, Overlap, Policy};
