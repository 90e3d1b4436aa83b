//! Key and certificate of the network half, in `STATE/server`.
//!
//! Everything that belongs together is in one file that is replaced by one rename, so that a crash leaves the old
//! identity or the new one and never a key without its certificate.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use protocol::enrol::{EnrolError, EnrolResponse, FAILURE_FILE, PENDING_FILE, PendingEnrolment, TokenId};
use protocol::{HostId, InstallationId, UnixMillis};
use serde::{Deserialize, Serialize};
use transport::{IdentityError, TlsIdentity, Trust, TrustError};
use zeroize::Zeroizing;

const IDENTITY_FILE: &str = "identity.json";
/// The key for which a certificate was asked, until it has one: an answer that was lost is asked for again.
const ENROLMENT_KEY_FILE: &str = "enrolment-key.pem";
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("failed to {what} {path}: {error}; it must belong to the user that runs eso-vm-server")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The answer.
        error: io::Error,
    },
    /// The pending enrolment is not one.
    #[error("{path}: {error}")]
    Pending {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: EnrolError,
    },
    /// The identity is not one.
    #[error(
        "failed to use {path}: {why}; remove it and enrol again with `eso-vm-applier enroll --bundle FILE`"
    )]
    Identity {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What is kept on disk.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    installation: InstallationId,
    host: HostId,
    control_plane: String,
    token: TokenId,
    ca_pem: String,
    chain_pem: String,
    #[serde(with = "wiped")]
    key_pem: Zeroizing<String>,
    renew_at: UnixMillis,
    expires_at: UnixMillis,
    /// Where we said that pushes reach us.
    #[serde(default)]
    address: Option<String>,
}

/// A key is written to this one file; the copy in memory is wiped.
mod wiped {
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(pem: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(pem)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(from).map(Zeroizing::new)
    }
}

/// Who this host is to the control plane, read and found usable.
pub struct Identity {
    kept: Kept,
    tls: TlsIdentity,
    trust: Trust,
}

impl Identity {
    /// From the control plane's answer to a token. The chain must fit the key.
    pub(crate) fn enrolled(
        pending: &PendingEnrolment,
        key_pem: Zeroizing<String>,
        response: EnrolResponse,
        address: &str,
    ) -> Result<Self, String> {
        Self::new(Kept {
            version: 1,
            installation: pending.installation,
            host: pending.host,
            control_plane: pending.control_plane.clone(),
            token: pending.token.clone(),
            ca_pem: response.ca_pem,
            chain_pem: response.chain_pem,
            key_pem,
            renew_at: response.renew_at,
            expires_at: response.expires_at,
            address: Some(address.to_owned()),
        })
    }

    /// The same host with the next certificate. The chain must fit the same key and come from the same authority:
    /// whoever answers a renewal has no more than a certificate of the control plane, and nothing in the answer shows
    /// that root would trust another authority.
    pub(crate) fn renewed(&self, response: EnrolResponse, address: &str) -> Result<Self, String> {
        if response.ca_pem != self.kept.ca_pem {
            return Err(
                "it names another authority than the one that root enrolled this host with".to_owned()
            );
        }
        let next = Self::new(Kept {
            chain_pem: response.chain_pem,
            renew_at: response.renew_at,
            expires_at: response.expires_at,
            address: Some(address.to_owned()),
            ..self.kept.clone()
        })?;
        let signed = next.trust.check_signed(&next.tls);
        signed.map_err(|error| format!("our authority did not sign it: {error}"))?;
        Ok(next)
    }

    fn new(kept: Kept) -> Result<Self, String> {
        let tls = TlsIdentity::from_pem(&kept.chain_pem, &kept.key_pem)
            .map_err(|error: IdentityError| error.to_string())?;
        let trust = Trust::from_pem(&kept.ca_pem).map_err(|error: TrustError| error.to_string())?;
        let trust = trust.with_uris([transport::names::control_plane_uri(kept.installation)]);
        // rustls compares key and certificate only when both are put to use.
        transport::ServerTls::new(tls.clone(), transport::Clients::Anonymous)
            .map_err(|error| error.to_string())?;
        Ok(Self { kept, tls, trust })
    }

    /// The installation that the host belongs to.
    pub const fn installation(&self) -> InstallationId {
        self.kept.installation
    }

    /// This host.
    pub const fn host(&self) -> HostId {
        self.kept.host
    }

    /// Where the enrolment said that the control plane listens.
    pub fn control_plane(&self) -> &str {
        &self.kept.control_plane
    }

    /// Certificate and key.
    pub const fn tls(&self) -> &TlsIdentity {
        &self.tls
    }

    /// Trusts the control plane of this installation and nobody else.
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether this is what came of that token.
    pub(crate) fn came_of(&self, pending: &PendingEnrolment) -> bool {
        self.kept.token == pending.token && self.kept.host == pending.host
    }

    /// Whether both trust the same authorities.
    pub(crate) fn same_authorities(&self, other: &Self) -> bool {
        self.kept.ca_pem == other.kept.ca_pem && self.kept.installation == other.kept.installation
    }

    pub(crate) const fn key_pem(&self) -> &Zeroizing<String> {
        &self.kept.key_pem
    }

    /// Whether the control plane was told this address.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        self.kept.address.as_deref() == Some(address)
    }

    pub(crate) const fn renew_at(&self) -> UnixMillis {
        self.kept.renew_at
    }

    pub(crate) const fn expires_at(&self) -> UnixMillis {
        self.kept.expires_at
    }
}

/// `STATE/server`.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory where it is missing.
    pub fn open(path: PathBuf) -> Result<Self, StateError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| StateError::Io {
            what: "make",
            path: path.clone(),
            error,
        })?;
        Ok(Self(path))
    }

    /// The identity, once enrolled.
    pub fn identity(&self) -> Result<Option<Identity>, StateError> {
        let path = self.0.join(IDENTITY_FILE);
        let Some(json) = read(&path)? else { return Ok(None) };
        let unusable = |why: String| StateError::Identity { path: path.clone(), why };
        // The error of the parser may quote the key.
        let kept: Kept =
            serde_json::from_slice(&json).map_err(|_| unusable("not of this version".to_owned()))?;
        Identity::new(kept).map(Some).map_err(unusable)
    }

    /// What the applier left at enrolment.
    pub fn pending(&self) -> Result<Option<PendingEnrolment>, StateError> {
        let path = self.0.join(PENDING_FILE);
        let Some(json) = read(&path)? else { return Ok(None) };
        PendingEnrolment::from_json(&json).map(Some).map_err(|error| StateError::Pending { path, error })
    }

    /// The key for which a certificate was asked.
    pub(crate) fn enrolment_key(&self) -> Result<Option<Zeroizing<String>>, StateError> {
        let path = self.0.join(ENROLMENT_KEY_FILE);
        let pem = read(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(pem.map(Zeroizing::new))
    }

    pub(crate) fn keep_enrolment_key(&self, pem: &str) -> Result<(), StateError> {
        self.replace(ENROLMENT_KEY_FILE, pem.as_bytes())
    }

    pub(crate) fn keep_identity(&self, identity: &Identity) -> Result<(), StateError> {
        let json = Zeroizing::new(serde_json::to_vec_pretty(&identity.kept).map_err(|error| {
            StateError::Io { what: "write", path: self.0.join(IDENTITY_FILE), error: error.into() }
        })?);
        self.replace(IDENTITY_FILE, &json)
    }

    /// Says to whoever enrols this host why it did not come about yet. Nothing depends on it.
    pub(crate) fn note_failure(&self, why: &str) {
        let _ = self.replace(FAILURE_FILE, why.as_bytes());
    }

    /// The enrolment is over; its secret is of no more use.
    pub(crate) fn finish_enrolment(&self) -> Result<(), StateError> {
        for name in [PENDING_FILE, ENROLMENT_KEY_FILE, FAILURE_FILE] {
            let path = self.0.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StateError::Io { what: "remove", path, error }),
            }
        }
        Ok(())
    }

    /// Whole or not at all, through a crash too.
    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.0.join(name);
        let new = self.0.join(format!("{name}.new"));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|error| StateError::Io { what: "write", path: path.clone(), error })
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let failed = |error| StateError::Io { what: "read", path: path.to_owned(), error };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            Err(failed(io::Error::other("it is larger than anything that is kept there")))
        }
        Ok(_) => fs::read(path).map(|bytes| Some(Zeroizing::new(bytes))).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
