//! What we write beside everything that we make at a backend, so that it is known for ever whose it is.

use std::fmt;
use std::str::FromStr;

use lifecycle::id::{EffectId, Epoch};
use serde::{Deserialize, Serialize};

/// What a mark begins with.
pub(crate) const MARK_PREFIX: &str = "eso-credential:";
/// The most characters that an installation's id may have.
pub const INSTALLATION_CHARS_MAX: usize = 64;

/// Whose something at a backend is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The installation that made it: letters, digits, '-', '_' and '.'.
    pub installation: String,
    /// The life of its store in which it was made.
    pub epoch: Epoch,
    /// The effect that made it.
    pub effect: EffectId,
}

/// Why a text is not a mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a mark of ours")]
pub struct InvalidMark;

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { installation, epoch, effect } = self;
        write!(f, "{MARK_PREFIX}{installation}:{}:{:016x}:{effect}", epoch.counter, epoch.id)
    }
}

impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let rest = text.strip_prefix(MARK_PREFIX).ok_or(InvalidMark)?;
        let parts: Vec<&str> = rest.split(':').collect();
        let [installation, counter, id, effect] = parts[..] else { return Err(InvalidMark) };
        if !is_installation(installation) {
            return Err(InvalidMark);
        }
        Ok(Self {
            installation: installation.to_owned(),
            epoch: Epoch {
                counter: counter.parse().map_err(|_| InvalidMark)?,
                id: u64::from_str_radix(id, 16).map_err(|_| InvalidMark)?,
            },
            effect: EffectId(u128::from_str_radix(effect, 16).map_err(|_| InvalidMark)?),
        })
    }
}

/// Whether a text can stand in a mark as the installation's id.
pub fn is_installation(text: &str) -> bool {
    (1..=INSTALLATION_CHARS_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark {
            installation: "prod-1".into(),
            epoch: Epoch { counter: 3, id: 0xabc },
            effect: EffectId(0x1234),
        };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        for text in
            ["", "a comment", "eso-credential:a:1:2", "eso-credential:a b:1:2:3", "eso-credential:a:1:2:3:4"]
        {
            assert_eq!(text.parse::<Mark>(), Err(InvalidMark), "{text}");
        }
    }
}
