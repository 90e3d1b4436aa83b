//! Who is at the other end: the key that it proved to have, and the names that its certificate gives it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// SHA-256 of a certificate's public key (its `SubjectPublicKeyInfo`). Survives renewal, not a new key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spki(pub [u8; 32]);

/// Why a text is not a key fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key fingerprint is 64 hex digits: SHA-256 of the certificate's public key")]
pub struct InvalidSpki;

impl Spki {
    /// Of a DER `SubjectPublicKeyInfo`, as it stands in a certificate or a signing request.
    pub fn of(subject_public_key_info: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, subject_public_key_info);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Spki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Spki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Spki {
    type Err = InvalidSpki;

    fn from_str(text: &str) -> Result<Self, InvalidSpki> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidSpki)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Spki {
    type Error = InvalidSpki;

    fn try_from(text: String) -> Result<Self, InvalidSpki> {
        text.parse()
    }
}

impl From<Spki> for String {
    fn from(spki: Spki) -> Self {
        spki.to_string()
    }
}

/// What a certificate says of its owner. In a request's extensions: only of a certificate that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The key.
    pub spki: Spki,
    /// `URI` subject alternative names, for example `spiffe://INSTALLATION/host/HOSTID`.
    pub uris: Vec<String>,
    /// `DNS` subject alternative names.
    pub dns: Vec<String>,
    /// The common name; for people.
    pub common_name: Option<String>,
    /// When the certificate begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why a certificate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not a certificate.
    #[error("failed to read a certificate: {0}")]
    Malformed(String),
    /// There is none.
    #[error("found no certificate")]
    NoCertificate,
}

impl Peer {
    /// Reads a certificate. Verifies nothing.
    pub fn from_der(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let malformed = |error: &dyn fmt::Display| PeerError::Malformed(error.to_string());
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed(&error))?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| malformed(&error))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut uris = Vec::new();
        let mut dns = Vec::new();
        for name in names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                _ => {}
            }
        }
        let common_name =
            parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        Ok(Self {
            spki: Spki::of(parsed.tbs_certificate.subject_pki.raw),
            uris,
            dns,
            common_name,
            not_before: point(parsed.validity().not_before.timestamp()),
            not_after: point(parsed.validity().not_after.timestamp()),
        })
    }
}

fn point(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}
