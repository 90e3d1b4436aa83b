//! Pushes over real TLS and real sockets, to hosts that behave and to hosts that do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::routing::post;
use fleet::{DialError, Fleet, HostAddress, Notices, PushError, Reachability, Settings};
use http::StatusCode;
use lifecycle::Epoch;
use protocol::order::{Ask, Body, OrderPayload};
use protocol::report::Report;
use protocol::{Frame, HostId, InstallationId, SigningKey, UnixMillis, limit};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use transport::{Clients, Limits, Peer, ServerTls, TlsIdentity, Trust, names};

const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

struct Installation {
    id: InstallationId,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    order_key: SigningKey,
}

impl Installation {
    fn new() -> Self {
        transport::install_provider();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let order_key = SigningKey::generate().unwrap();
        Self { id: InstallationId::random(), issuer: Issuer::new(params, key), ca_pem, order_key }
    }

    fn identity(&self, uri: &str) -> TlsIdentity {
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap()
    }

    fn trust(&self) -> Trust {
        Trust::from_pem(&self.ca_pem).unwrap()
    }

    fn fleet(&self, settings: Settings) -> (Fleet, Notices) {
        let own = self.identity(&names::control_plane_uri(self.id));
        Fleet::new(self.id, own, self.trust(), settings)
    }

    fn order(&self, host: HostId) -> Frame {
        let now = UnixMillis::now();
        let payload = OrderPayload {
            installation: self.id,
            epoch: Epoch { counter: 1, id: 1 },
            host,
            sent_at: now,
            expires_at: now.plus_ms(1000),
            body: Body::Ask(Ask { questions: std::collections::BTreeMap::new() }),
        };
        payload.sign(&self.order_key).unwrap()
    }
}

/// Short enough for tests.
fn settings() -> Settings {
    Settings {
        dial_ms_max: 2_000,
        push_ms_max: 2_000,
        backoff_first_ms: 20,
        backoff_ms_max: 100,
        ping_every_ms: 100,
        ping_answer_ms_max: 200,
        ..Settings::default()
    }
}

/// How a host of the tests answers.
#[derive(Clone)]
enum Manner {
    Good,
    Silent,
    Status(StatusCode),
    Garbage,
    Huge,
    TwoFrames,
    /// Answers once as many requests are there at the same time.
    Together(Arc<Gathering>),
}

struct Gathering {
    here: AtomicUsize,
    most: AtomicUsize,
    all: Notify,
    wanted: usize,
}

#[derive(Clone)]
struct Desk {
    manner: Manner,
    report: Frame,
    pushes: Arc<AtomicU64>,
}

struct Host {
    id: HostId,
    identity: TlsIdentity,
    desk: Desk,
    trust: Trust,
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Host {
    async fn start(installation: &Installation, manner: Manner) -> Self {
        let report_key = SigningKey::generate().unwrap();
        let id = HostId::of(&report_key.public());
        let report = Report {
            installation: installation.id,
            host: id,
            epoch: None,
            sequence: 1,
            boot_id: String::new(),
            taken_at: UnixMillis::now(),
            up_ms: 0,
            acknowledged: None,
            sets: std::collections::BTreeMap::new(),
            digests: std::collections::BTreeMap::new(),
            receipts: Vec::new(),
            means: Vec::new(),
            notices: Vec::new(),
        };
        let desk =
            Desk { manner, report: report.sign(&report_key).unwrap(), pushes: Arc::new(AtomicU64::new(0)) };
        let identity = installation.identity(&names::host_uri(installation.id, id));
        let trust = installation.trust().with_uris([names::control_plane_uri(installation.id)]);
        let address = "127.0.0.1:0".parse().unwrap();
        let mut host = Self { id, identity, desk, trust, address, running: None };
        host.run().await;
        host
    }

    /// On the same port as before, if there was one.
    async fn run(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let tls =
            Arc::new(ServerTls::new(self.identity.clone(), Clients::Required(self.trust.clone())).unwrap());
        let router = Router::new().route("/v1/orders", post(orders)).with_state(self.desk.clone());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let limits = Limits { drain_ms_max: 50, ..Limits::default() };
            transport::serve(listener, tls, limits, router, |_| {}, async { drop(stopped.await) })
                .await
                .unwrap();
        });
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        let _ = stop.send(());
        soon("a host stops", task).await.unwrap();
    }

    fn at(&self, address: SocketAddr) -> HostAddress {
        let spki = self.identity.as_peer().unwrap().spki;
        HostAddress { host: self.id, address: address.to_string(), spki }
    }

    fn address(&self) -> HostAddress {
        self.at(self.address)
    }

    fn pushes(&self) -> u64 {
        self.desk.pushes.load(Ordering::SeqCst)
    }
}

async fn orders(State(desk): State<Desk>, _peer: Extension<Peer>, body: Bytes) -> (StatusCode, Vec<u8>) {
    assert!(!Frame::split(&body, limit::ORDER_BYTES_MAX, limit::ORDERS_PER_PUSH_MAX).unwrap().is_empty());
    desk.pushes.fetch_add(1, Ordering::SeqCst);
    let good = desk.report.to_bytes();
    match desk.manner {
        Manner::Good => (StatusCode::OK, good),
        Manner::Silent => std::future::pending().await,
        Manner::Status(status) => (status, b"not now\nplease".to_vec()),
        Manner::Garbage => (StatusCode::OK, b"garbage".to_vec()),
        Manner::Huge => (StatusCode::OK, vec![0; limit::REPORT_BYTES_MAX + 1000]),
        Manner::TwoFrames => (StatusCode::OK, good.repeat(2)),
        Manner::Together(gathering) => {
            let here = gathering.here.fetch_add(1, Ordering::SeqCst) + 1;
            gathering.most.fetch_max(here, Ordering::SeqCst);
            if here == gathering.wanted {
                gathering.all.notify_waiters();
            } else {
                let _ = tokio::time::timeout(Duration::from_millis(300), gathering.all.notified()).await;
            }
            gathering.here.fetch_sub(1, Ordering::SeqCst);
            (StatusCode::OK, good)
        }
    }
}

/// Between fleet and host: passes bytes on, or swallows them without a word.
struct Proxy {
    address: SocketAddr,
    swallow: watch::Sender<bool>,
    accepted: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let swallow = watch::Sender::new(false);
        let accepted = Arc::new(AtomicU64::new(0));
        let (swallowing, count) = (swallow.clone(), accepted.clone());
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let far = TcpStream::connect(to).await.unwrap();
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(pass(near_in, far_out, swallowing.subscribe()));
                tokio::spawn(pass(far_in, near_out, swallowing.subscribe()));
            }
        });
        Self { address, swallow, accepted, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut swallow: watch::Receiver<bool>,
) {
    use tokio::io::AsyncReadExt as _;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        // Bytes that were swallowed are lost for good: this connection is dead from then on.
        if *swallow.borrow_and_update() {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn notice(notices: &mut Notices, host: HostId, wanted: fn(&Reachability) -> bool) -> Reachability {
    soon("a notice", async {
        loop {
            let notice = notices.next().await;
            if notice.host == host && wanted(&notice.reachability) {
                return notice.reachability;
            }
        }
    })
    .await
}

const fn reachable(reachability: &Reachability) -> bool {
    matches!(reachability, Reachability::Reachable { .. })
}

const fn unreachable(reachability: &Reachability) -> bool {
    matches!(reachability, Reachability::Unreachable { .. })
}

#[tokio::test]
async fn a_push_brings_the_report_and_the_connection_is_kept() {
    let installation = Installation::new();
    let host = Host::start(&installation, Manner::Good).await;
    let proxy = Proxy::start(host.address).await;
    let (fleet, mut notices) = installation.fleet(settings());
    let address = host.at(proxy.address);
    for _ in 0..10 {
        let report = fleet.push(&address, &[installation.order(host.id)]).await.unwrap();
        assert_eq!(report, host.desk.report);
    }
    notice(&mut notices, host.id, reachable).await;
    assert_eq!(proxy.accepted.load(Ordering::SeqCst), 1, "one connection for ten pushes");
    assert!(matches!(fleet.reachability(&host.id), Some(Reachability::Reachable { .. })));
    fleet.forget(&host.id);
    assert!(fleet.reachability(&host.id).is_none());
}

#[tokio::test]
async fn every_bad_answer_is_told_apart() {
    let installation = Installation::new();
    let (fleet, _notices) = installation.fleet(settings());
    let cases = [
        (Manner::Garbage, "bad_answer"),
        (Manner::Huge, "bad_answer"),
        (Manner::TwoFrames, "bad_answer"),
        (Manner::Status(StatusCode::SERVICE_UNAVAILABLE), "busy"),
        (Manner::Status(StatusCode::TOO_MANY_REQUESTS), "busy"),
        (Manner::Status(StatusCode::PAYLOAD_TOO_LARGE), "refused"),
        (Manner::Silent, "deadline"),
    ];
    for (manner, code) in cases {
        let host = Host::start(&installation, manner).await;
        let error = fleet.push(&host.address(), &[installation.order(host.id)]).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.to_string().contains('\n'), "what a host says stays on its line: {error}");
        assert_eq!(host.pushes(), 1);
    }
    let host = Host::start(&installation, Manner::Good).await;
    let many = vec![installation.order(host.id); limit::ORDERS_PER_PUSH_MAX + 1];
    let error = fleet.push(&host.address(), &many).await.unwrap_err();
    assert_eq!(error.code(), "too_large");
    assert_eq!(host.pushes(), 0);
    let cut = fleet::batches(many);
    assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [limit::ORDERS_PER_PUSH_MAX, 1]);
}

#[tokio::test]
async fn a_host_is_its_name_and_its_key_wherever_it_is() {
    let installation = Installation::new();
    let (good, other) =
        (Host::start(&installation, Manner::Good).await, Host::start(&installation, Manner::Good).await);
    let same_name = Host {
        id: good.id,
        identity: installation.identity(&names::host_uri(installation.id, good.id)),
        desk: good.desk.clone(),
        trust: good.trust.clone(),
        address: "127.0.0.1:0".parse().unwrap(),
        running: None,
    };
    let (fleet, _notices) = installation.fleet(settings());
    let mut impostor = same_name;
    impostor.run().await;
    let order = installation.order(good.id);
    let refused = async |address: HostAddress| match fleet.push(&address, std::slice::from_ref(&order)).await
    {
        Err(PushError::Unreachable { error, .. }) => matches!(*error, DialError::Handshake(_)),
        other => panic!("{other:?}"),
    };
    assert!(refused(good.at(other.address)).await, "another host of ours");
    assert!(refused(good.at(impostor.address)).await, "the same name with another key");
    let elsewhere = Installation::new();
    let foreign = Host::start(&elsewhere, Manner::Good).await;
    assert!(refused(foreign.address()).await, "another authority");
    assert_eq!(good.pushes() + other.pushes() + foreign.pushes(), 0);
    fleet.push(&good.address(), &[order]).await.expect("the right one, after a wrong address");
}

#[tokio::test]
async fn a_host_that_returns_is_noticed_and_pushed_to() {
    let installation = Installation::new();
    let mut host = Host::start(&installation, Manner::Good).await;
    let (fleet, mut notices) = installation.fleet(settings());
    fleet.keep(&host.address());
    notice(&mut notices, host.id, reachable).await;
    host.stop().await;
    let down = notice(&mut notices, host.id, unreachable).await;
    let Reachability::Unreachable { error, .. } = down else { unreachable!() };
    assert!(matches!(*error, DialError::Connect(_) | DialError::Closed), "{error}");
    host.run().await;
    notice(&mut notices, host.id, reachable).await;
    fleet.push(&host.address(), &[installation.order(host.id)]).await.unwrap();
}

#[tokio::test]
async fn a_nudge_ends_the_backoff_and_a_push_does_not_wait_for_it() {
    let installation = Installation::new();
    let mut host = Host::start(&installation, Manner::Good).await;
    let long = Settings { backoff_first_ms: 3_600_000, backoff_ms_max: 3_600_000, ..settings() };
    let (fleet, mut notices) = installation.fleet(long);
    host.stop().await;
    fleet.keep(&host.address());
    notice(&mut notices, host.id, unreachable).await;
    let error = fleet.push(&host.address(), &[installation.order(host.id)]).await.unwrap_err();
    assert_eq!(error.code(), "unreachable");
    host.run().await;
    fleet.nudge(&host.id);
    notice(&mut notices, host.id, reachable).await;
}

#[tokio::test]
async fn a_black_hole_costs_its_deadline_and_nobody_elses() {
    let installation = Installation::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = Host::start(&installation, Manner::Good).await;
    let (fleet, _notices) =
        installation.fleet(Settings { dial_ms_max: 1_500, push_ms_max: 10_000, ..settings() });
    let lost = HostAddress { host: HostId([1; 32]), ..good.at(listener.local_addr().unwrap()) };
    let (order, right) = ([installation.order(good.id)], good.address());
    let (swallowed, answered) = tokio::join!(fleet.push(&lost, &order), fleet.push(&right, &order));
    assert!(answered.is_ok());
    let Err(PushError::Unreachable { error, .. }) = swallowed else { panic!("{swallowed:?}") };
    assert!(matches!(*error, DialError::Time(1_500)), "{error}");
}

#[tokio::test]
async fn a_half_open_connection_is_found_out_without_a_push() {
    let installation = Installation::new();
    let host = Host::start(&installation, Manner::Good).await;
    let proxy = Proxy::start(host.address).await;
    let (fleet, mut notices) = installation.fleet(Settings { dial_ms_max: 300, ..settings() });
    let address = host.at(proxy.address);
    fleet.keep(&address);
    notice(&mut notices, host.id, reachable).await;
    proxy.swallow.send_replace(true);
    notice(&mut notices, host.id, unreachable).await;
    proxy.swallow.send_replace(false);
    notice(&mut notices, host.id, reachable).await;
    fleet.push(&address, &[installation.order(host.id)]).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_swallowed_a_push_is_not_used_again() {
    let installation = Installation::new();
    let host = Host::start(&installation, Manner::Good).await;
    let proxy = Proxy::start(host.address).await;
    // No pings: only the push can find out.
    let patient = Settings { ping_every_ms: 3_600_000, push_ms_max: 300, ..settings() };
    let (fleet, mut notices) = installation.fleet(patient);
    let address = host.at(proxy.address);
    fleet.keep(&address);
    notice(&mut notices, host.id, reachable).await;
    proxy.swallow.send_replace(true);
    let error = fleet.push(&address, &[installation.order(host.id)]).await.unwrap_err();
    assert!(error.may_have_arrived() && error.code() == "deadline", "{error}");
    proxy.swallow.send_replace(false);
    notice(&mut notices, host.id, reachable).await;
    fleet.push(&address, &[installation.order(host.id)]).await.unwrap();
    assert!(proxy.accepted.load(Ordering::SeqCst) >= 2);
}

#[tokio::test]
async fn a_push_that_never_had_its_turn_says_nothing_against_its_connection() {
    let installation = Installation::new();
    let good = Host::start(&installation, Manner::Good).await;
    let hanging = Host::start(&installation, Manner::Silent).await;
    let other = Host::start(&installation, Manner::Silent).await;
    let proxy = Proxy::start(good.address).await;
    let (fleet, mut notices) =
        installation.fleet(Settings { pushes_at_once_max: 1, push_ms_max: 400, ..settings() });
    let address = good.at(proxy.address);
    fleet.keep(&address);
    notice(&mut notices, good.id, reachable).await;
    let since = |fleet: &Fleet| match fleet.reachability(&good.id) {
        Some(Reachability::Reachable { since }) => since,
        other => panic!("{other:?}"),
    };
    let opened = since(&fleet);
    let push = |host: &Host, address: &HostAddress| {
        let (fleet, address, order) = (fleet.clone(), address.clone(), installation.order(host.id));
        tokio::spawn(async move { fleet.push(&address, &[order]).await })
    };
    let first = push(&hanging, &hanging.address());
    soon("the only turn is taken", async {
        while hanging.pushes() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Tasks of one thread queue in the order of their making: the next turn hangs too.
    let (second, waiting) = (push(&other, &other.address()), push(&good, &address));
    assert_eq!(first.await.unwrap().unwrap_err().code(), "deadline");
    let error = waiting.await.unwrap().unwrap_err();
    assert!(!error.may_have_arrived() && error.code() == "no_turn", "{error}");
    assert_eq!(second.await.unwrap().unwrap_err().code(), "deadline");
    push(&good, &address).await.unwrap().unwrap();
    assert_eq!(since(&fleet), opened, "its connection was dropped");
    assert_eq!(proxy.accepted.load(Ordering::SeqCst), 1, "one connection all the while");
}

#[tokio::test]
async fn a_changed_address_replaces_the_old_one() {
    let installation = Installation::new();
    let mut host = Host::start(&installation, Manner::Good).await;
    let (fleet, _notices) = installation.fleet(settings());
    let order = [installation.order(host.id)];
    fleet.push(&host.address(), &order).await.unwrap();
    host.stop().await;
    host.address = "127.0.0.1:0".parse().unwrap();
    host.run().await;
    fleet.push(&host.address(), &order).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_pushes_at_once_than_allowed_and_no_fewer() {
    const AT_ONCE: usize = 8;
    let installation = Arc::new(Installation::new());
    let gathering = Arc::new(Gathering {
        here: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        all: Notify::new(),
        wanted: AT_ONCE,
    });
    let (fleet, _notices) =
        installation.fleet(Settings { pushes_at_once_max: AT_ONCE, push_ms_max: 20_000, ..settings() });
    let mut hosts = Vec::new();
    for _ in 0..AT_ONCE * 4 {
        hosts.push(Host::start(&installation, Manner::Together(gathering.clone())).await);
    }
    let mut pushing = tokio::task::JoinSet::new();
    for host in &hosts {
        let (fleet, address, order) = (fleet.clone(), host.address(), installation.order(host.id));
        pushing.spawn(async move { fleet.push(&address, &[order]).await.map(drop) });
    }
    while let Some(pushed) = pushing.join_next().await {
        pushed.unwrap().unwrap();
    }
    assert_eq!(gathering.most.load(Ordering::SeqCst), AT_ONCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_hosts_are_reached_and_stay_reachable() {
    let installation = Installation::new();
    let (fleet, _notices) = installation.fleet(Settings { ping_every_ms: 20_000, ..Settings::default() });
    let mut hosts = Vec::new();
    for _ in 0..200 {
        hosts.push(Host::start(&installation, Manner::Good).await);
    }
    for round in 1..=2 {
        let begun = Instant::now();
        let mut pushing = tokio::task::JoinSet::new();
        for host in &hosts {
            let (fleet, address, order) = (fleet.clone(), host.address(), installation.order(host.id));
            pushing.spawn(async move { fleet.push(&address, &[order]).await.map(drop) });
        }
        while let Some(pushed) = soon("a push", pushing.join_next()).await {
            pushed.unwrap().unwrap();
        }
        println!("round {round}: 200 hosts in {} ms", begun.elapsed().as_millis());
    }
    assert!(hosts.iter().all(|host| host.pushes() == 2));
}
