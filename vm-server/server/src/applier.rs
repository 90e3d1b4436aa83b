//! The private socket. The applier calls, since it has no socket of its own to be called on; both look at who the
//! other is. Of several connections the newest counts: the one before belongs to an applier that is gone.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::local::{self, FromApplier, LOCAL_VERSION, ToApplier};
use protocol::report::Means;
use protocol::{Frame, HostId, limit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

/// How long the applier has for its first word.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// Messages to the applier that wait for it; more wait for these.
const QUEUE_MAX: usize = 16;

/// Why the private socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to listen on the private socket {path}: {error}; its directory must belong to this user alone"
)]
pub struct ListenError {
    path: PathBuf,
    error: io::Error,
}

/// Why orders were not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// No applier is connected.
    #[error("the applier of this host is not running")]
    Away,
    /// It went away before it answered. It may have taken the orders.
    #[error("the applier of this host went away before it answered")]
    Lost,
    /// It did not answer in time. It may have taken the orders.
    #[error("the applier of this host did not answer in time")]
    Late,
}

/// The applier, connected or not.
#[derive(Clone)]
pub struct Applier {
    shared: Arc<Shared>,
}

struct Shared {
    connected: Mutex<Option<Connected>>,
    report: watch::Sender<Option<Frame>>,
    host: watch::Sender<Option<HostId>>,
    pushes: AtomicU64,
    connections: AtomicU64,
}

#[derive(Clone)]
struct Connected {
    connection: u64,
    outgoing: mpsc::Sender<ToApplier>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Frame>>>>,
}

/// The bound socket, not yet accepting.
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    shared: Arc<Shared>,
    means: Vec<Means>,
}

/// Binds the private socket in a directory that only this user may enter.
pub fn listen(path: &Path, means: Vec<Means>) -> Result<(Applier, Listener), ListenError> {
    let failed = |error| ListenError { path: path.to_owned(), error };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    // What a process that was killed left behind.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let socket = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let shared = Arc::new(Shared {
        connected: Mutex::new(None),
        report: watch::Sender::new(None),
        host: watch::Sender::new(None),
        pushes: AtomicU64::new(0),
        connections: AtomicU64::new(0),
    });
    let applier = Applier { shared: shared.clone() };
    Ok((applier, Listener { socket, path: path.to_owned(), shared, means }))
}

impl Applier {
    /// The newest report that the applier asked to pass on.
    pub fn reports(&self) -> watch::Receiver<Option<Frame>> {
        self.shared.report.subscribe()
    }

    /// Who the applier says this host is.
    pub fn host(&self) -> watch::Receiver<Option<HostId>> {
        self.shared.host.subscribe()
    }

    /// Hands the orders of one push over and waits for the signed report.
    pub async fn orders(&self, frames: Vec<Frame>) -> Result<Frame, ExchangeError> {
        let connected = lock(&self.shared.connected).clone().ok_or(ExchangeError::Away)?;
        let push = self.shared.pushes.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&connected.waiting).insert(push, answer);
        let _forget = Forget { waiting: &connected.waiting, push };
        let exchange = async {
            let orders = ToApplier::Orders { push, frames };
            connected.outgoing.send(orders).await.map_err(|_| ExchangeError::Away)?;
            answered.await.map_err(|_| ExchangeError::Lost)
        };
        let time = Duration::from_millis(limit::APPLIER_MS_MAX);
        tokio::time::timeout(time, exchange).await.unwrap_or(Err(ExchangeError::Late))
    }

    /// Hands an acknowledgement over. One that is lost comes again with the next report.
    pub async fn acknowledge(&self, ack: Frame) {
        let connected = lock(&self.shared.connected).clone();
        if let Some(connected) = connected {
            let _ = connected.outgoing.send(ToApplier::Acknowledged { ack }).await;
        }
    }
}

struct Forget<'a> {
    waiting: &'a Mutex<HashMap<u64, oneshot::Sender<Frame>>>,
    push: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(&self.push);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Accepts and serves connections until it is dropped.
    pub async fn serve(self) {
        // Ended with this future: an applier must not stay connected with a network half that is over.
        let mut current = tokio::task::JoinSet::new();
        loop {
            let stream = match self.socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection of the applier");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if let Err(why) = check_peer(&stream) {
                tracing::warn!(%why, "refused a connection on the private socket");
                continue;
            }
            current.abort_all();
            while current.try_join_next().is_some() {}
            let (shared, means) = (self.shared.clone(), self.means.clone());
            current.spawn(async move {
                if let Err(error) = connection(&shared, stream, means).await {
                    tracing::info!(%error, "the applier's connection ended");
                }
            });
        }
    }
}

/// Root, or our own user where everything runs without privilege.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer =
        stream.peer_cred().map_err(|error| format!("failed to read the peer's credentials: {error}"))?;
    let ours = nix::unistd::geteuid().as_raw();
    if peer.uid() == 0 || peer.uid() == ours {
        Ok(())
    } else {
        Err(format!("user {} is neither root nor {ours}", peer.uid()))
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] protocol::DecodeError),
    #[error(transparent)]
    Encode(#[from] protocol::TooLarge),
    #[error("it did not say hello within {} s", HELLO_TIME.as_secs())]
    Silent,
    #[error(
        "it speaks version {0} of the private socket, and this is {LOCAL_VERSION}: install both from one package"
    )]
    Version(u32),
    #[error("it said {0} where hello was expected, or twice")]
    Unexpected(String),
}

async fn connection(
    shared: &Arc<Shared>,
    stream: UnixStream,
    means: Vec<Means>,
) -> Result<(), ConnectionError> {
    let (mut reader, mut writer) = stream.into_split();
    write(&mut writer, &ToApplier::Hello { version: LOCAL_VERSION, means }).await?;
    let hello = tokio::time::timeout(HELLO_TIME, read(&mut reader)).await;
    let host = match hello.map_err(|_| ConnectionError::Silent)?? {
        FromApplier::Hello { version: LOCAL_VERSION, host, .. } => host,
        FromApplier::Hello { version, .. } => return Err(ConnectionError::Version(version)),
        other => return Err(ConnectionError::Unexpected(format!("{other:?}"))),
    };
    tracing::info!(?host, "the applier is connected");
    let (outgoing, queue) = mpsc::channel(QUEUE_MAX);
    let connected = Connected {
        connection: shared.connections.fetch_add(1, Ordering::Relaxed),
        outgoing,
        waiting: Arc::default(),
    };
    *lock(&shared.connected) = Some(connected.clone());
    // Also when this task is aborted, and never what a newer connection has put there.
    let _leave = Leave { shared, connection: connected.connection };
    shared.host.send_replace(host);
    tokio::select! {
        ended = read_all(shared, &connected, &mut reader) => ended,
        ended = write_all(&mut writer, queue) => ended,
    }
}

struct Leave<'a> {
    shared: &'a Shared,
    connection: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut connected = lock(&self.shared.connected);
        if let Some(present) = connected.take_if(|present| present.connection == self.connection) {
            // Whoever waits for an answer of this connection learns that none comes.
            lock(&present.waiting).clear();
        }
    }
}

async fn read_all(
    shared: &Shared,
    connected: &Connected,
    reader: &mut OwnedReadHalf,
) -> Result<(), ConnectionError> {
    loop {
        match read(reader).await? {
            FromApplier::Answer { push, report } => {
                // Nobody waits any more when the push ran out of time.
                if let Some(waiting) = lock(&connected.waiting).remove(&push) {
                    let _ = waiting.send(report);
                }
            }
            FromApplier::Report { report } => {
                shared.report.send_replace(Some(report));
            }
            hello @ FromApplier::Hello { .. } => {
                return Err(ConnectionError::Unexpected(format!("{hello:?}")));
            }
        }
    }
}

async fn write_all(
    writer: &mut OwnedWriteHalf,
    mut queue: mpsc::Receiver<ToApplier>,
) -> Result<(), ConnectionError> {
    while let Some(message) = queue.recv().await {
        write(writer, &message).await?;
    }
    Ok(())
}

async fn read(reader: &mut OwnedReadHalf) -> Result<FromApplier, ConnectionError> {
    let mut header = [0; 4];
    reader.read_exact(&mut header).await?;
    let mut json = vec![0; local::length(header)?];
    reader.read_exact(&mut json).await?;
    Ok(FromApplier::from_json(&json)?)
}

async fn write(writer: &mut OwnedWriteHalf, message: &ToApplier) -> Result<(), ConnectionError> {
    Ok(writer.write_all(&message.to_bytes()?).await?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
