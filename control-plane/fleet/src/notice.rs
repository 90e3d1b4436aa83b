//! Who can be reached: the newest word on each host, never a queue that grows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protocol::HostId;
use tokio::sync::Notify;

use crate::dial::DialError;

/// Whether a host can be reached.
#[derive(Debug, Clone)]
pub enum Reachability {
    /// A first attempt is under way.
    Unknown,
    /// A connection is open. Each new connection is noticed, since the host may have been away.
    Reachable {
        /// Since when.
        since: Instant,
    },
    /// The last attempt failed; more follow.
    Unreachable {
        /// Since when.
        since: Instant,
        /// Why.
        error: Arc<DialError>,
    },
}

/// The newest word on one host.
#[derive(Debug, Clone)]
pub struct Notice {
    /// Which.
    pub host: HostId,
    /// What is known.
    pub reachability: Reachability,
}

/// Where notices are taken from. Of several about one host only the newest is kept.
pub struct Notices(Arc<Shared>);

#[derive(Clone)]
pub(crate) struct Sender(Arc<Shared>);

#[derive(Default)]
struct Shared {
    newest: Mutex<BTreeMap<HostId, Reachability>>,
    some: Notify,
}

pub(crate) fn channel() -> (Sender, Notices) {
    let shared = Arc::new(Shared::default());
    (Sender(shared.clone()), Notices(shared))
}

impl Notices {
    /// Waits for the next one. Never ends by itself.
    pub async fn next(&mut self) -> Notice {
        loop {
            let waiting = self.0.some.notified();
            let first = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            if let Some((host, reachability)) = first {
                return Notice { host, reachability };
            }
            waiting.await;
        }
    }
}

impl Sender {
    pub(crate) fn say(&self, host: HostId, reachability: Reachability) {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).insert(host, reachability);
        self.0.some.notify_one();
    }

    pub(crate) fn forget(&self, host: &HostId) {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }
}
