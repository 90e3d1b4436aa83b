//! Enrolment tokens. Each is consumed once, in one statement, in the transaction that makes the host.

use rusqlite::{OptionalExtension as _, params};

use crate::{Audit, NewHost, Store, StoreError, Value, signed, unsigned};

/// A token to be issued.
#[derive(Debug)]
pub struct NewToken {
    /// Its public id.
    pub id: String,
    /// What enrolment needs to check with it (secrets included); encrypted here.
    pub secret: Value,
    /// The name that the host will have.
    pub host_name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
}

/// A token as it is kept.
#[derive(Debug)]
pub struct TokenRow {
    /// Its public id.
    pub id: String,
    /// What was kept with it.
    pub secret: Value,
    /// The name that the host will have.
    pub host_name: String,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// Which host consumed it.
    pub consumed_by: Option<String>,
}

impl Store {
    /// Keeps a new token.
    pub async fn issue_token(&self, token: NewToken, audit: Audit) -> Result<(), StoreError> {
        self.write("issue a token", move |database| {
            let sealed = database.seal(&aad(database.installation, &token.id), &token.secret)?;
            let made = database
                .connection
                .prepare_cached(
                    "INSERT INTO tokens (id, sealed, host_name, created_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    token.id, sealed, token.host_name, signed(token.created_ms), signed(token.expires_ms)
                ])?;
            database.append_audit(&audit)?;
            if made == 1 { Ok(()) } else { Err(StoreError::Exists(format!("token {}", token.id)).into()) }
        })
        .await
    }

    /// A token by its id, whether or not it may still be consumed.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let id = id.to_owned();
        self.run("read a token", move |database| {
            let row = database
                .connection
                .prepare_cached(
                    "SELECT sealed, host_name, expires_ms, consumed_by FROM tokens WHERE id = ?1",
                )?
                .query_row([&id], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get(3)?))
                })
                .optional()?;
            let Some((sealed, host_name, expires_ms, consumed_by)) = row else { return Ok(None) };
            let secret =
                database.unseal(&aad(database.installation, &id), &sealed, || format!("token {id}"))?;
            Ok(Some(TokenRow { id, secret, host_name, expires_ms: unsigned(expires_ms), consumed_by }))
        })
        .await
    }

    /// Consumes the token and makes the host, both or neither; a host that was here before with the same keys of its
    /// applier, and was not retired, gets the new key of its network half, and stays who it was. False when the token
    /// is unknown, expired or consumed before: of any number of simultaneous calls with one token one gets true.
    pub async fn enrol(
        &self,
        token: &str,
        host: NewHost,
        now_ms: u64,
        audit: Audit,
    ) -> Result<bool, StoreError> {
        let token = token.to_owned();
        self.write("enrol a host", move |database| {
            let consumed = database
                .connection
                .prepare_cached(
                    "UPDATE tokens SET consumed_ms = ?2, consumed_by = ?3
                     WHERE id = ?1 AND consumed_ms IS NULL AND expires_ms > ?2",
                )?
                .execute(params![token, signed(now_ms), host.id])?;
            if consumed == 1 {
                database.enrol_host(&host, now_ms)?;
                database.append_audit(&audit)?;
            }
            Ok(consumed == 1)
        })
        .await
    }
}

fn aad(installation: uuid::Uuid, id: &str) -> String {
    format!("eso token v1|{installation}|{id}")
}
