//! Handlers for hosts, and about hosts.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use engine::HandleError;
use http::{HeaderValue, header};
use identity::Caller;
use lifecycle::TargetId;
use protocol::api::{Done, EnrolToken, EnrolTokenIssued, Excuse, Labels, Reason};
use protocol::enrol::{EnrolRequest, EnrolResponse, RenewRequest};
use protocol::{FRAMES_CONTENT_TYPE, Frame, HostId, UnixMillis, limit};
use transport::Peer;

use crate::answer::{Answer, Body, Failure, Frames};
use crate::app::App;
use crate::operate::{done, reason};

/// How many of those whom an excuse strikes are named.
const NAMED_MAX: usize = 5;

pub(crate) async fn enroll(
    State(app): State<App>,
    Body(request): Body<EnrolRequest>,
) -> Answer<EnrolResponse> {
    let (host, response) = app.identities.enrol(&request, UnixMillis::now()).await?;
    app.handle.host_changed(host).await?;
    tracing::info!(%host, address = request.address, "a host enrolled");
    Ok(Json(response))
}

pub(crate) async fn renew(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<RenewRequest>,
) -> Answer<EnrolResponse> {
    let (host, response) = app.identities.renew(&peer, &request, UnixMillis::now()).await?;
    app.handle.host_changed(host).await?;
    Ok(Json(response))
}

pub(crate) async fn report(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Frames(body): Frames,
) -> Result<Response, Failure> {
    let Caller::Host(host) = caller else {
        return Err(Failure::new(403, "wrong_identity", "only hosts report", "call as a host"));
    };
    let frame = Frame::parse(&body, limit::REPORT_BYTES_MAX).map_err(|error| {
        Failure::new(422, "malformed_frame", error.to_string(), "update the host's software")
    })?;
    let acknowledgement = app.handle.report(frame, host).await?;
    let mut response = acknowledgement.to_bytes().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(FRAMES_CONTENT_TYPE));
    Ok(response)
}

pub(crate) async fn enroll_token(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<EnrolToken>,
) -> Answer<EnrolTokenIssued> {
    let actor = caller.actor();
    let bundle = app.identities.issue_token(&request, &app.url, &actor, UnixMillis::now()).await?;
    Ok(Json(EnrolTokenIssued { token: bundle.token.to_string(), expires_at: bundle.expires_at, bundle }))
}

/// A host by its id or name.
async fn find(app: &App, id_or_name: &str) -> Result<HostId, Failure> {
    Ok(app.handle.host(id_or_name).await?.summary.id)
}

/// A host by its id or name, or else a store target.
async fn find_target(app: &App, named: &str) -> Result<TargetId, Failure> {
    match app.handle.host(named).await {
        Ok(host) => Ok(host.summary.id.target()),
        Err(HandleError::Missing(_)) => Ok(app.handle.store_target(named).await?),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn label(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(host): Path<String>,
    Body(labels): Body<Labels>,
) -> Answer<Done> {
    identity::check_labels(&labels.labels)?;
    let host = find(&app, &host).await?;
    app.handle.label_host(&caller.actor(), host, labels.labels).await?;
    Ok(done("labelled; selectors follow now"))
}

pub(crate) async fn excuse(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(host): Path<String>,
    Body(excuse): Body<Excuse>,
) -> Answer<Done> {
    let why = reason(&excuse.reason)?;
    let target = find_target(&app, &host).await?;
    let name = &excuse.credential;
    app.handle.excuse(&caller.actor(), name, target.clone(), excuse.version, why).await?;
    let known = app.handle.holders(Some(name)).await?;
    let known = known.into_iter().filter(|one| one.target == target && one.version == excuse.version);
    Ok(done(excused(&known.map(|one| one.description).collect::<Vec<_>>())))
}

/// What an excuse costs is said with it.
fn excused(known: &[String]) -> String {
    let named = known.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    let more = match known.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    match known {
        [] => "excused until it reports again".to_owned(),
        _ => format!("excused until it reports again; once the version is revoked these fail: {named}{more}"),
    }
}

pub(crate) async fn retire(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(host): Path<String>,
    Body(retire): Body<Reason>,
) -> Answer<Done> {
    let why = reason(&retire.reason)?;
    let target = find_target(&app, &host).await?;
    if let Ok(host) = HostId::try_from(&target) {
        app.handle.retire_host(&caller.actor(), host, why).await?;
        return Ok(done("retired: it counts for no version any more, and its certificate is refused"));
    }
    app.handle.retire_store(&caller.actor(), target, why).await?;
    Ok(done("retired: it counts for no version any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_excuses_a_host_is_told_who_fails() {
        assert_eq!(excused(&[]), "excused until it reports again");
        let known: Vec<String> = (1..=7).map(|n| format!("process {n}")).collect();
        let told = excused(&known);
        assert!(
            told.contains("these fail: process 1; ") && told.ends_with("process 5; and 2 more"),
            "{told}"
        );
    }
}
