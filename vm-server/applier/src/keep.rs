//! Keeps the host's secret keys: sealed by systemd-creds where that works, else in a file that only root may read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use protocol::{HostId, OpeningKey, SealingKey, SigningKey, TrustAnchor};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::failpoint;
use crate::journal::sync_dir;

const SEALED: &str = "identity.cred";
const PLAIN: &str = "identity.key";
const ANCHOR: &str = "anchor.json";
/// `systemd-creds` binds what it seals to this name.
const CREDENTIAL_NAME: &str = "eso-vm-applier";

/// Why keys cannot be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// There are none.
    #[error("this host is not enrolled: run `eso-vm-applier enroll --bundle FILE`")]
    NotEnrolled,
    /// The operating system says no.
    #[error("failed to {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `systemd-creds` cannot open what it sealed.
    #[error("failed to open {} with systemd-creds: {message}; if the machine's key or TPM changed, enrol again", path.display())]
    Unsealed {
        /// The sealed file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// Not what we wrote.
    #[error("{} is damaged: restore it or enrol again", .0.display())]
    Damaged(PathBuf),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] protocol::key::RandomFailed),
}

/// By which means the keys are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// Under the machine's TPM or host key.
    SystemdCreds,
    /// In a file of mode 0600: whoever copies the disk has them.
    KeyFile,
}

/// What makes this host this host.
pub(crate) struct Identity {
    /// Signs reports.
    pub(crate) reports: SigningKey,
    /// Opens values.
    pub(crate) values: OpeningKey,
    /// Seals the copies that survive a reboot.
    pub(crate) copies: Zeroizing<[u8; 32]>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Written {
    report_seed: String,
    values: String,
    copies: String,
}

impl Identity {
    /// New keys: a new host.
    pub(crate) fn generate() -> Result<Self, KeepError> {
        let mut copies = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *copies).map_err(|_| protocol::key::RandomFailed)?;
        Ok(Self { reports: SigningKey::generate()?, values: OpeningKey::generate()?, copies })
    }

    /// Which host it is.
    pub(crate) fn host(&self) -> HostId {
        HostId::of(&self.reports.public())
    }

    /// What values are sealed to.
    pub(crate) const fn sealing_key(&self) -> SealingKey {
        self.values.public()
    }

    /// Reads the keys back.
    pub(crate) fn load(dir: &Path) -> Result<(Self, Keeper), KeepError> {
        let (sealed, plain) = (dir.join(SEALED), dir.join(PLAIN));
        let (bytes, keeper, path) = match (read(&sealed)?, read(&plain)?) {
            (Some(_), _) => (unseal(&sealed)?, Keeper::SystemdCreds, sealed),
            (None, Some(bytes)) => (bytes, Keeper::KeyFile, plain),
            (None, None) => return Err(KeepError::NotEnrolled),
        };
        let identity = Self::parse(&bytes).ok_or(KeepError::Damaged(path))?;
        Ok((identity, keeper))
    }

    /// Writes them, by the strongest means that works.
    pub(crate) fn store(&self, dir: &Path) -> Result<Keeper, KeepError> {
        let text = self.text().ok_or_else(|| KeepError::Damaged(dir.to_owned()))?;
        if let Some(sealed) = seal(&text) {
            write_whole(&dir.join(SEALED), &sealed)?;
            return Ok(Keeper::SystemdCreds);
        }
        write_whole(&dir.join(PLAIN), &text)?;
        Ok(Keeper::KeyFile)
    }

    fn text(&self) -> Option<Zeroizing<Vec<u8>>> {
        let written = Written {
            report_seed: hex::encode(*self.reports.expose_seed().ok()?),
            values: hex::encode(*self.values.expose_bytes()),
            copies: hex::encode(*self.copies),
        };
        serde_json::to_vec(&written).ok().map(Zeroizing::new)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            reports: SigningKey::from_seed(&*key(&written.report_seed)?).ok()?,
            values: OpeningKey::from_bytes(&*key(&written.values)?).ok()?,
            copies: key(&written.copies)?,
        })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.host())
    }
}

fn key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, &mut *bytes).ok()?;
    Some(bytes)
}

/// Whose orders are obeyed, as root wrote it or a rekey changed it.
pub(crate) fn load_anchor(dir: &Path) -> Result<TrustAnchor, KeepError> {
    let path = dir.join(ANCHOR);
    let bytes = read(&path)?.ok_or(KeepError::NotEnrolled)?;
    serde_json::from_slice(&bytes).map_err(|_| KeepError::Damaged(path))
}

/// Changes it, in one rename.
pub(crate) fn store_anchor(dir: &Path, anchor: &TrustAnchor) -> Result<(), KeepError> {
    let path = dir.join(ANCHOR);
    let text = serde_json::to_vec_pretty(anchor).map_err(|_| KeepError::Damaged(path.clone()))?;
    write_whole(&path, &text)
}

/// Makes a directory that only its owner may enter. Those above it are the network half's way to its own too.
pub(crate) fn private_dir(dir: &Path) -> Result<(), KeepError> {
    let made = match dir.parent() {
        Some(above) => std::fs::DirBuilder::new().recursive(true).mode(0o755).create(above),
        None => Ok(()),
    };
    let made = made.and_then(|()| match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    });
    made.map_err(|source| KeepError::Io { doing: "make", path: dir.to_owned(), source })
}

/// Writes a file that only its owner may read: whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), KeepError> {
    let failed = |source| {
        // What was written of it takes the room that is missing.
        let _ = std::fs::remove_file(partial(path));
        KeepError::Io { doing: "write", path: path.to_owned(), source }
    };
    let new = partial(path);
    let written = (|| {
        failpoint::check("file.write")?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        failpoint::check("file.rename")?;
        std::fs::rename(&new, path)?;
        sync_dir(path)
    })();
    written.map_err(failed)
}

/// What a file is called until it is whole.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// The file, if it is there.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeepError> {
    let read = File::open(path).and_then(|mut file| {
        // Sized first: a buffer that grows leaves its older self behind.
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeepError::Io { doing: "read", path: path.to_owned(), source }),
    }
}

/// Sealed and opened again, so that what is kept is known to come back. None where that does not work: not root, no
/// systemd 250, no key of the machine.
fn seal(text: &[u8]) -> Option<Vec<u8>> {
    if !Path::new("/run/systemd/system").exists() || !rustix::process::geteuid().is_root() {
        return None;
    }
    let sealed = creds("encrypt", text).ok()?;
    let opened = Zeroizing::new(creds("decrypt", &sealed).ok()?);
    (opened.as_slice() == text).then_some(sealed)
}

fn unseal(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeepError> {
    let sealed = read(path)?.unwrap_or_default();
    let opened = creds("decrypt", &sealed);
    opened
        .map(Zeroizing::new)
        .map_err(|error| KeepError::Unsealed { path: path.to_owned(), message: error.to_string() })
}

fn creds(verb: &str, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = Command::new("systemd-creds")
        .args([verb, &format!("--name={CREDENTIAL_NAME}"), "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // A key fits into the pipe, so writing before reading cannot hang.
    stdin.write_all(input)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
