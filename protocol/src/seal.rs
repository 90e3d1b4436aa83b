//! Values on their way to an applier: HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), AES-256-GCM.
//!
//! The additional data binds the ciphertext to installation, host, set, version and effect, so that a sealed value
//! cannot be moved to another order. No type here can be printed.

use std::collections::BTreeMap;
use std::fmt;

use lifecycle::{EffectId, SetName, Version};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePublicKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::digest::{KeyedDigest, VersionKey};
use crate::id::{FileName, HostId, InstallationId};
use crate::key::{OpeningKey, SealingKey};
use crate::limit;
use crate::order::Stage;
use crate::wire::base64_bytes;

const INFO: &[u8] = b"eso/v1/stage";
const ENCAPSULATED_BYTES: usize = 32;
const PLAIN_BYTES_MAX: usize = limit::ORDER_BYTES_MAX;

/// The content of one file. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Takes the bytes over.
    pub fn new(content: Vec<u8>) -> Self {
        Self(Zeroizing::new(content))
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(..)")
    }
}

/// The files of one version with the key of their digests: what is sealed to an applier.
#[derive(Clone, PartialEq, Eq)]
pub struct StagedSet {
    key: VersionKey,
    files: BTreeMap<FileName, Value>,
    user_name: Option<String>,
}

/// Why files are not a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSet {
    /// No file at all.
    #[error("a set needs at least one file")]
    Empty,
    /// Too many files.
    #[error("{files} files where at most {} are allowed in a set", limit::FILES_PER_SET_MAX)]
    TooManyFiles {
        /// How many.
        files: usize,
    },
    /// One file is too large.
    #[error("file {name} has {bytes} bytes where at most {} are allowed", limit::FILE_BYTES_MAX)]
    FileTooLarge {
        /// Which.
        name: FileName,
        /// How large.
        bytes: usize,
    },
    /// All files together are too large.
    #[error("the files have {bytes} bytes together where at most {} are allowed", limit::SET_BYTES_MAX)]
    SetTooLarge {
        /// How large.
        bytes: usize,
    },
    /// The hint is too long.
    #[error("the user name is longer than {} characters", limit::USER_NAME_CHARS_MAX)]
    UserNameTooLong,
}

impl StagedSet {
    /// Checks number and sizes. `user_name` is the version's user at the backend, which the sweep also looks for.
    pub fn new(
        key: VersionKey,
        files: BTreeMap<FileName, Value>,
        user_name: Option<String>,
    ) -> Result<Self, InvalidSet> {
        if files.is_empty() {
            return Err(InvalidSet::Empty);
        }
        if files.len() > limit::FILES_PER_SET_MAX {
            return Err(InvalidSet::TooManyFiles { files: files.len() });
        }
        if let Some((name, value)) =
            files.iter().find(|(_, value)| value.expose().len() > limit::FILE_BYTES_MAX)
        {
            return Err(InvalidSet::FileTooLarge { name: name.clone(), bytes: value.expose().len() });
        }
        let bytes = files.values().map(|value| value.expose().len()).sum();
        if bytes > limit::SET_BYTES_MAX {
            return Err(InvalidSet::SetTooLarge { bytes });
        }
        if user_name.as_ref().is_some_and(|name| name.len() > limit::USER_NAME_CHARS_MAX) {
            return Err(InvalidSet::UserNameTooLong);
        }
        Ok(Self { key, files, user_name })
    }

    /// The key of the digests.
    pub const fn key(&self) -> &VersionKey {
        &self.key
    }

    /// The files.
    pub const fn files(&self) -> &BTreeMap<FileName, Value> {
        &self.files
    }

    /// The version's user at the backend.
    pub fn user_name(&self) -> Option<&str> {
        self.user_name.as_deref()
    }

    /// The keyed digest of each file.
    pub fn digests(&self) -> BTreeMap<FileName, KeyedDigest> {
        self.files.iter().map(|(name, value)| (name.clone(), self.key.digest(name, value.expose()))).collect()
    }

    /// Seals the set for an order. Fresh at each call.
    pub fn seal(&self, context: &SealContext, to: &SealingKey) -> Result<Stage, SealError> {
        let plain = Zeroizing::new(Plain::encode(self));
        let (encapsulated, mut sealed) = SUITE
            .seal(INFO, &context.additional_data(), &plain, &HpkePublicKey(to.0.to_vec()))
            .map_err(|_| SealError)?;
        let mut bytes = encapsulated.0;
        bytes.append(&mut sealed);
        Ok(Stage { digests: self.digests(), sealed: Sealed(bytes) })
    }

    /// The bytes that are sealed, for a copy of the host's own under another key. As secret as the values.
    pub fn expose_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(Plain::encode(self))
    }

    /// Back from [`StagedSet::expose_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        Plain::decode(bytes)
    }
}

impl fmt::Debug for StagedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagedSet({} files)", self.files.len())
    }
}

/// What a sealed value is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealContext {
    /// Whose.
    pub installation: InstallationId,
    /// For whom.
    pub host: HostId,
    /// Of which set.
    pub set: SetName,
    /// Of which version.
    pub version: Version,
    /// The effect that minted it.
    pub effect: EffectId,
}

impl SealContext {
    /// Five lines. Names have no line breaks, so no two contexts read the same.
    fn additional_data(&self) -> Vec<u8> {
        let Self { installation, host, set, version, effect } = self;
        format!("{installation}\n{host}\n{set}\n{}.{}\n{effect}\n", version.epoch, version.number)
            .into_bytes()
    }
}

/// A sealed set: encapsulated secret (32 bytes), then the ciphertext.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Sealed(
    #[serde(with = "base64_bytes")]
    #[schemars(with = "String")]
    Vec<u8>,
);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The host's key is not a point that can be sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to seal to the host's key: the key in the store is damaged; enrol the host again")]
pub struct SealError;

/// Why sealed files cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The order has none.
    #[error("the order carries no files")]
    NoFiles,
    /// Not sealed to this key, or for another order.
    #[error(
        "not sealed to this host for this order; if its keys were restored from a copy, enrol the host again"
    )]
    NotForUs,
    /// Opened, and not a set.
    #[error("the sealed files are malformed: both ends must run compatible versions")]
    Malformed,
    /// Opened, and over a limit.
    #[error(transparent)]
    Invalid(#[from] InvalidSet),
    /// Opened, and not what the order's digests say.
    #[error("the sealed files are not those that the order's digests name")]
    DigestMismatch,
}

impl OpenError {
    /// The stable word for receipts, metrics and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoFiles | Self::Malformed => "malformed",
            Self::NotForUs => "not_sealed_to_us",
            Self::Invalid(_) => "set_too_large",
            Self::DigestMismatch => "digest_mismatch",
        }
    }
}

impl Sealed {
    pub(crate) fn open(&self, context: &SealContext, key: &OpeningKey) -> Result<StagedSet, OpenError> {
        let (encapsulated, sealed) =
            self.0.split_at_checked(ENCAPSULATED_BYTES).ok_or(OpenError::NotForUs)?;
        let plain = SUITE
            .open(
                &EncapsulatedSecret(encapsulated.to_vec()),
                INFO,
                &context.additional_data(),
                sealed,
                &key.private,
            )
            .map_err(|_| OpenError::NotForUs)?;
        Plain::decode(&Zeroizing::new(plain))
    }
}

/// The sealed bytes. Written by hand: key (32 bytes), then user name, then each file's name and content, every one
/// after its length (u32, big-endian; a missing user name is empty). No copy of a value is left in a buffer that
/// is not wiped.
struct Plain;

impl Plain {
    fn encode(set: &StagedSet) -> Vec<u8> {
        let files: usize =
            set.files.iter().map(|(name, value)| 8 + name.as_str().len() + value.expose().len()).sum();
        let user_name = set.user_name.as_deref().unwrap_or_default();
        // Exactly sized: a buffer that grew would leave its older self behind.
        let mut out = Vec::with_capacity(32 + 4 + user_name.len() + files);
        out.extend_from_slice(set.key.expose());
        let mut put = |bytes: &[u8]| {
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(bytes);
        };
        put(user_name.as_bytes());
        for (name, value) in &set.files {
            put(name.as_str().as_bytes());
            put(value.expose());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<StagedSet, OpenError> {
        if bytes.len() > PLAIN_BYTES_MAX {
            return Err(OpenError::Malformed);
        }
        let (key, mut rest) = bytes.split_first_chunk::<32>().ok_or(OpenError::Malformed)?;
        let mut key_bytes = *key;
        let key = VersionKey::from_bytes(key_bytes);
        key_bytes.zeroize();
        let user_name = text(take(&mut rest)?)?;
        let mut files = BTreeMap::new();
        while !rest.is_empty() {
            if files.len() == limit::FILES_PER_SET_MAX {
                return Err(InvalidSet::TooManyFiles { files: files.len() + 1 }.into());
            }
            let name = FileName::new(text(take(&mut rest)?)?).map_err(|_| OpenError::Malformed)?;
            let value = Value::new(take(&mut rest)?.to_vec());
            if files.insert(name, value).is_some() {
                return Err(OpenError::Malformed);
            }
        }
        let user_name = if user_name.is_empty() { None } else { Some(user_name.to_owned()) };
        Ok(StagedSet::new(key, files, user_name)?)
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], OpenError> {
    let (length, tail) = rest.split_first_chunk::<4>().ok_or(OpenError::Malformed)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| OpenError::Malformed)?;
    let (bytes, tail) = tail.split_at_checked(length).ok_or(OpenError::Malformed)?;
    *rest = tail;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> Result<&str, OpenError> {
    std::str::from_utf8(bytes).map_err(|_| OpenError::Malformed)
}
