//! Where a backend's own credentials stand. They are read anew at each use, so that they can be rotated too.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// The most bytes that a referenced secret may have.
const REFERENCED_BYTES_MAX: u64 = 64 * 1024;

/// Names a secret that somebody else keeps: a key of a Secret, or a file. Exactly one of `name` and `file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The Secret's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The Secret's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The key within the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A file; one line end at its end does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Reads what a [`SecretRef`] names.
pub trait Secrets: Send + Sync {
    /// What stands there now.
    fn read(&self, reference: &SecretRef) -> Result<Zeroizing<Vec<u8>>, Failure>;

    /// What stands there now, as text.
    fn read_text(&self, reference: &SecretRef) -> Result<Zeroizing<String>, Failure> {
        let bytes = self.read(reference)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(Failure::refused(format!("the secret at {reference} is not text in UTF-8"))),
        }
    }
}

/// Secrets in a directory: the key `KEY` of the Secret `NAME` is the file `DIR/NAME/KEY`, as a mounted Secret is;
/// a relative `file` is relative to the directory.
#[derive(Debug, Clone)]
pub struct SecretsDirectory {
    directory: PathBuf,
}

impl SecretsDirectory {
    /// Secrets below this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, reference: &SecretRef) -> Result<PathBuf, Failure> {
        match (&reference.name, &reference.key, &reference.file) {
            (None, None, Some(file)) => Ok(self.directory.join(file)),
            (Some(name), Some(key), None) if is_component(name) && is_component(key) => {
                Ok(self.directory.join(name).join(key))
            }
            _ => Err(Failure::refused(
                "a secret is named by `name` and `key`, or by `file` alone: correct the reference",
            )),
        }
    }
}

impl Secrets for SecretsDirectory {
    fn read(&self, reference: &SecretRef) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let path = self.path(reference)?;
        let mut content = read_bounded(&path, REFERENCED_BYTES_MAX)?;
        if content.last() == Some(&b'\n') {
            content.pop();
        }
        Ok(content)
    }
}

impl std::fmt::Display for SecretRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, &self.name, &self.key) {
            (Some(file), ..) => write!(f, "{}", file.display()),
            (None, Some(name), Some(key)) => write!(f, "{name}.{key}"),
            _ => f.write_str("(an incomplete reference)"),
        }
    }
}

fn is_component(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0'])
}

/// A small file, whole.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| {
        let words = format!("failed to read {}: {error}", path.display());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Failure::refused(format!("{words}; let this process read it"))
            }
            _ => Failure::retry(words),
        }
    };
    let file = File::open(path).map_err(failed)?;
    // Sized once: a buffer that grows leaves copies behind.
    let size = file.metadata().map_err(failed)?.len().min(bytes_max) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default()));
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > bytes_max {
        return Err(Failure::refused(format!("{} is larger than {bytes_max} bytes", path.display())));
    }
    Ok(content)
}
