//! The floor of an apply: one signature check, one HPKE open, the system calls that lay the files of a version down
//! and make it current, a durable sealed copy, and one journal write.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use protocol::frame::Domain;
use protocol::order::{Body, OrderPayload};
use protocol::{Frame, OpeningKey, VerifyingKey};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};

use crate::desk::payload;

/// What the ciphertext is bound to besides its context.
const INFO: &[u8] = b"eso/v1/stage";
/// The most bytes that the journal grows to before it is started anew.
const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;

/// A place that versions are applied to.
pub struct BareApply {
    set: OwnedFd,
    copies: OwnedFd,
    journal: File,
    record: Vec<u8>,
    order_key: VerifyingKey,
    copy_key: RandomizedNonceKey,
    previous: Option<String>,
}

/// A value on its way to a host: what the signature covers, and what is sealed.
pub struct Delivery {
    frame: Frame,
    encapsulated: EncapsulatedSecret,
    sealed: Vec<u8>,
    context: Vec<u8>,
    private: HpkePrivateKey,
}

impl Delivery {
    /// Taken from a real order and sealed anew to a key that we have.
    pub fn new(frame: Frame, plain: &[u8], to: &OpeningKey) -> anyhow::Result<Self> {
        let payload: OrderPayload = serde_json::from_slice(payload(&frame.to_bytes()))?;
        ensure!(matches!(payload.body, Body::Set(_)), "only an order about a set delivers anything");
        let context = format!("{:?}", payload.seal_context().context("a stage has a context")?).into_bytes();
        let public = HpkePublicKey(to.public().0.to_vec());
        let (encapsulated, sealed) = SUITE.seal(INFO, &context, plain, &public)?;
        let private = HpkePrivateKey::from(to.expose_bytes().to_vec());
        Ok(Self { frame, encapsulated, sealed, context, private })
    }
}

/// One HPKE seal of so many bytes.
pub fn seal(plain: &[u8], to: &OpeningKey) -> anyhow::Result<usize> {
    let (_, sealed) = SUITE.seal(INFO, b"bench", plain, &HpkePublicKey(to.public().0.to_vec()))?;
    Ok(sealed.len())
}

impl BareApply {
    /// Sets lie below `sets`, copies and journal below `state`, each on the file system that the real ones lie on.
    pub fn new(
        sets: &Path,
        state: &Path,
        record_bytes: usize,
        order_key: VerifyingKey,
    ) -> anyhow::Result<Self> {
        let copies = state.join("copies");
        std::fs::create_dir_all(sets)?;
        std::fs::create_dir_all(&copies)?;
        Ok(Self {
            set: open(sets)?,
            copies: open(&copies)?,
            journal: File::options().create(true).append(true).open(state.join("journal"))?,
            record: vec![b'x'; record_bytes],
            order_key,
            copy_key: RandomizedNonceKey::new(&AES_256_GCM, &[7; 32])?,
            previous: None,
        })
    }

    /// Applies one version with these lengths of files.
    pub fn apply(&mut self, delivery: &Delivery, name: &str, files: &[(&str, usize)]) -> anyhow::Result<()> {
        ensure!(self.order_key.accepts(Domain::Order, &delivery.frame), "the signature is not good");
        let Delivery { encapsulated, sealed, context, private, .. } = delivery;
        let mut plain = SUITE.open(encapsulated, INFO, context, sealed, private)?;
        self.journal.write_all(&self.record)?;
        self.journal.sync_data()?;
        self.stage(&plain, name, files)?;
        self.copy(&mut plain, name)?;
        self.flip(name)
    }

    fn stage(&self, plain: &[u8], name: &str, files: &[(&str, usize)]) -> anyhow::Result<()> {
        let making = format!("new-{name}");
        rustix::fs::mkdirat(&self.set, &making, Mode::from_raw_mode(0o700))?;
        let dir = beneath(&self.set, &making, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut rest = plain;
        for (file, length) in files {
            let fd = beneath(&dir, file, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            rustix::fs::fstat(&fd)?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o400))?;
            let (content, tail) = rest.split_at_checked(*length).context("the value is too short")?;
            rustix::io::write(&fd, content)?;
            rustix::fs::fsync(&fd)?;
            rest = tail;
        }
        rustix::fs::fsync(&dir)?;
        rustix::fs::renameat_with(&self.set, &making, &self.set, name, RenameFlags::NOREPLACE)?;
        Ok(rustix::fs::fsync(&self.set)?)
    }

    fn copy(&self, plain: &mut Vec<u8>, name: &str) -> anyhow::Result<()> {
        self.copy_key.seal_in_place_append_tag(Aad::from(name.as_bytes()), plain)?;
        let new = format!("{name}.new");
        let fd = beneath(&self.copies, &new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        rustix::io::write(&fd, plain)?;
        rustix::fs::fsync(&fd)?;
        rustix::fs::renameat(&self.copies, &new, &self.copies, name)?;
        Ok(rustix::fs::fsync(&self.copies)?)
    }

    fn flip(&self, name: &str) -> anyhow::Result<()> {
        let dir = beneath(&self.set, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))?;
        rustix::fs::symlinkat(name, &self.set, "..data.new")?;
        rustix::fs::renameat(&self.set, "..data.new", &self.set, "..data")?;
        Ok(rustix::fs::fsync(&self.set)?)
    }

    /// Removes the version before, which nobody counts.
    pub fn tidy(&mut self, name: &str, files: &[(&str, usize)]) -> anyhow::Result<()> {
        if let Some(previous) = self.previous.replace(name.to_owned()) {
            let dir = beneath(&self.set, &previous, OFlags::RDONLY | OFlags::DIRECTORY)?;
            for (file, _) in files {
                rustix::fs::unlinkat(&dir, *file, AtFlags::empty())?;
            }
            rustix::fs::unlinkat(&self.set, &previous, AtFlags::REMOVEDIR)?;
            rustix::fs::unlinkat(&self.copies, &previous, AtFlags::empty())?;
        }
        if self.journal.metadata()?.len() > JOURNAL_BYTES_MAX {
            self.journal.set_len(0)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> anyhow::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn beneath(dir: &OwnedFd, name: &str, flags: OFlags) -> anyhow::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?)
}
