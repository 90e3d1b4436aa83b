//! An append-only file of records: what was appended outlives our own death at once, and a loss of power from the
//! next sync on; either leaves whole records only.
//!
//! A record is its length (u32, big-endian), the first 8 bytes of the SHA-256 of its payload, and the payload. The
//! length's first bit says that everything before the record was durable when it was appended. So a damaged record is
//! what a loss of power left unless a later one says that it was durable: then it is a broken disk or a hand in the
//! file, and is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use crate::failpoint;

const MAGIC: &[u8] = b"eso-journal-1\n";
const HEADER_BYTES: usize = 12;
/// Set in a record's length: everything before it was durable.
const DURABLE_BEFORE: u32 = 1 << 31;
/// The most bytes of one record.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system says no.
    #[error("failed to {doing} the journal {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The journal.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A set cannot be looked at yet, so nothing is written about it.
    #[error("what lies here of {0} cannot be looked at yet: see the notices of this host")]
    Unready(lifecycle::SetName),
    /// Another applier has it.
    #[error("the journal {} is in use by another applier: stop it first", .0.display())]
    Locked(PathBuf),
    /// It is not a journal, or was damaged before its end.
    #[error(
        "the journal {} is damaged at byte {at}: restore it, or move {} away and enrol this host again",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where.
        at: usize,
    },
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// How many bytes it has.
    bytes: u64,
    /// Whether a loss of power may take some of them.
    unsynced: bool,
    /// How many bytes it had after the last compaction.
    compacted_bytes: u64,
    _lock: File,
}

impl Journal {
    /// Opens or creates it, and cuts a torn tail off. Gives its records, oldest first.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Vec<u8>>), JournalError> {
        let failed = |doing| move |source| JournalError::Io { doing, path: path.to_owned(), source };
        let lock = lock(path)?;
        let mut file = private(path, false).map_err(failed("open"))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed("read"))?;
        let (records, whole) =
            parse(&content).map_err(|at| JournalError::Damaged { path: path.to_owned(), at })?;
        if whole == 0 {
            failpoint::step("journal.create");
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed("start"))?;
            file.write_all(MAGIC).and_then(|()| file.sync_all()).map_err(failed("start"))?;
            sync_dir(path).map_err(failed("start"))?;
        } else if whole < content.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed("mend"))?;
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
        // What a process before us wrote may not be durable yet.
        let unsynced = true;
        let journal =
            Self { path: path.to_owned(), file, bytes, unsynced, compacted_bytes: bytes, _lock: lock };
        Ok((journal, records))
    }

    /// Appends a record, if it could be written as text, and makes it and all before it durable.
    pub(crate) fn keep(&mut self, payload: io::Result<Vec<u8>>) -> Result<(), JournalError> {
        self.append(payload, true)
    }

    /// Appends a record, if it could be written as text. Until the next sync a loss of power may take it.
    pub(crate) fn note(&mut self, payload: io::Result<Vec<u8>>) -> Result<(), JournalError> {
        self.append(payload, false)
    }

    fn append(&mut self, payload: io::Result<Vec<u8>>, synced: bool) -> Result<(), JournalError> {
        let written = payload.and_then(|payload| {
            let record = record(&payload, !self.unsynced);
            failpoint::check("journal.append")?;
            self.file.write_all(&record)?;
            if synced {
                self.file.sync_data()?;
            }
            Ok(record.len() as u64)
        });
        match written {
            Ok(length) => {
                self.bytes += length;
                self.unsynced = !synced;
                failpoint::step("journal.appended");
                Ok(())
            }
            Err(source) => {
                // Whatever of it lies there must not stand before the next record.
                let _ = self.file.set_len(self.bytes);
                let _ = self.file.seek(SeekFrom::Start(self.bytes));
                Err(JournalError::Io { doing: "write", path: self.path.clone(), source })
            }
        }
    }

    /// Makes everything durable that was appended.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        if self.unsynced {
            let synced = failpoint::check("journal.sync").and_then(|()| self.file.sync_data());
            synced.map_err(|source| JournalError::Io { doing: "sync", path: self.path.clone(), source })?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Whether it has grown enough to be written anew.
    pub(crate) const fn wants_compaction(&self) -> bool {
        self.bytes > 4 * self.compacted_bytes + 1024 * 1024
    }

    /// Replaces all records by these, if all of them could be written as text.
    pub(crate) fn compact_result(&mut self, payloads: io::Result<Vec<Vec<u8>>>) -> Result<(), JournalError> {
        let path = self.path.clone();
        let payloads = payloads.map_err(|source| JournalError::Io { doing: "compact", path, source })?;
        self.compact(&payloads)
    }

    /// Replaces all records by these, in one rename.
    pub(crate) fn compact(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError> {
        let path = self.path.clone();
        let failed = |doing| move |source| JournalError::Io { doing, path, source };
        let new = self.path.with_extension("new");
        failpoint::step("journal.compact");
        let written = (|| {
            let mut file = private(&new, true)?;
            let mut content = MAGIC.to_vec();
            for payload in payloads {
                content.extend_from_slice(&record(payload, true));
            }
            file.write_all(&content)?;
            file.sync_all()?;
            failpoint::check("journal.replace")?;
            std::fs::rename(&new, &self.path)?;
            sync_dir(&self.path)?;
            Ok((file, content.len() as u64))
        })();
        let (file, bytes) = written.map_err(failed("compact"))?;
        (self.file, self.bytes, self.compacted_bytes) = (file, bytes, bytes);
        self.unsynced = false;
        Ok(())
    }
}

fn record(payload: &[u8], durable_before: bool) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    let length = u32::try_from(payload.len()).unwrap_or(DURABLE_BEFORE - 1);
    record.extend_from_slice(&(length | if durable_before { DURABLE_BEFORE } else { 0 }).to_be_bytes());
    record.extend_from_slice(&checksum(payload));
    record.extend_from_slice(payload);
    record
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest::digest(&digest::SHA256, payload).as_ref()[..8]);
    sum
}

/// The records, and how many bytes are whole. An error names the byte where something other than a torn tail is.
fn parse(content: &[u8]) -> Result<(Vec<Vec<u8>>, usize), usize> {
    if content.len() < MAGIC.len() {
        return if MAGIC.starts_with(content) { Ok((Vec::new(), 0)) } else { Err(0) };
    }
    if !content.starts_with(MAGIC) {
        return Err(0);
    }
    let mut records = Vec::new();
    let mut at = MAGIC.len();
    while let Some(whole) = take(content, at) {
        records.push(whole.payload.to_vec());
        at = whole.end;
    }
    // It may be torn although its length is whole, and so may what follows it, unless one of those says otherwise.
    let mut later = announced(content, at).and_then(|(end, _)| take(content, end));
    while let Some(whole) = later {
        if whole.durable_before {
            return Err(at);
        }
        later = take(content, whole.end);
    }
    Ok((records, at))
}

/// A record whose checksum is right.
struct Whole<'a> {
    payload: &'a [u8],
    /// Where it ends.
    end: usize,
    durable_before: bool,
}

/// Where the record ends by its length, and whether it says that what is before it was durable.
fn announced(content: &[u8], at: usize) -> Option<(usize, bool)> {
    let length = u32::from_be_bytes(*content.get(at..)?.first_chunk::<4>()?);
    let payload = usize::try_from(length & !DURABLE_BEFORE).ok();
    let end =
        at.checked_add(HEADER_BYTES)?.checked_add(payload.filter(|length| *length <= RECORD_BYTES_MAX)?)?;
    (end <= content.len()).then_some((end, length & DURABLE_BEFORE != 0))
}

fn take(content: &[u8], at: usize) -> Option<Whole<'_>> {
    let (end, durable_before) = announced(content, at)?;
    let sum = content.get(at + 4..at + HEADER_BYTES)?;
    let payload = content.get(at + HEADER_BYTES..end)?;
    (checksum(payload) == *sum).then_some(Whole { payload, end, durable_before })
}

/// A file that only its owner may read.
fn private(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(new).mode(0o600).open(path)
}

/// Held for as long as the journal is open; the journal itself is replaced now and then.
fn lock(path: &Path) -> Result<File, JournalError> {
    let lock_path = path.with_extension("lock");
    let lock = private(&lock_path, false).map_err(|source| JournalError::Io {
        doing: "lock",
        path: path.to_owned(),
        source,
    })?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::AGAIN) => Err(JournalError::Locked(path.to_owned())),
        Err(errno) => Err(JournalError::Io { doing: "lock", path: path.to_owned(), source: errno.into() }),
    }
}

/// Makes the names in a file's directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that a test beside this one has just forked has our lock too, until it becomes another program.
    fn open(path: &Path) -> Result<(Journal, Vec<Vec<u8>>), JournalError> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match Journal::open(path) {
                Err(JournalError::Locked(_)) if std::time::Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => return opened,
            }
        }
    }

    fn journal(dir: &Path, content: &[u8]) -> Result<Vec<Vec<u8>>, JournalError> {
        let path = dir.join("journal");
        std::fs::write(&path, content).unwrap();
        open(&path).map(|(_, records)| records)
    }

    fn three() -> (tempfile::TempDir, Vec<Vec<u8>>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let records = vec![b"first".to_vec(), Vec::new(), vec![7; 300]];
        let (mut journal, none) = open(&path).unwrap();
        assert!(none.is_empty());
        for record in &records {
            journal.keep(Ok(record.clone())).unwrap();
        }
        drop(journal);
        let content = std::fs::read(&path).unwrap();
        (dir, records, content)
    }

    #[test]
    fn what_was_appended_comes_back() {
        let (dir, records, content) = three();
        assert_eq!(journal(dir.path(), &content).unwrap(), records);
    }

    #[test]
    fn a_tail_torn_at_any_byte_leaves_whole_records() {
        let (dir, records, content) = three();
        let ends: Vec<usize> = (0..=records.len())
            .map(|count| {
                MAGIC.len() + records[..count].iter().map(|record| record.len() + HEADER_BYTES).sum::<usize>()
            })
            .collect();
        for cut in 0..=content.len() {
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap_or(0);
            assert_eq!(journal(dir.path(), &content[..cut]).unwrap(), records[..whole], "cut at {cut}");
            // And it can be written on.
            let (mut mended, _) = open(&dir.path().join("journal")).unwrap();
            mended.keep(Ok(b"next".to_vec())).unwrap();
            drop(mended);
            let (_, after) = open(&dir.path().join("journal")).unwrap();
            assert_eq!(after.len(), whole + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_tail_of_zeros_or_noise_is_cut_off() {
        let (dir, records, content) = three();
        for tail in [vec![0; 4096], vec![0xff; 100], vec![0, 0, 0, 9, 1, 2, 3]] {
            assert_eq!(journal(dir.path(), &[content.as_slice(), &tail].concat()).unwrap(), records);
        }
    }

    #[test]
    fn damage_before_the_end_is_refused() {
        let (dir, _, mut content) = three();
        content[MAGIC.len() + HEADER_BYTES] ^= 1;
        let error = journal(dir.path(), &content).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
        assert!(matches!(journal(dir.path(), b"something else"), Err(JournalError::Damaged { at: 0, .. })));
    }

    /// Blocks reach a disk in any order: of what was not synced the first may be lost and the last be there.
    #[test]
    fn of_what_was_not_durable_any_part_may_be_lost() {
        let (dir, records, content) = three();
        let path = dir.path().join("journal");
        let (mut noting, _) = open(&path).unwrap();
        noting.sync().unwrap();
        for noted in [b"one".as_slice(), b"two", b"six"] {
            noting.note(Ok(noted.to_vec())).unwrap();
        }
        drop(noting);
        let noted = std::fs::read(&path).unwrap();
        for lost in content.len() + 4..noted.len() - 4 {
            let mut torn = noted.clone();
            torn[lost] ^= 0x40;
            let whole = records.len() + (lost - content.len()) / (HEADER_BYTES + 3);
            assert_eq!(journal(dir.path(), &torn).unwrap().len(), whole, "lost at {lost}");
        }
        // Once they were synced they are as durable as the others: what comes next says so.
        std::fs::write(&path, &noted).unwrap();
        let (mut synced, _) = open(&path).unwrap();
        synced.sync().unwrap();
        synced.note(Ok(b"last".to_vec())).unwrap();
        drop(synced);
        let mut damaged = std::fs::read(&path).unwrap();
        damaged[content.len() + HEADER_BYTES] ^= 1;
        assert!(matches!(journal(dir.path(), &damaged), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn compaction_keeps_what_it_is_given() {
        let (dir, _, _) = three();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path).unwrap();
        journal.compact(&[b"all".to_vec()]).unwrap();
        journal.keep(Ok(b"more".to_vec())).unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, [b"all".to_vec(), b"more".to_vec()]);
    }

    #[test]
    fn two_appliers_cannot_have_it() {
        let (dir, _, _) = three();
        let path = dir.path().join("journal");
        let first = open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Locked(_))));
        drop(first);
        open(&path).unwrap();
    }
}
