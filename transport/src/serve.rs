//! The accept loop: limits on everything that a stranger can make us spend.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::NamedGroup;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

use crate::peer::Peer;
use crate::tls::ServerTls;

/// What a listener spends at most. Every limit is per listener unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections; one more is closed at once.
    pub connections_max: usize,
    /// From the TCP connection to the end of the handshake.
    pub handshake_ms_max: u64,
    /// HTTP/1: from the first byte of a request, or the end of the one before, to the end of its headers.
    pub header_ms_max: u64,
    /// Bytes of all headers of one request.
    pub header_bytes_max: u32,
    /// From the end of the headers to the beginning of the answer, the body included.
    pub request_ms_max: u64,
    /// Bytes of one body.
    pub body_bytes_max: usize,
    /// HTTP/2: requests at the same time on one connection.
    pub streams_max: u32,
    /// Without a request, a connection that showed no certificate is closed after this time.
    pub idle_anonymous_ms_max: u64,
    /// Without a request, a connection that showed one is closed after this time.
    pub idle_known_ms_max: u64,
    /// HTTP/2: how often a peer is asked whether it is still there. It has as long again to answer.
    pub ping_ms: u64,
    /// After `stop`, how long requests that are under way may take.
    pub drain_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            handshake_ms_max: 10_000,
            header_ms_max: 10_000,
            header_bytes_max: 16 * 1024,
            request_ms_max: 30_000,
            body_bytes_max: 4 * 1024 * 1024,
            streams_max: 32,
            idle_anonymous_ms_max: 30_000,
            idle_known_ms_max: 3_600_000,
            ping_ms: 60_000,
            drain_ms_max: 5_000,
        }
    }
}

/// The connection that a request came on. In the extensions of every request; of a peer that showed a certificate
/// they also have its [`Peer`].
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end.
    pub remote: SocketAddr,
    /// The key exchange that was agreed, for example `X25519MLKEM768`.
    pub key_exchange: Option<NamedGroup>,
}

/// Why a listener cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket has no address.
    #[error("failed to read the listener's own address: {0}")]
    Address(#[source] std::io::Error),
}

/// Serves until `stop` ends; then no connection is accepted, and requests under way have
/// [`Limits::drain_ms_max`]. `ready` is called with the bound address before the first connection is accepted.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    limits: Limits,
    router: Router,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Address)?;
    let router = router.layer(DefaultBodyLimit::max(limits.body_bytes_max));
    let limits = Arc::new(limits);
    let room = Arc::new(Semaphore::new(limits.connections_max));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    ready(address);

    loop {
        let (stream, remote) = tokio::select! {
            () = &mut stop => break,
            // Reap what has ended, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a peer that is gone already. A pause lets descriptors come back.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(%remote, max = limits.connections_max, "closed a connection: too many are open");
            continue;
        };
        let (tls, limits, router, stopped) = (tls.clone(), limits.clone(), router.clone(), stopped.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, remote, &tls, &limits, router, stopped).await {
                tracing::debug!(%remote, %error, "a connection ended");
            }
            drop(permit);
        });
    }

    drop(listener);
    stopping.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(limits.drain_ms_max), drained).await.is_err() {
        tracing::warn!("requests were cut off: they took longer than the time to drain");
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the handshake took longer than {0} ms")]
    HandshakeTime(u64),
    #[error("the handshake failed: {0}")]
    Handshake(#[source] std::io::Error),
    #[error("the peer's certificate cannot be read: {0}")]
    Peer(#[from] crate::PeerError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    tls: &ServerTls,
    limits: &Arc<Limits>,
    router: Router,
    stopped: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let (trust_changes, config) = tls.for_connection();
    // Answers are small; waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(Duration::from_millis(limits.handshake_ms_max), handshake)
        .await
        .map_err(|_| ConnectionError::HandshakeTime(limits.handshake_ms_max))?
        .map_err(ConnectionError::Handshake)?;
    let session = stream.get_ref().1;
    let peer = match session.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => Some(Arc::new(Peer::from_der(certificate)?)),
        None => None,
    };
    let about = Connection {
        remote,
        key_exchange: session.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name),
    };
    let speaks_h2 = session.alpn_protocol() == Some(b"h2");
    let activity = Arc::new(Activity::new());
    let ends = Ends { trust_changes, stopped, activity: activity.clone(), peer: peer.clone() };
    let requests = Requests { router, about, peer, limits: limits.clone(), activity };
    if speaks_h2 {
        drive_h2(stream, requests, limits, ends).await
    } else {
        drive_h1(stream, requests, limits, ends).await
    }
}

async fn drive_h2(
    stream: TlsStream<TcpStream>,
    requests: Requests,
    limits: &Limits,
    mut ends: Ends,
) -> Result<(), ConnectionError> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(Duration::from_millis(limits.ping_ms))
        .keep_alive_timeout(Duration::from_millis(limits.ping_ms));
    let service = service_fn(move |request| requests.clone().answer(request));
    let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = http.as_mut() => return Ok(result?),
        end = ends.wait(limits) => if end == End::Now { return Ok(()) },
    }
    http.as_mut().graceful_shutdown();
    // A peer that never reads the goodbye must not keep the connection.
    let _ = tokio::time::timeout(Duration::from_millis(limits.drain_ms_max), http).await;
    Ok(())
}

async fn drive_h1(
    stream: TlsStream<TcpStream>,
    requests: Requests,
    limits: &Limits,
    mut ends: Ends,
) -> Result<(), ConnectionError> {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_ms_max))
        .max_buf_size((limits.header_bytes_max as usize).max(8192));
    let service = service_fn(move |request| requests.clone().answer(request));
    let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = http.as_mut() => return Ok(result?),
        end = ends.wait(limits) => if end == End::Now { return Ok(()) },
    }
    http.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(Duration::from_millis(limits.drain_ms_max), http).await;
    Ok(())
}

/// What one connection's requests need.
#[derive(Clone)]
struct Requests {
    router: Router,
    about: Connection,
    peer: Option<Arc<Peer>>,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
}

impl Requests {
    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let _counted = self.activity.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.about);
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(Peer::clone(&peer));
        }
        let answer = self.router.call(request);
        let answer = tokio::time::timeout(Duration::from_millis(self.limits.request_ms_max), answer).await;
        Ok(match answer {
            Ok(Ok(response)) => response,
            Err(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
                response
            }
        })
    }
}

/// How many requests are under way, and when the last one ended.
struct Activity {
    start: Instant,
    under_way: AtomicUsize,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), under_way: AtomicUsize::new(0), last_ms: AtomicU64::new(0) }
    }

    fn begin(self: &Arc<Self>) -> Counted {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn idle_ms(&self) -> u64 {
        if self.under_way.load(Ordering::SeqCst) > 0 {
            return 0;
        }
        self.now_ms().saturating_sub(self.last_ms.load(Ordering::SeqCst))
    }
}

struct Counted(Arc<Activity>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.last_ms.store(self.0.now_ms(), Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Everything that ends a connection from our side.
struct Ends {
    trust_changes: watch::Receiver<u64>,
    stopped: watch::Receiver<bool>,
    activity: Arc<Activity>,
    peer: Option<Arc<Peer>>,
}

#[derive(PartialEq, Eq)]
enum End {
    /// The trust is gone: not one more byte.
    Now,
    /// Requests under way may finish.
    Gracefully,
}

impl Ends {
    async fn wait(&mut self, limits: &Limits) -> End {
        let idle_max =
            if self.peer.is_some() { limits.idle_known_ms_max } else { limits.idle_anonymous_ms_max };
        let expiry = self
            .peer
            .as_ref()
            .map(|peer| peer.not_after.duration_since(SystemTime::now()).unwrap_or_default());
        let expired = async {
            match expiry {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            loop {
                let idle = self.activity.idle_ms();
                if idle >= idle_max {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(idle_max - idle)).await;
            }
        };
        tokio::select! {
            // Also when the configuration itself is gone: nobody answers for the trust any more.
            _ = self.trust_changes.changed() => End::Now,
            () = expired => End::Now,
            _ = self.stopped.wait_for(|stopped| *stopped) => End::Gracefully,
            () = idle => End::Gracefully,
        }
    }
}
