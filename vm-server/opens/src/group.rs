//! A notification group, its marks and its queue.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::event::{Batch, Event, Lost, Raw, parse};

/// What is watched on each inode. `FAN_ACCESS` too: a process that was handed a descriptor opens nothing, but reads.
const WATCHED: MaskFlags = MaskFlags::FAN_OPEN.union(MaskFlags::FAN_ACCESS);

/// Room for one event (32 bytes today), and not for two: when an event cannot be handed over, the kernel drops it
/// and tells so only if it was the first of a buffer.
const ONE_EVENT_BYTES: usize = 56;

/// The most events that one [`Group::read`] takes, so that the descriptors of a batch stay few.
const BATCH_EVENTS_MAX: usize = 256;

/// Names a file beyond its path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Inode {
    /// The device, as `stat` shows it.
    pub device: u64,
    /// The inode's number on it.
    pub number: u64,
}

impl Inode {
    /// Of an open file; one opened with `O_PATH` will do.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let stat = fstat(file)?;
        Ok(Self { device: stat.st_dev, number: stat.st_ino })
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device;
        write!(f, "{}:{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device), self.number)
    }
}

impl fmt::Debug for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a group cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The kernel refuses a group. See [`Capability::probe`](crate::Capability::probe) for what it means.
    #[error("failed to open a fanotify group: {0}")]
    Open(Errno),
    /// A descriptor that was kept for us is no group, or one of another kind.
    #[error("the descriptor that was kept for us is no fanotify group as we make them: {0}")]
    NotOurs(String),
    /// A file cannot be marked.
    #[error("failed to mark a file of the set for watching: {0}")]
    Mark(Errno),
    /// A mark cannot be taken away.
    #[error("failed to end the watching of a file of the set: {0}")]
    Unmark(Errno),
    /// The list of marks cannot be read.
    #[error("failed to read the group's marks: {0}")]
    Marks(String),
}

/// How many events may wait to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Any number: a lost event could hold a credential alive for ever.
    Unlimited,
    /// As `/proc/sys/fs/fanotify/max_queued_events` says. What does not fit is a [`Lost::Overflow`].
    Limited,
}

/// A notification group: told of every open and read of the inodes marked in it.
pub struct Group(Fanotify);

impl Group {
    /// A new group without marks.
    pub fn open(queue: Queue) -> Result<Self, GroupError> {
        let mut flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_REPORT_PIDFD
            | InitFlags::FAN_UNLIMITED_MARKS
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK;
        flags.set(InitFlags::FAN_UNLIMITED_QUEUE, queue == Queue::Unlimited);
        let event_flags = EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC;
        Fanotify::init(flags, event_flags).map(Self).map_err(GroupError::Open)
    }

    /// Takes back a group that was kept over our restart, with its marks and the events queued meanwhile.
    pub fn take_back(kept: OwnedFd) -> Result<Self, GroupError> {
        let kind = fs::read_link(own_link(&kept)).map_err(|error| GroupError::NotOurs(error.to_string()))?;
        if kind.as_os_str() != "anon_inode:[fanotify]" {
            return Err(GroupError::NotOurs(kind.display().to_string()));
        }
        let info = fdinfo(&kept).map_err(GroupError::NotOurs)?;
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("fanotify flags:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
            .map_or(InitFlags::empty(), InitFlags::from_bits_retain);
        let classes = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLASS_PRE_CONTENT;
        if !flags.contains(InitFlags::FAN_REPORT_PIDFD) || flags.intersects(classes) {
            return Err(GroupError::NotOurs(format!("its flags are {:x}", flags.bits())));
        }
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::CLOEXEC)
            .and_then(|()| rustix::fs::fcntl_setfl(&kept, rustix::fs::OFlags::NONBLOCK))
            .map_err(|error| GroupError::NotOurs(error.to_string()))?;
        // SAFETY: it was shown above that the descriptor is a fanotify group.
        #[expect(unsafe_code, reason = "a kept descriptor becomes a group again")]
        let fanotify = unsafe { Fanotify::from_owned_fd(kept) };
        Ok(Self(fanotify))
    }

    /// Watches a file from now on. Call it before the file becomes visible. `O_PATH` descriptors will do.
    pub fn mark(&self, file: impl AsFd) -> Result<Inode, GroupError> {
        self.change(MarkFlags::FAN_MARK_ADD, &file).map_err(GroupError::Mark)?;
        Inode::of(file).map_err(GroupError::Mark)
    }

    /// Watches a file no longer. Not needed for one that was unlinked: its mark ends with its last user.
    pub fn unmark(&self, file: impl AsFd) -> Result<(), GroupError> {
        match self.change(MarkFlags::FAN_MARK_REMOVE, &file) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(GroupError::Unmark(errno)),
        }
    }

    /// The inodes that are watched, as the kernel itself lists them. What is missing here after
    /// [`Group::take_back`] was unwatched for a time.
    pub fn marks(&self) -> Result<Vec<Inode>, GroupError> {
        let info = fdinfo(&self.0).map_err(GroupError::Marks)?;
        Ok(info.lines().filter_map(parse_mark).collect())
    }

    /// Whether [`Group::read`] would take something now.
    pub fn has_events(&self) -> bool {
        let mut polled = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // In doubt it has.
        rustix::event::poll(&mut polled, Some(&at_once)).map_or(true, |ready| ready > 0)
    }

    /// Takes what is queued, never waits. Call again unless the batch says that it [drained](Batch::drained) the
    /// queue. Events are consumed: one that is not recorded is lost for ever.
    pub fn read(&self) -> Batch {
        let mut batch = Batch::default();
        let mut buffer = [0_u8; ONE_EVENT_BYTES];
        for _ in 0..BATCH_EVENTS_MAX {
            match nix::unistd::read(&self.0, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => {
                    batch.drained = true;
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    batch.lost.push(Lost::Unreadable(errno));
                    // EMFILE and the like would eat the whole queue, one event a call.
                    break;
                }
                Ok(length) => take(&buffer[..length], &mut batch),
            }
        }
        batch
    }

    fn change(&self, how: MarkFlags, file: &impl AsFd) -> Result<(), Errno> {
        self.0.mark(how, WATCHED, AT_FDCWD, Some(&own_link(file)))
    }
}

/// For `poll`, and to be kept by whoever keeps descriptors over our restart.
impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Group> for OwnedFd {
    fn from(group: Group) -> Self {
        group.0.into()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.0.as_fd().as_raw_fd())
    }
}

fn take(buffer: &[u8], batch: &mut Batch) {
    let events = parse(buffer);
    if events.is_empty() {
        batch.lost.push(Lost::Unknown);
    }
    for raw in events {
        match wrap(raw) {
            Ok(Some(event)) => batch.events.push(event),
            Ok(None) => {}
            Err(lost) => batch.lost.push(lost),
        }
    }
}

/// Owns the descriptors at once, keeps the reader's, and closes the file's.
pub(crate) fn wrap(raw: Raw) -> Result<Option<Event>, Lost> {
    // SAFETY: `raw` comes from the buffer that the kernel has just filled, and is wrapped nowhere else.
    #[expect(unsafe_code, reason = "the one place where event descriptors become owned")]
    let (file, pidfd) = unsafe { raw.into_descriptors() };
    if raw.is_overflow() {
        return Err(Lost::Overflow);
    }
    let Some(file) = file.filter(|_| raw.known_version) else {
        return Err(Lost::Unknown);
    };
    let inode = Inode::of(&file).map_err(Lost::Unreadable)?;
    let opened = raw.mask.contains(MaskFlags::FAN_OPEN);
    let accessed = raw.mask.contains(MaskFlags::FAN_ACCESS);
    Ok((opened || accessed).then_some(Event { inode, opened, accessed, pid: raw.pid, pidfd }))
}

/// A path to a file that we have open, which also works for `O_PATH`.
pub(crate) fn own_link(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn fdinfo(file: &impl AsFd) -> Result<String, String> {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
}

/// A line such as `fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:...`. The device
/// is in the kernel's own form: major << 20 | minor.
fn parse_mark(line: &str) -> Option<Inode> {
    let mut words = line.strip_prefix("fanotify ")?.split_whitespace();
    let number = u64::from_str_radix(words.next()?.strip_prefix("ino:")?, 16).ok()?;
    let device = u64::from_str_radix(words.next()?.strip_prefix("sdev:")?, 16).ok()?;
    let device = nix::sys::stat::makedev(device >> 20, device & 0xf_ffff);
    Some(Inode { device, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_the_kernel_writes_them() {
        let line =
            "fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:8 fhandle-type:1";
        let inode = parse_mark(line).unwrap();
        assert_eq!(inode, Inode { device: nix::sys::stat::makedev(8, 0x13), number: 0x4f969 });
        assert_eq!(parse_mark("fanotify flags:0 event-flags:8000"), None);
        assert_eq!(parse_mark("pos:\t0"), None);
    }
}
