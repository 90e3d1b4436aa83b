//! Events as the kernel writes them. Parsing is over plain bytes; only wrapping a number as a descriptor is unsafe.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::fanotify::{FANOTIFY_METADATA_VERSION, MaskFlags};

use crate::group::Inode;

/// One process opened or read one marked inode. Identical events of a process may have been merged by the kernel.
#[derive(Debug)]
pub struct Event {
    /// The file.
    pub inode: Inode,
    /// It was opened.
    pub opened: bool,
    /// It was read, perhaps through a descriptor that the process was handed.
    pub accessed: bool,
    /// The process, in our own process namespace. 0 when it is not in it.
    pub pid: i32,
    /// The same process beyond reuse of its number; `None` when it was gone before we looked.
    pub pidfd: Option<OwnedFd>,
}

/// What one call of [`Group::read`](crate::Group::read) brought.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// Events that we know to have missed.
    pub lost: Vec<Lost>,
    /// Nothing was left in the queue.
    pub drained: bool,
}

/// Why events were missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The kernel's queue was full.
    Overflow,
    /// The kernel could not hand one over, for example because we have no descriptor left. It does not come again.
    Unreadable(nix::errno::Errno),
    /// An event in a form that we do not know.
    Unknown,
}

/// An event as it stands in the buffer: its descriptors are still numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) known_version: bool,
    pub(crate) mask: MaskFlags,
    fd: RawFd,
    pub(crate) pid: i32,
    pidfd: RawFd,
}

impl Raw {
    pub(crate) fn is_overflow(&self) -> bool {
        self.mask.contains(MaskFlags::FAN_Q_OVERFLOW)
    }

    /// Takes ownership of the descriptors: the file's, and the reader's pidfd.
    ///
    /// # Safety
    ///
    /// `self` was parsed from bytes that the kernel has just written for this process, and this is called once
    /// for each such event.
    #[expect(unsafe_code, reason = "the kernel installs the descriptors and hands them over as numbers")]
    pub(crate) unsafe fn into_descriptors(self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        let own = |number: RawFd| {
            // SAFETY: by the contract of this function the number is a descriptor that the kernel has installed
            // for us and that nothing else owns. Negative numbers (FAN_NOFD, FAN_NOPIDFD, FAN_EPIDFD) are none.
            (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
        };
        (own(self.fd), own(self.pidfd))
    }
}

const METADATA_BYTES: usize = size_of::<libc::fanotify_event_metadata>();
const INFO_HEADER_BYTES: usize = 4;

/// Walks the events in a buffer. Stops at the first that does not fit in it.
pub(crate) fn parse(mut buffer: &[u8]) -> Vec<Raw> {
    let mut events = Vec::new();
    while let Some((raw, rest)) = split_event(buffer) {
        events.push(raw);
        buffer = rest;
    }
    events
}

/// Layout of `struct fanotify_event_metadata`: event_len u32, vers u8, reserved u8, metadata_len u16, mask u64,
/// fd i32, pid i32; then information records up to event_len. See fanotify(7).
fn split_event(buffer: &[u8]) -> Option<(Raw, &[u8])> {
    let event_len = usize::try_from(u32_at(buffer, 0)?).ok()?;
    let metadata_len = usize::from(u16_at(buffer, 6)?);
    if metadata_len < METADATA_BYTES || event_len < metadata_len || event_len > buffer.len() {
        return None;
    }
    let (event, rest) = buffer.split_at(event_len);
    let raw = Raw {
        known_version: event[4] == FANOTIFY_METADATA_VERSION,
        mask: MaskFlags::from_bits_retain(u64_at(event, 8)?),
        fd: i32_at(event, 16)?,
        pid: i32_at(event, 20)?,
        pidfd: pidfd_among(&event[metadata_len..]).unwrap_or(libc::FAN_NOPIDFD),
    };
    Some((raw, rest))
}

/// Each record: info_type u8, pad u8, len u16, then for a pidfd one i32.
fn pidfd_among(mut records: &[u8]) -> Option<RawFd> {
    loop {
        let length = usize::from(u16_at(records, 2)?);
        if length < INFO_HEADER_BYTES || length > records.len() {
            return None;
        }
        if records[0] == libc::FAN_EVENT_INFO_TYPE_PIDFD {
            return i32_at(records, INFO_HEADER_BYTES);
        }
        records = &records[length..];
    }
}

fn bytes_at<const N: usize>(buffer: &[u8], at: usize) -> Option<[u8; N]> {
    buffer.get(at..at + N)?.try_into().ok()
}

fn u16_at(buffer: &[u8], at: usize) -> Option<u16> {
    bytes_at(buffer, at).map(u16::from_ne_bytes)
}

fn u32_at(buffer: &[u8], at: usize) -> Option<u32> {
    bytes_at(buffer, at).map(u32::from_ne_bytes)
}

fn u64_at(buffer: &[u8], at: usize) -> Option<u64> {
    bytes_at(buffer, at).map(u64::from_ne_bytes)
}

fn i32_at(buffer: &[u8], at: usize) -> Option<i32> {
    bytes_at(buffer, at).map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(mask: u64, fd: i32, pid: i32, records: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(METADATA_BYTES + records.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend([FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(u16::try_from(METADATA_BYTES).unwrap().to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend(fd.to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    fn pidfd_record(pidfd: i32) -> Vec<u8> {
        let mut bytes = vec![libc::FAN_EVENT_INFO_TYPE_PIDFD, 0];
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(pidfd.to_ne_bytes());
        bytes
    }

    #[test]
    fn events_are_walked_by_their_own_length() {
        let mut unknown_record = vec![200_u8, 0];
        unknown_record.extend(12_u16.to_ne_bytes());
        unknown_record.extend([9; 8]);
        let mut buffer = event(libc::FAN_OPEN, 7, 41, &[unknown_record, pidfd_record(8)].concat());
        buffer.extend(event(libc::FAN_Q_OVERFLOW, libc::FAN_NOFD, 0, &[]));
        let events = parse(&buffer);
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].fd, events[0].pid, events[0].pidfd), (7, 41, 8));
        assert!(!events[0].is_overflow());
        assert!(events[1].is_overflow());
        assert_eq!(events[1].pidfd, libc::FAN_NOPIDFD);
    }

    #[test]
    fn a_cut_event_is_not_read() {
        let whole = event(libc::FAN_OPEN, 7, 41, &pidfd_record(8));
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Vec::new());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).len() <= bytes.len() / METADATA_BYTES);
        }
    }
}
