//! As much of a control plane as a host needs: an authority, a key for orders, enrolment, and an ear for reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::StatusCode;
use lifecycle::{Epoch, Generation, Order, OrderKind, SetName, Version};
use protocol::ack::Ack;
use protocol::enrol::{Bundle, EnrolRequest, EnrolResponse, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::order::{Body, OrderPayload, SetOrder};
use protocol::report::Report;
use protocol::seal::{StagedSet, Value};
use protocol::{
    FRAMES_CONTENT_TYPE, FileName, Frame, FrameDigest, HostId, InstallationId, SealingKey, SigningKey,
    UnixMillis, VersionKey, limit,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use transport::{Clients, Limits, Peer, ServerTls, Spki, TlsIdentity, Trust, names};

/// The one life of this store.
pub const EPOCH: Epoch = Epoch { counter: 1, id: 7 };

/// The set that is delivered.
pub const SET: &str = "bench";

/// Its files: as long as a password, a certificate and a key are.
pub const FILES: [(&str, usize); 3] = [("password", 32), ("tls.crt", 1500), ("tls.key", 1700)];

/// A version of this store.
pub const fn version(number: u32) -> Version {
    Version::new(EPOCH.counter, number)
}

/// The set's name.
pub fn set() -> SetName {
    SetName::new(SET).unwrap_or_else(|_| unreachable!("the name is a legal one"))
}

/// An authority of our own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Whoever it signed for.
    pub fn trust(&self) -> anyhow::Result<Trust> {
        Ok(Trust::from_pem(&self.pem)?)
    }

    /// A certificate for this identity, and its key.
    pub fn issue(&self, uri: &str) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = params(uri)?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn for_request(&self, csr_pem: &str, uri: &str) -> anyhow::Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        request.params = params(uri)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

fn params(uri: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// The control plane, as a host sees it.
pub struct Desk {
    /// Whose hosts these are.
    pub installation: InstallationId,
    /// Who signs their certificates.
    pub authority: Authority,
    /// What signs their orders.
    pub order_key: SigningKey,
    token: TokenId,
    applier_secret: EnrolmentSecret,
    network_secret: EnrolmentSecret,
    enrolled: Mutex<BTreeMap<HostId, Spki>>,
    value_key: [u8; 32],
}

impl Desk {
    /// A new installation.
    pub fn new() -> anyhow::Result<Self> {
        transport::install_provider();
        Ok(Self {
            installation: InstallationId::random(),
            authority: Authority::new()?,
            order_key: SigningKey::generate()?,
            token: TokenId::random(),
            applier_secret: EnrolmentSecret::random()?,
            network_secret: EnrolmentSecret::random()?,
            enrolled: Mutex::default(),
            value_key: [7; 32],
        })
    }

    /// What root carries to a host.
    pub fn bundle(&self, control_plane: &str) -> Bundle {
        Bundle {
            installation: self.installation,
            control_plane: control_plane.to_owned(),
            ca_pem: self.authority.pem.clone(),
            order_key: self.order_key.public(),
            root_key: None,
            rekeys: 0,
            token: self.token.clone(),
            expires_at: UnixMillis::now().plus_ms(3_600_000),
            network_secret: self.network_secret.clone(),
            applier_secret: self.applier_secret.clone(),
        }
    }

    /// The keys that an applier registered.
    pub fn keys(
        &self,
        registration: &protocol::enrol::Registration,
    ) -> anyhow::Result<protocol::enrol::RegisteredKeys> {
        Ok(registration.verify(self.installation, &self.token, &self.applier_secret)?)
    }

    /// The control plane's own certificate.
    pub fn identity(&self) -> anyhow::Result<TlsIdentity> {
        let (chain, key) = self.authority.issue(&names::control_plane_uri(self.installation))?;
        Ok(TlsIdentity::from_pem(&chain, &key)?)
    }

    /// The key of a host's certificate, once it has enrolled.
    pub fn enrolled(&self, host: HostId) -> Option<Spki> {
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).get(&host).copied()
    }

    /// Takes enrolments and reports; gives the port. Ends with the runtime.
    pub async fn listen(self: &Arc<Self>) -> anyhow::Result<(u16, JoinHandle<()>)> {
        let clients = Clients::Optional(self.authority.trust()?);
        let tls = Arc::new(ServerTls::new(self.identity()?, clients)?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let router = Router::new()
            .route("/v1/enroll", post(enroll))
            .route("/v1/reports", post(report))
            .with_state(self.clone());
        let serving = tokio::spawn(async move {
            let never = std::future::pending();
            // It ends with the runtime only.
            let _ = transport::serve(listener, tls, Limits::default(), router, |_| {}, never).await;
        });
        Ok((port, serving))
    }

    /// The files of one version.
    pub fn files(&self, version: Version) -> anyhow::Result<StagedSet> {
        let content = |length: usize| -> Value {
            let line = format!("{}-0123456789abcdef/", version.number);
            Value::new(line.bytes().cycle().take(length).collect())
        };
        let named = FILES.map(|(name, length)| Ok((FileName::new(name)?, content(length))));
        let files: anyhow::Result<BTreeMap<FileName, Value>> = named.into_iter().collect();
        Ok(StagedSet::new(VersionKey::from_bytes(self.value_key), files?, None)?)
    }

    /// A signed order for a host; a value is sealed to it.
    pub fn order(
        &self,
        (host, key): (HostId, &SealingKey),
        generation: u32,
        kind: OrderKind,
    ) -> anyhow::Result<Frame> {
        let now = UnixMillis::now();
        let order = Order {
            epoch: EPOCH,
            generation: Generation::new(EPOCH.counter, generation),
            kind,
            dead: BTreeSet::new(),
        };
        let staged = match &order.kind {
            OrderKind::Stage { version, .. } => Some(self.files(*version)?),
            _ => None,
        };
        let mut payload = OrderPayload {
            installation: self.installation,
            epoch: EPOCH,
            host,
            sent_at: now,
            expires_at: now.plus_ms(limit::ORDER_VALIDITY_MS),
            body: Body::Set(SetOrder { set: set(), order, stage: None }),
        };
        if let Some(staged) = staged {
            let context = payload.seal_context().context("a stage has a context")?;
            let stage = staged.seal(&context, key)?;
            if let Body::Set(order) = &mut payload.body {
                order.stage = Some(stage);
            }
        }
        Ok(payload.sign(&self.order_key)?)
    }

    /// The acknowledgement of a report.
    pub fn ack(&self, host: HostId, sequence: u64, report: FrameDigest) -> anyhow::Result<Frame> {
        let ack = Ack {
            installation: self.installation,
            epoch: EPOCH,
            host,
            sequence,
            report,
            acknowledged_at: UnixMillis::now(),
            dead: BTreeMap::new(),
        };
        Ok(ack.sign(&self.order_key)?)
    }

    fn issue(&self, request: &EnrolRequest) -> anyhow::Result<EnrolResponse> {
        let host = self.keys(&request.registration)?.host();
        let chain_pem =
            self.authority.for_request(&request.csr_pem, &names::host_uri(self.installation, host))?;
        let certificate = CertificateDer::from_pem_slice(chain_pem.as_bytes())?;
        let spki = Peer::from_der(&certificate)?.spki;
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner).insert(host, spki);
        let now = UnixMillis::now();
        Ok(EnrolResponse {
            chain_pem,
            ca_pem: self.authority.pem.clone(),
            renew_at: now.plus_ms(3_600_000),
            expires_at: now.plus_ms(7_200_000),
        })
    }
}

/// What a frame's signature covers.
pub fn payload(frame: &[u8]) -> &[u8] {
    frame.get(protocol::frame::HEADER_BYTES..).unwrap_or_default()
}

async fn enroll(State(desk): State<Arc<Desk>>, body: Bytes) -> Response {
    let request = serde_json::from_slice(&body).map_err(anyhow::Error::from);
    match request.and_then(|request| desk.issue(&request)) {
        Ok(response) => axum::Json(response).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn report(State(desk): State<Arc<Desk>>, body: Bytes) -> Response {
    let acknowledged = (|| {
        let frame = Frame::parse(&body, limit::REPORT_BYTES_MAX)?;
        let report: Report = serde_json::from_slice(payload(&frame.to_bytes()))?;
        desk.ack(report.host, report.sequence, frame.digest())
    })();
    match acknowledged {
        Ok(ack) => ([(http::header::CONTENT_TYPE, FRAMES_CONTENT_TYPE)], ack.to_bytes()).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}
