//! The validated policy of one set: its places, its readers, and who may deliver it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lifecycle::{ConsumerName, SetName};

use crate::consumer::{Command, Consumer, NotAConsumer, Principal};
use crate::daemon::Daemon;

/// Everything that a host allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPolicy {
    /// Our own processes.
    pub daemon: Daemon,
    /// Each set that may be delivered here.
    pub sets: BTreeMap<SetName, SetPolicy>,
    /// The files that were read, `config.toml` first.
    pub files: Vec<PathBuf>,
}

impl HostPolicy {
    /// The policy of a set, if the host has one for it.
    pub fn set(&self, name: &SetName) -> Option<&SetPolicy> {
        self.sets.get(name)
    }
}

/// What a host allows for one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPolicy {
    /// The set.
    pub name: SetName,
    /// Installation ids that may deliver it. Empty: the one that root enrolled this host with.
    pub controllers: Vec<String>,
    /// Owner and mode of files of the set that no `link` place says otherwise for.
    pub access: Access,
    /// Owner and mode of single files of the set, as their `link` places say.
    pub access_by_file: BTreeMap<String, Access>,
    /// Where applications look for its files.
    pub places: Vec<Place>,
    /// Who reads it.
    pub consumers: Vec<Consumer>,
    /// Who may read it without being a consumer.
    pub not_a_consumer: Vec<NotAConsumer>,
    /// A command that must accept a staged version before it is made current. The directory of that version is in
    /// its environment as `ESO_SET_DIR`.
    pub validate: Option<Command>,
    /// How often places are looked at when nothing was noticed, in milliseconds.
    pub refresh_ms: u64,
}

impl SetPolicy {
    /// Whether this installation may deliver the set, given that root enrolled the host with it.
    pub fn may_deliver(&self, installation: &str) -> bool {
        self.controllers.is_empty() || self.controllers.iter().any(|known| known == installation)
    }

    /// Owner and mode of a file of this name in the set's own directory.
    pub fn access_of(&self, file: &str) -> &Access {
        self.access_by_file.get(file).unwrap_or(&self.access)
    }

    /// The consumer of this name.
    pub fn consumer(&self, name: &ConsumerName) -> Option<&Consumer> {
        self.consumers.iter().find(|consumer| consumer.name == *name)
    }
}

/// Owner and mode of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The applier's own user when `None`.
    pub owner: Option<Principal>,
    /// The applier's own group when `None`.
    pub group: Option<Principal>,
    /// Permission bits: only some of `0640`, so never readable by everybody, never executable.
    pub mode: u32,
}

/// Where applications look for one file of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute, without `.` and `..`.
    pub path: PathBuf,
    /// The file's name in the set.
    pub file: String,
    /// How it gets there.
    pub kind: PlaceKind,
    /// Owner and mode. Of a `link` place they are those of the file in the set.
    pub access: Access,
}

impl Place {
    /// The directory that the place lies in.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// How a file gets to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceKind {
    /// A symbolic link into the set: changes with it, in the same rename.
    Link,
    /// A file of its own, renamed into its directory: for readers that do not follow links.
    Copy,
}

impl PlaceKind {
    /// As written in a policy.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Copy => "copy",
        }
    }
}
