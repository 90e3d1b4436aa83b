//! What a host allows: which sets may be delivered, where they lie, who reads them and how each reader adopts.
//!
//! The policy is the host owner's: `config.toml` and `conf.d/*.toml` of one directory. It is read whole or not at
//! all, so a broken file never leaves half a policy behind, and nothing that comes over the wire names a path, a
//! unit or a command: it names a set, and this crate says what that may touch.
//!
//! Two forms: [`written`] is what a file says, with the line of every value; the types of this module are what was
//! found to be valid. Only the second can be had from outside.
//!
//! This crate reads files. It writes nothing, resolves no user names and starts nothing.

mod consumer;
mod daemon;
pub mod defaults;
mod error;
mod load;
pub mod path;
mod set;
mod written;

pub use consumer::{
    Adopt, Command, Consumer, Days, Http, Life, NotAConsumer, PidFileLife, Principal, Probe, ProbeKind,
    Signal, UnitName, Window,
};
pub use daemon::{Daemon, EvidenceMode, MountMode, SupervisorMode};
pub use error::PolicyError;
pub use set::{Access, HostPolicy, Place, PlaceKind, SetPolicy};
