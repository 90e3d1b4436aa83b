//! What somebody without any identity can make a real control plane spend: little, for a short time, and nobody else
//! waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of the shared world")]

mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use transport::{Names, Trust, client_config};
use world::World;

/// The limits of the listener are ten seconds for a handshake and for headers, thirty for a request.
const CLOSED_BY: Duration = Duration::from_mins(1);

async fn plain(world: &World) -> TcpStream {
    TcpStream::connect(world.ready.listen).await.unwrap()
}

async fn shaken(world: &World) -> TlsStream<TcpStream> {
    let mut config = client_config(None, &Trust::from_pem(&world.ca()).unwrap(), Names::Checked).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), plain(world).await).await.unwrap()
}

/// Everything until the other end closes.
async fn until_closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(CLOSED_BY, stream.read_to_end(&mut rest)).await;
    let _ = read.expect("the connection is closed in time");
    rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_half_open_and_many_connections_are_closed_and_nobody_else_waits() {
    let world = World::start().await;
    let admin = world.admin();
    let (mut silent, mut slow, mut halves) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        silent.push(plain(&world).await);
    }
    for _ in 0..20 {
        let mut headers = shaken(&world).await;
        headers.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX-A: ").await.unwrap();
        slow.push(headers);
        // What needs an identity is refused before its body is waited for, so this asks what takes a body of anybody.
        let mut half = shaken(&world).await;
        let head = "POST /v1/enroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        half.write_all(format!("{head}Content-Length: 900\r\n\r\n{{\"half\"").as_bytes()).await.unwrap();
        halves.push(half);
    }
    // In plain text, and with noise where a handshake should be.
    let mut spoken = plain(&world).await;
    spoken.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(!until_closed(spoken).await.starts_with(b"HTTP"), "answered without TLS");
    let mut noise = plain(&world).await;
    noise.write_all(&[0x16, 3, 1, 0xff, 0xff]).await.unwrap();

    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(admin.get("/v1/status").await.status(), 200);
        assert_eq!(world.anybody().get("/healthz").await.status(), 200);
        assert!(began.elapsed() < Duration::from_secs(10), "others wait");
    }
    for stream in silent.into_iter().chain([noise]) {
        until_closed(stream).await;
    }
    for stream in slow {
        until_closed(stream).await;
    }
    // Half a body may take as long as a request may; how it ends is shown where the limit is short, in `transport`.
    drop(halves);
    assert_eq!(admin.get("/v1/status").await.status(), 200);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_deep_and_compressed_requests_of_strangers_are_refused_unread() {
    let world = World::start().await;
    let anybody = world.anybody();
    let deep = "[".repeat(60_000);
    for (what, body, expected) in [
        ("huge", vec![b' '; 5 << 20], 413),
        ("deep", deep.clone().into_bytes(), 422),
        ("no JSON", b"{".to_vec(), 422),
    ] {
        let request = anybody.request(reqwest::Method::POST, "/v1/enroll");
        let response = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(response.status(), expected, "{what}");
    }
    let request =
        anybody.request(reqwest::Method::POST, "/v1/enroll").header("content-type", "application/json");
    let packed =
        request.header("content-encoding", "gzip").body(vec![0x1f, 0x8b, 8, 0]).send().await.unwrap();
    assert!(packed.status().is_client_error(), "compressed: {}", packed.status());
    // Without an identity nothing of a body is even looked at.
    let request = anybody.request(reqwest::Method::POST, "/v1/credentials/orders/import");
    let response = request.header("content-type", "application/json").body(deep).send().await.unwrap();
    assert_eq!(response.status(), 401);
    // Headers beyond the limit, and as many of them.
    let long = anybody.request(reqwest::Method::GET, "/healthz").header("x-a", "a".repeat(64 * 1024)).send();
    assert!(long.await.map_or(true, |response| response.status().is_client_error()));
    assert_eq!(anybody.get("/healthz").await.status(), 200);
    world.stop().await;
}
