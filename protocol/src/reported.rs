//! What an application says of itself on the application socket `RUN/app.sock`: "on N+1, N dropped".
//!
//! One line of JSON each way. The applier knows the speaker by its peer credentials, never by what it says, and
//! believes it only where policy says so. An application reads its version from the name that `..data` links to.

use std::collections::BTreeSet;

use lifecycle::{SetName, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limit;
use crate::wire::{self, DecodeError, TooLarge};

/// The application socket, relative to the run directory.
pub const SOCKET: &str = "app.sock";

/// From the application, for example `{"set":"orders-db","on":"8","dropped":["7"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Of which set.
    pub set: SetName,
    /// The version that it uses now.
    pub on: Version,
    /// Versions of which it kept nothing.
    #[serde(default)]
    pub dropped: BTreeSet<Version>,
}

/// To the application, for example `{"noted":{}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Written down and believed.
    Noted {},
    /// Not believed, or not understood.
    Refused {
        /// A stable word such as `not_trusted`.
        code: String,
        /// What to do about it.
        message: String,
    },
}

impl Statement {
    /// From one line, with or without its line break.
    pub fn from_line(line: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(line, limit::REPORTED_BYTES_MAX)
    }

    /// One line with its line break.
    pub fn to_line(&self) -> Result<Vec<u8>, TooLarge> {
        line(self)
    }
}

impl Reply {
    /// From one line, with or without its line break.
    pub fn from_line(line: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(line, limit::REPORTED_BYTES_MAX)
    }

    /// One line with its line break.
    pub fn to_line(&self) -> Result<Vec<u8>, TooLarge> {
        line(self)
    }
}

fn line<T: Serialize>(message: &T) -> Result<Vec<u8>, TooLarge> {
    let mut line = wire::encode(message, limit::REPORTED_BYTES_MAX - 1)?;
    line.push(b'\n');
    Ok(line)
}
