//! From the kind and the `spec` of a resource to what speaks with its backend.

use std::sync::Arc;

use crate::directory::Directory;
use crate::discreet::{Discreet, Remembered};
use crate::generator::Generator;
use crate::password::Password;
use crate::postgresql::PostgreSql;
use crate::reference::Secrets;
use crate::source::Source;
use crate::spec::{SpecError, parse};
use crate::store_target::StoreTarget;
use crate::vault_kv::{VaultKvSource, VaultKvTarget};
use crate::webhook::Webhook;

/// The kinds that [`build`] knows.
pub const GENERATOR_KINDS: [&str; 3] = ["PostgreSql", "Webhook", "Password"];

/// Makes the generator of this kind (`PostgreSql`, `Webhook`, `Password`) from the `spec` of its resource. Asks the
/// backend nothing yet.
pub fn build(
    kind: &str,
    spec: &serde_json::Value,
    secrets: Arc<dyn Secrets>,
) -> Result<Arc<dyn Generator>, SpecError> {
    let secrets = Arc::new(Remembered::new(secrets));
    let generator: Arc<dyn Generator> = match kind {
        "Password" => Arc::new(Password::new(parse(kind, spec)?)?),
        "PostgreSql" => Arc::new(PostgreSql::new(parse(kind, spec)?, secrets.clone())?),
        "Webhook" => Arc::new(Webhook::new(parse(kind, spec)?, secrets.clone())?),
        _ => return Err(SpecError::unknown(kind, &GENERATOR_KINDS)),
    };
    Ok(Arc::new(Discreet::new(generator, secrets)))
}

/// The kinds that [`build_source`] knows.
pub const SOURCE_KINDS: [&str; 2] = ["Directory", "VaultKv"];

/// Makes the source of this kind (`Directory`, `VaultKv`) from the `spec` of its resource. Asks the store nothing yet.
pub fn build_source(
    kind: &str,
    spec: &serde_json::Value,
    secrets: Arc<dyn Secrets>,
) -> Result<Arc<dyn Source>, SpecError> {
    let secrets = Arc::new(Remembered::new(secrets));
    let source: Arc<dyn Source> = match kind {
        "Directory" => Arc::new(Directory::new(parse(kind, spec)?)?),
        "VaultKv" => Arc::new(VaultKvSource::new(parse(kind, spec)?, secrets.clone())?),
        _ => return Err(SpecError::unknown(kind, &SOURCE_KINDS)),
    };
    Ok(Arc::new(Discreet::new(source, secrets)))
}

/// The kinds that [`build_store_target`] knows.
pub const STORE_TARGET_KINDS: [&str; 1] = ["VaultKv"];

/// Makes the store target of this kind (`VaultKv`) from the `spec` of its resource. Asks the store nothing yet.
pub fn build_store_target(
    kind: &str,
    spec: &serde_json::Value,
    secrets: Arc<dyn Secrets>,
) -> Result<Arc<dyn StoreTarget>, SpecError> {
    let secrets = Arc::new(Remembered::new(secrets));
    let target: Arc<dyn StoreTarget> = match kind {
        "VaultKv" => Arc::new(VaultKvTarget::new(parse(kind, spec)?, secrets.clone())?),
        _ => return Err(SpecError::unknown(kind, &STORE_TARGET_KINDS)),
    };
    Ok(Arc::new(Discreet::new(target, secrets)))
}
