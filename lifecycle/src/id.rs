//! Names and numbers. Each is a type of its own, so that no one of them is mistaken for another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most characters that a [`CredentialName`], [`SetName`] or [`ConsumerName`] may have.
pub const NAME_CHARS_MAX: usize = 253;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a valid {what}: use 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, '-', '_', '.', '@', ':' or '/', starting with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    text: String,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
                let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:/\\".contains(c));
                if first && rest && text.len() <= NAME_CHARS_MAX {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { what: $what, text: text.chars().take(80).collect() })
                }
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    )*};
}

names! {
    /// The named thing that is rotated, for example `orders-db`.
    CredentialName, "credential name";
    /// The files of one version on one target; all of them change together. For example `orders-db`.
    SetName, "set name";
    /// Who reads a set, as the host's policy names it: a systemd unit such as `orders.service`, or another name.
    ConsumerName, "consumer name";
    /// Where a version is delivered. For a VM it is the fingerprint of the applier's key (64 hex digits), so that
    /// a reimaged host of the same name is another target. Other kinds begin with their kind: `kv:secret/orders`.
    TargetId, "target";
    /// A consumer in one life of it, unique on its target: `unit:orders.service:3f9c...` (unit and invocation),
    /// `proc:4711:889123` (process and start time), `cgroup:/user.slice/...`.
    HolderId, "holder";
    /// One stretch without complete evidence on one target, named by the report that first showed it.
    GapId, "gap";
}

/// Names one boot of a host, opaque here: it is only ever compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// Names a life of the control plane's store: a counter above every one seen, and a random id.
///
/// Two epochs with the same counter and different ids are strangers: orders of the other id are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Epoch {
    /// Grows by one or more with every restore.
    pub counter: u32,
    /// Drawn at random when the epoch begins.
    pub id: u64,
}

/// One value of a credential: a number that only grows, within an epoch that only grows.
///
/// Shown as `7` in the first epoch and as `2.7` in later ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// The counter of the epoch in which it was minted.
    pub epoch: u32,
    /// Counts within the epoch.
    pub number: u32,
}

/// One intent on one host, "this set to that version", counted upwards within an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation {
    /// The counter of the epoch in which it was ordered.
    pub epoch: u32,
    /// Counts within the epoch; 0 is "none yet".
    pub number: u32,
}

/// Why a text is not a version or generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version: write a number such as 7, or EPOCH.NUMBER such as 2.7")]
pub struct InvalidNumber(String);

macro_rules! numbers {
    ($($name:ident),*) => {$(
        impl $name {
            /// `number` in the epoch with this counter.
            pub const fn new(epoch: u32, number: u32) -> Self {
                Self { epoch, number }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.epoch {
                    1 => write!(f, "{}", self.number),
                    epoch => write!(f, "{epoch}.{}", self.number),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidNumber;

            fn from_str(text: &str) -> Result<Self, InvalidNumber> {
                let invalid = |_| InvalidNumber(text.chars().take(40).collect());
                match text.split_once('.') {
                    Some((epoch, number)) => Ok(Self {
                        epoch: epoch.parse().map_err(invalid)?,
                        number: number.parse().map_err(invalid)?,
                    }),
                    None => Ok(Self { epoch: 1, number: text.parse().map_err(invalid)? }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": r"^([0-9]+\.)?[0-9]+$" })
            }
        }
    )*};
}

numbers!(Version, Generation);

/// Names one effect for ever: random, drawn by the caller of `step`, so that a name at a backend made from it can
/// not meet a name of another life of the store. Written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EffectId(pub u128);

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for EffectId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EffectId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for EffectId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EffectId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}$" })
    }
}

/// Milliseconds. As a point in time: of the clock that the caller of `step` keeps, which never goes back and
/// accrues by the smaller of wall-clock and monotonic progress. As a span: just that.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// A span of this many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// This much later; the end of time rather than an overflow.
    #[must_use]
    pub const fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}
