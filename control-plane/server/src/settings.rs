//! The command line. Every flag stands here once; help and completions are made from it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Where callers find the API unless told otherwise.
pub const LISTEN: &str = "0.0.0.0:8443";

/// Rotates credentials on many hosts at once; revokes the old one when nobody holds it any more.
#[derive(Debug, Parser)]
#[command(name = "eso-control-plane", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How much to log: error, warn, info, debug, trace, or a filter such as `info,engine=debug`.
    #[arg(long, global = true, help_heading = "Log", env = "ESO_LOG", default_value = "info")]
    pub log: String,
    /// How to log.
    #[arg(long, global = true, help_heading = "Log", env = "ESO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a data directory: key, database, certificate authority, the first admin's credentials for esoctl.
    ///
    /// What is there already is kept. A new admin, where the certificate of the first is lost or has ended: stop
    /// `serve`, move DATA/admin away, run `init` again with the same --url, and revoke the old one by `esoctl operator`.
    Init(Init),
    /// Serve.
    Serve(Box<Serve>),
    /// Write a copy of the database of a control plane that is not running (`esoctl backup` for one that is).
    Backup(Backup),
    /// Put a copy of the database in place; a new epoch begins.
    Restore(Restore),
}

/// Where the data is, and its key.
#[derive(Debug, Clone, Args)]
pub struct Data {
    /// The data directory.
    #[arg(long, env = "ESO_DATA", default_value = "/var/lib/eso-control-plane")]
    pub data: PathBuf,
    /// The key file that the database is encrypted under; DATA/key unless told otherwise. Keep a copy of it away
    /// from the database and its backups.
    #[arg(long, env = "ESO_KEY_FILE", conflicts_with = "key_credential")]
    pub key: Option<PathBuf>,
    /// The name of the systemd credential that holds the key instead.
    #[arg(long, env = "ESO_KEY_CREDENTIAL")]
    pub key_credential: Option<String>,
}

impl Data {
    /// The database.
    pub fn database(&self) -> PathBuf {
        self.data.join("eso.db")
    }

    /// The key file.
    pub fn key_file(&self) -> PathBuf {
        self.key.clone().unwrap_or_else(|| self.data.join("key"))
    }

    /// Where backups go.
    pub fn backups(&self) -> PathBuf {
        self.data.join("backups")
    }

    /// The first admin's credentials.
    pub fn admin(&self) -> PathBuf {
        self.data.join("admin")
    }

    /// Reads the key that the database is encrypted under.
    pub fn read_key(&self) -> Result<store::KeyEncryptionKey, store::KeyError> {
        match &self.key_credential {
            Some(name) => store::KeyEncryptionKey::from_systemd_credential(name),
            None => store::KeyEncryptionKey::from_file(&self.key_file()),
        }
    }
}

/// `init`
#[derive(Debug, Clone, Args)]
pub struct Init {
    /// Where.
    #[command(flatten)]
    pub data: Data,
    /// What the first admin is called.
    #[arg(long, default_value = "admin")]
    pub admin: String,
    /// The URL that esoctl will call; written into the admin's configuration.
    #[arg(long, default_value = "https://localhost:8443", value_parser = https_url)]
    pub url: String,
    /// The public half (64 hex digits) of a key that is kept offline and may change the order key later.
    #[arg(long, value_name = "HEX")]
    pub root_key: Option<protocol::VerifyingKey>,
}

/// `serve`
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Where the data is.
    #[command(flatten)]
    pub data: Data,
    /// The directory of resources; watched.
    #[arg(long, env = "ESO_RESOURCES", default_value = "/etc/eso-control-plane/resources")]
    pub resources: PathBuf,
    /// The directory of the backends' own secrets: the key KEY of the Secret NAME is the file NAME/KEY, as mounted
    /// Secrets are. Files named by resources are relative to it.
    #[arg(long, env = "ESO_SECRETS", default_value = "/etc/eso-control-plane/secrets")]
    pub secrets: PathBuf,
    /// Where to listen; port 0 lets the system choose.
    #[arg(long, env = "ESO_LISTEN", default_value = LISTEN)]
    pub listen: SocketAddr,
    /// A name or address that callers use; it stands in the certificate. May be given several times; localhost and
    /// the loopback addresses always stand there.
    #[arg(long = "name", env = "ESO_NAMES", value_delimiter = ',')]
    pub names: Vec<String>,
    /// The URL that hosts call; https://NAME:PORT of the first name unless told otherwise.
    #[arg(long, env = "ESO_URL", value_parser = https_url)]
    pub url: Option<String>,
}

/// `backup`
#[derive(Debug, Clone, Args)]
pub struct Backup {
    /// Where the data is.
    #[command(flatten)]
    pub data: Data,
    /// The file to write; it must not exist. Values in it stay encrypted; the key is not in it.
    #[arg(long)]
    pub to: PathBuf,
}

/// `restore`
#[derive(Debug, Clone, Args)]
pub struct Restore {
    /// Where the data goes; there must be no database.
    #[command(flatten)]
    pub data: Data,
    /// A file that `backup` wrote.
    #[arg(long)]
    pub from: PathBuf,
}

fn https_url(text: &str) -> Result<String, String> {
    let is_https = |uri: &http::Uri| uri.scheme_str() == Some("https");
    let has_host = |uri: &http::Uri| uri.host().is_some_and(|host| !host.is_empty());
    match text.parse::<http::Uri>() {
        Ok(uri) if is_https(&uri) && has_host(&uri) => Ok(text.to_owned()),
        _ => Err("write https://NAME:PORT, for example https://eso.example.org:8443".to_owned()),
    }
}
