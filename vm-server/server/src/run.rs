//! The whole process, from its configuration to its stop.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use host_policy::Daemon;
use protocol::limit;
use protocol::report::Means;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use transport::{Backoff, Clients, Limits, ServerTls};

use crate::applier::{self, Applier, ListenError};
use crate::control_plane::{CallError, ControlPlane};
use crate::enrol::{About, enrol, enrolled, renewed};
use crate::identity::{Identity, StateDir, StateError};
use crate::pass::pass_reports;
use crate::push::Push;

/// Why the process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The private socket.
    #[error(transparent)]
    Private(#[from] ListenError),
    /// The port.
    #[error("failed to listen on {address}: {error}; is another eso-vm-server running?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] transport::ServerTlsError),
    /// The accept loop.
    #[error(transparent)]
    Serve(#[from] transport::ServeError),
    /// Calls to the control plane.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A part ended that should never end.
    #[error("{0} ended by itself")]
    Ended(&'static str),
}

/// What the process says of itself when it comes further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The applier can connect; the port is taken but not served.
    WaitingForEnrolment,
    /// Pushes are taken here.
    Serving(SocketAddr),
}

/// The directories that the process must be able to write.
pub fn writable(daemon: &Daemon) -> Vec<PathBuf> {
    let private = daemon.applier_socket().parent().map(PathBuf::from);
    [Some(daemon.server_state()), private].into_iter().flatten().collect()
}

/// Runs until `stop` ends, then lets requests under way finish.
pub async fn run(
    daemon: &Daemon,
    means: Vec<Means>,
    mut progress: impl FnMut(Progress),
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut stop = pin!(stop);
    let state = StateDir::open(daemon.server_state())?;
    let (applier, private) = applier::listen(&daemon.applier_socket(), means)?;
    let listener = TcpListener::bind(daemon.listen)
        .await
        .map_err(|error| RunError::Listen { address: daemon.listen, error })?;
    let bound = listener.local_addr().map_err(|error| RunError::Listen { address: daemon.listen, error })?;
    let about = about(daemon, bound);
    let mut private = pin!(private.serve());
    let identity = if let Some(identity) = state.identity()? {
        identity
    } else {
        progress(Progress::WaitingForEnrolment);
        tokio::select! {
            identity = enrolled(&state, &about) => identity?,
            () = &mut private => return Err(RunError::Ended("the private socket")),
            () = &mut stop => return Ok(()),
        }
    };
    let clients = Clients::Optional(identity.trust().clone());
    let tls = Arc::new(ServerTls::new(identity.tls().clone(), clients)?);
    let control_plane = watch::Sender::new(calls(&identity, &about)?);
    let heard = Arc::new(Notify::new());
    let passing = pass_reports(applier.clone(), control_plane.subscribe(), heard.clone());
    let keeping = keep_identity(&state, identity, &about, &applier, &tls, &control_plane);
    let router = Push::new(applier.clone(), heard).router();
    let ready = |address| progress(Progress::Serving(address));
    let serving = transport::serve(listener, tls.clone(), limits(), router, ready, stop);
    tokio::select! {
        served = serving => Ok(served?),
        () = passing => Err(RunError::Ended("passing reports on")),
        error = keeping => Err(error),
        () = private => Err(RunError::Ended("the private socket")),
    }
}

/// Renews the certificate when it is time, and takes a new identity when root enrolled the host anew.
async fn keep_identity(
    state: &StateDir,
    mut identity: Identity,
    about: &About,
    applier: &Applier,
    tls: &ServerTls,
    control_plane: &watch::Sender<ControlPlane>,
) -> RunError {
    let mut host = applier.host();
    loop {
        let next = tokio::select! {
            next = renewed(state, &identity, about) => next,
            next = re_enrolled(state, &identity, about, &mut host) => next,
        };
        if let Err(error) = take(&identity, &next, about, tls, control_plane) {
            return error;
        }
        identity = next;
    }
}

fn take(
    before: &Identity,
    next: &Identity,
    about: &About,
    tls: &ServerTls,
    control_plane: &watch::Sender<ControlPlane>,
) -> Result<(), RunError> {
    tls.replace_identity(next.tls().clone())?;
    if !before.same_authorities(next) {
        tls.replace_clients(Clients::Optional(next.trust().clone()))?;
    }
    control_plane.send_replace(calls(next, about)?);
    tracing::info!(host = %next.host(), "the new certificate is in use");
    Ok(())
}

/// An applier that connects may have been enrolled anew: it left another pending enrolment then. What a crash left
/// of the present one is removed.
async fn re_enrolled(
    state: &StateDir,
    present: &Identity,
    about: &About,
    host: &mut watch::Receiver<Option<protocol::HostId>>,
) -> Identity {
    let mut backoff = Backoff::new(1000, limit::RETRY_MS_MAX);
    loop {
        let mut again = None;
        match state.pending() {
            Ok(pending) if pending.as_ref().is_none_or(|pending| present.came_of(pending)) => {
                if let Err(error) = state.finish_enrolment() {
                    tracing::warn!(%error, "failed to remove what is left of the enrolment");
                }
            }
            Ok(None) => {}
            Ok(Some(pending)) => match enrol(state, &pending, about).await {
                Ok(identity) => return identity,
                Err(error) => {
                    state.note_failure(&error.to_string());
                    let pause = backoff.pause();
                    tracing::warn!(%error, retry_ms = pause.as_millis(), "failed to enrol this host anew");
                    again = Some(pause);
                }
            },
            Err(error) => tracing::error!(%error, "failed to read the pending enrolment"),
        }
        let connected = async {
            if host.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match again {
            Some(pause) => drop(tokio::time::timeout(pause, connected).await),
            None => connected.await,
        }
    }
}

fn calls(identity: &Identity, about: &About) -> Result<ControlPlane, CallError> {
    ControlPlane::new(about.url(identity.control_plane()), Some(identity.tls()), identity.trust())
}

fn about(daemon: &Daemon, bound: SocketAddr) -> About {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unnamed".to_owned());
    let address = daemon.advertise.clone().unwrap_or_else(|| {
        if bound.ip().is_unspecified() { format!("{name}:{}", bound.port()) } else { bound.to_string() }
    });
    About { name, address, control_plane: daemon.control_plane.clone() }
}

fn limits() -> Limits {
    Limits {
        connections_max: limit::HOST_CONNECTIONS_MAX,
        handshake_ms_max: limit::HANDSHAKE_MS_MAX,
        request_ms_max: limit::PUSH_MS_MAX,
        body_bytes_max: limit::PUSH_BYTES_MAX,
        idle_known_ms_max: limit::IDLE_CONNECTION_MS_MAX,
        ..Limits::default()
    }
}
