//! Generators, sources and store targets: everything that is asked for, or told, a value.
//!
//! A *generator* mints versions, verifies and revokes them; a *source* is a store that somebody else rotates; a *store
//! target* is a path of a secret store that versions are delivered to. Each is made from the `spec` of its resource by
//! [`build`], [`build_source`] or [`build_store_target`], and then spoken to through an object-safe trait.
//!
//! Nothing here decides *when* something is minted or revoked, keeps state across a restart, writes a value to a log or
//! an error, or leaves a request without a deadline.

mod directory;
mod discreet;
mod draw;
mod failure;
mod generator;
mod kinds;
mod mark;
mod password;
mod postgresql;
mod reference;
mod source;
mod spec;
mod store_target;
mod tls;
mod value;
mod vault_kv;
mod webhook;

pub use directory::DirectorySpec;
pub use draw::PasswordSpec;
pub use failure::Failure;
pub use generator::{Answer, Generator, Marked};
pub use kinds::{GENERATOR_KINDS, SOURCE_KINDS, STORE_TARGET_KINDS, build, build_source, build_store_target};
pub use mark::{INSTALLATION_CHARS_MAX, InvalidMark, Mark, is_installation};
pub use postgresql::PostgreSqlSpec;
pub use reference::{SecretRef, Secrets, SecretsDirectory};
pub use source::{Destroyed, Notice, Retiring, Snapshot, Source};
pub use spec::SpecError;
pub use store_target::{StoreTarget, Stored};
pub use tls::TlsSpec;
pub use value::{
    FIELD_BYTES_MAX, FIELD_NAME_BYTES_MAX, FIELDS_MAX, SecretValue, VALUE_BYTES_MAX, ValueError,
};
pub use vault_kv::{VaultKvSourceSpec, VaultKvSpec};
pub use webhook::WebhookSpec;
