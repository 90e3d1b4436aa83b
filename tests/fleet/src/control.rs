//! A control plane in a process of its own, which a test may kill, and its API.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use protocol::api::{
    CredentialDetail, EnrolToken, EnrolTokenIssued, HostPhase, HostSummary, Rotate, Rotated, Status,
};
use protocol::enrol::Bundle;
use reqwest::{Client, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use transport::{Names, TlsIdentity, Trust, client_config, http_client};

use crate::port;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(30);
/// How long the program may take to become ready.
const READY: Duration = Duration::from_mins(1);
/// Between two looks while something is awaited.
const LOOK: Duration = Duration::from_millis(100);

/// A control plane in a process of its own. Dropping it kills it.
pub struct ControlPlane {
    program: PathBuf,
    directory: PathBuf,
    listen: SocketAddr,
    api: Api,
    runtime: Handle,
    child: Option<Child>,
    /// What the program finds in its environment at its next start.
    pub environment: Vec<(String, String)>,
}

/// The API, as the first admin.
#[derive(Clone)]
pub struct Api {
    client: Client,
    base: String,
}

impl ControlPlane {
    /// Makes the data directory; nothing is served yet.
    pub fn init(program: &Path, directory: &Path, runtime: &Handle) -> anyhow::Result<Self> {
        transport::install_provider();
        for name in ["resources", "secrets"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        let listen = port::free();
        let base = format!("https://{listen}");
        let output = Command::new(program)
            .arg("init")
            .arg("--data")
            .arg(directory.join("data"))
            .args(["--url", &base])
            .output()
            .with_context(|| format!("failed to start {}", program.display()))?;
        if !output.status.success() {
            bail!("{} init: {}", program.display(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            listen,
            api: Api::of_first_admin(&directory.join("data/admin"), base)?,
            runtime: runtime.clone(),
            child: None,
            environment: Vec::new(),
        })
    }

    /// Starts the program and waits until it serves. An error when it ends before.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.kill();
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&self.program)
            .arg("serve")
            .arg("--data")
            .arg(self.directory.join("data"))
            .arg("--resources")
            .arg(self.resources())
            .arg("--secrets")
            .arg(self.secrets())
            .args(["--listen", &self.listen.to_string(), "--url", &self.url()])
            .envs(self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let said = child.stdout.take();
        self.child = Some(child);
        let mut line = String::new();
        // Ends with the process, if not before.
        BufReader::new(said.context("its standard output is ours")?).read_line(&mut line)?;
        if line.starts_with("ready ") {
            return Ok(());
        }
        let status = self.until_ended(READY)?;
        bail!("the control plane ended before it was ready: {status}")
    }

    /// Ends it as a crash would. Nothing when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Waits until it ends by itself.
    pub fn until_ended(&mut self, time: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the control plane still runs after {time:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it listens.
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What hosts call.
    pub fn url(&self) -> String {
        self.api.base.clone()
    }

    /// The directory whose resources it reads.
    pub fn resources(&self) -> PathBuf {
        self.directory.join("resources")
    }

    /// The directory of its backends' own secrets.
    pub fn secrets(&self) -> PathBuf {
        self.directory.join("secrets")
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        self.directory.join("data/eso.db")
    }

    /// Its log, of all its lives.
    pub fn log(&self) -> PathBuf {
        self.directory.join("control-plane.log")
    }

    /// Writes one file of resources, whole.
    pub fn write_resource(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let unfinished = self.resources().join(format!(".{name}.new"));
        std::fs::write(&unfinished, text)?;
        std::fs::rename(unfinished, self.resources().join(name))?;
        Ok(())
    }

    /// The API, for tasks.
    pub const fn api(&self) -> &Api {
        &self.api
    }

    /// `GET`, from outside of the runtime.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.runtime.block_on(self.api.ask(Method::GET, path, None::<&()>))
    }

    /// `POST`, from outside of the runtime.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.runtime.block_on(self.api.ask(Method::POST, path, Some(body)))
    }

    /// The whole installation at one look.
    pub fn status(&self) -> anyhow::Result<Status> {
        self.get("/v1/status")
    }

    /// One credential.
    pub fn credential(&self, name: &str) -> anyhow::Result<CredentialDetail> {
        self.get(&format!("/v1/credentials/{name}"))
    }

    /// Asks for a new version.
    pub fn rotate(&self, name: &str) -> anyhow::Result<Rotated> {
        self.post(&format!("/v1/credentials/{name}/rotate"), &Rotate::default())
    }

    /// All hosts.
    pub fn hosts(&self) -> anyhow::Result<Vec<HostSummary>> {
        self.get("/v1/hosts")
    }

    /// Waits until so many hosts are connected.
    pub fn until_connected(&self, hosts: usize, time: Duration) -> anyhow::Result<()> {
        let connected =
            |status: &Status| status.hosts.get(&HostPhase::Connected).copied().unwrap_or_default();
        self.until(time, &format!("{hosts} hosts are connected"), |control| {
            Ok(usize::try_from(connected(&control.status()?))? >= hosts)
        })
    }

    /// Asks again and again until this holds; an answer that did not come is asked for again.
    pub fn until(
        &self,
        time: Duration,
        what: &str,
        holds: impl Fn(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + time;
        loop {
            let last = holds(self);
            if matches!(last, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                last?;
                bail!("after {time:?} it does not hold that {what}");
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Api {
    fn of_first_admin(admin: &Path, base: String) -> anyhow::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(admin.join(name));
        let identity = TlsIdentity::from_pem(&read("cert.pem")?, &read("key.pem")?)?;
        let trust = Trust::from_pem(&read("ca.pem")?)?;
        let client = http_client(client_config(Some(&identity), &trust, Names::Checked)?);
        Ok(Self { client: client.timeout(REQUEST).build()?, base })
    }

    /// One request; an answer that is no success is an error with its words.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let what = format!("{method} {path}");
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| what.clone())?;
        let status = response.status();
        if !status.is_success() {
            bail!("{what}: {status}: {}", response.text().await.unwrap_or_default());
        }
        response.json().await.with_context(|| what.clone())
    }

    /// What root carries to a new host.
    pub async fn bundle(&self, token: &EnrolToken) -> anyhow::Result<Bundle> {
        let issued: EnrolTokenIssued = self.ask(Method::POST, "/v1/hosts/enroll-token", Some(token)).await?;
        Ok(issued.bundle)
    }
}
