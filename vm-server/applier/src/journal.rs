//! An append-only file of records: what was appended is durable, and a crash leaves whole records only.
//!
//! A record is its length (u32, big-endian), the first 8 bytes of the SHA-256 of its payload, and the payload. Only
//! the last record can be torn, since each is made durable before the next: where a whole one follows a damaged one it
//! was no crash but a broken disk or a hand in the file, and is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use crate::failpoint;

const MAGIC: &[u8] = b"eso-journal-1\n";
const HEADER_BYTES: usize = 12;
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
    /// A record holds what this program does not know. Without it dead versions and seals would be forgotten.
    #[error(
        "the journal {} has a record that this program does not understand ({error}), as a newer one writes it: \
         install that one again; nothing was changed",
        path.display()
    )]
    NotUnderstood {
        /// The journal.
        path: PathBuf,
        /// What is wrong with the record.
        error: serde_json::Error,
    },
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
    /// How many bytes it had after the last compaction.
    compacted_bytes: u64,
    /// A sync failed, or what a failed write left could not be cut off. The system may have dropped what was not
    /// written and say nothing of it at the next sync, so only a new file is believed from now on. So it is with what an
    /// earlier life left: it may have ended before it saw that, or between a rename and what makes that durable.
    broken: bool,
    _lock: File,
}

impl Journal {
    /// Opens or creates it, and cuts a torn tail off. Gives its records, oldest first. Nothing is appended to what an
    /// earlier life left: it has to be compacted first.
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
        let broken = whole > 0;
        let journal =
            Self { path: path.to_owned(), file, bytes, compacted_bytes: bytes, broken, _lock: lock };
        Ok((journal, records))
    }

    /// Appends a record and makes it durable.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), JournalError> {
        let failed = |doing, path: &Path, source| JournalError::Io { doing, path: path.to_owned(), source };
        if self.broken {
            let why = io::Error::other("what it has is not known to be durable before it was written anew");
            return Err(failed("write", &self.path, why));
        }
        let record = record(payload).map_err(|source| failed("write", &self.path, source))?;
        let written = failpoint::check("journal.append").and_then(|()| self.file.write_all(&record));
        let synced = written.and_then(|()| {
            let synced = failpoint::check("journal.sync").and_then(|()| self.file.sync_data());
            self.broken = synced.is_err();
            synced
        });
        if let Err(source) = synced {
            // Whatever of it lies there must not stand before the next record.
            let cut =
                self.file.set_len(self.bytes).and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)));
            self.broken |= cut.is_err();
            return Err(failed("write", &self.path, source));
        }
        self.bytes += record.len() as u64;
        failpoint::step("journal.appended");
        Ok(())
    }

    /// Appends a record that could perhaps not be written as text.
    pub(crate) fn append_result(&mut self, payload: io::Result<Vec<u8>>) -> Result<(), JournalError> {
        let payload =
            payload.map_err(|source| JournalError::Io { doing: "write", path: self.path.clone(), source })?;
        self.append(&payload)
    }

    /// Whether it has to be written anew: it has grown enough, or cannot be believed any more.
    pub(crate) const fn wants_compaction(&self) -> bool {
        self.broken || self.bytes > 4 * self.compacted_bytes + 1024 * 1024
    }

    /// What to say of a record that cannot be read.
    pub(crate) fn not_understood(&self, error: serde_json::Error) -> JournalError {
        JournalError::NotUnderstood { path: self.path.clone(), error }
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
        let failed = |source| JournalError::Io { doing: "compact", path: path.clone(), source };
        let new = self.path.with_extension("new");
        failpoint::step("journal.compact");
        let written = (|| {
            let mut file = private(&new, true)?;
            let mut content = MAGIC.to_vec();
            for payload in payloads {
                content.extend_from_slice(&record(payload)?);
            }
            file.write_all(&content)?;
            file.sync_all()?;
            failpoint::check("journal.replace")?;
            std::fs::rename(&new, &self.path)?;
            Ok((file, content.len() as u64))
        })();
        let (file, bytes) = written.map_err(|source| {
            // What was written of it takes the room that is missing.
            let _ = std::fs::remove_file(&new);
            failed(source)
        })?;
        // From here on the new file has the name, whether that is durable yet or not.
        (self.file, self.bytes, self.compacted_bytes) = (file, bytes, bytes);
        let renamed = failpoint::check("journal.renamed").and_then(|()| sync_dir(&self.path));
        self.broken = renamed.is_err();
        renamed.map_err(failed)
    }
}

/// One that is too long to be read again is none.
fn record(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= RECORD_BYTES_MAX);
    let length = length.ok_or_else(|| {
        io::Error::other(format!(
            "a record of {} bytes is over the limit of {RECORD_BYTES_MAX}",
            payload.len()
        ))
    })?;
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(&checksum(payload));
    record.extend_from_slice(payload);
    Ok(record)
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
    while let Some((payload, next)) = take(content, at) {
        records.push(payload.to_vec());
        at = next;
    }
    // What is not whole may be torn, unless a whole one follows it, wherever that begins: the damage may be in a length.
    let follows = (at + 1..content.len()).any(|later| take(content, later).is_some());
    if follows { Err(at) } else { Ok((records, at)) }
}

fn announced(content: &[u8], at: usize) -> Option<usize> {
    let length = content.get(at..)?.first_chunk::<4>()?;
    let length =
        usize::try_from(u32::from_be_bytes(*length)).ok().filter(|length| *length <= RECORD_BYTES_MAX)?;
    let end = at.checked_add(HEADER_BYTES)?.checked_add(length)?;
    (end <= content.len()).then_some(end)
}

fn take(content: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = announced(content, at)?;
    let sum = content.get(at + 4..at + HEADER_BYTES)?;
    let payload = content.get(at + HEADER_BYTES..end)?;
    (checksum(payload) == *sum).then_some((payload, end))
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
            journal.append(record).unwrap();
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
            let (mut mended, left) = open(&dir.path().join("journal")).unwrap();
            mended.compact(&left).unwrap();
            mended.append(b"next").unwrap();
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
        let (dir, records, content) = three();
        let last = content.len() - HEADER_BYTES - records[2].len();
        for at in MAGIC.len()..last {
            for bit in 0..8 {
                let mut damaged = content.clone();
                damaged[at] ^= 1 << bit;
                let error = journal(dir.path(), &damaged).unwrap_err();
                assert!(matches!(error, JournalError::Damaged { .. }), "bit {bit} of byte {at}: {error}");
            }
        }
        assert!(matches!(journal(dir.path(), b"something else"), Err(JournalError::Damaged { at: 0, .. })));
    }

    #[test]
    fn compaction_keeps_what_it_is_given() {
        let (dir, _, _) = three();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path).unwrap();
        journal.compact(&[b"all".to_vec()]).unwrap();
        journal.append(b"more").unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, [b"all".to_vec(), b"more".to_vec()]);
    }

    #[test]
    fn a_record_that_could_not_be_read_again_is_not_written() {
        let (dir, records, _) = three();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path).unwrap();
        journal.compact(&records).unwrap();
        let error = journal.append(&vec![0; RECORD_BYTES_MAX + 1]).unwrap_err();
        assert!(error.to_string().contains("over the limit"), "{error}");
        journal.append(b"next").unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, [records, vec![b"next".to_vec()]].concat());
    }

    #[test]
    fn what_an_earlier_life_left_is_written_anew_before_anything_is_appended() {
        let (dir, records, _) = three();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path).unwrap();
        assert!(journal.wants_compaction());
        let error = journal.append(b"lost").unwrap_err();
        assert!(error.to_string().contains("not known to be durable"), "{error}");
        journal.compact(&records).unwrap();
        assert!(!journal.wants_compaction());
        journal.append(b"next").unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, [records, vec![b"next".to_vec()]].concat());
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
