//! The audit log: what was done, by whom, to what; never a value. Each row carries a keyed link over itself and the
//! row before, so that a changed, removed or inserted row is found, also by somebody who can write the file.

use rusqlite::params;

use crate::{Database, Failure, Store, StoreError, schema, signed, unsigned};

/// Something to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Who: `operator:alice`, `host:<id>`, `engine`.
    pub actor: String,
    /// What, as one stable word: `rotate`, `revoked`, `excuse`.
    pub action: String,
    /// To what: `credential/orders-db`, `host/<id>`.
    pub subject: String,
    /// More, in words and without values.
    pub detail: String,
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts from 1 without holes.
    pub sequence: u64,
    /// What was told.
    pub entry: Audit,
    /// The link, in hex.
    pub link: String,
}

/// Where the chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditBroken {
    /// A row does not fit the one before it.
    #[error("the audit log was altered at row {0}: it does not fit the row before it")]
    Row(u64),
    /// Rows at the end are missing, or were added.
    #[error("the audit log was cut or lengthened: {found} rows, {expected} were written")]
    Length {
        /// How many rows there are.
        found: u64,
        /// How many were written.
        expected: u64,
    },
}

impl Store {
    /// Writes one entry by itself, durable when this returns.
    pub async fn audit(&self, entry: Audit) -> Result<(), StoreError> {
        self.write("write the audit log", move |database| database.append_audit(&entry)).await
    }

    /// At most `limit` rows after row `after`, oldest first; of one subject if it is named.
    pub async fn audit_rows(
        &self,
        after: u64,
        limit: u32,
        subject: Option<String>,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.run("read the audit log", move |database| {
            let mut rows = database.connection.prepare_cached(
                "SELECT sequence, at_ms, actor, action, subject, detail, link FROM audit
                 WHERE sequence > ?1 AND (?3 IS NULL OR subject = ?3) ORDER BY sequence LIMIT ?2",
            )?;
            let rows = rows.query_map(params![signed(after), limit, subject], |row| {
                Ok(AuditRow {
                    sequence: unsigned(row.get(0)?),
                    entry: Audit {
                        at_ms: unsigned(row.get(1)?),
                        actor: row.get(2)?,
                        action: row.get(3)?,
                        subject: row.get(4)?,
                        detail: row.get(5)?,
                    },
                    link: hex::encode(row.get::<_, Vec<u8>>(6)?),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Walks the whole chain. The outer error is of the database, the inner one of the chain.
    pub async fn audit_verify(&self) -> Result<Result<u64, AuditBroken>, StoreError> {
        let expected: u64 =
            self.setting("audit_length").await?.and_then(|text| text.parse().ok()).unwrap_or_default();
        let (mut last, mut link) = (0, String::new());
        loop {
            let rows = self.audit_rows(last, 1000, None).await?;
            if rows.is_empty() {
                break;
            }
            let (after, before) = (last, link);
            match self
                .run("verify the audit log", move |database| Ok(database.walk(after, before, &rows)))
                .await?
            {
                Ok(end) => (last, link) = end,
                Err(broken) => return Ok(Err(broken)),
            }
        }
        // Rows may have been written while we walked: fewer than at the beginning is what tells.
        if last < expected { Ok(Err(AuditBroken::Length { found: last, expected })) } else { Ok(Ok(last)) }
    }
}

impl Database {
    pub(crate) fn append_audit(&self, entry: &Audit) -> Result<(), Failure> {
        let last = self
            .connection
            .prepare_cached("SELECT sequence, link FROM audit ORDER BY sequence DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)));
        let (last, before) = match last {
            Ok(found) => found,
            Err(rusqlite::Error::QueryReturnedNoRows) => (0, Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let sequence = unsigned(last) + 1;
        let link = self.link(&hex::encode(before), sequence, entry);
        self.connection
            .prepare_cached(
                "INSERT INTO audit (sequence, at_ms, actor, action, subject, detail, link) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                signed(sequence), signed(entry.at_ms), entry.actor, entry.action, entry.subject, entry.detail, link
            ])?;
        schema::set_setting(&self.connection, "audit_length", &sequence.to_string())
    }

    fn walk(
        &self,
        mut last: u64,
        mut before: String,
        rows: &[AuditRow],
    ) -> Result<(u64, String), AuditBroken> {
        for row in rows {
            if row.sequence != last + 1
                || hex::encode(self.link(&before, row.sequence, &row.entry)) != row.link
            {
                return Err(AuditBroken::Row(row.sequence));
            }
            (last, before) = (row.sequence, row.link.clone());
        }
        Ok((last, before))
    }

    fn link(&self, before: &str, sequence: u64, entry: &Audit) -> Vec<u8> {
        let (sequence, at) = (sequence.to_string(), entry.at_ms.to_string());
        self.crypt.chain(
            before.as_bytes(),
            &[&sequence, &at, &entry.actor, &entry.action, &entry.subject, &entry.detail],
        )
    }
}
