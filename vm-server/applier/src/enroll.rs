//! `eso-vm-applier enroll --bundle FILE`: root makes this machine a host of an installation.
//!
//! The trust anchor and the applier's keys are written here and nowhere else; the network half gets what it needs to
//! ask for a certificate, and not the secret that authenticates the applier's keys.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use host_policy::Daemon;
use protocol::HostId;
use protocol::enrol::{Bundle, EnrolError, FAILURE_FILE, PENDING_FILE, Registration};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::keep::{self, Identity, KeepError, Keeper};

/// The user of the network half, where it has one of its own.
const SERVER_USER: &str = "eso-vm-server";
/// The network half's unit.
const SERVER_UNIT: &str = "eso-vm-server.service";
/// Waits for its keys since it was installed.
const APPLIER_UNIT: &str = "eso-vm-applier.service";
/// How long whoever enrols a host waits for the control plane's word.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(100);
/// The most bytes that are read of what the network half says.
const FAILURE_BYTES_MAX: u64 = 4096;

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
    /// The network half's file cannot be left in its directory.
    #[error(
        "failed to write {} for the network half: {source}; its directory must be one, and no link",
        path.display()
    )]
    Leave {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The network half's directory cannot be given to it.
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

/// What the control plane made of it, as far as this host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It knows this host.
    Taken,
    /// It does not, for this reason; the network half tries on.
    Refused(String),
    /// Nothing came in time; the network half tries on.
    None,
    /// The network half does not run under systemd here, so that nobody was asked.
    NobodyAsked,
}

/// Has the applier run, which has keys now, and the network half begin anew, with the configuration as it is now; waits
/// for what the control plane says to that.
pub fn ask_control_plane(daemon: &Daemon) -> Word {
    let systemctl = |verb: &str, unit: &str| {
        Command::new("systemctl").args([verb, "--quiet", unit]).status().is_ok_and(|status| status.success())
    };
    if !Path::new("/run/systemd/system").exists() || !systemctl("is-active", SERVER_UNIT) {
        return Word::NobodyAsked;
    }
    if !systemctl("start", APPLIER_UNIT) {
        tracing::warn!("{APPLIER_UNIT} does not start: see `journalctl -u eso-vm-applier`");
    }
    let state = daemon.server_state();
    let _ = systemctl("stop", SERVER_UNIT);
    // What it said of an earlier bundle while it still ran.
    let _ = std::fs::remove_file(state.join(FAILURE_FILE));
    if !systemctl("start", SERVER_UNIT) {
        return Word::NobodyAsked;
    }
    await_word(&state, Instant::now() + PATIENCE)
}

fn await_word(dir: &Path, deadline: Instant) -> Word {
    loop {
        if !dir.join(PENDING_FILE).exists() {
            return Word::Taken;
        }
        if let Some(why) = failure(dir) {
            return Word::Refused(why);
        }
        if Instant::now() >= deadline {
            return Word::None;
        }
        std::thread::sleep(LOOK);
    }
}

/// What the network half says; it may put there what it likes.
fn failure(dir: &Path) -> Option<String> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK;
    let file = File::from(fs::open(dir.join(FAILURE_FILE), flags, Mode::empty()).ok()?);
    let mut words = Vec::new();
    file.take(FAILURE_BYTES_MAX).read_to_end(&mut words).ok()?;
    Some(protocol::report::sentence(&String::from_utf8_lossy(&words)))
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
    let left = write_into(dir, PENDING_FILE, content, is_root);
    left.map_err(|error| EnrollError::Leave { path: dir.join(PENDING_FILE), source: error.into() })
}

/// Writes a file into a directory whose owner may be less than we are, and puts there what it likes meanwhile: no link
/// is followed, and nothing is opened or given away but what was made here.
fn write_into(dir: &Path, name: &str, content: &[u8], give: bool) -> rustix::io::Result<()> {
    let only_this = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::open(dir, only_this | OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    let new = format!("{name}.new");
    match fs::unlinkat(&dir, &new, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = only_this | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = File::from(fs::openat(&dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| errno_of(&error))?;
    if give {
        let owner = fs::fstat(&dir)?;
        fs::fchown(&file, Some(fs::Uid::from_raw(owner.st_uid)), Some(fs::Gid::from_raw(owner.st_gid)))?;
    }
    fs::renameat(&dir, &new, &dir, name)?;
    fs::fsync(&dir)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn give(path: &Path, uid: u32, gid: u32) -> Result<(), EnrollError> {
    lchown(path, Some(uid), Some(gid)).map_err(|source| EnrollError::Give { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_enrols_a_host_is_told_what_came_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        assert_eq!(await_word(dir.path(), now), Word::Taken, "the network half has removed it");
        std::fs::write(dir.path().join(PENDING_FILE), "{}").unwrap();
        assert_eq!(await_word(dir.path(), now), Word::None);
        std::fs::write(dir.path().join(FAILURE_FILE), "the token\u{1b}[2J was used before").unwrap();
        let Word::Refused(why) = await_word(dir.path(), now) else { panic!("nothing was said") };
        assert!(why.contains("was used before") && !why.contains('\u{1b}'), "{why:?}");
        std::fs::remove_file(dir.path().join(FAILURE_FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join(FAILURE_FILE)).unwrap();
        assert_eq!(await_word(dir.path(), now), Word::None, "a link is not followed");
    }
}
