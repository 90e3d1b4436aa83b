//! What the two ends say to each other: signed orders and reports, sealed values, API types, limits.
//!
//! Everything that travels between control plane and host is a [`frame::Frame`]: a length, a signature and a
//! payload. A payload becomes one of our types only through a `verify` function, which makes every check that needs
//! no memory (size, depth, signature, installation, host, expiry, shape) and returns a type that cannot be had in
//! any other way. What needs memory (epochs, generations, replay) is decided by `lifecycle::host`.
//!
//! This crate opens no file and no socket, and no type in it that holds a value can be printed.

pub mod ack;
pub mod api;
pub mod clock;
pub mod digest;
pub mod enrol;
pub mod frame;
pub mod id;
pub mod key;
pub mod limit;
pub mod local;
pub mod order;
pub mod report;
pub mod reported;
pub mod schema;
pub mod seal;
mod wire;

pub use clock::UnixMillis;
pub use digest::{FrameDigest, KeyedDigest, VersionKey};
pub use frame::Frame;
pub use id::{FileName, HostId, InstallationId};
pub use key::{OpeningKey, SealingKey, SigningKey, TrustAnchor, VerifyingKey};
pub use wire::{DecodeError, TooLarge};

/// The content type of one or several frames, one after the other.
pub const FRAMES_CONTENT_TYPE: &str = "application/vnd.eso.frames";
