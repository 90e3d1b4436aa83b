//! Who may still have a version: processes, cgroups, gaps and how they heal, the sweep.
//!
//! Reading and deciding are apart. [`Proc`] reads `/proc` and the fanotify queue; what it brings is a [`Look`], plain
//! data. [`Evidence`] decides, without I/O and without a clock: it is the serialisable state of one set on this host,
//! kept in the applier's journal.
//!
//! What stands in `/proc` was written by the very processes that it describes, so it is hostile: numbers are reused
//! (a process is always its number *and* its start time, and a pidfd proves that both belong together), names hold
//! newlines and terminal escapes (only [`printable`] text leaves this crate), and a process that vanishes between two
//! reads is normal. Nothing of a process is ever executed, loaded or opened but its own `/proc` files.
//!
//! One turn of the caller's loop, on a thread that may wait:
//!
//! 1. [`Proc::take`]: takes the events, leaves them to whoever comes after us, and reads who their readers are before
//!    they are gone, so nothing else should delay it; then [`Proc::table`];
//! 2. [`Evidence::observe`] and [`Evidence::refresh`] of each set, with that look's table;
//! 3. the state into the journal if either said that it changed, then [`Taking::journaled`].
//!
//! Without news the second half alone, [`Proc::table`] and [`Evidence::refresh`], ends holds and heals gaps; the exits
//! worth waiting for are [`Evidence::awaited`].
//!
//! What is not known counts as in use: every doubt in here keeps a version alive, and says so in words.

mod belongs;
mod charge;
mod declared;
mod evidence;
mod gap;
mod life;
mod process;
mod rules;
mod scan;
mod scene;
mod sweep;
mod taking;

pub use declared::ConsumerLife;
pub use evidence::{Disbelieved, Evidence, File};
pub use process::{Process, ProcessId, Table, printable};
pub use rules::{ConsumerRule, Exempt, Release, Rules};
pub use scan::{Detail, Look, Proc, Reader, Sighting, boot_clock, boot_id};
pub use scene::{Scene, UnitLife};
pub use sweep::{Found, Needle, Sweep, Traces};
pub use taking::{Left, Taken, Taking};
