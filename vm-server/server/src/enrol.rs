//! From a token to a certificate, and from one certificate to the next.

use std::time::Duration;

use protocol::enrol::{EnrolRequest, PendingEnrolment, RenewRequest};
use protocol::{UnixMillis, limit};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use transport::{Backoff, Trust};
use zeroize::Zeroizing;

use crate::control_plane::{CallError, ControlPlane};
use crate::identity::{Identity, StateDir, StateError};

/// How often a host without identity looks whether root has enrolled it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The longest sleep before a renewal: a suspended machine must notice that time went on.
const RENEWAL_SLEEP_MS_MAX: u64 = 15 * 60 * 1000;

/// Why there is no certificate yet.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFailed {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control plane.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The pending enrolment has no usable authority.
    #[error("failed to use the authority in the enrolment bundle: {0}; enrol with a fresh bundle")]
    Authority(#[from] transport::TrustError),
    /// No key or request could be made.
    #[error("failed to make a key or a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The answer does not fit the key.
    #[error("the certificate that came back cannot be used: {0}; enrol with a fresh bundle")]
    BadCertificate(String),
}

/// What a host says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// What it calls itself.
    pub name: String,
    /// Where pushes reach it.
    pub address: String,
    /// Where the control plane listens, when the configuration says so.
    pub control_plane: Option<String>,
}

impl About {
    /// The configured address of the control plane, or that of the enrolment.
    pub fn url<'a>(&'a self, enrolled: &'a str) -> &'a str {
        self.control_plane.as_deref().unwrap_or(enrolled)
    }
}

/// Waits until root has enrolled the host, and tries until the control plane has answered. Looks at the pending
/// enrolment anew each time, since root may bring a fresh bundle meanwhile. Ends with an error only when the state
/// directory cannot be used.
pub async fn enrolled(state: &StateDir, about: &About) -> Result<Identity, StateError> {
    let mut backoff = Backoff::new(500, limit::RETRY_MS_MAX);
    let mut told = false;
    loop {
        match state.pending() {
            Ok(Some(pending)) => match enrol(state, &pending, about).await {
                Ok(identity) => return Ok(identity),
                Err(EnrolFailed::State(error)) => return Err(error),
                Err(error) => {
                    let pause = backoff.pause();
                    state.note_failure(&error.to_string());
                    tracing::warn!(%error, retry_ms = pause.as_millis(), "failed to enrol this host");
                    tokio::time::sleep(pause).await;
                }
            },
            Ok(None) => {
                if !told {
                    tracing::info!("not enrolled: run `eso-vm-applier enroll --bundle FILE` as root");
                    told = true;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => {
                tracing::error!(%error, "failed to read the pending enrolment");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// One attempt. Repeating it after any crash asks for the same key again.
pub async fn enrol(
    state: &StateDir,
    pending: &PendingEnrolment,
    about: &About,
) -> Result<Identity, EnrolFailed> {
    let trust = Trust::from_pem(&pending.ca_pem)?
        .with_uris([transport::names::control_plane_uri(pending.installation)]);
    let key_pem = match state.enrolment_key()? {
        Some(pem) if KeyPair::from_pem(&pem).is_ok() => pem,
        _ => {
            let pem = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem());
            state.keep_enrolment_key(&pem)?;
            pem
        }
    };
    let url = about.url(&pending.control_plane);
    let request = EnrolRequest {
        token: pending.token.clone(),
        network_secret: pending.network_secret.clone(),
        csr_pem: certificate_request(&key_pem, &about.name)?,
        registration: pending.registration.clone(),
        name: about.name.clone(),
        address: about.address.clone(),
    };
    let response = ControlPlane::new(url, None, &trust)?.enrol(&request).await?;
    let identity = Identity::enrolled(pending, key_pem, response, &about.address)
        .map_err(EnrolFailed::BadCertificate)?;
    state.keep_identity(&identity)?;
    state.finish_enrolment()?;
    tracing::info!(host = %identity.host(), installation = %identity.installation(), "enrolled");
    Ok(identity)
}

/// Waits until the certificate should be renewed and tries until it is. Never ends otherwise. At once where the control
/// plane knows another address than ours: a renewal tells it.
pub async fn renewed(state: &StateDir, identity: &Identity, about: &About) -> Identity {
    while identity.is_at(&about.address) {
        let left_ms = identity.renew_at().ms_since(UnixMillis::now());
        if left_ms == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(left_ms.min(RENEWAL_SLEEP_MS_MAX))).await;
    }
    let mut backoff = Backoff::new(1000, limit::RETRY_MS_MAX);
    loop {
        match renew(state, identity, about).await {
            Ok(next) => return next,
            Err(error) => {
                let pause = backoff.pause();
                let left_ms = identity.expires_at().ms_since(UnixMillis::now());
                if left_ms == 0 {
                    tracing::error!(%error, "the certificate expired and was not renewed: enrol this host again");
                } else {
                    tracing::warn!(%error, left_ms, "failed to renew the certificate");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn renew(state: &StateDir, identity: &Identity, about: &About) -> Result<Identity, EnrolFailed> {
    let key_pem = identity.key_pem().clone();
    let request =
        RenewRequest { csr_pem: certificate_request(&key_pem, &about.name)?, address: about.address.clone() };
    let url = about.url(identity.control_plane());
    let response = ControlPlane::new(url, Some(identity.tls()), identity.trust())?.renew(&request).await?;
    let next = identity.renewed(response, &about.address).map_err(EnrolFailed::BadCertificate)?;
    state.keep_identity(&next)?;
    tracing::info!(expires_at_ms = next.expires_at().0, "renewed the certificate");
    Ok(next)
}

fn certificate_request(key_pem: &str, name: &str) -> Result<String, rcgen::Error> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    params.serialize_request(&key)?.pem()
}
