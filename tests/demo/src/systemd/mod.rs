//! The same on real systemd hosts: three machines, each with its own PID 1, installed from the package. Units are
//! restarted and reloaded over D-Bus, the kernel says who reads, and one unit only has a `cat` in its start script.
//!
//! The machines share this machine's loopback, so that the judge tells applications apart by their addresses as ever.

mod acts;
mod host;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, HostSummary, VersionPhase};
use tests_host::{Base, Package};

use self::host::Host;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::examples::Changes;
use crate::footer::Footer;
use crate::host::{CAST, HOSTS, free_port};
use crate::login::{Login, Verdict};
use crate::narrator::{Narrator, Subject};
use crate::programs::Programs;
use crate::protected::{Kind, Protected, now_ms};
use crate::scene::{STEP, phase, write_credential};
use crate::search::Search;
use crate::summary;
use crate::terminal::{Terminal, Tone};

/// All of it, running. Dropping it ends everything, the live lines and the hosts first.
struct Stage {
    _footer: Footer,
    hosts: Vec<Host>,
    control: ControlPlane,
    protected: Protected,
    narrator: Narrator,
    terminal: Terminal,
    broken: Vec<String>,
    package: Package,
    /// The credential of the generator itself, with a name that may be shown.
    planted: (String, String),
    /// When the first act began, in milliseconds since 1970.
    began_ms: u64,
    directory: tempfile::TempDir,
}

type Act = fn(&mut Stage) -> anyhow::Result<()>;

/// The acts that are about what hosts do, by the numbers that they have everywhere.
const ACTS: [(u8, Act); 2] = [(1, acts::rotation), (3, acts::unusable)];

/// Whether this act is about what hosts do, and so is played here.
pub fn plays(act: u8) -> bool {
    ACTS.iter().any(|(number, _)| *number == act)
}

/// Plays these acts, all unless told. The promises that were seen not to hold.
pub fn play(terminal: &Terminal, kind: Kind, acts: &[u8]) -> anyhow::Result<Vec<String>> {
    if let Some(missing) = tests_host::needs::missing() {
        bail!("--systemd boots machines: {missing}");
    }
    let mut stage = Stage::set(terminal.clone(), kind)?;
    for (number, act) in ACTS {
        if acts.is_empty() || acts.contains(&number) {
            act(&mut stage)?;
        }
    }
    stage.search()?;
    let told = summary::tell(terminal, &mut stage.protected, &stage.narrator, stage.began_ms)?;
    for (held, what) in told {
        stage.promise(held, what);
    }
    Ok(std::mem::take(&mut stage.broken))
}

impl Stage {
    fn set(terminal: Terminal, kind: Kind) -> anyhow::Result<Self> {
        let programs = Programs::beside_us()?;
        let directory = tempfile::Builder::new().prefix("eso-demo-").tempdir()?;
        terminal
            .say(Tone::Heading, "setting the scene: three real systemd hosts, installed from the package");
        let package = Package::of_what_is_built()?;
        let base = Base::ready()?;
        let protected = Protected::start(kind, &programs).context("failed to start the protected server")?;
        let described = protected.describe();
        terminal
            .say(Tone::Plain, format!("{described} on {}; its own log is the judge", protected.address()));
        let control = ControlPlane::start(&programs, directory.path(), free_port()?)?;
        let planted = protected.prepare(&control.secrets())?;
        let mut hosts = Vec::new();
        for place in 0..HOSTS.len() {
            crate::interrupt::check()?;
            let began = Instant::now();
            let host = Host::boot(&base, directory.path(), place)?;
            host.install(&package)?;
            host.enrol(&control)?;
            let took = crate::terminal::span(began.elapsed());
            let canary = if place == 0 { "; it is the canary" } else { "" };
            let first = format!("{} booted, installed the package and enrolled in {took}", host.name);
            terminal.say(Tone::Plain, format!("{first}{canary}"));
            hosts.push(host);
        }
        let narrator = Narrator::new(terminal.clone(), CREDENTIAL, Subject::Login);
        let footer = Footer::show(&terminal, protected.log_file(), narrator.users());
        write_credential(&control, &protected, Changes::default())?;
        let mut stage = Self {
            _footer: footer,
            hosts,
            control,
            protected,
            narrator,
            terminal,
            broken: Vec::new(),
            package,
            planted,
            began_ms: 0,
            directory,
        };
        stage.first_version(&programs)?;
        stage.promise_evidence()?;
        stage.began_ms = now_ms()?;
        Ok(stage)
    }

    fn first_version(&mut self, programs: &Programs) -> anyhow::Result<()> {
        self.narrator.until(&self.control, "the first version is on all hosts", STEP, |detail| {
            let first = detail.versions.first();
            first.is_some_and(|first| {
                first.deliveries.len() == HOSTS.len()
                    && first.deliveries.iter().all(|delivery| delivery.phase == DeliveryPhase::Activated)
            })
        })?;
        for cast in &CAST {
            self.hosts[cast.host].start_application(programs, cast, &self.protected)?;
            let line = format!("{} on {}: {}", host::unit(cast), HOSTS[cast.host], host::in_words(cast));
            self.terminal.say(Tone::Plain, line);
        }
        self.narrator.until(&self.control, "the first version is active", STEP, |detail| {
            detail.summary.current.is_some() && detail.rollout.is_none()
        })?;
        let deadline = Instant::now() + STEP;
        for cast in &CAST {
            while self.protected.tally(cast.source())?.logins == 0 {
                crate::interrupt::check()?;
                if Instant::now() > deadline {
                    bail!("{} does not log in:\n{}", cast.name, self.hosts[cast.host].journal_of(cast)?);
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn promise_evidence(&mut self) -> anyhow::Result<()> {
        let hosts: Vec<HostSummary> = self.control.hosts()?;
        let kernel = hosts.iter().all(|host| host.evidence == lifecycle::Evidence::Kernel);
        self.promise(kernel, "the kernel sees who opens what, on all three hosts");
        Ok(())
    }

    fn promise(&mut self, held: bool, what: impl Into<String>) {
        let what = what.into();
        self.terminal.say(if held { Tone::Good } else { Tone::Bad }, &what);
        if !held {
            self.broken.push(what);
        }
    }

    /// Whether the server takes this login, in the server's own words.
    fn must_be(&mut self, accepted: bool, login: &Login, what: &str) -> anyhow::Result<()> {
        let (is_accepted, words) = match self.protected.try_login(login)? {
            Verdict::Accepted(_) => (true, "the server accepts it".to_owned()),
            Verdict::Refused(words) => (false, words),
        };
        self.promise(is_accepted == accepted, format!("{what}: {words}"));
        Ok(())
    }

    fn until_retired(&mut self, version: Version) -> anyhow::Result<CredentialDetail> {
        self.narrator.until(&self.control, &format!("version {version} is retired"), STEP, |detail| {
            phase(detail, version)
                .is_some_and(|phase| matches!(phase, VersionPhase::Retired | VersionPhase::Erased))
        })
    }

    /// Asks for a rotation; the versions before and after.
    fn rotate(&mut self) -> anyhow::Result<(Version, Version)> {
        let detail = self.control.credential(CREDENTIAL)?;
        let before = detail.summary.current.context("no version is active")?;
        self.control.esoctl(&["credential", "rotate", CREDENTIAL])?;
        self.terminal.say(Tone::Person, format!("esoctl credential rotate {CREDENTIAL}"));
        let detail = self.narrator.until(&self.control, "a new version is minted", STEP, |detail| {
            detail.versions.iter().any(|known| known.version > before)
        })?;
        let after = detail.versions.iter().map(|known| known.version).max().unwrap_or(before);
        Ok((before, after))
    }

    /// What the server's log says of each application since the act began. All of them still log in at its end.
    fn tell_logins(&mut self) -> anyhow::Result<()> {
        self.protected.until_all_log_in()?;
        for cast in &CAST {
            let tally = self.protected.tally(cast.source())?;
            let line = format!("{}: {}, by the server's own log", host::unit(cast), tally.in_words());
            self.promise(tally.is_well(), line);
        }
        Ok(())
    }

    /// Everything that applications read to log in with, the machines' own files, journals and processes included.
    fn search(&mut self) -> anyhow::Result<()> {
        let mut logins = Vec::new();
        for cast in &CAST {
            logins.extend(self.hosts[cast.host].shown(cast)?);
        }
        let mut search = Search::of(&logins, std::slice::from_ref(&self.planted))?;
        search.outputs(&self.control, &self.terminal)?;
        search.protected(&self.protected)?;
        // The machines' directories lie in it too: each is searched by itself, as far as it is no machine's own base.
        let mut apart: Vec<PathBuf> = HOSTS.iter().map(|name| self.directory.path().join(name)).collect();
        apart.push(self.control.secrets());
        search.tree(self.directory.path(), &apart)?;
        for host in &self.hosts {
            host.search(&mut search)?;
        }
        if let Some(process) = self.control.process()? {
            search.process("the control plane", Path::new(&format!("/proc/{process}")));
        }
        for (held, what) in search.promises() {
            self.promise(held, what);
        }
        self.terminal.say(
            Tone::Why,
            "left out, since values belong there: the sets on the hosts, what applications show the demo, and the secrets \
             of the control plane's own logins",
        );
        Ok(())
    }
}
