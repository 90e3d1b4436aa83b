//! Who may not push, and what may not be pushed. Nothing of it reaches the applier.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod world;

use protocol::{FRAMES_CONTENT_TYPE, Frame, limit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use transport::names;
use world::{Authority, World, push, soon};

#[tokio::test]
async fn only_the_control_plane_of_this_installation_may_push() {
    let mut world = World::start().await;
    let (installation, host) = (world.control_plane.desk.installation, world.keys.host());
    let order = world.control_plane.ask(host).to_bytes();
    let foreign = Authority::new();
    let elsewhere = protocol::InstallationId::random();
    let callers = [
        (
            "another host of ours",
            world.control_plane.desk.authority.identity(&names::host_uri(installation, "b")),
        ),
        ("an operator", world.control_plane.desk.authority.identity(&names::operator_uri(installation, "o"))),
        (
            "another installation's control plane",
            world.control_plane.desk.authority.identity(&names::control_plane_uri(elsewhere)),
        ),
        ("a foreign authority", foreign.identity(&names::control_plane_uri(installation))),
    ];
    for (who, identity) in &callers {
        let client = world.control_plane.client(Some(identity), host);
        let request = client.post(format!("{}/v1/orders", world.url)).body(order.clone());
        assert!(soon("an answer", request.send()).await.is_err(), "{who} was let in");
    }
    let nobody = world.control_plane.client(None, host);
    assert_eq!(push(&nobody, &world.url, order).await.status(), 401);
    let health = soon("an answer", nobody.get(format!("{}/v1/health", world.url)).send()).await.unwrap();
    assert_eq!((health.status().as_u16(), health.text().await.unwrap().as_str()), (200, "ok\n"));
    let other = soon("an answer", nobody.get(format!("{}/", world.url)).send()).await.unwrap();
    assert_eq!(other.status(), 404);
    // The applier heard of none of it: the first orders that it sees are these.
    world.whole_road(1).await;
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_before_the_applier_sees_it() {
    let mut world = World::start().await;
    let order = world.control_plane.ask(world.keys.host());
    let one = order.to_bytes();
    let many = Frame::join(std::iter::repeat_n(&order, limit::ORDERS_PER_PUSH_MAX + 1));
    let mut announces_too_much = one.clone();
    announces_too_much[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let cases = [
        ("nothing", Vec::new(), 400),
        ("too many orders", many, 400),
        ("cut short", one[..one.len() - 1].to_vec(), 400),
        ("more than it announces", [one.as_slice(), b"x"].concat(), 400),
        ("a frame beyond every limit", announces_too_much, 400),
        ("too many bytes", vec![0; limit::PUSH_BYTES_MAX + 1], 413),
    ];
    for (what, body, status) in cases {
        let answer = push(&world.pusher, &world.url, body).await;
        assert_eq!(answer.status(), status, "{what}");
        assert!(!answer.text().await.unwrap().is_empty(), "{what}: nothing says why");
    }
    let orders = format!("{}/v1/orders", world.url);
    let plain = world.pusher.post(&orders).body(one.clone()).send().await.unwrap();
    assert_eq!(plain.status(), 415, "no content type");
    let packed = world.pusher.post(&orders).header("content-type", FRAMES_CONTENT_TYPE);
    let packed = packed.header("content-encoding", "gzip").body(one).send().await.unwrap();
    assert_eq!(packed.status(), 415, "compressed");
    world.whole_road(1).await;
}

#[tokio::test]
async fn more_pushes_at_once_than_the_limit_are_told_to_come_back() {
    let mut world = World::start().await;
    let order = world.control_plane.ask(world.keys.host()).to_bytes();
    let mut pushing = Vec::new();
    for _ in 0..limit::PUSHES_AT_ONCE_MAX {
        let (pusher, url, body) = (world.pusher.clone(), world.url.clone(), order.clone());
        pushing.push(tokio::spawn(async move { push(&pusher, &url, body).await.status().as_u16() }));
    }
    let mut taken = Vec::new();
    for _ in 0..limit::PUSHES_AT_ONCE_MAX {
        taken.push(world.applier.receive_orders().await);
    }
    assert_eq!(push(&world.pusher, &world.url, order).await.status(), 429);
    for (push, frames) in taken {
        let report = world.keys.answer(push + 1, &frames);
        world.applier.send(&protocol::local::FromApplier::Answer { push, report }).await;
    }
    for one in pushing {
        assert_eq!(one.await.unwrap(), 200);
    }
    world.whole_road(100).await;
}

#[tokio::test]
async fn plain_bytes_and_half_open_connections_keep_nobody_else_out() {
    let mut world = World::start().await;
    let address = world.url.strip_prefix("https://").unwrap().to_owned();
    let mut silent = Vec::new();
    for _ in 0..limit::HOST_CONNECTIONS_MAX / 2 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    let mut plain = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end of a plain connection", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "answered without TLS");
    world.whole_road(1).await;
}

/// Slow headers, half a body, silence after the handshake: pushes go on, and it ends by itself. (How the longer limits
/// end is shown where they are short, in `transport`.)
#[tokio::test]
async fn slow_requests_keep_no_push_waiting_and_end_by_themselves() {
    let mut world = World::start().await;
    let address = world.url.strip_prefix("https://").unwrap().to_owned();
    let installation = world.control_plane.desk.installation;
    let trust = world.control_plane.desk.authority.trust();
    let trust = trust.with_uris([names::host_uri(installation, world.keys.host())]);
    let own = world.control_plane.desk.authority.identity(&names::control_plane_uri(installation));
    let mut slow = Vec::new();
    for (identity, words) in [
        (None, "GET /v1/health HTTP/1.1\r\nHost: x\r\nX-A: ".to_owned()),
        (None, String::new()),
        (
            Some(&own),
            format!(
                "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: {FRAMES_CONTENT_TYPE}\r\nContent-Length: 900\r\n\r\nhalf"
            ),
        ),
    ] {
        let mut config = transport::client_config(identity, &trust, transport::Names::Unchecked).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    world.whole_road(1).await;
    let ends = std::time::Duration::from_secs(90);
    let mut headers = slow.swap_remove(0);
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(ends, headers.read_to_end(&mut rest)).await.expect("it ends by itself");
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    world.whole_road(2).await;
}
