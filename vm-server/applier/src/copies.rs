//! Copies of staged sets that survive a reboot, each sealed with the host's own key (AES-256-GCM).

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use lifecycle::{SetName, Version};
use protocol::seal::StagedSet;
use zeroize::Zeroizing;

use crate::failpoint;
use crate::keep::{self, KeepError};

/// Why a copy cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// It is not there.
    #[error("the sealed copy of version {1} of {0} is missing: the control plane has to stage it again")]
    Missing(SetName, Version),
    /// It was changed, or sealed with another key.
    #[error("the sealed copy of version {1} of {0} is damaged: the control plane has to stage it again")]
    Damaged(SetName, Version),
}

/// The directory of sealed copies.
pub(crate) struct Copies {
    dir: PathBuf,
    key: RandomizedNonceKey,
}

impl Copies {
    /// In the applier's own state directory.
    pub(crate) fn open(state: &Path, key: &[u8; 32]) -> Result<Self, KeepError> {
        let dir = state.join("copies");
        keep::private_dir(&dir)?;
        let key =
            RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| KeepError::Damaged(state.to_owned()))?;
        Ok(Self { dir, key })
    }

    fn path(&self, set: &SetName, version: Version) -> PathBuf {
        self.dir.join(format!("{}@{}.{}", file_name(set), version.epoch, version.number))
    }

    /// Writes a copy, durable when this returns.
    pub(crate) fn write(&self, set: &SetName, version: Version, files: &StagedSet) -> Result<(), CopyError> {
        let mut sealed = files.expose_bytes();
        let damaged = || CopyError::Damaged(set.clone(), version);
        let aad = Aad::from(bound_to(set, version));
        // Sealed in place: the plain bytes are gone with it.
        let nonce = self.key.seal_in_place_append_tag(aad, &mut *sealed).map_err(|_| damaged())?;
        keep::write_whole(&self.path(set, version), &[nonce.as_ref().as_slice(), &sealed].concat())?;
        Ok(())
    }

    /// Reads a copy back.
    pub(crate) fn read(&self, set: &SetName, version: Version) -> Result<StagedSet, CopyError> {
        let content = keep::read(&self.path(set, version))?;
        let content = content.ok_or_else(|| CopyError::Missing(set.clone(), version))?;
        let damaged = || CopyError::Damaged(set.clone(), version);
        let (nonce, sealed) = content.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(bound_to(set, version));
        let plain = self.key.open_in_place(nonce, aad, &mut sealed).map_err(|_| damaged())?;
        StagedSet::from_bytes(plain).map_err(|_| damaged())
    }

    /// Whether there is one.
    pub(crate) fn has(&self, set: &SetName, version: Version) -> bool {
        self.path(set, version).exists()
    }

    /// Unlinks a copy, and what is left of one that was not written to its end. When this returns no loss of power brings
    /// it back, whether it was there or an earlier try had already unlinked it.
    pub(crate) fn unlink(&self, set: &SetName, version: Version) -> Result<(), CopyError> {
        let path = self.path(set, version);
        let removed = failpoint::check("copy.unlink")
            .and_then(|()| remove(&keep::partial(&path)))
            .and_then(|()| remove(&path))
            .and_then(|()| crate::journal::sync_dir(&path));
        removed.map_err(|source| KeepError::Io { doing: "unlink", path, source }.into())
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn bound_to(set: &SetName, version: Version) -> Vec<u8> {
    format!("eso/v1/copy\n{set}\n{}.{}\n", version.epoch, version.number).into_bytes()
}

/// A set's name as one name in a directory.
fn file_name(set: &SetName) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    set.as_str()
        .chars()
        .map(|c| if plain(c) { c.to_string() } else { format!("%{:02x}", u32::from(c)) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use protocol::seal::Value;
    use protocol::{FileName, VersionKey};

    use super::*;

    fn set() -> StagedSet {
        let files = BTreeMap::from([(FileName::new("password").unwrap(), Value::new(b"swordfish".to_vec()))]);
        StagedSet::new(VersionKey::random().unwrap(), files, Some("u1".to_owned())).unwrap()
    }

    #[test]
    fn a_copy_comes_back_only_as_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path(), &[7; 32]).unwrap();
        let (name, one, two) = (SetName::new("a/b").unwrap(), Version::new(1, 1), Version::new(1, 2));
        let set = set();
        copies.write(&name, one, &set).unwrap();
        assert!(copies.read(&name, one).unwrap() == set);
        assert!(matches!(copies.read(&name, two), Err(CopyError::Missing(..))));
        std::fs::copy(copies.path(&name, one), copies.path(&name, two)).unwrap();
        assert!(matches!(copies.read(&name, two), Err(CopyError::Damaged(..))), "not under another name");
        let other = Copies::open(dir.path(), &[8; 32]).unwrap();
        assert!(matches!(other.read(&name, one), Err(CopyError::Damaged(..))), "not with another key");
        let content = std::fs::read(copies.path(&name, one)).unwrap();
        assert!(!content.windows(9).any(|window| window == b"swordfish"));
        copies.unlink(&name, one).unwrap();
        copies.unlink(&name, one).unwrap();
        assert!(!copies.has(&name, one));
    }

    #[test]
    fn nothing_is_left_of_a_copy_that_was_not_written_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path(), &[7; 32]).unwrap();
        let (name, one) = (SetName::new("db").unwrap(), Version::new(1, 1));
        // As a kill within the write leaves it.
        copies.write(&name, one, &set()).unwrap();
        std::fs::rename(copies.path(&name, one), keep::partial(&copies.path(&name, one))).unwrap();
        copies.unlink(&name, one).unwrap();
        assert_eq!(std::fs::read_dir(&copies.dir).unwrap().count(), 0);
    }
}
