//! Makes one connection: address, TCP, TLS with the host's own key, HTTP/2.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use protocol::InstallationId;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use transport::{ClientTlsError, Names, TlsIdentity, Trust, client_config};

use crate::HostAddress;
use crate::settings::Settings;

pub(crate) type Requests = http2::SendRequest<Full<Bytes>>;
pub(crate) type Connection = http2::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>, TokioExecutor>;

/// Why a host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is not `name:port`.
    #[error("{0:?} is not an address: write name:port or ip:port")]
    Address(String),
    /// No answer at all in time.
    #[error(
        "no connection within {0} ms; check that the host is up and that nothing drops packets on the way"
    )]
    Time(u64),
    /// No TCP connection.
    #[error("failed to connect: {0}")]
    Connect(#[source] std::io::Error),
    /// Our own certificate and key cannot be used.
    #[error("failed to prepare TLS: {0}")]
    Prepare(#[from] ClientTlsError),
    /// Somebody else answered, or our certificate was not wanted.
    #[error("the TLS handshake failed: {0}; if the host was reimaged, enrol it again")]
    Handshake(#[source] std::io::Error),
    /// TLS, but no HTTP/2.
    #[error("the host does not speak HTTP/2: {0}")]
    Http(#[source] hyper::Error),
    /// An open connection ended before a new one could be made.
    #[error("the connection was closed")]
    Closed,
}

pub(crate) struct Dialer {
    installation: InstallationId,
    ours: RwLock<(TlsIdentity, Trust)>,
    dials: Semaphore,
    dial_ms_max: u64,
    http: http2::Builder<TokioExecutor>,
}

impl Dialer {
    pub(crate) fn new(
        installation: InstallationId,
        identity: TlsIdentity,
        authorities: Trust,
        settings: &Settings,
    ) -> Self {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_millis(settings.ping_every_ms))
            .keep_alive_timeout(Duration::from_millis(settings.ping_answer_ms_max))
            .keep_alive_while_idle(true)
            .max_send_buf_size(64 * 1024);
        Self {
            installation,
            ours: RwLock::new((identity, authorities)),
            dials: Semaphore::new(settings.dials_at_once_max),
            dial_ms_max: settings.dial_ms_max,
            http,
        }
    }

    pub(crate) fn replace(&self, identity: TlsIdentity, authorities: Trust) {
        *self.ours.write().unwrap_or_else(PoisonError::into_inner) = (identity, authorities);
    }

    /// Waits for its turn; the time counts from then.
    pub(crate) async fn dial(&self, to: &HostAddress) -> Result<(Requests, Connection), DialError> {
        // Closed never: the semaphore lives as long as the dialer.
        let _permit = self.dials.acquire().await;
        tokio::time::timeout(Duration::from_millis(self.dial_ms_max), self.dial_now(to))
            .await
            .map_err(|_| DialError::Time(self.dial_ms_max))?
    }

    async fn dial_now(&self, to: &HostAddress) -> Result<(Requests, Connection), DialError> {
        let bad_address = || DialError::Address(to.address.clone());
        let (name, _port) = to.address.rsplit_once(':').ok_or_else(bad_address)?;
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|_| bad_address())?;
        let config = Arc::new(self.config(to)?);
        let tcp = TcpStream::connect(&to.address).await.map_err(DialError::Connect)?;
        // Orders are small and the instant is near: never wait to fill a packet.
        tcp.set_nodelay(true).map_err(DialError::Connect)?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(DialError::Handshake)?;
        self.http.handshake(TokioIo::new(tls)).await.map_err(DialError::Http)
    }

    fn config(&self, to: &HostAddress) -> Result<rustls::ClientConfig, ClientTlsError> {
        let ours = self.ours.read().unwrap_or_else(PoisonError::into_inner);
        let uri = transport::names::host_uri(self.installation, to.host);
        let who = ours.1.clone().with_pins([to.spki]).with_uris([uri]);
        let mut config = client_config(Some(&ours.0), &who, Names::Unchecked)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}
