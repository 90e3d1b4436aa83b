//! Who gets in, who does not, and what ends a connection. Real sockets on port 0, certificates made here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension};
use axum::routing::{get, post};
use axum::{Router, body::Bytes};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use transport::{
    Clients, Connection, Limits, Names, Peer, ServerTls, TlsIdentity, Trust, client_config, http_client,
};

const SOON: Duration = Duration::from_secs(20);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, uri: &str) -> TlsIdentity {
        self.issue_until(uri, rcgen::date_time_ymd(2100, 1, 1))
    }

    fn issue_until(&self, uri: &str, end: time::OffsetDateTime) -> TlsIdentity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = end;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap()
    }

    fn trust(&self) -> Trust {
        Trust::from_pem(&self.pem).unwrap()
    }
}

struct Server {
    address: SocketAddr,
    tls: Arc<ServerTls>,
    begun: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(identity: TlsIdentity, clients: Clients, limits: Limits) -> Self {
        let tls = Arc::new(ServerTls::new(identity, clients).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let begun = Arc::new(Notify::new());
        let router = Router::new()
            .route("/who", get(who))
            .route("/slow", get(slow))
            .layer(Extension(begun.clone()))
            .route("/never", get(std::future::pending::<()>))
            .route("/body", post(async |body: Bytes| body.len().to_string()))
            .route(
                "/big",
                post(async |body: Bytes| body.len().to_string()).layer(DefaultBodyLimit::max(4096)),
            );
        let serving = tls.clone();
        let task = tokio::spawn(async move {
            let ready = |address| ready.send(address).unwrap();
            let stop = async { drop(stopped.await) };
            transport::serve(listener, serving, limits, router, ready, stop).await.unwrap();
        });
        let address = timeout(SOON, is_ready).await.unwrap().unwrap();
        Self { address, tls, begun, stop: Some(stop), task }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(SOON, self.task).await.unwrap().unwrap();
    }
}

async fn who(connection: Extension<Connection>, peer: Option<Extension<Peer>>) -> String {
    let uri = peer.and_then(|peer| peer.uris.first().cloned());
    format!("{} {:?}", uri.as_deref().unwrap_or("nobody"), connection.key_exchange.unwrap())
}

async fn slow(begun: Extension<Arc<Notify>>) {
    begun.notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
}

fn client(identity: Option<&TlsIdentity>, trust: &Trust, names: Names) -> reqwest::Client {
    http_client(client_config(identity, trust, names).unwrap()).timeout(SOON).build().unwrap()
}

async fn text(client: &reqwest::Client, url: String) -> Result<String, reqwest::Error> {
    client.get(url).send().await?.error_for_status()?.text().await
}

#[tokio::test]
async fn every_kind_of_client_meets_every_kind_of_listener() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let foreign = Authority::new("foreign");
    let host = ours.issue("spiffe://test/host/a");
    let stranger = foreign.issue("spiffe://test/host/a");
    let pinned = ours.issue("spiffe://test/host/b");
    let pin = pinned.as_peer().unwrap().spki;

    let name = "spiffe://test/host/b".to_owned();
    let listeners = [
        // (listener, nobody, our certificate, a foreign one, the pinned one)
        (Clients::Anonymous, true, true, true, true),
        (Clients::Optional(ours.trust()), true, true, false, true),
        (Clients::Required(ours.trust()), false, true, false, true),
        (Clients::Optional(ours.trust().with_pins([pin])), true, false, false, true),
        (Clients::Required(ours.trust().with_pins([pin])), false, false, false, true),
        (Clients::Required(ours.trust().with_uris([name])), false, false, false, true),
    ];
    for (clients, nobody, known, foreigner, exact) in listeners {
        let described = format!("{clients:?}");
        let asks = !matches!(clients, Clients::Anonymous);
        let server = Server::start(ours.issue("spiffe://test/server"), clients, Limits::default()).await;
        let callers =
            [(None, nobody), (Some(&host), known), (Some(&stranger), foreigner), (Some(&pinned), exact)];
        for (identity, let_in) in callers {
            let client = client(identity, &ours.trust(), Names::Checked);
            let answer = text(&client, server.url("/who")).await;
            assert_eq!(answer.is_ok(), let_in, "{described}: {identity:?}: {answer:?}");
            if let Ok(answer) = answer {
                let expected =
                    identity.filter(|_| asks).map(|identity| identity.as_peer().unwrap().uris[0].clone());
                assert!(answer.starts_with(expected.as_deref().unwrap_or("nobody")), "{answer}");
            }
        }
        // Without TLS there is no answer at all, whatever the listener asks for.
        let mut plain = TcpStream::connect(server.address).await.unwrap();
        plain.write_all(b"GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(SOON, plain.read_to_end(&mut answer)).await.expect("closed soon");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_is_who_it_should_be() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let identity = ours.issue("spiffe://test/host/a");
    let pin = identity.as_peer().unwrap().spki;
    let other = ours.issue("spiffe://test/host/b").as_peer().unwrap().spki;
    let server = Server::start(identity, Clients::Anonymous, Limits::default()).await;

    let by_address = format!("https://127.0.0.1:{}/who", server.address.port());
    let a = || ["spiffe://test/host/a".to_owned()];
    let b = || ["spiffe://test/host/b".to_owned()];
    let cases = [
        ("name", ours.trust(), Names::Checked, server.url("/who"), true),
        ("another name", ours.trust(), Names::Checked, by_address.clone(), false),
        ("foreign authority", Authority::new("foreign").trust(), Names::Checked, server.url("/who"), false),
        ("key", ours.trust().with_pins([pin]), Names::Unchecked, by_address.clone(), true),
        ("another key", ours.trust().with_pins([other]), Names::Unchecked, by_address.clone(), false),
        ("identity", ours.trust().with_uris(a()), Names::Unchecked, by_address.clone(), true),
        ("another identity", ours.trust().with_uris(b()), Names::Unchecked, by_address, false),
    ];
    for (what, trust, names, url, let_in) in cases {
        let answer = text(&client(None, &trust, names), url).await;
        assert_eq!(answer.is_ok(), let_in, "{what}: {answer:?}");
    }
    assert!(client_config(None, &ours.trust(), Names::Unchecked).is_err(), "any server would do");
    server.stop().await;
}

#[tokio::test]
async fn the_post_quantum_exchange_is_negotiated() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Anonymous, Limits::default()).await;
    let answer = text(&client(None, &ours.trust(), Names::Checked), server.url("/who")).await.unwrap();
    assert_eq!(answer, "nobody X25519MLKEM768");
    server.stop().await;
}

#[tokio::test]
async fn older_tls_is_refused() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Anonymous, Limits::default()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pem(&ours.pem)).unwrap();
    let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let error = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await;
    assert!(error.unwrap_err().to_string().contains("ProtocolVersion"));
    server.stop().await;
}

fn pem(text: &str) -> rustls_pki_types::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(text.as_bytes()).unwrap()
}

/// A client that is eager to resume meets a server that gives it nothing to resume with.
#[tokio::test]
async fn nothing_is_resumed() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Anonymous, Limits::default()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pem(&ours.pem)).unwrap();
    // rustls's default for clients: an in-memory store of sessions.
    let eager = Arc::new(
        rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth(),
    );
    for round in 0..3 {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let connector = TlsConnector::from(eager.clone());
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        stream.write_all(b"GET /who HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full), "round {round}");
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
    server.stop().await;
}

async fn raw(server: &Server, identity: Option<&TlsIdentity>, trust: &Trust, alpn: &[u8]) -> RawStream {
    let mut config = client_config(identity, trust, Names::Checked).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(server.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

type RawStream = tokio_rustls::client::TlsStream<TcpStream>;

async fn ask(stream: &mut RawStream) -> std::io::Result<usize> {
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).await?;
    Ok(if answer[..read].starts_with(b"HTTP/1.1 200") { read } else { 0 })
}

async fn is_closed(stream: &mut RawStream) {
    let mut byte = [0; 1];
    match timeout(SOON, stream.read(&mut byte)).await.expect("the connection is closed soon") {
        Ok(0) | Err(_) => {}
        Ok(read) => assert_eq!(read, 0, "the server still talks"),
    }
}

#[tokio::test]
async fn connections_end_when_the_trust_changes_and_not_when_our_certificate_does() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let next = Authority::new("next");
    let host = ours.issue("spiffe://test/host/a");
    let server =
        Server::start(ours.issue("spiffe://test/s"), Clients::Required(ours.trust()), Limits::default())
            .await;
    let mut open = raw(&server, Some(&host), &ours.trust(), b"http/1.1").await;
    assert!(ask(&mut open).await.unwrap() > 0);

    let renewed = ours.issue("spiffe://test/s");
    let renewed_key = renewed.as_peer().unwrap().spki;
    server.tls.replace_identity(renewed).unwrap();
    assert!(ask(&mut open).await.unwrap() > 0, "a renewal of ours disturbs nobody");
    let pinned = ours.trust().with_pins([renewed_key]);
    let answer = text(&client(Some(&host), &pinned, Names::Checked), server.url("/who")).await;
    assert!(answer.is_ok(), "new connections see the new certificate: {answer:?}");

    server.tls.replace_clients(Clients::Required(next.trust())).unwrap();
    is_closed(&mut open).await;
    let again = text(&client(Some(&host), &ours.trust(), Names::Checked), server.url("/who")).await;
    assert!(again.is_err(), "the old authority's certificate is worth nothing");
    let moved = next.issue("spiffe://test/host/a");
    let answer = text(&client(Some(&moved), &ours.trust(), Names::Checked), server.url("/who")).await;
    assert!(answer.is_ok(), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_opened_it() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let server =
        Server::start(ours.issue("spiffe://test/s"), Clients::Required(ours.trust()), Limits::default())
            .await;
    let end = time::OffsetDateTime::now_utc() + Duration::from_secs(3);
    let host = ours.issue_until("spiffe://test/host/a", end);
    let mut open = raw(&server, Some(&host), &ours.trust(), b"http/1.1").await;
    assert!(ask(&mut open).await.unwrap() > 0);
    is_closed(&mut open).await;
    assert!(time::OffsetDateTime::now_utc() >= end - Duration::from_secs(2));
    server.stop().await;
}

#[tokio::test]
async fn strangers_cannot_hold_on_to_anything() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let limits = Limits {
        connections_max: 4,
        handshake_ms_max: 300,
        header_ms_max: 300,
        idle_anonymous_ms_max: 300,
        request_ms_max: 300,
        body_bytes_max: 1000,
        ..Limits::default()
    };
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Optional(ours.trust()), limits).await;

    // Opens a connection and says nothing.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let closed = timeout(SOON, silent.read(&mut [0; 1])).await.expect("closed soon");
    assert!(matches!(closed, Ok(0) | Err(_)));
    // Shakes hands and says nothing, in both protocols.
    for alpn in [b"http/1.1".as_slice(), b"h2"] {
        let mut idle = raw(&server, None, &ours.trust(), alpn).await;
        let mut rest = Vec::new();
        let _ = timeout(SOON, idle.read_to_end(&mut rest)).await.expect("closed soon");
    }
    // Sends headers for ever.
    let mut slow = raw(&server, None, &ours.trust(), b"http/1.1").await;
    slow.write_all(b"GET /who HTTP/1.1\r\nX-A: ").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(SOON, slow.read_to_end(&mut rest)).await.expect("closed soon");

    let client = client(None, &ours.trust(), Names::Checked);
    // Promises a body and does not send it all.
    let mut half = raw(&server, None, &ours.trust(), b"http/1.1").await;
    half.write_all(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nhalf")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = timeout(SOON, half.read_to_end(&mut rest)).await.expect("closed soon");
    assert!(rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    // Asks for what never comes.
    let never = client.get(server.url("/never")).send().await.unwrap();
    assert_eq!(never.status(), 408);
    // Sends too much; a route of its own limit takes more.
    let huge = client.post(server.url("/body")).body(vec![0; 1001]).send().await.unwrap();
    assert_eq!(huge.status(), 413);
    let big = client.post(server.url("/big")).body(vec![0; 1001]).send().await.unwrap();
    assert_eq!(big.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_its_room_comes_back() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let limits = Limits { connections_max: 4, ..Limits::default() };
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Anonymous, limits).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(raw(&server, None, &ours.trust(), b"http/1.1").await);
    }
    let client = client(None, &ours.trust(), Names::Checked);
    assert!(text(&client, server.url("/who")).await.is_err());
    for stream in &mut open {
        assert!(ask(stream).await.unwrap() > 0, "those inside are not disturbed");
    }
    drop(open);
    let room = async { while text(&client, server.url("/who")).await.is_err() {} };
    timeout(SOON, room).await.expect("room comes back");
    server.stop().await;
}

#[tokio::test]
async fn stopping_lets_requests_finish() {
    transport::install_provider();
    let ours = Authority::new("ours");
    let server = Server::start(ours.issue("spiffe://test/s"), Clients::Anonymous, Limits::default()).await;
    let client = client(None, &ours.trust(), Names::Checked);
    let url = server.url("/slow");
    text(&client, server.url("/who")).await.unwrap();
    let slow = tokio::spawn(async move { text(&client, url).await });
    timeout(SOON, server.begun.notified()).await.unwrap();
    let address = server.address;
    server.stop().await;
    assert!(slow.await.unwrap().is_ok());
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
}
