//! The floor of a push: rustls and hyper exchanging as many bytes, the server in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::desk::{Authority, Desk};
use crate::process::{self, Running};

/// The header by which a client says how many bytes it wants back.
const WANTED: &str = "x-answer-bytes";

/// The bare server, running, and how to speak with it.
pub struct BareServer {
    /// The process.
    pub process: Running,
    address: String,
    client: BareClient,
    _files: tempfile::TempDir,
}

/// Who connects.
pub struct BareClient {
    tls: Arc<ClientConfig>,
}

/// One open connection to it.
pub struct BareConnection {
    requests: http2::SendRequest<Full<Bytes>>,
}

impl BareServer {
    /// Starts it with certificates of its own; clients must show one too.
    pub fn start() -> anyhow::Result<Self> {
        let authority = Authority::new()?;
        let (chain, key) = authority.issue("spiffe://bench/server")?;
        let files = tempfile::tempdir()?;
        for (name, text) in [("ca.pem", &authority.pem), ("chain.pem", &chain), ("key.pem", &key)] {
            std::fs::write(files.path().join(name), text)?;
        }
        let mut child = Command::new(process::path("bench-bare")?)
            .arg(files.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("it has a standard output")?;
        let process = Running::of(child);
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim().to_owned();
        ensure!(!address.is_empty(), "the bare server did not start");
        let client = BareClient::new(&authority, "spiffe://bench/client")?;
        Ok(Self { process, address, client, _files: files })
    }

    /// A new connection, handshake and all.
    pub async fn connect(&self) -> anyhow::Result<BareConnection> {
        self.client.connect(&self.address).await
    }
}

impl BareClient {
    /// One with this identity, who trusts whom the authority signed for.
    pub fn new(authority: &Authority, uri: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes())?)?;
        let (chain, key) = authority.issue(uri)?;
        let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(transport::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { tls: Arc::new(config) })
    }

    /// As the control plane of an installation.
    pub fn of(desk: &Desk) -> anyhow::Result<Self> {
        Self::new(&desk.authority, &transport::names::control_plane_uri(desk.installation))
    }

    /// A new connection, handshake and all.
    pub async fn connect(&self, address: &str) -> anyhow::Result<BareConnection> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        let (requests, connection) = http.handshake(TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            // It ends with its last user.
            let _ = connection.await;
        });
        Ok(BareConnection { requests })
    }
}

impl BareConnection {
    /// Sends these bytes, and reads as many as are wanted.
    pub async fn exchange(&mut self, body: Bytes, wanted: usize) -> anyhow::Result<()> {
        let answer = self.send(body, wanted).await?;
        ensure!(answer.len() == wanted, "{} bytes came back instead of {wanted}", answer.len());
        Ok(())
    }

    /// Sends these bytes, and reads what comes back.
    pub async fn ask(&mut self, body: Bytes) -> anyhow::Result<Bytes> {
        self.send(body, 0).await
    }

    async fn send(&mut self, body: Bytes, wanted: usize) -> anyhow::Result<Bytes> {
        let request = Request::post("https://127.0.0.1/v1/orders")
            .header(header::CONTENT_TYPE, protocol::FRAMES_CONTENT_TYPE)
            .header(WANTED, wanted)
            .body(Full::new(body))?;
        self.requests.ready().await?;
        let answer = self.requests.send_request(request).await?;
        ensure!(answer.status().is_success(), "the answer is {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    }
}
