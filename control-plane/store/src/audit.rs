//! The audit log: what was done, by whom, to what; never a value. Each row carries a keyed link over itself and the
//! row before, and where the log ends is signed, so that a changed, removed or inserted row is found, also at the end,
//! and also where somebody could write the file. Whoever puts the whole file back to what it was is not found here.

use rusqlite::{OptionalExtension as _, params};

use crate::crypt::Crypt;
use crate::{Database, Failure, Store, StoreError, schema, signed, unsigned};

/// The setting that says where the log ends: how many rows there are, and a signature over that and the last link.
pub(crate) const END: &str = "audit_end";
/// The setting that said it before there were signatures.
const LENGTH: &str = "audit_length";

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
    /// What says where the log ends was not written by us.
    #[error("the audit log was cut: what says where it ends is not what was written")]
    End,
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
            let asked = "sequence > ?1 AND (?3 IS NULL OR subject = ?3) ORDER BY sequence LIMIT ?2";
            database.audit_rows(asked, params![signed(after), limit, subject])
        })
        .await
    }

    /// The newest `limit` rows before row `before`, or of all, oldest first; of one subject if it is named.
    pub async fn audit_rows_before(
        &self,
        before: Option<u64>,
        limit: u32,
        subject: Option<String>,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.run("read the audit log", move |database| {
            let asked =
                "(?1 IS NULL OR sequence < ?1) AND (?3 IS NULL OR subject = ?3) ORDER BY sequence DESC LIMIT ?2";
            let mut rows = database.audit_rows(asked, params![before.map(signed), limit, subject])?;
            rows.reverse();
            Ok(rows)
        })
        .await
    }

    /// Walks the whole chain. The outer error is of the database, the inner one of the chain.
    pub async fn audit_verify(&self) -> Result<Result<u64, AuditBroken>, StoreError> {
        let end = self.setting(END).await?.unwrap_or_default();
        let expected = end.split_once(' ').and_then(|(length, _)| length.parse().ok());
        let Some(expected) = expected else { return Ok(Err(AuditBroken::End)) };
        let (mut last, mut link) = (0, String::new());
        let mut last_link = (expected == 0).then(String::new);
        loop {
            let rows = self.audit_rows(last, 1000, None).await?;
            if rows.is_empty() {
                break;
            }
            let at_end = rows.iter().find(|row| row.sequence == expected);
            last_link = at_end.map(|row| row.link.clone()).or(last_link);
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
        let Some(last_link) = last_link else {
            return Ok(Err(AuditBroken::Length { found: last, expected }));
        };
        let signed = self.run("verify the audit log", move |database| Ok(database.end(expected, &last_link)));
        if signed.await? == end { Ok(Ok(last)) } else { Ok(Err(AuditBroken::End)) }
    }
}

impl Database {
    fn audit_rows(&self, asked: &str, values: impl rusqlite::Params) -> Result<Vec<AuditRow>, Failure> {
        let mut rows = self.connection.prepare_cached(&format!(
            "SELECT sequence, at_ms, actor, action, subject, detail, link FROM audit WHERE {asked}"
        ))?;
        let rows = rows.query_map(values, |row| {
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
    }

    pub(crate) fn append_audit(&self, entry: &Audit) -> Result<(), Failure> {
        let (last, before) = self.last_row()?;
        let is_whole = schema::setting(&self.connection, END)? == Some(self.end(last, &before));
        let sequence = last + 1;
        let link = self.link(&before, sequence, entry);
        self.connection
            .prepare_cached(
                "INSERT INTO audit (sequence, at_ms, actor, action, subject, detail, link) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                signed(sequence), signed(entry.at_ms), entry.actor, entry.action, entry.subject, entry.detail, link
            ])?;
        // A log that was cut goes on, and for ever tells that it was: its end is not signed again.
        if is_whole { self.sign_end() } else { Ok(()) }
    }

    /// Signs the log's end as it stands there.
    pub(crate) fn sign_end(&self) -> Result<(), Failure> {
        let (length, link) = self.last_row()?;
        schema::set_setting(&self.connection, END, &self.end(length, &link))
    }

    /// The same of a log that no program signed yet. One that was cut stays cut.
    pub(crate) fn sign_first_end(&self) -> Result<(), Failure> {
        let (length, link) = self.last_row()?;
        let written = schema::setting(&self.connection, LENGTH)?.and_then(|text| text.parse().ok());
        schema::set_setting(&self.connection, END, &self.end(written.unwrap_or(length), &link))?;
        self.connection.execute("DELETE FROM settings WHERE name = ?1", [LENGTH])?;
        Ok(())
    }

    fn last_row(&self) -> Result<(u64, String), Failure> {
        let last = self
            .connection
            .prepare_cached("SELECT sequence, link FROM audit ORDER BY sequence DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))
            .optional()?;
        Ok(last.map_or_else(Default::default, |(last, link)| (unsigned(last), hex::encode(link))))
    }

    fn end(&self, length: u64, last_link: &str) -> String {
        end(&self.crypt, length, last_link)
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

/// What says that a log of so many rows ends with this link.
pub(crate) fn end(crypt: &Crypt, length: u64, last_link: &str) -> String {
    let signature = crypt.sign("audit end", &[&length.to_be_bytes(), last_link.as_bytes()]);
    format!("{length} {}", hex::encode(signature))
}
