//! The push client: orders out, one signed report back, over one kept connection a host.
//!
//! A [`Fleet`] keeps a connection to every host that it was told of, dials again when one is lost (with bounded
//! parallelism, capped backoff and jitter) and says through [`Notices`] who can be reached. It decides nothing about
//! credentials, keeps no order, reads no value (values are sealed to the applier) and verifies no report: a frame
//! that comes back is the caller's to verify.
//!
//! A host is who its certificate says it is *and* who has the very key that it enrolled with; its address is only
//! where to look for it.

mod dial;
mod link;
mod notice;
mod settings;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use protocol::frame::HEADER_BYTES;
use protocol::{FRAMES_CONTENT_TYPE, Frame, HostId, InstallationId, limit};
use tokio::sync::Semaphore;
use transport::{Spki, TlsIdentity, Trust};

use crate::dial::Dialer;
use crate::link::{Link, State};

pub use crate::dial::DialError;
pub use crate::notice::{Notice, Notices, Reachability};
pub use crate::settings::Settings;

/// Where a host is looked for, and who must answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// Who.
    pub host: HostId,
    /// `name:port` or `ip:port`.
    pub address: String,
    /// The key of the certificate that it enrolled with. Renewal keeps it.
    pub spki: Spki,
}

/// Why a push has no report to show.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PushError {
    /// More or larger orders than one push may have.
    #[error("{count} orders of {bytes} bytes are too much for one push; cut them with `batches`")]
    TooLarge {
        /// How many orders.
        count: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// Nobody answers there, or not who should. The fleet goes on trying; a notice says when the host is back.
    #[error("failed to reach host {host} at {address}: {error}")]
    Unreachable {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// Why not.
        error: Arc<DialError>,
    },
    /// So many pushes were under way that this one did not begin.
    #[error(
        "no push to host {host} at {address} began within {deadline_ms} ms: too many others are under way"
    )]
    NoTurn {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// How long it waited.
        deadline_ms: u64,
    },
    /// The host did not answer in time. It may have taken the orders all the same.
    #[error("host {host} at {address} did not answer within {deadline_ms} ms")]
    Deadline {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// How long it had.
        deadline_ms: u64,
    },
    /// The connection was lost on the way. The host may have taken the orders all the same.
    #[error("lost the connection to host {host} at {address}: {error}")]
    Lost {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// How.
        error: String,
    },
    /// The host cannot take orders now (its applier is away or slow, or too many pushes are under way). Try again
    /// later. The applier may have taken them all the same.
    #[error("host {host} at {address} cannot take orders now: {message}")]
    Busy {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// What it says.
        message: String,
    },
    /// The host refused the whole push.
    #[error("host {host} at {address} refused the push with status {status}: {message}")]
    Refused {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// What came back is no report frame.
    #[error("host {host} at {address} answered with something that is not one report: {error}")]
    BadAnswer {
        /// Who.
        host: HostId,
        /// Where.
        address: String,
        /// What is wrong.
        error: String,
    },
}

impl PushError {
    /// The stable word for metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Unreachable { .. } => "unreachable",
            Self::NoTurn { .. } => "no_turn",
            Self::Deadline { .. } => "deadline",
            Self::Lost { .. } => "lost",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::BadAnswer { .. } => "bad_answer",
        }
    }

    /// Whether the host may have taken the orders.
    pub const fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Lost { .. } | Self::Busy { .. } | Self::BadAnswer { .. })
    }
}

/// All hosts of an installation. Clones are the same fleet; the last one dropped closes all connections.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    settings: Settings,
    dialer: Arc<Dialer>,
    links: Mutex<BTreeMap<HostId, Arc<Link>>>,
    pushes: Semaphore,
    notices: notice::Sender,
}

impl Fleet {
    /// Speaks as `identity` to the hosts of `installation` whose certificates `authorities` signed. Must be called
    /// within a tokio runtime.
    pub fn new(
        installation: InstallationId,
        identity: TlsIdentity,
        authorities: Trust,
        settings: Settings,
    ) -> (Self, Notices) {
        let (notices, receiver) = notice::channel();
        let pushes = Semaphore::new(settings.pushes_at_once_max);
        let dialer = Arc::new(Dialer::new(installation, identity, authorities, &settings));
        let links = Mutex::new(BTreeMap::new());
        (Self(Arc::new(Inner { settings, dialer, links, pushes, notices })), receiver)
    }

    /// Keeps a connection to this host from now on; a changed address or key replaces the old one.
    pub fn keep(&self, host: &HostAddress) {
        self.link(host);
    }

    /// Closes the connection to this host and dials no more.
    pub fn forget(&self, host: &HostId) {
        if self.links().remove(host).is_some() {
            self.0.notices.forget(host);
        }
    }

    /// Something was heard of this host (its report came in): dial at once instead of waiting for the backoff.
    pub fn nudge(&self, host: &HostId) {
        if let Some(link) = self.links().get(host) {
            link.nudge();
        }
    }

    /// Whether the host can be reached, as far as is known.
    pub fn reachability(&self, host: &HostId) -> Option<Reachability> {
        self.links().get(host).map(|link| link.reachability())
    }

    /// New connections are made as `identity` to hosts that `authorities` signed. Open ones go on.
    pub fn replace_identity(&self, identity: TlsIdentity, authorities: Trust) {
        self.0.dialer.replace(identity, authorities);
    }

    /// Pushes orders and waits for the signed report with their receipts, which the caller verifies.
    ///
    /// Waits for a first connection, but not for one that is in its backoff: that fails at once, and a notice tells
    /// when to try again. A connection that was lost before an answer came is tried once more, since orders change
    /// nothing when they come twice.
    pub async fn push(&self, host: &HostAddress, frames: &[Frame]) -> Result<Frame, PushError> {
        let body = Bytes::from(Frame::join(frames));
        if frames.len() > limit::ORDERS_PER_PUSH_MAX || body.len() > limit::PUSH_BYTES_MAX {
            return Err(PushError::TooLarge { count: frames.len(), bytes: body.len() });
        }
        let link = self.link(host);
        let deadline_ms = self.0.settings.push_ms_max;
        let deadline = Duration::from_millis(deadline_ms);
        // Closed never: the semaphore lives as long as the fleet.
        let Ok(_permit) = tokio::time::timeout(deadline, self.0.pushes.acquire()).await else {
            // Nothing was asked of this host, so nothing is known against its connection.
            let HostAddress { host, address, .. } = host.clone();
            return Err(PushError::NoTurn { host, address, deadline_ms });
        };
        let attempt = async {
            match exchange(&link, body.clone()).await {
                Err(PushError::Lost { .. }) => exchange(&link, body).await,
                answer => answer,
            }
        };
        if let Ok(answer) = tokio::time::timeout(deadline, attempt).await {
            return answer;
        }
        // A connection that swallows a push is not to be trusted with the next.
        link.drop_connection();
        let HostAddress { host, address, .. } = host.clone();
        Err(PushError::Deadline { host, address, deadline_ms })
    }

    fn link(&self, host: &HostAddress) -> Arc<Link> {
        let mut links = self.links();
        if let Some(link) = links.get(&host.host).filter(|link| link.address() == host) {
            return link.clone();
        }
        let link =
            Link::start(host.clone(), self.0.dialer.clone(), self.0.settings.clone(), self.0.notices.clone());
        links.insert(host.host, link.clone());
        link
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostId, Arc<Link>>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts orders into pushes that a host takes, in their order. An order that is too large on its own stays alone and
/// is refused by [`Fleet::push`].
pub fn batches(frames: Vec<Frame>) -> Vec<Vec<Frame>> {
    let mut batches: Vec<Vec<Frame>> = Vec::new();
    let mut bytes = 0;
    for frame in frames {
        let length = frame.to_bytes().len();
        match batches.last_mut() {
            Some(batch)
                if batch.len() < limit::ORDERS_PER_PUSH_MAX && bytes + length <= limit::PUSH_BYTES_MAX =>
            {
                bytes += length;
                batch.push(frame);
            }
            _ => {
                bytes = length;
                batches.push(vec![frame]);
            }
        }
    }
    batches
}

/// One request on the open connection, or on the one that is being made.
async fn exchange(link: &Link, body: Bytes) -> Result<Frame, PushError> {
    let HostAddress { host, address, .. } = link.address().clone();
    let lost = |error: &dyn std::fmt::Display| PushError::Lost {
        host,
        address: address.clone(),
        error: error.to_string(),
    };
    let mut sender = match link.settled().await {
        State::Open { sender, .. } => sender,
        State::Down { error, .. } => return Err(PushError::Unreachable { host, address, error }),
        State::Dialing => return Err(lost(&"the host was forgotten")),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{address}/v1/orders"))
        .header(header::CONTENT_TYPE, FRAMES_CONTENT_TYPE)
        .body(Full::new(body))
        .map_err(|error| lost(&error))?;
    sender.ready().await.map_err(|error| lost(&error))?;
    let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
    let status = response.status();
    let answer_bytes_max = HEADER_BYTES + limit::REPORT_BYTES_MAX;
    let answer = match Limited::new(response.into_body(), answer_bytes_max).collect().await {
        Ok(answer) => answer.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let error = format!("more than {answer_bytes_max} bytes");
            return Err(PushError::BadAnswer { host, address, error });
        }
        Err(error) => return Err(lost(&error)),
    };
    let message = || protocol::report::sentence(&String::from_utf8_lossy(&answer));
    match status {
        StatusCode::OK => Frame::parse(&answer, limit::REPORT_BYTES_MAX)
            .map_err(|error| PushError::BadAnswer { host, address, error: error.to_string() }),
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::GATEWAY_TIMEOUT => Err(PushError::Busy { host, address, message: message() }),
        status => Err(PushError::Refused { host, address, status: status.as_u16(), message: message() }),
    }
}
