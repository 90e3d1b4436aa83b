//! Restarts, reloads and probes consumers: through systemd, or by pid file where there is none.
//!
//! [`Supervisor`] is the whole surface. It is told what the policy says of a consumer and which life of it was there
//! before, so that asking twice, also across a crash of ours, restarts nothing twice: a consumer that already lives
//! another life is left alone.
//!
//! It keeps no journal, chooses no version and decides nothing about credentials. What processes say about
//! themselves is never believed: a pid is held by a pidfd, and its program, user and start time are read while it is
//! alive.

mod adopt;
mod error;
pub mod escape;
mod life;
mod pidfile;
pub mod probe;
mod process;
mod systemd;

pub use adopt::{Adopted, Direction, Kind, Settled, Supervisor};
pub use error::UnitError;
pub use life::{Health, LifeId, Look};
pub use systemd::{Connector, Systemd};
