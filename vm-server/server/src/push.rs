//! The HTTP API of a host: orders in, one signed report out. Frames are passed on as they came; the applier judges
//! them.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use protocol::{FRAMES_CONTENT_TYPE, Frame, limit};
use tokio::sync::{Notify, Semaphore};
use transport::Peer;

use crate::applier::{Applier, ExchangeError};

/// What the routes need.
#[derive(Clone)]
pub struct Push {
    applier: Applier,
    room: Arc<Semaphore>,
    heard: Arc<Notify>,
}

impl Push {
    /// Pushes go to this applier; `heard` is told of each, since it shows that the control plane is there.
    pub fn new(applier: Applier, heard: Arc<Notify>) -> Self {
        Self { applier, room: Arc::new(Semaphore::new(limit::PUSHES_AT_ONCE_MAX)), heard }
    }

    /// The routes. Callers with a certificate have been checked in the handshake: only the control plane has one
    /// that is let in.
    pub fn router(self) -> Router {
        Router::new().route("/v1/orders", post(orders)).route("/v1/health", get(health)).with_state(self)
    }
}

/// Alive. Says nothing else to a stranger.
async fn health() -> &'static str {
    "ok\n"
}

/// Why a push was not answered with a report.
enum Refusal {
    Stranger,
    WrongType,
    Body(BytesRejection),
    NoFrames,
    Frames(protocol::frame::FrameError),
    Crowded,
    Applier(ExchangeError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::Stranger => {
                (StatusCode::UNAUTHORIZED, "only the control plane may push, with its certificate".to_owned())
            }
            Self::WrongType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("send frames as {FRAMES_CONTENT_TYPE}, not compressed"),
            ),
            Self::Body(rejection) => (rejection.status(), rejection.body_text()),
            Self::NoFrames => (StatusCode::BAD_REQUEST, "a push needs at least one order".to_owned()),
            Self::Frames(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Crowded => (
                StatusCode::TOO_MANY_REQUESTS,
                format!("{} pushes are under way already; try again", limit::PUSHES_AT_ONCE_MAX),
            ),
            Self::Applier(error @ ExchangeError::Late) => (StatusCode::GATEWAY_TIMEOUT, error.to_string()),
            Self::Applier(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        };
        tracing::warn!(status = status.as_u16(), %message, "refused a push");
        (status, message).into_response()
    }
}

async fn orders(
    State(push): State<Push>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    if peer.is_none() {
        return Err(Refusal::Stranger);
    }
    push.heard.notify_one();
    let frames_sent = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == FRAMES_CONTENT_TYPE);
    if !frames_sent || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::WrongType);
    }
    // Before the body is read: what waits for its turn waits with its sender.
    let _permit = push.room.try_acquire().map_err(|_| Refusal::Crowded)?;
    let body = whole(body).await?;
    let frames =
        Frame::split(&body, limit::ORDER_BYTES_MAX, limit::ORDERS_PER_PUSH_MAX).map_err(Refusal::Frames)?;
    drop(body);
    if frames.is_empty() {
        return Err(Refusal::NoFrames);
    }
    let report = push.applier.orders(frames).await.map_err(Refusal::Applier)?;
    Ok(([(header::CONTENT_TYPE, FRAMES_CONTENT_TYPE)], report.to_bytes()).into_response())
}

/// Bounded here as well as by the listener: this is the limit of a push.
async fn whole(body: Body) -> Result<Bytes, Refusal> {
    use axum::RequestExt as _;
    let mut request = http::Request::new(body);
    axum::extract::DefaultBodyLimit::max(limit::PUSH_BYTES_MAX).apply(&mut request);
    request.extract::<Bytes, _>().await.map_err(Refusal::Body)
}
