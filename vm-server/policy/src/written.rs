//! What a file says, before it is believed: each value with the file, the line and the key it stands at.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::PolicyError;

/// One file, as read.
pub(crate) struct Document {
    pub(crate) file: std::path::PathBuf,
    pub(crate) text: String,
}

impl Document {
    /// Parses it. Keys are checked by whoever takes the section apart.
    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'_>>, PolicyError> {
        DeTable::parse(&self.text).map_err(|error| PolicyError {
            file: self.file.clone(),
            line: error.span().map(|span| line_of(&self.text, span.start)),
            key: None,
            nearest: None,
            message: format!("is not TOML: {}", error.message().trim().replace('\n', " ")),
        })
    }
}

/// Where something stands.
#[derive(Clone)]
pub(crate) struct Spot<'d> {
    file: &'d Path,
    text: &'d str,
    line: Option<usize>,
    key: String,
}

impl Spot<'_> {
    /// An error at this spot.
    pub(crate) fn error(&self, message: impl Into<String>) -> PolicyError {
        self.error_near(message, None)
    }

    fn error_near(&self, message: impl Into<String>, nearest: Option<&str>) -> PolicyError {
        PolicyError {
            file: self.file.to_owned(),
            line: self.line,
            key: (!self.key.is_empty()).then(|| self.key.clone()),
            nearest: nearest.map(Into::into),
            message: message.into(),
        }
    }

    fn inner(&self, name: &str, at: usize) -> Self {
        let key = match (self.key.is_empty(), name.starts_with('[')) {
            (true, _) => name.to_owned(),
            (false, true) => format!("{}{name}", self.key),
            (false, false) => format!("{}.{name}", self.key),
        };
        Self { file: self.file, text: self.text, line: Some(line_of(self.text, at)), key }
    }

    /// File and line, for an error elsewhere that speaks of this spot too.
    pub(crate) fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.file.display()),
            None => self.file.display().to_string(),
        }
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Value<'d> {
    pub(crate) spot: Spot<'d>,
    value: &'d DeValue<'d>,
}

impl<'d> Value<'d> {
    /// An error at this value.
    pub(crate) fn error(&self, message: impl Into<String>) -> PolicyError {
        self.spot.error(message)
    }

    fn must_be(&self, what: &str) -> PolicyError {
        self.error(format!("must be {what}, not {}", with_article(self.value.type_str())))
    }

    /// A string.
    pub(crate) fn text(&self) -> Result<&'d str, PolicyError> {
        self.value.as_str().ok_or_else(|| self.must_be("a string"))
    }

    /// A whole number between these.
    pub(crate) fn number(&self, min: u64, max: u64) -> Result<u64, PolicyError> {
        let written = self.value.as_integer().ok_or_else(|| self.must_be("a whole number"))?;
        u64::from_str_radix(written.as_str(), written.radix())
            .ok()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.error(format!("is {written}, must be between {min} and {max}")))
    }

    /// Whether it is a whole number, for values that may be one or a string.
    pub(crate) fn is_number(&self) -> bool {
        self.value.is_integer()
    }

    /// One of these words.
    pub(crate) fn word(&self, words: &[&'static str]) -> Result<&'static str, PolicyError> {
        let text = self.text()?;
        if let Some(word) = words.iter().find(|word| **word == text) {
            return Ok(word);
        }
        let message = format!("{text:?} is not known here: write one of {}", quoted(words));
        Err(self.spot.error_near(message, nearest(text, words)))
    }

    /// The items of a list.
    pub(crate) fn items(&self, max: usize) -> Result<Vec<Self>, PolicyError> {
        let array = self.value.as_array().ok_or_else(|| self.must_be("a list"))?;
        if array.len() > max {
            return Err(self.error(format!("has {} entries, at most {max} are allowed", array.len())));
        }
        let item = |(place, item): (usize, &'d Spanned<DeValue<'d>>)| Self {
            spot: self.spot.inner(&format!("[{place}]"), item.span().start),
            value: item.get_ref(),
        };
        Ok(array.iter().enumerate().map(item).collect())
    }

    /// A table with only these keys.
    pub(crate) fn section(&self, known: &'static [&'static str]) -> Result<Section<'d>, PolicyError> {
        let mut section = self.names()?;
        section.allow(known)?;
        Ok(section)
    }

    /// A table whose keys are names that the writer chose.
    pub(crate) fn names(&self) -> Result<Section<'d>, PolicyError> {
        let table = self.value.as_table().ok_or_else(|| self.must_be("a table"))?;
        Ok(Section::new(self.spot.clone(), table))
    }
}

/// A table: its values by key.
pub(crate) struct Section<'d> {
    pub(crate) spot: Spot<'d>,
    values: BTreeMap<String, Value<'d>>,
}

impl<'d> Section<'d> {
    /// The whole of a file.
    pub(crate) fn document(
        document: &'d Document,
        table: &'d DeTable<'d>,
        known: &'static [&'static str],
    ) -> Result<Self, PolicyError> {
        let spot = Spot { file: &document.file, text: &document.text, line: None, key: String::new() };
        let mut section = Self::new(spot, table);
        section.allow(known)?;
        Ok(section)
    }

    fn new(spot: Spot<'d>, table: &'d DeTable<'d>) -> Self {
        let value = |(name, value): (&'d Spanned<std::borrow::Cow<'d, str>>, &'d Spanned<DeValue<'d>>)| {
            let text = name.get_ref().to_string();
            let spot = spot.inner(&text, name.span().start);
            (text, Value { spot, value: value.get_ref() })
        };
        Self { values: table.iter().map(value).collect(), spot: spot.clone() }
    }

    fn allow(&mut self, known: &'static [&'static str]) -> Result<(), PolicyError> {
        match self.values.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, value)) => {
                let nearest = nearest(name, known);
                let message = match nearest {
                    Some(_) => "is not a known key".to_owned(),
                    None => format!("is not a known key: known here are {}", quoted(known)),
                };
                Err(value.spot.error_near(message, nearest))
            }
        }
    }

    /// Takes the values of another table of the same name in another file. Each key stands in one file only, so
    /// that no reading order decides.
    pub(crate) fn merge(&mut self, other: Self) -> Result<(), PolicyError> {
        for (name, value) in other.values {
            if let Some(first) = self.values.get(&name) {
                let message = format!("stands in {} too: keep one of the two", first.spot.place());
                return Err(value.error(message));
            }
            self.values.insert(name, value);
        }
        Ok(())
    }

    /// The value of a key, if it is written.
    pub(crate) fn get(&self, key: &str) -> Option<&Value<'d>> {
        self.values.get(key)
    }

    /// The value of a key that must be written.
    pub(crate) fn need(&self, key: &str, why: &str) -> Result<&Value<'d>, PolicyError> {
        self.get(key).ok_or_else(|| self.spot.error(format!("`{key}` is missing: {why}")))
    }

    /// All values with their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value<'d>)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// A number, or its default.
    pub(crate) fn number_or(&self, key: &str, default: u64, min: u64, max: u64) -> Result<u64, PolicyError> {
        self.get(key).map_or(Ok(default), |value| value.number(min, max))
    }

    /// Errors when one of these keys is written, since `why`.
    pub(crate) fn refuse(&self, keys: &[&str], why: &str) -> Result<(), PolicyError> {
        match keys.iter().find_map(|key| self.get(key)) {
            Some(value) => Err(value.error(format!("has no meaning here: {why}"))),
            None => Ok(()),
        }
    }
}

/// The known word that resembles what was written.
fn nearest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    const ALIKE_MIN: f64 = 0.5;
    let text = text.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(&text, word), *word))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn with_article(kind: &str) -> String {
    match kind {
        "integer" | "array" => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}
