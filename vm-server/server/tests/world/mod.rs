//! A control plane and an applier for the real binary: real TLS, real sockets, port 0.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http::StatusCode;
use lifecycle::Epoch;
use protocol::ack::Ack;
use protocol::enrol::{Bundle, EnrolRequest, EnrolResponse, Registration, RenewRequest, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::local::{FromApplier, LOCAL_VERSION, ToApplier};
use protocol::order::{Ask, Body, OrderPayload};
use protocol::report::{Outcome, Receipt, Report};
use protocol::{
    FRAMES_CONTENT_TYPE, Frame, HostId, InstallationId, OpeningKey, SigningKey, TrustAnchor, UnixMillis,
    limit,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use transport::{
    Clients, Limits, Names, Peer, ServerTls, TlsIdentity, Trust, client_config, http_client, names,
};

/// Every wait of a test ends here at the latest.
pub const SOON: Duration = Duration::from_secs(30);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn trust(&self) -> Trust {
        Trust::from_pem(&self.pem).unwrap()
    }

    pub fn identity(&self, uri: &str) -> TlsIdentity {
        let key = KeyPair::generate().unwrap();
        let certificate = params(uri).signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap()
    }

    fn for_request(&self, csr_pem: &str, uri: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params = params(uri);
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

fn params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// What the control plane of the test has seen, and how it answers.
pub struct Desk {
    pub installation: InstallationId,
    pub authority: Authority,
    pub order_key: SigningKey,
    pub token: TokenId,
    pub applier_secret: EnrolmentSecret,
    pub network_secret: EnrolmentSecret,
    /// Enrolments that are answered with this status before one is answered well. 200 loses the answer.
    pub enrolment_faults: Mutex<VecDeque<u16>>,
    pub renewal_faults: Mutex<VecDeque<u16>>,
    /// Milliseconds from issue to `renew_at`, for the certificates to come.
    pub renew_after_ms: Mutex<VecDeque<u64>>,
    /// Renewals that are answered by somebody else: with this authority's certificate, and it in the place of ours or not.
    pub impostors: Mutex<VecDeque<(Authority, bool)>>,
    pub enrolments: Mutex<Vec<EnrolRequest>>,
    pub renewals: Mutex<Vec<(RenewRequest, Peer)>>,
    pub reports: mpsc::UnboundedSender<Frame>,
    pub refuses_reports: AtomicBool,
}

pub struct ControlPlane {
    pub desk: Arc<Desk>,
    pub reports: mpsc::UnboundedReceiver<Frame>,
    pub port: u16,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl ControlPlane {
    pub async fn start() -> Self {
        transport::install_provider();
        let (sender, reports) = mpsc::unbounded_channel();
        let desk = Arc::new(Desk {
            installation: InstallationId::random(),
            authority: Authority::new(),
            order_key: SigningKey::generate().unwrap(),
            token: TokenId::random(),
            applier_secret: EnrolmentSecret::random().unwrap(),
            network_secret: EnrolmentSecret::random().unwrap(),
            enrolment_faults: Mutex::default(),
            renewal_faults: Mutex::default(),
            renew_after_ms: Mutex::default(),
            impostors: Mutex::default(),
            enrolments: Mutex::default(),
            renewals: Mutex::default(),
            reports: sender,
            refuses_reports: AtomicBool::new(false),
        });
        let (port, stop, task) = serve(desk.clone(), 0).await;
        Self { desk, reports, port, stop: Some(stop), task }
    }

    /// Gone: nobody listens on its port any more.
    pub async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        soon("the control plane stops", &mut self.task).await.unwrap();
    }

    pub async fn restart(&mut self) {
        let (_, stop, task) = serve(self.desk.clone(), self.port).await;
        (self.stop, self.task) = (Some(stop), task);
    }

    pub fn bundle(&self) -> Bundle {
        Bundle {
            installation: self.desk.installation,
            control_plane: format!("https://127.0.0.1:{}", self.port),
            ca_pem: self.desk.authority.pem.clone(),
            order_key: self.desk.order_key.public(),
            root_key: None,
            rekeys: 0,
            token: self.desk.token.clone(),
            expires_at: UnixMillis::now().plus_ms(60_000),
            network_secret: self.desk.network_secret.clone(),
            applier_secret: self.desk.applier_secret.clone(),
        }
    }

    /// A client with the control plane's own certificate, for this host only.
    pub fn pusher(&self, host: HostId) -> reqwest::Client {
        let own = self.desk.authority.identity(&names::control_plane_uri(self.desk.installation));
        self.client(Some(&own), host)
    }

    pub fn client(&self, identity: Option<&TlsIdentity>, host: HostId) -> reqwest::Client {
        let trust = self.desk.authority.trust().with_uris([names::host_uri(self.desk.installation, host)]);
        let config = client_config(identity, &trust, Names::Unchecked).unwrap();
        http_client(config).timeout(SOON).build().unwrap()
    }

    /// A signed question to this host: the smallest order.
    pub fn ask(&self, host: HostId) -> Frame {
        let now = UnixMillis::now();
        let payload = OrderPayload {
            installation: self.desk.installation,
            epoch: EPOCH,
            host,
            sent_at: now,
            expires_at: now.plus_ms(limit::ORDER_VALIDITY_MS),
            body: Body::Ask(Ask { questions: std::collections::BTreeMap::new() }),
        };
        payload.sign(&self.desk.order_key).unwrap()
    }
}

pub const EPOCH: Epoch = Epoch { counter: 1, id: 7 };

async fn serve(desk: Arc<Desk>, port: u16) -> (u16, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let uri = names::control_plane_uri(desk.installation);
    let identity = desk.authority.identity(&uri);
    let clients = Clients::Optional(desk.authority.trust());
    let tls = Arc::new(ServerTls::new(identity, clients).unwrap());
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel();
    let router = Router::new()
        .route("/v1/enroll", post(enroll))
        .route("/v1/renew", post(renew))
        .route("/v1/reports", post(report))
        .with_state(desk);
    let task = tokio::spawn(async move {
        let limits = Limits { drain_ms_max: 100, ..Limits::default() };
        transport::serve(listener, tls, limits, router, |_| {}, async { drop(stopped.await) }).await.unwrap();
    });
    (port, stop, task)
}

fn issue(desk: &Desk, csr_pem: &str, host: HostId) -> EnrolResponse {
    let now = UnixMillis::now();
    let renew_after_ms = desk.renew_after_ms.lock().unwrap().pop_front().unwrap_or(3_600_000);
    EnrolResponse {
        chain_pem: desk.authority.for_request(csr_pem, &names::host_uri(desk.installation, host)),
        ca_pem: desk.authority.pem.clone(),
        renew_at: now.plus_ms(renew_after_ms),
        expires_at: now.plus_ms(7_200_000),
    }
}

fn fault(faults: &Mutex<VecDeque<u16>>) -> Option<Response> {
    let status = StatusCode::from_u16(faults.lock().unwrap().pop_front()?).unwrap();
    // A good status and no good body: the answer was lost.
    Some((status, "as the test wants it").into_response())
}

async fn enroll(State(desk): State<Arc<Desk>>, body: Bytes) -> Response {
    let request: EnrolRequest = serde_json::from_slice(&body).unwrap();
    assert!(request.network_secret.has_fingerprint(&desk.network_secret.fingerprint()));
    let keys = request.registration.verify(desk.installation, &request.token, &desk.applier_secret).unwrap();
    let response = issue(&desk, &request.csr_pem, keys.host());
    desk.enrolments.lock().unwrap().push(request);
    fault(&desk.enrolment_faults).unwrap_or_else(|| axum::Json(response).into_response())
}

async fn renew(State(desk): State<Arc<Desk>>, peer: Extension<Peer>, body: Bytes) -> Response {
    let request: RenewRequest = serde_json::from_slice(&body).unwrap();
    let host = peer.uris[0].rsplit('/').next().unwrap().parse().unwrap();
    let mut response = issue(&desk, &request.csr_pem, host);
    if let Some((impostor, says_so)) = desk.impostors.lock().unwrap().pop_front() {
        response.chain_pem =
            impostor.for_request(&request.csr_pem, &names::host_uri(desk.installation, host));
        if says_so {
            response.ca_pem.clone_from(&impostor.pem);
        }
    }
    desk.renewals.lock().unwrap().push((request, peer.0));
    fault(&desk.renewal_faults).unwrap_or_else(|| axum::Json(response).into_response())
}

async fn report(State(desk): State<Arc<Desk>>, _peer: Extension<Peer>, body: Bytes) -> Response {
    if desk.refuses_reports.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let frame = Frame::parse(&body, limit::REPORT_BYTES_MAX).unwrap();
    let host = protocol::report::claimed_host(&frame).unwrap();
    let ack = Ack {
        installation: desk.installation,
        epoch: EPOCH,
        host,
        sequence: 1,
        report: frame.digest(),
        acknowledged_at: UnixMillis::now(),
        dead: std::collections::BTreeMap::new(),
    };
    desk.reports.send(frame).unwrap();
    let ack = ack.sign(&desk.order_key).unwrap();
    ([(http::header::CONTENT_TYPE, FRAMES_CONTENT_TYPE)], ack.to_bytes()).into_response()
}

/// The directories of one host.
pub struct HostDirs {
    pub root: tempfile::TempDir,
}

impl HostDirs {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Self { root };
        std::fs::create_dir(dirs.config()).unwrap();
        dirs.write_config("");
        dirs
    }

    pub fn write_config(&self, more: &str) {
        let text = format!(
            "[daemon]\nstate_dir = '{}'\nrun_dir = '{}'\nlisten = \"127.0.0.1:0\"\nsupervisor = \"none\"\n{more}",
            self.root.path().join("state").display(),
            self.root.path().join("run").display(),
        );
        let file = self.config().join("config.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.root.path().join("config")
    }

    pub fn server_state(&self) -> PathBuf {
        self.root.path().join("state/server")
    }

    pub fn socket(&self) -> PathBuf {
        self.root.path().join("run/private/applier.sock")
    }
}

/// The keys of an applier, and its end of the private socket.
pub struct Keys {
    pub report_key: SigningKey,
    pub opening_key: OpeningKey,
    pub anchor: TrustAnchor,
}

impl Keys {
    /// Does what `eso-vm-applier enroll` does.
    pub fn enrol(bundle: &Bundle, dirs: &HostDirs) -> Self {
        let report_key = SigningKey::generate().unwrap();
        let opening_key = OpeningKey::generate().unwrap();
        let registration = Registration::new(bundle, &report_key, opening_key.public()).unwrap();
        std::fs::create_dir_all(dirs.server_state()).unwrap();
        let pending = bundle.pending(registration).to_json().unwrap();
        std::fs::write(dirs.server_state().join("enrolment.json"), &*pending).unwrap();
        Self { report_key, opening_key, anchor: bundle.trust_anchor() }
    }

    pub fn host(&self) -> HostId {
        HostId::of(&self.report_key.public())
    }

    pub fn report(&self, sequence: u64, receipts: Vec<Receipt>) -> Frame {
        let report = Report {
            installation: self.anchor.installation,
            host: self.host(),
            epoch: Some(EPOCH),
            sequence,
            boot_id: "boot".to_owned(),
            taken_at: UnixMillis::now(),
            up_ms: 1,
            acknowledged: None,
            sets: std::collections::BTreeMap::new(),
            digests: std::collections::BTreeMap::new(),
            receipts,
            means: Vec::new(),
            notices: Vec::new(),
        };
        report.sign(&self.report_key).unwrap()
    }

    /// The report that answers these frames, verified as the real applier does.
    pub fn answer(&self, sequence: u64, frames: &[Frame]) -> Frame {
        let receipts = frames
            .iter()
            .map(|frame| match protocol::order::verify(frame, &self.anchor, self.host(), UnixMillis::now()) {
                Ok(order) => Receipt {
                    frame: order.frame(),
                    order: Some(order.identity()),
                    outcome: Outcome::Accepted { again: false },
                },
                Err(error) => Receipt {
                    frame: frame.digest(),
                    order: None,
                    outcome: Outcome::Refused { code: error.code().to_owned(), message: error.to_string() },
                },
            })
            .collect();
        self.report(sequence, receipts)
    }
}

pub struct Applier {
    stream: UnixStream,
    pub hello: ToApplier,
}

impl Applier {
    /// Connects as soon as the socket is there.
    pub async fn connect(dirs: &HostDirs, host: Option<HostId>) -> Self {
        let stream = soon("the private socket", async {
            loop {
                match UnixStream::connect(dirs.socket()).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        let mut applier = Self { stream, hello: ToApplier::Orders { push: 0, frames: Vec::new() } };
        applier.send(&FromApplier::Hello { version: LOCAL_VERSION, host, installation: None }).await;
        applier.hello = applier.receive().await;
        applier
    }

    pub async fn send(&mut self, message: &FromApplier) {
        self.stream.write_all(&message.to_bytes().unwrap()).await.unwrap();
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub async fn receive(&mut self) -> ToApplier {
        soon("a message to the applier", self.try_receive()).await.expect("the connection is open")
    }

    pub async fn try_receive(&mut self) -> Option<ToApplier> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await.ok()?;
        let mut json = vec![0; protocol::local::length(header).unwrap()];
        self.stream.read_exact(&mut json).await.ok()?;
        Some(ToApplier::from_json(&json).unwrap())
    }

    pub async fn receive_orders(&mut self) -> (u64, Vec<Frame>) {
        match self.receive().await {
            ToApplier::Orders { push, frames } => (push, frames),
            other => panic!("expected orders, got {other:?}"),
        }
    }

    pub async fn receive_ack(&mut self) -> Frame {
        match self.receive().await {
            ToApplier::Acknowledged { ack } => ack,
            other => panic!("expected an acknowledgement, got {other:?}"),
        }
    }
}

/// The real binary.
pub struct Server {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    seen: Arc<Mutex<String>>,
}

impl Server {
    pub fn start(dirs: &HostDirs) -> Self {
        Self::start_with(&mut Self::command(dirs))
    }

    pub fn command(dirs: &HostDirs) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eso-vm-server"));
        command.arg("--config").arg(dirs.config()).env_remove("NOTIFY_SOCKET").env("ESO_LOG", "debug");
        command
    }

    pub fn start_with(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        let seen = Arc::new(Mutex::new(String::new()));
        let collected = seen.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                collected.lock().unwrap().extend([line.as_str(), "\n"]);
                let _ = sender.send(line);
            }
        });
        Self { child, lines, seen }
    }

    pub fn output(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    pub async fn line_with(&mut self, text: &str) -> String {
        let found = tokio::time::timeout(SOON, async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        });
        match found.await {
            Ok(Some(line)) => line,
            _ => panic!("no line with {text:?} in:\n{}", self.output()),
        }
    }

    /// Waits until pushes are taken; returns where.
    pub async fn url(&mut self) -> String {
        let line = self.line_with("taking orders").await;
        let port: String =
            line.rsplit("127.0.0.1:").next().unwrap().chars().take_while(char::is_ascii_digit).collect();
        format!("https://127.0.0.1:{port}")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub async fn exit(mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("did not end:\n{}", self.output());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn push(client: &reqwest::Client, url: &str, body: Vec<u8>) -> reqwest::Response {
    let request = client.post(format!("{url}/v1/orders")).header("content-type", FRAMES_CONTENT_TYPE);
    soon("an answer to a push", request.body(body).send()).await.unwrap()
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Control plane, enrolled server, connected applier.
pub struct World {
    pub control_plane: ControlPlane,
    pub dirs: HostDirs,
    pub keys: Keys,
    pub server: Server,
    pub url: String,
    pub applier: Applier,
    pub pusher: reqwest::Client,
}

impl World {
    pub async fn start() -> Self {
        let control_plane = ControlPlane::start().await;
        Self::start_with(control_plane).await
    }

    pub async fn start_with(control_plane: ControlPlane) -> Self {
        let dirs = HostDirs::new();
        let keys = Keys::enrol(&control_plane.bundle(), &dirs);
        let mut server = Server::start(&dirs);
        let url = server.url().await;
        let applier = Applier::connect(&dirs, Some(keys.host())).await;
        let pusher = control_plane.pusher(keys.host());
        Self { control_plane, dirs, keys, server, url, applier, pusher }
    }

    pub async fn push_one(&mut self) -> reqwest::Response {
        let order = self.control_plane.ask(self.keys.host());
        push(&self.pusher, &self.url, order.to_bytes()).await
    }

    /// A push that reaches the applier and comes back.
    pub async fn whole_road(&mut self, sequence: u64) {
        let order = self.control_plane.ask(self.keys.host());
        let (pusher, url, body) = (self.pusher.clone(), self.url.clone(), order.to_bytes());
        let pushing = tokio::spawn(async move { push(&pusher, &url, body).await });
        let (push, frames) = self.applier.receive_orders().await;
        assert_eq!(frames, [order]);
        let report = self.keys.answer(sequence, &frames);
        self.applier.send(&FromApplier::Answer { push, report: report.clone() }).await;
        let answer = pushing.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], FRAMES_CONTENT_TYPE);
        assert_eq!(answer.bytes().await.unwrap(), report.to_bytes());
    }
}
