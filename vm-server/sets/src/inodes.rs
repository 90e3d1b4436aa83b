//! Counts the inodes of a set's own file system.

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags};

use crate::disk::{Dir, Disk, Entry};
use crate::error::SetError;

/// How many inodes a set's file system has in use, and how many we can account for.
///
/// On a tmpfs an unlinked file stays counted while any descriptor (open, `O_PATH`, in flight in a socket) or mapping
/// refers to it, and its removed directory with it. So `used > accounted` means that somebody still has a file that
/// we removed; how many files it is cannot be told from the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// What the kernel counts.
    pub used: u64,
    /// What lies in the directory, the root included.
    pub accounted: u64,
}

impl Inodes {
    /// Inodes that are unlinked and yet in use. A held file counts twice: once more for its directory.
    pub const fn unaccounted(self) -> u64 {
        self.used.saturating_sub(self.accounted)
    }
}

pub(crate) fn count(disk: &Disk, dir: &Dir) -> Result<Option<Inodes>, SetError> {
    let failed = || SetError::io("count the inodes of", &dir.path);
    let parent = fs::statat(dir.fd.as_fd(), "..", AtFlags::empty()).map_err(failed())?;
    let own = fs::fstat(&dir.fd).map_err(failed())?;
    let kind = fs::fstatfs(&dir.fd).map_err(failed())?;
    if i128::from(kind.f_type) != i128::from(TMPFS_MAGIC) || parent.st_dev == own.st_dev || kind.f_files == 0
    {
        return Ok(None);
    }
    let mut accounted = 1;
    for name in disk.names(dir)? {
        accounted += 1;
        if let Some((Entry::Directory, _)) = disk.entry(dir, &name)? {
            accounted += disk.names(&disk.open_dir(dir, &name)?)?.len() as u64;
        }
    }
    Ok(Some(Inodes { used: kind.f_files.saturating_sub(kind.f_ffree), accounted }))
}

/// From `linux/magic.h`.
pub(crate) const TMPFS_MAGIC: u32 = 0x0102_1994;
