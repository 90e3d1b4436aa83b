//! Keys of both ends, and what a host trusts.

use std::fmt;

use aws_lc_rs::agreement::{PrivateKey as AgreementKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::crypto::hpke::HpkePrivateKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::frame::{Domain, Frame, SIGNATURE_BYTES};
use crate::id::InstallationId;
use crate::order::Rekey;
use crate::wire::hex_type;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to get random bytes from the operating system")]
pub struct RandomFailed;

/// Stored bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a stored {0}: the bytes are not a key of this kind; restore the file or enrol again")]
pub struct InvalidKey(&'static str);

hex_type! {
    /// An Ed25519 public key.
    VerifyingKey, 32, "public key"
}

hex_type! {
    /// An X25519 public key that values are sealed to.
    SealingKey, 32, "sealing key"
}

impl VerifyingKey {
    /// Whether `frame` was signed with the other half of this key, as a message of this domain.
    pub fn accepts(&self, domain: Domain, frame: &Frame) -> bool {
        let message = domain.message(frame.payload());
        UnparsedPublicKey::new(&ED25519, self.0).verify(&message, frame.signature()).is_ok()
    }
}

/// An Ed25519 key pair.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new one.
    pub fn generate() -> Result<Self, RandomFailed> {
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(&mut *seed).map_err(|_| RandomFailed)?;
        Self::from_seed(&seed).map_err(|_| RandomFailed)
    }

    /// From its 32-byte seed (RFC 8032).
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, InvalidKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| InvalidKey("signing key"))?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { pair, public: VerifyingKey(public) })
    }

    /// For storage: the 32-byte seed (RFC 8032).
    pub fn expose_seed(&self) -> Result<Zeroizing<[u8; 32]>, InvalidKey> {
        let seed = self.pair.seed().map_err(|_| InvalidKey("signing key"))?;
        let bytes = AsBigEndian::<Curve25519SeedBin<'static>>::as_be_bytes(&seed)
            .map_err(|_| InvalidKey("signing key"))?;
        let mut out = Zeroizing::new([0; 32]);
        if bytes.as_ref().len() != out.len() {
            return Err(InvalidKey("signing key"));
        }
        out.copy_from_slice(bytes.as_ref());
        Ok(out)
    }

    /// The public half.
    pub const fn public(&self) -> VerifyingKey {
        self.public
    }

    /// Signs these exact bytes as a message of this domain.
    pub(crate) fn sign(&self, domain: Domain, payload: Vec<u8>) -> Frame {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.pair.sign(&domain.message(&payload)).as_ref());
        Frame::new(signature, payload)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// An X25519 private key: opens what was sealed to its [`SealingKey`].
pub struct OpeningKey {
    pub(crate) private: HpkePrivateKey,
    public: SealingKey,
}

impl OpeningKey {
    /// A new one.
    pub fn generate() -> Result<Self, RandomFailed> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut *bytes).map_err(|_| RandomFailed)?;
        Self::from_bytes(&bytes).map_err(|_| RandomFailed)
    }

    /// From its 32 bytes (RFC 7748).
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, InvalidKey> {
        let invalid = InvalidKey("opening key");
        let agreement = AgreementKey::from_private_key(&X25519, bytes).map_err(|_| invalid)?;
        let computed = agreement.compute_public_key().map_err(|_| invalid)?;
        let mut public = [0; 32];
        if computed.as_ref().len() != public.len() {
            return Err(invalid);
        }
        public.copy_from_slice(computed.as_ref());
        Ok(Self { private: HpkePrivateKey::from(bytes.to_vec()), public: SealingKey(public) })
    }

    /// For storage: the 32 bytes (RFC 7748).
    pub fn expose_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(self.private.secret_bytes());
        out
    }

    /// The public half.
    pub const fn public(&self) -> SealingKey {
        self.public
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpeningKey({})", self.public)
    }
}

/// Whose orders a host obeys. Written by root at enrolment, changed only by a verified [`Rekey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustAnchor {
    /// The installation that the host belongs to.
    pub installation: InstallationId,
    /// Counts rekeys; a rekey must name a higher number.
    pub rekeys: u64,
    /// Verifies orders and acknowledgements.
    pub order_key: VerifyingKey,
    /// Verifies nothing but a rekey. Its other half is kept offline.
    pub root_key: Option<VerifyingKey>,
}

impl TrustAnchor {
    /// The anchor after a rekey that was verified against this one.
    #[must_use]
    pub fn rekeyed(&self, rekey: &Rekey) -> Self {
        Self {
            installation: self.installation,
            rekeys: rekey.number,
            order_key: rekey.order_key,
            root_key: rekey.root_key.or(self.root_key),
        }
    }
}

/// 32 random bytes that prove who may enrol. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, zeroize::ZeroizeOnDrop)]
pub struct EnrolmentSecret([u8; 32]);

impl EnrolmentSecret {
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

    /// For storage or a MAC.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// What may be stored in place of the secret to recognise it.
    pub fn fingerprint(&self) -> crate::digest::FrameDigest {
        crate::digest::FrameDigest(crate::digest::sha256(&[b"eso/v1/enrolment-secret\0", &self.0]))
    }

    /// Compares in constant time.
    pub fn has_fingerprint(&self, stored: &crate::digest::FrameDigest) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.fingerprint().0, &stored.0).is_ok()
    }
}

impl fmt::Debug for EnrolmentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentSecret(..)")
    }
}

// It travels in the bundle that root carries and in the enrolment request: the two places that it is made for.
impl Serialize for EnrolmentSecret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(hex::encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for EnrolmentSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.as_bytes(), &mut bytes)
            .map_err(|_| serde::de::Error::custom("expected 64 hex digits"))?;
        Ok(Self(bytes))
    }
}

impl JsonSchema for EnrolmentSecret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EnrolmentSecret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$", "writeOnly": true })
    }
}
