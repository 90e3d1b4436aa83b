//! The state of each credential, its outbox included, as one row: committed together with the audit rows that
//! tell of it and with the acknowledged progress of the hosts that reported it.

use lifecycle::{CredentialName, Millis};
use rusqlite::{OptionalExtension as _, params};

use crate::{Audit, Database, Failure, HostProgress, Store, StoreError, signed, unsigned};

/// One credential as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialRow {
    /// Its name.
    pub name: CredentialName,
    /// Counts commits; a new credential is committed upon 0.
    pub revision: u64,
    /// The lifecycle state with its outbox, as JSON.
    pub state: String,
}

/// One transaction: all of it, or nothing.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// New states, each with the revision that it was made from.
    pub credentials: Vec<CredentialRow>,
    /// Credentials that are gone for good, after everything of them was retired.
    pub removed: Vec<CredentialName>,
    /// How far hosts have come; only for hosts that are enrolled.
    pub hosts: Vec<(String, HostProgress)>,
    /// What is to be told of it.
    pub audit: Vec<Audit>,
    /// The engine's clock, which must not fall back at a restart.
    pub clock: Option<Millis>,
}

impl Commit {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.credentials.is_empty()
            && self.removed.is_empty()
            && self.hosts.is_empty()
            && self.audit.is_empty()
    }
}

impl Store {
    /// Every credential that is kept.
    pub async fn credentials(&self) -> Result<Vec<CredentialRow>, StoreError> {
        self.run("read the credentials", |database| {
            let mut rows = database
                .connection
                .prepare_cached("SELECT name, revision, state FROM credentials ORDER BY name")?;
            let rows = rows.query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
            })?;
            rows.map(|row| {
                let (name, revision, state) = row?;
                let name = CredentialName::new(&*name)
                    .map_err(|_| Failure::Said(StoreError::Altered(format!("the credential {name:?}"))))?;
                Ok(CredentialRow { name, revision: unsigned(revision), state })
            })
            .collect()
        })
        .await
    }

    /// Writes all of it in one transaction, durable when this returns.
    pub async fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.write("commit", move |database| database.commit(&commit)).await
    }

    /// The engine's clock at the last commit.
    pub async fn clock(&self) -> Result<Millis, StoreError> {
        let text = self.setting("clock").await?;
        Ok(Millis(text.and_then(|text| text.parse().ok()).unwrap_or(0)))
    }

    /// Whether this database was put in place by a restore that the engine has not taken note of.
    pub async fn restored(&self) -> Result<bool, StoreError> {
        Ok(self.setting(crate::open::RESTORED).await?.as_deref() == Some("true"))
    }

    /// The engine has committed the new epoch to every credential.
    pub async fn restore_noted(&self) -> Result<(), StoreError> {
        self.set_setting(crate::open::RESTORED, "false".to_owned()).await
    }
}

impl Database {
    fn commit(&mut self, commit: &Commit) -> Result<(), Failure> {
        for row in &commit.credentials {
            self.commit_credential(row)?;
        }
        for name in &commit.removed {
            self.connection
                .prepare_cached("DELETE FROM credentials WHERE name = ?1")?
                .execute([name.as_str()])?;
        }
        for (host, progress) in &commit.hosts {
            self.commit_progress(host, progress)?;
        }
        for entry in &commit.audit {
            self.append_audit(entry)?;
        }
        if let Some(clock) = commit.clock {
            crate::schema::set_setting(&self.connection, "clock", &clock.0.to_string())?;
        }
        Ok(())
    }

    fn commit_credential(&self, row: &CredentialRow) -> Result<(), Failure> {
        let found = self
            .connection
            .prepare_cached("SELECT revision FROM credentials WHERE name = ?1")?
            .query_row([row.name.as_str()], |row| row.get::<_, i64>(0))
            .optional()?;
        let found = unsigned(found.unwrap_or(0));
        if found != row.revision {
            return Err(Failure::Said(StoreError::Reverted {
                credential: row.name.to_string(),
                found,
                expected: row.revision,
            }));
        }
        self.connection
            .prepare_cached(
                "INSERT INTO credentials (name, revision, state) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET revision = ?2, state = ?3",
            )?
            .execute(params![row.name.as_str(), signed(row.revision.saturating_add(1)), row.state])?;
        Ok(())
    }
}
