//! The half of a host that faces the network: mTLS push API, enrolment, passing on reports.
//!
//! It passes frames between the control plane and the applier, both of which verify what they get: it can neither
//! make an order, nor open a value, nor write a file of a set, nor restart anything. It runs without privilege,
//! confined by landlock where the kernel has it.
//!
//! - [`applier`]: the private socket, on which the applier calls
//! - [`push`]: the HTTP API, for the control plane's certificate only
//! - [`pass`]: the newest report on its way to the control plane, and the acknowledgement back
//! - [`identity`], [`enrol`]: key and certificate, got once with a token and renewed for the same key
//! - [`confine`]: what the process gives up before it listens
//! - [`run`]: all of it, from arguments to a stop

pub mod applier;
pub mod arguments;
pub mod confine;
pub mod control_plane;
pub mod enrol;
pub mod identity;
pub mod pass;
pub mod push;
pub mod run;
