//! The closed set of messages between the two processes of a host, over the private Unix socket.
//!
//! The network half listens on `RUN/private/applier.sock`, the applier connects; both check the peer's credentials.
//! Each message is its length (u32, big-endian) and its JSON. The network half passes frames on as they came: it can
//! neither read the sealed part nor make one. No message prints more of itself than sizes and digests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::Frame;
use crate::id::{HostId, InstallationId};
use crate::limit;
use crate::report::Means;
use crate::wire::{self, DecodeError, TooLarge};

/// Raised with every change that older ends cannot read.
pub const LOCAL_VERSION: u32 = 1;

/// The private socket, relative to the run directory.
pub const SOCKET: &str = "private/applier.sock";

/// From the network half to the applier.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToApplier {
    /// The first message on a connection.
    Hello {
        /// [`LOCAL_VERSION`].
        version: u32,
        /// By which means the network half is confined.
        means: Vec<Means>,
    },
    /// The orders of one push, in their order. Answered by [`FromApplier::Answer`] with the same `push`.
    Orders {
        /// Names the push on this connection.
        push: u64,
        /// The frames as they came.
        frames: Vec<Frame>,
    },
    /// The control plane's answer to a report.
    Acknowledged {
        /// The frame as it came.
        ack: Frame,
    },
}

/// From the applier to the network half.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromApplier {
    /// The first message on a connection.
    Hello {
        /// [`LOCAL_VERSION`].
        version: u32,
        /// Who this host is, once enrolled.
        host: Option<HostId>,
        /// Whose it is, once enrolled.
        installation: Option<InstallationId>,
    },
    /// The signed report that answers a push, with its receipts.
    Answer {
        /// The push.
        push: u64,
        /// The report's frame.
        report: Frame,
    },
    /// Something changed: a report to pass on. Only the newest matters.
    Report {
        /// The report's frame.
        report: Frame,
    },
}

impl fmt::Debug for ToApplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { version, means } => write!(f, "hello(version {version}, {} means)", means.len()),
            Self::Orders { push, frames } => write!(f, "orders(push {push}, {} frames)", frames.len()),
            Self::Acknowledged { ack } => write!(f, "acknowledged({ack:?})"),
        }
    }
}

impl fmt::Debug for FromApplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { version, host, .. } => write!(f, "hello(version {version}, host {host:?})"),
            Self::Answer { push, report } => write!(f, "answer(push {push}, {report:?})"),
            Self::Report { report } => write!(f, "report({report:?})"),
        }
    }
}

macro_rules! local_message {
    ($($name:ident),*) => {$(
        impl $name {
            /// Length and JSON, ready for the socket.
            pub fn to_bytes(&self) -> Result<Vec<u8>, TooLarge> {
                let json = wire::encode(self, limit::LOCAL_BYTES_MAX)?;
                let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
                Ok([&length.to_be_bytes(), json.as_slice()].concat())
            }

            /// From the JSON behind a length that [`length`] has checked.
            pub fn from_json(json: &[u8]) -> Result<Self, DecodeError> {
                wire::decode(json, limit::LOCAL_BYTES_MAX)
            }
        }
    )*};
}

local_message!(ToApplier, FromApplier);

/// The length that four bytes announce, if it may be read.
pub fn length(header: [u8; 4]) -> Result<usize, DecodeError> {
    let bytes = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if bytes > limit::LOCAL_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes, bytes_max: limit::LOCAL_BYTES_MAX });
    }
    Ok(bytes)
}
