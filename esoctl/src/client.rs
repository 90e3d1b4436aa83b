//! The API as it is called.

use std::time::Duration;

use protocol::api::{PROBLEM_CONTENT_TYPE, Problem};
use reqwest::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use transport::{Names, TlsIdentity, Trust, client_config, http_client};
use zeroize::Zeroizing;

use crate::exit::Exit;
use crate::settings::{Settings, SettingsError};

/// Longer than the control plane lets a question for changes wait.
const ANSWER_TIME_MAX: Duration = Duration::from_mins(1);
/// The largest answer: a host with many holders.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The certificates.
    #[error("failed to prepare TLS: {0}")]
    Tls(String),
    /// The command line names something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// No answer.
    #[error("failed to reach {server}: {why}")]
    Unreachable {
        /// Whom.
        server: String,
        /// What happened.
        why: String,
    },
    /// The control plane's own word.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// An answer that is none.
    #[error(
        "{server} answered with something else than expected ({why}); are esoctl and control plane of one version?"
    )]
    Answer {
        /// Who.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// A local file or stream.
    #[error("{0}")]
    Local(String),
}

impl From<Problem> for ClientError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl ClientError {
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) | Self::Tls(_) | Self::Usage(_) => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Problem(problem) => match problem.status {
                401 | 403 => Exit::Forbidden,
                404 => Exit::Missing,
                409 => Exit::Refused,
                // What was asked for cannot be meant, in whatever state.
                422 => Exit::Usage,
                503 => Exit::Unreachable,
                _ => Exit::Failed,
            },
            Self::Answer { .. } | Self::Local(_) => Exit::Failed,
        }
    }
}

/// One control plane, and who we are to it.
pub(crate) struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<Zeroizing<String>>,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Result<Self, ClientError> {
        let tls = |error: &dyn std::fmt::Display| ClientError::Tls(error.to_string());
        let trust = Trust::from_pem(&settings.ca).map_err(|error| tls(&error))?;
        let identity = match &settings.certificate_and_key {
            None => None,
            Some((certificate, key)) => {
                Some(TlsIdentity::from_pem(certificate, key).map_err(|error| tls(&error))?)
            }
        };
        let config = client_config(identity.as_ref(), &trust, Names::Checked).map_err(|error| tls(&error))?;
        let http = http_client(config).timeout(ANSWER_TIME_MAX).build().map_err(|error| tls(&error))?;
        Ok(Self { http, server: settings.server, token: settings.token })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.call(Method::GET, path, &[], None::<&()>).await
    }

    pub(crate) async fn query<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.call(Method::GET, path, query, None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, &[], body).await
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path, &[], Some(body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, &[], body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let mut request = self.http.request(method, self.url(path, query)?);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.as_str());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let is_problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(PROBLEM_CONTENT_TYPE.as_bytes()));
        let mut text = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if text.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.answer(&"too large"));
            }
            text.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            return serde_json::from_slice(&text).map_err(|error| self.answer(&error));
        }
        if is_problem {
            let problem: Problem = serde_json::from_slice(&text).map_err(|error| self.answer(&error))?;
            return Err(problem.into());
        }
        Err(self.answer(&format!("status {status}")))
    }

    /// Names may have any character; each part is escaped by itself.
    fn url(&self, path: &[&str], query: &[(&str, String)]) -> Result<reqwest::Url, ClientError> {
        let wrong = || ClientError::Settings(SettingsError::Server(self.server.clone()));
        let mut url = reqwest::Url::parse(&self.server).map_err(|_| wrong())?;
        url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().push("v1").extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        // The innermost error says what happened; those around it only that something did.
        let mut why: &dyn std::error::Error = error;
        while let Some(inner) = why.source() {
            why = inner;
        }
        let why = why.to_string();
        let hint = if error.is_timeout() {
            "; no answer came in time"
        } else if why.contains("UnknownIssuer") {
            "; the authority of --ca did not make its certificate: another control plane, or another authority file"
        } else if why.contains("NotValidForName") {
            "; give `serve` this name with --name, or call it by another"
        } else {
            "; is it running, and is --server right?"
        };
        ClientError::Unreachable { server: self.server.clone(), why: format!("{why}{hint}") }
    }

    fn answer(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Answer { server: self.server.clone(), why: why.to_string() }
    }
}
