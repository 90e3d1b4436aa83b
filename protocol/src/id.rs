//! Who and what: installations, hosts, file names.

use std::fmt;
use std::str::FromStr;

use lifecycle::TargetId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::key::VerifyingKey;
use crate::limit::FILE_NAME_CHARS_MAX;
use crate::wire::hex_type;

/// One control plane and its hosts, drawn at random by `init`. It is the trust domain in host certificates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "String")]
pub struct InstallationId(pub Uuid);

impl InstallationId {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InstallationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

hex_type! {
    /// A host: the SHA-256 of its applier's report key, so that a reimaged host of the same name is another host.
    /// Written as 64 hex digits, it is the host's [`TargetId`].
    HostId, 32, "host id"
}

impl HostId {
    /// The host whose applier signs with this key.
    pub fn of(report_key: &VerifyingKey) -> Self {
        Self(crate::digest::sha256(&[b"eso/v1/host\0", &report_key.0]))
    }

    /// The name of the same host in `lifecycle`.
    pub fn target(&self) -> TargetId {
        match TargetId::new(self.to_string()) {
            Ok(target) => target,
            Err(_) => unreachable!("64 hex digits are a valid name"),
        }
    }
}

impl TryFrom<&TargetId> for HostId {
    type Error = InvalidHex;

    /// Fails for targets that are no hosts.
    fn try_from(target: &TargetId) -> Result<Self, InvalidHex> {
        target.as_str().parse()
    }
}

/// Why a text is not a fixed number of bytes in hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: expected {digits} lower-case hex digits")]
pub struct InvalidHex {
    pub(crate) what: &'static str,
    pub(crate) digits: usize,
}

/// The name of a file within a set, for example `password`: 1 to 128 characters of a-z, A-Z, 0-9, `-`, `_` and `.`,
/// not starting with a dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct FileName(String);

/// Why a text is not a file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a valid file name: use 1 to {FILE_NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, '-', '_' or '.', not starting with a dot"
)]
pub struct InvalidFileName {
    text: String,
}

impl FileName {
    /// Checks length and characters.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidFileName> {
        let text = text.into();
        let characters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if characters && !text.is_empty() && !text.starts_with('.') && text.len() <= FILE_NAME_CHARS_MAX {
            Ok(Self(text))
        } else {
            Err(InvalidFileName { text: text.chars().take(80).collect() })
        }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for FileName {
    type Err = InvalidFileName;

    fn from_str(text: &str) -> Result<Self, InvalidFileName> {
        Self::new(text)
    }
}

impl TryFrom<String> for FileName {
    type Error = InvalidFileName;

    fn try_from(text: String) -> Result<Self, InvalidFileName> {
        Self::new(text)
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}
