//! A group on the real kernel: who is named, what is told as lost, what survives a restart.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

mod privilege;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use opens::{Batch, Capability, Event, Group, GroupError, Inode, Lost, Queue};
use privilege::sees_opens;

/// A tmpfs of its own: nobody else's inodes are counted in it.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(Some("eso-test"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn inodes_in_use(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_files - stat.f_ffree
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

fn read_until(group: &Group, enough: impl Fn(&[Event]) -> bool) -> Batch {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut all = Batch::default();
    while !enough(&all.events) {
        assert!(Instant::now() < deadline, "only saw {:?}", all.events);
        let batch = group.read();
        all.events.extend(batch.events);
        all.lost.extend(batch.lost);
        std::thread::yield_now();
    }
    all
}

#[test]
fn the_probe_says_kernel_or_names_the_error() {
    match Capability::probe() {
        Capability::Kernel => {}
        Capability::Without(why) => {
            let words = why.to_string();
            assert!(words.starts_with('E') || words.contains("name readers"), "{words}");
        }
    }
}

#[test]
fn an_opener_is_named_with_its_pidfd() {
    if !sees_opens() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "x").unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    // As the caller marks: by a descriptor that opens nothing.
    let file = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    let inode = group.mark(&file).unwrap();
    assert_eq!(group.marks().unwrap(), vec![inode]);

    let mut child = Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; read answer", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let batch = read_until(&group, |events| events.iter().any(|event| event.pid == pid));
    let event = batch.events.iter().find(|event| event.pid == pid).unwrap();
    assert_eq!(event.inode, inode);
    assert!(event.opened && event.pidfd.is_some());
    drop(child.stdin.take());
    child.wait().unwrap();

    group.unmark(&file).unwrap();
    assert!(group.marks().unwrap().is_empty());
    File::open(&path).unwrap();
    assert!(group.read().events.is_empty());
}

#[test]
fn who_reads_a_descriptor_that_it_was_handed_is_named_though_it_opened_nothing() {
    if !sees_opens() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    group.mark(&file).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::from(file)).stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let batch = read_until(&group, |events| events.iter().any(|event| event.pid == pid));
    assert!(batch.events.iter().any(|event| event.pid == pid && event.accessed && !event.opened));
    child.wait().unwrap();
}

#[test]
fn a_reader_that_is_gone_is_told_without_a_pidfd() {
    if !sees_opens() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "x").unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    group.mark(File::open(&path).unwrap()).unwrap();
    let mut child = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    let events = group.read().events;
    assert!(!events.is_empty());
    assert!(events.iter().all(|event| event.pidfd.is_none()), "{events:?}");
}

#[test]
fn a_restart_that_keeps_the_descriptor_loses_neither_marks_nor_events() {
    if !sees_opens() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "x").unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    let inode = group.mark(File::open(&path).unwrap()).unwrap();
    let kept: OwnedFd = group.into();
    // Nobody watches now.
    File::open(&path).unwrap().read_exact(&mut [0]).unwrap();
    let group = Group::take_back(kept).unwrap();
    assert_eq!(group.marks().unwrap(), vec![inode]);
    let batch = group.read();
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(batch.events.iter().any(|event| event.pid == own && event.opened));
    assert!(batch.drained && batch.lost.is_empty());
}

#[test]
fn only_a_group_of_our_own_kind_is_taken_back() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(matches!(Group::take_back(reader), Err(GroupError::NotOurs(_))));
    if !sees_opens() {
        return;
    }
    let flags = nix::sys::fanotify::InitFlags::FAN_CLASS_NOTIF;
    let foreign =
        nix::sys::fanotify::Fanotify::init(flags, nix::sys::fanotify::EventFFlags::O_RDONLY).unwrap();
    assert!(matches!(Group::take_back(foreign.into()), Err(GroupError::NotOurs(_))));
}

#[test]
fn an_overflow_is_told() {
    if !sees_opens() {
        return;
    }
    let tmpfs = Tmpfs::new();
    let queued_max: usize =
        fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap().trim().parse().unwrap();
    let limited = Group::open(Queue::Limited).unwrap();
    let unlimited = Group::open(Queue::Unlimited).unwrap();
    for number in 0..queued_max + 100 {
        let file = File::create(tmpfs.path().join(number.to_string())).unwrap();
        limited.mark(&file).unwrap();
        unlimited.mark(&file).unwrap();
    }
    // Events of one process on different inodes are not merged.
    for number in 0..queued_max + 100 {
        File::open(tmpfs.path().join(number.to_string())).unwrap();
    }
    let drain = |group: &Group| {
        let (mut events, mut lost) = (0, Vec::new());
        loop {
            let batch = group.read();
            events += batch.events.len();
            lost.extend(batch.lost);
            if batch.drained {
                return (events, lost);
            }
        }
    };
    assert_eq!(drain(&limited), (queued_max, vec![Lost::Overflow]));
    assert_eq!(drain(&unlimited), (queued_max + 100, Vec::new()));
}

#[test]
fn watching_keeps_no_unlinked_inode_alive() {
    if !sees_opens() {
        return;
    }
    let tmpfs = Tmpfs::new();
    let before = tmpfs.inodes_in_use();
    let path = tmpfs.path().join("password");
    fs::write(&path, "x").unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    group.mark(File::open(&path).unwrap()).unwrap();
    let reader = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    // The open descriptor pins it, and after that the queued event.
    drop(reader);
    assert_eq!(tmpfs.inodes_in_use(), before + 1);
    let batch = group.read();
    assert!(batch.drained && !batch.events.is_empty());
    assert_eq!(tmpfs.inodes_in_use(), before);
    assert!(group.marks().unwrap().is_empty());
}

#[test]
fn an_event_names_the_inode_and_not_the_path() {
    if !sees_opens() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "old").unwrap();
    let old = File::open(&path).unwrap();
    let group = Group::open(Queue::Unlimited).unwrap();
    let inode = group.mark(&old).unwrap();
    fs::write(directory.path().join("next"), "new").unwrap();
    fs::rename(directory.path().join("next"), &path).unwrap();
    File::open(&path).unwrap();
    assert!(group.read().events.is_empty(), "the new file was never marked");
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&old.as_fd()));
    File::open(again).unwrap();
    assert_eq!(group.read().events[0].inode, inode);
    assert_eq!(Inode::of(&old).unwrap(), inode);
}
