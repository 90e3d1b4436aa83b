//! How a host joins: root carries a [`Bundle`] to it, the applier makes its keys and a [`Registration`], the network
//! half exchanges token, certificate request and registration for a certificate.
//!
//! The bundle has two secrets. The network half gets one, which is good for a certificate; the applier keeps the
//! other, which authenticates its public keys. So the network half cannot register keys of its own.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::digest::hmac_sha256;
use crate::frame::{Domain, Frame};
use crate::id::{HostId, InstallationId};
use crate::key::{EnrolmentSecret, SealingKey, SigningKey, TrustAnchor, VerifyingKey};
use crate::limit;
use crate::wire::{self, DecodeError, TooLarge, hex_type};

/// The name of [`PendingEnrolment`] in the network half's state directory (`STATE/server`).
pub const PENDING_FILE: &str = "enrolment.json";
/// Beside it: why the network half's last attempt to enrol came to nothing, in words.
pub const FAILURE_FILE: &str = "enrolment-failed.txt";

/// Names a one-time token; not secret.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "String")]
pub struct TokenId(pub uuid::Uuid);

impl TokenId {
    /// A new one.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What root carries to a new host, as one JSON file. It holds secrets until its token is used or expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The installation to join.
    pub installation: InstallationId,
    /// Where the control plane listens for hosts, for example `https://eso.example.org:8443`.
    pub control_plane: String,
    /// The certificate authority of control plane and hosts, PEM.
    pub ca_pem: String,
    /// Verifies orders and acknowledgements.
    pub order_key: VerifyingKey,
    /// Verifies a rekey, where there is an offline root.
    pub root_key: Option<VerifyingKey>,
    /// How often the installation has changed its order key so far.
    pub rekeys: u64,
    /// Names the token.
    pub token: TokenId,
    /// Until when it is good.
    pub expires_at: UnixMillis,
    /// For the network half: good for one certificate.
    pub network_secret: EnrolmentSecret,
    /// For the applier: authenticates its keys.
    pub applier_secret: EnrolmentSecret,
}

/// Why a file or body is not what enrolment needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// Not of this form.
    #[error("failed to read the {what}: {error}; make a new one with `esoctl host enroll-token`")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        error: DecodeError,
    },
    /// The keys were not authenticated by the applier's secret, or not signed by the key that they name.
    #[error("the registration was not made by the holder of the bundle; enrol with a fresh bundle")]
    ForeignRegistration,
    /// For another token or installation.
    #[error("the registration belongs to another token or installation; enrol with a fresh bundle")]
    OtherToken,
}

impl Bundle {
    /// Reads the file that root carried.
    pub fn from_json(bytes: &[u8]) -> Result<Self, EnrolError> {
        wire::decode(bytes, limit::BUNDLE_BYTES_MAX)
            .map_err(|error| EnrolError::Malformed { what: "enrolment bundle", error })
    }

    /// The file for root to carry, with its secrets.
    pub fn to_json(&self) -> Result<zeroize::Zeroizing<Vec<u8>>, TooLarge> {
        wire::encode(self, limit::BUNDLE_BYTES_MAX).map(zeroize::Zeroizing::new)
    }

    /// What the applier trusts from now on.
    pub const fn trust_anchor(&self) -> TrustAnchor {
        TrustAnchor {
            installation: self.installation,
            rekeys: self.rekeys,
            order_key: self.order_key,
            root_key: self.root_key,
        }
    }

    /// What the applier leaves to the network half, without its own secret.
    pub fn pending(&self, registration: Registration) -> PendingEnrolment {
        PendingEnrolment {
            installation: self.installation,
            host: registration.host,
            control_plane: self.control_plane.clone(),
            ca_pem: self.ca_pem.clone(),
            token: self.token.clone(),
            network_secret: self.network_secret.clone(),
            registration,
        }
    }
}

hex_type! {
    /// HMAC-SHA-256 under the applier's secret.
    RegistrationMac, 32, "registration MAC"
}

/// The applier's public keys, authenticated by its secret and signed by the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Who registers: the fingerprint of the report key.
    pub host: HostId,
    /// The exact signed bytes: [`RegisteredKeys`] as JSON.
    pub keys: Frame,
    /// Over the whole frame.
    pub mac: RegistrationMac,
}

/// The signed content of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisteredKeys {
    /// The installation to join.
    pub installation: InstallationId,
    /// With which token.
    pub token: TokenId,
    /// Verifies the host's reports; its fingerprint is the host's id.
    pub report_key: VerifyingKey,
    /// Values are sealed to it.
    pub sealing_key: SealingKey,
}

impl RegisteredKeys {
    /// The host that these keys make.
    pub fn host(&self) -> HostId {
        HostId::of(&self.report_key)
    }
}

const REGISTRATION_MAC: &[u8] = b"eso/v1/registration-mac\0";

impl Registration {
    /// Made by the applier at enrolment.
    pub fn new(bundle: &Bundle, report_key: &SigningKey, sealing_key: SealingKey) -> Result<Self, TooLarge> {
        let keys = RegisteredKeys {
            installation: bundle.installation,
            token: bundle.token.clone(),
            report_key: report_key.public(),
            sealing_key,
        };
        let frame = report_key.sign(Domain::Registration, wire::encode(&keys, limit::ENROL_BYTES_MAX)?);
        let mac = RegistrationMac(registration_mac(&bundle.applier_secret, &frame));
        Ok(Self { host: keys.host(), keys: frame, mac })
    }

    /// Checked by the control plane: made with this token's secret, and signed by the key that it names.
    pub fn verify(
        &self,
        installation: InstallationId,
        token: &TokenId,
        applier_secret: &EnrolmentSecret,
    ) -> Result<RegisteredKeys, EnrolError> {
        let expected = registration_mac(applier_secret, &self.keys);
        if aws_lc_rs::constant_time::verify_slices_are_equal(&expected, &self.mac.0).is_err() {
            return Err(EnrolError::ForeignRegistration);
        }
        let keys: RegisteredKeys = wire::decode(self.keys.payload(), limit::ENROL_BYTES_MAX)
            .map_err(|error| EnrolError::Malformed { what: "registration", error })?;
        if !keys.report_key.accepts(Domain::Registration, &self.keys) || keys.host() != self.host {
            return Err(EnrolError::ForeignRegistration);
        }
        if keys.installation != installation || &keys.token != token {
            return Err(EnrolError::OtherToken);
        }
        Ok(keys)
    }
}

fn registration_mac(secret: &EnrolmentSecret, frame: &Frame) -> [u8; 32] {
    hmac_sha256(secret.expose(), &[REGISTRATION_MAC, &frame.to_bytes()])
}

/// What the applier leaves in `STATE/server/enrolment.json` for the network half. Removed once it has a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PendingEnrolment {
    /// The installation to join.
    pub installation: InstallationId,
    /// This host.
    pub host: HostId,
    /// Where the control plane listens.
    pub control_plane: String,
    /// The certificate authority, PEM.
    pub ca_pem: String,
    /// Names the token.
    pub token: TokenId,
    /// Good for one certificate.
    pub network_secret: EnrolmentSecret,
    /// The applier's keys.
    pub registration: Registration,
}

impl PendingEnrolment {
    /// Reads the file that the applier left.
    pub fn from_json(bytes: &[u8]) -> Result<Self, EnrolError> {
        wire::decode(bytes, limit::BUNDLE_BYTES_MAX)
            .map_err(|error| EnrolError::Malformed { what: "pending enrolment", error })
    }

    /// The file, with its secret.
    pub fn to_json(&self) -> Result<zeroize::Zeroizing<Vec<u8>>, TooLarge> {
        wire::encode(self, limit::BUNDLE_BYTES_MAX).map(zeroize::Zeroizing::new)
    }
}

/// `POST {control plane}/v1/enroll`, over TLS without a client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// Names the token.
    pub token: TokenId,
    /// Proves it.
    pub network_secret: EnrolmentSecret,
    /// A certificate request for the network half's own P-256 key, PEM.
    pub csr_pem: String,
    /// The applier's keys.
    pub registration: Registration,
    /// What the host calls itself; a label for people.
    pub name: String,
    /// Where pushes reach it, `host:port`.
    pub address: String,
}

/// `POST {control plane}/v1/renew`, over TLS with the present certificate; the request must be for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A certificate request for the key of the present certificate, PEM.
    pub csr_pem: String,
    /// Where pushes reach the host now, `host:port`.
    pub address: String,
}

/// The answer to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolResponse {
    /// The host's certificate and those between it and the authority, PEM, the host's first.
    pub chain_pem: String,
    /// The certificate authorities to trust from now on, PEM.
    pub ca_pem: String,
    /// When to ask for the next certificate.
    pub renew_at: UnixMillis,
    /// When this one ends.
    pub expires_at: UnixMillis,
}
