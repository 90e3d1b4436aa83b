//! Copies of the store.

use std::path::{Path, PathBuf};

use lifecycle::Epoch;
use protocol::UnixMillis;
use store::{KeyError, OpenError, Store, StoreError};

use crate::settings;

/// Why there is no copy, or none in place.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Writing it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] crate::InitError),
}

/// Copies the database of a control plane that is not running.
pub async fn backup(settings: &settings::Backup) -> Result<(), BackupError> {
    let store = Store::open(settings.data.database(), settings.data.read_key()?).await?;
    store.backup(settings.to.clone()).await?;
    Ok(())
}

/// Puts a copy in place; a new epoch begins, in which everything older starts held.
pub async fn restore(settings: &settings::Restore) -> Result<Epoch, BackupError> {
    crate::init::make_directory(&settings.data.data)?;
    let key = settings.data.read_key()?;
    Ok(store::restore(&settings.from, &settings.data.database(), key).await?)
}

/// A name that no backup has yet.
pub(crate) fn next_file(directory: &Path, now: UnixMillis) -> Result<PathBuf, crate::InitError> {
    crate::init::make_directory(directory)?;
    Ok(directory.join(format!("eso-{}.db", now.0)))
}
