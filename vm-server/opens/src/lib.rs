//! Who opened or read which version of a file: fanotify groups and marks.
//!
//! A [`Group`] is told of each `open` and `read` of the very inodes that were marked in it, with a pidfd of the
//! process that did it. It lives as long as somebody keeps its descriptor, which is what lets the daemon restart
//! without missing anything: marks and queued events stay in the kernel. [`Capability::probe`] says whether this
//! machine lets us have one, and if not, why not, by the name of the error.
//!
//! [`exact`] is the other mode: each opener waits until its identity was written down.
//!
//! This crate knows inodes and process numbers. What a process *is*, and who counts as a holder, is decided in
//! `holders`. It never reads the content of a marked file, and never keeps the descriptor that comes with an event:
//! that would keep an unlinked inode alive, and so be mistaken for a holder.

mod event;
pub mod exact;
mod group;
mod probe;
mod text;

pub use event::{Batch, Event, Lost};
pub use group::{Group, GroupError, Inode, Queue};
pub use probe::{Capability, Why};
pub use text::ProcessText;
