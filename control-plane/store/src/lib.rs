//! Where the control plane keeps its state: SQLite, values encrypted under a key that is elsewhere.
//!
//! One thread owns the database and does one transaction at a time; [`Store`] is a cheap handle that sends it
//! work and never blocks the runtime. What says who *uses* a value ([`credentials`], [`hosts`]) and what holds the
//! value ([`values`]) are separate tables with separate write paths: no statement writes both, so nothing that
//! updates usage can blank a value.
//!
//! It never holds the key-encryption key on disk, never logs a value, and never repairs a database by itself: one
//! that is locked, corrupt, newer than the program or of another key is refused with what to do.

pub mod audit;
pub mod credentials;
mod crypt;
pub mod hosts;
pub mod key;
mod open;
pub mod operators;
mod schema;
pub mod steps;
pub mod tokens;
pub mod values;

use std::path::PathBuf;
use std::sync::Arc;

use lifecycle::Epoch;
use tokio::sync::{mpsc, oneshot};

pub use audit::{Audit, AuditBroken, AuditRow};
pub use credentials::{Commit, CredentialRow};
pub use hosts::{HostProgress, HostRow, HostStatus, NewHost};
pub use key::{KeyEncryptionKey, KeyError};
pub use open::{OpenError, restore};
pub use operators::{Operator, OperatorProof};
pub use steps::Steps;
pub use tokens::{NewToken, TokenRow};
pub use values::{Value, ValueDigest};

/// How many transactions may wait for the writer before senders wait too.
const QUEUE_MAX: usize = 1024;

/// Why something could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own word, which never contains a value.
    #[error("failed to {what} in the database {path}: {why}")]
    Database {
        /// What was attempted.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// SQLite's message.
        why: String,
    },
    /// The row is older or newer than what this process wrote last: the file was replaced while we run.
    #[error(
        "failed to commit {credential}: the database says revision {found}, this process wrote {expected}; the file was replaced while we run: restart the control plane"
    )]
    Reverted {
        /// Which credential.
        credential: String,
        /// What the row says.
        found: u64,
        /// What this process wrote last.
        expected: u64,
    },
    /// A value is stored once and never overwritten.
    #[error(
        "failed to store a value under {0}: one is already stored there, and values are never overwritten"
    )]
    AlreadyStored(lifecycle::EffectId),
    /// Something does not decrypt or carries no signature of ours: the row was altered, or belongs to another credential.
    #[error("failed to trust {0}: the row was altered outside of the control plane; restore a backup")]
    Altered(String),
    /// The same thing exists.
    #[error("{0} already exists")]
    Exists(String),
    /// Nothing of that name.
    #[error("{0} does not exist")]
    Missing(String),
    /// Whoever is to be let in no more is the last one of this role.
    #[error("{name} is the last good {role}")]
    LastOf {
        /// What people call them.
        name: String,
        /// What nobody else may do.
        role: &'static str,
    },
    /// The writer is gone: the process is shutting down, or a failpoint ended it.
    #[error("failed to reach the database: the store is closed")]
    Closed,
}

/// Which installation this is, and which life of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Drawn once, when the database is made.
    pub id: uuid::Uuid,
    /// The life in force.
    pub epoch: Epoch,
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// A handle on the one database. Cloning is cheap; the file closes when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    installation: uuid::Uuid,
    steps: Steps,
    path: Arc<PathBuf>,
}

/// What the writer thread owns.
pub(crate) struct Database {
    pub(crate) connection: rusqlite::Connection,
    pub(crate) path: Arc<PathBuf>,
    pub(crate) installation: uuid::Uuid,
    pub(crate) crypt: crypt::Crypt,
    pub(crate) steps: Steps,
    /// Held for as long as the database is open; says to other processes that it is ours.
    pub(crate) _lock: std::fs::File,
}

impl Store {
    /// Opens the database at `path`, or makes it. Refuses one that is locked, corrupt, newer than the program or
    /// encrypted under another key, and says what to do.
    pub async fn open(path: impl Into<PathBuf>, key: KeyEncryptionKey) -> Result<Self, OpenError> {
        Self::open_with(path, key, Steps::from_environment()).await
    }

    /// As [`Store::open`], with the steps counted by the caller.
    pub async fn open_with(
        path: impl Into<PathBuf>,
        key: KeyEncryptionKey,
        steps: Steps,
    ) -> Result<Self, OpenError> {
        let path = Arc::new(path.into());
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_MAX);
        let (opened, wait) = oneshot::channel();
        let (thread_path, thread_steps) = (path.clone(), steps.clone());
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || match Database::open(thread_path, &key, thread_steps) {
                Err(error) => drop(opened.send(Err(error))),
                Ok(mut database) => {
                    drop(key);
                    if opened.send(Ok(database.installation)).is_ok() {
                        while let Some(job) = queue.blocking_recv() {
                            job(&mut database);
                        }
                    }
                }
            })
            .map_err(|why| OpenError::Io { path: path.as_ref().clone(), why: why.to_string() })?;
        let installation = wait.await.map_err(|_| OpenError::Io {
            path: path.as_ref().clone(),
            why: "the writer thread ended".into(),
        })??;
        Ok(Self { jobs, installation, steps, path })
    }

    /// Drawn once, when the database was made.
    pub const fn installation(&self) -> uuid::Uuid {
        self.installation
    }

    /// The counted steps, for effects that are carried out outside of the store.
    pub const fn steps(&self) -> &Steps {
        &self.steps
    }

    /// The life of the store that is in force.
    pub async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.run("read the epoch", |database| database.epoch()).await
    }

    /// Begins a new life of the store, above every one seen: at least `above`, at least one more than ours.
    pub async fn begin_epoch(&self, above: u32) -> Result<Epoch, StoreError> {
        self.write("begin an epoch", move |database| database.begin_epoch(above)).await
    }

    /// A small setting, as JSON text.
    pub async fn setting(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.run("read a setting", move |database| schema::setting(&database.connection, name)).await
    }

    /// Writes a small setting.
    pub async fn set_setting(&self, name: &'static str, text: String) -> Result<(), StoreError> {
        self.write("write a setting", move |database| schema::set_setting(&database.connection, name, &text))
            .await
    }

    /// Writes a whole, consistent copy to `to`, which must not exist, for nobody else to read. Values in it stay
    /// encrypted; the key-encryption key is not in it and must be kept beside it, elsewhere.
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        self.run("back up", move |database| {
            let failed = |why: std::io::Error| match why.kind() {
                std::io::ErrorKind::AlreadyExists => StoreError::Exists(to.display().to_string()),
                _ => StoreError::Database { what: "back up", path: to.clone(), why: why.to_string() },
            };
            // Made before anything is in it: SQLite would go by the umask, and through a link.
            let file = open::new_file(&to).map_err(failed)?;
            if let Err(why) = database.connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]) {
                // What is not whole is no copy, and would be in the way of the next one.
                drop(std::fs::remove_file(&to));
                return Err(why.into());
            }
            Ok(file.sync_all().map_err(failed)?)
        })
        .await
    }

    /// Does a read on the writer's thread.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut Database) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, wait) = oneshot::channel();
        let steps = self.steps.clone();
        let job: Job = Box::new(move |database| {
            let result = if steps.dead() {
                Err(StoreError::Closed)
            } else {
                job(database).map_err(|failure| failure.into_error(what, &database.path))
            };
            drop(done.send(result));
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)?
    }

    /// Does one transaction and counts it as one persisted step.
    async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut Database) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(what, move |database| {
            if database.steps.fails(what) {
                let (path, why) = (database.path.to_path_buf(), "the failpoint says so".to_owned());
                return Err(Failure::Said(StoreError::Database { what, path, why }));
            }
            let began = database.connection.execute_batch("BEGIN IMMEDIATE");
            began?;
            let result = job(database);
            match result {
                Ok(value) => {
                    database.connection.execute_batch("COMMIT")?;
                    if database.steps.reached(what) {
                        Ok(value)
                    } else {
                        Err(Failure::Said(StoreError::Closed))
                    }
                }
                Err(failure) => {
                    // The error that made us stop is the one to tell; a failed rollback leaves nothing behind.
                    drop(database.connection.execute_batch("ROLLBACK"));
                    Err(failure)
                }
            }
        })
        .await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What goes wrong inside a job, before the object is named.
pub(crate) enum Failure {
    Sqlite(rusqlite::Error),
    Said(StoreError),
}

impl Failure {
    fn into_error(self, what: &'static str, path: &std::path::Path) -> StoreError {
        match self {
            Self::Said(error) => error,
            Self::Sqlite(why) => StoreError::Database { what, path: path.to_owned(), why: why.to_string() },
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Said(error)
    }
}

/// SQLite counts in signed numbers; ours never come near the limit, and saturate if they did.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The way back; a negative number can only be another's and reads as zero.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
