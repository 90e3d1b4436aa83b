//! One host: a task that keeps its connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use transport::Backoff;

use crate::HostAddress;
use crate::dial::{DialError, Dialer, Requests};
use crate::notice::{self, Reachability};
use crate::settings::Settings;

/// A connection that lasted this long was a good one, and its loss is worth an immediate dial.
const STEADY: Duration = Duration::from_secs(1);

/// What is known of the connection.
#[derive(Clone)]
pub(crate) enum State {
    /// A dial is under way after a start, a loss or a nudge: worth waiting for.
    Dialing,
    /// Requests can be sent.
    Open { sender: Requests, since: Instant },
    /// The last dial failed, and the next one waits.
    Down { error: Arc<DialError>, since: Instant },
}

pub(crate) struct Link {
    address: HostAddress,
    state: watch::Receiver<State>,
    nudged: Arc<Notify>,
    distrusted: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub(crate) fn start(
        address: HostAddress,
        dialer: Arc<Dialer>,
        settings: Settings,
        notices: notice::Sender,
    ) -> Arc<Self> {
        let (state, receiver) = watch::channel(State::Dialing);
        let (nudged, distrusted) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let keeper = Keeper {
            address: address.clone(),
            dialer,
            backoff: Backoff::new(settings.backoff_first_ms, settings.backoff_ms_max),
            state,
            nudged: nudged.clone(),
            distrusted: distrusted.clone(),
            notices,
        };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Arc::new(Self { address, state: receiver, nudged, distrusted, task })
    }

    pub(crate) const fn address(&self) -> &HostAddress {
        &self.address
    }

    pub(crate) fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Closes the connection, if there is one, and dials again.
    pub(crate) fn drop_connection(&self) {
        self.distrusted.notify_waiters();
    }

    pub(crate) fn reachability(&self) -> Reachability {
        match &*self.state.borrow() {
            State::Dialing => Reachability::Unknown,
            State::Open { since, .. } => Reachability::Reachable { since: *since },
            State::Down { error, since } => Reachability::Unreachable { since: *since, error: error.clone() },
        }
    }

    /// Waits until the dial that is under way has ended. [`State::Dialing`] means that the link itself has.
    pub(crate) async fn settled(&self) -> State {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| match state {
            State::Dialing => false,
            // The keeper has not yet seen that the connection ended.
            State::Open { sender, .. } => !sender.is_closed(),
            State::Down { .. } => true,
        });
        settled.await.map_or(State::Dialing, |state| state.clone())
    }
}

struct Keeper {
    address: HostAddress,
    dialer: Arc<Dialer>,
    backoff: Backoff,
    state: watch::Sender<State>,
    nudged: Arc<Notify>,
    distrusted: Arc<Notify>,
    notices: notice::Sender,
}

impl Keeper {
    async fn run(mut self) {
        let mut down_since = None;
        loop {
            match self.dialer.dial(&self.address).await {
                Ok((sender, connection)) => {
                    down_since = None;
                    let since = Instant::now();
                    self.state.send_replace(State::Open { sender, since });
                    self.say(Reachability::Reachable { since });
                    let lost = tokio::select! {
                        ended = connection => ended.err().map_or_else(|| "closed".to_owned(), |e| e.to_string()),
                        () = self.distrusted.notified() => "it swallowed a push".to_owned(),
                    };
                    tracing::debug!(host = %self.address.host, address = %self.address.address, why = %lost,
                        "a connection to a host ended");
                    if since.elapsed() > STEADY {
                        self.backoff.reset();
                        self.state.send_replace(State::Dialing);
                    } else {
                        // A host that takes connections and drops them must not be dialled in a tight loop.
                        down_since = Some(Instant::now());
                        self.down(DialError::Closed, Instant::now()).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(host = %self.address.host, address = %self.address.address, %error,
                        "failed to reach a host");
                    let since = *down_since.get_or_insert_with(Instant::now);
                    self.down(error, since).await;
                }
            }
        }
    }

    async fn down(&mut self, error: DialError, since: Instant) {
        let error = Arc::new(error);
        self.state.send_replace(State::Down { error: error.clone(), since });
        self.say(Reachability::Unreachable { since, error });
        self.pause().await;
    }

    /// Until the backoff has passed, or somebody heard of the host: then pushes wait for the dial that follows.
    async fn pause(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(self.backoff.pause()) => {}
            () = self.nudged.notified() => {
                self.backoff.reset();
                self.state.send_replace(State::Dialing);
            }
        }
    }

    fn say(&self, reachability: Reachability) {
        self.notices.say(self.address.host, reachability);
    }
}
