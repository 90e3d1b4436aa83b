//! A mark that stands while events are taken from the kernel and not yet journaled.
//!
//! Taking events consumes them. A daemon that is killed between taking and journaling has lost them, and only this
//! mark tells the next one. One byte in a file, not synced: a killed process leaves it, and a machine that lost power
//! has no holders any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const TAKING: u8 = b'1';
const JOURNALED: u8 = b'0';

/// The mark. Lies in a directory that does not survive a reboot.
#[derive(Debug)]
pub struct Taking(File);

impl Taking {
    /// Opens or makes the mark. `true` beside it when the last daemon ended while events were taken: everything since
    /// the last journaled look is a gap, see [`Evidence::blind`](crate::Evidence::blind).
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let mut byte = [JOURNALED];
        let length = file.read_at(&mut byte, 0)?;
        Ok((Self(file), length == 1 && byte[0] == TAKING))
    }

    /// Before events are taken.
    pub fn begin(&self) -> io::Result<()> {
        self.0.write_all_at(&[TAKING], 0)
    }

    /// After what they showed was journaled.
    pub fn journaled(&self) -> io::Result<()> {
        self.0.write_all_at(&[JOURNALED], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_killed_while_taking_is_told_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let (taking, interrupted) = Taking::open(&path).unwrap();
        assert!(!interrupted);
        taking.begin().unwrap();
        drop(taking);
        let (taking, interrupted) = Taking::open(&path).unwrap();
        assert!(interrupted);
        taking.journaled().unwrap();
        assert!(!Taking::open(&path).unwrap().1);
    }
}
