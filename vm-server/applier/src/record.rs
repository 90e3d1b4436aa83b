//! What stands in the journal: whole records, the newest of each name counts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use host_policy::{Access, Principal};
use lifecycle::host::SetState;
use lifecycle::{Epoch, Flipped, GapId, SetName, Version};
use protocol::{FileName, Frame, KeyedDigest};
use serde::{Deserialize, Serialize};

/// One record of the journal.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Record {
    Host(HostRecord),
    Set(SetName, Box<SetRecord>),
}

/// What is not about one set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    /// The newest epoch that is obeyed.
    pub(crate) epoch: Option<Epoch>,
    /// No report has had this number or a higher one.
    pub(crate) reports_below: u64,
    /// The newest acknowledgement.
    pub(crate) acknowledged: Option<Frame>,
    /// The number of the report that it acknowledges.
    pub(crate) acknowledged_sequence: u64,
}

/// What is about one set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetRecord {
    /// The machine's state; its current version is the durable pointer.
    pub(crate) machine: SetState,
    /// The keyed digests of each version that was staged and is not gone.
    pub(crate) digests: BTreeMap<Version, BTreeMap<FileName, KeyedDigest>>,
    /// Every copy place that may hold a version, whatever policy says now.
    pub(crate) places: BTreeMap<PathBuf, BTreeSet<Version>>,
    /// Places that we have written, so that what is found there is drift and not somebody's own file.
    pub(crate) written: BTreeSet<PathBuf>,
    /// Copy places that could not be written or read back, by the name that the first report gave each.
    pub(crate) place_faults: BTreeMap<PathBuf, Fault>,
    /// Owner, group and mode of each file as policy said last, for a set that it no longer names.
    #[serde(default)]
    pub(crate) access: BTreeMap<String, KeptAccess>,
    /// Removed files of versions that are gone, which those whom an operator cleared had in use then. They are looked
    /// for again before each later count, and allowed for while they are found.
    #[serde(default)]
    pub(crate) removed: Removed,
    /// When the current version became that.
    #[serde(default)]
    pub(crate) flipped: Option<Flipped>,
    /// By how much our clock was ahead of the sender's when this version was armed, at the most.
    #[serde(default)]
    pub(crate) ahead_ms_max: Option<(Version, i64)>,
    /// The group of opens that has watched all of the set since its evidence began. None where there was none.
    #[serde(default)]
    pub(crate) watched_by: Option<String>,
    /// Who may have which version.
    pub(crate) evidence: holders::Evidence,
}

/// Removed files on the set's own file system, by number.
pub(crate) type Removed = BTreeMap<Version, BTreeSet<u64>>;

/// A place that could not be written or read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// Given by the report that first shows it.
    pub(crate) id: Option<GapId>,
    /// What went wrong, in words.
    pub(crate) why: String,
}

/// Owner, group and mode as policy wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptAccess {
    owner: Option<KeptPrincipal>,
    group: Option<KeptPrincipal>,
    mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptPrincipal {
    Name(String),
    Id(u32),
}

impl From<&Access> for KeptAccess {
    fn from(access: &Access) -> Self {
        let kept = |principal: &Principal| match principal {
            Principal::Name(name) => KeptPrincipal::Name(name.clone()),
            Principal::Id(id) => KeptPrincipal::Id(*id),
        };
        Self {
            owner: access.owner.as_ref().map(kept),
            group: access.group.as_ref().map(kept),
            mode: access.mode,
        }
    }
}

impl From<&KeptAccess> for Access {
    fn from(kept: &KeptAccess) -> Self {
        let principal = |principal: &KeptPrincipal| match principal {
            KeptPrincipal::Name(name) => Principal::Name(name.clone()),
            KeptPrincipal::Id(id) => Principal::Id(*id),
        };
        Self {
            owner: kept.owner.as_ref().map(principal),
            group: kept.group.as_ref().map(principal),
            mode: kept.mode,
        }
    }
}

/// The same as [`Record`], to be written.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RecordRef<'a> {
    Host(&'a HostRecord),
    Set(&'a SetName, &'a SetRecord),
}

impl RecordRef<'_> {
    pub(crate) fn to_bytes(self) -> std::io::Result<Vec<u8>> {
        serde_json::to_vec(&self).map_err(std::io::Error::other)
    }
}

impl Record {
    pub(crate) fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}
