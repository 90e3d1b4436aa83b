//! Who may speak to the API besides hosts: operators and scrapers, by certificate key or by token digest. Each row is
//! signed: whoever can only write the file makes nobody an operator.

use rusqlite::{OptionalExtension as _, Row, params};

use crate::{Audit, Database, Failure, Store, StoreError, signed, unsigned};

/// How somebody proves who they are. Neither form lets the proof be made from what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorProof {
    /// SHA-256 of the SubjectPublicKeyInfo of a client certificate, in hex.
    CertificateKey(String),
    /// SHA-256 of a random token, in hex.
    TokenDigest(String),
}

/// One identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Random.
    pub id: String,
    /// What people call it; appears in the audit log.
    pub name: String,
    /// What it may do; the words are those of the API.
    pub role: String,
    /// How it proves itself.
    pub proof: OperatorProof,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// Milliseconds since 1970, once revoked.
    pub revoked_ms: Option<u64>,
}

impl OperatorProof {
    const fn parts(&self) -> (&'static str, &String) {
        match self {
            Self::CertificateKey(digest) => ("certificate", digest),
            Self::TokenDigest(digest) => ("token", digest),
        }
    }
}

const COLUMNS: &str = "id, name, role, proof_kind, proof, created_ms, expires_ms, revoked_ms, signature";

impl Store {
    /// Keeps a new identity.
    pub async fn add_operator(&self, operator: Operator, audit: Audit) -> Result<(), StoreError> {
        self.write("add an operator", move |database| {
            let (kind, proof) = operator.proof.parts();
            let made = database
                .connection
                .prepare_cached(
                    "INSERT INTO operators (id, name, role, proof_kind, proof, created_ms, expires_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    operator.id,
                    operator.name,
                    operator.role,
                    kind,
                    proof,
                    signed(operator.created_ms),
                    signed(operator.expires_ms)
                ])?;
            database.append_audit(&audit)?;
            if made == 1 {
                database.sign_operators(Some(&operator.id))
            } else {
                Err(StoreError::Exists(format!("operator {}", operator.name)).into())
            }
        })
        .await
    }

    /// Who proves themselves so; none when expired or revoked at `now_ms`.
    pub async fn operator(&self, proof: OperatorProof, now_ms: u64) -> Result<Option<Operator>, StoreError> {
        self.run("read an operator", move |database| {
            let (kind, digest) = proof.parts();
            let found = database
                .connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM operators
                     WHERE proof_kind = ?1 AND proof = ?2 AND revoked_ms IS NULL AND expires_ms > ?3"
                ))?
                .query_row(params![kind, digest, signed(now_ms)], read)
                .optional()?;
            found.map(|found| database.checked(found)).transpose()
        })
        .await
    }

    /// Everybody that was ever added.
    pub async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        self.run("read the operators", |database| {
            let rows = database.operators()?;
            rows.into_iter().map(|row| database.checked(row)).collect()
        })
        .await
    }

    /// Ends an identity, unless it is the last good one of the role `kept`. False when there is none of that id, or
    /// it ended before.
    pub async fn revoke_operator(
        &self,
        id: &str,
        kept: &'static str,
        now_ms: u64,
        audit: Audit,
    ) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write("revoke an operator", move |database| {
            if let [last] = &database.good_operators(kept, now_ms)?[..]
                && last.id == id
            {
                return Err(StoreError::LastOf { name: last.name.clone(), role: kept }.into());
            }
            let changed = database
                .connection
                .prepare_cached("UPDATE operators SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL")?
                .execute(params![id, signed(now_ms)])?;
            if changed == 1 {
                // Also of a row that was altered: its end is wished for all the more.
                database.sign_operators(Some(&id))?;
                database.append_audit(&audit)?;
            }
            Ok(changed == 1)
        })
        .await
    }
}

impl Database {
    fn operators(&self) -> Result<Vec<Read>, Failure> {
        let mut rows =
            self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM operators ORDER BY name, id"))?;
        let rows = rows.query_map([], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whoever has this role and is let in. A row that was altered lets nobody in.
    fn good_operators(&self, role: &str, now_ms: u64) -> Result<Vec<Operator>, Failure> {
        let rows = self.operators()?.into_iter().filter_map(|row| self.checked(row).ok());
        let good = rows.filter(|row| row.role == role && row.revoked_ms.is_none() && row.expires_ms > now_ms);
        Ok(good.collect())
    }

    /// Signs the row of one operator, or all, as it stands there.
    pub(crate) fn sign_operators(&self, only: Option<&str>) -> Result<(), Failure> {
        for (operator, _) in self.operators()? {
            if only.is_none_or(|only| only == operator.id) {
                self.connection
                    .prepare_cached("UPDATE operators SET signature = ?2 WHERE id = ?1")?
                    .execute(params![operator.id, self.signature(&operator)])?;
            }
        }
        Ok(())
    }

    fn checked(&self, (operator, signature): Read) -> Result<Operator, Failure> {
        if signature.is_some_and(|signature| signature == self.signature(&operator)) {
            Ok(operator)
        } else {
            Err(StoreError::Altered(format!("operator {:?}", operator.id)).into())
        }
    }

    fn signature(&self, operator: &Operator) -> Vec<u8> {
        let Operator { id, name, role, proof, created_ms, expires_ms, revoked_ms } = operator;
        let (kind, proof) = proof.parts();
        let times = format!("{created_ms} {expires_ms} {revoked_ms:?}");
        let parts = [id, name, role, kind, proof, times.as_str()].map(str::as_bytes);
        self.crypt.sign("operator", &parts)
    }
}

type Read = (Operator, Option<Vec<u8>>);

fn read(row: &Row<'_>) -> rusqlite::Result<Read> {
    let digest = row.get(4)?;
    let operator = Operator {
        id: row.get(0)?,
        name: row.get(1)?,
        role: row.get(2)?,
        proof: match row.get::<_, String>(3)?.as_str() {
            "certificate" => OperatorProof::CertificateKey(digest),
            _ => OperatorProof::TokenDigest(digest),
        },
        created_ms: unsigned(row.get(5)?),
        expires_ms: unsigned(row.get(6)?),
        revoked_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
    };
    Ok((operator, row.get(8)?))
}
