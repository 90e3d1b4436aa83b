//! What is wrong with a policy, where it stands, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Why a policy was not taken. The one that runs stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The file that is wrong.
    pub file: PathBuf,
    /// The line, counted from 1; none when the file as a whole is meant.
    pub line: Option<usize>,
    /// The key with its path, such as `set.orders-db.places[0].mode`.
    pub key: Option<String>,
    /// The known key or word that resembles what was written.
    pub nearest: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}
