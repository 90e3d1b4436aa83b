//! Encryption of what is kept: AES-256-GCM under the data key, each record bound to what it belongs to.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::key::KeyEncryptionKey;

/// The data key, ready to use.
pub(crate) struct Crypt {
    data: RandomizedNonceKey,
    /// Chains the audit log, so that who can write the file but has no key cannot rewrite it.
    audit: hmac::Key,
    /// Signs the records that decide who may do what, and where the audit log ends.
    records: hmac::Key,
    /// Tells values apart that are not kept.
    values: hmac::Key,
}

/// A record does not decrypt.
pub(crate) struct Altered;

impl Crypt {
    pub(crate) fn new(data_key: &[u8; 32]) -> Option<Self> {
        let root = hmac::Key::new(hmac::HMAC_SHA256, data_key);
        let derived = |what| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, what).as_ref());
        Some(Self {
            data: RandomizedNonceKey::new(&AES_256_GCM, data_key).ok()?,
            audit: derived(b"eso audit chain v1"),
            records: derived(b"eso records v1"),
            values: derived(b"eso value digest v1"),
        })
    }

    /// The same for the same value of the same thing; says nothing of the value to who has no key.
    pub(crate) fn digest(&self, aad: &str, plain: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.values);
        context.update(&(aad.len() as u64).to_be_bytes());
        context.update(aad.as_bytes());
        context.update(plain);
        context.sign().as_ref().to_vec()
    }

    /// Nonce, then ciphertext with its tag.
    pub(crate) fn seal(&self, aad: &str, plain: &[u8]) -> Option<Vec<u8>> {
        seal(&self.data, aad, plain)
    }

    pub(crate) fn open(&self, aad: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Altered> {
        open(&self.data, aad, sealed)
    }

    /// The link of the audit chain after `previous`.
    pub(crate) fn chain(&self, previous: &[u8], parts: &[&str]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.audit);
        context.update(previous);
        update(&mut context, parts.iter().map(|part| part.as_bytes()));
        context.sign().as_ref().to_vec()
    }

    /// The signature of a record of this kind.
    pub(crate) fn sign(&self, kind: &str, parts: &[&[u8]]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.records);
        update(&mut context, [kind.as_bytes()].into_iter().chain(parts.iter().copied()));
        context.sign().as_ref().to_vec()
    }
}

fn update<'a>(context: &mut hmac::Context, parts: impl Iterator<Item = &'a [u8]>) {
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
}

/// What the wrapping of the data key says of the database, which nobody can say without the key-encryption key: before
/// records were signed, and since.
pub(crate) const UNSIGNED: &str = "eso data key v1";
const SIGNED: &str = "eso data key v2";

/// A data key with what its wrapping says.
pub(crate) struct Unwrapped {
    pub(crate) data_key: Zeroizing<[u8; 32]>,
    /// The records are signed. Otherwise no program did it yet.
    pub(crate) signed: bool,
}

/// Wraps the data key of a database with signed records under the key-encryption key.
pub(crate) fn wrap(key: &KeyEncryptionKey, installation: &str, data_key: &[u8; 32]) -> Option<Vec<u8>> {
    wrap_as(SIGNED, key, installation, data_key)
}

pub(crate) fn wrap_as(
    form: &str,
    key: &KeyEncryptionKey,
    installation: &str,
    data_key: &[u8; 32],
) -> Option<Vec<u8>> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key.0.as_ref()).ok()?;
    seal(&key, &format!("{form}|{installation}"), data_key)
}

/// The way back; fails for another key-encryption key.
pub(crate) fn unwrap(
    key: &KeyEncryptionKey,
    installation: &str,
    wrapped: &[u8],
) -> Result<Unwrapped, Altered> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key.0.as_ref()).map_err(|_| Altered)?;
    let opened = |form| open(&key, &format!("{form}|{installation}"), wrapped);
    let (plain, signed) = match opened(SIGNED) {
        Ok(plain) => (plain, true),
        Err(Altered) => (opened(UNSIGNED)?, false),
    };
    let data_key = <[u8; 32]>::try_from(plain.as_slice()).map(Zeroizing::new).map_err(|_| Altered)?;
    Ok(Unwrapped { data_key, signed })
}

fn seal(key: &RandomizedNonceKey, aad: &str, plain: &[u8]) -> Option<Vec<u8>> {
    let mut sealed = plain.to_vec();
    let nonce = key.seal_in_place_append_tag(Aad::from(aad), &mut sealed).ok()?;
    Some([nonce.as_ref().as_slice(), &sealed].concat())
}

fn open(key: &RandomizedNonceKey, aad: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Altered> {
    let (nonce, cipher) = sealed.split_at_checked(NONCE_LEN).ok_or(Altered)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Altered)?;
    let mut buffer = Zeroizing::new(cipher.to_vec());
    let length = key.open_in_place(nonce, Aad::from(aad), &mut buffer).map_err(|_| Altered)?.len();
    buffer.truncate(length);
    Ok(buffer)
}
