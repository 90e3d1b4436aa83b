//! Errors, as RFC 9457 says, with what to do next.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An error that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` tells problems apart.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the HTTP status says, in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// A stable word such as `too_many_live`, for programs.
    pub code: String,
    /// What happened, with the object.
    pub detail: String,
    /// What to do next.
    pub action: String,
}

impl Problem {
    /// A problem of this HTTP status.
    pub fn new(
        status: u16,
        code: impl Into<String>,
        detail: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        let title = match status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            413 => "Content Too Large",
            415 => "Unsupported Media Type",
            422 => "Unprocessable Content",
            429 => "Too Many Requests",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        Self {
            kind: "about:blank".to_owned(),
            title: title.to_owned(),
            status,
            code: code.into(),
            detail: detail.into(),
            action: action.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)?;
        // Some details say what to do themselves.
        if self.action.is_empty() || self.detail.contains(&self.action) {
            return Ok(());
        }
        write!(f, "; {}", self.action)
    }
}

impl std::error::Error for Problem {}
