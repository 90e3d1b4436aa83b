//! A value: named fields that nobody sees by accident.

use std::collections::BTreeMap;

use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize, Zeroizing};

/// The most fields that a value may have.
pub const FIELDS_MAX: usize = 64;
/// The most bytes that one field may have.
pub const FIELD_BYTES_MAX: usize = 256 * 1024;
/// The most bytes that all fields together may have.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes that a field's name may have.
pub const FIELD_NAME_BYTES_MAX: usize = 253;

/// Why bytes or fields are not a value. Names at most, never contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The stored bytes are not what [`SecretValue::expose_encoded`] writes.
    #[error("failed to read a stored value: it is not in the form that this program writes")]
    Malformed,
    /// A field's name is empty, too long, or could not be a file's name.
    #[error(
        "{0:?} cannot name a field: use 1 to {FIELD_NAME_BYTES_MAX} characters without '/', NUL or line breaks, and neither '.' nor '..' at the start of '..'"
    )]
    Name(String),
    /// Too many fields.
    #[error("the value has more than {FIELDS_MAX} fields: split it into several credentials")]
    TooManyFields,
    /// A field is too large.
    #[error("the field {0:?} is larger than {FIELD_BYTES_MAX} bytes")]
    FieldTooLarge(String),
    /// All fields together are too large.
    #[error("the value is larger than {VALUE_BYTES_MAX} bytes")]
    TooLarge,
}

/// A value of a credential: fields by name, in the order of their names, wiped when dropped.
///
/// It has neither `Debug` nor `Display` nor `Serialize`: the only way to a field is through a method whose name
/// begins with `expose`.
#[derive(Clone, Default)]
pub struct SecretValue {
    fields: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl SecretValue {
    /// A value without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field, or replaces it.
    #[must_use]
    pub fn with(mut self, name: &str, content: &[u8]) -> Self {
        self.fields.insert(name.to_owned(), Zeroizing::new(content.to_vec()));
        self
    }

    /// Adds a field, or replaces it, within the limits.
    pub fn insert(&mut self, name: &str, content: Zeroizing<Vec<u8>>) -> Result<(), ValueError> {
        if !is_field_name(name) {
            return Err(ValueError::Name(name.chars().take(60).collect()));
        }
        if content.len() > FIELD_BYTES_MAX {
            return Err(ValueError::FieldTooLarge(name.to_owned()));
        }
        if self.fields.len() >= FIELDS_MAX && !self.fields.contains_key(name) {
            return Err(ValueError::TooManyFields);
        }
        let others = self.fields.iter().filter(|(known, _)| *known != name);
        if others.map(|(_, content)| content.len()).sum::<usize>() + content.len() > VALUE_BYTES_MAX {
            return Err(ValueError::TooLarge);
        }
        self.fields.insert(name.to_owned(), content);
        Ok(())
    }

    /// The names of the fields, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// One field.
    pub fn expose(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(|content| content.as_slice())
    }

    /// One field, where it is text.
    pub fn expose_text(&self, name: &str) -> Option<&str> {
        self.expose(name).and_then(|content| std::str::from_utf8(content).ok())
    }

    /// All fields, in the order of their names.
    pub fn expose_fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    /// The whole value in one piece, for whoever encrypts and stores it.
    pub fn expose_encoded(&self) -> Zeroizing<Vec<u8>> {
        // Grown to its full size at once: a buffer that moves leaves copies behind.
        let size: usize =
            self.fields.iter().map(|(name, content)| name.len() + content.len() * 4 / 3 + 16).sum();
        let mut encoded = Zeroizing::new(Vec::with_capacity(size + 16));
        encoded.extend_from_slice(b"eso-value-1\n");
        for (name, content) in &self.fields {
            let mut text = STANDARD.encode(content.as_slice());
            encoded.extend_from_slice(name.as_bytes());
            encoded.push(b'\0');
            encoded.extend_from_slice(text.as_bytes());
            encoded.push(b'\n');
            text.zeroize();
        }
        encoded
    }

    /// Reads what [`Self::expose_encoded`] wrote.
    pub fn from_encoded(encoded: &[u8]) -> Result<Self, ValueError> {
        let rest = encoded.strip_prefix(b"eso-value-1\n").ok_or(ValueError::Malformed)?;
        let mut value = Self::new();
        for line in rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let mut parts = line.splitn(2, |byte| *byte == b'\0');
            let (Some(name), Some(text)) = (parts.next(), parts.next()) else {
                return Err(ValueError::Malformed);
            };
            let name = std::str::from_utf8(name).map_err(|_| ValueError::Malformed)?;
            let content = STANDARD.decode(text).map_err(|_| ValueError::Malformed)?;
            value.insert(name, Zeroizing::new(content))?;
        }
        Ok(value)
    }

    /// Whether both have the same fields with the same contents, in a time that does not depend on the contents.
    pub fn same_as(&self, other: &Self) -> bool {
        if !self.names().eq(other.names()) {
            return false;
        }
        let pairs = self.fields.values().zip(other.fields.values());
        let differing = pairs.filter(|(one, two)| constant_time::verify_slices_are_equal(one, two).is_err());
        differing.count() == 0
    }
}

/// A field becomes a file on a host, so its name must be able to name one.
fn is_field_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= FIELD_NAME_BYTES_MAX
        && name != "."
        && !name.starts_with("..")
        && !name.chars().any(|character| character == '/' || character.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_being_stored() {
        let value =
            SecretValue::new().with("username", b"u").with("password", b"p\n\0\xff").with("empty", b"");
        let again = SecretValue::from_encoded(&value.expose_encoded()).ok().unwrap();
        assert!(again.same_as(&value));
        assert_eq!(again.names().collect::<Vec<_>>(), ["empty", "password", "username"]);
        assert!(!again.same_as(&SecretValue::new().with("username", b"u")));
        assert!(!again.same_as(&value.clone().with("password", b"q")));
    }

    #[test]
    fn what_could_not_name_a_file_names_no_field() {
        for name in ["", ".", "..", "..data", "a/b", "a\nb", "a\0b", &"x".repeat(254)] {
            let mut value = SecretValue::new();
            assert!(matches!(value.insert(name, Zeroizing::default()), Err(ValueError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let mut value = SecretValue::new();
        let large = || Zeroizing::new(vec![0; FIELD_BYTES_MAX]);
        assert!(value.insert("a", Zeroizing::new(vec![0; FIELD_BYTES_MAX + 1])).is_err());
        for name in ["a", "b", "c", "d"] {
            value.insert(name, large()).unwrap();
        }
        assert_eq!(value.insert("e", Zeroizing::new(vec![0])), Err(ValueError::TooLarge));
        value.insert("a", large()).unwrap();
        let mut many = SecretValue::new();
        for number in 0..FIELDS_MAX {
            many.insert(&number.to_string(), Zeroizing::default()).unwrap();
        }
        assert_eq!(many.insert("more", Zeroizing::default()), Err(ValueError::TooManyFields));
    }

    #[test]
    fn foreign_bytes_are_no_value() {
        for bytes in [&b""[..], b"eso-value-2\n", b"eso-value-1\nname", b"eso-value-1\nname\0***\n"] {
            assert!(SecretValue::from_encoded(bytes).is_err());
        }
    }
}
