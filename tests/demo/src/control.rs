//! The control plane as a process, and the operator's command line against it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protocol::api::{CredentialDetail, HostSummary, PendingVersion};
use serde::de::DeserializeOwned;

use crate::https;
use crate::launcher::{self, Program, Said};
use crate::programs::Programs;

/// What the credential of the demo is called.
pub const CREDENTIAL: &str = "orders-db";

/// The control plane, kept by a launcher of its own so that it can be killed and started again.
pub struct ControlPlane {
    launcher: launcher::Handle,
    program: Program,
    directory: PathBuf,
    esoctl: PathBuf,
    address: SocketAddr,
    /// Everything that `esoctl` printed, to be searched for what must not be there.
    printed: Mutex<Vec<u8>>,
}

impl ControlPlane {
    /// Makes its data directory and starts it on this loopback port.
    pub fn start(programs: &Programs, directory: &Path, port: u16) -> anyhow::Result<Self> {
        let data = directory.join("data");
        let resources = directory.join("resources");
        let secrets = directory.join("secrets");
        for path in [&resources, &secrets] {
            std::fs::create_dir_all(path)?;
        }
        let url = format!("https://127.0.0.1:{port}");
        let output = Command::new(programs.path("eso-control-plane"))
            .args(["init", "--data"])
            .arg(&data)
            .args(["--url", &url])
            .output()
            .context("failed to start eso-control-plane")?;
        if !output.status.success() {
            bail!("eso-control-plane init failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut argv: Vec<String> = vec![programs.text("eso-control-plane"), "serve".into()];
        for (flag, path) in [("--data", &data), ("--resources", &resources), ("--secrets", &secrets)] {
            argv.extend([flag.to_owned(), path.display().to_string()]);
        }
        argv.extend(["--listen".to_owned(), format!("127.0.0.1:{port}"), "--url".to_owned(), url]);
        let program = Program {
            name: "control-plane".into(),
            argv,
            env: [].into(),
            respawn: false,
            keeps_descriptors: false,
            log: directory.join("control-plane.log"),
        };
        let mut launcher = launcher::Handle::spawn(&programs.path("demo-launcher"), false)?;
        launcher.ask(&launcher::Command::Start(program.clone()))?;
        let control = Self {
            launcher,
            program,
            directory: directory.to_owned(),
            esoctl: programs.path("esoctl"),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            printed: Mutex::default(),
        };
        control.wait_ready()?;
        Ok(control)
    }

    /// Where resources are read from.
    pub fn resources(&self) -> PathBuf {
        self.directory.join("resources")
    }

    /// Where the backends' own credentials stand.
    pub fn secrets(&self) -> PathBuf {
        self.directory.join("secrets")
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.program.log
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.launcher.ask(&launcher::Command::Signal(self.program.name.clone(), 9))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.launcher.ask(&launcher::Command::Pids)? {
                Said::Pids(pids) if pids.contains_key(&self.program.name) => {}
                _ => return Ok(()),
            }
            if Instant::now() > deadline {
                bail!("the control plane did not end within 10 s of SIGKILL");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.launcher.ask(&launcher::Command::Start(self.program.clone()))?;
        self.wait_ready()
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.esoctl(&["status"]) {
                Ok(_) => return Ok(()),
                Err(_) if crate::interrupt::asked() => return crate::interrupt::check(),
                Err(error) if Instant::now() > deadline => {
                    let log = std::fs::read_to_string(&self.program.log).unwrap_or_default();
                    return Err(error.context(format!("the control plane is not ready; its log:\n{log}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Runs `esoctl` and returns what it printed.
    pub fn esoctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.esoctl)
            .arg("--config")
            .arg(self.esoctl_config())
            .args(arguments)
            .output()
            .context("failed to start esoctl")?;
        // Also what it says when it fails.
        if let Ok(mut printed) = self.printed.lock() {
            printed.extend_from_slice(&output.stdout);
            printed.extend_from_slice(&output.stderr);
        }
        if !output.status.success() {
            bail!("esoctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Everything that `esoctl` printed so far.
    pub fn printed(&self) -> Vec<u8> {
        self.printed.lock().map(|printed| printed.clone()).unwrap_or_default()
    }

    /// The `esoctl` that it uses.
    pub fn esoctl_program(&self) -> &Path {
        &self.esoctl
    }

    /// Its process, as it is seen here.
    pub fn process(&mut self) -> anyhow::Result<Option<u32>> {
        Ok(self.launcher.pids()?.remove(&self.program.name))
    }

    /// What a scraper reads.
    pub fn metrics(&self) -> anyhow::Result<Vec<u8>> {
        let token =
            self.esoctl(&["operator", "add", "scraper-of-the-demo", "--role", "scraper", "-o", "json"])?;
        let token: serde_json::Value = serde_json::from_str(&token)?;
        let token = token["token"].as_str().context("no token was issued")?.to_owned();
        let authority = self.directory.join("data/admin/ca.pem");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let mut connection =
                https::Connection::open(from, self.address, &authority).await?.with_bearer(token);
            let answer = connection.ask(hyper::Method::GET, "/metrics", None).await?;
            anyhow::ensure!(answer.status.is_success(), "/metrics answers {}", answer.status);
            Ok(answer.body.to_vec())
        })
    }

    /// Where `esoctl` finds address, authority and token.
    pub fn esoctl_config(&self) -> PathBuf {
        self.directory.join("data/admin/esoctl.toml")
    }

    /// Runs `esoctl -o json` and parses what it printed.
    pub fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let text = self.esoctl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("esoctl {} printed no JSON of ours", arguments.join(" ")))
    }

    /// The credential as the control plane sees it.
    pub fn credential(&self, name: &str) -> anyhow::Result<CredentialDetail> {
        self.ask(&["credential", "show", name])
    }

    /// Superseded versions and what keeps them.
    pub fn pending(&self) -> anyhow::Result<Vec<PendingVersion>> {
        self.ask(&["pending"])
    }

    /// All hosts.
    pub fn hosts(&self) -> anyhow::Result<Vec<HostSummary>> {
        self.ask(&["host", "list"])
    }
}
