//! The written form of a backend.

use std::time::Duration;

/// How long one request to a backend may take, unless its `timeoutSeconds` says otherwise.
const TIMEOUT_SECONDS: u64 = 10;
/// The most that `timeoutSeconds` may say.
const TIMEOUT_SECONDS_MAX: u64 = 120;

/// Why a `spec` is not one. What is wrong and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {words}")]
pub struct SpecError {
    /// The kind of the resource.
    pub kind: String,
    /// What is wrong, and what to do.
    pub words: String,
}

impl SpecError {
    pub(crate) fn new(kind: &str, words: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), words: words.into() }
    }

    pub(crate) fn unknown(kind: &str, known: &[&str]) -> Self {
        Self::new(kind, format!("this kind is not known here: use one of {}", known.join(", ")))
    }
}

/// The written form of a spec from JSON. Unknown keys are errors.
pub(crate) fn parse<'de, T: serde::Deserialize<'de>>(
    kind: &str,
    spec: &'de serde_json::Value,
) -> Result<T, SpecError> {
    T::deserialize(spec).map_err(|error| SpecError::new(kind, error.to_string()))
}

/// What `timeoutSeconds` says.
pub(crate) fn timeout(kind: &str, written: Option<u64>) -> Result<Duration, SpecError> {
    seconds(kind, "timeoutSeconds", written.unwrap_or(TIMEOUT_SECONDS), TIMEOUT_SECONDS_MAX)
}

/// A key with a number of seconds, from 1.
pub(crate) fn seconds(kind: &str, key: &str, seconds: u64, max: u64) -> Result<Duration, SpecError> {
    if !(1..=max).contains(&seconds) {
        return Err(SpecError::new(kind, format!("`{key}` is {seconds}: use 1 to {max}")));
    }
    Ok(Duration::from_secs(seconds))
}
