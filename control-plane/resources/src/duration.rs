//! Spans of time as people write them: `250ms`, `30s`, `5m`, `1h30m`, `7d`.

use lifecycle::Millis;

/// Why a text is not a span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a span of time: write numbers with ms, s, m, h or d, for example 30s, 5m or 1h30m")]
pub struct InvalidDuration(String);

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a span.
pub fn parse(text: &str) -> Result<Millis, InvalidDuration> {
    let invalid = || InvalidDuration(text.chars().take(40).collect());
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        let number: u64 = number.parse().map_err(|_| invalid())?;
        total = number.checked_mul(*size).and_then(|span| total.checked_add(span)).ok_or_else(invalid)?;
        rest = tail;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(Millis(total)) }
}

/// Writes a span in the largest units that fit: `90s` becomes `1m30s`.
pub fn show(span: Millis) -> String {
    let mut rest = span.0;
    let mut text = String::new();
    for (name, size) in UNITS.iter().rev() {
        if rest >= *size {
            text += &(rest / size).to_string();
            text += name;
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A span in a resource, with its place in the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Millis);

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests stop at what they did not expect")]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, ms) in
            [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h30m", 5_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse(text), Ok(Millis(ms)));
            assert_eq!(show(Millis(ms)), text);
        }
        assert_eq!(parse("0s"), Ok(Millis(0)));
        for text in ["", "5", "m", "5 m", "-5s", "5y", "99999999999999999999d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
