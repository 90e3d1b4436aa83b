//! A version as it is kept: the value, the key of its digests and the templates of its files, so that what a version
//! renders to never changes after it was minted.

use std::collections::BTreeMap;

use backends::SecretValue;
use lifecycle::{CredentialName, EffectId};
use protocol::seal::StagedSet;
use protocol::{FileName, VersionKey, limit, seal};
use resources::Template;
use store::{Store, StoreError};
use zeroize::Zeroizing;

/// What a kept version begins with.
const PREFIX: &[u8] = b"eso-version-1";

/// The field that names the version's user at the backend, which the sweep on a host also looks for.
const USER_NAME: &str = "username";

/// A version's content.
pub(crate) struct Content {
    pub(crate) value: SecretValue,
    key: VersionKey,
    files: BTreeMap<FileName, Template>,
}

/// Why a version has no content to use. Never holds a value.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("the value is not kept any more")]
    Missing,
    #[error("the kept value is malformed: restore a backup")]
    Malformed,
    #[error("{0}")]
    Store(String),
    #[error("failed to render the file {file}: {error}")]
    Template { file: FileName, error: resources::TemplateError },
    #[error("{0}")]
    Set(#[from] seal::InvalidSet),
    #[error("the field {0:?} cannot name a file; give the credential a template for it under `files`")]
    FieldName(String),
    #[error(transparent)]
    Random(#[from] protocol::key::RandomFailed),
}

impl From<StoreError> for ContentError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

impl Content {
    /// A new version with a key of its own.
    pub(crate) fn new(
        value: SecretValue,
        files: &BTreeMap<FileName, Template>,
    ) -> Result<Self, ContentError> {
        Ok(Self { value, key: VersionKey::random()?, files: files.clone() })
    }

    /// The files of the set.
    pub(crate) fn render(&self) -> Result<StagedSet, ContentError> {
        let mut files = BTreeMap::new();
        for (file, template) in &self.files {
            let known = || self.value.names().map(str::to_owned).collect();
            let content = template
                .render(|name| self.value.expose(name), known, limit::FILE_BYTES_MAX)
                .map_err(|error| ContentError::Template { file: file.clone(), error })?;
            files.insert(file.clone(), seal::Value::new(content.to_vec()));
        }
        if self.files.is_empty() {
            for (name, content) in self.value.expose_fields() {
                let file = FileName::new(name).map_err(|_| ContentError::FieldName(name.to_owned()))?;
                files.insert(file, seal::Value::new(content.to_vec()));
            }
        }
        let user_name = self.value.expose_text(USER_NAME).map(str::to_owned);
        Ok(StagedSet::new(self.key.clone(), files, user_name)?)
    }

    fn encode(&self) -> Result<store::Value, ContentError> {
        let files = serde_json::to_vec(&self.files).map_err(|_| ContentError::Malformed)?;
        let value = self.value.expose_encoded();
        let length = u32::try_from(files.len()).map_err(|_| ContentError::Malformed)?.to_be_bytes();
        // Exactly sized: a buffer that grew would leave its older self behind.
        let mut out = Zeroizing::new(Vec::with_capacity(PREFIX.len() + 4 + files.len() + 32 + value.len()));
        for part in [PREFIX, &length, &files, self.key.expose(), &value] {
            out.extend_from_slice(part);
        }
        Ok(out.into())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.strip_prefix(PREFIX)?.split_first_chunk::<4>()?;
        let (files, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let (key, value) = rest.split_first_chunk::<32>()?;
        Some(Self {
            value: SecretValue::from_encoded(value).ok()?,
            key: VersionKey::from_bytes(*key),
            files: serde_json::from_slice(files).ok()?,
        })
    }

    /// Encrypts and keeps it under this effect. One that is there already stays.
    pub(crate) async fn keep(
        &self,
        store: &Store,
        credential: &CredentialName,
        effect: EffectId,
    ) -> Result<(), ContentError> {
        match store.put_value(credential.clone(), effect, self.encode()?).await {
            Ok(()) | Err(StoreError::AlreadyStored(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is kept under this effect, if anything is.
    pub(crate) async fn find(
        store: &Store,
        credential: &CredentialName,
        effect: EffectId,
    ) -> Result<Option<Self>, ContentError> {
        match store.value(credential, effect).await? {
            Some(kept) => Self::decode(kept.expose()).map(Some).ok_or(ContentError::Malformed),
            None => Ok(None),
        }
    }

    /// As [`Content::find`], where there must be one.
    pub(crate) async fn load(
        store: &Store,
        credential: &CredentialName,
        effect: EffectId,
    ) -> Result<Self, ContentError> {
        Self::find(store, credential, effect).await?.ok_or(ContentError::Missing)
    }
}
