//! Everything that runs during the demo, and what every act needs of it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lifecycle::{Evidence, Version};
use protocol::api::{AuditPage, CredentialDetail, DeliveryPhase, VersionPhase};
use tests_services::OpenBao;

use crate::control::{CREDENTIAL, ControlPlane};
use crate::examples;
use crate::footer::Footer;
use crate::host::{CAST, Cast, HOSTS, Host, free_port};
use crate::judge::Tally;
use crate::login::{Login, Verdict};
use crate::narrator::{Narrator, Subject};
use crate::programs::Programs;
use crate::protected::{Kind, Protected};
use crate::terminal::{Terminal, Tone};

/// How long any one step may take before the demo gives up and says what it waited for.
pub const STEP: Duration = Duration::from_mins(2);

/// All of it, running. Dropping it ends everything, the live lines and the hosts first.
pub struct Scene {
    _footer: Footer,
    /// The hosts, the canary first.
    pub hosts: Vec<Host>,
    /// The control plane.
    pub control: ControlPlane,
    /// The protected server.
    pub protected: Protected,
    /// A store of somebody else, once the last act began.
    pub bao: Option<OpenBao>,
    /// Tells what happens.
    pub narrator: Narrator,
    /// Where the demo speaks.
    pub terminal: Terminal,
    /// Promises that were seen not to hold.
    pub broken: Vec<String>,
    /// Values beside the logins that must be nowhere but where they belong, each with a name that may be shown.
    pub planted: Vec<(String, String)>,
    /// When the first act began, in milliseconds since 1970.
    pub began_ms: u64,
    programs: Programs,
    directory: tempfile::TempDir,
}

impl Scene {
    /// Starts everything and brings the first version to all hosts.
    pub fn set(terminal: Terminal, kind: Kind) -> anyhow::Result<Self> {
        let programs = Programs::beside_us()?;
        let directory = tempfile::Builder::new().prefix("eso-demo-").tempdir()?;
        let apart = nix::unistd::geteuid().is_root();
        terminal.say(Tone::Heading, "setting the scene");
        terminal.say(
            Tone::Why,
            "one server that applications log in to, one control plane, three hosts; every process is real",
        );
        let protected = Protected::start(kind, &programs).context("failed to start the protected server")?;
        terminal.say(
            Tone::Plain,
            format!("{} on {}; its own log is the judge", protected.describe(), protected.address()),
        );
        let mut control = ControlPlane::start(&programs, directory.path(), free_port()?)?;
        let planted = vec![protected.prepare(&control.secrets())?];
        let process = control.process()?.map_or_else(String::new, |process| format!(", process {process}"));
        terminal.say(Tone::Plain, format!("a control plane with its own store{process}"));
        let mut hosts = Vec::new();
        for (place, name) in HOSTS.iter().enumerate() {
            crate::interrupt::check()?;
            hosts.push(Host::start(&programs, &control, directory.path(), place, apart)?);
            let canary = if place == 0 { "; it is the canary" } else { "" };
            terminal.say(Tone::Plain, format!("host {name} enrols by a one-time token{canary}"));
        }
        let narrator = Narrator::new(terminal.clone(), CREDENTIAL, Subject::Login);
        let footer = Footer::show(&terminal, protected.log_file(), narrator.users());
        let mut scene = Self {
            _footer: footer,
            hosts,
            control,
            protected,
            bao: None,
            narrator,
            terminal,
            broken: Vec::new(),
            planted,
            began_ms: 0,
            programs,
            directory,
        };
        scene.wait_for_hosts()?;
        scene.load_examples()?;
        scene.first_version()?;
        scene.promise_evidence()?;
        scene.began_ms = crate::protected::now_ms()?;
        Ok(scene)
    }

    /// The documented credential goes to the control plane; the documented policy lies on the hosts already.
    fn load_examples(&self) -> anyhow::Result<()> {
        let differs = write_credential(&self.control, &self.protected, examples::Changes::default())?;
        let first = format!("{}, as documented but for:", examples::CREDENTIAL);
        self.terminal.say(Tone::Plain, format!("{first} {}", differs.join(", ")));
        if let Some(host) = self.hosts.first() {
            let first = format!("{}, as documented but for (on {}):", examples::POLICY, host.name);
            self.terminal.say(Tone::Plain, format!("{first} {}", host.differs.join(", ")));
        }
        Ok(())
    }

    fn wait_for_hosts(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP;
        while self.control.hosts()?.iter().filter(|host| host.reported_at.is_some()).count() < HOSTS.len() {
            crate::interrupt::check()?;
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
        for cast in &CAST {
            self.hosts[cast.host].start_application(&self.programs, cast, &self.protected)?;
            let words = cast.adoption.in_words();
            self.terminal.say(
                Tone::Plain,
                format!("{} on {} logs in all the time; {words}", cast.name, HOSTS[cast.host]),
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
                crate::interrupt::check()?;
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

    /// How it is known who has which version: as root the kernel sees who opens what, else policy and applications say.
    fn promise_evidence(&mut self) -> anyhow::Result<()> {
        let hosts = self.control.hosts()?;
        let mut words: Vec<String> = hosts
            .iter()
            .map(|host| format!("{}: {}", host.name, crate::narrator::word(&host.evidence)))
            .collect();
        words.sort();
        let (how, known): (_, &[Evidence]) = if nix::unistd::geteuid().is_root() {
            ("as root, so the kernel sees who opens what", &[Evidence::Kernel])
        } else {
            (
                "without root, so policy names who reads, and applications say what they use",
                &[Evidence::Declared, Evidence::Reported],
            )
        };
        let held = hosts.len() == HOSTS.len() && hosts.iter().all(|host| known.contains(&host.evidence));
        self.promise(held, format!("evidence ({how}): {}", words.join(", ")));
        Ok(())
    }

    /// The login that lies on a host now.
    pub fn login_on(&self, host: usize) -> anyhow::Result<Login> {
        self.hosts[host].login()
    }

    /// Waits until what an application shows is this login again.
    pub fn until_login_is(&self, host: usize, login: &Login) -> anyhow::Result<bool> {
        let deadline = Instant::now() + STEP;
        while self.login_on(host)?.username() != login.username() {
            crate::interrupt::check()?;
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
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
        self.terminal.say(Tone::Person, format!("a person restarts {} on {}", cast.name, HOSTS[cast.host]));
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
        let said = match self.protected.try_login(login)? {
            Verdict::Refused(words) => Ok(words),
            Verdict::Accepted(_) => Err(()),
        };
        match said {
            Ok(words) => self.promise(true, format!("the server refuses {whose}: {words}")),
            Err(()) => self.promise(false, format!("the server still accepts {whose}")),
        }
        Ok(())
    }

    /// The server must accept this login.
    pub fn must_be_accepted(&mut self, login: &Login, what: &str) -> anyhow::Result<()> {
        let accepted = matches!(self.protected.try_login(login)?, Verdict::Accepted(_));
        self.promise(accepted, what);
        Ok(())
    }

    /// What the server's log says of each application since the act began. All of them still log in at its end.
    pub fn tell_logins(&mut self) -> anyhow::Result<()> {
        self.protected.until_all_log_in()?;
        let mut all = Tally::default();
        for cast in &CAST {
            let tally = self.protected.tally(cast.source())?;
            if !tally.is_well() {
                self.promise(false, format!("{}: {}", cast.name, tally.in_words()));
            }
            all.logins += tally.logins;
            all.failed += tally.failed;
            all.gap_ms_max = all.gap_ms_max.max(tally.gap_ms_max);
        }
        self.promise(all.is_well(), format!("in this act {}, by the server's own log", all.in_words()));
        Ok(())
    }

    /// How often each application ended so far, for [`Scene::promise_ended`].
    pub fn ended(&self) -> [usize; CAST.len()] {
        CAST.map(|cast| self.hosts[cast.host].ended(cast.name))
    }

    /// Each application ended as often as its way to adopt says, and never because something of ours did: once in a
    /// rotation those that are restarted, by us or by a person.
    pub fn promise_ended(&mut self, before: [usize; CAST.len()], rotations: usize) {
        let ended = self.ended();
        let mut held = true;
        let words = CAST.iter().zip(ended.iter().zip(before)).map(|(cast, (now, before))| {
            let times = now - before;
            held &= times == if cast.adoption.is_by_restart() { rotations } else { 0 };
            format!("{} {times}", cast.name)
        });
        let words = words.collect::<Vec<_>>().join(", ");
        self.promise(
            held,
            format!(
                "nothing but rotations ({rotations} in this act) restarted an application: {words} times"
            ),
        );
    }

    /// Directories that somebody else keeps.
    pub fn kept_by_others(&self) -> impl Iterator<Item = std::path::PathBuf> {
        std::iter::once(self.directory().join("kept-by-others"))
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

/// Gives the control plane the documented credential with these changes, and says what differs.
pub fn write_credential(
    control: &ControlPlane,
    protected: &Protected,
    changes: examples::Changes<'_>,
) -> anyhow::Result<Vec<String>> {
    let examples::Loaded { text, differs } = examples::credential(protected, changes)?;
    write_resource(control, "orders-db.yaml", &text)?;
    Ok(differs)
}

/// The same later on: until the control plane has noticed by itself that the file changed.
pub fn change_credential(
    control: &ControlPlane,
    protected: &Protected,
    changes: examples::Changes<'_>,
) -> anyhow::Result<()> {
    let noticed = || -> anyhow::Result<usize> {
        let page: AuditPage = control.ask(&["audit"])?;
        Ok(page.entries.iter().filter(|entry| entry.action == "changed").count())
    };
    let before = noticed()?;
    write_credential(control, protected, changes)?;
    let deadline = Instant::now() + STEP;
    while noticed()? <= before {
        crate::interrupt::check()?;
        if Instant::now() > deadline {
            bail!("the control plane did not notice a changed file within {} s", STEP.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Puts a file into the directory of resources, at once.
pub fn write_resource(control: &ControlPlane, name: &str, text: &str) -> anyhow::Result<()> {
    let unfinished = control.resources().join(format!(".{name}.new"));
    std::fs::write(&unfinished, text)?;
    Ok(std::fs::rename(unfinished, control.resources().join(name))?)
}
