//! Passwords drawn at random.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::spec::SpecError;

/// How many characters a `Password` has, unless its `length` says otherwise.
const LENGTH: usize = 24;
/// How many letters and digits the password of a login has, unless its generator says otherwise.
const LENGTH_OF_LOGIN: usize = 32;
/// The fewest characters that a password may have.
const LENGTH_MIN: usize = 12;
/// The most characters that a password may have.
const LENGTH_MAX: usize = 1024;
/// What stands for symbols where the spec names none.
const SYMBOLS: &str = "~!@#$%^&*()_+`-={}|[]\\:\"<>?,./";
const DIGITS: &str = "0123456789";
const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// How a password looks; the names of External Secrets' `Password` generator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PasswordSpec {
    /// How many characters; 24.
    pub length: usize,
    /// How many of them are digits; a quarter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digits: Option<usize>,
    /// How many of them are symbols; a quarter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbols: Option<usize>,
    /// Which characters are symbols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol_characters: Option<String>,
    /// No upper-case letters.
    pub no_upper: bool,
    /// A character may come more than once.
    pub allow_repeat: bool,
    /// How it is written down.
    pub encoding: Encoding,
    /// The fields that each get a password of their own; `password`.
    pub secret_keys: Vec<String>,
}

/// How a drawn password is written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As it was drawn.
    #[default]
    Raw,
    /// Base64 with padding.
    Base64,
    /// Base64 for URLs, with padding.
    Base64Url,
    /// Hexadecimal digits.
    Hex,
}

impl Default for PasswordSpec {
    fn default() -> Self {
        Self {
            length: LENGTH,
            digits: None,
            symbols: None,
            symbol_characters: None,
            no_upper: false,
            allow_repeat: false,
            encoding: Encoding::Raw,
            secret_keys: Vec::new(),
        }
    }
}

impl PasswordSpec {
    /// 32 letters and digits: what every connection string can hold.
    pub(crate) fn plain() -> Self {
        Self {
            length: LENGTH_OF_LOGIN,
            digits: Some(8),
            symbols: Some(0),
            allow_repeat: true,
            ..Self::default()
        }
    }

    /// The spec made ready to draw from, or what is wrong with it.
    pub(crate) fn draws(&self, kind: &str) -> Result<Draws, SpecError> {
        let wrong = |words: String| Err(SpecError::new(kind, words));
        if !(LENGTH_MIN..=LENGTH_MAX).contains(&self.length) {
            return wrong(format!("`length` is {}: use {LENGTH_MIN} to {LENGTH_MAX}", self.length));
        }
        let digits = self.digits.unwrap_or(self.length / 4);
        let symbols = self.symbols.unwrap_or(self.length / 4);
        let Some(letters) = self.length.checked_sub(digits.saturating_add(symbols)) else {
            return wrong(format!(
                "`digits` and `symbols` together are more than `length` ({})",
                self.length
            ));
        };
        let symbol_characters = self.symbol_characters.as_deref().unwrap_or(SYMBOLS);
        if symbol_characters.contains('\0') {
            return wrong("`symbolCharacters` holds NUL, which no backend takes".to_owned());
        }
        let mut alphabet: Vec<char> = LOWER.chars().collect();
        if !self.no_upper {
            alphabet.extend(UPPER.chars());
        }
        let groups = vec![
            (letters, alphabet),
            (digits, DIGITS.chars().collect()),
            (symbols, symbol_characters.chars().collect()),
        ];
        for ((count, alphabet), what) in groups.iter().zip(["letters", "digits", "symbols"]) {
            if *count > 0 && (alphabet.is_empty() || (!self.allow_repeat && *count > alphabet.len())) {
                return wrong(format!(
                    "{count} {what} cannot be drawn from {} characters: allow repeats or ask for fewer",
                    alphabet.len()
                ));
            }
        }
        Ok(Draws { groups, allow_repeat: self.allow_repeat, encoding: self.encoding })
    }
}

/// A checked [`PasswordSpec`].
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    groups: Vec<(usize, Vec<char>)>,
    allow_repeat: bool,
    encoding: Encoding,
}

impl Draws {
    /// A new password.
    pub(crate) fn draw(&self) -> Result<Zeroizing<String>, Failure> {
        let random = SystemRandom::new();
        let length = self.groups.iter().map(|(count, _)| count).sum();
        let mut drawn = Zeroizing::new(Vec::with_capacity(length));
        for (count, alphabet) in &self.groups {
            let mut left = Zeroizing::new(alphabet.clone());
            for _ in 0..*count {
                let at = below(left.len(), &random)?;
                drawn.push(if self.allow_repeat { left[at] } else { left.swap_remove(at) });
            }
        }
        for at in (1..drawn.len()).rev() {
            let other = below(at + 1, &random)?;
            drawn.swap(at, other);
        }
        let mut text = Zeroizing::new(String::with_capacity(length * 4));
        text.extend(drawn.iter());
        Ok(match self.encoding {
            Encoding::Raw => text,
            Encoding::Base64 => Zeroizing::new(STANDARD.encode(text.as_bytes())),
            Encoding::Base64Url => Zeroizing::new(URL_SAFE.encode(text.as_bytes())),
            Encoding::Hex => {
                Zeroizing::new(text.bytes().fold(String::with_capacity(length * 8), |mut hex, byte| {
                    hex.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
                    hex.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
                    hex
                }))
            }
        })
    }
}

/// A number below `bound`, each as likely as the others.
fn below(bound: usize, random: &SystemRandom) -> Result<usize, Failure> {
    let bound = u32::try_from(bound.max(1)).unwrap_or(u32::MAX);
    let fair = u32::MAX - u32::MAX % bound;
    loop {
        let mut bytes = [0; 4];
        random.fill(&mut bytes).map_err(|_| Failure::retry("failed to draw random bytes from the system"))?;
        let number = u32::from_be_bytes(bytes);
        if number < fair {
            return Ok((number % bound) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(spec: &PasswordSpec) -> String {
        spec.draws("Password").unwrap().draw().unwrap().to_string()
    }

    #[test]
    fn a_password_has_what_its_spec_says() {
        for _ in 0..200 {
            let text = drawn(&PasswordSpec::default());
            assert_eq!(text.chars().count(), 24);
            assert_eq!(text.chars().filter(char::is_ascii_digit).count(), 6);
            assert_eq!(text.chars().filter(|c| SYMBOLS.contains(*c)).count(), 6);
            let distinct: std::collections::BTreeSet<char> = text.chars().collect();
            assert_eq!(distinct.len(), 24, "repeats are not allowed unless said so");
            assert!(drawn(&PasswordSpec::plain()).chars().all(|c| c.is_ascii_alphanumeric()));
        }
        let spec = PasswordSpec {
            symbols: Some(1),
            symbol_characters: Some("\u{2603}".into()),
            no_upper: true,
            ..PasswordSpec::default()
        };
        let text = drawn(&spec);
        assert!(text.contains('\u{2603}') && !text.chars().any(char::is_uppercase));
        let hex = drawn(&PasswordSpec { encoding: Encoding::Hex, ..PasswordSpec::default() });
        assert!(hex.len() == 48 && hex.chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn all_characters_come_about_equally_often() {
        let spec =
            PasswordSpec { length: 1000, digits: Some(1000), symbols: Some(0), ..PasswordSpec::plain() };
        let mut counts = [0_u32; 10];
        for _ in 0..20 {
            for byte in drawn(&spec).bytes() {
                counts[usize::from(byte - b'0')] += 1;
            }
        }
        // 2,000 expected, with a standard deviation of 42.
        assert!(counts.iter().all(|count| (1700..2300).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_with_what_to_change() {
        for (spec, word) in [
            (PasswordSpec { length: 4, ..PasswordSpec::default() }, "`length`"),
            (PasswordSpec { digits: Some(30), ..PasswordSpec::default() }, "`digits`"),
            (PasswordSpec { length: 100, digits: Some(50), ..PasswordSpec::default() }, "repeats"),
            (PasswordSpec { symbol_characters: Some("\0".into()), ..PasswordSpec::default() }, "NUL"),
        ] {
            let error = spec.draws("Password").unwrap_err();
            assert!(error.words.contains(word), "{error}");
        }
    }
}
