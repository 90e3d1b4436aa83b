//! The outermost form: payload length (u32, big-endian), Ed25519 signature (64 bytes), payload (JSON, UTF-8).
//!
//! The signature is over a domain's prefix and the exact payload bytes. Frames can follow one another in a body.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::digest::FrameDigest;

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4 + SIGNATURE_BYTES;

/// What kind of message a signature is good for, so that none can pass for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Control plane or offline root to applier.
    Order,
    /// Applier to control plane.
    Report,
    /// Control plane to applier.
    Acknowledgement,
    /// Applier to control plane, once.
    Registration,
}

impl Domain {
    pub(crate) const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Order => b"eso/v1/order\0",
            Self::Report => b"eso/v1/report\0",
            Self::Acknowledgement => b"eso/v1/ack\0",
            Self::Registration => b"eso/v1/registration\0",
        }
    }

    pub(crate) fn message(self, payload: &[u8]) -> Vec<u8> {
        [self.prefix(), payload].concat()
    }
}

/// A signed payload, not yet verified. In JSON it is the base64 of its bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    signature: [u8; SIGNATURE_BYTES],
    payload: Vec<u8>,
}

/// Why bytes are not frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Less than a header, or less than the header announces.
    #[error("a frame is cut short: {missing} bytes are missing")]
    Short {
        /// How many at least.
        missing: usize,
    },
    /// The header announces more than is allowed; nothing of it was read.
    #[error("a frame announces {bytes} bytes where at most {bytes_max} are allowed")]
    TooLarge {
        /// How many it announces.
        bytes: usize,
        /// How many may come.
        bytes_max: usize,
    },
    /// More frames than allowed.
    #[error("more than {count_max} frames in one body; send the rest in another")]
    TooMany {
        /// How many may come.
        count_max: usize,
    },
    /// Something follows where one frame was expected, or no frame came at all.
    #[error("expected exactly one frame")]
    NotOne,
}

impl Frame {
    pub(crate) const fn new(signature: [u8; SIGNATURE_BYTES], payload: Vec<u8>) -> Self {
        Self { signature, payload }
    }

    /// Exactly one frame and nothing behind it.
    pub fn parse(bytes: &[u8], payload_bytes_max: usize) -> Result<Self, FrameError> {
        match Self::take(bytes, payload_bytes_max)? {
            (frame, []) => Ok(frame),
            _ => Err(FrameError::NotOne),
        }
    }

    /// All frames of a body; an empty body has none.
    pub fn split(
        mut body: &[u8],
        payload_bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<Self>, FrameError> {
        let mut frames = Vec::new();
        while !body.is_empty() {
            if frames.len() == count_max {
                return Err(FrameError::TooMany { count_max });
            }
            let (frame, rest) = Self::take(body, payload_bytes_max)?;
            frames.push(frame);
            body = rest;
        }
        Ok(frames)
    }

    /// The body of these frames, in this order.
    pub fn join<'a>(frames: impl IntoIterator<Item = &'a Self>) -> Vec<u8> {
        let mut body = Vec::new();
        for frame in frames {
            frame.write_to(&mut body);
        }
        body
    }

    fn take(bytes: &[u8], payload_bytes_max: usize) -> Result<(Self, &[u8]), FrameError> {
        let short = |needed: usize, have: usize| FrameError::Short { missing: needed.saturating_sub(have) };
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(short(HEADER_BYTES, bytes.len()))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > payload_bytes_max {
            return Err(FrameError::TooLarge { bytes: length, bytes_max: payload_bytes_max });
        }
        let (signature, rest) =
            rest.split_first_chunk::<SIGNATURE_BYTES>().ok_or(short(SIGNATURE_BYTES, rest.len()))?;
        let (payload, rest) = rest.split_at_checked(length).ok_or(short(length, rest.len()))?;
        Ok((Self { signature: *signature, payload: payload.to_vec() }, rest))
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        // A payload longer than a u32 cannot be made: every encoder of this crate bounds it far below.
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        out.reserve(HEADER_BYTES + self.payload.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.signature);
        out.extend_from_slice(&self.payload);
    }

    /// The whole frame as it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    /// Names this very frame.
    pub fn digest(&self) -> FrameDigest {
        FrameDigest::of(&self.to_bytes())
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) const fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes, {})", self.payload.len(), self.digest())
    }
}

impl Serialize for Frame {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for Frame {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("not base64"))?;
        // What is nested in a payload is bounded by the payload's own limit.
        Self::parse(&bytes, bytes.len()).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Frame {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Frame".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}
