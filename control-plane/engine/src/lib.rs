//! Drives lifecycle: turns the world into events, commits, and carries effects out.
//!
//! One task owns every credential. It takes what came in, lets [`lifecycle::credential`] decide, commits the new
//! states with their outboxes and audit rows in one transaction, and only then carries effects out and answers.
//! Whatever came in meanwhile shares the next transaction. After a crash the outboxes say what is left to do.
//!
//! It decides nothing about versions itself, never shows a value, and sends no order that it has not committed.

mod audit;
mod catalogue;
mod clock;
mod deliveries;
mod effects;
mod figures;
mod finish;
mod handle;
mod inside;
mod keeping;
mod lane;
mod metrics;
mod origin;
mod reports;
mod road;
mod run;
mod sources;
mod start;
mod store_tasks;
mod stores;
mod targets;
mod timers;
mod value;
mod verbs;
mod views;
mod world;

pub use catalogue::{Backends, Makers};
pub use handle::{Handle, HandleError};
pub use metrics::Metrics;
pub use road::{FleetRoad, PushFailure, Reachable, Road};
pub use start::{Engine, Settings, StartError};
