//! The calling side.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme};

use crate::identity::{TlsIdentity, Trust, check_narrow};
use crate::tls::provider;

/// Whether the name in the URL must stand in the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// It must.
    Checked,
    /// The address says nothing; the [`Trust`] names the key or the identity instead. Refused when it does not.
    Unchecked,
}

/// Why a client configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// Names are unchecked and nothing else tells one server from another.
    #[error("names are not checked, and no key or identity is named: any server of the authority would do")]
    Anyone,
    /// The certificate and key do not go together, or the key's kind is unknown.
    #[error(
        "failed to use the certificate and key: {0}; check that both belong together and are P-256 or Ed25519"
    )]
    Identity(#[source] rustls::Error),
}

/// TLS 1.3, this certificate of our own if any, these servers only, nothing resumed, HTTP/2 preferred.
pub fn client_config(
    identity: Option<&TlsIdentity>,
    servers: &Trust,
    names: Names,
) -> Result<ClientConfig, ClientTlsError> {
    if names == Names::Unchecked && servers.pins.is_none() && servers.uris.is_none() {
        return Err(ClientTlsError::Anyone);
    }
    let provider = Arc::new(provider());
    let verifier = Servers { trust: servers.clone(), names, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ClientTlsError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(ClientTlsError::Identity)?,
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// An HTTP client over such a configuration: HTTPS only, no redirects (they would carry a body elsewhere), no
/// proxies from the environment, dead connections noticed. Add timeouts and a resolver as the caller needs.
pub fn http_client(config: ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
}

/// A valid chain, the name if asked for, one of the pinned keys, one of the identities.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    names: Names,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.trust.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        if self.names == Names::Checked {
            verify_server_name(&certificate, server_name)?;
        }
        check_narrow(end_entity, self.trust.pins.as_ref(), self.trust.uris.as_ref())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
