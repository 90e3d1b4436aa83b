//! Templates of files: text with `{{ .field }}`, replaced by that field of the value and by nothing else.
//!
//! There are no functions, no conditions and no references: a template can neither read nor resolve anything, and
//! its result is as large as text and fields together at most.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The most bytes that a template may have.
pub const TEMPLATE_BYTES_MAX: usize = 64 * 1024;
/// The most substitutions that a template may have.
pub const SUBSTITUTIONS_MAX: usize = 256;

/// A parsed template.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(String),
}

/// Why a text is not a template, or a template cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("a template has {{{{ without }}}}: close it, as in {{{{ .password }}}}")]
    Open,
    /// Something else than a field's name between the braces.
    #[error(
        "a template has {{{{{0}}}}}: only the name of a field is possible there, as in {{{{ .password }}}}; there are no functions"
    )]
    NotAField(String),
    /// Over a limit.
    #[error(
        "a template is larger than {TEMPLATE_BYTES_MAX} bytes or has more than {SUBSTITUTIONS_MAX} substitutions"
    )]
    TooLarge,
    /// The value has no such field.
    #[error("the value has no field {name:?}: it has {}", known.join(", "))]
    Unknown {
        /// Which field.
        name: String,
        /// The fields that it has.
        known: Vec<String>,
    },
    /// The result is over a limit.
    #[error("the rendered file is larger than {bytes_max} bytes")]
    ResultTooLarge {
        /// The limit.
        bytes_max: usize,
    },
}

impl Template {
    /// Parses a template.
    pub fn new(text: impl Into<String>) -> Result<Self, TemplateError> {
        let text = text.into();
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLarge);
        }
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((literal, tail)) = rest.split_once("{{") {
            let (inner, tail) = tail.split_once("}}").ok_or(TemplateError::Open)?;
            let name = inner.trim().strip_prefix('.').filter(|name| is_field(name));
            let name = name.ok_or_else(|| TemplateError::NotAField(inner.chars().take(40).collect()))?;
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(Part::Field(name.to_owned()));
            rest = tail;
        }
        parts.push(Part::Literal(rest.to_owned()));
        if parts.len() > 2 * SUBSTITUTIONS_MAX + 1 {
            return Err(TemplateError::TooLarge);
        }
        Ok(Self { text, parts })
    }

    /// The names of the fields that it needs.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// Renders it with the fields that `field` knows. `known` names them, for the error only.
    pub fn render<'a>(
        &self,
        field: impl Fn(&str) -> Option<&'a [u8]>,
        known: impl Fn() -> Vec<String>,
        bytes_max: usize,
    ) -> Result<Zeroizing<Vec<u8>>, TemplateError> {
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            pieces.push(match part {
                Part::Literal(text) => text.as_bytes(),
                Part::Field(name) => field(name)
                    .ok_or_else(|| TemplateError::Unknown { name: name.clone(), known: known() })?,
            });
        }
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        if bytes > bytes_max {
            return Err(TemplateError::ResultTooLarge { bytes_max });
        }
        // Exactly sized: a buffer that grew would leave its older self behind.
        let mut out = Zeroizing::new(Vec::with_capacity(bytes));
        for piece in pieces {
            out.extend_from_slice(piece);
        }
        Ok(out)
    }
}

fn is_field(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.text)
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        Self::new(text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests stop at what they did not expect")]
mod tests {
    use super::*;

    fn field(name: &str) -> Option<&'static [u8]> {
        match name {
            "username" => Some(b"u"),
            "password" => Some(b"{{ .username }}"),
            "raw" => Some(b"\xff\0"),
            _ => None,
        }
    }

    fn render(text: &str) -> Result<Vec<u8>, TemplateError> {
        let known = || vec!["username".to_owned()];
        Template::new(text)?.render(field, known, 64).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn fields_are_substituted_and_nothing_else() {
        assert_eq!(render("").unwrap(), b"");
        assert_eq!(render("user={{ .username }};{{.username}}").unwrap(), b"user=u;u");
        assert_eq!(render("{{ .password }}").unwrap(), b"{{ .username }}", "a value is never a template");
        assert_eq!(render("{{ .raw }}!").unwrap(), b"\xff\0!");
        assert_eq!(render("}} {x} $HOME ${HOME}").unwrap(), b"}} {x} $HOME ${HOME}");
    }

    #[test]
    fn there_are_no_functions_paths_or_references() {
        for text in [
            "{{ include \"/etc/shadow\" }}",
            "{{ .a | b64dec }}",
            "{{ getHostByName .a }}",
            "{{ . }}",
            "{{ .a/b }}",
            "{{ range .a }}",
            "{{/* x */}}",
            "{{{{ .a }}}}",
            "{{ .Values[\"a\"] }}",
            "{{",
            "{{ .a",
            "{{ .a }} {{ .b",
        ] {
            assert!(Template::new(text).is_err(), "{text}");
        }
        assert!(matches!(render("{{ .nope }}"), Err(TemplateError::Unknown { .. })));
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(Template::new("x".repeat(TEMPLATE_BYTES_MAX + 1)).is_err());
        assert!(Template::new("{{ .a }}".repeat(SUBSTITUTIONS_MAX)).is_ok());
        assert!(Template::new("{{ .a }}".repeat(SUBSTITUTIONS_MAX + 1)).is_err());
        assert!(matches!(render(&"x".repeat(65)), Err(TemplateError::ResultTooLarge { bytes_max: 64 })));
    }
}
