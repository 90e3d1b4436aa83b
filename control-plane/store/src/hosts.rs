//! The enrolled hosts and how far each has come. Who a host is, and what decides which values it gets, is signed: whoever
//! can only write the file makes no host, and has no value encrypted to a key of their own.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use crate::{Audit, Database, Failure, Store, StoreError, signed, unsigned};

/// Where a host is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostStatus {
    /// Enrolled and counted.
    Active,
    /// Gone for good, on an operator's word. Its certificate is refused from then on.
    Retired,
}

/// A host that enrols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHost {
    /// The fingerprint of its applier's key, 64 hex digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// Where its push API listens, `host:port`.
    pub address: String,
    /// The applier's Ed25519 public key, which its reports are verified with.
    pub verify_key: Vec<u8>,
    /// The applier's HPKE public key, which values are encrypted to.
    pub seal_key: Vec<u8>,
    /// The key of its TLS certificate: SHA-256 of the SubjectPublicKeyInfo, in hex.
    pub spki: String,
}

/// How far a host has come with reports and questions. Written only with the states that its report changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostProgress {
    /// The newest report that was committed.
    pub sequence: u64,
    /// The newest report that was ever acknowledged to the host. Never falls, whatever the host contradicts: only an
    /// acknowledgement above it is one that this store never gave.
    pub acknowledged_max: u64,
    /// Below this number no digest is kept any more, so that nothing can be told from a contradiction.
    pub digests_from: u64,
    /// The digests of the newest committed reports by sequence, so that a resent one is told from a contradiction.
    pub digests: BTreeMap<u64, String>,
    /// The newest of our acknowledgements that the host has shown to us.
    pub shown: u64,
    /// Added to the numbers of its snapshots: grows when the host contradicts itself and counts anew.
    pub lead: u64,
    /// The boot that the newest report came from.
    pub boot_id: Option<String>,
    /// The host contradicted a report that we acknowledged: what it says is incomplete until an operator says so
    /// or it enrols again.
    pub incomplete: Option<String>,
    /// Milliseconds since 1970 at which the newest report was committed.
    pub reported_ms: u64,
}

/// A host as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Who it is.
    pub host: NewHost,
    /// Where it is in its life.
    pub status: HostStatus,
    /// When it enrolled, milliseconds since 1970.
    pub enrolled_ms: u64,
    /// How far it has come.
    pub progress: HostProgress,
}

const COLUMNS: &str =
    "id, name, labels, address, verify_key, seal_key, spki, status, enrolled_ms, progress, signature";

impl Store {
    /// Every host that ever enrolled, retired ones included.
    pub async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        self.run("read the hosts", |database| {
            let mut rows = database
                .connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM hosts ORDER BY name, id"))?;
            let rows = rows.query_map([], |row| Ok(read(row)))?;
            rows.map(|row| database.checked_host(row??)).collect()
        })
        .await
    }

    /// One host by its id.
    pub async fn host(&self, id: &str) -> Result<Option<HostRow>, StoreError> {
        let id = id.to_owned();
        self.run("read a host", move |database| {
            let row = database
                .connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE id = ?1"))?
                .query_row([id], |row| Ok(read(row)))
                .optional()?;
            row.transpose()?.map(|row| database.checked_host(row)).transpose()
        })
        .await
    }

    /// Replaces a host's labels.
    pub async fn set_host_labels(
        &self,
        id: &str,
        labels: BTreeMap<String, String>,
        audit: Audit,
    ) -> Result<(), StoreError> {
        let text = json(&labels)?;
        self.update_host("label a host", "UPDATE hosts SET labels = ?2 WHERE id = ?1", id, text, Some(audit))
            .await
    }

    /// Replaces the address of a host's push API. The host itself says it, so not each time is told.
    pub async fn set_host_address(
        &self,
        id: &str,
        address: String,
        audit: Option<Audit>,
    ) -> Result<(), StoreError> {
        self.update_host("move a host", "UPDATE hosts SET address = ?2 WHERE id = ?1", id, address, audit)
            .await
    }

    /// The host is gone for good.
    pub async fn retire_host(&self, id: &str, audit: Audit) -> Result<(), StoreError> {
        let retired = "retired".to_owned();
        self.update_host(
            "retire a host",
            "UPDATE hosts SET status = ?2 WHERE id = ?1",
            id,
            retired,
            Some(audit),
        )
        .await
    }

    async fn update_host(
        &self,
        what: &'static str,
        statement: &'static str,
        id: &str,
        text: String,
        audit: Option<Audit>,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(what, move |database| {
            // What was altered is not signed because something else of it changes.
            for row in database.some_hosts(Some(&id))? {
                database.checked_host(row)?;
            }
            let changed = database.connection.prepare_cached(statement)?.execute(params![id, text])?;
            database.sign_hosts(Some(&id))?;
            audit.map_or(Ok(()), |audit| database.append_audit(&audit))?;
            if changed == 1 { Ok(()) } else { Err(StoreError::Missing(format!("host {id}")).into()) }
        })
        .await
    }
}

impl Database {
    pub(crate) fn enrol_host(&self, host: &NewHost, now_ms: u64) -> Result<(), Failure> {
        let Some(row) = self.some_hosts(Some(&host.id))?.pop() else { return self.insert_host(host, now_ms) };
        let HostRow { host: known, status, .. } = self.checked_host(row)?;
        let same = (&known.verify_key, &known.seal_key) == (&host.verify_key, &host.seal_key);
        if status != HostStatus::Active || !same {
            return Err(StoreError::Exists(format!("host {}", host.id)).into());
        }
        self.connection
            .prepare_cached("UPDATE hosts SET spki = ?2, address = ?3 WHERE id = ?1")?
            .execute(params![host.id, host.spki, host.address])?;
        self.sign_hosts(Some(&host.id))
    }

    fn insert_host(&self, host: &NewHost, now_ms: u64) -> Result<(), Failure> {
        let made = self
            .connection
            .prepare_cached(
                "INSERT INTO hosts (id, name, labels, address, verify_key, seal_key, spki, status, enrolled_ms, last_seen_ms, progress)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'active', ?8, 0, '{}') ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                host.id, host.name, json(&host.labels)?, host.address, host.verify_key, host.seal_key, host.spki,
                signed(now_ms)
            ])?;
        if made == 1 {
            self.sign_hosts(Some(&host.id))
        } else {
            Err(StoreError::Exists(format!("host {}", host.id)).into())
        }
    }

    /// Signs the row of one host, or all, as it stands there.
    pub(crate) fn sign_hosts(&self, only: Option<&str>) -> Result<(), Failure> {
        for (row, _) in self.some_hosts(only)? {
            self.connection
                .prepare_cached("UPDATE hosts SET signature = ?2 WHERE id = ?1")?
                .execute(params![row.host.id, self.host_signature(&row)?])?;
        }
        Ok(())
    }

    fn some_hosts(&self, only: Option<&str>) -> Result<Vec<Read>, Failure> {
        let mut rows = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE ?1 IS NULL OR id = ?1"))?;
        let rows = rows.query_map([only], |row| Ok(read(row)))?;
        rows.map(|row| row?).collect()
    }

    fn checked_host(&self, (row, signature): Read) -> Result<HostRow, Failure> {
        if signature == Some(self.host_signature(&row)?) {
            Ok(row)
        } else {
            Err(StoreError::Altered(format!("host {:?}", row.host.id)).into())
        }
    }

    /// Over everything but its progress, which grows with each report and decides about no value.
    fn host_signature(&self, row: &HostRow) -> Result<Vec<u8>, Failure> {
        let HostRow { host, status, enrolled_ms, progress: _ } = row;
        let NewHost { id, name, labels, address, verify_key, seal_key, spki } = host;
        let (labels, status) = (json(labels)?, json(&(status, enrolled_ms))?);
        let texts = [id, name, &labels, address, spki, &status].map(String::as_bytes);
        Ok(self.crypt.sign("host", &[&texts[..], &[verify_key, seal_key]].concat()))
    }

    pub(crate) fn commit_progress(&self, host: &str, progress: &HostProgress) -> Result<(), Failure> {
        self.connection
            .prepare_cached("UPDATE hosts SET progress = ?2, last_seen_ms = ?3 WHERE id = ?1")?
            .execute(params![host, json(progress)?, signed(progress.reported_ms)])?;
        Ok(())
    }
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Altered("a record".to_owned()))
}

/// A row with its signature.
type Read = (HostRow, Option<Vec<u8>>);

fn read(row: &Row<'_>) -> Result<Read, Failure> {
    let id: String = row.get(0)?;
    let altered = || StoreError::Altered(format!("host {id:?}"));
    let labels = serde_json::from_str(&row.get::<_, String>(2)?).map_err(|_| altered())?;
    let status = match row.get::<_, String>(7)?.as_str() {
        "active" => HostStatus::Active,
        "retired" => HostStatus::Retired,
        _ => return Err(altered().into()),
    };
    let progress = serde_json::from_str(&row.get::<_, String>(9)?).map_err(|_| altered())?;
    let kept = HostRow {
        host: NewHost {
            name: row.get(1)?,
            labels,
            address: row.get(3)?,
            verify_key: row.get(4)?,
            seal_key: row.get(5)?,
            spki: row.get(6)?,
            id,
        },
        status,
        enrolled_ms: unsigned(row.get(8)?),
        progress,
    };
    Ok((kept, row.get(10)?))
}
