//! The control plane as a process: the HTTP API, resources from a directory, metrics, first set-up, backups.
//!
//! It decides nothing about credentials: it finds out who calls, asks the engine, and tells the answer. Every route
//! stands in one table ([`table`]) with the identity that it needs; routing, OpenAPI and the test of all wrong
//! identities are made from that table, so none of them can know a route that the others do not. Nothing but
//! liveness and readiness answers without an identity, and no route hands out a value.

mod answer;
mod app;
mod backup;
mod denials;
mod figures;
mod hosts;
mod init;
pub mod openapi;
mod operate;
mod read;
mod readiness;
mod route;
mod serve;
pub mod settings;
pub mod table;

pub use app::App;
pub use backup::{BackupError, backup, restore};
pub use init::{InitError, Initialised, init};
pub use route::{Needs, Route, router};
pub use serve::{Ready, ServeError, serve};
