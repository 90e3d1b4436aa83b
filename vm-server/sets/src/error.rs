//! What can fail while a set is written, with the object and what to do.

use std::io;
use std::path::{Path, PathBuf};

use lifecycle::Version;

/// Why an operation on a set or a place failed. Whatever it was, readers still find the whole version that they
/// found before.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The operating system refused.
    #[error("failed to {doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else may write a directory, and could put a file of their own where ours should be.
    #[error("{} {why}: {remedy}", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// A user or group of the policy does not exist here.
    #[error("the {kind} {name:?} does not exist on this host: create it or change the policy")]
    NoSuchPrincipal {
        /// `user` or `group`.
        kind: &'static str,
        /// As the policy names it.
        name: String,
    },
    /// A file name that the set keeps for itself, or that is none.
    #[error("{0:?} cannot be a file of a set")]
    FileName(String),
    /// A version that is not here.
    #[error("version {0} of the set is not on this host")]
    Missing(Version),
    /// The version that readers find now cannot be removed.
    #[error("version {0} of the set is current: flip to another or withdraw it first")]
    Current(Version),
    /// A version was staged before with another content.
    #[error("version {0} of the set lies here with another content")]
    OtherContent(Version),
    /// Something in the set's directory that we did not put there.
    #[error("{} is not ours: move it away", .0.display())]
    Foreign(PathBuf),
    /// The file of a place is not in the set.
    #[error("the set has no file {0:?}, which a place asks for")]
    NoSuchFile(String),
}

impl SetError {
    /// Wraps an error of the system.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self + use<> {
        let path = path.to_owned();
        move |errno| Self::Io { doing, path, source: errno.into() }
    }

    /// The stable word for it in reports and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
                io::ErrorKind::ReadOnlyFilesystem => "read_only",
                io::ErrorKind::PermissionDenied => "not_permitted",
                io::ErrorKind::NotFound => "no_such_directory",
                _ => "write_failed",
            },
            Self::Untrusted { .. } => "untrusted_directory",
            Self::NoSuchPrincipal { .. } => "no_such_owner",
            Self::FileName(_) => "file_name",
            Self::Missing(_) => "not_staged",
            Self::Current(_) => "current",
            Self::OtherContent(_) => "other_content",
            Self::Foreign(_) => "foreign_file",
            Self::NoSuchFile(_) => "no_such_file",
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => ": make room, nothing was changed",
        io::ErrorKind::ReadOnlyFilesystem => ": remount it writable or move the place",
        io::ErrorKind::PermissionDenied => ": run the applier as root or give it this directory",
        io::ErrorKind::Unsupported => ": Linux 5.6 or later is needed",
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            ": a part of the path is a symbolic link, write the real path into the policy"
        }
        _ => "",
    }
}
