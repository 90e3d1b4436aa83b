//! What responder and parent say to each other: one message a packet, numbers in the machine's own order, since
//! both ends are the same program.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::Held;
use crate::group::Inode;
use crate::text::ProcessText;

pub(super) const MARK: u8 = b'M';
pub(super) const UNMARK: u8 = b'U';
const HELD: u8 = b'H';
const LOST: u8 = b'L';
const CONFIRMED: u8 = b'C';

/// More than one message ever takes: 24 processes of at most 4 KiB each, see `respond`.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// What the responder says.
pub(super) enum Told {
    Held(Held),
    Lost,
    Confirmed(Result<(), Errno>),
}

/// The parent asks.
pub(super) fn ask(control: &OwnedFd, what: u8, file: BorrowedFd<'_>) -> io::Result<()> {
    send(control, &[what], Some(file), SendFlags::NOSIGNAL)
}

/// The responder hears. `None` when the parent is gone.
pub(super) fn heard(control: &OwnedFd) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut buffer = [0_u8; 8];
    let (length, file) = receive_bytes(control, &mut buffer, RecvFlags::DONTWAIT)?;
    Ok((length > 0).then_some((buffer[0], file)))
}

/// The parent hears. `None` when the responder is gone.
pub(super) fn receive(control: &OwnedFd, flags: RecvFlags) -> io::Result<Option<Told>> {
    let mut buffer = vec![0_u8; MESSAGE_BYTES_MAX];
    let (length, pidfd) = receive_bytes(control, &mut buffer, flags)?;
    if length == 0 {
        return Ok(None);
    }
    let mut rest = Reader(&buffer[..length]);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    match rest.byte() {
        Some(HELD) => rest.held(pidfd).map(Told::Held).map(Some).ok_or_else(malformed),
        Some(LOST) => Ok(Some(Told::Lost)),
        Some(CONFIRMED) => {
            let errno = rest.i32().ok_or_else(malformed)?;
            let answer = if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) };
            Ok(Some(Told::Confirmed(answer)))
        }
        _ => Err(malformed()),
    }
}

pub(super) fn tell_confirmed(control: &OwnedFd, answer: Result<(), Errno>) -> io::Result<()> {
    let errno = answer.err().map_or(0, |errno| errno as i32);
    let mut bytes = vec![CONFIRMED];
    bytes.extend(errno.to_ne_bytes());
    send(control, &bytes, None, SendFlags::NOSIGNAL)
}

/// Never waits: an opener is held meanwhile.
pub(super) fn tell_held(control: &OwnedFd, held: &Held) -> io::Result<()> {
    let mut bytes = vec![HELD];
    bytes.extend(held.inode.device.to_ne_bytes());
    bytes.extend(held.inode.number.to_ne_bytes());
    bytes.extend([u8::from(held.opened), u8::from(held.accessed)]);
    bytes.extend(held.pid.to_ne_bytes());
    for text in &held.texts {
        bytes.extend(text.pid.to_ne_bytes());
        for part in [&text.stat, &text.status, &text.cgroup, &text.exe, &text.mount_namespace] {
            bytes.extend(u32::try_from(part.len()).unwrap_or(0).to_ne_bytes());
            bytes.extend(part);
        }
    }
    let pidfd = held.pidfd.as_ref().map(AsFd::as_fd);
    send(control, &bytes, pidfd, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

pub(super) fn tell_lost(control: &OwnedFd) -> io::Result<()> {
    send(control, &[LOST], None, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send(socket: &OwnedFd, bytes: &[u8], file: Option<BorrowedFd<'_>>, flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

fn receive_bytes(
    socket: &OwnedFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut file = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last();
        }
    }
    Ok((got.bytes, file))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn held(&mut self, pidfd: Option<OwnedFd>) -> Option<Held> {
        let inode = Inode { device: self.u64()?, number: self.u64()? };
        let (opened, accessed) = (self.byte()? != 0, self.byte()? != 0);
        let pid = self.i32()?;
        let mut texts = Vec::new();
        while !self.0.is_empty() {
            texts.push(ProcessText {
                pid: self.i32()?,
                stat: self.part()?,
                status: self.part()?,
                cgroup: self.part()?,
                exe: self.part()?,
                mount_namespace: self.part()?,
            });
        }
        Some(Held { inode, opened, accessed, texts, pid, pidfd })
    }

    fn part(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(u32::from_ne_bytes(self.array()?)).ok()?;
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part.to_vec())
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }
}
