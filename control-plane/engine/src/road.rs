//! The road to the hosts, as the engine sees it.

use std::sync::Arc;

use fleet::{Fleet, HostAddress, Notices, PushError, Reachability};
use futures_util::future::BoxFuture;
use protocol::{Frame, HostId};
use tokio::sync::mpsc;

/// Whether a host can be reached, whenever that changes.
pub type Reachable = mpsc::Receiver<(HostId, bool)>;

/// Why a push has no report to show.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct PushFailure {
    /// A stable word for metrics.
    pub code: &'static str,
    /// Why, in words.
    pub message: String,
}

/// Takes frames to hosts and brings back the report of each push.
pub trait Road: Send + Sync {
    /// Keep a connection to this host from now on.
    fn keep(&self, host: &HostAddress);

    /// The host is gone for good.
    fn forget(&self, host: &HostId);

    /// Something was heard of this host: look for it at once.
    fn nudge(&self, host: &HostId);

    /// Pushes orders and waits for the report, which the caller verifies.
    fn push<'a>(
        &'a self,
        host: &'a HostAddress,
        frames: Vec<Frame>,
    ) -> BoxFuture<'a, Result<Frame, PushFailure>>;
}

/// The road of TLS connections.
pub struct FleetRoad(Fleet);

impl FleetRoad {
    /// Over this fleet, whose notices become the second half.
    pub fn new(fleet: Fleet, mut notices: Notices) -> (Arc<Self>, Reachable) {
        let (tell, told) = mpsc::channel(1024);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tell.closed() => return,
                    notice = notices.next() => {
                        let reachable = match notice.reachability {
                            Reachability::Unknown => continue,
                            Reachability::Reachable { .. } => true,
                            Reachability::Unreachable { .. } => false,
                        };
                        if tell.send((notice.host, reachable)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        (Arc::new(Self(fleet)), told)
    }
}

impl Road for FleetRoad {
    fn keep(&self, host: &HostAddress) {
        self.0.keep(host);
    }

    fn forget(&self, host: &HostId) {
        self.0.forget(host);
    }

    fn nudge(&self, host: &HostId) {
        self.0.nudge(host);
    }

    fn push<'a>(
        &'a self,
        host: &'a HostAddress,
        frames: Vec<Frame>,
    ) -> BoxFuture<'a, Result<Frame, PushFailure>> {
        Box::pin(async move {
            let failed = |error: PushError| PushFailure { code: error.code(), message: error.to_string() };
            self.0.push(host, &frames).await.map_err(failed)
        })
    }
}
