//! Writes sets so that a reader finds a whole version, and only the one it should.
//!
//! A set is one directory. Each version is a directory in it, and `..data` is a symbolic link to the current one:
//! one `rename` of that link changes all files together. A file's fixed place elsewhere is a link through `..data`,
//! or a copy that is renamed into its own directory.
//!
//! Every operation starts from an open directory and never follows a symbolic link. What is in the making has a
//! name that begins with `..new`; what is on its way out begins with `..gone`; so after a crash at any operation
//! [`SetDir::recover`] finds whole versions and rubbish, and nothing between.
//!
//! This crate decides nothing: it knows no orders and keeps no journal. It blocks; call it where that is allowed.

mod access;
mod directory;
mod disk;
mod error;
mod inodes;
pub mod mount;
mod place;
mod set_dir;

pub use disk::{Disk, Gate};
pub use error::SetError;
pub use inodes::Inodes;
pub use mount::{Backing, Mounted};
pub use place::{Existing, PlaceState, Places, Repaired, WrittenPlace};
pub use set_dir::{Drift, Mark, Recovered, SetDir, SetFile};
