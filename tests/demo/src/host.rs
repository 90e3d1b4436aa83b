//! One host: our two daemons and its applications, kept by a launcher.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::application::Adoption;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::examples;
use crate::launcher::{self, Command, Program, Said};
use crate::login::Login;
use crate::programs::Programs;
use crate::protected::Protected;

/// An application of the demo, before it runs.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// Its name.
    pub name: &'static str,
    /// The host that it runs on, from 0.
    pub host: usize,
    /// How it takes up a new version.
    pub adoption: Adoption,
    /// Whether it decodes the URL, and ends when that does not work.
    pub strict_url: bool,
    /// The table that it creates once and alters at every start.
    pub table: Option<&'static str>,
}

/// The four applications. The first runs on the canary.
pub const CAST: [Cast; 4] = [
    Cast {
        name: "orders",
        host: 0,
        adoption: Adoption::Restart,
        strict_url: true,
        table: Some("demo_orders"),
    },
    Cast { name: "billing", host: 1, adoption: Adoption::Reload, strict_url: false, table: None },
    Cast { name: "search", host: 1, adoption: Adoption::Reopen, strict_url: false, table: None },
    Cast { name: "ledger", host: 2, adoption: Adoption::Manual, strict_url: false, table: None },
];

/// The hosts' names. The first is the canary.
pub const HOSTS: [&str; 3] = ["vm-a", "vm-b", "vm-c"];

/// What the credentials are called that somebody else rotates: in a directory, and in OpenBao.
pub const KEYS: [&str; 2] = ["partner-key", "vendor-key"];

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
    health: SocketAddr,
    /// What its policy says that the documented one does not.
    pub differs: Vec<String>,
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
        let around = examples::Around {
            root: &host.root(),
            programs,
            health: host.health,
            runs: &|cast| cast.host == place,
        };
        let policy = examples::policy(&around)?;
        std::fs::write(directory.join("etc/conf.d/orders-db.toml"), &policy.text)?;
        std::fs::write(directory.join("etc/conf.d/keys.toml"), keys_section(&directory))?;
        host.differs = policy.differs;
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
        for folder in
            ["etc/conf.d", "root/etc/orders", "root/etc/orders-report", "root/run", "keys", "logs", "shown"]
        {
            std::fs::create_dir_all(directory.join(folder))?;
        }
        Ok(Self {
            name,
            launcher: launcher::Handle::spawn(&programs.path("demo-launcher"), apart)?,
            directory,
            health: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            differs: Vec::new(),
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

    /// What stands before the paths of the documented policy.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where the URL lies for applications that follow a fixed path.
    pub fn place(&self) -> PathBuf {
        self.root().join("etc/orders/db-url")
    }

    /// Where the key of somebody else lies: a copy, on a file system that we see too.
    pub fn key(&self, credential: &str) -> PathBuf {
        self.directory.join("keys").join(credential)
    }

    /// Everything of it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where values lie because they belong there: the sets, the copies, what applications show the demo.
    pub fn places_of_values(&self) -> Vec<PathBuf> {
        let places = ["run/sets", "root/etc/orders-report", "keys", "shown"];
        places.iter().map(|place| self.directory.join(place)).collect()
    }

    /// Where the set lies.
    pub fn set_directory(&self) -> PathBuf {
        self.directory.join("run/sets").join(CREDENTIAL)
    }

    /// What its first application logs in with now. The file of the set is left alone: who reads it is a holder.
    pub fn login(&self) -> anyhow::Result<Login> {
        self.logins()?.pop().context("no application has shown a login yet")
    }

    /// Everything that its first application logged in with, in order.
    fn logins(&self) -> anyhow::Result<Vec<Login>> {
        let cast =
            CAST.iter().find(|cast| HOSTS[cast.host] == self.name).context("no application runs there")?;
        self.shown(cast)
    }

    /// Everything that an application logged in with, in order.
    pub fn shown(&self, cast: &Cast) -> anyhow::Result<Vec<Login>> {
        let path = self.shown_file(cast.name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.lines().map(Login::parse).collect()
    }

    fn shown_file(&self, application: &str) -> PathBuf {
        self.directory.join("shown").join(application)
    }

    /// Its processes by name, with the ids that they have here.
    pub fn processes(&mut self) -> anyhow::Result<BTreeMap<String, u32>> {
        self.launcher.pids()
    }

    /// How often one of its programs ended so far.
    pub fn ended(&self, program: &str) -> usize {
        let ended = self.launcher.ended();
        ended.iter().filter(|said| matches!(said, Said::Ended { name, .. } if name == program)).count()
    }

    /// Starts an application; it is started again whenever it ends.
    pub fn start_application(
        &mut self,
        programs: &Programs,
        cast: &Cast,
        protected: &Protected,
    ) -> anyhow::Result<()> {
        let pidfile = examples::pidfile(&self.root(), cast.name);
        std::fs::create_dir_all(pidfile.parent().context("the pid file has no directory")?)?;
        let mut argv = vec![programs.text("demo-application")];
        let mut flag = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
        flag("name", cast.name.into());
        flag("source", cast.source().to_string());
        flag("adoption", adoption_flag(cast.adoption).into());
        flag("shown", self.shown_file(cast.name).display().to_string());
        flag("pidfile", pidfile.display().to_string());
        if let Some(authority) = protected.authority() {
            flag("authority", authority.display().to_string());
        }
        match cast.adoption {
            Adoption::Reload | Adoption::Reopen => {
                flag("credential", FILE.into());
                flag("set-directory", self.set_directory().display().to_string());
                let socket = self.directory.join("run").join(protocol::reported::SOCKET);
                flag("tell", socket.display().to_string());
            }
            Adoption::Restart | Adoption::Manual => flag("credential", self.place().display().to_string()),
        }
        if cast.adoption == Adoption::Restart {
            flag("health", self.health.to_string());
        }
        if let Some(table) = cast.table {
            flag("table", table.into());
        }
        if cast.strict_url {
            argv.push("--strict-url".into());
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

/// The file of the set that applications read.
pub const FILE: &str = "url";

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

/// Sets of values that are not logins: nobody here uses them, so nobody has to take them up.
fn keys_section(directory: &Path) -> String {
    let section = |name: &str| {
        let place = directory.join("keys").join(name);
        format!(
            "[set.{name}]\nplaces = [{{ path = \"{}\", file = \"key\", kind = \"copy\" }}]\nrefresh_ms = 1000\n",
            place.display()
        )
    };
    KEYS.map(section).join("\n")
}
