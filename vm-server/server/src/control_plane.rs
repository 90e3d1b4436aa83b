//! Calls to the control plane: enrol, renew, report. Every answer is bounded.

use std::time::Duration;

use protocol::enrol::{EnrolRequest, EnrolResponse, RenewRequest};
use protocol::frame::HEADER_BYTES;
use protocol::report::sentence;
use protocol::{FRAMES_CONTENT_TYPE, Frame, limit};
use transport::{Names, TlsIdentity, Trust, client_config, http_client};
use zeroize::Zeroizing;

/// The whole time of one call.
const CALL_TIME: Duration = Duration::from_secs(20);

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// TLS cannot be prepared from what is kept.
    #[error("failed to prepare TLS: {0}")]
    Prepare(String),
    /// Nobody answered, or not who should.
    #[error("failed to reach the control plane at {url}: {error}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        error: String,
    },
    /// It answered, and not with yes.
    #[error("the control plane at {url} refused with status {status}: {message}")]
    Refused {
        /// Where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// The answer is not what was asked for.
    #[error("the control plane at {url} gave an answer that cannot be used: {error}")]
    BadAnswer {
        /// Where.
        url: String,
        /// What is wrong.
        error: String,
    },
}

/// One connection to the control plane, kept while it is used.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    url: String,
    http: reqwest::Client,
}

impl ControlPlane {
    /// At this address, whoever of `trust` answers there; as `identity` if there is one already.
    pub fn new(url: &str, identity: Option<&TlsIdentity>, trust: &Trust) -> Result<Self, CallError> {
        let prepare = |error: &dyn std::fmt::Display| CallError::Prepare(error.to_string());
        let config = client_config(identity, trust, Names::Unchecked).map_err(|error| prepare(&error))?;
        let http = http_client(config).timeout(CALL_TIME).pool_max_idle_per_host(1).build();
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http: http.map_err(|error| prepare(&error))? })
    }

    /// Exchanges the token for a certificate.
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<EnrolResponse, CallError> {
        let body = Zeroizing::new(serde_json::to_vec(request).unwrap_or_default());
        self.certificate("/v1/enroll", body.to_vec()).await
    }

    /// Asks for the next certificate for the same key.
    pub async fn renew(&self, request: &RenewRequest) -> Result<EnrolResponse, CallError> {
        self.certificate("/v1/renew", serde_json::to_vec(request).unwrap_or_default()).await
    }

    async fn certificate(&self, path: &str, body: Vec<u8>) -> Result<EnrolResponse, CallError> {
        let answer = self.call(path, "application/json", body, limit::ENROL_BYTES_MAX).await?;
        serde_json::from_slice(&answer).map_err(|error| self.bad_answer(path, &error))
    }

    /// Hands a report over and gets the acknowledgement.
    pub async fn report(&self, report: &Frame) -> Result<Frame, CallError> {
        let bytes_max = HEADER_BYTES + limit::ACK_BYTES_MAX;
        let answer = self.call("/v1/reports", FRAMES_CONTENT_TYPE, report.to_bytes(), bytes_max).await?;
        Frame::parse(&answer, limit::ACK_BYTES_MAX).map_err(|error| self.bad_answer("/v1/reports", &error))
    }

    async fn call(
        &self,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
        answer_bytes_max: usize,
    ) -> Result<Vec<u8>, CallError> {
        let url = format!("{}{path}", self.url);
        let unreachable = |error: reqwest::Error| CallError::Unreachable {
            url: url.clone(),
            error: causes(&error.without_url()),
        };
        let request = self.http.post(&url).header(http::header::CONTENT_TYPE, content_type).body(body);
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > answer_bytes_max {
                return Err(self.bad_answer(path, &format!("more than {answer_bytes_max} bytes")));
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok(answer)
        } else {
            let message = sentence(&String::from_utf8_lossy(&answer));
            Err(CallError::Refused { url, status: status.as_u16(), message })
        }
    }

    fn bad_answer(&self, path: &str, error: &dyn std::fmt::Display) -> CallError {
        CallError::BadAnswer { url: format!("{}{path}", self.url), error: error.to_string() }
    }
}

/// The error with what caused it: reqwest's own words are only "error sending request".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    sentence(&text)
}
