//! One host: our two daemons and its applications, kept by a launcher.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::application::Adoption;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::launcher::{self, Command, Program};
use crate::programs::Programs;
use crate::protected::Login;

/// An application of the demo, before it runs.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// Its name.
    pub name: &'static str,
    /// The host that it runs on, from 0.
    pub host: usize,
    /// How it takes up a new version.
    pub adoption: Adoption,
    /// Whether it puts the credential into a URL unescaped.
    pub naive_url: bool,
    /// The table that it creates once and alters at every start.
    pub table: Option<&'static str>,
}

/// The four applications. The first runs on the canary.
pub const CAST: [Cast; 4] = [
    Cast {
        name: "orders",
        host: 0,
        adoption: Adoption::Restart,
        naive_url: true,
        table: Some("demo_orders"),
    },
    Cast { name: "billing", host: 1, adoption: Adoption::Reload, naive_url: false, table: None },
    Cast { name: "search", host: 1, adoption: Adoption::Reopen, naive_url: false, table: None },
    Cast { name: "ledger", host: 2, adoption: Adoption::Manual, naive_url: false, table: None },
];

/// The hosts' names. The first is the canary.
pub const HOSTS: [&str; 3] = ["vm-a", "vm-b", "vm-c"];

/// What the credential is called that somebody else rotates.
pub const KEYS: &str = "partner-key";

/// How long a new start of an application may take.
const START_MS: u64 = 5000;
/// How long an application must stay healthy on a new version.
const SETTLE_MS: u64 = 1000;

impl Cast {
    /// The loopback address that it logs in from.
    pub fn source(&self) -> IpAddr {
        let place = CAST.iter().position(|cast| cast.name == self.name).unwrap_or_default();
        IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(place).unwrap_or(u8::MAX)))
    }
}

/// One host, running.
pub struct Host {
    /// What people call it.
    pub name: &'static str,
    directory: PathBuf,
    launcher: launcher::Handle,
}

impl Host {
    /// Writes its policy, enrols it and starts the two daemons. `apart`: with process ids and mounts of its own.
    pub fn start(
        programs: &Programs,
        control: &ControlPlane,
        directory: &Path,
        place: usize,
        apart: bool,
    ) -> anyhow::Result<Self> {
        let name = HOSTS[place];
        let mut host = Self::bare(programs, directory, place, apart)?;
        let directory = host.directory.clone();
        std::fs::write(directory.join("etc/config.toml"), daemon_section(&directory, free_port()?))?;
        std::fs::write(directory.join("etc/conf.d/orders.toml"), set_section(programs, &directory, place))?;
        let bundle = directory.join("bundle.json");
        let canary = if place == 0 { "canary=true" } else { "canary=false" };
        control.esoctl(&[
            "host",
            "enroll-token",
            name,
            "--label",
            "app=orders",
            "--label",
            canary,
            "--out",
            &bundle.display().to_string(),
        ])?;
        let output = std::process::Command::new(programs.path("eso-vm-applier"))
            .arg("--config")
            .arg(host.etc())
            .args(["enroll", "--bundle"])
            .arg(&bundle)
            .output()?;
        if !output.status.success() {
            anyhow::bail!("eso-vm-applier enroll: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::fs::remove_file(&bundle)?;
        for daemon in ["eso-vm-server", "eso-vm-applier"] {
            let program = host.daemon(programs, daemon);
            host.launcher.ask(&Command::Start(program))?;
        }
        Ok(host)
    }

    /// A host without our daemons.
    pub fn bare(programs: &Programs, directory: &Path, place: usize, apart: bool) -> anyhow::Result<Self> {
        let name = HOSTS[place];
        let directory = directory.join(name);
        for folder in ["etc/conf.d", "applications", "keys", "logs"] {
            std::fs::create_dir_all(directory.join(folder))?;
        }
        Ok(Self {
            name,
            launcher: launcher::Handle::spawn(&programs.path("demo-launcher"), apart)?,
            directory,
        })
    }

    fn etc(&self) -> PathBuf {
        self.directory.join("etc")
    }

    fn daemon(&self, programs: &Programs, name: &str) -> Program {
        Program {
            name: name.to_owned(),
            argv: vec![programs.text(name), "--config".into(), self.etc().display().to_string()],
            env: BTreeMap::from([("RUST_LOG".to_owned(), "info".to_owned())]),
            respawn: true,
            keeps_descriptors: name == "eso-vm-applier",
            log: self.log(name),
        }
    }

    /// Where one of its programs logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// All its logs.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Where the credential lies for applications that follow a fixed path.
    pub fn place(&self) -> PathBuf {
        place_of(&self.directory)
    }

    /// Where the partner's key lies: a copy, on a file system that we see too.
    pub fn keys(&self) -> PathBuf {
        keys_of(&self.directory)
    }

    /// Where the set lies.
    pub fn set_directory(&self) -> PathBuf {
        self.directory.join("run/sets").join(CREDENTIAL)
    }

    /// What its first application logs in with now. The file of the set is left alone: who reads it is a holder.
    pub fn login(&self) -> anyhow::Result<Login> {
        let cast =
            CAST.iter().find(|cast| HOSTS[cast.host] == self.name).context("no application runs there")?;
        let path = shown(&self.directory, cast.name);
        Login::parse(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)
    }

    /// Starts an application; it is started again whenever it ends.
    pub fn start_application(
        &mut self,
        programs: &Programs,
        cast: &Cast,
        server: SocketAddr,
    ) -> anyhow::Result<()> {
        let mut argv = vec![programs.text("demo-application")];
        let mut flag = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
        flag("name", cast.name.into());
        flag("source", cast.source().to_string());
        flag("server", server.to_string());
        flag("database", "orders".into());
        flag("adoption", adoption_flag(cast.adoption).into());
        flag("shown", shown(&self.directory, cast.name).display().to_string());
        flag("pidfile", pidfile(&self.directory, cast.name).display().to_string());
        match cast.adoption {
            Adoption::Reload | Adoption::Reopen => {
                flag("credential", FILE.into());
                flag("set-directory", self.set_directory().display().to_string());
                let socket = self.directory.join("run").join(protocol::reported::SOCKET);
                flag("tell", socket.display().to_string());
            }
            Adoption::Restart | Adoption::Manual => flag("credential", self.place().display().to_string()),
        }
        if let Some(table) = cast.table {
            flag("table", table.into());
        }
        if cast.naive_url {
            argv.push("--naive-url".into());
        }
        let program = Program {
            name: cast.name.into(),
            argv,
            env: BTreeMap::new(),
            respawn: true,
            keeps_descriptors: false,
            log: self.log(cast.name),
        };
        self.launcher.ask(&Command::Start(program))?;
        Ok(())
    }

    /// Sends a signal to one of its programs.
    pub fn signal(&mut self, program: &str, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        self.launcher.ask(&Command::Signal(program.into(), signal as i32))?;
        Ok(())
    }

    /// Stops both daemons without ending them; the applications go on.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.signal_daemons(nix::sys::signal::Signal::SIGSTOP)
    }

    /// Lets both daemons go on.
    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.signal_daemons(nix::sys::signal::Signal::SIGCONT)
    }

    fn signal_daemons(&mut self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        for daemon in ["eso-vm-server", "eso-vm-applier"] {
            self.signal(daemon, signal)?;
        }
        Ok(())
    }
}

/// The one file of the set.
pub const FILE: &str = "credentials.json";

fn place_of(directory: &Path) -> PathBuf {
    directory.join("applications").join(FILE)
}

fn keys_of(directory: &Path) -> PathBuf {
    directory.join("keys").join("partner")
}

fn pidfile(directory: &Path, application: &str) -> PathBuf {
    directory.join("applications").join(format!("{application}.pid"))
}

fn shown(directory: &Path, application: &str) -> PathBuf {
    directory.join("applications").join(format!("{application}.shown.json"))
}

fn adoption_flag(adoption: Adoption) -> &'static str {
    match adoption {
        Adoption::Restart => "restart",
        Adoption::Reload => "reload",
        Adoption::Reopen => "reopen",
        Adoption::Manual => "manual",
    }
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn daemon_section(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        r#"[daemon]
state_dir = "{directory}/state"
run_dir = "{directory}/run"
listen = "127.0.0.1:{port}"
advertise = "127.0.0.1:{port}"
supervisor = "none"
report_ms = 2000
"#
    )
}

fn set_section(programs: &Programs, directory: &Path, place: usize) -> String {
    let mut text = format!(
        r#"[set.{CREDENTIAL}]
places = [{{ path = "{}", file = "{FILE}", kind = "link" }}]
refresh_ms = 1000

[set.{KEYS}]
places = [{{ path = "{}", file = "key", kind = "copy" }}]
refresh_ms = 1000
"#,
        place_of(directory).display(),
        keys_of(directory).display(),
    );
    for cast in CAST.iter().filter(|cast| cast.host == place) {
        let adopt = match cast.adoption {
            Adoption::Reload => "adopt = \"signal\"\nsignal = \"HUP\"",
            Adoption::Restart => "adopt = \"restart\"",
            Adoption::Reopen => "adopt = \"reopen\"",
            Adoption::Manual => "adopt = \"manual\"",
        };
        let evidence = match cast.adoption {
            Adoption::Reload | Adoption::Reopen => "evidence = \"reported\"\n",
            Adoption::Restart | Adoption::Manual => "",
        };
        let consumer = format!(
            r#"
[[set.{CREDENTIAL}.consumers]]
name = "{}"
pidfile = "{}"
exe = "{}"
{adopt}
{evidence}start_ms = {START_MS}
settle_ms = {SETTLE_MS}
"#,
            cast.name,
            pidfile(directory, cast.name).display(),
            programs.text("demo-application"),
        );
        text.push_str(&consumer);
    }
    text
}
