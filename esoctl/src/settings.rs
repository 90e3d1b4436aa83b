//! Whom to ask, and as whom: flags above environment above file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::cli::Connection;

/// As written in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    server: Option<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

/// What a connection needs, read.
pub(crate) struct Settings {
    /// Without a slash at the end.
    pub(crate) server: String,
    pub(crate) ca: String,
    pub(crate) certificate_and_key: Option<(String, Zeroizing<String>)>,
    pub(crate) token: Option<Zeroizing<String>>,
}

/// Why a connection cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file.
    #[error("failed to read {what} {path}: {why}")]
    Read {
        /// What it is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// The configuration.
    #[error("failed to read the configuration {path}: {why}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the line.
        why: String,
    },
    /// Something is missing.
    #[error(
        "no {what}: set --{flag}, {variable}, or `{key}` in the configuration file; `eso-control-plane init` wrote one into DATA/admin/esoctl.toml"
    )]
    Missing {
        /// What.
        what: &'static str,
        /// The flag.
        flag: &'static str,
        /// The environment variable.
        variable: &'static str,
        /// The key in the file.
        key: &'static str,
    },
    /// Not a URL that we could call.
    #[error("{0:?} is not the URL of a control plane: write https://NAME:PORT")]
    Server(String),
}

impl Settings {
    pub(crate) fn read(connection: &Connection) -> Result<Self, SettingsError> {
        let (written, beside) = file(connection)?;
        let pick = |flag: &Option<PathBuf>, written: Option<PathBuf>| {
            flag.clone().or_else(|| written.map(|path| beside.join(path)))
        };
        let server = connection.server.clone().or(written.server).ok_or(SettingsError::Missing {
            what: "control plane is named",
            flag: "server",
            variable: "ESOCTL_SERVER",
            key: "server",
        })?;
        let good = reqwest::Url::parse(&server).is_ok_and(|url| url.scheme() == "https" && url.has_host());
        if !good {
            return Err(SettingsError::Server(server));
        }
        let ca = pick(&connection.ca, written.ca).ok_or(SettingsError::Missing {
            what: "certificate authority is named",
            flag: "ca",
            variable: "ESOCTL_CA",
            key: "ca",
        })?;
        let certificate = pick(&connection.certificate, written.certificate);
        let key = pick(&connection.key, written.key);
        let certificate_and_key = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                Some((read("the certificate", &certificate)?, Zeroizing::new(read("the key", &key)?)))
            }
            (certificate, _) => {
                let (what, flag, variable, key) = match certificate {
                    Some(_) => ("key for the certificate", "key", "ESOCTL_KEY", "key"),
                    None => ("certificate for the key", "certificate", "ESOCTL_CERTIFICATE", "certificate"),
                };
                return Err(SettingsError::Missing { what, flag, variable, key });
            }
        };
        let token = match std::env::var("ESOCTL_TOKEN") {
            Ok(token) => Some(Zeroizing::new(token)),
            Err(_) => pick(&connection.token_file, written.token_file)
                .map(|path| read("the token", &path).map(|text| Zeroizing::new(text.trim().to_owned())))
                .transpose()?,
        };
        Ok(Self {
            server: server.trim_end_matches('/').to_owned(),
            ca: read("the certificate authority", &ca)?,
            certificate_and_key,
            token,
        })
    }
}

/// The configuration file and the directory that it lies in. None is needed where flags say everything.
fn file(connection: &Connection) -> Result<(Written, PathBuf), SettingsError> {
    let path = match (&connection.config, default_file()) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) if path.exists() => path,
        (None, _) => return Ok((Written::default(), PathBuf::new())),
    };
    let text = read("the configuration", &path)?;
    let written = toml::from_str(&text)
        .map_err(|error| SettingsError::Malformed { path: path.clone(), why: error.to_string() })?;
    Ok((written, path.parent().map(Path::to_owned).unwrap_or_default()))
}

fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    home.map(|home| home.join("esoctl/esoctl.toml"))
}

fn read(what: &'static str, path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|why| SettingsError::Read { what, path: path.to_owned(), why })
}
