//! Opening, making and restoring the database, and refusing it with what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifecycle::Epoch;
use rusqlite::{Connection, ErrorCode, params};
use zeroize::Zeroizing;

use crate::audit;
use crate::crypt::{self, Crypt, Unwrapped};
use crate::key::KeyEncryptionKey;
use crate::schema::{APPLICATION_ID, MIGRATIONS, set_setting, setting};
use crate::steps::Steps;
use crate::{Database, Failure};

/// How long another process may hold the database before we refuse to start.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Why the database was not opened, with what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "refused the database {path}: another process holds it; stop the other control plane (or the sqlite3 shell) first"
    )]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// The file is damaged or no database.
    #[error(
        "refused the database {path}: it is corrupt ({why}); move it aside and run `eso-control-plane restore --from BACKUP`"
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What SQLite found.
        why: String,
    },
    /// Another program's database.
    #[error("refused the database {path}: it belongs to another program; name another data directory")]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "refused the database {path}: its schema {found} is newer than the {known} that this program knows; start the newer program, or restore a backup made before the upgrade"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// The data key does not unwrap.
    #[error(
        "refused the database {path}: it is encrypted under another key-encryption key; name the key that belongs to it (its backup keeps a copy if you made one)"
    )]
    WrongKey {
        /// Which file.
        path: PathBuf,
    },
    /// The system did not let us.
    #[error("failed to open the database {path}: {why}; check owner, mode and free space of its directory")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's message.
        why: String,
    },
}

/// Puts the backup at `from` in place of the database at `to`, which must not exist, and begins a new epoch in it:
/// what happened since the backup is unknown to it, so everything older starts held.
pub async fn restore(from: &Path, to: &Path, key: KeyEncryptionKey) -> Result<Epoch, OpenError> {
    let failed = |why: std::io::Error| OpenError::Io { path: to.to_owned(), why: why.to_string() };
    // SQLite would play the log of the old database into the new one, its epoch too.
    let mut old = [to.to_owned(), beside(to, "-wal"), beside(to, "-shm")].into_iter();
    if let Some(old) = old.find(|old| old.exists()) {
        return Err(failed(std::io::Error::other(format!(
            "{} exists; stop the control plane and move the old database aside first, and what lies beside it with -wal and \
             -shm at the end of its name",
            old.display()
        ))));
    }
    let partial = to.with_extension("restoring");
    copy(from, &partial).map_err(failed)?;
    let path = Arc::new(partial.clone());
    let database = tokio::task::spawn_blocking(move || {
        let mut database = Database::open(path, &key, Steps::default())?;
        let epoch = database.begin_epoch(0).and_then(|epoch| {
            set_setting(&database.connection, RESTORED, "true")?;
            database.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
            Ok(epoch)
        });
        epoch.map_err(|failure| refusal(&database.path, failure))
    });
    let epoch = database.await.map_err(|why| failed(std::io::Error::other(why)))??;
    for leftover in ["restoring-wal", "restoring-shm", "restoring.lock"] {
        drop(std::fs::remove_file(to.with_extension(leftover)));
    }
    std::fs::rename(&partial, to).map_err(failed)?;
    Ok(epoch)
}

fn beside(database: &Path, end: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A copy that only we can read, whatever the mode of the original.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut original = std::fs::File::open(from)?;
    // A restore that did not end left it.
    match std::fs::remove_file(to) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut copy = new_file(to)?;
    std::io::copy(&mut original, &mut copy)?;
    copy.sync_all()
}

/// Makes a file that nobody else can read, where there is none.
pub(crate) fn new_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

/// The setting that says, until the engine has taken note, that a restore put this database in place.
pub(crate) const RESTORED: &str = "restored";

impl Database {
    pub(crate) fn open(path: Arc<PathBuf>, key: &KeyEncryptionKey, steps: Steps) -> Result<Self, OpenError> {
        let lock = lock(&path)?;
        let Prepared { connection, installation, data_key, signed } = prepare(&path, key)?;
        let crypt =
            Crypt::new(&data_key).ok_or_else(|| OpenError::WrongKey { path: path.as_ref().clone() })?;
        let database = Self { connection, path, installation, crypt, steps, _lock: lock };
        if !signed {
            let signed = database.sign_records(key, &data_key);
            signed.map_err(|failure| refusal(&database.path, failure))?;
        }
        Ok(database)
    }

    /// Signs what programs before us left unsigned, as it stands there, and says so where nobody can take it back.
    fn sign_records(&self, key: &KeyEncryptionKey, data_key: &[u8; 32]) -> Result<(), Failure> {
        let wrapped = crypt::wrap(key, &self.installation.to_string(), data_key);
        let wrapped = wrapped.ok_or_else(|| altered("the data key"))?;
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        self.sign_operators(None)?;
        self.sign_hosts(None)?;
        self.sign_first_end()?;
        set_setting(&self.connection, "data_key", &hex::encode(&wrapped))?;
        self.connection.execute_batch("COMMIT")?;
        Ok(())
    }

    pub(crate) fn epoch(&self) -> Result<Epoch, Failure> {
        let found = self.connection.query_row(
            "SELECT counter, id FROM epochs ORDER BY counter DESC LIMIT 1",
            [],
            |row| Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?)),
        )?;
        let id = u64::from_str_radix(&found.1, 16).map_err(|_| altered("the epoch"))?;
        Ok(Epoch { counter: found.0, id })
    }

    pub(crate) fn begin_epoch(&mut self, above: u32) -> Result<Epoch, Failure> {
        let counter = self.epoch()?.counter.max(above).saturating_add(1);
        insert_epoch(&self.connection, counter)?;
        self.epoch()
    }
}

fn altered(what: &str) -> Failure {
    Failure::Said(crate::StoreError::Altered(what.to_owned()))
}

fn insert_epoch(connection: &Connection, counter: u32) -> Result<(), Failure> {
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| altered("the random source"))?;
    connection
        .execute("INSERT INTO epochs (counter, id) VALUES (?1, ?2)", params![counter, hex::encode(id)])?;
    Ok(())
}

/// One process at a time, said by a lock file beside the database: SQLite's own locks come and go.
fn lock(path: &Path) -> Result<std::fs::File, OpenError> {
    let failed = |why: std::io::Error| OpenError::Io { path: path.to_owned(), why: why.to_string() };
    let name = path.with_extension(match path.extension() {
        Some(extension) => format!("{}.lock", extension.to_string_lossy()),
        None => "lock".to_owned(),
    });
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // The one before us may be on its way out.
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(OpenError::Locked { path: path.to_owned() });
            }
            Err(std::fs::TryLockError::Error(why)) => return Err(failed(why)),
        }
    }
}

struct Prepared {
    connection: Connection,
    installation: uuid::Uuid,
    data_key: Zeroizing<[u8; 32]>,
    /// Otherwise a program wrote it that signed no records yet.
    signed: bool,
}

fn prepare(path: &Path, key: &KeyEncryptionKey) -> Result<Prepared, OpenError> {
    let refused = |failure: Failure| refusal(path, failure);
    restrict(path)?;
    let connection = Connection::open(path).map_err(|why| refused(why.into()))?;
    check(&connection, path)?;
    migrate(&connection, path)?;
    let (installation, wrapped) = match read_keys(&connection).map_err(refused)? {
        Some(found) => found,
        None => make_keys(&connection, key).map_err(refused)?,
    };
    let Unwrapped { data_key, signed } = crypt::unwrap(key, &installation.to_string(), &wrapped)
        .map_err(|_| OpenError::WrongKey { path: path.to_owned() })?;
    Ok(Prepared { connection, installation, data_key, signed })
}

/// The file is ours alone from its first moment.
fn restrict(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    made.map(drop).map_err(|why| OpenError::Io { path: path.to_owned(), why: why.to_string() })
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let refused = |why: rusqlite::Error| refusal(path, why.into());
    connection.busy_timeout(LOCK_WAIT).map_err(refused)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA secure_delete = ON; PRAGMA trusted_schema = OFF; BEGIN IMMEDIATE; COMMIT;",
        )
        .map_err(refused)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).map_err(refused)?;
    if verdict != "ok" {
        return Err(OpenError::Corrupt { path: path.to_owned(), why: verdict });
    }
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(refused)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(refused)?;
    if application != i64::from(APPLICATION_ID) && tables > 0 {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    Ok(())
}

fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let refused = |why: rusqlite::Error| refusal(path, why.into());
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(refused)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    for (at, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        let next = at + 1;
        connection
            .execute_batch(&format!(
                "BEGIN IMMEDIATE; {migration} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {next}; COMMIT;"
            ))
            .map_err(refused)?;
    }
    Ok(())
}

fn read_keys(connection: &Connection) -> Result<Option<(uuid::Uuid, Vec<u8>)>, Failure> {
    let Some(installation) = setting(connection, "installation")? else { return Ok(None) };
    let wrapped = setting(connection, "data_key")?.ok_or_else(|| altered("the data key"))?;
    let installation = installation.parse().map_err(|_| altered("the installation id"))?;
    Ok(Some((installation, hex::decode(wrapped).map_err(|_| altered("the data key"))?)))
}

fn make_keys(connection: &Connection, key: &KeyEncryptionKey) -> Result<(uuid::Uuid, Vec<u8>), Failure> {
    let installation = uuid::Uuid::new_v4();
    let mut data_key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(data_key.as_mut()).map_err(|_| altered("the random source"))?;
    let wrapped =
        crypt::wrap(key, &installation.to_string(), &data_key).ok_or_else(|| altered("the data key"))?;
    let crypt = Crypt::new(&data_key).ok_or_else(|| altered("the data key"))?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    set_setting(connection, "installation", &installation.to_string())?;
    set_setting(connection, "data_key", &hex::encode(&wrapped))?;
    set_setting(connection, audit::END, &audit::end(&crypt, 0, ""))?;
    insert_epoch(connection, 1)?;
    connection.execute_batch("COMMIT")?;
    Ok((installation, wrapped))
}

fn refusal(path: &Path, failure: Failure) -> OpenError {
    let path = path.to_owned();
    match failure {
        Failure::Said(error) => OpenError::Corrupt { path, why: error.to_string() },
        Failure::Sqlite(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path },
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                OpenError::Corrupt { path, why: error.to_string() }
            }
            _ => OpenError::Io { path, why: error.to_string() },
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
mod tests {
    use super::*;
    use crate::{Audit, AuditBroken, NewHost, NewToken, Operator, OperatorProof, Store, Value};

    /// What the first schema had.
    const AS_IT_WAS: &str = "
        ALTER TABLE operators DROP COLUMN signature;
        ALTER TABLE hosts DROP COLUMN signature;
        INSERT INTO settings SELECT 'audit_length', max(sequence) FROM audit;
        DELETE FROM settings WHERE name = 'audit_end';
        PRAGMA user_version = 1;";

    fn entry(action: &str) -> Audit {
        Audit { action: action.into(), ..Audit::default() }
    }

    async fn opened(path: &Path, key: &Path) -> Store {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            // The writer thread closes the file a moment after the last handle is gone.
            match Store::open(path, KeyEncryptionKey::from_file(key).unwrap()).await {
                Err(OpenError::Locked { .. }) if Instant::now() < end => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    /// A database as programs wrote it that signed no records, with an operator, a host and three rows of audit.
    async fn written_before(path: &Path, key: &Path) {
        KeyEncryptionKey::generate().unwrap().write_file(key).unwrap();
        let store = opened(path, key).await;
        let operator = Operator {
            id: "alice".into(),
            name: "alice".into(),
            role: "admin".into(),
            proof: OperatorProof::TokenDigest("aa".into()),
            created_ms: 1,
            expires_ms: 100,
            revoked_ms: None,
        };
        store.add_operator(operator, entry("operator_add")).await.unwrap();
        let secret = Value::new(vec![9]);
        let token = NewToken { id: "t".into(), secret, host_name: "h".into(), created_ms: 0, expires_ms: 9 };
        store.issue_token(token, entry("token")).await.unwrap();
        let host = NewHost {
            id: "bb".into(),
            name: "h".into(),
            labels: [("tier".to_owned(), "app".to_owned())].into(),
            address: "127.0.0.1:9".into(),
            verify_key: vec![1; 32],
            seal_key: vec![2; 32],
            spki: "cc".into(),
        };
        assert!(store.enrol("t", host, 1, entry("enrol")).await.unwrap());
        drop(store);
        drop(opened(path, key).await);
        let shell = Connection::open(path).unwrap();
        let (installation, wrapped) = read_keys(&shell).ok().unwrap().unwrap();
        let (installation, key) = (installation.to_string(), KeyEncryptionKey::from_file(key).unwrap());
        let data_key = crypt::unwrap(&key, &installation, &wrapped).ok().unwrap().data_key;
        let wrapped = crypt::wrap_as(crypt::UNSIGNED, &key, &installation, &data_key).unwrap();
        shell.execute_batch(AS_IT_WAS).unwrap();
        assert!(set_setting(&shell, "data_key", &hex::encode(wrapped)).is_ok());
    }

    #[tokio::test]
    async fn a_database_from_before_records_were_signed_goes_on_and_is_signed_once() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (directory.path().join("state.db"), directory.path().join("key"));
        written_before(&path, &key).await;
        for rows in [3, 4] {
            let store = opened(&path, &key).await;
            assert_eq!(store.audit_verify().await.unwrap(), Ok(rows));
            assert_eq!(store.hosts().await.unwrap().len(), 1);
            assert_eq!(store.operators().await.unwrap().len(), 1);
            store.audit(entry("rotate")).await.unwrap();
        }
        drop(opened(&path, &key).await);
        // What looks like the first schema and is not wrapped like it is not signed again.
        let shell = Connection::open(&path).unwrap();
        shell.execute_batch(AS_IT_WAS).unwrap();
        drop(shell);
        let store = opened(&path, &key).await;
        assert_eq!(store.audit_verify().await.unwrap(), Err(AuditBroken::End));
        assert!(matches!(store.hosts().await, Err(crate::StoreError::Altered(_))));
        assert!(matches!(store.operators().await, Err(crate::StoreError::Altered(_))));
    }

    #[tokio::test]
    async fn what_was_cut_before_records_were_signed_stays_cut() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (directory.path().join("state.db"), directory.path().join("key"));
        written_before(&path, &key).await;
        let shell = Connection::open(&path).unwrap();
        shell.execute_batch("DELETE FROM audit WHERE sequence > 2").unwrap();
        drop(shell);
        let store = opened(&path, &key).await;
        let cut = AuditBroken::Length { found: 2, expected: 3 };
        assert_eq!(store.audit_verify().await.unwrap(), Err(cut));
    }
}
