//! The real binary, with a network half and applications of the test's own, without privilege and without systemd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod application;
mod control;

mod adopting;
mod disks;
mod enrolling;
mod flooding;
mod hostile;
mod kernel;
mod refusing;
mod rekeying;
mod rotating;
mod speaking;
mod staging;
mod superseded;
mod surviving;
mod without_room;
