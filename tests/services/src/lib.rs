//! Real servers for tests and for the demo: a private PostgreSQL cluster, an OpenBao in development mode.
//!
//! Each is started on a free port of the loopback interface in a directory of its own, and is stopped and removed when
//! it is dropped. What is missing on the machine is an error that says what to install, never a test left out in
//! silence.
#![allow(
    clippy::missing_panics_doc,
    reason = "fixtures are for tests, where an error with its cause is all that is needed"
)]

mod certificate;
pub mod logins;
mod openbao;
pub mod postgres;
mod process;
mod python;

pub use certificate::Certificate;
pub use logins::{Login, LoginLog};
pub use openbao::OpenBao;
pub use postgres::{Kind as PostgresKind, Minting, PostgresServer};
