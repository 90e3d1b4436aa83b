//! The one provider, and the listening side's configuration, which can change while connections are open.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::sync::watch;

use crate::identity::{TlsIdentity, Trust};
use crate::peer::Spki;

/// The cryptography that both sides use: TLS 1.3 suites only, the hybrid post-quantum exchange first.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}

/// Makes aws-lc-rs the provider of the process, for libraries that ask for a default one. Call it first in `main`
/// and in tests; a second call changes nothing.
///
/// It keeps the suites of TLS 1.2, since backends such as databases are not ours to upgrade. Our own connections
/// never use them: they are built from [`provider`].
pub fn install_provider() {
    // An error says that a provider is installed already, and the dependency rules allow no other.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// Whether callers must show a certificate.
#[derive(Debug, Clone)]
pub enum Clients {
    /// None is asked for.
    Anonymous,
    /// One is asked for; without one the request has no [`Peer`](crate::Peer). A bad one ends the handshake.
    Optional(Trust),
    /// Without a good one the handshake fails.
    Required(Trust),
}

/// Why a server configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// The certificate and key do not go together, or the key's kind is unknown.
    #[error(
        "failed to use the certificate and key: {0}; check that both belong together and are P-256 or Ed25519"
    )]
    Identity(#[source] rustls::Error),
    /// The trust anchors cannot be used.
    #[error("failed to use the trusted authorities for clients: {0}")]
    Clients(String),
}

/// The listening side. Its certificate and its trust can be replaced while it serves.
pub struct ServerTls {
    state: std::sync::Mutex<(TlsIdentity, Clients)>,
    config: ArcSwap<ServerConfig>,
    trust_generation: watch::Sender<u64>,
}

impl ServerTls {
    /// Serves with this certificate, for these clients.
    pub fn new(identity: TlsIdentity, clients: Clients) -> Result<Self, ServerTlsError> {
        let config = server_config(&identity, &clients)?;
        Ok(Self {
            state: std::sync::Mutex::new((identity, clients)),
            config: ArcSwap::from_pointee(config),
            trust_generation: watch::Sender::new(0),
        })
    }

    /// New connections are answered with this certificate. Open ones go on.
    pub fn replace_identity(&self, identity: TlsIdentity) -> Result<(), ServerTlsError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.config.store(Arc::new(server_config(&identity, &state.1)?));
        state.0 = identity;
        Ok(())
    }

    /// From now on these clients are trusted. Every open connection ends, since it was let in by the old trust.
    pub fn replace_clients(&self, clients: Clients) -> Result<(), ServerTlsError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.config.store(Arc::new(server_config(&state.0, &clients)?));
        state.1 = clients;
        self.trust_generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// The configuration for one new connection, and what tells that the trust has changed since. The order
    /// matters: a change between the two closes the connection needlessly, never the other way round.
    pub(crate) fn for_connection(&self) -> (watch::Receiver<u64>, Arc<ServerConfig>) {
        let changes = self.trust_generation.subscribe();
        (changes, self.config.load_full())
    }
}

fn server_config(identity: &TlsIdentity, clients: &Clients) -> Result<ServerConfig, ServerTlsError> {
    let provider = Arc::new(provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServerTlsError::Identity)?;
    let verifier = match clients {
        Clients::Anonymous => WebPkiClientVerifier::no_client_auth(),
        Clients::Optional(trust) => client_verifier(&provider, trust, false)?,
        Clients::Required(trust) => client_verifier(&provider, trust, true)?,
    };
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(ServerTlsError::Identity)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    trust: &Trust,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, ServerTlsError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider.clone());
    if !mandatory {
        builder = builder.allow_unauthenticated();
    }
    let chain = builder.build().map_err(|error| ServerTlsError::Clients(error.to_string()))?;
    Ok(Arc::new(NarrowClients { chain, pins: trust.pins.clone(), uris: trust.uris.clone() }))
}

impl Trust {
    /// Whether one of these authorities signed this certificate for a client, and it is valid now. Else why not.
    pub fn check_signed(&self, identity: &TlsIdentity) -> Result<(), String> {
        let authorities = Self { pins: None, uris: None, ..self.clone() };
        let verifier = client_verifier(&Arc::new(provider()), &authorities, true);
        let verifier = verifier.map_err(|error| error.to_string())?;
        let (leaf, between) = identity.chain.split_first().ok_or("there is no certificate")?;
        let signed = verifier.verify_client_cert(leaf, between, UnixTime::now());
        signed.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Beyond a valid chain, asks for one of the pinned keys and one of the names.
#[derive(Debug)]
struct NarrowClients {
    chain: Arc<dyn ClientCertVerifier>,
    pins: Option<BTreeSet<Spki>>,
    uris: Option<BTreeSet<String>>,
}

impl ClientCertVerifier for NarrowClients {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        crate::identity::check_narrow(end_entity, self.pins.as_ref(), self.uris.as_ref())?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
