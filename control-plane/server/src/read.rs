//! Handlers that change nothing.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use identity::Caller;
use lifecycle::{CredentialName, Version};
use protocol::api::{
    AuditPage, Changes, CredentialDetail, CredentialSummary, HolderView, HostDetail, HostSummary,
    PendingVersion, RolloutView, Status, Whoami, Why,
};
use serde::Deserialize;

use crate::answer::{Answer, Failure};
use crate::app::App;

/// How long one question for changes waits.
const CHANGES_WAIT: Duration = Duration::from_secs(20);
/// Rows of the audit log in one answer.
const AUDIT_ROWS_MAX: u32 = 1000;
const AUDIT_ROWS: u32 = 100;

pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

pub(crate) async fn readyz(State(app): State<App>) -> (StatusCode, &'static str) {
    let handle = app.handle.clone();
    if app.readiness().ask(async move { handle.answers().await.is_ok() }).await {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n")
    }
}

pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let mut response = app.figures().behind(&app.handle.metrics().encode()).into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(crate) async fn openapi() -> Json<serde_json::Value> {
    Json(crate::openapi::document())
}

pub(crate) async fn whoami(Extension(caller): Extension<Caller>) -> Answer<Whoami> {
    match caller {
        Caller::Operator(operator) => {
            Ok(Json(Whoami { name: operator.name, role: operator.role, expires_at: operator.expires_at }))
        }
        Caller::Host(_) => {
            Err(Failure::new(403, "wrong_identity", "hosts have no role", "call as an operator"))
        }
    }
}

pub(crate) async fn status(State(app): State<App>) -> Answer<Status> {
    Ok(Json(app.handle.status().await?))
}

#[derive(Deserialize)]
pub(crate) struct ChangesQuery {
    after: Option<u64>,
}

pub(crate) async fn changes(State(app): State<App>, Query(query): Query<ChangesQuery>) -> Answer<Changes> {
    let mut changes = app.handle.changes();
    if let Some(after) = query.after {
        // Running out of time is no error: the same number is answered and the caller asks again. A number above
        // ours is from before our start.
        let newer = changes.wait_for(|commits| *commits > after || *commits + 1 < after);
        let mut stopping = app.stopping.clone();
        tokio::select! {
            _ = newer => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = tokio::time::sleep(CHANGES_WAIT) => {}
        }
    }
    let commits = *changes.borrow();
    Ok(Json(Changes { commits }))
}

pub(crate) async fn credentials(State(app): State<App>) -> Answer<Vec<CredentialSummary>> {
    Ok(Json(app.handle.credentials().await?))
}

pub(crate) async fn credential(State(app): State<App>, Path(name): Path<String>) -> Answer<CredentialDetail> {
    Ok(Json(app.handle.credential(&credential_name(&name)?).await?))
}

pub(crate) async fn rollout(State(app): State<App>, Path(name): Path<String>) -> Answer<Option<RolloutView>> {
    Ok(Json(app.handle.rollout(&credential_name(&name)?).await?))
}

pub(crate) async fn why(State(app): State<App>, Path((name, number)): Path<(String, String)>) -> Answer<Why> {
    Ok(Json(app.handle.why(&credential_name(&name)?, version(&number)?).await?))
}

pub(crate) async fn pending(State(app): State<App>) -> Answer<Vec<PendingVersion>> {
    Ok(Json(app.handle.pending().await?))
}

#[derive(Deserialize)]
pub(crate) struct HoldersQuery {
    credential: Option<String>,
}

pub(crate) async fn holders(
    State(app): State<App>,
    Query(query): Query<HoldersQuery>,
) -> Answer<Vec<HolderView>> {
    let name = query.credential.as_deref().map(credential_name).transpose()?;
    Ok(Json(app.handle.holders(name.as_ref()).await?))
}

pub(crate) async fn hosts(State(app): State<App>) -> Answer<Vec<HostSummary>> {
    Ok(Json(app.handle.hosts().await?))
}

pub(crate) async fn host(State(app): State<App>, Path(host): Path<String>) -> Answer<HostDetail> {
    Ok(Json(app.handle.host(&host).await?))
}

#[derive(Deserialize)]
pub(crate) struct AuditQuery {
    after: Option<u64>,
    last: Option<u32>,
    before: Option<u64>,
    limit: Option<u32>,
    subject: Option<String>,
}

pub(crate) async fn audit(State(app): State<App>, Query(query): Query<AuditQuery>) -> Answer<AuditPage> {
    if let Some(last) = query.last {
        let page = app.handle.audit_before(query.before, last.min(AUDIT_ROWS_MAX), query.subject).await?;
        return Ok(Json(page));
    }
    let limit = query.limit.unwrap_or(AUDIT_ROWS).min(AUDIT_ROWS_MAX);
    Ok(Json(app.handle.audit(query.after.unwrap_or(0), limit, query.subject).await?))
}

pub(crate) fn credential_name(text: &str) -> Result<CredentialName, Failure> {
    text.parse().map_err(|error: lifecycle::id::InvalidName| {
        Failure::new(422, "invalid", error.to_string(), "see `esoctl credential list` for the names")
    })
}

pub(crate) fn version(text: &str) -> Result<Version, Failure> {
    text.parse().map_err(|error: lifecycle::id::InvalidNumber| {
        Failure::new(422, "invalid", error.to_string(), "see `esoctl credential show` for the versions")
    })
}
