//! The figures of `cargo xtask bench`, each measured on the real programs beside its floor: the same work done with
//! nothing around it, in the same run, the two taking turns so that what else the machine does falls on both.

pub mod bare;
pub mod desk;
pub mod figure;
pub mod figures;
pub mod host;
pub mod network_half;
pub mod process;
pub mod samples;
