//! Everything that runs during the demo, and what every act needs of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, VersionPhase};
use tests_services::postgres::{Kind, PostgresServer};

use crate::control::{CREDENTIAL, ControlPlane};
use crate::host::{CAST, Cast, HOSTS, Host, free_port};
use crate::narrator::Narrator;
use crate::programs::Programs;
use crate::protected::{Login, Protected, Verdict};
use crate::terminal::{Terminal, Tone};

/// How long any one step may take before the demo gives up and says what it waited for.
pub const STEP: Duration = Duration::from_mins(2);

/// What the demo was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Which server is protected.
    pub server: Kind,
}

/// All of it, running. Dropping it ends everything, hosts first.
pub struct Scene {
    /// The hosts, the canary first.
    pub hosts: Vec<Host>,
    /// The control plane.
    pub control: ControlPlane,
    /// The protected server.
    pub protected: Protected,
    /// Tells what happens.
    pub narrator: Narrator,
    /// Where the demo speaks.
    pub terminal: Terminal,
    /// Promises that were seen not to hold.
    pub broken: Vec<String>,
    programs: Programs,
    directory: tempfile::TempDir,
}

impl Scene {
    /// Starts everything and brings the first version to all hosts.
    pub fn set(terminal: Terminal, wish: Wish) -> anyhow::Result<Self> {
        let programs = Programs::beside_us()?;
        let directory = tempfile::Builder::new().prefix("eso-demo-").tempdir()?;
        let apart = nix::unistd::geteuid().is_root();
        terminal.say(Tone::Heading, "setting the scene");
        let server = PostgresServer::start(wish.server).context("failed to start the protected server")?;
        terminal.say(Tone::Plain, format!("{} on {}", server.describe(), server.address()));
        let protected = Protected::new(server);
        let control = ControlPlane::start(&programs, directory.path(), free_port()?)?;
        prepare_server(&protected, &control)?;
        let mut hosts = Vec::new();
        for (place, name) in HOSTS.iter().enumerate() {
            hosts.push(Host::start(&programs, &control, directory.path(), place, apart)?);
            terminal.say(Tone::Plain, format!("host {name} enrols by a one-time token"));
        }
        let narrator = Narrator::new(terminal.clone(), CREDENTIAL);
        let mut scene =
            Self { hosts, control, protected, narrator, terminal, broken: Vec::new(), programs, directory };
        scene.wait_for_hosts()?;
        write_resources(&scene.control, &scene.protected, "")?;
        scene.first_version()?;
        scene.say_evidence()?;
        Ok(scene)
    }

    fn wait_for_hosts(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP;
        while self.control.hosts()?.iter().filter(|host| host.reported_at.is_some()).count() < HOSTS.len() {
            if Instant::now() > deadline {
                bail!("not all hosts reported:\n{}", self.control.esoctl(&["host", "list"])?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn first_version(&mut self) -> anyhow::Result<()> {
        self.narrator.until(&self.control, "the first version is on all hosts", STEP, |detail| {
            let first = detail.versions.first();
            first.is_some_and(|first| {
                first.deliveries.len() == HOSTS.len()
                    && first.deliveries.iter().all(|delivery| delivery.phase == DeliveryPhase::Activated)
            })
        })?;
        let address = self.protected.address();
        for cast in &CAST {
            self.hosts[cast.host].start_application(&self.programs, cast, address)?;
            self.terminal.say(
                Tone::Plain,
                format!(
                    "{} on {} logs in all the time and adopts by {:?}",
                    cast.name, HOSTS[cast.host], cast.adoption
                ),
            );
        }
        self.narrator.until(&self.control, "the first version is active", STEP, |detail| {
            detail.summary.current.is_some() && detail.rollout.is_none()
        })?;
        self.wait_for_logins()
    }

    fn wait_for_logins(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP;
        for cast in &CAST {
            while self.protected.tally(cast.source())?.logins == 0 {
                if Instant::now() > deadline {
                    let log =
                        std::fs::read_to_string(self.hosts[cast.host].log(cast.name)).unwrap_or_default();
                    bail!("{} does not log in; its log:\n{log}", cast.name);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn say_evidence(&self) -> anyhow::Result<()> {
        for host in self.control.hosts()? {
            let evidence = crate::narrator::word(&host.evidence);
            self.terminal.say(Tone::Plain, format!("evidence on {}: {evidence}", host.name));
        }
        Ok(())
    }

    /// The login that lies on a host now.
    pub fn login_on(&self, host: usize) -> anyhow::Result<Login> {
        self.hosts[host].login()
    }

    /// Waits until `version` ends, restarting nothing.
    pub fn until_retired(&mut self, version: Version) -> anyhow::Result<CredentialDetail> {
        self.narrator.until(&self.control, &format!("version {version} is retired"), STEP, |detail| {
            phase(detail, version)
                .is_some_and(|phase| matches!(phase, VersionPhase::Retired | VersionPhase::Erased))
        })
    }

    /// A person restarts the application that nobody else may restart.
    pub fn restart_by_hand(&mut self, cast: &Cast) -> anyhow::Result<()> {
        self.terminal.say(Tone::Plain, format!("a person restarts {} on {}", cast.name, HOSTS[cast.host]));
        self.hosts[cast.host].signal(cast.name, nix::sys::signal::Signal::SIGTERM)
    }

    /// Notes whether a promise was seen to hold.
    pub fn promise(&mut self, held: bool, what: impl Into<String>) {
        let what = what.into();
        self.terminal.say(if held { Tone::Good } else { Tone::Bad }, &what);
        if !held {
            self.broken.push(what);
        }
    }

    /// The server must refuse this login, in its own words.
    pub fn must_be_refused(&mut self, login: &Login, whose: &str) -> anyhow::Result<()> {
        let verdict = self.protected.try_login(login)?;
        match verdict {
            Verdict::Refused(words) => self.promise(true, format!("the server refuses {whose}: {words}")),
            Verdict::Accepted => self.promise(false, format!("the server still accepts {whose}")),
        }
        Ok(())
    }

    /// What the server's log says of each application since the act began.
    pub fn tell_logins(&mut self) -> anyhow::Result<()> {
        for cast in &CAST {
            let tally = self.protected.tally(cast.source())?;
            let line = format!(
                "{}: {} logins, {} failed, longest gap {} ms",
                cast.name, tally.logins, tally.failed, tally.gap_ms_max
            );
            self.promise(tally.failed == 0 && tally.logins > 0, line);
        }
        Ok(())
    }

    /// Where everything of the demo lies.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// The phase of a version.
pub fn phase(detail: &CredentialDetail, version: Version) -> Option<VersionPhase> {
    detail.versions.iter().find(|known| known.version == version).map(|known| known.phase)
}

fn prepare_server(protected: &Protected, control: &ControlPlane) -> anyhow::Result<()> {
    let server = protected.server();
    server.admin_execute("CREATE ROLE minter LOGIN CREATEROLE PASSWORD 'minter-of-the-demo'")?;
    server.admin_execute("CREATE ROLE orders_owner")?;
    server.admin_execute("GRANT orders_owner TO minter WITH ADMIN OPTION")?;
    server.admin_execute("CREATE DATABASE orders OWNER orders_owner")?;
    std::fs::write(minter_password(control), "minter-of-the-demo")?;
    Ok(())
}

fn minter_password(control: &ControlPlane) -> PathBuf {
    control.secrets().join("minter-password")
}

/// Writes generator and credential. `password` is put into the generator's `user`, to make passwords of another form.
pub fn write_resources(control: &ControlPlane, protected: &Protected, password: &str) -> anyhow::Result<()> {
    let address = protected.address();
    let tls = protected.server().tls_spec();
    let text = format!(
        r#"apiVersion: generators.external-secrets.io/v1alpha1
kind: PostgreSql
metadata: {{ name: orders }}
spec:
  host: {host}
  port: {port}
  database: orders
  auth: {{ username: minter, password: {{ file: {minter_password} }} }}
  tls: {tls}
  user:
    username: orders
    owner: orders_owner
{password}---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{ name: {CREDENTIAL} }}
spec:
  generator: {{ kind: PostgreSql, name: orders }}
  targets:
    hosts:
      matchLabels: {{ app: orders }}
      canary: {{ matchLabels: {{ canary: "true" }} }}
  files:
    credentials.json: '{{"username":"{{{{ .username }}}}","password":"{{{{ .password }}}}"}}'
  first: mint
  policy: {{ barrier: 10s, flipIn: 2s, grace: 1s, adoptWithin: 2m, sampleEvery: 1s }}
"#,
        host = address.ip(),
        port = address.port(),
        minter_password = minter_password(control).display(),
    );
    let unfinished = control.resources().join(".orders.yaml.new");
    std::fs::write(&unfinished, text)?;
    std::fs::rename(unfinished, control.resources().join("orders.yaml"))?;
    Ok(())
}
