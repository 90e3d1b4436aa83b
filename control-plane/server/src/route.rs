//! One route: what it needs, what it takes, what it answers; and how a table of them becomes a router.

use std::time::Instant;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use http::{Method, StatusCode, header};
use identity::Caller;
use protocol::UnixMillis;
use protocol::api::Role;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use transport::Peer;

use crate::answer::Failure;
use crate::app::App;
use crate::figures::{self, Place};

/// Bodies of operators' requests.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Which identity a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// None: liveness and readiness.
    Nothing,
    /// An enrolment token, in the body.
    EnrolmentToken,
    /// The certificate of an enrolled host.
    Host,
    /// A scraper.
    Scraper,
    /// An operator of at least this role.
    Operator(Role),
}

pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a body is.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// There is none.
    Nothing,
    /// JSON of this schema.
    Json(SchemaOf),
    /// Signed frames.
    Frames,
    /// Plain text.
    Text,
}

/// One route.
pub struct Route {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: Method,
    /// With `{names}`.
    pub path: &'static str,
    /// Which identity it needs.
    pub needs: Needs,
    /// One line for people.
    pub summary: &'static str,
    pub(crate) query: &'static [(&'static str, &'static str)],
    pub(crate) takes: Content,
    pub(crate) answers: Content,
    body_bytes_max: usize,
    handler: MethodRouter<App>,
}

impl Route {
    pub(crate) fn new<H, T>(
        method: Method,
        path: &'static str,
        needs: Needs,
        summary: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let handler = match method {
            Method::POST => axum::routing::post(handler),
            Method::PUT => axum::routing::put(handler),
            Method::DELETE => axum::routing::delete(handler),
            _ => axum::routing::get(handler),
        };
        Self {
            method,
            path,
            needs,
            summary,
            query: &[],
            takes: Content::Nothing,
            answers: Content::Nothing,
            body_bytes_max: BODY_BYTES_MAX,
            handler,
        }
    }

    pub(crate) fn query(self, query: &'static [(&'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    pub(crate) fn takes<T: JsonSchema>(self) -> Self {
        Self { takes: Content::Json(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub(crate) fn answers<T: JsonSchema>(self) -> Self {
        Self { answers: Content::Json(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub(crate) fn exchanges_frames(self, body_bytes_max: usize) -> Self {
        Self { takes: Content::Frames, answers: Content::Frames, body_bytes_max, ..self }
    }

    pub(crate) fn answers_text(self) -> Self {
        Self { answers: Content::Text, ..self }
    }

    pub(crate) fn body_bytes_max(self, body_bytes_max: usize) -> Self {
        Self { body_bytes_max, ..self }
    }
}

/// A router of all routes, each behind the identity that it needs.
pub fn router(app: &App, table: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in table {
        let guard = middleware::from_fn_with_state((app.clone(), route.needs, route.path), admit);
        let place = Place { method: known(&route.method), route: route.path };
        let counter = middleware::from_fn_with_state((app.figures().clone(), place), figures::count);
        let handler = route.handler.layer(DefaultBodyLimit::max(route.body_bytes_max)).layer(guard);
        router = router.route(route.path, handler.layer(counter));
    }
    router.fallback(no_such_route).method_not_allowed_fallback(wrong_method).with_state(app.clone())
}

fn known(method: &Method) -> &'static str {
    match *method {
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "GET",
    }
}

async fn no_such_route(State(app): State<App>) -> Failure {
    app.figures().lost(StatusCode::NOT_FOUND);
    Failure::new(404, "no_such_route", "there is nothing here", "see docs/openapi.json for what there is")
}

async fn wrong_method(State(app): State<App>) -> Failure {
    app.figures().lost(StatusCode::METHOD_NOT_ALLOWED);
    Failure::new(
        405,
        "wrong_method",
        "this route does not take this method",
        "see docs/openapi.json for what there is",
    )
}

/// Lets a request through when the caller is who the route needs, and tells the handler who that is.
async fn admit(
    State((app, needs, route)): State<(App, Needs, &'static str)>,
    peer: Option<Extension<Peer>>,
    mut request: Request,
    next: Next,
) -> Response {
    if matches!(needs, Needs::Nothing | Needs::EnrolmentToken) {
        // A token is in the body; its handler checks it before anything else.
        return next.run(request).await;
    }
    let bearer = match bearer(&request) {
        Ok(bearer) => bearer,
        Err(failure) => return failure.into_response(),
    };
    let known = app.identities.authenticate(peer.as_deref(), bearer, UnixMillis::now()).await;
    let caller = match known {
        Ok(caller) => caller,
        Err(error) => return Failure::from(error).into_response(),
    };
    if let Err(failure) = suffices(needs, &caller) {
        tell_denied(&app, &caller, request.method(), route, request.uri().path(), &failure).await;
        return failure.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// That somebody was refused is told in the audit log, each kind of refusal once in a while.
pub(crate) async fn tell_denied(
    app: &App,
    caller: &Caller,
    method: &Method,
    route: &'static str,
    path: &str,
    failure: &Failure,
) {
    let (actor, code) = (caller.actor(), &failure.0.code);
    if let Some(more) = app.denials().news(&actor, route, code, Instant::now()) {
        let subject = path.chars().take(200).collect::<String>();
        let before = if more > 0 { format!("; {more} more since the last entry") } else { String::new() };
        app.audit(&actor, "denied", &subject, &format!("{method} refused: {code}{before}")).await;
    }
}

fn bearer(request: &Request) -> Result<Option<&str>, Failure> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    token.map(Some).ok_or_else(|| {
        Failure::new(
            401,
            "bad_authorization",
            "the Authorization header is not a bearer token",
            "write `Authorization: Bearer TOKEN`",
        )
    })
}

fn suffices(needs: Needs, caller: &Caller) -> Result<(), Failure> {
    let good = match (needs, caller) {
        (Needs::Nothing | Needs::EnrolmentToken, _) | (Needs::Host, Caller::Host(_)) => true,
        (Needs::Scraper, Caller::Operator(operator)) => operator.role == Role::Scraper,
        (Needs::Operator(least), Caller::Operator(operator)) => {
            operator.role != Role::Scraper && operator.role >= least
        }
        _ => false,
    };
    if good {
        return Ok(());
    }
    Err(match (needs, caller) {
        (Needs::Operator(least), Caller::Operator(operator)) if operator.role != Role::Scraper => {
            let detail = format!("{} may not do this: it needs the role {}", operator.name, word(least));
            Failure::new(403, "role", detail, "ask somebody with that role, or an admin for more rights")
        }
        _ => {
            let detail = format!("{} is not the kind of identity that this needs", caller.actor());
            let needed = match needs {
                Needs::Host => "call with the certificate of an enrolled host",
                Needs::Scraper => {
                    "call with a scraper's token; `esoctl operator add --role scraper` makes one"
                }
                _ => "call with an operator's certificate or token",
            };
            Failure::new(403, "wrong_identity", detail, needed)
        }
    })
}

pub(crate) const fn word(role: Role) -> &'static str {
    match role {
        Role::Scraper => "scraper",
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}
