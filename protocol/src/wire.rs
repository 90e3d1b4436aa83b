//! Forms on the wire: bounded JSON, fixed bytes as hex, any bytes as base64.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limit::JSON_DEPTH_MAX;

/// Why bytes are not the JSON of a type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Over the limit; nothing of it was parsed.
    #[error("{bytes} bytes where at most {bytes_max} are allowed")]
    TooLarge {
        /// How many came.
        bytes: usize,
        /// How many may come.
        bytes_max: usize,
    },
    /// Nested too deeply; nothing of it was parsed.
    #[error("nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// Not the JSON of this type. Says where, never what stood there.
    #[error("malformed at line {line}, column {column}: {kind}; both ends must run compatible versions")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// Syntax, data or end of input.
        kind: &'static str,
    },
}

/// Why a type cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes where at most {bytes_max} are allowed")]
pub struct TooLarge {
    /// How many it would be.
    pub bytes: usize,
    /// How many may be.
    pub bytes_max: usize,
}

pub(crate) fn decode<T: DeserializeOwned>(json: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
    if json.len() > bytes_max {
        return Err(DecodeError::TooLarge { bytes: json.len(), bytes_max });
    }
    if depth(json) > JSON_DEPTH_MAX {
        return Err(DecodeError::TooDeep);
    }
    // The text of serde's error may quote the input, so only its place is kept.
    serde_json::from_slice(json).map_err(|error| DecodeError::Malformed {
        line: error.line(),
        column: error.column(),
        kind: match error.classify() {
            serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Eof => "the end is missing",
            serde_json::error::Category::Data | serde_json::error::Category::Io => {
                "an unexpected field or value"
            }
        },
    })
}

/// The deepest nesting of arrays and objects, outside strings.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    deepest
}

/// The JSON of a type of ours. All of them have string keys and finite numbers, so only size can be wrong.
pub(crate) fn encode<T: Serialize>(value: &T, bytes_max: usize) -> Result<Vec<u8>, TooLarge> {
    let Ok(json) = serde_json::to_vec(value) else {
        unreachable!("wire types have string keys and finite numbers")
    };
    if json.len() > bytes_max {
        return Err(TooLarge { bytes: json.len(), bytes_max });
    }
    Ok(json)
}

/// `Vec<u8>` fields as base64.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;

    pub(crate) fn serialize<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("not base64"))
    }
}

/// A public type of a fixed number of bytes, written as lower-case hex.
macro_rules! hex_type {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $bytes]);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::id::InvalidHex;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let invalid = $crate::id::InvalidHex { what: $what, digits: $bytes * 2 };
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(invalid);
                }
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| invalid)?;
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": format!("^[0-9a-f]{{{}}}$", $bytes * 2) })
            }
        }
    };
}

pub(crate) use hex_type;
