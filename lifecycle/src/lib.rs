//! Decides what happens to a credential: a value in, a value out.
//!
//! Nothing here reads a clock, a file, a socket or a random number, and nothing is asynchronous. The same
//! [`credential::step`] decides for VMs, Kubernetes Secrets, secret stores and Pods; there is no second place
//! that decides whether a version may be revoked. [`host::step`] is the other half: what one set on one host does
//! with an order, so that both halves are checked together against late, lost and repeated messages.

pub mod credential;
pub mod host;
pub mod id;
pub mod order;
pub mod report;
mod versions;

pub use id::{
    BootId, ConsumerName, CredentialName, EffectId, Epoch, GapId, Generation, HolderId, Millis, SetName,
    TargetId, Version,
};
pub use order::{Order, OrderKind};
pub use report::{Evidence, Flipped, SetReport};
pub use versions::{InvalidRange, Versions};
