//! The built-in certificate authority: P-256, one level, short-lived leaves, nothing taken from a request but its
//! public key.

use std::net::IpAddr;
use std::time::Duration;

use protocol::{HostId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use transport::{Spki, TlsIdentity, names};
use uuid::Uuid;
use zeroize::Zeroizing;

/// How long the authority's own certificate is good.
const AUTHORITY_LIFE: Duration = Duration::from_hours(10 * 366 * 24);
/// How far the clock of whoever checks a certificate may be behind ours.
const CLOCK_BEHIND_MS: u64 = 5 * 60 * 1000;

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The stored key or certificate is not one.
    #[error("failed to read the certificate authority: {0}; restore a backup")]
    Unreadable(String),
    /// A certificate could not be made.
    #[error("failed to make a certificate for {subject}: {why}")]
    Issue {
        /// Whom for.
        subject: String,
        /// What the library says.
        why: String,
    },
    /// The operating system gave no random bytes.
    #[error("failed to get random bytes from the operating system")]
    Random,
}

/// Why a certificate request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not a request, or not signed by its own key.
    #[error(
        "the certificate request cannot be read: {0}; send one PEM block named CERTIFICATE REQUEST, signed by its own key"
    )]
    Malformed(String),
    /// Another kind of key.
    #[error("the certificate request is for another kind of key; make a P-256 key")]
    Kind,
}

/// The public key of a request that was signed by that very key.
pub(crate) struct RequestedKey {
    request: CertificateSigningRequestParams,
    spki: Spki,
}

impl RequestedKey {
    pub(crate) fn from_pem(csr_pem: &str) -> Result<Self, CsrError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| CsrError::Malformed(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::Kind);
        }
        let spki = Spki::of(&request.public_key.subject_public_key_info());
        Ok(Self { request, spki })
    }

    pub(crate) const fn spki(&self) -> Spki {
        self.spki
    }
}

/// A certificate that was just made.
pub(crate) struct Issued {
    pub(crate) chain_pem: String,
    pub(crate) expires_at: UnixMillis,
}

/// The certificate authority of one installation.
pub struct Authority {
    installation: Uuid,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// A new key, PKCS #8.
    pub fn generate_key() -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Random)?;
        Ok(Zeroizing::new(key.serialize_der()))
    }

    /// The self-signed certificate (PEM) for such a key.
    pub fn certify(installation: Uuid, key: &[u8], now: UnixMillis) -> Result<String, AuthorityError> {
        let key = read_key(key)?;
        let mut params = leaf(&format!("eso {installation}"), now, 0)?;
        params.not_after = point(now) + AUTHORITY_LIFE;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.self_signed(&key).map_err(|error| issue_error("the authority", error))?;
        Ok(certificate.pem())
    }

    /// Opens what the two functions above made.
    pub fn open(installation: Uuid, key: &[u8], certificate_pem: String) -> Result<Self, AuthorityError> {
        let key = read_key(key)?;
        let unreadable = |error: &dyn std::fmt::Display| AuthorityError::Unreadable(error.to_string());
        let der =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| unreadable(&error))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| unreadable(&error))?;
        Ok(Self { installation, issuer, certificate_pem })
    }

    /// Its certificate, PEM: the anchor of everybody's trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate of the control plane's own, with a new key: it serves under these names and addresses, and is
    /// the client of pushes. Says too when it ends.
    pub fn issue_own(
        &self,
        served_names: &[String],
        now: UnixMillis,
        life_ms: u64,
    ) -> Result<(TlsIdentity, UnixMillis), AuthorityError> {
        const SUBJECT: &str = "eso-control-plane";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Random)?;
        let mut params = leaf(SUBJECT, now, life_ms)?;
        params.subject_alt_names.push(uri(SUBJECT, names::control_plane_uri(self.installation))?);
        for name in served_names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|error| issue_error(name, error))?)
                }
            });
        }
        params.extended_key_usages = BOTH_SIDES.to_vec();
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|error| issue_error(SUBJECT, error))?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let identity = TlsIdentity::from_pem(&certificate.pem(), &key_pem)
            .map_err(|error| AuthorityError::Issue { subject: SUBJECT.to_owned(), why: error.to_string() })?;
        Ok((identity, now.plus_ms(life_ms)))
    }

    pub(crate) fn issue_host(
        &self,
        host: &HostId,
        name: &str,
        key: &RequestedKey,
        now: UnixMillis,
        life_ms: u64,
    ) -> Result<Issued, AuthorityError> {
        let mut params = leaf(name, now, life_ms)?;
        params.subject_alt_names.push(uri(name, names::host_uri(self.installation, host))?);
        params.extended_key_usages = BOTH_SIDES.to_vec();
        self.sign(name, params, key, now.plus_ms(life_ms))
    }

    pub(crate) fn issue_operator(
        &self,
        operator: &str,
        name: &str,
        key: &RequestedKey,
        now: UnixMillis,
        life_ms: u64,
    ) -> Result<Issued, AuthorityError> {
        let mut params = leaf(name, now, life_ms)?;
        params.subject_alt_names.push(uri(name, names::operator_uri(self.installation, operator))?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(name, params, key, now.plus_ms(life_ms))
    }

    fn sign(
        &self,
        subject: &str,
        params: CertificateParams,
        key: &RequestedKey,
        expires_at: UnixMillis,
    ) -> Result<Issued, AuthorityError> {
        let certificate = params
            .signed_by(&key.request.public_key, &self.issuer)
            .map_err(|error| issue_error(subject, error))?;
        Ok(Issued { chain_pem: certificate.pem(), expires_at })
    }
}

const BOTH_SIDES: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

/// What every certificate of ours has in common. The common name is for people and is cut to what X.509 allows.
fn leaf(common_name: &str, now: UnixMillis, life_ms: u64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|error| issue_error(common_name, error))?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.distinguished_name = subject;
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    // Positive, as RFC 5280 asks.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = point(UnixMillis(now.0.saturating_sub(CLOCK_BEHIND_MS)));
    params.not_after = point(now.plus_ms(life_ms));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri(subject: &str, uri: String) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(uri.try_into().map_err(|error| issue_error(subject, error))?))
}

fn issue_error(subject: &str, error: rcgen::Error) -> AuthorityError {
    AuthorityError::Issue { subject: subject.to_owned(), why: error.to_string() }
}

fn read_key(key: &[u8]) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| AuthorityError::Unreadable(error.to_string()))
}

/// Certificates count whole seconds; a time past their last year is that year.
fn point(at: UnixMillis) -> OffsetDateTime {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or_else(|_| rcgen::date_time_ymd(9999, 12, 31))
}
