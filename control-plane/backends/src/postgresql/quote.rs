//! The only way in which a name or a text gets into a statement.

use std::fmt;

/// The most bytes that PostgreSQL keeps of a name; what is longer it would cut in silence.
pub(super) const NAME_BYTES_MAX: usize = 63;

/// A name that can stand in a statement. Its `Display` is the quoted form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ident(String);

/// Why a text cannot be a name at the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum IdentError {
    #[error("is empty")]
    Empty,
    #[error("holds NUL, which PostgreSQL takes nowhere")]
    Nul,
    #[error("is {0} bytes long, and PostgreSQL keeps {NAME_BYTES_MAX}: choose a shorter one")]
    TooLong(usize),
    #[error("begins with pg_, which PostgreSQL keeps for itself")]
    Reserved,
    #[error("is a word that PostgreSQL keeps for itself")]
    Word,
}

impl Ident {
    pub(super) fn new(name: &str) -> Result<Self, IdentError> {
        if name.is_empty() {
            return Err(IdentError::Empty);
        }
        if name.contains('\0') {
            return Err(IdentError::Nul);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(IdentError::TooLong(name.len()));
        }
        if name.starts_with("pg_") {
            return Err(IdentError::Reserved);
        }
        // Refused by the server even when quoted.
        if name == "public" || name == "none" {
            return Err(IdentError::Word);
        }
        Ok(Self(name.to_owned()))
    }

    /// As it is, for where no quoting is done: parameters, logins.
    pub(super) fn raw(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A text as a literal that means the same whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_name() {
        for (name, quoted) in [
            ("orders", r#""orders""#),
            (r#"a"b"#, r#""a""b""#),
            (r#""; DROP TABLE t; --"#, r#""""; DROP TABLE t; --""#),
            ("b\u{f6}se \u{2603}", "\"b\u{f6}se \u{2603}\""),
            ("back\\slash", "\"back\\slash\""),
        ] {
            assert_eq!(Ident::new(name).unwrap().to_string(), quoted);
        }
    }

    #[test]
    fn what_the_server_would_cut_or_refuse_is_no_name() {
        assert_eq!(Ident::new(""), Err(IdentError::Empty));
        assert_eq!(Ident::new("a\0b"), Err(IdentError::Nul));
        assert_eq!(Ident::new(&"\u{f6}".repeat(32)), Err(IdentError::TooLong(64)));
        assert_eq!(Ident::new("pg_x"), Err(IdentError::Reserved));
        assert_eq!(Ident::new("none"), Err(IdentError::Word));
        assert!(Ident::new(&"x".repeat(63)).is_ok());
    }

    #[test]
    fn a_literal_stays_one_literal() {
        assert_eq!(literal("o'; DROP"), "'o''; DROP'");
        assert_eq!(literal(r"o\'"), r" E'o\\'''");
    }
}
