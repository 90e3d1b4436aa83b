//! A host's file system in a directory of its own: one set, a link place and a copy place.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    reason = "shared by tests that each use a part"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use host_policy::{Access, Place, PlaceKind, SetPolicy};
use lifecycle::{SetName, Version};
use sets::{Disk, Existing, Gate, Places, SetDir, SetError, SetFile};

pub fn version(number: u32) -> Version {
    Version::new(1, number)
}

pub fn name() -> SetName {
    "orders-db".parse().unwrap()
}

/// How long each file is: more than one page, so that a short read shows.
pub const LENGTH: usize = 9_000;

/// A content that says in every byte which version it is.
pub fn content(number: u32) -> Vec<u8> {
    vec![b'a' + u8::try_from(number).unwrap(); LENGTH]
}

pub fn files(number: u32) -> Vec<SetFile> {
    ["password", "pgpass"]
        .map(|name| SetFile { name: name.into(), content: content(number).into() })
        .into_iter()
        .collect()
}

/// The version that a content says, if it is whole.
pub fn number_of(bytes: &[u8]) -> Option<u32> {
    let first = *bytes.first()?;
    let whole = bytes.len() == LENGTH && bytes.iter().all(|byte| *byte == first);
    whole.then(|| u32::from(first - b'a'))
}

pub struct World {
    pub root: PathBuf,
    pub policy: SetPolicy,
    /// Removed at the end, unless it belongs to another process.
    own: Option<tempfile::TempDir>,
}

impl World {
    pub fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        for dir in ["sets", "etc", "etc/orders"] {
            fs::create_dir(own.path().join(dir)).unwrap();
            fs::set_permissions(own.path().join(dir), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut world = Self::at(own.path());
        world.own = Some(own);
        world
    }

    /// The world of another process.
    pub fn at(root: &Path) -> Self {
        let access = Access { owner: None, group: None, mode: 0o440 };
        let place = |name: &str, kind| Place {
            path: root.join("etc/orders").join(name),
            file: "password".into(),
            kind,
            access: access.clone(),
        };
        let places = vec![place("linked", PlaceKind::Link), place("copied", PlaceKind::Copy)];
        let policy = SetPolicy {
            name: name(),
            controllers: Vec::new(),
            access,
            access_by_file: BTreeMap::new(),
            places,
            consumers: Vec::new(),
            not_a_consumer: Vec::new(),
            validate: None,
            refresh_ms: 1_000,
        };
        Self { root: root.to_owned(), policy, own: None }
    }

    pub fn path(&self, inner: &str) -> PathBuf {
        self.root.join(inner)
    }

    pub fn open(&self, disk: &Disk) -> Result<SetDir, SetError> {
        SetDir::open(&self.path("sets"), &name(), disk.clone())
    }

    pub fn stage(&self, set: &SetDir, number: u32) -> Result<(), SetError> {
        set.stage(version(number), &files(number), &self.policy, &mut |_, _| Ok(()))
    }

    /// The whole of one rotation, as the applier does it: also after a crash in the middle of it.
    pub fn rotate(&self, disk: &Disk, number: u32) -> Result<(), SetError> {
        let set = self.open(disk)?;
        set.recover()?;
        self.stage(&set, number)?;
        set.flip(version(number))?;
        let places = Places::of(&set, disk.clone());
        for place in &self.policy.places {
            places.write(place, &files(number), Existing::Replace, &mut |_, _| Ok(()))?;
        }
        for old in set.present()? {
            if old != version(number) {
                set.unlink(old)?;
            }
        }
        Ok(())
    }

    /// What a reader finds at each of its ways to the set.
    pub fn readers_find(&self) -> Vec<(&'static str, Option<u32>)> {
        [
            "sets/orders-db/..data/password",
            "sets/orders-db/..data/pgpass",
            "etc/orders/linked",
            "etc/orders/copied",
        ]
        .into_iter()
        .map(|way| (way, fs::read(self.path(way)).ok().and_then(|bytes| number_of(&bytes))))
        .collect()
    }

    /// Every file anywhere in this world that somebody else could read.
    pub fn world_readable(&self) -> Vec<PathBuf> {
        walk(&self.root)
            .into_iter()
            .filter(|path| {
                let metadata = fs::symlink_metadata(path);
                metadata.is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o007 != 0)
            })
            .collect()
    }

    /// Names that only something unfinished has.
    pub fn rubbish(&self) -> Vec<PathBuf> {
        walk(&self.root)
            .into_iter()
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.contains("new") || name.contains("gone") || name.contains("before")
            })
            .collect()
    }
}

/// Everything beneath a directory. What vanishes meanwhile is left out.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

/// What happens at operation `at`, counted from 0.
pub enum Trouble {
    /// It fails, and all others work.
    Fails(rustix::io::Errno),
    /// Nothing works from there on, as if the process had ended.
    Ends,
    /// The process ends.
    Aborts,
}

/// Counts operations and makes trouble at one of them.
pub struct Injector {
    pub at: usize,
    pub trouble: Trouble,
    pub seen: AtomicUsize,
}

impl Injector {
    pub fn disk(at: usize, trouble: Trouble) -> (Arc<Self>, Disk) {
        let injector = Arc::new(Self { at, trouble, seen: AtomicUsize::new(0) });
        (injector.clone(), Disk::gated(injector))
    }
}

impl Gate for Injector {
    fn before(&self, _: &'static str) -> Result<(), std::io::Error> {
        let now = self.seen.fetch_add(1, Ordering::SeqCst);
        match self.trouble {
            Trouble::Fails(errno) if now == self.at => Err(errno.into()),
            Trouble::Ends if now >= self.at => Err(rustix::io::Errno::IO.into()),
            Trouble::Aborts if now == self.at => std::process::abort(),
            _ => Ok(()),
        }
    }
}
