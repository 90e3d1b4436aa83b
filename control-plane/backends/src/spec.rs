//! The written form of a backend.

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
