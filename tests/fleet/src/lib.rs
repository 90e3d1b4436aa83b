//! A fleet for tests: hundreds of hosts in one process, a control plane in another, a network that fails on purpose.
//!
//! Nothing of a host is imitated. [`farm::Farm`] runs the library code of `eso-vm-server` and `eso-vm-applier` as
//! their programs do: enrolled by a one-time token, with keys, journal and directories of their own, over TLS and
//! sockets. Only what a process costs is saved: both halves are tasks of this one, unless a test asks for real
//! processes. What differs from a machine: evidence is `declared` or `reported`, sets lie in plain directories, and
//! changed places are noticed at the refresh interval.
#![allow(
    clippy::missing_panics_doc,
    reason = "fixtures are for tests, where an error with its cause is all that is needed"
)]

pub mod apart;
pub mod applications;
pub mod control;
pub mod crowd;
pub mod farm;
pub mod host;
pub mod luck;
pub mod network;
pub mod port;
pub mod scene;
pub mod server;

pub use apart::apart;
pub use control::ControlPlane;
pub use crowd::Crowd;
pub use farm::{Farm, Road, Spec};
pub use host::{Half, Host, Kind, Site};
pub use luck::Luck;
pub use network::Network;
pub use server::LoginServer;
