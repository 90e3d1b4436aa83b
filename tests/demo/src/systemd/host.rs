//! One machine with the package, and the units of its applications.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tests_host::{Base, Machine, Package};

use crate::application::Adoption;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::host::{CAST, Cast, FILE, HOSTS, free_port};
use crate::login::Login;
use crate::programs::Programs;
use crate::protected::Protected;
use crate::search::Search;

/// Where applications find the URL.
const PLACE: &str = "/etc/orders/db-url";
/// The same set, for the one that watches its directory.
const SETS: &str = "/run/eso-vm-server/sets";
/// What the start script of the last application writes, and all that the application itself reads.
const COPY: &str = "/run/ledger/db-url";
/// Where applications show the demo what they log in with.
const SHOWN: &str = "/var/lib/shown";

/// One host, running.
pub(super) struct Host {
    pub(super) name: &'static str,
    place: usize,
    machine: Machine,
    /// The files that it wrote over those of the base.
    own: PathBuf,
}

/// The unit of an application.
pub(super) fn unit(cast: &Cast) -> String {
    format!("{}.service", cast.name)
}

/// How it takes up a new version, for people.
pub(super) const fn in_words(cast: &Cast) -> &'static str {
    match cast.adoption {
        Adoption::Restart => "restarted over D-Bus",
        Adoption::Reload => "reloaded over D-Bus; the kernel sees it read again",
        Adoption::Reopen => "notices by itself, and says so",
        Adoption::Manual => "only the `cat` in its start script ever reads the file; a person restarts it",
    }
}

impl Host {
    pub(super) fn boot(base: &Base, directory: &Path, place: usize) -> anyhow::Result<Self> {
        let name = HOSTS[place];
        let directory = directory.join(name);
        Ok(Self {
            name,
            place,
            machine: Machine::boot(base, &directory, name)?,
            own: directory.join("upper"),
        })
    }

    /// Installs the package, or upgrades to it.
    pub(super) fn install(&self, package: &Package) -> anyhow::Result<()> {
        self.machine.copy_in(package.deb(), "/root/eso-vm-server.deb")?;
        self.machine.run(&["dpkg", "--install", "/root/eso-vm-server.deb"]).map(drop)
    }

    /// Writes its policy and brings it the one-time token, as root would.
    pub(super) fn enrol(&self, control: &ControlPlane) -> anyhow::Result<()> {
        let port = free_port()?;
        // A reader of a moment is held until it was written down: a `cat` is never gone before somebody has looked.
        let daemon = format!(
            "[daemon]\nlisten = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\nreport_ms = 1_000\n\
            evidence = \"exact\"\n"
        );
        self.machine.write("/etc/eso-vm-server/config.toml", &daemon)?;
        self.machine.write("/etc/eso-vm-server/conf.d/orders-db.toml", &self.policy())?;
        self.machine.run(&["mkdir", "-p", "/etc/orders", SHOWN])?;
        let canary = if self.place == 0 { "canary=true" } else { "canary=false" };
        let token = ["host", "enroll-token", self.name, "--label", "app=orders", "--label", canary];
        self.machine.write("/root/bundle.json", &control.esoctl(&token)?)?;
        self.machine.run(&["eso-vm-applier", "enroll", "--bundle", "/root/bundle.json"])?;
        self.machine.run(&["rm", "/root/bundle.json"])?;
        self.machine.run(&["systemctl", "restart", "eso-vm-applier", "eso-vm-server"]).map(drop)
    }

    fn policy(&self) -> String {
        let mut text = format!(
            "[set.{CREDENTIAL}]\nplaces = [{{ path = \"{PLACE}\", file = \"{FILE}\" }}]\nrefresh_ms = 1_000\n"
        );
        for cast in CAST.iter().filter(|cast| cast.host == self.place) {
            let adopt = match cast.adoption {
                Adoption::Restart => "adopt = \"restart\"",
                Adoption::Reload => "adopt = \"reload\"",
                Adoption::Reopen => "adopt = \"reopen\"\nevidence = \"reported\"",
                Adoption::Manual => "adopt = \"manual\"",
            };
            let consumer = format!(
                "\n[[set.{CREDENTIAL}.consumers]]\nunit = \"{}\"\n{adopt}\nsettle_ms = 1_000\n",
                unit(cast)
            );
            text.push_str(&consumer);
        }
        text
    }

    /// Writes an application's unit and starts it.
    pub(super) fn start_application(
        &self,
        programs: &Programs,
        cast: &Cast,
        protected: &Protected,
    ) -> anyhow::Result<()> {
        let program = "/usr/local/bin/demo-application";
        if !self.machine.path(program).exists() {
            self.machine.copy_in(&programs.path("demo-application"), program)?;
        }
        let mut start = vec![format!(
            "{program} --name {name} --source {} --shown {SHOWN}/{name} --pidfile /run/{name}.pid",
            cast.source(),
            name = cast.name
        )];
        if let Some(authority) = protected.authority() {
            self.machine.write("/etc/orders/authority.pem", &std::fs::read_to_string(authority)?)?;
            start.push("--authority /etc/orders/authority.pem".to_owned());
        }
        start.push(match cast.adoption {
            Adoption::Restart => format!("--adoption restart --credential {PLACE}"),
            Adoption::Reload => format!("--adoption reload --credential {PLACE}"),
            Adoption::Manual => format!("--adoption manual --credential {COPY}"),
            Adoption::Reopen => format!(
                "--adoption reopen --credential {FILE} --set-directory {SETS}/{CREDENTIAL} \
                --tell /run/eso-vm-server/{}",
                protocol::reported::SOCKET
            ),
        });
        start.extend(cast.table.map(|table| format!("--table {table}")));
        start.extend(cast.strict_url.then(|| "--strict-url".to_owned()));
        let start = start.join(" ");
        let around = match cast.adoption {
            Adoption::Manual => {
                format!("RuntimeDirectory=ledger\nExecStartPre=/bin/sh -c 'umask 077; cat {PLACE} >{COPY}'\n")
            }
            Adoption::Reload => "ExecReload=/bin/kill -HUP $MAINPID\n".to_owned(),
            Adoption::Restart | Adoption::Reopen => String::new(),
        };
        let text = format!(
            "[Service]\n{around}ExecStart={start}\nRestart=on-failure\nRestartSec=100ms\n\
            [Install]\nWantedBy=multi-user.target\n"
        );
        self.machine.write(&format!("/etc/systemd/system/{}", unit(cast)), &text)?;
        self.machine.run(&["systemctl", "daemon-reload"])?;
        self.machine.run(&["systemctl", "enable", "--quiet", "--now", &unit(cast)]).map(drop)
    }

    /// What an application logs in with now. The file of the set is left alone: who reads it is a holder.
    pub(super) fn login(&self, cast: &Cast) -> anyhow::Result<Login> {
        self.shown(cast)?.pop().context("the application has shown no login yet")
    }

    /// Everything that an application read to log in with, in order.
    pub(super) fn shown(&self, cast: &Cast) -> anyhow::Result<Vec<Login>> {
        let shown = self.machine.path(&format!("{SHOWN}/{}", cast.name));
        let text = std::fs::read_to_string(shown)?;
        text.lines().map(Login::parse).collect()
    }

    /// Looks for values in everything that the machine keeps, in its journal, and at all of its processes.
    pub(super) fn search(&self, search: &mut Search) -> anyhow::Result<()> {
        let shown = self.own.join(SHOWN.trim_start_matches('/'));
        search.tree(&self.own, &[shown])?;
        let journal = self.machine.run(&["journalctl", "--no-pager", "--all", "--output=json"])?;
        search.bytes(format!("the journal of {}", self.name), journal);
        for entry in std::fs::read_dir(self.machine.path("/proc"))? {
            let entry = entry?;
            if let Some(process) = entry.file_name().to_str().filter(|name| name.parse::<u32>().is_ok()) {
                search.process(&format!("process {process} on {}", self.name), &entry.path());
            }
        }
        Ok(())
    }

    /// The present life of an application's unit.
    pub(super) fn invocation(&self, cast: &Cast) -> anyhow::Result<String> {
        let unit = unit(cast);
        let shown = self.machine.run(&["systemctl", "show", "-p", "InvocationID", "--value", &unit])?;
        Ok(shown.trim().to_owned())
    }

    /// A person restarts an application.
    pub(super) fn restart(&self, cast: &Cast) -> anyhow::Result<()> {
        self.machine.run(&["systemctl", "restart", &unit(cast)]).map(drop)
    }

    /// Restarts both of our programs.
    pub(super) fn restart_ours(&self) -> anyhow::Result<()> {
        self.machine.run(&["systemctl", "restart", "eso-vm-applier", "eso-vm-server"]).map(drop)
    }

    /// What an application's unit said.
    pub(super) fn journal_of(&self, cast: &Cast) -> anyhow::Result<String> {
        self.machine.run(&["journalctl", "--no-pager", "--lines=30", "--unit", &unit(cast)])
    }
}
