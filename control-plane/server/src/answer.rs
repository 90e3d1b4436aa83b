//! Bodies in and out: JSON within limits, and errors as problems that say what to do.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use axum::{Json, http};
use engine::HandleError;
use http::{HeaderValue, StatusCode, header};
use identity::{AccessError, EnrolError, OperatorError, RenewError};
use protocol::api::{JSON_CONTENT_TYPE, PROBLEM_CONTENT_TYPE, Problem};
use serde::de::DeserializeOwned;

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

/// What a handler returns.
pub(crate) type Answer<T> = Result<Json<T>, Failure>;

impl Failure {
    pub(crate) fn new(status: u16, code: &str, detail: impl Into<String>, action: &str) -> Self {
        Self(Box::new(Problem::new(status, code, detail, action)))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&*self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<HandleError> for Failure {
    fn from(error: HandleError) -> Self {
        Self(Box::new(error.problem()))
    }
}

const SEE_LOG: &str = "see the control plane's log, then try again";

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        let text = error.to_string();
        match error {
            AccessError::Nobody => Self::new(
                401,
                "no_identity",
                text,
                "set a client certificate or a token in esoctl's configuration",
            ),
            AccessError::Unknown => {
                Self::new(401, "unknown_identity", text, "ask an admin for `esoctl operator add`")
            }
            AccessError::Retired(_) => {
                Self::new(403, "host_retired", text, "set it up anew and enrol it with a new bundle")
            }
            AccessError::OtherKey(_) => Self::new(403, "foreign_key", text, "enrol the host again"),
            AccessError::Store(_) => Self::new(503, "store", text, SEE_LOG),
        }
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        let text = error.to_string();
        match error {
            EnrolError::Token => {
                Self::new(401, "bad_token", text, "make a new one with `esoctl host enroll-token`")
            }
            EnrolError::Registration(_) => {
                Self::new(403, "foreign_registration", text, "enrol with a fresh bundle")
            }
            EnrolError::Retired(_) => Self::new(409, "host_retired", text, "set the machine up anew"),
            EnrolError::Csr(_)
            | EnrolError::Address(_)
            | EnrolError::Name(_)
            | EnrolError::Labels(_)
            | EnrolError::Life => Self::new(422, "invalid", text, "correct the request"),
            EnrolError::Authority(_) | EnrolError::Random(_) => Self::new(500, "authority", text, SEE_LOG),
            EnrolError::Store(_) => Self::new(503, "store", text, SEE_LOG),
        }
    }
}

impl From<RenewError> for Failure {
    fn from(error: RenewError) -> Self {
        let text = error.to_string();
        match error {
            RenewError::Access(error) => error.into(),
            RenewError::OtherKey => {
                Self::new(403, "other_key", text, "renew with the present key, or enrol again")
            }
            RenewError::Csr(_) | RenewError::Address(_) => {
                Self::new(422, "invalid", text, "correct the request")
            }
            RenewError::Authority(_) => Self::new(500, "authority", text, SEE_LOG),
            RenewError::Store(_) => Self::new(503, "store", text, SEE_LOG),
        }
    }
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        let text = error.to_string();
        match error {
            OperatorError::Name(_) | OperatorError::Life(_) | OperatorError::Csr(_) => {
                Self::new(422, "invalid", text, "correct the request")
            }
            OperatorError::Store(store::StoreError::Exists(_)) => {
                Self::new(409, "exists", text, "use another key")
            }
            OperatorError::Authority(_) | OperatorError::Random => Self::new(500, "authority", text, SEE_LOG),
            OperatorError::Store(_) => Self::new(503, "store", text, SEE_LOG),
        }
    }
}

impl From<store::StoreError> for Failure {
    fn from(error: store::StoreError) -> Self {
        Self::new(503, "store", error.to_string(), SEE_LOG)
    }
}

/// A JSON body. Unknown fields are errors, and what is wrong is said.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        expect_content_type(&request, JSON_CONTENT_TYPE)?;
        let bytes = bytes(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let place = (error.line(), error.column());
            // serde's text repeats what was sent, which may be a value; it names fields, and that is all we tell.
            let detail = match error.classify() {
                serde_json::error::Category::Data => shape(&error.to_string()),
                _ => "it is not whole JSON".to_owned(),
            };
            let detail = format!("the body cannot be read at line {} column {}: {detail}", place.0, place.1);
            Failure::new(
                422,
                "invalid",
                detail,
                "compare the body with the OpenAPI document at /v1/openapi.json",
            )
        })
    }
}

/// Of serde's sentence the part that names fields, never what was sent in them.
fn shape(text: &str) -> String {
    match text.split_once('`') {
        Some((start, _)) if start.starts_with("unknown field") || start.starts_with("missing field") => {
            text.split(" at line").next().unwrap_or(start).to_owned()
        }
        _ => "a field has another type than expected".to_owned(),
    }
}

/// A body of frames.
pub(crate) struct Frames(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Frames {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        expect_content_type(&request, protocol::FRAMES_CONTENT_TYPE)?;
        bytes(request, state).await.map(Self)
    }
}

fn expect_content_type(request: &Request, expected: &str) -> Result<(), Failure> {
    let found = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let found = found.map(|value| value.split(';').next().unwrap_or_default().trim());
    if found == Some(expected) {
        return Ok(());
    }
    let detail = format!("the body's content type is not {expected}");
    Err(Failure::new(415, "content_type", detail, "set the header Content-Type"))
}

async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Failure> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        let status = rejection.into_response().status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            Failure::new(413, "too_large", "the body is larger than this route takes", "send less at once")
        } else {
            Failure::new(400, "broken_body", "the body did not arrive whole", "try again")
        }
    })
}
