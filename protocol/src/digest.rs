//! Digests: of frames, and keyed ones of values.

use std::fmt;

use aws_lc_rs::{digest, hmac, rand};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::FileName;
use crate::key::RandomFailed;
use crate::wire::hex_type;

hex_type! {
    /// The SHA-256 of a whole frame or payload, which holds no value in the clear.
    FrameDigest, 32, "digest"
}

hex_type! {
    /// HMAC-SHA-256 of a file under the random key of its version: helps nobody to guess the value.
    KeyedDigest, 32, "keyed digest"
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

impl FrameDigest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256(&[bytes]))
    }
}

/// The random key of one version under which its digests are made. As secret as the value itself.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct VersionKey([u8; 32]);

impl VersionKey {
    /// A new one.
    pub fn random() -> Result<Self, RandomFailed> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| RandomFailed)?;
        Ok(Self(bytes))
    }

    /// From storage.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For storage, encrypted.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA-256 over name, a zero byte and content.
    pub fn digest(&self, name: &FileName, content: &[u8]) -> KeyedDigest {
        KeyedDigest(hmac_sha256(&self.0, &[name.as_str().as_bytes(), b"\0", content]))
    }
}

impl fmt::Debug for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VersionKey(..)")
    }
}
