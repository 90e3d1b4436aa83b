//! Values and our own keys, encrypted. Each is written once and never overwritten; a value is bound to the
//! credential and the effect that minted it, so that a row moved to another place does not decrypt.

use lifecycle::{CredentialName, EffectId};
use rusqlite::{OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Database, Failure, Store, StoreError};

/// Plain bytes of a value. Wiped when dropped; says nothing of itself.
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for encryption or for the backend only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Zeroizing<Vec<u8>>> for Value {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value(..)")
    }
}

/// Tells a value from another one when neither is kept any more. Made under a key that lies encrypted in the database,
/// so that it helps nobody to guess the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueDigest(String);

impl Store {
    /// Encrypts and keeps a value. Durable when this returns. An existing one is an error.
    pub async fn put_value(
        &self,
        credential: CredentialName,
        effect: EffectId,
        value: Value,
    ) -> Result<(), StoreError> {
        self.write("keep a value", move |database| {
            let sealed = database.seal(&value_aad(database, &credential, effect), &value)?;
            let kept = database
                .connection
                .prepare_cached(
                    "INSERT INTO secret_values (effect, credential, sealed) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?
                .execute(params![effect.to_string(), credential.as_str(), sealed])?;
            if kept == 1 { Ok(()) } else { Err(StoreError::AlreadyStored(effect).into()) }
        })
        .await
    }

    /// The value that this effect minted for this credential, if it is kept.
    pub async fn value(
        &self,
        credential: &CredentialName,
        effect: EffectId,
    ) -> Result<Option<Value>, StoreError> {
        let credential = credential.clone();
        self.run("read a value", move |database| {
            let sealed = database
                .connection
                .prepare_cached("SELECT sealed FROM secret_values WHERE effect = ?1 AND credential = ?2")?
                .query_row(params![effect.to_string(), credential.as_str()], |row| row.get::<_, Vec<u8>>(0))
                .optional()?;
            let aad = value_aad(database, &credential, effect);
            sealed.map(|sealed| database.unseal(&aad, &sealed, || format!("the value {effect}"))).transpose()
        })
        .await
    }

    /// What tells this value of this credential from every other one. Keeps nothing.
    pub async fn value_digest(
        &self,
        credential: &CredentialName,
        value: Value,
    ) -> Result<ValueDigest, StoreError> {
        let credential = credential.clone();
        self.run("digest a value", move |database| {
            let aad = format!("eso value digest v1|{}|{credential}", database.installation);
            Ok(ValueDigest(hex::encode(database.crypt.digest(&aad, value.expose()))))
        })
        .await
    }

    /// Whether a value is kept, without reading it.
    pub async fn has_value(&self, credential: &CredentialName, effect: EffectId) -> Result<bool, StoreError> {
        let credential = credential.clone();
        self.run("look for a value", move |database| {
            let found = database
                .connection
                .prepare_cached("SELECT 1 FROM secret_values WHERE effect = ?1 AND credential = ?2")?
                .exists(params![effect.to_string(), credential.as_str()])?;
            Ok(found)
        })
        .await
    }

    /// The effects under which values of this credential are kept.
    pub async fn values_of(&self, credential: &CredentialName) -> Result<Vec<EffectId>, StoreError> {
        let credential = credential.clone();
        self.run("list values", move |database| {
            let mut rows = database
                .connection
                .prepare_cached("SELECT effect FROM secret_values WHERE credential = ?1 ORDER BY effect")?;
            let rows = rows.query_map([credential.as_str()], |row| row.get::<_, String>(0))?;
            rows.map(|row| {
                let text = row?;
                let parsed = u128::from_str_radix(&text, 16).map(EffectId);
                parsed.map_err(|_| StoreError::Altered(format!("the value {text:?}")).into())
            })
            .collect()
        })
        .await
    }

    /// Everything that is kept: of which credential, under which effect.
    pub async fn values(&self) -> Result<Vec<(CredentialName, EffectId)>, StoreError> {
        self.run("list all values", |database| {
            let mut rows = database
                .connection
                .prepare_cached("SELECT credential, effect FROM secret_values ORDER BY credential, effect")?;
            let rows = rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (name, effect) = row?;
                let parsed = CredentialName::new(&*name).ok().zip(u128::from_str_radix(&effect, 16).ok());
                let (name, effect) =
                    parsed.ok_or_else(|| StoreError::Altered(format!("the value {effect:?} of {name:?}")))?;
                Ok((name, EffectId(effect)))
            })
            .collect()
        })
        .await
    }

    /// Forgets a value, overwriting its pages. Forgetting twice does no harm.
    pub async fn erase_value(&self, credential: &CredentialName, effect: EffectId) -> Result<(), StoreError> {
        let credential = credential.clone();
        self.write("erase a value", move |database| {
            database
                .connection
                .prepare_cached("DELETE FROM secret_values WHERE effect = ?1 AND credential = ?2")?
                .execute(params![effect.to_string(), credential.as_str()])?;
            Ok(())
        })
        .await
    }

    /// One of the control plane's own keys (order key, certificate authority).
    pub async fn own_key(&self, name: &'static str) -> Result<Option<Value>, StoreError> {
        self.run("read an own key", move |database| {
            let sealed = database
                .connection
                .prepare_cached("SELECT sealed FROM own_keys WHERE name = ?1")?
                .query_row([name], |row| row.get::<_, Vec<u8>>(0))
                .optional()?;
            let aad = own_key_aad(database, name);
            sealed.map(|sealed| database.unseal(&aad, &sealed, || format!("the key {name}"))).transpose()
        })
        .await
    }

    /// Keeps one of the control plane's own keys. An existing one is an error.
    pub async fn put_own_key(&self, name: &'static str, key: Value) -> Result<(), StoreError> {
        self.write("keep an own key", move |database| {
            let sealed = database.seal(&own_key_aad(database, name), &key)?;
            let kept = database
                .connection
                .prepare_cached("INSERT INTO own_keys (name, sealed) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                .execute(params![name, sealed])?;
            if kept == 1 { Ok(()) } else { Err(StoreError::Exists(format!("the key {name}")).into()) }
        })
        .await
    }
}

impl Database {
    pub(crate) fn seal(&self, aad: &str, value: &Value) -> Result<Vec<u8>, Failure> {
        let sealed = self.crypt.seal(aad, value.expose());
        sealed.ok_or_else(|| StoreError::Altered("the data key".to_owned()).into())
    }

    pub(crate) fn unseal(
        &self,
        aad: &str,
        sealed: &[u8],
        name: impl FnOnce() -> String,
    ) -> Result<Value, Failure> {
        let plain = self.crypt.open(aad, sealed);
        plain.map(Value).map_err(|crate::crypt::Altered| StoreError::Altered(name()).into())
    }
}

fn value_aad(database: &Database, credential: &CredentialName, effect: EffectId) -> String {
    format!("eso value v1|{}|{effect}|{credential}", database.installation)
}

fn own_key_aad(database: &Database, name: &str) -> String {
    format!("eso own key v1|{}|{name}", database.installation)
}
