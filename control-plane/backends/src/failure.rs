//! How asking a backend ends when it does not end well.

use lifecycle::credential::Outcome;

/// Why a backend did not do what it was asked. The words say what to do, and never hold a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It may work later: asked again, nothing is done twice.
    #[error("{0}")]
    Retry(String),
    /// It will not work until somebody changes something, and the words say what.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// It may work later.
    pub fn retry(words: impl Into<String>) -> Self {
        Self::Retry(words.into())
    }

    /// It needs an operator.
    pub fn refused(words: impl Into<String>) -> Self {
        Self::Refused(words.into())
    }

    /// The words.
    pub fn words(&self) -> &str {
        match self {
            Self::Retry(words) | Self::Refused(words) => words,
        }
    }

    /// The same, said of something: `failed to WHAT: ...`.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        let say = |words: String| format!("failed to {what}: {words}");
        match self {
            Self::Retry(words) => Self::Retry(say(words)),
            Self::Refused(words) => Self::Refused(say(words)),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry(words) => Self::Failed(words),
            Failure::Refused(words) => Self::Refused(words),
        }
    }
}
