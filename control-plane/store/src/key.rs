//! The key-encryption key. It wraps the data key, and lives where the database does not: a file that only the
//! control plane may read, or a systemd credential.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// What a key file begins with, so that another file is not taken for one.
const PREFIX: &str = "eso-key-encryption-key-v1:";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("failed to {what} the key file {path}: {why}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's message.
        why: std::io::Error,
    },
    /// Others may read it.
    #[error(
        "refused the key file {path}: its mode {mode:04o} lets others read it; run `chmod 600 {path}` and, if others may have read it, make a new key"
    )]
    Readable {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is something else.
    #[error(
        "refused the key file {path}: it is not a key file of this program; `eso-control-plane init` makes one"
    )]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// systemd gave us no such credential.
    #[error(
        "failed to find the systemd credential {name:?}: add `LoadCredentialEncrypted={name}:...` to the unit, or name a key file"
    )]
    NoCredential {
        /// Its name.
        name: String,
    },
    /// The system gave no randomness.
    #[error("failed to draw a random key")]
    Random,
}

/// The key that wraps the data key. Wiped from memory when dropped.
pub struct KeyEncryptionKey(pub(crate) Zeroizing<[u8; 32]>);

impl KeyEncryptionKey {
    /// Draws a new key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(key.as_mut()).map_err(|_| KeyError::Random)?;
        Ok(Self(key))
    }

    /// Writes the key to a new file with mode 0600. An existing file is an error and never overwritten.
    pub fn write_file(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |why| KeyError::Io { what: "write", path: path.to_owned(), why };
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let text = Zeroizing::new(format!("{PREFIX}{}\n", &*Zeroizing::new(hex::encode(self.0.as_ref()))));
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// Reads a key file, which nobody but its owner may be able to read.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let failed = |why| KeyError::Io { what: "read", path: path.to_owned(), why };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Readable { path: path.to_owned(), mode });
        }
        Self::parse(path)
    }

    /// Reads the systemd credential `name` of this unit.
    pub fn from_systemd_credential(name: &str) -> Result<Self, KeyError> {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
        let path = directory.map(|directory| Path::new(&directory).join(name)).filter(|path| path.exists());
        Self::parse(&path.ok_or_else(|| KeyError::NoCredential { name: name.to_owned() })?)
    }

    fn parse(path: &Path) -> Result<Self, KeyError> {
        let failed = |why| KeyError::Io { what: "read", path: path.to_owned(), why };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
        let mut key = Zeroizing::new([0; 32]);
        text.trim_end()
            .strip_prefix(PREFIX)
            .and_then(|digits| hex::decode_to_slice(digits, key.as_mut()).ok())
            .map(|()| Self(key))
            .ok_or_else(|| KeyError::NotAKey { path: path.to_owned() })
    }
}

impl std::fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyEncryptionKey(..)")
    }
}
