//! The first set-up of a data directory. Every step can be repeated: a run that was interrupted is finished by the
//! next one, and nothing that exists is overwritten.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use identity::{Identities, IdentitiesError, Lives, OperatorError};
use protocol::api::{NewOperator, OperatorProof, Role};
use protocol::{InstallationId, UnixMillis};
use store::{KeyEncryptionKey, KeyError, OpenError, Store};
use zeroize::Zeroizing;

use crate::settings;

/// Why a data directory was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file or directory.
    #[error("failed to write {path}: {why}; check owner, mode and free space")]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file that is there already.
    #[error("failed to read {path}: {why}; check owner and mode")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The authority.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// The first admin.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// It was begun with another address.
    #[error(
        "{config} names another server than {url}: correct its line `server`, or give the --url of the first run"
    )]
    OtherServer {
        /// The admin's configuration.
        config: PathBuf,
        /// What was asked for now.
        url: String,
    },
    /// The admin's key.
    #[error("failed to make the admin's key: {0}")]
    AdminKey(String),
}

/// What is there.
#[derive(Debug)]
pub struct Initialised {
    /// Whether it was whole before: then nothing was made.
    pub before: bool,
    /// Which installation.
    pub installation: InstallationId,
    /// The first admin's configuration for esoctl.
    pub esoctl_config: PathBuf,
    /// The key file; none where systemd keeps the key.
    pub key_file: Option<PathBuf>,
}

/// For people. Always ends without a line break.
impl fmt::Display for Initialised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.esoctl_config.display();
        if self.before {
            let admin = self.esoctl_config.parent().unwrap_or(Path::new("")).display();
            return write!(
                f,
                "installation {} was initialised before: nothing was made; its admin is in {config}\nIf that admin's \
                 certificate is lost or has ended: stop `eso-control-plane serve`, move {admin} away and run `init` \
                 again with the same --url; it makes a new admin. Then `esoctl operator revoke` the old one.",
                self.installation
            );
        }
        write!(f, "installation {}\nesoctl       {config}", self.installation)?;
        let Some(key_file) = &self.key_file else { return Ok(()) };
        write!(
            f,
            "\nkey          {}\nKeep a copy of the key away from the database: without it no backup can be read.",
            key_file.display()
        )
    }
}

/// Makes a data directory.
pub async fn init(settings: &settings::Init) -> Result<Initialised, InitError> {
    let data = &settings.data;
    make_directory(&data.data)?;
    let key_file = data.key_credential.is_none().then(|| data.key_file());
    let esoctl_config = data.admin().join("esoctl.toml");
    let key_was_there = key_file.as_ref().is_none_or(|file| file.exists());
    let before = key_was_there && data.database().exists() && esoctl_config.exists();
    if let Some(key_file) = key_file.as_ref().filter(|file| !file.exists()) {
        KeyEncryptionKey::generate()?.write_file(key_file)?;
    }
    let store = Store::open(data.database(), data.read_key()?).await?;
    Identities::init(&store, settings.root_key, UnixMillis::now()).await?;
    let identities = Identities::open(store, Lives::default()).await?;
    // The configuration is written last, so its absence says that the admin is not complete.
    if !esoctl_config.exists() {
        make_admin(settings, &identities, &esoctl_config).await?;
    } else if !names_server(&esoctl_config, &settings.url)? {
        return Err(InitError::OtherServer { config: esoctl_config, url: settings.url.clone() });
    }
    Ok(Initialised { before, installation: identities.installation(), esoctl_config, key_file })
}

async fn make_admin(
    settings: &settings::Init,
    identities: &Identities,
    config: &Path,
) -> Result<(), InitError> {
    let admin_key = |error: rcgen::Error| InitError::AdminKey(error.to_string());
    let directory = settings.data.admin();
    make_directory(&directory)?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(admin_key)?;
    let csr = rcgen::CertificateParams::new(Vec::new())
        .and_then(|params| params.serialize_request(&key))
        .and_then(|request| request.pem())
        .map_err(admin_key)?;
    let request = NewOperator {
        name: settings.admin.clone(),
        role: Role::Admin,
        proof: OperatorProof::Certificate { csr },
        life_ms: Some(identities.lives().operator_ms_max),
    };
    let issued = identities.add_operator(&request, "init", UnixMillis::now()).await?;
    let key = Zeroizing::new(key.serialize_pem());
    let certificate = issued.certificate.unwrap_or_default();
    write(&directory.join("key.pem"), key.as_bytes())?;
    write(&directory.join("cert.pem"), certificate.as_bytes())?;
    write(&directory.join("ca.pem"), identities.authority().certificate_pem().as_bytes())?;
    let text = format!(
        "# For esoctl: `esoctl --config {}`, or copy this directory and set ESOCTL_CONFIG.\n{}\nca = \"ca.pem\"\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n",
        config.display(),
        server_line(&settings.url)
    );
    write(config, text.as_bytes())
}

fn names_server(config: &Path, url: &str) -> Result<bool, InitError> {
    let text = std::fs::read_to_string(config);
    let text = text.map_err(|why| InitError::Read { path: config.to_owned(), why })?;
    Ok(text.lines().any(|line| line == server_line(url)))
}

fn server_line(url: &str) -> String {
    format!("server = {url:?}")
}

pub(crate) fn make_directory(path: &Path) -> Result<(), InitError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|why| InitError::Write { path: path.to_owned(), why })
}

/// Whole or not at all, for us alone, and in place of what an interrupted run left.
fn write(path: &Path, content: &[u8]) -> Result<(), InitError> {
    let failed = |why| InitError::Write { path: path.to_owned(), why };
    let partial = path.with_extension("partial");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)
}
