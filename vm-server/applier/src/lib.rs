//! The privileged half of a host: verifies every order itself, writes sets, has consumers take them up, and says who
//! may still have which version.
//!
//! It has no network: it calls the network half over one private socket, and believes nothing that comes from there
//! but signatures. What it decides stands in [`lifecycle::host`]; here is the shell around it: a journal, sealed
//! copies, directories, processes and clocks. Nothing that comes over the wire names a path, a unit or a command.

mod applications;
mod applier;
mod clock;
mod consumers;
mod copies;
pub mod enroll;
mod failpoint;
mod input;
mod journal;
mod keep;
mod link;
mod looking;
mod orders;
mod places;
mod record;
mod reporting;
mod run;
mod sealing;
mod set;
mod staging;
mod starting;
mod tools;
mod watch;
mod witness;

pub use journal::JournalError;
pub use keep::{KeepError, Keeper};
pub use run::{Noticing, RunError, run, run_noticing};
pub use witness::{EXACT_RESPONDER, EXACT_WATCHER};
