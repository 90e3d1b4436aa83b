//! Real systemd hosts for tests and for the demo: machines with a PID 1 of their own, made from one base and started in
//! seconds, and the package of a host, built as it is tested.
//!
//! [`needs`] says what is missing here. [`Base`] is a Debian that is made once in the build directory, [`Machine`] one
//! of any number of machines over it, [`Package`] the package and the programs it was made of.
//!
//! A machine shares the network of whoever starts it, so that both ends are on loopback. Everything else is its own:
//! processes, mounts, control groups, host name. It ends with whoever started it.

mod base;
mod built;
mod machine;
pub mod needs;
mod package;

pub use base::Base;
pub use built::{FAILPOINTS, applier_with_failpoints, test_program};
pub use machine::Machine;
pub use package::Package;
