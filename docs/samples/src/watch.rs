//! Watching a credential file correctly.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// A file whose changes are noticed whichever way it is replaced.
///
/// The *directories* are watched: of the place itself, and of what a link leads to. A watch on the file follows the
/// inode, and a new version is a new inode. Contents are compared, since an event is a hint and not a fact; and the
/// file is read again every `at_latest` without any event, since events can be lost.
pub struct WatchedFile {
    path: PathBuf,
    content: Vec<u8>,
    events: Receiver<notify::Result<notify::Event>>,
    at_latest: Duration,
    _watcher: RecommendedWatcher,
}

/// Why a file cannot be watched.
#[derive(Debug)]
pub enum WatchError {
    /// The file cannot be read.
    Read(std::io::Error),
    /// The directory cannot be watched.
    Watch(notify::Error),
}

impl WatchedFile {
    /// Reads the file and begins to watch.
    pub fn open(path: &Path, at_latest: Duration) -> Result<Self, WatchError> {
        let (sender, events) = channel();
        let mut watcher = notify::recommended_watcher(sender).map_err(WatchError::Watch)?;
        // First watch, then read: a change in between is seen twice rather than never.
        for directory in directories(path) {
            watcher.watch(&directory, RecursiveMode::NonRecursive).map_err(WatchError::Watch)?;
        }
        let content = std::fs::read(path).map_err(WatchError::Read)?;
        Ok(Self { path: path.to_owned(), content, events, at_latest, _watcher: watcher })
    }

    /// What was read last.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Waits until the content differs, and returns it. A file that cannot be read, or is empty, changes nothing:
    /// the last good content stays.
    pub fn changed(&mut self) -> &[u8] {
        loop {
            match self.events.recv_timeout(self.at_latest) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(self.at_latest),
            }
            match std::fs::read(&self.path) {
                Ok(content) if !content.is_empty() && content != self.content => {
                    self.content = content;
                    return &self.content;
                }
                _ => {}
            }
        }
    }
}

/// The directory of each link on the way to the file: `/etc/app/db.json` -> `SET/..data/db.json` changes when `..data`
/// does.
fn directories(path: &Path) -> Vec<PathBuf> {
    const LINKS_MAX: usize = 8;
    let mut found = Vec::new();
    let mut next = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Some(directory) = next.parent().map(Path::to_owned) else { break };
        let inside_link = directory.is_symlink().then(|| directory.parent().map(Path::to_owned)).flatten();
        found.extend(inside_link);
        let target = std::fs::read_link(&next);
        found.push(directory.clone());
        match target {
            Ok(target) => next = directory.join(target),
            Err(_) => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The layout of a delivered set: a place that links into `..data`, which is flipped by one rename.
    fn flip(set: &Path, version: &str, content: &str) {
        std::fs::create_dir(set.join(version)).unwrap();
        std::fs::write(set.join(version).join("db.json"), content).unwrap();
        symlink(version, set.join("..data.new")).unwrap();
        std::fs::rename(set.join("..data.new"), set.join("..data")).unwrap();
    }

    #[test]
    fn every_flip_of_a_linked_set_is_noticed_by_an_event() {
        let directory = tempfile::tempdir().unwrap();
        let set = directory.path().join("set");
        std::fs::create_dir(&set).unwrap();
        flip(&set, "1", "one");
        let place = directory.path().join("db.json");
        symlink(set.join("..data/db.json"), &place).unwrap();
        // An hour: only an event can make this test end.
        let mut watched = WatchedFile::open(&place, Duration::from_hours(1)).unwrap();
        assert_eq!(watched.content(), b"one");
        flip(&set, "2", "two");
        assert_eq!(watched.changed(), b"two");
        flip(&set, "3", "three");
        assert_eq!(watched.changed(), b"three");
    }

    #[test]
    fn a_copied_place_that_is_replaced_by_a_rename_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("db.json");
        std::fs::write(&place, "one").unwrap();
        let mut watched = WatchedFile::open(&place, Duration::from_hours(1)).unwrap();
        std::fs::write(directory.path().join(".new"), "two").unwrap();
        std::fs::rename(directory.path().join(".new"), &place).unwrap();
        assert_eq!(watched.changed(), b"two");
    }
}
