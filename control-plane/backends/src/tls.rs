//! How a backend is reached: over TLS, or on this machine without it where the spec says so in words.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::failure::Failure;
use crate::reference::{SecretRef, Secrets, read_bounded};

/// Where systems keep the certificates that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// The most bytes that a bundle of certificates may have.
const BUNDLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How a backend is reached. Without `tls` the system's certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TlsSpec {
    /// `tls: disable`: only to an address of this machine.
    Disable(Disable),
    /// Which certificates are trusted.
    Trust(Box<Trust>),
}

/// The word `disable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disable {
    /// No TLS.
    Disable,
}

/// Which certificates are trusted, and which one is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Trust {
    /// Certificates in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// A file of certificates in PEM, read anew for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The name that the backend's certificate must carry, where it is not the one that is connected to. PostgreSQL only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Our certificate chain in PEM, where the backend asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<SecretRef>,
    /// Its key in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<SecretRef>,
}

/// By hand, so that an unknown key is named and not only said to fit nothing.
impl<'de> Deserialize<'de> for TlsSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrKeys)
    }
}

struct WordOrKeys;

impl<'de> Visitor<'de> for WordOrKeys {
    type Value = TlsSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`disable`, or which certificates are trusted")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<TlsSpec, E> {
        Disable::deserialize(word.into_deserializer()).map(TlsSpec::Disable)
    }

    fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<TlsSpec, A::Error> {
        Trust::deserialize(MapAccessDeserializer::new(keys)).map(|trust| TlsSpec::Trust(Box::new(trust)))
    }
}

impl Default for TlsSpec {
    fn default() -> Self {
        Self::Trust(Box::default())
    }
}

impl TlsSpec {
    /// What is wrong with asking for this towards that host, if anything.
    pub(crate) fn check(&self, host: &str) -> Result<(), String> {
        let trust = match self {
            Self::Disable(_) if is_loopback(host) => return Ok(()),
            Self::Disable(_) => {
                return Err(format!(
                    "`tls: disable` is for addresses of this machine only, and {host} is not one: give the backend a certificate and trust it with `tls: {{caBundle: ...}}`"
                ));
            }
            Self::Trust(trust) => trust,
        };
        if trust.ca_bundle.is_some() && trust.ca_file.is_some() {
            return Err("`tls` names both caBundle and caFile: keep one".to_owned());
        }
        if trust.client_certificate.is_some() != trust.client_key.is_some() {
            return Err("`tls` names one of clientCertificate and clientKey: both are needed".to_owned());
        }
        Ok(())
    }

    /// `None`: no TLS.
    pub(crate) fn client_config(&self, secrets: &dyn Secrets) -> Result<Option<ClientConfig>, Failure> {
        match self {
            Self::Disable(_) => Ok(None),
            Self::Trust(trust) => trust.client_config(secrets).map(Some),
        }
    }

    pub(crate) fn server_name(&self) -> Option<&str> {
        match self {
            Self::Disable(_) => None,
            Self::Trust(trust) => trust.server_name.as_deref(),
        }
    }
}

impl Trust {
    fn client_config(&self, secrets: &dyn Secrets) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::refused(format!("failed to set TLS up: {error}")))?
            .with_root_certificates(self.roots()?);
        let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) else {
            return Ok(builder.with_no_client_auth());
        };
        let wrong = |what: &SecretRef, why: String| {
            Failure::refused(format!("{what} is no client certificate: {why}"))
        };
        let chain = CertificateDer::pem_slice_iter(&secrets.read(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| wrong(certificate, error.to_string()))?;
        let key_der = PrivateKeyDer::from_pem_slice(&secrets.read(key)?)
            .map_err(|_| wrong(key, "it holds no private key in PEM".to_owned()))?;
        builder.with_client_auth_cert(chain, key_der).map_err(|error| wrong(certificate, error.to_string()))
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        match (&self.ca_bundle, &self.ca_file) {
            (Some(bundle), _) => add_all(&mut roots, bundle.as_bytes(), "caBundle")?,
            (None, Some(file)) => {
                add_all(&mut roots, &read_bounded(file, BUNDLE_BYTES_MAX)?, &file.display().to_string())?;
            }
            (None, None) => {
                let Some(file) = SYSTEM_ROOTS.iter().map(Path::new).find(|file| file.exists()) else {
                    return Err(Failure::refused(
                        "this system keeps no trusted certificates: name them with `tls: {caBundle: ...}`",
                    ));
                };
                let bundle = read_bounded(file, BUNDLE_BYTES_MAX)?;
                // A certificate that this library does not understand is no reason to trust nobody.
                let certificates = CertificateDer::pem_slice_iter(&bundle).filter_map(Result::ok);
                roots.add_parsable_certificates(certificates);
            }
        }
        Ok(roots)
    }
}

fn add_all(roots: &mut RootCertStore, pem: &[u8], what: &str) -> Result<(), Failure> {
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate =
            certificate.map_err(|error| Failure::refused(format!("{what} is not PEM: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| Failure::refused(format!("{what} holds what is no CA certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(Failure::refused(format!("{what} holds no certificate in PEM")));
    }
    Ok(())
}

/// Trusts nobody: for clients that are told to use no TLS.
pub(crate) fn no_trust() -> Result<rustls::ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::refused(format!("failed to set TLS up: {error}")))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// Whether an address can only be this machine: a loopback address, `localhost`, or the path of a socket.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.starts_with('/')
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_tls_is_for_this_machine_only_and_said_in_words() {
        let disable: TlsSpec = serde_json::from_str("\"disable\"").unwrap();
        for host in ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "/run/postgresql"] {
            assert_eq!(disable.check(host), Ok(()), "{host}");
        }
        for host in ["db.example", "10.0.0.1", "localhost.example", "127.0.0.1.example", "0.0.0.0", ""] {
            assert!(disable.check(host).is_err(), "{host}");
        }
        assert!(matches!(TlsSpec::default(), TlsSpec::Trust(_)));
        assert!(serde_json::from_str::<TlsSpec>("\"prefer\"").is_err());
        assert!(serde_json::from_str::<TlsSpec>(r#"{"caBundel": ""}"#).is_err());
    }

    #[test]
    fn it_is_a_word_or_keys_and_an_unknown_key_is_named() {
        let read = |spec: serde_json::Value| TlsSpec::deserialize(&spec).map_err(|error| error.to_string());
        assert_eq!(read(json!("disable")), Ok(TlsSpec::Disable(Disable::Disable)));
        let Ok(TlsSpec::Trust(trust)) = read(json!({"caFile": "/ca"})) else { panic!("not read") };
        assert_eq!(trust.ca_file.as_deref(), Some(Path::new("/ca")));
        assert_eq!(read(json!({})), Ok(TlsSpec::default()));
        for (written, words) in [
            (json!({"cafile": "/ca"}), "unknown field `cafile`, expected one of `caBundle`, `caFile`"),
            (json!("disabled"), "unknown variant `disabled`, expected `disable`"),
            (json!(true), "expected `disable`, or which certificates are trusted"),
        ] {
            let error = read(written).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
