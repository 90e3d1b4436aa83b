//! What was taken from the kernel and is in no journal yet, where a daemon that is killed leaves it to the next.
//!
//! Taking events consumes them, and what they show may wait for its turn: for an answer of systemd, for a disk that is
//! full. So events are written down beside the journal as soon as they are taken, and what they turned out to be as
//! soon as that is known. A mark stands from before the kernel is asked until it was written down what it said, and
//! only a daemon that is killed in between has lost something. The first byte of the file is the mark, one line each
//! follows. Nothing is synced: a killed process leaves what it wrote, and a machine that lost power has no holders any
//! more.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lifecycle::Millis;
use opens::{Batch, Event, Inode};
use serde::{Deserialize, Serialize};

use crate::scan::{Look, boot_clock};

const TAKING: u8 = b'1';
const WRITTEN: u8 = b'0';

/// Above this size nothing more is written down, and the mark stands until the journal has it.
const BYTES_MAX: u64 = 4 << 20;

/// The file. Lies in a directory that does not survive a reboot.
#[derive(Debug)]
pub struct Taking {
    path: PathBuf,
    boot: String,
    file: File,
    length: u64,
    /// Something was not written down: only the journal makes up for it.
    lacks: bool,
    /// Events were written down, and not yet what they have turned out to be.
    unseen: bool,
}

/// What the last daemon left.
#[derive(Debug, Default)]
pub struct Left {
    /// It was killed while it took events: everything since the last look that it left is a gap, see
    /// [`Evidence::blind`](crate::Evidence::blind).
    pub interrupted: bool,
    /// What it had taken and not journaled, or not known to be journaled.
    pub look: Look,
    /// What it had taken after that, and not looked at yet.
    pub unseen: Vec<Taken>,
}

/// An event of which no more is known than the kernel said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// When it was taken, on the boot clock.
    pub(crate) at: Millis,
    /// 0 when the reader was gone.
    pub(crate) pid: i32,
    pub(crate) inode: Inode,
    pub(crate) opened: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said<L> {
    /// Events as they were taken.
    Taken(Vec<Taken>),
    /// What all of them since the look before have turned out to be.
    Look(L),
}

#[derive(Serialize, Deserialize)]
struct Line<S, L> {
    boot: S,
    said: Said<L>,
}

impl Taking {
    /// Opens or makes the file, in this boot of the machine.
    pub fn open(path: &Path, boot: &str) -> io::Result<(Self, Left)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(BYTES_MAX * 2).read_to_end(&mut bytes)?;
        let mut left = Left { interrupted: bytes.first() == Some(&TAKING), ..Left::default() };
        let mut length = 1;
        for line in bytes.get(1..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            // One that was cut short: the mark stands.
            let Some(whole) = line.strip_suffix(b"\n") else { break };
            let Ok(Line::<String, Look> { boot: of, said }) = serde_json::from_slice(whole) else { break };
            length += line.len() as u64;
            match said {
                _ if of != boot => {}
                Said::Taken(taken) => left.unseen.extend(taken),
                Said::Look(look) => {
                    left.look.join(look);
                    left.unseen.clear();
                }
            }
        }
        if bytes.is_empty() {
            file.write_all_at(&[WRITTEN], 0)?;
        }
        file.set_len(length)?;
        let lacks = left.interrupted;
        let (path, boot) = (path.to_owned(), boot.to_owned());
        Ok((Self { path, boot, file, length, lacks, unseen: false }, left))
    }

    /// Before events are taken. Without it a daemon that is killed would look as if it had lost nothing.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.file.write_all_at(&[TAKING], 0)
    }

    /// After they were, before anybody looks who their readers are.
    pub(crate) fn taken(&mut self, batch: &Batch) -> io::Result<()> {
        if !batch.lost.is_empty() {
            // The look says so. Until then the mark does.
            return Ok(());
        }
        let at = boot_clock();
        let taken = |event: &Event| {
            // The number of one that is gone may be another's by now.
            let pid = event.pidfd.as_ref().map_or(0, |_| event.pid);
            Taken { at, pid, inode: event.inode, opened: event.opened }
        };
        self.unseen |= !batch.events.is_empty();
        self.add(batch.events.is_empty(), Said::Taken(batch.events.iter().map(taken).collect()))
    }

    /// What was taken has turned out to be this.
    pub(crate) fn looked(&mut self, look: &Look) -> io::Result<()> {
        let is_empty = look.is_empty() && !std::mem::take(&mut self.unseen);
        self.add(is_empty, Said::Look(look))
    }

    fn add(&mut self, is_empty: bool, said: Said<&Look>) -> io::Result<()> {
        if !is_empty && !self.lacks {
            let line = self.line(said)?;
            self.lacks = self.length + line.len() as u64 > BYTES_MAX;
            if !self.lacks {
                self.file.write_all_at(&line, self.length).inspect_err(|_| self.lacks = true)?;
                self.length += line.len() as u64;
            }
        }
        if self.lacks {
            return Ok(());
        }
        self.file.write_all_at(&[WRITTEN], 0)
    }

    /// Everything but this is in the journal now.
    pub fn journaled(&mut self, rest: &Look) -> io::Result<()> {
        if rest.is_empty() && self.length == 1 && !self.lacks {
            return Ok(());
        }
        if rest.is_empty() {
            self.file.set_len(1)?;
            self.length = 1;
        } else {
            let mut bytes = vec![WRITTEN];
            bytes.extend(self.line(Said::Look(rest))?);
            if bytes.len() as u64 > BYTES_MAX {
                return Ok(());
            }
            let new = self.path.with_extension("new");
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            std::fs::rename(&new, &self.path)?;
            (self.file, self.length) = (file, bytes.len() as u64);
        }
        self.lacks = false;
        self.file.write_all_at(&[WRITTEN], 0)
    }

    fn line(&self, said: Said<&Look>) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Line { boot: self.boot.as_str(), said })?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use opens::Lost;

    use super::*;
    use crate::scan::{Reader, Sighting};

    fn look(number: u64) -> Look {
        let sighting =
            Sighting { inode: Inode { device: 1, number }, opened: true, reader: Reader::Vanished };
        Look { began: Millis(number), sightings: vec![sighting], drained: true, ..Look::default() }
    }

    fn numbers(left: &Left) -> Vec<u64> {
        left.look.sightings.iter().map(|sighting| sighting.inode.number).collect()
    }

    #[test]
    fn a_daemon_killed_while_taking_is_told_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let (taking, left) = Taking::open(&path, "boot").unwrap();
        assert!(!left.interrupted);
        taking.begin().unwrap();
        drop(taking);
        let (mut taking, left) = Taking::open(&path, "boot").unwrap();
        assert!(left.interrupted);
        // Until the journal has what follows from it.
        taking.begin().unwrap();
        taking.looked(&look(1)).unwrap();
        assert!(Taking::open(&path, "boot").unwrap().1.interrupted);
        taking.journaled(&Look::default()).unwrap();
        assert!(!Taking::open(&path, "boot").unwrap().1.interrupted);
    }

    #[test]
    fn what_was_taken_and_not_journaled_is_left_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let mut taking = Taking::open(&path, "boot").unwrap().0;
        for number in 1..=2 {
            taking.begin().unwrap();
            taking.looked(&look(number)).unwrap();
        }
        drop(taking);
        let (mut taking, left) = Taking::open(&path, "boot").unwrap();
        assert_eq!((left.interrupted, numbers(&left), left.look.began), (false, vec![1, 2], Millis(2)));
        taking.begin().unwrap();
        taking.looked(&look(3)).unwrap();
        taking.journaled(&look(3)).unwrap();
        assert_eq!(numbers(&Taking::open(&path, "boot").unwrap().1), [3]);
        assert_eq!(numbers(&Taking::open(&path, "another boot").unwrap().1), [0; 0]);
        taking.looked(&look(4)).unwrap();
        assert_eq!(numbers(&Taking::open(&path, "boot").unwrap().1), [3, 4]);
        taking.journaled(&Look::default()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [WRITTEN]);
    }

    #[test]
    fn what_was_taken_and_not_looked_at_is_left_as_the_kernel_said_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let mut taking = Taking::open(&path, "boot").unwrap().0;
        let event = |number, pid, lives: bool| {
            let inode = Inode { device: 1, number };
            let pidfd = lives.then(|| std::fs::File::open("/dev/null").unwrap().into());
            Event { inode, opened: true, accessed: false, pid, pidfd }
        };
        let batch = |events| Batch { events, ..Batch::default() };
        taking.begin().unwrap();
        taking.taken(&batch(vec![event(1, 41, true)])).unwrap();
        taking.looked(&look(1)).unwrap();
        // Known otherwise, and so no news.
        taking.taken(&batch(vec![event(9, 49, true)])).unwrap();
        taking.looked(&Look::default()).unwrap();
        taking.begin().unwrap();
        taking.taken(&batch(vec![event(2, 42, true), event(3, 43, false)])).unwrap();
        assert!(!Taking::open(&path, "boot").unwrap().1.interrupted);
        taking.begin().unwrap();
        taking.taken(&Batch { lost: vec![Lost::Overflow], ..Batch::default() }).unwrap();
        let (mut taking, left) = Taking::open(&path, "boot").unwrap();
        assert_eq!((left.interrupted, numbers(&left)), (true, vec![1]));
        let unseen: Vec<_> = left.unseen.iter().map(|taken| (taken.pid, taken.inode.number)).collect();
        assert_eq!(unseen, [(42, 2), (0, 3)]);
        taking.journaled(&Look::default()).unwrap();
        assert_eq!(Taking::open(&path, "boot").unwrap().1.unseen, []);
    }

    #[test]
    fn killed_in_the_middle_of_a_line_it_leaves_the_lines_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let mut taking = Taking::open(&path, "boot").unwrap().0;
        taking.looked(&look(1)).unwrap();
        taking.begin().unwrap();
        let whole = std::fs::read(&path).unwrap().len();
        taking.looked(&look(2)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in whole..bytes.len() {
            std::fs::write(&path, [&[TAKING], &bytes[1..cut]].concat()).unwrap();
            let (_, left) = Taking::open(&path, "boot").unwrap();
            assert_eq!((left.interrupted, numbers(&left)), (true, vec![1]), "cut at {cut}");
            assert_eq!(std::fs::read(&path).unwrap().len(), whole);
        }
    }

    #[test]
    fn above_its_limit_the_mark_stands_until_the_journal_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taking");
        let mut taking = Taking::open(&path, "boot").unwrap().0;
        let mut many = look(1);
        many.lost = vec!["x".repeat(1 << 20); 5];
        taking.begin().unwrap();
        taking.looked(&many).unwrap();
        taking.begin().unwrap();
        taking.looked(&look(2)).unwrap();
        assert!(Taking::open(&path, "boot").unwrap().1.interrupted);
        taking.journaled(&Look::default()).unwrap();
        assert!(!Taking::open(&path, "boot").unwrap().1.interrupted);
    }
}
