//! What opens cannot show: descriptors and mappings of a version's inodes, mounts of them, and copies of the value in
//! environments and command lines. Looked for before a version is said to be gone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use opens::Inode;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use zeroize::Zeroizing;

use crate::belongs::is_within;
use crate::process::{Process, Table};
use crate::rules::Rules;
use crate::scan::{Proc, device_of_mount, is_vanished};

/// A value shorter than this is found by chance.
const VALUE_BYTES_MIN: usize = 16;

/// A user name shorter than this is found by chance.
const USER_BYTES_MIN: usize = 8;

/// More than the kernel lets arguments, environment or a list of mappings be in practice. What is longer is told as
/// unreadable.
const TEXT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// For how long, and with which pause, children of ours are looked at until they are other programs: between fork and
/// exec they have our descriptors, and would be held to have the version for as long as they live. Only one
/// that ran our own program when a look at it began is looked at again: nobody else is ever let go.
const CHILDREN_TIME: Duration = Duration::from_millis(500);
const CHILD_PAUSE: Duration = Duration::from_millis(5);

/// Bytes to look for. Not printable: they are a value.
pub struct Needle {
    what: String,
    bytes: Zeroizing<Vec<u8>>,
}

impl Needle {
    /// The content of a file; `None` when it is too short to be found by anything but chance.
    pub fn value(file: &str, content: &[u8]) -> Option<Self> {
        let bytes = Zeroizing::new(content.trim_ascii().to_vec());
        (bytes.len() >= VALUE_BYTES_MIN).then(|| Self { what: format!("the content of {file}"), bytes })
    }

    /// The version's user name; `None` when it is too short.
    pub fn user(name: &str) -> Option<Self> {
        let bytes = Zeroizing::new(name.as_bytes().to_vec());
        (bytes.len() >= USER_BYTES_MIN).then(|| Self { what: "the user name".into(), bytes })
    }

    fn is_in(&self, text: &[u8]) -> bool {
        text.windows(self.bytes.len()).any(|window| window == self.bytes.as_slice())
    }
}

/// What to look for.
pub struct Sweep {
    /// The version's inodes, at all its places. Unlinked ones too.
    pub inodes: BTreeSet<Inode>,
    /// The version's directory within its own file system, for example `/7`: a mount of something below is found.
    pub directory: Option<(u64, String)>,
    /// Values and user names.
    pub needles: Vec<Needle>,
}

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Who has something of the version.
    pub found: Vec<Found>,
    /// Whom we were not allowed to look at, in words. Without privilege these are all processes of other users.
    pub unreadable: Vec<String>,
    /// Everybody alive was looked at.
    pub complete: bool,
}

/// Somebody has something of the version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub process: Process,
    /// What, in words and without the value.
    pub what: String,
    /// The inode that it keeps alive, where it does.
    pub inode: Option<Inode>,
}

impl Sweep {
    /// Looks at every process but ours. Takes as long as there are descriptors on the machine: not for an async task.
    pub fn run(&self, proc: &Proc, table: &Table, rules: &Rules) -> Traces {
        let mut traces = Traces { complete: table.complete, ..Traces::default() };
        let children_until = Instant::now() + CHILDREN_TIME;
        let others =
            table.processes.values().filter(|process| !process.kernel && !rules.ours.contains(&process.id));
        for process in others {
            let directory = proc.directory(process);
            let is_child = rules.ours.iter().any(|own| own.pid == process.parent);
            let found = loop {
                let before = is_child && runs_our_program(&directory);
                let found = self.look_at(process, &directory);
                let inherited = before && found.as_ref().is_ok_and(|found| !found.is_empty());
                if !inherited || Instant::now() >= children_until {
                    break found;
                }
                std::thread::sleep(CHILD_PAUSE);
            };
            match found {
                Ok(found) => {
                    let found = found.into_iter();
                    traces.found.extend(found.map(|(what, inode)| Found {
                        process: process.clone(),
                        what,
                        inode,
                    }));
                }
                Err(error) if is_vanished(&error) => {}
                Err(error) => traces.unreadable.push(format!("{}: {error}", process.describe())),
            }
        }
        traces
    }

    fn look_at(&self, process: &Process, directory: &Path) -> io::Result<Vec<(String, Option<Inode>)>> {
        let mut found = Vec::new();
        let mut first = BTreeSet::new();
        for (what, inode) in self.descriptors(directory)?.into_iter().chain(self.mappings(directory)?) {
            if first.insert((what, inode)) {
                found.push((format!("{what} {inode}"), Some(inode)));
            }
        }
        if let Some(mount) = self.mount(directory)? {
            found.push((mount, None));
        }
        for (file, place) in [("environ", "its environment"), ("cmdline", "its command line")] {
            let text = read_capped(&directory.join(file))?;
            let needles = self.needles.iter().filter(|needle| needle.is_in(&text));
            found.extend(needles.map(|needle| (format!("has {} in {place}", needle.what), None)));
        }
        // The number may have changed hands meanwhile; then none of this is about the process in the table.
        let same = opens::ProcessText::read(directory.parent().unwrap_or(directory), process.id.pid)
            .ok()
            .and_then(|text| Process::parse(&text))
            .is_some_and(|now| now.id == process.id);
        if same { Ok(found) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// `O_PATH` descriptors too.
    fn descriptors(&self, directory: &Path) -> io::Result<Vec<(&'static str, Inode)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory.join("fd"))? {
            if let Some(inode) = inode_at(&entry?.path()).filter(|inode| self.inodes.contains(inode)) {
                found.push(("has a descriptor of inode", inode));
            }
        }
        Ok(found)
    }

    /// Lines such as `7f00-7f01 r--p 00000000 00:2b 17 /run/... (deleted)`.
    fn mappings(&self, directory: &Path) -> io::Result<Vec<(&'static str, Inode)>> {
        let text = read_capped(&directory.join("maps"))?;
        let text = String::from_utf8_lossy(&text);
        let mut found = Vec::new();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(number)) = (fields.next(), fields.nth(3)) else { continue };
            let Some(candidate) = self.inodes.iter().find(|inode| number == inode.number.to_string()) else {
                continue;
            };
            // The device in this line is not always the one that `stat` shows, so the mapping itself is asked.
            let mapped = inode_at(&directory.join("map_files").join(range));
            if mapped.is_none_or(|inode| self.inodes.contains(&inode)) {
                found.push(("has a mapping of inode", mapped.unwrap_or(*candidate)));
            }
        }
        Ok(found)
    }

    fn mount(&self, directory: &Path) -> io::Result<Option<String>> {
        let Some((device, below)) = &self.directory else { return Ok(None) };
        let text = match fs::read_to_string(directory.join("mountinfo")) {
            Ok(text) => text,
            // A process that is about to be reaped has no mounts any more.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = text.lines().find(|line| {
            let root = line.split(' ').nth(3).unwrap_or_default();
            let root = root.strip_suffix("//deleted").unwrap_or(root);
            device_of_mount(line) == Some(*device) && is_within(root, below)
        });
        Ok(found.map(|_| "has a file of it mounted somewhere else".to_owned()))
    }
}

fn runs_our_program(directory: &Path) -> bool {
    let program = |directory: &Path| fs::read_link(directory.join("exe")).ok();
    program(directory).is_some_and(|program_of_it| program(Path::new("/proc/self")) == Some(program_of_it))
}

/// Asked of the descriptor itself, without waiting for a file system that does not answer.
fn inode_at(link: &Path) -> Option<Inode> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, link, flags, StatxFlags::INO).ok()?;
    let device = nix::sys::stat::makedev(stat.stx_dev_major.into(), stat.stx_dev_minor.into());
    Some(Inode { device, number: stat.stx_ino })
}

fn read_capped(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let length = File::open(path)?.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    if length as u64 == TEXT_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_short_is_not_looked_for() {
        assert!(Needle::value("password", b"short\n").is_none());
        assert!(Needle::value("password", b"0123456789abcde\n").is_none());
        assert!(Needle::user("app").is_none());
        let needle = Needle::value("password", b"0123456789abcdef\n").unwrap();
        assert!(needle.is_in(b"PASSWORD=0123456789abcdef\0"));
        assert!(!needle.is_in(b"PASSWORD=0123456789abcde\0"));
        assert!(!needle.is_in(b""));
    }
}
