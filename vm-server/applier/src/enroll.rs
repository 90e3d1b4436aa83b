//! `eso-vm-applier enroll --bundle FILE`: root makes this machine a host of an installation.
//!
//! The trust anchor and the applier's keys are written here and nowhere else; the network half gets what it needs to
//! ask for a certificate, and not the secret that authenticates the applier's keys.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use host_policy::Daemon;
use protocol::HostId;
use protocol::enrol::{Bundle, EnrolError, PENDING_FILE, Registration};

use crate::keep::{self, Identity, KeepError, Keeper};

/// The user of the network half, where it has one of its own.
const SERVER_USER: &str = "eso-vm-server";

/// Why a machine cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The bundle cannot be read.
    #[error("failed to read the bundle {}: {source}", path.display())]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no bundle.
    #[error(transparent)]
    Malformed(#[from] EnrolError),
    /// Its token is over.
    #[error("the bundle's token has expired: make a new one with `esoctl host enroll-token`")]
    Expired,
    /// The machine belongs to another installation.
    #[error(
        "this host is enrolled with installation {0}: to leave it, stop both daemons and move {dir} away",
        dir = .1.display()
    )]
    Elsewhere(protocol::InstallationId, PathBuf),
    /// Keys or files.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The registration would be too large.
    #[error("failed to make the registration: {0}")]
    TooLarge(#[from] protocol::TooLarge),
    /// The network half's file cannot be given to it.
    #[error("failed to give {} to the network half: {source}", path.display())]
    Give {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enrolled {
    /// This host.
    pub host: HostId,
    /// By which means its keys are kept.
    pub keeper: Keeper,
    /// Whether the machine had keys already, and so stays the same host.
    pub again: bool,
}

/// Enrols this machine. A machine that has keys for the same installation keeps them and only registers again.
pub fn enroll(daemon: &Daemon, bundle: &Path) -> Result<Enrolled, EnrollError> {
    let bytes = keep::read(bundle)?.ok_or_else(|| EnrollError::Bundle {
        path: bundle.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let bundle = Bundle::from_json(&bytes)?;
    if bundle.expires_at < protocol::UnixMillis::now() {
        return Err(EnrollError::Expired);
    }
    let dir = daemon.applier_state();
    keep::private_dir(&dir)?;
    let (identity, keeper, again) = match (Identity::load(&dir), keep::load_anchor(&dir)) {
        (Ok((identity, keeper)), Ok(anchor)) if anchor.installation == bundle.installation => {
            (identity, keeper, true)
        }
        (Ok(_), Ok(anchor)) => return Err(EnrollError::Elsewhere(anchor.installation, dir)),
        // Keys without an anchor are those of an enrolment that was cut short: nobody knows them yet.
        (Ok((identity, keeper)), Err(KeepError::NotEnrolled)) => (identity, keeper, false),
        (Err(KeepError::NotEnrolled), _) => {
            let identity = Identity::generate()?;
            let keeper = identity.store(&dir)?;
            (identity, keeper, false)
        }
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
    };
    if !again {
        keep::store_anchor(&dir, &bundle.trust_anchor())?;
    }
    let registration = Registration::new(&bundle, &identity.reports, identity.sealing_key())?;
    leave_pending(&daemon.server_state(), &bundle.pending(registration).to_json()?)?;
    Ok(Enrolled { host: identity.host(), keeper, again })
}

/// Puts the file where the network half looks for it, owned by whoever owns that directory.
fn leave_pending(dir: &Path, content: &[u8]) -> Result<(), EnrollError> {
    let is_root = rustix::process::geteuid().is_root();
    if !dir.exists() {
        keep::private_dir(dir)?;
        let server = nix::unistd::User::from_name(SERVER_USER).ok().flatten();
        if let Some(user) = server.filter(|_| is_root) {
            give(dir, user.uid.as_raw(), user.gid.as_raw())?;
        }
    }
    let path = dir.join(PENDING_FILE);
    keep::write_whole(&path, content)?;
    if is_root {
        let owner =
            std::fs::metadata(dir).map_err(|source| EnrollError::Give { path: dir.to_owned(), source })?;
        give(&path, owner.uid(), owner.gid())?;
    }
    Ok(())
}

fn give(path: &Path, uid: u32, gid: u32) -> Result<(), EnrollError> {
    chown(path, Some(uid), Some(gid)).map_err(|source| EnrollError::Give { path: path.to_owned(), source })
}
