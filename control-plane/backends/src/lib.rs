//! Generators, sources and store targets: everything that is asked for, or told, a value.
//!
//! A *generator* mints versions, verifies and revokes them; a *source* is a store that somebody else rotates; a *store
//! target* is a path of a secret store that versions are delivered to. Each is made from the `spec` of its resource by
//! [`build`], [`build_source`] or [`build_store_target`], and then spoken to through an object-safe trait.
//!
//! Nothing here decides *when* something is minted or revoked, keeps state across a restart, writes a value to a log or
//! an error, or leaves a request without a deadline.

mod directory;
mod failure;
mod generator;
mod mark;
mod password;
mod postgresql;
mod reference;
mod source;
mod store_target;
mod tls;
mod value;
mod vault_kv;
mod webhook;

pub use directory::DirectorySpec;
pub use failure::Failure;
pub use generator::{Answer, GENERATOR_KINDS, Generator, Marked, build};
pub use mark::{INSTALLATION_CHARS_MAX, InvalidMark, Mark, is_installation};
pub use password::PasswordSpec;
pub use postgresql::PostgreSqlSpec;
pub use reference::{SecretRef, Secrets, SecretsDirectory};
pub use source::{Notice, Retiring, SOURCE_KINDS, Snapshot, Source, build_source};
pub use store_target::{STORE_TARGET_KINDS, StoreTarget, Stored, build_store_target};
pub use tls::TlsSpec;
pub use value::{
    FIELD_BYTES_MAX, FIELD_NAME_BYTES_MAX, FIELDS_MAX, SecretValue, VALUE_BYTES_MAX, ValueError,
};
pub use vault_kv::{VaultKvSourceSpec, VaultKvSpec};
pub use webhook::WebhookSpec;

/// Why a `spec` is not one. What is wrong and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {words}")]
pub struct SpecError {
    /// The kind of the resource.
    pub kind: String,
    /// What is wrong, and what to do.
    pub words: String,
}

impl SpecError {
    pub(crate) fn new(kind: &str, words: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), words: words.into() }
    }

    pub(crate) fn unknown(kind: &str, known: &[&str]) -> Self {
        Self::new(kind, format!("this kind is not known here: use one of {}", known.join(", ")))
    }
}

/// The written form of a spec from JSON. Unknown keys are errors.
fn parse<'de, T: serde::Deserialize<'de>>(kind: &str, spec: &'de serde_json::Value) -> Result<T, SpecError> {
    T::deserialize(spec).map_err(|error| SpecError::new(kind, error.to_string()))
}
