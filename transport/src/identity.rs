//! Our own certificate and key, and whom we trust.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, RootCertStore};

use crate::peer::{Peer, Spki};

/// A certificate chain, leaf first, with its private key.
pub struct TlsIdentity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Why a certificate and key cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificates are not PEM.
    #[error("failed to read the certificate: {0}; expected one or more PEM blocks named CERTIFICATE")]
    Certificate(String),
    /// There is none.
    #[error("found no certificate; expected one or more PEM blocks named CERTIFICATE")]
    NoCertificate,
    /// The key is not PEM.
    #[error("failed to read the private key: {0}; expected one PEM block named PRIVATE KEY")]
    Key(String),
}

impl TlsIdentity {
    /// Reads a chain (leaf first) and a key, both PEM.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| IdentityError::Key(error.to_string()))?;
        Ok(Self { chain, key })
    }

    /// What a peer will see of us.
    pub fn as_peer(&self) -> Result<Peer, crate::PeerError> {
        match self.chain.first() {
            Some(leaf) => Peer::from_der(leaf),
            None => Err(crate::PeerError::NoCertificate),
        }
    }
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// The chain may be shown; the key may not.
impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsIdentity({} certificates)", self.chain.len())
    }
}

/// Whom we trust: who signed, and if told so which keys and names only.
#[derive(Debug, Clone)]
pub struct Trust {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) pins: Option<BTreeSet<Spki>>,
    pub(crate) uris: Option<BTreeSet<String>>,
}

/// Why trust anchors cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not PEM.
    #[error("failed to read the CA certificate: {0}; expected one or more PEM blocks named CERTIFICATE")]
    Pem(String),
    /// Not a certificate that can sign others.
    #[error("failed to use the CA certificate: {0}")]
    Anchor(#[source] rustls::Error),
    /// There is none.
    #[error("found no CA certificate; expected one or more PEM blocks named CERTIFICATE")]
    None,
}

impl Trust {
    /// Trusts whoever these authorities (PEM, one or more) signed.
    pub fn from_pem(authorities: &str) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            let certificate = certificate.map_err(|error| TrustError::Pem(error.to_string()))?;
            roots.add(certificate).map_err(TrustError::Anchor)?;
        }
        if roots.is_empty() {
            return Err(TrustError::None);
        }
        Ok(Self { roots: Arc::new(roots), pins: None, uris: None })
    }

    /// And of these only who has one of these keys.
    #[must_use]
    pub fn with_pins(self, pins: impl IntoIterator<Item = Spki>) -> Self {
        Self { pins: Some(pins.into_iter().collect()), ..self }
    }

    /// And of these only who has one of these names (`URI` subject alternative names).
    #[must_use]
    pub fn with_uris(self, uris: impl IntoIterator<Item = String>) -> Self {
        Self { uris: Some(uris.into_iter().collect()), ..self }
    }
}

/// Is the (already verified) certificate one of the pinned keys, and does it have one of the names?
pub(crate) fn check_narrow(
    certificate: &CertificateDer<'_>,
    pins: Option<&BTreeSet<Spki>>,
    uris: Option<&BTreeSet<String>>,
) -> Result<(), rustls::Error> {
    if pins.is_none() && uris.is_none() {
        return Ok(());
    }
    let peer = Peer::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    if pins.is_some_and(|pins| !pins.contains(&peer.spki)) {
        return Err(CertificateError::ApplicationVerificationFailure.into());
    }
    if uris.is_some_and(|uris| !peer.uris.iter().any(|uri| uris.contains(uri))) {
        return Err(CertificateError::ApplicationVerificationFailure.into());
    }
    Ok(())
}
